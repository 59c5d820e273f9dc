"""`explain`, `show --stage schedule` and `run --simulate` for machines that nothing can be emitted for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockc import partition, simulating
from blockc.cli import main
from blockc.codegen import simulator
from blockc.ir.array_program import ArrayProgram
from blockc.ir.machine import Machine
from blockc.partition import Partition

EXAMPLES = Path(__file__).parent.parent / "examples"
ATTENTION = str(EXAMPLES / "attention.blk")
SMALL = [part for dim in ("b=1", "h=2", "m=20", "n=30", "d=64", "e=64") for part in ("--dim", dim)]
LAYER = str(EXAMPLES / "large" / "transformer_layer.blk")
SMALL_LAYER = [part for dim in ("s=16", "d=16", "h=2", "k=8", "z=24", "c=16") for part in ("--dim", dim)]
SMALL_LAYER += [part for dim in ("s=8", "t=8", "d=8", "h=1", "k=4", "z=8", "c=8") for part in ("--tile", dim)]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def plans_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`explain` and `run` on the same machine, sizes and tiles take the same plan, which is chosen once."""
    known: dict[str, Partition] = {}

    def remembered(program: ArrayProgram, machine: Machine, *choices: Any) -> Partition:
        key = repr((program, machine, *choices))
        if key not in known:
            known[key] = right(program, machine, *choices)
        return known[key]

    right = partition.partition
    monkeypatch.setattr(partition, "partition", remembered)
    monkeypatch.setattr(simulating, "partition", remembered)


@pytest.mark.usefixtures("plans_once")
@pytest.mark.parametrize("target", ["h200", "a100", "ascend", "scratchpad", "toy"])
def test_attention_is_explained_and_simulated(capsys: pytest.CaptureFixture[str], target: str) -> None:
    code, out, _ = run(capsys, "explain", ATTENTION, "--target", target, *SMALL, "--verbosity", "2")
    assert code == 0 and f"Chosen for {target} (" in out
    headings = ("Moved by the chosen one", "Space taken", "Computed:", "Candidates side by side", "Parts looked at (*")
    assert all(heading in out for heading in headings)
    assert max(map(len, out.splitlines())) <= 100
    code, out, _ = run(capsys, "run", ATTENTION, "--target", target, "--simulate", *SMALL)
    assert code == 0 and out.splitlines()[-1] == "ok" and f"simulated on {target}" in out
    assert max(map(len, out.splitlines())) <= 100


def test_explain_as_json_has_the_choice_its_costs_and_all_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "explain", ATTENTION, "--target", "toy", *SMALL, "--json")
    value: dict[str, Any] = json.loads(out)
    assert {"program", "target", "dims", "snapshots", "steps", "refusals", "machine", "cuts"} <= value.keys()
    machine = value["machine"]
    assert machine["name"] == "toy" and machine["kernels"] == 1 and machine["predicted_seconds"] > 0
    assert {"form", "snapshot", "tiles", "placement", "bottleneck", "tasks", "peak_bytes"} <= machine.keys()
    assert next(way["from"] for way in machine["boundaries"]) == "dram"
    assert machine["candidates"][0]["why"] == "" and all(entry["why"] for entry in machine["candidates"][1:])
    assert sum(entry["chosen"] for entry in value["cuts"]["candidates"]) == 1


def test_a_run_as_json_has_predicted_and_measured_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "run", ATTENTION, "--target", "toy", "--simulate", *SMALL, "--json")
    value: dict[str, Any] = json.loads(out)
    assert code == 0 and value["ok"] and value["parts"] == 1
    assert value["traffic_bytes"]["predicted"] == value["traffic_bytes"]["measured"] > 0
    machine = value["machine"]
    assert {(way["from"], way["to"]) for way in machine["boundaries"]} >= {("dram", "sram"), ("sram", "dram")}
    assert all(way["predicted"] == way["measured"] for way in machine["boundaries"])
    assert all(space["measured"] <= space["predicted"] <= space["capacity"] for space in machine["space"])
    assert machine["predicted_seconds"] > 0 and machine["simulated_seconds"] > 0


def test_kernels_are_simulated_on_the_tiers_of_their_machine_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "run", ATTENTION, "--simulate", *SMALL, "--json")
    value: dict[str, Any] = json.loads(out)
    assert code == 0 and {way["from"] for way in value["machine"]["boundaries"]} == {"dram", "l3", "l2"}
    code, out, _ = run(capsys, "run", ATTENTION, "--simulate", *SMALL)
    assert code == 0 and "on the tiers of the target" in out


@pytest.mark.usefixtures("plans_once")
def test_a_layer_is_explained_and_simulated_in_parts(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", LAYER, "--target", "toy", *SMALL_LAYER)
    assert code == 0 and "parts, " in out and "Part 1: " in out and "Moved, all parts together:" in out
    assert max(map(len, out.splitlines())) <= 100
    code, out, _ = run(capsys, "run", LAYER, "--target", "toy", "--simulate", *SMALL_LAYER)
    assert code == 0 and " parts\n" in out and out.endswith("ok\n")


def test_results_are_written_and_inputs_are_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program = tmp_path / "double.blk"
    program.write_text("program double(X: f32[m]) -> Y: f32[m] { Y = 2 * X }\n")
    np.save(tmp_path / "x.npy", np.arange(9, dtype=np.float32))
    files = ["--input", f"X={tmp_path / 'x.npy'}", "--output", f"Y={tmp_path / 'y.npy'}"]
    code, out, _ = run(capsys, "run", str(program), "--target", "ascend", "--simulate", *files)
    assert code == 0 and "written   Y" in out
    assert np.array_equal(np.load(tmp_path / "y.npy"), 2.0 * np.arange(9))


def test_a_byte_that_was_not_predicted_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def one_more(*arguments: Any) -> Any:
        found = right(*arguments)
        key = next(iter(found.moved))
        return replace(found, moved={**found.moved, key: found.moved[key] + 1})

    right = simulator.simulate
    monkeypatch.setattr(simulating, "simulate", one_more)
    output = tmp_path / "o.npy"
    for target in ("toy", "cpu"):
        code, out, err = run(capsys, "run", ATTENTION, "--target", target, "--simulate", *SMALL)
        assert code == 4 and "not ok" in out and "the simulation disagrees with the prediction" in err
    code, _, _ = run(capsys, "run", ATTENTION, "--target", "toy", "--simulate", *SMALL, "--output", f"O={output}")
    assert code == 4 and not output.exists()


def test_a_wrong_result_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(*arguments: Any) -> Any:
        found = right(*arguments)
        return replace(found, outputs={name: value + 1e-6 for name, value in found.outputs.items()})

    right = simulator.simulate
    monkeypatch.setattr(simulating, "simulate", shifted)
    code, out, err = run(capsys, "run", ATTENTION, "--target", "toy", "--simulate", *SMALL)
    assert code == 4 and "not ok" in out and "is not accurate enough" in err


def test_limits(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "run", ATTENTION, "--target", "scratchpad", "--simulate", "--dim", "m=1000000")
    assert (code, out) == (3, "") and "too many to simulate" in err
    tiles = [part for dim in ("m=64", "n=64", "d=64", "e=64") for part in ("--tile", dim)]
    code, out, err = run(capsys, "explain", ATTENTION, "--target", "toy", *SMALL, *tiles)
    assert (code, out) == (3, "") and "bytes are needed in local, which has 4,096" in err
    code, out, err = run(capsys, "run", ATTENTION, "--target", "toy", *SMALL)
    assert (code, out) == (3, "") and "`explain` and `run --simulate` work" in err
