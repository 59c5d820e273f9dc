"""Tuning of a program on a GPU that is there: every setting is compiled, checked and timed on the same arrays."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from blockc import __version__, running, tuning
from blockc.codegen import triton_runtime
from blockc.codegen.triton_storage import Options
from blockc.errors import CheckError, LimitError, Problem, UsageError
from blockc.gpu_kernel import GpuKernel, as_arrays, on_gpu
from blockc.linting import gpu_of, lint
from blockc.triton_kernels import TritonKernels
from blockc.tuning import Book, Entry, Setting, Tuned, UnusableError

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Report:
    """What tuning found for a program at some sizes on a GPU; `entry` is what is to be kept, if anything is faster than
    what is chosen without tuning."""

    program: str
    target: str
    device: str
    sizes: Mapping[str, int]
    tuned: Tuned
    entry: Entry | None


def clean_ways(made: TritonKernels, kernel: GpuKernel) -> dict[str, list[Options]]:
    """The ways to launch each function that the compiler has nothing against, the best first."""
    machine = kernel.machine
    assert machine is not None
    gpu, found = gpu_of(machine), lint([made], machine)
    ways = {function.name: found.ways(function, gpu) for function in made.source.functions}
    return {name: [way.options for way in every if way.is_clean(gpu)] for name, every in ways.items()}


def tune(request: running.Request, budget: float, most: int, clock: Clock = time.perf_counter) -> Report:
    """Time the settings of a program. UsageError for blocks or chunks that are asked for, which leave nothing to tune;
    CheckError if no setting is right."""
    if request.tiles or request.split:
        raise UsageError("tuning chooses blocks: leave out --tile and --split")
    ready = running.prepare(request)
    kernel = ready.kernel
    if not isinstance(kernel, GpuKernel) or kernel.machine is None:
        message = f"kernels for `{request.target}` are not tuned"
        raise LimitError((Problem("E0299", message, None, "only those for a GPU are, such as h200"),))
    machine, program = kernel.machine, kernel.program
    sizes = dict(tuning.size_class(program, ready.sizes))
    first = kernel.attempts.untuned(sizes)
    tensors = on_gpu(kernel, ready.arrays)
    in_order = [tensors[argument.name] for argument in program.inputs]
    wanted = running.expected(ready)
    count = iter(range(10**9))

    def timed(setting: Setting) -> Sequence[float]:
        number = next(count)
        made = first if number == 0 else tuning.built(first, program, machine, sizes, setting)
        if made is None:
            raise UnusableError("there are no kernels with these blocks")
        launch = triton_runtime.load(made.source.text, made.source.launcher)
        with triton_runtime.unusable(UnusableError):
            output, compared = running.checked(ready, wanted, as_arrays(kernel, launch(*in_order)))
            if not compared.ok:
                raise UnusableError(f"output {output} is wrong: off by {compared.max_abs_error:.3g}")
            return triton_runtime.seconds(lambda: launch(*in_order), kernel.device)

    choices = tuning.near(first, program, machine, sizes)
    tuned = tuning.tune(tuning.settings(choices, lambda made: clean_ways(made, kernel)), timed, clock, budget, most)
    best = tuned.trials[tuned.chosen]
    if not best.seconds:
        whys = "; ".join(dict.fromkeys(trial.problem for trial in tuned.trials))
        raise CheckError((Problem("E0299", f"no kernel of `{program.name}` can be used: {whys}", None, ""),))
    entry = None
    if tuned.chosen:
        kept = tuning.digest(program), program.name, tuple(sizes.items()), best.setting
        untuned = tuned.trials[0].median if tuned.trials[0].seconds else best.median
        date = f"{datetime.now(UTC):%Y-%m-%d}"
        versions = f"blockc {__version__}, {triton_runtime.versions()}, Python {platform.python_version()}"
        entry = Entry(*kept, best.median, untuned, date, versions)
    device = triton_runtime.name_of(kernel.device)
    return Report(program.name, machine.name, device, ready.sizes, tuned, entry)


def kept(report: Report, request: running.Request, book: Book | None) -> Book | None:
    """A book with what was found, from one that there is; None if there is nothing to keep. UsageError if that one is
    for another GPU."""
    if book is not None and book.device != report.device:
        hint = "give another file with --output"
        raise UsageError(f"what is kept was measured on {book.device}, not on {report.device}", hint)
    if report.entry is not None:
        return (book or Book(report.device, ())).with_entry(report.entry)
    if book is None:
        return None
    return book.without(tuning.digest(request.program), tuning.size_class(request.program, report.sizes))
