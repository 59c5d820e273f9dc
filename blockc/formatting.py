"""Texts for a terminal: tables, wrapped lines, and numbers as people read them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

from blockc.ir.block import Program

WIDTH = 100  # columns of a terminal that texts are made for
_LONGEST_CELL = 22


def readable(number: int, unit: str = "") -> str:
    """A change with its sign, to three figures: 0, +512, -16.8 M; with the unit B, -16.8 MB."""
    if not number:
        return "0"
    size, prefix = float(abs(number)), ""
    for larger in ("k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q"):
        if size < 999.5:
            break
        size, prefix = size / 1000, larger
    figures = f"{size:.{max(0, 2 - int(math.log10(size)))}f}" if prefix else f"{size:.0f}"
    return f"{'-' if number < 0 else '+'}{figures} {prefix}{unit}".rstrip()


def amount(number: int, unit: str = "") -> str:
    """A number to three figures: 512, 16.8 M; with the unit B, 512 B and 16.8 MB."""
    return readable(number, unit).lstrip("+") if abs(number) >= 1000 else f"{number} {unit}".rstrip()


def arrow(before: int, after: int, unit: str = "") -> str:
    """A change: 48.8 -> 40.4 MB, 1.05 MB -> 524 kB; one too small for that as -16 kB."""
    (old, _, old_unit), (new, _, new_unit) = (amount(number, unit).partition(" ") for number in (before, after))
    if (old, old_unit) == (new, new_unit):
        return readable(after - before, unit)
    same = old_unit == new_unit or not before
    return f"{old} -> {new} {new_unit}".rstrip() if same else f"{old} {old_unit} -> {new} {new_unit}".rstrip()


def duration(seconds: float) -> str:
    """A time in milliseconds; in microseconds below a tenth of one, and in seconds from ten of them on."""
    if 0 < seconds < 1e-4:
        return f"{seconds * 1e6:,.3f} us"
    return f"{seconds * 1e3:,.3f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def listed(values: Mapping[str, int] | Mapping[str, int | list[int]]) -> str:
    """Named numbers on one line, several of one name with strokes."""
    shown = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return ", ".join(f"{name}={'/'.join(map(str, several))}" for name, several in shown.items())


def block_sizes(program: Program, tiles: Mapping[str, int]) -> dict[str, int | list[int]]:
    """The block size of each dimension; if it is cut more than once, those of all cuts, outermost first."""
    result: dict[str, int | list[int]] = {dim: tile for dim, tile in tiles.items() if dim not in program.chunks}
    for chunk, dim in program.chunks.items():
        if chunk in tiles and tiles[chunk] != tiles[dim]:
            result[dim] = [tiles[chunk], tiles[dim]]
    return result


def wrapped(text: str, indent: str) -> list[str]:
    """The text in lines of at most `WIDTH` columns, all but the first with `indent`; words are never cut."""
    lines = textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
    return lines or [""]


def shortened(text: str) -> str:
    """The text, cut where it would make a column too wide."""
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 3] + "..."


def table(rows: list[tuple[str, ...]], right: frozenset[int]) -> list[str]:
    """Rows as aligned lines, the columns in `right` to the right; the last column is not padded."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines
