"""The command `tune`: blocks and ways to launch kernels for a GPU, timed on it, and the fastest kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blockc.arguments import load, read_inputs
from blockc.errors import visible
from blockc.files import write_texts
from blockc.options import Options, Pair, compile_options, device_option, inputs_option, seed_option, unique
from blockc.printing import print_json, progress

if TYPE_CHECKING:
    from blockc.tuning import Setting
    from blockc.tuning_on_gpu import Report


@click.command()
@compile_options
@click.option("--seconds", type=click.FloatRange(min=0), default=30.0, show_default=True, help="How long it may take.")
@click.option(
    "--most", type=click.IntRange(min=1, max=1000), default=24, show_default=True, help="Settings that are timed."
)
@click.option("--output", metavar="FILE", help="Keep it in another file, which nothing reads by itself.")
@inputs_option
@seed_option
@device_option
def tune(
    file: str,
    options: Options,
    seconds: float,
    most: int,
    output: str | None,
    inputs: tuple[Pair, ...],
    seed: int,
    device: str | None,
) -> None:
    """Time FILE on a GPU with several blocks and ways to launch its kernels, and keep the fastest.

    `compile`, `run` and `emit` use what is kept for the target and sizes of the same power of two. Every setting is
    checked against the float64 meaning. Exit code 3 without a GPU, 4 if no setting is right.
    """
    from blockc import running, tuning
    from blockc.machines.loading import load_machine
    from blockc.tuning_on_gpu import kept
    from blockc.tuning_on_gpu import tune as tune_program

    program = load(file, options, device=device)
    machine = load_machine(options.target)
    path = Path(output) if output is not None else tuning.own_file(machine)
    book = tuning.read_file(path)
    arrays = read_inputs(program, unique(inputs, "--input"))
    request = running.Request(
        program, options.target, options.dims, options.tiles, arrays, seed, None, options.split, device
    )
    with progress("compiling, checking and timing"):
        report = tune_program(request, seconds, most)
    new = kept(report, request, book)
    if new is not None:
        write_texts(str(path.parent), {path.name: tuning.book_text(new)})
    if options.form == "json":
        print_json(as_json(report, str(path) if new is not None else None))
    else:
        click.echo("\n".join(lines(report, str(path) if new is not None else None)))


def as_json(report: Report, path: str | None) -> dict[str, Any]:
    """The object that `blockc tune --json` prints."""
    from blockc.tuning import launches_json

    return {
        "program": report.program,
        "target": report.target,
        "device": report.device,
        "dims": dict(report.sizes),
        "trials": [
            {
                "tiles": dict(trial.setting.tiles),
                "launches": launches_json(trial.setting.launches),
                "seconds": trial.median if trial.seconds else None,
                "problem": trial.problem,
                "chosen": at == report.tuned.chosen,
            }
            for at, trial in enumerate(report.tuned.trials)
        ],
        "left_out": report.tuned.left_out,
        "file": path,
    }


def lines(report: Report, path: str | None) -> Iterator[str]:
    """What `blockc tune` prints for a person."""
    from blockc.formatting import listed, table

    yield f"program   {report.program}, target {report.target}"
    yield f"device    {report.device}"
    yield f"sizes     {listed(report.sizes)}"
    yield ""
    rows: list[tuple[str, ...]] = [("", "median", "blocks", "launches", "")]
    for at, trial in enumerate(report.tuned.trials):
        time = f"{1e6 * trial.median:.1f} us" if trial.seconds else ""
        name = f"{at}{' *' if at == report.tuned.chosen else ''}"
        rows.append((name, time, listed(trial.setting.tiles), spelled(trial.setting), trial.problem))
    yield from table(rows, frozenset({1}))
    yield "  0 is what is chosen without tuning, * the fastest; warps x stages of each kernel"
    yield ""
    if report.tuned.left_out:
        yield f"left out  {report.tuned.left_out} settings, for lack of time (--seconds)"
    if report.entry is None:
        yield "kept      nothing: no setting is faster, by more than noise, than what is chosen without tuning"
    elif path is not None:
        yield f"kept      in {visible(path)}"


def spelled(setting: Setting) -> str:
    """How the kernels of a setting are launched."""
    ways = (
        f"{way.warps}x{way.stages}{' descriptors' if way.loads == 'descriptors' else ''}"
        for way in setting.launches.values()
    )
    return ", ".join(ways)
