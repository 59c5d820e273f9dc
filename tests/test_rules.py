"""The rewrite rules one by one: their examples, their refusals, what each condition guards, what each promises."""

from __future__ import annotations

import importlib
from collections import defaultdict
from functools import lru_cache

import pytest
from oracle import NORMAL_RUN, difference, random_derivation
from rule_data import (
    Example,
    canonical,
    complete,
    files,
    from_docstring,
    random_inputs,
    small_shapes,
    some_shapes,
    with_chunks,
)

from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import Program
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.ir.interpret import interpret
from blockc.ir.sharing import Shared
from blockc.ir.verify import verify
from blockc.passes.cost import Movement, movements, traffic, work
from blockc.passes.measure import decreases
from blockc.passes.normalise import normalise
from blockc.passes.prune import prune
from blockc.passes.rules import ALL_RULES, EMISSION_RULES, RULES

BY_NAME = {rule.name: rule for rule in ALL_RULES}

# What an example in a docstring leaves out: types from outside, the loop around, where a statistic comes from.
AROUND_DOCSTRING = {
    "fuse_map_with_reduce": "",
    "fuse_consecutive_maps": "",
    "fuse_sibling_maps": "",
    "distribute_reduction": "given r: local f32(m)\n",
    "swap_scale_and_contraction": "around n\n"
    "given s: local f32(m, n)\n"
    "given r: local f32(m)\n"
    "given v: local f32(n, d)\n",
    "swap_shift_and_contraction": "dims m n e\n",
    "split_exponential": "dims n m\n",
    "split_product": "dims n m\n",
    "rematerialise": "given r: local f32(m)\ndims e n m\n",
    "extend_map": "around b\ndims b e n m\n",
    "interchange_maps": "around b\ndims b e n m\n",
    "reassociate_contraction": "around n\n"
    "given q: local f32(m, d)\n"
    "given k: local f32(n, d)\n"
    "given v: local f32(n, e)\n",
    "hoist_map": "dims m n d\n",
    "split_reduction": "chunks n\ndims m n d\n",
    "peel_first_iteration": "",
    "fuse_elementwise": "around m\ngiven s: local f32(m, n)\ngiven t: local f32(m)\n",
}

STATISTICS = {
    "split_exponential": """map n {
  p: local f32(m, n) <- S
  q: local f32(m) = max[n](p)
  => c: local f32(m) = max(q)
}
""",
    "split_product": """map n {
  p: local f32(m, n) <- S
  q: local f32(m) = contract[n](p, p)
  => c: local f32(m) = add(q)
}
""",
}


def docstring_example(rule: Rule) -> Example:
    module = importlib.import_module(f"blockc.passes.rules.{rule.name}")
    return from_docstring(module.__doc__ or "", AROUND_DOCSTRING[rule.name], STATISTICS.get(rule.name, ""))


POSITIVE = [
    (rule, example)
    for rule in ALL_RULES
    for example in (docstring_example(rule), *files(rule.name))
    if not example.refusal
]
NEGATIVE = [(rule, example) for rule in ALL_RULES for example in files(rule.name) if example.refusal]


MOST_SHAPES = 64  # of one example: all of them with up to three dimensions that are cut


def name_of(value: object) -> str:
    return getattr(value, "name", "")


def places(rule: Rule, program: Program) -> tuple[list[Match], list[Refusal]]:
    found = list(rule.match(program, None))
    return [f for f in found if isinstance(f, Match)], [f for f in found if isinstance(f, Refusal)]


def applied(rule: Rule, program: Program) -> Program:
    """The program after the rule was applied once; to the end, for rules of emission."""
    program = rule.rewrite(program, places(rule, program)[0][0])
    return prune(program) if rule in EMISSION_RULES else normalise(program)


def same_meaning(first: Program, *others: Program) -> str:
    """Where one of the other programs differs from the first over small shapes, or ""."""
    for sizes, tiles in some_shapes(first, MOST_SHAPES):
        arrays = random_inputs(first, sizes, 1)
        shared = defaultdict[object, Shared](Shared)
        expected, *results = (
            interpret(program, arrays, sizes, with_chunks(program, tiles), shared=shared[program.dims]).outputs
            for program in (first, *others)
        )
        for number, got in enumerate(results):
            for name in expected:
                if problem := difference(got[name], expected[name]):
                    return f"{name} of program {number} at {sizes}: {problem}"
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
    assert same_meaning(before, applied(rule, before), after) == ""


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


@lru_cache(maxsize=2)
def moved(program: Program) -> tuple[Movement, ...]:
    """The movements of a program, which one step ends with and the next one begins with."""
    return movements(program)


def bytes_moved(program: Program, sizes: dict[str, int], rule: str) -> list[int]:
    """All bytes that a rule has promised to keep, at several tiles: single elements, two, and whole dimensions."""
    moves = moved(program)
    if BY_NAME[rule].effect == LISTS:
        moves = tuple(move for move in moves if program.types[move.value].lists)
    return [
        sum(move.itemsize * move.count.value(sizes, dict.fromkeys(sizes, tile)) for move in moves)
        for tile in (1, 2, 3, max(1, *sizes.values()))
    ]


# Rule 8 reads its leaf at every reader: it may move more where the dimensions are small (a leaf wider than the value in
# bytes, or more small leaves), but no more in leading order; the next test looks at that.
# Where a sum of the top graph becomes several, each is an item between launches, until the loops are one.
LISTS = "never more traffic of lists"
EXACT = {rule.name for rule in RULES if rule.effect in ("never more slow traffic", LISTS)}


@pytest.mark.parametrize("start", range(0, len(NORMAL_RUN), 36))
def test_no_step_moves_more_bytes(start: int) -> None:
    assert {rule.name for rule in RULES} - {"rematerialise"} == EXACT
    for seed in NORMAL_RUN[start : start + 36]:
        for step in random_derivation(seed).steps:
            if step.rule not in EXACT:
                continue
            sizes = {dim.name: 5 + position for position, dim in enumerate(step.before.dims)}
            before, after = (bytes_moved(program, sizes, step.rule) for program in (step.before, step.after))
            assert all(new <= old for old, new in zip(before, after, strict=True)), (seed, step.rule, step.at)


def test_recomputing_moves_no_more_bytes_in_leading_order() -> None:
    checked = 0
    for seed in NORMAL_RUN:
        for step in random_derivation(seed).steps:
            if step.rule == "rematerialise":
                # Long dimensions and items of one size: what remains are products of sizes and block counts.
                sizes = {dim.name: 1009 + 97 * position for position, dim in enumerate(step.before.dims)}
                before, after = elements_moved(step.before, sizes), elements_moved(step.after, sizes)
                assert after <= 1.05 * before, (seed, step.at, before, after)
                checked += 1
    assert checked > 20


def test_interchanging_repeats_no_operation() -> None:
    """What does not change in the outer map is computed once: never more operations or special functions."""
    saved = 0
    for seed in NORMAL_RUN:
        for step in random_derivation(seed).steps:
            if step.rule == "interchange_maps":
                sizes = {dim.name: 7 + position for position, dim in enumerate(step.before.dims)}
                before, after = (work(program, sizes, dict.fromkeys(sizes, 2)) for program in (step.before, step.after))
                assert after[0] <= before[0] and after[1] <= before[1], (seed, step.at, before, after)
                saved += after != before
    assert saved, "nothing moved out of a map"


PEELED = [example for rule, example in POSITIVE if rule.name == "peel_first_iteration"]


@pytest.mark.parametrize("example", PEELED, ids=name_of)
def test_peeling_moves_the_same_bytes_and_does_the_same_work(example: Example) -> None:
    before, _ = complete(example.before, example.after)
    after = applied(BY_NAME["peel_first_iteration"], before)
    for sizes, tiles in small_shapes(before):
        known = with_chunks(before, tiles)
        extents = complete_sizes(before, sizes)
        assert traffic(after, extents, known) == traffic(before, extents, known)
        assert work(after, extents, known) == work(before, extents, known)
        run = interpret(after, random_inputs(after, sizes, 1), sizes, known)
        moved = {(name, "load"): count for name, count in run.loads.items()}
        moved |= {(name, "store"): count for name, count in run.stores.items()}
        assert moved == traffic(after, extents, known)


@pytest.mark.parametrize("example", [docstring_example(BY_NAME["interchange_maps"])], ids=name_of)
def test_interchanging_alone_leaves_the_work_as_it_is(example: Example) -> None:
    rule = BY_NAME["interchange_maps"]
    before, _ = complete(example.before, example.after)
    after = rule.rewrite(before, places(rule, before)[0][0])
    for sizes, tiles in small_shapes(before):
        assert work(after, sizes, tiles) == work(before, sizes, tiles)


def elements_moved(program: Program, sizes: dict[str, int]) -> int:
    return sum(move.count.value(sizes, dict.fromkeys(sizes, 100)) for move in movements(program))


@pytest.mark.parametrize("start", range(0, len(NORMAL_RUN), 36))
def test_every_step_decreases_the_measure(start: int) -> None:
    for seed in NORMAL_RUN[start : start + 36]:
        for step in random_derivation(seed).steps:
            if step.rule in {rule.name for rule in RULES}:
                assert decreases(step.before, step.after), (seed, step.rule, step.at)
