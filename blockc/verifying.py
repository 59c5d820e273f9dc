"""What `blockc verify` does: re-checks every step of a program's derivation and every snapshot that may be chosen.

Steps: the two algebraic oracles (float64 on well-conditioned data, and the prime field) and the verifier. Snapshots,
as they would be emitted: float64 again, the bytes predicted against those that the interpreter counts, and the kernel's
own numbers on ordinary and adversarial data against the error bound of the unfused program. Sizes that nobody gave are
small and ragged: several blocks along every dimension that is cut, the last one short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from blockc import driver, families, field_meaning, meaning
from blockc.accuracy import compare_where_asked, computed_dtype
from blockc.codegen import loader
from blockc.data import Array, random_arrays, with_equals
from blockc.errors import LimitError, Problem
from blockc.ir import dtypes
from blockc.ir.array_program import ArrayProgram, Result, Span
from blockc.ir.block import Map, Program, walk
from blockc.ir.decisions import Derivation
from blockc.ir.interpret import Run, interpret
from blockc.ir.plan import Cost, Plan
from blockc.ir.residues import Verdict
from blockc.ir.verify import VerifyError, verify
from blockc.passes import choose, fuse, lower
from blockc.passes import split as in_chunks
from blockc.passes.cost import cost_for, work
from blockc.running import iterations

RELATIVE = 1e-10  # of the largest number of an output, in float64
ABSOLUTE = 1e-13  # of outputs that are zero but for rounding
DRAWS = 4  # of every family of data, pooled
MOST_OPERATIONS, MOST_BLOCKS = 10**7, 10**4  # of one program in the interpreter: seconds for a derivation

Arrays = Mapping[str, Array]
Draw = tuple[dict[str, Array], Arrays, Arrays]  # inputs, the outputs in float64, and those of the unfused program
Families = tuple[tuple[str, list[Draw]], ...]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What to verify: sizes and tiles as asked for."""

    program: ArrayProgram
    dims: Mapping[str, int]
    tiles: driver.Tiles
    split: driver.Split = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setting:
    """Sizes and tiles in elements, and what the outputs should be, for the data of each oracle."""

    program: ArrayProgram
    sizes: Mapping[str, int]
    tiles: Mapping[str, int]
    exact: tuple[Arrays, Arrays]  # inputs and outputs in float64
    field: tuple[Arrays, Arrays]  # and in the prime field


@dataclass(frozen=True, slots=True)
class CheckedStep:
    """One program of a derivation and what the oracles say of it.

    `difference` is the largest one from the meaning in float64, relative to the largest number of that output; None if
    no element is a finite number. `broken` is what the verifier says, "" if nothing.
    """

    number: str
    rule: str
    paper: str
    at: tuple[str, ...]
    span: Span | None
    difference: float | None
    field: Verdict
    broken: str

    @property
    def problem(self) -> str:
        """What is wrong with the step, or ""."""
        if self.broken:
            return f"the verifier rejects it: {self.broken}"
        if self.difference is not None and self.difference > RELATIVE:
            return f"float64 differs by {self.difference:.3g}"
        if self.field.different:
            return f"the prime field differs in {self.field.different} of {sum_of(self.field)} elements"
        return ""


@dataclass(frozen=True, slots=True)
class CheckedNumbers:
    """The kernel of a snapshot on a family of data: the output that comes closest to its bound."""

    family: str
    output: str
    error: float
    bound: float
    ok: bool


@dataclass(frozen=True, slots=True)
class CheckedSnapshot:
    """A snapshot as it would be emitted. `moved` are the bytes predicted and counted, for "load" and "store";
    `mismatch` names the first value for which they differ, or is ""."""

    index: int
    kernels: int
    difference: float | None
    moved: Mapping[str, tuple[int, int]]
    mismatch: str
    numbers: tuple[CheckedNumbers, ...]

    @property
    def problem(self) -> str:
        """What is wrong with the snapshot, or ""."""
        if self.difference is not None and self.difference > RELATIVE:
            return f"float64 differs by {self.difference:.3g}"
        if self.mismatch:
            return self.mismatch
        wrong = next((row for row in self.numbers if not row.ok), None)
        if wrong is None:
            return ""
        if wrong.error <= wrong.bound:
            return f"output `{wrong.output}` is finite or infinite in the wrong places on data with {wrong.family}"
        return (
            f"output `{wrong.output}` is off by {wrong.error:.3g}, bound {wrong.bound:.3g}, on data with {wrong.family}"
        )


@dataclass(frozen=True, slots=True)
class Verified:
    """All that was checked of one way to cut the program. `stopped`: why fusion ended early, or ""."""

    whole: tuple[str, ...]
    sizes: Mapping[str, int]
    tiles: Mapping[str, int]
    steps: tuple[CheckedStep, ...]
    snapshots: tuple[CheckedSnapshot, ...]
    stopped: str

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong, in words."""
        found = [f"step {step.number}, {step.rule} at {', '.join(step.at)}: {step.problem}"
                 for step in self.steps if step.problem]  # fmt: skip
        return (*found, *(f"snapshot {one.index}: {one.problem}" for one in self.snapshots if one.problem))


def sum_of(verdict: Verdict) -> int:
    """How many elements were compared or left undecided."""
    return verdict.equal + verdict.different + verdict.undecided


def verify_program(request: Request, say: Say) -> tuple[Verified, ...]:
    """Check everything about a program, for every way to cut it. `say` is told what is being done.

    LimitError if the sizes are too large.
    """
    return tuple(verify_way(request, whole, say) for whole in ways(request))


def ways(request: Request) -> tuple[frozenset[str], ...]:
    """The sets of dimensions that may be whole: with usual sizes where nobody gave them, and with large ones."""
    program, tiles, split = request.program, request.tiles, request.split
    usual = driver.whole_dimensions(program, driver.default_sizes(program, request.dims), tiles, split)
    large = driver.whole_dimensions(program, with_equals(program, request.dims), tiles, split)
    return (usual,) if usual == large else (usual, large)


def verify_way(request: Request, whole: frozenset[str], say: Say) -> Verified:
    """Check everything about a program with these dimensions whole."""
    program, kept = request.program, tuple(sorted(whole))
    unfused = lower.lower(program, whole)
    sizes, tiles = small_sizes(request, unfused)
    check_size(unfused, sizes, tiles)
    say("fusing")
    try:
        derivation = driver.with_chunks(fuse.fuse(unfused), request.split)
    except VerifyError as error:
        return Verified(kept, sizes, tiles, (broken(error),), (), "")
    tiles = in_chunks.chunk_tiles(derivation.snapshots, sizes, tiles, request.split, tiles)
    setting = settle(program, sizes, tiles)
    steps = tuple(checked_steps(setting, unfused, derivation, say))
    snapshots = tuple(checked_snapshots(setting, derivation, say))
    return Verified(kept, sizes, tiles, steps, snapshots, derivation.stopped)


def broken(error: VerifyError) -> CheckedStep:
    """The step at which the derivation ended because a rule broke its promise."""
    rule = getattr(error, "rule", "") or "fuse"
    return CheckedStep("?", rule, "-", (), None, None, Verdict(0, 0, 0), " ".join(str(error).split()))


# Sizes


def small_sizes(request: Request, unfused: Program) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes and tiles where nobody gave them.

    A given size is cut into 3 blocks. Else the innermost two dimensions that are cut, batches aside, have 3 blocks of 2
    or 3 elements, others 2, the last one short. The first batch dimension has 2 elements in blocks of 1, others 1.
    Dimensions that are whole have 3, 4 or 5.
    """
    program = request.program
    batches = [dim.name for dim in unfused.dims if dim.name in choose.batch_dimensions(unfused) - unfused.whole]
    loops = [dim.name for dim in unfused.dims if dim.name not in {*unfused.whole, *batches}]
    sizes = with_equals(program, request.dims)
    tiles: dict[str, int] = {}
    for position, dim in enumerate(dim.name for dim in unfused.dims):
        small = 3 + position % 3
        if dim not in unfused.whole:
            usual = 1 if dim in batches else 2 + position % 2
            tiles[dim] = request.tiles.get(dim) or (sizes[dim] // 3 + 1 if dim in sizes else usual)
            small = 3 * tiles[dim] - 1 if dim in loops[-2:] else 2 * tiles[dim] - (dim not in batches[:1])
        sizes = with_equals(program, {dim: small, **sizes})
    return {dim.name: sizes[dim.name] for dim in program.dims}, tiles


def check_size(program: Program, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> None:
    """LimitError if interpreting a program would take long."""
    operations, blocks = work(program, sizes, tiles)[0], iterations(program.body, sizes, tiles)
    if operations > MOST_OPERATIONS or blocks > MOST_BLOCKS:
        message = f"{operations:,} operations in {blocks:,} blocks are too many to verify step by step"
        hint = f"at most {MOST_OPERATIONS:,} in {MOST_BLOCKS:,}: give smaller sizes with --dim, or none"
        raise LimitError((Problem("E0906", message, None, hint),))


# Data and oracles


def settle(program: ArrayProgram, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> Setting:
    """The data of both algebraic oracles, and the meaning of the program on it."""
    signed = random_arrays(program, sizes, 0)
    positive = dict(signed)
    for argument in program.inputs:
        if dtypes.is_float(argument.dtype):
            signed[argument.name] = 0.5 * signed[argument.name].astype(np.float64)
            positive[argument.name] = 0.2 + np.abs(signed[argument.name])  # roots and logarithms exist
    exact = signed, meaning.evaluate(program, signed)
    if not all(np.isfinite(array).all() for array in exact[1].values()):
        exact = positive, meaning.evaluate(program, positive)
    residues = field_meaning.random_inputs(program, sizes, 0)
    return Setting(program, sizes, tiles, exact, (residues, field_meaning.evaluate(program, residues, sizes)))


def difference(outputs: Arrays, expected: Arrays) -> float | None:
    """The largest relative difference of elements that are finite numbers in both; None if there are none."""
    found = []
    for name, reference in expected.items():
        finite = np.isfinite(reference) & np.isfinite(outputs[name])
        if finite.any():
            scale = float(np.max(np.abs(reference[finite]))) + ABSOLUTE / RELATIVE
            error = np.abs(outputs[name][finite].astype(np.float64) - reference[finite].astype(np.float64))
            found.append(float(np.max(error)) / scale)
    return max(found, default=None)


def in_float64(setting: Setting, program: Program) -> tuple[float | None, Run]:
    """How far a program is from the meaning in float64, and one run of it."""
    arrays, expected = setting.exact
    run = interpret(program, arrays, setting.sizes, setting.tiles)
    return difference(run.outputs, expected), run


# Steps


def checked_steps(setting: Setting, unfused: Program, derivation: Derivation, say: Say) -> Iterator[CheckedStep]:
    """Every program of a derivation: the lowered one, its normal form, and the result of every rule."""
    yield checked_step(setting, "-", "lower", "-", (), None, unfused)
    yield checked_step(setting, "-", "normal form", "-", (), None, derivation.unfused)
    counts: dict[int, int] = {}
    for position, step in enumerate(derivation.steps, 1):
        say(f"step {position} of {len(derivation.steps)}")
        counts[step.snapshot] = counts.get(step.snapshot, 0) + 1
        number = f"{step.snapshot}.{counts[step.snapshot]}"
        yield checked_step(setting, number, step.rule, step.paper, step.at, step.span, step.after)


def checked_step(
    setting: Setting, number: str, rule: str, paper: str, at: tuple[str, ...], span: Span | None, program: Program
) -> CheckedStep:
    """What verifier and oracles say of one program."""
    try:
        verify(program)
    except VerifyError as error:
        return CheckedStep(number, rule, paper, at, span, None, Verdict(0, 0, 0), " ".join(str(error).split()))
    found, _ = in_float64(setting, program)
    agreement = field_meaning.judge(program, setting.field[0], setting.sizes, setting.tiles, setting.field[1])
    return CheckedStep(number, rule, paper, at, span, found, agreement, "")


# Snapshots


def checked_snapshots(setting: Setting, derivation: Derivation, say: Say) -> Iterator[CheckedSnapshot]:
    """Every snapshot as it would be emitted."""
    programs = choose.ready(derivation)
    _, costs = choose.price(programs, setting.sizes, setting.tiles)
    data = tuple(draws(setting, say))
    for index, (program, cost) in enumerate(zip(programs, costs, strict=True)):
        say(f"snapshot {index + 1} of {len(programs)}")
        plan = choose.peel(Plan(program, index, setting.tiles, setting.sizes, costs))
        found, run = in_float64(setting, plan.program)
        figures = cost_for(cost, program, setting.sizes, setting.tiles, setting.exact[0])
        mismatch, moved = compared_traffic(run, figures)
        numbers = tuple(checked_numbers(setting.program, plan, data))
        yield CheckedSnapshot(index, cost.kernels, found, moved, mismatch, numbers)


def compared_traffic(run: Run, cost: Cost) -> tuple[str, dict[str, tuple[int, int]]]:
    """The first value whose predicted bytes are not those counted, in words, and the totals of both."""
    moved = {}
    problem = ""
    for direction, counter in (("load", run.loads), ("store", run.stores)):
        predicted = {name: count for (name, way), count in cost.traffic.items() if way == direction}
        moved[direction] = (sum(predicted.values()), counter.total())
        for name in sorted(predicted.keys() | counter.keys()):
            if not problem and predicted.get(name, 0) != counter[name]:
                problem = f"{direction}s of `{name}` are {counter[name]:,} bytes, predicted {predicted.get(name, 0):,}"
    return problem, moved


def draws(setting: Setting, say: Say) -> Iterator[tuple[str, list[Draw]]]:
    """Every family of data, by name: inputs, what the outputs should be, and what the unfused program makes of them."""
    program = setting.program
    for family in families.families(program):
        say(f"data with {family.name}")
        arrays = [families.draw(program, setting.sizes, family, seed) for seed in range(DRAWS)]
        with np.errstate(all="ignore"):
            yield family.name, [(one, meaning.evaluate(program, one), meaning.baseline(program, one)) for one in arrays]


def checked_numbers(program: ArrayProgram, plan: Plan, data: Families) -> Iterator[CheckedNumbers]:
    """The kernel on every family of data, in the precision of the target: the output closest to its bound."""
    launch = loader.load(driver.emit(plan, program))
    hides = any(isinstance(node, Map) and node.where is not None for node in walk(plan.program.body))
    for family, drawn in data:
        with np.errstate(all="ignore"):
            found = [(launch(arrays, 1), exact, unfused) for arrays, exact, unfused in drawn]
        rows = []
        for result in program.outputs:
            pooled = [
                np.concatenate([one[result.argument.name].ravel() for one in part]) for part in zip(*found, strict=True)
            ]
            output, exact, unfused = pooled
            computed = computed_dtype(program, result)
            rows.append(checked_output(family, result, computed, output, exact, unfused, hides))
        yield max(rows, key=closeness)


def checked_output(
    family: str, result: Result, computed: str, output: Array, exact: Array, unfused: Array, hides: bool = False
) -> CheckedNumbers:
    """How far an output of all draws is off, by the error rule of the unfused program."""
    found = compare_where_asked(output, exact, unfused, result.argument.dtype, computed, DRAWS, hides)
    return CheckedNumbers(family, result.argument.name, found.max_abs_error, found.bound, found.ok)


def closeness(row: CheckedNumbers) -> tuple[bool, float]:
    """How close to failing: failed ones last, then by the share of the bound that the error takes."""
    return not row.ok, row.error / row.bound if row.bound else row.error
