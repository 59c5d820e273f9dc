"""The explanation of a compilation: the derivation step by step, the snapshots and their costs, what was refused."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockc.errors import visible
from blockc.ir.array_program import ArrayProgram, Span
from blockc.ir.block import Condition, Constant, Map, Program, Reading, Term, walk
from blockc.ir.decisions import Derivation, Refused
from blockc.ir.plan import Cost, Plan
from blockc.ir.text import format_term
from blockc.passes.choose import peeled_dimensions
from blockc.passes.cost import cost, traffic_formula

WIDTH = 100  # columns of a terminal that the text is made for
_LONGEST_CELL = 22


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
            "note": self.plan.note,
            "peeled": sorted(peeled_dimensions(self.plan.program)),
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
                    "tiles": block_sizes(self.plan.program, self.plan.tiles),
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
        return "\n".join(
            (*head(self), "", *derivation_lines(self), "", *snapshot_lines(self), "", *refusal_lines(self))
        )


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


def formula(program: Program) -> str:
    """The bytes that a program moves, as text: a name is a size, B_x the number of blocks of x."""
    import sympy

    return str(sympy.factor_terms(traffic_formula(program)))


def place(program: ArrayProgram, span: Span | None) -> str:
    """Where a span is, as file:line:column, or "" if that is not known."""
    return "" if span is None else f"{program.filename}:{span.line}:{span.column}"


def readable(number: int, unit: str = "") -> str:
    """A change with its sign, to three figures: 0, +512, -16.8 M; with the unit B, -16.8 MB."""
    if not number:
        return "0"
    size, prefix = float(abs(number)), ""
    for larger in ("k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q"):
        if size < 999.5:
            break
        size, prefix = size / 1000, larger
    figures = f"{size:.{max(0, 2 - int(math.log10(size)))}f}" if prefix else f"{size:.0f}"
    return f"{'-' if number < 0 else '+'}{figures} {prefix}{unit}".rstrip()


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


def listed(values: Mapping[str, int] | Mapping[str, int | list[int]]) -> str:
    """Named numbers on one line, several of one name with strokes."""
    shown = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return ", ".join(f"{name}={'/'.join(map(str, several))}" for name, several in shown.items())


def block_sizes(program: Program, tiles: Mapping[str, int]) -> dict[str, int | list[int]]:
    """The block size of each dimension; if it is cut more than once, those of all cuts, outermost first."""
    result: dict[str, int | list[int]] = {dim: tile for dim, tile in tiles.items() if dim not in program.chunks}
    for chunk, dim in program.chunks.items():
        if chunk in tiles and tiles[chunk] != tiles[dim]:
            result[dim] = [tiles[chunk], tiles[dim]]
    return result


def wrapped(text: str, indent: str) -> list[str]:
    """The text in lines of at most `WIDTH` columns, all but the first with `indent`; words are never cut."""
    lines = textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
    return lines or [""]


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


def shortened(text: str) -> str:
    """The text, cut where it would make a column too wide."""
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 3] + "..."


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


def duration(seconds: float) -> str:
    """A time in milliseconds; in microseconds below a tenth of one, and in seconds from ten of them on."""
    if 0 < seconds < 1e-4:
        return f"{seconds * 1e6:,.3f} us"
    return f"{seconds * 1e3:,.3f} ms" if seconds < 10 else f"{seconds:,.1f} s"


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
