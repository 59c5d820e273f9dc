"""The numeric oracle: kernels in the precision of the target, on adversarial data, against the float64 meaning.

`kernels` are the NumPy kernels of a subject (see `numeric_subjects.py`), one of every snapshot that the compiler may
choose, with features whole and cut. `judge` pools draws of a family of data and holds each output to the error rule of
`accuracy.py`: twice the error of the unfused program and 4 ulp. `Guards` stands between a kernel and NumPy's memory.

A campaign over every family in every input of every program, with a progress line where stderr is a terminal:

    python tests/numeric_oracle.py --draws 64 --seed 1
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numeric_subjects import CENTRED, OTHERS, SOFTMAX_LIKE, Subject, examples, ordinary
from numpy.typing import NDArray

from blockc import meaning
from blockc.accuracy import Comparison, compare, computed_dtype
from blockc.codegen import loader, numpy_source
from blockc.data import numpy_dtype, random_arrays
from blockc.ir.array_program import ArrayProgram
from blockc.ir.block import Program
from blockc.ir.dtypes import is_float
from blockc.passes.choose import ready
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower, whole_dimensions

Array = NDArray[Any]
Arrays = dict[str, Array]
Launch = Callable[..., dict[str, Array]]

DRAWS = 32


# Kernels


@dataclass(frozen=True)
class Kernel:
    """A kernel of one snapshot: the block program as it is emitted, the file, and its function."""

    name: str
    block: Program
    source: str
    launch: Launch


@cache
def kernels(subject: Subject) -> tuple[Kernel, ...]:
    """The kernels of all snapshots of a subject, for every way to cut it."""
    program, sizes, tiles = subject.array_program, dict(subject.sizes), dict(subject.tiles)
    ways: dict[frozenset[str], str] = {}
    for cut in subject.cuts:
        whole = whole_dimensions(program, sizes, {dim: tiles[dim] for dim in cut.split() if dim in tiles})
        ways.setdefault(whole, " ".join(sorted(whole)))
    return tuple(
        built(f"whole {way or 'nothing'}, snapshot {number}", block, subject)
        for whole, way in ways.items()
        for number, block in enumerate(ready(fuse(lower(program, whole))))
    )


def built(name: str, block: Program, subject: Subject, edit: Callable[[str], str] = str) -> Kernel:
    """The kernel of a block program, with a change to its source."""
    tiles = {dim: tile for dim, tile in subject.tiles if dim not in block.whole}
    empty = frozenset(dim for dim, size in subject.sizes if size == 0)
    source = edit(numpy_source.emit(block, tiles, (), empty))
    return Kernel(name, block, source, loader.load(source))


# Data


Change = Callable[[Array, np.random.Generator, float], Array]


@dataclass(frozen=True)
class Family:
    """A kind of data: every input is N(0, 1), and each of `changes` makes another of one float input.

    The first change is of the input at `which` among the float ones (a campaign puts it at each), the second of the
    next one, and so on. A change takes the array, random numbers, and the largest finite number of the input's type.
    """

    name: str
    which: int
    changes: tuple[Change, ...]


def scaled(factor: float) -> Change:
    """N(0, factor)."""
    return lambda x, random, largest: x * factor


def shifted(offset: float, deviation: float = 1) -> Change:
    """N(offset, deviation)."""
    return lambda x, random, largest: x * deviation + offset


def near_largest(x: Array, random: np.random.Generator, largest: float) -> Array:
    """Of either sign and between 0.9 and 1 times the largest f16."""
    return np.sign(x) * random.uniform(0.9, 1.0, x.shape) * min(65504.0, largest)


def outlier(x: Array, random: np.random.Generator, largest: float) -> Array:
    """One number is 1e4 times the others."""
    if x.size:
        x.reshape(-1)[random.integers(x.size)] = 1e4
    return x


def constant_rows(x: Array, random: np.random.Generator, largest: float) -> Array:
    """All numbers along the last axis are the same."""
    return np.broadcast_to(x[..., :1], x.shape).copy() if x.ndim else x


FAMILIES = (
    Family("N(0, 1)", 0, ()),
    Family("std 10", 0, (scaled(10),)),
    Family("std 100", 0, (scaled(100),)),
    Family("std 1000", 0, (scaled(1000),)),
    Family("near -1e4", 0, (shifted(-1e4),)),
    Family("products near -1e4", 0, (shifted(-100, 0.1), shifted(20, 0.01))),
    Family("near the f16 maximum", -1, (near_largest,)),
    Family("an outlier", 0, (outlier,)),
    Family("constant rows", 0, (constant_rows,)),
    Family("zeros", 0, (scaled(0),)),
    Family("+-1e2", 0, (lambda x, random, largest: np.copysign(100.0, x),)),
)
MEANS = tuple(Family(f"mean/std {mean:g}", 0, (shifted(mean),)) for mean in (0, 1, 10, 100, 1e3, 1e4))


def draw(
    program: ArrayProgram, sizes: Mapping[str, int], family: Family, seed: int, which: int | None = None
) -> Arrays:
    """Arrays of a family, in the declared types. `which` is another place for its first change than its own."""
    arrays = random_arrays(program, sizes, seed)
    real = [argument for argument in program.inputs if is_float(argument.dtype)]
    random = np.random.default_rng([seed, 1])
    first = family.which if which is None else which
    for at, change in enumerate(family.changes, first):
        chosen = real[at % len(real)]
        dtype = numpy_dtype(chosen.dtype)
        largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        arrays[chosen.name] = change(arrays[chosen.name].astype(np.float64), random, largest).astype(dtype)
    return arrays


# The judgement


@dataclass(frozen=True)
class Judgement:
    """How an output of a kernel compares with the reference, pooled over draws."""

    kernel: str
    output: str
    found: Comparison

    def __str__(self) -> str:
        return f"{self.kernel}, output {self.output}: {self.found}"


def judge(
    subject: Subject,
    family: Family,
    draws: int = DRAWS,
    seed: int = 0,
    which: int | None = None,
    candidates: tuple[Kernel, ...] | None = None,
) -> list[Judgement]:
    """Every output of every kernel under the error rule."""
    sizes, program = dict(subject.sizes), subject.array_program
    data = [draw(program, sizes, family, seed + number, which) for number in range(draws)]
    return judge_on(program, data, kernels(subject) if candidates is None else candidates)


def judge_on(program: ArrayProgram, data: list[Arrays], candidates: tuple[Kernel, ...]) -> list[Judgement]:
    """Every output of every kernel under the error rule, pooled over the draws in `data`.

    The strict rule is for outputs of 1,000 elements or more, pooled over at least 32 draws.
    """
    references = [meaning.evaluate(program, arrays) for arrays in data]
    unfused = [meaning.baseline(program, arrays) for arrays in data]
    judgements = []
    for kernel in candidates:
        results = [kernel.launch(arrays, 1) for arrays in data]
        for result in program.outputs:
            name = result.argument.name
            got, exact, plain = (np.stack([one[name] for one in run]) for run in (results, references, unfused))
            pooled = len(data) if references[0][name].size >= 1000 else 1
            found = compare(got, exact, plain, result.argument.dtype, computed_dtype(program, result), pooled)
            judgements.append(Judgement(kernel.name, name, found))
    return judgements


def failures(judgements: list[Judgement]) -> str:
    """The judgements that are not ok, one per line, or ""."""
    return "\n".join(str(judgement) for judgement in judgements if not judgement.found.ok)


# Memory


GUARD = 64  # bytes on either side


class Guards:
    """Stands in for the module `numpy` in a kernel's file: new memory is full of NaN and lies between guard bytes.

    The guards are NaN as well, so that what is read from them shows; and one that no arithmetic makes.
    """

    def __init__(self) -> None:
        self.regions: list[Array] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """As `np.empty`."""
        size = math.prod(shape if isinstance(shape, tuple) else (shape,)) * np.dtype(dtype).itemsize
        memory = np.full(size + 2 * GUARD, 0xFF, np.uint8)
        memory[:GUARD] = memory[size + GUARD :] = self.pattern()
        self.regions.append(memory)
        array: Array = memory[GUARD : size + GUARD].view(dtype).reshape(shape)
        return array

    def guarded(self, array: Array) -> Array:
        """A copy of an array between guards."""
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    @staticmethod
    def pattern() -> Array:
        """The guard bytes: NaN in f16, bf16 and f32."""
        return np.tile(np.array([0xA5, 0xFF], np.uint8), GUARD // 2)

    def damaged(self) -> int:
        """How many regions have a guard that was written to."""
        sides = [side for memory in self.regions for side in (memory[:GUARD], memory[-GUARD:])]
        return sum(not np.array_equal(side, self.pattern()) for side in sides)


def launch_guarded(kernel: Kernel, arrays: Arrays, threads: int = 1) -> tuple[dict[str, Array], Guards, Arrays]:
    """The outputs of a kernel whose memory, inputs and outputs lie between guards; the guards; the inputs as left."""
    guards = Guards()
    given = {name: guards.guarded(array) for name, array in arrays.items()}
    launch = loader.load(kernel.source)
    launch.__globals__["np"] = guards
    return launch(given, threads), guards, given


# The campaign


def main() -> int:
    """Run a campaign; exit status 1 if a kernel breaks the error rule."""
    parser = argparse.ArgumentParser(description="every family in every input of every program, by the error rule")
    parser.add_argument("--draws", type=int, default=DRAWS, help="pooled draws of each (at least 32 for the rule)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="programs whose name contains this")
    options = parser.parse_args()
    wrong, count, started = 0, 0, time.monotonic()
    chosen = list(jobs(options.only))
    for done, (name, subject, family, which) in enumerate(chosen):
        if sys.stderr.isatty():
            print(f"\r{done} of {len(chosen)}  {name[:40]:40}", end="", file=sys.stderr)
        judgements = judge(subject, family, options.draws, options.seed, which)
        count += len(judgements)
        problem = failures(judgements)
        if problem:
            wrong += 1
            print(f"{name}, {family.name} in input {which}, seed {options.seed}:\n{problem}")
    print(f"{count} outputs judged in {time.monotonic() - started:.0f} s; wrong: {wrong} of {len(chosen)} combinations")
    return 1 if wrong else 0


def jobs(only: str) -> Iterator[tuple[str, Subject, Family, int]]:
    """Every program, family and float input of a campaign."""
    programs = ordinary({**SOFTMAX_LIKE, **OTHERS, **CENTRED})
    programs |= {
        f"{name}, {dtype}": one for dtype in ("f32", "f16", "bf16", "f64") for name, one in examples(dtype).items()
    }
    for name, subject in programs.items():
        real = [argument for argument in subject.array_program.inputs if is_float(argument.dtype)]
        families = (*FAMILIES, *MEANS) if name in CENTRED else FAMILIES
        for family in families if only in name else ():
            yield from ((name, subject, family, which) for which in range(len(real)))


if __name__ == "__main__":
    sys.exit(main())
