"""Tuning without a GPU: what is tried, for how long, what is chosen, and how it is kept, with made-up times."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from blockc import cli, linting, meaning, tuning, tuning_on_gpu
from blockc.attempts import Attempts
from blockc.codegen import triton_runtime
from blockc.codegen.triton_storage import Options
from blockc.errors import BlockcError, CheckError, LimitError
from blockc.gpu_kernel import GpuKernel
from blockc.integrations import as_array, as_tensor
from blockc.language import parse
from blockc.machines import loading
from blockc.machines.loading import load_machine
from blockc.triton_kernels import triton_kernels
from blockc.tuning import Book, Entry, Setting, UnusableError

TEXT = "program p(X: f16[m, k], W: f16[k, n]) -> Y: f16[m, n] {\n    Y = dot[k](X, W)\n}\n"
PROGRAM = parse(TEXT, "p.blk")
SIZES = {"m": 64, "k": 64, "n": 64}
MACHINE = load_machine("h200")
FIRST = triton_kernels(PROGRAM, MACHINE, SIZES, {})
GPU = "a GPU"


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for settings of its own."""
    monkeypatch.setattr(loading, "user_folder", lambda: tmp_path / "settings" / "machines")
    return tmp_path / "settings" / "tuned"


def setting(number: int) -> Setting:
    return Setting({"m": 16 << number}, {"kernel0": Options(4, 2)})


class Times:
    """Made-up seconds of settings, by their number, and a clock that goes on while they are timed."""

    def __init__(self, *seconds: float, taking: float = 1.0) -> None:
        self.seconds, self.taking, self.now, self.tried = seconds, taking, 0.0, list[Setting]()

    def timed(self, given: Setting) -> Sequence[float]:
        seconds = self.seconds[len(self.tried)]
        self.tried.append(given)
        self.now += self.taking
        if seconds < 0:
            raise UnusableError("it does not fit")
        return [seconds * 5, seconds, seconds, seconds * 0.5, seconds]

    def tune(self, **limits: Any) -> tuning.Tuned:
        return tuning.tune((setting(at) for at in range(8)), self.timed, lambda: self.now, **limits)


# What is tried


def test_medians_count_and_all_is_tried_in_order() -> None:
    times = Times(3e-3, 2e-3, 1e-3, 4e-3, 2e-3, 2e-3, 2e-3, 2e-3)
    found = times.tune()
    assert times.tried == [setting(at) for at in range(8)]
    assert (found.chosen, found.left_out, found.trials[2].median) == (2, 0, 1e-3)


def test_no_more_are_tried_than_asked_for() -> None:
    times = Times(*[1e-3] * 8)
    assert len(times.tune(most=3).trials) == 3 == len(times.tried)


def test_what_would_pass_the_time_is_left_out() -> None:
    times = Times(*[1e-3] * 8, taking=10.0)
    found = times.tune(budget=30.0)
    assert (len(found.trials), found.left_out) == (3, 5) and times.now <= 30.0
    assert len(Times(*[1e-3] * 8, taking=10.0).tune(budget=0.0).trials) == 1, "the first is always tried"


def test_less_than_noise_is_not_faster() -> None:
    assert Times(1e-3, 0.985e-3, *[2e-3] * 6).tune().chosen == 0
    assert Times(1e-3, 0.975e-3, *[2e-3] * 6).tune().chosen == 1


def test_a_setting_that_cannot_be_used_is_never_chosen() -> None:
    found = Times(-1, 2e-3, -1, 1e-3, *[5e-3] * 4).tune()
    assert found.chosen == 3 and found.trials[0].problem == "it does not fit" and found.trials[0].median == math.inf


def test_settings_begin_with_what_is_chosen_without_tuning() -> None:
    choices = list(tuning.near(FIRST, PROGRAM, MACHINE, SIZES))
    ways = {"kernel0": [Options(8, 4), Options(4, 4), Options(8, 3, "descriptors"), Options(4, 3, "descriptors")]}
    found = list(tuning.settings(choices, lambda made: ways))
    first = choices[0]
    own = {function.name: function.options for function in first.source.functions}
    assert found[0] == Setting(dict(first.plan.tiles), own)
    assert [each.launches["kernel0"] for each in found[1:5]] == ways["kernel0"]
    assert {each.launches["kernel0"] for each in found[5:]} == {Options(8, 4), Options(8, 3, "descriptors")}
    blocks = [dict(each.tiles) for each in found[5:]]
    assert blocks and all(tiles != dict(first.plan.tiles) for tiles in blocks)
    assert len({json.dumps([each.tiles, repr(each.launches)]) for each in found}) == len(found)
    assert list(tuning.settings(choices, lambda made: {})) == found[:1], "no way is clean"


# What is kept


def entry(number: int = 0, **changed: Any) -> Entry:
    facts = Entry("p" * 32, "p", (("m", 256),), setting(number), 1e-3, 2e-3, "2026-11-21", "blockc 0.1.0")
    return replace(facts, **changed)


def test_a_file_is_read_as_it_was_written() -> None:
    book = Book(GPU, (entry(), entry(1, sizes=(("m", 512),))))
    assert tuning.read_book(tuning.book_text(book).encode(), "x") == book
    newer = book.with_entry(entry(2))
    assert newer.find("p" * 32, (("m", 256),)) == setting(2) and len(newer.entries) == 2
    assert newer.find("p" * 32, (("m", 128),)) is None and newer.find("q", (("m", 256),)) is None
    assert newer.without("p" * 32, (("m", 256),)).entries == book.entries[1:]


def broken_files() -> Iterator[tuple[str, bytes]]:
    good = json.loads(tuning.book_text(Book(GPU, (entry(),))))
    yield "no JSON", b"\x00garbage"
    yield "no text", b"\xff\xfe"
    yield "another thing", b"[1, 2]"
    yield "another format", json.dumps({**good, "format": 2}).encode()
    yield "no device", json.dumps({name: part for name, part in good.items() if name != "device"}).encode()
    yield "deep", b"[" * 100_000
    changes: dict[str, Any] = {
        "tiles": {"m": 48},
        "launches": {"kernel0": {"warps": 3, "stages": 2, "loads": "pointers"}},
        "seconds": "soon",
        "untuned_seconds": -1,
        "sizes": {"m": True},
        "name": 7,
    }
    for name, value in changes.items():
        yield f"entry {name}", json.dumps({**good, "entries": [{**good["entries"][0], name: value}]}).encode()
        less = {key: part for key, part in good["entries"][0].items() if key != name}
        yield f"entry without {name}", json.dumps({**good, "entries": [less]}).encode()


@pytest.mark.parametrize(
    ("name", "text"), list(broken_files()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_file_with_anything_else_is_refused(name: str, text: bytes, own_files: Path) -> None:
    own_files.mkdir(parents=True)
    (own_files / "h200.json").write_bytes(text)
    with pytest.raises(BlockcError, match=r"h200.json holds no results of `blockc tune`: .*\n.*remove it"):
        tuning.best_known(PROGRAM, MACHINE, SIZES, {})


def keep(folder: Path, found: Setting, device: str = GPU) -> None:
    """Write a file with an entry for the program."""
    sizes = tuning.size_class(PROGRAM, SIZES)
    book = Book(device, (entry(program=tuning.digest(PROGRAM), sizes=sizes, setting=found),))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "h200.json").write_text(tuning.book_text(book))


TUNED = Setting({"m": 32, "k": 16, "n": 32}, {"kernel0": Options(2, 5)})


def test_what_is_kept_is_used_for_sizes_of_its_class(own_files: Path) -> None:
    keep(own_files, TUNED)
    made = tuning.best_known(PROGRAM, MACHINE, {"m": 50, "k": 60, "n": 33}, {})
    assert dict(made.plan.tiles) == TUNED.tiles and made.source.functions[0].options == Options(2, 5)
    for sizes, tiles in (({**SIZES, "m": 65}, {}), (SIZES, {"m": 16})):
        other = tuning.best_known(PROGRAM, MACHINE, sizes, tiles)
        assert other.source.functions[0].options != Options(2, 5)
    assert tuning.tuned(PROGRAM, MACHINE, SIZES, "another GPU") is None
    found = tuning.tuned(PROGRAM, MACHINE, SIZES, GPU)
    assert found is not None and found.source.functions[0].options == Options(2, 5)


def test_what_leads_to_no_kernels_any_more_is_passed_over(own_files: Path) -> None:
    keep(own_files, replace(TUNED, launches={"kernel7": Options(2, 5)}))
    made = tuning.best_known(PROGRAM, MACHINE, SIZES, {})
    assert made.source.functions[0].options != Options(2, 5)


def test_emit_and_compile_use_it(own_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(own_files, TUNED)
    (tmp_path / "p.blk").write_text(TEXT)
    dims = [part for dim, size in SIZES.items() for part in ("--dim", f"{dim}={size}")]
    command = ["emit", str(tmp_path / "p.blk"), "--target", "h200", "-o", str(tmp_path / "out"), *dims]
    found = CliRunner().invoke(cli.cli, command)
    assert found.exit_code == 0 and "num_warps=2, num_stages=5" in (tmp_path / "out" / "p_h200.py").read_text()
    monkeypatch.setattr(triton_runtime, "name_of", lambda device: GPU)
    kernel = GpuKernel(PROGRAM, "h200", {}, {}, machine=MACHINE)
    kernel.specialise(SIZES)
    assert "num_warps=2, num_stages=5" in kernel.source


# The command


class FakeGpu:
    """A GPU on which kernels compute what the program means, and take longer the more warps they have."""

    def __init__(self) -> None:
        self.wrong, self.loaded = "", list[str]()

    def load(self, source: str, launcher: str) -> Any:
        self.loaded.append(source)

        def launch(*tensors: torch.Tensor) -> torch.Tensor:
            names = [argument.name for argument in PROGRAM.inputs]
            arrays = {name: as_array(tensor) for name, tensor in zip(names, tensors, strict=True)}
            result: torch.Tensor = as_tensor(meaning.baseline(PROGRAM, arrays)["Y"])
            return result * 2 if self.wrong and self.wrong in source else result

        return launch

    def seconds(self, call: Any, device: str) -> list[float]:
        call()
        return [1e-5 * (8 if "num_warps=8" in self.loaded[-1] else 4)] * 3


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    found = FakeGpu()
    monkeypatch.setattr(triton_runtime, "obstacle", lambda device: "")
    monkeypatch.setattr(triton_runtime, "GPU", "cpu")
    monkeypatch.setattr(triton_runtime, "name_of", lambda device: GPU)
    monkeypatch.setattr(triton_runtime, "free_bytes", lambda device: None)
    monkeypatch.setattr(triton_runtime, "capability", lambda device: MACHINE.capability)
    monkeypatch.setattr(triton_runtime, "load", found.load)
    monkeypatch.setattr(triton_runtime, "seconds", found.seconds)
    ways = {"kernel0": [Options(8, 2), Options(4, 3)]}
    monkeypatch.setattr(tuning_on_gpu, "clean_ways", lambda made, kernel: ways)
    monkeypatch.setattr(Attempts, "untuned", lambda self, sizes: triton_kernels(PROGRAM, MACHINE, sizes, {}))
    return found


def run_tune(tmp_path: Path, *more: str) -> Any:
    (tmp_path / "p.blk").write_text(TEXT)
    dims = [part for dim, size in SIZES.items() for part in ("--dim", f"{dim}={size}")]
    return CliRunner().invoke(cli.cli, ["tune", str(tmp_path / "p.blk"), "--target", "h200", *dims, *more])


def test_nothing_is_kept_if_nothing_is_faster(fake_gpu: FakeGpu, tmp_path: Path, own_files: Path) -> None:
    found = run_tune(tmp_path, "--json", "--most", "3")
    assert found.exit_code == 0, found.output
    result = json.loads(found.output)
    assert (len(result["trials"]), result["device"], result["left_out"]) == (3, GPU, 0)
    assert result["trials"][0]["chosen"] and result["file"] is None and not own_files.exists()


def test_a_faster_setting_is_kept_and_used(
    fake_gpu: FakeGpu, tmp_path: Path, own_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_gpu, "seconds", lambda call, device: [2e-5 / len(fake_gpu.loaded)] * 3)
    monkeypatch.setattr(triton_runtime, "seconds", fake_gpu.seconds)
    found = run_tune(tmp_path, "--most", "4")
    assert found.exit_code == 0 and f"kept      in {own_files / 'h200.json'}" in found.output
    book = tuning.read_file(own_files / "h200.json")
    assert book is not None and book.device == GPU
    (kept,) = book.entries
    assert kept.untuned > kept.seconds and kept.name == "p" and "torch" in kept.versions
    used = tuning.tuned(PROGRAM, MACHINE, SIZES, GPU)
    assert used is not None
    assert {function.name: function.options for function in used.source.functions} == kept.setting.launches
    assert used.source.text == fake_gpu.loaded[-1]


def test_wrong_kernels_are_not_chosen_and_fail_if_all_are(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    fake_gpu.wrong = "num_stages=3"
    found = run_tune(tmp_path, "--most", "4")
    assert found.exit_code == 0 and "output Y is wrong: off by" in found.output
    fake_gpu.wrong = "tl.dot"
    assert isinstance(run_tune(tmp_path, "--most", "4").exception, CheckError)


def test_what_leaves_nothing_to_tune_is_usage(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    assert "tuning chooses blocks" in str(run_tune(tmp_path, "--tile", "m=64").exception)


def test_a_file_for_another_gpu_is_left_alone(fake_gpu: FakeGpu, tmp_path: Path, own_files: Path) -> None:
    keep(own_files, TUNED, "another GPU")
    before = (own_files / "h200.json").read_text()
    assert "was measured on another GPU" in str(run_tune(tmp_path, "--most", "1").exception)
    assert (own_files / "h200.json").read_text() == before
    assert run_tune(tmp_path, "--most", "3", "--output", str(tmp_path / "mine.json")).exit_code == 0


def test_without_a_gpu_nothing_is_tuned(tmp_path: Path) -> None:
    if not triton_runtime.obstacle(triton_runtime.GPU):
        pytest.skip("there is a GPU")
    assert isinstance(run_tune(tmp_path).exception, LimitError)
    found = CliRunner().invoke(cli.cli, ["tune", str(tmp_path / "p.blk")])
    assert isinstance(found.exception, LimitError) and "`cpu` are not tuned" in str(found.exception)


def test_ways_are_those_that_the_compiler_has_nothing_against(monkeypatch: pytest.MonkeyPatch) -> None:
    facts: dict[str, Any] = {
        "tiles": FIRST.plan.tiles,
        "seconds": 1.0,
        "predicted": 2000,
        "registers": 100,
        "shared_bytes": 1000,
    }
    facts |= {"function": "kernel0", "occupancy": 0.2, "warnings": (), "error": ""}
    found = (
        linting.Candidate(options=Options(4, 2), spill_bytes=0, **facts),
        linting.Candidate(options=Options(4, 3), spill_bytes=8, **facts),
        linting.Candidate(options=Options(8, 2), spill_bytes=0, **facts, chosen=True),
        linting.Candidate(options=Options(4, 3, "descriptors"), spill_bytes=0, **facts),
    )
    monkeypatch.setattr(tuning_on_gpu, "lint", lambda choices, machine: linting.Linted(choices[0], found))
    kernel = GpuKernel(PROGRAM, "h200", {}, {}, machine=MACHINE)
    assert tuning_on_gpu.clean_ways(FIRST, kernel) == {
        "kernel0": [Options(8, 2), Options(4, 3, "descriptors"), Options(4, 2)]
    }
