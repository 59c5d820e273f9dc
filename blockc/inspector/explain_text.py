"""An explanation for a person, in a window of any width.

Verbosity 0 is the choice; 1 adds the derivation, what was looked at side by side (of a program in one part), and what
was refused; 2 is everything, with exact numbers: every step by itself, all snapshots and candidates with their
formulas, the refusals of all snapshots, and the parts that were looked at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from blockc.driver import has_kernels
from blockc.errors import visible
from blockc.formatting import block_sizes, duration, listed
from blockc.inspector.choices import Alternative, runner_up
from blockc.inspector.explain_tables import (
    View,
    Way,
    compared,
    compared_title,
    comparison,
    outermost,
    plural,
    step_columns,
    step_rows,
)
from blockc.inspector.explanation import (
    FULL,
    NORMAL,
    ExplainedRefusal,
    ExplainedStep,
    Explanation,
    PartExplanation,
)
from blockc.inspector.pairs import Pair
from blockc.inspector.skeleton import skeleton
from blockc.inspector.tables import NARROWEST, Cell, Column, beside
from blockc.ir.block import Condition, Constant, Map, Program, Reading, Term, walk
from blockc.ir.text import format_term
from blockc.partition import Partition
from blockc.passes.choose import peeled_dimensions
from blockc.passes.machine_cost import formulas
from blockc.passes.machine_model import model
from blockc.passes.segments import operators
from blockc.planning import MachinePlan

EXAMPLES, PAIRS = 2, 6  # places of a refusal, and pairs of operators, unless everything is shown


def text(explained: Explanation, view: View) -> str:
    """The whole explanation."""
    view = replace(view, width=max(NARROWEST, view.width))
    sections = list(_sections(explained, view))
    return "\n\n".join("\n".join(section) for section in sections if section)


def _sections(explained: Explanation, view: View) -> Iterator[list[str]]:
    found = explained.partition
    yield head(explained, view)
    if len(explained.parts) > 1:
        yield part_lines(found, view)
    for number, part in enumerate(explained.parts):
        if len(explained.parts) > 1 and view.verbosity < NORMAL:
            continue  # the table of parts has said it
        if len(explained.parts) > 1:
            names = ", ".join(node.name for node in operators(part.program))
            yield view.heading(f"Part {number}: {names}")
        yield choice_lines(part, view)
        if view.verbosity >= NORMAL:
            yield derivation_lines(part, view)
        if view.verbosity == FULL or (view.verbosity >= NORMAL and len(explained.parts) == 1):
            yield comparison_lines(part, view)
            yield loop_lines(part, view)
            yield moved_lines(part.found, view)
        if view.verbosity == FULL:
            yield computed_lines(part.found, view)
            yield formula_lines(part, view)
        if view.verbosity >= NORMAL:
            yield refusal_lines(part, view)
    if view.verbosity >= NORMAL:
        yield apart_lines(explained.apart, view)
        yield cut_lines(found, view)


def head(explained: Explanation, view: View) -> list[str]:
    """What is compiled, and for which sizes."""
    program, found = explained.partition.program, explained.partition
    arguments = ", ".join(argument.name for argument in program.inputs)
    outputs = ", ".join(result.argument.name for result in program.outputs)
    title = view.lines(f"{program.name}: {arguments} -> {outputs}", "  ")
    return [
        *(view.paint(line, "heading") for line in title),
        *view.lines(f"  file    {visible(program.filename)}, for target {visible(explained.target)}", "          "),
        *view.lines(f"  sizes   {listed(found.sizes)}", "          "),
    ]


# --- the choice -------------------------------------------------------------------------------------------------------


def choice_lines(part: PartExplanation, view: View) -> list[str]:
    """What was chosen, what it beat, and by how much."""
    lines = view.heading(choice_title(part))
    for name, text in choice_entries(part, view):
        lines += view.lines(f"  {name:11s}{text}", " " * 13)
    return lines


def choice_title(part: PartExplanation) -> str:
    """What was chosen, in a line."""
    chosen, machine = part.alternatives[0], part.machine
    when = ", at nominal rates" if has_kernels(machine) else ""
    title = f"Chosen for {machine.name} ({machine.description or 'no description'}): {chosen.name}"
    return f"{title}, {plural(len(part.found.cost.kernels), 'kernel')}, {duration(chosen.seconds)} predicted{when}"


def choice_entries(part: PartExplanation, view: View) -> list[tuple[str, str]]:
    """What there is to say of the choice, each with a name."""
    found, chosen, home = part.found, part.alternatives[0], part.machine.tiers[0].name
    lists = ", ".join(f"{name} in {tier}" for name, tier in chosen.placement.items())
    whole = ", ".join(sorted(part.plan.program.whole)) or "none"
    return [
        ("blocks", f"{listed(block_sizes(part.plan.program, part.plan.tiles)) or 'none'}; whole: {whole}"),
        ("lists", f"{lists}; all others in {home}" if lists else f"all in {home}"),
        ("moves", _moves(part, view)),
        ("tasks", _tasks(found)),
        ("time", _time(found)),
        *beaten(part),
        *(("note", text) for text in notes(part.plan.program, part.plan.note, part.derivation.stopped)),
    ]


def _moves(part: PartExplanation, view: View) -> str:
    home, unfused = part.machine.tiers[0].name, part.unfused
    text = f"{view.number(outermost(part.machine, part.found.cost), 'B')} to and from {home}"
    if unfused.machine is not None:
        before = view.number(outermost(part.machine, unfused.machine), "B")
        text += f"; unfused {before}, in {plural(unfused.cost.kernels, 'kernel')}"
    return text


def _tasks(found: MachinePlan) -> str:
    return f"{', '.join(f'{kernel.tasks:,}' for kernel in found.cost.kernels)}, for {found.machine.units} units"


def _time(found: MachinePlan) -> str:
    cost = found.cost
    waits = f"it waits for {cost.bottleneck}" if cost.bottleneck else "it waits for nothing"
    starting = found.machine.dispatch * len(cost.kernels)
    begun = f"; {duration(starting)} of it to start kernels" if starting else ""
    return f"{duration(cost.seconds)} at the rates of the machine, {waits}{begun}"


def beaten(part: PartExplanation) -> Iterator[tuple[str, str]]:
    """The runner-up with the margin; if that is as fast, the first one that is not as well."""
    other = runner_up(part.alternatives)
    if other is None:
        yield "runner-up", "none: no other has a plan" if len(part.alternatives) > 1 else "none: there is no other"
        return
    yield "runner-up", _behind(part.alternatives[0], other)
    slower = (entry for entry in part.alternatives[1:] if not entry.as_fast and math.isfinite(entry.seconds))
    if other.as_fast and (entry := next(slower, None)) is not None:
        yield "then", _behind(part.alternatives[0], entry)


def _behind(chosen: Alternative, other: Alternative) -> str:
    behind = f"{other.name}: {duration(other.seconds)}"
    if other.as_fast or not chosen.seconds:
        return f"{behind}, {other.why}"
    if other.seconds < chosen.seconds:
        return f"{behind}, {100 * (1 - other.seconds / chosen.seconds):.0f} % less; {other.why}"
    return f"{behind}, {percent(other.seconds / chosen.seconds - 1)}; {other.why}"


def percent(margin: float) -> str:
    """A margin in words."""
    if margin >= 1:
        return f"{margin + 1:.1f} times as long"
    return f"{100 * margin:.{0 if margin >= 0.0995 else 1}f} % slower"


def notes(program: Program, note: str, stopped: str) -> Iterator[str]:
    """What else is particular about the chosen program."""
    maps = [node for node in walk(program.body) if isinstance(node, Map)]
    for dim, condition in dict.fromkeys((node.dim, infix(node.where)) for node in maps if node.where is not None):
        text = f"the loop over {dim} leaves out blocks in which {condition} holds nowhere"
        yield f"{text}; live(x) is x over the others"
    for dim in sorted(peeled_dimensions(program)):
        yield f"the first iteration of the loop over {dim} is ahead of it (rule 7)"
    if note:
        yield note
    if stopped:
        yield f"the search ended early: {stopped}"


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


# --- the derivation ---------------------------------------------------------------------------------------------------


def derivation_lines(part: PartExplanation, view: View) -> list[str]:
    """Every step, with what it changed."""
    if not part.steps:
        return [*view.heading("Derivation:"), "  No rule applies: there is nothing to fuse."]
    start = f"Derivation, from {plural(part.unfused.cost.kernels, 'kernel')}"
    if part.unfused.machine is not None:
        moved = outermost(part.machine, part.unfused.machine)
        start += f" that move {view.number(moved, 'B')} to and from {part.machine.tiers[0].name}"
    lines = view.heading(f"{start}, before -> after:")
    lines += view.table(*step_columns(part.machine, step_rows(part, view), view))
    lines += view.lines(
        "  work: operations; local: the peak of the bytes of live tiles; a figure alone is the new one", "  "
    )
    for number, steps in _elsewhere(part) if view.verbosity < FULL else ():
        rules = ", ".join(dict.fromkeys(step.rule for step in steps))
        lines += view.lines(f"  {plural(len(steps), 'more step')} to snapshot {number}: {rules}", "      ")
    return lines


def _elsewhere(part: PartExplanation) -> Iterator[tuple[int, list[ExplainedStep]]]:
    """The steps that do not lead to what was chosen, by snapshot."""
    left = [step for step in part.steps if step.number not in part.way]
    for number in dict.fromkeys(step.snapshot for step in left):
        yield number, [step for step in left if step.snapshot == number]


# --- side by side -----------------------------------------------------------------------------------------------------


def comparison_lines(part: PartExplanation, view: View) -> list[str]:
    """The unfused program and what was looked at, a column each."""
    shown = compared(part, view)
    lines = view.heading(compared_title(part))
    names, blocks = comparison(part, view)
    label = max(map(len, names))
    waiting = list(range(len(blocks)))
    while waiting:  # as many columns as there is room for, the others below
        taken: list[int] = []
        used = 2 + label
        while waiting:
            used += 2 + max(map(len, blocks[waiting[0]].values()))
            if taken and used > view.width:
                break
            taken.append(waiting.pop(0))
        columns = [Column("", tuple(Cell(name, "faint") for name in names))]
        for at in taken:
            style = "chosen" if at == 1 else ""
            cells = tuple(Cell(blocks[at].get(name, ""), style) for name in names)
            columns.append(Column("", cells, right=True))
        lines += view.table(*columns)
        lines += [""] if waiting else []
    left = len(part.alternatives) - len(shown)
    lines += view.lines(f"  {plural(left, 'slower one')} left out", "      ") if left else []
    told = " ".join(text for _, text in beaten(part))
    for entry in shown[1:]:
        if entry.name not in told:
            lines += view.lines(f"  {entry.name}: {entry.why}", "      ")
    return lines


def loop_lines(part: PartExplanation, view: View) -> list[str]:
    """The loops of what was looked at, side by side; snapshots with the same ones once."""
    home = part.machine.tiers[0].name
    found: dict[tuple[str, ...], list[str]] = {}
    if view.verbosity == FULL:
        found[tuple(skeleton(part.derivation.unfused, {}, home))] = ["unfused"]
    for entry in compared(part, view):
        key = tuple(skeleton(entry.program, entry.placement, home))
        found.setdefault(key, []).append(f"{entry.snapshot}{' *' if entry.chosen else ''}, {entry.form}")
    blocks = [[*names, *lines] for lines, names in found.items()]
    lines = view.heading("Their loops (a map runs in parallel, a loop accumulates):")
    shown = beside(blocks, view.width)
    return [*lines, *(shown if view.verbosity == FULL else itertools.takewhile(bool, shown))]


# --- the chosen one in numbers ----------------------------------------------------------------------------------------


def byte_formulas(plan: MachinePlan) -> dict[str, str]:
    """The bytes across each boundary, in sizes and block counts."""
    import sympy

    found = formulas(model(plan.schedule))
    return {f"{source} -> {end}": str(sympy.factor_terms(formula)) for (source, end), formula in found.items()}


def _seconds(plan: MachinePlan) -> dict[str, float]:
    """The seconds of each resource, of all kernels together."""
    result: dict[str, float] = {}
    for kernel in plan.cost.kernels:
        for resource, time in kernel.resources.items():
            result[resource] = result.get(resource, 0.0) + time
    return result


def moved_lines(plan: MachinePlan, view: View) -> list[str]:
    """Bytes across boundaries, with the time of each way and the formula."""
    if not plan.cost.boundaries:
        return []
    seconds, texts = _seconds(plan), byte_formulas(plan)
    names = [f"{source} -> {destination}" for source, destination in plan.cost.boundaries]
    numbers = tuple(Cell(f"{count:,}") for count in plan.cost.boundaries.values())
    times = tuple(Cell(duration(seconds.get(name, 0.0))) for name in names)
    ways_ = Column("boundary", tuple(map(Cell, names)), head=True)
    columns = [ways_, Column("bytes", numbers, right=True), Column("time", times, right=True)]
    lines = view.heading("Moved by the chosen one (x is a size, B_x the number of blocks of x):")
    lines += view.table(*columns)
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(texts.get(name, ""), []).append(name)
    for formula, several in grouped.items():
        lines += view.lines(f"  {', '.join(several)}: {formula}", "      ")
    return lines


def computed_lines(plan: MachinePlan, view: View) -> list[str]:
    """Space in tiers, and what units compute."""
    cost, tiers, seconds = plan.cost, plan.machine.tiers, _seconds(plan)
    names = Column("tier", tuple(Cell(tier.name) for tier in tiers), head=True)
    taken = Column("bytes", tuple(Cell(f"{cost.peak.get(tier.name, 0):,}") for tier in tiers), right=True)
    room = Column("of", tuple(Cell(f"{tier.capacity:,}") for tier in tiers), right=True)
    lines = view.heading("Space taken at the same time, of the device or of one unit:")
    lines += [*view.table(names, taken, room), "", *view.heading("Computed:")]
    units = Column("unit", tuple(map(Cell, cost.flops)), head=True)
    flops = Column("operations", tuple(Cell(f"{count:,}") for count in cost.flops.values()), right=True)
    special = Column("special", tuple(Cell(f"{cost.special.get(unit, 0):,}") for unit in cost.flops), right=True)
    times = [duration(seconds.get(f"computing on {unit}", 0.0)) for unit in cost.flops]
    return [*lines, *view.table(units, flops, special, Column("time", tuple(map(Cell, times)), right=True))]


def formula_lines(part: PartExplanation, view: View) -> list[str]:
    """What each snapshot keeps in slow memory, and the bytes of its lists."""
    lines = view.heading("Lists of the snapshots:")
    for index, (entry, formula) in enumerate(zip(part.plan.costs, part.formulas, strict=True)):
        kept = ", ".join(entry.buffered) or "nothing"
        lines += view.lines(f"  {index} keeps {kept} in slow memory between its loops")
        lines += view.lines(f"    and moves {formula} bytes")
    return lines


# --- what did not happen ----------------------------------------------------------------------------------------------


def refusal_lines(part: PartExplanation, view: View) -> list[str]:
    """What was refused in the chosen snapshot, or in all, by rule and reason: what would have saved most first."""
    everything = view.verbosity == FULL
    groups = refusal_groups(part.refusals if everything else standing(part))
    if not groups:
        return view.heading("Nothing was refused in the chosen snapshot.")
    title = "Refused, in all snapshots" if everything else "Refused in the chosen snapshot"
    lines = view.heading(f"{title}, with the bytes that the rule would have saved, most first:")
    for several in groups:
        rule = several[0].refused.rule
        first, *more = view.lines(f"  {refusal_title(several, view)}")
        lines += [first.replace(rule, view.paint(rule, "name"), 1), *more]
        for found in several if everything else several[:EXAMPLES]:
            snapshot = f"snapshot {found.refused.snapshot}, " if everything else ""
            lines += view.lines(f"      {snapshot}{refusal_text(found)}", "        ")
        if not everything and len(several) > EXAMPLES:
            lines += view.lines(f"      and {plural(len(several) - EXAMPLES, 'other place')}", "        ")
    return lines


def standing(part: PartExplanation) -> list[ExplainedRefusal]:
    """The refusals in the chosen snapshot."""
    return [found for found in part.refusals if found.refused.snapshot == part.base]


def refusal_groups(refusals: Iterable[ExplainedRefusal]) -> list[list[ExplainedRefusal]]:
    """Refusals by rule and reason, those that would have saved most first."""
    groups: dict[tuple[str, str], list[ExplainedRefusal]] = {}
    for found in refusals:
        groups.setdefault((found.refused.rule, found.refused.reason), []).append(found)
    return sorted(groups.values(), key=lambda several: -_saved(several))


def refusal_title(several: Sequence[ExplainedRefusal], view: View) -> str:
    """The rule and reason of several refusals, how many they are, and what they cost."""
    saved = view.number(_saved(several), "B") if _saved(several) else "no bytes by itself"
    places = f", {len(several)} places" if len(several) > 1 else ""
    return f"{several[0].refused.rule}: {several[0].refused.reason}{places}; {saved}"


def refusal_text(found: ExplainedRefusal) -> str:
    """Where a refusal is, if that is known, and why."""
    lines = f"line {', '.join(map(str, found.lines))}" if found.lines else ""
    place = ", ".join(filter(None, (" ".join(found.refused.at), lines)))
    return f"{place}: {found.refused.why}" if place else found.refused.why


def _saved(several: Iterable[ExplainedRefusal]) -> int:
    """The bytes of all places, each counted once."""
    return sum({found.refused.at[:1]: found.saved or 0 for found in several}.values())


def apart_lines(pairs: Sequence[Pair], view: View) -> list[str]:
    """The neighbouring operators that are not in one kernel."""
    if not pairs:
        return []
    shown = pairs if view.verbosity == FULL else pairs[:PAIRS]
    lines = view.heading(
        "Neighbours that are not in one kernel, by the bytes that this moves (`blockc why-not` says more):"
    )
    for pair in shown:
        assert pair.reason is not None
        saved = pair.reason.saved_bytes
        moved = f" ({view.number(saved, 'B')})" if saved is not None and saved > 0 else ""
        lines += view.lines(f"  {pair.first} and {pair.second}{moved}: {visible(pair.reason.why)}", "      ")
    return [*lines, *([f"  and {plural(len(pairs) - len(shown), 'other pair')}"] if len(pairs) > len(shown) else [])]


# --- parts ------------------------------------------------------------------------------------------------------------


def part_lines(found: Partition, view: View) -> list[str]:
    """The parts of a program, in the order in which they run."""
    title = f"Chosen for {found.machine.name} ({found.machine.description or 'no description'}): "
    lines = view.heading(f"{title}{len(found.parts)} parts, {duration(found.seconds)} predicted")
    names = [[node.name for node in operators(part.program)] for part in found.parts]
    costs = [part.plan.cost for part in found.parts]
    lines += view.table(
        Column("part", tuple(Cell(str(number)) for number in range(len(names))), head=True),
        Column("from", tuple(Cell(several[0]) for several in names), head=True),
        Column("to", tuple(Cell(several[-1]) for several in names), head=True),
        Column("kernels", tuple(Cell(str(len(cost.kernels))) for cost in costs), right=True),
        Column("predicted", tuple(Cell(duration(cost.seconds)) for cost in costs), right=True),
        Column("waits for", tuple(Cell(cost.bottleneck) for cost in costs)),
    )
    total: dict[Way, int] = {}
    for cost in costs:
        for boundary, count in cost.boundaries.items():
            total[boundary] = total.get(boundary, 0) + count
    lines += ["", *view.heading("Moved, all parts together:")]
    ends = tuple(Cell(f"{source} -> {destination}") for source, destination in total)
    return [
        *lines,
        *view.table(
            Column("boundary", ends, head=True),
            Column("bytes", tuple(Cell(f"{count:,}") for count in total.values()), right=True),
        ),
    ]


def cut_lines(found: Partition, view: View) -> list[str]:
    """The parts that were looked at."""
    if not found.candidates:
        return []
    if view.verbosity < FULL:
        chosen = sum(candidate.chosen for candidate in found.candidates)
        one = "1 is" if chosen == 1 else f"{chosen} are"
        text = f"Of {plural(len(found.candidates), 'part')} of the program that were looked at, {one} chosen."
        return view.lines(f"{text} --verbosity 2 shows everything.", "  ")
    lines = view.heading("Parts looked at (* is chosen: the least time of all parts, in a first estimate):")
    times = [duration(one.seconds) if not one.why else "none" for one in found.candidates]
    marks = ["*" if one.chosen else one.why for one in found.candidates]
    return [
        *lines,
        *view.table(
            Column("from", tuple(Cell(one.first) for one in found.candidates), head=True),
            Column("to", tuple(Cell(one.last) for one in found.candidates), head=True),
            Column("predicted", tuple(map(Cell, times)), right=True),
            Column("", tuple(map(Cell, marks))),
        ),
    ]
