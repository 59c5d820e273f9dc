"""The explanation of a compilation: the derivation step by step, the snapshots and their costs, what was refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockc.errors import visible
from blockc.ir.array import ArrayProgram, Span
from blockc.ir.block import Program
from blockc.ir.decisions import Derivation, Refused
from blockc.ir.plan import Cost, Plan
from blockc.passes.cost import cost, traffic_formula


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
        return {
            "program": self.program.name,
            "target": self.target,
            "dims": dict(self.plan.sizes),
            "chosen": self.plan.snapshot,
            "complete": self.complete,
            "stopped": self.stopped,
            "unfused": {"kernels": self.unfused.kernels, "traffic_bytes": self.unfused.traffic_bytes},
            "snapshots": [
                {
                    "index": index,
                    "kernels": entry.kernels,
                    "internal_buffered_edges": len(entry.buffered),
                    "buffered": list(entry.buffered),
                    "traffic": formula,
                    "traffic_bytes": entry.traffic_bytes,
                    "flops": entry.flops,
                    "special_ops": entry.special,
                    "local_bytes": entry.local_bytes,
                    "tiles": dict(self.plan.tiles),
                    "predicted_seconds": entry.seconds,
                    "fits": True,
                }
                for index, (entry, formula) in enumerate(zip(self.plan.costs, self.formulas, strict=True))
            ],
            "steps": [
                {
                    "snapshot": step.snapshot,
                    "rule": step.rule,
                    "paper_rule": step.paper,
                    "at": " ".join(step.at),
                    "source": place(self.program, step.span),
                    "traffic_bytes_delta": step.traffic_delta,
                    "flops_delta": step.flops_delta,
                    "local_bytes_delta": step.local_delta,
                }
                for step in self.steps
            ],
            "refusals": [
                {
                    "snapshot": refusal.snapshot,
                    "rule": refusal.rule,
                    "reason": refusal.reason,
                    "at": " ".join(refusal.at),
                    "why": refusal.why,
                }
                for refusal in self.refusals
            ],
        }

    def __str__(self) -> str:
        return "\n".join((*_head(self), "", *_derivation(self), "", *_snapshots(self), "", *_refusals(self)))


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
    formulas = tuple(formula(snapshot) for snapshot in derivation.snapshots)
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


def formula(program: Program) -> str:
    """The bytes that a program moves, as text: a name is a size, B_x the number of blocks of x."""
    import sympy

    return str(sympy.factor_terms(traffic_formula(program)))


def place(program: ArrayProgram, span: Span | None) -> str:
    """Where a span is, as file:line:column, or "" if that is not known."""
    return "" if span is None else f"{program.filename}:{span.line}:{span.column}"


def signed(number: int) -> str:
    """A change, with its sign and its thousands apart."""
    return f"{number:+,}" if number else "0"


def _head(explanation: Explanation) -> list[str]:
    plan = explanation.plan
    program = explanation.program
    arguments = ", ".join(argument.name for argument in program.inputs)
    outputs = ", ".join(result.argument.name for result in program.outputs)
    return [
        f"{program.name}: {arguments} -> {outputs}   ({visible(program.filename)}, target {explanation.target})",
        f"  sizes  {listed(plan.sizes)}",
        f"  tiles  {listed(plan.tiles) or 'none'}   whole  {', '.join(sorted(plan.program.whole)) or 'none'}",
    ]


def listed(values: Mapping[str, int]) -> str:
    """Named numbers on one line."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _derivation(explanation: Explanation) -> list[str]:
    unfused = explanation.unfused
    rows = [("step", "rule", "paper", "at", "line", "bytes moved", "operations", "local bytes")]
    for number, step in enumerate(explanation.steps, 1):
        line = "" if step.span is None else f"{step.span.line}:{step.span.column}"
        changes = (signed(step.traffic_delta), signed(step.flops_delta), signed(step.local_delta))
        rows.append((f"{step.snapshot}.{number}", step.rule, step.paper, " ".join(step.at), line, *changes))
    start = f"Derivation, from {unfused.kernels} kernels that move {unfused.traffic_bytes:,} bytes:"
    return [start, *table(rows, right=frozenset({5, 6, 7}))]


def _snapshots(explanation: Explanation) -> list[str]:
    plan = explanation.plan
    rows = [("snapshot", "kernels", "lists kept", "bytes moved", "operations", "special", "local bytes", "predicted")]
    for index, entry in enumerate(plan.costs):
        mark = f"{index} *" if index == plan.snapshot else str(index)
        rows.append(
            (
                mark,
                str(entry.kernels),
                ", ".join(entry.buffered) or "none",
                f"{entry.traffic_bytes:,}",
                f"{entry.flops:,}",
                f"{entry.special:,}",
                f"{entry.local_bytes:,}",
                f"{entry.seconds * 1e3:.3f} ms",
            )
        )
    lines = ["Snapshots (* is chosen: the least predicted time at nominal rates, not a measurement):"]
    lines += table(rows, right=frozenset({1, 3, 4, 5, 6, 7}))
    lines += [f"  bytes moved by {index}: {text}" for index, text in enumerate(explanation.formulas)]
    if not explanation.complete:
        lines.append(f"  The search ended early: {explanation.stopped}.")
    return lines


def _refusals(explanation: Explanation) -> list[str]:
    """The refusals that stand in the chosen snapshot."""
    chosen = [refusal for refusal in explanation.refusals if refusal.snapshot == explanation.plan.snapshot]
    if not chosen:
        return ["Nothing was refused in the chosen snapshot."]
    rows = [("rule", "reason", "at", "why")]
    rows += [(refusal.rule, refusal.reason, " ".join(refusal.at), refusal.why) for refusal in chosen]
    return ["Refused in the chosen snapshot:", *table(rows, right=frozenset())]


def table(rows: list[tuple[str, ...]], right: frozenset[int]) -> list[str]:
    """Rows as aligned lines, the columns in `right` to the right; the last column is not padded."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines
