"""Numbers with an exponent beside them: the real arithmetic of the reference.

    Value(x, None)  is  x                    a plain number
    Value(x, t)     is  x * e^t              a pair; what `exp` makes, so that it never overflows or underflows

Zero. `exp(-inf)` is the exact zero (0, -inf). It absorbs in products, and a quotient by it is exactly zero.
A plain zero becomes an exact one where it meets a pair in a sum or a selection, and that of a mask in a product.

Minus infinity. It stands for "absent", the logarithm of an exact zero. The difference of two absent numbers would be
NaN in floating point; here it is marked `absent`, and `exp` of it is the exact zero. The mark survives sums, negation
and scaling, so `exp(s - m)`, `exp(-m + s)`, `exp(-(m - s))` and `exp(s) * exp(-m)` agree where s = m = -inf. Any other
NaN stays one, also the difference of two plus infinities. Maxima and minima take a marked number for -inf; whatever
else reads it, an output included, sees NaN.

Invariants: `exponent` broadcasts to the shape of `x`; where `exponent` is -inf, `x` is 0 or NaN; where `x` is 0,
`exponent` is neither NaN nor +inf. `absent` marks +inf and NaN only (in `x` of a plain number, else in `exponent`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Value:
    """The numbers x * e^exponent; without an exponent just x. Integers and booleans are always plain."""

    x: Array
    exponent: Array | None = None
    absent: Array | None = None


def each(value: Value, change: Callable[[Array], Array]) -> Value:
    """The value with every array of it changed: for reshaping, which must treat them alike."""
    exponent = None if value.exponent is None else change(np.broadcast_to(value.exponent, value.x.shape))
    absent = None if value.absent is None else change(np.broadcast_to(value.absent, value.x.shape))
    return Value(change(value.x), exponent, absent)


def plain(value: Value) -> Array:
    """The numbers as an array: infinite or zero where x * e^t does not fit."""
    if value.exponent is None:
        return value.x
    safe = np.log(np.finfo(value.exponent.dtype).max) - 1
    if np.all(np.abs(value.exponent) < safe):
        return _array(value.x * np.exp(value.exponent))
    # In two steps, since e^t alone may overflow where x * e^t does not.
    half = np.exp(value.exponent / 2)
    return _array(value.x * half * half)


def resolved(value: Value) -> Array:
    """The numbers as an array, with -inf for a difference of absent ones."""
    if value.exponent is not None or value.absent is None:
        return plain(value)
    return np.where(value.absent & np.isnan(value.x), _number(-np.inf, value.x), value.x)


def exp(value: Value) -> Value:
    """e to the power of a value: (1, s), or the exact zero."""
    s = resolved(value)
    marks = _mark(value.absent, np.isposinf(s)) if value.exponent is None else None
    return Value(np.where(np.isneginf(s), _number(0, s), _number(1, s)), s, marks)


def log(value: Value) -> Value:
    """The natural logarithm: log x + t; -inf of zero, NaN of negative numbers."""
    if value.exponent is None:
        return Value(np.log(plain(value)))
    logarithm = np.log(value.x)
    return Value(np.where(value.x == 0, logarithm, logarithm + value.exponent))


def negate(value: Value) -> Value:
    """The value with the other sign."""
    if value.exponent is not None or not _is_real(value.x):
        return Value(np.negative(value.x), value.exponent, value.absent)
    return Value(np.negative(value.x), None, _some(_is_absent(value)))


def add(a: Value, b: Value) -> Value:
    """The sum; pairs align elementwise by the larger exponent."""
    if a.exponent is None and b.exponent is None:
        total = _array(a.x + b.x)
        return Value(total, None, _absent_total(total, a, b, np.isfinite))
    (ax, at), (bx, bt) = _lift(a), _lift(b)
    top = np.maximum(_effective(ax, at), _effective(bx, bt))
    top = np.where(np.isneginf(top), np.maximum(at, bt), top)
    return Value(_aligned(ax, at, top) + _aligned(bx, bt, top), top)


def multiply(a: Value, b: Value) -> Value:
    """The product; exponents are added."""
    x = _array(a.x * b.x)
    if a.exponent is None and b.exponent is None:
        return Value(x, None, _absent_total(x, a, b, lambda y: np.isfinite(y) & (y != 0)))
    if a.exponent is None or b.exponent is None:
        pair, other = (b, a) if a.exponent is None else (a, b)
        return _pair(_array(pair.x * plain(other)), _exponent(pair), pair.absent)
    left, right = Value(a.exponent, None, a.absent), Value(b.exponent, None, b.absent)
    t = add(left, right)
    return _pair(x, resolved(t), t.absent)


def divide(a: Value, b: Value) -> Value:
    """The quotient; exponents are subtracted. By an exact zero it is an exact zero (NaN of NaN and infinities)."""
    if a.exponent is None and b.exponent is None:
        x = _array(np.true_divide(a.x, b.x))
        divisor = Value(np.true_divide(1, b.x))
        return Value(x, None, _absent_total(x, a, divisor, lambda y: np.isfinite(y) & (y != 0)))
    ax, at = (a.x, _exponent(a)) if a.exponent is not None else (plain(a), np.zeros((), b.x.dtype))
    bx, bt = (b.x, _exponent(b)) if b.exponent is not None else (plain(b), np.zeros((), a.x.dtype))
    empty = (bx == 0) & np.isneginf(bt)
    x = np.where(empty, ax * _number(0, bx), ax / bx)
    return _pair(x, np.where(empty, _number(-np.inf, bx), at - bt), None)


def power(base: Value, exponent: float) -> Value:
    """The value to a constant power. A negative power of an exact zero is an exact zero, as a quotient by it."""
    if base.exponent is None or exponent == 0 or not np.isfinite(exponent):
        return Value(np.power(plain(base), _number(exponent, base.x)))
    if exponent < 0:
        return divide(Value(_array(np.ones((), base.x.dtype))), power(base, -exponent))
    return _pair(np.power(base.x, _number(exponent, base.x)), base.exponent * _number(exponent, base.x), None)


def mask(x: Array) -> Value:
    """The numbers of a mask as pairs: its zeros are exact."""
    return Value(x, *_lift(Value(x))[1:])


def square_root(value: Value) -> Value:
    """The square root; NaN of negative numbers."""
    if value.exponent is None:
        return Value(np.sqrt(plain(value)))
    return _pair(np.sqrt(value.x), value.exponent / 2, None)


def select(condition: Array, a: Value, b: Value) -> Value:
    """The numbers of `a` where the condition holds, else those of `b`."""
    if a.exponent is None and b.exponent is None:
        marks = np.where(condition, _marks(a), _marks(b))
        return Value(np.where(condition, a.x, b.x), None, _some(marks))
    (ax, at), (bx, bt) = _lift(a), _lift(b)
    return Value(np.where(condition, ax, bx), np.where(condition, at, bt))


def compare(function: Callable[..., Any], a: Value, b: Value) -> Value:
    """A comparison, right also where the numbers themselves do not fit."""
    if a.exponent is None and b.exponent is None:
        return Value(_array(function(plain(a), plain(b))))
    (ax, at), (bx, bt) = _lift(a), _lift(b)
    top = np.maximum(_effective(ax, at), _effective(bx, bt))
    return Value(_array(function(_aligned(ax, at, top), _aligned(bx, bt, top))))


def total(value: Value, axes: tuple[int, ...]) -> Value:
    """The sum over axes, which stay with size 1. A pair aligns by its largest exponent; +inf among them gives NaN."""
    if value.exponent is None:
        x = plain(value)
        return Value(np.sum(x, axis=axes, keepdims=True, dtype=x.dtype))
    x, top = aligned(value, axes)
    return Value(np.sum(x, axis=axes, keepdims=True, dtype=x.dtype), top)


def aligned(value: Value, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """x and t of a pair with one exponent for all numbers along the axes: the largest of those that are not zero."""
    t = np.broadcast_to(_exponent(value), value.x.shape)
    top = np.asarray(np.max(_effective(value.x, t), axis=axes, keepdims=True, initial=-np.inf))
    top = np.where(np.isneginf(top), np.max(t, axis=axes, keepdims=True, initial=-np.inf), top)
    factor = np.exp(t - np.where(np.isneginf(top), _number(0, value.x), top))
    return _array(np.where(value.x == 0, value.x, value.x * factor)), top


def largest(value: Value, axes: tuple[int, ...]) -> Value:
    """The maximum over axes, which stay with size 1: NaN if one is NaN, -inf (the least i32 of integers) of none."""
    if value.exponent is not None and value.x.size:
        return _largest_pair(value, axes)
    x = resolved(value)
    lowest = -np.inf if _is_real(x) else np.iinfo(np.int32).min
    if 0 not in (x.shape[axis] for axis in axes):
        return Value(np.max(x, axis=axes, keepdims=True))
    return Value(np.max(x, axis=axes, keepdims=True, initial=lowest))


def smallest(value: Value, axes: tuple[int, ...]) -> Value:
    """The minimum over axes, which stay with size 1: NaN if one is NaN, +inf (the greatest i32 of integers) of none."""
    if value.exponent is not None and value.x.size:
        return negate(_largest_pair(negate(value), axes))
    x = resolved(value)
    highest = np.inf if _is_real(x) else np.iinfo(np.int32).max
    if 0 not in (x.shape[axis] for axis in axes):
        return Value(np.min(x, axis=axes, keepdims=True))
    return Value(np.min(x, axis=axes, keepdims=True, initial=highest))


def _largest_pair(value: Value, axes: tuple[int, ...]) -> Value:
    """The pair of the largest number: largest log x + t of positive ones, else a zero, else least log |x| + t."""
    kept = tuple(axis for axis in range(value.x.ndim) if axis not in axes)
    order = kept + axes
    shape = (*(value.x.shape[axis] for axis in kept), -1)
    result_shape = tuple(1 if axis in axes else size for axis, size in enumerate(value.x.shape))
    x = value.x.transpose(order).reshape(shape)
    t = np.broadcast_to(_exponent(value), value.x.shape).transpose(order).reshape(shape)
    size, none = np.log(np.abs(x)) + t, _number(-np.inf, x)
    positive = np.argmax(np.where(x > 0, size, none), axis=-1)
    negative = np.argmax(np.where(x < 0, -size, none), axis=-1)
    zero = np.argmax(x == 0, axis=-1)
    chosen = np.where(np.any(x > 0, axis=-1), positive, np.where(np.any(x == 0, axis=-1), zero, negative))
    broken = np.any(np.isnan(x) | np.isnan(t), axis=-1)
    index = chosen[..., np.newaxis]
    best = np.where(broken, _number(np.nan, x), np.take_along_axis(x, index, -1)[..., 0])
    return Value(best.reshape(result_shape), np.take_along_axis(t, index, -1)[..., 0].reshape(result_shape))


def stacked(values: tuple[Value, ...]) -> Value:
    """The values, broadcast to one shape, along a new first axis."""
    shape = np.broadcast_shapes(*(value.x.shape for value in values))
    if all(value.exponent is None for value in values):
        return Value(np.stack([np.broadcast_to(resolved(value), shape) for value in values]))
    pairs = [_lift(value) for value in values]
    return Value(
        np.stack([np.broadcast_to(x, shape) for x, _ in pairs]),
        np.stack([np.broadcast_to(t, shape) for _, t in pairs]),
    )


def _pair(x: Array, t: Array, marks: Array | None) -> Value:
    """The pair with the invariants restored."""
    x = np.where(np.isnan(t) | ((x == 0) & np.isposinf(t)), _number(np.nan, x), x)
    x = np.where(np.isneginf(t) & np.isfinite(x), _number(0, x), x)
    return Value(x, np.asarray(t, x.dtype), _mark(marks, np.isposinf(t)))


def _lift(value: Value) -> tuple[Array, Array]:
    """x and t of any number; a plain zero becomes an exact one."""
    if value.exponent is not None:
        return value.x, value.exponent
    x = plain(value)
    return x, np.where(x == 0, _number(-np.inf, x), _number(0, x))


def _exponent(value: Value) -> Array:
    assert value.exponent is not None
    return value.exponent


def _effective(x: Array, t: Array) -> Array:
    """The exponents that an alignment must look at: those of numbers that are not zero."""
    return np.where(x == 0, _number(-np.inf, x), t)


def _aligned(x: Array, t: Array, top: Array) -> Array:
    """x * e^(t - top), elementwise, where equal exponents, also infinite ones, cancel."""
    factor = np.where(t == top, _number(1, x), np.exp(t - top))
    return np.where(x == 0, x, x * factor)


def _is_real(x: Array) -> bool:
    return bool(x.dtype.kind == "f")


def _marks(value: Value) -> Array:
    return np.zeros((), np.bool_) if value.absent is None else value.absent


def _is_absent(value: Value) -> Array:
    return _array(np.isneginf(value.x) | _marks(value))


def _absent_total(x: Array, a: Value, b: Value, neutral: Callable[[Array], Any]) -> Array | None:
    """Marks for a sum or product x: NaN or +inf, all of whose operands are either absent or neutral to absence."""
    if not _is_real(x):
        return None
    suspicious = np.isnan(x) | np.isposinf(x)
    if not suspicious.any():
        return None
    operands = [value for value in (a, b) if _is_real(value.x)]
    if not operands:
        return None
    absent = [_is_absent(value) for value in operands]
    explained = [neutral(value.x) | mark for value, mark in zip(operands, absent, strict=True)]
    marks = suspicious
    for mark in explained:
        marks = marks & mark
    return _some(marks & (absent[0] | absent[-1]))


def _mark(marks: Array | None, where: Array) -> Array | None:
    return None if marks is None else _some(marks & where)


def _some(marks: Array) -> Array | None:
    return marks if marks.any() else None


def _number(number: float, like: Array) -> Array:
    return np.asarray(number, like.dtype)


def _array(value: Any) -> Array:
    return np.asarray(value)
