"""`blockc bench`: the same program in array libraries means the same, and what is measured is reported as it is."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generator import random_program, random_sizes
from numpy.typing import NDArray

from blockc import bench_report, benchmarking, cli, driver, meaning, running
from blockc.accuracy import Comparison, compare, computed_dtype
from blockc.data import array_shape, numpy_dtype, random_arrays
from blockc.eager import Library, distinct, peak_bytes, translate
from blockc.errors import LimitError
from blockc.integrations import as_array, as_tensor
from blockc.ir.array_program import ArrayProgram
from blockc.ir.ops import OPERATORS
from blockc.kernel import Kernel
from blockc.language import parse, program_names

ROOT = Path(__file__).parent.parent
EXAMPLES = [*sorted((ROOT / "examples").glob("*.blk")), ROOT / "examples" / "large" / "transformer_layer.blk"]
PROGRAMS = [(path, name) for path in EXAMPLES for name in program_names(path.read_text(), str(path))]
ATTENTION = str(ROOT / "examples" / "attention.blk")
SMALL = ("--dim", "b=1", "--dim", "h=2", "--dim", "m=16", "--dim", "n=24", "--dim", "d=8", "--dim", "e=8")
EXPONENTIALS = "program weights(X: f32[m, n]) -> P: f32[m, n] { P = exp(X) / sum[n](exp(X)) }\n"
LENGTHS = (3, 5, 7, 4, 6, 2, 9)  # of dimensions, in turn

Array = NDArray[Any]


@cache
def library(name: str) -> Library:
    return benchmarking.LIBRARIES[name]()


def outputs_of(program: ArrayProgram, sizes: Mapping[str, int], arrays: Mapping[str, Array], name: str) -> Any:
    """The outputs of a program in a library, as arrays."""
    used = library(name)
    results = translate(program, sizes, used)({given: used.own(array) for given, array in arrays.items()})
    return {output: used.plain(result) for output, result in results.items()}


def check(program: ArrayProgram, sizes: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
    """In both libraries the outputs have the declared types and shapes, and are within the bound of a kernel."""
    exact, unfused = meaning.evaluate(program, arrays), meaning.baseline(program, arrays)
    for name in benchmarking.LIBRARIES:
        outputs = outputs_of(program, sizes, arrays, name)
        for result in program.outputs:
            argument, found = result.argument, outputs[result.argument.name]
            assert (found.dtype, found.shape) == (numpy_dtype(argument.dtype), array_shape(argument, sizes))
            reference = exact[argument.name], unfused[argument.name]
            compared = compare(found, *reference, argument.dtype, computed_dtype(program, result))
            assert compared.ok, f"{program.name}, {name}, {argument.name}: {compared}"


def check_source(source: str, sizes: Mapping[str, int], seed: int = 0) -> None:
    program = parse(source, "<string>")
    complete = driver.default_sizes(program, sizes)
    check(program, complete, random_arrays(program, complete, seed))


# --- the same program in array libraries -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("path", "name"), PROGRAMS, ids=[name for _, name in PROGRAMS])
def test_every_example_means_the_same_in_both_libraries(path: Path, name: str, dtype: str) -> None:
    program = parse(path.read_text(), str(path), name, dtype)
    last = {new: old for node in program.nodes if node.op == "rename" for old, new in [node.dims]}
    open_dims = [dim.name for dim in program.dims if dim.size is None and dim.name not in last]
    sizes = driver.default_sizes(program, {dim: LENGTHS[at % 7] for at, dim in enumerate(open_dims)})
    check(program, sizes, random_arrays(program, sizes, 1))


@pytest.mark.parametrize("seed", range(30))
def test_random_programs_mean_the_same_in_both_libraries(seed: int) -> None:
    program = parse(random_program(seed), "<string>")
    sizes = random_sizes(seed, program)
    check(program, sizes, random_arrays(program, sizes, seed))


@pytest.mark.parametrize(
    ("source", "sizes"),
    [
        ("program f(X: f64[m, n], W: bf16[n, k]) -> Y: f64[k, m] { Y = dot[n](X, W) }", {"m": 3, "n": 4, "k": 5}),
        ("program f(X: f32[m, k], Z: f32[n]) -> Y: f32[m] { Y = dot[k, n](X, Z) }", {"m": 3, "k": 4, "n": 5}),
        ("program f(X: f32[m], Z: f32[n]) -> Y: f32[m] { Y = sum[m, n](X) + X + sum[n](Z) }", {"m": 3, "n": 4}),
        ("program f(X: f32[m], Z: f32[n]) -> Y: f32[m, n] {K = X[m -> k]; Y = dot[k](K, K) * Z + X}", {"m": 3, "n": 4}),
        ("program f(X: i8[m, n]) -> (Y: i32[m], Z: i32[m]) { Y = sum[n](X * X); Z = dot[n](X, X) }", {"m": 3, "n": 4}),
        ("program f(X: f32[m, n]) -> (Y: f32[m], Z: f32[]) { Y = max[n](X); Z = min[m, n](X) }", {"m": 2, "n": 0}),
        ("program f(X: i32[m, n]) -> (Y: i32[m], Z: i32[m]) { Y = max[n](X); Z = min[n](X) }", {"m": 2, "n": 0}),
        ("program f(X: f32[m, n]) -> Y: f32[m, k] { Y = dot[n](X, X[m -> k]) }", {"m": 4, "n": 0}),
        ("program f(X: f32[m, (h=2, d)]) -> Y: f32[h, (d, m)] { Y = X + 1 }", {"m": 3, "d": 4}),
        ("program f(X: f32[n], m: f32[m]) -> (Y: f32[m, n, k=2], Z: f32[m]) { Y = X; Z = m }", {"m": 3, "n": 4}),
        ("program f(X: f32[m]) -> (Y: i32[m], Z: i8[m]) { Y = i32(X * 1e10); Z = i8(X * 100) }", {"m": 40}),
        ("program f(X: i32[m]) -> (Y: i8[m], Z: bool[m]) { Y = i8(X * 100); Z = bool(X) and not (X < 2) }", {"m": 40}),
        ("program f(X: f64[m]) -> Y: f32[m] { Y = f16(X) + f8e4m3(X) + f32(f8e5m2(X)) }", {"m": 40}),
        ("program f(c: bool[m, n]) -> Y: i32[m] { Y = sum[n](c) + sum[n](where(c, 2, 0)) }", {"m": 3, "n": 9}),
        ("program f(X: f32[b, m], Z: f32[b, m]) -> Y: f32[b] { Y = dot[m](X, Z) / size(m) ** 2 }", {"m": 5, "b": 3}),
    ],
)  # fmt: skip
def test_odd_programs_mean_the_same_in_both_libraries(source: str, sizes: dict[str, int]) -> None:
    check_source(source, sizes)


def operands(op: str, held: str) -> list[Array]:
    """Arrays on which an operator is defined."""
    generator = np.random.default_rng(7)
    if op in ("and", "or", "not"):
        return [generator.random(50) < 0.5 for _ in range(OPERATORS[op].arity or 3)]
    arity = OPERATORS[op].arity or 3
    found = [(generator.standard_normal(50) * 3).astype(numpy_dtype(held)) for _ in range(arity)]
    if op in ("log", "sqrt", "rsqrt", "pow"):
        found = [np.abs(array) for array in found]
    return [generator.random(50) < 0.5, *found[1:]] if op == "where" else found


@pytest.mark.parametrize("name", benchmarking.LIBRARIES)
@pytest.mark.parametrize("held", ["f32", "f64"])
def test_every_operator_has_a_spelling_that_means_the_same(held: str, name: str) -> None:
    used = library(name)
    assert used.elementwise.keys() == OPERATORS.keys() - {"finite"}  # which no user may write
    for op, spelling in used.elementwise.items():
        given = operands(op, held)
        found = used.plain(spelling(*map(used.own, given)))
        wide = [array.astype(np.float64) if array.dtype.kind == "f" else array for array in given]
        exact = OPERATORS[op].meaning(*wide)
        assert found.dtype == (np.bool_ if exact.dtype.kind == "b" else numpy_dtype(held)), op
        tolerance = 8 * float(np.finfo(numpy_dtype(held)).eps)
        np.testing.assert_allclose(found, exact, tolerance, tolerance, err_msg=op)


def test_equal_values_are_computed_once_and_others_not_at_all() -> None:
    source = "program f(X: f32[m, n]) -> P: f32[m, n] { U = sin(X); P = exp(X) / sum[n](exp(X)) }"
    nodes, results = distinct(parse(source, "<string>"))
    assert [node.op for node in nodes] == ["input", "exp", "sum", "div"]
    assert results == (nodes[-1].name,)


@pytest.mark.parametrize("name", benchmarking.LIBRARIES)
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f8e4m3", "f8e5m2", "i32", "i8"])
def test_casts_round(dtype: str, name: str) -> None:
    program = parse(f"program f(X: f32[m]) -> Y: f32[m] {{ Y = {dtype}(X * 3) }}", "<string>")
    array = np.random.default_rng(3).standard_normal(100, np.float32)
    (result,) = outputs_of(program, {"m": 100}, {"X": array}, name).values()
    np.testing.assert_array_equal(result, (array * 3).astype(numpy_dtype(dtype)).astype(np.float32))


def test_zeros_of_both_signs_are_different_values() -> None:
    program = parse("program f(X: f32[m]) -> Y: f32[m] { Y = 1 / (X * 0.0) - 1 / (X * -0.0) }", "<string>")
    (result,) = outputs_of(program, {"m": 1}, {"X": np.ones(1, np.float32)}, "numpy").values()
    assert result[0] == np.inf


def test_memory_is_that_of_the_values_that_live_at_the_same_time() -> None:
    program = parse("program f(X: f16[m, n]) -> Y: f32[m] { Y = sum[n](exp(sin(cos(X)))) }", "<string>")
    # Two whole values at the same time, in f32.
    assert peak_bytes(program, {"m": 10, "n": 100}) == 2 * 4000


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16", "f8e4m3", "f8e5m2", "i32", "i8", "bool"])
def test_arrays_of_every_type_become_tensors_and_back(dtype: str) -> None:
    array = np.array([[1, 0], [0.5, 2]]).astype(numpy_dtype(dtype))
    back = as_array(as_tensor(array.T))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back.astype(np.float64), array.T.astype(np.float64))


@pytest.mark.parametrize("name", benchmarking.LIBRARIES)
def test_threads_are_limited_for_a_while(name: str) -> None:
    import torch
    from threadpoolctl import ThreadpoolController

    def threads() -> int:
        pools = ThreadpoolController().select(user_api="blas").info()
        return torch.get_num_threads() if name == "torch" else int(max(pool["num_threads"] for pool in pools))

    before = threads()
    with library(name).limited(before + 1):
        assert threads() == before + 1
    assert threads() == before


# --- rounds ----------------------------------------------------------------------------------------------------------


def test_every_candidate_comes_first_in_turn() -> None:
    order: list[str] = []
    calls: dict[str, Callable[[], None]] = {name: lambda name=name: order.append(name) for name in "abc"}  # type: ignore[misc]
    times = benchmarking.measured(calls, 4)
    assert "".join(order) == "aabbcc" + "bbccaa" + "ccaabb" + "aabbcc", "a call to warm up, and one that is timed"
    assert {name: len(taken) for name, taken in times.items()} == {"a": 4, "b": 4, "c": 4}


def test_rounds_go_on_for_a_while_if_nobody_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(benchmarking.measured({"a": lambda: None}, None)["a"]) == benchmarking.MOST_ROUNDS
    monkeypatch.setattr(benchmarking, "SECONDS", 0.0)
    assert len(benchmarking.measured({"a": lambda: None}, None)["a"]) == benchmarking.FEWEST_ROUNDS


def test_figures_are_those_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"blockc": [1.0, 2.0, 3.0, 4.0, 5.0], "numpy": [2.0, 8.0, 6.0, 4.0, 10.0]}
    monkeypatch.setattr(benchmarking, "measured", lambda *_: times)
    program = parse(EXPONENTIALS, "<string>")
    request = running.Request(program, "cpu", {"m": 4, "n": 6}, {}, {}, 0, None)
    found = benchmarking.bench(request, ("numpy",), None)
    assert [(row.name, row.seconds, row.quartiles) for row in found.candidates] == [
        ("blockc", 3.0, (2.0, 4.0)),
        ("numpy", 6.0, (4.0, 8.0)),
    ]
    assert (found.rounds, dict(found.ratios)) == (5, {"numpy": 0.5})  # the median of 1/2, 1/4, 1/2, 1 and 1/2


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_all_candidates_have_as_many_threads(threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []

    def limited(count: int) -> contextlib.AbstractContextManager[None]:
        limits.append(count)
        return contextlib.nullcontext()

    spied = replace(library("numpy"), limited=limited)
    monkeypatch.setattr(benchmarking, "LIBRARIES", {"numpy": lambda: spied})
    program = parse(EXPONENTIALS, "<string>")
    benchmarking.bench(running.Request(program, "cpu", {"m": 4, "n": 6}, {}, {}, 0, threads), ("numpy",), 1)
    assert limits == ([] if threads is None else [threads])


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `blockc bench` in this process: exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["bench", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


Bench = Callable[..., tuple[int, str, str]]


def test_json_has_every_figure(bench: Bench) -> None:
    code, out, err = bench(ATTENTION, *SMALL, "--against", "torch, numpy", "--rounds", "3", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert list(found) == [
        *("program", "target", "dims", "rounds", "candidates", "predicted_seconds", "bottleneck", "ratios", "computer")
    ]
    assert [found["program"], found["target"], found["rounds"]] == ["attention", "cpu", 3]
    assert found["dims"] == {"b": 1, "h": 2, "m": 16, "d": 8, "n": 24, "e": 8}
    assert [row["name"] for row in found["candidates"]] == ["blockc", "torch", "numpy"]
    for row in found["candidates"]:
        assert list(row) == ["name", "seconds", "quartiles", "max_abs_error", "error_bound", "ok"]
        assert 0 < row["quartiles"][0] <= row["seconds"] <= row["quartiles"][1]
        assert row["ok"] and 0 < row["max_abs_error"] <= row["error_bound"]
    assert list(found["ratios"]) == ["torch", "numpy"]
    assert found["predicted_seconds"] > 0 and found["bottleneck"]
    assert list(found["computer"]) == ["processor", "cores", "python", "numpy", "torch"]


def test_an_infinite_bound_is_null_in_json(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockc.running.compare", lambda *_: Comparison(1.0, float("inf"), True))
    code, out, _ = bench(ATTENTION, *SMALL, "--rounds", "1", "--json")
    assert (code, [row["error_bound"] for row in json.loads(out)["candidates"]]) == (0, [None, None])


@pytest.mark.parametrize("dim", ["m", "n", "d"])
def test_empty_dimensions_are_timed_as_well(bench: Bench, dim: str) -> None:
    code, out, err = bench(
        ATTENTION, "--dim", "b=1", "--dim", "h=2", "--dim", f"{dim}=0", "--rounds", "1", "--against", "torch,numpy"
    )
    assert (code, err, out.splitlines()[-1]) == (0, "", "ok")


def test_the_prediction_is_that_of_explain(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(bench(ATTENTION, *SMALL, "--tile", "n=8", "--rounds", "1", "--json")[1])
    cli.main(["explain", ATTENTION, *SMALL, "--tile", "n=8", "--json"])
    explained = json.loads(capsys.readouterr().out)
    assert found["predicted_seconds"] == pytest.approx(explained["machine"]["predicted_seconds"])
    assert found["bottleneck"] == explained["machine"]["bottleneck"]


def test_the_table_fits_a_terminal(bench: Bench) -> None:
    code, out, _ = bench(ATTENTION, "--dim", "m=40", "--dim", "n=40", "--against", "torch,numpy", "--rounds", "2")
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == "program   attention, target cpu"
    assert [line.split()[0] for line in lines if line.endswith("  ok")] == ["blockc", "torch", "numpy"]
    assert any(line.startswith("predicted ") and "for blockc, which waits for: " in line for line in lines)
    assert any(line.startswith("measured ") and line.endswith(" times what is predicted") for line in lines)
    assert lines[-1] == "ok"


def test_the_table_fits_a_terminal_whatever_is_in_it() -> None:
    rows = tuple(
        benchmarking.Candidate(name, 9999.9, (9999.1, 9999.2), "Y", Comparison(-1.23e-100, -1.23e-100, False))
        for name in ("blockc", "torch", "numpy")
    )
    sizes = {f"dimension_{number}": 2**31 - 1 for number in range(20)}
    computer = {"processor": "p" * 70, "cores": 128, "python": "3.14.10rc1", "numpy": "2.4.6.dev0+g1", "torch": "2.13"}
    ratios = {"torch": 1.23e-10, "numpy": 1.23e10}
    found = benchmarking.Benchmark(
        "f", "cpu", sizes, tuple(sizes), 10**9, rows, ratios, 1e-300, "computing on core", computer
    )
    assert [line for line in bench_report.lines(found) if len(line) > 100] == []


@pytest.mark.parametrize("name", ["tensorflow", "", "numpy,", "blockc"])
def test_other_names_are_usage(bench: Bench, name: str) -> None:
    code, out, err = bench(ATTENTION, *SMALL, "--against", name)
    assert (code, out) == (2, "")
    assert err.endswith("to time against\n  hint: known: torch, numpy\n")


@pytest.mark.parametrize("arguments", [("--rounds", "0"), ("--threads", "0"), ("--dim", "z=3"), ("--input", "Z=z.npy")])
def test_options_that_do_not_fit_are_usage(bench: Bench, arguments: tuple[str, ...]) -> None:
    assert bench(ATTENTION, *SMALL, *arguments)[:2] == (2, "")


def test_without_torch_there_is_a_message(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    code, out, err = bench(ATTENTION, *SMALL, "--against", "torch")
    assert (code, out) == (3, "")
    assert err == (
        "error[E0901]: measuring against torch needs the package `torch`, which is not installed\n"
        "  hint: pip install 'blockc[torch]'\n"
    )
    assert bench(ATTENTION, *SMALL, "--rounds", "1")[0] == 0


def test_torch_is_imported_only_to_measure_against_it() -> None:
    code = "import sys; from blockc.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", code, "bench", ATTENTION, *SMALL, "--rounds", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=120)
    assert result.stderr.splitlines()[-1] == "0 False"


def test_a_target_without_kernels_is_a_limit(bench: Bench) -> None:
    code, out, err = bench(ATTENTION, "--target", "h200")
    assert (code, out) == (3, "")
    assert err.startswith("error[E0291]: no kernels can be run for `h200`")


def test_what_needs_more_memory_than_there_is_is_a_limit(bench: Bench) -> None:
    long = ("--dim", f"m={2**21}", "--dim", f"n={2**21}", "--tile", f"m={2**12}", "--tile", f"n={2**12}")
    code, _, err = bench(ATTENTION, "--dim", "b=1", "--dim", "h=1", "--dim", "d=1", "--dim", "e=1", *long)
    assert code == 3
    assert err.startswith("error[E0902]: the program without fusion needs ")


def test_positions_are_whole_numbers_of_32_bits() -> None:
    request = running.Request(parse(EXPONENTIALS, "<string>"), "cpu", {}, {}, {}, 0, None)
    benchmarking.check_sizes(request, {"m": 2**31 - 1, "n": 0})
    with pytest.raises(LimitError, match="dimension `m` has 2,147,483,648 elements"):
        benchmarking.check_sizes(request, {"m": 2**31, "n": 0})


def test_a_wrong_result_of_blockc_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Kernel.__call__
    monkeypatch.setattr(Kernel, "__call__", lambda self, **arrays: call(self, **arrays) * np.float16(1.1))
    code, out, err = bench(ATTENTION, *SMALL, "--rounds", "2")
    assert (code, out.splitlines()[-1]) == (4, "not ok")
    assert err.startswith("error[E0905]: output `O` is not accurate enough")
    code, out, _ = bench(ATTENTION, *SMALL, "--rounds", "2", "--json")
    assert code == 4
    assert {row["name"]: row["ok"] for row in json.loads(out)["candidates"]} == {"blockc": False, "numpy": True}


def test_a_wrong_result_of_another_is_said(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "weights.blk").write_text(EXPONENTIALS)
    np.save(tmp_path / "x.npy", np.linspace(0, 1000, 60, dtype=np.float32).reshape(4, 15))
    inputs = ("--input", f"X={tmp_path / 'x.npy'}", "--threads", "1", "--rounds", "1")
    code, out, err = bench(str(tmp_path / "weights.blk"), *inputs, "--against", "numpy,torch")
    assert (code, err) == (0, "")
    assert "sizes     m=4, n=15\n" in out
    for name in ("numpy", "torch"):
        assert f"note      {name} is not right here: its arithmetic is plain, exponentials may overflow\n" in out
    assert out.endswith("\nok\n")


def test_arrays_of_another_byte_order_are_taken(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "weights.blk").write_text(EXPONENTIALS)
    np.save(tmp_path / "x.npy", np.ones((4, 15), ">f4"))
    inputs = ("--input", f"X={tmp_path / 'x.npy'}", "--rounds", "1")
    assert bench(str(tmp_path / "weights.blk"), *inputs, "--against", "numpy,torch")[0] == 0
