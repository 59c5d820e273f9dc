"""The command `report`."""

from __future__ import annotations

import click

from blockc.arguments import load
from blockc.errors import visible
from blockc.files import check_file, write_file
from blockc.options import Options, compile_options
from blockc.printing import print_json, progress


@click.command()
@compile_options
@click.option("-o", "path", metavar="FILE", required=True, help="The .html file to write.")
@click.option("--against", metavar="TARGET", help="A second target, to compare with.")
def report(file: str, options: Options, path: str, against: str | None) -> None:
    """Write how FILE is fused as one HTML page: source, every step with its picture, costs, kernels, what was refused.

    The page opens from disk and requests nothing. With --against it shows two targets side by side.
    """
    from blockc.inspector.report import Request, report_page
    from blockc.machines.loading import load_machine

    check_file(path, ".html")
    program = load(file, options, kernels=False)
    targets = dict.fromkeys([options.target, *([against] if against is not None else [])])
    machines = [(target, load_machine(target)) for target in targets]
    with progress("fusing and drawing"):
        text = report_page(Request(program, machines, options.dims, options.tiles, options.split))
    write_file(path, text)
    size = len(text.encode())
    if options.form == "json":
        print_json({"program": program.name, "targets": list(targets), "file": path, "bytes": size})
    else:
        click.echo(f"written   {visible(path)} ({size:,} bytes)")
