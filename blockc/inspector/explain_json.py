"""Explanations as JSON."""

from __future__ import annotations

from typing import Any

from blockc.driver import has_kernels
from blockc.formatting import block_sizes
from blockc.inspector.explain_text import byte_formulas, why_not
from blockc.inspector.explanation import Explanation, MachineExplanation, PartsExplanation
from blockc.ir.array_program import ArrayProgram, Span
from blockc.ir.machine import Machine
from blockc.passes.choose import peeled_dimensions
from blockc.passes.machine_cost import MachineCost
from blockc.planning import MachinePlan


def parts(explained: PartsExplanation) -> dict[str, Any]:
    """All parts, and what else was looked at."""
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
    if len(explained.parts) == 1:
        return {**machine(explained.parts[0]), "cuts": cut}
    return {
        "program": found.program.name,
        "target": explained.target,
        "dims": dict(found.sizes),
        "cuts": cut,
        "parts": [machine(part) for part in explained.parts],
    }


def machine(explained: MachineExplanation) -> dict[str, Any]:
    """One part, with what was chosen for the machine."""
    value = derivation(explained.explanation)
    plan = explained.plan
    if not has_kernels(plan.machine):
        chosen = plan.chosen
        same = [c for c in plan.candidates if c is chosen or c.form == (chosen.origin or chosen.form)]
        found = {candidate.choice.snapshot: candidate.choice for candidate in same}
        for entry in value["snapshots"]:
            choice = found[entry["index"]]
            entry["tiles"], entry["fits"] = block_sizes(choice.program, choice.tiles), choice.cost is not None
            entry["predicted_seconds"] = choice.cost.seconds if choice.cost is not None else None
    return {**value, "machine": plan_json(plan)}


def derivation(found: Explanation) -> dict[str, Any]:
    """The derivation and the snapshots."""
    return {
        "program": found.program.name,
        "target": found.target,
        "dims": dict(found.plan.sizes),
        "note": found.plan.note,
        "peeled": sorted(peeled_dimensions(found.plan.program)),
        "chosen": found.plan.snapshot,
        "complete": found.complete,
        "stopped": found.stopped,
        "unfused": {"kernels": found.unfused.kernels, "traffic_bytes": found.unfused.traffic_bytes},
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
                "tiles": block_sizes(found.plan.program, found.plan.tiles),
                "predicted_seconds": entry.seconds,
                "fits": True,
            }
            for index, (entry, formula) in enumerate(zip(found.plan.costs, found.formulas, strict=True))
        ],
        "steps": [
            {
                "snapshot": step.snapshot,
                "rule": step.rule,
                "paper_rule": step.paper,
                "at": " ".join(step.at),
                "source": place(found.program, step.span),
                "traffic_bytes_delta": step.traffic_delta,
                "flops_delta": step.flops_delta,
                "local_bytes_delta": step.local_delta,
            }
            for step in found.steps
        ],
        "refusals": [
            {
                "snapshot": refusal.snapshot,
                "rule": refusal.rule,
                "reason": refusal.reason,
                "at": " ".join(refusal.at),
                "why": refusal.why,
            }
            for refusal in found.refusals
        ],
    }


def place(program: ArrayProgram, span: Span | None) -> str:
    """Where a span is, as file:line:column, or "" if that is not known."""
    return "" if span is None else f"{program.filename}:{span.line}:{span.column}"


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
