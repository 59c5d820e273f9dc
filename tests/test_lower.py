"""Lowering: which dimensions are cut, how maps nest, and what the unfused program stores."""

from __future__ import annotations

import pytest
from oracle import NORMAL_RUN, Case, check, example, lowered, random_case

from blockc.ir.block import Apply, Map, Program, Reduce, Rename, walk
from blockc.ir.text import format_program
from blockc.ir.verify import verify
from blockc.language import parse
from blockc.passes.lower import SMALL, lower, whole_dimensions


def ops(program: Program) -> list[str]:
    return [node.op for node in walk(program.body) if isinstance(node, Apply)]


def lowered_text(source: str, whole: str = "") -> Program:
    return lower(parse(source), frozenset(whole.split()))


ORDERS = [
    ("attention", "b h m e n d"),
    ("mlp", "m e z d"),
    ("rmsnorm_swiglu", "m e z d"),
    ("cross_entropy", "m v d"),
    ("grouped_heads", "m b kv g e n d"),
]


@pytest.mark.parametrize(("name", "order"), ORDERS)
def test_free_dimensions_come_before_reduced_ones(name: str, order: str) -> None:
    assert [dim.name for dim in lower(parse(example(name)), frozenset()).dims] == order.split()


WHOLE = [
    ("attention", {"d": 64, "e": 64}, {}, "d e"),
    ("attention", {"d": 64, "e": 64, "m": 8, "n": 8}, {}, "d e"),
    ("attention", {"d": SMALL + 1, "e": SMALL}, {}, "e"),
    ("attention", {}, {}, ""),
    ("attention", {"d": 64, "e": 64}, {"e": 16}, "d"),
    ("attention", {"d": 64, "e": 64}, {"e": 64}, "d e"),
    ("attention", {"d": 64}, {"n": None}, "d n"),
    ("cross_attention", {"d": 64, "e": 128}, {}, "d e"),
    ("mlp", {"d": 8, "e": 8, "z": 8}, {}, "d"),
]


@pytest.mark.parametrize(("name", "sizes", "tiles", "whole"), WHOLE)
def test_small_dimensions_that_are_no_loop_start_whole(
    name: str, sizes: dict[str, int], tiles: dict[str, int | None], whole: str
) -> None:
    assert whole_dimensions(parse(example(name)), sizes, tiles) == frozenset(whole.split())


def test_every_operator_is_a_nest_of_its_own() -> None:
    program = lowered_text("program p(X: f32[m, n]) -> S: f32[m] { S = sum[n](exp(X)) }")
    assert [type(node) for node in program.body] == [Map, Map]
    assert sum(isinstance(node, Reduce) for node in walk(program.body)) == 1
    assert ops(program) == ["exp", "sum"]


def test_whole_dimensions_have_no_maps() -> None:
    program = lowered_text("program p(X: f32[m, n]) -> S: f32[m] { S = sum[n](exp(X)) }", "m n")
    assert not any(isinstance(node, Map | Reduce) for node in walk(program.body))
    assert ops(program) == ["exp", "sum"]


def test_sums_of_products_are_contractions() -> None:
    for text in ("sum[n](X * Y)", "dot[n](X, Y)", "sum[n](Y * X)"):
        program = lowered_text(f"program p(X: f32[m, n], Y: f32[n]) -> S: f32[m] {{ S = {text} }}")
        assert ops(program) == ["contract"]


def spelt(statements: str) -> str:
    """A program with those of its inputs that the statements name."""
    inputs = {"X": "f32[m, d]", "W": "f32[d, n]", "b": "f32[d]"}
    used = ", ".join(f"{name}: {kind}" for name, kind in inputs.items() if name in statements)
    dims = "m, n" if "W" in used else "m"
    return f"program p({used}) -> O: f32[{dims}] {{ {statements} }}"


def widest(program: Program) -> int:
    """The largest number of axes of a value."""
    return max(len(program.types[name].axes) for node in walk(program.body) for name in node.defines)


@pytest.mark.parametrize(
    ("text", "terms"), [("X * W + b * W", 2), ("X * W - b * W - X * b * W", 3), ("X * W + b", 1), ("tanh(X) + W", 0)]
)
def test_a_sum_larger_than_its_factors_is_taken_term_by_term(text: str, terms: int) -> None:
    source = spelt(f"O = sum[d]({text})")
    program = lowered_text(source)
    assert ops(program).count("contract") == terms
    assert widest(program) == (2 if terms else 3)
    for whole in ("", "d", "m n"):
        check(Case(source, {"m": 5, "n": 3, "d": 4}, {"m": 2, "n": 2, "d": 3}, frozenset(whole.split())))


def test_a_sum_no_larger_than_its_factors_stays() -> None:
    program = lowered_text(spelt("O = sum[d](X * X + b * X)"))
    assert ops(program).count("sum") == 1 and "contract" not in ops(program)


def test_a_sum_of_very_many_terms_stays() -> None:
    lines = "; ".join(f"T{n} = T{n - 1} + T{n - 1}" for n in range(1, 60))
    program = lowered_text(spelt(f"T0 = X * W; {lines}; O = sum[d](T59)"))
    assert ops(program).count("sum") == 1 and "contract" not in ops(program)


def test_a_contraction_with_what_has_no_reduced_dimension_is_a_sum() -> None:
    for text in ("dot[d](X, 1)", "dot[d](2, X)", "dot[d](tanh(X), sum[d](X))"):
        program = lowered_text(spelt(f"O = {text}"))
        assert "sum" in ops(program) and not {"contract", "broadcast"} & set(ops(program))


def test_a_formula_written_twice_is_computed_once() -> None:
    header = "program p(X: f32[m, n], Y: f32[n]) -> (S: f32[m], T: f32[m]) "
    twice = header + "{ S = sum[n](exp(X) * Y); T = sum[n](Y * exp(X)) + max[n](exp(X)) }"
    assert ops(lowered_text(twice)).count("exp") == 1
    assert ops(lowered_text(twice)).count("contract") == 1


def test_different_constants_stay_apart() -> None:
    source = "program p(X: f32[m]) -> (S: f32[m], T: f32[m]) { S = X + 1; T = X + 1.5 }"
    assert ops(lowered_text(source)).count("add") == 2


def test_renames_of_inputs_are_views() -> None:
    source = "program p(X: f32[m, d]) -> S: f32[m, n] { S = dot[d](X, X[m -> n]) }"
    program = lowered_text(source)
    assert [entry.argument for entry in program.inputs] == ["X", "X"]
    assert {entry.dims for entry in program.inputs} == {("m", "d"), ("n", "d")}
    assert not any(isinstance(node, Rename) for node in walk(program.body))


def test_renames_of_costly_values_are_stored() -> None:
    source = "program p(X: f32[m, d], W: f32[d, e]) -> S: f32[m, n] { P = dot[d](X, W); S = dot[e](P, P[m -> n]) }"
    program = lowered_text(source)
    assert sum(isinstance(node, Rename) for node in program.body) == 1
    assert ops(program).count("contract") == 2


def test_outputs_have_their_declared_type_and_dimensions() -> None:
    source = "program p(X: f32[m], Y: f32[n]) -> (O: f16[m, n], P: f64[m]) { O = X; P = X * 2 + sum[n](Y) }"
    program = lowered_text(source)
    verify(program)
    kinds = [program.types[result.value] for result in program.outputs]
    assert [(kind.dtype, kind.lists) for kind in kinds] == [("f16", ("m", "n")), ("f64", ("m",))]


def test_numbers_are_operands() -> None:
    program = lowered_text("program p(X: f32[m, n]) -> O: f32[m, n] { O = X * (2 + size(n)) / sqrt(size(m)) }")
    assert "size(n)" in format_program(program) and set(ops(program)) <= {"mul", "div"}


def test_random_programs_are_valid() -> None:
    for seed in NORMAL_RUN:
        program = lowered(random_case(seed))
        verify(program)
        assert all(
            dim not in program.whole for node in walk(program.body) if isinstance(node, Map) for dim in (node.dim,)
        )
