"""Every rewrite means the same in the prime field: rules on all small shapes, and all steps of whole derivations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from oracle import (
    NORMAL_RUN,
    Case,
    derive,
    example,
    example_names,
    fused,
    lowered,
    random_case,
    random_derivation,
)
from rule_data import Example, complete, some_shapes, with_chunks
from selection import in_turn
from test_meaning import EXAMPLE_TILES, example_case
from test_rules import POSITIVE, applied, name_of

from blockc.field_meaning import evaluate, judge, random_inputs
from blockc.ir.block import Program
from blockc.ir.decisions import Derivation, Rule
from blockc.ir.interpret import interpret
from blockc.ir.prime_field import FIELD
from blockc.ir.residues import Verdict, random_numbers
from blockc.ir.sharing import Shared
from blockc.language import parse
from blockc.passes.normalise import normalise

MOST_SHAPES = 32  # of one example: all of them with up to two dimensions that are cut


def agreements(first: Program, others: Sequence[Program]) -> list[Verdict]:
    """How block programs with the same inputs each agree with the first in the field, over small shapes."""
    found = [Verdict(0, 0, 0) for _ in others]
    for number, (sizes, tiles) in enumerate(some_shapes(first, MOST_SHAPES)):
        arrays = {
            argument.name: random_numbers(
                tuple(sizes[dim] for dim in argument.dims), np.random.default_rng([number, position])
            )
            for position, argument in enumerate(first.arguments)
        }
        shared = defaultdict[object, Shared](Shared)
        known = with_chunks(first, tiles)
        expected = interpret(first, arrays, sizes, known, arithmetic=FIELD, shared=shared[first.dims]).outputs
        for at, other in enumerate(others):
            found[at] += judge(other, arrays, sizes, with_chunks(other, tiles), expected, shared[other.dims])
    return found


@pytest.mark.parametrize(("rule", "example"), POSITIVE, ids=name_of)
def test_rule_keeps_the_meaning_at_all_small_shapes(rule: Rule, example: Example) -> None:
    before, after = complete(example.before, example.after)
    for found in agreements(before, (applied(rule, before), after, normalise(before))):
        assert found.equal > 0 and found.different == 0, found


def steps(case: Case, derivation: Derivation) -> Iterator[tuple[str, Program]]:
    """Every program before `stabilize`."""
    yield "lowered", lowered(case)
    yield "in normal form", derivation.unfused
    for number, step in enumerate(derivation.steps):
        yield f"step {number}: {step.rule} at {', '.join(step.at)}", step.after


def checked(case: Case, derivation: Derivation) -> Verdict:
    """How the last program of a derivation agrees with the text; AssertionError if one on the way differs."""
    arrays = random_inputs(case.program, case.sizes, case.seed)
    expected = evaluate(case.program, arrays, case.sizes)
    found, shared = Verdict(0, 0, 0), Shared()
    for stage, program in steps(case, derivation):
        found = judge(program, arrays, case.sizes, case.tiles, expected, shared)
        assert found.different == 0, f"{stage}: {found}\n{case.reproduction()}"
    return found


RANDOM = NORMAL_RUN[::2]


def test_random_programs_keep_their_meaning() -> None:
    found = [checked(random_case(seed), random_derivation(seed)) for seed in RANDOM]
    outside = [seed for seed, verdict in zip(RANDOM, found, strict=True) if verdict.is_outside]
    assert len(outside) <= len(RANDOM) / 8, f"most programs should be inside the field's fragment, not {outside}"


# P * log(P): one factor knows its residue mod p only, the other the one mod q only.
OUTSIDE = {"attention_entropy"}


@pytest.mark.parametrize(("name", "whole"), in_turn(example_names(), ["", "d e"], of=2))
def test_examples_keep_their_meaning(name: str, whole: str) -> None:
    source = example(name).replace("d=64", "d=6").replace("e=128", "e=10")
    case = example_case(source, EXAMPLE_TILES[0], whole)
    assert checked(case, fused(lowered(case))).is_outside == (name in OUTSIDE)


def test_a_wrong_program_is_found() -> None:
    case = Case(
        "program p(X: f32[m, n]) -> O: f32[m, n] {\n    O = X * rsqrt(mean[n](X * X) + 1e-6)\n}\n",
        {"m": 3, "n": 5}, {"m": 2, "n": 2}, frozenset(),
    )  # fmt: skip
    wrong = parse(case.source.replace("1e-6", "1e-12"))
    arrays = random_inputs(case.program, case.sizes, 0)
    expected = evaluate(wrong, arrays, case.sizes)
    found = judge(derive(case).snapshots[-1], arrays, case.sizes, case.tiles, expected)
    assert found.different > 0 and found.equal == 0
