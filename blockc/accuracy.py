"""How far a kernel's result may be from the reference: a small multiple of what the unfused program is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockc.data import numpy_dtype
from blockc.ir import dtypes
from blockc.ir.array_program import ArrayProgram, Result

Array = NDArray[Any]

# Correct kernels exceed twice the unfused error in a few of 200 single draws, so the strict rule needs pooled ones.
_STRICT_ELEMENTS = 1000
_STRICT_DRAWS = 32


@dataclass(frozen=True, slots=True)
class Comparison:
    """A result against the reference. `ok`: within the bound, and infinities and NaN in the same places."""

    max_abs_error: float
    bound: float
    ok: bool


def error_bound(reference: Array, baseline: Array, dtype: str, draws: int = 1) -> float:
    """The largest absolute error that a result of type `dtype` may have.

    With e the largest error of the unfused baseline and u one ulp of the largest |reference| in `dtype`: 2e + 4u for
    at least 1,000 elements pooled over at least 32 draws, else 4e + 8u. Elements where either is not finite do not
    count for e, and for u only those where `dtype` stores the reference as a number. Integers and booleans have u = 0.
    """
    reference, unfused = _wide(reference), _wide(baseline)
    finite = np.isfinite(reference) & np.isfinite(unfused)
    with np.errstate(all="ignore"):
        counted = finite | np.isfinite(_wide(reference.astype(numpy_dtype(dtype))))
    largest = float(np.max(np.abs(reference[counted]), initial=0.0))
    error = float(np.max(np.abs(reference[finite] - unfused[finite]), initial=0.0))
    if reference.size >= _STRICT_ELEMENTS and draws >= _STRICT_DRAWS:
        return 2 * error + 4 * ulp(largest, dtype)
    return 4 * error + 8 * ulp(largest, dtype)


def ulp(number: float, dtype: str) -> float:
    """The distance between neighbouring numbers of a float type at `number`; 0 for integers and booleans."""
    if not dtypes.is_float(dtype):
        return 0.0
    mantissa, lowest_exponent = _float_format(dtype)
    exponent = math.frexp(number)[1] - 1 if number else lowest_exponent
    return float(np.ldexp(1.0, max(exponent, lowest_exponent) - mantissa))


def _float_format(dtype: str) -> tuple[int, int]:
    """Stored mantissa bits and the exponent of the smallest normal number."""
    formats = {"f64": (52, -1022), "f32": (23, -126), "f16": (10, -14), "bf16": (7, -126)}
    return (formats | {"f8e4m3": (3, -6), "f8e5m2": (2, -14)})[dtype]


def same_nonfinite(a: Array, b: Array) -> bool:
    """True if NaN, +inf and -inf are in the same places of both arrays."""
    a, b = _wide(a), _wide(b)
    return all(np.array_equal(test(a), test(b)) for test in (np.isnan, np.isposinf, np.isneginf))


def compare(
    result: Array, reference: Array, baseline: Array, dtype: str, computed: str = "", draws: int = 1
) -> Comparison:
    """How a kernel's result of type `dtype` compares with the reference; all three arrays have one shape.

    Infinities and NaN are looked for in the reference as `dtype` stores it, where large numbers overflow. `computed` is
    the type of the value before it was stored: storing it in a finer one does not make it finer.
    """
    if not result.shape == reference.shape == baseline.shape:
        raise ValueError(f"shapes differ: {result.shape}, {reference.shape}, {baseline.shape}")
    with np.errstate(all="ignore"):
        stored = reference.astype(numpy_dtype(dtype))
        exact, found = _wide(reference), _wide(result)
        counted = np.isfinite(_wide(stored)) & np.isfinite(found)
        error = float(np.max(np.abs(found[counted] - exact[counted]), initial=0.0))
        coarser = max(dtype, computed or dtype, key=lambda name: ulp(1.0, name))
        bound = error_bound(reference, baseline, coarser, draws)
    return Comparison(error, bound, error <= bound and same_nonfinite(found, stored))


def compare_where_asked(
    result: Array, reference: Array, baseline: Array, dtype: str, computed: str, draws: int, hides: bool = False
) -> Comparison:
    """How a kernel's result compares with the reference where the unfused program is right itself.

    Where the unfused program gives another kind than it should (a number, an infinity, and which, or NaN), nothing is
    asked. Else the kernel must give the same kind; NaN and an infinity are taken for each other, since regrouped terms
    may be infinite with both signs, or no longer be. If the kernel `hides` blocks behind masks, it may give a number
    where something that it does not read is none.
    """
    expected, asked, same = _kinds_where_asked(result, reference, baseline, dtype, hides)
    counted = asked & (expected == _NUMBER) & same
    found = compare(result[counted], reference[counted], baseline[counted], dtype, computed, draws)
    return replace(found, ok=found.ok and bool(same[asked].all()))


def same_kinds_where_asked(result: Array, reference: Array, baseline: Array, dtype: str, hides: bool = False) -> bool:
    """True if numbers, infinities and NaN are where `compare_where_asked` wants them, whatever the numbers are."""
    _, asked, same = _kinds_where_asked(result, reference, baseline, dtype, hides)
    return bool(same[asked].all())


def _kinds_where_asked(
    result: Array, reference: Array, baseline: Array, dtype: str, hides: bool
) -> tuple[Array, Array, Array]:
    """For every element which kind is expected, whether it is asked for, and whether the result has it."""
    with np.errstate(all="ignore"):
        expected = _kinds(reference.astype(numpy_dtype(dtype)))
    asked, given = expected == _kinds(baseline), _kinds(result)
    unclear = (given == _NOT_A_NUMBER) | (expected == _NOT_A_NUMBER)
    same = (given == expected) | (unclear & (given != _NUMBER) & (expected != _NUMBER))
    return expected, asked, same | (hides & (given == _NUMBER) & (expected != _NUMBER))


_NUMBER, _POSITIVE, _NEGATIVE, _NOT_A_NUMBER = range(4)


def _kinds(array: Array) -> Array:
    """For every element whether it is a number, an infinity, and which, or none of these."""
    wide = _wide(array)
    return np.select(
        [np.isfinite(wide), np.isposinf(wide), np.isneginf(wide)], [_NUMBER, _POSITIVE, _NEGATIVE], _NOT_A_NUMBER
    )


def computed_dtype(program: ArrayProgram, result: Result) -> str:
    """The type in which an output's value is computed, before it is stored in its declared type."""
    return next(node.dtype for node in program.nodes if node.name == result.node)


def _wide(array: Array) -> Array:
    return np.asarray(array).astype(np.float64)
