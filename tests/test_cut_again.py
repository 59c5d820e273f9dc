"""A second cut: large blocks of small ones, their meaning, and what they move on a machine with a middle tier."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from oracle import Case, derive, inputs, random_case, random_derivation
from test_block_text import check_round_trip
from test_split import check, chunked

from blockc import driver
from blockc.cli import main
from blockc.codegen.simulator import simulate
from blockc.ir.block import Map, Program, walk
from blockc.ir.machine import Machine
from blockc.ir.text import format_program
from blockc.language import parse
from blockc.machines.loading import load_machine
from blockc.passes import cut_again as module
from blockc.passes.choose import ready
from blockc.passes.cut_again import cut_again, loops
from blockc.passes.machine_cost import MachineCost, evaluate
from blockc.passes.machine_model import model
from blockc.passes.place import place
from blockc.passes.search import in_chunks
from blockc.planning import MachinePlan, search_plan

PRODUCT = "program product(A: f16[m, k], B: f16[k, n]) -> C: f16[m, n] { C = dot[k](A, B) }"
ATTENTION = """program attention(Q: f16[m, d], K: f16[n, d], V: f16[n, e]) -> O: f16[m, e] {
    O = dot[n](softmax[n](dot[d](Q, K)), V)
}"""


def test_the_example_of_the_module() -> None:
    case = Case("program p(X: f32[m, n], W: f32[n, d]) -> P: f32[m, d] { P = dot[n](X, W) }", {}, {}, frozenset("d"))
    snapshot = derive(case).snapshots[0]
    assert loops(snapshot) == ("n",)
    program = cut_again(snapshot, "n")
    assert program is not None
    before, after = (textwrap.indent(maps(each), "    ") for each in (snapshot, program))
    assert f"\n{before}  =>\n{after}" in (module.__doc__ or "")


def maps(program: Program) -> str:
    """The text of what a program does."""
    text = format_program(program)
    return text[text.index("map ") : text.index("output ")]


def cuts(program: Program) -> list[Program]:
    """The program with a second cut, as it is and with each loop outside."""
    found = [cut_again(program, loop) for loop in (None, *loops(program))]
    return [cut for cut in found if cut is not None]


@pytest.mark.parametrize("seed", [*range(12), 1838])  # the last one could not be made safe
def test_random_programs_mean_and_move_the_same_as_predicted(seed: int) -> None:
    case, derivation = random_case(seed), random_derivation(seed)
    for snapshot in derivation.snapshots:
        for cut in cuts(snapshot):
            check_round_trip("cut", cut)
            (stable,) = ready(replace(derivation, snapshots=(cut,)))
            own = replace(case, tiles={dim: tile for dim, tile in case.tiles.items() if dim not in cut.whole})
            check(own, cut, (1, 2))
            check(own, stable, (1, 3))


def test_blocks_that_share_nothing_are_cut_once() -> None:
    assert (
        cuts(derive(Case("program p(X: f32[m, n]) -> Y: f32[m, n] { Y = exp(X) }", {}, {}, frozenset())).snapshots[0])
        == []
    )
    program = parse(PRODUCT.replace("f16[", "f16[b, "))
    batched = driver.Forms(program, {}).of({"b": 2, "m": 8, "n": 8, "k": 8}, {})[0].snapshots[0]
    for cut in cuts(batched):
        assert set(cut.chunks.values()) - {"k"} == {"m", "n"}


def test_a_loop_that_stacks_or_waits_for_another_stays_inside() -> None:
    text = "program p(X: f32[m, n], W: f32[n, e]) -> (Y: f32[m, n], Z: f32[m, e]) "
    case = Case(text + "{ Y = softmax[n](X); Z = dot[n](Y, W) }", {}, {}, frozenset("e"))
    snapshot = derive(case).snapshots[0]
    assert "n" in loops(snapshot)
    assert cut_again(snapshot, "n") is None
    assert cut_again(snapshot, None) is not None


# --- bytes by hand ---------------------------------------------------------------------------------------------------


def machine(name: str) -> Machine:
    return load_machine(name)


def moved(
    text: str, loop: str | None, sizes: dict[str, int], tiles: dict[str, int | None], chunks: dict[str, int]
) -> MachineCost:
    """What the last snapshot with a second cut moves on `toy`, with what chunks have in the middle tier; the simulator
    counts the same."""
    program = parse(text)
    derivation, _ = driver.Forms(program, tiles).of(sizes, {})
    cut = cut_again(derivation.snapshots[-1], loop)
    assert cut is not None
    (stable,) = ready(replace(derivation, snapshots=(cut,)))
    schedule = place(stable, machine("toy"), dict.fromkeys(in_chunks(stable), "sram"))
    blocks = {dim: tile for dim, tile in tiles.items() if tile is not None}
    blocks |= {f"{dim}_chunk": size for dim, size in chunks.items()}
    found = evaluate(model(schedule), sizes, blocks)
    case = Case(text, sizes, {}, frozenset())
    counted = simulate(schedule, inputs(case), sizes, blocks)
    assert counted.moved == {key: count for key, count in found.moved.items() if count}
    for tier in machine("toy").tiers:
        assert counted.peak[tier.name] <= found.peak[tier.name] <= tier.capacity
    return found


def test_a_product_with_what_is_accumulated_in_the_middle_tier() -> None:
    sizes, tiles = {"m": 128, "n": 96, "k": 64}, {"m": 16, "n": 16, "k": 8}
    found = moved(PRODUCT, "k", sizes, dict(tiles), {"m": 64, "n": 48, "k": 32})
    left, right, product = 128 * 64, 64 * 96, 128 * 96
    assert found.boundaries == {
        ("dram", "sram"): 2 * (left * 2 + right * 2),  # for each of two chunks of n, and of m; not 6 and 8 blocks
        ("sram", "local"): 2 * (left * 6 + right * 8) + 4 * product * 2,  # sums: again for the second chunk of k, and
        ("local", "sram"): 4 * product * 2 + 2 * product,  # to be rounded
        ("sram", "dram"): 2 * product,
    }
    assert found.flops["core"] == 2 * 128 * 96 * 64 + 2 * product  # the two parts of each sum are added to it


def test_rows_that_stay_in_the_middle_tier_for_all_columns() -> None:
    sizes, tiles = {"m": 64, "n": 96, "k": 64}, {"m": 16, "n": 16, "k": 8}
    found = moved(PRODUCT, None, sizes, dict(tiles), {"m": 32, "n": 96})
    assert found.boundaries["dram", "sram"] == 2 * (64 * 64 + 64 * 96 * 2)
    assert found.boundaries["sram", "local"] == 2 * (64 * 64 * 6 + 64 * 96 * 4)


def test_attention_with_keys_and_values_that_all_rows_of_a_chunk_use() -> None:
    sizes = {"m": 256, "n": 128, "d": 32, "e": 32}
    tiles: dict[str, int | None] = {"m": 8, "n": 8, "d": None, "e": None}
    found = moved(ATTENTION, "n", sizes, tiles, {"m": 64, "n": 32})
    keys, queries = 2 * 128 * (32 + 32), 2 * 256 * 32  # bytes of K and V, and of Q
    sums = 4 * 256 * (1 + 1 + 32)  # a maximum, a sum and a row of the result, in f32
    assert found.boundaries == {
        ("dram", "sram"): keys * 4 + queries,  # for each of four chunks of m, not 32 blocks
        ("sram", "local"): keys * 32 + queries * 4 + sums * (3 + 1),  # Q for each of four chunks of n
        ("local", "sram"): sums * 4 + queries,  # the result is as large as Q
        ("sram", "dram"): queries,
    }


# --- the choice ------------------------------------------------------------------------------------------------------


def planned(text: str, target: str, sizes: dict[str, int]) -> MachinePlan:
    program = parse(text)
    return search_plan(program, machine(target), driver.default_sizes(program, sizes), {})


def test_a_large_product_is_cut_twice_where_there_is_a_middle_tier() -> None:
    sizes = {"m": 4096, "n": 4096, "k": 4096}
    plan = planned(PRODUCT, "toy", sizes)
    once = next(candidate for candidate in plan.candidates if "cut again" not in candidate.form)
    assert plan.chosen.origin == once.form and once.choice.cost is not None
    assert plan.cost.seconds < 0.75 * once.choice.cost.seconds
    assert plan.cost.boundaries["dram", "sram"] < 0.75 * once.choice.cost.boundaries["dram", "sram"]
    for tier in plan.machine.tiers:
        assert plan.cost.peak[tier.name] <= tier.capacity
    assert not any("cut again" in candidate.form for candidate in planned(PRODUCT, "scratchpad", sizes).candidates)


def test_what_cannot_gain_is_not_cut_again() -> None:
    few = planned(PRODUCT, "toy", {"m": 4, "n": 4096, "k": 4096})  # each argument is read once
    assert not any("cut again" in candidate.form for candidate in few.candidates)


def test_explain_lists_the_sizes_of_all_cuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "product.blk"
    path.write_text(PRODUCT)
    options = ["explain", str(path), "--target", "toy", *(f"--dim={dim}=2048" for dim in "mnk")]
    assert main([*options, "--json"]) == 0
    explained = json.loads(capsys.readouterr().out)
    tiles = explained["snapshots"][explained["chosen"]]["tiles"]
    assert tiles == explained["machine"]["tiles"] and list(tiles) == ["m", "n", "k"]
    several = {dim: sizes for dim, sizes in tiles.items() if isinstance(sizes, list)}
    assert several and all(large > small and large % small == 0 for large, small in several.values())
    assert all(isinstance(size, int) for entry in explained["snapshots"][:-1] for size in entry["tiles"].values())
    assert explained["steps"][-1]["rule"] == "cut_again"
    assert main(options) == 0
    dim, (large, small) = next(iter(several.items()))
    assert f"{dim}={large}/{small}" in capsys.readouterr().out


def test_a_chunk_is_one_task() -> None:
    program = cut_again(derive(Case(PRODUCT, {}, {}, frozenset())).snapshots[0], None)
    assert program is not None
    case = chunked(Case(PRODUCT, {"m": 40, "n": 24, "k": 4}, {"m": 4, "n": 4, "k": 4}, frozenset()), program, 2)
    schedule = place(program, machine("toy"))
    cost = evaluate(model(schedule), case.sizes, case.tiles)
    assert [kernel.tasks for kernel in cost.kernels] == [5 * 3]
    assert [node.dim for node in walk(program.body) if isinstance(node, Map)][:4] == ["m_chunk", "n_chunk", "m", "n"]
