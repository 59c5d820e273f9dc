"""A machine in software: a schedule is executed on a tiered memory that refuses to overflow, and every byte is counted.

Data lie where the schedule puts them and nowhere else: an operator reads what is in the tiers that it names, and data
get there along the ways of the machine only. The numbers are exact (float64); types say how many bytes they take. It
needs no hardware and shares nothing with what predicts costs, so that the two check one another.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from blockc.codegen.simulated_units import Count, applied, combined, seconds
from blockc.codegen.storages import Cut, Part, Stored, elements, empty, extents
from blockc.codegen.tiered_memory import CapacityExceeded, Held, SimulationError, Slot, TieredMemory
from blockc.codegen.timeline import Timeline, Trace, timed
from blockc.ir.arithmetic import FLOAT64, Array
from blockc.ir.block import (
    operand_names,
)
from blockc.ir.conditions import readings
from blockc.ir.dtypes import DTYPES
from blockc.ir.machine import ComputeUnit
from blockc.ir.monoids import MONOIDS
from blockc.ir.schedule import Combine, Compute, Copy, Loop, Move, Pieces, Schedule, Stage, Statement, Storage, walk
from blockc.ir.tile_operators import Blocks, Tile, TileOperators, cut, extent

__all__ = ["CapacityExceeded", "Simulation", "SimulationError", "simulate"]


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a run on a simulated machine gave.

    `outputs` by argument name, in declared axis order; `moved` bytes by value (the name of a list or a tile), and the
    tiers from and to which they moved directly; `peak` bytes by tier (of one unit, where each has its own); `flops` and
    `special` operations by compute unit; `kernels` are the seconds of each, `busy` those of the engines, added up over
    units; `timeline` says what happens when.
    """

    outputs: dict[str, Array]
    moved: dict[tuple[str, str, str], int]
    peak: dict[str, int]
    flops: dict[str, int]
    special: dict[str, int]
    kernels: tuple[float, ...]
    busy: dict[str, float]
    timeline: Timeline

    @property
    def seconds(self) -> float:
        """From the first dispatch to the end of the last kernel."""
        return sum(self.kernels)

    @property
    def boundaries(self) -> dict[tuple[str, str], int]:
        """The bytes moved by the tiers from and to which they moved."""
        total: Counter[tuple[str, str]] = Counter()
        for (_, source, destination), count in self.moved.items():
            total[source, destination] += count
        return dict(total)


def simulate(
    schedule: Schedule, arrays: Mapping[str, Array], sizes: Mapping[str, int], tiles: Mapping[str, int]
) -> Simulation:
    """Execute a schedule. `arrays` by argument name; `sizes` and `tiles` in elements.

    CapacityExceeded if a tier is too small for it; SimulationError for a schedule that its machine cannot execute.
    """
    known, blocks = cut(schedule.program, sizes, tiles)
    simulator = _Simulator(schedule, Cut(schedule.program, known, blocks))
    with np.errstate(all="ignore"):
        simulator.run(arrays)
        outputs = {
            result.argument.name: simulator.output(result.value, result.argument.dims).reshape(
                [math.prod(known[dim] for dim in axis) for axis in result.argument.axes]
            )
            for result in schedule.program.outputs
        }
    simulator.memory.close()
    units, dispatch = schedule.machine.units, schedule.machine.dispatch
    kernels, busy = timed(simulator.trace, units, dispatch)
    timeline = Timeline(simulator.trace, units, dispatch, kernels)
    moved = {key: count for key, count in sorted(simulator.moved.items()) if count}
    peak, flops, special = dict(simulator.memory.peak), dict(simulator.flops), dict(simulator.special)
    return Simulation(outputs, moved, peak, flops, special, kernels, busy, timeline)


@dataclass(slots=True)
class _Iterations:
    """A loop that is being executed: its dimension, and how many iterations have taken part so far."""

    dim: str
    done: int = 0


@dataclass
class _Simulator:
    schedule: Schedule
    cut: Cut
    moved: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    flops: Counter[str] = field(default_factory=Counter)
    special: Counter[str] = field(default_factory=Counter)
    trace: Trace = field(default_factory=Trace)
    storages: dict[str, Stored] = field(default_factory=dict)
    loops: list[_Iterations] = field(default_factory=list)

    def __post_init__(self) -> None:
        program, machine = self.schedule.program, self.schedule.machine
        self.types = program.types
        self.operators = TileOperators(program, self.cut.sizes, FLOAT64)
        self.memory = TieredMemory(machine, self.trace)
        self.ways = {(move.source, move.destination): move for move in machine.moves}
        self.units = {unit.name: unit for unit in machine.compute}
        self.aliases = {rename.name: rename for rename in self.schedule.aliases}

    # The whole program

    def run(self, arrays: Mapping[str, Array]) -> None:
        """All kernels, one after the other."""
        inputs = {entry.name: entry for entry in self.schedule.program.inputs}
        between = {storage.name: storage for storage in self.schedule.storages}
        for name in [name for name in between if name in inputs]:
            dims, storage = inputs[name].dims, between.pop(name)
            stored = self.make(storage, {})
            array = np.asarray(arrays[inputs[name].argument]).reshape([self.cut.sizes[dim] for dim in dims])
            ordered = np.transpose(array, [dims.index(axis) for axis in storage.axes])
            stored.write(stored.part(self.cut, {}), FLOAT64.encode(ordered, storage.dtype), None)
        for number, kernel in enumerate(self.schedule.kernels):
            for name, storage in between.items():
                if self.schedule.lives[name][0] == number:
                    self.make(storage, {})
            self.trace.kernel()
            before = self.live()
            for statement in kernel:
                self.statement(statement, {})
            self.check_nothing_left(before, f"kernel {number}")
            for name, storage in between.items():
                if self.schedule.lives[name][1] == number:
                    self.release((name, storage.tier))

    def output(self, name: str, dims: tuple[str, ...]) -> Array:
        """The array of an output."""
        stored = self.stored(name)
        tile = stored.read(stored.part(self.cut, {}))
        return np.transpose(tile.array, [tile.axes.index(dim) for dim in dims])

    def live(self) -> set[Copy]:
        """The tiles and storages that there are."""
        return {*self.memory.tiles, *((f"list {name}", held.storage.tier) for name, held in self.storages.items())}

    def check_nothing_left(self, before: set[Copy], where: str) -> None:
        """SimulationError if there is more than before, or less."""
        after = self.live()
        for name, tier in sorted(after - before):
            raise SimulationError(f"`{name}` is left over in {tier} at the end of {where}")
        for name, tier in sorted(before - after):
            raise SimulationError(f"`{name}` in {tier} is released in {where}, outside of which it was made")

    # Storages

    def make(self, storage: Storage, blocks: Blocks, copies: int = 1) -> Stored:
        """A new storage, for what this place can see of a list."""
        if storage.name in self.storages:
            raise SimulationError(f"the list `{storage.name}` exists already")
        covered = extents(storage, self.cut, blocks)
        size = elements(covered) * DTYPES[storage.dtype].size
        slot, _ = self.memory.allocate(storage.name, storage.tier, size, copies)
        stored = self.storages[storage.name] = empty(storage, covered, slot)
        return stored

    def stored(self, name: str) -> Stored:
        """A storage, or an alias of one."""
        if name in self.aliases:
            rename, kind = self.aliases[name], self.types[name]
            source = self.stored(rename.source)
            storage = Storage(name, source.storage.tier, kind.dtype, kind.lists, kind.axes)
            return source.renamed(storage, rename.old, rename.new)
        if name not in self.storages:
            raise SimulationError(f"there is no list `{name}`")
        return self.storages[name]

    def reach(self, name: str, tier: str) -> Stored:
        """A storage that this unit can see in a tier."""
        stored = self.stored(name)
        slot = stored.slot
        if slot.tier != tier:
            raise SimulationError(f"the list `{name}` is in {slot.tier}, not in {tier}")
        if self.memory.in_task and not slot.in_task and not self.memory.is_shared(tier):
            raise SimulationError(f"the list `{name}` is in the {tier} of another unit")
        return stored

    def release(self, copy: Copy) -> None:
        """A tile or a storage is not needed any more."""
        name, tier = copy
        if copy not in self.memory.tiles and name in self.storages and self.storages[name].slot.tier == tier:
            self.memory.free(self.storages.pop(name).slot)
        else:
            self.memory.free(self.memory.take(name, tier).slot)

    # Statements

    def statement(self, statement: Statement, blocks: Blocks) -> None:
        """Execute a statement, where loops are at some blocks, and release what it was the last to need."""
        match statement:
            case Move():
                self.move(statement, blocks)
            case Stage():
                self.stage(statement, blocks)
            case Compute():
                self.compute(statement, blocks)
            case Combine():
                self.combine(statement)
            case Loop() if statement.parallel:
                self.parallel(statement, blocks)
            case Loop():
                self.loop(statement, blocks)
            case Pieces():
                self.pieces(statement, blocks)
        for copy in statement.releases:
            self.release(copy)

    def parallel(self, loop: Loop, blocks: Blocks) -> None:
        """The tasks of parallel loops, each with memory of its own."""
        if self.memory.in_task or self.loops:
            raise SimulationError(f"the parallel loop over {loop.dim} is inside of a task or a loop")
        tasks = list(self.tasks(loop, blocks))
        active = min(self.schedule.machine.units, len(tasks))
        self.trace.phase()
        for inner, body in tasks:
            self.trace.task()
            self.memory.begin_task(active)
            for statement in body:
                self.statement(statement, inner)
            self.memory.end_task()
        self.trace.phase()
        self.trace.task()

    def tasks(self, loop: Loop, blocks: Blocks) -> Iterator[tuple[Blocks, tuple[Statement, ...]]]:
        """Where the parallel loops are in every task, and what it does."""
        for block in self.cut.blocks(loop.dim, blocks):
            inner = {**blocks, loop.dim: block}
            match loop.body:
                case (Loop(parallel=True) as nested,):
                    yield from self.tasks(nested, inner)
                case _:
                    yield inner, loop.body

    def loop(self, loop: Loop, blocks: Blocks) -> None:
        """The iterations of a loop, one after the other."""
        for made in loop.accumulators:
            kind = self.types[made.name]
            tile = Tile(kind.axes, FLOAT64.full(self.operators.shape(kind.axes, blocks), made.identity))
            self.memory.check_absent(made.name, made.tier)
            slot, free = self.memory.allocate(made.name, made.tier, self.bytes(tile, kind.dtype))
            self.memory.hold(made.name, made.tier, Held(tile, slot, free))
        for storage in loop.storages:
            self.make(storage, blocks)
        self.loops.append(_Iterations(loop.dim))
        for block in self.cut.blocks(loop.dim, blocks):
            self.iteration(loop, {**blocks, loop.dim: block})
        if not self.loops[-1].done:
            self.begin_lists(loop, blocks)
        self.loops.pop()

    def pieces(self, pieces: Pieces, blocks: Blocks) -> None:
        """The body, piece by piece, with the same piece of tiles that were there before."""
        dim, step = pieces.dim, pieces.step
        block = blocks[dim] if dim in blocks else extent(self.schedule.program, self.cut.sizes, dim, blocks)
        outside = {copy: held for copy, held in self.memory.tiles.items() if dim in held.tile.axes}
        before = self.live()
        for start in range(block.start, block.stop, step):
            piece = slice(start, min(start + step, block.stop))
            for copy, held in outside.items():
                tile = part_of(held.tile, dim, slice(piece.start - block.start, piece.stop - block.start))
                self.memory.tiles[copy] = Held(tile, held.slot, held.ready)
            for statement in pieces.body:
                self.statement(statement, {**blocks, dim: piece})
            self.check_nothing_left(before, f"a piece along {dim}")
        self.memory.tiles.update(outside)

    def iteration(self, loop: Loop, blocks: Blocks) -> None:
        """An iteration, or what is needed to find that it is left out."""
        before, gate = self.live(), self.trace.gate
        for move in loop.guard:
            self.statement(move, blocks)
        guards = [(move.name, move.path[-1]) for move in loop.guard if move.target is None]
        if loop.where is not None:
            tables = {name: self.memory.anywhere(name) for name in readings(loop.where)}
            numbers = {name: held.tile for name, held in tables.items()}
            if not self.operators.may_hold(loop.where, numbers, blocks):
                for copy in guards:
                    self.release(copy)
                self.check_nothing_left(before, f"an iteration over {loop.dim} that is left out")
                return
            self.trace.gate = (*gate, *(event for held in tables.values() for event in held.ready))
        for statement in loop.body:
            self.statement(statement, blocks)
        self.loops[-1].done += 1
        self.trace.gate = gate
        self.check_nothing_left(before, f"an iteration over {loop.dim}")

    def begin_lists(self, loop: Loop, blocks: Blocks) -> None:
        """Where no iteration has taken part, lists that are accumulated are what they begin with."""
        for move in walk(loop.body):
            if isinstance(move, Move) and move.again == loop.dim and move.source is not None:
                stored = self.reach(move.source, move.path[0])
                part = stored.part(self.cut, blocks)
                stored.write(part, FLOAT64.full(stored.array[part].shape, move.identity), None)

    # Moves

    def move(self, move: Move, blocks: Blocks) -> None:
        """A tile is moved along a path."""
        if move.target is None:
            self.memory.check_absent(move.name, move.path[-1])
        source = None if move.source is None else self.reach(move.source, move.path[0])
        label = _value(move.target or move.source or move.name)
        ready: tuple[int, ...] = ()
        users: Slot | None = None
        if self.starts_here(move):
            shape = self.operators.shape(move.axes, blocks)
            tile = Tile(move.axes, FLOAT64.full(shape, move.identity))
            path = move.path[-1:]
        elif source is not None:
            part = self.tile_part(source, blocks)
            tile, ready, path = source.read(part), source.ready(part), move.path
        else:
            held = self.memory.tile(move.name, move.path[0])
            tile, ready, users, path = held.tile, held.ready, held.slot, move.path
        target = None if move.target is None else self.reach(move.target, move.path[-1])
        self.carry(move, label, path, tile, ready, users, target, blocks)

    def starts_here(self, move: Move) -> bool:
        """True where a tile is not loaded, in the first iteration of its loop."""
        if move.again is None:
            return False
        around = [loop for loop in self.loops if loop.dim == move.again]
        if not around:
            raise SimulationError(f"`{move.name}` is accumulated outside of any loop over {move.again}")
        return around[-1].done == 0

    def tile_part(self, stored: Stored, blocks: Blocks) -> Part:
        stored.check_tile(blocks)
        return stored.part(self.cut, blocks)

    def carry(
        self,
        move: Move,
        label: str,
        path: tuple[str, ...],
        tile: Tile,
        ready: tuple[int, ...],
        held: Slot | None,
        target: Stored | None,
        blocks: Blocks,
    ) -> None:
        """A tile goes from tier to tier, and then into a storage or a place of its own."""
        size = self.bytes(tile, move.dtype)
        if len(path) == 1 and target is None:  # read where it lies, or made there
            begun = move.again is not None and move.path[-1:] == path and len(move.path) > 1
            copies = self.memory.tiers[path[0]].buffers if move.streamed else 1
            place, free = self.memory.allocate(move.name, path[0], size if begun else 0, copies)
            self.memory.hold(move.name, path[0], Held(tile, place, (*ready, *free)))
            return
        slot: Slot | None
        for number, (source, destination) in enumerate(pairwise(path), 1):
            way = self.ways.get((source, destination))
            if way is None:
                raise SimulationError(f"`{move.name}` is moved from {source} to {destination}, where no way leads")
            slot = None
            if number < len(path) - 1 or target is None:
                name = move.name if number == len(path) - 1 else f"{move.name} on its way"
                copies = self.memory.tiers[destination].buffers if move.streamed else 1
                slot, free = self.memory.allocate(name, destination, size, copies)
                ready = (*ready, *free)
            self.moved[label, source, destination] += size
            event = self.hop(label, source, destination, size, way.bandwidth, ready)
            for used in (held, slot):
                if used is not None:
                    used.users.append(event)
            if number > 1 and held is not None:
                self.memory.free(held)
            held, ready = slot, (event,)
        if target is not None:
            part = self.tile_part(target, blocks)
            shape = target.array[part].shape
            target.write(part, np.broadcast_to(tile.array, shape), ready[-1] if ready else None)
        elif held is not None:
            self.memory.hold(move.name, path[-1], Held(tile, held, ready))

    def hop(
        self, label: str, source: str, destination: str, size: int, bandwidth: float, after: tuple[int, ...]
    ) -> int:
        """The event of moving bytes between neighbouring tiers."""
        tiers = self.memory.tiers
        seconds, way = size / bandwidth, f"{source}>{destination}"
        shared, own = [], []
        ends = (tiers[source], "read", tiers[source].read), (tiers[destination], "write", tiers[destination].write)
        for tier, doing, rate in ends:
            engine = f"{tier.name} {doing}" if tier.duplex == "full" else f"{tier.name} bus"
            if self.memory.is_shared(tier.name):
                shared.append((engine, size / rate))
            elif tier.duplex == "half":
                own.append((engine, size / rate))
        if len(shared) == 2:
            shared.append((way, seconds))
        return self.trace.add(way, seconds, after, tuple(shared), tiers[source].latency, label, size, tuple(own))

    def stage(self, stage: Stage, blocks: Blocks) -> None:
        """What this place can see of a list is copied, tile by tile."""
        storage = stage.storage
        if storage.origin is None:
            raise SimulationError(f"`{storage.name}` is a copy of nothing")
        self.make(storage, blocks, self.memory.tiers[storage.tier].buffers if stage.streamed else 1)
        move = Move(storage.name, stage.path, storage.dtype, storage.axes, storage.origin, storage.name, stage.streamed)
        for inner in self.tiles_of(tuple(dim for dim in storage.lists if dim not in blocks), blocks):
            self.move(move, inner)

    def tiles_of(self, lists: tuple[str, ...], blocks: Blocks) -> Iterator[Blocks]:
        """Where loops over all these dimensions would be, chunks before the blocks in them."""
        if not lists:
            yield blocks
            return
        chunks = self.cut.program.chunks
        dim = next((dim for dim in lists if dim in chunks), lists[0])
        for block in self.cut.blocks(dim, blocks):
            yield from self.tiles_of(tuple(other for other in lists if other != dim), {**blocks, dim: block})

    # Operators

    def compute(self, statement: Compute, blocks: Blocks) -> None:
        """A tile operator."""
        apply, unit = statement.apply, self.unit(statement.unit)
        if [name for name, _ in statement.reads] != list(operand_names(apply.args)):
            raise SimulationError(f"`{apply.name}` has other operands than are read")
        tiers = [tier for _, tier in statement.reads]
        self.check_tiers(apply.name, unit, tiers, statement.tier)
        if statement.operation == "matmul" and tiers != [unit.operands[0], unit.operands[-1]]:
            raise SimulationError(f"{unit.name} takes the operands of `{apply.name}` from other tiers")
        operands = [self.memory.tile(name, tier) for name, tier in statement.reads]
        result, count = applied(self.operators, apply, [held.tile for held in operands], blocks)
        seconds = self.busy(unit, statement.operation, statement.rated, count)
        after = [event for held in operands for event in held.ready]
        kind, label = self.types[apply.name], f"{apply.name} = {apply.op}"
        if result.axes != kind.axes:
            raise SimulationError(f"`{apply.name}` has axes {result.axes}, not {kind.axes}")
        if statement.into is not None:
            into = self.memory.tile(statement.into, statement.tier)
            event = self.trace.add(unit.name, seconds, (*after, *into.ready, *into.slot.users), label=label)
            into.tile, into.ready = self.operators.elementwise("add", into.tile, result), (event,)
            into.slot.users[:] = [event]
        else:
            self.memory.check_absent(apply.name, statement.tier)
            slot, free = self.place(statement, self.bytes(result, kind.dtype))
            event = self.trace.add(unit.name, seconds, (*after, *free), label=label)
            slot.users.append(event)
            self.memory.hold(apply.name, statement.tier, Held(result, slot, (event,)))
        for held in operands:
            held.slot.users.append(event)

    def place(self, statement: Compute, size: int) -> tuple[Slot, tuple[int, ...]]:
        """Where a result goes, and the events after which it may be written: new room, or that of an operand."""
        name = statement.apply.name
        if statement.reuses is None:
            return self.memory.allocate(name, statement.tier, size)
        taken = self.memory.take(statement.reuses, statement.tier)
        if taken.slot.size < size or (statement.reuses, statement.tier) not in statement.reads:
            raise SimulationError(f"`{name}` cannot take the place of `{statement.reuses}`")
        taken.slot.name = name
        return taken.slot, tuple(taken.slot.users)

    def combine(self, statement: Combine) -> None:
        """Values are combined with what has been accumulated, in its place."""
        unit, tier, monoid = self.unit(statement.unit), statement.tier, MONOIDS[statement.monoid]
        self.check_tiers(statement.names[0], unit, [tier], unit.accumulator)
        parts = sorted({part for update in statement.updates for part in monoid.group(update)})
        before = [self.memory.tile(statement.names[part], tier) for part in parts]
        added = [self.memory.tile(statement.values[part], tier) for part in parts]
        changed = [at for at, part in enumerate(parts) if part in statement.updates]
        old, new = [held.tile for held in before], [held.tile for held in added]
        results, count = combined(self.operators, statement.monoid, changed, old, new)
        seconds = self.busy(unit, "vector", statement.rated, count)
        waited = [event for at in changed for event in before[at].slot.users]
        after = [event for held in (*before, *added) for event in held.ready]
        event = self.trace.add(
            unit.name, seconds, (*waited, *after), label=f"{', '.join(statement.names)} {statement.monoid}"
        )
        for at, result in zip(changed, results, strict=True):
            held = before[at]
            if result.array.shape != held.tile.array.shape:
                raise SimulationError(f"`{statement.names[parts[at]]}` changes its shape as it is accumulated")
            held.tile, held.ready = result, (event,)
            held.slot.users.clear()
        for held in (*before, *added):
            held.slot.users.append(event)

    # Machine

    def bytes(self, tile: Tile, dtype: str) -> int:
        return int(tile.array.size) * DTYPES[dtype].size

    def unit(self, name: str) -> ComputeUnit:
        """A compute unit."""
        if name not in self.units:
            raise SimulationError(f"the machine has no compute unit {name}")
        return self.units[name]

    def busy(self, unit: ComputeUnit, operation: str, rated: str, count: Count) -> float:
        """The seconds of an operator, whose operations are counted."""
        self.flops[unit.name] += count[0]
        self.special[unit.name] += count[1]
        return seconds(self.schedule.machine, unit, operation, rated, count)

    def check_tiers(self, name: str, unit: ComputeUnit, tiers: list[str], result: str) -> None:
        """SimulationError if a unit does not read or write these tiers."""
        if not {*tiers} <= {*unit.operands} or result != unit.accumulator:
            raise SimulationError(f"{unit.name} cannot compute `{name}` from {', '.join(tiers)} into {result}")


def part_of(tile: Tile, dim: str, piece: slice) -> Tile:
    """A piece of a tile along one of its axes."""
    return Tile(tile.axes, tile.array[tuple(piece if axis == dim else slice(None) for axis in tile.axes)])


def _value(storage: str) -> str:
    """The list that a storage holds."""
    return storage.partition("@")[0]
