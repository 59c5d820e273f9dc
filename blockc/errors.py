"""What a user can get wrong: problems with a place in a source text, shown as carets, all of them at once."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from blockc.ir.array_program import Span

_MAX_WIDTH = 160
_LONG_NAME = re.compile(r"`([^`]{30})[^`]{40,}([^`]{20})`")
# Letters and marks that take no place on a screen, although Python calls them printable.
_UNSEEN = re.compile(
    "[\\u034f\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u2800\\u3164\\ufe00-\\ufe0f\\uffa0\\U000e0100-\\U000e01ef]"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: a code such as "E0102", a sentence, where, and what to do about it."""

    code: str
    message: str
    span: Span | None = None
    hint: str = ""


class BlockcError(Exception):
    """The user's program, machine or data is wrong. `str` gives every problem with its source line and a caret."""

    exit_code = 1

    def __init__(self, problems: tuple[Problem, ...], source: str = "", filename: str = "<string>") -> None:
        self.problems = problems
        self.source = source
        self.filename = filename
        super().__init__("\n\n".join(render(problem, source, filename) for problem in problems))


class BlockcWarning(UserWarning):
    """Something is not as it should be, and what is computed is right all the same."""


class UsageError(BlockcError):
    """An option or an array that does not fit the program."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__((Problem("E0900", message, None, hint),))


class LimitError(BlockcError):
    """A limit, a budget, or hardware that is absent."""

    exit_code = 3


class CheckError(BlockcError):
    """A self-check failed: a computed result is outside its error bound."""

    exit_code = 4


def render(problem: Problem, source: str, filename: str) -> str:
    """The problem as text: headline, place, source line with a caret, hint. Control characters appear escaped, and of
    very long names the middle is left out."""
    head, hint = f"error[{problem.code}]: {_shown(problem.message)}", _shown(problem.hint)
    if problem.span is None:
        return f"{head}\n  hint: {hint}" if hint else head
    lines = source.split("\n")
    line = lines[problem.span.line - 1] if problem.span.line <= len(lines) else ""
    gutter = " " * len(str(problem.span.line))
    start = problem.span.column - 1
    end = problem.span.end_column - 1 if problem.span.end_line == problem.span.line else len(line)
    # Of a very long line only the part around the caret is shown.
    left = max(0, start - _MAX_WIDTH // 2) if len(line) > _MAX_WIDTH else 0
    right = left + _MAX_WIDTH
    before = "..." if left else ""
    prefix = before + visible(line[left:start])
    width = max(1, columns(visible(line[start : min(end, right)])))
    carets = " " * columns(prefix) + "^" * width
    shown = before + visible(line[left:right]) + ("..." if right < len(line) else "")
    return "\n".join(
        (
            head,
            f"{gutter}--> {visible(filename)}:{problem.span.line}:{problem.span.column}",
            f"{gutter} |",
            f"{problem.span.line} | {shown}",
            f"{gutter} | {carets} {hint}".rstrip(),
        )
    )


def visible(text: str) -> str:
    """The text with tabs as one space and every other character that cannot be seen (escapes, bidi controls, zero-width
    characters) escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        " "
        if char == "\t"
        else char
        if char.isprintable() and not _UNSEEN.match(char)
        else char.encode("unicode_escape").decode()
        for char in text
    )


def _shown(text: str) -> str:
    """A sentence of a problem, which may quote what the user wrote."""
    return _LONG_NAME.sub(r"`\1...\2`", visible(text))


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )
