"""Kernels of split reductions: right at every size and number of chunks, and the chunks are tasks."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracle import difference, random_case
from selection import in_turn
from test_split import REDUCTIONS, chunked

import blockc
from blockc.cli import main
from blockc.codegen import loader, numpy_source
from blockc.data import random_arrays
from blockc.driver import default_sizes
from blockc.errors import UsageError
from blockc.language import parse
from blockc.meaning import evaluate
from blockc.passes.choose import compose, safe
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower
from blockc.passes.split import split

ATTENTION = "examples/attention.blk"


def sizes_for(source: str, n: int) -> dict[str, int]:
    program = parse(source)
    return default_sizes(program, {dim.name: n if dim.name == "n" else 3 for dim in program.dims})


@pytest.mark.parametrize(("name", "tile"), in_turn(REDUCTIONS, [None, 16, 1], of=2))
def test_split_kernels_are_right(name: str, tile: int | None) -> None:
    """Also where there are fewer blocks than chunks, one, or none; and the same bits on one thread and on two."""
    text, dim, _ = REDUCTIONS[name]
    source = f"program {text}"
    counts = (1, 2, 5, 200)
    tiles = {} if tile is None else {"n": tile}
    compiled = {count: blockc.compile(source, split={dim: count}, tiles=tiles, threads=1) for count in counts}
    kernels = {count: (kernel, replace(kernel, threads=2)) for count, kernel in compiled.items()}
    for n in (0, 1, 3, 64, 131):
        arrays = random_arrays(parse(source), sizes_for(source, n), n)
        expected = blockc.reference(source, None, **arrays)
        for count in counts:
            results = []
            for kernel in kernels[count]:
                found = kernel(**arrays)
                results.append(found if isinstance(found, dict) else {"O": found})
            wanted = expected if isinstance(expected, dict) else {"O": expected}
            for output, value in wanted.items():
                assert np.allclose(results[0][output], value, rtol=2e-5, atol=2e-5, equal_nan=True), (n, count)
                assert np.array_equal(results[0][output], results[1][output], equal_nan=True)


@pytest.mark.parametrize("start", range(0, 40, 10))
def test_random_split_programs_mean_what_their_text_says(start: int) -> None:
    checked = 0
    for seed in range(start, start + 10):
        case = random_case(seed)
        program = parse(case.source, dtype="f64")
        arrays = random_arrays(program, case.sizes, seed)
        divided = split(fuse(lower(program, case.whole)), set(case.sizes))
        expected = evaluate(program, arrays)
        for snapshot in divided.snapshots:
            stable = compose(safe(snapshot))
            for blocks in (1, 2):
                tiles = chunked(case, stable, blocks).tiles
                found = loader.load(numpy_source.emit(stable, tiles))(arrays, 2)
                for name, array in expected.items():
                    # Intermediates that no f64 value goes into are f32.
                    assert difference(found[name], array, 2e-6) == "", f"seed {seed}, output {name}"
            checked += bool(stable.chunks)
    assert checked > 2


def test_chunks_are_tasks_and_work_ahead_of_them_is_theirs() -> None:
    """One row and one head: still as many tasks as chunks, although operators stand ahead of the chunks."""
    dims = {"b": 1, "h": 1, "m": 1, "n": 4096, "d": 64, "e": 64}
    kernel = blockc.compile(ATTENTION, dims=dims, dtype="f32", split={"n": 4})
    kernels = re.split(r"\ndef kernel\d+", kernel.source)
    chunk = re.search(r"#   d(\d+) is n_chunk, blocks of 1024", kernel.source)
    assert chunk is not None and len(kernels) == 3 and kernel.cost.kernels == 2
    assert f"range(0, d{chunk[1]}, t{chunk[1]}))" in kernels[1].split("run(task")[1]
    assert "np.matmul" in kernels[1] and "np.matmul" not in kernels[2]


def test_safe_arithmetic_survives_the_split() -> None:
    """Logits of any size in any chunk, chunks and rows without anything, NaN."""
    source = "program p(S: f32[m, n], V: f32[n, e]) -> O: f32[m, e] { O = dot[n](softmax[n](S), V) }"
    draw = np.random.default_rng(2)
    s = (1000 * draw.standard_normal((7, 90))).astype(np.float32)
    s[1] = -np.inf
    s[2, :30] = -np.inf
    s[3, 5] = np.nan
    s[4] = -1e30
    s[5, 1:] = -np.inf
    v = draw.standard_normal((90, 4)).astype(np.float32)
    expected = blockc.reference(source, None, S=s, V=v)
    for count in (2, 3, 9):
        got = blockc.compile(source, split={"n": count}, tiles={"n": 10})(s, v)
        assert np.allclose(got, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
        assert np.array_equal(np.isnan(got), np.isnan(expected)) and not got[1].any()


def test_the_commands_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def output_of(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out

    options = ["--dtype", "f32", "--dim", "m=1", "--dim", "n=700", "--split", "n=3"]
    report = json.loads(output_of("run", ATTENTION, *options, "--simulate", "--json"))
    assert report["ok"] and report["kernels"] == 2
    assert report["traffic_bytes"]["predicted"] == report["traffic_bytes"]["measured"]
    explained = json.loads(output_of("explain", ATTENTION, *options, "--json"))
    assert [step["rule"] for step in explained["steps"]][-1] == "split_reduction"
    assert explained["snapshots"][0]["tiles"]["n"] == 234  # chunks of one block
    verified = json.loads(output_of("verify", ATTENTION, "--split", "n=2", "--json"))
    assert verified["ok"] and any(way["snapshots"][0]["kernels"] == 2 for way in verified["ways"])
    assert {step["rule"] for way in verified["ways"] for step in way["steps"]} >= {"split_reduction"}
    assert "dim n_chunk = chunks(n)" in output_of("show", ATTENTION, *options, "--stage", "snapshot")
    output_of("emit", ATTENTION, *options, "-o", str(tmp_path))
    (path,) = tmp_path.glob("*.py")
    launch = runpy.run_path(str(path))["launch"]
    draw = np.random.default_rng(0)
    arrays = {name: draw.standard_normal((1, 1, 1 if name == "Q" else 700, 64), np.float32) for name in "QKV"}
    expected = blockc.reference(ATTENTION, None, **{name: array.astype(np.float16) for name, array in arrays.items()})
    assert np.allclose(launch(arrays)["O"], expected, atol=1e-2)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"q": 2}, "has no dimension `q`"),
        ({"n": 0}, "not between 1 and"),
        ({"m": 2}, "no loop over `m` can be cut into chunks"),
        ({"n": 1.5}, "must be a whole number"),
    ],
)
def test_what_cannot_be_split_is_refused(split: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        blockc.compile(ATTENTION, split=split)


def test_passes_that_wait_for_one_another_are_split_one_after_the_other() -> None:
    """The second pass needs the whole maximum: two kernels for each pass, the combination of one with the next."""
    source = "program p(X: f32[m, n]) -> O: f32[m] { O = sum[n](gelu(X - max[n](X))) }"
    kernel = blockc.compile(source, split={"n": 2}, tiles={"n": 4})
    assert kernel.cost.kernels == 3
    assert [step.rule for step in kernel.explain().parts[0].steps][-2:] == ["split_reduction"] * 2
    x = np.random.default_rng(1).standard_normal((5, 19)).astype(np.float32)
    assert np.allclose(kernel(x), blockc.reference(source, None, X=x), rtol=1e-5, atol=1e-5)
