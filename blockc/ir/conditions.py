"""Conditions on positions: what is known of the operands of a `where` in terms of positions and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from blockc.ir.block import (
    Apply,
    Condition,
    Constant,
    Expression,
    Graph,
    Index,
    Operand,
    Program,
    Reading,
    Size,
    Term,
)
from blockc.ir.dtypes import DTYPES
from blockc.ir.ops import OPERATORS, Result

COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
CONNECTIVES = frozenset({"and", "or", "not"})
RISING = frozenset({"minimum", "maximum", "floor", "relu", "tanh", "sigmoid"})  # in every operand; never NaN
ARITHMETIC = frozenset({"add", "sub", "mul", "neg", "abs", *RISING})
WHOLE = frozenset({"add", "sub", "mul", "neg", "abs", "minimum", "maximum"})  # of whole numbers, they give one
UNKNOWN = Condition("unknown", ())


def positions(term: Term) -> Iterator[str]:
    """The dimensions on whose positions a term depends, with repeats."""
    if isinstance(term, Index):
        yield term.dim
    elif isinstance(term, Reading):
        yield from term.dims
    elif isinstance(term, Condition):
        for arg in term.args:
            yield from positions(arg)


def readings(term: Term | None) -> frozenset[str]:
    """The names of the items that a condition reads."""
    if isinstance(term, Reading):
        return frozenset((term.name,))
    return frozenset().union(*map(readings, term.args)) if isinstance(term, Condition) else frozenset()


def conjuncts(condition: Condition) -> tuple[Term, ...]:
    """The conditions that all have to hold."""
    return condition.args if condition.op == "and" else (condition,)


def conditions(graph: Graph) -> Iterator[Operand]:
    """What the `where`s of a body choose by, and what is made zeros and ones."""
    yield from choices(graph)
    for definition in graph:
        if isinstance(definition, Apply) and definition.op == "cast":
            yield definition.args[0]


def choices(graph: Graph) -> Iterator[Operand]:
    """What the `where`s of a body choose by."""
    for definition in graph:
        if isinstance(definition, Apply):
            yield from _of_operand(Expression(definition.op, definition.args))


def _of_operand(operand: Operand) -> Iterator[Operand]:
    if isinstance(operand, Expression):
        if operand.op == "where":
            yield operand.args[0]
        for arg in operand.args:
            yield from _of_operand(arg)


def as_term(program: Program, operand: Operand) -> Term | None:
    """What is known of an operand in terms of positions and numbers; None if nothing is."""
    match operand:
        case Constant(value):
            return operand if math.isfinite(value) else None
        case Size():
            return operand
        case Expression(op, args):
            return _operator(program, op, args)
    apply = program.facts.applies.get(operand)
    if apply is None:
        return _reading(program, operand)
    if apply.op == "index":
        return Index(apply.dims[0])
    if apply.op == "broadcast":
        return as_term(program, apply.args[0])
    return _operator(program, apply.op, apply.args) if apply.op in OPERATORS else None


def _reading(program: Program, name: str) -> Reading | None:
    """An item of whole numbers that an input is cut into; None for anything else."""
    kind, origin = program.types[name], name
    while origin in program.facts.links:
        origin = program.facts.links[origin]
    whole_numbers = DTYPES[kind.dtype].kind == "int"
    return Reading(name, kind.axes) if kind.is_item and whole_numbers and origin in program.input_types else None


def _operator(program: Program, op: str, args: tuple[Operand, ...]) -> Term | None:
    parts = [as_term(program, arg) for arg in args]
    if op in CONNECTIVES:
        return Condition(op, tuple(UNKNOWN if part is None else part for part in parts))
    known = tuple(part for part in parts if part is not None)
    if len(known) < len(parts) or UNKNOWN in known:
        return UNKNOWN if OPERATORS[op].result is Result.BOOLEAN else None
    number = not any(any(positions(part)) for part in known)
    return Condition(op, known) if number or op in COMPARISONS | ARITHMETIC else None
