"""The rewrite rules one by one: their examples, their refusals, what each condition guards, what each promises."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from oracle import NORMAL_RUN, difference, random_derivation
from rule_data import Example, canonical, complete, files, from_docstring, random_inputs, small_shapes

from blockc.ir.block import Program
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.ir.interpret import interpret
from blockc.ir.verify import VerifyError, verify
from blockc.passes.cost import movements, work
from blockc.passes.measure import decreases
from blockc.passes.normalise import normalise, prune
from blockc.passes.rules import ALL_RULES, EMISSION_RULES, RULES

BY_NAME = {rule.name: rule for rule in ALL_RULES}

# What an example in a docstring leaves out: types from outside, the loop around, where a statistic comes from.
AROUND_DOCSTRING = {
    "fuse_map_with_reduce": "",
    "fuse_consecutive_maps": "",
    "fuse_sibling_maps": "",
    "distribute_reduction": "given r: local f32(m)\n",
    "swap_scale_and_contraction": "around n\ngiven s: local f32(m, n)\ngiven r: local f32(m)\ngiven v: local f32(n, d)\n",
    "split_exponential": "dims n m\n",
    "rematerialise": "given r: local f32(m)\ndims e n m\n",
    "extend_map": "around b\ndims b e n m\n",
    "fuse_elementwise": "around m\ngiven s: local f32(m, n)\ngiven t: local f32(m)\n",
}

STATISTIC = """map n {
  p: local f32(m, n) <- S
  q: local f32(m) = max[n](p)
  => c: local f32(m) = max(q)
}
"""


def docstring_example(rule: Rule) -> Example:
    module = importlib.import_module(f"blockc.passes.rules.{rule.name}")
    return from_docstring(module.__doc__ or "", AROUND_DOCSTRING[rule.name], STATISTIC if rule.name == "split_exponential" else "")


POSITIVE = [
    (rule, example)
    for rule in ALL_RULES
    for example in (docstring_example(rule), *files(rule.name))
    if not example.refusal
]
NEGATIVE = [(rule, example) for rule in ALL_RULES for example in files(rule.name) if example.refusal]


def name_of(value: object) -> str:
    return getattr(value, "name", "")


def places(rule: Rule, program: Program) -> tuple[list[Match], list[Refusal]]:
    found = list(rule.match(program, None))
    return [f for f in found if isinstance(f, Match)], [f for f in found if isinstance(f, Refusal)]


def applied(rule: Rule, program: Program) -> Program:
    """The program after the rule was applied once; to the end, for rules of emission."""
    program = rule.rewrite(program, places(rule, program)[0][0])
    return prune(program) if rule in EMISSION_RULES else normalise(program)


def outputs(program: Program, sizes: dict[str, int], tiles: dict[str, int]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return interpret(program, random_inputs(program, sizes, 1), sizes, tiles).outputs


def same_meaning(first: Program, second: Program) -> str:
    """Where two programs differ over all small shapes, or ""."""
    for sizes, tiles in small_shapes(first):
        got, expected = outputs(second, sizes, tiles), outputs(first, sizes, tiles)
        for name in expected:
            if problem := difference(got[name], expected[name]):
                return f"{name} at {sizes}: {problem}"
    return ""


@pytest.mark.parametrize(("rule", "example"), POSITIVE, ids=name_of)
def test_rewrite_gives_what_the_example_says(rule: Rule, example: Example) -> None:
    before, after = complete(example.before, example.after)
    verify(before)
    verify(after)
    result = applied(rule, before)
    verify(result)
    expected = after if rule in EMISSION_RULES else normalise(after)
    assert canonical(result) == canonical(expected)


@pytest.mark.parametrize(("rule", "example"), POSITIVE, ids=name_of)
def test_rewrite_keeps_the_meaning_at_all_small_shapes(rule: Rule, example: Example) -> None:
    before, after = complete(example.before, example.after)
    assert same_meaning(before, applied(rule, before)) == ""
    assert same_meaning(before, after) == ""


@pytest.mark.parametrize(("rule", "example"), POSITIVE, ids=name_of)
def test_rewrite_decreases_the_measure(rule: Rule, example: Example) -> None:
    before, _ = complete(example.before, example.after)
    if rule in RULES:
        assert decreases(normalise(before), applied(rule, normalise(before)))


@pytest.mark.parametrize(("rule", "example"), NEGATIVE, ids=name_of)
def test_refusal_has_its_reason(rule: Rule, example: Example) -> None:
    program, _ = complete(example.before, "")
    verify(program)
    matches, refusals = places(rule, program)
    assert not matches
    assert example.refusal in {refusal.reason for refusal in refusals}
    for refusal in refusals:
        assert refusal.reason in rule.reasons and "`" in refusal.why


@pytest.mark.parametrize("rule", ALL_RULES, ids=name_of)
def test_every_reason_has_an_example(rule: Rule) -> None:
    assert {example.refusal for example in files(rule.name) if example.refusal} == set(rule.reasons)
    assert sum(not example.refusal for example in files(rule.name)) >= 2
