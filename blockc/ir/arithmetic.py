"""What the interpreter computes with: float64, or other numbers under the same laws, such as those of a prime field.

Arrays of any arithmetic are NumPy arrays with one element per number. So blocks, axes and broadcasting are the same for
all of them, and the interpreter walks a program in one way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from blockc.ir.block import REDUCTIONS
from blockc.ir.dtypes import DTYPES, NUMPY_NAMES
from blockc.ir.monoids import identity
from blockc.ir.ops import OPERATORS, Result

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Arrays of numbers and what may be done to them.

    encode(array, dtype)                plain numbers, or numbers of this arithmetic already, of an element type
    elementwise(op, *arrays)            an operator of the table, on arrays of one rank that broadcast
    cast(array, dtype)                  to an element type
    reduce(op, array, axes)             "sum", "max" or "min" along axes; nothing gives the identity
    contract(a, axes, b, axes, axes)    the sum of products, the axes of operands and result numbered as for np.einsum
    """

    encode: Callable[[Array, str], Array]
    elementwise: Callable[..., Array]
    cast: Callable[[Array, str], Array]
    reduce: Callable[[str, Array, tuple[int, ...]], Array]
    contract: Callable[[Array, list[int], Array, list[int], list[int]], Array]

    def full(self, shape: tuple[int, ...], number: float) -> Array:
        """An array of one number."""
        return np.full(shape, self.encode(np.asarray(number, np.float64), "f64"))


def _encode(array: Array, dtype: str) -> Array:
    kind = DTYPES[dtype].kind
    return array.astype(np.float64 if kind == "float" else np.int64 if kind == "int" else np.bool_)


def _elementwise(op: str, *arrays: Array) -> Array:
    if OPERATORS[op].result in (Result.NUMBER, Result.REAL):
        arrays = tuple(array.astype(np.int64) if array.dtype.kind == "b" else array for array in arrays)
    return np.asarray(OPERATORS[op].meaning(*arrays))


def _cast(array: Array, dtype: str) -> Array:
    """A cast: to floats exact, to booleans whether not zero, to integers towards zero; floats saturate, NaN gives 0,
    and integers wrap around."""
    kind = DTYPES[dtype]
    if kind.kind == "float":
        return array.astype(np.float64)
    if kind.kind == "bool":
        return np.asarray(array != 0)
    limits = np.iinfo(NUMPY_NAMES[dtype])
    if array.dtype.kind != "f":
        return array.astype(np.int64).astype(NUMPY_NAMES[dtype]).astype(np.int64)
    whole = np.nan_to_num(np.trunc(array), nan=0.0, posinf=limits.max, neginf=limits.min)
    return np.asarray(np.clip(whole, limits.min, limits.max), np.int64)


def _reduce(op: str, array: Array, axes: tuple[int, ...]) -> Array:
    function = {"sum": np.add, "max": np.maximum, "min": np.minimum}[op]
    array = array.astype(np.float64 if array.size == 0 or array.dtype.kind == "f" else np.int64)
    if array.dtype.kind == "i":
        return np.asarray(function.reduce(array, axis=axes))
    return np.asarray(function.reduce(array, axis=axes, initial=identity(REDUCTIONS[op], 0)))


def _contract(a: Array, a_axes: list[int], b: Array, b_axes: list[int], axes: list[int]) -> Array:
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        return summed_product(_elementwise, _reduce, a, a_axes, b, b_axes, axes)
    return np.asarray(np.einsum(a, a_axes, b, b_axes, axes, optimize=True))


def summed_product(
    elementwise: Callable[..., Array],
    reduce: Callable[[str, Array, tuple[int, ...]], Array],
    a: Array,
    a_axes: list[int],
    b: Array,
    b_axes: list[int],
    axes: list[int],
) -> Array:
    """A contraction as a product and a sum, in any arithmetic."""
    every = sorted({*a_axes, *b_axes})
    product = elementwise("mul", *(spread(x, own, every) for x, own in ((a, a_axes), (b, b_axes))))
    left = [axis for axis in every if axis in axes]
    total = reduce("sum", product, tuple(position for position, axis in enumerate(every) if axis not in axes))
    return np.transpose(total, [left.index(axis) for axis in axes])


def spread(array: Array, axes: list[int], every: list[int]) -> Array:
    """The array with all these axes, of length one where it lacks one."""
    moved = np.transpose(array, [axes.index(axis) for axis in every if axis in axes])
    return moved[tuple(slice(None) if axis in axes else np.newaxis for axis in every)]


FLOAT64 = Arithmetic(_encode, _elementwise, _cast, _reduce, _contract)
