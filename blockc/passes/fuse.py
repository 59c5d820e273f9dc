"""The fuser: applies the rules to the fixed point, then takes snapshots that exchange memory traffic for work.

From the outermost graph inwards, the first rule that matches is applied, and the search starts again at the graph that
changed. Every step is verified, is shown to decrease the measure, and is recorded (design, section 6).
"""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass, field, replace

from blockc.ir.array_program import Span
from blockc.ir.block import Definition, Map, Path, Program, graph_at, walk
from blockc.ir.decisions import Derivation, Match, Refusal, Refused, Rule, Step
from blockc.ir.verify import Verified, VerifyError, verify
from blockc.passes.cost import buffered_lists
from blockc.passes.measure import decreases
from blockc.passes.normalise import normalise
from blockc.passes.pivot import cancels
from blockc.passes.remembered import Memory
from blockc.passes.rules import (
    RULES,
    extend_map,
    hoist_map,
    interchange_maps,
    reassociate_contraction,
    split_product,
    swap_shift_and_contraction,
)
from blockc.passes.rules.common import find

REASSOCIATE, HOIST = reassociate_contraction.RULE, hoist_map.RULE
OPENING = (swap_shift_and_contraction.RULE, split_product.RULE)  # what may make sums that cancel
CLOSED = tuple(rule for rule in RULES if rule not in OPENING)


@dataclass(frozen=True, slots=True)
class Budget:
    """How far the fuser may go: applied steps, snapshots, and seconds."""

    steps: int = 20_000
    snapshots: int = 8
    seconds: float = 60.0


def fuse(program: Program, budget: Budget | None = None) -> Derivation:
    """The derivation from the unfused program. Overrunning a budget keeps the last verified snapshot and says so.

    A snapshot whose sums cancel and cannot have a pivot is dropped. If none is left, no sum is opened. Snapshots that
    keep no list in slow memory come last.
    """
    return ordered(sound(program, budget))


def sound(program: Program, budget: Budget | None) -> Derivation:
    """The derivation with the snapshots whose sums do not cancel, in the order in which they were found."""
    derivation = derive(program, budget or Budget(), RULES)
    problems = {number: cancels(snapshot) for number, snapshot in enumerate(derivation.snapshots)}
    kept = [number for number, problem in problems.items() if not problem]
    if len(kept) == len(problems):
        return derivation
    dropped = tuple(Refused(k, "pivot", "sums_cancel", (), why) for k, why in problems.items() if why)
    if kept:
        return without(derivation, kept, dropped)
    closed = derive(program, budget or Budget(), CLOSED)
    if any(cancels(snapshot) for snapshot in closed.snapshots):  # so it does as it was written
        return derivation
    return replace(closed, refusals=(*closed.refusals, *(replace(refused, snapshot=0) for refused in dropped)))


def without_opening(derivation: Derivation) -> Derivation | None:
    """Another derivation from the same program, in which no sum is opened; None if none was."""
    if not any(step.rule == rule.name for step in derivation.steps for rule in OPENING):
        return None
    return ordered(derive(derivation.unfused, Budget(), CLOSED))


def without(derivation: Derivation, kept: list[int], dropped: tuple[Refused, ...]) -> Derivation:
    """The derivation with these snapshots only. Steps to others belong to the next one that is left."""
    number = {old: bisect_left(kept, old) for old in range(len(derivation.snapshots))}
    steps = (replace(step, snapshot=number[step.snapshot]) for step in derivation.steps)
    refusals = (replace(refused, snapshot=number[refused.snapshot]) for refused in (*derivation.refusals, *dropped))
    last = len(kept) - 1
    return replace(
        derivation,
        snapshots=tuple(derivation.snapshots[old] for old in kept),
        steps=tuple(step for step in steps if step.snapshot <= last),
        refusals=tuple(replace(refused, snapshot=min(refused.snapshot, last)) for refused in refusals),
    )


def ordered(derivation: Derivation) -> Derivation:
    """The derivation with the snapshots that keep no list behind those that keep one. Steps stay in the order in which
    they were taken."""
    found = range(len(derivation.snapshots))
    order = sorted(found, key=lambda number: not buffered_lists(derivation.snapshots[number]))
    if order == list(found):
        return derivation
    number = {old: new for new, old in enumerate(order)}
    return replace(
        derivation,
        snapshots=tuple(derivation.snapshots[old] for old in order),
        steps=tuple(replace(step, snapshot=number[step.snapshot]) for step in derivation.steps),
        refusals=tuple(replace(refused, snapshot=number[refused.snapshot]) for refused in derivation.refusals),
    )


def derive(program: Program, budget: Budget, rules: tuple[Rule, ...]) -> Derivation:
    """The derivation by some of the rules, with all its snapshots."""
    run = _Run(budget, rules)
    start = normalise(program, run.memory)
    verify(start, run.verified)
    snapshots = [run.settle(start)]
    current = run.join(snapshots)
    branched = False
    while not run.stopped:
        run.refuse(current)
        if not branched:
            branched = run.interchange(current, snapshots)
        found = next_place(current, matches(extend_map.RULE, current))
        if found is None or not run.take(extend_map.RULE, found, current, snapshots):
            break
        current = snapshots[-1]
    if not run.stopped:
        run.snapshot = len(snapshots)
        snapshots.extend(run.reassociate(snapshots))
    return Derivation(start, tuple(snapshots), tuple(run.steps), tuple(run.refusals), not run.stopped, run.stopped)


def matches(rule: Rule, program: Program) -> list[Match]:
    """All places where a rule applies."""
    return [place for place in rule.match(program, None) if isinstance(place, Match)]


def next_place(program: Program, found: list[Match]) -> Match | None:
    """The producer to take next: of a list; without a contraction first, then the least repeated work, then program
    order."""
    inside = [place for place in found if place.path]
    lists = [place for place in inside if program.types[place.at[0]].lists]
    candidates = lists or inside
    return min(candidates, key=lambda place: extend_map.repeats(program, place)) if candidates else None


@dataclass(slots=True)
class _Run:
    budget: Budget
    rules: tuple[Rule, ...]
    snapshot: int = 0
    stopped: str = ""
    steps: list[Step] = field(default_factory=list)
    refusals: list[Refused] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    verified: Verified = field(default_factory=Verified)
    started: float = field(default_factory=time.monotonic)

    def settle(self, program: Program) -> Program:
        """The fixed point of `RULES`."""
        while not self.stopped:
            before = len(self.steps)
            program = self.descend(program, (), {})
            if len(self.steps) == before:
                break
        return program

    def take(self, rule: Rule, place: Match, program: Program, snapshots: list[Program]) -> bool:
        """Add the snapshot that a rule leads to, if the budget allows one more."""
        if len(snapshots) >= self.budget.snapshots:
            self.stopped = f"{self.budget.snapshots} snapshots were taken"
            return False
        self.snapshot = len(snapshots)
        snapshots.append(self.settle(self.apply(rule, program, place)))
        return True

    def join(self, snapshots: list[Program]) -> Program:
        """Add the snapshot in which kernels whose loops other kernels have too are copied into those, if there are such
        kernels and the budget allows it. The last snapshot is returned."""
        (program,) = snapshots
        while (place := joining_place(program)) is not None and not self.over_budget():
            if program is snapshots[0]:
                self.refuse(program)
                if self.budget.snapshots == 1:
                    self.stopped = "1 snapshots were taken"
                    return program
                self.snapshot = 1
            program = self.settle(self.apply(extend_map.RULE, program, place))
        if program is not snapshots[0]:
            snapshots.append(program)
        return program

    def interchange(self, program: Program, snapshots: list[Program]) -> bool:
        """Add the snapshots in which maps are interchanged where they can be, but never back again, and extended
        elsewhere. False if there is nothing to interchange."""
        done: set[tuple[str, str]] = set()
        while not self.stopped:
            swaps = {place: interchange_maps.swaps(program, place) for place in matches(interchange_maps.RULE, program)}
            forth = [place for place, pairs in swaps.items() if done.isdisjoint((b, a) for a, b in pairs)]
            rule, place = interchange_maps.RULE, next_place(program, forth)
            if place is not None:
                done |= swaps[place]
            elif done:
                rule, place = extend_map.RULE, next_place(program, matches(extend_map.RULE, program))
            if place is None or not self.take(rule, place, program, snapshots):
                break
            program = snapshots[-1]
            self.refuse(program)
        return bool(done)

    def reassociate(self, snapshots: list[Program]) -> list[Program]:
        """The first snapshot in which contractions can change places, with all of them changed and what no longer
        depends on a block moved out; none if there is no such snapshot. A product that this made does not change places
        again: where both orders are possible, that would never end."""
        start = next((snapshot for snapshot in snapshots if first_place(REASSOCIATE, snapshot)), None)
        if start is None:
            return []
        program, known = start, frozenset(start.types)
        while (found := next_swap(program, known)) is not None and not self.over_budget():
            program = self.apply(REASSOCIATE, program, found)
        program = self.settle(program)
        while (found := first_place(HOIST, program)) is not None and not self.over_budget():
            program = self.apply(HOIST, program, found)
        program = self.settle(program)
        self.refuse(program)
        return [program]

    def descend(self, program: Program, path: Path, done: dict[int, Map]) -> Program:
        """Apply rules in the graph at `path` until none matches, then in the graphs inside it, then here again.

        `done` are maps, by identity, in which nothing matched: what changes around a map may still let a rule match
        inside it, so `settle` looks at all of them again in the end.
        """
        while True:
            while not self.over_budget() and (found := first_match(program, path, self.rules)) is not None:
                program = self.apply(found[0], program, found[1])
                if not exists(program, path):
                    return program
            before = len(self.steps)
            for child in [node for node in graph_at(program, path) if isinstance(node, Map) and id(node) not in done]:
                inside = (*path, child.defines[0])
                if self.stopped:
                    return program
                if not exists(program, inside):
                    continue
                steps = len(self.steps)
                program = self.descend(program, inside, done)
                if len(self.steps) == steps:
                    done[id(child)] = child
            if len(self.steps) == before or self.stopped or not exists(program, path):
                return program

    def over_budget(self) -> bool:
        if len(self.steps) >= self.budget.steps:
            self.stopped = f"{self.budget.steps} steps were taken"
        elif time.monotonic() - self.started > self.budget.seconds:
            self.stopped = f"{self.budget.seconds} s have passed"
        return bool(self.stopped)

    def apply(self, rule: Rule, program: Program, match: Match) -> Program:
        """The program after one step, in normal form, verified and recorded."""
        result = normalise(rule.rewrite(program, match), self.memory)
        try:
            verify(result, self.verified)
        except VerifyError as error:
            error.rule = rule.name
            raise
        if rule in RULES and not decreases(program, result):
            self.stopped = (
                f"{rule.name} at {', '.join(match.at)} does not decrease the measure"  # right, but may not end
            )
        span = span_of(program, match)
        self.steps.append(Step(self.snapshot, rule.name, rule.paper, match.at, span, program, result))
        program.forget()
        return result

    def refuse(self, program: Program) -> None:
        """Record every refusal that stands in a snapshot."""
        for rule in (*RULES, extend_map.RULE, interchange_maps.RULE, REASSOCIATE):
            for found in rule.match(program, None):
                if isinstance(found, Refusal):
                    self.refusals.append(Refused(self.snapshot, rule.name, found.reason, found.at, found.why))


def exists(program: Program, path: Path) -> bool:
    """True if the path leads to a graph."""
    try:
        graph_at(program, path)
    except KeyError:
        return False
    return True


def first_match(program: Program, path: Path, rules: tuple[Rule, ...]) -> tuple[Rule, Match] | None:
    """The first rule that applies in the graph at `path`, and where."""
    for rule in rules:
        for found in rule.match(program, path):
            if isinstance(found, Match):
                return rule, found
    return None


def next_swap(program: Program, known: frozenset[str]) -> Match | None:
    """The first place where contractions can change places and the inner one is a name that was known before."""
    places = (place for place in REASSOCIATE.match(program, None) if isinstance(place, Match))
    return next((place for place in places if known.issuperset(place.at[1:])), None)


def joining_place(program: Program) -> Match | None:
    """The first kernel that can be copied into the kernels that need it."""
    return next((place for place in extend_map.RULE.match(program, ()) if isinstance(place, Match)), None)


def first_place(rule: Rule, program: Program) -> Match | None:
    """The first match of a rule in the whole program."""
    return next((found for found in rule.match(program, None) if isinstance(found, Match)), None)


def span_of(program: Program, match: Match) -> Span | None:
    """The place in the source that a match is about, if it is known."""
    graph = graph_at(program, match.path)
    definition: Definition = graph[find(graph, match.at[0])]
    if definition.span is not None or not isinstance(definition, Map):
        return definition.span
    return next((inner.span for inner in walk(definition.body) if inner.span is not None), None)
