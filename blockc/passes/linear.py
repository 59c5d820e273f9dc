"""Linearity: what may leave a sum. The one lemma behind rules 4 and 5, `distribute_reduction` and `split_exponential`.

An operand is written as a product of factors that do not change along the reduced dimension (the scales) and a rest;
or an exponent as a sum of terms. What "does not change" means is the caller's: lacking an axis, or coming from outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from blockc.ir.block import Apply, Constant, Expression, Operand

Invariant = Callable[[Operand], bool]

ONE = Constant(1)


def factor_out(
    operand: Operand, invariant: Invariant, applies: Mapping[str, Apply]
) -> tuple[tuple[Operand, ...], Operand | None]:
    """The scales of an operand and what remains, None if that is 1.

    Looks through products, and through sums for scales that all terms share. New products and sums in the rest are
    `Expression`s, which the caller turns into operators.
    """
    if invariant(operand):
        return (operand,), None
    apply = applies.get(operand) if isinstance(operand, str) else None
    if apply is None:
        return (), operand
    if apply.op == "mul":
        scales: list[Operand] = []
        rests: list[Operand] = []
        for arg in apply.args:
            inner, rest = factor_out(arg, invariant, applies)
            scales.extend(inner)
            rests.extend(() if rest is None else (rest,))
        return tuple(scales), product(rests) if scales else operand
    if apply.op == "add":
        terms = [factor_out(arg, invariant, applies) for arg in apply.args]
        common = shared_factors([scales for scales, _ in terms])
        if common:
            return common, Expression("add", tuple(product(_less(s, common), r) or ONE for s, r in terms))
    return (), operand


def shared_factors(groups: list[tuple[Operand, ...]]) -> tuple[Operand, ...]:
    """The factors that all groups have, in the order of the first."""
    common = Counter(groups[0])
    for group in groups[1:]:
        common &= Counter(group)
    return tuple(common.elements())


def _less(factors: tuple[Operand, ...], removed: tuple[Operand, ...]) -> list[Operand]:
    left = list(factors)
    for factor in removed:
        left.remove(factor)
    return left


def product(factors: list[Operand], last: Operand | None = None) -> Operand | None:
    """The product of the factors and `last`; None if there are none."""
    all_factors = [*factors, *(() if last is None else (last,))]
    if len(all_factors) < 2:
        return all_factors[0] if all_factors else None
    return Expression("mul", tuple(all_factors))


def terms(operand: Operand, inside: Invariant, applies: Mapping[str, Apply]) -> tuple[tuple[Operand, ...], ...]:
    """An operand as a sum of products, each a tuple of factors: sums are opened, and products distributed over them.

    Only definitions that `inside` accepts are looked through; others stand for themselves.
    """
    apply = applies.get(operand) if isinstance(operand, str) and inside(operand) else None
    if apply is None or apply.op not in ("add", "mul"):
        return ((operand,),)
    if apply.op == "add":
        return tuple(term for arg in apply.args for term in terms(arg, inside, applies))
    result: tuple[tuple[Operand, ...], ...] = ((),)
    for arg in apply.args:
        opened = terms(arg, inside, applies)
        result = tuple((*left, *right) for left in result for right in opened)
    return result
