"""What a schedule costs on its machine: bytes across every boundary of two tiers, peaks, work, and predicted time.

From a model (`machine_model.py`) come exact whole numbers for one choice of tiles, and estimates of seconds and peaks
for many choices at once, as arrays.

Time, for each kernel: units move and compute at the same time, so it takes as long as its slowest resource, the
bottleneck: a way between tiers, the reading or writing of a tier (its bus, where they take turns), or a compute unit,
which does one operation after the other. With fewer tasks than units, or a number that they do not share evenly, units
idle: their resources are slower by that much. A load waits for computing, instead of going on beside it, if no tier on
its way has a second buffer or is a cache. What computes in tiles of fixed sizes computes whole ones.

Bytes are counted as if every task loaded for itself. For time, a tile that several tasks load is taken to come once
into a cache that they share, if they run at the same time; those are taken to be neighbours along the dimensions along
which something is shared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.machine import ComputeUnit, Machine, Rate, Tier
from blockc.passes.cost import Count
from blockc.passes.live_blocks import NO_TABLES, Arrays, live, tables_of
from blockc.passes.machine_model import Boundary, Held, KernelModel, Model, Work
from blockc.passes.units import closest

if TYPE_CHECKING:
    import sympy

Numbers = NDArray[np.float64]  # one number for each choice of tiles
FEW = 256  # blocks along a dimension, at most, for estimates of what conditions leave


@dataclass(frozen=True, slots=True)
class KernelCost:
    """Predicted seconds of a kernel, dispatch included, the resource that it waits for, and its parallel tasks.

    `resources` are the seconds that each would take on its own.
    """

    seconds: float
    bottleneck: str
    tasks: int
    resources: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MachineCost:
    """What a schedule costs: bytes by value and boundary, operations by unit, bytes that lie in a tier at the same
    time, and predicted seconds."""

    kernels: tuple[KernelCost, ...]
    moved: Mapping[tuple[str, str, str], int]
    flops: Mapping[str, int]
    special: Mapping[str, int]
    peak: Mapping[str, int]
    seconds: float

    @property
    def boundaries(self) -> dict[Boundary, int]:
        """Bytes by boundary."""
        result: dict[Boundary, int] = {}
        for (_, source, destination), count in self.moved.items():
            result[source, destination] = result.get((source, destination), 0) + count
        return result

    @property
    def bottleneck(self) -> str:
        """The resource that the longest kernel waits for."""
        return max(self.kernels, key=lambda kernel: kernel.seconds).bottleneck if self.kernels else ""


# Exact figures


def formulas(model: Model) -> dict[Boundary, sympy.Expr]:
    """The bytes across each boundary: a name is a size, B_x a number of blocks, live(x) what conditions leave of x."""
    import sympy

    result: dict[Boundary, sympy.Expr] = {}
    for kernel in model.kernels:
        for move in kernel.moved:
            added = sympy.Add(*(move.itemsize * count.symbol() for count in move.counts))
            result[move.boundary] = result.get(move.boundary, sympy.Integer(0)) + added
    return result


def evaluate(
    model: Model, sizes: Mapping[str, int], tiles: Mapping[str, int], arrays: Arrays | None = None
) -> MachineCost:
    """The costs for some sizes and tiles, in elements. Loops that leave out blocks by what an input holds are counted
    for `arrays`; without, as if they left out none."""
    sizes = complete_sizes(model.program, sizes)
    tiles = {dim: tile for dim, tile in tiles.items() if dim not in model.program.whole}
    tables = NO_TABLES if arrays is None else tables_of(model.program, sizes, arrays)
    moved: dict[tuple[str, str, str], int] = {}
    flops: dict[str, int] = {}
    special: dict[str, int] = {}
    values: dict[Count, int] = {}

    def value(count: Count) -> int:
        if count not in values:
            values[count] = count.value(sizes, tiles, tables)
        return values[count]

    for kernel in model.kernels:
        for move in kernel.moved:
            key = (move.value, *move.boundary)
            moved[key] = moved.get(key, 0) + move.itemsize * sum(map(value, move.counts))
        for work in kernel.work:
            count = value(work.count)
            flops[work.unit] = flops.get(work.unit, 0) + work.flops * count
            special[work.unit] = special.get(work.unit, 0) + work.special * count
    found = estimate(model, sizes, {dim: np.array([float(tile)]) for dim, tile in tiles.items()})
    kernels = tuple(
        KernelCost(
            float(kernel.seconds[0]),
            kernel.bottleneck(0),
            int(kernel.tasks[0]),
            {name: float(seconds[0]) for name, seconds in kernel.resources.items()},
        )
        for kernel in found.kernels
    )
    peak = {tier: int(space[0]) for tier, space in found.peak.items()}
    return MachineCost(kernels, moved, flops, special, peak, float(found.seconds[0]))


# Estimates, for many choices of tiles at once


@dataclass(frozen=True, slots=True)
class KernelEstimate:
    """Seconds, tasks, and seconds by resource, for each choice of tiles."""

    seconds: Numbers
    tasks: Numbers
    resources: Mapping[str, Numbers]

    def bottleneck(self, at: int) -> str:
        """The slowest resource for one choice."""
        return max(self.resources, key=lambda name: float(self.resources[name][at])) if self.resources else "dispatch"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds and, by tier, the bytes that lie there at the same time, for each choice of tiles."""

    kernels: tuple[KernelEstimate, ...]
    seconds: Numbers
    peak: Mapping[str, Numbers]

    def fits(self, machine: Machine) -> NDArray[np.bool_]:
        """Whether every tier holds what has to lie there."""
        held = [self.peak[tier.name] <= tier.capacity for tier in machine.tiers if tier.name in self.peak]
        return np.logical_and.reduce(held) if held else np.ones(self.seconds.shape, bool)


def estimate(model: Model, sizes: Mapping[str, int], tiles: Mapping[str, Numbers]) -> Estimate:
    """Seconds and peaks. `tiles` has the block size of every dimension that is cut, for each choice."""
    cut = {dim: numbers for dim, numbers in tiles.items() if dim not in model.program.whole}
    return _Estimator(model, complete_sizes(model.program, sizes), cut).estimate()


@dataclass
class _Estimator:
    model: Model
    sizes: Mapping[str, int]
    tiles: Mapping[str, Numbers]

    def __post_init__(self) -> None:
        lengths = [len(numbers) for numbers in self.tiles.values()]
        self.length = max(lengths, default=1)
        self.ones, self.zeros = np.ones(self.length), np.zeros(self.length)
        self.tiers = {tier.name: tier for tier in self.model.machine.tiers}
        self.ways = {(move.source, move.destination): move for move in self.model.machine.moves}
        self.blocks = {dim: np.ceil(self.base_size(dim) / tile) for dim, tile in self.tiles.items()}
        self.extents = {dim: np.minimum(float(self.base_size(dim)), tile) for dim, tile in self.tiles.items()}
        self.left: dict[tuple[Any, ...], Numbers] = {}
        self.values: dict[Count, Numbers] = {}
        self.padding: dict[tuple[object, ...], Numbers] = {}

    def base_size(self, dim: str) -> int:
        return self.sizes[self.model.program.chunks.get(dim, dim)]

    def estimate(self) -> Estimate:
        peak: dict[str, Numbers] = {}
        kernels = []
        for kernel in self.model.kernels:
            tasks = math.prod((self.blocks[dim] for dim in kernel.tasks), start=self.ones)
            every = dict.fromkeys(space for _, spaces in kernel.points for space in spaces)
            taken = {space: self.space(space, tasks) for space in every}
            for tier, spaces in kernel.points:
                total = sum((taken[space] for space in spaces), self.zeros)
                peak[tier] = np.maximum(peak.get(tier, 0.0), total)
            kernels.append(self.kernel(kernel, tasks))
        seconds = sum((kernel.seconds for kernel in kernels), self.zeros)
        return Estimate(tuple(kernels), seconds, peak)

    def space(self, held: Held, tasks: Numbers) -> Numbers:
        """The bytes of a tile or list, as its tier aligns them, of all tasks that run at the same time."""
        tier = self.tiers[held.tier]
        elements: Numbers | float = 1.0
        for axis in held.axes:
            chunk = next((dim[:-1] for dim in held.lists if dim.endswith(":") and self.chunk_of(dim) == axis), None)
            if chunk is not None:
                elements = elements * self.extents[chunk]
            elif axis in held.lists or axis not in self.tiles:
                elements = elements * self.sizes[axis]
            else:
                elements = elements * self.extents[axis]
            if held.piece is not None and held.piece[0] == axis:
                elements = elements * np.minimum(1.0, held.piece[1] / self.extents[axis])
        for dim in held.lists:
            if dim.endswith(":") and self.chunk_of(dim) not in held.axes:
                elements = elements * np.ceil(self.extents[dim[:-1]] / self.tiles[self.chunk_of(dim)])
            elif not dim.endswith(":") and dim not in held.axes:
                elements = elements * self.blocks[dim]
        size = np.ceil(elements * held.itemsize / tier.alignment) * tier.alignment * held.copies
        if tier.scope == "device" and not held.shared:
            size = size * np.minimum(tasks, self.model.machine.units)
        return size * self.ones

    def chunk_of(self, dim: str) -> str:
        return self.model.program.chunks[dim[:-1]]

    def value(self, count: Count) -> Numbers:
        """A number of elements."""
        if count not in self.values:
            self.values[count] = self.count(count, {})
        return self.values[count]

    def shared(self, count: Count, neighbours: Mapping[str, Numbers]) -> Numbers:
        """A number of elements if tasks next to one another along some dimensions load together what any of them
        needs: where conditions depend on such a dimension, they do not need the same."""
        groups = {dim: np.ceil(numbers) for dim, numbers in neighbours.items() if dim in count.bounded}
        loads = self.count(count, groups) if groups else self.value(count)
        return loads / math.prod((neighbours[dim] for dim in neighbours if dim not in groups), start=self.ones)

    def count(self, count: Count, groups: Mapping[str, Numbers]) -> Numbers:
        """A number of elements, with some blocks in groups of so many."""
        number: Numbers | float = float(count.times)
        bounded = count.bounded.intersection(self.tiles)
        for dim in count.sizes:
            if dim not in bounded:
                number = number * self.sizes[dim]
        for dim in count.blocks:
            if dim not in bounded:
                number = number * self.blocks[dim]
        for dim in count.again:
            number = number * np.maximum(0.0, self.blocks[dim] - 1)
        return number * (self.live(count, groups) if count.where else self.ones)

    def live(self, count: Count, groups: Mapping[str, Numbers]) -> Numbers:
        """What conditions leave, found for blocks that are not too many, and in proportion for smaller ones."""
        bounded = sorted(count.bounded.intersection(self.tiles))
        along = tuple(dim for dim in bounded if dim in count.sizes)
        key = (count.where, along, *((dim, tuple(numbers)) for dim, numbers in sorted(groups.items())))
        if key not in self.left:
            result = self.ones.copy()
            for at in range(self.length):
                tiles = {dim: int(self.tiles[dim][min(at, len(self.tiles[dim]) - 1)]) for dim in bounded}
                tiles |= {dim: tiles[dim] * int(numbers[at]) for dim, numbers in groups.items()}
                coarse = {dim: max(tile, -(-self.sizes[dim] // FEW)) for dim, tile in tiles.items()}
                scale = math.prod(
                    -(-self.sizes[dim] // tiles[dim]) / max(1, -(-self.sizes[dim] // coarse[dim]))
                    for dim in bounded
                    if dim not in along
                )
                result[at] = live(count.where, along, self.sizes, coarse) * scale
            self.left[key] = result
        return self.left[key]

    def kernel(self, kernel: KernelModel, tasks: Numbers) -> KernelEstimate:
        """The seconds of a kernel and of its resources."""
        machine = self.model.machine
        waves = np.ceil(tasks / machine.units)
        busy = np.where(tasks > 0, tasks / np.maximum(1.0, waves), 1.0)  # units, on average
        resources: dict[str, Numbers] = {}
        waiting = self.zeros
        neighbours = self.neighbours(kernel, tasks)

        def add(resource: str, seconds: Numbers) -> None:
            resources[resource] = resources.get(resource, 0.0) + seconds

        for moved in kernel.moved:
            source, destination = (self.tiers[name] for name in moved.boundary)
            together: Mapping[str, Numbers] = {}
            if _is_shared_cache(destination) and source.scope == "device":
                repeated = set.intersection(*(set(count.blocks) for count in moved.counts))
                together = {dim: neighbours[dim] for dim in neighbours if dim in repeated}
            loads = (self.shared(count, together) for count in moved.counts)
            bytes_ = sum(loads, self.zeros) * moved.itemsize
            private = "unit" in (source.scope, destination.scope)
            seconds = bytes_ / self.ways[moved.boundary].bandwidth / (busy if private else 1.0)
            if moved.waits:
                waiting = waiting + seconds + self.value(moved.times) * source.latency / busy
            add(f"{source.name} -> {destination.name}", seconds)
            add(_port(source, "reading"), bytes_ / source.read / (busy if source.scope == "unit" else 1.0))
            add(
                _port(destination, "writing"),
                bytes_ / destination.write / (busy if destination.scope == "unit" else 1.0),
            )
        share = busy / machine.units
        for work in kernel.work:
            add(f"computing on {work.unit}", self.seconds(work) / share + self.value(work.calls) * machine.call / busy)
        for name in list(resources):
            if name.startswith("computing on "):
                resources[name] = resources[name] + waiting
        slowest = np.maximum.reduce(list(resources.values())) if resources else self.zeros
        return KernelEstimate(slowest + machine.dispatch, tasks, resources)

    def neighbours(self, kernel: KernelModel, tasks: Numbers) -> dict[str, Numbers]:
        """How many tasks run at the same time along each parallel dimension along which tiles are shared."""
        found = {dim for moved in kernel.moved for count in moved.counts for dim in count.blocks}
        dims = [dim for dim in kernel.tasks if dim in found]
        left = np.maximum(1.0, np.minimum(tasks, self.model.machine.units))
        result = {}
        for at, dim in enumerate(dims):
            result[dim] = np.minimum(np.maximum(1.0, self.blocks[dim]), left ** (1 / (len(dims) - at)))
            left = left / result[dim]
        return result

    def seconds(self, work: Work) -> Numbers:
        """The seconds of an operator if all units are busy."""
        unit = next(unit for unit in self.model.machine.compute if unit.name == work.unit)
        elements = self.value(work.count)
        rate = unit.operations[work.operation][work.rated]
        seconds = elements * work.flops * self.padded(work, rate) / rate.rate
        if work.special:
            special = special_rate(unit, work.rated) or rate
            seconds = seconds + elements * work.special * self.padded(work, special) / special.rate
        return seconds

    def padded(self, work: Work, rate: Rate) -> Numbers:
        """How many times as many elements are computed, as the unit computes whole tiles."""
        key = (rate.tile, work.steps)
        if key not in self.padding:
            factor = self.ones
            for step, axes in zip(rate.tile, work.steps, strict=False):
                extent = math.prod((self.extents.get(axis, float(self.sizes[axis])) for axis in axes), start=self.ones)
                factor = factor * np.ceil(extent / step) * step / np.maximum(1.0, extent)
            self.padding[key] = factor
        return self.padding[key]


def _port(tier: Tier, doing: str) -> str:
    """The resource of a tier for reading or writing: its bus for both where they take turns."""
    return f"{doing if tier.duplex == 'full' else 'bus of'} {tier.name}"


def _is_shared_cache(tier: Tier) -> bool:
    return tier.kind == "cache" and tier.scope == "device"


def special_rate(unit: ComputeUnit, dtype: str) -> Rate | None:
    """The rate of special functions of a unit, for the type or the nearest wider one; None if it has none."""
    rates = unit.operations.get("special", {})
    found = closest(rates, dtype) or next(iter(rates), None)
    return rates[found] if found is not None else None
