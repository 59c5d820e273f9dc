"""Predicted traffic equals what the interpreter counts, to the byte; formulas and figures derived by hand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pytest
import sympy
from oracle import (
    NORMAL_RUN,
    Case,
    derive,
    example,
    example_names,
    final_programs,
    fused,
    inputs,
    lowered,
    random_case,
    random_derivation,
)
from selection import in_turn

from blockc.data import array_shape
from blockc.ir.array_program import Argument
from blockc.ir.block import Program
from blockc.ir.dtypes import DTYPES
from blockc.ir.interpret import Run, interpret
from blockc.ir.sharing import Shared
from blockc.ir.text import format_program, parse_program
from blockc.language import parse
from blockc.passes.choose import compose, ready
from blockc.passes.cost import NOMINAL, buffered_lists, cost, local_bytes, traffic, traffic_formula, work
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower
from blockc.passes.stabilize import stabilize


def check_traffic(case: Case, stage: str, program: Program, run: Run | None = None) -> None:
    """Predicted bytes and those that a run counts agree, per value and direction."""
    arrays = inputs(case)
    run = run or interpret(program, arrays, case.sizes, case.tiles)
    counted = {(name, "load"): count for name, count in run.loads.items() if count}
    counted |= {(name, "store"): count for name, count in run.stores.items() if count}
    tiles = {dim: max(1, tile) for dim, tile in case.tiles.items()}
    predicted = {key: count for key, count in traffic(program, case.sizes, tiles, arrays).items() if count}
    assert predicted == counted, f"{stage}\n{case.reproduction()}"


def check_every_traffic(case: Case, programs: Iterable[tuple[str, Program]]) -> None:
    """The same for programs of one derivation."""
    arrays = inputs(case)
    shared = defaultdict[object, Shared](Shared)
    for stage, program in programs:
        run = interpret(program, arrays, case.sizes, case.tiles, shared=shared[program.dims])
        check_traffic(case, stage, program, run)


@pytest.mark.parametrize("start", range(0, len(NORMAL_RUN), 18))
def test_predicted_traffic_of_random_programs(start: int) -> None:
    for seed in NORMAL_RUN[start : start + 18]:
        case = random_case(seed)
        check_every_traffic(case, [("lowered", lowered(case)), *final_programs(random_derivation(seed))])


SIZES = {"b": 2, "h": 1, "m": 3, "n": 5, "d": 3, "e": 4, "k": 5, "z": 4, "v": 5, "kv": 1, "g": 2}
TILES = {"b": 1, "h": 1, "m": 2, "n": 3, "d": 2, "e": 3, "k": 2, "z": 3, "v": 2, "kv": 1, "g": 1}


def example_case(name: str, whole: str) -> Case:
    source = example(name).replace("d=64", "d=3").replace("e=128", "e=4")
    dims = {dim.name for dim in parse(source).dims}
    chosen = {dim: SIZES[dim] for dim in dims}
    return Case(source, chosen, {dim: TILES[dim] for dim in dims}, frozenset(whole.split()) & dims)


@cache
def example_programs(name: str, whole: str) -> tuple[tuple[str, Program], ...]:
    """The programs that an example may be emitted as; the last snapshot comes once more, at the end."""
    derivation = fused(lowered(example_case(name, whole)))
    return (*final_programs(derivation), ("last snapshot", derivation.snapshots[-1]))


@pytest.mark.parametrize(("name", "whole"), in_turn(example_names(), ["", "d e", "d"], of=2))
def test_predicted_traffic_of_examples(name: str, whole: str) -> None:
    check_every_traffic(example_case(name, whole), example_programs(name, whole)[:-1])


def argument_bytes(argument: Argument, sizes: dict[str, int]) -> int:
    return prod(array_shape(argument, sizes)) * DTYPES[argument.dtype].size


@pytest.mark.parametrize("name", example_names())
def test_traffic_is_never_below_what_is_compulsory(name: str) -> None:
    """Every element of every input once, and every element of every output once."""
    for whole in ("", "d e", "d"):
        case = example_case(name, whole)
        arguments = (*case.program.inputs, *(result.argument for result in case.program.outputs))
        compulsory = sum(argument_bytes(argument, case.sizes) for argument in arguments)
        *programs, (_, last_snapshot) = example_programs(name, whole)
        for _, program in programs:
            total = sum(traffic(program, case.sizes, case.tiles).values())
            assert total >= compulsory
        last = sum(traffic(last_snapshot, case.sizes, case.sizes).values())  # with one block of everything
        if (name, whole) == ("rmsnorm_swiglu", ""):
            assert last == compulsory + 2 * 3 * 3  # rows of f16 in blocks of d: the norm reads them once more
        elif name in ("attention", "mlp", "rmsnorm_swiglu"):
            assert last == compulsory


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_attention_moves_what_the_paper_says(itemsize: int) -> None:
    dtype = {2: "f16", 4: "f32", 8: "f64"}[itemsize]
    source = example("attention").replace("f16", dtype)
    (program,) = fuse(lower(parse(source), frozenset("de"))).snapshots
    for m, n, d, e in product((1, 5, 8, 64), (1, 7, 100), (3, 64), (2, 80)):
        for tile_m, tile_n in product((1, 3, 8), (1, 4, 128)):
            sizes = {"b": 3, "h": 2, "m": m, "n": n, "d": d, "e": e}
            tiles = {"b": 1, "h": 2, "m": tile_m, "n": tile_n, "d": d, "e": e}
            expected = itemsize * 3 * 2 * (m * d + m * e + -(-m // tile_m) * n * (d + e))
            assert sum(traffic(program, sizes, tiles).values()) == expected
            # Safe arithmetic costs no traffic.
            assert sum(traffic(stabilize(program), sizes, tiles).values()) == expected


TINY = """program tiny
dim m
dim n
dim d whole
array X: f16[m, n]
array W: f32[n, d]
array g: f32[d]
array L: f32[m, d]
array E: f16[m, n]
array c: f32[]
input X: slow f16[m][n](m, n) = X[m, n]
input W: slow f32[n](n, d) = W[n, d]
input g: local f32(d) = g[d]
h: local f32(d) = mul(g, 2.0)
k: local f32() = sum[d](h)
map m uses W, h {
  x: slow f16[n](m, n) <- X
  map n {
    y: local f16(m, n) <- x
    z: local f16(m, n) <- x
    w: local f32(n, d) <- W
    e: local f16(m, n) = exp(y)
    p: local f32(m, d) = contract[n](e, w)
    => E.1: slow f16[n](m, n) = stack(e)
    => P: local f32(m, d) = add(p)
  }
  q: local f32(m, d) = mul(P, h)
  => E: slow f16[m][n](m, n) = stack(E.1)
  => L: slow f32[m](m, d) = stack(q)
}
output L = L
output E = E
output c = k
"""
TINY_SIZES = {"m": 5, "n": 7, "d": 3}
TINY_TILES = {"m": 2, "n": 3, "d": 3}  # 3 blocks of m, 3 of n


def test_traffic_of_a_tiny_program_by_hand() -> None:
    program = parse_program(TINY)
    assert traffic(program, TINY_SIZES, TINY_TILES) == {
        ("X", "load"): 5 * 7 * 2,  # once for `y`; nothing uses `z`
        ("W", "load"): 3 * 7 * 3 * 4,  # once for every block of m
        ("E", "store"): 5 * 7 * 2,
        ("L", "store"): 5 * 3 * 4,
        ("g", "load"): 3 * 4,  # an item of the top graph: once, by the launch of the map, which prepares h too
        ("h", "store"): 3 * 4,  # h is needed by the launch of k as well
        ("h", "load"): 3 * 4,
        ("k", "store"): 4,
    }


ACCUMULATORS = (Path(__file__).parent / "data" / "broken" / "bases" / "accumulators.txt").read_text()
ACCUMULATED = [(m, e, n) for m in (0, 3, 4) for e in (0, 1, 5) for n in (0, 2, 3, 7)]


def counted(program: Program, sizes: dict[str, int], tiles: dict[str, int]) -> dict[tuple[str, str], int]:
    """What the interpreter counts, by value and direction."""
    arrays = {arg.name: np.ones([sizes[dim] for dim in arg.dims]) for arg in program.arguments}
    run = interpret(program, arrays, sizes, tiles)
    found = {(name, "load"): count for name, count in run.loads.items()}
    return found | {(name, "store"): count for name, count in run.stores.items()}


@pytest.mark.parametrize(("m", "e", "n"), ACCUMULATED)
def test_accumulated_lists_are_predicted_as_they_are_counted(m: int, e: int, n: int) -> None:
    program, sizes, tiles = parse_program(ACCUMULATORS), {"m": m, "e": e, "n": n, "d": 3}, {"m": 2, "e": 3, "n": 2}
    for form in (program, compose(program)):
        expected = {key: count for key, count in counted(form, sizes, tiles).items() if count}
        assert {key: count for key, count in traffic(form, sizes, tiles).items() if count} == expected


def test_traffic_of_accumulated_lists_by_hand() -> None:
    sizes, tiles = {"m": 5, "e": 4, "n": 7, "d": 3}, {"m": 2, "e": 3, "n": 3}
    rows, inner, item = 5 * 4, 3, 4  # elements of an accumulator, iterations of the loop over n, bytes
    moved = traffic(parse_program(ACCUMULATORS), sizes, tiles)
    inputs = {"X": 5 * 7, "V": 3 * 7 * 4, "W": 3 * 7 * 3, "Y": rows}  # in elements; V and W once for each block of m
    assert moved == {
        **{(name, "load"): elements * item for name, elements in inputs.items()},
        # Read once more by the loop over e; what is part of an output is that output.
        **{(name, "load"): rows * item * (inner - 1 + 1) for name in ("C", "G", "K")},
        **{(name, "load"): 3 * rows * item * (inner - 1 + 1) for name in ("D", "F")},
        ("O", "load"): rows * item * (inner - 1),
        **{(name, "store"): rows * item * inner for name in ("C", "G", "K", "O")},
        **{(name, "store"): 3 * rows * item * inner for name in ("D", "F")},
        ("L", "store"): rows * item * inner,  # stacked for good, though it is accumulated too
        ("P", "store"): rows * item,
        ("Z", "store"): 3 * rows * item,
    }
    assert buffered_lists(parse_program(ACCUMULATORS)) == ("C", "D", "G", "F", "K", "L")


def test_an_accumulated_list_takes_no_local_memory() -> None:
    program, sizes = parse_program(ACCUMULATORS), {"m": 8, "e": 64, "n": 8, "d": 3}
    tiles = {"m": 8, "e": 1, "n": 8}
    assert local_bytes(program, sizes, tiles) == local_bytes(program, {**sizes, "e": 640}, tiles)


def test_traffic_formula_of_an_accumulated_list() -> None:
    inputs = "4*B_m*d*n + 4*B_m*e*n + 4*e*m + 4*m*n"
    lists = "8*B_n*e*m*(3 + 2*d) + 4*e*m*(2*B_n - 1) + 4*B_n*e*m"  # C, G, K, D, F; O; L
    found = traffic_formula(parse_program(ACCUMULATORS))
    symbols = {str(symbol): symbol for symbol in found.free_symbols}
    outputs = "4*e*m + 4*d*e*m"
    assert sympy.expand(found - sympy.sympify(f"{inputs} + {lists} + {outputs}", locals=symbols)) == 0


def test_whole_dimensions_in_conditions_are_counted_once() -> None:
    source = "program p(X: f32[h, n]) -> O: f32[h] { O = sum[n](where(index(n) <= index(h), X, 0)) }"
    case = Case(source, {"h": 3, "n": 8}, {"n": 2}, frozenset("h"))
    (program,) = ready(derive(case))
    assert "where" in format_program(program)
    assert traffic(program, case.sizes, case.tiles)["X", "load"] == 2 * 2 * 3 * 4, "two of four blocks, in three rows"


def test_traffic_formula_of_a_tiny_program() -> None:
    assert str(traffic_formula(parse_program(TINY))) == "4*B_m*d*n + 4*d*m + 12*d + 4*m*n + 4"


def test_work_of_a_tiny_program_by_hand() -> None:
    flops, special = work(parse_program(TINY), TINY_SIZES, TINY_TILES)
    assert flops == 3 + 3 + 2 * 5 * 7 * 3 + 5 * 3  # h, k, p, q
    assert special == 5 * 7


def test_repeated_work_is_counted() -> None:
    derivation = fuse(lower(parse(example("attention")), frozenset("d")))
    sizes = {"b": 1, "h": 1, "m": 6, "n": 8, "d": 4, "e": 9}
    tiles = {"b": 1, "h": 1, "m": 3, "n": 4, "d": 4, "e": 3}
    first, _, last = (work(program, sizes, tiles) for program in derivation.snapshots)
    scores = 6 * 8
    assert last[1] == 3 * scores and first[1] == scores  # exp for each of 3 blocks of e
    # The product (2 d), its scale, and the row sum are repeated too.
    assert last[0] > first[0] + 2 * scores * (2 * 4)


def test_local_bytes_of_a_tiny_program_by_hand() -> None:
    # Inside the inner map: y, z, w, e, p (2*3*2 + 2*3*2 + 3*3*4 + 2*3*2 + 2*3*4), with h and k of the top graph, and g.
    tile = 2 * 3
    inner = tile * 2 + 3 * 3 * 4 + tile * 2 + 2 * 3 * 4
    top = 3 * 4 + 4
    counted = local_bytes(parse_program(TINY), TINY_SIZES, TINY_TILES)
    assert inner + top <= counted <= inner + top + tile * 2 + 2 * 2 * 3 * 4


def test_lists_inside_are_named_by_their_outermost_name() -> None:
    program = parse_program(TINY.replace("output E = E\n", "").replace("array E: f16[m, n]\n", ""))
    assert buffered_lists(program) == ("E",)
    assert buffered_lists(parse_program(TINY)) == ()


def test_seconds_are_the_slowest_resource_and_the_launches() -> None:
    program = parse_program(TINY)
    figures = cost(program, TINY_SIZES, TINY_TILES)
    flops, special = work(program, TINY_SIZES, TINY_TILES)
    slowest = max(figures.traffic_bytes / NOMINAL.bytes, flops / NOMINAL.flops, special / NOMINAL.special)
    assert figures.seconds == slowest + figures.kernels * NOMINAL.launch
    assert figures.traffic_bytes == sum(traffic(program, TINY_SIZES, TINY_TILES).values())


def test_unfused_programs_move_more() -> None:
    better: Counter[bool] = Counter()
    for seed in NORMAL_RUN:
        case, derivation = random_case(seed), random_derivation(seed)
        tiles = {dim: max(1, tile) for dim, tile in case.tiles.items()}
        before = sum(traffic(derivation.unfused, case.sizes, tiles).values())
        after = sum(traffic(derivation.snapshots[0], case.sizes, tiles).values())
        better[after < before] += 1
    assert better[True] > 0.9 * better.total()
