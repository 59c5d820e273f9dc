"""What `blockc run` says about a run: for a person, as JSON, and what failed in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from blockc.accuracy import Comparison
from blockc.errors import Problem, visible
from blockc.running import Report, Simulation
from blockc.simulating import Measured
from blockc.simulation_report import FAULT, measured_json, measured_lines


def failures(report: Report, simulation: Simulation | None) -> Iterator[Problem]:
    """What a run found to be wrong with its own result."""
    yield from inaccurate(report.output, report.comparison)
    if simulation is not None and simulation.difference:
        message = f"the simulation disagrees with the prediction: {simulation.difference}"
        yield Problem("E0904", message, None, FAULT)


def inaccurate(output: str, compared: Comparison) -> Iterator[Problem]:
    """What is wrong with a kernel's output, if anything is."""
    if compared.max_abs_error > compared.bound:
        errors = f"max abs error {compared.max_abs_error:.3g}, bound {compared.bound:.3g}"
        yield Problem("E0905", f"output `{output}` is not accurate enough: {errors}", None, FAULT)
    elif not compared.ok:
        yield Problem("E0905", f"output `{output}` has NaN or infinities in the wrong places", None, FAULT)


def as_json(report: Report, simulation: Simulation | None, measured: Measured | None) -> dict[str, Any]:
    """The object that `blockc run --json` prints (design, section 10)."""
    traffic = {"predicted": report.predicted_bytes}
    if simulation is not None:
        traffic["measured"] = simulation.traffic_bytes
    return {
        "program": report.program,
        "target": report.target,
        **({"device": report.device} if report.device else {}),
        "dims": dict(report.sizes),
        "kernels": report.kernels,
        "seconds": report.seconds,
        "max_abs_error": report.comparison.max_abs_error,
        "error_bound": report.comparison.bound,
        "ok": not any(failures(report, simulation)) and (measured is None or not measured.difference),
        "traffic_bytes": traffic,
        **({"machine": measured_json(measured)} if measured is not None else {}),
    }


def lines(
    report: Report, simulation: Simulation | None, measured: Measured | None, files: Mapping[str, str]
) -> Iterator[str]:
    """What `blockc run` prints for a person."""
    compared = report.comparison
    plan = report.plan
    sizes = ", ".join(f"{dim}={size}" for dim, size in report.sizes.items())
    yield f"program   {report.program}, target {report.target}"
    if report.device:
        yield f"device    {report.device}"
    yield f"sizes     {sizes}"
    if report.defaults:
        yield f"          {', '.join(report.defaults)}: default, give others with --dim"
    yield f"kernels   {report.kernels}, from snapshot {plan.snapshot} of {len(plan.costs)}"
    yield f"time      {report.seconds * 1e3:.3f} ms, median of {report.runs} after one warm-up run"
    yield f"traffic   {report.predicted_bytes:,} bytes predicted"
    if simulation is not None:
        yield f"          {simulation.traffic_bytes:,} bytes counted by the interpreter"
    if measured is not None:
        yield "machine   the same program on the tiers of the target:"
        yield from measured_lines(measured)
    yield f"error     {compared.max_abs_error:.3g} in {report.output}, bound {compared.bound:.3g}"
    rows = ", ".join(f"{count:,} of {report.sizes[dim]:,} along {dim}" for dim, count in report.rows.items())
    yield f"checked   against the float64 meaning: {rows or 'every element'}"
    yield from (f"written   {name} to {visible(path)}" for name, path in files.items())
    failed = any(failures(report, simulation)) or (measured is not None and measured.difference)
    yield "not ok" if failed else "ok"
