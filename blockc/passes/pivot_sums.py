"""The sums of a loop as polynomials in a pivot (`pivot.py`): what they are and how they are accumulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blockc.ir.block import Apply, Expression, Fresh, Map, Operand, Output, Program, operand_names
from blockc.passes.linear import product


def is_sum(node: Map, output: Output, table: Mapping[str, Apply]) -> bool:
    apply = table.get(output.values[0])
    return output.monoid == "add" and apply is not None and apply.op in ("contract", "sum") and node.dim in apply.dims


@dataclass(frozen=True, slots=True)
class Sum:
    """An accumulated sum as a polynomial in the pivot: the terms by power, the numbers that all of them are times, and
    whether it has the factor exp(p)."""

    output: Output
    like: Apply
    numbers: tuple[Operand, ...]
    powers: tuple[tuple[tuple[Operand, ...], ...], ...]
    weighted: bool

    @property
    def degree(self) -> int:
        return len(self.powers) - 1


@dataclass(frozen=True, slots=True)
class Opened:
    """A loop whose sums are polynomials in a pivot."""

    program: Program
    node: Map
    x: str
    given: str  # the pivot, if one is known outside the loop
    fresh: Fresh  # for names in the new program
    sums: tuple[Sum, ...]


def monoid_of(total: Sum) -> str:
    """How the coefficients of a polynomial are accumulated."""
    if not total.degree:
        return "exponent_add"
    return f"{'exponent_' if total.weighted else ''}shift_{total.degree}"


def _factors(operand: Operand) -> tuple[Operand, ...]:
    if isinstance(operand, Expression) and operand.op == "mul":
        return tuple(factor for arg in operand.args for factor in _factors(arg))
    return (operand,)


def without_numbers(rest: Operand) -> tuple[tuple[Operand, ...], Operand | None]:
    """The numbers among the factors of a value, and the others."""
    factors = _factors(rest)
    values: list[Operand] = [factor for factor in factors if any(operand_names((factor,)))]
    return tuple(factor for factor in factors if factor not in values), product(values)


def apart_if_equal(rests: tuple[Operand, ...]) -> list[tuple[Operand, ...]]:
    """What is multiplied under a sum, once for each term if one factor is a sum of equal ones: of a square that is
    opened."""
    for place, rest in enumerate(rests):
        if isinstance(rest, Expression) and rest.op == "add":
            products = {tuple(sorted(map(repr, _factors(term)))) for term in rest.args}
            if len(products) == 1:
                return [(*rests[:place], term, *rests[place + 1 :]) for term in rest.args]
    return [rests]
