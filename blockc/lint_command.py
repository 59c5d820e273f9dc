"""The command `lint`: kernels compiled for a GPU that need not be there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from blockc.arguments import load
from blockc.errors import CheckError, LimitError, Problem
from blockc.options import Options, compile_options
from blockc.printing import print_json, progress

if TYPE_CHECKING:
    from blockc.linting import Candidate, Linted


@click.command()
@compile_options
def lint(file: str, options: Options) -> None:
    """Compile the Triton kernels of FILE for a GPU, which need not be there, and print what they need.

    Exit code 4 if a kernel has no way without spills, waiting products or too much shared memory. Needs triton.
    """
    from blockc import driver
    from blockc.cache import usual_store
    from blockc.linting import gpu_of
    from blockc.linting import lint as lint_kernels
    from blockc.machines.loading import load_machine
    from blockc.triton_kernels import BACKEND, ranked

    program = load(file, options, kernels=False)
    machine = load_machine(options.target)
    if machine.backend != BACKEND:
        message = f"kernels for `{machine.name}` are not compiled: its backend is {machine.backend}"
        raise LimitError((Problem("E0294", message, None, "--target h200, h100 or a100"),))
    gpu_of(machine)
    sizes = driver.default_sizes(program, options.dims)
    with progress("choosing and compiling"):
        found = lint_kernels(ranked(program, machine, sizes, options.tiles, options.split), machine, usual_store())
    if options.form == "json":
        print_json(
            {
                "program": program.name,
                "target": machine.name,
                "capability": machine.capability,
                "dims": sizes,
                "tiles": dict(found.made.plan.tiles),
                "loads": [asdict(loads) for loads in found.loads],
                "candidates": [as_json(candidate) for candidate in found.candidates],
            }
        )
    else:
        click.echo("\n".join(lines(program.name, machine.name, found)))
    if problems := tuple(failures(found)):
        raise CheckError(problems)


def failures(found: Linted) -> Iterator[Problem]:
    """A problem for each kernel that no way is chosen for."""
    for function in found.made.source.functions:
        if function.name not in found.options():
            message = f"`{function.name}` spills, waits, needs too much shared memory or does not compile in every way"
            yield Problem("E0296", message, None, "smaller blocks (--tile) need less")


def as_json(candidate: Candidate) -> dict[str, Any]:
    """A candidate in the object that `blockc lint --json` prints."""
    return {
        "kernel": candidate.function,
        "tiles": dict(candidate.tiles),
        "num_warps": candidate.options.warps,
        "num_stages": candidate.options.stages,
        "loads": candidate.options.loads,
        "registers": candidate.registers,
        "spill_bytes": candidate.spill_bytes,
        "shared_bytes": candidate.shared_bytes,
        "predicted_shared_bytes": candidate.predicted,
        "predicted_seconds": candidate.seconds,
        "occupancy": candidate.occupancy,
        "warnings": list(candidate.warnings),
        "error": candidate.error,
        "chosen": candidate.chosen,
    }


def lines(program: str, target: str, found: Linted) -> Iterator[str]:
    """What `blockc lint` prints for a person."""
    from blockc.formatting import listed, table

    yield f"program   {program}, target {target}"
    yield f"blocks    {listed(found.made.plan.tiles) or 'everything is whole'}"
    yield ""
    several = len({tuple(candidate.tiles.items()) for candidate in found.candidates}) > 1
    rows: list[tuple[str, ...]] = [
        ("kernel", "loads", "warps", "stages", "registers", "spilled", "shared", "predicted", "occupancy", "")
    ]
    for candidate in found.candidates:
        blocks = listed({dim: tile for dim, tile in candidate.tiles.items() if tile > 1}) if several else ""
        notes = (blocks, candidate.error or "; ".join(candidate.warnings))
        rows.append(
            (
                candidate.function + (" *" if candidate.chosen else ""),
                candidate.options.loads,
                f"{candidate.options.warps}",
                f"{candidate.options.stages}",
                f"{candidate.registers}",
                f"{candidate.spill_bytes:,}",
                f"{candidate.shared_bytes:,}",
                f"{candidate.predicted:,}",
                f"{candidate.occupancy:.0%}",
                "  ".join(filter(None, notes)),
            )
        )
    yield from table(rows, frozenset(range(2, 9)))
    yield "  * is chosen; registers of a thread; bytes spilled and shared; occupancy of a multiprocessor"
    yield ""
    for loads in found.loads:
        yield f"  {loads.function} loads tiles by {loads.way}: {loads.why}"
