"""The smallest change with which two operators come into one kernel, found by compiling again with it.

Changes are tried in a fixed order: smaller blocks, a dimension kept whole, a tier with more room, kernels that cost
more to start, and last the program without an operator that no rule can move. Of tiers and costs powers of two are
tried, up to 1024 times what they are, and the smallest that helps is found by bisection. A change with which the
program takes much longer is given only if no other one helps. Nothing is suggested that was not compiled and looked at;
a search ends after so many compilations or seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from blockc import driver
from blockc.errors import BlockcError
from blockc.inspector.loops import loops_of
from blockc.inspector.origins import operators_of
from blockc.inspector.pairs import Inspection, Reason
from blockc.ir.array_program import ArrayProgram, Node
from blockc.ir.machine import Machine, Tier
from blockc.ir.ops import OPERATORS
from blockc.partition import partition

RUNS, SECONDS = 20, 10.0  # of compiling again
SLOWER = 1.25  # times as long as now: a change that takes more is looked at last
EXPONENTS = 10  # up to 1024 times
LINEAR = frozenset({"add", "sub", "neg"})  # rules move these
MOST_OPERATORS = 4


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is done differently: an option of the command line, another machine, or another program."""

    kind: str  # "tile", "tier", "dispatch" or "operator"
    text: str
    values: Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change with which two operators are in one kernel, and the predicted seconds with it."""

    change: Change
    kernels: frozenset[int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Tried:
    """What was found: the smallest change that helps, if any; if none does, an operator without which the program does
    come into one kernel; and all that was tried. `before` are the predicted seconds without a change, and `ended` says
    why the search ended before everything was tried."""

    suggestion: Suggestion | None
    obstacle: Suggestion | None
    before: float
    changes: tuple[str, ...]
    runs: int
    seconds: float
    ended: str


class OutOfTime(Exception):
    """The search may take no longer."""


@dataclass(slots=True)
class Search:
    """The search for a change. `accept` gives the kernels in which all pairs of operators are as they are wanted to be,
    none if some are not; `clock` tells the time."""

    found: Inspection
    machine: Machine
    tiles: driver.Tiles
    split: driver.Split
    pairs: Sequence[tuple[str, str]]
    accept: Callable[[Inspection, Iterable[tuple[str, str]]], frozenset[int]]
    clock: Callable[[], float] = time.monotonic
    runs: int = 0
    tried: list[str] = field(default_factory=list)
    started: float = field(init=False)

    def run(self, reason: Reason | None) -> Tried:
        """The smallest change that brings the operators together. Without a reason only operators are left out."""
        self.started = self.clock()
        before = self.found.partition.seconds
        helpful: list[Suggestion] = []
        obstacle, ended = None, ""
        try:
            for suggestion in filter(None, self.suggestions(reason) if reason is not None else ()):
                helpful.append(suggestion)
                if suggestion.seconds <= before * SLOWER:
                    break
            if not helpful:
                obstacle = next(filter(None, self.without_operators()), None)
        except OutOfTime:
            ended = f"it was ended after {self.runs} compilations in {self.clock() - self.started:.1f} s"
        quick = [one for one in helpful if one.seconds <= before * SLOWER]
        best = next(iter((*quick, *helpful)), None)
        taken = self.clock() - self.started
        return Tried(best, obstacle, before, tuple(self.tried), self.runs, taken, ended)

    def suggestions(self, reason: Reason) -> Iterator[Suggestion | None]:
        """What each change leads to, the smallest change first."""
        if reason.kind in ("no_room", "cut"):
            yield from map(self.with_smaller_blocks, self.dims())
        for dim in self.dims():
            if self.tiles.get(dim, 0) is not None:
                yield self.with_tile(dim, None)
        if not driver.has_kernels(self.machine):
            for tier in reversed(self.machine.tiers[1:]):
                yield self.with_tier(tier)
            if reason.kind in ("cut", "slower"):
                yield self.with_dispatch()

    # Changes

    def dims(self) -> list[str]:
        """The dimensions of the operators, the shortest first."""
        names = {name for pair in self.pairs for name in pair}
        program = self.found.partition.program
        used = {dim for node in program.nodes if node.name in names for dim in (*node.shape, *node.dims)}
        sizes = self.found.partition.sizes
        whole = {dim for part in self.found.origins.parts for dim in part.chosen.whole}
        cut = {dim.name for part in self.found.origins.parts for dim in part.chosen.dims} - whole
        return sorted(used & cut & sizes.keys(), key=lambda dim: (sizes[dim], list(sizes).index(dim)))

    def with_tile(self, dim: str, tile: int | None) -> Suggestion | None:
        shown = "whole" if tile is None else str(tile)
        change = Change("tile", f"--tile {dim}={shown}", {"dim": dim, "tile": shown})
        return self.attempt(change, self.machine, {**self.tiles, dim: tile})

    def with_smaller_blocks(self, dim: str) -> Suggestion | None:
        """Half and a quarter of the smallest block that the dimension has now."""
        blocks = [
            part.part.plan.chosen.choice.tiles[dim]
            for part in self.found.origins.parts
            if dim in part.part.plan.chosen.choice.tiles
        ]
        for smaller in (min(blocks, default=1) // 2, min(blocks, default=1) // 4):
            if smaller >= 1 and (found := self.with_tile(dim, smaller)) is not None:
                return found
        return None

    def with_tier(self, tier: Tier) -> Suggestion | None:
        """A tier with more room."""

        def attempt(times: int) -> Suggestion | None:
            capacity = tier.capacity * times
            larger = replace(tier, capacity=capacity)
            tiers = tuple(larger if one.name == tier.name else one for one in self.machine.tiers)
            text = f"a tier {tier.name} of {capacity:,} bytes, {times} times its size"
            change = Change("tier", text, {"tier": tier.name, "capacity": capacity, "times": times})
            return self.attempt(change, replace(self.machine, tiers=tiers), self.tiles)

        return self.smallest(attempt)

    def with_dispatch(self) -> Suggestion | None:
        """Kernels that cost more to start, so that fewer of them are better."""

        def attempt(times: int) -> Suggestion | None:
            dispatch = self.machine.dispatch * times
            text = f"kernels that cost {1e6 * dispatch:,.3f} us to start, {times} times as much"
            change = Change("dispatch", text, {"dispatch": dispatch, "times": times})
            return self.attempt(change, replace(self.machine, dispatch=dispatch), self.tiles)

        return self.smallest(attempt) if self.machine.dispatch else None

    def smallest(self, attempt: Callable[[int], Suggestion | None]) -> Suggestion | None:
        """What the smallest power of two leads to that helps, if the largest one does."""
        best, low, high = attempt(1 << EXPONENTS), 0, EXPONENTS
        while best is not None and low + 1 < high:
            middle = (low + high) // 2
            found = attempt(1 << middle)
            best, low, high = (best, middle, high) if found is None else (found, low, middle)
        return best

    def without_operators(self) -> Iterator[Suggestion | None]:
        """What the program without an operator leads to, for those that no rule moves."""
        for node in self.unmoved():
            program = without(self.found.partition.program, node)
            text = f"the program without the operator {node.op} of `{node.name}`"
            change = Change("operator", text, {"operator": node.name, "op": node.op})
            yield self.attempt(change, self.machine, self.tiles, program, self.pairs_without(node))

    def pairs_without(self, node: Node) -> list[tuple[str, str]]:
        """The pairs, with what an operator reads or with what reads it in its place."""
        instead = operand(self.found.partition.program, node)
        readers = [reader for made, reader in self.found.origins.neighbours if made == node.name]
        return [
            pair
            for first, second in self.pairs
            for pair in (
                [(str(instead), second)]
                if first == node.name
                else [(first, reader) for reader in readers]
                if second == node.name
                else [(first, second)]
            )
        ]

    def unmoved(self) -> list[Node]:
        """Elementwise operators beside the two, that are not linear, and have an operand of their shape."""
        program = self.found.partition.program
        names = {name for pair in self.pairs for name in pair}
        close = names | {other for pair in self.found.origins.neighbours if names & {*pair} for other in pair}
        found = [
            node
            for node in operators_of(program)
            if node.name in close and node.op in OPERATORS and node.op not in LINEAR and operand(program, node)
        ]
        return sorted(found, key=lambda node: node.name not in names)[:MOST_OPERATORS]

    # Compiling again

    def attempt(
        self,
        change: Change,
        machine: Machine,
        tiles: driver.Tiles,
        program: ArrayProgram | None = None,
        pairs: Sequence[tuple[str, str]] = (),
    ) -> Suggestion | None:
        """What a change leads to, if that is one kernel for the operators."""
        if self.runs >= RUNS or self.clock() - self.started > SECONDS:
            raise OutOfTime
        self.runs += 1
        self.tried.append(change.text)
        sizes = self.found.partition.sizes
        try:
            again = partition(program or self.found.partition.program, machine, sizes, tiles, self.split)
        except BlockcError:  # it does not fit then, or cannot be cut so
            return None
        kernels = self.accept(Inspection.of(again), pairs or self.pairs)
        return Suggestion(change, kernels, again.seconds) if kernels else None


def in_one_kernel(found: Inspection, pairs: Iterable[tuple[str, str]]) -> frozenset[int]:
    """The kernels in which all pairs of operators are; none if one of them is gone."""
    where = found.origins
    known = all(name in where.by_name for pair in pairs for name in pair)
    return frozenset.intersection(*(where.together(*pair) for pair in pairs)) if known else frozenset()


def in_one_loop(found: Inspection, pairs: Iterable[tuple[str, str]]) -> frozenset[int]:
    """The same for operators that are in one loop there."""
    kernels = in_one_kernel(found, pairs)
    return kernels if kernels and all(loops_of(found, *pair) is None for pair in pairs) else frozenset()


def operand(program: ArrayProgram, node: Node) -> str | None:
    """An operand that can take the place of an operator, if there is one."""
    nodes = {other.name: other for other in program.nodes}
    same = (arg for arg in node.args if set(nodes[arg].shape) == set(node.shape) and node.dtype == nodes[arg].dtype)
    return next(same, None)


def without(program: ArrayProgram, node: Node) -> ArrayProgram:
    """The program with an operand in place of an operator; what is then needed by nothing is left out."""
    instead = operand(program, node)
    assert instead is not None

    def now(name: str) -> str:
        return instead if name == node.name else name

    nodes = [replace(one, args=tuple(map(now, one.args))) for one in program.nodes if one.name != node.name]
    outputs = tuple(replace(result, node=now(result.node)) for result in program.outputs)
    needed = {result.node for result in outputs}
    kept: list[Node] = []
    for one in reversed(nodes):
        if one.name in needed or one.op == "input":
            needed.update(one.args)
            kept.insert(0, one)
    return replace(program, nodes=tuple(kept), outputs=outputs)
