"""The self-check of kernels, and what becomes of one that fails: nothing wrong runs or is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import blockc
from blockc import driver, self_check
from blockc.accuracy import compare
from blockc.cache import usual_store
from blockc.codegen import loader, numpy_source
from blockc.data import random_arrays
from blockc.errors import BlockcWarning, CheckError
from blockc.ir.plan import Plan
from blockc.kernel import Kernel
from blockc.language import parse

Array = NDArray[Any]
Arrays = dict[str, Array]

ROOT = Path(__file__).parent.parent
ATTENTION = ROOT / "examples" / "attention.blk"
SUMS = "program sums(X: f32[m, n]) -> Y: f32[m] {\n    Y = 2.5 * sum[n](exp(X))\n}\n"
TILES = {"m": 4, "n": 4}


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one test's own."""
    monkeypatch.setenv("BLOCKC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kinds() -> list[str]:
    """The kinds of what is in the cache."""
    return sorted(entry.kind for entry in usual_store().entries())


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One element for each time that something is fused and chosen."""
    calls: list[object] = []
    true = driver.planned
    monkeypatch.setattr("blockc.kernel.planned", lambda *given: calls.append(given) or true(*given))  # type: ignore[func-returns-value]
    return calls


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["causal_attention", "layernorm_matmul"])
def test_cached_kernels_equal_fresh_ones(name: str, planned: list[object]) -> None:
    path = ROOT / "examples" / f"{name}.blk"
    fresh = blockc.compile(path, tiles={"m": 8})
    assert len(planned) == 1
    again = blockc.compile(path, tiles={"m": 8})
    sizes = driver.default_sizes(fresh.program, {"m": 11, "n": 13})
    arrays = random_arrays(fresh.program, sizes, seed=0)
    assert again.source == fresh.source
    assert len(planned) == 1
    np.testing.assert_array_equal(again(**arrays), fresh(**arrays))
    planned.clear()
    assert (again.cost, again.explain().to_json()) == (fresh.cost, fresh.explain().to_json())
    assert len(planned) <= 1
    assert kinds() == ["kernel", "kernel"]


CHANGES: dict[str, Callable[[], Kernel]] = {
    "the text": lambda: blockc.compile(SUMS.replace("2.5", "2.25")),
    "a comment of the text": lambda: blockc.compile(f"# once more\n{SUMS}"),
    "the order of axes": lambda: blockc.compile(SUMS.replace("f32[m, n]", "f32[n, m]")),
    "a type": lambda: blockc.compile(SUMS.replace("Y: f32", "Y: f64")),
    "all types": lambda: blockc.compile(SUMS, dtype="f64"),
    "a tile": lambda: blockc.compile(SUMS, tiles={"n": 8}),
    "a whole dimension": lambda: blockc.compile(SUMS, tiles={"n": None}),
    "chunks": lambda: blockc.compile(SUMS, split={"n": 2}),
    "a size": lambda: blockc.compile(SUMS, dims={"n": 3}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_kernel_is_made_for_another(change: str, planned: list[object]) -> None:
    blockc.compile(SUMS)
    blockc.compile(SUMS)
    assert len(planned) == 1
    for _ in range(2):
        CHANGES[change]()
    assert len(planned) == 2
    assert kinds() == ["kernel", "kernel"]


def test_another_kernel_is_made_for_another_machine(planned: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    blockc.compile(SUMS)
    monkeypatch.setattr("blockc.kernel.machine_text", lambda machine: "another")
    blockc.compile(SUMS)
    assert len(planned) == 2


def test_one_program_of_a_text_is_not_taken_for_another() -> None:
    text = SUMS + SUMS.replace("sums", "more").replace("2.5", "3.5")
    x = np.zeros((2, 2), np.float32)
    for _ in range(2):
        assert [float(blockc.compile(text, program=name)(x)[0]) for name in ("sums", "more")] == [5, 7]


def test_broken_entries_are_made_again() -> None:
    source = blockc.compile(SUMS).source
    (entry,) = usual_store().entries()
    entry.path.write_bytes(entry.path.read_bytes()[:-1])
    with pytest.warns(BlockcWarning, match="removed a broken entry") as caught:
        assert blockc.compile(SUMS).source == source
    assert len(caught) == 1
    assert blockc.compile(SUMS).source == source


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"form": "x", "source": 1}', b'{"form": "x", "source": "import os"}']
)
def test_what_is_no_kernel_is_not_loaded(body: bytes) -> None:
    source = blockc.compile(SUMS).source
    (entry,) = usual_store().entries()
    usual_store().write("kernel", entry.path.name.removeprefix("kernel-"), body)
    with pytest.warns(BlockcWarning, match="holds no kernel"):
        assert blockc.compile(SUMS).source == source
    assert blockc.compile(SUMS).source == source


def test_without_a_folder_everything_works(folder: Path) -> None:
    folder.write_text("no folder")
    with pytest.warns(BlockcWarning, match="it is no folder"):
        kernel = blockc.compile(SUMS)
    with pytest.warns(BlockcWarning, match="it is no folder"):
        assert kernel(np.zeros((2, 2), np.float32)).tolist() == [5, 5]
    assert folder.read_text() == "no folder"


def test_sizes_that_grow_do_not_fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockc.kernel.REMEMBERED", 3)
    kernel = blockc.compile(SUMS)
    for length in range(1, 6):
        assert kernel(np.zeros((1, length), np.float32)).tolist() == [2.5 * length]
    assert kinds() == ["kernel"] * 3


# --- the probe -------------------------------------------------------------------------------------------------------


def sums(x: Array) -> Array:
    """What `SUMS` means."""
    exact: Array = np.exp(x.astype(np.float64)).sum(1) * 2.5
    return exact.astype(np.float32)


def plan_of(source: str, tiles: driver.Tiles) -> tuple[Kernel, Plan]:
    kernel = blockc.compile(source, tiles=tiles)
    return kernel, kernel.specialise(driver.default_sizes(kernel.program, {})).plan


WRONG: dict[str, Callable[[Array], Array]] = {
    "a constant": lambda x: sums(x) * np.float32(2.501 / 2.5),
    "the short block left out": lambda x: sums(x[:, :4]),
    "the rows of the short block": lambda x: np.concatenate([sums(x[:4]), sums(x[4:]) * 2]),
    "the last row": lambda x: np.append(sums(x)[:-1], np.float32(0)),
    "a number for NaN": lambda x: np.nan_to_num(sums(x), posinf=np.inf),
    "a number for infinity": lambda x: np.where(np.isinf(sums(x)), 1, sums(x)),
    "NaN for a row of zeros": lambda x: sums(x) / np.float32((x != 0).any(1) | np.isnan(x).any(1)),
    "nothing": lambda x: np.full(len(x), np.nan, np.float32),
}


def test_the_right_numbers_pass() -> None:
    kernel, plan = plan_of(SUMS, TILES)
    assert self_check.probe(kernel.program, plan, lambda arrays: {"Y": sums(arrays["X"])}) is None


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_numbers_are_found(wrong: str) -> None:
    kernel, plan = plan_of(SUMS, TILES)
    found = self_check.probe(kernel.program, plan, lambda arrays: {"Y": WRONG[wrong](arrays["X"])})
    assert found is not None and found.output == "Y"


def test_digits_that_are_lost_far_from_zero_are_found() -> None:
    variance = "program p(X: f32[m, n]) -> Y: f32[m] {\n Y = mean[n]((X - mean[n](X)) ** 2)\n}\n"
    kernel, plan = plan_of(variance, {"m": 4, "n": 64})

    def centred(arrays: Any) -> Arrays:
        return {"Y": arrays["X"].var(1)}

    def opened(arrays: Any) -> Arrays:
        x = arrays["X"]
        return {"Y": np.maximum((x * x).mean(1) - x.mean(1) ** 2, 0)}

    assert self_check.probe(kernel.program, plan, centred) is None
    found = self_check.probe(kernel.program, plan, opened)
    assert found is not None and found.family == "mean 1000"


def test_what_is_near_the_unfused_program_is_inside_the_error_rule() -> None:
    random = np.random.default_rng(0)
    found = {True: 0, False: 0}
    for _ in range(2000):
        exact = random.standard_normal(5) * 2.0 ** random.integers(-3, 3)
        if random.random() < 0.5:
            exact /= np.abs(exact).max()  # beside a power of two, where ulps change
        unfused, output = (
            (exact + random.standard_normal(5) * random.choice([1e-8, 1e-7, 1e-3, 1.0])).astype(np.float32)
            for _ in range(2)
        )
        if random.random() < 0.7:
            output = unfused * np.float32(1 + random.integers(-3, 4) * 2.0**-23)
        is_near = self_check.near(output, unfused, "f32")
        found[is_near] += 1
        assert not is_near or compare(output, exact, unfused, "f32").ok
    assert min(found.values()) > 200
    nothing = np.array([np.nan], np.float32)
    assert self_check.near(nothing, nothing, "f32") and not self_check.near(nothing, np.zeros(1, np.float32), "f32")


def test_the_probe_has_short_blocks_and_is_small() -> None:
    for tiles in ({}, TILES, {"m": 1, "n": 1}, {"m": 2**20, "n": 2**20}):
        kernel, plan = plan_of(ATTENTION.read_text(), tiles)
        wanted = {dim.name: self_check.wanted_size(dim.name, plan) for dim in kernel.program.dims}
        for dim, tile in plan.tiles.items():
            assert tile < wanted[dim] <= 2 * tile and (tile == 1 or wanted[dim] % tile), dim
        sizes = self_check.affordable(kernel.program, wanted)
        assert self_check.work(kernel.program, sizes) <= self_check.MOST_WORK
        if max(plan.tiles.values()) <= 512:
            assert all(sizes[dim] == wanted[dim] for dim in ("m", "n"))
    long, short = (blockc.compile(SUMS, tiles={"n": None}).specialise({"m": 9, "n": n}).plan for n in (1000, 7))
    assert [self_check.wanted_size("n", plan) for plan in (long, short)] == [131, 7]


def test_empty_dimensions_stay_empty_and_declared_sizes_stay() -> None:
    launched = []
    kernel, plan = plan_of("program p(X: f32[m=3, n]) -> Y: f32[m] {\n Y = sum[n](X)\n}\n", {"m": 2, "n": 4})

    def launch(arrays: Any) -> Arrays:
        launched.append(arrays["X"].shape)
        return {"Y": arrays["X"].sum(1)}

    assert self_check.probe(kernel.program, plan, launch) is None
    assert set(launched) == {(3, 5)}
    launched.clear()
    empty = kernel.specialise({"m": 3, "n": 0}).plan
    assert self_check.probe(kernel.program, empty, launch) is None
    assert set(launched) == {(3, 0)}


# --- what fails ------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_emitter(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An emitter that writes a wrong constant; gives the sources that it has written."""
    true, written = numpy_source.emit, []

    def emit(*given: Any) -> str:
        head, _, text = true(*given).partition("def ")
        assert "2.5" in text
        written.append(f"{head}def {text.replace('2.5', '2.501')}")
        return written[-1]

    monkeypatch.setattr(numpy_source, "emit", emit)
    return written


def test_a_wrong_constant_is_caught_and_the_result_is_right(broken_emitter: list[str]) -> None:
    with pytest.warns(BlockcWarning, match="failed its self-check") as caught:
        kernel = blockc.compile(SUMS)
    (warning,) = caught
    message = str(warning.message)
    for part in (
        "`sums`",
        "output `Y` is off by",
        "bound",
        "N(0, 1) at m=525, n=64",
        "the unfused program runs instead",
    ):
        assert part in message
    x = np.random.default_rng(0).standard_normal((5, 7), np.float32)
    with pytest.warns(BlockcWarning, match="failed its self-check"):
        result = kernel(x)  # another kernel, for other tiles
    np.testing.assert_allclose(result, sums(x), rtol=1e-6)  # no kernel is right: the array program is evaluated
    assert "array program sums" in kernel.source
    assert kernel.explain().to_json()["chosen"] == 0
    assert kinds() == ["failed", "failed"]
    with pytest.warns(BlockcWarning, match="failed its self-check"):
        blockc.compile(SUMS)  # nothing of it was kept
    assert len(broken_emitter) == 6  # fused and unfused


def test_what_failed_can_be_reproduced(broken_emitter: list[str]) -> None:
    with pytest.warns(BlockcWarning, match="failed its self-check") as caught:
        blockc.compile(SUMS, tiles=TILES)
    (entry,) = usual_store().entries()
    assert str(entry.path) in str(caught[0].message)
    text = entry.path.read_text()
    assert parse(text).nodes[-1].op == parse(SUMS).nodes[-1].op
    assert "verify FILE --program sums --dim m=5 --dim n=5 --tile m=4 --tile n=4" in text
    assert "seed 0" in text and all(f"# {line}".rstrip() in text for line in broken_emitter[0].splitlines())


def test_strict_makes_it_an_error(broken_emitter: list[str]) -> None:
    with pytest.raises(CheckError, match="failed its self-check") as caught:
        blockc.compile(SUMS, strict=True)
    assert caught.value.exit_code == 4
    assert kinds() == ["failed"] and len(broken_emitter) == 1


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that are loaded; what is loaded first gives wrong numbers."""
    true, sources = loader.load, list[str]()

    def load(source: str) -> Any:
        sources.append(source)
        launch = true(source)
        if len(sources) > 1:
            return launch
        return lambda arrays, threads: {name: 2 * array for name, array in launch(arrays, threads).items()}

    monkeypatch.setattr(loader, "load", load)
    return sources


def test_a_kernel_without_opened_sums_runs_if_it_is_right(loaded: list[str]) -> None:
    source = "program p(X: f32[m, n]) -> V: f32[m] { V = mean[n]((X - mean[n](X)) ** 2) }"
    with pytest.warns(BlockcWarning, match="a kernel that opens no sums runs instead"):
        kernel = blockc.compile(source, tiles={"m": 8, "n": 8})
    assert kernel.source == loaded[1] != loaded[0]
    assert kernel.cost.kernels == 1
    arrays = random_arrays(kernel.program, {"m": 9, "n": 21}, seed=1)
    np.testing.assert_allclose(kernel(**arrays), arrays["X"].var(axis=1), rtol=1e-5)
    assert len(loaded) == 2


def test_unfused_kernels_run_if_they_are_right(loaded: list[str]) -> None:
    with pytest.warns(BlockcWarning, match="the unfused program runs instead"):
        kernel = blockc.compile(ATTENTION, dtype="f32", tiles={"m": 8, "n": 8})
    assert kernel.source == loaded[1] != loaded[0]
    assert kernel.cost.kernels > 4
    arrays = random_arrays(kernel.program, driver.default_sizes(kernel.program, {"m": 9, "n": 21}), seed=1)
    exact = blockc.reference(ATTENTION.read_text(), None, **arrays)
    np.testing.assert_allclose(kernel(**arrays), exact, atol=1e-5)
    assert len(loaded) == 2  # the same unfused kernels for other sizes, and no second warning
    assert kinds() == ["failed"]


# --- the command line ------------------------------------------------------------------------------------------------


def blockc_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blockc", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


def test_the_command_cache(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from blockc.cli import main

    def output(*arguments: str) -> str:
        assert main(["cache", *arguments]) == 0
        return capsys.readouterr().out

    empty = {"folder": str(folder), "entries": 0, "bytes": 0, "kinds": {}}
    assert json.loads(output("info", "--json")) == empty
    assert output("info") == f"folder   {folder}\nentries  0 of 0 bytes\n"
    assert not folder.exists()
    blockc.compile(SUMS)
    usual_store().keep_failure("program")
    (folder / "mine.txt").write_text("mine")
    size = sum(path.stat().st_size for path in folder.rglob("*-*"))
    kinds = {"failed": {"entries": 1, "bytes": 7}, "kernel": {"entries": 1, "bytes": size}}
    assert json.loads(output("info", "--json")) == {**empty, "entries": 2, "bytes": size + 7, "kinds": kinds}
    assert output("info").splitlines()[1:] == [
        f"entries  2 of {size + 7:,} bytes",
        "  failed     1 of 7 bytes",
        f"  kernel     1 of {size:,} bytes",
    ]
    assert json.loads(output("clear", "--json")) == {"folder": str(folder), "removed": 2, "bytes": size + 7}
    assert output("clear") == f"folder   {folder}\nremoved  0 of 0 bytes\n"
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_a_warning_is_one_line(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    result = blockc_command("cache", "clear")
    expected = f"warning: nothing is cached in {folder}: others may enter it (chmod 700 makes it safe)\n"
    assert (result.returncode, result.stderr) == (0, expected)
