"""Loops whose first iteration is ahead of them, in plans and in kernels."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from oracle import NORMAL_RUN, Case, difference, example, inputs, peel_all, random_case, random_derivation

import blockc
from blockc import driver, meaning
from blockc.codegen import loader, numpy_source
from blockc.data import random_arrays
from blockc.inspector.explanation import explain_for
from blockc.ir.block import Map, Program, walk
from blockc.ir.interpret import interpret
from blockc.ir.text import format_program, parse_program
from blockc.ir.verify import verify
from blockc.language import parse
from blockc.machines.loading import load_machine
from blockc.partition import partition
from blockc.passes.bound_loops import bound_loops
from blockc.passes.choose import compose, peeled_dimensions, ready, safe
from blockc.passes.cost import traffic, traffic_formula
from blockc.passes.split import split
from blockc.planning import machine_plan

ATTENTION = example("attention").replace("f16", "f32")
ROW_SUM = "program row_sum(X: f32[m, n]) -> S: f32[m] {\n    S = sum[n](exp(X) * X)\n}\n"
MAXIMA = """program maxima(X: f32[m, n], Y: i32[m, n]) -> (A: f32[m], B: f32[m], C: i32[m]) {
    A = max[n](X)
    B = min[n](X)
    C = max[n](Y)
}
"""
SIZES = {"b": 1, "h": 2, "m": 6, "d": 4, "n": 5, "e": 3}


def kernel_of(source: str, tiles: dict[str, int]) -> tuple[Any, Any, Program]:
    """A program, the `launch` of it with the first iterations of all loops ahead of them, and what was emitted."""
    program = parse(source)
    derivation = driver.derive(program, {}, tiles)
    peeled = peel_all(ready(derivation)[-1])
    assert peeled_dimensions(peeled)
    return program, loader.load(numpy_source.emit(peeled, tiles)), peeled


@pytest.mark.parametrize("source", [ATTENTION, ROW_SUM, MAXIMA], ids=["attention", "row sum", "maxima"])
@pytest.mark.parametrize("tile", [1, 3])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 6, 7])
def test_a_peeled_kernel_is_right_for_any_number_of_blocks(source: str, tile: int, length: int) -> None:
    dims = {dim.name for dim in parse(source).dims}
    tiles = {dim: tile if dim in ("m", "n") else 1 for dim in dims - {"d", "e"}}
    program, launch, _ = kernel_of(source, tiles)
    sizes = {dim: size for dim, size in {**SIZES, "n": length}.items() if dim in dims}
    arrays = random_arrays(program, sizes, 0)
    expected = meaning.evaluate(program, arrays)
    got = launch(arrays, 1)
    for name, array in expected.items():
        if name == "C" and not length:  # the least number of the type stands for minus infinity
            assert np.all(got[name] == np.iinfo(np.int32).min)
        else:
            assert not difference(got[name], array, 1e-5), name
    again = launch(arrays, 3)
    assert all(np.array_equal(again[name], got[name]) for name in got)


def test_what_the_first_block_gives_is_not_combined_with_an_identity() -> None:
    source = blockc.compile(ATTENTION, dims={"m": 64, "n": 64}).source
    body = source.split("def task(")[1]
    first, rest = re.split(r"else:\n(?:\s+v\d+\.fill\(.*\)\n){3}", body)
    assert "n first uses" in first and ".fill(" not in first and "np.add(" not in first
    assert len(re.findall(r"np\.exp2?\(", first)) == 1 and first.count("np.matmul(") == 3
    again = "np.exp2(" in rest  # then the logits stand there once more, for the block in which subtracting begins
    assert len(re.findall(r"np\.exp2?\(", rest)) == 2 and rest.count("np.matmul(") == 3 + again
    assert "np.copyto(v" not in rest.split("map n rest")[0]  # the accumulators are what the first block has given


def test_the_scale_of_an_operand_is_computed_once_for_both_parts() -> None:
    source = blockc.compile(ATTENTION, dims={"m": 64, "n": 64}).source
    assert len(re.findall(r"np\.multiply\(\w+, f\d+, ", source)) == 1


@pytest.mark.parametrize(("length", "peeled"), [(0, set()), (1, {"n"}), (512, {"n"}), (1024, {"n"}), (1025, set())])
def test_loops_of_few_blocks_are_peeled(length: int, peeled: set[str]) -> None:
    kernel = blockc.compile(ATTENTION)
    plan = kernel.specialise({"b": 2, "h": 2, "m": 512, "d": 16, "n": length, "e": 16}).plan
    assert peeled_dimensions(plan.program) == peeled


def test_few_and_many_blocks_have_kernels_of_their_own() -> None:
    kernel = blockc.compile(ATTENTION)
    sizes = {"b": 2, "h": 2, "m": 512, "d": 16, "e": 16}
    few, more, many = (kernel.specialise({**sizes, "n": length}).source for length in (600, 1000, 5000))
    assert few == more != many
    assert "map n first" in few and "map n first" not in many


def test_the_blocks_of_a_chunk_are_counted() -> None:
    source = "program total(X: f32[m, n]) -> S: f32[m] {\n    S = sum[n](exp(X))\n}\n"
    kernel = blockc.compile(source, tiles={"m": 4, "n": 8}, split={"n": 4})
    for length, peeled in ((61, {"n"}), (64, {"n"}), (65, set())):  # two blocks in each of four chunks, or three
        arrays = random_arrays(kernel.program, {"m": 4, "n": length}, 0)
        assert not difference(kernel(**arrays), meaning.evaluate(kernel.program, arrays)["S"], 1e-5)
        assert peeled_dimensions(kernel.specialise({"m": 4, "n": length}).plan.program) == peeled


def test_bounded_loops_are_left_alone() -> None:
    plan = (
        blockc.compile(example("causal_attention"), dims={"m": 64})
        .specialise(driver.default_sizes(parse(example("causal_attention")), {"m": 64}))
        .plan
    )
    assert any(isinstance(node, Map) and node.where is not None for node in walk(plan.program.body))
    assert not peeled_dimensions(plan.program)


@pytest.mark.parametrize(("target", "peeled"), [("cpu", {"n"}), ("toy", set())])
def test_schedules_are_made_of_whole_loops(target: str, peeled: set[str]) -> None:
    program = parse(ATTENTION)
    found = machine_plan(program, load_machine(target), driver.default_sizes(program, SIZES), {})
    placed = [candidate.choice.program for candidate in found.candidates]
    assert placed and not any(map(peeled_dimensions, placed))
    assert peeled_dimensions(found.plan.program) == peeled  # in kernels, which the schedule of this computer models


def test_explain_names_peeled_loops() -> None:
    program = parse(ATTENTION)
    for length, expected in ((64, ["n"]), (4096, [])):
        sizes = driver.default_sizes(program, {**SIZES, "m": 512, "n": length})
        explained = explain_for("cpu", partition(program, load_machine("cpu"), sizes, {}))
        line = "the first iteration of the loop over n is ahead of it (rule 7)"
        assert (line in str(explained)) == bool(expected)
        assert explained.to_json()["peeled"] == expected


def check_bytes(case: Case, program: Program, tiles: dict[str, int]) -> None:
    """A program is right, is what its text says, and moves what is predicted."""
    verify(program)
    assert format_program(parse_program(format_program(program))) == format_program(program)
    arrays = inputs(case)
    run = interpret(program, arrays, case.sizes, tiles)
    counted = {(name, "load"): count for name, count in run.loads.items() if count}
    counted |= {(name, "store"): count for name, count in run.stores.items() if count}
    predicted = {key: count for key, count in traffic(program, case.sizes, tiles, arrays).items() if count}
    assert predicted == counted, case.reproduction()
    for name, expected in meaning.evaluate(case.program, arrays).items():
        assert not difference(run.outputs[name], expected), (name, case.reproduction())


def test_peeled_random_programs_in_chunks_move_what_is_predicted() -> None:
    checked = 0
    for seed in NORMAL_RUN[::3]:
        case = random_case(seed)
        divided = split(random_derivation(seed), set(case.sizes)).snapshots[-1]
        peeled = peel_all(bound_loops(compose(safe(divided))))
        if divided.chunks and peeled_dimensions(peeled):
            tiles = {dim: max(1, tile) for dim, tile in case.tiles.items()}
            check_bytes(case, peeled, {**tiles, **{chunk: 2 * tiles[base] for chunk, base in divided.chunks.items()}})
            checked += any(node.dim in divided.chunks.values() for node in walk(peeled.body) if isinstance(node, Map))
    assert checked > 3


def test_traffic_formula_of_the_parts_of_a_loop() -> None:
    _, _, peeled = kernel_of(ROW_SUM, {"m": 2, "n": 2})
    assert str(traffic_formula(peeled)) == "4*m*(n - first(n)) + 4*m*first(n) + 4*m"
    assert traffic_formula(peeled).expand() == traffic_formula(ready(driver.derive(parse(ROW_SUM), {}, {}))[-1])
