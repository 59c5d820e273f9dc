"""What a plan costs, for a report: candidates, boundaries, tiers, kernels, and the roofline of the machine.

Roofline: Williams, Waterman and Patterson, "Roofline", 2009. A roof is what a tier could feed at some operations per
byte. The bytes of a tier are those that it exchanges with tiers further in, in the direction that takes longer, as if
they were read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from blockc.errors import visible
from blockc.formatting import block_sizes, duration, listed, readable
from blockc.inspector.choices import why_not
from blockc.inspector.explain_text import byte_formulas
from blockc.inspector.explanation import PartExplanation
from blockc.ir.decisions import Derivation
from blockc.ir.machine import Machine
from blockc.ir.plan import Cost
from blockc.passes.choose import ready
from blockc.passes.cost import cost
from blockc.passes.machine_cost import MachineCost, evaluate
from blockc.passes.machine_model import model
from blockc.passes.place import place
from blockc.passes.units import Unplaceable
from blockc.planning import Candidate, MachinePlan

Point = dict[str, Any]


def amount(number: float, unit: str = "") -> str:
    """A number to three figures: 512 B, 16.8 MB."""
    if number < 1000:
        return f"{number:.3g} {unit}".rstrip()
    return readable(round(number), unit).lstrip("+")


def time_text(seconds: float) -> str:
    """A time with its unit."""
    return duration(seconds).replace(" us", " µs") if seconds else "0"


def costs_json(explained: PartExplanation) -> dict[str, Any]:
    """The costs of a part."""
    plan = explained.found
    unfused = unfused_cost(plan)
    return {
        "choice": choice_json(plan),
        "boundaries": boundaries_json(plan, unfused),
        "tiers": [
            {
                "name": visible(tier.name),
                "scope": tier.scope,
                "peak": amount(plan.cost.peak.get(tier.name, 0), "B"),
                "capacity": amount(tier.capacity, "B"),
                "share": plan.cost.peak.get(tier.name, 0) / max(1, tier.capacity),
            }
            for tier in plan.machine.tiers
        ],
        "kernels": kernels_json(plan.cost),
        "candidates": [candidate_json(plan, candidate) for candidate in plan.candidates],
        "snapshots": snapshots_json(explained),
        "roofline": roofline_json(plan, unfused),
    }


def unfused_cost(plan: MachinePlan) -> MachineCost | None:
    """What the unfused program would cost with the same blocks; None if the machine cannot execute it."""
    derivation: Derivation = plan.chosen.derivation
    (program,) = ready(replace(derivation, snapshots=(derivation.unfused,)))
    try:
        tiles = {dim: tile for dim, tile in plan.chosen.choice.tiles.items() if dim in program.rank}
        return evaluate(model(place(program, plan.machine)), plan.sizes, tiles)
    except Unplaceable:
        return None


def choice_json(plan: MachinePlan) -> dict[str, Any]:
    """What was chosen, and by how much the runner-up is slower."""
    choice = plan.chosen.choice
    others = [one for one in plan.candidates if one is not plan.chosen and one.choice.cost is not None]
    runner = min(others, key=lambda one: one.choice.cost.seconds if one.choice.cost else 0.0, default=None)
    lists = ", ".join(f"{name} in {tier}" for name, tier in choice.placement.items())
    home = plan.machine.tiers[0].name
    return {
        "snapshot": choice.snapshot,
        "form": visible(plan.chosen.form),
        "blocks": visible(listed(block_sizes(choice.program, choice.tiles)) or "none"),
        "lists": visible(f"{lists}; all others in {home}" if lists else f"all in {home}"),
        "seconds": time_text(plan.cost.seconds),
        "waits": visible(plan.cost.bottleneck),
        "note": visible(plan.note),
        "runner": None if runner is None else runner_json(plan, runner),
    }


def runner_json(plan: MachinePlan, runner: Candidate) -> dict[str, Any]:
    """The best that was not chosen."""
    assert runner.choice.cost is not None
    margin = runner.choice.cost.seconds / plan.cost.seconds - 1
    return {
        "snapshot": runner.choice.snapshot,
        "form": visible(runner.form),
        "seconds": time_text(runner.choice.cost.seconds),
        "margin": f"{margin * 100:+.1f} %",
        "why": _reason(plan, runner),
    }


def _reason(plan: MachinePlan, candidate: Candidate) -> str:
    return visible(why_not(plan, candidate)).replace(" us", " µs")


def boundaries_json(plan: MachinePlan, unfused: MachineCost | None) -> list[dict[str, Any]]:
    """Bytes across each boundary with their formula, beside those of the unfused program."""
    formulas = byte_formulas(plan)
    seconds: dict[str, float] = {}
    for kernel in plan.cost.kernels:
        for resource, time in kernel.resources.items():
            seconds[resource] = seconds.get(resource, 0.0) + time
    before = unfused.boundaries if unfused is not None else {}
    found = []
    for boundary in dict.fromkeys((*plan.cost.boundaries, *before)):
        way = f"{boundary[0]} -> {boundary[1]}"
        count, old = plan.cost.boundaries.get(boundary, 0), before.get(boundary)
        found.append(
            {
                "way": visible(f"{boundary[0]} → {boundary[1]}"),
                "bytes": amount(count, "B"),
                "unfused": "" if old is None else amount(old, "B"),
                "share": count / max(1, old) if old is not None else None,
                "time": time_text(seconds.get(way, 0.0)),
                "formula": visible(formulas.get(way, "")),
            }
        )
    return found


def kernels_json(found: MachineCost) -> list[dict[str, Any]]:
    """The kernels, each with what its resources would take on their own, the slowest first."""
    return [
        {
            "tasks": f"{kernel.tasks:,}",
            "seconds": time_text(kernel.seconds),
            "waits": visible(kernel.bottleneck),
            "resources": [
                [visible(name), time_text(seconds), seconds / max(kernel.seconds, 1e-30)]
                for name, seconds in sorted(kernel.resources.items(), key=lambda pair: -pair[1])
                if seconds > 0
            ],
        }
        for kernel in found.kernels
    ]


def candidate_json(plan: MachinePlan, candidate: Candidate) -> dict[str, Any]:
    """A candidate with its figures, or why it has none."""
    found = candidate.choice.cost
    figures = {
        "chosen": candidate is plan.chosen,
        "snapshot": candidate.choice.snapshot,
        "form": visible(candidate.form),
        "why": _reason(plan, candidate),
    }
    if found is None:
        return {**figures, "seconds": "none"}
    return {
        **figures,
        "kernels": len(found.kernels),
        "bytes": {f"{source} → {end}": amount(count, "B") for (source, end), count in found.boundaries.items()},
        "flops": amount(sum(found.flops.values())),
        "seconds": time_text(found.seconds),
        "ratio": f"{found.seconds / plan.cost.seconds:.2f}",
        "waits": visible(found.bottleneck),
    }


def snapshots_json(explained: PartExplanation) -> list[dict[str, Any]]:
    """The unfused program and all snapshots of the chosen form, at the blocks that were chosen."""
    plan = explained.found
    unfused = cost(plan.chosen.derivation.unfused, plan.sizes, plan.plan.tiles)
    rows = [_snapshot("unfused", unfused)]
    for number, (entry, formula) in enumerate(zip(plan.plan.costs, explained.formulas, strict=True)):
        row = _snapshot(str(number), entry)
        rows.append({**row, "formula": visible(formula), "chosen": number == plan.chosen.choice.snapshot})
    return rows


def _snapshot(name: str, entry: Cost) -> dict[str, Any]:
    sides: Mapping[str, int] = {
        side: sum(count for (_, direction), count in entry.traffic.items() if direction == side)
        for side in ("load", "store")
    }
    return {
        "name": name,
        "kernels": entry.kernels,
        "loads": amount(sides["load"], "B"),
        "stores": amount(sides["store"], "B"),
        "bytes": entry.traffic_bytes,
        "flops": amount(entry.flops),
        "special": amount(entry.special),
        "local": amount(entry.local_bytes, "B"),
        "kept": visible(", ".join(entry.buffered)) or "nothing",
        "formula": "",
        "chosen": False,
    }


def roofline_json(plan: MachinePlan, unfused: MachineCost | None) -> dict[str, Any]:
    """Roofs of the machine, in operations per second and bytes per second, and a point for each candidate."""
    machine = plan.machine
    points = []
    if unfused is not None:
        points.append(_point(machine, unfused, "unfused", "unfused"))
    for candidate in plan.candidates:
        if candidate.choice.cost is not None:
            name = f"snapshot {candidate.choice.snapshot}, {candidate.form}"
            kind = "chosen" if candidate is plan.chosen else "candidate"
            points.append(_point(machine, candidate.choice.cost, visible(name), kind))
    exchanged = set().union(*(point["intensity"] for point in points))
    return {
        "tiers": [
            {"name": visible(tier.name), "bandwidth": bandwidth, "text": f"{amount(bandwidth, 'B')}/s"}
            for tier in machine.tiers
            if visible(tier.name) in exchanged
            for bandwidth in [tier.read * (machine.units if tier.scope == "unit" else 1)]
        ],
        "rates": _rates(plan),
        "points": points,
    }


def _point(machine: Machine, found: MachineCost, name: str, kind: str) -> Point:
    order = {tier.name: at for at, tier in enumerate(machine.tiers)}
    read: dict[str, int] = {}
    written: dict[str, int] = {}
    for (source, end), count in found.boundaries.items():
        outer = min(source, end, key=order.__getitem__)
        side = read if outer == source else written
        side[outer] = side.get(outer, 0) + count
    bytes_ = {}
    for tier in machine.tiers:
        both = read.get(tier.name, 0), written.get(tier.name, 0) * tier.read / tier.write
        bytes_[visible(tier.name)] = max(both) if tier.duplex == "full" else sum(both)
    flops = sum(found.flops.values())
    return {
        "name": name,
        "kind": kind,
        "rate": flops / found.seconds if found.seconds else 0.0,
        "text": f"{amount(flops / found.seconds if found.seconds else 0.0)}FLOP/s, {time_text(found.seconds)}",
        "intensity": {tier: flops / count for tier, count in bytes_.items() if count},
    }


def _rates(plan: MachinePlan) -> list[dict[str, Any]]:
    """The rates of products and of elementwise operators that the chosen plan uses."""
    used = {(work.unit, work.operation, work.rated) for kernel in model(plan.schedule).kernels for work in kernel.work}
    found = []
    for unit in plan.machine.compute:
        for operation, rates in unit.operations.items():
            for dtype, rate in rates.items():
                if (unit.name, operation, dtype) in used:
                    name = visible(f"{unit.name}: {operation} {dtype}")
                    found.append({"name": name, "rate": rate.rate, "text": f"{amount(rate.rate)}FLOP/s"})
    return sorted(found, key=lambda entry: -float(str(entry["rate"])))
