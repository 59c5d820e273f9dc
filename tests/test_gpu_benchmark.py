"""`benchmarks/gpu.py` without a GPU: its rows, formulas, order, budget and output, with other candidates."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import blockc
from blockc.codegen import triton_runtime
from blockc.integrations import as_array
from blockc.machines.loading import load_machine

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import gpu_work  # noqa: E402
from gpu import Bench, OutOfTimeError, Roof  # noqa: E402
from gpu_work import Work  # noqa: E402

WORKS = list(gpu_work.works())
ROOF = Roof(790e12, 4.3e12)
SMALL = {"b": 2, "h": 2, "kv": 2, "g": 3, "m": 7, "n": 9, "d": 64, "e": 128, "z": 5, "k": 4, "v": 6}


def small(work: Work) -> Work:
    """The same at small sizes, in f64."""
    sizes = {dim: SMALL[dim] for dim in work.sizes}
    return replace(work, sizes=sizes, dtype="f64")


def one_of_each() -> list[Work]:
    return list({work.program_name: work for work in WORKS}.values())


# What is measured


def test_every_example_has_a_row_and_every_row_a_name_of_its_own() -> None:
    files = {work.file.name for work in WORKS}
    assert {path.name for path in (ROOT / "examples").glob("*.blk")} <= files
    assert len({work.name for work in WORKS}) == len(WORKS)
    assert {work.group for work in WORKS} == gpu.EXPECTED.keys()
    assert {work.group for work in WORKS if work.quick} == {"attention", "variant", "decode", "norm"}


@pytest.mark.parametrize("work", one_of_each(), ids=lambda work: work.program_name)
def test_a_formula_is_what_the_program_means(work: Work) -> None:
    work = small(work)
    tensors = gpu_work.tensors_of(work, "cpu")
    text = work.file.read_text()
    arrays = {name: as_array(tensor) for name, tensor in tensors.items()}
    expected = blockc.reference(text, program=work.program_name, **arrays)
    outputs = expected if isinstance(expected, dict) else {work.program.outputs[0].argument.name: expected}
    assert gpu_work.difference(work, tensors, tuple(torch.from_numpy(array) for array in outputs.values())) < 1e-12
    wrong = tuple(torch.from_numpy(array * 1.03) for array in outputs.values())
    assert gpu_work.difference(work, tensors, wrong) > gpu.WRONG


def test_nan_is_no_small_difference() -> None:
    work = small(next(work for work in WORKS if work.program_name == "decode"))
    tensors = gpu_work.tensors_of(work, "cpu")
    (result,) = gpu_work.decode(tensors, torch.zeros(1))
    result[0, 0, 0, 0] = math.nan
    assert gpu_work.difference(work, tensors, (result,)) == math.inf


def test_floors_are_the_larger_of_products_and_bytes() -> None:
    decode = next(work for work in WORKS if work.name.startswith("decode b=16"))
    moved = 2 * (2 * 16 * 8 * 8 * 128 + 2 * 16 * 8 * 8192 * 128)
    assert decode.bytes == moved and ROOF.floor(decode) == moved / 4.3e12
    causal = next(work for work in WORKS if work.program_name == "causal_attention")
    assert ROOF.floor(causal) == 4 * 4 * 16 * (4096 * 4097 // 2) * 128 / 790e12


def test_the_roof_is_that_of_the_machine() -> None:
    assert gpu.roof_of(load_machine("h200")) == ROOF
    assert gpu.roof_of(load_machine("a100")) == Roof(312e12, 2.039e12)


def test_the_pairs_that_a_mask_leaves_are_counted() -> None:
    length = 512
    row, column = torch.arange(length)[:, None], torch.arange(length)
    document = torch.arange(length) * gpu_work.DOCUMENTS // length
    causal = column <= row
    assert gpu_work.window_pairs(length) == int((causal & (row - column < 128)).sum())
    same = (document[:, None] == document) | (column == 0)
    assert gpu_work.document_pairs(length) == int((causal & same).sum())


def test_torch_has_what_is_measured_against() -> None:
    """FlexAttention and torch's attention take what they are given, on a small example on the CPU."""
    for work in (WORKS[0], *(work for work in WORKS if work.group in ("variant", "decode"))):
        work = replace(work, sizes={dim: {"b": 2, "h": 2, "kv": 2, "g": 2}.get(dim, 16) for dim in work.sizes})
        tensors = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in gpu_work.tensors_of(work, "cpu").items()
        }
        q, k, v = gpu_work.heads_of(work, tensors)
        mask, score = gpu_work.flex_parts(work.program_name, tensors)
        found = eager_flex(q, k, v, mask, score).reshape((*tensors["Q"].shape[:-1], v.shape[-1]))
        assert gpu_work.difference(work, tensors, (found,)) < 1e-5, work.name


def eager_flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, score: Any) -> torch.Tensor:
    """What FlexAttention computes, without compiling it."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    b, h, m, n = torch.meshgrid(*(torch.arange(size) for size in s.shape), indexing="ij")
    if score is not None:
        s = score(s, b, h, m, n)
    if mask is not None:
        s = s.masked_fill(~mask(b, h, m, n), -math.inf)
    return torch.softmax(s, -1) @ v


# How it is measured


class Fake:
    """A device on which every call takes the seconds that it is said to take, and making one a second."""

    def __init__(self, costs: Mapping[str, float], making: float = 1.0) -> None:
        self.costs, self.making, self.now, self.order = costs, making, 0.0, list[str]()

    def bench(self, wrong: str = "", broken: str = "") -> Bench:
        def maker(name: str) -> Any:
            def make() -> Any:
                self.now += self.making
                if name == broken:
                    raise RuntimeError("no such\nkernel")
                return lambda: name

            return make

        def seconds(call: Any) -> float:
            self.order.append(call())
            self.now += self.costs[call()]
            return self.costs[call()]

        def difference(work: Work, result: str) -> float:
            return 0.5 if result == wrong else 1e-3

        @contextlib.contextmanager
        def limited(left: float) -> Iterator[None]:
            before = self.now
            yield
            if self.now - before > left:
                raise OutOfTimeError

        return Bench(
            lambda work: {name: maker(name) for name in self.costs},
            difference,
            lambda call: (call, 1),
            seconds,
            lambda: self.now,
            limited,
        )


def test_candidates_take_turns_and_ratios_are_those_of_rounds() -> None:
    fake = Fake({"blockc": 0.2, "FA2": 0.3})
    row = gpu.measure(WORKS[0], fake.bench(), ROOF)
    assert fake.order[:6] == ["blockc", "FA2", "FA2", "blockc", "blockc", "FA2"]
    assert len(fake.order) >= 2 * gpu.FEWEST_ROUNDS
    own, other = row.candidates
    assert (own.name, own.ratio, other.name) == ("blockc", 1.0, "FA2") and other.ratio == pytest.approx(1.5)
    assert own.median == own.lower == own.upper == 0.2 and own.problem == ""


def test_what_is_wrong_or_missing_is_said() -> None:
    row = gpu.measure(WORKS[0], Fake({"blockc": 0.2, "FA2": 0.3, "Flex": 0.4}).bench("FA2", "Flex"), ROOF)
    by_name = {found.name: found for found in row.candidates}
    assert by_name["FA2"].problem == "wrong: relative error 5.0e-01"
    assert by_name["Flex"].problem == "RuntimeError: no such kernel" and math.isnan(by_name["Flex"].median)
    text = "\n".join(gpu.lines(row))
    assert "RuntimeError: no such kernel" in text and "wrong: relative error" in text
    without = gpu.measure(WORKS[0], Fake({"blockc": 0.2, "FA2": 0.3}).bench("", "blockc"), ROOF)
    assert without.candidates[0].name == "blockc" and without.candidates[0].problem
    assert math.isnan(without.candidates[1].ratio) and without.candidates[1].median == 0.3


def test_rows_that_do_not_fit_the_time_are_named() -> None:
    fake = Fake({"blockc": 0.01, "FA2": 0.01}, making=10.0)  # a row takes about 21 seconds
    shown: list[Any] = []
    rows, left_out = gpu.run(WORKS[:6], fake.bench(), ROOF, 70.0, shown.append)
    assert len(rows) == 3 == len(shown) and left_out == [work.name for work in WORKS[3:6]]
    assert fake.now <= 70.0


def test_a_row_that_runs_out_of_time_is_left_out() -> None:
    fake = Fake({"blockc": 0.01}, making=30.0)
    rows, left_out = gpu.run(WORKS[:2], fake.bench(), ROOF, 20.0, lambda row: None)
    assert rows == [] and left_out == [work.name for work in WORKS[:2]]


def test_what_takes_too_long_is_interrupted() -> None:
    with pytest.raises(OutOfTimeError), gpu.interrupted_after(0.05):
        time.sleep(5)
    with gpu.interrupted_after(5):
        pass


def test_numbers_are_written_without_nan(tmp_path: Path) -> None:
    gpu.write(tmp_path / "x.json", {"a": math.nan, "b": [1.5, math.inf]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.5, None]}


def test_a_gpu_that_no_machine_describes_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_runtime, "obstacle", lambda device: "")
    monkeypatch.setattr(triton_runtime, "name_of", lambda device: "NVIDIA L4")
    assert gpu.main(["--quick"]) == 3
    assert "no machine describes NVIDIA L4: write one" in capsys.readouterr().err


def test_without_a_gpu_there_are_floors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main(["--quick"]) == 3
    assert "nothing can be measured: torch finds no GPU; --floor works" in capsys.readouterr().err
    path = tmp_path / "floors.json"
    assert gpu.main(["--floor", "--only", "decode b=16", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["limit"] == "bytes" and row["predicted"] > row["floor"] == pytest.approx(125e-6, rel=1e-2)
    assert "decode b=16" in capsys.readouterr().out
