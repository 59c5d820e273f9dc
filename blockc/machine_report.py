"""What a plan for a machine is and costs, for a person and as JSON.

Its blocks and the tiers of its lists, bytes across every boundary, the space taken in every tier, the time and what it
waits for; and every other candidate, with the reason why it was not chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from blockc.driver import has_kernels
from blockc.errors import visible
from blockc.explain import (
    Explanation,
    block_sizes,
    derivation_lines,
    duration,
    explain_plan,
    head,
    listed,
    refusal_lines,
    shortened,
    snapshot_lines,
    table,
    wrapped,
)
from blockc.ir.machine import Machine
from blockc.partition import Partition
from blockc.passes.machine_cost import MachineCost, formulas
from blockc.passes.machine_model import model
from blockc.passes.search import CLOSE
from blockc.passes.segments import operators
from blockc.planning import Candidate, MachinePlan


@dataclass(frozen=True, slots=True)
class MachineExplanation:
    """The derivation of what was chosen for a machine, and the choice."""

    explanation: Explanation
    plan: MachinePlan

    def to_json(self) -> dict[str, Any]:
        """The object that `blockc explain --json` prints: with `machine`, what was chosen for it and why."""
        value = self.explanation.to_json()
        if not has_kernels(self.plan.machine):
            chosen = self.plan.chosen
            same = [c for c in self.plan.candidates if c is chosen or c.form == (chosen.origin or chosen.form)]
            found = {candidate.choice.snapshot: candidate.choice for candidate in same}
            for entry in value["snapshots"]:
                choice = found[entry["index"]]
                entry["tiles"], entry["fits"] = block_sizes(choice.program, choice.tiles), choice.cost is not None
                entry["predicted_seconds"] = choice.cost.seconds if choice.cost is not None else None
        return {**value, "machine": plan_json(self.plan)}

    def __str__(self) -> str:
        found, plan = self.explanation, self.plan
        parts = [head(found), derivation_lines(found)]
        if has_kernels(plan.machine):
            parts += [snapshot_lines(found), list(kernel_lines(plan)), list(cost_lines(plan))]
        else:
            parts += [list(chosen_lines(plan)), list(cost_lines(plan)), list(candidate_lines(plan))]
        parts.append(refusal_lines(found))
        return "\n\n".join("\n".join(part) for part in parts)


@dataclass(frozen=True, slots=True)
class PartsExplanation:
    """The explanations of the parts that a program was cut into, and what else was looked at."""

    partition: Partition
    target: str
    parts: tuple[MachineExplanation, ...]

    def to_json(self) -> dict[str, Any]:
        """The object that `blockc explain --json` prints: of one part, that of the program; else `parts` has them."""
        found = self.partition
        cut = {
            "candidates": [
                {
                    "first": candidate.first,
                    "last": candidate.last,
                    "predicted_seconds": candidate.seconds if not candidate.why else None,
                    "chosen": candidate.chosen,
                    "why": candidate.why,
                }
                for candidate in found.candidates
            ],
            "predicted_seconds": found.seconds,
        }
        if len(self.parts) == 1:
            return {**self.parts[0].to_json(), "cuts": cut}
        return {
            "program": found.program.name,
            "target": self.target,
            "dims": dict(found.sizes),
            "cuts": cut,
            "parts": [part.to_json() for part in self.parts],
        }

    def __str__(self) -> str:
        looked = "\n".join(cut_lines(self.partition))
        if len(self.parts) == 1:
            return f"{self.parts[0]}\n\n{looked}" if looked else str(self.parts[0])
        first = "\n".join(part_lines(self.partition, self.target))
        parts = [f"Part {number}: {part}" for number, part in enumerate(self.parts)]
        return "\n\n".join((first, looked, *parts))


def explain_for(target: str, found: Partition) -> PartsExplanation:
    """The explanation of what was chosen for a machine."""
    parts = (
        MachineExplanation(explain_plan(part.program, target, part.plan.chosen.derivation, part.plan.plan), part.plan)
        for part in found.parts
    )
    return PartsExplanation(found, target, tuple(parts))


def part_lines(found: Partition, target: str) -> Iterator[str]:
    """The parts of a program, in the order in which they run."""
    program = found.program
    arguments = ", ".join(argument.name for argument in program.inputs)
    outputs = ", ".join(result.argument.name for result in program.outputs)
    yield from wrapped(f"{program.name}: {arguments} -> {outputs}", "")
    yield f"  file    {visible(program.filename)}, for target {target}"
    yield from wrapped(f"  sizes   {listed(found.sizes)}", "          ")
    yield ""
    yield f"Chosen for {found.machine.name}: {len(found.parts)} parts, {duration(found.seconds)} predicted"
    rows: list[tuple[str, ...]] = [("part", "from", "to", "kernels", "predicted", "waits for")]
    for number, part in enumerate(found.parts):
        cost = part.plan.cost
        names = [node.name for node in operators(part.program)]
        rows.append((str(number), names[0], names[-1], str(len(cost.kernels)), duration(cost.seconds), cost.bottleneck))
    yield from table(rows, right=frozenset({3, 4}))
    yield ""
    yield "Moved, all parts together:"
    total: dict[tuple[str, str], int] = {}
    for part in found.parts:
        for boundary, count in part.plan.cost.boundaries.items():
            total[boundary] = total.get(boundary, 0) + count
    rows = [("boundary", "bytes")]
    rows += [(f"{source} -> {destination}", f"{count:,}") for (source, destination), count in total.items()]
    yield from table(rows, right=frozenset({1}))


def cut_lines(found: Partition) -> Iterator[str]:
    """The parts that were looked at."""
    if not found.candidates:
        return
    yield "Parts looked at (* is chosen: the least time of all parts, in a first estimate):"
    rows: list[tuple[str, ...]] = [("from", "to", "predicted", "")]
    for candidate in found.candidates:
        time = duration(candidate.seconds) if not candidate.why else "none"
        rows.append((candidate.first, candidate.last, time, "*" if candidate.chosen else shortened(candidate.why)))
    yield from table(rows, right=frozenset({2}))


def plan_json(plan: MachinePlan) -> dict[str, Any]:
    """A plan with its costs, and all candidates."""
    return {
        "name": plan.machine.name,
        "form": plan.chosen.form,
        "snapshot": plan.chosen.choice.snapshot,
        "tiles": block_sizes(plan.chosen.choice.program, plan.chosen.choice.tiles),
        "placement": dict(plan.chosen.choice.placement),
        **cost_json(plan.machine, plan.cost),
        "formulas": byte_formulas(plan),
        "candidates": [
            {
                "form": candidate.form,
                "snapshot": candidate.choice.snapshot,
                "tiles": block_sizes(candidate.choice.program, candidate.choice.tiles),
                "placement": dict(candidate.choice.placement),
                "kernels": len(candidate.choice.cost.kernels) if candidate.choice.cost else None,
                "predicted_seconds": candidate.choice.cost.seconds if candidate.choice.cost else None,
                "why": why_not(plan, candidate),
            }
            for candidate in plan.candidates
        ],
    }


def cost_json(machine: Machine, cost: MachineCost) -> dict[str, Any]:
    """The costs of a plan on a machine."""
    return {
        "kernels": len(cost.kernels),
        "predicted_seconds": cost.seconds,
        "bottleneck": cost.bottleneck,
        "tasks": [kernel.tasks for kernel in cost.kernels],
        "boundaries": [
            {"from": source, "to": destination, "bytes": count}
            for (source, destination), count in cost.boundaries.items()
        ],
        "peak_bytes": {tier.name: cost.peak.get(tier.name, 0) for tier in machine.tiers},
    }


def chosen_lines(plan: MachinePlan) -> Iterator[str]:
    """What was chosen."""
    choice = plan.chosen.choice
    home = plan.machine.tiers[0].name
    kernels = len(plan.cost.kernels)
    yield f"Chosen for {plan.machine.name} ({plan.machine.description or 'no description'}):"
    yield f"  program  snapshot {choice.snapshot}, {plan.chosen.form}; kernels: {kernels}"
    yield from wrapped(f"  blocks   {listed(block_sizes(choice.program, choice.tiles)) or 'none'}", "           ")
    lists = ", ".join(f"{name} in {tier}" for name, tier in choice.placement.items())
    others = f"{lists}; all others in {home}" if lists else f"all in {home}"
    yield from wrapped(f"  lists    {others}", "           ")
    busy = ", ".join(f"{kernel.tasks:,}" for kernel in plan.cost.kernels)
    yield f"  tasks    {busy}, for {plan.machine.units} units"
    yield f"  time     {duration(plan.cost.seconds)} predicted; it waits for: {plan.cost.bottleneck}"


def kernel_lines(plan: MachinePlan) -> Iterator[str]:
    """What the chosen snapshot, whose kernels can be emitted, would take at the rates of the machine."""
    busy = ", ".join(f"{kernel.tasks:,}" for kernel in plan.cost.kernels)
    yield f"On {plan.machine.name} ({plan.machine.description or 'no description'}), at its rates:"
    yield f"  tasks    {busy}, for {plan.machine.units} units"
    yield f"  time     {duration(plan.cost.seconds)} predicted; it waits for: {plan.cost.bottleneck}"


def cost_lines(plan: MachinePlan) -> Iterator[str]:
    """Bytes across boundaries, with the time of each way, and space in tiers."""
    cost = plan.cost
    seconds: dict[str, float] = {}
    for kernel in cost.kernels:
        for resource, time in kernel.resources.items():
            seconds[resource] = seconds.get(resource, 0.0) + time
    rows: list[tuple[str, ...]] = [("boundary", "bytes", "time")]
    for (source, destination), count in cost.boundaries.items():
        way = f"{source} -> {destination}"
        rows.append((way, f"{count:,}", duration(seconds.get(way, 0.0))))
    yield "Moved:"
    yield from table(rows, right=frozenset({1, 2}))
    for way, formula in byte_formulas(plan).items():
        yield from wrapped(f"  {way}: {formula}", "      ")
    yield ""
    yield "Space taken at the same time, of the device or of one unit:"
    rows = [("tier", "bytes", "of")]
    rows += [(tier.name, f"{cost.peak.get(tier.name, 0):,}", f"{tier.capacity:,}") for tier in plan.machine.tiers]
    yield from table(rows, right=frozenset({1, 2}))
    yield ""
    yield "Computed:"
    rows = [("unit", "operations", "special", "time")]
    for unit in cost.flops:
        figures = (f"{cost.flops[unit]:,}", f"{cost.special.get(unit, 0):,}")
        rows.append((unit, *figures, duration(seconds.get(f"computing on {unit}", 0.0))))
    yield from table(rows, right=frozenset({1, 2, 3}))


def byte_formulas(plan: MachinePlan) -> dict[str, str]:
    """The bytes across each boundary, in sizes and block counts."""
    import sympy

    found = formulas(model(plan.schedule))
    return {f"{source} -> {end}": str(sympy.factor_terms(formula)) for (source, end), formula in found.items()}


def candidate_lines(plan: MachinePlan) -> Iterator[str]:
    """All candidates, fastest first."""
    yield "Candidates (* is chosen: the least predicted time, to 0.5 %):"
    rows: list[tuple[str, ...]] = [("snapshot", "form", "kernels", "predicted", "waits for")]
    for candidate in plan.candidates:
        cost = candidate.choice.cost
        mark = f"{candidate.choice.snapshot} *" if candidate is plan.chosen else str(candidate.choice.snapshot)
        figures = (str(len(cost.kernels)), duration(cost.seconds), cost.bottleneck) if cost else ("", "none", "")
        rows.append((mark, candidate.form, *figures))
    first, *others = table(rows, right=frozenset({2, 3}))
    yield first
    for candidate, line in zip(plan.candidates, others, strict=True):
        yield line
        if why := why_not(plan, candidate):
            yield from wrapped(f"      {why}", "      ")


def why_not(plan: MachinePlan, candidate: Candidate) -> str:
    """The reason why a candidate was not chosen: what it waits for, beside what the chosen one needs of that."""
    cost = candidate.choice.cost
    if candidate is plan.chosen:
        return ""
    if cost is None:
        return candidate.choice.why
    if cost.seconds <= plan.cost.seconds * CLOSE:
        kernels, chosen_kernels = len(cost.kernels), len(plan.cost.kernels)
        return (
            f"as fast, with {kernels} kernels, not {chosen_kernels}"
            if kernels > chosen_kernels
            else "as fast, with more loops"
        )
    mine, chosen = _resources(plan, cost), _resources(plan, plan.cost)
    worse = max(mine, key=lambda name: mine[name] - chosen.get(name, 0.0))
    return f"{worse}: {duration(mine[worse])}, in the chosen one {duration(chosen.get(worse, 0.0))}"


def _resources(plan: MachinePlan, cost: MachineCost) -> Mapping[str, float]:
    """Seconds by resource: of each kernel what it waits for, and what starting kernels takes."""
    total = {"starting kernels": plan.machine.dispatch * len(cost.kernels)}
    for kernel in cost.kernels:
        waited = kernel.seconds - plan.machine.dispatch
        total[kernel.bottleneck] = total.get(kernel.bottleneck, 0.0) + waited
    return total
