"""The timeline of a simulated run as trace events: what Perfetto needs, and the simulator's own figures."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from blockc import driver, simulating
from blockc.cli import main
from blockc.codegen.timeline import timed
from blockc.machines.loading import load_machine
from blockc.running import Request
from blockc.trace_events import trace_json

ATTENTION = str(Path(__file__).parent.parent / "examples" / "attention.blk")
SIZES = {"b": 1, "h": 2, "m": 48, "n": 80, "d": 16, "e": 16}
PICOSECOND = 1e-6  # in microseconds


@cache
def simulated() -> simulating.SimulatedRun:
    program = driver.load_program(ATTENTION)
    tiles = {"m": 16, "n": 16, "d": 16, "e": 16}
    return simulating.run(Request(program, "toy", SIZES, tiles, {}, 0, None, {}, None), load_machine("toy"))


@cache
def events() -> tuple[dict[str, Any], ...]:
    measured = simulated().measured
    return tuple(json.loads(trace_json(measured.timelines, load_machine("toy"))))


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [event for event in events() if event["ph"] == kind]


def resources() -> dict[str, list[dict[str, Any]]]:
    """The spans of each resource, by its name."""
    processes = {e["pid"]: e["args"]["name"] for e in of_kind("M") if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in of_kind("M") if e["name"] == "thread_name"}
    found = defaultdict(list)
    for event in of_kind("X"):
        found[f"{processes[event['pid']]}, {threads[event['pid'], event['tid']]}"].append(event)
    return found


def test_resources_are_the_kernels_the_engines_of_units_and_what_the_device_has_once() -> None:
    ways = ["core", "dram>sram", "sram>local", "local>sram", "sram>dram"]
    device = ["kernels", "dram bus", "sram read", "sram write", "dram>sram", "sram>dram"]
    units = {f"unit {unit}, {way}" for unit in (0, 1) for way in ways}
    assert set(resources()) == units | {f"toy: device, {name}" for name in device}
    assert {event["ph"] for event in events()} == {"M", "X", "C"}


def test_events_of_one_resource_do_not_overlap() -> None:
    for name, spans in resources().items():
        assert all(span["dur"] >= 0 for span in spans)
        ordered = sorted(spans, key=lambda span: (span["ts"], span["ts"] + span["dur"]))
        for before, after in pairwise(ordered):
            assert before["ts"] + before["dur"] <= after["ts"] + PICOSECOND, name


def test_bytes_are_those_that_the_simulator_counts() -> None:
    moved: Counter[tuple[str, ...]] = Counter()
    for name, spans in resources().items():
        if name.startswith("unit") and ">" in name:
            moved[tuple(name.partition(", ")[2].split(">"))] += sum(span["args"]["bytes"] for span in spans)
    crossings = simulated().measured.crossings
    assert moved == {(way.source, way.destination): way.measured for way in crossings if way.measured}


def test_the_end_is_the_simulated_time() -> None:
    measured = simulated().measured
    end = max(event["ts"] + event["dur"] for event in of_kind("X"))
    assert end == pytest.approx(measured.simulated_seconds * 1e6, abs=PICOSECOND)
    assert max(event["ts"] for event in of_kind("C")) == pytest.approx(end, abs=PICOSECOND)
    kernels = resources()["toy: device, kernels"]
    assert sum(span["dur"] for span in kernels) == pytest.approx(end, abs=len(kernels) * PICOSECOND)
    assert min(event["ts"] for event in of_kind("X")) == 0


def test_engines_are_busy_as_long_as_the_simulator_says() -> None:
    busy: Counter[str] = Counter()
    for timeline in simulated().measured.timelines:
        busy.update(timed(timeline.trace, timeline.units, timeline.dispatch)[1])
    spent = {name.partition(", ")[2]: sum(span["dur"] for span in spans) for name, spans in resources().items()}
    spent["core"] = sum(span["dur"] for unit in (0, 1) for span in resources()[f"unit {unit}, core"])
    for engine in ("core", "dram bus", "sram read", "sram write"):
        assert spent[engine] == pytest.approx(busy[engine] * 1e6, rel=1e-4), engine


def test_counters_are_what_the_simulator_held() -> None:
    most: Counter[str] = Counter()
    last = {}
    for event in of_kind("C"):
        assert event["args"]["bytes"] >= 0
        most[event["name"]] = max(most[event["name"]], event["args"]["bytes"])
        last[event["pid"], event["name"]] = event["args"]["bytes"]
    dram, sram, local = simulated().measured.spaces
    assert 0 < most["bytes in dram"] <= dram.measured  # with what lies there for other parts
    assert (most["bytes in sram"], most["bytes in local"]) == (sram.measured, local.measured)
    assert set(last.values()) == {0}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(("run", *arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_run_writes_a_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "double.blk").write_text("program double(X: f32[m]) -> Y: f32[m] { Y = 2 * X }\n")
    for target in ("toy", "cpu"):
        path = tmp_path / f"{target}.json"
        arguments = [str(tmp_path / "double.blk"), "--target", target, "--dim", "m=64", "--trace", str(path)]
        code, out, _ = run(capsys, *arguments, "--simulate")
        assert code == 0 and f"written   the trace to {path}" in out
        moved = [event["args"]["bytes"] for event in json.loads(path.read_text()) if "bytes" in event.get("args", {})]
        assert 64 * 4 in moved


def test_a_trace_needs_a_simulation_and_a_place(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, ATTENTION, "--trace", str(tmp_path / "t.json"))
    assert (code, out) == (2, "") and "--simulate" in err and not list(tmp_path.iterdir())
    for path, reason in (("t.txt", "must end in .json"), ("no/t.json", "there is no folder")):
        code, _, err = run(capsys, ATTENTION, "--simulate", "--trace", str(tmp_path / path))
        assert code == 2 and reason in err
