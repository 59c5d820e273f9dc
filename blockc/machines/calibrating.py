"""Measuring this computer: how fast it multiplies, computes, reads and writes in NumPy, in all cores at once.

Every measurement takes a fixed share of time and keeps the fastest round, since what others do on the computer only
slows rounds down. Kernels run in a pool of threads with one BLAS thread each, and so do the measurements. Where torch
is installed, NumPy and torch multiply the same matrices in turn, and kernels have torch multiply if it is faster.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from blockc.ir.machine import NUMPY, TORCH, Machine, Rate, Tier, chain
from blockc.machines.reading import read_machine
from blockc.machines.writing import machine_text

SECONDS = 0.5  # for one measurement; there are about fifteen
PRODUCT = 512  # rows, columns and depth of the product that is timed
SHAPES = ((512, 64, 512), (512, 512, 64), (512, 512, 512))  # rows, depth and columns of products of tiles
SERIES = 4  # of rounds in which NumPy and torch multiply in turn
CLEARLY = 1.03  # torch is faster if NumPy takes so many times as long in every series
TILE = 2**16  # elements of the tile that is computed on: it fits in a second-level cache
CALLS = 1000  # in one round of calls on a tiny array
LARGEST_ARRAY = 2**29  # bytes, of all cores: what is read from memory
SMALLEST_ARRAY = 2**26
_DIGITS = 3  # that a measurement has

Array = np.ndarray[Any, np.dtype[Any]]
Work = Callable[[], object]
Multiply = Callable[[Array, Array, Array], object]  # two matrices, and where their product goes


def calibrated(machine: Machine, say: Callable[[str], None] = lambda _: None, seconds: float = SECONDS) -> Machine:
    """The machine with measured bandwidths, rates and costs of calls. `machine` is a description of this computer."""
    found: dict[str, float] = {}
    with one_thread() as torch, ThreadPoolExecutor(machine.units) as pool:
        say("products")
        multiply = _faster(torch, 2 * seconds)
        for name, measure in _measurements(machine, multiply, pool, seconds):
            say(name)
            found[name] = measure()
    tiers: list[Tier] = []
    for tier in machine.tiers:
        share = 1 if tier.scope == "device" else machine.units
        read, write = found[f"{tier.name} read"], found[f"{tier.name} write"]
        if tiers:  # an inner tier is never slower: what it holds could also come from outside
            outer = tiers[-1]
            shares = machine.units if outer.scope == "unit" else 1
            read, write = max(read, outer.read * shares), max(write, outer.write * shares)
        tiers.append(replace(tier, read=_rounded_up(read / share), write=_rounded_up(write / share)))
    compute = tuple(
        replace(
            unit,
            operations={
                operation: {
                    dtype: Rate(_rounded(found[f"{operation} {dtype}"]), rate.tile) for dtype, rate in rates.items()
                }
                for operation, rates in unit.operations.items()
            },
        )
        for unit in machine.compute
    )
    products = NUMPY if multiply is np.matmul else TORCH
    libraries = f"NumPy {np.__version__}" + (f" and torch {torch.__version__}" if products == TORCH else "")
    return replace(
        machine,
        description=f"{processor()}, measured with {libraries}",
        products=products,
        dispatch=_rounded(found["dispatch"]),
        call=_rounded(found["call"]),
        tiers=tuple(tiers),
        moves=chain(tuple(tiers)),
        compute=compute,
    )


def calibrated_text(machine: Machine) -> str:
    """The machine file of a calibrated machine. It is one that can be read back."""
    text = (
        "# Measured by `blockc targets calibrate`. Calibrate again after a change of the computer, NumPy or torch.\n\n"
    )
    text += machine_text(machine)
    assert read_machine(text) == machine
    return text


@contextmanager
def one_thread() -> Iterator[Any]:
    """BLAS with one thread, and torch too, which is the value; None if it is not installed."""
    try:
        import torch
    except ImportError:
        with threadpool_limits(1):
            yield None
        return
    threads = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield torch
        finally:
            torch.set_num_threads(threads)


def _faster(torch: Any, seconds: float) -> Multiply:
    """How to multiply: by torch if that is clearly faster on tiles, f32 and f64 taken together, else by NumPy."""
    if torch is None:
        return np.matmul

    def multiply(a: Array, b: Array, out: Array) -> None:
        torch.set_num_threads(1)  # it counts them by thread
        torch.matmul(torch.from_numpy(a), torch.from_numpy(b), out=torch.from_numpy(out))

    return multiply if _times_as_long(np.matmul, multiply, seconds) > CLEARLY else np.matmul


def _times_as_long(one: Multiply, other: Multiply, seconds: float) -> float:
    """How many times as long one way to multiply takes at least: the least of several series of rounds, in each of
    which both keep their fastest round, and ratios are averaged over shapes and types."""
    works = [
        (_product(*operands, one), _product(*operands, other))
        for dtype in (np.float32, np.float64)
        for operands in (_matrices(*shape, dtype) for shape in SHAPES)
    ]
    return min(_mean_ratio(works, seconds / SERIES) for _ in range(SERIES))


def _mean_ratio(works: Sequence[tuple[Work, Work]], seconds: float) -> float:
    """The geometric mean of how many times as long the first of each two takes, both in turn."""
    best = [[math.inf, math.inf] for _ in works]
    end = time.perf_counter() + seconds
    position = 0
    while position < 2 or time.perf_counter() < end:
        for times, pair in zip(best, works, strict=True):
            for which in (position % 2, 1 - position % 2):  # what comes second finds its operands in the caches
                times[which] = min(times[which], _seconds(pair[which]))
        position += 1
    return statistics.geometric_mean(first / second for first, second in best)


def _seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return max(time.perf_counter() - start, 1e-9)


def _measurements(
    machine: Machine, multiply: Multiply, pool: ThreadPoolExecutor, seconds: float
) -> Iterator[tuple[str, Callable[[], float]]]:
    """What there is to measure, each with a function that measures it: rates of the whole device, in base units."""
    cores = machine.units

    def rate(amount: float, prepare: Callable[[], Work]) -> Callable[[], float]:
        return lambda: cores * amount / _in_all_cores(prepare, cores, pool, seconds)

    yield "call", lambda: _seconds_per_call(seconds)
    yield "dispatch", lambda: _fastest(lambda: wait([pool.submit(int) for _ in range(cores)]), seconds)
    for unit in machine.compute:
        for operation, rates in unit.operations.items():
            for dtype in rates:
                yield f"{operation} {dtype}", rate(*_operation(operation, dtype, multiply))
    for index, tier in enumerate(machine.tiers):
        size = _working_set(machine, index)
        yield f"{tier.name} read", rate(size, partial(_reader, size))
        yield f"{tier.name} write", rate(size, partial(_writer, size))


def _operation(operation: str, dtype: str, multiply: Multiply) -> tuple[float, Callable[[], Work]]:
    """How many operations one round takes in one core, and what makes its work."""
    numpy_type = {"f32": np.float32, "f64": np.float64}[dtype]
    match operation:
        case "matmul":
            return 2.0 * PRODUCT**3, lambda: _product(*_matrices(PRODUCT, PRODUCT, PRODUCT, numpy_type), multiply)
        case "vector":
            return TILE, lambda: _addition(np.ones((3, TILE), numpy_type))
        case _:
            return TILE, lambda: _exponential(np.ones((2, TILE), numpy_type))


def _matrices(rows: int, depth: int, columns: int, dtype: type) -> tuple[Array, Array, Array]:
    """Two operands of a product and room for it."""
    return np.ones((rows, depth), dtype), np.ones((depth, columns), dtype), np.empty((rows, columns), dtype)


def _product(a: Array, b: Array, out: Array, multiply: Multiply) -> Work:
    return lambda: multiply(a, b, out)


def _addition(arrays: Array) -> Work:
    return lambda: np.add(arrays[0], arrays[1], out=arrays[2])


def _exponential(arrays: Array) -> Work:
    return lambda: np.exp(arrays[0], out=arrays[1])


def _working_set(machine: Machine, index: int) -> int:
    """Bytes that each core goes through to measure a tier: too many for the next tier inwards, few enough for it."""
    tier = machine.tiers[index]
    share = 1 if tier.scope == "unit" else machine.units
    if index == 0:
        inner = machine.tiers[1]
        wanted = 4 * inner.capacity * (machine.units if inner.scope == "unit" else 1)
        return min(max(wanted, SMALLEST_ARRAY), LARGEST_ARRAY, tier.capacity // 4) // share
    half = tier.capacity // (2 * share)
    if index == len(machine.tiers) - 1:
        return half
    inner = machine.tiers[index + 1]
    return max(4096, min(half, 4 * inner.capacity // (1 if inner.scope == "unit" else machine.units)))


def _reader(size: int) -> Work:
    """Reads so many bytes: the product of an array with itself, which BLAS computes as fast as it can read."""
    array = np.ones(size // 4, np.float32)
    return lambda: np.dot(array, array)


def _writer(size: int) -> Work:
    """Writes so many bytes."""
    array = np.ones(size // 4, np.float32)
    return lambda: array.fill(1)


def _seconds_per_call(seconds: float) -> float:
    """The cost of a NumPy operator beside its work: one on a single element."""
    one = np.ones(1, np.float32)

    def calls() -> None:
        for _ in range(CALLS):
            np.add(one, one, out=one)

    with np.errstate(over="ignore"):
        return _fastest(calls, seconds) / CALLS


def _in_all_cores(prepare: Callable[[], Work], cores: int, pool: ThreadPoolExecutor, seconds: float) -> float:
    """Seconds of one round of the work, while all cores do the same on arrays of their own."""
    ready = [prepare() for _ in range(cores)]
    rounds = max(1, math.ceil(2e-3 / _fastest(ready[0], 5e-3)))  # of some milliseconds: threads start one by one

    def many(work: Work) -> None:
        for _ in range(rounds):
            work()

    return _fastest(lambda: wait([pool.submit(many, work) for work in ready]), seconds) / rounds


def _fastest(work: Work, seconds: float) -> float:
    """The least time that the work takes, of as many rounds as fit in so many seconds, and of two at least."""
    work()
    best, end = math.inf, time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return max(best, 1e-9)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _rounded_up(value: float) -> float:
    """Rounded, but not down: otherwise an inner tier could come out slower than the one outside it."""
    unit = 10.0 ** (math.floor(math.log10(value)) - _DIGITS + 1)
    return float(f"{math.ceil(value / unit) * unit:.{_DIGITS}g}")


def processor() -> str:
    """The name of the processor, in characters that a machine file takes."""
    name = platform.processor() or platform.machine() or "this computer"
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return "".join(char for char in (names or [name])[0] if char.isprintable())[:100]
