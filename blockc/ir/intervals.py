"""Interval analysis: what a condition on positions is in a whole block: true everywhere, nowhere, or here and there.

Every part of a condition has a lowest and a highest value over the positions of a block. Of a truth value the lowest
says that it is true everywhere, the highest that it may be true somewhere. Both are written with operator names, like
the monoids: the interpreter, the cost model and the emitters read the same definition, for one block or for many.

A kernel computes real numbers in f32. Rounding keeps order, so a bound and the bound rounded enclose both the numbers
of the meaning and those of a kernel. Whole numbers are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from blockc.ir.block import Condition, Constant, Index, Reading, Size, Term
from blockc.ir.conditions import COMPARISONS, CONNECTIVES, RISING, UNKNOWN, WHOLE, positions

T = TypeVar("T")
Bounds = tuple[T, T]
Leaf = Index | Reading | Constant | Size
INEXACT = frozenset({"tanh", "sigmoid"})  # computed with an error beyond rounding
ERROR = 2.0**-20  # of such a result, relative


def bounds(term: Term, apply: Callable[..., T], leaf: Callable[[Leaf], Bounds[T]]) -> Bounds[T]:
    """The lowest and the highest value of a term. `leaf` gives those of positions, tables and numbers.

    `apply` builds or computes an elementwise operator of numbers, given its name, or `rounded`, a number as f32.
    ValueError for an operator without a rule here.
    """
    if not isinstance(term, Condition):
        return leaf(term)
    if term.op == "unknown":
        return leaf(Constant(False))[0], leaf(Constant(True))[0]
    parts = [bounds(arg, apply, leaf) for arg in term.args]
    if not any(positions(term)) and UNKNOWN not in term.args and term.op not in CONNECTIVES:
        number = apply(term.op, *(low for low, _ in parts))
        return number, number
    if term.op not in CONNECTIVES and not (term.op in WHOLE | COMPARISONS and all(map(is_whole, term.args))):
        parts = [_widened(arg, part, apply, leaf) for arg, part in zip(term.args, parts, strict=True)]
    if term.op in COMPARISONS:
        return _comparison(term.op, parts[0], parts[1], apply)
    if term.op == "not":
        ((low, high),) = parts
        return apply("not", high), apply("not", low)
    if term.op in ("and", "or"):
        return apply(term.op, *(low for low, _ in parts)), apply(term.op, *(high for _, high in parts))
    return _arithmetic(term.op, parts, apply)


def is_whole(term: Term) -> bool:
    """True for whole numbers made of whole numbers."""
    match term:
        case Constant(value):
            return isinstance(value, int)
        case Condition(op, args):
            return op in WHOLE and all(map(is_whole, args))
        case _:
            return True


def _widened(term: Term, ends: Bounds[T], apply: Callable[..., T], leaf: Callable[[Leaf], Bounds[T]]) -> Bounds[T]:
    """The bounds of what is computed as a real number, in any precision."""
    if isinstance(term, Constant) and float(np.float32(term.value)) == term.value:
        return ends
    low, high = ends
    if isinstance(term, Condition) and term.op in INEXACT:
        error = leaf(Constant(ERROR))[0]
        low = apply("sub", low, apply("mul", apply("abs", low), error))
        high = apply("add", high, apply("mul", apply("abs", high), error))
    return apply("minimum", low, apply("rounded", low)), apply("maximum", high, apply("rounded", high))


def _arithmetic(op: str, parts: list[Bounds[T]], apply: Callable[..., T]) -> Bounds[T]:
    """What the operator makes of exact numbers."""
    match op:
        case "sub":
            (low, high), (other_low, other_high) = parts
            return apply("sub", low, other_high), apply("sub", high, other_low)
        case "neg":
            ((low, high),) = parts
            return apply("neg", high), apply("neg", low)
        case "abs":
            ((low, high),) = parts
            negative = apply("neg", high), apply("neg", low)
            least = apply("maximum", low, negative[0])
            return apply("maximum", least, apply("sub", low, low)), apply("maximum", high, negative[1])
        case "mul":
            product = parts[0]
            for other in parts[1:]:
                corners = [apply("mul", a, b) for a in product for b in other]
                product = apply("minimum", *corners), apply("maximum", *corners)
            return product
        case op if op == "add" or op in RISING:
            return apply(op, *(low for low, _ in parts)), apply(op, *(high for _, high in parts))
        case op:
            raise ValueError(f"no interval of `{op}`")


OPPOSITE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


def _comparison(op: str, a: Bounds[T], b: Bounds[T], apply: Callable[..., T]) -> Bounds[T]:
    """What is not known, as with a bound that is NaN, may be true and is not true everywhere."""
    (a_low, a_high), (b_low, b_high) = a, b
    match op:
        case "lt" | "le":
            return apply(op, a_high, b_low), apply("not", apply(OPPOSITE[op], a_low, b_high))
        case "gt" | "ge":
            return apply(op, a_low, b_high), apply("not", apply(OPPOSITE[op], a_high, b_low))
        case _:
            same = apply("and", apply("le", a_high, b_low), apply("le", b_high, a_low))
            apart = apply("or", apply("gt", a_low, b_high), apply("gt", b_low, a_high))
            return (same, apply("not", apart)) if op == "eq" else (apart, apply("not", same))
