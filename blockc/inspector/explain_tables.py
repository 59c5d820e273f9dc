"""The tables of an explanation: every step with what it changed, and what was looked at side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from blockc.driver import has_kernels
from blockc.formatting import amount, arrow, duration, shortened
from blockc.inspector.choices import Alternative
from blockc.inspector.explanation import FULL, NORMAL, ExplainedStep, Figures, PartExplanation
from blockc.inspector.tables import Cell, Column, Paint, plain, table, wrapped
from blockc.ir.machine import Machine
from blockc.passes.cost import buffered_lists
from blockc.passes.machine_cost import MachineCost

SHOWN = 4  # other candidates, unless everything is shown


@dataclass(frozen=True, slots=True)
class View:
    """Who looks: a window of so many columns, how much to say, and what styles look like."""

    width: int
    verbosity: int = NORMAL
    paint: Paint = plain

    def heading(self, text: str) -> list[str]:
        """A line that begins a section."""
        return [self.paint(line, "heading") for line in wrapped(text, self.width, "  ")]

    def lines(self, text: str, indent: str = "      ") -> list[str]:
        """A text, indented after its first line."""
        return wrapped(text, self.width, indent)

    def table(self, *shown: Column) -> list[str]:
        """A table."""
        return table(shown, self.width, self.paint)

    def number(self, number: int, unit: str = "") -> str:
        """A number: exact if everything is shown, else to three figures."""
        return f"{number:,}" if self.verbosity == FULL else amount(number, unit)


def plural(number: int, thing: str) -> str:
    """A number of things."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


Way = tuple[str, str]


def ways(machine: Machine, moved: Mapping[Way, int]) -> dict[Way, int]:
    """Bytes by boundary, of both directions together, the outermost first."""
    order = [tier.name for tier in machine.tiers]
    result: dict[Way, int] = {}
    for ends, count in moved.items():
        outer, inner = sorted(ends, key=order.index)
        result[outer, inner] = result.get((outer, inner), 0) + count
    return dict(sorted(result.items(), key=lambda entry: _depth(machine, entry[0])))


def _depth(machine: Machine, way: Way) -> tuple[int, ...]:
    order = [tier.name for tier in machine.tiers]
    return tuple(order.index(name) for name in way)


def boundaries(machine: Machine, found: Figures) -> dict[Way, int]:
    """Bytes by boundary of a program of the derivation; none if it cannot be executed on the machine."""
    return ways(machine, found.machine.boundaries) if found.machine is not None else {}


def outermost(machine: Machine, cost: MachineCost) -> int:
    """The bytes to and from the outermost tier."""
    return sum(count for ends, count in cost.boundaries.items() if machine.tiers[0].name in ends)


# --- steps ------------------------------------------------------------------------------------------------------------

Row = tuple[str, str, str, str, Figures, Figures]  # number, rule, where, line, before, after


def step_rows(part: PartExplanation, view: View) -> list[Row]:
    """The steps that lead to the chosen snapshot, or all of them, and then what makes a plan of it."""
    shown = [step for step in part.steps if view.verbosity == FULL or step.number in part.way]
    rows = list(_rows(shown, view))
    last = max((step for step in shown if step.number in part.way), key=lambda step: step.number, default=None)
    before = part.unfused if last is None else last.after
    planned = Figures(part.plan.costs[part.plan.snapshot], part.found.cost)
    return [*rows, ("plan", "safe arithmetic, tiers of lists", "", "", before, planned)]


def _rows(steps: Iterable[ExplainedStep], view: View) -> Iterator[Row]:
    """A row for each step or, unless everything is shown, for a run of steps of one rule that change no figure."""

    def kind(step: ExplainedStep) -> tuple[object, ...]:
        before, after = step.before.cost, step.after.cost
        changed = (before.traffic_bytes, before.flops, before.local_bytes) != (
            after.traffic_bytes,
            after.flops,
            after.local_bytes,
        )
        return step.snapshot, step.rule, step.number if changed or view.verbosity == FULL else 0

    for _, group in itertools.groupby(steps, kind):
        several = list(group)
        first, last = several[0], several[-1]
        number = f"{first.snapshot}.{first.number}"
        paper = f" ({first.step.paper})" if first.step.paper != "-" else ""
        rule = f"{first.rule}{paper}"
        if len(several) > 1:
            yield f"{number}-{last.number}", rule, f"{len(several)} places", "", first.before, last.after
        else:
            at = " ".join(last.step.at)
            line = "" if last.span is None else str(last.span.line)
            at = at if view.verbosity == FULL else shortened(at)
            yield number, rule, at, line, last.before, last.after


def step_columns(machine: Machine, rows: Sequence[Row], view: View) -> Iterator[Column]:
    """The rows as a table: what changed, before and after."""
    numbers, rules, places, lines, before, after = zip(*rows, strict=True)
    exact = view.verbosity == FULL
    yield Column("step", tuple(map(Cell, numbers)), head=True)
    yield Column("rule (in the paper)", tuple(Cell(rule, "name") for rule in rules), head=True)
    yield Column("at", tuple(map(Cell, places)))
    yield Column("line", tuple(map(Cell, lines)), right=True)

    def change(title: str, pairs: Iterable[tuple[int | None, int | None]], unit: str) -> Column:
        known = [(a, b) if a is not None and b is not None and a != b else None for a, b in pairs]
        styles = ["" if pair is None else "less" if pair[1] < pair[0] else "more" for pair in known]
        written = "{:,} -> {:,}".format if exact else partial(arrow, unit=unit)
        texts = ["" if pair is None else written(*pair) for pair in known]
        short = ["" if pair is None else amount(pair[1], unit) for pair in known]
        cells = tuple(map(Cell, texts, styles))
        return Column(title, cells, True, short=() if exact else tuple(map(Cell, short, styles)))

    pairs = list(zip(before, after, strict=True))
    placed = [(a.machine, b.machine) for a, b in pairs]
    home = [(outermost(machine, a) if a else None, outermost(machine, b) if b else None) for a, b in placed]
    yield change(f"{machine.tiers[0].name} bytes", home, "B")
    yield change("work", [(a.cost.flops, b.cost.flops) for a, b in pairs], "")
    yield change("local", [(a.cost.local_bytes, b.cost.local_bytes) for a, b in pairs], "B")
    sides = [(boundaries(machine, a), boundaries(machine, b)) for a, b in pairs]
    for way in sorted(set(itertools.chain(*itertools.chain(*sides))), key=lambda way: _depth(machine, way)):
        moved = [(a.get(way, 0) if a else None, b.get(way, 0) if b else None) for a, b in sides]
        if moved != home:
            yield replace(change(" - ".join(way), moved, "B"), spare=True)


# --- side by side -----------------------------------------------------------------------------------------------------

FIRST = ("snapshot", "whole", "form", "kernels", "lists kept", "moved ")  # of the rows of a comparison
ROWS = (*FIRST, "operations", "special", "space ", "nominal time", "time", "waits for")  # what they begin with


def compared(part: PartExplanation, view: View) -> tuple[Alternative, ...]:
    """What is shown side by side: the chosen one, and the fastest others."""
    return part.alternatives if view.verbosity == FULL else part.alternatives[: 1 + SHOWN]


def comparison(part: PartExplanation, view: View) -> tuple[list[str], list[dict[str, str]]]:
    """The names of the rows, and what they say of the unfused program and of everything that is compared."""
    blocks = [_unfused_column(part, view), *(_column(part, entry, view) for entry in compared(part, view))]
    names = list(dict.fromkeys(itertools.chain(*blocks)))
    names.sort(key=lambda name: next(at for at, known in enumerate(ROWS) if name.startswith(known)))
    return [name for name in names if any(block.get(name) for block in blocks)], blocks


def compared_title(part: PartExplanation) -> str:
    """What is compared, and by what it was chosen."""
    kernels = has_kernels(part.machine)
    rule = "to 1 %, at nominal rates, not a measurement" if kernels else "to 0.5 %"
    what = "Snapshots" if kernels else "Candidates"
    return f"{what} side by side (* is chosen: the least predicted time, {rule}):"


def _column(part: PartExplanation, entry: Alternative, view: View) -> dict[str, str]:
    """The figures of a candidate."""
    program = entry.program
    figures = {
        "snapshot": f"{entry.snapshot} *" if entry.chosen else str(entry.snapshot),
        "whole": ", ".join(sorted(program.whole)) or "none",
        "lists kept": str(len(buffered_lists(program))),
    }
    if ";" in entry.form:
        figures["form"] = entry.form.partition("; ")[2]
    cost = entry.cost
    if cost is None:
        return {**figures, "time": "does not fit"}
    figures["kernels"] = str(len(cost.kernels))
    figures |= {
        f"moved {' - '.join(way)}": view.number(count, "B")
        for way, count in ways(part.machine, cost.boundaries).items()
    }
    figures["operations"] = view.number(sum(cost.flops.values()))
    figures["special"] = view.number(sum(cost.special.values()))
    figures |= _space(part.machine, cost, view)
    if has_kernels(part.machine):
        figures["nominal time"] = duration(entry.seconds)
    return {**figures, "time": duration(cost.seconds), "waits for": cost.bottleneck.removeprefix("computing on ")}


def _space(machine: Machine, cost: MachineCost, view: View) -> dict[str, str]:
    return {
        f"space {tier.name} of {amount(tier.capacity, 'B')}": view.number(cost.peak.get(tier.name, 0), "B")
        for tier in machine.tiers
    }


def _unfused_column(part: PartExplanation, view: View) -> dict[str, str]:
    """The figures of the unfused program in the blocks of the plan."""
    unfused, cost = part.unfused.cost, part.unfused.machine
    figures = {
        "snapshot": "unfused",
        "whole": ", ".join(sorted(part.derivation.unfused.whole)) or "none",
        "kernels": str(unfused.kernels),
        "lists kept": str(len(unfused.buffered)),
        "operations": view.number(unfused.flops),
        "special": view.number(unfused.special),
    }
    if cost is not None:
        moved = ways(part.machine, cost.boundaries)
        figures |= {f"moved {' - '.join(way)}": view.number(count, "B") for way, count in moved.items()}
        figures |= _space(part.machine, cost, view)
        fits = all(cost.peak.get(tier.name, 0) <= tier.capacity for tier in part.machine.tiers)
        figures["time"] = duration(cost.seconds) if fits else "does not fit"
        figures["waits for"] = cost.bottleneck.removeprefix("computing on ")
    if has_kernels(part.machine):
        figures["nominal time"] = duration(unfused.seconds)
    return figures
