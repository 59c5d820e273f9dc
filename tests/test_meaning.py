"""Every rewrite means the same: all intermediate programs of random programs and of the examples, in float64.

The normal run looks at 150 random programs. A longer campaign is a command, with counts of rules and refusals:

    python tests/test_meaning.py --start 0 --count 20000
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from minimiser import minimise
from oracle import (
    NORMAL_RUN,
    Case,
    check,
    compose_steps,
    derive,
    example,
    example_names,
    inputs,
    mismatch,
    random_case,
    random_derivation,
)
from rule_data import refusals_in_data

from blockc.ir.decisions import Derivation, Refusal
from blockc.ir.verify import VerifyError
from blockc.language import parse
from blockc.meaning import evaluate
from blockc.passes.fuse import FuseError
from blockc.passes.rules import ALL_RULES, EMISSION_RULES
from blockc.passes.split import split
from blockc.passes.stabilize import stabilize

# Whatever a fault of ours may raise.
FINDINGS = (AssertionError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, FuseError, VerifyError)


def examine(case: Case, derivation: Derivation | None = None) -> tuple[str, Derivation | None]:
    """What goes wrong with a case, or "", and its derivation unless that is what goes wrong."""
    try:
        derivation = derivation or derive(case)
        check(case, derivation)
    except FINDINGS as error:
        return f"{type(error).__name__}: {error}", derivation
    return "", derivation


def failure(case: Case, derivation: Derivation | None = None) -> str:
    """What goes wrong with a case, or ""."""
    return examine(case, derivation)[0]


def minimised(case: Case) -> Case:
    """A smaller case that fails in the same way, at the same sizes and tiles."""
    kind = failure(case).split(":")[0]

    def smaller(source: str) -> Case:
        program = parse(source)
        dims = {dim.name for dim in program.dims}
        sizes = {dim: size for dim, size in case.sizes.items() if dim in dims}
        tiles = {dim: tile for dim, tile in case.tiles.items() if dim in dims}
        return replace(case, source=source, sizes=sizes, tiles=tiles, whole=case.whole & dims)

    return smaller(minimise(case.source, lambda source: failure(smaller(source)).split(":")[0] == kind))


def report(case: Case, problem: str) -> str:
    """A failure with its seed and a small reproduction that is ready to run from the folder of the tests."""
    return f"seed {case.seed}: {problem}\n\n{minimised(case).reproduction()}"


@pytest.mark.parametrize("start", range(0, len(NORMAL_RUN), 10))
def test_random_programs_keep_their_meaning(start: int) -> None:
    for seed in NORMAL_RUN[start : start + 10]:
        case = random_case(seed)
        problem = failure(case, random_derivation(seed))
        assert not problem, report(case, problem)


def occurrences(derivations: list[Derivation]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """How often each rule was applied and each refusal stood."""
    rules: Counter[str] = Counter()
    refusals: Counter[tuple[str, str]] = Counter()
    for derivation in derivations:
        divided = split(derivation, {dim.name for dim in derivation.unfused.dims})
        rules.update(step.rule for step in divided.steps)
        refusals.update((refusal.rule, refusal.reason) for refusal in divided.refusals)
        for snapshot in derivation.snapshots:
            stable = stabilize(snapshot)
            rules.update(rule for rule, _ in compose_steps(stable))
            found = [(rule.name, place) for rule in EMISSION_RULES for place in rule.match(stable, None)]
            refusals.update((rule, place.reason) for rule, place in found if isinstance(place, Refusal))
    return rules, refusals


def test_every_rule_and_refusal_occurs() -> None:
    rules, refusals = occurrences([random_derivation(seed) for seed in NORMAL_RUN])
    assert {rule.name for rule in ALL_RULES} == set(rules), "a rule never occurred in random programs"
    possible = {(rule.name, reason) for rule in ALL_RULES for reason in rule.reasons}
    assert possible == set(refusals) | refusals_in_data(), "a refusal reason never occurred"


# Sizes leave the last block short; a tile is an element count.
EXAMPLE_SIZES = {"b": 2, "h": 1, "m": 3, "n": 5, "d": 3, "e": 4, "k": 5, "z": 4, "v": 5, "kv": 1, "g": 2}
EXAMPLE_TILES = (
    {"m": 2, "n": 3, "d": 2, "e": 3, "k": 4, "z": 2, "v": 3, "g": 2, "b": 1, "h": 1, "kv": 1},
    {"m": 5, "n": 2, "d": 1, "e": 4, "k": 1, "z": 5, "v": 2, "g": 1, "b": 2, "h": 1, "kv": 2},
    {"m": 1, "n": 7, "d": 3, "e": 1, "k": 6, "z": 3, "v": 7, "g": 3, "b": 1, "h": 2, "kv": 1},
)


def example_case(source: str, tiles: dict[str, int], whole: str) -> Case:
    program = parse(source)
    dims = {dim.name: dim.size or EXAMPLE_SIZES[dim.name] for dim in program.dims}
    return Case(source, dims, {dim: tiles[dim] for dim in dims}, frozenset(whole.split()) & dims.keys())


@pytest.mark.parametrize("whole", ["", "d e", "b h d e", "d k z"])
@pytest.mark.parametrize("name", example_names())
def test_examples_keep_their_meaning(name: str, whole: str) -> None:
    source = example(name).replace("d=64", "d=6").replace("e=128", "e=10")
    derivation = derive(example_case(source, EXAMPLE_TILES[0], whole))
    for tiles in EXAMPLE_TILES:
        case = example_case(source, tiles, whole)
        problem = failure(case, derivation)
        assert not problem, report(case, problem)


@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_composition_keeps_the_meaning_at_every_step(seed: int) -> None:
    case = random_case(seed)
    arrays = inputs(case)
    reference = evaluate(case.program, arrays)
    for rule, program in compose_steps(stabilize(random_derivation(seed).snapshots[-1])):
        assert not mismatch(program, case, arrays, reference), (rule, case.reproduction())


def test_a_wrong_program_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "program p(X: f32[m, n]) -> O: f32[m] {\n    T = tanh(X) + X\n    O = sum[n](exp(T) * X)\n}\n"
    case = Case(source, {"m": 3, "n": 4}, {"m": 2, "n": 3}, frozenset())
    monkeypatch.setattr("oracle.evaluate", lambda *_: {"O": np.zeros(3)})
    problem = failure(case)
    assert problem.startswith("AssertionError: lowered: output O: ")
    text = report(case, problem)
    assert "seed 0: " in text and text.count("\n    T = ") == 0 and "check(Case(" in text


def campaign(start: int, count: int) -> int:
    """Checks a range of seeds, prints what occurred, and returns the number of failures."""
    rules: Counter[str] = Counter()
    refusals: Counter[tuple[str, str]] = Counter()
    failures = 0
    for seed in range(start, start + count):
        case = random_case(seed)
        problem, derivation = examine(case)
        if problem:
            failures += 1
            print(f"\n{report(case, problem)}", flush=True)
        if derivation is not None and not problem:
            seen = occurrences([derivation])
            rules.update(seen[0])
            refusals.update(seen[1])
        if sys.stderr.isatty():
            print(f"\r{seed - start + 1} of {count} programs, {failures} failures", end="", file=sys.stderr, flush=True)
    print(f"\n{count} programs from seed {start}: {failures} failures")
    for rule in ALL_RULES:
        print(f"{rules[rule.name]:8} {rule.name}")
        for reason in rule.reasons:
            print(f"{refusals[rule.name, reason]:8}   refused: {reason}")
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="check the meaning of random programs")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    options = parser.parse_args()
    sys.exit(1 if campaign(options.start, options.count) else 0)
