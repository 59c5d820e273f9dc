"""Exponentials in the normal form: masks become exponents, and quotients of exponentials sigmoids.

What a mask closes has the exponent minus infinity, so that no loop looks for its largest exponent there. A number that
is not known before the program runs is no mask, since it might be negative.
"""

from __future__ import annotations

import math
from typing import Protocol

from blockc.ir.block import Apply, Constant, Operand
from blockc.passes.leaves import MINUS_ONE
from blockc.passes.masks import Origins, choice, has_exponent, is_mask

ZERO, EMPTY = Constant(0), Constant(-math.inf)


class Forms(Protocol):
    """What is needed of the normaliser."""

    applies: dict[str, Apply]
    level: dict[str, int]
    origins: Origins

    def make(self, op: str, *args: Operand) -> Operand:
        """The normal form of an operator."""

    def dtype(self, operand: Operand) -> str:
        """The type of an operand."""

    def definition(self, operand: Operand, op: str) -> Apply | None:
        """The definition of an operand, if it is this operator."""

    def axes(self, operands: tuple[Operand, ...]) -> set[str]:
        """The axes of the operands."""

    def coefficient(self, operand: Operand) -> tuple[float, tuple[Operand, ...]]:
        """A term as a number times other factors."""


def choose(forms: Forms, condition: Operand, yes: Operand, no: Operand) -> Operand | None:
    """`where(c, exp(s), 0)` as `exp(where(c, s, -inf))`, and `where(x == 0, 0, x)` as x; else None.

    A sum of which a term is subtracted or from outside the loop stays as it is: the term may be a maximum, which has to
    be seen beside the values that it is the maximum of, and its exponential may leave the loop.
    """
    if yes == ZERO and (test := forms.definition(condition, "eq")) is not None and set(test.args) == {no, ZERO}:
        return no
    kept, other = (yes, no) if no == ZERO else (no, yes)
    exponential = forms.definition(kept, "exp")
    if exponential is None or other != ZERO:
        return None
    (exponent,) = exponential.args
    terms = forms.definition(exponent, "add")
    if terms is not None and any(
        forms.level[name] < forms.level[terms.name] or forms.coefficient(name)[0] < 0 for name in terms.uses
    ):
        return None
    return forms.make("exp", forms.make("where", condition, *((exponent, EMPTY) if kept == yes else (EMPTY, exponent))))


def multiply(forms: Forms, factors: list[Operand]) -> list[Operand] | None:
    """The factors with two of them, one an exponential or made of some, as one; None if no two are."""
    exponentials = [factor for factor in factors if forms.definition(factor, "exp") is not None]
    for first in exponentials:
        others = list(factors)
        others.remove(first)
        for second in others:
            together = closed(forms, first, second) or quotient(forms, first, second)
            if together is not None:
                others.remove(second)
                return [*others, *together]
    return None


def closed(forms: Forms, exponential: Operand, mask: Operand) -> list[Operand] | None:
    """`exp(s) * where(c, k, 0)` as the factors `k * exp(s + where(c, 0, -inf))`: it is NaN where the product is.

    A mask from outside the loop stays a factor, which may leave a sum; one of an exponential of subtracted maxima too,
    since that may cancel.
    """
    found = choice(mask, forms.applies, forms.dtype)
    if found is None or forms.level[str(mask)] != forms.level[str(exponential)] or only_shifts(forms, exponential):
        return None
    condition, yes, no = found
    number = yes or no
    if (yes == 0) == (no == 0) or not math.isfinite(number):
        return None
    opened = forms.make("where", condition, *((ZERO, EMPTY) if no == 0 else (EMPTY, ZERO)))
    sum_of_both = forms.make("add", forms.applies[str(exponential)].args[0], opened)
    return [forms.make("exp", sum_of_both), *([] if number == 1 else [Constant(number)])]


def only_shifts(forms: Forms, exponential: Operand) -> bool:
    """True if the exponent of an exponential is made of subtracted maxima along a dimension only."""
    (exponent,) = forms.applies[str(exponential)].args
    terms = forms.definition(exponent, "add")
    for term in (exponent,) if terms is None else terms.args:
        count, factors = forms.coefficient(term)
        made = [forms.origins.made(factor) for factor in factors if isinstance(factor, str)]
        if count > 0 or not any(apply is not None and apply.op == "max" for apply in made):
            return False
    return True


def contract(forms: Forms, operands: tuple[Operand, ...]) -> list[Operand] | None:
    """The factors of what a contraction sums, if one operand is an exponential and the other a mask of its axes."""
    for exponential, mask in (operands, operands[::-1]):
        if forms.definition(exponential, "exp") is not None and forms.axes((mask,)) <= forms.axes((exponential,)):
            return closed(forms, exponential, mask)
    return None


def quotient(forms: Forms, exponential: Operand, other: Operand) -> list[Operand] | None:
    """`exp(g) * sigmoid(-g)` as `sigmoid(g)`, and `exp(g) / (exp(g) + exp(-k * g))` as `sigmoid(g + k * g)`.

    At minus infinity both are 0. Two exponentials that vanish together are left alone: their quotient is 0, too.
    """
    (exponent,) = forms.applies[str(exponential)].args
    count, terms = forms.coefficient(exponent)
    sigmoid = forms.definition(other, "sigmoid")
    if sigmoid is not None:
        return [forms.make("sigmoid", exponent)] if forms.coefficient(sigmoid.args[0]) == (-count, terms) else None
    inverse = forms.definition(other, "recip")
    total = forms.definition(inverse.args[0], "add") if inverse is not None else None
    if total is None or len(total.args) != 2 or exponential not in total.args:
        return None
    rest = total.args[1 - total.args.index(exponential)]
    against = forms.definition(rest, "exp")
    if against is None:
        return None
    opposite, same = forms.coefficient(against.args[0])
    if same != terms or opposite * count >= 0:
        return None
    return [forms.make("sigmoid", forms.make("add", exponent, forms.make("mul", MINUS_ONE, against.args[0])))]


def inverse(forms: Forms, factors: tuple[Operand, ...]) -> list[Operand]:
    """The reciprocals of the factors of a product.

    What a mask closes of something made of exponentials is nothing, and so is a quotient by it: the reciprocal of such
    a mask is 0 where the mask is. Elsewhere it is infinite.
    """
    result = {factor: forms.make("recip", factor) for factor in dict.fromkeys(factors)}
    masks = [factor for factor in result if isinstance(factor, str) and is_mask(forms.origins, factor)]
    if masks and any(has_exponent(forms.origins, factor) for factor in result):
        for mask in masks:
            closed = forms.make("eq", mask, ZERO)
            result[mask] = forms.make("where", closed, ZERO, result[mask])
    return [result[factor] for factor in factors]


def negated(forms: Forms, terms: tuple[Operand, ...]) -> Operand | None:
    """Minus a sum all of whose terms are negative multiples; None for another sum."""
    if all(forms.coefficient(term)[0] < 0 for term in terms if not isinstance(term, Constant)) and all(
        term.value < 0 for term in terms if isinstance(term, Constant)
    ):
        return forms.make("add", *(forms.make("mul", MINUS_ONE, term) for term in terms))
    return None
