"""A measured and checked run of a program: what `blockc run` does.

Sizes come from options, from arrays and from defaults. The kernel runs once to warm up and then a few times on the
clock. Its result is compared with the float64 meaning, on a sample of rows where all of them would take long, and with
`simulate` the predicted bytes are compared with those that the interpreter counts.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from blockc import driver, meaning
from blockc.accuracy import Comparison, compare, computed_dtype
from blockc.codegen import triton_runtime
from blockc.data import array_shape, random_arrays, sizes_of
from blockc.errors import LimitError, Problem
from blockc.ir import array_program
from blockc.ir.array_program import ArrayProgram
from blockc.ir.block import Graph, Map
from blockc.ir.dtypes import DTYPES
from blockc.ir.interpret import interpret
from blockc.ir.plan import Plan
from blockc.kernel import Kernel, kernel_for
from blockc.passes.cost import cost_for
from blockc.sampling import largest_value

Array = np.ndarray[Any, np.dtype[Any]]

CHECKED_ELEMENTS = 2**21  # of the largest value in the reference: about a second
SHORT, LONG = 0.5, 10.0  # seconds: a short run is timed again until they have passed; a long one is timed once
FEWEST_RUNS, MOST_RUNS = 3, 50
MOST_BLOCKS = 10**7  # of all kernels: several minutes even where every block is empty
MOST_ELEMENTS = 2**58  # of one value: NumPy counts its bytes in 64 bits, also if there are none
REFERENCE_BYTES = 32  # by element: a value in float64 with its exponent, and the same again for a result
SIMULATED_OPERATIONS, SIMULATED_BLOCKS = 10**11, 10**6  # what the interpreter does in about a minute


@dataclass(frozen=True, slots=True)
class Request:
    """What to run: `dims` and `tiles` as asked for, `arrays` by name; the others are drawn at random from `seed`."""

    program: ArrayProgram
    target: str
    dims: Mapping[str, int]
    tiles: driver.Tiles
    arrays: Mapping[str, Array]
    seed: int
    threads: int | None
    split: driver.Split = field(default_factory=dict)
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What came out. `seconds` is the median of `runs`; `rows` maps a dimension to how many positions were checked;
    `device` is what the GPU calls itself, if it ran on one."""

    program: str
    target: str
    sizes: Mapping[str, int]
    defaults: tuple[str, ...]
    plan: Plan
    seconds: float
    runs: int
    output: str
    comparison: Comparison
    rows: Mapping[str, int]
    outputs: Mapping[str, Array]
    device: str = ""

    @property
    def predicted_bytes(self) -> int:
        """The bytes that the plan should move."""
        return self.plan.costs[self.plan.snapshot].traffic_bytes

    @property
    def kernels(self) -> int:
        """How many kernels one run launches."""
        return self.plan.costs[self.plan.snapshot].kernels


def sizes_for(request: Request) -> tuple[dict[str, int], tuple[str, ...]]:
    """The size of every dimension, and the dimensions whose size is only a default.

    UsageError if an array does not fit the program, the options or another array; LimitError for sizes that no array
    has.
    """
    known = {**sizes_from_arrays(request.program, request.arrays, request.dims), **request.dims}
    given = array_program.sizes(request.program, known)
    sizes = driver.default_sizes(request.program, known)
    check_shapes(request.program, sizes)
    # Stand-ins of the right shape without memory: the check names the argument and the axis that do not fit.
    stand_ins = {
        argument.name: np.broadcast_to(np.zeros((), np.int8), array_shape(argument, sizes))
        for argument in request.program.inputs
    }
    settled = sizes_of(request.program, {**stand_ins, **request.arrays}, request.dims)
    return {dim: settled[dim] for dim in sizes}, tuple(dim for dim in sizes if dim not in given)


def sizes_from_arrays(program: ArrayProgram, arrays: Mapping[str, Array], dims: Mapping[str, int]) -> dict[str, int]:
    """The sizes that follow from some of the inputs. Contradictions are left for `sizes_of` to name."""
    sizes = array_program.sizes(program, dims)
    for _ in program.dims:
        for argument in program.inputs:
            value = arrays.get(argument.name)
            if value is None or value.ndim != len(argument.axes):
                continue
            for axis, extent in zip(argument.axes, value.shape, strict=True):
                unknown = [dim for dim in axis if dim not in sizes]
                product = math.prod(sizes[dim] for dim in axis if dim in sizes)
                if len(unknown) == 1 and product > 0 and extent % product == 0:
                    sizes[unknown[0]] = extent // product
        sizes = array_program.sizes(program, sizes)
    return sizes


@dataclass(frozen=True, slots=True)
class Prepared:
    """A compiled program with the arrays to run it on, and the positions at which its result is checked."""

    kernel: Kernel
    plan: Plan
    sizes: Mapping[str, int]
    defaults: tuple[str, ...]
    positions: Mapping[str, Array]
    arrays: Mapping[str, Array]


def prepare(request: Request) -> Prepared:
    """Settle sizes, compile, and make the arrays. LimitError for what is too large for this machine."""
    machine = driver.check_target(request.target, request.device)
    driver.check_dims(request.program, request.dims, request.tiles, request.split)
    sizes, defaults = sizes_for(request)
    plain = Kernel(request.program, request.target, sizes, dict(request.tiles), request.threads, request.split)
    kernel = kernel_for(machine, plain, request.device)
    plan = kernel.specialise(sizes).plan
    check_memory(request.program, plan)
    if kernel is plain:
        check_work(plan)
    positions = meaning.sample(request.program, sizes, request.seed, CHECKED_ELEMENTS)
    check_reference(request.program, sizes, positions)
    return Prepared(kernel, plan, sizes, defaults, positions, inputs_for(request, sizes))


def run(request: Request) -> tuple[Report, dict[str, Array]]:
    """Compile, run, time and check. Returns the report and the input arrays that were used."""
    ready = prepare(request)
    arrays = dict(ready.arrays)
    outputs, times = timed_where_it_runs(ready.kernel, arrays)
    output, comparison = checked(ready, expected(ready), outputs)
    report = Report(
        request.program.name,
        request.target,
        ready.sizes,
        ready.defaults,
        priced_for(ready.plan, arrays),
        statistics.median(times),
        len(times),
        output,
        comparison,
        {dim: len(chosen) for dim, chosen in ready.positions.items()},
        outputs,
        device_of(ready.kernel),
    )
    return report, arrays


def timed_where_it_runs(kernel: Kernel, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], list[float]]:
    """The outputs by name, and the seconds of every run but the first; on a GPU without the copies there and back."""
    if type(kernel) is Kernel:
        return timed(kernel, arrays)
    from blockc.gpu_kernel import GpuKernel, timed_on_gpu

    assert isinstance(kernel, GpuKernel)
    return timed_on_gpu(kernel, arrays)


def device_of(kernel: Kernel) -> str:
    """What the GPU of a kernel calls itself, or "" if it runs on arrays."""
    if type(kernel) is Kernel:
        return ""
    from blockc.gpu_kernel import GpuKernel

    assert isinstance(kernel, GpuKernel)
    return triton_runtime.name_of(kernel.device)


def check_shapes(program: ArrayProgram, sizes: Mapping[str, int]) -> None:
    """LimitError for values that NumPy cannot have, not even where another dimension is empty."""
    shapes = {node.name: node.shape for node in program.nodes}
    shapes |= {result.argument.name: result.argument.dims for result in program.outputs}
    for name, dims in shapes.items():
        if math.prod(max(1, sizes[dim]) for dim in dims) > MOST_ELEMENTS:
            message = f"`{name}` would have more than {MOST_ELEMENTS:,} elements"
            raise LimitError((Problem("E0902", message, None, "give smaller sizes with --dim"),))


def check_memory(program: ArrayProgram, plan: Plan) -> None:
    """LimitError if the arrays and the stored lists of a plan are larger than this machine's memory."""
    sizes = array_program.sizes(plan.program, plan.sizes)
    sizes |= {chunk: -(-sizes[chunk] // plan.tiles[chunk]) for chunk in plan.program.chunks}
    arguments = [*program.inputs, *(result.argument for result in program.outputs)]
    held = sum(math.prod(array_shape(a, plan.sizes)) * DTYPES[a.dtype].size for a in arguments)
    held += 8 * max((math.prod(array_shape(a, plan.sizes)) for a in program.inputs), default=0)  # random float64 draws
    for name in plan.costs[plan.snapshot].buffered:
        kind = plan.program.types.get(name)
        if kind is not None:
            held += math.prod(sizes[dim] for dim in {*kind.lists, *kind.axes}) * DTYPES[kind.dtype].size
    check_bytes("the arrays need", held)


def check_reference(program: ArrayProgram, sizes: Mapping[str, int], positions: Mapping[str, Array]) -> None:
    """LimitError if the float64 meaning of a sample is larger than this machine's memory."""
    needed = REFERENCE_BYTES * largest_value(program, sizes, positions)
    check_bytes("the check against the float64 meaning needs", needed)


def check_bytes(what: str, count: int) -> None:
    """LimitError for more bytes than this machine's memory has."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return
    if count > memory:
        message = f"{what} {count / 2**30:,.1f} GiB, and this machine has {memory / 2**30:,.1f} GiB"
        raise LimitError((Problem("E0902", message, None, "give smaller sizes with --dim"),))


def check_work(plan: Plan) -> None:
    """LimitError for a plan with so many blocks that nobody would wait for them."""
    steps = iterations(plan.program.body, array_program.sizes(plan.program, plan.sizes), plan.tiles)
    if steps > MOST_BLOCKS:
        message = f"the kernels go over {steps:,} blocks, and more than {MOST_BLOCKS:,} take too long"
        raise LimitError(
            (Problem("E0906", message, None, "give smaller sizes with --dim, or larger tiles with --tile"),)
        )


def inputs_for(request: Request, sizes: Mapping[str, int]) -> dict[str, Array]:
    """The given arrays, and random ones for the other inputs, each only drawn if it is needed."""
    if all(argument.name in request.arrays for argument in request.program.inputs):
        return dict(request.arrays)
    return {**random_arrays(request.program, sizes, request.seed), **request.arrays}


def timed(kernel: Kernel, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], list[float]]:
    """The outputs by name, and the seconds of every run but the first."""
    times: list[float] = []
    started = time.perf_counter()
    results = kernel(**arrays)
    first = time.perf_counter() - started
    while len(times) < (1 if first > LONG else FEWEST_RUNS) or (sum(times) < SHORT and len(times) < MOST_RUNS):
        started = time.perf_counter()
        results = kernel(**arrays)
        times.append(time.perf_counter() - started)
    return by_name(kernel.program, results), times


def by_name(program: ArrayProgram, results: Any) -> dict[str, Array]:
    """What a kernel returned, as outputs by name."""
    names = [result.argument.name for result in program.outputs]
    return results if len(names) > 1 else {names[0]: results}


@dataclass(frozen=True, slots=True)
class Expected:
    """The outputs at the positions that are checked: the float64 meaning, and the unfused program in the precision of a
    kernel."""

    exact: Mapping[str, Array]
    unfused: Mapping[str, Array]


def expected(ready: Prepared) -> Expected:
    """What a result is compared with."""
    program = ready.kernel.program
    exact = meaning.evaluate(program, ready.arrays, ready.positions)
    return Expected(exact, meaning.baseline(program, ready.arrays, ready.positions))


def checked(ready: Prepared, wanted: Expected, outputs: Mapping[str, Array]) -> tuple[str, Comparison]:
    """The output that is furthest from the float64 meaning, and how far it is."""
    program = ready.kernel.program
    rows = meaning.restrict_outputs(program, outputs, ready.sizes, ready.positions)
    comparisons = {
        result.argument.name: compare(
            rows[result.argument.name],
            wanted.exact[result.argument.name],
            wanted.unfused[result.argument.name],
            result.argument.dtype,
            computed_dtype(program, result),
        )
        for result in program.outputs
    }
    worst = max(comparisons, key=lambda name: _badness(comparisons[name]))
    return worst, comparisons[worst]


def _badness(comparison: Comparison) -> tuple[bool, float]:
    error, bound = comparison.max_abs_error, comparison.bound
    return not comparison.ok, error / bound if bound else error


def priced_for(plan: Plan, arrays: Mapping[str, Array]) -> Plan:
    """The plan with the figures of its program for these inputs: what they hold may bound loops."""
    figures = cost_for(plan.costs[plan.snapshot], plan.program, plan.sizes, plan.tiles, arrays)
    costs = (*plan.costs[: plan.snapshot], figures, *plan.costs[plan.snapshot + 1 :])
    return replace(plan, costs=costs)


@dataclass(frozen=True, slots=True)
class Simulation:
    """The bytes that the interpreter counted, and the first difference from the prediction ("" if there is none)."""

    traffic_bytes: int
    difference: str


def simulate(plan: Plan, arrays: Mapping[str, Array]) -> Simulation:
    """Run a plan in the interpreter and compare the bytes that every value moves. LimitError if it is too large."""
    cost = plan.costs[plan.snapshot]
    steps = iterations(plan.program.body, array_program.sizes(plan.program, plan.sizes), plan.tiles)
    if cost.flops > SIMULATED_OPERATIONS or steps > SIMULATED_BLOCKS:
        message = f"{cost.flops:,} operations in {steps:,} blocks are too many to simulate"
        limit = f"at most {SIMULATED_OPERATIONS:,} in {SIMULATED_BLOCKS:,}: give smaller sizes with --dim"
        raise LimitError((Problem("E0903", message, None, limit),))
    counted = interpret(plan.program, arrays, plan.sizes, plan.tiles)
    moved = {(name, "load"): count for name, count in counted.loads.items()}
    moved |= {(name, "store"): count for name, count in counted.stores.items()}
    for name, direction in sorted(moved.keys() | cost.traffic.keys()):
        found, predicted = moved.get((name, direction), 0), cost.traffic.get((name, direction), 0)
        if found != predicted:
            return Simulation(counted.traffic, f"{direction}s of `{name}` are {found:,} bytes, not {predicted:,}")
    return Simulation(counted.traffic, "")


def iterations(graph: Graph, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> int:
    """How often bodies of maps are executed, all together. Those that never are count as if they were once: it takes
    time and memory to go over the blocks of the others."""
    total = 0
    for node in graph:
        if isinstance(node, Map):
            blocks = -(-sizes[node.dim] // max(1, tiles.get(node.dim, sizes[node.dim])))
            blocks = {"all": blocks, "first": 1, "rest": blocks - 1}[node.part]
            total += max(1, blocks) * (1 + iterations(node.body, sizes, tiles))
    return total
