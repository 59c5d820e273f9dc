"""The model of a schedule: what its costs are counted from.

Numbers of elements that move or are computed are products of sizes and block counts (`Count`); what lies in the tiers
at the same time is noted at every statement. A model does not depend on sizes and tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blockc.ir.block import Condition, Program
from blockc.ir.dtypes import DTYPES
from blockc.ir.machine import Machine
from blockc.ir.monoids import MONOIDS
from blockc.ir.ops import OPERATORS
from blockc.ir.schedule import Combine, Compute, Copy, Loop, Move, Pieces, Schedule, Stage, Statement, Storage
from blockc.passes.cost import Count, per_element, repeating

Boundary = tuple[str, str]  # from one tier to another


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes of a value across a boundary: `itemsize` for each of some elements. `waits` if nothing hides it."""

    value: str
    boundary: Boundary
    itemsize: int
    counts: tuple[Count, ...]
    waits: bool
    times: Count  # how often


@dataclass(frozen=True, slots=True)
class Work:
    """`flops` operations and `special` functions for each of some elements, in steps of whole tiles of `axes`."""

    unit: str
    operation: str
    rated: str
    flops: int
    special: int
    count: Count
    calls: Count
    steps: tuple[tuple[str, ...], ...]  # what the sizes of the unit's tiles are multiples of: m, n, k, or elements


@dataclass(frozen=True, slots=True)
class Held:
    """Space in a tier: of a tile (`lists` is empty), or of a list, in one or more copies; of a `piece` of a tile, with
    at most so many elements along one of its axes."""

    tier: str
    itemsize: int
    axes: tuple[str, ...]
    lists: tuple[str, ...]
    copies: int
    shared: bool  # by all tasks
    piece: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class KernelModel:
    """One kernel: what it moves and computes, its parallel dimensions, and what lies in a tier at the same time."""

    moved: tuple[Moved, ...]
    work: tuple[Work, ...]
    tasks: tuple[str, ...]
    points: tuple[tuple[str, tuple[Held, ...]], ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A schedule, ready for its costs to be evaluated."""

    program: Program
    machine: Machine
    kernels: tuple[KernelModel, ...]


def model(schedule: Schedule) -> Model:
    """The model of a schedule."""
    always = []
    kernels = []
    for storage in schedule.storages:
        always.append((storage, schedule.lives.get(storage.name, (-1, len(schedule.kernels)))))
    for at, statements in enumerate(schedule.kernels):
        reader = _Reader(schedule.program, schedule.machine)
        for storage, (first, last) in always:
            if first <= at <= last:
                reader.hold((storage.name, storage.tier), reader.list_space(storage, ()))
        reader.statements(statements, (), ())
        reader.point()
        kernels.append(KernelModel(tuple(reader.moved), tuple(reader.work), reader.tasks, tuple(reader.points)))
    return Model(schedule.program, schedule.machine, tuple(kernels))


@dataclass
class _Reader:
    """Reads the statements of a kernel, in order, with what lies where."""

    program: Program
    machine: Machine
    moved: list[Moved] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    tasks: tuple[str, ...] = ()
    points: dict[tuple[str, tuple[Held, ...]], None] = field(default_factory=dict)
    held: dict[Copy, Held] = field(default_factory=dict)
    in_task: bool = False
    grown: bool = False  # since the last point
    piece: tuple[str, int] | None = None  # what tiles are in pieces of

    def __post_init__(self) -> None:
        self.tiers = {tier.name: tier for tier in self.machine.tiers}

    # What lies where

    def hold(self, copy: Copy, space: Held) -> None:
        if copy in self.held:
            self.point()
        self.held[copy] = space
        self.grown = True

    def tile_space(self, tier: str, dtype: str, axes: tuple[str, ...], streamed: bool = False) -> Held:
        copies = self.tiers[tier].buffers if streamed else 1
        piece = self.piece if self.piece is not None and self.piece[0] in axes else None
        return Held(tier, DTYPES[dtype].size, axes, (), copies, not self.in_task, piece)

    def list_space(self, storage: Storage, mapped: tuple[str, ...], copies: int = 1) -> Held:
        size = DTYPES[storage.dtype].size
        chunks = {self.program.chunks[dim]: dim for dim in mapped if dim in self.program.chunks}
        lists = tuple(f"{chunks[dim]}:" if dim in chunks else dim for dim in storage.lists)
        return Held(storage.tier, size, storage.axes, lists, copies, not self.in_task)

    def point(self) -> None:
        """Note what lies in each tier, before some of it goes: nothing less can be the most."""
        if not self.grown:
            return
        self.grown = False
        by_tier: dict[str, list[Held]] = {}
        for space in self.held.values():
            by_tier.setdefault(space.tier, []).append(space)
        for tier, spaces in by_tier.items():
            self.points[tier, tuple(spaces)] = None

    def release(self, copies: tuple[Copy, ...]) -> None:
        if copies:
            self.point()
        for copy in copies:
            del self.held[copy]

    # Statements

    def statements(
        self, statements: tuple[Statement, ...], mapped: tuple[str, ...], where: tuple[Condition, ...]
    ) -> None:
        for statement in statements:
            self.statement(statement, mapped, where)
            self.release(statement.releases)

    def statement(self, statement: Statement, mapped: tuple[str, ...], where: tuple[Condition, ...]) -> None:
        match statement:
            case Move():
                self.move(statement, mapped, where)
            case Stage(storage, path, streamed):
                around = repeating(self.program, mapped, (*storage.axes, *storage.lists))
                count = Count(storage.axes, (*around, *_further(storage)), where=where)
                times = Count((), (*around, *storage.lists), where=where)
                copies = self.tiers[storage.tier].buffers if streamed else 1
                arrival = (storage.name, storage.tier), self.list_space(storage, mapped, copies)
                value = plain_name(storage.name)
                self.hops(value, path, storage.dtype, storage.axes, streamed, (count,), times, arrival)
            case Compute():
                self.compute(statement, mapped, where)
            case Combine():
                self.combine(statement, mapped, where)
            case Loop():
                self.loop(statement, mapped, where)
            case Pieces(dim, step, body):
                self.piece = dim, step
                self.statements(body, mapped, where)
                self.piece = None

    def loop(self, loop: Loop, mapped: tuple[str, ...], where: tuple[Condition, ...]) -> None:
        if loop.parallel:
            self.tasks = (*self.tasks, loop.dim)
            self.in_task = True
        for storage in loop.storages:
            self.hold((storage.name, storage.tier), self.list_space(storage, mapped))
        for made in loop.accumulators:
            kind = self.program.types[made.name]
            self.hold((made.name, made.tier), self.tile_space(made.tier, kind.dtype, kind.axes))
        inside = (*mapped, loop.dim)
        for move in loop.guard:
            self.statement(move, inside, where)
        self.statements(loop.body, inside, where if loop.where is None else (*where, loop.where))
        if loop.parallel:
            self.in_task = False

    def move(self, move: Move, mapped: tuple[str, ...], where: tuple[Condition, ...]) -> None:
        blocks = repeating(self.program, mapped, move.axes)
        count = Count(move.axes, blocks, where=where)
        counts: tuple[Count, ...] = (count,)
        if move.again is not None:
            around = tuple(dim for dim in mapped if dim != move.again)
            before = repeating(self.program, around, move.axes)
            if any(self.program.chunks.get(dim) == move.again for dim in around):
                counts = (count, Count(move.axes, before, times=-1, where=where))
            else:
                counts = (Count(move.axes, before, again=(move.again,), where=where),)
        times = Count((), repeating(self.program, mapped, ()), where=where)
        value = plain_name(move.source or move.target or move.name)
        arrival = None
        if move.target is None:
            tier = move.path[-1]
            arrival = (move.name, tier), self.tile_space(tier, move.dtype, move.axes, move.streamed)
        self.hops(value, move.path, move.dtype, move.axes, move.streamed, counts, times, arrival)

    def hops(
        self,
        value: str,
        path: tuple[str, ...],
        dtype: str,
        axes: tuple[str, ...],
        streamed: bool,
        counts: tuple[Count, ...],
        times: Count,
        arrival: tuple[Copy, Held] | None,
    ) -> None:
        """The way of a tile, with the buffers that it is in meanwhile, and what lies at its end afterwards."""
        hidden = any(self.tiers[tier].buffers > 1 or self.tiers[tier].kind == "cache" for tier in path[1:])
        last = len(path) - 2
        if last < 0 and arrival is not None:  # it is there already
            self.hold(*arrival)
        for at in range(len(path) - 1):
            boundary = path[at], path[at + 1]
            self.moved.append(Moved(value, boundary, DTYPES[dtype].size, counts, streamed and not hidden, times))
            if at < last:
                self.hold(("", path[at + 1]), self.tile_space(path[at + 1], dtype, axes, streamed))
            elif arrival is not None:
                self.hold(*arrival)
            if at:
                self.release((("", path[at]),))

    def compute(self, compute: Compute, mapped: tuple[str, ...], where: tuple[Condition, ...]) -> None:
        apply, types = compute.apply, self.program.types
        axes = set(types[apply.name].axes).union(*(types[name].axes for name in apply.uses))
        flops, special = per_element(apply)
        count = Count(self.program.ordered(axes), repeating(self.program, mapped, axes), where=where)
        calls = Count((), repeating(self.program, mapped, ()), where=where)
        steps: tuple[tuple[str, ...], ...] = (self.program.ordered(axes),)
        if compute.operation == "matmul":
            left, right = (set(types[name].axes) for name, _ in compute.reads)
            parts = left - right, right - left, set(apply.dims)
            steps = tuple(self.program.ordered(part) for part in parts)
        self.work.append(Work(compute.unit, compute.operation, compute.rated, flops, special, count, calls, steps))
        if compute.into is not None:
            return
        if compute.reuses is not None:  # with all its copies, in which the next ones come
            self.held[apply.name, compute.tier] = self.held.pop((compute.reuses, compute.tier))
            return
        kind = types[apply.name]
        self.hold((apply.name, compute.tier), self.tile_space(compute.tier, kind.dtype, kind.axes))

    def combine(self, combine: Combine, mapped: tuple[str, ...], where: tuple[Condition, ...]) -> None:
        kinds = [self.program.types[value].axes for value in combine.values]
        calls = Count((), repeating(self.program, mapped, ()), where=where)
        for axes, (flops, special) in combining(combine.monoid, tuple(kinds), combine.updates).items():
            names = self.program.ordered(axes)
            count = Count(names, repeating(self.program, mapped, axes), where=where)
            self.work.append(Work(combine.unit, "vector", combine.rated, flops, special, count, calls, (names,)))


def _further(storage: Storage) -> tuple[str, ...]:
    return tuple(dim for dim in storage.lists if dim not in storage.axes)


def plain_name(name: str) -> str:
    """The list that a stage is a copy of."""
    return name.partition("@")[0]


@dataclass(frozen=True, eq=False, slots=True)
class _Node:
    """A step of combining two values: what an element takes, and of which axes it is."""

    axes: frozenset[str]
    flops: int
    special: int
    of: tuple[_Node, ...]


def combining(
    monoid: str, kinds: tuple[tuple[str, ...], ...], updates: tuple[int, ...]
) -> dict[frozenset[str], tuple[int, int]]:
    """The operations and special functions for an element, by the axes that it is one of, of combining components."""

    def apply(op: str, *operands: _Node) -> _Node:
        operator = OPERATORS[op]
        axes = frozenset[str]().union(*(operand.axes for operand in operands))
        return _Node(axes, operator.flops, operator.special, operands)

    parts = tuple(_Node(frozenset(axes), 0, 0, ()) for axes in kinds)
    results = MONOIDS[monoid].combine(apply, parts, tuple(_Node(part.axes, 0, 0, ()) for part in parts))
    seen: dict[int, _Node] = {}
    waiting = [results[part] for part in updates]
    while waiting:
        node = waiting.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            waiting += node.of
    total: dict[frozenset[str], tuple[int, int]] = {}
    for node in seen.values():
        if node.flops or node.special:
            flops, special = total.get(node.axes, (0, 0))
            total[node.axes] = flops + node.flops, special + node.special
    return total
