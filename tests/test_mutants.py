"""Every condition of every rule guards something: without it, an oracle objects. `pytest -s` prints which ones."""

from __future__ import annotations

import ast
from functools import cache

import pytest
from mutants import ORACLES, Row, chain, noticed, place_of, row, source_of, table
from rule_data import Example, complete, files
from test_rules import name_of

from blockc.ir.decisions import Match, Rule
from blockc.passes.rules import ALL_RULES, swap_scale_and_contraction

REASONS = [(rule, reason) for rule in ALL_RULES for reason in rule.reasons]
RIGHT = [(rule, example) for rule in ALL_RULES for example in files(rule.name) if not example.refusal]

# Conditions without which a rule is still right, and dearer in nothing that it promises. They keep the fuser from
# exchanges that nobody has asked for yet.
BY_CHOICE = {
    ("extend_map", "needs_mapped_value"),  # the copy reads a list whole in every iteration of a map over its blocks
    ("extend_map", "reads_more"),  # one kernel less, for more bytes: `test_fuse.py` counts them
    ("split_reduction", "inside_a_loop"),  # the loop around would become two loops in two kernels
    ("split_reduction", "also_stacked"),  # the list would be stored by one kernel and stored again by the next
    # Right without it, but the loops stay apart, and the sums cancel more; the measure counts what it refuses.
    ("swap_shift_and_contraction", "needed_elsewhere"),
    ("distribute_reduction", "needed_elsewhere"),
}


@cache
def rows() -> dict[tuple[str, str], Row]:
    """What became of the mutants of every reason."""
    return {(rule.name, reason): row(rule, reason) for rule, reason in REASONS}


def test_every_reason_stands_in_the_module_of_its_rule() -> None:
    missing = [(rule.name, reason) for rule, reason in REASONS if not chain(ast.parse(source_of(rule)), reason)]
    assert missing == [], "the conditions of these reasons cannot be found"


def test_every_reason_has_a_mutant() -> None:
    missing = [key for key, one in rows().items() if not one.places]
    assert missing == [], "deleting these conditions changes nothing in the examples of the refusals: add an example"


def test_no_mutant_survives() -> None:
    print(f"\n{table(list(rows().values()))}")
    survivors = {key for key, one in rows().items() if one.places and not one.noticed}
    assert survivors - BY_CHOICE == set(), "no oracle objects: the condition guards nothing, or the oracles are blind"
    assert BY_CHOICE - survivors == set(), "an oracle does object: these conditions are no longer by choice"


def test_every_oracle_is_needed() -> None:
    assert set().union(*(one.noticed for one in rows().values())) == set(ORACLES)


@pytest.mark.parametrize(("rule", "example"), RIGHT, ids=name_of)
def test_no_oracle_objects_to_a_right_step(rule: Rule, example: Example) -> None:
    before, _ = complete(example.before, example.after)
    match = next(found for found in rule.match(before, None) if isinstance(found, Match))
    assert noticed(rule, place_of(before), match) == set()


def test_a_reason_without_a_mutant_is_seen() -> None:
    assert row(swap_scale_and_contraction.RULE, "no_such_reason").places == 0
    assert chain(ast.parse(source_of(swap_scale_and_contraction.RULE)), "no_such_reason") == []
