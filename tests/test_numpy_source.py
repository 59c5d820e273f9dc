"""Generated NumPy kernels against the interpreter: sizes, types, strides, threads; and facts about the source."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest

import blockc
from blockc.codegen import loader, numpy_source
from blockc.codegen.numpy_values import element_dtype
from blockc.data import random_arrays
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import Apply, Definition, Graph, Map, Program, Reduce
from blockc.ir.dtypes import DTYPES
from blockc.ir.interpret import interpret
from blockc.ir.text import parse_program
from blockc.ir.verify import verify
from blockc.language import parse
from blockc.meaning import evaluate
from blockc.passes.choose import ready
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]

BLOCKS = Path(__file__).parent / "data" / "blocks"
TILE = 4
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 13)
# The interpreter does not accumulate lists; `interchanged` is compared with its formula below.
PROGRAMS = sorted(path.stem for path in BLOCKS.glob("*.txt") if path.stem != "interchanged")


def program_text(name: str, dtype: str = "f32") -> str:
    return re.sub(r"\bf32\b", dtype, (BLOCKS / f"{name}.txt").read_text())


def program_of(name: str, dtype: str = "f32") -> Program:
    program = parse_program(program_text(name, dtype))
    program = repaired(program)
    verify(program)
    return program


def repaired(p: Program) -> Program:
    """The program as it was written: see `with_reduces`."""
    return Program(p.name, p.dims, p.whole, p.arguments, p.inputs, with_reduces(p.body), p.outputs)


def with_reduces(graph: Graph) -> Graph:
    """The graph with every `reduce` of one list as a Reduce: the text form reads it as a tile operator."""
    result: list[Definition] = []
    for definition in graph:
        match definition:
            case Apply(name, "reduce", args, (dim, monoid)):
                result.append(Reduce((name,), tuple(str(arg) for arg in args), dim, monoid))
            case Map(dim, ports, body, outputs):
                result.append(Map(dim, ports, with_reduces(body), outputs))
            case _:
                result.append(definition)
    return tuple(result)


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    name = element_dtype(dtype)
    return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)


def inputs_of(program: Program, sizes: Mapping[str, int], seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    arrays: Arrays = {}
    for argument in program.arguments:
        shape = [int(np.prod([sizes[dim] for dim in axis])) for axis in argument.axes]
        real = DTYPES[argument.dtype].kind == "float"
        data: Array = np.asarray(random.standard_normal(shape) if real else random.integers(0, 6, shape))
        arrays[argument.name] = data.astype(numpy_dtype(argument.dtype))
    return arrays


def sizes_of(program: Program, offset: int, cut: tuple[int, ...] = SIZES) -> dict[str, int]:
    """Different sizes for different dimensions; declared ones stay."""
    free = {d.name: cut[(offset + 2 * i) % len(cut)] for i, d in enumerate(program.dims) if d.same_as is None}
    return complete_sizes(program, free | {d.name: d.size for d in program.dims if d.size is not None})


def tiles_of(program: Program, tile: int, units: str = "bh") -> dict[str, int]:
    return {d.name: 1 if d.name in units else tile for d in program.dims if d.name not in program.whole}


def launch_of(program: Program, tiles: Mapping[str, int]) -> Any:
    return loader.load(numpy_source.emit(program, tiles))


def tolerance(program: Program, sizes: Mapping[str, int]) -> float:
    """Relative to the largest element: a few units in the last place, times the square root of the longest sum."""
    arguments = (*program.arguments, *(result.argument for result in program.outputs))
    real = {argument.dtype for argument in arguments if DTYPES[argument.dtype].kind == "float"}
    unit = max({"f64": 2.0**-52, "f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}[dtype] for dtype in real)
    return float(8 * unit * np.sqrt(max(4, *sizes.values())))


def compare(program: Program, tiles: Mapping[str, int], sizes: dict[str, int], arrays: Arrays) -> None:
    """Fails if the kernel's outputs differ from the interpreter's, or if a warning escapes."""
    expected = interpret(program, arrays, sizes, tiles).outputs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found: Arrays = launch_of(program, tiles)(arrays, 1)
    limit = tolerance(program, sizes)
    for result in program.outputs:
        argument = result.argument
        want, have = expected[argument.name], found[argument.name]
        assert have.dtype == numpy_dtype(argument.dtype)
        assert have.shape == want.shape
        if DTYPES[argument.dtype].kind != "float":
            np.testing.assert_array_equal(have, want.astype(have.dtype), err_msg=argument.name)
            continue
        finite = np.isfinite(want)
        scale = max(1.0, float(np.max(np.abs(want[finite]), initial=0.0)))
        message = f"{argument.name} {sizes} {tiles}"
        np.testing.assert_allclose(have.astype(np.float64), want, rtol=limit, atol=limit * scale, err_msg=message)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("offset", range(len(SIZES)))
def test_kernels_agree_with_the_interpreter_at_all_sizes(name: str, offset: int) -> None:
    program = program_of(name)
    sizes = sizes_of(program, offset)
    compare(program, tiles_of(program, TILE), sizes, inputs_of(program, sizes))


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("tile", [1, 3, 100])
def test_kernels_agree_with_the_interpreter_at_all_tiles(name: str, tile: int) -> None:
    program = program_of(name)
    sizes = sizes_of(program, 4)
    for units in ("", "".join(dim.name for dim in program.dims[:1])):
        compare(program, tiles_of(program, tile, units), sizes, inputs_of(program, sizes))
    compare(program, {}, sizes, inputs_of(program, sizes))


def test_a_list_of_accumulators_agrees_with_the_formula() -> None:
    program = program_of("interchanged")
    for sizes in ({"m": 7, "n": 9, "d": 3, "e": 5}, {"m": 4, "n": 0, "d": 3, "e": 5}, {"m": 1, "n": 4, "d": 0, "e": 4}):
        arrays = inputs_of(program, sizes)
        found = launch_of(program, tiles_of(program, TILE))(arrays)
        logits = arrays["Q"].astype(np.float64) @ arrays["K"].astype(np.float64).T
        weights = np.exp(logits)
        if sizes["n"] == 0:
            assert np.all(np.isnan(found["O"])) and np.all(np.isneginf(found["lse"]))
            continue
        expected = weights @ arrays["V"] / weights.sum(1, keepdims=True)
        np.testing.assert_allclose(found["O"], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["lse"], np.log(weights.sum(1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("dtype", ["f64", "f16", "bf16"])
def test_kernels_agree_with_the_interpreter_in_all_float_types(name: str, dtype: str) -> None:
    program = program_of(name, dtype)
    for offset in (3, 7):
        sizes = sizes_of(program, offset)
        compare(program, tiles_of(program, TILE), sizes, inputs_of(program, sizes))


@pytest.mark.parametrize("seed", range(10))
def test_fused_random_programs_mean_what_their_text_says(seed: int) -> None:
    case = oracle.random_case(seed)
    program = parse(case.source, dtype="f64")
    arrays = random_arrays(program, case.sizes, seed)
    expected = evaluate(program, arrays)
    for stage, block_program in oracle.final_programs(fuse(lower(program, case.whole))):
        tiles = {dim: tile for dim, tile in case.tiles.items() if dim not in block_program.whole}
        found = launch_of(block_program, tiles)(arrays, 2)
        for name, array in expected.items():
            # Intermediates that no f64 value goes into are f32.
            assert oracle.difference(found[name], array, 2e-6) == "", f"{stage}, output {name}"


def strided(array: Array) -> Iterator[tuple[str, Array]]:
    """The same values in other layouts."""
    read_only = array.copy()
    read_only.setflags(write=False)
    yield "read-only", read_only
    if array.dtype.kind in "fi":
        yield "byte-swapped", array.astype(array.dtype.newbyteorder())
    if array.ndim == 0:
        return
    yield "Fortran order", np.asfortranarray(array)
    yield "reversed", np.flip(array).copy()[tuple(slice(None, None, -1) for _ in array.shape)]
    wide = np.zeros([2 * extent for extent in array.shape], array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    yield "every second", view


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_arrays_may_have_any_strides_and_are_not_changed(name: str, dtype: str) -> None:
    program = program_of(name, dtype)
    sizes = sizes_of(program, 5)
    arrays = inputs_of(program, sizes)
    launch = launch_of(program, tiles_of(program, TILE))
    expected = launch(arrays, 1)
    for argument in program.arguments:
        for kind, other in strided(arrays[argument.name]):
            before = other.copy()
            found = launch(arrays | {argument.name: other}, 1)
            np.testing.assert_array_equal(other, before)
            for result, array in found.items():
                assert not np.shares_memory(array, other)
                limit = 1e-5 if dtype == "f32" else 2e-3
                message = f"{argument.name} {kind}"
                np.testing.assert_allclose(array, expected[result], rtol=limit, atol=5 * limit, err_msg=message)
    constant = {name: np.broadcast_to(np.ones((), array.dtype), array.shape) for name, array in arrays.items()}
    compare(program, tiles_of(program, TILE), sizes, constant)


@pytest.mark.parametrize("name", PROGRAMS)
def test_results_do_not_depend_on_threads_or_repetition(name: str) -> None:
    program = program_of(name)
    sizes = {d: size if size > 13 else 8 * size for d, size in sizes_of(program, 5).items()}
    sizes = complete_sizes(program, sizes | {dim.name: dim.size for dim in program.dims if dim.size is not None})
    arrays = inputs_of(program, sizes)
    # Even small work goes to the pool.
    source = numpy_source.emit(program, tiles_of(program, 16))
    assert source.count("work >= 200_000") == 1
    launch = loader.load(source.replace("work >= 200_000", "work >= 0"))
    expected = {key: array.tobytes() for key, array in launch(arrays, 1).items()}
    for threads in (1, 2, 3, None) * 5:
        assert {key: array.tobytes() for key, array in launch(arrays, threads).items()} == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    """Those that a kernel keeps do not exist in a child: waiting for one of them would take forever."""
    lines = (
        "import os, sys, numpy as np, blockc",
        "kernel = blockc.compile('program p(A: f32[m, n]) -> S: f32[m] {\\n S = sum[n](A * A)\\n}')",
        "A = np.ones((4096, 64), np.float32)",
        "expected = kernel(A)",
        "child = os.fork()",
        "if child == 0:",
        "    os._exit(0 if np.array_equal(kernel(A), expected) else 1)",
        "sys.exit(os.waitpid(child, 0)[1])",
    )
    command = [sys.executable, "-W", "ignore", "-c", "\n".join(lines)]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


def test_what_is_only_stored_is_computed_where_it_is_stored() -> None:
    direct = [
        ("program p(A: f32[m, d=8], B: f32[d=8, n]) -> C: f32[m, n] {\n C = dot[d](A, B)\n}", "np.matmul"),
        ("program p(A: f32[m, n], B: f32[m, n]) -> C: f32[m, n] {\n C = A * B\n}", "np.multiply"),
    ]
    for text, call in direct:
        body = blockc.compile(text).source.split("def task(")[1].split("def launch")[0]
        assert call in body and not re.search(r"^\s*x\d+\[", body, re.M)  # no copy into the output
    for result, copy in (("C: f16[m, n]", "= v2"), ("C: f32[n, m]", "= v2.T")):  # another type, another order
        text = direct[0][0].replace("C: f32[m, n]", result)
        body = blockc.compile(text).source.split("def task(")[1].split("def launch")[0]
        assert re.search(rf"^\s*x0\[.*\] {re.escape(copy)}$", body, re.M)


def test_a_product_with_a_reciprocal_is_a_quotient() -> None:
    text = "program p(A: f32[m, n], B: f32[m, n]) -> C: f32[m, n] {\n C = A * sigmoid(B)\n}"
    source = blockc.compile(text).source
    assert source.count("np.divide(") == 1 and "np.multiply(" not in source
    row = "program p(A: f32[m, n], B: f32[m]) -> C: f32[m, n] {\n C = A / B\n}"
    source = blockc.compile(row).source  # one reciprocal for a row
    assert source.count("np.divide(1.0, ") == 1 and "np.multiply(" in source


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_uninitialised_memory_reaches_a_result(name: str) -> None:
    program = program_of(name)
    sizes = sizes_of(program, 7)
    arrays = inputs_of(program, sizes)
    source = numpy_source.emit(program, tiles_of(program, TILE))
    poisoned = (
        "def poisoned(shape, dtype):\n    array = np.empty(shape, dtype)\n"
        "    array.fill(77 if dtype in (np.bool_, np.int8, np.int32, np.int64) else np.nan)\n    return array\n\n\n"
    )
    changed = source.replace("np.empty(", "poisoned(").replace("def argument", poisoned + "def argument", 1)
    expected, found = loader.load(source)(arrays), loader.load(changed)(arrays)
    for key, array in found.items():
        np.testing.assert_array_equal(array, expected[key])


# Hard values


def attention(query: Array, key: Array, value: Array) -> Array:
    """The meaning of the attention program for one head, in float64; a masked row gives zeros."""
    logits = 0.125 * (query.astype(np.float64) @ key.astype(np.float64).T)
    top = np.max(logits, axis=1, initial=-np.inf, keepdims=True)
    weights = np.exp(logits - np.where(np.isneginf(top), 0.0, top))
    total = weights.sum(axis=1, keepdims=True)
    product = weights @ value.astype(np.float64)
    return np.asarray(np.where(np.isneginf(top), 0.0, product / total))


def run_attention(query: Array, key: Array, value: Array) -> Array:
    launch = launch_of(program_of("attention"), {"b": 1, "h": 1, "m": 8, "n": 16})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result: Array = launch({"Q": query[None, None], "K": key[None, None], "V": value[None, None]})["O"][0, 0]
    return result


def heads(rows: int, columns: int, scale: float = 1.0) -> tuple[Array, Array, Array]:
    random = np.random.default_rng(5)
    query, key, value = (random.standard_normal((n, 64), np.float32) for n in (rows, columns, columns))
    return query * np.float32(scale), key, value


@pytest.mark.parametrize("deviation", [1, 10, 100, 1000])
def test_attention_is_accurate_at_large_logits(deviation: int) -> None:
    query, key, value = heads(33, 131, float(deviation))
    # A logit of size 1000 carries an error of 1000 units in the last place into the exponent.
    limit = 2e-6 * max(1, deviation)
    np.testing.assert_allclose(run_attention(query, key, value), attention(query, key, value), atol=limit)


def test_masked_rows_are_zero_and_unmasked_ones_right() -> None:
    query, key, value = heads(20, 50)
    query[:, 0] = 1.0
    query[3, :], query[3, 0] = 0.0, np.inf
    key[:, 0] = -1.0
    key[7:30, 0] = -np.inf
    with np.errstate(all="ignore"):
        expected = attention(query, key, value)
    assert np.all(expected[3] == 0)
    np.testing.assert_allclose(run_attention(query, key, value), expected, atol=1e-5)


def test_nan_spreads_over_its_row_only() -> None:
    query, key, value = heads(20, 50)
    query[4, 5] = np.nan
    query[9, 5] = np.inf
    with np.errstate(all="ignore"):
        expected = attention(query, key, value)
    found = run_attention(query, key, value)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_overflow_of_a_narrow_output_is_infinity() -> None:
    program = parse_program(
        "program p dim m array X: f64[m] array Y: f16[m] input X: slow f64[m](m) = X[m] map m { x: local f64(m) <- X "
        "y: local f64(m) = mul(x, 1e6) => Y: slow f64[m](m) = stack(y) } output Y = Y"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = launch_of(program, {"m": 2})({"X": np.array([1.0, -1.0, 0.0])})["Y"]
    np.testing.assert_array_equal(found, np.array([np.inf, -np.inf, 0.0], np.float16))


# The source


def code_lines(source: str) -> list[str]:
    """The source without comments, docstrings and blank lines."""
    tree = ast.parse(source)
    return ast.unparse(tree).splitlines()


def inner_loop(source: str) -> str:
    return source.split("for b3 in")[1].split("# z:")[0]


def test_the_inner_loop_of_attention_is_one_pass_per_operator() -> None:
    source = numpy_source.emit(program_of("attention"), {"b": 1, "h": 1, "m": 256, "n": 512})
    loop = inner_loop(source)
    assert loop.count("np.matmul(") == 3  # scores, row sum, weighted values
    assert loop.count("np.maximum.reduce(") == 2  # of the tile, and of its rows where the exponent moves
    assert not re.search(r"np\.(empty|zeros|full|where|einsum)\(|\.copy\(|astype", loop)
    assert loop.count("np.exp(") == 2
    assert "0.125" not in loop
    calls = re.findall(r"np\.\w+(?:\.reduce)?\((.*)\)", loop)
    assert all("out=" in call or call.startswith("v") for call in calls)


def test_user_names_are_only_in_comments_and_strings() -> None:
    for name in PROGRAMS:
        text = program_text(name)
        words = set(re.findall(r"[A-Za-z_]\w*", text))
        taken = {"program", "dim", "whole", "array", "input", "output", "map", "uses", "slow", "local", "stack", "size"}
        program = program_of(name)
        used = {dim.name for dim in program.dims} | {a.name for a in program.arguments}
        used |= {result.argument.name for result in program.outputs}
        weird = {word: f"import_{number}_os" for number, word in enumerate(sorted(used & words - taken))}
        # Dimensions and arrays only: other names never leave comments.
        renamed = text
        for word, new in weird.items():
            renamed = re.sub(rf"(?<![\w.]){word}(?![\w(])", new, renamed)
        other = parse_program(renamed)
        other = repaired(other)
        tiles = tiles_of(program, TILE)
        first = numpy_source.emit(program, tiles)
        second = numpy_source.emit(other, {weird.get(dim, dim): tile for dim, tile in tiles.items()})
        strings = re.compile(r"'[^'\n]*'")
        assert [strings.sub("''", line) for line in code_lines(first)] == [
            strings.sub("''", line) for line in code_lines(second)
        ]


def test_header_lines_stay_comments() -> None:
    program = program_of("attention")
    source = numpy_source.emit(program, {"m": 4}, ("one\nimport os", "two\r import os\x0cimport os\u2028import os"))
    assert code_lines(source) == code_lines(numpy_source.emit(program, {"m": 4}))
    assert source.splitlines()[:2] == ["# one", "# import os"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_file_runs_on_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    program = program_of(name)
    source = numpy_source.emit(program, tiles_of(program, TILE))
    exec(compile(source, name, "exec"), {"__name__": "__main__"})  # noqa: S102 - what is tested
    assert len(capsys.readouterr().out.splitlines()) == len(program.outputs)


def test_emission_is_linear_in_the_size_of_the_program() -> None:
    def chain(length: int) -> Program:
        lines = ["program chain dim m array X: f32[m] array Y: f32[m] input X: slow f32[m](m) = X[m] map m {"]
        lines += ["x: local f32(m) <- X", "v.0: local f32(m) = exp(x)"]
        lines += [f"v.{n}: local f32(m) = add(v.{n - 1}, x)" for n in range(1, length)]
        lines += [f"=> Y: slow f32[m](m) = stack(v.{length - 1})", "} output Y = Y"]
        return parse_program("\n".join(lines))

    source = numpy_source.emit(chain(3000), {"m": 64})
    assert source.count("np.add(") == 2999
    assert source.count("np.empty(") == 2  # one buffer and the output: every sum is written over the last


def test_emission_is_the_same_wherever_its_values_lie_in_memory() -> None:
    program = ready(fuse(lower(parse(oracle.example("causal_attention")), frozenset("de"))))[0]
    sources, taken = set(), []
    for count in range(12):
        sources.add(numpy_source.emit(program, {"b": 1, "h": 1, "m": 8, "n": 8}))
        taken.append([object() for _ in range(997 * count)])  # so that the next values lie elsewhere
    assert len(sources) == 1


def test_arrays_that_do_not_fit_are_named() -> None:
    launch = launch_of(program_of("attention"), {"m": 4})
    array = np.zeros((1, 2, 3, 64), np.float32)
    with pytest.raises(ValueError, match="'V' is missing"):
        launch({"Q": array, "K": array})
    with pytest.raises(ValueError, match="'K' has 3 axes, not 4"):
        launch({"Q": array, "K": array[0], "V": array})
    with pytest.raises(ValueError, match="'V' has shape"):
        launch({"Q": array, "K": array, "V": array[:, :, :2]})


@pytest.mark.parametrize(
    "source",
    [
        "import os\ndef launch(): pass",
        "try:\n    import torch\nexcept ImportError:\n    print(1)\ndef launch(): pass",
        "try:\n    import torch\nfinally:\n    torch = None\ndef launch(): pass",
        "import torch\ndef launch(): return torch.load('x')",
        "import torch.utils\ndef launch(): pass",
        "from torch import load\ndef launch(): pass",
        "from os import system\ndef launch(): pass",
        "import numpy.ctypeslib\ndef launch(): pass",
        "import numpy as np\ndef launch(): return np.__loader__",
        "def launch(): return ().__class__",
        "def launch(): return eval('1')",
        "def launch(): return open('x')",
        "def launch(): return __import__('os')",
        "from . import x\ndef launch(): pass",
        "class A: pass\ndef launch(): pass",
        "for i in range(3): pass\ndef launch(): pass",
        "import numpy as np\ndef launch(): return np.load('x')",
        "def launch(): return '{0.x}'.format(1)",
        "def launch(): return unknown",
        "def launch(): return (lambda: 1)()",
        "range = min\ndef launch(): return 1",
        "print('hello')\ndef launch(): pass",
        "def launch(:",
        "x = 1",
    ],
)
def test_source_that_no_emitter_writes_is_refused(source: str) -> None:
    with pytest.raises(loader.UnsafeSourceError):
        loader.load(source)


def test_sizes_that_follow_from_nothing_are_an_error() -> None:
    program = parse_program(
        "program p dim m whole dim n whole array X: f32[m] array Y: f32[m, n] input X: local f32(m) = X[m] "
        "y: local f32(m, n) = broadcast[n](X) output Y = y"
    )
    with pytest.raises(ValueError, match="`n`"):
        numpy_source.emit(program, {})
