"""What `blockc run --simulate` says about a simulated machine: for a person, as JSON, and what failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from blockc.errors import Problem, visible
from blockc.formatting import block_sizes, duration, listed, table
from blockc.simulating import Measured, SimulatedRun

FAULT = "this is a fault of blockc: please report it with the program, the sizes and the seed"


def failures(run: SimulatedRun) -> Iterator[Problem]:
    """What a run found to be wrong with its own result."""
    if not run.accurate:
        errors = f"max abs error {run.error:.3g}, bound {run.bound:.3g}"
        yield Problem("E0905", f"output `{run.output}` is not accurate enough: {errors}", None, FAULT)
    yield from disagreements(run.measured)


def disagreements(measured: Measured) -> Iterator[Problem]:
    """Byte counts that were not predicted."""
    if measured.difference:
        message = f"the simulation disagrees with the prediction: {measured.difference}"
        yield Problem("E0904", message, None, FAULT)


def as_json(run: SimulatedRun) -> dict[str, Any]:
    """The object that `blockc run --simulate --json` prints for a target without kernels."""
    crossings = run.measured.crossings
    return {
        "program": run.program,
        "target": run.target,
        "dims": dict(run.sizes),
        "parts": len(run.partition.parts),
        "kernels": run.kernels,
        "max_abs_error": run.error,
        "error_bound": run.bound,
        "ok": not any(failures(run)),
        "traffic_bytes": {
            "predicted": sum(crossing.predicted for crossing in crossings),
            "measured": sum(crossing.measured for crossing in crossings),
        },
        "machine": measured_json(run.measured),
    }


def measured_json(measured: Measured) -> dict[str, Any]:
    """Times, bytes across boundaries and space, predicted and measured."""
    return {
        "predicted_seconds": measured.predicted_seconds,
        "simulated_seconds": measured.simulated_seconds,
        "boundaries": [
            {
                "from": crossing.source,
                "to": crossing.destination,
                "predicted": crossing.predicted,
                "measured": crossing.measured,
            }
            for crossing in measured.crossings
        ],
        "space": [
            {
                "tier": space.tier,
                "predicted": space.predicted,
                "measured": space.measured,
                "capacity": space.capacity,
            }
            for space in measured.spaces
        ],
    }


def lines(run: SimulatedRun, files: Mapping[str, str]) -> Iterator[str]:
    """What `blockc run --simulate` prints for a person about a target without kernels."""
    parts = run.partition.parts
    yield f"program   {run.program}, simulated on {run.target}"
    yield f"sizes     {listed(run.sizes)}"
    if run.defaults:
        yield f"          {', '.join(run.defaults)}: default, give others with --dim"
    yield f"kernels   {run.kernels}, in {len(parts)} part{'s' if len(parts) > 1 else ''}"
    for part in parts:
        choice = part.plan.chosen.choice
        blocks = listed(block_sizes(choice.program, choice.tiles)) or "none"
        yield f"blocks    {blocks}, from snapshot {choice.snapshot}"
    yield from measured_lines(run.measured)
    yield f"error     {run.error:.3g} in {run.output}, bound {run.bound:.3g}, computed in float64"
    yield from (f"written   {name} to {visible(path)}" for name, path in files.items())
    yield "not ok" if any(failures(run)) else "ok"


def measured_lines(measured: Measured) -> Iterator[str]:
    """Times, bytes and space."""
    predicted, simulated = duration(measured.predicted_seconds), duration(measured.simulated_seconds)
    yield f"time      {predicted} predicted, {simulated} simulated"
    rows: list[tuple[str, ...]] = [("boundary", "bytes predicted", "counted")]
    for crossing in measured.crossings:
        way = f"{crossing.source} -> {crossing.destination}"
        rows.append((way, f"{crossing.predicted:,}", f"{crossing.measured:,}"))
    yield from table(rows, right=frozenset({1, 2}))
    rows = [("tier", "space predicted", "counted", "of")]
    for space in measured.spaces:
        rows.append((space.tier, f"{space.predicted:,}", f"{space.measured:,}", f"{space.capacity:,}"))
    yield from table(rows, right=frozenset({1, 2, 3}))
