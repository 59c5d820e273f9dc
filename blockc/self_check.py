"""The self-check: a new kernel runs once on small data and is compared with the float64 meaning, before it is kept.

The probe has the kernel's own tiles. Where that is affordable there are two blocks along every dimension that is cut,
the last one short. The data are ordinary numbers, rows of zeros, numbers far from zero, and rows with a NaN, an
infinity and an outlier, for which only the places of NaN and infinities count. The error rule is that of single runs
(`accuracy.py`). Nothing here knows what kind of kernel it is.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from threadpoolctl import ThreadpoolController

from blockc import __version__, families, meaning
from blockc.accuracy import (
    Comparison,
    compare_where_asked,
    computed_dtype,
    same_kinds_where_asked,
    same_nonfinite,
    ulp,
)
from blockc.data import Array, with_equals
from blockc.errors import visible
from blockc.families import Family
from blockc.ir import array_program, dtypes
from blockc.ir.array_program import ArrayProgram, Node, Result
from blockc.ir.block import Map, walk
from blockc.ir.plan import Plan

Arrays = Mapping[str, Array]
Launch = Callable[[Arrays], Arrays]

MOST_WORK = 2**26  # of one launch, in multiplications of a matrix product: some ten milliseconds
HARD_LIMIT = 2**32  # the same, for a program that declares large sizes: seconds
ELEMENTWISE = 16  # what an element of another operator costs, in multiplications
LARGEST_WHOLE = 131  # elements of a dimension that is kept whole
SHORT_BLOCK = 13  # the most elements of the last block
CHECKED_ELEMENTS = 2**14  # of the largest value in the reference
# How many times the error rule a kernel may be off. Far from zero, right ones are by what rounds differently (up to 10
# times, measured in 337 programs), and sums of terms that cancel lose their digits (19 times and more).
ORDINARY = {"N(0, 1)": 1, "rows of zeros": 1, "mean 1000": 16}
CONFIRMING = 32  # draws that have to agree that numbers are wrong
SEED = 0


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A kernel that is not the program's, and the data that show it: sizes and tiles in elements, the family and the
    seed of the inputs."""

    program: ArrayProgram
    sizes: Mapping[str, int]
    tiles: Mapping[str, int]
    family: str
    seed: int
    output: str
    comparison: Comparison

    def __str__(self) -> str:
        found, sizes, tiles = self.comparison, _listed(self.sizes), _listed(self.tiles)
        off = f"is off by {found.max_abs_error:.3g}, bound {found.bound:.3g},"
        if found.max_abs_error <= found.bound:
            off = "has NaN or infinities in the wrong places"
        where = f"on data with {self.family} at {sizes} (tiles: {tiles or 'none'})"
        return f"output `{visible(self.output)}` {off} {where}"


def reproduction(mismatch: Mismatch, source: str) -> str:
    """What shows the mismatch again: the program, with comments on how it failed and with the kernel."""
    program = mismatch.program
    options = [f"--dim {visible(dim)}={size}" for dim, size in mismatch.sizes.items()]
    options += [f"--tile {visible(dim)}={tile}" for dim, tile in mismatch.tiles.items()]
    arguments = (f"{argument.name}: {array_program.argument_type(argument)}" for argument in program.inputs)
    comments = (
        f"A kernel of this program failed its self-check: {mismatch}.",
        f"The inputs ({', '.join(arguments)}) are drawn from seed {mismatch.seed}. All families of data:",
        f"blockc verify FILE --program {visible(program.name)} {' '.join(options)}",
        f"blockc {__version__}, numpy {np.__version__}, python {platform.python_version()}, {platform.machine()}",
    )
    kernel = ("", "The kernel:", "", *source.splitlines())
    above, below = ("\n".join(f"# {line}".rstrip() for line in lines) for lines in (comments, kernel))
    return f"{above}\n\n{program.source.rstrip()}\n\n{below}\n"


def _listed(values: Mapping[str, int]) -> str:
    return ", ".join(f"{visible(name)}={value}" for name, value in values.items())


@dataclass(frozen=True, slots=True)
class _Probe:
    """What is launched at which sizes, and at which positions of the outputs the result is looked at."""

    program: ArrayProgram
    plan: Plan
    launch: Launch
    sizes: Mapping[str, int]
    positions: Arrays
    hides: bool


def probe(program: ArrayProgram, plan: Plan, launch: Launch) -> Mismatch | None:
    """What is wrong with the kernels of a plan, which `launch` runs on arrays by name; None if nothing was found.

    A program that declares sizes of which one run takes seconds is not run.
    """
    wanted = {dim.name: wanted_size(dim.name, plan) for dim in program.dims}
    for copy in plan.program.dims:
        if copy.same_as is not None and copy.name not in wanted:  # of a part, which may have larger blocks
            wanted[copy.same_as] = max(wanted[copy.same_as], wanted_size(copy.name, plan))
    sizes = affordable(program, wanted)
    if work(program, sizes) > HARD_LIMIT:
        return None
    positions = meaning.sample(program, sizes, SEED, CHECKED_ELEMENTS)
    hides = any(isinstance(node, Map) and node.where is not None for node in walk(plan.program.body))
    with ThreadpoolController().limit(limits=1, user_api="blas"):  # more only get in the way of each other here
        return _wrong(_Probe(program, plan, launch, sizes, positions, hides))


def _wrong(given: _Probe) -> Mismatch | None:
    for family in families.ORDINARY:
        if family.name in ORDINARY and (mismatch := wrong_numbers(given, family)) is not None:
            return mismatch
    return next(filter(None, (wrong_kinds(given, family) for family in special_rows(given.program))), None)


def wrong_numbers(given: _Probe, family: Family) -> Mismatch | None:
    """An output that is less accurate than the rule allows: in one draw and then, since that happens to the right
    kernel of a small output, in many that are pooled."""
    for count in (1, CONFIRMING):
        mismatch = None
        runs = [_Run.of(given, family, seed) for seed in range(SEED, SEED + count)]
        if all(run.is_as_unfused(near) for run in runs):
            return None
        for result, *drawn in zip(given.program.outputs, *(run.with_reference() for run in runs), strict=True):
            output, exact, unfused = (np.concatenate(part) for part in zip(*drawn, strict=True))
            dtype, computed = result.argument.dtype, computed_dtype(given.program, result)
            compared = compare_where_asked(output, exact, unfused, dtype, computed, 1, given.hides)
            same = same_kinds_where_asked(output, exact, unfused, dtype, given.hides)
            if not same or compared.max_abs_error > ORDINARY[family.name] * compared.bound:
                mismatch = _mismatch(given, family, result, compared)
        if mismatch is None:
            return None
    return mismatch


def wrong_kinds(given: _Probe, family: Family) -> Mismatch | None:
    """An output with NaN or infinities where there should be none, or the other way round."""
    run = _Run.of(given, family, SEED)
    if run.is_as_unfused(alike):
        return None
    for result, drawn in zip(given.program.outputs, run.with_reference(), strict=True):
        if not same_kinds_where_asked(*drawn, result.argument.dtype, given.hides):
            return _mismatch(given, family, result, Comparison(0.0, 0.0, False))
    return None


def _mismatch(given: _Probe, family: Family, result: Result, compared: Comparison) -> Mismatch:
    return Mismatch(given.program, given.sizes, given.plan.tiles, family.name, SEED, result.argument.name, compared)


@dataclass(frozen=True, slots=True)
class _Run:
    """What the kernel and the unfused program give for some inputs, at the positions."""

    given: _Probe
    arrays: Arrays
    outputs: Arrays
    unfused: Arrays

    @staticmethod
    def of(given: _Probe, family: Family, seed: int) -> _Run:
        arrays = families.draw(given.program, given.sizes, family, seed)
        with np.errstate(all="ignore"):
            outputs = meaning.restrict_outputs(given.program, given.launch(arrays), given.sizes, given.positions)
            return _Run(given, arrays, outputs, meaning.baseline(given.program, arrays, given.positions))

    def is_as_unfused(self, close: Callable[[Array, Array, str], bool]) -> bool:
        """True if each output is close to that of the unfused program, so that the reference need not be asked."""
        made = [result.argument for result in self.given.program.outputs]
        return all(close(self.outputs[each.name], self.unfused[each.name], each.dtype) for each in made)

    def with_reference(self) -> list[tuple[Array, Array, Array]]:
        """For each output what the kernel gives, what is exact and what the unfused program gives."""
        with np.errstate(all="ignore"):
            exact = meaning.evaluate(self.given.program, self.arrays, self.given.positions)
        names = [result.argument.name for result in self.given.program.outputs]
        return [(self.outputs[name].ravel(), exact[name].ravel(), self.unfused[name].ravel()) for name in names]


def near(output: Array, unfused: Array, dtype: str) -> bool:
    """True if an output is so close to that of the unfused program that it is inside the error rule, whatever is exact.

    The rule allows 4e + 8u for an error e of the unfused program and an ulp u of the largest exact number. An output
    that is 4 ulps v of the largest unfused number away is off by at most e + 4v. That is not more: where e is half of
    the largest unfused number, 3e is more than 4v, and where it is less, 2u is v or more.
    """
    if not same_nonfinite(output, unfused):
        return False
    counted = np.isfinite(unfused.astype(np.float64))
    kernel, plain = (values[counted].astype(np.float64) for values in (output, unfused))
    largest = float(np.abs(plain).max(initial=0.0))
    return float(np.abs(kernel - plain).max(initial=0.0)) <= 4 * ulp(largest, dtype)


def alike(output: Array, unfused: Array, _dtype: str) -> bool:
    """True if NaN and infinities are in the same places."""
    return same_nonfinite(output, unfused)


def special_rows(program: ArrayProgram) -> Iterator[Family]:
    """The data that show NaN and infinities in wrong places."""
    inputs = [argument.name for argument in program.inputs if dtypes.is_float(argument.dtype)]
    for kind, names in (("one NaN", inputs[:1]), ("one inf", inputs[-1:]), ("an outlier", inputs[:1])):
        yield from (Family(f"{kind} in {name}", dict(families.SPECIAL)[kind], name) for name in names)


# Sizes


def affordable(program: ArrayProgram, wanted: Mapping[str, int]) -> dict[str, int]:
    """The wanted size of every dimension, or less, until a launch is cheap: first of dimensions of two elements, which
    are mostly batches, and then half of the largest ones."""
    left = dict(wanted)
    while True:
        sizes = with_equals(program, {})
        for dim, size in left.items():
            sizes = with_equals(program, {dim: size, **sizes})
        large = [dim for dim, size in left.items() if size > 1]
        if not large or work(program, sizes) <= MOST_WORK:
            return {dim: sizes[dim] for dim in left}
        pairs = [dim for dim in large if left[dim] == 2]
        least = pairs[-1] if pairs else max(large, key=lambda dim: left[dim])
        left[least] //= 2


def wanted_size(dim: str, plan: Plan) -> int:
    """The size of a dimension in a probe, at any price: two blocks of which the second is short, or all of one that is
    whole and not long. An empty dimension stays empty, since other kernels are for others."""
    size = array_program.sizes(plan.program, plan.sizes)[dim]
    if size == 0:
        return 0
    if dim not in plan.tiles:
        return min(size, LARGEST_WHOLE)
    chunks = [plan.tiles[chunk] for chunk, of in plan.program.chunks.items() if of == dim]
    return max(plan.tiles[dim], *chunks, 1) + max(1, min(SHORT_BLOCK, plan.tiles[dim] // 3))


def work(program: ArrayProgram, sizes: Mapping[str, int]) -> int:
    """What the program costs at these sizes, unfused, in multiplications of a matrix product."""
    shapes = {node.name: node.shape for node in program.nodes}
    return sum(_work(node, shapes, sizes) for node in program.nodes)


def _work(node: Node, shapes: Mapping[str, tuple[str, ...]], sizes: Mapping[str, int]) -> int:
    dims = {*node.shape}.union(*(shapes[arg] for arg in node.args))
    elements = math.prod(sizes[dim] for dim in dims)
    return elements * (1 if node.op == "contract" else ELEMENTWISE)
