"""The algebraic oracle: every program on the way from text to kernel means what the text means, in float64.

A `Case` is a source text with sizes, tiles and whole dimensions. `derive` lowers and fuses it, `programs` lists every
program that came up, and `mismatch` runs one through the interpreter and compares it with the reference.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from generator import random_program, random_sizes, random_tiles
from numpy.typing import NDArray

from blockc.data import random_arrays
from blockc.ir.array_program import ArrayProgram
from blockc.ir.block import Program
from blockc.ir.decisions import Derivation, Match
from blockc.ir.interpret import interpret
from blockc.ir.sharing import Shared, once
from blockc.language import parse
from blockc.meaning import evaluate
from blockc.passes.bound_loops import bound_loops
from blockc.passes.choose import compose, in_rounds, safe
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower, whole_dimensions
from blockc.passes.rules import EMISSION_RULES, peel_first_iteration

Arrays = Mapping[str, NDArray[Any]]

RELATIVE = 1e-10  # of the largest magnitude of an output
ABSOLUTE = 1e-13  # for outputs that are zero but for rounding
EXAMPLES = Path(__file__).parent.parent / "examples"
# The seeds of random programs that most files of the normal run look at; `test_meaning.py` looks at many more. In three
# of the others kernels are joined. The last ones failed once; some of them extend maps, which few programs do, two move
# maps out after contractions have changed places, and two split a root after an exponential.
NORMAL_RUN = (*range(24), 94, 97, 131, 478, 535, 726, 1617, 1642, 5505, 9682, 16290)


@dataclass(frozen=True)
class Case:
    """A program with everything that decides what becomes of it. Tiles are in elements."""

    source: str
    sizes: dict[str, int]
    tiles: dict[str, int]
    whole: frozenset[str]
    seed: int = 0

    @property
    def program(self) -> ArrayProgram:
        """The array program of the text."""
        return parsed(self.source)

    def reproduction(self) -> str:
        """Python code that checks this case again."""
        whole = f"frozenset({sorted(self.whole)})"
        return (
            "from oracle import Case, check\n"
            f'check(Case("""{self.source}""",\n    {self.sizes},\n    {self.tiles},\n    {whole}, {self.seed}))\n'
        )


@lru_cache(maxsize=8)
def parsed(source: str) -> ArrayProgram:
    """The array program of a text."""
    return parse(source)


def random_case(seed: int) -> Case:
    """A random program with ragged sizes and tiles: a third of them all cut, a third cut as the driver would, and a
    third with an arbitrary set of whole dimensions."""
    source = random_program(seed)
    program = parsed(source)
    sizes = random_sizes(seed, program)
    tiles = random_tiles(seed, sizes)
    choice = random.Random(f"whole {seed}")
    some = {dim for dim in sorted(sizes) if choice.random() < 0.3}
    match choice.randrange(3):
        case 0:
            whole = frozenset[str]()
        case 1:
            asked: dict[str, int | None] = {dim: None if dim in some else tile for dim, tile in tiles.items()}
            whole = whole_dimensions(program, sizes, asked)
        case _:
            whole = frozenset(some)
    return Case(source, sizes, tiles, whole, seed)


def example(name: str) -> str:
    """The text of an example, of its first program."""
    text = (EXAMPLES / f"{name}.blk").read_text()
    start = text.find("\nprogram ", text.find("\nprogram ") + 1)
    return text if start < 0 else text[:start]


def example_names() -> list[str]:
    """The names of all examples."""
    return sorted(path.stem for path in EXAMPLES.glob("*.blk"))


def lowered(case: Case) -> Program:
    """The unfused block program."""
    return lower(case.program, case.whole)


def derive(case: Case) -> Derivation:
    """The derivation of a case."""
    return fuse(lowered(case))


@cache
def fused(unfused: Program) -> Derivation:
    """The derivation of a program that several tests look at, computed once for all of them."""
    return fuse(unfused)


@cache
def random_derivation(seed: int) -> Derivation:
    """The derivation of a random program, computed once for all tests."""
    return derive(random_case(seed))


def final_programs(derivation: Derivation) -> Iterator[tuple[str, Program]]:
    """The programs that may be emitted: unfused and snapshots, each as it is, stabilized, composed, bounded, and with
    the first iterations of all loops ahead of them."""
    for number, program in enumerate((derivation.unfused, *derivation.snapshots)):
        stage = "unfused" if number == 0 else f"snapshot {number - 1}"
        stable = safe(program)
        composed = compose(stable)
        yield from ((stage, program), (f"{stage}, stable", stable), (f"{stage}, composed", composed))
        bounded = bound_loops(composed)
        if bounded is not composed:
            yield f"{stage}, bounded", bounded
        peeled = peel_all(bounded)
        if peeled is not bounded:
            yield f"{stage}, peeled", peeled


def peel_all(program: Program) -> Program:
    """The program with the first iteration of every loop that allows it ahead of the loop."""
    rule = peel_first_iteration.RULE
    for found in list(rule.match(program, None)):
        program = rule.rewrite(program, found) if isinstance(found, Match) else program
    return program


def programs(case: Case, derivation: Derivation) -> Iterator[tuple[str, Program]]:
    """Every program on the way, with what made it."""
    yield "lowered", lowered(case)
    for number, step in enumerate(derivation.steps):
        step.after.recall(step.before)
        yield f"step {number}: {step.rule} at {', '.join(step.at)}", step.after
        step.before.forget()
    yield from final_programs(derivation)


def inputs(case: Case) -> dict[str, NDArray[Any]]:
    """Random arrays for a case."""
    return random_arrays(case.program, case.sizes, case.seed)


def mismatch(program: Program, case: Case, arrays: Arrays, reference: Arrays, shared: Shared | None = None) -> str:
    """What the interpreter finds different from the reference, or ""."""
    outputs = interpret(program, arrays, case.sizes, case.tiles, shared=shared).outputs
    compare = once if shared is None else shared.once
    return compare("difference", (*outputs.values(), *reference.values()), wrong_outputs, outputs, reference)


def wrong_outputs(outputs: Arrays, reference: Arrays) -> str:
    """What is different from the reference, or ""."""
    for name, expected in reference.items():
        problem = difference(outputs[name], expected)
        if problem:
            return f"output {name}: {problem}"
    return ""


def difference(got: NDArray[Any], expected: NDArray[Any], relative: float = RELATIVE) -> str:
    """Where two arrays differ by more than the tolerance, or in what is not finite, in words; or ""."""
    if got.shape != expected.shape:
        return f"shape {got.shape}, not {expected.shape}"
    a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    scale = np.max(np.abs(b[np.isfinite(b)]), initial=0)
    with np.errstate(invalid="ignore"):
        same = (np.abs(a - b) <= relative * scale + ABSOLUTE) | (a == b) | (np.isnan(a) & np.isnan(b))
    if np.all(same):
        return ""
    at = tuple(int(index) for index in np.argwhere(~same)[0])
    return f"{a[at]!r} at {at}, not {b[at]!r} ({np.sum(~same)} of {same.size} differ)"


def check(case: Case, derivation: Derivation | None = None) -> Derivation:
    """Raises AssertionError, with a reproduction, if a program on the way means something else than the text."""
    derivation = derivation or derive(case)
    arrays = inputs(case)
    reference = evaluate(case.program, arrays)
    shared = Shared()
    for stage, program in programs(case, derivation):
        problem = mismatch(program, case, arrays, reference, shared)
        if problem:
            raise AssertionError(f"{stage}: {problem}")
    return derivation


def compose_steps(program: Program) -> Iterator[tuple[str, Program]]:
    """Every program on the way to the composed one, with the rule that made it."""
    for rule in EMISSION_RULES:
        for composed in in_rounds(rule, program):
            yield rule.name, composed
            program = composed
