"""Random inputs, sizes from shapes, and the messages for arrays that do not fit a program."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from blockc.data import array_shape, numpy_dtype, random_arrays, sizes_of
from blockc.errors import LimitError, UsageError
from blockc.ir.array_program import ArrayProgram
from blockc.ir.dtypes import DTYPES
from blockc.language import parse

PACKED = parse("program p(X: f16[b, (h, d=4)], Y: f32[h], Z: i32[b]) -> O: f32[b, h, d] { O = X * Y + Z }")
PRODUCT = parse("program p(A: f32[m, k], B: f32[k, n=3]) -> O: f32[m, n] { O = dot[k](A, B) }")
RENAMED = parse("program p(X: f32[m, d], M: f32[m, n]) -> O: f32[m, n] { O = dot[d](X, X[m -> n]) + M }")
SELF = parse("program p(X: f32[m, d]) -> O: f32[m, n] { O = dot[d](X, X[m -> n]) }")
TWO_PACKED = parse("program p(X: f32[(h, d)], Y: f32[(d, e)], Z: f32[e]) -> O: f32[h, e] { O = sum[d](X * Y * Z) }")


def zeros(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: np.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("program", "shapes", "expected"),
    [
        (PRODUCT, {"A": (2, 5), "B": (5, 3)}, {"m": 2, "k": 5, "n": 3}),
        (PACKED, {"X": (2, 12), "Y": (3,), "Z": (2,)}, {"b": 2, "h": 3, "d": 4}),
        (SELF, {"X": (7, 2)}, {"m": 7, "d": 2, "n": 7}),
        (RENAMED, {"X": (7, 2), "M": (7, 7)}, {"m": 7, "d": 2, "n": 7}),
        (TWO_PACKED, {"X": (6,), "Y": (15,), "Z": (5,)}, {"h": 2, "d": 3, "e": 5}),
        (PRODUCT, {"A": (0, 0), "B": (0, 3)}, {"m": 0, "k": 0, "n": 3}),
    ],
)
def test_sizes_follow_from_shapes(
    program: ArrayProgram, shapes: dict[str, tuple[int, ...]], expected: dict[str, int]
) -> None:
    assert sizes_of(program, zeros(**shapes)) == expected
    assert sizes_of(program, zeros(**shapes), expected) == expected


@pytest.mark.parametrize(
    ("program", "shapes", "message"),
    [
        (PRODUCT, {"A": (2, 5)}, "input `B` is missing: it is f32[k, n]"),
        (PRODUCT, {"A": (2, 5), "B": (5, 3), "C": (1,)}, "program `p` has no input `C`"),
        (PRODUCT, {"A": (2, 5, 1), "B": (5, 3)}, "input `A` has 3 axes (2, 5, 1), not 2: it is f32[m, k]"),
        (PRODUCT, {"A": (2, 5), "B": (6, 3)}, "input `B`, axis 0 `k`: size 6, but input `A` gives 5"),
        (PRODUCT, {"A": (2, 5), "B": (5, 4)}, "input `B`, axis 1 `n`: size 4, but the program gives 3"),
        (PACKED, {"X": (2, 13), "Y": (3,), "Z": (2,)}, "input `X`, axis 1 `(h, d)`: size 13 is not a multiple of 4"),
        (PACKED, {"X": (2, 16), "Y": (3,), "Z": (2,)}, "input `Y`, axis 0 `h`: size 3, but input `X` gives 4"),
        (TWO_PACKED, {"X": (6,), "Y": (15,), "Z": (0,)}, "input `Y`, axis 0 `(d, e)`: size 15, but a dimension in it"),
        (RENAMED, {"X": (7, 2), "M": (7, 8)}, "`m` of size 7 is renamed to `n` of size 8"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    program: ArrayProgram, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        sizes_of(program, zeros(**shapes))
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_known_sizes_that_contradict_are_refused() -> None:
    arrays = zeros(A=(2, 5), B=(5, 3))
    with pytest.raises(UsageError, match="dimension `n` has size 3 in the program, not 4"):
        sizes_of(PRODUCT, arrays, {"n": 4})
    with pytest.raises(UsageError, match="input `A`, axis 0 `m`: size 2, but the given sizes give 9"):
        sizes_of(PRODUCT, arrays, {"m": 9})


def test_sizes_that_an_empty_packed_axis_hides_must_be_given() -> None:
    program = parse("program p(X: f32[(h=2, d)], Y: f32[(d, e)]) -> O: f32[h, e] { O = dot[d](X, Y) }")
    with pytest.raises(UsageError, match="the size of dimension `e` is not known: input `Y` packs it"):
        sizes_of(program, zeros(X=(0,), Y=(0,)))
    assert sizes_of(program, zeros(X=(0,), Y=(0,)), {"e": 3}) == {"h": 2, "d": 0, "e": 3}


def test_random_arrays_have_the_declared_types_and_shapes() -> None:
    names = list(DTYPES)
    inputs = ", ".join(f"X{i}: {name}[m, n]" for i, name in enumerate(names))
    total = " + ".join(f"f32(X{i})" for i in range(len(names)))
    program = parse(f"program p({inputs}, S: f32[]) -> O: f32[m, n] {{ O = {total} + S }}")
    sizes = {"m": 100, "n": 50}
    arrays = random_arrays(program, sizes, 3)
    for argument in program.inputs:
        array = arrays[argument.name]
        assert array.shape == array_shape(argument, sizes) and array.dtype == numpy_dtype(argument.dtype)
        values = array.astype(np.float64)
        if argument.dtype == "bool":
            assert set(np.unique(values)) == {0, 1}
        elif argument.dtype in ("i32", "i8"):
            assert set(np.unique(values)) == set(range(-8, 8))
        elif array.size > 1:
            assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1
    again, other = random_arrays(program, sizes, 3), random_arrays(program, sizes, 4)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert not np.array_equal(arrays["X0"], other["X0"])


def test_packed_random_arrays_have_one_axis() -> None:
    arrays = random_arrays(PACKED, {"b": 2, "h": 3, "d": 4}, 0)
    assert arrays["X"].shape == (2, 12)


def test_numpy_types() -> None:
    assert numpy_dtype("f16") == np.float16
    assert numpy_dtype("bf16") == np.dtype(ml_dtypes.bfloat16)
    assert numpy_dtype("f8e4m3") == np.dtype(ml_dtypes.float8_e4m3fn)
    for name, dtype in DTYPES.items():
        assert numpy_dtype(name).itemsize == dtype.size


def test_missing_ml_dtypes_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(LimitError, match="bf16 needs the package `ml_dtypes`"):
        numpy_dtype("bf16")
    assert numpy_dtype("f32") == np.float32
