"""Where keys and values stand in a TOML text. The standard library reads TOML, and does not say.

`places` takes a text that `tomllib` has accepted, and `key_before` one that it has accepted so far: they only have to
find their way, not to check anything.
"""

from __future__ import annotations

import bisect
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass

from blockc.ir.array_program import Span

Path = tuple[str | int, ...]  # keys, and positions in lists: ("tier", 0, "capacity")

_SPACE = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_BLANK = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_STRING = re.compile(
    r'''"""(?:\\.|[^\\"]|"{1,2}(?!"))*"{3,5}|"(?:[^"\\\n]|\\.)*"'''
    r"""|'{3}(?:[^']|'{1,2}(?!'))*'{3,5}|'[^'\n]*'""",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]*[^,\]}#\n\s]")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key stands (or the header of a table, or a value in a list), and its value."""

    key: Span
    value: Span


@dataclass(frozen=True, slots=True)
class _Part:
    """One part of a dotted key, and from where to where it goes."""

    name: str
    start: int
    end: int


Record = Callable[[Path, int, int, int, int], None]


class _Found(Exception):
    """Ends a walk at a key: where it starts and ends."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        super().__init__()


def places(text: str) -> dict[Path, Place]:
    """The place of everything in a TOML text without errors, by its path."""
    span, found = _spans(text), dict[Path, Place]()

    def record(path: Path, start: int, end: int, value_start: int, value_end: int) -> None:
        found.setdefault(path, Place(span(start, end), span(value_start, value_end)))

    _walk(text, record)
    return found


def key_before(text: str, position: int) -> Span | None:
    """Where the key stands whose value ends at a position, or the header of a table if the position is in one. The text
    has no errors before the position, and may have any behind it. None if it is nested too deeply."""

    def record(path: Path, start: int, end: int, _: int, value_end: int) -> None:
        if isinstance(path[-1], str) and value_end >= position:
            raise _Found(start, end)

    try:
        _walk(text + "\n", record)
    except _Found as found:
        return _spans(text)(found.start, found.end)
    except RecursionError:
        return None
    return None


def _spans(text: str) -> Callable[[int, int], Span]:
    """What gives the span from one position in a text to another."""
    starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def span(start: int, end: int) -> Span:
        line, last = bisect.bisect(starts, start), bisect.bisect(starts, end)
        return Span(line, start - starts[line - 1] + 1, last, end - starts[last - 1] + 1)

    return span


def _walk(text: str, record: Record) -> None:
    """Records everything in a TOML text, from its start on."""
    counts: dict[Path, int] = {}  # of the tables in lists of tables
    table: Path = ()
    at = _after(_SPACE, text, 0)
    while at < len(text):
        if text[at] == "[":
            brackets = 2 if text.startswith("[[", at) else 1
            parts, end = _key(text, at + brackets)
            end += brackets
            if brackets == 2:
                one_more = (*_table(parts[:-1], counts), parts[-1].name)
                counts[one_more] = counts.get(one_more, -1) + 1
            table = _table(parts, counts)
            for length in range(1, len(table) + 1):
                record(table[:length], at, end, at, end)
            at = end
        else:
            at = _pair(text, at, table, record)
        at = _after(_SPACE, text, at)


def _table(parts: list[_Part], counts: dict[Path, int]) -> Path:
    """The path of a table by the key in its header, which goes on with the last table of a list."""
    path: Path = ()
    for part in parts:
        path = (*path, part.name)
        if path in counts:
            path = (*path, counts[path])
    return path


def _pair(text: str, at: int, table: Path, record: Record) -> int:
    """Records a key with its value. Returns where it ends."""
    parts, at = _key(text, at)
    start = _after(_BLANK, text, at + 1)  # behind the equals sign
    path = (*table, *(part.name for part in parts))
    end = _value(text, start, path, record)
    record(path, parts[-1].start, parts[-1].end, start, end)
    for number, part in enumerate(parts[:-1], 1):
        record((*table, *(before.name for before in parts[:number])), part.start, part.end, part.start, part.end)
    return end


def _key(text: str, at: int) -> tuple[list[_Part], int]:
    """The parts of a dotted key, and the position of what follows it."""
    parts = []
    while True:
        start = _after(_BLANK, text, at)
        end = _after(_KEY, text, start)
        name = text[start:end]
        if name[0] in "\"'":
            name = tomllib.loads(f"name = {name}")["name"]
        parts.append(_Part(name, start, end))
        at = _after(_BLANK, text, end)
        if text[at] != ".":
            return parts, at
        at += 1


def _value(text: str, at: int, path: Path, record: Record) -> int:
    """Records what is inside a value. Returns where it ends."""
    match text[at]:
        case "[":
            return _list(text, at, path, record)
        case "{":
            return _inline_table(text, at, path, record)
        case '"' | "'":
            return _after(_STRING, text, at)
        case _:
            return _after(_SCALAR, text, at)


def _list(text: str, at: int, path: Path, record: Record) -> int:
    number = 0
    at = _after(_SPACE, text, at + 1)
    while text[at] != "]":
        end = _value(text, at, (*path, number), record)
        record((*path, number), at, end, at, end)
        at, number = _behind_comma(text, end), number + 1
    return at + 1


def _inline_table(text: str, at: int, path: Path, record: Record) -> int:
    at = _after(_SPACE, text, at + 1)
    while text[at] != "}":
        at = _behind_comma(text, _pair(text, at, path, record))
    return at + 1


def _behind_comma(text: str, at: int) -> int:
    """The position of what follows, behind a comma if there is one."""
    at = _after(_SPACE, text, at)
    return _after(_SPACE, text, at + 1) if text[at] == "," else at


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a match of the pattern ends that starts here. There is one, since the text has no errors."""
    match = pattern.match(text, at)
    assert match is not None
    return match.end()
