"""Shrinks a failing program of the language, as text, while it still fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from blockc.errors import BlockcError
from blockc.language import parse

_HEADER = re.compile(r"(?P<start>program \w+)\((?P<inputs>.*)\) -> (?P<outputs>.*) \{$")
_NAME = re.compile(r"[A-Za-z_]\w*")
_OPERATORS = (" + ", " - ", " * ", " / ", " ** ", " and ", " or ", ", ")


def minimise(source: str, fails: Callable[[str], bool]) -> str:
    """A smaller program that still parses and fails: outputs and statements left out, expressions replaced by parts.

    `source` has its header and every statement on a line of its own, as `random_program` writes them. `fails` is asked
    about programs that parse only. Every step makes the text shorter, so this ends.
    """
    shrunk = True
    while shrunk:
        shrunk = False
        for candidate in _candidates(source):
            if len(candidate) < len(source) and _parses(candidate) and fails(candidate):
                source, shrunk = candidate, True
                break
    return source


def _parses(source: str) -> bool:
    try:
        parse(source)
    except BlockcError:
        return False
    return True


def _candidates(source: str) -> Iterator[str]:
    """Programs with one thing less, the largest things first. Not all of them are valid."""
    for lines in _shorter(source.split("\n")):
        yield _without_unread_inputs(_without_unread_statements(lines))
        yield _without_unread_inputs(lines)


def _shorter(lines: list[str]) -> Iterator[list[str]]:
    yield lines
    yield from _without_outputs(lines)
    for number, line in reversed(list(enumerate(lines))):
        if " = " in line:
            yield [*lines[:number], *lines[number + 1 :]]
    for number, line in enumerate(lines):
        if " = " in line and not line.startswith("program"):
            target, expression = line.split(" = ", 1)
            if _NAME.fullmatch(expression):
                name = rf"\b{re.escape(target.strip())}\b"
                yield [re.sub(name, expression, other) for at, other in enumerate(lines) if at != number]
            for part in _parts(expression):
                yield [*lines[:number], f"{target} = {part}", *lines[number + 1 :]]


def _without_outputs(lines: list[str]) -> Iterator[list[str]]:
    for number, line in enumerate(lines):
        header = _HEADER.match(line)
        outputs = _split(header["outputs"][1:-1], ", ") if header and header["outputs"].startswith("(") else []
        for output in outputs if len(outputs) > 1 else []:
            kept = ", ".join(other for other in outputs if other != output)
            name = output.split(":")[0]
            changed = [other for other in lines if not other.strip().startswith(f"{name} = ")]
            changed[number] = line.replace(header["outputs"], f"({kept})") if header else line
            yield changed


def _without_unread_statements(lines: list[str]) -> list[str]:
    outputs = next((match["outputs"] for line in lines if (match := _HEADER.match(line))), "")
    while True:
        read = {name for line in lines if " = " in line for name in _NAME.findall(line.split(" = ", 1)[1])}
        read |= set(_NAME.findall(outputs))
        kept = [line for line in lines if not _assigns_unread(line, read)]
        if len(kept) == len(lines):
            return lines
        lines = kept


def _without_unread_inputs(lines: list[str]) -> str:
    read = {name for line in lines if not line.startswith("program") for name in _NAME.findall(line)}
    return "\n".join(_header_for(line, read) for line in lines)


def _header_for(line: str, read: set[str]) -> str:
    match = _HEADER.match(line)
    if match is None:
        return line
    inputs = [text for text in _split(match["inputs"], ", ") if text.split(":")[0] in read]
    return f"{match['start']}({', '.join(inputs)}) -> {match['outputs']} {{"


def _assigns_unread(line: str, read: set[str]) -> bool:
    found = re.match(r"(?:def )?(?:    )?(\w+)\S* = |def (\w+)", line)
    return found is not None and (found[1] or found[2]) not in read


def _parts(expression: str) -> Iterator[str]:
    """Shorter expressions in place of this one: its operands and arguments, then itself with a shorter part inside."""
    yield "1.0"
    for operator in _OPERATORS:
        pieces = _split(expression, operator)
        if len(pieces) > 1:
            for number, piece in enumerate(pieces):
                yield piece
                yield operator.join(pieces[:number] + pieces[number + 1 :])
                for shorter in _parts(piece):
                    yield operator.join([*pieces[:number], shorter, *pieces[number + 1 :]])
            return
    opening = expression.find("(")
    if opening >= 0 and expression.endswith(")"):
        inside = expression[opening + 1 : -1]
        yield from _split(inside, ", ")
        for shorter in _parts(inside):
            yield f"{expression[: opening + 1]}{shorter})"
    if expression.startswith("-"):
        yield expression[1:]
    if expression.endswith("]"):
        yield expression[: expression.rindex("[")]


def _split(text: str, separator: str) -> list[str]:
    """The text cut at separators that are outside of all parentheses and brackets."""
    pieces, depth, start = [], 0, 0
    for position, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if depth == 0 and text.startswith(separator, position):
            pieces.append(text[start:position])
            start = position + len(separator)
    return [*pieces, text[start:]] if text else []
