"""Kernels for a GPU: the plan that is chosen for its machine file, as Triton source with a manifest.

Triton's tiles have a power of two of elements along each axis, and 16 or more where tensor cores multiply them, so the
blocks of the plan are made so. What the kernels need of a multiprocessor is estimated; where that is more than it has,
other blocks near those of the plan are taken, the ones with the least predicted time first. A plan that cannot be
written as it is (one that accumulates a list) gives way to the next best one.

A program that is planned in parts (`partition.py`) has the kernels of all parts in one file, as if it were one block
program: blocks are chosen for each part, and then `passes/join.py` makes one program of what was chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from blockc import driver
from blockc.codegen import triton_source
from blockc.codegen.triton_estimate import Launch, Needs, needs
from blockc.codegen.triton_grid import device_of
from blockc.codegen.triton_maps import Unsupported
from blockc.codegen.triton_storage import ALONE, Around, Function, Options, Source
from blockc.codegen.triton_types import lines, read
from blockc.errors import LimitError, Problem, visible
from blockc.ir.array_program import ArrayProgram
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import Program
from blockc.ir.decisions import Match
from blockc.ir.machine import Machine
from blockc.ir.plan import Plan
from blockc.machines.gpus import FLOAT8, GPUS, Gpu, occupancy
from blockc.partition import Partition, partition
from blockc.passes.bound_loops import bound_loops
from blockc.passes.choose import compose, safe
from blockc.passes.cost import cost
from blockc.passes.join import join, namings
from blockc.passes.padding import mask
from blockc.passes.place import without_reductions
from blockc.passes.rules import fuse_map_with_reduce
from blockc.passes.segments import exact, operators
from blockc.planning import MachinePlan, search_plan
from blockc.triton_blocks import near_blocks

BACKEND = "triton"  # of the machines that kernels are emitted for here
WAYS = tuple(Options(warps, stages) for warps in (4, 8) for stages in (2, 3))  # to launch a kernel
DESCRIBED = tuple(Options(warps, 3, "descriptors") for warps in (4, 8))  # with tiles that the GPU copies by itself
ENOUGH = 215  # estimated registers, up to which spills are not likely
BUSY = 0.25  # of the warps of a multiprocessor: more do not help products
MOST_WRITTEN, MOST_PLANS = 40, 3  # choices of blocks that are written, for so many plans
BARRIER = 8  # bytes in shared memory for each tile on its way that the GPU copies by itself
NOTHING = Source("", "", (), {}, {}, {}, {})


@dataclass(frozen=True, slots=True)
class NamedPart:
    """A part of a program, what its dimensions are called in the plan of all parts, and what its kernels compute."""

    program: ArrayProgram
    dims: Mapping[str, str]
    comment: triton_source.Part


@dataclass(frozen=True, slots=True)
class TritonKernels:
    """The program that is computed, the source of a plan for a GPU, the block program with masks that it was written
    from, the plan, its predicted seconds, and what each function probably needs, launched as the source says. `likely`:
    that is what a multiprocessor has.

    Of a program in several parts, `parts` are these, and `searched` has a plan for each.
    """

    program: ArrayProgram
    source: Source
    block: Program
    plan: Plan
    searched: tuple[MachinePlan, ...]
    seconds: float
    needs: Mapping[str, Needs]
    likely: bool
    parts: tuple[NamedPart, ...] = ()

    def tiles_of(self, function: Function) -> dict[str, int]:
        """The blocks of the part that a function is of."""
        own = self.parts[function.part].dims.values() if self.parts else self.plan.tiles
        return {dim: tile for dim, tile in self.plan.tiles.items() if dim in own}

    def named(self, tiles: driver.Tiles) -> dict[str, int | None]:
        """Blocks by the names that dimensions of the program have in the plan, in each part."""
        names = [(dim, name) for part in self.parts for dim, name in part.dims.items()]
        return {name: tiles[dim] for dim, name in names if dim in tiles} if names else dict(tiles)


def triton_kernels(
    program: ArrayProgram,
    machine: Machine,
    sizes: Mapping[str, int],
    tiles: driver.Tiles,
    split: driver.Split = driver.UNSPLIT,
) -> TritonKernels:
    """The Triton kernels of a program. LimitError if there are none."""
    return next(ranked(program, machine, sizes, tiles, split))


def ranked(
    program: ArrayProgram,
    machine: Machine,
    sizes: Mapping[str, int],
    tiles: driver.Tiles,
    split: driver.Split = driver.UNSPLIT,
) -> Iterator[TritonKernels]:
    """The Triton kernels of a program with several choices of blocks, each once: for each plan those that probably need
    what a multiprocessor has, with the least predicted time first; then the others, the nearest to it first. Blocks
    that `tiles` asks for are kept. LimitError if there are none. A program is in parts where that is predicted to take
    less time; then all parts go on to their next choice together."""
    return _ranked_parts(partition(program, machine, sizes, tiles, split), tiles)


def kernels_for(found: Partition, tiles: driver.Tiles) -> TritonKernels:
    """The Triton kernels of a program whose parts are known. LimitError if there are none."""
    return next(_ranked_parts(found, tiles))


def _ranked_parts(found: Partition, tiles: driver.Tiles) -> Iterator[TritonKernels]:
    program, machine, sizes = found.program, found.machine, found.sizes
    if len(found.parts) > 1:
        return RankedParts(program, machine, sizes, [(part.program, part.plan, tiles) for part in found.parts])
    return _ranked(program, machine, sizes, tiles, found.parts[0].plan)


def with_blocks(
    made: TritonKernels,
    program: ArrayProgram,
    machine: Machine,
    sizes: Mapping[str, int],
    tiles: driver.Tiles,
    split: driver.Split = driver.UNSPLIT,
) -> TritonKernels:
    """The kernels of a program in the same parts, with other blocks. LimitError if there are none."""
    if not made.parts:
        return next(_ranked(program, machine, sizes, tiles, search_plan(program, machine, sizes, tiles, split)))
    asked = []
    for part in made.parts:
        own = {dim: tiles[name] for dim, name in part.dims.items() if name in tiles}
        known = {dim.name: sizes[dim.name] for dim in part.program.dims}
        asked.append((part.program, search_plan(part.program, machine, known, own), own))
    return next(RankedParts(program, machine, sizes, asked))


class RankedParts(Iterator[TritonKernels]):
    """The kernels of a program in parts, with several choices of blocks. `kept` parts do not go on to their next one;
    neither do those that have none. LimitError if a part has none at all."""

    def __init__(
        self,
        program: ArrayProgram,
        machine: Machine,
        sizes: Mapping[str, int],
        parts: Sequence[tuple[ArrayProgram, MachinePlan, driver.Tiles]],
    ) -> None:
        self.kept: frozenset[int] = frozenset()
        self._given = program, machine, sizes
        self._parts = tuple(part for part, _, _ in parts)
        self._choices = [
            _ranked(part, machine, plan.sizes, tiles, plan, _around(program, part)) for part, plan, tiles in parts
        ]
        self._now: list[TritonKernels] = []

    def __next__(self) -> TritonKernels:
        if not self._now:
            self._now = [next(choices) for choices in self._choices]
            return _joined(*self._given, self._parts, self._now)
        following = [None if at in self.kept else next(found, None) for at, found in enumerate(self._choices)]
        if not any(following):
            raise StopIteration
        self._now = [made or before for made, before in zip(following, self._now, strict=True)]
        return _joined(*self._given, self._parts, self._now)


def _around(program: ArrayProgram, part: ArrayProgram) -> Around:
    """What other parts of a program do with the arguments of a part."""
    given, wide = {argument.name for argument in program.inputs}, exact(program)
    computed = (argument.name for argument in part.inputs if argument.name not in given)
    rounded = (result.argument.name for result in part.outputs if result.argument.name not in wide)
    return Around(frozenset(computed), frozenset(rounded))


def _joined(
    program: ArrayProgram,
    machine: Machine,
    sizes: Mapping[str, int],
    parts: Sequence[ArrayProgram],
    chosen: Sequence[TritonKernels],
) -> TritonKernels:
    """The kernels of all parts as those of one program."""
    names = namings(program, [(made.block, made.plan.program) for made in chosen])
    block = bound_loops(join(program, list(zip([made.block for made in chosen], names, strict=True))))
    ready = bound_loops(join(program, list(zip([made.plan.program for made in chosen], names, strict=True))))
    tiles = {
        naming.dims[dim]: tile
        for made, naming in zip(chosen, names, strict=True)
        for dim, tile in made.plan.tiles.items()
    }
    priced = cost(ready, sizes, tiles)
    plan = Plan(ready, 0, tiles, dict(sizes), (priced,), (ready,), f"{len(parts)} parts")
    named = []
    for part, made, naming in zip(parts, chosen, names, strict=True):
        values = frozenset(naming.values[name] for node in made.block.body for name in node.defines)
        named.append(NamedPart(part, naming.dims, triton_source.Part(_title(part), values)))
    searched = tuple(plan for made in chosen for plan in made.searched)
    seconds = sum(made.seconds for made in chosen)
    kernels = TritonKernels(program, NOTHING, block, plan, searched, seconds, {}, False, tuple(named))
    return _made(machine, gpu_of(machine), kernels)


def _title(part: ArrayProgram) -> str:
    """What a part reads and gives, and what it computes for that."""
    reads = (argument.name for argument in part.inputs)
    gives = (result.argument.name for result in part.outputs)
    computes = (node.name.partition(".")[0] for node in operators(part))
    sides = [", ".join(dict.fromkeys(names)) for names in (reads, gives, computes)]
    return f"{sides[0]} -> {sides[1]}, by way of {sides[2]}"


def _ranked(
    program: ArrayProgram,
    machine: Machine,
    sizes: Mapping[str, int],
    tiles: driver.Tiles,
    searched: MachinePlan,
    around: Around | None = None,
) -> Iterator[TritonKernels]:
    """Choices of blocks for a program in one part or, with what is `around` it, for a part."""
    possible = [candidate for candidate in searched.candidates if candidate.choice.cost is not None]
    snapshots = [(found, found.derivation.snapshots[found.choice.snapshot]) for found in possible]
    # Where all accumulate lists: the unfused program, in which only items are accumulated.
    last = replace(possible[0], choice=replace(possible[0].choice, schedule=None))
    snapshots.append((last, with_sums_in_loops(last.derivation.unfused)))
    asked = {dim for dim, tile in tiles.items() if tile is not None}
    gpu = gpu_of(machine)
    whys: list[str] = []
    others: list[TritonKernels] = []
    written = 0
    for candidate, snapshot in snapshots:
        if written >= MOST_PLANS or (written and candidate is last):
            break
        block, ready = emitted(snapshot), bound_loops(compose(safe(snapshot)))
        found = near_blocks(block, candidate.choice, machine, sizes, asked)
        try:
            for blocks, seconds in found[:MOST_WRITTEN]:
                plan = _plan(candidate.choice.snapshot, ready, sizes, blocks)
                kernels = TritonKernels(program, NOTHING, block, plan, (searched,), seconds, {}, False)
                made = _made(machine, gpu, kernels, around)
                if made.likely:
                    yield made
                else:
                    others.append(made)
            written += 1
        except Unsupported as error:
            whys.append(str(error))
    if not written:
        message = f"`{program.name}` cannot be written in Triton: {'; '.join(dict.fromkeys(whys))}"
        raise LimitError((Problem("E0293", message, None, ""),))
    yield from sorted(others, key=lambda made: _excess(made.needs.values(), gpu))


def gpu_of(machine: Machine) -> Gpu:
    """The GPU that a machine file names, or the one with the least that is known."""
    return GPUS.get(machine.capability) or next(iter(GPUS.values()))


def _made(machine: Machine, gpu: Gpu, plan: TritonKernels, around: Around | None = None) -> TritonKernels:
    """A plan with its source, launched as probably is best."""
    source = _source(machine, plan, {}, around)
    _check_types(source, plan.program, machine)
    options, found = {}, {}
    for function in source.functions:
        kernel = read(function.text, function.parameters, function.constants)
        ways = {way: needs(kernel, Launch(way.warps, way.stages, gpu.multiplies_in_groups)) for way in WAYS}
        best = min(ways, key=lambda way: _badness(way, ways[way], gpu))
        options[function.name], found[function.name] = best, ways[best]
    source = _source(machine, plan, options, around)
    return replace(plan, source=source, needs=found, likely=_excess(found.values(), gpu) <= 1)


def _source(
    machine: Machine, plan: TritonKernels, options: Mapping[str, Options], around: Around | None = None
) -> Source:
    block, sizes = plan.block, complete_sizes(plan.block, plan.plan.sizes)
    header, device = _header(plan.plan, plan.program, machine), device_of(machine)
    if around is not None:  # a part, whose sizes may follow from what others read
        block = replace(
            block,
            dims=tuple(dim if dim.chunks_of is not None else replace(dim, size=sizes[dim.name]) for dim in block.dims),
        )
    parts = [part.comment for part in plan.parts]
    return triton_source.emit(block, plan.plan.tiles, sizes, header, options, device, parts, around or ALONE)


def launched_with(made: TritonKernels, machine: Machine, options: Mapping[str, Options]) -> TritonKernels:
    """The same kernels, launched with other options, by function."""
    return replace(made, source=_source(machine, made, options))


def _check_types(source: Source, program: ArrayProgram, machine: Machine) -> None:
    """LimitError for numbers that the GPU does not convert."""
    kinds = {kind for function in source.functions for kind in function.parameters.values()}
    if "*fp8e4nv" in kinds and 0 < machine.capability < FLOAT8:
        message = f"`{program.name}` has values in f8e4m3, which {machine.name} does not convert"
        hint = f"GPUs of capability {FLOAT8} and later do; f8e5m2 works on all"
        raise LimitError((Problem("E0289", message, None, hint),))


def _excess(found: Iterable[Needs], gpu: Gpu) -> float:
    """How many times what a multiprocessor has kernels probably need."""
    return max((max(need.registers / ENOUGH, need.shared_bytes / gpu.shared_of_block) for need in found), default=0.0)


def _badness(way: Options, need: Needs, gpu: Gpu) -> tuple[float, ...]:
    excess = max(1.0, _excess((need,), gpu))
    return excess, *(-figure for figure in merit(way, occupancy(gpu, way.warps, need.registers, need.shared_bytes)))


def merit(way: Options, share: float) -> tuple[float, int, int]:
    """How good a way to launch a kernel is that keeps a share of a multiprocessor's warps busy."""
    return min(share, BUSY), way.stages, -way.warps


def emitted(program: Program) -> Program:
    """A block program as the Triton emitter takes it: safe, with masks for padded blocks, composed."""
    plain = without_reductions(safe(program))
    return bound_loops(compose(mask(plain, plain.whole)))


def with_sums_in_loops(program: Program) -> Program:
    """The program with every list that is only reduced accumulated in the loop that makes it."""
    rule = fuse_map_with_reduce.RULE
    while (found := next((place for place in rule.match(program, None) if isinstance(place, Match)), None)) is not None:
        program = rule.rewrite(program, found)
    return program


def _plan(snapshot: int, ready: Program, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> Plan:
    """The plan of what is emitted, priced without the masks that padding needs."""
    return Plan(ready, 0, dict(tiles), dict(sizes), (cost(ready, sizes, tiles),), (ready,), f"snapshot {snapshot}")


def _header(plan: Plan, program: ArrayProgram, machine: Machine) -> tuple[str, ...]:
    """The comment lines at the top of a file."""
    cost = plan.costs[0]
    sizes = ", ".join(f"{dim}={size}" for dim, size in plan.sizes.items())
    return (
        f"Program {program.name} for {machine.name}, {plan.note}; kernels: {cost.kernels}.",
        f"Tuned for {sizes}:",
        f"{cost.traffic_bytes} bytes moved, {cost.flops} operations, {cost.special} special functions.",
        *map(visible, program.source.splitlines()),
    )


def needs_of(function: Function, machine: Machine, way: Options) -> Needs:
    """What a function probably needs, launched in some way."""
    kernel = read(function.text, function.parameters, function.constants)
    descriptors = {name for name, kind in function.parameters.items() if kind.startswith("tensordesc")}
    copies = sum(not descriptors.isdisjoint(line.reads) for line in lines(kernel))
    found = needs(kernel, Launch(way.warps, way.stages, gpu_of(machine).multiplies_in_groups))
    return replace(found, shared_bytes=found.shared_bytes + copies * (way.stages + 1) * BARRIER)
