"""Every rewrite means the same: all intermediate programs of random programs and of the examples, in float64.

The normal run looks at 1,000 random programs; `campaign.py` is the command for more.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from campaign import Outcome, as_file, examine, failure, from_file, joined, main, run_in_parallel
from occurrences import ONLY_IN_DATA, Seen, missing
from oracle import (
    NORMAL_RUN,
    Case,
    compose_steps,
    derive,
    example,
    example_names,
    fused,
    inputs,
    lowered,
    mismatch,
    random_case,
    random_derivation,
)
from rule_data import refusals_in_data
from selection import in_turn

from blockc.language import parse
from blockc.meaning import evaluate
from blockc.passes.choose import safe
from blockc.passes.fuse import Budget, fuse
from blockc.passes.rules import ALL_RULES

SEEDS = sorted({*range(1000), *NORMAL_RUN})
LEAST = 5  # times that everything has to occur in them


@cache
def thousand() -> Outcome:
    """The outcome of all random programs of the normal run."""
    return joined(run_in_parallel(SEEDS, os.cpu_count() or 1))


def test_random_programs_keep_their_meaning() -> None:
    outcome = thousand()
    assert not outcome.failures, "\n\n".join(outcome.failures.values())
    assert outcome.seen.programs == len(SEEDS)


def test_every_rule_and_refusal_occurs() -> None:
    """And every operator, type and shape that the quotas name."""
    assert missing(thousand().seen, LEAST) == []
    reasons = {(rule.name, reason) for rule in ALL_RULES for reason in rule.reasons}
    assert ONLY_IN_DATA.keys() <= refusals_in_data() <= reasons
    assert not ONLY_IN_DATA.keys() & set(thousand().seen.refusals), "random programs show these too"


def test_what_is_missing_is_named() -> None:
    names = missing(Seen(), 1)
    assert "rule extend_map: 0 times" in names and "operator erf: 0 times" in names
    assert "extend_map refused for nests_dimension: never" in names and "a short last block: 0 times" in names


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
    return Case(source, dims, {dim: tiles[dim] for dim in dims}, frozenset(whole.split()).intersection(dims))


WHOLE = ("", "d e", "b h d e", "d k z")  # of the dimensions that an example has


@pytest.mark.parametrize(("name", "whole", "tiles"), in_turn(example_names(), WHOLE, range(3), of=4))
def test_examples_keep_their_meaning(name: str, whole: str, tiles: int) -> None:
    source = example(name).replace("d=64", "d=6").replace("e=128", "e=10")
    case = example_case(source, EXAMPLE_TILES[tiles], whole)
    problem = failure(case, fused(lowered(case)))
    assert not problem, as_file(case)


@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_composition_keeps_the_meaning_at_every_step(seed: int) -> None:
    case = random_case(seed)
    arrays = inputs(case)
    reference = evaluate(case.program, arrays)
    for rule, program in compose_steps(safe(random_derivation(seed).snapshots[-1])):
        assert not mismatch(program, case, arrays, reference), (rule, case.reproduction())


PLANTED = "program p(X: f32[m, n]) -> O: f32[m] {\n    T = tanh(X) + X\n    O = sum[n](exp(T) * X)\n}\n"


def test_a_wrong_program_is_found_and_made_small(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(PLANTED, {"m": 3, "n": 4}, {"m": 2, "n": 3}, frozenset(), 17)
    monkeypatch.setattr("campaign.evaluate", lambda *_: {"O": np.zeros(3)})
    problem = failure(case)
    assert problem.startswith("AssertionError: lowered: output O: ")
    text = as_file(case)
    assert "\n    T = " not in text and "--file seed-17.blk" in text and "--start 17 --count 1" in text
    small = from_file(text)
    assert small.seed == 17 and small.sizes["m"] == 3 and len(small.source) < len(PLANTED)
    file = tmp_path / "seed-17.blk"
    file.write_text(text)
    assert main(["--file", str(file)]) == 1
    assert "lowered: output O: " in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["--file", str(file)]) == 0


def test_a_derivation_that_does_not_end_is_a_failure() -> None:
    case = random_case(0)
    derivation = fuse(derive(case).unfused, Budget(steps=3))
    assert examine(case, derivation)[0] == "FuseError: 3 steps were taken"


def test_a_campaign_reports_what_it_found(tmp_path: Path) -> None:
    report = tmp_path / "report.txt"
    assert main(["--start", "3", "--count", "2", "--report", str(report)]) == 0
    text = report.read_text()
    assert "mismatches  0\n" in text and "--start 3 --count 2" in text and f"NumPy {np.__version__}" in text
    assert all(rule.name in text for rule in ALL_RULES)


def test_failures_of_a_campaign_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("campaign.run_in_parallel", lambda seeds, jobs: [Outcome(Seen(), {seeds[0]: "# a failure"})])
    assert main(["--start", "3", "--count", "1", "--failures", str(tmp_path / "found")]) == 1
    assert (tmp_path / "found" / "seed-3.blk").read_text() == "# a failure"
