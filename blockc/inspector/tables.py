"""Tables for windows of any width.

A table that is too wide takes the short forms of columns that may be left out, from the right, then leaves them out,
then takes the short forms of the others, and in the end has several lines for a row. Styles are names; what they look
like is up to the caller.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from blockc.errors import columns

Paint = Callable[[str, str], str]  # of a text and the name of a style
INDENT, BETWEEN = "  ", "  "
NARROWEST = 40


def plain(text: str, style: str) -> str:
    """The text without any style."""
    return text


@dataclass(frozen=True, slots=True)
class Cell:
    """A text in a style: "heading", "chosen", "name", "less", "more", "faint" or none."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title and cells. One of the `head` stands in the first line of a row that has several. `short` are
    other cells for it, `spare` says that it may be left out."""

    title: str
    cells: tuple[Cell, ...]
    right: bool = False
    head: bool = False
    spare: bool = False
    short: tuple[Cell, ...] = ()

    @property
    def width(self) -> int:
        """The columns of a terminal that it takes."""
        return max(map(columns, (self.title, *(cell.text for cell in self.cells))))


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """The text in lines of at most `width` columns, all but the first with `indent`; words are never cut."""
    lines = textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines or [""]


def width_of(shown: Sequence[Column]) -> int:
    """The width of a table."""
    return len(INDENT) + sum(column.width for column in shown) + len(BETWEEN) * (len(shown) - 1)


def fitting(shown: Sequence[Column], width: int) -> list[Column] | None:
    """The columns that a table of some width has; None if the ones that it needs are too wide."""
    found = [column for column in shown if any(cell.text for cell in column.cells)]
    for spare, short in ((True, True), (True, False), (False, True)):
        for at in reversed(range(len(found))):
            if width_of(found) <= width:
                return found
            if found[at].spare == spare and short:
                found[at] = replace(found[at], cells=found[at].short or found[at].cells)
            elif found[at].spare and spare:
                del found[at]
    return found if width_of(found) <= width else None


def table(shown: Sequence[Column], width: int, paint: Paint = plain) -> list[str]:
    """A table in lines of at most `width` columns, if no word is longer."""
    found = fitting(shown, width)
    if found is None:
        return several_lines(shown, width, paint)
    widths = [column.width for column in found]
    titles = [Cell(column.title, "faint") for column in found]
    rows = [titles] if any(title.text for title in titles) else []
    rows += [list(row) for row in zip(*(column.cells for column in found), strict=True)]
    return [_row(found, widths, row, paint) for row in rows]


def _row(shown: Sequence[Column], widths: Sequence[int], row: Sequence[Cell], paint: Paint) -> str:
    last = max((at for at, cell in enumerate(row) if cell.text), default=-1)
    line = ""
    for at, (column, taken, cell) in enumerate(zip(shown, widths, row, strict=True)):
        if at > last:
            break
        room = " " * (taken - columns(cell.text))
        text = paint(cell.text, cell.style) if cell.text else ""
        line += BETWEEN if at else INDENT
        line += room + text if column.right else text + (room if at < last else "")
    return line


def several_lines(shown: Sequence[Column], width: int, paint: Paint = plain) -> list[str]:
    """Every row as a line with the cells of the head, and below it the others with their titles."""
    lines = []
    heads = [column for column in shown if column.head]
    others = [column for column in shown if not column.head]
    for at in range(len(shown[0].cells)):
        names = [column.cells[at] for column in heads if column.cells[at].text]
        lines += _packed([paint(cell.text, cell.style) for cell in names], [cell.text for cell in names], width, "  ")
        rest = [(column.title, column.cells[at]) for column in others if column.cells[at].text]
        texts = [f"{title} {cell.text}".strip() for title, cell in rest]
        painted = [f"{title} {paint(cell.text, cell.style)}".strip() for title, cell in rest]
        ends = ["," for _ in rest[1:]] + [""]
        texts = [text + end for text, end in zip(texts, ends, strict=False)]
        painted = [text + end for text, end in zip(painted, ends, strict=False)]
        lines += _packed(painted, texts, width, "      ")
    return lines


def _packed(painted: Sequence[str], texts: Sequence[str], width: int, indent: str) -> list[str]:
    """Pieces in lines: `texts` are what they are without styles."""
    lines: list[str] = []
    taken = width + 1
    for piece, text in zip(painted, texts, strict=True):
        if taken + 1 + columns(text) > width:
            lines.append(indent + piece)
            taken = len(indent) + columns(text)
        else:
            lines[-1] += f" {piece}"
            taken += 1 + columns(text)
    return lines


def beside(blocks: Sequence[Sequence[str]], width: int, gap: str = "    ") -> list[str]:
    """Blocks of lines beside one another, as many as there is room for; the others below."""
    lines: list[str] = []
    waiting = list(blocks)
    while waiting:
        taken = [waiting.pop(0)]
        while waiting and len(INDENT) + sum(map(_widest, [*taken, waiting[0]])) + len(gap) * len(taken) <= width:
            taken.append(waiting.pop(0))
        if lines:
            lines.append("")
        for at in range(max(map(len, taken))):
            cells = [(block[at] if at < len(block) else "", _widest(block)) for block in taken]
            padded = (text + " " * (room - columns(text)) for text, room in cells)
            lines.append((INDENT + gap.join(padded)).rstrip())
    return lines


def _widest(block: Sequence[str]) -> int:
    return max(map(columns, block), default=0)
