"""What is chosen for every shipped machine, for few and for many rows: a table, for people who describe machines.

    python benchmarks/machines.py [--output FILE]

Nothing is measured: times are predicted from the machine files, bytes are exact. Per program, machine and number of
rows: the parts that the program is cut into, with the operators at their ends, kernels, form and snapshot, blocks,
tiers of lists, and time with what it waits for; bytes across each boundary.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blockc import __version__, driver
from blockc.formatting import block_sizes, duration, listed
from blockc.machines.loading import load_machine
from blockc.partition import Partition, partition
from blockc.passes.segments import operators

EXAMPLES = Path(__file__).parent.parent / "examples"
MACHINES = ("cpu", "h200", "h100", "a100", "ascend", "scratchpad", "toy")
ROWS = (4, 4096)
PROGRAMS = {
    "attention": {"b": 1, "h": 8, "n": 4096, "d": 64, "e": 64},
    "causal_attention": {"b": 1, "h": 8, "n": 4096, "d": 64, "e": 64},
    "rmsnorm_swiglu": {"d": 1024, "z": 4096, "e": 1024},
    "layernorm_matmul": {"d": 1024, "n": 1024},
}


def main() -> None:
    """Print the table, and write it as JSON if asked to."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--output", type=Path, metavar="FILE", help="write the table as JSON too")
    chosen = options.parse_args()
    rows = []
    for name, sizes in PROGRAMS.items():
        for count in ROWS:
            for target in MACHINES:
                found, seconds = choose(name, target, {**sizes, "m": count})
                rows.append(row(name, target, count, found, seconds))
                print("\n".join(lines(rows[-1])))
    if chosen.output is not None:
        record = {"version": __version__, "date": time.strftime("%Y-%m-%d"), "programs": PROGRAMS, "rows": rows}
        chosen.output.write_text(json.dumps(record, indent=1) + "\n")


def choose(name: str, target: str, sizes: dict[str, int]) -> tuple[Partition, float]:
    """What is chosen, and the seconds that choosing took."""
    started = time.perf_counter()
    program = driver.load_program(EXAMPLES / f"{name}.blk")
    found = partition(program, load_machine(target), driver.default_sizes(program, sizes), {})
    return found, time.perf_counter() - started


def row(name: str, target: str, rows: int, found: Partition, seconds: float) -> dict[str, Any]:
    """One row of the table, as JSON."""
    boundaries: dict[str, int] = {}
    parts = []
    for part in found.parts:
        plan, names = part.plan, [node.name for node in operators(part.program)]
        for (source, destination), count in plan.cost.boundaries.items():
            way = f"{source} -> {destination}"
            boundaries[way] = boundaries.get(way, 0) + count
        parts.append(
            {
                "from": names[0],
                "to": names[-1],
                "kernels": len(plan.cost.kernels),
                "form": plan.chosen.form,
                "snapshot": plan.chosen.choice.snapshot,
                "blocks": block_sizes(plan.chosen.choice.program, plan.chosen.choice.tiles),
                "lists": dict(plan.chosen.choice.placement),
                "seconds": plan.cost.seconds,
                "waits_for": plan.cost.bottleneck,
            }
        )
    return {
        "program": name,
        "machine": target,
        "rows": rows,
        "predicted_seconds": found.seconds,
        "boundaries": boundaries,
        "parts": parts,
        "seconds_to_choose": round(seconds, 3),
    }


def lines(entry: dict[str, Any]) -> Iterator[str]:
    """One row of the table, as text."""
    time_ = duration(entry["predicted_seconds"])
    yield f"{entry['program']}, {entry['rows']} rows on {entry['machine']}: {time_} predicted"
    for part in entry["parts"]:
        lists = ", ".join(f"{name} in {tier}" for name, tier in part["lists"].items())
        form = f"snapshot {part['snapshot']}, {part['form']}"
        yield f"  {part['from']} to {part['to']}: kernels {part['kernels']}, {form}"
        yield f"    blocks {listed(part['blocks']) or 'none'}{'; ' + lists if lists else ''}"
        yield f"    {duration(part['seconds'])}, waits for: {part['waits_for']}"
    yield "  moved  " + "; ".join(f"{way} {count:,}" for way, count in entry["boundaries"].items())


if __name__ == "__main__":
    main()
