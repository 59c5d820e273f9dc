"""Plans for machines: bytes derived by hand, prediction against simulation, the choice, and parts of large programs."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machine_cases import check_random, random_machine
from oracle import EXAMPLES, difference, example, example_names, inputs, random_case

from blockc import driver, meaning
from blockc.data import random_arrays
from blockc.errors import LimitError
from blockc.ir.machine import ComputeUnit, Machine, Rate
from blockc.ir.schedule import Compute, Loop, Move, Pieces, Schedule, Stage, walk
from blockc.ir.schedule_text import format_schedule
from blockc.language import parse
from blockc.machines.loading import load_machine
from blockc.partition import Partition, partition, shape_of
from blockc.passes import cost
from blockc.passes.lifetimes import behind_loops
from blockc.passes.machine_cost import MachineCost, estimate, evaluate, formulas
from blockc.passes.machine_model import model
from blockc.passes.place import place
from blockc.passes.search import Searched, best_choice, first_found, search
from blockc.passes.segments import cuts, exponentials, operators, rounded, segment
from blockc.passes.units import Unplaceable, product_type
from blockc.planning import MachinePlan, search_plan
from blockc.simulating import simulated

SHIPPED = ("cpu", "h200", "a100", "ascend", "scratchpad", "toy")
LARGE = EXAMPLES / "large"


@cache
def machine(name: str) -> Machine:
    return load_machine(name)


def planned(text: str, target: str, sizes: dict[str, int], tiles: dict[str, int | None] | None = None) -> MachinePlan:
    program = parse(text)
    return search_plan(program, machine(target), driver.default_sizes(program, sizes), tiles or {})


def scheduled(
    text: str, target: str, sizes: dict[str, int], tiles: dict[str, int | None], **placement: str
) -> tuple[Schedule, MachineCost]:
    """The last snapshot on a machine, with given tiles and lists placed as said."""
    program = parse(text)
    programs = driver.Forms(program, tiles).of(sizes, {})[1]
    schedule = place(programs[-1], machine(target), placement)
    blocks = {dim: tile for dim, tile in tiles.items() if tile is not None}
    return schedule, evaluate(model(schedule), sizes, blocks)


# --- bytes by hand ---------------------------------------------------------------------------------------------------

PRODUCT = "program product(A: f16[m, k], B: f16[k, n]) -> C: f16[m, n] { C = dot[k](A, B) }"
SIZES = {"m": 96, "n": 80, "k": 64}
TILES: dict[str, int | None] = {"m": 32, "n": 16, "k": 16}


def test_a_product_on_a_chain_moves_what_one_counts_by_hand() -> None:
    _, found = scheduled(PRODUCT, "toy", SIZES, TILES)
    loaded = 2 * (96 * 64 * 5 + 64 * 80 * 3)  # A for each of 5 blocks of n, B for each of 3 of m
    stored = 2 * 96 * 80
    assert found.boundaries == {
        ("dram", "sram"): loaded,
        ("sram", "local"): loaded,
        ("local", "sram"): stored,
        ("sram", "dram"): stored,
    }
    assert found.flops["core"] == 2 * 96 * 80 * 64


def test_a_staged_list_crosses_the_outer_boundary_once() -> None:
    _, found = scheduled(PRODUCT, "toy", SIZES, TILES, B="sram")
    assert found.boundaries["dram", "sram"] == 2 * (96 * 64 * 5 + 64 * 80)
    assert found.boundaries["sram", "local"] == 2 * (96 * 64 * 5 + 64 * 80 * 3)
    assert found.peak["sram"] >= 2 * 64 * 80


def test_what_is_used_behind_a_loop_is_loaded_behind_it() -> None:
    """The residual and the bias take no space while products are summed, and behind that only that of pieces."""
    text = "program p(A: f32[m, k], B: f32[k, n], c: f32[n], R: f32[m, n]) -> C: f32[m, n] {\n"
    text += " C = relu(dot[k](A, B) + c) * R + c\n}\n"
    schedule, found = scheduled(text, "toy", SIZES, TILES, R="sram")
    (kernel,) = schedule.kernels
    body = next(node.body for node in walk(kernel) if isinstance(node, Loop) and len(node.body) > 1)
    (loop, pieces) = body
    assert isinstance(loop, Loop) and isinstance(pieces, Pieces)
    assert (loop.dim, pieces.dim, pieces.step) == ("k", "n", 8)
    steps = [node.name for node in pieces.body if isinstance(node, Move)]
    assert [step.partition(".")[0] for step in steps] == ["R", "c", "C"]
    block, residual, bias = 4 * 32 * 16, 4 * 32 * 8, 4 * 8
    for k in (16, 1):
        found = evaluate(model(schedule), SIZES, {"m": 32, "n": 16, "k": k})
        assert found.peak["local"] == block + max(residual + bias, 4 * (32 * k + 16 * k))


def test_a_load_stays_ahead_of_what_changes_its_list() -> None:
    load = Move("t", ("dram", "sram"), "f32", ("m",), "L")
    store = Move("u", ("sram", "dram"), "f32", ("m",), None, "L")
    loops = [Loop("n", False, (), (), None, (), body) for body in ((), (store,))]
    use = Move("t", ("sram", "local"), "f32", ("m",))
    assert behind_loops([load, loops[0], use]) == [loops[0], load, use]
    assert behind_loops([load, loops[0], loops[1], use]) == [loops[0], load, loops[1], use]
    assert behind_loops([load, store, use]) == [load, store, use]


@pytest.mark.parametrize("target", ["h200", "ascend", "toy"])
def test_formulas_give_the_bytes_of_every_boundary(target: str) -> None:
    program = parse(example("attention"))
    sizes = {"b": 2, "h": 3, "m": 100, "n": 70, "d": 24, "e": 40}
    tiles: dict[str, int | None] = {"b": 1, "h": 1, "m": 16, "n": 32, "d": 8, "e": 16}
    blocks = {dim: tile for dim, tile in tiles.items() if tile is not None}
    for snapshot in driver.Forms(program, tiles).of(sizes, {})[1]:
        found = model(place(snapshot, machine(target)))
        values = {**sizes, **{f"B_{dim}": -(-sizes[dim] // tile) for dim, tile in blocks.items()}}
        told = {
            way: int(formula.subs({symbol: values[symbol.name] for symbol in formula.free_symbols}))
            for way, formula in formulas(found).items()
        }
        assert told == evaluate(found, sizes, blocks).boundaries


def test_products_reach_the_vector_unit_through_global_memory_where_there_is_no_other_way() -> None:
    text = "program p(A: f16[m, k], B: f16[k, n]) -> C: f16[m, n] { C = relu(dot[k](A, B)) }"
    schedule, found = scheduled(text, "ascend", SIZES, TILES)
    product = next(
        node for node in walk(schedule.kernels[0]) if isinstance(node, Compute) and node.operation == "matmul"
    )
    assert (product.unit, product.tier) == ("cube", "L0C")
    assert found.boundaries["L0C", "GM"] == 4 * 96 * 80  # in f32
    assert found.boundaries["GM", "UB"] == 4 * 96 * 80
    assert found.boundaries["UB", "GM"] == 2 * 96 * 80


def test_causal_attention_moves_the_lower_triangle() -> None:
    text, blocks = example("causal_attention"), 16
    sizes = {"b": 1, "h": 1, "m": 256, "n": 256, "d": 64, "e": 64}
    tiles: dict[str, int | None] = {"b": 1, "h": 1, "m": 16, "n": 16, "d": None, "e": None}
    _, found = scheduled(text, "h200", sizes, tiles)
    triangle = blocks * (blocks + 1) // 2
    keys = 2 * 64 * 16 * 2 * triangle  # K and V in f16
    assert found.boundaries["hbm", "l2"] == keys + 2 * 256 * 64
    assert found.flops["tensor"] == 4 * 64 * 16 * 16 * triangle


@pytest.mark.parametrize("name", example_names())
def test_what_leaves_and_reaches_the_outermost_tier_is_what_the_block_program_moves(name: str) -> None:
    """But for a number for each head: tasks read for themselves what several of them need."""
    program = parse(example(name))
    sizes = driver.default_sizes(program, {})
    for tiles in ({}, dict.fromkeys(sizes, 16)):
        programs = driver.Forms(program, tiles).of(sizes, {})[1]
        blocks = driver.tiles_for(programs, sizes, tiles)
        for snapshot in programs:
            try:
                found = evaluate(model(place(snapshot, machine("scratchpad"))), sizes, blocks)
            except Unplaceable:
                assert name == "cosine_attention"
                continue
            moved = cost.traffic(snapshot, sizes, blocks)
            lists = {value for value, _ in moved if snapshot.types[value].lists} - {"scale", "lambda"}
            by_value: dict[str, int] = {}
            for (value, _, _), count in found.moved.items():
                by_value[value] = by_value.get(value, 0) + count
            for value in lists:
                assert by_value[value] == moved.get((value, "load"), 0) + moved.get((value, "store"), 0), value


# --- prediction and simulation (of examples: test_simulator.py) ------------------------------------------------------


@pytest.mark.parametrize("seed", [*range(24), 418, 827, 1093, 1115])  # the last ones failed once
def test_random_programs_on_random_machines_move_what_is_predicted(seed: int) -> None:
    check_random(seed)


# --- the choice ------------------------------------------------------------------------------------------------------


def test_estimates_of_many_choices_are_those_of_each() -> None:
    program = parse(example("attention"))
    sizes = {"b": 1, "h": 2, "m": 100, "n": 90, "d": 64, "e": 64}
    snapshot = driver.Forms(program, {}).of(sizes, {})[1][0]
    found = model(place(snapshot, machine("h200")))
    blocks = list(itertools.product([8, 16, 64, 128], [4, 32, 90]))
    together = estimate(
        found,
        sizes,
        {
            "b": np.ones(len(blocks)),
            "h": np.ones(len(blocks)),
            "m": np.array([m for m, _ in blocks], float),
            "n": np.array([n for _, n in blocks], float),
        },
    )
    for at, (m, n) in enumerate(blocks):
        alone = evaluate(found, sizes, {"b": 1, "h": 1, "m": m, "n": n})
        assert together.seconds[at] == pytest.approx(alone.seconds, rel=1e-12)
        assert {tier: int(space[at]) for tier, space in together.peak.items()} == alone.peak


@pytest.mark.parametrize("target", ["h200", "scratchpad"])
def test_no_block_sizes_on_the_grid_are_faster_than_the_chosen_ones(target: str) -> None:
    program = parse(example("attention"))
    sizes = {"b": 1, "h": 4, "m": 1024, "n": 512, "d": 64, "e": 64}
    programs = driver.Forms(program, {}).of(sizes, {})[1]
    (first,) = first_found(programs, machine(target), sizes, {})
    assert first.model is not None
    seconds = evaluate(first.model, sizes, first.chosen).seconds
    found = model(place(programs[0], machine(target)))
    sides = [float(1 << power) for power in range(2, 11)]
    grid = [(m, n) for m in sides for n in sides if n <= 512]
    ones = np.ones(len(grid))
    tiles = {"b": ones, "h": ones, "m": np.array([m for m, _ in grid]), "n": np.array([n for _, n in grid])}
    every = estimate(found, sizes, tiles)
    fits = every.fits(machine(target))
    assert not fits.all()
    assert seconds <= every.seconds[fits].min() * 1.001


def test_few_rows_and_many_keys_are_cut_into_chunks_where_units_would_idle() -> None:
    sizes = {"b": 1, "h": 8, "m": 1, "n": 32768, "d": 64, "e": 64}
    many = planned(example("attention"), "h200", sizes)
    assert "n_chunk" in many.chosen.choice.tiles and "chunks of n" in many.chosen.form
    assert max(kernel.tasks for kernel in many.cost.kernels) > 8
    one = planned(example("attention"), "scratchpad", sizes)  # it has one unit
    assert "n_chunk" not in one.chosen.choice.tiles


def test_tasks_that_run_at_the_same_time_load_what_they_share_once() -> None:
    """Bytes are those that every task asks for; the time is that of what reaches the cache from the memory."""
    sizes = {"m": 4096, "n": 4096, "k": 256}
    tiles: dict[str, int | None] = {"m": 64, "n": 64, "k": 64}
    _, found = scheduled(PRODUCT, "h200", sizes, tiles)
    asked = 2 * 2 * 4096 * 256 * 64  # A for each of 64 blocks of n, B for each of 64 of m
    assert found.boundaries["hbm", "l2"] == asked
    side = 132**0.5  # of a square of tasks, one for each unit: they share rows of A and columns of B
    time = found.kernels[0].resources
    assert time["hbm -> l2"] == pytest.approx(asked / side / 4.3e12)
    assert time["reading l2"] > 0.9 * asked / 8.986e12  # nobody saves that


def test_tasks_that_look_at_other_blocks_do_not_share_them() -> None:
    """All keys and values are loaded once, though each task looks at few of them. Results take the same bus."""
    sizes = {"b": 2, "h": 16, "m": 8192, "n": 8192, "d": 128, "e": 128}
    plan = planned(example("sliding_window_attention"), "h200", sizes, {"m": 64, "n": 64, "b": 1, "h": 1})
    least = 4 * 2 * 2 * 16 * 8192 * 128
    assert least - 1 < plan.cost.kernels[0].resources["bus of hbm"] * 4.3e12 < 1.1 * least


@pytest.mark.parametrize(("duplex", "seconds"), [("half", 2 + 4), ("full", 4)])
def test_reading_and_writing_take_turns_where_they_share_a_bus(duplex: str, seconds: float) -> None:
    """Two bytes are read and four are written for each element."""
    on = machine("h200")
    outermost, *rest = on.tiers
    on = replace(on, tiers=(replace(outermost, duplex=duplex), *rest))
    text = "program p(X: f16[m, n]) -> Y: f32[m, n] { Y = 2 * X }"
    sizes = {"m": 2**15, "n": 2**15}
    program = driver.Forms(parse(text), {}).of(sizes, {})[1][0]
    found = evaluate(model(place(program, on)), sizes, {"m": 128, "n": 128})
    assert found.bottleneck == ("bus of hbm" if duplex == "half" else "l2 -> hbm")
    assert found.seconds == pytest.approx(on.dispatch + seconds * 2**30 / 4.3e12)


def test_machines_choose_different_fusion() -> None:
    sizes = {"b": 1, "h": 1, "m": 1024, "n": 1024, "d": 64, "e": 64}
    large, small = (planned(example("attention"), target, sizes) for target in ("h200", "toy"))
    assert large.chosen.choice.program.whole == {"d", "e"}
    assert not small.chosen.choice.program.whole  # a head does not fit into 4 KiB
    for plan in (large, small):
        for tier in plan.machine.tiers:
            assert plan.cost.peak.get(tier.name, 0) <= tier.capacity


def test_the_chosen_candidate_is_the_fastest_and_the_others_say_why_not() -> None:
    from blockc.inspector.choices import why_not

    plan = planned(example("rmsnorm_swiglu"), "ascend", {"m": 1024, "d": 1024, "z": 2048, "e": 1024})
    times = [candidate.choice.cost.seconds for candidate in plan.candidates if candidate.choice.cost is not None]
    assert len(times) > 2 and plan.cost.seconds <= 1.005 * min(times)
    assert all(why_not(plan, candidate) for candidate in plan.candidates[1:])
    assert any("in the chosen one" in why_not(plan, candidate) for candidate in plan.candidates[1:])


def test_what_cannot_fit_names_the_tier_the_need_and_the_limit() -> None:
    tiles = dict.fromkeys(("m", "n", "d", "e"), 4096)
    with pytest.raises(LimitError, match=r"bytes are needed in local, which has 4,096"):
        planned(example("attention"), "toy", {"m": 4096, "n": 4096, "d": 4096, "e": 4096}, {**tiles})


def test_a_machine_without_vector_operations_is_refused() -> None:
    only = random_machine(3)
    products = {"matmul": {"f32": Rate(1e9, (1, 1, 1))}}
    unit = ComputeUnit("matrix", (only.tiers[-1].name,), only.tiers[-1].name, products)
    bare = Machine("bare", "", "none", 1, 0.0, 0.0, only.tiers, only.moves, (unit,))
    program = parse(PRODUCT)
    with pytest.raises(LimitError, match="no compute unit has a rate for vector operations"):
        search_plan(program, bare, SIZES, {})


def test_schedules_as_text_name_tiers_and_ways() -> None:
    schedule, _ = scheduled(PRODUCT, "toy", SIZES, TILES, B="sram")
    text = format_schedule(schedule)
    assert "list B@sram in sram: f16[n][k](n, k) <- B, dram -> sram" in text
    (loaded,) = [line.strip() for line in text.splitlines() if " <- A, " in line]
    assert loaded.endswith(" in local: f16(m, k) <- A, dram -> sram -> local")
    assert any(isinstance(node, Stage) for node in walk(schedule.kernels[0]))
    assert all(len(node.path) > 1 for node in walk(schedule.kernels[0]) if isinstance(node, Move))


# --- parts of large programs -----------------------------------------------------------------------------------------

LAYER = {"s": 24, "d": 16, "h": 2, "k": 8, "z": 40, "c": 16}
BLOCKS: dict[str, int | None] = {"s": 8, "t": 8, "d": 8, "h": 1, "k": 4, "z": 16, "c": 8}


@cache
def large(name: str) -> Any:
    return parse((LARGE / f"{name}.blk").read_text())


@cache
def layer_on_toy() -> Partition:
    program = large("transformer_layer")
    return partition(program, machine("toy"), driver.default_sizes(program, LAYER), BLOCKS)


def run_parts(program: Any, places: tuple[int, ...], sizes: dict[str, int], arrays: dict[str, Any]) -> dict[str, Any]:
    """The meaning of the parts between places, one after the other."""
    known = dict(arrays)
    for start, end in itertools.pairwise(places):
        part = segment(program, start, end, sizes)
        found = meaning.evaluate(part, {argument.name: known[argument.name] for argument in part.inputs})
        known.update(found)
    return {result.argument.name: known[result.argument.name] for result in program.outputs}


@pytest.mark.parametrize("seed", range(24))
def test_parts_of_random_programs_mean_what_the_whole_means(seed: int) -> None:
    case = random_case(seed)
    program = case.program
    arrays = inputs(case)
    expected = meaning.evaluate(program, arrays)
    inner = range(1, len(operators(program)))
    choice = random.Random(f"cuts {seed}")
    for places in (
        cuts(program, case.sizes),
        tuple(sorted({0, *choice.sample(inner, min(2, len(inner))), inner.stop})),
    ):
        for name, found in run_parts(program, places, case.sizes, dict(arrays)).items():
            assert not difference(found, expected[name], 1e-9), f"{places}\n{case.reproduction()}"


def test_a_layer_is_cut_into_parts_that_mean_what_it_means() -> None:
    program = large("transformer_layer")
    sizes = driver.default_sizes(program, LAYER)
    found = layer_on_toy()
    assert len(found.parts) > 1
    arrays = random_arrays(program, sizes, 0)

    outputs, measured = simulated(found, arrays)
    assert not measured.difference
    assert not difference(outputs["Y"], meaning.evaluate(program, arrays)["Y"], 1e-9)
    for space in measured.spaces:
        assert space.measured <= space.capacity


def test_the_parts_are_the_cheapest_of_all_that_were_looked_at() -> None:
    """Every way from the first to the last operator through parts that were looked at takes at least as long."""
    found = layer_on_toy()
    chosen = sum(candidate.seconds for candidate in found.candidates if candidate.chosen)
    order = [node.name for node in operators(found.program)]
    least = {-1: 0.0}
    for candidate in sorted(found.candidates, key=lambda candidate: order.index(candidate.last)):
        before = least.get(order.index(candidate.first) - 1)
        last = order.index(candidate.last)
        if before is not None:
            least[last] = min(least.get(last, np.inf), before + candidate.seconds)
    assert chosen == pytest.approx(least[len(order) - 1])
    assert found.candidates and not all(candidate.chosen for candidate in found.candidates)


def test_parts_of_a_stack_are_alike() -> None:
    """So each is looked at once: a stack of eight layers has few more kinds of parts than two of them."""
    program = large("transformer_stack")
    sizes = driver.default_sizes(program, LAYER)
    places = cuts(program, sizes)
    kinds: dict[object, int] = {}
    for end in range(1, len(places)):
        for start in range(max(0, end - 3), end):
            key = shape_of(segment(program, places[start], places[end], sizes), sizes, {})
            kinds[key] = kinds.get(key, 0) + 1
    assert len(places) > 100 and sum(kinds.values()) > 300
    assert len(kinds) < 90


def test_the_fastest_choice_is_the_simplest_of_equals() -> None:
    program = parse(example("attention"))
    sizes = {"b": 1, "h": 1, "m": 64, "n": 64, "d": 64, "e": 64}
    programs = driver.Forms(program, {}).of(sizes, {})[1]
    (choice,) = search(programs, machine("h200"), sizes, {}, Searched())
    assert best_choice((choice, choice)) is choice
    assert best_choice(()) is None


def test_examples_are_in_their_folder() -> None:
    assert {path.stem for path in Path(LARGE).glob("*.blk")} == {"transformer_layer", "transformer_stack"}


# --- found by reviews ------------------------------------------------------------------------------------------------

LARGE_LOGITS = """program p(Q: f32[m, d], K: f32[n, d], V: f32[n, e]) -> O: f32[m, e] {
    E = exp(1000 * dot[d](Q, K))
    O = dot[n](E, V) / sum[n](E)
}"""


def test_products_side_by_side_may_be_parts() -> None:
    """Of what they all read a large product takes other blocks than a small one; like ones go well together."""

    def ends(name: str) -> set[str]:
        program = parse(example(name))
        nodes = [node.name for node in operators(program)]
        return {nodes[at] for at in cuts(program, driver.default_sizes(program, {}))[1:-1]}

    assert ends("rmsnorm_qkv") >= {"Q", "K", "V"}
    assert "G" in ends("rmsnorm_swiglu") and "U" not in ends("rmsnorm_swiglu")


@pytest.mark.parametrize(
    ("body", "out", "found"),
    [
        ("C = dot[k](exp(A), B)", "bf16[m, n]", {"C.1"}),
        ("C = dot[k](exp(A), B)", "f32[m, n]", set()),  # it is part of an output that nobody rounds
        ("C = dot[k](exp(A), exp(B))", "bf16[m, n]", set()),  # both are f32
        ("P = exp(A); C = dot[k](P, B) + sum[k](P)", "bf16[m, n]", set()),  # the sum is of all digits
        ("C = dot[k](exp(A), B)", "bf16[m]", set()),  # no product of matrices
    ],
)
def test_what_every_product_rounds_is_stored_so(body: str, out: str, found: set[str]) -> None:
    text = f"program p(A: bf16[m, k], B: bf16[{'k, n' if 'n' in out else 'k'}]) -> C: {out} {{ {body} }}"
    assert rounded(parse(text)).keys() == found
    assert not rounded(parse(text.replace("bf16", "f16"))), "which has not the range of f32"


def test_no_cut_makes_a_plain_number_of_an_exponential() -> None:
    """It was infinite, and the result no number."""
    program = parse(LARGE_LOGITS)
    sizes = {"m": 64, "n": 64, "d": 16, "e": 16}
    names = [node.name for node in operators(program)]
    for place_ in cuts(program, sizes)[1:-1]:
        assert names.index("E") >= place_, "the exponential is in the last part"
    found = partition(program, machine("scratchpad"), sizes, {})
    arrays = random_arrays(program, sizes, 0)
    outputs, measured = simulated(found, arrays)
    assert not measured.difference
    assert not difference(outputs["O"], meaning.evaluate(program, arrays)["O"], 1e-9)


@pytest.mark.parametrize(
    ("formula", "still"),
    [
        ("exp(X)", True),
        ("exp(X) * 2", True),
        ("sum[n](exp(X))", True),
        ("exp(X) / sum[n](exp(X))", False),
        ("log(sum[n](exp(X)))", False),
        ("recip(sum[n](exp(X)))", True),
        ("exp(X) * recip(sum[n](exp(X)))", False),
        ("where(X > 0, exp(X), 0)", True),
        ("tanh(exp(X))", False),
        ("exp(X) / max[n](exp(X))", False),
        ("exp(X) / min[n](exp(X))", True),
        ("sum[n](exp(X)) / exp(X)", True),
        ("exp(X) * exp(X) / exp(X)", True),
        ("exp(i8(X)) / sum[n](exp(i32(X)))", True),
        ("exp(X) - exp(X)", True),
        ("X * X", False),
    ],
)
def test_what_is_still_an_exponential(formula: str, still: bool) -> None:
    text = formula.replace("recip(", "1 / (")
    axes = "m" if formula in ("sum[n](exp(X))", "log(sum[n](exp(X)))", "recip(sum[n](exp(X)))") else "m, n"
    program = parse(f"program p(X: f32[m, n]) -> O: f32[{axes}] {{ O = {text} }}")
    assert ("O" in exponentials(program)) is still


@pytest.mark.parametrize(
    "text", ["program p(X: f32[m]) -> Y: f32[m] { Y = X }", "program p(a: f32[]) -> z: f32[] { z = exp(a) + 1 }"]
)
def test_a_program_of_names_and_numbers_is_one_part(text: str) -> None:
    program = parse(text)
    sizes = driver.default_sizes(program, {})
    found = partition(program, machine("toy"), sizes, {})
    arrays = random_arrays(program, sizes, 0)
    outputs, _ = simulated(found, arrays)
    assert len(found.parts) == 1
    for name, expected in meaning.evaluate(program, arrays).items():
        assert not difference(outputs[name], expected, 1e-9)


def test_arguments_of_all_parts_have_to_fit_together() -> None:
    """What a part has nothing to do with lies in the outermost tier all the same."""
    program = parse(PRODUCT)
    toy = machine("toy")
    (dram, *inner) = toy.tiers
    sizes = {"m": 64, "n": 64, "k": 64}
    need = 3 * 2 * 64 * 64
    for capacity, fits in ((need, True), (need - 64, False)):
        small = replace(toy, tiers=(replace(dram, capacity=capacity), *inner))
        if fits:
            partition(program, small, sizes, {})
        else:
            with pytest.raises(LimitError, match="are needed in dram"):
                partition(program, small, sizes, {})
    found = layer_on_toy()
    arguments = 2 * sum(np.prod([found.sizes[dim] for dim in a.dims]) for a in found.program.inputs)
    _, measured = simulated(found, random_arrays(found.program, dict(found.sizes), 0))
    assert measured.spaces[0].measured > arguments


def test_tiny_tiers_get_tiny_blocks() -> None:
    toy = machine("toy")
    small = replace(toy, tiers=(*toy.tiers[:-1], replace(toy.tiers[-1], capacity=96)))
    plan = search_plan(parse(PRODUCT.replace("f16", "f32")), small, {"m": 20, "n": 40, "k": 16}, {})
    assert plan.cost.peak["local"] <= 96 and min(plan.chosen.choice.tiles.values()) < 4


def test_products_take_the_exact_type_and_the_fastest_unit() -> None:
    last = random_machine(3).tiers[-1].name
    slow = ComputeUnit("slow", (last,), last, {"matmul": {"f32": Rate(1e11, (1, 1, 1)), "f16": Rate(1e9, (1, 1, 1))}})
    fast = ComputeUnit("fast", (last,), last, {"matmul": {"f16": Rate(2e12, (1, 1, 1))}})
    vector = ComputeUnit("vector", (last,), last, {"vector": {"f32": Rate(1e9, (1,))}})
    both = replace(random_machine(3), compute=(slow, fast, vector))
    for types, unit, rated in (("f16 f16", "fast", "f16"), ("f16 f32", "fast", "f16"), ("f32 f32", "slow", "f32")):
        left, right = types.split()
        program = parse(f"program p(A: {left}[m, k], B: {right}[k, n]) -> C: f32[m, n] {{ C = dot[k](A, B) }}")
        schedule = place(driver.Forms(program, TILES).of(SIZES, {})[1][0], both)
        (product,) = (n for n in walk(schedule.kernels[0]) if isinstance(n, Compute) and n.operation == "matmul")
        assert (product.unit, product.rated) == (unit, rated)


def test_whole_numbers_and_floats_multiply_as_floats() -> None:
    assert product_type(["i8", "f32"]) == "f32" and product_type(["bool", "f16"]) == "f16"
    assert product_type(["i8", "i32"]) == "i32" and product_type(["f32", "f16"]) == "f16"
