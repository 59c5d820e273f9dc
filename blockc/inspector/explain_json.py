"""An explanation as JSON. `explain.schema.json` says what every key means."""

from __future__ import annotations

from typing import Any

from blockc.driver import has_kernels
from blockc.formatting import block_sizes
from blockc.inspector.choices import margin, why_not
from blockc.inspector.explain_text import byte_formulas
from blockc.inspector.explanation import ExplainedStep, Explanation, Figures, PartExplanation
from blockc.inspector.pairs import Pair
from blockc.inspector.skeleton import skeleton
from blockc.ir.array_program import ArrayProgram, Span
from blockc.ir.machine import Machine
from blockc.passes.choose import peeled_dimensions
from blockc.passes.machine_cost import MachineCost
from blockc.planning import MachinePlan

SCHEMA = "blockc.explain/1"  # the number changes when a key changes its meaning or goes; new keys may come


def as_json(explained: Explanation) -> dict[str, Any]:
    """All parts, and what else was looked at: of one part, that of the program; else `parts` has them."""
    found = explained.partition
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
    apart = [_pair(pair) for pair in explained.apart]
    if len(explained.parts) == 1:
        return {"schema": SCHEMA, **part_json(explained.parts[0]), "apart": apart, "cuts": cut}
    return {
        "schema": SCHEMA,
        "program": found.program.name,
        "target": explained.target,
        "dims": dict(found.sizes),
        "apart": apart,
        "cuts": cut,
        "parts": [part_json(part) for part in explained.parts],
    }


def _pair(pair: Pair) -> dict[str, Any]:
    assert pair.reason is not None
    return {
        "first": pair.first,
        "second": pair.second,
        "kind": pair.reason.kind,
        "rule": pair.reason.rule,
        "reason": pair.reason.reason,
        "why": pair.reason.why,
        "saved_bytes": pair.reason.saved_bytes,
    }


def part_json(part: PartExplanation) -> dict[str, Any]:
    """One part, with what was chosen for the machine."""
    plan, derivation = part.plan, part.derivation
    return {
        "program": part.program.name,
        "target": part.target,
        "dims": dict(plan.sizes),
        "note": plan.note,
        "peeled": sorted(peeled_dimensions(plan.program)),
        "chosen": plan.snapshot,
        "complete": derivation.complete,
        "stopped": derivation.stopped,
        "unfused": {
            "kernels": part.unfused.cost.kernels,
            "traffic_bytes": part.unfused.cost.traffic_bytes,
            "flops": part.unfused.cost.flops,
            "local_bytes": part.unfused.cost.local_bytes,
            "boundaries": _boundaries(part.unfused.machine),
        },
        "snapshots": list(_snapshots(part)),
        "steps": [_step(part, step) for step in part.steps],
        "refusals": [
            {
                "snapshot": found.refused.snapshot,
                "rule": found.refused.rule,
                "reason": found.refused.reason,
                "at": " ".join(found.refused.at),
                "lines": list(found.lines),
                "why": found.refused.why,
                "saved_bytes": found.saved,
            }
            for found in part.refusals
        ],
        "machine": _machine(part),
    }


def _snapshots(part: PartExplanation) -> Any:
    plan, chosen = part.plan, part.found.chosen
    same = [c for c in part.found.candidates if c is chosen or c.form == (chosen.origin or chosen.form)]
    found = {candidate.choice.snapshot: candidate.choice for candidate in same}
    home = part.machine.tiers[0].name
    for index, (entry, formula) in enumerate(zip(plan.costs, part.formulas, strict=True)):
        value = {
            "index": index,
            "kernels": entry.kernels,
            "internal_buffered_edges": len(entry.buffered),
            "buffered": list(entry.buffered),
            "traffic": formula,
            "traffic_bytes": entry.traffic_bytes,
            "flops": entry.flops,
            "special_ops": entry.special,
            "local_bytes": entry.local_bytes,
            "tiles": block_sizes(plan.program, plan.tiles),
            "predicted_seconds": entry.seconds,
            "fits": True,
            "loops": skeleton(plan.snapshots[index], found[index].placement if index in found else {}, home),
        }
        if not has_kernels(part.machine):
            choice = found[index]
            value["tiles"], value["fits"] = block_sizes(choice.program, choice.tiles), choice.cost is not None
            value["predicted_seconds"] = choice.cost.seconds if choice.cost is not None else None
        yield value


def _step(part: PartExplanation, found: ExplainedStep) -> dict[str, Any]:
    before, after = found.before.cost, found.after.cost
    return {
        "number": found.number,
        "snapshot": found.snapshot,
        "rule": found.rule,
        "paper_rule": found.step.paper,
        "at": " ".join(found.step.at),
        "source": place(part.program, found.span),
        "traffic_bytes_delta": after.traffic_bytes - before.traffic_bytes,
        "flops_delta": after.flops - before.flops,
        "local_bytes_delta": after.local_bytes - before.local_bytes,
        "before": _figures(found.before),
        "after": _figures(found.after),
    }


def _figures(found: Figures) -> dict[str, Any]:
    return {
        "kernels": found.cost.kernels,
        "traffic_bytes": found.cost.traffic_bytes,
        "flops": found.cost.flops,
        "local_bytes": found.cost.local_bytes,
        "boundaries": _boundaries(found.machine),
    }


def _boundaries(cost: MachineCost | None) -> list[dict[str, Any]] | None:
    if cost is None:
        return None
    return [
        {"from": source, "to": destination, "bytes": count} for (source, destination), count in cost.boundaries.items()
    ]


def place(program: ArrayProgram, span: Span | None) -> str:
    """Where a span is, as file:line:column, or "" if that is not known."""
    return "" if span is None else f"{program.filename}:{span.line}:{span.column}"


def _machine(part: PartExplanation) -> dict[str, Any]:
    """The plan with its costs, and all candidates."""
    plan: MachinePlan = part.found
    return {
        "name": plan.machine.name,
        "form": plan.chosen.form,
        "snapshot": plan.chosen.choice.snapshot,
        "tiles": block_sizes(plan.chosen.choice.program, plan.chosen.choice.tiles),
        "placement": dict(plan.chosen.choice.placement),
        **cost_json(plan.machine, plan.cost),
        "formulas": byte_formulas(plan),
        "margin": margin(part.alternatives),
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
        "boundaries": _boundaries(cost),
        "peak_bytes": {tier.name: cost.peak.get(tier.name, 0) for tier in machine.tiers},
    }
