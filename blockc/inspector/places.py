"""Which operators of a program a person means: by a name in the program, an operator's name, or a place in the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blockc.errors import UsageError, visible
from blockc.inspector.origins import operators_of
from blockc.ir.array_program import ArrayProgram, Node, Span
from blockc.names import listing, suggest

NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a text, perhaps a column, and perhaps the file."""

    file: str | None
    line: int
    column: int | None

    @staticmethod
    def of(text: str) -> Place | None:
        """The place that a text such as 3, 3:9 or program.blk:3:9 means."""
        parts = text.split(":")
        numbers: list[int] = []
        while parts and len(numbers) < 2 and NUMBER.fullmatch(parts[-1]):
            numbers.insert(0, int(parts.pop()))
        if not numbers:
            return None
        return Place(":".join(parts) if parts else None, numbers[0], numbers[1] if len(numbers) > 1 else None)


@dataclass(frozen=True, slots=True)
class Named:
    """What was asked for, and the operators that it means, in program order."""

    text: str
    operators: tuple[Node, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the operators."""
        return tuple(node.name for node in self.operators)


def named(program: ArrayProgram, text: str) -> Named:
    """The operators that a text means: all of a statement for the name that it defines. UsageError if there are none,
    or if the text is no name in the program and no place."""
    operators = operators_of(program)
    nodes = {node.name: node for node in program.nodes}
    results = {result.argument.name: result.node for result in program.outputs}
    place = Place.of(text)
    if place is not None:
        return Named(text, tuple(at_place(program, operators, text, place)))
    if text not in nodes and text not in results:
        names = list(dict.fromkeys(name for name in (*nodes, *results) if "." not in name))
        raise UsageError(
            f"program `{program.name}` has no `{visible(text)}`",
            suggest(text, names) or f"name one of {listing(names)}, or a place such as 3 or 3:9",
        )
    name = text if text in nodes else results[text]
    statement = tuple(node for node in operators if node.name == name or node.name.startswith(f"{name}."))
    if statement:
        return Named(text, statement)
    node = nodes[name]
    while node.op == "rename":
        node = nodes[node.args[0]]
    if node in operators:
        return Named(text, tuple(one for one in operators if one.name == node.name))
    what = "an input" if node.op == "input" else "a number or a position"
    hint = f"the operators are in {listing(statements(operators))}" if operators else "the program has no operators"
    raise UsageError(f"`{visible(text)}` is {what}, which no kernel has to compute", hint)


def statements(operators: Sequence[Node]) -> list[str]:
    """The names that statements with operators define."""
    return list(dict.fromkeys(node.name.partition(".")[0] for node in operators))


def at_place(program: ArrayProgram, operators: Sequence[Node], text: str, place: Place) -> list[Node]:
    """The operators that begin in a line, or the innermost ones at a column. UsageError if there are none."""
    if place.file is not None and Path(place.file).name != Path(program.filename).name:
        raise UsageError(f"the program is in {visible(program.filename)}, not in {visible(place.file)}")
    found = [node for node in operators if node.span is not None and covers(node.span, place)]
    if not found:
        lines = sorted({node.span.line for node in operators if node.span is not None})
        raise UsageError(
            f"there is no operator at {visible(text)} of program `{program.name}`",
            f"its operators are in the lines {', '.join(map(str, lines[:20]))}" if lines else "",
        )
    if place.column is None:
        return found
    least = min(extent(node.span) for node in found if node.span is not None)
    return [node for node in found if node.span is not None and extent(node.span) == least]


def covers(span: Span, place: Place) -> bool:
    """True if a place is in a piece of text; without a column, if the piece begins in the line."""
    if place.column is None:
        return span.line == place.line
    return (span.line, span.column) <= (place.line, place.column) < (span.end_line, span.end_column)


def extent(span: Span) -> tuple[int, int]:
    """How long a piece of text is, for comparing those that have a place in common."""
    return span.end_line - span.line, span.end_column - span.column
