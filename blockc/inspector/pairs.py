"""For every two neighbouring operators that are not in one kernel: the one reason.

Kinds of reasons, of which exactly one holds, in this order:

    removed   one of the two is in no kernel, since algebra removed it
    cut       they are in different parts: a part with both was looked at and costs more (or was not looked at)
    slower    another plan for their part has them in one kernel, and takes longer
    no_room   the same, and it does not fit the machine
    refused   no plan has them in one kernel: a rule has the shape for their kernels, and one of its conditions fails
    shape     no rule has the shape for them
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from blockc.driver import has_kernels
from blockc.formatting import duration
from blockc.inspector.choices import slower_kernels, why_not
from blockc.inspector.kernel_bytes import KernelBytes
from blockc.inspector.obstacles import Obstacle, Obstacles
from blockc.inspector.origins import Origins, PartOrigins, origins
from blockc.ir.array_program import Span
from blockc.partition import LONGEST, WORSE, Candidate, Partition
from blockc.passes.segments import cuts
from blockc.passes.segments import operators as counted
from blockc.planning import Candidate as Plan

Values = Mapping[str, str | int | float]
KINDS = ("removed", "cut", "slower", "no_room", "refused", "shape")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why two operators are not in one kernel.

    `rule` refused for `reason`, one of its reasons; "" if no rule is concerned. `why` is a sentence, `values` are the
    names and numbers in it, and `span` is the place in the source that it is about, if it is known. `saved_bytes` is
    what need not be moved if the two were in one kernel, negative if more would be; None if that is not known.
    """

    kind: str
    rule: str
    reason: str
    why: str
    values: Values
    saved_bytes: int | None
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two operators of which the second reads what the first one computes: the kernels that both are in, or those of
    each and the reason."""

    first: str
    second: str
    together: frozenset[int]
    kernels: tuple[frozenset[int], frozenset[int]]
    reason: Reason | None


@dataclass(frozen=True)
class Inspection:
    """What was chosen for a program, and where its operators ended: all that reasons are found with."""

    partition: Partition
    origins: Origins

    @staticmethod
    def of(partition: Partition) -> Inspection:
        """The inspection of what was chosen."""
        return Inspection(partition, origins(partition))

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs of neighbours, in program order."""
        return tuple(self.pair(*names) for names in self.origins.neighbours)

    def pair(self, first: str, second: str) -> Pair:
        """Two operators, in the order in which they stand in the program."""
        together = self.origins.together(first, second)
        each = tuple(self.origins.by_name[name].kernels for name in (first, second))
        return Pair(first, second, together, (each[0], each[1]), None if together else self.reason(first, second))

    def reason(self, first: str, second: str) -> Reason:
        """Why two operators are not in one kernel."""
        for name in (first, second):
            if not self.origins.by_name[name].kernels:
                return self.removed(name)
        at, other = self.nearest(first, second)
        if self.part_of(at) is not self.part_of(other):
            return self.cut(first, second)
        return self.of_one_part(first, second)

    # Kernels

    @cached_property
    def bytes(self) -> KernelBytes:
        """What lists between kernels move."""
        return KernelBytes(self.partition.parts)

    @cached_property
    def _obstacles(self) -> dict[int, Obstacles]:
        return {}

    def obstacles(self, part: PartOrigins) -> Obstacles:
        """What keeps the kernels of a part apart."""
        if id(part) not in self._obstacles:
            self._obstacles[id(part)] = Obstacles(part.chosen)
        return self._obstacles[id(part)]

    def part_of(self, kernel: int) -> PartOrigins:
        """The part of a kernel."""
        return max((part for part in self.origins.parts if part.first <= kernel), key=lambda part: part.first)

    def nearest(self, first: str, second: str) -> tuple[int, int]:
        """The kernels of two operators that are closest to each other, that of the first one before the other's."""
        places = [self.origins.by_name[name].kernels for name in (first, second)]
        return min(
            ((a, b) for a in places[0] for b in places[1]),
            key=lambda pair: (pair[0] > pair[1], abs(pair[1] - pair[0]), pair),
        )

    def saved(self, first: str, second: str) -> int | None:
        """The bytes that need not be moved if two operators were in one kernel."""
        at, other = self.nearest(first, second)
        links = self.bytes.links(at, other)
        if not links:
            return None
        own = set(self.names_of(first))
        return self.bytes.between(at, other, [name for name in links if name in own] or links)

    def names_of(self, name: str) -> list[str]:
        """The names that have the value of an operator in the programs that were chosen."""
        return [found for part in self.origins.parts for found in part.names_of(name)]

    # Reasons

    def removed(self, name: str) -> Reason:
        """Why an operator is in no kernel."""
        operator = self.origins.by_name[name]
        stage = self.origins.removed_by(name) if operator.part >= 0 else None
        rule = stage.step.rule if stage is not None and stage.step is not None else ""
        by = f"the rule {rule}" if rule else "the normal form"
        why = f"`{name}` was removed by {by}: {operator.removed}"
        if operator.part < 0 or not stage:
            why = f"`{name}` was removed: {operator.removed}"
        return Reason("removed", rule, "removed", why, {"operator": name}, None, operator.span)

    def cut(self, first: str, second: str) -> Reason:
        """Why two operators are in different parts."""
        found = _Cutting(self.partition, first, second).reason()
        span = self.origins.by_name[second].span
        return Reason("cut", "", found[0], found[1], found[2], self.saved(first, second), span)

    def of_one_part(self, first: str, second: str) -> Reason:
        """Why two operators of one part are in different kernels of it."""
        at, other = self.nearest(first, second)
        part = self.part_of(at)
        span = self.origins.by_name[second].span
        together = [plan for plan in part.part.plan.candidates if part.share(plan, first, second)]
        fitting = [plan for plan in together if plan.choice.cost is not None]
        if fitting:
            plan = fitting[0]
            saved = self.moved(part, part.part.plan.chosen) - self.moved(part, plan)
            step = part.joining(plan, first, second)
            return Reason("slower", step.rule if step else "", *self.slower(part, plan), saved, span)
        if together:
            plan = together[0]
            values: Values = {"form": plan.form, "snapshot": plan.choice.snapshot}
            why = f"snapshot {plan.choice.snapshot} ({plan.form}) has them in one kernel, but {plan.choice.why}"
            return Reason("no_room", "", "does_not_fit", why, values, self.saved(first, second), span)
        obstacle = self.obstacles(part).of(at - part.first, other - part.first, self.names_of(first))[0]
        return self.refused(part, obstacle, self.saved(first, second), span)

    def others(self, first: str, second: str) -> tuple[Obstacle, ...]:
        """What else keeps the kernels of two operators of one part apart, besides the reason."""
        at, other = self.nearest(first, second)
        part = self.part_of(at)
        found = self.obstacles(part).of(at - part.first, other - part.first, self.names_of(first))
        return tuple(one for one in dict.fromkeys(found[1:]) if one.rule)

    def refused(self, part: PartOrigins, obstacle: Obstacle, saved: int | None, span: Span | None) -> Reason:
        """The reason that an obstacle is."""
        between = None if obstacle.between is None else part.first + obstacle.between
        why = obstacle.why if between is None else obstacle.why.format(between)
        values: dict[str, str | int | float] = {"at": " ".join(obstacle.at)}
        if between is not None:
            values["between"] = between
        kind = "refused" if obstacle.rule else "shape"
        return Reason(kind, obstacle.rule, obstacle.reason, why, values, saved, span)

    def slower(self, part: PartOrigins, plan: Plan) -> tuple[str, str, Values]:
        """The reason, sentence and numbers for a plan that takes longer than the chosen one."""
        chosen = part.part.plan
        times = [self.seconds(part, one) for one in (plan, chosen.chosen)]
        values: dict[str, str | int | float] = {
            "form": plan.form,
            "snapshot": plan.choice.snapshot,
            "predicted_seconds": times[0],
            "chosen_seconds": times[1],
        }
        why = f"snapshot {plan.choice.snapshot} ({plan.form}) has them in one kernel: {duration(times[0])} predicted, "
        why += f"and not {duration(times[1])}"
        if has_kernels(chosen.machine):
            costs = chosen.plan.costs
            why += f"; {slower_kernels(costs[plan.choice.snapshot], costs[chosen.chosen.choice.snapshot])}"
        else:
            assert plan.choice.cost is not None
            values["waits_for"] = plan.choice.cost.bottleneck
            why += f"; {why_not(chosen, plan)}"
        return "slower", why, values

    def seconds(self, part: PartOrigins, plan: Plan) -> float:
        """The predicted time of a candidate, by what candidates of its target are compared by."""
        if has_kernels(part.part.plan.machine):
            return part.part.plan.plan.costs[plan.choice.snapshot].seconds
        assert plan.choice.cost is not None
        return plan.choice.cost.seconds

    def moved(self, part: PartOrigins, plan: Plan) -> int:
        """The bytes that a candidate moves from and to the outermost tier."""
        assert plan.choice.cost is not None
        home = part.part.plan.machine.tiers[0].name
        return sum(count for ends, count in plan.choice.cost.boundaries.items() if home in ends)


@dataclass(slots=True)
class _Cutting:
    """Where a program was cut between two of its operators."""

    partition: Partition
    first: str
    second: str
    order: dict[str, int] = field(init=False)
    places: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.order = {node.name: at for at, node in enumerate(counted(self.partition.program))}
        self.places = cuts(self.partition.program, self.partition.sizes)

    def reason(self) -> tuple[str, str, Values]:
        """The reason, a sentence, and the values in it."""
        both = [one for one in self.partition.candidates if self.holds(one)]
        times = [(self.with_part(one), at) for at, one in enumerate(both)]
        least, at = min(times, default=(math.inf, -1))
        if math.isfinite(least):
            return self.costs_more(both[at], least)
        impossible = [one for one in both if one.why]
        if impossible:
            one = min(impossible, key=lambda one: self.order[one.last] - self.start(one))
            values: dict[str, str | int | float] = {"first": one.first, "last": one.last}
            return "does_not_fit", f"the part from `{one.first}` to `{one.last}` has no plan: {one.why}", values
        return self.not_looked_at()

    def holds(self, candidate: Candidate) -> bool:
        inside = range(self.start(candidate), self.order[candidate.last] + 1)
        return all(self.order.get(name, -1) in inside for name in (self.first, self.second))

    def start(self, candidate: Candidate) -> int:
        return self.order[candidate.first]

    def with_part(self, candidate: Candidate) -> float:
        """The least time of the whole program with a part, of those that were looked at."""
        end = self.order[candidate.last] + 1
        return self.least(0, self.start(candidate)) + candidate.seconds + self.least(end, len(self.order))

    def least(self, start: int, end: int) -> float:
        """The least time of all operators from one place to another, in parts that were looked at."""
        best = {start: 0.0}
        for one in sorted(self.partition.candidates, key=lambda one: self.order[one.last]):
            begin, last = self.start(one), self.order[one.last] + 1
            if not one.why and start <= begin and last <= end and begin in best:
                best[last] = min(best.get(last, math.inf), best[begin] + one.seconds)
        return best.get(end, math.inf)

    def costs_more(self, candidate: Candidate, seconds: float) -> tuple[str, str, Values]:
        """What the program takes with a part that has both, and with those that were chosen."""
        chosen = sum(one.seconds for one in self.partition.candidates if one.chosen)
        values: dict[str, str | int | float] = {
            "first": candidate.first,
            "last": candidate.last,
            "predicted_seconds": seconds,
            "chosen_seconds": chosen,
        }
        why = f"they are in different parts of the program; with one part from `{candidate.first}` to "
        why += f"`{candidate.last}` it would take {duration(seconds)} at least, in a first estimate, and not "
        why += duration(chosen)
        return "costs_more", why, values

    def not_looked_at(self) -> tuple[str, str, Values]:
        """Why there was no part with both among those that were looked at."""
        stretch = [sum(place <= self.order[name] for place in self.places) for name in (self.first, self.second)]
        count = stretch[1] - stretch[0] + 1
        if count > LONGEST:
            why = f"a part with both would have {count} places to cut at, more than the {LONGEST} that are looked at"
            return "too_far_apart", why, {"places": count, "most": LONGEST}
        why = f"no part with both was looked at: parts that end there and begin later already took more than {WORSE:g} "
        why += "times as long as in pieces, twice in a row"
        return "longer_parts_are_slower", why, {"worse": WORSE}
