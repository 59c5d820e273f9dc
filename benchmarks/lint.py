"""All examples compiled for GPUs that need not be there: registers, spills and shared memory of what is chosen.

    python benchmarks/lint.py --targets h200 --dtypes f16 --output benchmarks/results/lint.json

Needs triton. Compilations are cached, so a second run is quick. With `--output`, what the file has of other targets,
types and sizes is kept, so that a campaign can be run in parts; a table is written beside it. Exit code 1 if a kernel
has no way without spills, waiting products or too much shared memory, or needs more shared memory than was predicted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blockc import driver
from blockc.cache import usual_store
from blockc.formatting import listed, table
from blockc.language import parse_all
from blockc.lint_command import as_json
from blockc.linting import gpu_of, lint
from blockc.machines.loading import load_machine
from blockc.triton_kernels import ranked

EXAMPLES = Path(__file__).parent.parent / "examples"
HEAD = (
    "program", "kernel", "target", "type", "blocks", "loads", "warps", "stages", "registers", "spilled", "shared",
    "predicted", "occupancy", "compiled", "",
)  # fmt: skip


def main() -> int:
    """Compile, print a line for each kernel, and write both files if asked to."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--targets", default="h200,a100", help="machines, separated by commas")
    options.add_argument("--dtypes", default="f16,bf16,f32", help="float types of the programs, separated by commas")
    options.add_argument("--only", default="", help="only programs with this in their name")
    options.add_argument("--long", type=int, default=512, help="the size of long dimensions (default: 512)")
    options.add_argument("--output", type=Path, metavar="FILE", help="write what was found as JSON")
    chosen = options.parse_args()
    rows = []
    for target in chosen.targets.split(","):
        for dtype in chosen.dtypes.split(","):
            for found in kernels(target, dtype, chosen.only, chosen.long):
                rows.append(found)
                print("  ".join(cells(found)).rstrip(), flush=True)
                if chosen.output is not None:
                    write(chosen.output, rows)
    print("\n".join(summary(rows)))
    return 1 if any(map(problem, rows)) else 0


def kernels(target: str, dtype: str, only: str, long: int) -> Iterator[dict[str, Any]]:
    """What is chosen for every kernel of the examples, and the figures of all that was compiled for it."""
    machine = load_machine(target)
    limit = gpu_of(machine).shared_of_block
    for path in sorted(EXAMPLES.glob("*.blk")):
        for name, program in parse_all(path.read_text(), str(path), dtype).items():
            if only not in name:
                continue
            usual = driver.default_sizes(program, {})
            sizes = driver.default_sizes(
                program,
                {
                    dim.name: long
                    for dim in program.dims
                    if dim.size is None and dim.same_as is None and usual[dim.name] == 512
                },
            )
            found = lint(ranked(program, machine, sizes, {}), machine, usual_store())
            for function in found.made.source.functions:
                tried = [as_json(each) for each in found.candidates if each.function == function.name]
                best = next((each for each in tried if each["chosen"]), None)
                yield {
                    "program": name,
                    "kernel": function.name,
                    "target": target,
                    "dtype": dtype,
                    "long": long,
                    "limit": limit,
                    "chosen": best,
                    "candidates": tried,
                    "why": next((each.why for each in found.loads if each.function == function.name), ""),
                }


def problem(row: dict[str, Any]) -> str:
    """What is wrong with a kernel, or ""."""
    compiled = [each for each in row["candidates"] if not each["error"]]
    if any(each["shared_bytes"] > each["predicted_shared_bytes"] for each in compiled):
        return "needs more shared memory than predicted"
    return "" if row["chosen"] else "no way is clean"


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    best = row["chosen"] or row["candidates"][0]
    blocks = listed({dim: tile for dim, tile in best["tiles"].items() if tile > 1}) or "whole"
    return (
        row["program"] + (f" ({row['long']})" if row["long"] != 512 else ""),
        row["kernel"],
        row["target"],
        row["dtype"],
        blocks.replace(", ", " "),
        best.get("loads", "pointers"),
        f"{best['num_warps']}",
        f"{best['num_stages']}",
        f"{best['registers']}",
        f"{best['spill_bytes']:,}",
        f"{best['shared_bytes']:,}",
        f"{best['predicted_shared_bytes']:,}",
        f"{best['occupancy']:.0%}",
        f"{len(row['candidates'])}",
        problem(row),
    )


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """How many kernels are clean, and how far predictions of shared memory are off."""
    every = [each for row in rows for each in row["candidates"] if not each["error"] and each["shared_bytes"] > 1024]
    ratios = sorted(each["predicted_shared_bytes"] / each["shared_bytes"] for each in every)
    bad = [row for row in rows if problem(row)]
    first = sum(1 for row in rows if len({tuple(each["tiles"].items()) for each in row["candidates"]}) == 1)
    yield f"kernels     {len(rows)}, {len(rows) - len(bad)} clean, {first} with the blocks that come first"
    described = sum(1 for row in rows if row["chosen"] and row["chosen"].get("loads") == "descriptors")
    yield f"compiled    {sum(len(row['candidates']) for row in rows)}; {described} kernels load tiles by descriptors"
    if ratios:
        part = [ratios[min(len(ratios) - 1, int(len(ratios) * share))] for share in (0, 0.5, 0.9, 1)]
        said = ", ".join(
            f"{value:.2f} {name}" for value, name in zip(part, ("least", "median", "90 %", "most"), strict=True)
        )
        yield f"shared      predicted over needed: {said} (of kernels that need more than 1 KiB)"
    yield f"versions    Triton {version('triton')}, {time.strftime('%Y-%m-%d')}"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as JSON, those of other targets, types and sizes kept, and the table of all beside it."""
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    asked = {(row["target"], row["dtype"], row["long"], row["program"]) for row in rows}
    kept = [row for row in known if (row["target"], row["dtype"], row["long"], row["program"]) not in asked]
    every = sorted([*kept, *rows], key=lambda row: (row["long"], row["target"], row["dtype"], row["program"]))
    record = {"triton": version("triton"), "date": time.strftime("%Y-%m-%d"), "rows": every}
    path.write_text(json.dumps(record) + "\n")
    body = [*table([HEAD, *map(cells, every)], frozenset(range(6, 14))), "", *summary(every)]
    path.with_suffix(".txt").write_text("\n".join(line.rstrip() for line in body) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
