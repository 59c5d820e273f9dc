"""A program timed beside what runs it without a compiler: what `blockc bench` does.

The candidates are blockc's kernels, and the array program in NumPy or torch, operator by operator (`eager.py`). All
take the same arrays. They run in rounds, every candidate in each, so that a computer that speeds up or slows down does
so for all; each comes first in turn. Threads of BLAS and OpenMP wait busily for some 30 ms and would take a core from
who comes next: every candidate waits until the process is idle, and the second of two calls is timed, as in a loop. All
results are compared with the float64 meaning.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from blockc import driver, running
from blockc.accuracy import Comparison
from blockc.codegen import triton_runtime
from blockc.eager import Library, peak_bytes, translate
from blockc.eager_numpy import numpy_library
from blockc.eager_torch import torch_library
from blockc.errors import LimitError, Problem
from blockc.kernel import Kernel
from blockc.machines.calibrating import processor
from blockc.machines.loading import load_machine
from blockc.partition import partition

Array = np.ndarray[Any, np.dtype[Any]]
Call = Callable[[], Any]

BLOCKC = "blockc"
LIBRARIES: Mapping[str, Callable[[], Library]] = {"torch": torch_library, "numpy": numpy_library}
SECONDS = 4.0  # of all rounds, if nobody says how many
FEWEST_ROUNDS, MOST_ROUNDS = 5, 200
LARGEST_SIZE = 2**31 - 1  # of a dimension: positions are i32


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one candidate did: seconds of the median round and of the lower and the upper quartile; its output that is
    furthest from the meaning, and how far."""

    name: str
    seconds: float
    quartiles: tuple[float, float]
    output: str
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What came out, blockc first. `ratios` are blockc's time over that of each other candidate: the median of those of
    all rounds. `predicted` seconds are blockc's on the target, where it waits for `bottleneck`."""

    program: str
    target: str
    sizes: Mapping[str, int]
    defaults: tuple[str, ...]
    rounds: int
    candidates: tuple[Candidate, ...]
    ratios: Mapping[str, float]
    predicted: float
    bottleneck: str
    computer: Mapping[str, Any]


def bench(request: running.Request, against: tuple[str, ...], rounds: int | None) -> Benchmark:
    """Compile, check and time. LimitError for a library that is not installed, a target without kernels, and sizes that
    are too large for this computer."""
    libraries = {name: library(name, request) for name in against}
    ready = running.prepare(request)
    check_sizes(request, ready.sizes)
    machine = load_machine(request.target)
    plan = partition(request.program, machine, ready.sizes, request.tiles, request.split)
    with ExitStack() as limits:
        if request.threads is not None:
            for other in libraries.values():
                limits.enter_context(other.limited(request.threads))
        calls, plain = candidates(request, ready, libraries)
        compared = compare_all(ready, {name: plain[name](call()) for name, call in calls.items()})
        times = measured(calls, rounds)
    return Benchmark(
        request.program.name,
        request.target,
        ready.sizes,
        ready.defaults,
        len(times[BLOCKC]),
        tuple(_candidate(name, times[name], *compared[name]) for name in calls),
        {name: _ratio(times[BLOCKC], times[name]) for name in against},
        plan.seconds,
        plan.bottleneck,
        computer(libraries, ready.kernel),
    )


def library(name: str, request: running.Request) -> Library:
    """A library: torch on the GPU, if the target is one that is there."""
    if name == "torch" and load_machine(request.target).backend == driver.GPU_BACKEND:
        driver.check_target(request.target, request.device)
        return torch_library(request.device or triton_runtime.GPU)
    return LIBRARIES[name]()


def check_sizes(request: running.Request, sizes: Mapping[str, int]) -> None:
    """LimitError for sizes at which the program cannot be run operator by operator on this computer."""
    for dim, size in sizes.items():
        if size > LARGEST_SIZE:
            message = f"dimension `{dim}` has {size:,} elements, and positions are i32"
            raise LimitError((Problem("E0902", message, None, "give smaller sizes with --dim"),))
    running.check_bytes("the program without fusion needs", peak_bytes(request.program, sizes))


def candidates(
    request: running.Request, ready: running.Prepared, libraries: Mapping[str, Library]
) -> tuple[dict[str, Call], dict[str, Callable[[Any], dict[str, Array]]]]:
    """By name, what each candidate runs, and what makes arrays by name of what it returns."""
    arrays = {name: np.asarray(array, array.dtype.newbyteorder("=")) for name, array in ready.arrays.items()}
    calls: dict[str, Call] = {BLOCKC: lambda: ready.kernel(**arrays)}
    plain: dict[str, Callable[[Any], dict[str, Array]]] = {
        BLOCKC: lambda results: running.by_name(request.program, results)
    }
    kernel = ready.kernel
    if type(kernel) is not Kernel:
        from blockc.gpu_kernel import GpuKernel, as_arrays, on_gpu

        assert isinstance(kernel, GpuKernel)
        own = on_gpu(kernel, arrays)
        device, on_it = kernel.device, kernel
        calls[BLOCKC] = _waited(lambda: on_it(**own), device)
        plain[BLOCKC] = lambda results: as_arrays(on_it, results)
    for name, other in libraries.items():
        eager = translate(request.program, ready.sizes, other)
        tensors = {given: other.own(array) for given, array in arrays.items()}
        calls[name] = _bound(eager, tensors)
        if name == "torch" and type(kernel) is not Kernel:
            calls[name] = _waited(calls[name], device)
        plain[name] = _plain(other)
    return calls, plain


def _waited(call: Call, device: str) -> Call:
    """A call that returns when its device is done."""

    def waited() -> Any:
        results = call()
        triton_runtime.wait(device)
        return results

    return waited


def _bound(function: Callable[[Any], Any], argument: Any) -> Call:
    return lambda: function(argument)


def _plain(library: Library) -> Callable[[Any], dict[str, Array]]:
    return lambda results: {name: library.plain(value) for name, value in results.items()}


def compare_all(
    ready: running.Prepared, results: Mapping[str, Mapping[str, Array]]
) -> dict[str, tuple[str, Comparison]]:
    """For each candidate the output that is furthest from the meaning, and how far it is."""
    wanted = running.expected(ready)
    return {name: running.checked(ready, wanted, outputs) for name, outputs in results.items()}


def measured(calls: Mapping[str, Call], rounds: int | None) -> dict[str, list[float]]:
    """The seconds of every call, in so many rounds or as many as a few seconds take."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    started = time.perf_counter()
    position = 0
    while position < rounds if rounds is not None else _goes_on(position, time.perf_counter() - started):
        first = position % len(names)
        for name in (*names[first:], *names[:first]):
            settle()
            calls[name]()
            begun = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - begun)
        position += 1
    return times


def settle() -> None:
    """Wait until this process does nothing, or half a second."""
    for _ in range(100):
        busy = time.process_time()
        time.sleep(0.005)
        if time.process_time() - busy < 0.001:
            return


def _goes_on(rounds: int, seconds: float) -> bool:
    return rounds < FEWEST_ROUNDS or (rounds < MOST_ROUNDS and seconds < SECONDS)


def _candidate(name: str, times: list[float], output: str, comparison: Comparison) -> Candidate:
    lower, median, upper = (float(quantile) for quantile in np.quantile(times, (0.25, 0.5, 0.75)))
    return Candidate(name, median, (lower, upper), output, comparison)


def _ratio(own: list[float], others: list[float]) -> float:
    """What changes from round to round changes both."""
    return statistics.median(mine / other for mine, other in zip(own, others, strict=True))


def computer(libraries: Mapping[str, Library], kernel: Kernel) -> dict[str, Any]:
    """What the numbers depend on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {"numpy": np.__version__, **{name: library.version for name, library in libraries.items()}}
    gpu = {"gpu": name} if (name := running.device_of(kernel)) else {}
    return {"processor": processor(), "cores": cores, **gpu, "python": platform.python_version(), **versions}
