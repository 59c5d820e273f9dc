"""The choice of tiles and of a snapshot by their stated rules, and composition for emission."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import EXAMPLES, NORMAL_RUN, example, random_derivation

import blockc
from blockc.driver import Forms, load_program, planned
from blockc.ir.block import Program, kernels
from blockc.ir.plan import Plan
from blockc.language import parse
from blockc.passes.choose import (
    CLOSE,
    LARGEST_PASSING,
    LARGEST_TILE,
    TILE,
    batch_dimensions,
    choose,
    choose_tiles,
    compose,
    elements,
    item_shapes,
    power_of_two,
    ready,
    safe,
)
from blockc.passes.cost import idleness, tasks
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower


def last(name: str, whole: str) -> Program:
    return fuse(lower(parse(example(name)), frozenset(whole.split()))).snapshots[-1]


def fused(name: str, dtype: str, program: str | None = None, whole: str = "d") -> Program:
    """The last snapshot of an example with another float type, as it is emitted."""
    array_program = parse(example(name), program=program, dtype=dtype)
    return ready(fuse(lower(array_program, frozenset(whole.split()))))[-1]


BATCH = [("attention", "d e", "b h"), ("mlp", "", ""), ("grouped_heads", "d e", "b kv"), ("matmul_epilogue", "", "")]


@pytest.mark.parametrize(("name", "whole", "batch"), BATCH)
def test_batch_dimensions(name: str, whole: str, batch: str) -> None:
    assert batch_dimensions(last(name, whole)) == set(batch.split())


def test_tiles_of_attention() -> None:
    sizes = {"b": 4, "h": 16, "m": 4096, "n": 4096, "d": 64, "e": 64}
    assert choose_tiles((last("attention", "d e"),), sizes, {}) == {"b": 1, "h": 1, "m": TILE, "n": TILE}


FEW_ROWS = [(1, "f32", 16384), (1, "f16", 4096), (64, "f32", 4096), (256, "f32", 1024), (4096, "f32", TILE)]


@pytest.mark.parametrize(("rows", "dtype", "block"), FEW_ROWS)
def test_few_rows_leave_room_for_larger_blocks(rows: int, dtype: str, block: int) -> None:
    sizes = {"b": 1, "h": 1, "m": rows, "n": 32768, "d": 64, "e": 64}
    tiles = choose_tiles((fused("attention", dtype, whole="d e"),), sizes, {})
    keys = LARGEST_PASSING if dtype == "f32" else LARGEST_TILE  # f16 is converted first
    assert tiles["n"] == block and block * 64 <= keys and block * tiles["m"] <= LARGEST_TILE


def test_only_what_products_take_as_it_is_passes_through() -> None:
    passing, others = item_shapes(fused("layernorm_matmul", "f32"))
    assert {("n", "d"), ("m", "n")} <= passing and ("m", "d") in others
    passing, others = item_shapes(fused("layernorm_matmul", "f16"))
    assert ("n", "d") in others, "it is converted first"
    passing, others = item_shapes(fused("matmul_epilogue", "f32", "matmul_gelu"))
    assert ("m", "n") in others, "gelu works on the product"


def test_a_product_of_normalised_rows_is_one_block_wide() -> None:
    sizes = {"m": 4096, "d": 512, "n": 1408}
    assert choose_tiles((fused("layernorm_matmul", "f32"),), sizes, {}) == {"m": TILE, "n": 2048}


def test_blocks_of_loops_that_leave_some_out_stay_small() -> None:
    programs = ready(fuse(lower(parse(example("causal_attention")), frozenset("de"))))
    sizes = {"b": 1, "h": 1, "m": 32768, "n": 32768, "d": 64, "e": 64}
    assert choose_tiles(programs, sizes, {"m": 16})["n"] == TILE


def test_what_is_computed_at_the_same_time_stays_in_many_blocks() -> None:
    program = parse("program p(X: f32[m]) -> Y: f32[m] { Y = exp(X) }")
    for size, block in ((512, 512), (3000, 512), (10_000, 2048), (2**22, 2**18)):
        assert choose_tiles(ready(fuse(lower(program, frozenset()))), {"m": size}, {})["m"] == block


def test_what_is_asked_for_changes_no_blocks_that_it_has_nothing_to_do_with() -> None:
    programs = ready(fuse(lower(parse(example("rmsnorm_swiglu")), frozenset("d"))))
    sizes = {"m": 4096, "z": 4096, "e": 512, "d": 512}
    assert choose_tiles(programs, sizes, {"m": 512, "z": 1024})["e"] == 256  # as many as fit with z, and not one


def test_what_is_asked_for_is_taken() -> None:
    tiles = choose_tiles((last("attention", "d e"),), {"m": 100, "n": 100, "d": 64, "e": 64}, {"m": 7, "b": 3})
    assert (tiles["m"], tiles["b"]) == (7, 3)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 100, 511, 512, 513])
def test_tiles_are_powers_of_two_no_larger_than_needed(size: int) -> None:
    tile = choose_tiles((last("mlp", ""),), {"m": size, "d": 10, "z": 10, "e": 10}, {})["m"]
    assert tile == min(TILE, power_of_two(size)) and (tile >= size or tile == TILE)
    assert tile == 1 or tile // 2 < size


def test_tiles_stay_inside_the_cache_in_every_snapshot() -> None:
    for name, whole in (("attention", "d e"), ("mlp", "d e"), ("rmsnorm_swiglu", "d e"), ("grouped_heads", "")):
        programs = ready(fuse(lower(parse(example(name)), frozenset(whole.split()))))
        program = programs[0]
        sizes = {dim.name: 10_000 for dim in program.dims if dim.name not in program.whole}
        sizes |= dict.fromkeys(program.whole, 128)
        tiles = choose_tiles(programs, sizes, {})
        for passing, others in map(item_shapes, programs):
            assert all(elements(axes, sizes, tiles) <= LARGEST_PASSING for axes in passing)
            assert all(elements(axes, sizes, tiles) <= LARGEST_TILE for axes in others)


def test_tiles_are_chosen_for_what_is_fused() -> None:
    source = "program p(X: f32[m, n], Y: f32[k, n], z: f32[n]) -> O: f32[m, k] { O = dot[n](X + sum[n](Y), z) }"
    derivation = fuse(lower(parse(source), frozenset()))
    sizes = dict.fromkeys("mnk", 4096)
    assert ("k", "m", "n") in set().union(*item_shapes(derivation.unfused)), "a sum larger than both of its terms"
    assert choose_tiles((derivation.unfused,), sizes, {}) != dict.fromkeys("mnk", TILE)
    assert choose_tiles(ready(derivation), sizes, {}) == dict.fromkeys("mnk", TILE)


def test_a_batch_dimension_is_one_in_every_snapshot() -> None:
    grouped, feed = last("grouped_heads", "d e"), last("mlp", "")
    sizes = {"b": 4, "kv": 4, "m": 64, "n": 64}
    assert choose_tiles((grouped,), sizes, {})["kv"] == 1
    assert choose_tiles((grouped, feed), sizes, {})["kv"] == 4


def test_the_cheapest_snapshot_is_chosen() -> None:
    derivation = fuse(lower(parse(example("rmsnorm_swiglu")), frozenset("d")))
    for z, e in ((64, 4096), (4096, 64), (512, 512)):
        sizes = {"m": 2048, "d": 256, "z": z, "e": e}
        plan = choose(ready(derivation), sizes, {"m": 64, "z": 64, "e": 64})
        seconds = [cost.seconds for cost in plan.costs]
        assert seconds[plan.snapshot] == min(seconds) and len(seconds) == len(derivation.snapshots)
        assert plan.program == compose(safe(derivation.snapshots[plan.snapshot]))


def test_of_nearly_equal_snapshots_the_one_with_fewer_kernels_is_chosen() -> None:
    statements = "r = rsqrt(mean[d](X * X)); Y = r * dot[d](X, W) + dot[d](b, W)"
    source = f"program p(X: f32[m, d], W: f32[d, n], b: f32[d]) -> Y: f32[m, n] {{ {statements} }}"
    derivation = fuse(lower(parse(source), frozenset("d")))
    sizes, tiles = {"m": 4096, "n": 4096, "d": 512}, {"m": 512, "n": 512}
    plan = choose(ready(derivation), sizes, tiles)
    apart, joined = plan.costs
    assert (apart.kernels, joined.kernels) == (2, 1)
    assert apart.seconds < joined.seconds <= CLOSE * apart.seconds and plan.snapshot == 1
    tiles["m"] = 32  # the sum over the weights would be repeated for every 32 rows
    plan = choose(ready(derivation), sizes, tiles)
    assert plan.costs[1].seconds > CLOSE * plan.costs[0].seconds and plan.snapshot == 0


def test_the_choice_depends_on_the_sizes() -> None:
    derivation = fuse(lower(parse(example("mlp")), frozenset("d")))

    def chosen(d: int, e: int, tile: int) -> int:
        return choose(
            ready(derivation), {"m": 4096, "d": d, "z": 4096, "e": e}, {"m": 256, "z": tile, "e": 256}
        ).snapshot

    assert chosen(4, 256, 256) == 2, "nothing is repeated with one block of e: the list goes"
    assert chosen(4096, 8192, 256) == 1, "32 blocks of e would repeat a long product: accumulators instead"
    assert chosen(4096, 8192, 16) == 0, "accumulators would be stored and loaded for every short block of z"


def test_composing_twice_changes_nothing() -> None:
    for seed in NORMAL_RUN[::2]:
        composed = compose(safe(random_derivation(seed).snapshots[-1]))
        assert compose(composed) == composed


# Chunks for units that would be idle

DECODE = {"b": 1, "h": 1, "m": 1, "d": 64, "e": 64}


def plan_of(name: str, sizes: dict[str, int], split: dict[str, int] | None = None, tile: int = 16384) -> Plan:
    program = load_program(EXAMPLES / f"{name}.blk", dtype="f32")
    return planned(Forms(program, {"n": tile}), sizes, split or {})[1]


def test_a_long_row_is_cut_into_chunks_for_all_units() -> None:
    plan = plan_of("attention", {**DECODE, "n": 32768})
    assert set(plan.program.chunks.values()) == {"n"}
    assert plan.note.startswith("loops over n are cut into 2 chunks")
    first, *_ = kernels(plan.program)
    assert tasks(plan.program, first, plan.sizes, plan.tiles) == 2
    assert idleness(plan.program, plan.sizes, plan.tiles) < 1.05


def test_rows_are_cut_into_smaller_blocks_first() -> None:
    plan = plan_of("attention", {**DECODE, "m": 500, "n": 4096}, tile=512)
    assert not plan.program.chunks
    assert plan.tiles["m"] == 256
    assert plan.note.startswith("blocks of m have 256 elements")
    program = load_program(EXAMPLES / "attention.blk", dtype="f32")
    asked = planned(Forms(program, {"m": 512}), {**DECODE, "m": 500, "n": 4096})[1]
    assert asked.tiles["m"] == 512


@pytest.mark.parametrize(
    "sizes",
    [
        {**DECODE, "n": 512},  # it takes no time
        {**DECODE, "n": 32768, "h": 8},  # the heads are tasks
        {**DECODE, "n": 4096, "m": 4096},  # the rows are
    ],
)
def test_nothing_is_cut_where_it_does_not_pay(sizes: dict[str, int]) -> None:
    plan = plan_of("attention", sizes)
    assert not plan.program.chunks
    assert not plan.note


def test_small_tiles_are_not_worth_a_thread() -> None:
    assert not plan_of("attention", {**DECODE, "n": 2**20}, tile=512).note


def test_what_is_asked_for_is_left_alone() -> None:
    assert plan_of("attention", {**DECODE, "n": 32768}, {"n": 1}).note == ""
    assert plan_of("attention", {**DECODE, "n": 32768}, {"n": 4}, 512).tiles["n_chunk"] == 8192


@pytest.mark.parametrize("offset", ["", " + 3", " + (size(n) - size(m))"])
def test_heads_are_tasks_wherever_a_causal_mask_begins(offset: str) -> None:
    """What is computed of positions, ahead of the loop over heads, is repeated by every task."""
    source = example("causal_attention").replace("index(m)", f"index(m){offset}")
    plan = planned(Forms(parse(source, dtype="f32"), {}), {**DECODE, "h": 8, "n": 256})[1]
    first, *_ = kernels(plan.program)
    assert tasks(plan.program, first, plan.sizes, plan.tiles) == 8


def test_idle_units_are_counted_by_kernel() -> None:
    plan = plan_of("attention", {**DECODE, "n": 32768}, {"n": 1})
    assert idleness(plan.program, plan.sizes, plan.tiles) == pytest.approx(2, abs=0.01)
    sizes = {**DECODE, "h": 3, "n": 32768}
    plan = plan_of("attention", sizes, {"n": 1})
    assert idleness(plan.program, plan.sizes, plan.tiles) == pytest.approx(4 / 3, abs=0.01)


def test_a_kernel_with_chunks_of_its_own_is_right() -> None:
    program = (EXAMPLES / "attention.blk").read_text(encoding="utf-8")
    kernel = blockc.compile(program, dtype="f32", tiles={"n": 16384})
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, 1, rows, 64)).astype(np.float32) for rows in (1, 32768, 32768))
    for rows in (32768, 700, 32768):
        found = kernel(q, k[:, :, :rows], v[:, :, :rows])
        exact = blockc.reference(program, Q=q, K=k[:, :, :rows], V=v[:, :, :rows])
        assert np.abs(found - exact).max() < 1e-6
    assert "n_chunk" in kernel.explain().parts[0].plan.tiles
