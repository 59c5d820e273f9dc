"""Exact arithmetic in which wrong identities fail: a number is a pair of residues, mod p and mod q, with p = 2q + 1.

Sums and products act on both residues. exp(x) = 9^(x mod q) mod p: 9 has the order q, so exp(x + y) = exp(x) exp(y) and
exp(log x) = x hold exactly, and the residue mod q is lost. log is the discrete logarithm and loses the one mod p.
Rewrites that hold for all reals by the laws below hold here; one that does not holds by chance about once in 10^9.
Source of the idea: probabilistic equivalence in Mirage (Wu et al. 2024, arXiv 2405.05751).

    sums, products         as in a field; recip(0) = 0
    exp, log, sigmoid      homomorphisms between the two residues; exp(-inf) = 0, log(0) = -inf, log(-x) = log(x)
    sqrt, rsqrt, abs       multiplicative; the square of sqrt(x) is x or -x; sqrt(x * x) = abs(x)
    max, min, comparisons  by a fixed order of the residues mod p: -inf is least, and small integers are in their order
    tanh, erf, floor, ...  fixed random functions of the residue mod p

A residue is *lost* when it cannot be known (after exp, after log, of inf - inf). It is *weak* when it rests on a choice
that not all laws agree with (a root of what is no square, a reciprocal of zero, a rounded constant). Two results differ
if a residue that both know differs, unless it is weak: then, and where they know none in common, they are undecided.
That the order of numbers has nothing to do with addition is on purpose (a shift does not leave a maximum for free), but
`stabilize` relies on it, so what it makes is outside.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from blockc.ir.arithmetic import Arithmetic, Array, summed_product
from blockc.ir.dtypes import DTYPES
from blockc.ir.residues import (
    INFINITE,
    LOST,
    NO_P,
    NO_Q,
    SMALL,
    WEAK,
    WEAK_P,
    WEAK_Q,
    P,
    Q,
    build,
    encode,
    flag,
    has,
    is_small,
    is_zero,
    marked,
    pick,
)

GENERATOR = 9
ODD = (Q - 1) // 4  # the order of the residues mod q that have a root of odd order
ROOT_Q = next((ODD + 1) // 2 + k * ODD for k in range(4) if ((ODD + 1) // 2 + k * ODD) % 4 == 0)


# Sums and products


def _add(a: Array, b: Array) -> Array:
    both = a["marks"] | b["marks"]
    sign = np.where(a["sign"] == b["sign"], a["sign"], 0)
    sign = np.where(is_zero(b), a["sign"], np.where(is_zero(a), b["sign"], sign))
    result = build((a["p"] + b["p"]) % P, (a["q"] + b["q"]) % Q, both & ~np.uint8(INFINITE), sign)
    infinite = (both & INFINITE) != 0
    if not infinite.any():
        return result
    first, second = has(a, INFINITE), has(b, INFINITE)
    lost = has(a, LOST) | has(b, LOST) | (first & second & (a["sign"] != b["sign"]))
    sign = np.where(first, a["sign"], b["sign"])
    return pick(infinite, _infinity(sign, both & WEAK, lost), result)


def _infinity(sign: Any, weak: Any, lost: Array) -> Array:
    """Infinities with these signs, and numbers that are lost."""
    marks = weak | np.where(lost, np.uint8(LOST), np.uint8(INFINITE))
    return build(np.uint64(0), np.uint64(0), marks, np.where(lost, 0, sign))


def _multiply(a: Array, b: Array) -> Array:
    both = a["marks"] | b["marks"]
    sign = a["sign"] * b["sign"]
    result = build(a["p"] * b["p"] % P, a["q"] * b["q"] % Q, both & ~np.uint8(INFINITE), sign)
    infinite = (both & INFINITE) != 0
    if not infinite.any():
        return result
    lost = has(a, LOST) | has(b, LOST) | (sign == 0)  # the sign of an infinity has to be certain
    return pick(infinite, _infinity(sign, both & WEAK, lost), result)


def _negate(a: Array) -> Array:
    return build((P - a["p"]) % P, (Q - a["q"]) % Q, a["marks"], -a["sign"])


def _power(base: Any, exponent: int, modulus: int) -> Any:
    """base ** exponent mod modulus, elementwise, by repeated squaring."""
    result = np.ones_like(base)
    while exponent:
        if exponent & 1:
            result = result * base % modulus
        base = base * base % modulus
        exponent >>= 1
    return result


def _reciprocal(a: Array) -> Array:
    """By Fermat's theorem. That of zero, and that of an infinity, is a zero that proves nothing if others differ."""
    infinite = has(a, INFINITE)
    marks = (a["marks"] & ~np.uint8(INFINITE)) | flag((a["p"] == 0) & ((a["marks"] & NO_P) == 0), WEAK_P)
    marks |= flag((a["q"] == 0) & ((a["marks"] & NO_Q) == 0), WEAK_Q)
    return build(_power(a["p"], P - 2, P), _power(a["q"], Q - 2, Q), marks, np.where(infinite, 0, a["sign"]))


# Exponentials and roots


@functools.cache
def _digits_of_powers() -> tuple[Array, Array, Array]:
    """9^i, 9^(1024 i) and 9^(1024^2 i) mod p for i below 1024."""
    return tuple(  # type: ignore[return-value]
        np.array([pow(GENERATOR, i << shift, P) for i in range(1024)], np.uint64) for shift in (0, 10, 20)
    )


def _generated(exponent: Array) -> Array:
    """9 ** exponent mod p."""
    low, middle, high = _digits_of_powers()
    part = low[exponent & np.uint64(1023)] * middle[(exponent >> np.uint64(10)) & np.uint64(1023)] % P
    return np.asarray(part * high[exponent >> np.uint64(20)] % P)


def _exp(a: Array) -> Array:
    lost, weak = (a["marks"] & NO_Q) != 0, (a["marks"] & WEAK_Q) != 0
    result = build(_generated(a["q"]), np.uint64(0), NO_Q | flag(lost, NO_P) | flag(weak, WEAK), np.int8(1))
    infinite = has(a, INFINITE)
    if not infinite.any():
        return result
    limit = build(np.uint64(0), np.uint64(0), np.where(a["sign"] < 0, 0, LOST) | flag(weak, WEAK), np.int8(0))
    return pick(infinite, limit, result)


def _is_square(p: Any) -> Array:
    return np.asarray(_power(p, Q, P) == 1)


@functools.cache
def _small_logarithms() -> tuple[Array, Array]:
    """9^i for i below 2^20, sorted, and the i."""
    powers = _generated(np.arange(SMALL, dtype=np.uint64))
    order = np.argsort(powers)
    return powers[order], order.astype(np.uint64)


@functools.lru_cache(maxsize=1 << 16)
def _logarithm(square: int) -> int:
    """The discrete logarithm to the base 9 of a square mod p, by small and giant steps (0 of what is no square)."""
    powers, exponents = _small_logarithms()
    candidates = np.uint64(square) * _giant_steps() % np.uint64(P)
    places = np.minimum(np.searchsorted(powers, candidates), SMALL - 1)
    hits = np.flatnonzero(powers[places] == candidates)
    return (int(exponents[places[hits[0]]]) + SMALL * int(hits[0])) % Q if hits.size else 0


@functools.cache
def _giant_steps() -> Array:
    """9^(-2^20 i) mod p for all i that are needed."""
    steps = np.arange(-(-Q // SMALL), dtype=np.uint64)
    return _generated(np.uint64(Q) - steps * np.uint64(SMALL) % np.uint64(Q))


def _log(a: Array) -> Array:
    square = _is_square(a["p"])
    squares = np.where(square, a["p"], (P - a["p"]) % P)
    q = np.array([_logarithm(int(value)) for value in squares.flat], np.uint64).reshape(squares.shape)
    weak = (~square & ~is_small(a)) | ((a["marks"] & WEAK_P) != 0)
    result = build(np.uint64(0), q, NO_P | flag((a["marks"] & NO_P) != 0, NO_Q) | flag(weak, WEAK), np.int8(0))
    infinite = has(a, INFINITE)
    zero = (a["p"] == 0) & ((a["marks"] & (NO_P | INFINITE)) == 0)
    limit = _infinity(np.where(zero, -1, 1), a["marks"] & WEAK, infinite & (a["sign"] < 0))
    return pick(infinite | zero, limit, result)


def _square_root(a: Array) -> Array:
    small, infinite = is_small(a), has(a, INFINITE)
    square = _is_square(a["p"])
    p = _power(np.where(square, a["p"], (P - a["p"]) % P), (P + 1) // 4, P)
    weak_p = ~square & (a["p"] != 0) & ~small & ((a["marks"] & NO_P) == 0)
    weak_q = (_power(a["q"], ODD, Q) != 1) & (a["q"] != 0) & ~small & ((a["marks"] & NO_Q) == 0)
    marks = np.where(infinite, 0, flag(weak_p, WEAK_P) | flag(weak_q, WEAK_Q)) | a["marks"]
    marks = np.where(infinite & (a["sign"] < 0), np.uint8(LOST), marks)
    return build(p, _power(a["q"], ROOT_Q, Q), marks, np.where(is_zero(a), 0, 1))


def _absolute(a: Array) -> Array:
    known = pick(a["sign"] < 0, _negate(a), a)
    return pick((a["sign"] != 0) | is_zero(a), known, _square_root(_multiply(a, a)))


def _sigmoid(a: Array) -> Array:
    return _reciprocal(_add(_ONE, _exp(_negate(a))))


# Order


def _keys(a: Array) -> Array:
    """Where a number stands in the order of all numbers."""
    p = a["p"]
    middle = np.uint64(1 << 62)
    mixed = (p * np.uint64(2654435761) + np.uint64(12345)) & np.uint64((1 << 32) - 1)
    key = np.where(mixed < 1 << 31, mixed, mixed + np.uint64(1 << 63))
    key = np.where(p < SMALL, middle + p, np.where(p > P - SMALL, middle - (P - p), key))
    limit = np.where(a["sign"] < 0, np.uint64(0), np.uint64((1 << 64) - 1))
    return np.asarray(np.where((a["marks"] & INFINITE) != 0, limit, key))


def _doubt(marks: Any) -> Any:
    """The marks of what was chosen by looking at residues mod p with these marks."""
    return flag((marks & NO_P) != 0, LOST) | flag((marks & WEAK_P) != 0, WEAK)


def _chosen(a: Array, b: Array, first: Callable[[Array, Array], Array]) -> Array:
    doubt = _doubt(a["marks"] | b["marks"])
    return marked(pick(first(_keys(a), _keys(b)), a, b), doubt)


def _larger(a: Array, b: Array) -> Array:
    return _chosen(a, b, np.greater_equal)


def _smaller(a: Array, b: Array) -> Array:
    return _chosen(a, b, np.less_equal)


def _truth(condition: Array, doubt: Any) -> Array:
    return build(condition.astype(np.uint64), condition.astype(np.uint64), doubt, condition.astype(np.int8))


def _compared(holds: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: _truth(holds(_keys(a), _keys(b)), _doubt(a["marks"] | b["marks"]))


def _either(a: Array, b: Array) -> Array:
    return _negation(_multiply(_negation(a), _negation(b)))


def _negation(a: Array) -> Array:
    return _truth((a["p"] == 0) & ((a["marks"] & INFINITE) == 0), _doubt(a["marks"]))


def _select(condition: Array, a: Array, b: Array) -> Array:
    return marked(pick(condition["p"] != 0, a, b), _doubt(condition["marks"]))


# Functions without laws


def _mixed(p: Array, salt: int) -> Array:
    """A fixed random 64-bit number for each residue (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        x = (p + np.uint64(salt + 1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))


LAWLESS = ("tanh", "gelu", "erf", "sin", "cos", "floor", "pow", "integer")


def _lawless(name: str) -> Callable[[Array], Array]:
    salt = LAWLESS.index(name) << 40

    def apply(a: Array) -> Array:
        infinite = (a["marks"] & INFINITE) != 0
        p = a["p"] + np.where(infinite, np.uint64(P) + (a["sign"] < 0), np.uint64(0))  # the limits are values too
        # Of integers the real values may be known, such as tanh(0) = 0, and be put in their place.
        doubt = _doubt(a["marks"]) | flag(is_small(a) | is_small(_negate(a)), WEAK)
        return build(_mixed(p, salt) % P, _mixed(p, salt + (1 << 39)) % Q, doubt, np.int8(0))

    return apply


def _to_a_power(a: Array, b: Array) -> Array:
    """Products and roots for multiples of one half; a function without laws for others."""
    twice = _twice(b)
    if twice is None:
        mixed = (_mixed(a["p"], 0) ^ _mixed(b["p"], 1 << 38)) >> np.uint64(2)
        pair = build(mixed, np.uint64(0), a["marks"] | b["marks"], np.int8(0))
        return _lawless("pow")(pair)
    base = _square_root(a) if twice % 2 else a
    count = abs(twice) if twice % 2 else abs(twice) // 2
    result = _ONE
    for _ in range(count):
        result = _multiply(result, base)
    return _reciprocal(result) if twice < 0 else result


def _twice(b: Array) -> int | None:
    """Twice the exponent, if it is one constant multiple of one half."""
    if b.size != 1 or (b["marks"] & (LOST | INFINITE)).any():
        return None
    doubled = _add(b, b).reshape(())
    for sign, number in ((1, doubled), (-1, _negate(doubled))):
        if is_small(number) and number["p"] < 64:
            return sign * int(number["p"])
    return None


def cast(array: Array, dtype: str) -> Array:
    """A cast: floats stay, integers that are small stay or wrap, what is no integer becomes a random small one."""
    match DTYPES[dtype].kind:
        case "float":
            return array
        case "bool":
            return _negation(_negation(array))
        case _:
            small, negative = is_small(array), is_small(_negate(array))
            value = np.where(negative, -_negate(array)["p"].astype(np.int64), array["p"].astype(np.int64))
            bits = 8 * DTYPES[dtype].size
            wrapped = (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
            found = _lawless("integer")(array)
            other = marked(encode((found["p"] % 16).astype(np.int64), dtype), found["marks"])
            return pick(small | negative, marked(encode(wrapped, dtype), array["marks"] & WEAK), other)


# The table of operators


def _folded(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    return lambda first, *rest: functools.reduce(function, rest, first)


_ONE = encode(np.asarray(1), "i32")
_ZERO = encode(np.asarray(0), "i32")

MEANINGS: dict[str, Callable[..., Array]] = {
    "add": _folded(_add),
    "sub": lambda a, b: _add(a, _negate(b)),
    "mul": _folded(_multiply),
    "div": lambda a, b: _multiply(a, _reciprocal(b)),
    "neg": _negate,
    "recip": _reciprocal,
    "pow": _to_a_power,
    "exp": _exp,
    "log": _log,
    "sqrt": _square_root,
    "rsqrt": lambda a: _reciprocal(_square_root(a)),
    "sigmoid": _sigmoid,
    "relu": lambda a: _larger(a, _ZERO),
    "abs": _absolute,
    "minimum": _folded(_smaller),
    "maximum": _folded(_larger),
    "lt": _compared(np.less),
    "le": _compared(np.less_equal),
    "gt": _compared(np.greater),
    "ge": _compared(np.greater_equal),
    "eq": _compared(np.equal),
    "ne": _compared(np.not_equal),
    "and": _folded(_multiply),
    "or": _folded(_either),
    "not": _negation,
    "where": _select,
    "finite": lambda a: pick(has(a, INFINITE) & (a["sign"] < 0), _ZERO, a),
    **{name: _lawless(name) for name in ("tanh", "gelu", "erf", "sin", "cos", "floor")},
}


def elementwise(op: str, *arrays: Array) -> Array:
    """An operator of the table."""
    return np.asarray(MEANINGS[op](*arrays))


def reduce(op: str, array: Array, axes: tuple[int, ...]) -> Array:
    """A sum, maximum or minimum along axes."""
    if op == "sum":
        return _sum(array, axes)
    kept = tuple(axis for axis in range(array.ndim) if axis not in axes)
    count = math.prod(array.shape[axis] for axis in axes)
    flat = np.transpose(array, kept + axes).reshape(*(array.shape[axis] for axis in kept), count)
    if count == 0:
        return FIELD.full(flat.shape[:-1], -math.inf if op == "max" else math.inf)
    keys = _keys(flat)
    best = np.argmax(keys, axis=-1) if op == "max" else np.argmin(keys, axis=-1)
    chosen = np.take_along_axis(flat, best[..., np.newaxis], -1)[..., 0]
    return marked(chosen, _doubt(np.bitwise_or.reduce(flat["marks"], axis=-1)))


def _sum(array: Array, axes: tuple[int, ...]) -> Array:
    marks = np.bitwise_or.reduce(array["marks"], axis=axes)
    signs = np.where(is_zero(array), 0, array["sign"])
    unsure = np.any(~is_zero(array) & (signs == 0), axis=axes)
    above, below = np.any(signs > 0, axis=axes), np.any(signs < 0, axis=axes)
    sign = np.where(unsure | (above & below), 0, above.astype(np.int8) - below.astype(np.int8))
    p, q = (np.sum(array[part], axis=axes, dtype=np.uint64) % np.uint64(modulus) for part, modulus in _PARTS)
    result = build(p, q, marks & ~np.uint8(INFINITE), sign)
    infinite = has(array, INFINITE)
    if not infinite.any():
        return result
    up, down = (np.any(infinite & (array["sign"] == way), axis=axes) for way in (1, -1))
    lost = np.any(has(array, LOST), axis=axes) | (up & down)
    return pick(up | down, _infinity(np.where(up, 1, -1), marks & WEAK, lost), result)


_PARTS = (("p", P), ("q", Q))


def _contract(a: Array, a_axes: list[int], b: Array, b_axes: list[int], axes: list[int]) -> Array:
    return summed_product(elementwise, reduce, a, a_axes, b, b_axes, axes)


FIELD = Arithmetic(encode, elementwise, cast, reduce, _contract)
