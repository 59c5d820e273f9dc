"""Every invariant of block programs rejects what breaks it, under its own number and at the definition at fault."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from oracle import NORMAL_RUN, random_derivation

from blockc.ir import verify as verify_module
from blockc.ir.block import Apply, Operand, Program, paths, replace_graph, substitute
from blockc.ir.decisions import Match
from blockc.ir.text import format_program, parse_program
from blockc.ir.verify import Verified, VerifyError, verify
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


def damaged(program: Program, choice: random.Random) -> Program:
    """The program with a definition removed, doubled, in another place or graph, or with another operand."""
    graphs = [(path, graph) for path, graph in paths(program) if graph]
    path, graph = choice.choice(graphs)
    at, to = choice.randrange(len(graph)), choice.randrange(len(graph))
    node, rest = graph[at], (*graph[:at], *graph[at + 1 :])
    match choice.randrange(5):
        case 0:
            return replace_graph(program, path, rest)
        case 1:
            return replace_graph(program, path, (*graph[:to], node, *graph[to:]))
        case 2:
            return replace_graph(program, path, (*rest[:to], node, *rest[to:]))
        case 3:
            other, into = choice.choice(graphs)
            place = choice.randrange(len(into) + 1)
            return replace_graph(program, other, (*into[:place], node, *into[place:]))
        case _:
            names = sorted(node.uses)
            mapping: dict[str, Operand] = {name: choice.choice(sorted(program.types)) for name in names}
            return replace_graph(program, path, (*graph[:at], substitute(node, mapping), *graph[at + 1 :]))


def verdict(program: Program, verified: Verified | None) -> str:
    try:
        verify(program, verified)
    except VerifyError as error:
        return str(error)
    return "right"


def test_what_differs_is_verified_as_strictly_as_everything() -> None:
    """Damaged programs are judged alike by what they have in common with one that is right, and from the start."""
    choice = random.Random(0)
    verdicts: list[str] = []
    for seed in NORMAL_RUN[:30]:
        for step in random_derivation(seed).steps[:20]:
            for _ in range(3):
                wrong = damaged(step.after, choice)
                verified = Verified()
                verify(step.before, verified)
                found = verdict(wrong, verified)
                assert found == verdict(wrong, None), f"seed {seed}, {step.rule} at {step.at}"
                verdicts.append(found)
                if found != "right":
                    assert verdict(step.after, verified) == "right"  # an error leaves nothing wrong behind
    assert sum(found == "right" for found in verdicts) > 50
    assert sum(found != "right" for found in verdicts) > 500


def test_what_differs_is_all_that_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "\n".join(f"T{at + 1} = tanh(T{at})" for at in range(1, 40))
    text = f"program chain(X: f32[m, n]) -> O: f32[m, n] {{\nT1 = exp(X)\n{lines}\nO = T40\n}}"
    looked: list[str] = []
    apply = verify_module._Checker.apply

    def counting(self: verify_module._Checker, node: Apply, mapped: tuple[str, ...]) -> None:
        looked.append(node.name)
        apply(self, node, mapped)

    monkeypatch.setattr(verify_module._Checker, "apply", counting)
    derivation = fuse(lower(parse(text), frozenset()))
    assert len(looked) < 2 * len(derivation.steps)


def test_an_error_names_the_rule_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = fuse_map_with_reduce.RULE

    def accumulate_wrongly(program: Program, match: Match) -> Program:
        return parse_program(format_program(rule.rewrite(program, match)).replace("= add(", "= mul(", 1))

    wrong = replace(rule, rewrite=accumulate_wrongly)
    monkeypatch.setattr(fuse_module, "RULES", (wrong, *RULES[1:]))
    with pytest.raises(VerifyError) as caught:
        fuse(lower(parse("program p(X: f32[m, n]) -> S: f32[m] { S = sum[n](X) }"), frozenset()))
    assert (caught.value.rule, caught.value.invariant) == ("fuse_map_with_reduce", "B09")
