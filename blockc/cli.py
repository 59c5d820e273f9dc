"""The command line. Each command parses its options, calls one function of the compiler and prints what it returns.

The compiler is imported inside the commands: `blockc --help` needs none of it, and no command here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import json
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from blockc import __version__
from blockc.arguments import known, load, read_inputs
from blockc.bench_command import bench
from blockc.cache_command import cache
from blockc.errors import BlockcError, CheckError, LimitError, UsageError, visible
from blockc.files import check_file, check_outputs, read_source, write_arrays, write_file, write_texts
from blockc.lint_command import lint
from blockc.options import (
    ARRAY_FILE,
    NAME,
    Options,
    Pair,
    compile_options,
    device_option,
    inputs_option,
    program_options,
    seed_option,
    threads_option,
    unique,
)
from blockc.printing import print_json, problem_json, progress
from blockc.report_command import report
from blockc.targets_command import targets
from blockc.tune_command import tune
from blockc.why_not_command import why_not

if TYPE_CHECKING:
    from blockc.ir.array_program import ArrayProgram
    from blockc.ir.machine import Machine
    from blockc.running import Request
    from blockc.showing import Request as ShowRequest
    from blockc.simulating import Measured

STAGES = ("array", "block", "snapshot", "stable", "plan", "schedule", "kernel")
FORMATS = ("text", "dot", "json", "svg")
WIDTH = 100  # columns of what is no terminal
INTERNAL_ERROR, INTERRUPTED, BROKEN_PIPE = 70, 130, 141
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # why nothing can be written


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="blockc", message="%(prog)s %(version)s")
def cli() -> None:
    """Compile tensor programs to few kernels that keep intermediate values in fast memory.

    FILE is a program in the language of blockc, or - for standard input.

    \b
    Exit codes: 0 ok, 1 the program or machine file is wrong, 2 usage, 3 a limit, 4 a self-check failed,
    70 internal error.
    """


@cli.command()
@program_options
def check(file: str, program: str | None, dtype: str | None, form: str) -> None:
    """Parse and type-check FILE, and list its programs."""
    from blockc.language import parse_all, selected

    text, name = read_source(file)
    try:
        names = tuple(parse_all(text, name, dtype))
        if program is not None:
            selected(names, program)
    except BlockcError as error:
        if form == "json" and not isinstance(error, UsageError):
            problems = [problem_json(problem) for problem in error.problems]
            print_json({"file": name, "ok": False, "programs": [], "problems": problems})
        raise
    if form == "json":
        print_json({"file": name, "ok": True, "programs": list(names), "problems": []})
    else:
        click.echo(f"{visible(name)}: no problems in {', '.join(names)}")


@cli.command()
@compile_options
@click.option("--stage", type=click.Choice(STAGES), required=True, help="Which form of the program to print.")
@click.option("--snapshot", type=click.IntRange(min=0), metavar="K", help="Which snapshot (default: the last).")
@click.option("--format", "shape", type=click.Choice(FORMATS), default="text", show_default=True, help="As what.")
def show(file: str, options: Options, stage: str, snapshot: int | None, shape: str) -> None:
    """Print FILE at one stage of the compilation.

    \b
    array     whole-array operators          plan      the chosen snapshot with tiles, as it is emitted
    block     the unfused block program      schedule  the plan on the target: moves between its tiers
    snapshot  a fused block program          kernel    the source of the kernels
    stable    a snapshot, safe from overflow

    A picture is svg, or dot for Graphviz: nested boxes, with the bytes that move at the sizes given. The stages
    schedule and kernel are text only.
    """
    from blockc.showing import shown

    if snapshot is not None and stage not in ("snapshot", "stable"):
        raise UsageError(f"--snapshot belongs to the stages snapshot and stable, not to {stage}")
    program = load(file, options, kernels=False)
    text = shown(show_request(program, options, stage, snapshot), shape)
    if options.form == "json" and shape != "json":
        print_json({"stage": stage, "text": text})
    else:
        click.echo(text, nl=False)


def show_request(program: ArrayProgram, options: Options, stage: str, snapshot: int | None) -> ShowRequest:
    """What to show of a program."""
    from blockc.showing import Request as ShowRequest

    return ShowRequest(program, options.target, options.dims, options.tiles, options.split, stage, snapshot)


@cli.command()
@compile_options
@click.option(
    "--verbosity", type=click.IntRange(0, 2), default=1, show_default=True, help="0: the choice alone; 2: everything."
)
def explain(file: str, options: Options, verbosity: int) -> None:
    """Print how FILE is fused: every step and what it saves, what is chosen for the target, and what was refused."""
    from blockc import driver
    from blockc.inspector.explanation import explain_for
    from blockc.machines.loading import load_machine
    from blockc.partition import partition

    program = load(file, options, kernels=False)
    sizes = driver.default_sizes(program, options.dims)
    with progress("fusing"):
        found = partition(program, load_machine(options.target), sizes, options.tiles, options.split)
        explanation = explain_for(options.target, found)
        text = "" if options.form == "json" else explanation.text(window_width(), verbosity, painter())
    if options.form == "json":
        print_json(explanation.to_json())
    else:
        click.echo(text)


@cli.command()
@compile_options
@inputs_option
@click.option("--output", "outputs", type=ARRAY_FILE, multiple=True, help="Write an output to a .npy file. Repeatable.")
@seed_option
@threads_option
@device_option
@click.option("--simulate", is_flag=True, help="Count every byte moved, on a simulated target.")
@click.option("--trace", metavar="FILE", help="Write when what happens there as a .json file that Perfetto opens.")
def run(
    file: str,
    options: Options,
    inputs: tuple[Pair, ...],
    outputs: tuple[Pair, ...],
    seed: int,
    threads: int | None,
    device: str | None,
    simulate: bool,
    trace: str | None,
) -> None:
    """Compile FILE, run it, time it, and check its result against the float64 meaning.

    Inputs without --input are random. Dimensions whose size nothing tells get a default size. Arrays are copied to a
    GPU before the time is taken, and its outputs back afterwards.
    """
    from blockc import driver, run_report, running, simulating
    from blockc.machines.loading import load_machine
    from blockc.simulation_report import disagreements

    if trace is not None:
        if not simulate:
            raise UsageError("--trace is of a simulated target", "add --simulate")
        check_file(trace, ".json")
    program = load(file, options, kernels=not simulate, device=device)
    machine = load_machine(options.target)
    files = unique(outputs, "--output")
    known(program, files, tuple(result.argument.name for result in program.outputs), "output")
    check_outputs(files)
    arrays = read_inputs(program, unique(inputs, "--input"))
    request = running.Request(
        program, options.target, options.dims, options.tiles, arrays, seed, threads, options.split, device
    )
    if simulate and not driver.has_kernels(machine):
        simulate_only(request, machine, files, trace, options.form)
        return
    with progress("compiling, running and checking"):
        report, used = running.run(request)
        simulation = running.simulate(report.plan, used) if simulate else None
        measured = simulating.of_kernels(request, machine, report.sizes, used) if simulate else None
    failures = (*run_report.failures(report, simulation), *(disagreements(measured) if measured is not None else ()))
    if not failures:
        write_arrays(report.outputs, files)
        files = with_trace(measured, machine, files, trace)
    if options.form == "json":
        print_json(run_report.as_json(report, simulation, measured))
    else:
        click.echo("\n".join(run_report.lines(report, simulation, measured, files)))
    if failures:
        raise CheckError(failures)


def with_trace(
    measured: Measured | None, machine: Machine, files: Mapping[str, str], trace: str | None
) -> dict[str, str]:
    """What has been written, by name, after the trace has been too if there shall be one."""
    from blockc.trace_events import trace_json

    if measured is None or trace is None:
        return dict(files)
    write_file(trace, trace_json(measured.timelines, machine))
    return {**files, "the trace": trace}


def simulate_only(request: Request, machine: Machine, files: Mapping[str, str], trace: str | None, form: str) -> None:
    """Run a program on a simulated machine for which there are no kernels."""
    from blockc import simulating, simulation_report

    with progress("choosing, simulating and checking"):
        found = simulating.run(request, machine)
    failures = tuple(simulation_report.failures(found))
    if not failures:
        write_arrays(found.outputs, files)
        files = with_trace(found.measured, machine, files, trace)
    if form == "json":
        print_json(simulation_report.as_json(found))
    else:
        click.echo("\n".join(simulation_report.lines(found, files)))
    if failures:
        raise CheckError(failures)


@cli.command()
@compile_options
@click.option("-o", "folder", metavar="DIR", required=True, help="The folder to write to; it is made if need be.")
@click.option("--lint", "linted", is_flag=True, help="Compile for the GPU, as `lint` does, and launch as that chooses.")
def emit(file: str, options: Options, folder: str, linted: bool) -> None:
    """Write the kernels of FILE as a Python file that runs on its own, and for a GPU manifest.json, which says what is
    in it."""
    from blockc import driver
    from blockc.cache import usual_store
    from blockc.linting import launched
    from blockc.linting import lint as lint_kernels
    from blockc.machines.loading import load_machine
    from blockc.showing import kernel_source
    from blockc.triton_kernels import BACKEND, ranked
    from blockc.triton_manifest import manifest
    from blockc.tuning import best_known

    program = load(file, options, kernels=False)
    machine = load_machine(options.target)
    sizes = driver.default_sizes(program, options.dims)
    if linted and machine.backend != BACKEND:
        raise UsageError("--lint is for kernels of a GPU", "--target h200, h100 or a100")
    file = f"{program.name}_{machine.name}.py"  # with the target it cannot hide a module that it imports
    with progress("compiling"):
        if machine.backend == BACKEND:
            if linted:
                choices = ranked(program, machine, sizes, options.tiles, options.split)
                made = launched(lint_kernels(choices, machine, usual_store()), machine)
            else:
                made = best_known(program, machine, sizes, options.tiles, options.split)
            contents = json.dumps(manifest(made, program, machine, file), indent=2)
            texts = {file: made.source.text, "manifest.json": f"{contents}\n"}
        else:
            texts = {file: kernel_source(show_request(program, options, "kernel", None), machine, sizes)}
    if not NAME.fullmatch(program.name) or len(program.name) > 200:
        raise UsageError(f"the program's name cannot be the name of a file: `{visible(program.name[:80])}`")
    paths = write_texts(folder, texts)
    if options.form == "json":
        print_json({"program": program.name, "target": options.target, "dims": dict(sizes), "files": list(paths)})
    else:
        click.echo("\n".join(f"written   {visible(path)}" for path in paths))


@cli.command()
@compile_options
def verify(file: str, options: Options) -> None:
    """Re-check every step of how FILE is fused, and every snapshot, on random and adversarial data.

    Dimensions without a size get a small one, with several blocks of which the last is short. Exit code 4 if a check
    fails.
    """
    from blockc import verify_report, verifying

    program = load(file, options)
    with progress("verifying") as say:
        found = verifying.verify_program(verifying.Request(program, options.dims, options.tiles, options.split), say)
    if options.form == "json":
        print_json(verify_report.as_json(program.name, found))
    else:
        click.echo("\n".join(verify_report.lines(program.name, found)))
    if problems := verify_report.problems(found):
        raise CheckError(problems)


cli.add_command(bench)
cli.add_command(cache)
cli.add_command(lint)
cli.add_command(report)
cli.add_command(targets)
cli.add_command(tune)
cli.add_command(why_not)


def wants_colour() -> bool:
    """True if standard output is a terminal and nobody asked for plain text (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


STYLES: Mapping[str, Mapping[str, Any]] = {
    "heading": {"bold": True},
    "chosen": {"fg": "green", "bold": True},
    "name": {"fg": "cyan"},
    "less": {"fg": "green"},
    "more": {"fg": "yellow"},
    "faint": {"dim": True},
}


def painter() -> Callable[[str, str], str]:
    """What styles look like on standard output."""
    if not wants_colour():
        return lambda text, style: text
    return lambda text, style: click.style(text, **STYLES.get(style, {})) if style else text


def window_width() -> int:
    """The columns of the terminal; 100 where standard output is none."""
    return shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. The one place where every error becomes a message."""
    if arguments is None:  # as a process of its own
        gc.set_threshold(100_000, 50, 50)  # programs are many small values that live long and form no cycles
        warnings.showwarning = show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without Unicode shows escapes instead of failing
            stream.reconfigure(errors="backslashreplace")
    try:
        # Not `cli.main`, which would answer some of the errors below in its own way.
        with cli.make_context("blockc", list(sys.argv[1:] if arguments is None else arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)  # click repeats what was typed
        return failed("\n".join(map(visible, shown.getvalue().rstrip("\n").split("\n"))), error.exit_code)
    except BlockcError as error:
        return failed(str(error), error.exit_code)
    except KeyboardInterrupt:
        return failed("interrupted", INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has left
        drop_output()
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in FULL:
            return faulty(error)
        drop_output()
        return failed(f"error: cannot write the output: {error.strerror}", UsageError.exit_code)
    except MemoryError:
        return failed("error: not enough memory; give smaller sizes with --dim", LimitError.exit_code)
    except Exception as error:  # noqa: BLE001 - see below
        # Anything else is a fault of blockc. The user gets one line and an exit code of its own, whatever it was; this
        # is the top of the program, so nothing is hidden from any caller.
        return faulty(error)


def faulty(error: Exception) -> int:
    """Print what a fault of blockc is, and return the exit code."""
    if os.environ.get("BLOCKC_DEBUG") == "1":
        traceback.print_exc()
    rule = getattr(error, "rule", "")
    where = f" in the rule {rule}" if rule else ""
    text = visible(" ".join(f"{type(error).__name__}: {error}".split()))
    advice = "please report it; BLOCKC_DEBUG=1 shows the traceback"
    return failed(f"internal error{where}: {text} ({advice})", INTERNAL_ERROR)


def drop_output() -> None:
    """Let standard output lead nowhere: Python would complain once more when it writes the rest at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning on standard error, as one line for a person and without a place in the code."""
    failed(f"warning: {visible(str(message))}", 0)


def failed(message: str, code: int) -> int:
    """Print a message on standard error and return the exit code."""
    with contextlib.suppress(BrokenPipeError):
        print(message, file=sys.stderr, flush=True)
    return code
