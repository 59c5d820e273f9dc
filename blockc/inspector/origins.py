"""Which kernels the operators of the source ended in, found by what values the kernels compute.

An operator is in the kernels that compute its value. Where no kernel does, algebra has rewritten it: it is in those
that compute what stands now between the values that it was made of and the values that were made of it. An operator
whose value may be any other one without changing these, or may be one of its operands, has been removed.

Names play no part. A kernel is a top-level map with the operators that prepare or finish it; kernels are numbered in
the order in which they run, over all parts of the program.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from blockc.inspector.sampled import Number, Sampled, computed
from blockc.ir.array_program import ArrayProgram, Node, Span
from blockc.ir.block import Program, kernels
from blockc.ir.decisions import Derivation, Step
from blockc.partition import Part, Partition
from blockc.passes.segments import ALIASES
from blockc.planning import Candidate

Kernels = Mapping[str, frozenset[int]]  # of each operator that is in one


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of the source: the part that it belongs to and its kernels; if it has none, why it was removed."""

    name: str
    op: str
    span: Span | None
    part: int
    kernels: frozenset[int]
    removed: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the operators of a part are after a step of its derivation: by kernels of the program of that step.

    `number` is the step's place among those of the derivation; the first stage is the unfused program, of no step.
    """

    part: int
    number: int
    step: Step | None
    kernels: Kernels
    joined: tuple[tuple[str, str], ...]  # neighbours that this step brought into one kernel


@dataclass(frozen=True)
class Origins:
    """The operators of a program in order, and neighbours: what one of them computes, the other one reads.

    `kernels` is the number of kernels of all parts.
    """

    operators: tuple[Operator, ...]
    neighbours: tuple[tuple[str, str], ...]
    kernels: int
    parts: tuple[PartOrigins, ...] = field(repr=False, compare=False)

    @cached_property
    def by_name(self) -> Mapping[str, Operator]:
        """The operators by name."""
        return {operator.name: operator for operator in self.operators}

    def together(self, first: str, second: str) -> frozenset[int]:
        """The kernels that both operators are in."""
        return self.by_name[first].kernels & self.by_name[second].kernels

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of all parts, on the way to what was chosen for them."""
        return tuple(stage for at, part in enumerate(self.parts) for stage in part.stages(at, self.neighbours))

    def joined_by(self, first: str, second: str) -> Stage | None:
        """The stage from which on two operators of a part are in one kernel: its step joined them, or they always were.
        None if they are not in one."""
        if not self.together(first, second):
            return None
        for _, stages in itertools.groupby(self.stages, lambda stage: stage.part):
            found = None
            for stage in stages:
                found = (found or stage) if _share(stage.kernels, (first, second)) else None
            if found is not None:
                return found
        return None

    def removed_by(self, name: str) -> Stage | None:
        """The stage behind which an operator is in no kernel any more; None for one that is in some."""
        part = self.by_name[name].part
        stages = [stage for stage in self.stages if stage.part == part]
        last = next((at for at in reversed(range(len(stages))) if name in stages[at].kernels), -1)
        return stages[last + 1] if last + 1 < len(stages) else None


def origins(partition: Partition) -> Origins:
    """Which kernels every operator of a program ended in."""
    found: list[PartOrigins] = []
    for one in partition.parts:
        found.append(PartOrigins(one, found[-1].first + len(kernels(found[-1].chosen)) if found else 0))
    operators: dict[str, Operator] = {}
    for at, part in enumerate(found):
        located = part.of(part.chosen)
        for node in operators_of(part.part.program):
            places = frozenset(part.first + number for number in located.kernels.get(node.name, ()))
            earlier = operators.get(node.name)
            if earlier is not None and earlier.kernels:  # what makes a number of an input is in every part that uses it
                operators[node.name] = replace(earlier, kernels=earlier.kernels | places)
            else:
                why = located.removed.get(node.name, "")
                operators[node.name] = Operator(node.name, node.op, node.span, at, places, why)
    ordered = []
    for node in operators_of(partition.program):
        unneeded = Operator(node.name, node.op, node.span, -1, frozenset(), UNNEEDED)
        ordered.append(operators.get(node.name, unneeded))
    count = found[-1].first + len(kernels(found[-1].chosen)) if found else 0
    return Origins(tuple(ordered), neighbours(partition.program), count, tuple(found))


NUMBERS = frozenset({"constant", "size"})
UNNEEDED = "no output needs it"
IRRELEVANT = "whatever it is, the results are the same: what it does is undone again"
SUPERFLUOUS = "the results are the same with `{}` in its place"


def operators_of(program: ArrayProgram) -> tuple[Node, ...]:
    """The operators of a program that compute something: no other names of values, no positions, and no numbers that
    are known once the sizes are."""
    free: set[str] = set()
    for node in program.nodes:
        if node.op in NUMBERS or (node.args and not node.dims and free.issuperset(node.args)):
            free.add(node.name)
    others = ALIASES | {"input", "index"}
    return tuple(node for node in program.nodes if node.name not in free and node.op not in others)


def neighbours(program: ArrayProgram) -> tuple[tuple[str, str], ...]:
    """The pairs of operators of which one reads what the other one computes, also under another name, in order."""
    computing = {node.name for node in operators_of(program)}
    nodes = {node.name: node for node in program.nodes}
    pairs: dict[tuple[str, str], None] = {}
    for node in program.nodes:
        if node.name not in computing:
            continue
        waiting, seen = list(node.args), set[str]()
        while waiting:
            name = waiting.pop(0)
            if name in computing:
                pairs[name, node.name] = None
            elif name not in seen:
                waiting.extend(nodes[name].args)
            seen.add(name)
    return tuple(pairs)


@dataclass(frozen=True, slots=True)
class Located:
    """The kernels of the operators in one block program, and why those without a kernel were removed."""

    kernels: Kernels
    removed: Mapping[str, str]


@dataclass(slots=True)
class PartOrigins:
    """A part of a program with the values of its array program, and where its operators are in programs derived."""

    part: Part
    first: int  # of its kernels
    sampled: Sampled = field(init=False)
    numbers: dict[str, Number] = field(init=False)  # of the nodes of the array program
    as_written: dict[str, Number] = field(init=False)  # the same under the dimensions that the nodes have
    same: dict[Number, Number] = field(default_factory=dict)  # for a value under other dimensions, the one it is of
    known: dict[int, tuple[Program, Located]] = field(default_factory=dict)
    removals: dict[tuple[str, frozenset[str]], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sampled = Sampled(self.part.program)
        numbers = self.as_written = self.sampled.of_nodes()
        for number in numbers.values():
            for other in self.sampled.renamings(number):
                self.same.setdefault(other, self.same.get(number, number))
        self.numbers = {name: self.same.get(number, number) for name, number in numbers.items()}

    def numbers_in(self, program: Program) -> dict[str, Number]:
        """The values of all names of a block program, where those under other dimensions are the same."""
        return {name: self.same.get(at, at) for name, at in self.sampled.of_block_program(program).items()}

    @property
    def chosen(self) -> Program:
        """The snapshot that was chosen."""
        found = self.part.plan.chosen
        return found.derivation.snapshots[found.choice.snapshot]

    def of(self, program: Program) -> Located:
        """Where the operators are in a program of the derivation."""
        if id(program) not in self.known:
            self.known[id(program)] = program, _Locating(self, program).located()
        return self.known[id(program)][1]

    def share(self, candidate: Candidate, first: str, second: str) -> bool:
        """True if two operators are in one kernel of another plan for the part."""
        return _share(self.of(candidate.derivation.snapshots[candidate.choice.snapshot]).kernels, (first, second))

    def names_of(self, name: str) -> list[str]:
        """The names that have an operator's value in the chosen snapshot."""
        if name not in self.numbers:
            return []
        numbers = self.numbers_in(self.chosen)
        return [other for other, number in numbers.items() if number == self.numbers[name]]

    def joining(self, candidate: Candidate, first: str, second: str) -> Step | None:
        """The step of a plan's derivation from which on two operators are in one kernel of it; None if they always
        were."""
        found = None
        for _, step in way_to(candidate.derivation, candidate.derivation.snapshots[candidate.choice.snapshot]):
            if not _share(self.of(step.after).kernels, (first, second)):
                found = None
            elif found is None and not _share(self.of(step.before).kernels, (first, second)):
                found = step
        return found

    def stages(self, at: int, pairs: Iterable[tuple[str, str]]) -> Iterable[Stage]:
        """The stages on the way to the chosen snapshot."""
        derivation = self.part.plan.chosen.derivation
        before = self.of(derivation.unfused)
        own = [pair for pair in pairs if pair[0] in self.numbers and pair[1] in self.numbers]
        yield Stage(at, -1, None, before.kernels, tuple(pair for pair in own if _share(before.kernels, pair)))
        for number, step in way_to(derivation, self.chosen):
            now = self.of(step.after)
            joined = (pair for pair in own if _share(now.kernels, pair) and not _share(before.kernels, pair))
            yield Stage(at, number, step, now.kernels, tuple(joined))
            before = now


def _share(places: Kernels, pair: tuple[str, str]) -> bool:
    return not places.get(pair[0], frozenset()).isdisjoint(places.get(pair[1], frozenset()))


def way_to(derivation: Derivation, program: Program) -> tuple[tuple[int, Step], ...]:
    """The steps from the unfused program to one of a derivation, with their numbers."""
    made = {id(step.after): (number, step) for number, step in enumerate(derivation.steps)}
    found: list[tuple[int, Step]] = []
    while id(program) in made and program is not derivation.unfused:
        found.append(made.pop(id(program)))
        program = found[-1][1].before
    return tuple(reversed(found))


@dataclass(slots=True)
class _Locating:
    """One block program: its kernels by the values that they compute, and what these are computed from."""

    origin: PartOrigins
    program: Program
    places: dict[Number, set[int]] = field(default_factory=dict)
    operands: dict[Number, set[Number]] = field(default_factory=dict)
    users: dict[Number, set[Number]] = field(default_factory=dict)
    results: set[Number] = field(default_factory=set)
    loads: list[set[Number]] = field(default_factory=list)  # what each kernel takes from others
    downstream: dict[Number, set[Number]] = field(default_factory=dict)

    def located(self) -> Located:
        numbers = self.origin.numbers_in(self.program)
        for at, group in enumerate(kernels(self.program)):
            made: frozenset[str] = frozenset().union(*(definition.defines for definition in group))
            needed: frozenset[str] = frozenset().union(*(definition.uses for definition in group))
            self.loads.append({numbers[name] for name in needed - made})
            for names, uses in computed(group):
                for name in names:
                    number = numbers[name]
                    self.places.setdefault(number, set()).add(at)
                    for used in {numbers[name] for name in uses} - {number}:
                        self.operands.setdefault(number, set()).add(used)
                        self.users.setdefault(used, set()).add(number)
        self.results = {numbers[result.value] for result in self.program.outputs}
        found: dict[str, frozenset[int]] = {}
        removed: dict[str, str] = {}
        for node in operators_of(self.origin.part.program):
            own = self.origin.numbers[node.name]
            places = self.places.get(own, set())
            if not places:
                places, why = self.rewritten(node)
                if why:
                    removed[node.name] = why
                    continue
            found[node.name] = frozenset(places)
        for first, second in reversed(neighbours(self.origin.part.program)):
            if first in found and second in found:
                found[first] |= {
                    at for at in found[second] - found[first] if at < min(found[first]) or self.again(first, second, at)
                }
        return Located(found, removed)

    def again(self, first: str, second: str, kernel: int) -> bool:
        """True if a kernel computes an operator's value without that of another one that the operator reads: it does
        the work of both."""
        own, number = self.origin.numbers[first], self.origin.numbers[second]
        exactly = own in self.places and kernel in self.places.get(number, ())
        return exactly and self.loads[kernel].isdisjoint(self.made_of(own))

    def made_of(self, number: Number) -> set[Number]:
        """A value, and all that is made of it."""
        if number not in self.downstream:
            every = set(self.places)
            self.downstream[number] = {number} | self.reached({number}, self.users, every)
        return self.downstream[number]

    def rewritten(self, node: Node) -> tuple[set[int], str]:
        """The kernels of an operator that algebra has rewritten, or why it was removed."""
        behind = self.behind(node)
        if not behind:
            return set(), UNNEEDED
        why = self.removal(node, behind)
        if why:
            return set(), why
        own = set(self.origin.numbers.values())
        foreign = {number for number in self.places if number not in own}
        numbers = self.origin.numbers
        ends = {numbers[name] for name in behind} & self.places.keys() or self.results
        down = self.reached(ends, self.operands, foreign)
        up = self.reached(self.before(node), self.users, foreign)
        between = down & up or ends
        return {at for number in between for at in self.places[number]}, ""

    def removal(self, node: Node, behind: frozenset[str]) -> str:
        """Why an operator has no effect on the values behind it, or "" if it has one."""
        key = node.name, behind
        if key not in self.origin.removals:
            self.origin.removals[key] = self.effect(node, behind)
        return self.origin.removals[key]

    def effect(self, node: Node, behind: frozenset[str]) -> str:
        sampled, numbers = self.origin.sampled, self.origin.as_written
        others = {IRRELEVANT: sampled.fresh(numbers[node.name])}
        axes = sampled.axes(numbers[node.name])
        alike = (arg for arg in node.args if sampled.axes(numbers[arg]) == axes)
        others.update((SUPERFLUOUS.format(arg), numbers[arg]) for arg in alike)
        cone = self.between(node.name, behind)
        for why, other in others.items():
            changed = {**numbers, node.name: other}
            for later in cone:
                changed[later.name] = sampled.of_node(later, changed)
            if all(changed[name] == numbers[name] for name in behind):
                return why
        return ""

    def between(self, name: str, behind: frozenset[str]) -> list[Node]:
        """The operators that make values behind one of its result, in order."""
        reached, found = {name}, []
        for other in self.origin.part.program.nodes:
            if other.op != "input" and not reached.isdisjoint(other.args) and name not in behind:
                found.append(other)
                if other.name not in behind:
                    reached.add(other.name)
        return found

    def behind(self, node: Node) -> frozenset[str]:
        """The nearest values made of an operator's result that a kernel computes, or outputs; itself if it is one."""
        nodes = self.origin.part.program.nodes
        outputs = {result.node for result in self.origin.part.program.outputs}
        if node.name in outputs:
            return frozenset((node.name,))
        found = set()
        reached = {node.name}
        for other in nodes:
            if reached.isdisjoint(other.args):
                continue
            if self.origin.numbers[other.name] in self.places or other.name in outputs:
                found.add(other.name)
            else:
                reached.add(other.name)
        return frozenset(found)

    def before(self, node: Node) -> set[Number]:
        """The nearest values that an operator's result is made of and that a kernel computes, or inputs."""
        nodes = {other.name: other for other in self.origin.part.program.nodes}
        found = set()
        waiting = list(node.args)
        while waiting:
            other = nodes[waiting.pop()]
            number = self.origin.numbers[other.name]
            if number in self.places or other.op == "input":
                found.add(number)
            elif other.op not in NUMBERS:
                waiting.extend(other.args)
        return found

    def reached(self, start: set[Number], edges: Mapping[Number, set[Number]], within: set[Number]) -> set[Number]:
        """The values that edges lead to from some others without leaving a set."""
        found: set[Number] = set()
        waiting = list(start)
        while waiting:
            for number in edges.get(waiting.pop(), ()):
                if number in within and number not in found:
                    found.add(number)
                    waiting.append(number)
        return found
