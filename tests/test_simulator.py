"""The simulator: meaning of schedules; bytes, peaks and times derived by hand; what it refuses."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import (
    Case,
    derive,
    difference,
    example,
    example_names,
    fused,
    inputs,
    lowered,
    random_case,
    random_derivation,
)
from selection import in_turn

from blockc.codegen.simulator import CapacityExceeded, Simulation, SimulationError, simulate
from blockc.ir.block import Program
from blockc.ir.decisions import Derivation
from blockc.ir.interpret import interpret
from blockc.ir.machine import ComputeUnit, Machine, Rate, Tier, chain
from blockc.ir.schedule import Combine, Compute, Loop, Move, Pieces, Schedule, Stage, Statement, walk
from blockc.ir.text import parse_program
from blockc.language import parse
from blockc.machines.loading import load_machine
from blockc.meaning import evaluate
from blockc.passes import choose
from blockc.passes.machine_cost import evaluate as evaluate_cost
from blockc.passes.machine_model import model
from blockc.passes.place import place
from blockc.passes.split import split
from blockc.passes.units import Unplaceable

SHIPPED = ("cpu", "h200", "a100", "ascend", "scratchpad", "toy")
RELATIVE = 1e-9
SIZES = {"b": 2, "h": 2, "m": 7, "n": 13, "d": 6, "e": 9, "k": 9, "z": 14, "v": 11, "kv": 2, "g": 1}
TILES = {"b": 2, "h": 1, "m": 4, "n": 7, "d": 4, "e": 5, "k": 5, "z": 9, "v": 6, "kv": 1, "g": 1}
PLACEMENTS = 1 / 3  # how often a list is placed somewhere, where placements are drawn

Arrays = Mapping[str, Any]
Sizes = Mapping[str, int]


@cache
def machine(name: str) -> Machine:
    return load_machine(name)


@cache
def example_case(name: str, whole: str) -> tuple[Case, Derivation]:
    source = example(name).replace("d=64", "d=6").replace("e=128", "e=9")
    dims = {dim.name for dim in parse(source).dims}
    sizes = {dim: SIZES[dim] for dim in dims}
    case = Case(source, sizes, {dim: TILES[dim] for dim in dims}, frozenset(whole.split()) & dims)
    return case, fused(lowered(case))


def check_outputs(case: Case, found: Simulation, stage: str) -> None:
    for name, expected in evaluate(case.program, inputs(case)).items():
        assert not difference(found.outputs[name], expected, RELATIVE), f"{stage}, {name}\n{case.reproduction()}"


def check_prediction(schedule: Schedule, sizes: Sizes, tiles: Sizes, arrays: Arrays, found: Simulation) -> None:
    """Bytes by value and boundary and operations by unit are those that are predicted, and space is no more."""
    cut = {dim: tile for dim, tile in tiles.items() if dim not in schedule.program.whole}
    predicted = evaluate_cost(model(schedule), sizes, cut, arrays)
    for counts, others in ((predicted.moved, found.moved), (predicted.flops, found.flops)):
        assert positive(counts) == positive(others)
    assert positive(predicted.special) == positive(found.special)
    for tier, peak in found.peak.items():
        assert peak <= predicted.peak.get(tier, 0)


def positive(counts: Mapping[Any, int]) -> dict[Any, int]:
    return {key: count for key, count in counts.items() if count}


# Of the machines every second one from a first one on.
@pytest.mark.parametrize(("name", "whole", "first"), in_turn(example_names(), ["", "d e"], [0, 1], of=2))
def test_examples_on_all_machines_mean_what_they_mean(name: str, whole: str, first: int) -> None:
    case, derivation = example_case(name, whole)
    arrays, expected = inputs(case), evaluate(case.program, inputs(case))
    for number, program in enumerate(choose.ready(derivation)):
        for target in SHIPPED[first::2]:
            schedule = place(program, machine(target))
            found = simulate(schedule, arrays, case.sizes, case.tiles)
            for output, right in expected.items():
                problem = difference(found.outputs[output], right, RELATIVE)
                assert not problem, f"snapshot {number} on {target}: {problem}"
            check_prediction(schedule, case.sizes, case.tiles, arrays, found)


@pytest.mark.parametrize("seed", [*range(12), 58])
def test_random_programs_mean_what_they_mean(seed: int) -> None:
    case = random_case(seed)
    for number, program in enumerate(choose.ready(random_derivation(seed))):
        for target in ("ascend", "toy"):
            schedule = place(program, machine(target))
            found = simulate(schedule, inputs(case), case.sizes, case.tiles)
            check_outputs(case, found, f"snapshot {number} on {target}")
            check_prediction(schedule, case.sizes, case.tiles, inputs(case), found)


@pytest.mark.parametrize("name", ["attention", "rmsnorm_swiglu", "grouped_heads", "linear_attention"])
def test_placements_change_no_result(name: str) -> None:
    case, derivation = example_case(name, "")
    placed = 0
    for number, program in enumerate(choose.ready(derivation)):
        lists = sorted(value for value, kind in program.types.items() if not kind.is_item)
        for target in ("scratchpad", "toy", "h200"):
            draw = random.Random(f"{name} {number} {target}")
            tiers = [tier.name for tier in machine(target).tiers]
            placement = {value: draw.choice(tiers) for value in lists if draw.random() < PLACEMENTS}
            try:
                schedule = place(program, machine(target), placement)
            except Unplaceable:
                continue
            found = simulate(schedule, inputs(case), case.sizes, case.tiles)
            check_outputs(case, found, f"{number} {placement}")
            check_prediction(schedule, case.sizes, case.tiles, inputs(case), found)
            placed += 1
    assert placed


@pytest.mark.parametrize("name", ["attention", "layernorm_matmul", "cross_entropy"])
def test_chunks_mean_what_they_mean(name: str) -> None:
    case, derivation = example_case(name, "d e")
    chunked = 0
    for number, program in enumerate(choose.ready(split(derivation, {"n", "d", "v"}))):
        chunked += bool(program.chunks)
        tiles = {**case.tiles, **{dim: 2 * case.tiles[base] for dim, base in program.chunks.items()}}
        for target in ("h200", "toy"):
            schedule = place(program, machine(target))
            found = simulate(schedule, inputs(case), case.sizes, tiles)
            check_outputs(case, found, f"snapshot {number} on {target}")
            check_prediction(schedule, case.sizes, tiles, inputs(case), found)
    assert chunked or name != "attention"


ACCUMULATORS = Path(__file__).parent / "data" / "broken" / "bases" / "accumulators.txt"


@pytest.mark.parametrize(("m", "e", "n"), [(5, 4, 7), (1, 1, 1), (3, 2, 0), (2, 0, 4), (0, 3, 4)])
def test_lists_are_accumulated_tile_by_tile(m: int, e: int, n: int) -> None:
    program = parse_program(ACCUMULATORS.read_text())
    draw = np.random.default_rng(m + 10 * n)
    shapes = {"X": (m, n), "V": (n, e), "W": (n, 3), "Y": (m, e)}
    arrays = {name: draw.standard_normal(shape) for name, shape in shapes.items()}
    sizes, tiles = {"m": m, "e": e, "n": n, "d": 3}, {"m": 2, "e": 3, "n": 3}
    expected = interpret(program, arrays, sizes, tiles).outputs
    for target in SHIPPED:
        found = simulate(place(program, machine(target)), arrays, sizes, tiles).outputs
        for name, array in expected.items():
            assert not difference(found[name], array, RELATIVE)


# --- a machine and a program small enough to count by hand ------------------------------------------------------------

ROWS = """program rows
dim m
dim n
array X: f32[m, n]
array S: f32[m]
input X: slow f32[m][n](m, n) = X[m, n]
map m {
  x: slow f32[n](m, n) <- X
  map n {
    y: local f32(m, n) <- x
    s: local f32(m) = sum[n](y)
    => T: local f32(m) = add(s)
  }
  => S: slow f32[m](m) = stack(T)
}
output S = S
"""
PLENTY = 10**9


Rates = Mapping[str, Mapping[str, Rate]]


def small_machine(
    units: int = 1, buffers: int = 1, read: float = PLENTY, near: int = PLENTY, rates: Rates | None = None
) -> Machine:
    """Far memory, a device's one in the middle, and a near one for each unit; a byte and an operation take a second."""
    tiers = (
        Tier("far", PLENTY, read, PLENTY, "device", "scratchpad", 64, 0.0, 1),
        Tier("middle", PLENTY, PLENTY, PLENTY, "device", "scratchpad", 32, 0.0, 1),
        Tier("near", near, 1.0, 1.0, "unit", "scratchpad", 16, 0.0, buffers),
    )
    operations = rates or {"vector": {"f32": Rate(float(units), ()), "f64": Rate(float(units), ())}}
    core = ComputeUnit("core", ("near",), "near", operations)
    return Machine("small", "", "none", units, 1.0, 0.0, tiers, chain(tiers), (core,))


def without_middle(units: int = 1, buffers: int = 1, read: float = PLENTY) -> Machine:
    """The same without the memory in the middle."""
    made = small_machine(units, buffers, read)
    tiers = (made.tiers[0], made.tiers[2])
    return replace(made, tiers=tiers, moves=chain(tiers))


def rows(m: int, n: int) -> dict[str, Any]:
    return {"X": np.random.default_rng(m + n).standard_normal((m, n))}


def run_rows(on: Machine, m: int = 5, n: int = 7, tile_m: int = 2, tile_n: int = 3) -> Simulation:
    arrays = rows(m, n)
    found = simulate(place(parse_program(ROWS), on), arrays, {"m": m, "n": n}, {"m": tile_m, "n": tile_n})
    assert np.allclose(found.outputs["S"], arrays["X"].sum(1), rtol=1e-12)
    return found


def test_bytes_by_hand() -> None:
    found = run_rows(small_machine(units=2))
    assert found.moved == {
        ("X", "far", "middle"): 5 * 7 * 4,
        ("X", "middle", "near"): 5 * 7 * 4,
        ("S", "near", "middle"): 5 * 4,
        ("S", "middle", "far"): 5 * 4,
    }
    assert found.boundaries["far", "middle"] == 5 * 7 * 4


@pytest.mark.parametrize(("units", "active"), [(1, 1), (2, 2), (8, 3)])
@pytest.mark.parametrize("buffers", [1, 2])
def test_peaks_by_hand(units: int, active: int, buffers: int) -> None:
    found = run_rows(small_machine(units, buffers))
    assert found.peak["far"] == 192 + 64, "140 and 20 bytes in pieces of 64"
    assert found.peak["middle"] == 32 * active, "24 bytes on their way, for each of at most 3 tasks"
    assert found.peak["near"] == 16 + 32 * buffers + 16, "T; copies of y; s"


@pytest.mark.parametrize(("buffers", "seconds"), [(1, 1 + 70), (2, 1 + 64)])
def test_times_by_hand(buffers: int, seconds: float) -> None:
    """Two loads of 24 bytes, two sums of 6 elements, two additions of 2, a store of 8 bytes. The second load waits for
    the first sum (24 + 6 + 24 + 6 + 2 + 8), or, with a second buffer, for the first load (24 + 24 + 6 + 2 + 8)."""
    found = run_rows(without_middle(buffers=buffers), 2, 6, 2, 3)
    assert found.seconds == pytest.approx(seconds)
    assert found.busy["far>near"] == 48 and found.busy["near>far"] == 8 and found.busy["core"] == 16


TWO_LOOPS = """program rows
dim m
dim n
array X: f32[m, n]
array Z: f32[m, n]
array S: f32[m]
input X: slow f32[m][n](m, n) = X[m, n]
input Z: slow f32[m][n](m, n) = Z[m, n]
map m {
  x: slow f32[n](m, n) <- X
  z: slow f32[n](m, n) <- Z
  map n {
    y: local f32(m, n) <- x
    s: local f32(m) = sum[n](y)
    => T: local f32(m) = add(s)
  }
  map n {
    w: local f32(m, n) <- z
    r: local f32(m) = sum[n](w)
    => U: local f32(m) = add(r)
  }
  v: local f32(m) = add(T, U)
  => S: slow f32[m](m) = stack(v)
}
output S = S
"""


@pytest.mark.parametrize(("near", "seconds"), [(PLENTY, 1 + 66), (112, 1 + 66), (96, 1 + 72), (80, 1 + 72)])
def test_a_load_waits_until_its_room_is_free(near: int, seconds: float) -> None:
    """Loads of 24 bytes, sums of 6 elements, three additions of 2, a store of 8. Where the second load finds no room
    beside y (32 bytes), s, T and U (16 each), it begins behind the first sum (24 + 6 + 24 + 6 + 2 + 2 + 8), else behind
    the first load (24 + 24 + 6 + 2 + 2 + 8)."""
    on = small_machine(near=near)
    on = replace(on, tiers=(on.tiers[0], on.tiers[2]), moves=chain((on.tiers[0], on.tiers[2])))
    arrays = rows(2, 3) | {"Z": rows(3, 2)["X"].T}
    found = simulate(place(parse_program(TWO_LOOPS), on), arrays, {"m": 2, "n": 3}, {"m": 2, "n": 3})
    assert np.allclose(found.outputs["S"], (arrays["X"] + arrays["Z"]).sum(1), rtol=1e-12)
    assert found.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(("units", "read", "seconds"), [(1, 2.0, 128), (2, 2.0, 64), (2, 1.0, 96 + 6 + 2 + 8)])
def test_units_share_the_tiers_of_the_device(units: int, read: float, seconds: float) -> None:
    """Two tasks of 64 seconds each, unless the four loads, 24 seconds each, have to wait for one another."""
    found = run_rows(without_middle(units, buffers=2, read=read), 4, 6, 2, 3)
    assert found.seconds == pytest.approx(1 + seconds)


@pytest.mark.parametrize(("duplex", "seconds"), [("full", 88), ("half", 96)])
def test_a_tier_of_the_device_may_be_read_and_written_in_turns(duplex: str, seconds: float) -> None:
    """Three units: loads are over after 24, 48 and 72 seconds. The stores, after 8 more, take 8 each, and begin when no
    load has the bus."""
    on = without_middle(units=3, read=1.0)
    on = replace(on, tiers=(replace(on.tiers[0], write=1.0, duplex=duplex), on.tiers[1]))
    assert run_rows(on, 6, 3, 2, 3).seconds == pytest.approx(1 + seconds)


LOADS_AND_STORES = """program rows
dim m
dim n
array X: f32[m, n]
array Y: f32[m, n]
array S: f32[m]
input X: slow f32[m][n](m, n) = X[m, n]
map m {
  x: slow f32[n](m, n) <- X
  map n {
    y: local f32(m, n) <- x
    z: local f32(m, n) = neg(y)
    s: local f32(m) = sum[n](y)
    => Z: slow f32[n](m, n) = stack(z)
    => T: local f32(m) = add(s)
  }
  => Y: slow f32[m][n](m, n) = stack(Z)
  => S: slow f32[m](m) = stack(T)
}
output Y = Y
output S = S
"""


@pytest.mark.parametrize(("duplex", "seconds"), [("full", 24 + 4 * 30 + 8), ("half", 8 * 24 + 6 + 8)])
def test_a_tier_of_a_unit_may_be_read_and_written_in_turns(duplex: str, seconds: float) -> None:
    """Four loads and four stores of 24 bytes, and a last store of 8. A result takes 6 seconds, and the place of the one
    before it when that is stored. Beside the stores loads take no time; in turns with them the bus waits once, for the
    last result."""
    on = without_middle(buffers=2)
    on = replace(on, tiers=(on.tiers[0], replace(on.tiers[1], duplex=duplex)))
    arrays = rows(2, 12)
    found = simulate(place(parse_program(LOADS_AND_STORES), on), arrays, {"m": 2, "n": 12}, {"m": 2, "n": 3})
    assert np.allclose(found.outputs["Y"], -arrays["X"]) and np.allclose(found.outputs["S"], arrays["X"].sum(1))
    assert found.seconds == pytest.approx(1 + seconds)
    assert found.busy.get("near bus", 0) == (2 * 96 + 8 if duplex == "half" else 0)


EPILOGUE = """program p(A: f32[m, k], B: f32[k, n], c: f32[n], R: f16[m, n]) -> (C: f32[m, n], D: f16[m, n]) {
    H = dot[k](A, B)
    C = where(index(n) < index(m), H, relu(H + c) * R)
    D = R - H
}"""


def test_an_epilogue_in_pieces_takes_the_space_of_a_piece() -> None:
    """The schedule needs the bytes that are predicted, and fewer than a second tile of results would take."""
    case = Case(EPILOGUE, {"m": 40, "n": 37, "k": 5}, {"m": 16, "n": 32, "k": 1}, frozenset())
    program, on, arrays = choose.ready(derive(case))[-1], machine("toy"), inputs(case)
    schedule = place(program, on)
    predicted = evaluate_cost(model(schedule), case.sizes, case.tiles, arrays)
    assert any(isinstance(node, Pieces) for kernel in schedule.kernels for node in walk(kernel))
    tile = 16 * 32 * 4
    assert tile < predicted.peak["local"] < 2 * tile

    def run(local: int) -> Simulation:
        tiers = tuple(replace(tier, capacity=local) if tier.name == "local" else tier for tier in on.tiers)
        return simulate(place(program, replace(on, tiers=tiers)), arrays, case.sizes, case.tiles)

    found = run(predicted.peak["local"])
    check_outputs(case, found, "pieces")
    check_prediction(schedule, case.sizes, case.tiles, arrays, found)
    assert found.peak["local"] == predicted.peak["local"]
    with pytest.raises(CapacityExceeded):
        run(predicted.peak["local"] - 16)


def test_latency_and_calls_take_time() -> None:
    on = without_middle()
    slow = replace(on, call=10.0, tiers=(replace(on.tiers[0], latency=100.0), on.tiers[1]))
    assert run_rows(slow, 2, 6, 2, 3).seconds == pytest.approx(1 + 70 + 2 * 100 + 3 * 10), "the second sum and addition"


def test_a_way_is_free_again_before_what_it_moved_is_there() -> None:
    """The second loads begin after 24 seconds, and are there after 24 + 24 + 100; then 6 + 2 + 8 as before."""
    on = without_middle(units=2, buffers=2)
    slow = replace(on, tiers=(replace(on.tiers[0], latency=100.0), on.tiers[1]))
    assert run_rows(slow, 4, 6, 2, 3).seconds == pytest.approx(1 + 148 + 16)


def test_special_functions_have_their_own_rate() -> None:
    text = ROWS.replace("    s:", "    e: local f32(m, n) = exp(y)\n    s:").replace("sum[n](y)", "sum[n](e)")
    rates = {"vector": {"f32": Rate(1.0, ())}, "special": {"f32": Rate(0.5, ())}}
    found = simulate(place(parse_program(text), small_machine(rates=rates)), rows(2, 3), {"m": 2, "n": 3}, {})
    assert found.busy["core"] == 6 / 0.5 + 6 + 2


def test_blocks_that_are_left_out_are_not_moved() -> None:
    source = example("causal_attention")
    sizes = {"b": 1, "h": 1, "m": 12, "n": 12, "d": 3, "e": 3}
    case = Case(source, sizes, {**sizes, "m": 4, "n": 4}, frozenset("de"))
    program = choose.ready(derive(case))[-1]
    found = simulate(place(program, machine("toy")), inputs(case), case.sizes, case.tiles)
    check_outputs(case, found, "causal")
    assert found.moved["K", "dram", "sram"] == (1 + 2 + 3) * 4 * 3 * 2, "blocks up to the diagonal, of 4 by 3 f16"


def test_a_stage_is_moved_once_and_read_near() -> None:
    case, derivation = example_case("attention", "d e")
    program = choose.ready(derivation)[-1]
    placement = {"K": "sram", "V": "sram"}
    found = simulate(place(program, machine("toy"), placement), inputs(case), case.sizes, case.tiles)
    check_outputs(case, found, "staged")
    elements = 2 * 2 * 13 * 6
    assert found.moved["K", "dram", "sram"] == elements * 2
    assert found.moved["K", "sram", "local"] == elements * 2 * 2, "once for each block of m"


@pytest.mark.parametrize("name", ["attention", "rmsnorm_swiglu", "layernorm_matmul", "attention_entropy", "mlp"])
def test_two_tiers_move_what_the_interpreter_counts(name: str) -> None:
    """Of lists; tiles of the top graph are loaded by every task."""
    case, derivation = example_case(name, "")
    on = without_middle()
    for program in choose.ready(derivation):
        found = simulate(place(program, on), inputs(case), case.sizes, case.tiles)
        run = interpret(program, inputs(case), case.sizes, case.tiles)
        expected = {(value, "far", "near"): count for value, count in run.loads.items()}
        expected |= {(value, "near", "far"): count for value, count in run.stores.items()}
        assert found.moved == {key: count for key, count in expected.items() if count}


# --- what it refuses --------------------------------------------------------------------------------------------------


def changed(statements: tuple[Statement, ...], change: Callable[[Statement], list[Statement]]) -> tuple[Statement, ...]:
    result: list[Statement] = []
    for statement in statements:
        if isinstance(statement, Loop):
            statement = replace(statement, body=changed(statement.body, change))
        result += change(statement)
    return tuple(result)


def broken(schedule: Schedule, change: Callable[[Statement], list[Statement]]) -> Schedule:
    kernels = tuple(changed(kernel, change) for kernel in schedule.kernels)
    assert kernels != schedule.kernels
    return replace(schedule, kernels=kernels)


def is_load(statement: Statement) -> bool:
    return isinstance(statement, Move) and statement.source == "X"


def is_store(statement: Statement) -> bool:
    return isinstance(statement, Move) and statement.target == "S"


def edit(what: Callable[[Statement], bool], **fields: Any) -> Callable[[Statement], list[Statement]]:
    return lambda statement: [replace(statement, **fields)] if what(statement) else [statement]


def drop(what: Callable[[Statement], bool]) -> Callable[[Statement], list[Statement]]:
    return lambda statement: [] if what(statement) else [statement]


def is_sum(statement: Statement) -> bool:
    return isinstance(statement, Compute)


def is_addition(statement: Statement) -> bool:
    return isinstance(statement, Combine)


def is_inner(statement: Statement) -> bool:
    return isinstance(statement, Loop) and statement.dim == "n"


BROKEN: dict[str, tuple[Callable[[Statement], list[Statement]], str]] = {
    "a load is missing": (drop(is_load), "the tile `y` is not in near, but in no tier"),
    "a store is missing": (drop(is_store), "`T` is left over at the end of a task"),
    "a load twice": (lambda s: [s, s] if is_load(s) else [s], "the tile `y` is in near already"),
    "no such way": (edit(is_load, path=("far", "near")), "moved from far to near, where no way leads"),
    "no such tier": (edit(is_load, path=("far", "middle", "moon")), "moved from middle to moon, where no way leads"),
    "from another tier": (edit(is_load, path=("middle", "near")), "the list `X` is in far, not in middle"),
    "into no list": (edit(is_store, target="Z"), "there is no list `Z`"),
    "never released": (edit(is_sum, releases=()), "`y` is left over in near at the end of an iteration over n"),
    "released too early": (edit(is_load, releases=(("y", "near"),)), "the tile `y` is not in near"),
    "released twice": (edit(is_addition, releases=(("s", "near"), ("y", "near"))), "`y` is released, but it is not"),
    "an accumulator released inside": (
        edit(is_addition, releases=(("s", "near"), ("T", "near"))),
        "`T` in near is released in an iteration over n, outside of which it was made",
    ),
    "no accumulator": (edit(is_inner, accumulators=()), "the tile `T` is not in near"),
    "an operand in another tier": (edit(is_sum, reads=(("y", "middle"),)), "core cannot compute `s` from middle"),
    "a result in another tier": (edit(is_sum, tier="middle"), "core cannot compute `s` from near into middle"),
    "another operand": (edit(is_sum, reads=(("T", "near"),)), "`s` has other operands than are read"),
    "in a place that is too small": (edit(is_sum, reuses="T"), "`s` cannot take the place of `T`"),
    "no such unit": (edit(is_sum, unit="gpu"), "no compute unit gpu"),
    "no such rate": (edit(is_sum, rated="f16"), "core has no rate for vector in f16"),
    "accumulated outside of the loop": (edit(is_load, again="k"), "`y` is accumulated outside of any loop over k"),
    "a parallel loop inside": (edit(is_inner, parallel=True), "the parallel loop over n is inside of a task"),
    "nothing is parallel": (
        lambda s: [replace(s, parallel=False, accumulators=())] if isinstance(s, Loop) else [s],
        "the tile `T` is not in near",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_schedule_is_refused(fault: str) -> None:
    change, message = BROKEN[fault]
    schedule = broken(place(parse_program(ROWS), small_machine()), change)
    with pytest.raises(SimulationError) as caught:
        simulate(schedule, rows(5, 7), {"m": 5, "n": 7}, {"m": 2, "n": 3})
    assert message in str(caught.value)


def test_an_output_that_is_not_written_is_refused() -> None:
    def forget(statement: Statement) -> list[Statement]:
        return [replace(statement, body=())] if isinstance(statement, Loop) and statement.parallel else [statement]

    schedule = broken(place(parse_program(ROWS), small_machine()), forget)
    with pytest.raises(SimulationError, match="`S` in far is read where nothing was written"):
        simulate(schedule, rows(5, 7), {"m": 5, "n": 7}, {"m": 2, "n": 3})


def staged() -> tuple[Schedule, Case]:
    case, derivation = example_case("attention", "d e")
    return place(choose.ready(derivation)[-1], machine("toy"), {"K": "sram"}), case


def test_a_stage_that_is_not_released_is_refused() -> None:
    schedule, case = staged()
    kept = broken(schedule, lambda s: [replace(s, releases=())] if isinstance(s, Loop) and s.parallel else [s])
    with pytest.raises(SimulationError, match="`list K@sram` is left over in sram at the end of kernel 0"):
        simulate(kept, inputs(case), case.sizes, case.tiles)


def test_a_stage_that_is_missing_is_refused() -> None:
    schedule, case = staged()
    with pytest.raises(SimulationError, match="there is no list `K@sram`"):
        simulate(broken(schedule, drop(lambda s: isinstance(s, Stage))), inputs(case), case.sizes, case.tiles)


def test_a_unit_does_not_see_what_another_one_has() -> None:
    """What is computed ahead of tasks lies in the memory of one unit."""
    text = """program p
dim m
dim k whole
array X: f32[m]
array W: f32[k]
array S: f32[m]
input X: slow f32[m](m) = X[m]
input W: local f32(k) = W[k]
w: local f32() = sum[k](W)
map m uses w {
  x: local f32(m) <- X
  y: local f32(m) = mul(x, w)
  => S: slow f32[m](m) = stack(y)
}
output S = S
"""
    schedule = place(parse_program(text), small_machine(units=2))
    arrays = {"X": np.arange(5.0), "W": np.ones(3)}
    sizes, tiles = {"m": 5, "k": 3}, {"m": 2}
    assert np.array_equal(simulate(schedule, arrays, sizes, tiles).outputs["S"], 3 * np.arange(5.0))
    ((loop,),) = schedule.kernels
    assert isinstance(loop, Loop)
    ahead = loop.body[:2]
    assert isinstance(ahead[0], Move) and isinstance(ahead[1], Compute) and ahead[1].apply.name == "w"
    rest = replace(loop, body=loop.body[2:])
    with pytest.raises(SimulationError, match="the tile `w` is not in near, but in near of another unit"):
        simulate(replace(schedule, kernels=((*ahead, rest),)), arrays, sizes, tiles)


@pytest.mark.parametrize("capacity", [16 + 32 + 16, 16 + 32 + 15])
def test_what_does_not_fit_is_refused(capacity: int) -> None:
    on = small_machine(near=capacity)
    if capacity >= 64:
        assert run_rows(on).peak["near"] == 64
        return
    with pytest.raises(CapacityExceeded) as caught:
        run_rows(on)
    assert (caught.value.tier, caught.value.need, caught.value.limit) == ("near", 64, 63)
    assert str(caught.value) == (
        "no room for `s` in near: it would hold 64 bytes, and its capacity is 63 (it holds `y` 32, `T` 16)"
    )


@pytest.mark.parametrize("target", SHIPPED)
def test_every_tier_may_be_too_small(target: str) -> None:
    case, derivation = example_case("rmsnorm_swiglu", "")
    program, full = choose.ready(derivation)[1], machine(target)
    peak = simulate(place(program, full), inputs(case), case.sizes, case.tiles).peak
    for number, tier in enumerate(full.tiers):
        if peak[tier.name]:
            for spare in (0, -1):
                tiers = list(full.tiers)
                tiers[number] = replace(tier, capacity=peak[tier.name] + spare)
                schedule = place(program, replace(full, tiers=tuple(tiers)))
                if spare == 0 or tier.kind == "cache":  # a cache makes room itself
                    assert simulate(schedule, inputs(case), case.sizes, case.tiles).peak == peak
                    continue
                with pytest.raises(CapacityExceeded) as caught:
                    simulate(schedule, inputs(case), case.sizes, case.tiles)
                assert caught.value.tier == tier.name


def test_chunks_are_whole_blocks() -> None:
    case, derivation = example_case("attention", "d e")
    program: Program = choose.ready(split(derivation, {"n"}))[-1]
    (chunk,) = program.chunks
    with pytest.raises(ValueError, match="chunks of 10 elements are not whole blocks of 7"):
        simulate(place(program, machine("toy")), inputs(case), case.sizes, {**case.tiles, chunk: 10})
