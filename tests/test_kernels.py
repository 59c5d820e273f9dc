"""The whole way from text to numbers: kernels against the float64 meaning, within the error rule."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generator import random_program, random_sizes, random_tiles
from numpy.typing import NDArray
from selection import in_turn

import blockc
from blockc import meaning
from blockc.accuracy import compare, computed_dtype
from blockc.data import random_arrays
from blockc.driver import default_sizes
from blockc.errors import BlockcWarning
from blockc.kernel import Kernel
from blockc.language import parse, parse_all, program_names

Array = NDArray[Any]

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.blk"))
PROGRAMS = [(path, name) for path in EXAMPLES for name in program_names(path.read_text(), str(path))]
# Around tiles of 8 and 16, and primes. Types change no loop, and a tile that holds everything needs none: fewer there.
LENGTHS = (0, 1, 2, 3, 7, 15, 16, 17, 33)
FEWER_LENGTHS = (0, 1, 17)
LOOPS = {"m", "n", "v", "z", "e"}  # the dimensions of examples that loops go over


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def check(kernel: Kernel, arrays: dict[str, Array], context: str) -> None:
    """The kernel's outputs on these arrays are within the error rule (single run)."""
    program = kernel.program
    outputs = kernel(**arrays)
    if not isinstance(outputs, dict):
        outputs = {program.outputs[0].argument.name: outputs}
    expected, unfused = meaning.evaluate(program, arrays), meaning.baseline(program, arrays)
    for result in program.outputs:
        name, dtype = result.argument.name, result.argument.dtype
        found = compare(outputs[name], expected[name], unfused[name], dtype, computed_dtype(program, result))
        assert found.ok, f"{program.name}, {context}, output {name}: {found}"


def lengths_for(kernel: Kernel, length: int) -> dict[str, int]:
    """All dimensions that loops run over at one length, the others small."""
    open_dims = [dim.name for dim in kernel.program.dims if dim.size is None]
    return default_sizes(kernel.program, {name: length if name in LOOPS else 2 for name in open_dims})


@pytest.mark.parametrize(("path", "name"), PROGRAMS, ids=[name for _, name in PROGRAMS])
def test_every_example_is_right_at_ragged_sizes(path: Path, name: str) -> None:
    check_lengths(blockc.compile(path, dtype="f32", program=name), FEWER_LENGTHS)
    check_lengths(in_small_tiles(path, name, "f32"), LENGTHS)


@pytest.mark.parametrize(("path", "name", "dtype"), in_turn(PROGRAMS, ["f16", "bf16", "f64"], of=3))
def test_every_example_is_right_in_other_types(
    path: Path, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype != "f16":  # what follows asks more of the same numbers than the self-check
        monkeypatch.setattr("blockc.self_check.probe", lambda *_: None)
    check_lengths(in_small_tiles(path, name, dtype), FEWER_LENGTHS)


def in_small_tiles(path: Path, name: str, dtype: str) -> Kernel:
    """The kernel of an example whose loops go over several tiles at all lengths but the shortest."""
    dims = parse_all(path.read_text(), str(path), dtype)[name].dims
    return blockc.compile(path, dtype=dtype, program=name, tiles={dim.name: 8 for dim in dims if dim.name in LOOPS})


def check_lengths(kernel: Kernel, lengths: Iterable[int]) -> None:
    for length in lengths:
        arrays = random_arrays(kernel.program, lengths_for(kernel, length), seed=length)
        check(kernel, arrays, f"length {length}, tiles {dict(kernel.tiles)}")


@pytest.mark.parametrize(("scale", "shift"), [(30, 0), (1000, 0), (1, -1e4), (1, 1e4)])
@pytest.mark.parametrize(("path", "name"), PROGRAMS, ids=[name for _, name in PROGRAMS])
def test_every_example_is_right_for_extreme_data(path: Path, name: str, scale: float, shift: float) -> None:
    kernel = blockc.compile(path, dtype="f32", program=name)
    arrays = random_arrays(kernel.program, lengths_for(kernel, 40), seed=1)
    for key, value in arrays.items():
        if value.dtype.kind == "f":
            arrays[key] = (value * scale + shift).astype(value.dtype)
    check(kernel, arrays, f"scale {scale}, shift {shift}")


def strided(array: Array, kind: str) -> Array:
    """The same numbers in another layout."""
    match kind:
        case "fortran":
            return np.asfortranarray(array)
        case "reversed":
            return np.flip(np.flip(array).copy())
        case "sliced":
            wide = np.zeros([2 * extent for extent in array.shape], array.dtype)
            view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
            view[...] = array
            return view
        case "read-only":
            copy = array.copy()
            copy.flags.writeable = False
            return copy
        case "byte-swapped":
            return array.astype(array.dtype.newbyteorder())
        case _:
            raise ValueError(kind)


@pytest.mark.parametrize("kind", ["fortran", "reversed", "sliced", "read-only", "byte-swapped"])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_any_layout_gives_the_same_bits(kind: str, dtype: str) -> None:
    for path in EXAMPLES[:2]:
        kernel = blockc.compile(path, dtype=dtype, tiles={"m": 8})
        arrays = random_arrays(kernel.program, lengths_for(kernel, 19), seed=3)
        before = kernel(**arrays)
        given = {name: strided(array, kind) for name, array in arrays.items()}
        after = kernel(**given)
        for name, array in before.items() if isinstance(before, dict) else [("", before)]:
            again = after[name] if isinstance(after, dict) else after
            np.testing.assert_array_equal(again, array)


def test_broadcast_inputs_are_read_as_they_are() -> None:
    kernel = blockc.compile("program p(X: f32[m, n]) -> Y: f32[m] {\n Y = sum[n](exp(X))\n}\n", tiles={"m": 2, "n": 2})
    row = np.arange(5, dtype=np.float32) / 5
    np.testing.assert_allclose(kernel(np.broadcast_to(row, (3, 5))), np.exp(row).sum() * np.ones(3), rtol=1e-6)


SPELLINGS = {
    "masked by where": "S = where(M, S0, -inf)\nO = dot[n](softmax[n](S), V)",
    "masked by adding": "S = S0 + where(M, 0.0, -inf)\nO = dot[n](softmax[n](S), V)",
    "maximum by hand": "S = where(M, S0, -inf)\nE = exp(S - max[n](S))\nO = dot[n](E / sum[n](E), V)",
    "through log-sum-exp": "S = where(M, S0, -inf)\nO = dot[n](exp(S - logsumexp[n](S)), V)",
    "divided at the end": "E = exp(where(M, S0, -inf))\nO = dot[n](E, V) / sum[n](E)",
    "weights masked": "E = where(M, exp(S0), 0)\nO = dot[n](E, V) / sum[n](E)",
}


def spelled(statements: str) -> str:
    return (
        "program attention(Q: f32[m, d=16], K: f32[n, d], V: f32[n, e=16], M: bool[m, n]) -> O: f32[m, e] {\n"
        f"S0 = dot[d](Q, K) / sqrt(size(d))\n{statements}\n}}\n"
    )


def attention_arrays(family: str) -> dict[str, Array]:
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((rows, 16)).astype("f4") for name, rows in (("Q", 20), ("K", 30), ("V", 30))}
    arrays["M"] = random.random((20, 30)) < 0.7
    match family:
        case "logits of std 1000":
            arrays["Q"] *= 1000
        case "logits near -1e4":
            arrays["Q"][:] = 100
            arrays["K"][:] = -25 + arrays["K"] / 100
        case "fully masked rows":
            arrays["M"][::2] = False
        case "first blocks masked":
            arrays["M"][:, :15] = False
        case "a NaN row":
            arrays["Q"][1] = np.nan
        case "a NaN key":
            arrays["K"][3] = np.nan
        case "an infinite row":
            arrays["Q"][2] = np.inf
        case "an infinite value":
            arrays["V"][0] = np.inf
        case "ordinary":
            pass
        case _:
            raise ValueError(family)
    return arrays


FAMILIES = (
    "ordinary",
    "logits of std 1000",
    "logits near -1e4",
    "fully masked rows",
    "first blocks masked",
    "a NaN row",
    "a NaN key",
    "an infinite row",
    "an infinite value",
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_attention_is_one_safe_kernel(spelling: str) -> None:
    kernel = blockc.compile(spelled(SPELLINGS[spelling]), tiles={"m": 8, "n": 8})
    for family in FAMILIES:
        check(kernel, attention_arrays(family), family)
    assert kernel.cost.kernels == 1
    assert kernel.cost.buffered == ()


def test_a_fully_masked_row_is_zeros() -> None:
    kernel = blockc.compile(spelled(SPELLINGS["masked by where"]), tiles={"m": 8, "n": 8})
    out = kernel(**attention_arrays("fully masked rows"))
    assert np.all(out[::2] == 0)
    assert np.all(np.abs(out[1::2]).sum(axis=1) > 0)


def test_a_product_over_nothing_is_zero_times_its_scale() -> None:
    kernel = blockc.compile(EXAMPLES[0], dtype="f32")
    for width in (4, 0, 4):  # the same kernel object serves both
        sizes = {"b": 1, "h": 1, "m": 5, "n": 6, "d": width, "e": 2}
        check(kernel, random_arrays(kernel.program, sizes, seed=0), f"d={width}")


LOSES_DIGITS = 20  # what is normalised and multiplied by itself: the self-check says so


def test_random_programs_run_right() -> None:
    for seed in (seed for seed in range(25) if seed != LOSES_DIGITS):
        source = random_program(seed)
        program = parse(source)
        sizes = random_sizes(seed, program)
        arrays = random_arrays(program, sizes, seed)
        kernel = blockc.compile(source, tiles=random_tiles(seed, sizes))
        check(kernel, arrays, f"seed {seed}, sizes {sizes}\n{source}")


def test_a_program_whose_kernel_would_lose_digits_runs_right() -> None:
    source = random_program(LOSES_DIGITS)
    sizes = random_sizes(LOSES_DIGITS, parse(source))
    with pytest.warns(BlockcWarning, match="data with mean 1000"):
        kernel = blockc.compile(source, tiles=random_tiles(LOSES_DIGITS, sizes))
    check(kernel, random_arrays(kernel.program, sizes, LOSES_DIGITS), source)


def test_sizes_change_the_plan_but_not_the_kernel() -> None:
    kernel = blockc.compile(spelled(SPELLINGS["masked by where"]))
    small = kernel.specialise({"m": 3000, "d": 16, "n": 1100, "e": 16})
    large = kernel.specialise({"m": 11000, "d": 16, "n": 11000, "e": 16})
    assert small.source == large.source
    assert large.plan.costs[0].traffic_bytes > 9 * small.plan.costs[0].traffic_bytes


def test_a_long_chain_becomes_one_kernel() -> None:
    lines, arguments, current = [], ["X: f32[m, a0]"], "X"
    for index in range(40):
        lines += [f"T{index} = tanh({current} * 2.0 + 1.0)", f"D{index} = dot[a{index}](T{index}, W{index})"]
        arguments.append(f"W{index}: f32[a{index}, a{index + 1}]")
        current = f"D{index}"
    text = "\n".join(lines)
    source = f"program chain({', '.join(arguments)}) -> O: f32[m, a40] {{\n{text}\nO = {current} / 4\n}}\n"
    kernel = blockc.compile(source)
    assert kernel.cost.kernels == 1
    arrays = random_arrays(kernel.program, dict.fromkeys((dim.name for dim in kernel.program.dims), 5), seed=0)
    check(kernel, arrays, "a chain of 40 products")


def chain(step: str, last: str, count: int = 150) -> str:
    """A program of one long chain; `step` and `last` have {before} for the value before."""
    names = ["X", *(f"A{index}" for index in range(count))]
    lines = [f"{name} = {step.format(before=before)}" for before, name in pairwise(names)]
    text = "\n".join([*lines, f"O = {last.format(before=names[-1])}"])
    return f"program p(X: f32[m]) -> O: f32[m] {{\n{text}\n}}\n"


@pytest.mark.parametrize(
    "source",
    [
        chain("tanh({before} * 0.5 + X)", "{before}"),
        chain("{before} * X + 0.25", "exp({before}) / sum[m](exp({before}))"),
        chain("{before} / 1.5 + size(m)", "X * sum[m]({before} / 1e6)"),
        "program p(X: f32[m]) -> O: f32[m] {\nO = " + " + ".join(["X * X"] * 300) + "\n}\n",
        "program p(X: f32[m, n]) -> O: f32[m] {\nS = max[n](X)\nO = log(sum[n](exp("
        + " * ".join(f"(X - S + {index / 100})" for index in range(20))
        + ")))\n}\n",
    ],
    ids=["elementwise", "polynomial", "numbers", "one sum", "a product of sums under exp"],
)
def test_deep_expressions_compile(source: str) -> None:
    kernel = blockc.compile(source, tiles={"m": 4})
    arrays = {argument.name: np.full([6] * len(argument.axes), 0.3, np.float32) for argument in kernel.program.inputs}
    check(kernel, arrays, "300 operators deep or more")
