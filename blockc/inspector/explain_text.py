"""Explanations for a person.

Of a machine: its blocks and the tiers of its lists, bytes across every boundary, the space taken in every tier, the
time and what it waits for; and every other candidate, with the reason why it was not chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from blockc.driver import has_kernels
from blockc.errors import visible
from blockc.formatting import block_sizes, duration, listed, readable, shortened, table, wrapped
from blockc.inspector.explanation import ExplainedStep, Explanation, MachineExplanation, PartsExplanation
from blockc.ir.block import Condition, Constant, Map, Reading, Term, walk
from blockc.ir.plan import Cost
from blockc.ir.text import format_term
from blockc.partition import Partition
from blockc.passes.choose import peeled_dimensions
from blockc.passes.machine_cost import MachineCost, formulas
from blockc.passes.machine_model import model
from blockc.passes.search import CLOSE
from blockc.passes.segments import operators
from blockc.planning import Candidate, MachinePlan


def derivation_text(found: Explanation) -> str:
    """A derivation, without a machine."""
    parts = (head(found), derivation_lines(found), snapshot_lines(found), refusal_lines(found))
    return "\n\n".join("\n".join(part) for part in parts)


def machine_text(explained: MachineExplanation) -> str:
    """One part, with what was chosen for the machine."""
    found, plan = explained.explanation, explained.plan
    parts = [head(found), derivation_lines(found)]
    if has_kernels(plan.machine):
        parts += [snapshot_lines(found), list(kernel_lines(plan)), list(cost_lines(plan))]
    else:
        parts += [list(chosen_lines(plan)), list(cost_lines(plan)), list(candidate_lines(plan))]
    parts.append(refusal_lines(found))
    return "\n\n".join("\n".join(part) for part in parts)


def parts_text(explained: PartsExplanation) -> str:
    """All parts, and what else was looked at."""
    looked = "\n".join(cut_lines(explained.partition))
    if len(explained.parts) == 1:
        return f"{explained.parts[0]}\n\n{looked}" if looked else str(explained.parts[0])
    first = "\n".join(part_lines(explained.partition, explained.target))
    parts = [f"Part {number}: {part}" for number, part in enumerate(explained.parts)]
    return "\n\n".join((first, looked, *parts))


def head(explanation: Explanation) -> list[str]:
    """What is compiled, for which sizes and tiles."""
    plan = explanation.plan
    program = explanation.program
    arguments = ", ".join(argument.name for argument in program.inputs)
    outputs = ", ".join(result.argument.name for result in program.outputs)
    whole = ", ".join(sorted(plan.program.whole)) or "none"
    return [
        *wrapped(f"{program.name}: {arguments} -> {outputs}", ""),
        f"  file    {visible(program.filename)}, for target {explanation.target}",
        *wrapped(f"  sizes   {listed(plan.sizes)}", "          "),
        *wrapped(f"  tiles   {listed(block_sizes(plan.program, plan.tiles)) or 'none'}; whole: {whole}", "          "),
    ]


def derivation_lines(explanation: Explanation) -> list[str]:
    """Every step, with what it changed."""
    unfused = explanation.unfused
    start = f"Derivation, from {unfused.kernels} kernels that move {unfused.traffic_bytes:,} bytes:"
    if not explanation.steps:
        return [start, "  No rule applies: there is nothing to fuse."]
    rows: list[tuple[str, ...]] = [("step", "rule", "paper", "at", "line", "moved", "work", "local")]
    for group in _groups(explanation.steps):
        first, last = group[0], group[-1]
        number = f"{first[1].snapshot}.{first[0]}"
        step = last[1]
        line = "" if step.span is None else str(step.span.line)
        changes = (readable(step.traffic_delta, "B"), readable(step.flops_delta), readable(step.local_delta, "B"))
        number = number if len(group) == 1 else f"{number}-{last[0]}"
        at = " ".join(step.at) if len(group) == 1 else f"{len(group)} places"
        rows.append((number, step.rule, step.paper, shortened(at), line if len(group) == 1 else "", *changes))
    note = "  moved: change in bytes moved; work: in operations; local: in the peak of local bytes."
    return [start, *table(rows, right=frozenset({4, 5, 6, 7})), note]


def _groups(steps: tuple[ExplainedStep, ...]) -> list[list[tuple[int, ExplainedStep]]]:
    """The steps with their numbers, runs of one rule that change no figure together."""

    def kind(entry: tuple[int, ExplainedStep]) -> tuple[object, ...]:
        number, step = entry
        changes = step.traffic_delta or step.flops_delta or step.local_delta
        return (step.snapshot, step.rule, number if changes else 0)

    return [list(group) for _, group in itertools.groupby(enumerate(steps, 1), kind)]


def snapshot_lines(explanation: Explanation) -> list[str]:
    """The snapshots, with their figures at nominal rates."""
    plan = explanation.plan
    titles = ("snapshot", "kernels", "bytes moved", "operations", "special", "local bytes", "predicted")
    rows: list[tuple[str, ...]] = [titles, ("unfused", *_figures(explanation.unfused))]
    for index, entry in enumerate(plan.costs):
        mark = f"{index} *" if index == plan.snapshot else str(index)
        rows.append((mark, *_figures(entry)))
    lines = ["Snapshots (* is chosen: the least predicted time, to 1 %, at nominal rates, not a measurement):"]
    lines += table(rows, right=frozenset(range(1, 7)))
    for index, (entry, text) in enumerate(zip(plan.costs, explanation.formulas, strict=True)):
        kept = ", ".join(entry.buffered) or "nothing"
        lines += wrapped(f"  {index} keeps {kept} in slow memory between its loops", "      ")
        lines += wrapped(f"    and moves {text} bytes", "      ")
        for node in walk(plan.snapshots[index].body):
            if isinstance(node, Map) and node.where is not None:
                condition = infix(node.where)
                text = f"    the loop over {node.dim} leaves out blocks in which {condition} holds nowhere"
                lines += wrapped(f"{text}; live(x) is x over the others", "      ")
    for dim in sorted(peeled_dimensions(plan.program)):
        lines += wrapped(f"  the first iteration of the loop over {dim} is ahead of it (rule 7)", "      ")
    if plan.note:
        lines += wrapped(f"  {plan.note}", "      ")
    if not explanation.complete:
        lines.append(f"  The search ended early: {explanation.stopped}.")
    return lines


INFIX = {"le": "<=", "lt": "<", "ge": ">=", "gt": ">", "eq": "==", "ne": "!=", "add": "+", "sub": "-", "mul": "*"}


def infix(term: Term, inside: str = "") -> str:
    """A condition as one writes it."""
    match term:
        case Condition("add", (first, Condition("mul", (second, Constant(-1))))):
            return infix(Condition("sub", (first, second)), inside)
        case Condition("not", (arg,)):
            return f"not {infix(arg, 'not')}"
        case Condition("and" | "or" as op, args):
            text = f" {op} ".join(infix(arg, op) for arg in args)
            return f"({text})" if inside else text
        case Condition(op, args) if op in INFIX:
            text = f" {INFIX[op]} ".join(infix(arg, op) for arg in args)
            return f"({text})" if inside in {"not", "sub", "mul", "neg", "add"} else text
        case Reading(name):
            return name
        case Condition(op, args):
            return f"{op}({', '.join(map(infix, args))})"
        case _:
            return format_term(term)


def _figures(entry: Cost) -> tuple[str, ...]:
    figures = (entry.kernels, entry.traffic_bytes, entry.flops, entry.special, entry.local_bytes)
    return (*(f"{figure:,}" for figure in figures), duration(entry.seconds))


def refusal_lines(explanation: Explanation) -> list[str]:
    """The refusals that stand in the chosen snapshot."""
    chosen = [refusal for refusal in explanation.refusals if refusal.snapshot == explanation.plan.snapshot]
    if not chosen:
        return ["Nothing was refused in the chosen snapshot."]
    lines = ["Refused in the chosen snapshot:"]
    for refusal in chosen:
        lines += wrapped(f"  {refusal.rule} at {' '.join(refusal.at)}: {refusal.reason}", "      ")
        lines += wrapped(f"      {refusal.why}", "      ")
    return lines


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
