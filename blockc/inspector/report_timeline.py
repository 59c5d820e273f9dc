"""The simulator's timeline of a part for a report: bytes held in each tier, and how busy what moves and computes is.

The chosen schedule is simulated at the sizes of the report or, where that takes too long, with the same blocks at
smaller ones, which the result names.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from blockc.codegen.simulator import CapacityExceeded, Simulation, SimulationError, simulate
from blockc.codegen.timeline import Placed, Timeline
from blockc.data import random_arrays, with_equals
from blockc.errors import visible
from blockc.formatting import listed
from blockc.inspector.report_costs import amount, time_text
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.machine import Machine
from blockc.ir.schedule import Loop, Pieces, Schedule, Statement
from blockc.partition import Part

OPERATIONS, STATEMENTS = 3 * 10**8, 4_000  # what takes about half a second
COLUMNS = 240  # of a diagram
DEVICE = -1  # beside the numbers of units: what there is once


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
        **diagram(found, plan.machine),
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
        elif isinstance(statement, Pieces):
            count = -(-tiles.get(statement.dim, sizes[statement.dim]) // statement.step)
            total += count * executed(schedule, statement.body, sizes, tiles)
    return total


def diagram(simulation: Simulation, machine: Machine) -> dict[str, Any]:
    """Series in columns of equal time: the most bytes held in a tier, and for what part engines are busy."""
    placed = sorted(simulation.timeline.events(), key=lambda one: one.number)
    step = max(simulation.seconds, 1e-12) / COLUMNS
    busy: dict[str, list[float]] = {}
    users: dict[str, set[int]] = {}
    for one in placed:
        taken = {name: (since, until) for name, since, until in one.shared}
        for name, (since, until) in ({one.event.engine: (one.begin, one.end)} | taken).items():
            users.setdefault(name, set()).add(DEVICE if name in taken else one.unit)
            _fill(busy.setdefault(name, [0.0] * COLUMNS), since / step, until / step)
    computing = {unit.name for unit in machine.compute}
    shared = {tier.name for tier in machine.tiers if tier.scope == "device"}
    held = _held(simulation.timeline, placed, step, shared)
    return {
        "held": [
            {
                "name": visible(tier.name),
                "most": amount(simulation.peak[tier.name], "B"),
                "capacity": amount(tier.capacity, "B"),
                "top": max(simulation.peak[tier.name], *held[tier.name]),
                "values": held[tier.name],
                "each": tier.scope == "unit",
            }
            for tier in machine.tiers
            if tier.name in held
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


def _held(timeline: Timeline, placed: Sequence[Placed], step: float, shared: Collection[str]) -> dict[str, list[int]]:
    """By tier the most that is held in each column, of one unit where each has its own: what is taken at all times, and
    what tasks take from when its first operation begins until all operations before its release are over."""
    there = np.array([one.there for one in placed])
    changes: dict[tuple[str, int], dict[float, int]] = {}
    for room in timeline.trace.rooms:
        last = len(placed) if room.last is None else room.last
        if room.first >= last:
            continue
        begin = placed[room.first].begin if room.in_task or room.first else 0.0
        end = float(there[room.first : last].max()) if room.last is not None else step * COLUMNS
        unit = placed[room.first].unit if room.in_task and room.tier not in shared else DEVICE
        taken = changes.setdefault((room.tier, unit), {})
        taken[begin] = taken.get(begin, 0) + room.size
        taken[end] = taken.get(end, 0) - room.size
    result: dict[str, list[int]] = {}
    for (tier, _), taken in changes.items():
        series = result.setdefault(tier, [0] * COLUMNS)
        times = sorted(taken)
        levels = accumulate(taken[time] for time in times)
        for (begin, end), level in zip(pairwise([*times, step * COLUMNS]), levels, strict=True):
            for column in range(int(begin / step), min(COLUMNS, max(int(begin / step) + 1, math.ceil(end / step)))):
                series[column] = max(series[column], level)
    return result
