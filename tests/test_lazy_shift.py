"""Exponents that stay while they are close enough, and powers of two: numbers on adversarial rows, facts about both."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import blockc
from blockc.codegen import numpy_ops, numpy_powers, numpy_source
from blockc.driver import Forms, planned
from blockc.ir.block import Program
from blockc.language import parse

Array = np.ndarray[Any, np.dtype[Any]]

PRODUCTS = (
    "program p(q: f32[m, d], k: f32[n, d], V: f32[n, e]) -> O: f32[m, e] { O = dot[n](softmax[n](dot[d](q, k)), V) }"
)
INPUTS = "program p(S: f32[m, n], V: f32[n, e]) -> O: f32[m, e] { O = dot[n](softmax[n](S), V) }"
LOGSUMEXP = "program p(q: f32[m, d], k: f32[n, d]) -> L: f32[m] { L = log(sum[n](exp(dot[d](q, k)))) }"
MASKED = """program p(q: f32[m, d], k: f32[n, d], V: f32[n, e]) -> O: f32[m, e] {
    S = where(index(n) <= index(m), dot[d](q, k) * 0.5, -inf)
    O = dot[n](softmax[n](S), V)
}"""
PADDED = """program p(q: f32[m, d], k: f32[n, d], V: f32[n, e], M: f32[m, n]) -> O: f32[m, e] {
    O = dot[n](softmax[n](where(M < 0, -inf, dot[d](q, k))), V)
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
    monkeypatch.setattr(numpy_powers, "has_fast_exp2", lambda: two)
    key = ROWS[name].astype(np.float32)[:, None]
    query = np.array([[1.0], [-1.0], [0.5], [0.0]], np.float32)
    v = {"V": values()}
    mask = {"M": np.random.default_rng(2).uniform(-1, 2, (4, LENGTH)).astype(np.float32)}
    for source, inputs in ((PRODUCTS, v), (LOGSUMEXP, {}), (MASKED, v), (PADDED, v | mask)):
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


def test_rows_are_searched_for_their_maximum_only_where_the_exponent_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_powers, "has_fast_exp2", lambda: False)
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


# Powers of two


def test_numpy_says_which_power_it_has_instructions_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for target, faster in (("AVX512_SKX", True), ("X86_V4", True), ("baseline(X86_V2)", False)):
        answer = {"exp2": {"ff": {"current": target, "available": target}}}
        monkeypatch.setattr(np.lib.introspect, "opt_func_info", lambda answer=answer, **_: answer)
        assert numpy_ops.has_fast_exp2.__wrapped__() is faster


@pytest.mark.parametrize(("rows", "again"), [("small", 0), ("rising far", 1), ("far above in one place", 1)])
def test_logits_near_zero_are_computed_for_powers_of_two(
    monkeypatch: pytest.MonkeyPatch, rows: str, again: int
) -> None:
    monkeypatch.setattr(numpy_powers, "has_fast_exp2", lambda: True)
    source = kernel_source(PRODUCTS).replace("np.matmul(", "product(").replace("np.multiply(", "scale(")
    space: dict[str, Any] = {"__name__": "counted"}
    exec(compile(source, "counted", "exec"), space)  # noqa: S102 - what is tested
    tile = (4, BLOCK)
    products: list[tuple[int, ...]] = []
    matmul: Any = np.matmul
    multiply: Any = np.multiply

    def product(*args: Any, out: Array) -> Any:
        products.append(out.shape)
        return matmul(*args, out=out)

    def scale(*args: Any, out: Array) -> Any:
        assert again or out.shape != tile, "logits near zero take no multiplication"
        return multiply(*args, out=out)

    space |= {"product": product, "scale": scale}
    key = ROWS[rows].astype(np.float32)[:, None]
    query = np.array([[1.0], [-1.0], [0.5], [0.0]], np.float32)
    found = space["launch"]({"q": query, "k": key, "V": values()}, 1)["O"]
    np.testing.assert_allclose(found, blockc.reference(PRODUCTS, q=query, k=key, V=values()), rtol=2e-6, atol=1e-4)
    assert products.count(tile) == LENGTH // BLOCK + again, (
        "only the block in which subtracting begins is computed twice"
    )
