"""What was decided about a program, as plain records: the derivation step by step, what it cost, and the choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blockc.ir.array_program import ArrayProgram, Span
from blockc.ir.block import Program
from blockc.ir.decisions import Derivation, Refused
from blockc.ir.plan import Cost, Plan
from blockc.partition import Partition
from blockc.passes.cost import cost, traffic_formula
from blockc.planning import MachinePlan


@dataclass(frozen=True, slots=True)
class ExplainedStep:
    """One applied rule with what it changed, in bytes moved, operations, and peak bytes of live tiles."""

    snapshot: int
    rule: str
    paper: str
    at: tuple[str, ...]
    span: Span | None
    traffic_delta: int
    flops_delta: int
    local_delta: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that was decided about a program, as plain records."""

    program: ArrayProgram
    target: str
    plan: Plan
    formulas: tuple[str, ...]
    unfused: Cost
    steps: tuple[ExplainedStep, ...]
    refusals: tuple[Refused, ...]
    complete: bool
    stopped: str

    def to_json(self) -> dict[str, Any]:
        """The object that `blockc explain --json` prints (design, section 10)."""
        from blockc.inspector import explain_json

        return explain_json.derivation(self)

    def __str__(self) -> str:
        from blockc.inspector import explain_text

        return explain_text.derivation_text(self)


@dataclass(frozen=True, slots=True)
class MachineExplanation:
    """The derivation of what was chosen for a machine, and the choice."""

    explanation: Explanation
    plan: MachinePlan

    def to_json(self) -> dict[str, Any]:
        """The object that `blockc explain --json` prints: with `machine`, what was chosen for it and why."""
        from blockc.inspector import explain_json

        return explain_json.machine(self)

    def __str__(self) -> str:
        from blockc.inspector import explain_text

        return explain_text.machine_text(self)


@dataclass(frozen=True, slots=True)
class PartsExplanation:
    """The explanations of the parts that a program was cut into, and what else was looked at."""

    partition: Partition
    target: str
    parts: tuple[MachineExplanation, ...]

    def to_json(self) -> dict[str, Any]:
        """The object that `blockc explain --json` prints: of one part, that of the program; else `parts` has them."""
        from blockc.inspector import explain_json

        return explain_json.parts(self)

    def __str__(self) -> str:
        from blockc.inspector import explain_text

        return explain_text.parts_text(self)


def explain_plan(program: ArrayProgram, target: str, derivation: Derivation, plan: Plan) -> Explanation:
    """Price every step of a derivation at the plan's sizes and tiles."""
    costs: dict[int, Cost] = {}

    def price(snapshot: Program) -> Cost:
        if id(snapshot) not in costs:
            costs[id(snapshot)] = cost(snapshot, plan.sizes, plan.tiles)
        return costs[id(snapshot)]

    steps = []
    for step in derivation.steps:
        before, after = price(step.before), price(step.after)
        steps.append(
            ExplainedStep(
                step.snapshot,
                step.rule,
                step.paper,
                step.at,
                step.span,
                after.traffic_bytes - before.traffic_bytes,
                after.flops - before.flops,
                after.local_bytes - before.local_bytes,
            )
        )
    formulas = tuple(map(formula, plan.snapshots))
    return Explanation(
        program,
        target,
        plan,
        formulas,
        price(derivation.unfused),
        tuple(steps),
        derivation.refusals,
        derivation.complete,
        derivation.stopped,
    )


def explain_for(target: str, found: Partition) -> PartsExplanation:
    """The explanation of what was chosen for a machine."""
    parts = (
        MachineExplanation(explain_plan(part.program, target, part.plan.chosen.derivation, part.plan.plan), part.plan)
        for part in found.parts
    )
    return PartsExplanation(found, target, tuple(parts))


def formula(program: Program) -> str:
    """The bytes that a program moves, as text: a name is a size, B_x the number of blocks of x."""
    import sympy

    return str(sympy.factor_terms(traffic_formula(program)))
