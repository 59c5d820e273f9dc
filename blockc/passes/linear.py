"""Linearity: what may leave a sum. The one lemma behind rules 4 and 5, `distribute_reduction` and `split_exponential`.

An operand is written as a product of factors that do not change along the reduced dimension (the scales) and a rest;
or an exponent as a sum of terms. What "does not change" means is the caller's: lacking an axis, or coming from outside.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

from blockc.ir.block import Apply, Constant, Expression, Operand

Invariant = Callable[[Operand], bool]

ONE = Constant(1)
DEEPEST = 12  # operators that are looked through
MOST_TERMS = 64  # that one product may become


def factor_out(
    operand: Operand, invariant: Invariant, applies: Mapping[str, Apply], depth: int = DEEPEST
) -> tuple[tuple[Operand, ...], Operand | None]:
    """The scales of an operand and what remains, None if that is 1.

    Looks through products, and through sums for scales that all terms share, `depth` operators deep. New products and
    sums in the rest are `Expression`s, which the caller turns into operators.
    """
    if invariant(operand):
        return (operand,), None
    apply = applies.get(operand) if isinstance(operand, str) and depth > 0 else None
    if apply is None:
        return (), operand
    if apply.op == "mul":
        scales: list[Operand] = []
        rests: list[Operand] = []
        for arg in apply.args:
            inner, rest = factor_out(arg, invariant, applies, depth - 1)
            scales.extend(inner)
            rests.extend(() if rest is None else (rest,))
        return tuple(scales), product(rests) if scales else operand
    if apply.op == "add":
        parts = [factor_out(arg, invariant, applies, depth - 1) for arg in apply.args]
        common = shared_factors([scales for scales, _ in parts])
        if common:
            return common, Expression("add", tuple(product(_less(s, common), r) or ONE for s, r in parts))
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


def terms(
    operand: Operand, inside: Invariant, applies: Mapping[str, Apply], depth: int = DEEPEST
) -> tuple[tuple[Operand, ...], ...]:
    """An operand as a sum of products, each a tuple of factors: sums are opened, and products distributed over them.

    Only definitions that `inside` accepts are looked through, `depth` operators deep; others stand for themselves, and
    so does a product that would become more than `MOST_TERMS` terms.
    """
    apply = applies.get(operand) if isinstance(operand, str) and depth > 0 and inside(operand) else None
    if apply is None or apply.op not in ("add", "mul"):
        return ((operand,),)
    opened = [terms(arg, inside, applies, depth - 1) for arg in apply.args]
    if apply.op == "add":
        return tuple(term for part in opened for term in part)
    if math.prod(len(part) for part in opened) > MOST_TERMS:
        return ((operand,),)
    result: tuple[tuple[Operand, ...], ...] = ((),)
    for part in opened:
        result = tuple((*left, *right) for left in result for right in part)
    return result
