"""The simulator's timeline of a part for a report: bytes held in each tier, and how busy what moves and computes is.

The chosen schedule is simulated at the sizes of the report or, where that takes too long, with the same blocks at
smaller ones, which the result names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from blockc.codegen.simulator import CapacityExceeded, SimulationError, simulate
from blockc.codegen.timeline import Timeline
from blockc.data import random_arrays, with_equals
from blockc.errors import visible
from blockc.formatting import listed
from blockc.inspector.report_costs import amount, time_text
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.machine import Machine
from blockc.ir.schedule import Loop, Schedule, Statement
from blockc.partition import Part
from blockc.trace_events import DEVICE, trace_events

OPERATIONS, STATEMENTS = 3 * 10**8, 4_000  # what takes about half a second
COLUMNS = 240  # of a diagram


def timeline_json(part: Part, share: float = 1.0) -> dict[str, Any]:
    """The timeline of a part, or why there is none. `share`: of the time that a whole report may take for this."""
    plan = part.plan
    sizes = affordable_sizes(part, share)
    if sizes is None:
        return {"why": "even one block along every dimension takes too long to simulate"}
    arrays = random_arrays(part.program, sizes, 0)
    try:
        found = simulate(plan.schedule, arrays, sizes, plan.chosen.choice.tiles)
    except (CapacityExceeded, SimulationError) as error:
        return {"why": visible(str(error))}
    same = all(sizes[dim] == plan.sizes[dim] for dim in sizes)
    return {
        "why": "",
        "sizes": visible(listed(sizes)),
        "smaller": not same,
        "seconds": time_text(found.seconds),
        **diagram(found.timeline, plan.machine, found.seconds),
    }


def affordable_sizes(part: Part, share: float) -> dict[str, int] | None:
    """The sizes of a plan, the largest numbers of blocks halved until simulating takes no longer than it may."""
    plan = part.plan
    program, tiles = plan.chosen.choice.program, plan.chosen.choice.tiles
    sizes = dict(plan.sizes)
    fixed = {dim.name for dim in part.program.dims if dim.size is not None}
    open_dims = replace(part.program, dims=tuple(replace(dim, size=None) for dim in part.program.dims))
    equal = {dim: with_equals(open_dims, {dim: 1}).keys() for dim in sizes}
    free = [dim for dim in sizes if not fixed & equal[dim]]
    flops = float(sum(plan.cost.flops.values()))
    while True:
        known = complete_sizes(program, sizes)
        statements = sum(executed(plan.schedule, kernel, known, tiles) for kernel in plan.schedule.kernels)
        if flops <= OPERATIONS * share and statements <= STATEMENTS * share:
            return sizes
        blocks = {dim: -(-sizes[dim] // max(1, tiles.get(dim, sizes[dim]))) for dim in free}
        most = max(blocks, key=lambda dim: blocks[dim], default=None)
        if most is None or blocks[most] < 2:
            return sizes if flops <= OPERATIONS and statements <= STATEMENTS else None
        smaller = max(1, blocks[most] // 2) * tiles[most]
        flops *= smaller / sizes[most]
        sizes |= {dim: smaller for dim in equal[most] if dim in sizes}


def executed(
    schedule: Schedule, statements: Sequence[Statement], sizes: Mapping[str, int], tiles: Mapping[str, int]
) -> int:
    """How many statements of a schedule are executed, as if conditions left out nothing."""
    total = 0
    for statement in statements:
        total += 1
        if isinstance(statement, Loop):
            dim = statement.dim
            tile = max(1, tiles.get(dim, sizes[dim]))
            inside = {**sizes, schedule.program.chunks[dim]: tile} if dim in schedule.program.chunks else sizes
            total += max(1, -(-sizes[dim] // tile)) * executed(schedule, statement.body, inside, tiles)
    return total


def diagram(timeline: Timeline, machine: Machine, seconds: float) -> dict[str, Any]:
    """Series in columns of equal time: the most bytes held in a tier, and for what part of it engines are busy."""
    processes: dict[tuple[int, int], str] = {}
    busy: dict[str, list[float]] = {}
    users: dict[str, set[int]] = {}
    held: dict[str, dict[int, list[tuple[float, int]]]] = {}
    step = max(seconds, 1e-12) * 1e6 / COLUMNS
    events = list(trace_events([timeline], machine))
    for event in events:
        if event["ph"] == "M" and event["name"] == "thread_name":
            processes[event["pid"], event["tid"]] = event["args"]["name"]
    everyone = {(process, name) for (process, _), name in processes.items()}
    for event in events:
        if event["ph"] == "X":
            name = processes[event["pid"], event["tid"]]
            once = (DEVICE, name) in everyone  # what the device has once, units only wait for
            if name != "kernels" and (event["pid"] == DEVICE or not once):
                users.setdefault(name, set()).add(event["pid"])
                _fill(busy.setdefault(name, [0.0] * COLUMNS), event["ts"] / step, (event["ts"] + event["dur"]) / step)
        elif event["ph"] == "C":
            tier = event["name"].removeprefix("bytes in ")
            held.setdefault(tier, {}).setdefault(event["pid"], []).append((event["ts"] / step, event["args"]["bytes"]))
    tiers = {tier.name: tier for tier in machine.tiers}
    computing = {unit.name for unit in machine.compute}
    return {
        "held": [
            {
                "name": visible(name),
                "most": amount(max(series, default=0), "B"),
                "capacity": amount(tiers[name].capacity, "B"),
                "values": series,
                "each": tiers[name].scope == "unit",
            }
            for name in (tier.name for tier in machine.tiers if tier.name in held)
            for series in [_most(held[name].values())]
        ],
        "busy": [
            {
                "name": visible(name.replace(">", " → ")),
                "share": sum(series) / COLUMNS / max(1, len(users[name])),
                "values": [round(min(1.0, value / max(1, len(users[name]))), 3) for value in series],
                "each": len(users[name]),
            }
            for name, series in sorted(busy.items(), key=lambda pair: (pair[0] not in computing, pair[0]))
        ],
    }


def _fill(series: list[float], begin: float, end: float) -> None:
    """Add the time from `begin` to `end`, in columns."""
    for column in range(max(0, int(begin)), min(COLUMNS, int(end) + 1)):
        series[column] += max(0.0, min(end, column + 1) - max(begin, column))


def _most(processes: Any) -> list[int]:
    """The most that one of several processes holds in each column."""
    series = [0] * COLUMNS
    for changes in processes:
        ends: Sequence[tuple[float, int]] = [*changes, (float(COLUMNS), 0)]
        for (begin, value), (end, _) in pairwise(ends):
            for column in range(int(begin), min(COLUMNS, max(int(begin) + 1, -int(-end // 1)))):
                series[column] = max(series[column], value)
    return series
