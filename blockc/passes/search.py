"""The choice for a machine: a snapshot, the size of every block, and the tier of every list, by predicted time.

For each snapshot block sizes are tried together, powers of two on a grid that is coarse enough to be quick, and then
halved and doubled, one or two at a time, for as long as that helps. Then lists are put into faster tiers, in rounds:
those that save something alone, the best one first, until none does. A program with a second cut (`cut_again.py`) has
its use only with what a chunk reads and accumulates in a middle tier: the search begins with all of that in one, for
each tier, and then moves lists one at a time. What does not fit a tier is out. Of the time that
all resources take, a thousandth is added to the predicted time, so that of plans that are as fast the one that moves
least is chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import Map, Program, count_maps, roots, walk
from blockc.ir.dtypes import DTYPES
from blockc.ir.machine import Machine
from blockc.ir.schedule import Loop, Schedule, Stage, Statement
from blockc.ir.schedule import walk as statements_of
from blockc.passes.alike import Pattern, pattern
from blockc.passes.choose import batch_dimensions, power_of_two, reduced_dimensions
from blockc.passes.machine_cost import Estimate, KernelCost, KernelEstimate, MachineCost, Numbers, estimate, evaluate
from blockc.passes.machine_model import Model, model, plain_name
from blockc.passes.place import Placement, place
from blockc.passes.units import Unplaceable

MOST = 2000  # choices of block sizes that are tried at first
MOST_GROUPED = 256  # blocks of a chunk
SMALLEST = 4  # elements of a block, unless nothing fits
TIE = 1e-3  # how much the time of resources that do not decide counts
NEAR, LOOKED_AT = 2.0, 3  # lists are placed for so many snapshots, not slower than so many times the fastest
CLOSE = 1.005  # of predicted times: what differs by less is the same
GAIN = 0.995  # of the time: what a placement has to save


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan for a machine: what was chosen for one snapshot, and what it costs. `why` says why there is none."""

    snapshot: int
    program: Program
    tiles: Mapping[str, int]
    placement: Placement
    schedule: Schedule | None
    cost: MachineCost | None
    score: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class First:
    """What is found for a snapshot with all lists in the outermost tier: block sizes, with the schedule and its model,
    and the score. `why` says why there is nothing."""

    program: Program
    chosen: dict[str, int]
    schedule: Schedule | None
    model: Model | None
    score: float
    why: str = ""


@dataclass(slots=True)
class Searched:
    """What was found on one machine, for programs that are the same but for their names to be searched once."""

    known: dict[object, tuple[Pattern, tuple[Choice, ...]]] = field(default_factory=dict)


def best_choice(choices: tuple[Choice, ...]) -> Choice | None:
    """The fastest; of those that are less than 0.5 % slower, the one with the fewest kernels, then the fewest maps."""

    def simplicity(choice: Choice) -> tuple[int, int]:
        return len(choice.cost.kernels) if choice.cost else 0, count_maps(choice.program.body)

    found = [choice for choice in choices if choice.cost is not None]
    least = min((choice.score for choice in found), default=0.0)
    return min((choice for choice in found if choice.score <= least * CLOSE), key=simplicity, default=None)


def best_score(found: list[First]) -> float:
    """The score of what `best_choice` would take, infinite if there is nothing."""

    def simplicity(first: First) -> tuple[int, int]:
        return len(first.model.kernels) if first.model else 0, count_maps(first.program.body)

    least = min((first.score for first in found), default=math.inf)
    close = (first for first in found if first.score <= least * CLOSE)
    return min(close, key=simplicity).score if math.isfinite(least) else math.inf


def search(
    programs: tuple[Program, ...],
    machine: Machine,
    sizes: Mapping[str, int],
    asked: Mapping[str, int],
    searched: Searched,
) -> tuple[Choice, ...]:
    """The best choice for each of the snapshots of a program as they are emitted. `asked` are given block sizes.
    `searched` is what was found before on the machine."""
    searches = _searches(programs, machine, sizes, asked)
    own = pattern(programs)
    key = own.key, tuple((sizes.get(dim), asked.get(dim)) for dim in own.dims)
    found = None
    if key in searched.known:
        other, choices = searched.known[key]
        names, dims = (dict(zip(*pair, strict=True)) for pair in ((other.names, own.names), (other.dims, own.dims)))
        found = [each.as_found(choice, names, dims) for each, choice in zip(searches, choices, strict=True)]
    if found is None or None in found:
        result = _search(searches)
        searched.known[key] = own, result
        return result
    return tuple(choice for choice in found if choice is not None)


def _search(searches: list[_Search]) -> tuple[Choice, ...]:
    first = [searched.without_placement(at) for at, searched in enumerate(searches)]
    scores = sorted(choice.score for choice in first if choice.cost is not None)[:LOOKED_AT]
    limit = min(scores[-1], NEAR * scores[0]) if scores else 0.0
    return tuple(
        searched.with_placement(choice) if choice.cost is not None and choice.score <= limit else choice
        for searched, choice in zip(searches, first, strict=True)
    )


def first_found(
    programs: tuple[Program, ...], machine: Machine, sizes: Mapping[str, int], asked: Mapping[str, int]
) -> list[First]:
    """What `search` begins with: quick, and an estimate of what it will find."""
    return [searched.first() for searched in _searches(programs, machine, sizes, asked)]


def _searches(
    programs: tuple[Program, ...], machine: Machine, sizes: Mapping[str, int], asked: Mapping[str, int]
) -> list[_Search]:
    batch = set.intersection(*(batch_dimensions(program) - reduced_dimensions(program) for program in programs))
    return [_Search(program, machine, sizes, asked, batch) for program in programs]


def search_cut(
    program: Program, machine: Machine, sizes: Mapping[str, int], asked: Mapping[str, int], known: Choice
) -> Choice:
    """The best choice for a program with a second cut. `known` is that for the program without."""
    (searched,) = _searches((program,), machine, sizes, asked)
    searched.known = known.cost
    lists = in_chunks(program)
    kept = {name: tier for name, tier in known.placement.items() if name in program.types}
    tiers = [tier.name for tier in machine.tiers[1:]]
    shared = tuple(dict.fromkeys(what_is_shared(program, lists, dim) for dim in program.chunks.values()))
    found = []
    for groups in ((lists,), shared):  # the best of either, since lists are moved one at a time
        starts = [{**kept, **dict.fromkeys(group, tier)} for group in groups for tier in tiers]
        choices = [choice for start in starts if (choice := searched.placed(known, start)) is not None]
        if choices and (start := min(choices, key=lambda choice: choice.score)).score < NEAR * known.score:
            found.append(searched.moved(start, lists))
    best = best_choice(tuple(found))
    if best is None:
        why = "no tier holds what a chunk reads and accumulates, without taking longer"
        return Choice(known.snapshot, program, {}, {}, None, None, math.inf, why)
    return searched.with_placement(best)


def what_is_shared(program: Program, lists: tuple[str, ...], dim: str) -> tuple[str, ...]:
    """Those of some lists that all blocks of a dimension use, and what is accumulated along it."""
    return tuple(name for name in lists if dim not in program.types[name].axes)


def in_chunks(program: Program) -> tuple[str, ...]:
    """The lists that a chunk has for its blocks: parts of lists that maps over chunks and loops around maps read, the
    smallest ones; and what is accumulated."""
    ports: dict[str, str] = {}
    accumulated: list[str] = []
    for node in walk(program.body):
        if not isinstance(node, Map) or not (node.dim in program.chunks or node.is_loop):
            continue
        ports.update((port.name, port.source) for port in node.ports if not program.types[port.name].is_item)
        outputs = [output for output in node.outputs if output.monoid is not None]
        accumulated += [name for out in outputs for name in out.names if not program.types[name].is_item]
    return (*(name for name in ports if name not in ports.values()), *accumulated)


@dataclass
class _Search:
    program: Program
    machine: Machine
    given: Mapping[str, int]
    asked: Mapping[str, int]
    batch: set[str]
    known: MachineCost | None = None

    def __post_init__(self) -> None:
        self.smallest = SMALLEST
        self.sizes = complete_sizes(self.program, self.given)
        self.chunks = self.program.chunks
        names = [name for node in walk(self.program.body) for name in node.defines]
        lists = {dim for name in names for dim in self.program.types[name].lists}
        self.groups = self.chunks.keys() - lists  # those of a second cut
        self.cut = [
            dim.name for dim in self.program.dims if dim.name not in self.program.whole and dim.name not in self.chunks
        ]

    # Block sizes

    def ladder(self, dim: str) -> list[int]:
        """The block sizes to try along a dimension; of a second cut the numbers of blocks, else those of chunks."""
        if dim in self.asked:
            return [self.asked[dim]]
        if dim in self.groups:
            most = max(1, min(MOST_GROUPED, self.sizes[self.chunks[dim]]))
            return [1 << power for power in range(most.bit_length())]
        if dim in self.chunks:
            most = power_of_two(2 * self.machine.units)
            return [1 << power for power in range(1, most.bit_length())]
        if dim in self.batch:
            return [1]
        top = power_of_two(max(1, self.sizes[dim]))
        return [1 << power for power in range(min(top, self.smallest).bit_length() - 1, top.bit_length())]

    def grid(self) -> list[dict[str, int]]:
        """Choices of a block size for each dimension."""
        ladders = {dim: self.ladder(dim) for dim in (*self.cut, *self.chunks)}
        stride = 1
        while math.prod(-(-len(ladder) // stride) for ladder in ladders.values()) > MOST:
            stride += 1
        thinned = [ladder[::-1][::stride][::-1] for ladder in ladders.values()]
        return [dict(zip(ladders, chosen, strict=True)) for chosen in itertools.product(*thinned)]

    def near(self, chosen: Mapping[str, int], together: int = 2) -> list[dict[str, int]]:
        """A choice and those with one block size, or so many `together`, halved or doubled."""
        found = {tuple(chosen.values()): dict(chosen)}
        ladders = {dim: self.ladder(dim) for dim in chosen}
        moves = [(dim, step) for dim, ladder in ladders.items() if len(ladder) > 1 for step in (-1, 1)]
        for steps in (steps for count in range(1, together + 1) for steps in itertools.combinations(moves, count)):
            other = dict(chosen)
            for dim, step in steps:
                at = ladders[dim].index(other[dim]) + step
                other[dim] = ladders[dim][min(max(at, 0), len(ladders[dim]) - 1)]
            found.setdefault(tuple(other.values()), other)
        return list(found.values())

    def tiles(self, choices: list[dict[str, int]]) -> dict[str, Numbers]:
        """Block sizes in elements: chunks are whole blocks."""
        result = {dim: np.array([float(choice[dim]) for choice in choices]) for dim in self.cut}
        for chunk, dim in self.chunks.items():
            counts = np.array([float(choice[chunk]) for choice in choices])
            if chunk in self.groups:
                result[chunk] = np.minimum(counts, np.ceil(max(1, self.sizes[dim]) / result[dim])) * result[dim]
                continue
            elements = np.ceil(max(1, self.sizes[dim]) / counts)
            result[chunk] = np.ceil(elements / result[dim]) * result[dim]
        return result

    def exact(self, choice: dict[str, int]) -> dict[str, int]:
        """The block sizes of one choice."""
        return {dim: int(numbers[0]) for dim, numbers in self.tiles([choice]).items()}

    def scores(self, found: Estimate) -> Numbers:
        """Predicted seconds, and a little for all that resources do; infinite for what does not fit, or risks too much.

        A prediction takes it that moves and computing overlap, which those of one task may not. So what is compared
        with a plan that is `known` has as many units busy, and takes no longer if nothing overlaps.
        """
        total = found.seconds.copy()
        for kernel in found.kernels:
            for seconds in kernel.resources.values():
                total = total + TIE * seconds
        fits = found.fits(self.machine)
        if self.known is not None:
            for kernel, before in zip(found.kernels, self.known.kernels, strict=True):
                fits = fits & (kernel.tasks >= min(self.machine.units, before.tasks))
            fits = fits & (sum(map(alone, found.kernels)) <= sum(map(alone, self.known.kernels)))
        return np.where(fits, total, math.inf)

    def best(self, model: Model, choices: list[dict[str, int]]) -> tuple[dict[str, int], float]:
        """The best of some choices, improved step by step."""
        scores = self.scores(estimate(model, self.given, self.tiles(choices)))
        at = int(np.argmin(scores))
        best, least = choices[at], float(scores[at])
        while math.isfinite(least):
            around = self.near(best)
            scores = self.scores(estimate(model, self.given, self.tiles(around)))
            at = int(np.argmin(scores))
            if scores[at] >= least:
                break
            best, least = around[at], float(scores[at])
        return best, least

    def grouped(self, known: Mapping[str, int]) -> list[dict[str, int]]:
        """Choices for a second cut of blocks of known sizes."""
        ladders = {chunk: self.ladder(chunk) for chunk in self.chunks}
        blocks = {dim: min(self.ladder(dim), key=lambda size: abs(size - known[dim])) for dim in self.cut}
        return [
            {**blocks, **dict(zip(ladders, counts, strict=True))} for counts in itertools.product(*ladders.values())
        ]

    # Placement

    def placed(self, known: Choice, placement: Placement) -> Choice | None:
        """The best block sizes with lists in these tiers; None if there are none."""
        try:
            schedule = place(self.program, self.machine, placement)
        except Unplaceable:
            return None
        found = model(schedule)
        chosen, score = self.best(found, [*self.grouped(known.tiles), *self.grid()])
        return self.made(known.snapshot, chosen, placement, schedule, found, score) if math.isfinite(score) else None

    def moved(self, choice: Choice, lists: tuple[str, ...]) -> Choice:
        """The choice with lists in other tiers, the one that helps most first, as long as that pays."""
        chosen, home = self.knobs(choice.tiles), self.machine.tiers[0].name
        found = []
        for name, tier in itertools.product(lists, self.machine.tiers):
            if choice.placement.get(name, home) != tier.name:
                placement = {**choice.placement, name: tier.name}
                tried = self.tried(chosen, placement, 1)
                if tried is not None and tried[0] < GAIN * choice.score:
                    found.append((tried[0], name, tier.name))
        done: set[str] = set()
        for _, name, tier_name in sorted(found):
            placement = {**choice.placement, name: tier_name}
            tried = self.tried(chosen, placement) if name not in done else None
            if tried is not None and tried[0] < GAIN * choice.score:
                score, chosen, schedule, around = tried
                chosen, score = self.best(around, [chosen])
                choice = self.made(choice.snapshot, chosen, placement, schedule, around, score)
                done.add(name)
        assert choice.schedule is not None
        used = set(choice.schedule.lives).union(*map(storages_of, choice.schedule.kernels))
        return replace(choice, placement={name: tier for name, tier in choice.placement.items() if name in used})

    def without_placement(self, snapshot: int) -> Choice:
        """The best block sizes with all lists in the outermost tier."""
        found = self.first()
        if found.schedule is None or found.model is None:
            return Choice(snapshot, self.program, {}, {}, None, None, math.inf, found.why)
        return self.made(snapshot, found.chosen, {}, found.schedule, found.model, found.score)

    def as_found(self, choice: Choice, names: Mapping[str, str], dims: Mapping[str, str]) -> Choice | None:
        """The choice for the program that this one is but for its names, which `names` and `dims` translate; None if it
        is none here, or if its reason has names."""
        if choice.schedule is None or choice.cost is None:
            return None
        tiles = {dims[dim]: tile for dim, tile in choice.tiles.items()}
        placement = {names[name]: tier for name, tier in choice.placement.items()}
        schedule = place(self.program, self.machine, placement)
        cost = evaluate(model(schedule), self.given, tiles)
        found = Choice(choice.snapshot, self.program, tiles, placement, schedule, cost, choice.score)
        return found if cost.seconds == choice.cost.seconds and cost.peak == choice.cost.peak else None

    def first(self) -> First:
        """The best block sizes with all lists in the outermost tier."""
        try:
            schedule = place(self.program, self.machine)
        except Unplaceable as error:
            return First(self.program, {}, None, None, math.inf, str(error))
        found = model(schedule)
        choices = self.grid()
        best, least = self.best(found, choices)
        if not math.isfinite(least):
            self.smallest = 1
            choices = self.grid()
            best, least = self.best(found, choices)
        if not math.isfinite(least):
            why = self.too_large(estimate(found, self.given, self.tiles(choices)))
            return First(self.program, {}, None, None, math.inf, why)
        return First(self.program, best, schedule, found, least)

    def made(
        self,
        snapshot: int,
        chosen: dict[str, int],
        placement: Placement,
        schedule: Schedule,
        found: Model,
        score: float,
    ) -> Choice:
        tiles = self.exact(chosen)
        cost = evaluate(found, self.given, tiles)
        return Choice(snapshot, self.program, tiles, dict(placement), schedule, cost, score)

    def with_placement(self, choice: Choice) -> Choice:
        """The choice with lists in faster tiers, as long as that pays."""
        if choice.schedule is None or choice.cost is None:
            return choice
        chosen, current = self.knobs(choice.tiles), choice
        while True:
            before = current
            found = []
            for name, tier in self.placements(current):
                tried = self.tried(chosen, {**current.placement, name: tier})
                if tried is not None and tried[0] < GAIN * current.score:
                    found.append((tried[0], name, tier))
            for _, name, tier in sorted(found):  # what helps alone may help together
                placement = {**current.placement, name: tier}
                tried = self.tried(chosen, placement) if name not in current.placement else None
                if tried is not None and tried[0] < GAIN * current.score:
                    score, chosen, schedule, around = tried
                    current = self.made(choice.snapshot, chosen, placement, schedule, around, score)
            if current is before:
                return current
            assert current.schedule is not None
            around = model(current.schedule)
            chosen, score = self.best(around, [chosen])
            current = self.made(choice.snapshot, chosen, current.placement, current.schedule, around, score)

    def tried(
        self, chosen: dict[str, int], placement: Placement, together: int = 2
    ) -> tuple[float, dict[str, int], Schedule, Model] | None:
        """The best of a choice of block sizes and those near it with a placement."""
        try:
            schedule = place(self.program, self.machine, placement)
        except Unplaceable:
            return None
        around = model(schedule)
        choices = self.near(chosen, together)
        scores = self.scores(estimate(around, self.given, self.tiles(choices)))
        at = int(np.argmin(scores))
        return float(scores[at]), choices[at], schedule, around

    def knobs(self, tiles: Mapping[str, int]) -> dict[str, int]:
        """The choice that has these block sizes."""
        result = {dim: tiles[dim] for dim in self.cut}
        for chunk, dim in self.chunks.items():
            ladder = self.ladder(chunk)
            if chunk in self.groups:
                result[chunk] = min(ladder, key=lambda count: abs(count - tiles[chunk] // tiles[dim]))
                continue
            made = [self.exact({**result, **dict.fromkeys(self.chunks, count)})[chunk] for count in ladder]
            result[chunk] = ladder[made.index(tiles[chunk])] if tiles[chunk] in made else ladder[0]
        return result

    def placements(self, choice: Choice) -> Iterator[tuple[str, str]]:
        """Lists that might lie in a faster tier: those that the program makes and does not return, and those that are
        read more than once."""
        assert choice.schedule is not None and choice.cost is not None
        origin, types = roots(choice.schedule.program), choice.schedule.program.types
        outputs = {origin.get(result.value, result.value) for result in choice.schedule.program.outputs}
        loops = [node for kernel in choice.schedule.kernels for node in statements_of(kernel) if isinstance(node, Loop)]
        inside = [plain_name(storage.name) for loop in loops for storage in loop.storages]
        home = self.machine.tiers[0].name
        loaded: dict[str, int] = {}
        for (value, source, _), count in choice.cost.moved.items():
            if source == home:
                loaded[value] = loaded.get(value, 0) + count
        names = [name for name in (*choice.schedule.lives, *inside) if name not in outputs]
        tops = {entry.name for entry in self.program.inputs}
        ports = [port.name for node in walk(self.program.body) if isinstance(node, Map) for port in node.ports]
        for name in (*sorted(tops), *ports):
            root = origin.get(name, name)
            if types[name].lists and loaded.get(root, 0) > self.bytes(root) and root not in names:
                names.append(name)
        for name in dict.fromkeys(names):
            if name not in choice.placement:
                for tier in self.machine.tiers[1:]:
                    yield name, tier.name

    def bytes(self, name: str) -> int:
        """The size of a list."""
        kind = self.program.types[name]
        return DTYPES[kind.dtype].size * math.prod(self.sizes[axis] for axis in kind.axes)

    def too_large(self, found: Estimate) -> str:
        """What does not fit, for the choice that is nearest to fitting."""
        limits = {tier.name: tier.capacity for tier in self.machine.tiers}
        over = np.maximum.reduce([space / limits[tier] for tier, space in found.peak.items()])
        at = int(np.argmin(over))
        tier = max(found.peak, key=lambda name: float(found.peak[name][at]) / limits[name])
        return f"{int(found.peak[tier][at]):,} bytes are needed in {tier}, which has {limits[tier]:,}"


def alone(kernel: KernelCost | KernelEstimate) -> Any:
    """The seconds of a kernel if no two of its moves and operators overlap."""
    each = [time for name, time in kernel.resources.items() if "->" in name or name.startswith("computing")]
    return np.maximum(kernel.seconds, sum(each))


def storages_of(kernel: tuple[Statement, ...]) -> Iterator[str]:
    """The lists that a kernel has storages for in other tiers, or makes itself."""
    for node in statements_of(kernel):
        if isinstance(node, Stage):
            yield plain_name(node.storage.name)
        elif isinstance(node, Loop):
            yield from (plain_name(storage.name) for storage in node.storages)
