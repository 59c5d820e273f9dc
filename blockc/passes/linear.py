"""Linearity: what may leave a sum. The one lemma behind rules 4 and 5, `distribute_reduction` and `split_exponential`.

An operand is written as a product of factors that do not change along the reduced dimension (the scales) and a rest;
or as a sum of such products; or an exponent as a sum of terms. What "does not change" means is the caller's: lacking
an axis, or coming from outside. A sum, a product and a choice between values (`where`) are linear in their operands.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product as pairs

from blockc.ir.block import Apply, Constant, Expression, Operand, operand_names

Invariant = Callable[[Operand], bool]

ONE = Constant(1)
ZERO = Constant(0.0)
DEEPEST = 12  # operators that are looked through
MOST_TERMS = 64  # that one product may become


def factor_out(
    operand: Operand, invariant: Invariant, applies: Mapping[str, Apply], depth: int = DEEPEST
) -> tuple[tuple[Operand, ...], Operand | None]:
    """The scales of an operand and what remains, None if that is 1.

    Looks through products, and through sums for scales that all terms share, `depth` operators deep. New products and
    sums in the rest are `Expression`s, which the caller turns into operators.
    """
    if invariant(operand) and operand != ONE:
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
    values = linear_in(apply)
    if apply.op == "mul" or not values:
        return (), operand
    parts = {arg: factor_out(arg, invariant, applies, depth - 1) for arg in values if arg != ZERO}
    common = shared_factors([scales for scales, _ in parts.values()]) if parts else ()
    if not common:
        return (), operand
    left = {arg: product(_less(scales, common), rest) or Constant(1.0) for arg, (scales, rest) in parts.items()}
    unchanged = apply.args[: len(apply.args) - len(values)]
    return common, Expression(apply.op, (*unchanged, *(left.get(arg, arg) for arg in values)))


def linear_in(apply: Apply) -> tuple[Operand, ...]:
    """The operands in which an operator is linear, all together (a sum, a choice) or each alone (a product)."""
    match apply.op:
        case "add" | "mul":
            return apply.args
        case "where":
            return apply.args[1:]
        case _:
            return ()


def reaches(operand: Operand, wanted: Invariant, applies: Mapping[str, Apply]) -> bool:
    """True if a wanted value is among what the operand is linear in, at any depth."""
    waiting, seen = [operand], set[Operand]()
    while waiting:
        current = waiting.pop()
        if wanted(current):
            return True
        apply = applies.get(current) if isinstance(current, str) and current not in seen else None
        seen.add(current)
        waiting.extend(linear_in(apply) if apply is not None else ())
    return False


@dataclass(frozen=True, slots=True)
class Group:
    """One product of an opened sum: the scales, which do not change, and the rest, None if that is 1."""

    scales: tuple[Operand, ...]
    rest: Operand | None


@dataclass(frozen=True, slots=True)
class Opening:
    """How sums are opened: only where a `blocking` value, which is invariant too, is among their terms."""

    invariant: Invariant
    blocking: Invariant
    applies: Mapping[str, Apply]
    known: dict[Operand, tuple[Group, ...] | None] = field(default_factory=dict)

    def groups(self, operand: Operand, depth: int = DEEPEST) -> tuple[Group, ...] | None:
        """The operand as a sum of groups with different scales; None if that is too deep or has too many terms."""
        if operand not in self.known:
            self.known[operand] = self.opened(operand, depth)
        return self.known[operand]

    def opened(self, operand: Operand, depth: int) -> tuple[Group, ...] | None:
        if self.invariant(operand):
            return (Group((operand,), None),)
        if not reaches(operand, self.blocking, self.applies):
            return (Group(*factor_out(operand, self.invariant, self.applies)),)
        assert isinstance(operand, str)
        apply = self.applies[operand]
        parts = [self.groups(arg, depth - 1) for arg in linear_in(apply)] if depth else [None]
        terms = [part for part in parts if part is not None]
        if len(terms) < len(parts):
            return None
        match apply.op:
            case "mul":
                return products(terms)
            case "where":
                condition, yes, no = apply.args
                on = (_chosen(group, condition, 0) for group in terms[0] if yes != ZERO)
                off = (_chosen(group, condition, 1) for group in terms[1] if no != ZERO)
                return collected((*on, *off))
            case _:
                return collected(group for part in terms for group in part)


def _chosen(group: Group, condition: Operand, branch: int) -> Group:
    """The group where a condition chooses this branch, and else 0. Numbers stay inside: 0 times infinity is none."""
    names, numbers = _apart(group.scales)
    value = product(numbers, group.rest) or Constant(1.0)
    return Group(names, Expression("where", (condition, *((value, ZERO) if branch == 0 else (ZERO, value)))))


def products(parts: Sequence[tuple[Group, ...]]) -> tuple[Group, ...] | None:
    """The product of sums of groups; None if it has too many terms."""
    if math.prod(map(len, parts)) > MOST_TERMS:
        return None
    return collected(multiplied(chosen) for chosen in pairs(*parts))


def multiplied(chosen: tuple[Group, ...]) -> Group:
    """The product of groups."""
    scales = tuple(scale for group in chosen for scale in group.scales)
    return Group(scales, product([group.rest for group in chosen if group.rest is not None]))


def collected(groups: Iterable[Group]) -> tuple[Group, ...]:
    """The groups with those added up that have the same scales; numbers go with the rest where they differ."""
    together: dict[frozenset[tuple[Operand, int]], list[Group]] = {}
    for group in groups:
        names, _ = _apart(group.scales)
        together.setdefault(frozenset(Counter(names).items()), []).append(group)
    return tuple(same[0] if len(same) == 1 else _added(same) for same in together.values())


def _added(groups: list[Group]) -> Group:
    names, _ = _apart(groups[0].scales)
    values = tuple(product(_apart(group.scales)[1], group.rest) or ONE for group in groups)
    total = Expression("add", values)
    return Group(names, total) if any(operand_names(values)) else Group((*names, total), None)


def _apart(scales: tuple[Operand, ...]) -> tuple[tuple[Operand, ...], list[Operand]]:
    """The scales that are values, and those that are numbers."""
    values = tuple(scale for scale in scales if any(operand_names((scale,))))
    return values, [scale for scale in scales if scale not in values]


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
    apply: Apply | Expression | None = None
    if isinstance(operand, Expression):
        apply = operand if any(operand_names((operand,))) else None
    elif isinstance(operand, str) and depth > 0 and inside(operand):
        apply = applies.get(operand)
    if apply is None or apply.op not in ("add", "mul"):
        return ((operand,),)
    opened = [terms(arg, inside, applies, depth - isinstance(operand, str)) for arg in apply.args]
    if apply.op == "add":
        return tuple(term for part in opened for term in part)
    if math.prod(len(part) for part in opened) > MOST_TERMS:
        return ((operand,),)
    result: tuple[tuple[Operand, ...], ...] = ((),)
    for part in opened:
        result = tuple((*left, *right) for left in result for right in part)
    return result
