"""The syntax tree of a `.blk` file: what the text says, before any name has been looked up.

    file       := item...
    item       := Program | Definition
    statement  := Assignment | Return
    expression := Literal | Reference | Unary | Binary | Rename | Call

Trees may be thousands of levels deep (`a + a + a + ...`), so nothing here or in the later stages recurses over
expressions: `postorder` lists one with operands before operators.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from blockc.ir.array_program import Span

# Names that stand for a number or a truth value and can name nothing else.
LITERALS: dict[str, float | bool] = {"inf": math.inf, "nan": math.nan, "true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Identifier:
    """A name and where it stands."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Literal:
    """A number, `inf`, `nan`, `true` or `false`; a minus sign before a number is already part of `value`."""

    value: float | int | bool
    span: Span


@dataclass(frozen=True, slots=True)
class Reference:
    """A name where a value is expected."""

    name: str
    span: Span


@dataclass(frozen=True, slots=True)
class Unary:
    """`-x` or `not x`."""

    operator: Identifier
    operand: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class Binary:
    """`left operator right`, comparisons, `and` and `or` included."""

    operator: Identifier
    left: Expression
    right: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class Rename:
    """`operand[m -> n, ...]`, the pairs in order."""

    operand: Expression
    pairs: tuple[tuple[Identifier, Identifier], ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Call:
    """`name[dims](arguments)`. `dims` is empty for a call without brackets."""

    name: Identifier
    dims: tuple[Identifier, ...]
    arguments: tuple[Expression, ...]
    span: Span


Expression = Literal | Reference | Unary | Binary | Rename | Call


@dataclass(frozen=True, slots=True)
class DeclaredDim:
    """A dimension within a type, with its size where one is fixed (`d=64`)."""

    name: Identifier
    size: int | None


@dataclass(frozen=True, slots=True)
class Type:
    """`dtype[axis, ...]`; an axis is one dimension or several packed ones."""

    dtype: Identifier
    axes: tuple[tuple[DeclaredDim, ...], ...]
    span: Span

    @property
    def dims(self) -> tuple[DeclaredDim, ...]:
        """The dimensions in order, packed ones taken apart."""
        return tuple(dim for axis in self.axes for dim in axis)


@dataclass(frozen=True, slots=True)
class Declaration:
    """An input or an output of a program."""

    name: Identifier
    type: Type


@dataclass(frozen=True, slots=True)
class Assignment:
    """`name = value`, perhaps with a type."""

    name: Identifier
    type: Type | None
    value: Expression


@dataclass(frozen=True, slots=True)
class Return:
    """`return value`, the last statement of a definition; `keyword` is where the word stands."""

    keyword: Span
    value: Expression


Statement = Assignment | Return


@dataclass(frozen=True, slots=True)
class Program:
    """`program name(inputs) -> outputs { body }`."""

    name: Identifier
    inputs: tuple[Declaration, ...]
    outputs: tuple[Declaration, ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Definition:
    """`def name[dims](parameters)`; `= expression` is a body of one `return`."""

    name: Identifier
    dims: tuple[Identifier, ...]
    parameters: tuple[Identifier, ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class File:
    """Everything that one source text defines, in its order."""

    programs: tuple[Program, ...]
    definitions: tuple[Definition, ...]


def operands(expression: Expression) -> tuple[Expression, ...]:
    """The expressions directly below this one, in source order."""
    match expression:
        case Literal() | Reference():
            return ()
        case Unary():
            return (expression.operand,)
        case Binary():
            return (expression.left, expression.right)
        case Rename():
            return (expression.operand,)
        case Call():
            return expression.arguments
        case _:
            assert_never(expression)


def postorder(root: Expression) -> Iterator[Expression]:
    """The expression and everything below it, operands first, in the order in which it is evaluated."""
    pending: list[tuple[Expression, bool]] = [(root, False)]
    while pending:
        expression, ready = pending.pop()
        below = () if ready else operands(expression)
        if not below:
            yield expression
            continue
        pending.append((expression, True))
        pending.extend((operand, False) for operand in reversed(below))


def depth(root: Expression) -> int:
    """How many operators stand inside one another. A chain such as `a + b + c` or `a * b / c` counts once per link
    only on its right side, so its length does not matter."""
    deepest = 0
    pending = [(root, 0)]
    while pending:
        expression, level = pending.pop()
        deepest = max(deepest, level)
        below = operands(expression)
        match expression:
            case Binary():
                step = 1 if expression.operator.text == "**" else 0
                pending.append((expression.left, level))
                pending.append((expression.right, level + step))
            case Rename() | Literal() | Reference():
                pending.extend((operand, level) for operand in below)
            case Unary() | Call():
                pending.extend((operand, level + 1) for operand in below)
            case _:
                assert_never(expression)
    return deepest
