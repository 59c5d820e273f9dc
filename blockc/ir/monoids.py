"""Declared monoids: how the blocks of a reduction combine. One record each.

Streaming over blocks, trees, and split-and-combine hold for every record here without further code. `combine` is
written with operator names, so the interpreter, the emitters and the cost model read the same definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Monoid:
    """`identity` is that of the first component, and that of every other one.

    `combine(apply, a, b)` gives the components of a combined with b, where `apply(op, *operands)` builds or computes an
    elementwise operator. `commutes` allows reordering. `has_scalar`: component 0 is a scalar part that acts on the
    others, the payloads, of which there may be any number; else there is one component.
    """

    name: str
    identity: tuple[float, float]
    combine: Callable[[Callable[..., T], tuple[T, ...], tuple[T, ...]], tuple[T, ...]]
    commutes: bool
    has_scalar: bool


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


MONOIDS: dict[str, Monoid] = {
    monoid.name: monoid
    for monoid in (
        Monoid("add", (0.0, 0.0), _each("add"), commutes=True, has_scalar=False),
        Monoid("max", (-math.inf, -math.inf), _each("maximum"), commutes=True, has_scalar=False),
        Monoid("min", (math.inf, math.inf), _each("minimum"), commutes=True, has_scalar=False),
        # Exponent pairs that share one exponent: softmax, log-sum-exp, flash attention (design, section 7).
        Monoid("exponent_add", (-math.inf, 0.0), _exponent_add, commutes=True, has_scalar=True),
    )
}


def identity(name: str, component: int) -> float:
    """The identity of one component of a monoid: the scalar part is component 0 of a monoid that has one."""
    return MONOIDS[name].identity[0 if component == 0 else 1]
