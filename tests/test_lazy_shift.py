"""Exponents that stay while they are close enough, and powers of two: numbers on adversarial rows, facts about both."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

import blockc
from blockc.codegen import base_two, numpy_source
from blockc.codegen.base_two import in_base_two
from blockc.codegen.exponents import read_as_numbers
from blockc.codegen.scale_folding import fold_scales
from blockc.driver import Forms, planned
from blockc.ir.block import Apply, Constant, Expression, Map, Output, Program, operand_names, walk
from blockc.ir.interpret import interpret
from blockc.ir.verify import verify
from blockc.language import parse

Array = np.ndarray[Any, np.dtype[Any]]

# One query and key feature: the logits are products, so that base two applies; as inputs they stay exact.
PRODUCTS = (
    "program p(q: f32[m, d], k: f32[n, d], V: f32[n, e]) -> O: f32[m, e] { O = dot[n](softmax[n](dot[d](q, k)), V) }"
)
INPUTS = "program p(S: f32[m, n], V: f32[n, e]) -> O: f32[m, e] { O = dot[n](softmax[n](S), V) }"
LOGSUMEXP = "program p(q: f32[m, d], k: f32[n, d]) -> L: f32[m] { L = log(sum[n](exp(dot[d](q, k)))) }"
MASKED = """program p(q: f32[m, d], k: f32[n, d], V: f32[n, e]) -> O: f32[m, e] {
    S = where(index(n) <= index(m), dot[d](q, k) * 0.5, -inf)
    O = dot[n](softmax[n](S), V)
}"""
BLOCK, LENGTH = 8, 40
STEPS = np.repeat(np.arange(LENGTH // BLOCK), BLOCK).astype(np.float32)
NOISE = np.random.default_rng(0).standard_normal(LENGTH).astype(np.float32)

ROWS = {
    "small": NOISE,
    "rising": 14 * STEPS + NOISE,
    "rising far": 60 * STEPS + NOISE,
    "falling": -60 * STEPS + NOISE,
    "low, then ordinary": np.where(STEPS == 0, -1e4, NOISE),
    "ordinary, then low": np.where(STEPS == 0, NOISE, -1e4),
    "near -1e4": -1e4 + NOISE,
    "just below the bound": np.where(STEPS == 0, -15.5, 15.5) + 0 * NOISE,
    "far above in one place": np.where(np.arange(LENGTH) == 21, 300.0, NOISE),
    "nothing at first": np.where(STEPS < 2, -np.inf, NOISE - 200),
    "nothing": np.full(LENGTH, -np.inf),
    "NaN late": np.where(np.arange(LENGTH) == 30, np.nan, NOISE),
    "infinite late": np.where(np.arange(LENGTH) == 30, np.inf, NOISE),
}


def logits() -> Array:
    return np.stack([*ROWS.values()]).astype(np.float32)


def values() -> Array:
    return np.random.default_rng(1).standard_normal((LENGTH, 3)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_rows_that_move_and_rows_that_stay_share_a_tile(rows: int) -> None:
    kernel = blockc.compile(INPUTS, tiles={"m": rows, "n": BLOCK})
    found, exact = kernel(logits(), values()), blockc.reference(INPUTS, S=logits(), V=values())
    np.testing.assert_array_equal(np.isnan(found), np.isnan(exact))
    np.testing.assert_allclose(found, exact, atol=2e-6)
    assert not found[[*ROWS].index("nothing")].any()


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("name", [name for name in ROWS if np.isfinite(ROWS[name]).all()])
def test_logits_that_are_products(monkeypatch: pytest.MonkeyPatch, name: str, two: bool) -> None:
    monkeypatch.setattr(numpy_source, "is_faster", lambda: two)
    key = ROWS[name].astype(np.float32)[:, None]
    query = np.array([[1.0], [-1.0], [0.5], [0.0]], np.float32)
    for source, inputs in ((PRODUCTS, {"V": values()}), (LOGSUMEXP, {}), (MASKED, {"V": values()})):
        arrays: Any = {"q": query, "k": key, **inputs}
        kernel = blockc.compile(source, tiles={"m": 4, "n": BLOCK})
        assert ("np.exp2(" in kernel_source(source)) is two
        found, exact = kernel(**arrays), blockc.reference(source, **arrays)
        # The logits have relative errors of 2^-24 each; e to their power has that, times their size.
        np.testing.assert_allclose(found, exact, rtol=2e-6, atol=3e-7 * max(4.0, np.abs(key).max()))


def kernel_source(source: str) -> str:
    program = plan_of(source)
    return numpy_source.emit(program, {"m": 4, "n": BLOCK})


def plan_of(source: str, **dims: int) -> Program:
    sizes = {"m": 64, "n": 64, "d": 1, "e": 3} | dims
    array = parse(source)
    known = {dim: sizes[dim] for dim in ("m", "n", "d", "e") if re.search(rf"\b{dim}\b", source.split("{")[0])}
    return planned(Forms(array, {"m": 16, "n": BLOCK}), known)[1].program


def loop_of(source: str) -> str:
    return source.split("for b")[-1].split("# => ")[0]


def test_rows_are_searched_for_their_maximum_only_where_the_exponent_moves() -> None:
    loop = loop_of(kernel_source(INPUTS)).splitlines()
    (guard,) = (position for position, line in enumerate(loop) if "axis=None, initial=-np.inf) <= y" in line)
    indent = len(loop[guard]) - len(loop[guard].lstrip())
    after = next(p for p in range(guard + 1, len(loop)) if len(loop[p]) - len(loop[p].lstrip()) <= indent)
    moved, rest = "\n".join(loop[guard + 1 : after]), "\n".join([*loop[:guard], *loop[after:]])
    assert moved.count("np.maximum.reduce(") == 1 and "axis=1" in moved
    assert moved.count("np.multiply(") == 2, "the sum and the product are rescaled there"
    assert "np.maximum.reduce(" not in rest and "np.multiply(" not in rest
    (subtract,) = (position for position, line in enumerate(loop) if "np.subtract(" in line and position > after)
    assert any(re.fullmatch(r" *if z\d+:", line) for line in loop[after:subtract]), "nor subtracted while it is zero"


def test_a_block_moves_the_exponent_only_if_it_has_to() -> None:
    source = kernel_source(INPUTS)
    counted = source.replace("np.maximum.reduce(", "count(")
    seen: list[Any] = []

    def launch(array: Array) -> int:
        space: dict[str, Any] = {"__name__": "counted"}
        exec(compile(counted, "counted", "exec"), space)  # noqa: S102 - what is tested
        seen.clear()

        def count(*args: Any, axis: Any, **options: Any) -> Any:
            seen.append(axis)
            return reduce(*args, axis=axis, **options)

        reduce: Any = np.maximum.reduce
        space["count"] = count
        space["launch"]({"S": array, "V": values()}, 1)
        return sum(axis is not None for axis in seen)

    blocks = LENGTH // BLOCK
    small = np.tile(ROWS["small"], (4, 1))
    assert launch(small) == 1 and seen.count(None) == blocks
    assert launch(np.tile(ROWS["rising far"], (4, 1)).astype(np.float32)) == blocks
    assert launch(np.tile(ROWS["near -1e4"], (4, 1)).astype(np.float32)) == 1
    assert launch(np.tile(ROWS["far above in one place"], (4, 1)).astype(np.float32)) == 2


def test_an_exponent_of_exact_numbers_that_is_read_is_the_maximum() -> None:
    source = kernel_source("program p(S: f32[m, n]) -> L: f32[m] { L = log(mean[n](exp(S))) }")
    assert "axis=None" not in source
    tiny = np.full((4, LENGTH), 1e-30, np.float32)
    kernel = blockc.compile("program p(S: f32[m, n]) -> L: f32[m] { L = log(mean[n](exp(S))) }", tiles={"n": BLOCK})
    np.testing.assert_allclose(kernel(tiny), tiny[:, 0], rtol=1e-6)


# Base two


@pytest.mark.parametrize("source", [PRODUCTS, LOGSUMEXP, MASKED])
def test_base_two_keeps_the_meaning(source: str) -> None:
    program = plan_of(source, d=5)
    other = in_base_two(program)
    assert other != program
    folded = fold_scales(other, frozenset())
    sizes, tiles = {"m": 64, "n": 64, "d": 5, "e": 3}, {"m": 16, "n": BLOCK}
    random = np.random.default_rng(3)
    arrays = {
        argument.name: random.standard_normal([sizes[dim] for (dim,) in argument.axes])
        for argument in program.arguments
    }
    expected = interpret(program, arrays, sizes, tiles).outputs
    for changed in (other, folded):
        verify(changed)
        found = interpret(changed, arrays, sizes, tiles).outputs
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-12)


def test_the_factor_is_moved_out_of_the_loop() -> None:
    for source in (PRODUCTS, MASKED):
        program = fold_scales(in_base_two(plan_of(source, d=5)), frozenset())
        (loop,) = (node for node in walk(program.body) if isinstance(node, Map) and node.is_loop and node.dim == "n")
        applies = [node for node in loop.body if isinstance(node, Apply)]
        expressions = [Expression(node.op, node.args) for node in applies]
        assert "exp2" in {name for e in expressions for name in operators(e)}
        assert not {"exp", "mul"} & {name for e in expressions for name in operators(e)}
        assert loop.outputs[0].monoid == "exponent2_add"


def operators(expression: Expression) -> set[str]:
    inner = (operators(arg) for arg in expression.args if isinstance(arg, Expression))
    return {expression.op}.union(*inner)


REFUSED = {
    "exact logits": INPUTS,
    "multiples of exact logits": INPUTS.replace("softmax[n](S)", "softmax[n](S * 0.5)"),
    "a bias that changes in the loop": PRODUCTS.replace("V:", "c: f32[n], V:").replace("k))", "k) + c)"),
    "logits that are read": PRODUCTS.replace("softmax[n](dot[d](q, k))", "dot[d](q, k) * softmax[n](dot[d](q, k))"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_base_two_is_refused_where_it_is_not_free(why: str) -> None:
    program = plan_of(REFUSED[why], d=5)
    assert any(output.monoid == "exponent_add" for output in outputs(program))
    assert in_base_two(program) == program


def outputs(program: Program) -> list[Output]:
    return [output for node in walk(program.body) if isinstance(node, Map) for output in node.outputs]


def test_an_exponent_that_is_read_is_multiplied_back() -> None:
    program = in_base_two(plan_of(LOGSUMEXP))
    (loop,) = (output.names[0] for output in outputs(program) if output.monoid == "exponent2_add")
    assert loop in read_as_numbers(program.body)
    (back,) = (node for node in walk(program.body) if isinstance(node, Apply) and loop in operand_names(node.args))
    assert back.op == "mul" and Constant(math.log(2)) in back.args
    (kept,) = (output.names[0] for output in outputs(in_base_two(plan_of(PRODUCTS))) if len(output.names) > 1)
    assert kept not in read_as_numbers(in_base_two(plan_of(PRODUCTS)).body)


def test_numpy_says_which_power_it_has_instructions_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for target, faster in (("AVX512_SKX", True), ("X86_V4", True), ("baseline(X86_V2)", False)):
        answer = {"exp2": {"ff": {"current": target, "available": target}}}
        monkeypatch.setattr(np.lib.introspect, "opt_func_info", lambda answer=answer, **_: answer)
        assert base_two.is_faster.__wrapped__() is faster
