"""A run on a simulated machine: what `blockc run --simulate` does for any target.

The chosen plan, part by part, is executed on the tiers that the machine has (`codegen/simulator.py`). Every byte that
crosses a boundary of two tiers is counted and compared with the prediction, and the result, which is computed in
float64, with the float64 meaning of the program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from blockc import meaning
from blockc.codegen.simulator import CapacityExceeded, simulate
from blockc.codegen.timeline import Timeline
from blockc.errors import LimitError, Problem
from blockc.ir import array_program
from blockc.ir.machine import Machine
from blockc.partition import Part, Partition, partition, resident
from blockc.passes.machine_cost import evaluate
from blockc.passes.machine_model import model
from blockc.running import SIMULATED_BLOCKS, SIMULATED_OPERATIONS, Request, inputs_for, iterations, sizes_for

Array = np.ndarray[Any, np.dtype[Any]]
RELATIVE = 1e-9  # of the largest magnitude of an output: all arithmetic is in float64


@dataclass(frozen=True, slots=True)
class Crossing:
    """Bytes from one tier to another."""

    source: str
    destination: str
    predicted: int
    measured: int


@dataclass(frozen=True, slots=True)
class Space:
    """The bytes that lay in a tier at the same time, and its capacity."""

    tier: str
    predicted: int
    measured: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What a simulation of some parts found. `difference` is the first byte count that was not predicted, or "";
    `timelines` are those of the parts, one after the other."""

    crossings: tuple[Crossing, ...]
    spaces: tuple[Space, ...]
    predicted_seconds: float
    simulated_seconds: float
    difference: str
    timelines: tuple[Timeline, ...]


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """A whole run: `error` is the largest difference from the float64 meaning, in `output`, of which `bound` may be."""

    program: str
    target: str
    sizes: Mapping[str, int]
    defaults: tuple[str, ...]
    partition: Partition
    measured: Measured
    outputs: Mapping[str, Array]
    output: str
    error: float
    bound: float

    @property
    def kernels(self) -> int:
        """How many kernels all parts have."""
        return sum(len(part.plan.cost.kernels) for part in self.partition.parts)

    @property
    def accurate(self) -> bool:
        """True if every output is right. A NaN where there should be none has an infinite error."""
        return self.error <= self.bound


def run(request: Request, machine: Machine) -> SimulatedRun:
    """Choose, simulate and check. LimitError for what takes too long, or does not fit."""
    sizes, defaults = sizes_for(request)
    found = partition(request.program, machine, sizes, request.tiles, request.split)
    for part in found.parts:
        check_work(part)
    arrays = inputs_for(request, sizes)
    outputs, measured = simulated(found, arrays)
    named = {result.argument.name: outputs[result.argument.name] for result in request.program.outputs}
    exact = meaning.evaluate(request.program, arrays)
    errors = {name: difference(named[name], exact[name]) for name in named}
    worst = max(errors, key=lambda name: errors[name][0] - errors[name][1])
    return SimulatedRun(
        request.program.name, request.target, sizes, defaults, found, measured, named, worst, *errors[worst]
    )


def of_kernels(request: Request, machine: Machine, sizes: Mapping[str, int], arrays: Mapping[str, Array]) -> Measured:
    """What the plan that kernels are made of moves on the simulated machine."""
    found = partition(request.program, machine, sizes, request.tiles, request.split)
    return simulated(found, arrays)[1]


def simulated(found: Partition, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], Measured]:
    """The results of all parts, one after the other, and what they moved. `arrays` are the inputs by name. LimitError
    if a tier overflows, as it may where blocks are chosen by fixed rules."""
    parts, machine = found.parts, found.machine
    known: dict[str, Array] = dict(arrays)
    moved: dict[tuple[str, str], list[int]] = {}
    held = {tier.name: [0, 0] for tier in machine.tiers}
    predicted_seconds = simulated_seconds = 0.0
    problem = ""
    timelines: list[Timeline] = []
    home = machine.tiers[0].name
    for part, others in zip(parts, resident(found), strict=True):
        plan = part.plan
        given = {argument.name: known[argument.name] for argument in part.program.inputs}
        predicted = evaluate(model(plan.schedule), plan.sizes, plan.chosen.choice.tiles, given)
        try:
            counted = simulate(plan.schedule, given, plan.sizes, plan.chosen.choice.tiles)
        except CapacityExceeded as error:
            hint = "smaller blocks (--tile) or sizes (--dim) need less"
            raise LimitError((Problem("E0292", str(error), None, hint),)) from error
        known.update(counted.outputs)
        timelines.append(counted.timeline)
        predicted_seconds += predicted.seconds
        simulated_seconds += counted.seconds
        for key in sorted(predicted.moved.keys() | counted.moved.keys()):
            value, source, destination = key
            pair = predicted.moved.get(key, 0), counted.moved.get(key, 0)
            if pair[0] != pair[1] and not problem:
                problem = f"`{value}` moves {pair[1]:,} bytes from {source} to {destination}, not {pair[0]:,}"
            total = moved.setdefault((source, destination), [0, 0])
            total[0], total[1] = total[0] + pair[0], total[1] + pair[1]
        for tier, most in held.items():
            more = others if tier == home else 0
            most[0] = max(most[0], predicted.peak.get(tier, 0) + more)
            most[1] = max(most[1], counted.peak[tier] + more)
    crossings = tuple(Crossing(*boundary, counts[0], counts[1]) for boundary, counts in moved.items())
    spaces = tuple(Space(tier.name, held[tier.name][0], held[tier.name][1], tier.capacity) for tier in machine.tiers)
    measured = Measured(crossings, spaces, predicted_seconds, simulated_seconds, problem, tuple(timelines))
    return known, measured


def check_work(part: Part) -> None:
    """LimitError for a part that the simulator would take minutes for."""
    plan = part.plan
    flops = sum(plan.cost.flops.values())
    tiles = plan.chosen.choice.tiles
    chosen = plan.chosen.choice.program
    steps = iterations(chosen.body, array_program.sizes(chosen, plan.sizes), tiles)
    if flops > SIMULATED_OPERATIONS or steps > SIMULATED_BLOCKS:
        message = f"{flops:,} operations in {steps:,} blocks are too many to simulate"
        limit = f"at most {SIMULATED_OPERATIONS:,} in {SIMULATED_BLOCKS:,}: give smaller sizes with --dim"
        raise LimitError((Problem("E0903", message, None, limit),))


def difference(found: Array, exact: Array) -> tuple[float, float]:
    """The largest error, infinite where only one of the two is a number or infinities differ; and what it may be."""
    wide = found.astype(np.float64)
    finite = np.isfinite(wide) & np.isfinite(exact)
    same = finite | (np.isnan(wide) & np.isnan(exact)) | (wide == exact)
    largest = float(np.max(np.abs(exact[finite]), initial=0.0))
    bound = RELATIVE * largest + np.finfo(np.float64).tiny
    if not np.all(same):
        return math.inf, bound
    return float(np.max(np.abs(wide[finite] - exact[finite]), initial=0.0)), bound
