"""Contractions that change places: linear attention out of the quadratic spelling, and when that is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import NORMAL_RUN, Case, check, example, random_derivation
from rule_data import complete, files

import blockc
from blockc import driver
from blockc.codegen import loader, numpy_source
from blockc.ir.block import Map, Program, walk
from blockc.ir.decisions import Derivation, Match
from blockc.language import parse
from blockc.passes.cost import work
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower
from blockc.passes.rules import hoist_map

SIZES = {"b": 1, "h": 2, "m": 4096, "n": 4096, "d": 64, "e": 64}
PRODUCTS = "program p(Q: f32[m, d], K: f32[n, d], V: f32[n, e]) -> O: f32[m, e] { O = BODY }"


def fused(source: str, whole: str = "de") -> Derivation:
    return fuse(lower(parse(source), frozenset(whole)))


def quadratic_tiles(program: Program) -> list[str]:
    """The tiles with both an axis m and an axis n."""
    kinds = program.types
    names = [name for node in walk(program.body) for name in node.defines]
    return [name for name in names if kinds[name].is_item and {"m", "n"} <= set(kinds[name].axes)]


def test_linear_attention_comes_out_of_the_quadratic_spelling() -> None:
    quadratic, linear = fused(example("linear_attention")).snapshots
    assert quadratic_tiles(quadratic) and not quadratic_tiles(linear)
    inner = next(node for node in linear.body if isinstance(node, Map))
    while len(inner.body) == 1:
        (inner,) = (node for node in inner.body if isinstance(node, Map))
    loops = [(node.dim, node.is_loop) for node in inner.body if isinstance(node, Map)]
    assert loops == [("n", True), ("m", False)], "keys and values once, then the queries"


def test_work_is_linear_in_the_length() -> None:
    quadratic, linear = fused(PRODUCTS.replace("BODY", "dot[n](dot[d](Q, K), V)")).snapshots
    tiles = {"m": 128, "n": 128}
    for length in (512, 1024, 4096):
        sizes = {"m": length, "n": length, "d": 64, "e": 32}
        assert work(quadratic, sizes, tiles)[0] == 2 * length * length * (64 + 32)
        assert work(linear, sizes, tiles)[0] == 2 * 2 * length * 64 * 32


@pytest.mark.parametrize(("length", "chosen"), [(16, 0), (256, 1), (4096, 1)])
def test_the_cost_decides(length: int, chosen: int) -> None:
    dims = {**SIZES, "m": length, "n": length}
    kernel = blockc.compile("examples/linear_attention.blk", dims=dims, dtype="f32")
    explained = kernel.explain()
    assert explained.parts[0].plan.snapshot == chosen
    assert len(explained.parts[0].plan.costs) == 2 and "reassociate_contraction" in str(explained)


def test_a_softmax_between_is_a_named_refusal() -> None:
    derivation = fused(example("attention"))
    assert len(derivation.snapshots) == 1
    assert {(r.rule, r.reason) for r in derivation.refusals} == {("reassociate_contraction", "not_linear")}


@pytest.mark.parametrize(
    "body",
    [
        "dot[n](dot[d](Q, K), V)",
        "dot[n](V, dot[d](K, Q) * 0.5)",
        "dot[n](dot[d](Q, K), V) / (1 + sum[n](dot[d](Q, K)) ** 2)",
        "dot[n](dot[d](Q, exp(K)), V) / sum[n](dot[d](Q, exp(K)))",
        "dot[n](dot[d](exp(Q), exp(K)) * (1 / (1 + index(n))), V)",
    ],
)
@pytest.mark.parametrize("whole", ["de", "d", "", "n"])
def test_all_forms_mean_the_same(body: str, whole: str) -> None:
    source = PRODUCTS.replace("BODY", body)
    tiles = {"m": 2, "n": 3, "d": 2, "e": 2}
    derivation = check(Case(source, {"m": 5, "n": 7, "d": 3, "e": 4}, tiles, frozenset(whole), 1))
    if "d" in whole:
        assert any(step.rule == "reassociate_contraction" for step in derivation.steps)


@pytest.mark.parametrize("dims", [{"m": 300, "n": 700}, {"m": 1, "n": 513}, {"m": 40, "n": 0}, {"m": 0, "n": 7}])
def test_kernels_are_right(dims: dict[str, int]) -> None:
    source = PRODUCTS.replace("BODY", "dot[n](dot[d](Q, exp(K)), V) / sum[n](dot[d](Q, exp(K)))")
    draw = np.random.default_rng(1)
    arrays = {
        "Q": draw.uniform(0.5, 1, (dims["m"], 16)).astype(np.float32),
        "K": draw.standard_normal((dims["n"], 16), np.float32),
        "V": draw.standard_normal((dims["n"], 8), np.float32),
    }
    # Without the self-check, whose data have small denominators: it would put the unfused program in its place.
    program = parse(source)
    _, plan = driver.planned(driver.Forms(program, {"m": 64, "n": 128}), {**dims, "d": 16, "e": 8})
    launch = loader.load(driver.emit(plan, program))
    ((name, result),) = launch(arrays).items()
    expected = blockc.reference(source, None, **arrays)
    assert name == "O" and np.allclose(result, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_list_that_is_made_once_may_be_stacked_by_the_map_around() -> None:
    """What a map makes for all blocks alike is one value, in all places of the outer list."""
    case = next(case for case in files("hoist_map") if case.name == "made_once_and_stacked")
    before, _ = complete(case.before, case.after)
    (place,) = (found for found in hoist_map.match(before) if isinstance(found, Match))
    x, q = np.arange(7, dtype=np.float32), np.arange(5, dtype=np.float32)
    sources = [numpy_source.emit(program, {"m": 2, "n": 3}) for program in (before, hoist_map.rewrite(before, place))]
    first, second = (loader.load(source)({"X": x, "Q": q}, 1) for source in sources)
    assert all(np.array_equal(first[name], second[name]) for name in first)


LOW_RANK = {
    "the wide dimension mapped": (
        "program p(X: f32[b, m], A: f32[n, m], B: f32[n, e]) -> O: f32[b, e] { O = dot[n](dot[m](X, A), B) }",
        frozenset({"m", "n", "e"}),
    ),
    "both outer dimensions mapped": (
        "program p(X: f32[b, m], A: f32[d, m], B: f32[d, n]) -> O: f32[b, n] { O = dot[d](dot[m](X, A), B) }",
        frozenset({"m", "d"}),
    ),
    "three products": (
        "program p(X: f32[b, m], A: f32[d, m], B: f32[d, n], C: f32[n, e]) -> O: f32[b, e]"
        " { O = dot[n](dot[d](dot[m](X, A), B), C) }",
        frozenset({"m", "d", "n", "e"}),
    ),
}


@pytest.mark.parametrize("name", LOW_RANK)
def test_products_that_may_stand_either_way_change_places_once(name: str) -> None:
    source, whole = LOW_RANK[name]
    case = Case(source, {"b": 5, "m": 4, "d": 3, "n": 3, "e": 2}, {"b": 2, "n": 2}, whole)
    derivation = check(case)
    assert derivation.complete
    swaps = [step.at for step in derivation.steps if step.rule == "reassociate_contraction"]
    assert 1 <= len(swaps) <= 2 and len(derivation.snapshots) == 2


def test_hoisting_never_adds_work() -> None:
    assert hoist_map.RULE.effect == "never more work"
    pairs = []
    for case in files("hoist_map"):
        if not case.refusal:
            before, _ = complete(case.before, case.after)
            place = next(found for found in hoist_map.match(before) if isinstance(found, Match))
            pairs.append((before, hoist_map.rewrite(before, place)))
    for seed in NORMAL_RUN:
        steps = random_derivation(seed).steps
        pairs += [(step.before, step.after) for step in steps if step.rule == "hoist_map"]
    for before, after in pairs:
        sizes = {dim.name: 7 + position for position, dim in enumerate(before.dims)}
        tiles = dict.fromkeys(sizes, 2)
        assert all(new <= old for new, old in zip(work(after, sizes, tiles), work(before, sizes, tiles), strict=True))
