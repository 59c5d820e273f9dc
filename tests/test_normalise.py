"""The normal form: every algebraic step, what it keeps, and that equal formulas meet in it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from oracle import NORMAL_RUN, difference, lowered, random_case, random_derivation
from rule_data import canonical

from blockc.ir.block import Apply, Map, Program, walk
from blockc.ir.interpret import interpret
from blockc.ir.text import format_program, parse_program
from blockc.ir.verify import verify
from blockc.passes.normalise import normalise
from blockc.passes.prune import prune

HEADER = """program p
dim m
dim n
array A: f32[m, n]
array B: f32[m, n]
array H: f16[m, n]
array C: f32[m]
array O: f32[m, n]
input A: slow f32[m][n](m, n) = A[m, n]
input B: slow f32[m][n](m, n) = B[m, n]
input H: slow f16[m][n](m, n) = H[m, n]
input C: slow f32[m](m) = C[m]
map m {
  A.1: slow f32[n](m, n) <- A
  B.1: slow f32[n](m, n) <- B
  H.1: slow f16[n](m, n) <- H
  c: local f32(m) <- C
"""
LOOP = """  map n {
    a: local f32(m, n) <- A.1
    b: local f32(m, n) <- B.1
    h: local f16(m, n) <- H.1
"""
END = """    => O.1: slow f32[n](m, n) = stack(o)
  }
  => O: slow f32[m][n](m, n) = stack(O.1)
}
output O = O
"""
SIZES, TILES = {"m": 3, "n": 5}, {"m": 2, "n": 2}


def program(statements: str, outside: str = "") -> Program:
    """Statements such as `t = mul(a, b); o = exp(t)` on tiles a, b (m, n), h (f16) and c (m), whose result is `o`."""
    lines = []
    for statement in statements.split("; "):
        name, expression = statement.split(" = ")
        lines.append(
            f"    {name}: local {'bool' if expression.startswith(('lt', 'ge', 'and')) else 'f32'}() = {expression}\n"
        )
    above = "".join(
        f"  {line.split(' = ')[0]}: local f32(m) = {line.split(' = ')[1]}\n" for line in outside.split("; ") if line
    )
    return parse_program(HEADER + above + LOOP + "".join(lines) + END)


def outputs(candidate: Program) -> np.ndarray:
    draw = np.random.default_rng(5)
    arrays = {name: draw.uniform(0.5, 1.5, (3, 5)) for name in "ABH"} | {"C": draw.uniform(0.5, 1.5, 3)}
    return interpret(candidate, arrays, SIZES, TILES).outputs["O"]


def check(before: str, after: str, outside: str = "", outside_after: str = "") -> None:
    """Both have the same normal form, `after` is in it but for the order of operands, and both mean the same."""
    first, second = program(before, outside), program(after, outside_after)
    verify(first)
    result = normalise(first)
    verify(result)
    assert canonical(result) == canonical(normalise(second)), f"\n{format_program(result)}"
    assert sum(1 for _ in walk(normalise(second).body)) <= sum(1 for _ in walk(second.body)), "`after` is not simpler"
    assert not difference(outputs(result), outputs(first)), before


STEPS = [
    # sums and products are flat
    ("t = add(a, b); o = add(t, c)", "o = add(a, b, c)"),
    ("t = mul(a, b); o = mul(c, t)", "o = mul(c, a, b)"),
    ("t = maximum(a, b); o = maximum(t, c)", "o = maximum(a, b, c)"),
    ("t = minimum(a, b); o = minimum(t, a)", "o = minimum(a, b)"),
    ("t = maximum(a, a); o = exp(t)", "o = exp(a)"),
    # quotients, differences, negation, relu
    ("o = div(a, b)", "t = recip(b); o = mul(a, t)"),
    ("o = sub(a, b)", "t = mul(b, -1); o = add(a, t)"),
    ("o = neg(a)", "o = mul(a, -1)"),
    ("o = relu(a)", "o = maximum(a, 0)"),
    ("t = neg(a); o = neg(t)", "o = broadcast(a)"),
    # constants
    ("o = add(a, 1.5, 2)", "o = add(a, 3.5)"),
    ("t = mul(a, 2); o = mul(t, 3)", "o = mul(a, 6)"),
    ("o = mul(a, 1)", "o = broadcast(a)"),
    ("o = add(a, 0)", "o = broadcast(a)"),
    ("o = mul(a, exp(0.0))", "o = broadcast(a)"),
    ("o = mul(a, sqrt(4.0))", "o = mul(a, 2.0)"),
    # like terms
    ("o = add(a, a)", "o = mul(a, 2)"),
    ("t = sub(a, b); o = add(t, b)", "o = broadcast(a)"),
    ("t = mul(a, 0.5); o = sub(a, t)", "o = mul(a, 0.5)"),
    # inverses
    ("t = recip(a); o = recip(t)", "o = broadcast(a)"),
    ("t = mul(a, b); o = recip(t)", "s = recip(a); u = recip(b); o = mul(s, u)"),
    ("t = exp(a); s = recip(t); u = mul(t, s); o = add(u, b)", "s = broadcast[m, n](1); o = add(s, b)"),
    ("t = exp(a); o = div(b, t)", "s = mul(a, -1); t = exp(s); o = mul(b, t)"),
    ("t = exp(a); s = sqrt(t); u = recip(s); o = mul(u, t)", "t = exp(a); u = rsqrt(t); o = mul(u, t)"),
    ("t = sqrt(a); o = recip(t)", "o = rsqrt(a)"),
    ("t = rsqrt(a); o = recip(t)", "o = sqrt(a)"),
    # logarithms and exponentials
    ("t = exp(a); o = log(t)", "o = broadcast(a)"),
    ("t = log(a); o = exp(t)", "o = broadcast(a)"),
    ("t = log(a); s = neg(t); o = exp(s)", "o = recip(a)"),
    ("t = exp(a); s = mul(b, t); o = log(s)", "t = log(b); o = add(a, t)"),
    # a quotient of negative numbers has a logarithm, they have none
    ("t = recip(b); s = mul(a, t); o = log(s)", "t = recip(b); s = mul(a, t); o = log(s)"),
    ("t = recip(a); o = log(t)", "s = log(a); o = mul(s, -1)"),
    # sigmoid
    ("t = neg(a); s = exp(t); u = add(s, 1); o = recip(u)", "o = sigmoid(a)"),
    ("t = exp(a); u = add(1, t); o = recip(u)", "t = neg(a); o = sigmoid(t)"),
    ("t = exp(a); u = recip(t); s = add(u, 1); o = recip(s)", "o = sigmoid(a)"),
    ("t = exp(a); u = add(t, 1); o = div(t, u)", "o = sigmoid(a)"),
    ("t = exp(a); u = add(1, t); s = mul(t, b); o = div(s, u)", "t = sigmoid(a); o = mul(b, t)"),
    ("s = mul(a, 0.5); t = exp(s); u = recip(t); v = add(t, u); o = div(t, v)", "o = sigmoid(a)"),
    ("s = mul(a, 0.5); t = exp(s); u = recip(t); v = add(t, u); o = div(u, v)", "s = mul(a, -1.0); o = sigmoid(s)"),
    ("s = neg(a); t = exp(s); u = neg(t); v = add(u, -1); w = neg(b); o = div(w, v)", "t = sigmoid(a); o = mul(b, t)"),
    ("s = neg(a); t = exp(s); u = sigmoid(a); o = mul(t, u)", "s = neg(a); o = sigmoid(s)"),
    # two exponentials that may both be 0 have the quotient 0, which no sigmoid is
    (
        "t = exp(a); u = exp(b); v = add(t, u); o = div(t, v)",
        "t = exp(a); u = exp(b); v = add(t, u); w = recip(v); o = mul(t, w)",
    ),
    # sums all of whose terms are negative
    ("t = neg(a); u = sub(t, b); o = recip(u)", "t = add(a, b); u = recip(t); o = neg(u)"),
    ("t = sub(a, b); o = recip(t)", "s = mul(b, -1); t = add(a, s); o = recip(t)"),
    # masks
    ("k = lt(a, b); t = exp(a); o = where(k, t, 0)", "k = lt(a, b); s = where(k, a, -inf); o = exp(s)"),
    ("k = lt(a, b); t = exp(a); o = where(k, 0, t)", "k = lt(a, b); s = where(k, -inf, a); o = exp(s)"),
    ("k = lt(a, b); t = exp(c); o = where(k, t, 0)", "k = lt(a, b); s = where(k, c, -inf); o = exp(s)"),
    (
        "k = lt(a, b); t = exp(a); s = where(k, t, 0); o = log(s)",
        "k = lt(a, b); o = where(k, a, -inf)",
    ),
    (
        "k = lt(a, b); t = exp(a); u = cast(k); o = mul(t, u)",
        "k = lt(a, b); u = where(k, 0, -inf); s = add(a, u); o = exp(s)",
    ),
    (
        "k = lt(a, b); t = exp(a); v = cast(k); u = sub(1, v); o = mul(t, u)",
        "k = lt(a, b); u = where(k, -inf, 0); s = add(a, u); o = exp(s)",
    ),
    (
        "k = lt(a, b); t = exp(a); u = where(k, -3.0, 0); o = mul(t, u, b)",
        "k = lt(a, b); u = where(k, 0, -inf); s = add(a, u); t = exp(s); o = mul(t, b, -3.0)",
    ),
    # a number that is known only when the program runs is no mask, nor is a choice without a 0
    ("t = exp(a); u = relu(b); o = mul(t, u)", "t = exp(a); u = relu(b); o = mul(t, u)"),
    (
        "k = lt(a, b); t = exp(a); u = where(k, 2.0, 1.0); o = mul(t, u)",
        "k = lt(a, b); t = exp(a); u = where(k, 2.0, 1.0); o = mul(t, u)",
    ),
    # what is subtracted, or from outside, stays where it can leave
    (
        "k = lt(a, b); s = sub(a, c); t = exp(s); o = where(k, t, 0)",
        "k = lt(a, b); r = mul(c, -1); s = add(a, r); t = exp(s); o = where(k, t, 0)",
    ),
    # powers
    ("o = pow(a, 1)", "o = broadcast(a)"),
    ("o = pow(a, 2)", "o = mul(a, a)"),
    ("o = pow(a, 3)", "o = mul(a, a, a)"),
    ("o = pow(a, 0.5)", "o = sqrt(a)"),
    ("o = pow(a, -0.5)", "o = rsqrt(a)"),
    ("o = pow(a, -1)", "o = recip(a)"),
    ("o = pow(a, -2)", "t = recip(a); o = mul(t, t)"),
    # casts between floats are seen through, equal operators are merged, what nothing uses goes
    ("t = cast(h); o = mul(t, a)", "o = mul(h, a)"),
    ("t = exp(a); s = exp(a); o = mul(t, s)", "t = exp(a); o = mul(t, t)"),
    ("t = mul(a, b); s = mul(b, a); o = add(t, s)", "t = mul(a, b); o = mul(t, 2)"),
    ("t = exp(a); o = sqrt(b)", "o = sqrt(b)"),
]


@pytest.mark.parametrize(("before", "after"), STEPS, ids=[before for before, _ in STEPS])
def test_steps(before: str, after: str) -> None:
    if after != "o = broadcast(a)":
        check(before, after)
        return
    result = normalise(program(before))
    assert "stack(a)" in format_program(result), format_program(result)
    assert not difference(outputs(result), outputs(program(before)))


KEPT = ["log(a)", "exp(a)", "sqrt(a)", "tanh(a)", "pow(a, 1.7)", "sigmoid(a)", "where(lt(a, 1.0), a, b)", "recip(a)"]


@pytest.mark.parametrize("expression", KEPT)
def test_what_cannot_be_simplified_stays(expression: str) -> None:
    assert expression.split("(")[0] in format_program(normalise(program(f"o = {expression}")))


def test_what_may_be_zero_is_not_cancelled() -> None:
    text = format_program(normalise(program("t = recip(a); s = mul(a, t); o = add(s, b)")))
    assert "recip(a)" in text


def test_cancelled_operands_leave_their_axes() -> None:
    for statements in ("t = sub(a, a); o = add(t, c)", "t = exp(a); s = recip(t); u = mul(t, s); o = mul(u, c)"):
        first = program(statements)
        result = normalise(first)
        verify(result)
        assert "broadcast[" in format_program(result)
        assert not difference(outputs(result), outputs(first))


def test_equal_operators_merge_with_an_enclosing_body() -> None:
    check("s = exp(c); o = mul(a, t, s)", "o = mul(a, t, t)", "t = exp(c)", "t = exp(c)")


def test_what_does_not_change_moves_out_of_the_loop() -> None:
    result = normalise(program("t = exp(c); o = mul(a, t)"))
    outer = result.body[0]
    assert isinstance(outer, Map)
    assert "exp" in [getattr(node, "op", "") for node in outer.body]


def test_nothing_moves_to_the_top_graph() -> None:
    text = HEADER.replace("array C: f32[m]", "array C: f32[]").replace("f32[m](m) = C[m]", "f32() = C[]")
    text = text.replace("input C: slow", "input C: local").replace("  c: local f32(m) <- C\n", "")
    text += LOOP + "    t: local f32() = exp(C)\n    o: local f32(m, n) = mul(a, t)\n" + END
    result = normalise(parse_program(text))
    assert [type(node) for node in result.body] == [Map]
    assert not any(getattr(node, "op", "") == "exp" for node in result.body[0].body[1].body)  # type: ignore[union-attr]


def test_prune_removes_values_ports_and_outputs() -> None:
    text = HEADER + LOOP + "    o: local f32(m, n) = exp(a)\n    => Y: slow f32[n](m, n) = stack(b)\n" + END
    pruned = format_program(prune(parse_program(text)))
    assert "B.1" not in pruned and "Y" not in pruned and "c:" not in pruned and "a: local" in pruned


COMMUTED = [
    ("t = mul(a, b); o = add(t, c)", "t = mul(b, a); o = add(c, t)"),
    ("t = add(a, b, c); o = exp(t)", "s = add(c, b); t = add(a, s); o = exp(t)"),
    ("o = maximum(a, b, c)", "t = maximum(c, b); o = maximum(b, a, t)"),
    ("t = sub(a, c); o = exp(t)", "s = neg(c); t = add(s, a); o = exp(t)"),
    ("t = div(a, b); o = mul(t, c)", "t = mul(a, c); o = div(t, b)"),
    (
        "s = lt(a, b); t = ge(a, c); u = and(s, t); o = where(u, a, b)",
        "s = lt(a, b); t = ge(a, c); u = and(t, s); o = where(u, a, b)",
    ),
]


@pytest.mark.parametrize(("first", "second"), COMMUTED)
def test_commuted_operands_meet(first: str, second: str) -> None:
    assert canonical(normalise(program(first))) == canonical(normalise(program(second)))


def test_normal_forms_stay() -> None:
    for seed in NORMAL_RUN:
        for step in random_derivation(seed).steps:
            assert normalise(step.after) == step.after, (seed, step.rule)


def test_normalising_twice_changes_nothing() -> None:
    for seed in NORMAL_RUN:
        once = normalise(lowered(random_case(seed)))
        assert normalise(once) is once


OPERATIONS = (
    "add",
    "mul",
    "sub",
    "div",
    "neg",
    "exp",
    "log",
    "recip",
    "sqrt",
    "rsqrt",
    "maximum",
    "relu",
    "sigmoid",
    "pow",
)


def random_statements(seed: int) -> str:
    """Ten operators on positive values and what they make, bounded so that float64 carries them."""
    choice = random.Random(seed)
    names, positive, lines = ["a", "b", "c"], ["a", "b", "c"], []
    for number in range(10):
        op = choice.choice(OPERATIONS)
        if op == "exp":
            argument = choice.choice(["a", "b", "c", *names[-2:]])
            lines.append(f"s{number} = tanh({argument})")
            lines.append(f"t{number} = exp(s{number})")
            positive.append(f"t{number}")
        elif op in ("log", "recip", "sqrt", "rsqrt"):
            lines.append(f"t{number} = {op}({choice.choice(positive)})")
            positive += [f"t{number}"] if op != "log" else []
        elif op in ("neg", "relu", "sigmoid"):
            lines.append(f"t{number} = {op}({choice.choice(names)})")
        elif op == "div":
            lines.append(f"t{number} = div({choice.choice(names)}, {choice.choice(positive)})")
        elif op == "pow":
            lines.append(
                f"t{number} = pow({choice.choice(positive)}, {choice.choice((1, 2, 3, 0.5, -0.5, -1, -2, 1.5))})"
            )
            positive.append(f"t{number}")
        else:
            lines.append(f"t{number} = {op}({choice.choice(names)}, {choice.choice([*names, '0.5', '2'])})")
        names.append(f"t{number}")
    return "; ".join([*lines, f"s = tanh({names[-1]})", f"o = add(s, {names[-2]}, a)"])


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_random_expressions_keep_their_meaning(start: int) -> None:
    for seed in range(start, start + 100):
        first = program(random_statements(seed))
        result = normalise(first)
        verify(result)
        expected = outputs(first)
        if np.max(np.abs(expected)) < 1e6:
            assert not difference(outputs(result), expected), random_statements(seed)


@pytest.mark.parametrize("op", ["mul(t{0}, t{0})", "maximum(t{0}, c{0})"])
def test_products_and_maxima_do_not_grow_without_end(op: str) -> None:
    # A value squared 12 times had 4,096 factors, and one squared 30 times took all memory.
    steps = [f"c{n} = tanh(t{n}); t{n + 1} = {op.format(n)}" for n in range(300 if "max" in op else 40)]
    result = normalise(program("; ".join(["t0 = cos(a)", *steps, f"o = sin(t{len(steps)})"])))
    longest = max(len(node.args) for inner in walk(result.body) if isinstance(inner, Map) for node in inner.body
                  if isinstance(node, Apply))  # fmt: skip
    assert 64 <= longest <= 256
    assert normalise(result) == result
