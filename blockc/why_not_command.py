"""The command `why-not`."""

from __future__ import annotations

import click

from blockc.arguments import load
from blockc.options import Options, compile_options
from blockc.printing import print_json, progress


@click.command("why-not")
@compile_options
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
def why_not(file: str, options: Options, first: str, second: str) -> None:
    """Say why A and B did not end in one kernel, and what would change that; or which steps joined them.

    A and B are names in FILE, operators such as P.1 (a name means all operators of its statement), or places: a line,
    or line:column. What would help is found by compiling again, up to 20 times and about 10 seconds.
    """
    from blockc import driver
    from blockc.inspector import why_not_text
    from blockc.inspector.why_not import Request, answer
    from blockc.machines.loading import load_machine

    program = load(file, options, kernels=False)
    sizes = driver.default_sizes(program, options.dims)
    machine = load_machine(options.target)
    with progress("compiling and looking for what would help"):
        found = answer(Request(program, machine, sizes, options.tiles, options.split, first, second))
    if options.form == "json":
        print_json(why_not_text.as_json(found, options.target))
    else:
        click.echo("\n".join(why_not_text.lines(found, options.target)))
