"""The command `targets`: the machines that there are, and work on machine files."""

from __future__ import annotations

from typing import Any

import click

from blockc.errors import BlockcError, UsageError, visible
from blockc.files import write_texts
from blockc.ir.machine import Machine
from blockc.printing import print_json, problem_json, progress

_JSON = click.option("--json", "form", flag_value="json", default="text", help="Print one JSON object.")


@click.group(invoke_without_command=True)
@_JSON
@click.pass_context
def targets(context: click.Context, form: str) -> None:
    """List the machines that --target takes, or work on machine files.

    A target is one of these names, or a path to a machine file.
    """
    from blockc.machines.loading import load_machine, machine_names

    if context.invoked_subcommand is not None:
        if form == "json":
            raise UsageError("--json stands behind the command", f"blockc targets {context.invoked_subcommand} --json")
        return
    machines: list[tuple[str, Machine]] = []
    broken: list[BlockcError] = []
    names = machine_names()
    for name in names:
        try:
            machines.append((name, load_machine(name)))
        except BlockcError as error:  # a file of the user's
            broken.append(error)
    if form == "json":
        listed = [
            {"name": name, "tiers": [tier.name for tier in machine.tiers], "backend": machine.backend}
            for name, machine in machines
        ]
        print_json({"targets": listed})
    else:
        rows: list[tuple[str, ...]] = [("target", "backend", "units", "tiers", "description")]
        for name, machine in machines:
            tiers = " ".join(tier.name for tier in machine.tiers)
            rows.append((name, machine.backend, str(machine.units), tiers, machine.description))
        click.echo("\n".join(_table(rows)))
        own = [visible(path) for path in names.values() if path != "shipped"]
        if own:
            click.echo("\nyour own: " + ", ".join(own))
    if broken:
        raise broken[0]


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows with columns that line up."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@targets.command()
@click.argument("name", metavar="NAME")
@_JSON
def show(name: str, form: str) -> None:
    """Print a machine, by name or path, as a machine file with every field."""
    from blockc.machines.loading import load_machine
    from blockc.machines.writing import machine_text

    machine = load_machine(name)
    if form == "json":
        print_json(machine_json(machine))
    else:
        click.echo(machine_text(machine), nl=False)


def machine_json(machine: Machine) -> dict[str, Any]:
    """A machine as an object: bytes, bytes per second, operations per second, and seconds."""
    tiers = [
        {
            "name": tier.name, "capacity": tier.capacity, "read": tier.read, "write": tier.write, "scope": tier.scope,
            "kind": tier.kind, "alignment": tier.alignment, "latency": tier.latency, "buffers": tier.buffers,
            "duplex": tier.duplex,
        }
        for tier in machine.tiers
    ]  # fmt: skip
    moves = [
        {"from": move.source, "to": move.destination, "bandwidth": move.bandwidth, "granularity": move.granularity}
        for move in machine.moves
    ]
    compute = [
        {
            "name": unit.name,
            "operands": list(unit.operands),
            "accumulator": unit.accumulator,
            **{
                operation: {dtype: {"rate": rate.rate, "tile": list(rate.tile)} for dtype, rate in rates.items()}
                for operation, rates in unit.operations.items()
            },
        }
        for unit in machine.compute
    ]
    return {
        "name": machine.name, "description": machine.description, "backend": machine.backend, "units": machine.units,
        "dispatch": machine.dispatch, "call": machine.call, "capability": machine.capability,
        "products": machine.products, "tiers": tiers, "moves": moves, "compute": compute,
    }  # fmt: skip


@targets.command()
@click.argument("file", metavar="FILE")
@_JSON
def check(file: str, form: str) -> None:
    """Check a machine file, and report every problem with its place. - is standard input."""
    from blockc.machines.loading import load_file

    try:
        machine = load_file(file)
    except BlockcError as error:
        if form == "json" and not isinstance(error, UsageError):
            print_json({"file": file, "ok": False, "name": None, "problems": list(map(problem_json, error.problems))})
        raise
    if form == "json":
        print_json({"file": file, "ok": True, "name": machine.name, "problems": []})
    else:
        click.echo(f"{visible(file)}: no problems in machine {machine.name}")


@targets.command()
@_JSON
def new(form: str) -> None:
    """Print a machine file with comments, to start your own from."""
    from blockc.machines.loading import template

    if form == "json":
        print_json({"text": template()})
    else:
        click.echo(template(), nl=False)


@targets.command()
@click.option("--print", "only_print", is_flag=True, help="Print the machine file instead of keeping it.")
@_JSON
def calibrate(only_print: bool, form: str) -> None:
    """Measure this computer, for about ten seconds, and keep the result as the target cpu.

    What is kept is a machine file in the folder for your settings. Remove it to have the shipped figures again.
    """
    from blockc.machines.calibrating import calibrated, calibrated_text
    from blockc.machines.loading import CPU, load_shipped, user_folder

    with progress("measuring") as say:
        machine = calibrated(load_shipped(CPU), say)
    text = calibrated_text(machine)
    paths = () if only_print else write_texts(str(user_folder()), {f"{CPU}.toml": text})
    if form == "json":
        print_json({"path": paths[0] if paths else None, "machine": machine_json(machine)})
    elif paths:
        click.echo(f"written   {visible(paths[0])}\nshow it   blockc targets show {CPU}")
    else:
        click.echo(text, nl=False)
