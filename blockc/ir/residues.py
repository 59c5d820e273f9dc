"""Pairs of residues, the numbers of `prime_field.py`: what is known of them, plain numbers as pairs, comparison."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from blockc.ir.arithmetic import Array
from blockc.ir.dtypes import DTYPES

Q = 1073741789
P = 2 * Q + 1

INFINITE, NO_P, NO_Q, WEAK_P, WEAK_Q = 1, 2, 4, 8, 16
LOST, WEAK = NO_P | NO_Q, WEAK_P | WEAK_Q
# `sign` is that of the real number where it is known for certain (constants, exponentials, roots, infinities), else 0.
NUMBER = np.dtype([("p", np.uint64), ("q", np.uint64), ("marks", np.uint8), ("sign", np.int8)], align=True)

SMALL = 1 << 20  # integers that are taken for what they are: sizes, positions, labels
MOST_DIGITS, LARGEST_DENOMINATOR = 12, 1000  # of a constant that a person wrote


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many elements of two results are equal, different and undecided."""

    equal: int
    different: int
    undecided: int

    @property
    def is_outside(self) -> bool:
        """True if no element could be decided: the program is outside of what this arithmetic knows."""
        return self.undecided > 0 and self.equal == 0 and self.different == 0

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(self.equal + other.equal, self.different + other.different, self.undecided + other.undecided)


def compare(first: Array, second: Array) -> Verdict:
    """How two arrays of numbers of one shape agree."""
    if first.shape != second.shape:
        raise ValueError(f"shapes differ: {first.shape}, {second.shape}")
    marks = first["marks"] | second["marks"]
    known_p, known_q = (marks & NO_P) == 0, (marks & NO_Q) == 0
    infinite = (first["marks"] & INFINITE) != (second["marks"] & INFINITE)
    infinite |= ((marks & INFINITE) != 0) & (first["sign"] != second["sign"])
    wrong_p = known_p & ((first["p"] != second["p"]) | infinite)
    wrong_q = known_q & ((first["q"] != second["q"]) | infinite)
    different = (wrong_p & ((marks & WEAK_P) == 0)) | (wrong_q & ((marks & WEAK_Q) == 0))
    equal = (known_p | known_q) & ~wrong_p & ~wrong_q
    counts = int(np.sum(equal)), int(np.sum(different))
    return Verdict(*counts, first.size - sum(counts))


def random_numbers(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Uniform random residues."""
    p = generator.integers(0, P, shape, dtype=np.uint64)
    return build(p, generator.integers(0, Q, shape, dtype=np.uint64), 0, 0)


def build(p: Any, q: Any, marks: Any, sign: Any) -> Array:
    """Numbers of their parts. Infinities have residues 0; what is infinite and lost is lost."""
    result = np.empty(np.broadcast(p, q, marks, sign).shape, NUMBER)
    result["p"], result["q"], result["marks"], result["sign"] = p, q, marks, sign
    return result


def pick(condition: Array, a: Array, b: Array) -> Array:
    shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
    result = np.empty(shape, NUMBER)
    result[...] = b
    np.copyto(result, a, where=condition)
    return result


def marked(array: Array, marks: Any) -> Array:
    """The numbers with more marks."""
    return build(array["p"], array["q"], array["marks"] | marks, array["sign"])


def flag(condition: Array, mark: int) -> Array:
    return np.where(condition, np.uint8(mark), np.uint8(0))


def has(array: Array, mark: int) -> Array:
    """Where the numbers have all of these marks."""
    return np.asarray((array["marks"] & mark) == mark)


def is_zero(array: Array) -> Array:
    return np.asarray((array["p"] == 0) & (array["q"] == 0) & ((array["marks"] & (LOST | INFINITE)) == 0))


def is_small(array: Array) -> Array:
    """Where both residues are one small natural number."""
    known = (array["marks"] & (LOST | INFINITE)) == 0
    return np.asarray(known & (array["p"] == array["q"]) & (array["p"] < SMALL))


def encode(array: Array, dtype: str) -> Array:
    """Plain numbers as numbers of the field; those of the field are left as they are."""
    if array.dtype == NUMBER:
        return array
    if array.dtype.kind == "f":
        result = np.empty(array.shape, NUMBER)
        for position, value in np.ndenumerate(array):
            result[position] = constant(float(value))
        return result
    whole = array.astype(np.int64)
    if DTYPES[dtype].kind == "bool":
        whole = np.asarray(whole != 0, np.int64)
    return build((whole % P).astype(np.uint64), (whole % Q).astype(np.uint64), 0, np.sign(whole))


@functools.cache
def constant(value: float) -> tuple[int, int, int, int]:
    """The parts of a constant: the rational number that was meant; a long decimal is weak, since it was rounded."""
    if math.isnan(value):
        return 0, 0, LOST, 0
    if math.isinf(value):
        return 0, 0, INFINITE, int(math.copysign(1, value))
    exact = Fraction(value)
    meant = next((near for near in (exact.limit_denominator(LARGEST_DENOMINATOR), _short(value))
                  if near is not None and abs(near - exact) <= abs(exact) / 2**51), None)  # fmt: skip
    number = exact if meant is None else meant
    residues = [number.numerator * pow(number.denominator, -1, modulus) % modulus for modulus in (P, Q)]
    return residues[0], residues[1], WEAK if meant is None else 0, (value > 0) - (value < 0)


def _short(value: float) -> Fraction | None:
    """The number as a decimal, if few digits say it."""
    text = f"{value:.15g}"
    digits = text.partition("e")[0].replace(".", "").lstrip("-0").rstrip("0")
    return Fraction(text) if len(digits) <= MOST_DIGITS else None
