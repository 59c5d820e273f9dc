"""Loops bounded by conditions on positions: blocks that a condition masks as a whole are left out.

    map n uses P {                                      map n where le(index(n), index(m)) uses P {
      S: local f32(m, n) <- ...                           S: local f32(m, n) <- ...
      M: local f32(m, n) = where(P, S, -inf)              M: local f32(m, n) = where(P, S, -inf)
      E: local f32(m, n) = exp(M)                  =>     E: local f32(m, n) = exp(M)
      T: local f32(m) = sum[n](E)                         T: local f32(m) = sum[n](E)
      => L: local f32(m) = add(T)                         => L: local f32(m) = add(T)
    }                                                   }

A loop may leave out a block if all that it accumulates there is the identity of its monoid. That is found by following
numbers through the body as if a condition were false, or true, everywhere; no pattern is involved. What is masked
is taken to be finite: zero times anything is zero. Whether a condition is false in a whole block is for `intervals.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from blockc.ir.block import (
    REDUCTIONS,
    Apply,
    Condition,
    Constant,
    Definition,
    Expression,
    Graph,
    Map,
    Operand,
    Output,
    Program,
    operand_names,
    with_body,
)
from blockc.ir.conditions import as_term, conditions, positions, readings
from blockc.ir.dtypes import DTYPES
from blockc.ir.monoids import identity
from blockc.ir.ops import OPERATORS, Result
from blockc.ir.verify import verify
from blockc.passes.positive import is_positive


def bound_loops(program: Program) -> Program:
    """The program with a condition at every loop that may leave out blocks."""
    body = _graph(program, program.body)
    if body == program.body:
        return program
    bounded = with_body(program, body)
    verify(bounded)
    return bounded


def _graph(program: Program, graph: Graph) -> Graph:
    return tuple(_loop(program, definition) if isinstance(definition, Map) else definition for definition in graph)


def _loop(program: Program, node: Map) -> Map:
    body = _graph(program, node.body)
    names = [name for output in node.outputs for name in output.names]
    items = all(output.monoid is not None for output in node.outputs) and all(program.types[n].is_item for n in names)
    found: list[Condition] = []
    for operand in dict.fromkeys(conditions(node.body)) if items else ():
        condition = as_term(program, operand) if is_truth_value(program, operand) else None
        if not isinstance(condition, Condition) or node.dim not in positions(condition):
            continue
        if not readings(condition) <= node.captures.union(port.name for port in node.ports):
            continue  # what is made of a table outside the loop is not read inside
        for masked, needed in ((False, condition), (True, Condition("not", (condition,)))):
            if needed not in found and _Masked(program, operand, masked).gives_identities(node):
                found.append(needed)
    if not found:
        return replace(node, body=body)
    return replace(node, body=body, where=found[0] if len(found) == 1 else Condition("and", tuple(found)))


def is_truth_value(program: Program, operand: Operand) -> bool:
    """True for what is true or false; a number that is made another number is none."""
    if isinstance(operand, str):
        return program.types[operand].dtype == "bool"
    return isinstance(operand, Expression) and OPERATORS[operand.op].result is Result.BOOLEAN


@dataclass(slots=True)
class _Masked:
    """The numbers that values of a loop have where a condition is `holds`; others may be anything finite."""

    program: Program
    condition: Operand
    holds: bool
    known: dict[str, float] = field(default_factory=dict)

    def gives_identities(self, node: Map) -> bool:
        """True if all that the loop accumulates is the identity of its monoid."""
        self.graph(node.body)
        return all(self.is_identity(output) for output in node.outputs)

    def is_identity(self, output: Output) -> bool:
        values = enumerate(output.values)
        return all(self.known.get(value) == identity(output.monoid or "", part) for part, value in values)

    def graph(self, graph: Graph) -> None:
        for definition in graph:
            self.known.update(self.definition(definition))

    def definition(self, definition: Definition) -> Mapping[str, float]:
        match definition:
            case Apply():
                number = self.result(definition)
                return {} if number is None else {definition.name: number}
            case Map():
                self.graph(definition.body)
                results = [
                    (name, identity(output.monoid, part))
                    for output in definition.outputs
                    if output.monoid is not None and self.is_identity(output)
                    for part, name in enumerate(output.names)
                ]
                return dict(results)
            case _:
                return {}

    def result(self, apply: Apply) -> float | None:
        if apply.op in REDUCTIONS:
            numbers = [self.operand(arg) for arg in apply.args]
            if apply.op in ("sum", "contract"):
                return 0.0 if 0.0 in numbers else None
            everywhere = self.program.whole.isdisjoint(apply.dims)  # a whole dimension may be empty
            return numbers[0] if everywhere or numbers[0] == identity(apply.op, 0) else None
        if apply.op == "cast":
            return _converted(self.operand(apply.args[0]), apply.dtype)
        if apply.op == "broadcast":
            return self.operand(apply.args[0])
        return None if apply.op == "index" else self.operator(apply.op, apply.args)

    def operand(self, operand: Operand) -> float | None:
        if operand == self.condition:
            return float(self.holds)
        match operand:
            case str():
                return self.known.get(operand)
            case Constant(value):
                return float(value)
            case Expression(op, args):
                return self.operator(op, args)
            case _:
                return None

    def operator(self, op: str, args: tuple[Operand, ...]) -> float | None:
        if op == "where":
            condition, chosen, other = args
            if condition == self.condition:
                return self.operand(chosen if self.holds else other)
            number = self.operand(chosen)
            return number if number == self.operand(other) else None
        found = [(arg, self.operand(arg)) for arg in args]
        numbers = [number for _, number in found if number is not None]
        if len(numbers) == len(found):
            with np.errstate(all="ignore"):
                return float(OPERATORS[op].meaning(*numbers))
        infinite = numbers and all(number == -np.inf for number in numbers)
        match op:
            case "mul" if 0.0 in numbers:
                return 0.0
            case "mul" if infinite and len(numbers) == 1:
                rest = [arg for arg, number in found if number is None]
                scales = all(not any(operand_names((arg,))) and is_positive(self.program, arg) for arg in rest)
                return -np.inf if scales else None
            case "add" if infinite:
                return -np.inf
            case "sub" if infinite and found[0][1] is not None:
                return -np.inf
            case _:
                return None


def _converted(number: float | None, dtype: str) -> float | None:
    """A number as another type; None where that is not plain."""
    match DTYPES[dtype].kind:
        case "bool":
            return None if number is None else float(number != 0)
        case "int":
            return number if number in (0.0, 1.0) else None
        case _:
            return number
