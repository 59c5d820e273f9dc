"""The text form of block programs: what is printed parses back to the same, and its looks."""

from __future__ import annotations

from pathlib import Path

import lark
import pytest
from oracle import (
    NORMAL_RUN,
    example,
    example_names,
    final_programs,
    fused,
    lowered,
    programs,
    random_case,
    random_derivation,
)
from selection import in_turn

from blockc.ir.block import Program
from blockc.ir.text import format_program, parse_program
from blockc.language import parse
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower
from blockc.passes.stabilize import stabilize

GOLDEN = Path(__file__).parent / "data" / "golden"


def check_round_trip(stage: str, program: Program) -> None:
    text = format_program(program)
    again = parse_program(text)
    assert again == program, f"{stage}\n{text}"
    assert format_program(again) == text, stage
    # What a program remembers of its names is what another look at it finds.
    assert all(program.types[name] == kind for name, kind in again.types.items()), stage


@pytest.mark.parametrize(("name", "whole"), in_turn(example_names(), ["", "d e"], of=2))
def test_examples_parse_back(name: str, whole: str) -> None:
    program = parse(example(name))
    unfused = lower(program, frozenset(whole.split()) & {dim.name for dim in program.dims})
    derivation = fused(unfused)
    check_round_trip("unfused", unfused)
    for step in derivation.steps[::4]:  # a step is much like the one before it
        check_round_trip(step.rule, step.after)
    for stage, final in final_programs(derivation):
        check_round_trip(stage, final)


@pytest.mark.parametrize("start", range(0, 50, 10))
def test_random_programs_parse_back(start: int) -> None:
    for seed in NORMAL_RUN[start : start + 10]:
        # A step is much like the one before it.
        for number, (stage, program) in enumerate(programs(random_case(seed), random_derivation(seed))):
            if number % 8 == 0 or "snapshot" in stage:
                check_round_trip(f"seed {seed}, {stage}", program)


def golden(name: str, text: str, update: bool) -> None:
    path = GOLDEN / f"{name}.txt"
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


def test_text_of_attention(request: pytest.FixtureRequest) -> None:
    derivation = fuse(lower(parse(example("attention")), frozenset("de")))
    update = request.config.getoption("--update-golden")
    golden("attention", format_program(derivation.snapshots[-1]), update)
    golden("attention_stable", format_program(stabilize(derivation.snapshots[-1])), update)


def test_text_of_an_unfused_program(request: pytest.FixtureRequest) -> None:
    unfused = lower(parse("program p(X: f32[m, n]) -> S: f32[m] { S = max[n](X * 2) }"), frozenset())
    golden("unfused", format_program(unfused), request.config.getoption("--update-golden"))


HEADER = "program p\ndim m\narray X: f32[m]\narray O: f32[m]\ninput X: slow f32[m](m) = X[m]\n"
BODY = (
    "map m {\n  x: local f32(m) <- X\n  y: local f32(m) = exp(x)\n  => O: slow f32[m](m) = stack(y)\n}\noutput O = O\n"
)

WRONG = [
    ("no header", BODY),
    ("no type", HEADER + BODY.replace("y: local f32(m) =", "y =")),
    ("no tier", HEADER + BODY.replace("y: local f32(m)", "y: f32(m)")),
    ("no such type", HEADER + BODY.replace("y: local f32(m)", "y: local f33(m)")),
    ("open map", HEADER + BODY.replace("}\n", "")),
    ("closed twice", HEADER + BODY.replace("}\n", "}\n}\n")),
    ("no operator", HEADER + BODY.replace("exp(x)", "")),
    ("infix", HEADER + BODY.replace("exp(x)", "x + x")),
    ("port after operator", HEADER + BODY.replace("  =>", "  z: local f32(m) <- X\n  =>")),
    ("operator after output", HEADER + BODY.replace("\n}\n", "\n  z: local f32(m) = exp(x)\n}\n")),
    ("reduce without monoid", HEADER + BODY.replace("output", "r: local f32() = reduce[m](O)\noutput")),
    ("rename without arrow", HEADER + BODY.replace("output", "r: slow f32[k](k) = rename[m, k](O)\noutput")),
    ("output without value", HEADER + BODY.replace("output O = O", "output O")),
    ("dimension after array", HEADER + "dim n\n" + BODY),
    ("name with a sign", HEADER + BODY.replace("y: local", "y': local")),
]


@pytest.mark.parametrize(("what", "text"), WRONG, ids=[what for what, _ in WRONG])
def test_what_is_not_in_the_form_is_refused(what: str, text: str) -> None:
    parse_program(HEADER + BODY)
    with pytest.raises(lark.exceptions.LarkError):
        parse_program(text)


NUMBERS = ["1", "-1", "0.5", "-2.5e-07", "1e+300", "inf", "-inf", "true", "false", "size(m)", "mul(2, recip(size(m)))"]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_keep_their_spelling(number: str) -> None:
    text = HEADER + BODY.replace("exp(x)", f"maximum(x, {number})")
    assert f"maximum(x, {number})" in format_program(parse_program(text))
    check_round_trip(number, parse_program(text))


def test_lowered_programs_have_every_kind_of_definition() -> None:
    """So that the round trips above mean something."""
    texts = "".join(format_program(lowered(random_case(seed))) for seed in NORMAL_RUN)
    assert all(word in texts for word in ("map ", "reduce[", "rename[", "<- ", "=> ", " whole", "size(", "uses "))
