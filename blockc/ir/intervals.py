"""Interval analysis: what a condition on positions is in a whole block: true everywhere, nowhere, or here and there.

Every part of a condition has a lowest and a highest value over the positions of a block. Of a truth value the lowest
says that it is true everywhere, the highest that it may be true somewhere. Both are written with operator names, like
the monoids: the interpreter, the cost model and the emitters read the same definition, for one block or for many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from blockc.ir.block import Condition, Constant, Index, Reading, Size, Term
from blockc.ir.conditions import COMPARISONS, CONNECTIVES, RISING, UNKNOWN, positions

T = TypeVar("T")
Bounds = tuple[T, T]
Leaf = Index | Reading | Constant | Size


def bounds(term: Term, apply: Callable[..., T], leaf: Callable[[Leaf], Bounds[T]]) -> Bounds[T]:
    """The lowest and the highest value of a term. `leaf` gives those of positions, tables and numbers.

    `apply` builds or computes an elementwise operator of numbers, given its name. ValueError for an operator without a
    rule here.
    """
    if not isinstance(term, Condition):
        return leaf(term)
    if term.op == "unknown":
        return leaf(Constant(False))[0], leaf(Constant(True))[0]
    parts = [bounds(arg, apply, leaf) for arg in term.args]
    if not any(positions(term)) and UNKNOWN not in term.args and term.op not in CONNECTIVES:
        number = apply(term.op, *(low for low, _ in parts))
        return number, number
    if term.op in COMPARISONS:
        return _comparison(term.op, parts[0], parts[1], apply)
    match term.op:
        case "not":
            ((low, high),) = parts
            return apply("not", high), apply("not", low)
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
        case "add" | "and" | "or":
            return apply(term.op, *(low for low, _ in parts)), apply(term.op, *(high for _, high in parts))
        case op if op in RISING:
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
