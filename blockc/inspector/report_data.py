"""Everything that a report shows, as one object for its page. Texts are ready to be shown; numbers are for drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import blockc
from blockc import driver
from blockc.errors import visible
from blockc.formatting import block_sizes, listed
from blockc.inspector.explanation import PartExplanation, explain_for
from blockc.inspector.report_costs import amount, costs_json, time_text
from blockc.inspector.report_kernels import kernels_json
from blockc.inspector.report_rules import rule_json
from blockc.inspector.report_source import source_json
from blockc.inspector.report_steps import steps_json
from blockc.inspector.report_timeline import timeline_json
from blockc.ir.array_program import ArrayProgram
from blockc.ir.machine import Machine
from blockc.partition import Partition, partition
from blockc.passes.segments import operators

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Request:
    """What to report on: a program on one machine or several, each with the name by which it was asked for."""

    program: ArrayProgram
    machines: Sequence[tuple[str, Machine]]
    dims: Mapping[str, int]
    tiles: driver.Tiles
    split: driver.Split


def report_data(request: Request) -> dict[str, Any]:
    """The whole object. LimitError if a machine cannot execute the program."""
    program = request.program
    sizes = driver.default_sizes(program, request.dims)
    machines = []
    rules: dict[str, None] = {}
    for target, machine in request.machines:
        found = partition(program, machine, sizes, request.tiles, request.split)
        machines.append(machine_json(found, target, request.tiles))
        for part in machines[-1]["parts"]:
            used = [stop["rule"] for stop in part["steps"]["stops"] if stop["rule"]]
            rules.update(dict.fromkeys([*used, *(refusal["rule"] for refusal in part["refusals"])]))
    return {
        "schema": SCHEMA,
        "version": blockc.__version__,
        "program": visible(program.name),
        "file": visible(program.filename),
        "sizes": visible(listed(sizes)),
        "machines": machines,
        "rules": {name: rule_json(name) for name in rules},
    }


def machine_json(found: Partition, target: str, tiles: driver.Tiles) -> dict[str, Any]:
    """What was chosen for one machine."""
    machine = found.machine
    explained = explain_for(target, found)
    total: dict[tuple[str, str], int] = {}
    for part in found.parts:
        for boundary, count in part.plan.cost.boundaries.items():
            total[boundary] = total.get(boundary, 0) + count
    kernels = [kernel for part in found.parts for kernel in part.plan.cost.kernels]
    source = source_json(found)
    for entry, cost in zip(source["kernels"], kernels, strict=True):
        entry.update(seconds=time_text(cost.seconds), waits=visible(cost.bottleneck), tasks=f"{cost.tasks:,}")
    return {
        "target": visible(target),
        "name": visible(machine.name),
        "description": visible(machine.description),
        "backend": machine.backend,
        "units": machine.units,
        "seconds": time_text(found.seconds),
        "waits": visible(found.bottleneck),
        "kernels": len(kernels),
        "boundaries": [[visible(f"{source} → {end}"), amount(count, "B")] for (source, end), count in total.items()],
        "source": source,
        "emitted": kernels_json(found, target, tiles),
        "cuts": [
            {
                "first": visible(candidate.first),
                "last": visible(candidate.last),
                "seconds": "none" if candidate.why else time_text(candidate.seconds),
                "chosen": candidate.chosen,
                "why": visible(candidate.why),
            }
            for candidate in found.candidates
        ],
        "parts": [part_json(found, number, one) for number, one in enumerate(explained.parts)],
    }


def part_json(found: Partition, number: int, explained: PartExplanation) -> dict[str, Any]:
    """One part: its derivation, costs, timeline and refusals."""
    part = found.parts[number]
    plan = explained.found
    names = [node.name for node in operators(part.program)]
    share = min(1.0, 4 / len(found.parts))
    steps = steps_json(explained, share)
    stops = steps["stops"]
    return {
        "first": visible(names[0]) if names else "",
        "last": visible(names[-1]) if names else "",
        "operators": len(names),
        "reads": [visible(argument.name) for argument in part.program.inputs],
        "gives": [visible(result.argument.name) for result in part.program.outputs],
        "sizes": visible(listed(plan.sizes)),
        "blocks": visible(listed(block_sizes(plan.plan.program, plan.plan.tiles)) or "none"),
        "kernels": len(plan.cost.kernels),
        "seconds": time_text(plan.cost.seconds),
        "waits": visible(plan.cost.bottleneck),
        "before": {"kernels": stops[0]["kernels"], "moved": stops[0]["moved"], "bytes": stops[0]["bytes"]},
        "after": {"kernels": stops[-1]["kernels"], "moved": stops[-1]["moved"], "bytes": stops[-1]["bytes"]},
        "complete": explained.derivation.complete,
        "stopped": visible(explained.derivation.stopped),
        "steps": steps,
        "costs": costs_json(explained),
        "timeline": timeline_json(part, share),
        "refusals": [
            {
                "snapshot": refusal.snapshot,
                "rule": refusal.rule,
                "reason": refusal.reason,
                "at": visible(" ".join(refusal.at)),
                "why": visible(refusal.why),
            }
            for refusal in (entry.refused for entry in explained.refusals)
        ],
    }
