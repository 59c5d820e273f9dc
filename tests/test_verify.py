"""Every invariant of block programs rejects what breaks it, under its own number and at the definition at fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from oracle import NORMAL_RUN, random_derivation

from blockc.ir.block import Program
from blockc.ir.decisions import Match
from blockc.ir.text import format_program, parse_program
from blockc.ir.verify import VerifyError, verify
from blockc.language import parse
from blockc.passes import fuse as fuse_module
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower
from blockc.passes.rules import RULES, fuse_map_with_reduce

FOLDER = Path(__file__).parent / "data" / "broken"
BASES = {path.stem: path.read_text() for path in sorted((FOLDER / "bases").glob("*.txt"))}


def edits() -> list[tuple[str, str, str, str]]:
    """Invariant, base, the text to replace and its replacement, for every line of the table."""
    found = []
    for line in (FOLDER / "edits.txt").read_text().splitlines():
        if not line.startswith("#"):
            where, change = line.split(": ", 1)
            old, new = change.split(" =>> ")
            found.append((*where.split(), old, new.replace(" // ", "\n")))
    return found  # type: ignore[return-value]


EDITS = edits()


def broken(base: str, old: str, new: str) -> Program:
    """The base with an edit."""
    text = BASES[base]
    assert text.count(old) == 1 or text.count(f"{old}\n") == 1, f"`{old}` is not once in {base}"
    return parse_program(text.replace(old, new, 1))


@pytest.mark.parametrize("base", BASES)
def test_bases_are_right(base: str) -> None:
    verify(parse_program(BASES[base]))


@pytest.mark.parametrize(("invariant", "base", "old", "new"), EDITS, ids=lambda value: str(value)[:24])
def test_broken_programs_are_rejected(invariant: str, base: str, old: str, new: str) -> None:
    with pytest.raises(VerifyError) as caught:
        verify(broken(base, old, new))
    assert caught.value.invariant == invariant, str(caught.value)
    assert str(caught.value).startswith(f"[{invariant}] at `") and caught.value.at


def test_every_invariant_has_enough_examples() -> None:
    for number in (*range(1, 16), 17):  # B16 is in `test_bound_loops.py`
        assert sum(edit[0] == f"B{number:02}" for edit in EDITS) >= 8, f"B{number:02}"


def test_every_intermediate_program_is_right_on_its_own() -> None:
    """The fuser verifies what a step changed; here every program is verified from the start."""
    for seed in NORMAL_RUN:
        for step in random_derivation(seed).steps:
            verify(replace(step.after))


def test_an_error_names_the_rule_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = fuse_map_with_reduce.RULE

    def accumulate_wrongly(program: Program, match: Match) -> Program:
        return parse_program(format_program(rule.rewrite(program, match)).replace("= add(", "= mul(", 1))

    wrong = replace(rule, rewrite=accumulate_wrongly)
    monkeypatch.setattr(fuse_module, "RULES", (wrong, *RULES[1:]))
    with pytest.raises(VerifyError) as caught:
        fuse(lower(parse("program p(X: f32[m, n]) -> S: f32[m] { S = sum[n](X) }"), frozenset()))
    assert (caught.value.rule, caught.value.invariant) == ("fuse_map_with_reduce", "B09")
