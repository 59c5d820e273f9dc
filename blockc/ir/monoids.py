"""Declared monoids: how the blocks of a reduction combine. One record each.

Streaming over blocks, trees, and split-and-combine hold for every record here without further code. `combine` is
written with operator names, so the interpreter, the emitters and the cost model read the same definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Monoid:
    """`identity` is that of the first component, and that of every other one.

    `combine(apply, a, b)` gives the components of a combined with b, where `apply(op, *operands)` builds or computes an
    elementwise operator. `commutes` allows reordering. `has_scalar`: the first component (the first `scalars`) acts on
    the others, the payloads, of which there may be any number; else there is one component. Payloads come in groups of
    `degree` + 1, the coefficients of a polynomial in the scalar part, which act on one another. `weighs`: the scalar
    part is an exponent, by which all payloads are rescaled.
    """

    name: str
    identity: tuple[float, ...]
    combine: Callable[[Callable[..., T], tuple[T, ...], tuple[T, ...]], tuple[T, ...]]
    commutes: bool
    has_scalar: bool
    degree: int = 0
    weighs: bool = False
    scalars: int = 1

    def takes(self, components: int) -> bool:
        """True if there can be so many components."""
        if not self.has_scalar:
            return components == 1
        return components > self.scalars and (components - self.scalars) % (self.degree + 1) == 0

    def acts_on(self, component: int) -> bool:
        """True if the scalar part changes a payload: by a factor, or because it is no highest coefficient."""
        return self.weighs or (component - self.scalars) % (self.degree + 1) != self.degree

    def group(self, component: int) -> tuple[int, ...]:
        """The components that say what becomes of one: itself, those that act on it, and what it acts with."""
        if not self.has_scalar:
            return (component,)
        if component < self.scalars:
            return tuple(range(self.scalars))
        first = component - (component - self.scalars) % (self.degree + 1)
        return (*range(self.scalars), *range(first, first + self.degree + 1))


def _each(op: str) -> Callable[..., tuple[T, ...]]:
    def combine(apply: Callable[..., T], a: tuple[T, ...], b: tuple[T, ...]) -> tuple[T, ...]:
        return tuple(apply(op, x, y) for x, y in zip(a, b, strict=True))

    return combine


def _exponent_add(apply: Callable[..., T], a: tuple[T, ...], b: tuple[T, ...]) -> tuple[T, ...]:
    """(t, x, ...) stands for x * e^t, ...: the larger exponent is kept and the payloads are rescaled to it."""
    t = apply("maximum", a[0], b[0])
    finite = apply("finite", t)
    scale_a = apply("exp", apply("sub", a[0], finite))
    scale_b = apply("exp", apply("sub", b[0], finite))
    payloads = (
        apply("add", apply("mul", x, scale_a), apply("mul", y, scale_b)) for x, y in zip(a[1:], b[1:], strict=True)
    )
    return (t, *payloads)


def _shift(degree: int, scalars: int, weighs: str) -> Callable[..., tuple[T, ...]]:
    """(p, c0, c1, ...) stands for a sum that is c0 + c1 * p + c2 * p^2 where x is written as (x - p) + p. The larger p
    is kept, and the coefficients become those at it. If it `weighs`, all is times e^t for the first component t, which
    may be p itself."""

    def at(apply: Callable[..., T], old: T, new: T, part: tuple[T, ...]) -> tuple[T, ...]:
        moved = apply("sub", apply("finite", old), new)
        first = apply("add", part[0], apply("mul", moved, part[1]))
        if degree == 1:
            return (first, part[1])
        square = apply("mul", apply("mul", moved, moved), part[2])
        double = apply("mul", apply("add", moved, moved), part[2])
        return (apply("add", first, square), apply("add", part[1], double), part[2])

    def combine(apply: Callable[..., T], a: tuple[T, ...], b: tuple[T, ...]) -> tuple[T, ...]:
        result = [apply("maximum", a[part], b[part]) for part in range(scalars)]
        exponent, p = apply("finite", result[0]), apply("finite", result[-1])
        for start in range(scalars, len(a), degree + 1):
            left = at(apply, a[scalars - 1], p, a[start : start + degree + 1])
            right = at(apply, b[scalars - 1], p, b[start : start + degree + 1])
            if weighs:
                scales = (apply("exp", apply("sub", part[0], exponent)) for part in (a, b))
                left, right = (
                    tuple(apply("mul", x, scale) for x in part)
                    for part, scale in zip((left, right), scales, strict=True)
                )
            result.extend(apply("add", x, y) for x, y in zip(left, right, strict=True))
        return tuple(result)

    return combine


def _pivot_pair(degree: int) -> Callable[..., tuple[T, ...]]:
    """(q, t0, t1, ..., p, c0, c1, ...) stands for such a sum, where the pivot is p * e^q and ck is times e^tk: of an x
    that may be as large as exponentials are. The p with the larger e^q * p is kept."""
    powers = range(degree + 1)

    def combine(apply: Callable[..., T], a: tuple[T, ...], b: tuple[T, ...]) -> tuple[T, ...]:
        def total(op: str, terms: list[T]) -> T:
            return reduce(partial(apply, op), terms)

        def scale(exponent: T, to: T) -> T:
            return apply("exp", apply("sub", exponent, apply("finite", to)))

        q = apply("maximum", a[0], b[0])
        own = [apply("mul", apply("finite", part[degree + 2]), scale(part[0], q)) for part in (a, b)]
        missing = [apply("sub", part[0], apply("finite", part[0])) for part in (a, b)]  # -inf if all x are 0
        p = apply("maximum", *(apply("add", x, none) for x, none in zip(own, missing, strict=True)))
        p = apply("mul", apply("finite", p), scale(q, q))
        moves = [apply("sub", x, p) for x in own]

        result = [q]
        ways: list[list[tuple[int, int, T]]] = []  # for each power, what becomes of it: a side, a power, a scale
        for power in powers:
            found = [(side, high, (a, b)[side][1 + high]) for side in (0, 1) for high in powers[power:]]
            found = [(side, high, total("add", [t, *[q] * (high - power)])) for side, high, t in found]
            result.append(total("maximum", [t for _, _, t in found]))
            ways.append([(side, high, scale(t, result[-1])) for side, high, t in found])
        result.append(p)
        for start in range(degree + 3, len(a), degree + 1):
            for power in powers:
                terms = []
                for side, high, factor in ways[power]:
                    moved = [(a, b)[side][start + high], factor, *[moves[side]] * (high - power)]
                    terms += [total("mul", moved)] * math.comb(high, power)
                result.append(total("add", terms))
        return tuple(result)

    return combine


_NONE = (-math.inf,) * 4  # the exponents of nothing

MONOIDS: dict[str, Monoid] = {
    monoid.name: monoid
    for monoid in (
        Monoid("add", (0.0, 0.0), _each("add"), commutes=True, has_scalar=False),
        Monoid("max", (-math.inf, -math.inf), _each("maximum"), commutes=True, has_scalar=False),
        Monoid("min", (math.inf, math.inf), _each("minimum"), commutes=True, has_scalar=False),
        # Exponent pairs that share one exponent: softmax, log-sum-exp, flash attention (design, section 7).
        Monoid("exponent_add", (-math.inf, 0.0), _exponent_add, commutes=True, has_scalar=True, weighs=True),
        # Sums of x and x^2 as those of x - p: what `passes/pivot.py` makes of sums that would cancel.
        Monoid("shift_1", (-math.inf, 0.0), _shift(1, 1, ""), commutes=True, has_scalar=True, degree=1),
        Monoid("shift_2", (-math.inf, 0.0), _shift(2, 1, ""), commutes=True, has_scalar=True, degree=2),
        Monoid("exponent_shift_1", (-math.inf, 0.0), _shift(1, 1, "by p"), True, True, degree=1, weighs=True),
        Monoid("exponent_shift_2", (-math.inf, 0.0), _shift(2, 1, "by p"), True, True, degree=2, weighs=True),
        # The same with an exponent beside the pivot, (t, p, c0, c1, ...): weighted by something else than exp(x).
        Monoid("pair_shift_1", (*_NONE[:2], 0.0), _shift(1, 2, "by t"), True, True, degree=1, weighs=True, scalars=2),
        Monoid("pair_shift_2", (*_NONE[:2], 0.0), _shift(2, 2, "by t"), True, True, degree=2, weighs=True, scalars=2),
        # The same with an exponent for every component: sums of values that are as large as exponentials.
        Monoid("pivot_pair_1", (*_NONE[:3], 0.0), _pivot_pair(1), True, True, degree=1, scalars=4),
        Monoid("pivot_pair_2", (*_NONE[:4], 0.0), _pivot_pair(2), True, True, degree=2, scalars=5),
    )
}


def identity(name: str, component: int) -> float:
    """The identity of one component of a monoid."""
    known = MONOIDS[name].identity
    return known[min(component, len(known) - 1)]
