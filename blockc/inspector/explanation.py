"""What was decided about a program, as plain records: the derivation step by step, what it cost, and the choice.

These records feed all views: a terminal (`explain_text.py`), JSON (`explain_json.py`) and notebooks
(`explain_html.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blockc.inspector.choices import Alternative, alternatives
from blockc.inspector.pairs import Inspection, Pair
from blockc.inspector.savings import saved_bytes
from blockc.inspector.tables import Paint, plain
from blockc.ir.array_program import ArrayProgram, Span
from blockc.ir.block import Program, walk
from blockc.ir.decisions import Derivation, Refused, Step
from blockc.ir.machine import Machine
from blockc.ir.plan import Cost, Plan
from blockc.partition import Partition
from blockc.passes.cost import cost, traffic_formula
from blockc.passes.machine_cost import MachineCost, evaluate
from blockc.passes.machine_model import model
from blockc.passes.place import place
from blockc.passes.units import Unplaceable
from blockc.passing import Passing, passing
from blockc.planning import MachinePlan

NORMAL, FULL = 1, 2  # how much a text says; 0 is the choice alone


@dataclass(frozen=True, slots=True)
class Figures:
    """What a program costs in the blocks of the plan: by the cost model, and on the machine with all its lists in the
    outermost tier. `machine` is None if the program, which nobody chose, cannot be executed there."""

    cost: Cost
    machine: MachineCost | None


@dataclass(frozen=True, slots=True)
class ExplainedStep:
    """An applied rule with the figures before and after it. `number` counts the steps of a derivation from 1."""

    number: int
    step: Step
    before: Figures
    after: Figures

    @property
    def snapshot(self) -> int:
        """The snapshot that it leads to."""
        return self.step.snapshot

    @property
    def rule(self) -> str:
        """The name of the rule."""
        return self.step.rule

    @property
    def span(self) -> Span | None:
        """The place in the source."""
        return self.step.span


@dataclass(frozen=True, slots=True)
class ExplainedRefusal:
    """A refusal, with the bytes that the rule would have saved (None for algebra, which saves none by itself) and the
    lines of the source that it is about."""

    refused: Refused
    saved: int | None
    lines: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PartExplanation:
    """Everything that was decided about a program, or about one of the parts that it was cut into.

    `base` is the snapshot that the chosen one is: another one if that has a second cut. `way` are the numbers of the
    steps that lead to it. `formulas` are the bytes of lists of each snapshot.
    """

    program: ArrayProgram
    target: str
    plan: Plan
    found: MachinePlan
    derivation: Derivation
    alternatives: tuple[Alternative, ...]
    formulas: tuple[str, ...]
    unfused: Figures
    steps: tuple[ExplainedStep, ...]
    way: frozenset[int]
    base: int
    refusals: tuple[ExplainedRefusal, ...]

    @property
    def machine(self) -> Machine:
        """What it was decided for."""
        return self.found.machine


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that was decided about a program: of each part, and what else was looked at. `apart` are neighbouring
    operators that are not in one kernel, each pair with its reason, the ones that would save most first.

    `str` is the text for a terminal of 100 columns, and notebooks show it with a picture.
    """

    partition: Partition
    target: str
    parts: tuple[PartExplanation, ...]
    apart: tuple[Pair, ...]

    def text(self, width: int, verbosity: int = NORMAL, paint: Paint = plain) -> str:
        """The text for a window of some width: the choice (0), what matters (1), or everything (2)."""
        from blockc.inspector import explain_tables, explain_text

        return explain_text.text(self, explain_tables.View(width, verbosity, paint))

    def to_json(self) -> dict[str, Any]:
        """The object that `blockc explain --json` prints; `explain.schema.json` describes it."""
        from blockc.inspector import explain_json

        return explain_json.as_json(self)

    def __str__(self) -> str:
        return self.text(100)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from blockc.inspector import explain_html

        return explain_html.page_part(self)


def explain_for(target: str, found: Partition) -> Explanation:
    """The explanation of what was chosen for a machine."""
    parts = tuple(explain_plan(part.program, target, part.plan) for part in found.parts)
    pairs = (pair for pair in Inspection.of(found).pairs if pair.reason is not None)
    return Explanation(found, target, parts, tuple(sorted(pairs, key=_would_save, reverse=True)))


def _would_save(pair: Pair) -> int:
    return (pair.reason.saved_bytes if pair.reason is not None else 0) or 0


def explain_plan(program: ArrayProgram, target: str, found: MachinePlan) -> PartExplanation:
    """The explanation of one part. Every step is priced in the blocks of the plan."""
    plan, derivation = found.plan, found.chosen.derivation
    prices = _Prices(found.machine, plan)
    numbered = [
        ExplainedStep(number, step, prices.of(step.before), prices.of(step.after))
        for number, step in enumerate(derivation.steps, 1)
    ]
    base, way = _way(derivation, plan.snapshot)
    return PartExplanation(
        program,
        target,
        plan,
        found,
        derivation,
        alternatives(found, plan),
        tuple(map(formula, plan.snapshots)),
        prices.of(derivation.unfused),
        tuple(numbered),
        way,
        base,
        tuple(_refusals(derivation, plan)),
    )


class _Prices:
    """Figures of programs, each found once."""

    def __init__(self, machine: Machine, plan: Plan) -> None:
        self.machine, self.plan = machine, plan
        self.known: dict[int, Figures] = {}

    def of(self, program: Program) -> Figures:
        """The figures of a program of the derivation."""
        if id(program) not in self.known:
            sizes, dims = self.plan.sizes, {dim.name for dim in program.dims}
            tiles = {dim: tile for dim, tile in self.plan.tiles.items() if dim in dims}  # chunks come with later steps
            try:
                there = evaluate(model(place(program, self.machine)), sizes, tiles)
            except Unplaceable:
                there = None
            self.known[id(program)] = Figures(cost(program, sizes, tiles), there)
        return self.known[id(program)]


def _way(derivation: Derivation, snapshot: int) -> tuple[int, frozenset[int]]:
    """The snapshot that one is, without a second cut, and the numbers of the steps from the unfused program to it."""
    program = derivation.snapshots[snapshot]
    way, base = [], snapshot
    for number, step in reversed(list(enumerate(derivation.steps, 1))):
        if step.after is program:
            way.append(number)
            program = step.before
            cut = [at for at, other in enumerate(derivation.snapshots) if step.rule == "cut_again" and other is program]
            base = cut[0] if cut else base
    return base, frozenset(way)


def _refusals(derivation: Derivation, plan: Plan) -> list[ExplainedRefusal]:
    """The refusals of all snapshots, those of each with the ones that would have saved most first."""
    moved: dict[int, Passing] = {}
    result = []
    for refused in derivation.refusals:
        program = derivation.snapshots[refused.snapshot]
        if refused.snapshot not in moved:
            moved[refused.snapshot] = passing(program, plan.sizes, plan.tiles)
        spans = {name: node.span for node in walk(program.body) for name in node.defines}
        lines = (span.line for name in refused.at if (span := spans.get(name)) is not None)
        saved = saved_bytes(program, refused, moved[refused.snapshot])
        result.append(ExplainedRefusal(refused, saved, tuple(dict.fromkeys(lines))))
    return sorted(result, key=lambda found: (found.refused.snapshot, -(found.saved or 0)))


def formula(program: Program) -> str:
    """The bytes that a program moves, as text: a name is a size, B_x the number of blocks of x."""
    import sympy

    return str(sympy.factor_terms(traffic_formula(program)))
