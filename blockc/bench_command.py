"""The command `bench`: a program of the user's timed beside what runs it without a compiler."""

from __future__ import annotations

import click

from blockc.arguments import load, read_inputs
from blockc.errors import CheckError, UsageError, visible
from blockc.options import (
    Options,
    Pair,
    compile_options,
    device_option,
    inputs_option,
    seed_option,
    threads_option,
    unique,
)
from blockc.printing import print_json, progress


@click.command()
@compile_options
@click.option(
    "--against", default="numpy", show_default=True, metavar="NAMES", help="What else to time: numpy, torch, or both."
)
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", help="How often (default: a few seconds long).")
@inputs_option
@seed_option
@threads_option
@device_option
def bench(
    file: str,
    options: Options,
    against: str,
    rounds: int | None,
    inputs: tuple[Pair, ...],
    seed: int,
    threads: int | None,
    device: str | None,
) -> None:
    """Time FILE beside the same program in NumPy or torch, operator by operator, and check all results.

    Nothing looks for operators that a library has under one name: torch runs what the program says, not its own
    attention. Its arithmetic is plain, so that exponentials may overflow. Exit code 4 if the result of blockc is wrong.
    If the target is a GPU, torch runs there too, and a time ends when the GPU is done.
    """
    from blockc import bench_report, benchmarking, running

    names = competitors(against, tuple(benchmarking.LIBRARIES))
    program = load(file, options, device=device)
    arrays = read_inputs(program, unique(inputs, "--input"))
    request = running.Request(
        program, options.target, options.dims, options.tiles, arrays, seed, threads, options.split, device
    )
    with progress("compiling, checking and timing"):
        found = benchmarking.bench(request, names, rounds)
    if options.form == "json":
        print_json(bench_report.as_json(found))
    else:
        click.echo("\n".join(bench_report.lines(found)))
    if failures := tuple(bench_report.failures(found)):
        raise CheckError(failures)


def competitors(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The names in --against, each once. UsageError for one that is none of `known`."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise UsageError(f"there is nothing called `{visible(name)}` to time against", f"known: {', '.join(known)}")
    return names
