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
LONGEST = 128  # operands of a sum or product that is still taken apart: x * x, twenty times over, has a million factors
LARGEST = 1024  # operands of what one value may become where sums and products are opened

Factored = tuple[tuple[Operand, ...], Operand | None]  # scales, and what remains, None if that is 1


def size(*operands: Operand | None) -> int:
    """How many operands there are in the expressions, those that occur several times counted each time."""
    return sum(size(*operand.args) if isinstance(operand, Expression) else 1 for operand in operands)


def factor_out(operand: Operand, invariant: Invariant, applies: Mapping[str, Apply]) -> Factored:
    """The scales of an operand and what remains, None if that is 1.

    Looks through products, and through sums for scales that all terms share, `DEEPEST` operators deep; what would
    become larger than `LARGEST` stays as it is. New products and sums in the rest are `Expression`s, which the caller
    turns into operators.
    """
    return _factored(operand, invariant, applies, DEEPEST, {})


def _factored(
    operand: Operand,
    invariant: Invariant,
    applies: Mapping[str, Apply],
    depth: int,
    known: dict[tuple[Operand, int], Factored],
) -> Factored:
    """`factor_out` of a value that many may be made of: it is looked at once at each depth."""
    if invariant(operand) and operand != ONE:
        return (operand,), None
    apply = applies.get(operand) if isinstance(operand, str) and depth > 0 else None
    if apply is None:
        return (), operand
    if (operand, depth) not in known:
        parts = {arg: _factored(arg, invariant, applies, depth - 1, known) for arg in linear_in(apply)}
        scales, rest = _of_product(apply, parts) if apply.op == "mul" else _of_sum(apply, parts)
        known[operand, depth] = (scales, rest) if scales and size(*scales, rest) <= LARGEST else ((), operand)
    return known[operand, depth]


def _of_product(apply: Apply, parts: Mapping[Operand, Factored]) -> Factored:
    """The scales of all factors."""
    scales = tuple(scale for arg in apply.args for scale in parts[arg][0])
    return scales, product([rest for arg in apply.args if (rest := parts[arg][1]) is not None])


def _of_sum(apply: Apply, parts: Mapping[Operand, Factored]) -> Factored:
    """The scales that all terms share."""
    terms = {arg: part for arg, part in parts.items() if arg != ZERO}
    common = shared_factors([scales for scales, _ in terms.values()]) if terms else ()
    if not common:
        return (), apply.name
    left = {arg: product(_less(scales, common), rest) or Constant(1.0) for arg, (scales, rest) in terms.items()}
    values = linear_in(apply)
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
        """The operand as a sum of groups with different scales; None if that is too deep, or has too many terms or
        too large ones."""
        if operand not in self.known:
            found = self.opened(operand, depth)
            large = found is not None and sum(map(_size, found)) > LARGEST
            self.known[operand] = None if large else found
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
    """The product of sums of groups; None if it has too many terms or too large ones."""
    if math.prod(map(len, parts)) > MOST_TERMS or sum(max(map(_size, part), default=0) for part in parts) > LARGEST:
        return None
    return collected(multiplied(chosen) for chosen in pairs(*parts))


def _size(group: Group) -> int:
    return size(*group.scales, group.rest)


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


Terms = tuple[tuple[Operand, ...], ...]


def terms(operand: Operand, inside: Invariant, applies: Mapping[str, Apply]) -> Terms:
    """An operand as a sum of products, each a tuple of factors: sums are opened, and products distributed over them.

    Only definitions that `inside` accepts are looked through, `DEEPEST` operators deep; others stand for themselves,
    and so does what would become more than `MOST_TERMS` terms or larger than `LARGEST`.
    """
    return _terms(operand, inside, applies, DEEPEST, {})


def _terms(
    operand: Operand,
    inside: Invariant,
    applies: Mapping[str, Apply],
    depth: int,
    known: dict[tuple[Operand, int], Terms],
) -> Terms:
    """`terms` of a value that many may be made of: it is looked at once at each depth."""
    apply: Apply | Expression | None = None
    if isinstance(operand, Expression):
        apply = operand if any(operand_names((operand,))) else None
    elif isinstance(operand, str) and depth > 0 and inside(operand):
        apply = applies.get(operand)
    if apply is None or apply.op not in ("add", "mul"):
        return ((operand,),)
    if (operand, depth) not in known:
        below = depth - isinstance(operand, str)
        opened = [_terms(arg, inside, applies, below, known) for arg in apply.args]
        found = tuple(term for part in opened for term in part) if apply.op == "add" else _distributed(opened)
        known[operand, depth] = found if found and sum(map(len, found)) <= LARGEST else ((operand,),)
    return known[operand, depth]


def _distributed(parts: list[Terms]) -> Terms:
    """The terms of a product of sums; none if they are too many or too large."""
    if math.prod(map(len, parts)) > MOST_TERMS or sum(max(map(len, part)) for part in parts) > LARGEST:
        return ()
    result: Terms = ((),)
    for part in parts:
        result = tuple((*left, *right) for left in result for right in part)
    return result
