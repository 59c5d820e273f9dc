"""A large program in parts: what is compiled together is chosen by dynamic programming over predicted times.

Every part between two cuts (`passes/segments.py`) is a candidate: it is fused on its own, and takes the time of the
best plan that a first estimate finds for it. The cheapest way through all cuts is chosen, and its parts are searched in
full. Parts that are clearly slower than the pieces they are made of are not made longer. Parts that are the same but
for their names are looked at once, so that a stack of layers takes little longer than one of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from blockc import driver
from blockc.errors import LimitError, Problem
from blockc.ir import array_program
from blockc.ir.array_program import Argument, ArrayProgram
from blockc.ir.dtypes import DTYPES
from blockc.ir.machine import Machine
from blockc.passes.search import Searched
from blockc.passes.segments import OWN, cuts, operators, rounded, segment
from blockc.planning import MachinePlan, first_estimate, machine_plan, search_plan

LONGEST = 8  # places between cuts that a part may have
NEARLY = 4.0  # times the time of the parts: then the whole program, which may be cut into chunks, is searched too
WORSE = 1.1  # times the time of its pieces: two parts in a row that are this slow are not made longer


@dataclass(frozen=True, slots=True)
class Part:
    """Operators that are compiled together, and their plan."""

    program: ArrayProgram
    plan: MachinePlan


@dataclass(frozen=True, slots=True)
class Candidate:
    """A part that was looked at: from and to which operator, its predicted seconds, or why there is no plan."""

    first: str
    last: str
    seconds: float
    chosen: bool
    why: str


@dataclass(frozen=True, slots=True)
class Partition:
    """The parts of a program, in the order in which they run, and everything that was looked at."""

    program: ArrayProgram
    machine: Machine
    sizes: Mapping[str, int]
    parts: tuple[Part, ...]
    candidates: tuple[Candidate, ...]

    @property
    def bottleneck(self) -> str:
        """What the part that takes longest waits for."""
        return max(self.parts, key=lambda part: part.plan.cost.seconds).plan.cost.bottleneck

    @property
    def seconds(self) -> float:
        """The predicted time of all parts."""
        return sum(part.plan.cost.seconds for part in self.parts)


def partition(
    program: ArrayProgram,
    machine: Machine,
    sizes: Mapping[str, int],
    tiles: driver.Tiles,
    split: driver.Split = driver.UNSPLIT,
) -> Partition:
    """The cheapest way to cut a program into parts. LimitError if there is none.

    One part is all there is for the CPU, whose kernels are those of the whole program, and where chunks are asked for.
    """
    if driver.has_kernels(machine) or split:
        plan = machine_plan(program, machine, sizes, tiles, split)
        return Partition(program, machine, dict(sizes), (Part(program, plan),), ())
    return _Partitioner(program, machine, sizes, tiles).partition()


@dataclass
class _Partitioner:
    program: ArrayProgram
    machine: Machine
    sizes: Mapping[str, int]
    tiles: driver.Tiles
    estimates: dict[object, tuple[float, str]] = field(default_factory=dict)
    searched: Searched = field(default_factory=Searched)
    fixed: Mapping[str, int] = field(init=False)  # the sizes that parts are for: kernels for a GPU take others too
    types: Mapping[str, str] = field(init=False)  # those of values between parts, as kernels for a GPU round them

    def __post_init__(self) -> None:
        gpu = self.machine.backend == driver.GPU_BACKEND
        self.fixed = array_program.sizes(self.program, {}) if gpu else self.sizes
        self.types = rounded(self.program) if gpu else OWN

    def partition(self) -> Partition:
        places = cuts(self.program, self.sizes) if operators(self.program) else (0,)
        best = [(0.0, 0)] + [(math.inf, 0)] * (len(places) - 1)  # of everything up to a place: seconds, and where from
        looked: list[tuple[int, int, float, str]] = []
        for end in range(1, len(places)):
            slow = 0
            for start in range(end - 1, max(0, end - LONGEST) - 1, -1):
                everything = start == 0 and end == len(places) - 1  # is always looked at, if it is not too long
                if slow >= 2 and not everything:
                    continue
                seconds, why = self.estimate(places[start], places[end])
                looked.append((start, end, seconds, why))
                slow = slow + 1 if best[start][0] + seconds > WORSE * best[end][0] else 0
                if best[start][0] + seconds < best[end][0]:
                    best[end] = best[start][0] + seconds, start
        chosen = []
        end = len(places) - 1
        if end == 0 or not math.isfinite(best[end][0]):  # names and numbers only, or parts that do not fit
            return self.found((self.whole(),), ())
        while end > 0:
            chosen.append((best[end][1], end))
            end = best[end][1]
        chosen.reverse()
        names = [node.name for node in operators(self.program)]
        candidates = tuple(
            Candidate(names[places[start]], names[places[end] - 1], seconds, (start, end) in chosen, why)
            for start, end, seconds, why in looked
        )
        pairs = [(places[start], places[end]) for start, end in chosen]
        parts = tuple(self.part(*pair) for pair in pairs if self.segment(*pair).outputs)  # or else nobody needs them
        found = self.found(parts, candidates)
        together = [seconds for start, end, seconds, _ in looked if (start, end) == (0, len(places) - 1)]
        if len(parts) > 1 and together and together[0] <= NEARLY * best[-1][0]:
            whole = self.whole()  # chunks and lists in faster tiers, which estimates leave out, may help it more
            if whole.plan.cost.seconds <= found.seconds:
                ends = names[0], names[-1]
                again = (replace(entry, chosen=(entry.first, entry.last) == ends) for entry in candidates)
                found = self.found((whole,), tuple(again))
        check_capacity(found)
        return found

    def found(self, parts: tuple[Part, ...], candidates: tuple[Candidate, ...]) -> Partition:
        return Partition(self.program, self.machine, dict(self.sizes), parts, candidates)

    def whole(self) -> Part:
        """The whole program as one part."""
        return Part(self.program, self.searched_plan(self.program))

    def segment(self, start: int, end: int) -> ArrayProgram:
        """The operators from one place to another."""
        return segment(self.program, start, end, self.fixed, self.types)

    def estimate(self, start: int, end: int) -> tuple[float, str]:
        """The predicted seconds of a part, or infinity and why it cannot be."""
        part = self.segment(start, end)
        if not part.outputs:
            return 0.0, ""
        key = shape_of(part, self.sizes, self.tiles)
        if key not in self.estimates:
            try:
                self.estimates[key] = first_estimate(part, self.machine, self.sizes_of(part), self.tiles_of(part)), ""
            except LimitError as error:
                self.estimates[key] = math.inf, error.problems[0].message
        return self.estimates[key]

    def part(self, start: int, end: int) -> Part:
        if (start, end) == (0, len(operators(self.program))):
            return self.whole()
        part = self.segment(start, end)
        return Part(part, self.searched_plan(part))

    def searched_plan(self, part: ArrayProgram) -> MachinePlan:
        sizes, tiles = self.sizes_of(part), self.tiles_of(part)
        return search_plan(part, self.machine, sizes, tiles, searched=self.searched)

    def sizes_of(self, part: ArrayProgram) -> dict[str, int]:
        return {dim.name: self.sizes[dim.name] for dim in part.dims}

    def tiles_of(self, part: ArrayProgram) -> driver.Tiles:
        return {dim.name: self.tiles[dim.name] for dim in part.dims if dim.name in self.tiles}


def check_capacity(found: Partition) -> None:
    """LimitError if the outermost tier does not hold a part together with what other parts leave or need there."""
    tier = found.machine.tiers[0]
    for part, others in zip(found.parts, resident(found), strict=True):
        need = part.plan.cost.peak.get(tier.name, 0) + others
        if need > tier.capacity:
            message = f"`{found.program.name}` cannot be executed on {found.machine.name}: {need:,} bytes are needed in"
            message += f" {tier.name}, which has {tier.capacity:,}, for arguments and for values between parts"
            raise LimitError((Problem("E0292", message, None, "smaller sizes (--dim) need less"),))


def resident(found: Partition) -> tuple[int, ...]:
    """For each part the bytes in the outermost tier that it has nothing to do with: arguments of other parts, and
    values that earlier parts have left for later ones."""
    program = found.program
    sizes = {argument.name: _bytes(argument, found.sizes) for argument in program.inputs}
    sizes |= {result.argument.name: _bytes(result.argument, found.sizes) for result in program.outputs}
    always = set(sizes)
    own = [
        {argument.name: argument for argument in (*part.program.inputs, *(r.argument for r in part.program.outputs))}
        for part in found.parts
    ]
    for part in own:
        sizes |= {name: _bytes(argument, found.sizes) for name, argument in part.items() if name not in sizes}
    made = {result.argument.name: at for at, part in enumerate(found.parts) for result in part.program.outputs}
    last = {argument.name: at for at, part in enumerate(found.parts) for argument in part.program.inputs}
    result = []
    for at, part in enumerate(own):
        between = {name for name, first in made.items() if first < at < last.get(name, first)}
        result.append(sum(sizes[name] for name in always | between if name not in part))
    return tuple(result)


def _bytes(argument: Argument, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[dim] for dim in argument.dims) * DTYPES[argument.dtype].size


def shape_of(part: ArrayProgram, sizes: Mapping[str, int], tiles: driver.Tiles) -> object:
    """What a part is, without names: equal for parts that differ in nothing else."""
    dims = {dim.name: at for at, dim in enumerate(part.dims)}
    nodes = {node.name: at for at, node in enumerate(part.nodes)}
    extents = tuple((sizes[dim.name], tiles.get(dim.name, 0), dims.get(dim.same_as or "", -1)) for dim in part.dims)
    operators = tuple(
        (
            node.op,
            tuple(nodes[arg] for arg in node.args),
            tuple(dims[dim] for dim in node.dims),
            tuple(dims[dim] for dim in node.shape),
            node.dtype,
            repr(node.value),
        )
        for node in part.nodes
    )
    outputs = tuple(
        (nodes[result.node], result.argument.dtype, tuple(dims[dim] for dim in result.argument.dims))
        for result in part.outputs
    )
    return extents, operators, outputs
