"""Reductions in chunks: split-K, flash-decoding and every other monoid, on request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracle import NORMAL_RUN, Case, derive, inputs, random_case, random_derivation, wrong_outputs
from test_block_text import check_round_trip
from test_cost import check_traffic

from blockc.codegen import loader, numpy_source
from blockc.ir.block import Map, Program, walk
from blockc.ir.decisions import Derivation
from blockc.ir.interpret import interpret
from blockc.ir.monoids import MONOIDS
from blockc.ir.text import parse_program
from blockc.ir.verify import verify
from blockc.meaning import evaluate
from blockc.passes.choose import compose, safe
from blockc.passes.cost import movements, traffic_formula, work
from blockc.passes.padding import mask
from blockc.passes.rules import split_reduction
from blockc.passes.split import split

# Program, the dimension to split, and the monoids that combine the chunks of the stable program.
REDUCTIONS = {
    "flash_decoding": (
        "p(Q: f32[m, d], K: f32[n, d], V: f32[n, e]) -> O: f32[m, e] { O = dot[n](softmax[n](dot[d](Q, K)), V) }",
        "n",
        ["exponent_add"],
    ),
    "split_k": ("p(X: f32[m, n], W: f32[n, e]) -> O: f32[m, e] { O = relu(dot[n](X, W)) }", "n", ["add"]),
    "maximum": ("p(X: f32[n]) -> O: f32[] { O = max[n](X) }", "n", ["max"]),
    "minimum": ("p(X: f32[m, n]) -> O: f32[m] { O = min[n](X * index(n)) }", "n", ["min"]),
    "log_sum_exp": ("p(X: f32[m, n]) -> O: f32[m] { O = log(sum[n](exp(X))) }", "n", ["exponent_add"]),
    "variance": (
        "p(X: f32[m, n]) -> (O: f32[m], M: f32[m]) { M = mean[n](X); O = mean[n](X * X) - M * M }",
        "n",
        ["add", "add"],
    ),
    "masked": (
        "p(X: f32[b, m, n], V: f32[n]) -> O: f32[b, m] {"
        " O = dot[n](softmax[n](where(index(n) <= index(m), X, -inf)), V) }",
        "n",
        ["exponent_add"],
    ),
}
SHAPES = (
    ({"b": 2, "m": 1, "n": 13, "d": 3, "e": 2}, {"b": 1, "m": 1, "n": 2, "d": 3, "e": 2}),
    ({"b": 1, "m": 5, "n": 8, "d": 2, "e": 3}, {"b": 1, "m": 2, "n": 1, "d": 2, "e": 3}),
    ({"b": 2, "m": 3, "n": 7, "d": 2, "e": 1}, {"b": 2, "m": 2, "n": 3, "d": 2, "e": 1}),
)


def chunked(case: Case, program: Program, blocks: int) -> Case:
    """The case with tiles for chunks of so many blocks."""
    tiles = {**case.tiles, **{chunk: blocks * case.tiles[base] for chunk, base in program.chunks.items()}}
    return Case(case.source, case.sizes, tiles, case.whole, case.seed)


def all_forms(derivation: Derivation) -> list[Program]:
    """The snapshots as they are, stable, and composed."""
    stable = [safe(snapshot) for snapshot in derivation.snapshots]
    return [*derivation.snapshots, *stable, *(compose(program) for program in stable)]


def check(case: Case, program: Program, chunks: tuple[int, ...] = (1, 2, 3, 50)) -> None:
    """Same meaning, bytes as predicted, and a text form that parses back, with chunks of so many blocks."""
    arrays = inputs(case)
    reference = evaluate(case.program, arrays)
    check_round_trip("split", program)
    for blocks in chunks:
        ours = chunked(case, program, blocks)
        run = interpret(program, arrays, ours.sizes, ours.tiles)
        assert wrong_outputs(run.outputs, reference) == "", ours.reproduction()
        check_traffic(ours, f"chunks of {blocks} blocks", program, run)


@pytest.mark.parametrize(("sizes", "tiles"), SHAPES)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_split_programs_mean_the_same(name: str, sizes: dict[str, int], tiles: dict[str, int]) -> None:
    text, dim, _ = REDUCTIONS[name]
    source = f"program {text}"
    plain = Case(source, sizes, tiles, frozenset("de"), 3)
    dims = {entry.name for entry in plain.program.dims}
    case = Case(source, {d: sizes[d] for d in dims}, {d: tiles[d] for d in dims}, frozenset("de") & dims, 3)
    divided = split(derive(case), {dim})
    for program in all_forms(divided):
        assert program.chunks == {f"{dim}_chunk": dim}
        check(case, program)


def chunk_maps(program: Program) -> tuple[list[Map], list[Map]]:
    """The maps over chunks: those that reduce each, and those that combine."""
    found = [node for node in walk(program.body) if isinstance(node, Map) and node.dim in program.chunks]
    return [node for node in found if not node.is_loop], [node for node in found if node.is_loop]


@pytest.mark.parametrize("name", REDUCTIONS)
def test_chunks_are_reduced_in_parallel_and_combined_by_the_same_monoid(name: str) -> None:
    text, dim, monoids = REDUCTIONS[name]
    case = Case(f"program {text}", {}, {}, frozenset("de") & {entry for entry in "de" if f"{entry}]" in text})
    for snapshot in split(derive(case), {dim}).snapshots:
        reducing, combining = chunk_maps(safe(snapshot))
        assert len(reducing) == len(combining) == 1
        assert [output.monoid for output in combining[0].outputs] == monoids
        assert not combining[0].body, "the combination does nothing else"
        assert len(snapshot.body) == 2 or not any(isinstance(node, Map) for node in snapshot.body[2:])


@pytest.mark.parametrize("monoid", MONOIDS)
def test_every_monoid_is_split(monoid: str) -> None:
    """Also after `stabilize`, where a pair is accumulated already."""
    pair = MONOIDS[monoid].has_scalar
    scalars = range(MONOIDS[monoid].scalars if pair else 0)
    payloads = range(MONOIDS[monoid].degree + 1)
    names = [*(f"T{part}" for part in scalars), *(f"R{part}" for part in payloads)]
    typed = ", ".join(f"{name}: local f32(m)" for name in names)
    values = ", ".join((*("t" for _ in scalars), *("s" for _ in payloads)))
    text = f"""program p
dim m
dim n
array X: f32[m, n]
array S: f32[m]
input X: slow f32[m][n](m, n) = X[m, n]
map m {{
  x: slow f32[n](m, n) <- X
  map n {{
    y: local f32(m, n) <- x
    t: local f32(m) = max[n](y)
    s: local f32(m) = {"sum" if monoid == "add" or pair else monoid}[n](y)
    => {typed} = {monoid}({values})
  }}
  => S: slow f32[m](m) = stack(R0)
}}
output S = S
"""
    program = parse_program(text)
    divided = split(Derivation(program, (program,), (), (), True, ""), {"n"}).snapshots[0]
    case = Case("program p(X: f32[m, n]) -> S: f32[m] { S = sum[n](X) }", {"m": 3, "n": 17}, {}, frozenset(), 1)
    expected = interpret(program, inputs(case), case.sizes, {"m": 2, "n": 2}).outputs["S"]
    for chunk in (2, 4, 6, 34):
        got = interpret(divided, inputs(case), case.sizes, {"m": 2, "n": 2, "n_chunk": chunk}).outputs["S"]
        assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("start", range(0, len(NORMAL_RUN), 26))
def test_random_programs_are_split(start: int) -> None:
    """Every loop of every snapshot that can be cut into chunks, over all dimensions at once."""
    for seed in NORMAL_RUN[start : start + 26]:
        case = random_case(seed)
        divided = split(random_derivation(seed), set(case.sizes))
        for program in dict.fromkeys((divided.snapshots[0], safe(divided.snapshots[-1]))):
            if program.chunks:
                check(case, program, (1, 3))


def test_only_partial_results_move_in_addition() -> None:
    """What the rule promises: each partial result is stored once and loaded once; old lists are stored as before, and
    loaded as before or, if both kernels read them, twice. (Items of the top graph may cross from one to the other.)"""
    assert split_reduction.RULE.effect == "moves the partial results too"
    checked = 0
    for seed in NORMAL_RUN[::3]:
        case = random_case(seed)
        before_steps = len(random_derivation(seed).steps)
        for step in split(random_derivation(seed), set(case.sizes)).steps[before_steps:]:
            old, new = by_value(case, step.before), by_value(case, step.after)
            for value, direction in old.keys() | new.keys():
                loads, stores = new.get((value, "load"), 0), new.get((value, "store"), 0)
                if step.after.types[value].is_item:
                    continue
                if not any(key[0] == value for key in old):
                    assert loads == stores, (seed, value)
                elif direction == "store":
                    assert stores == old[value, "store"], (seed, value)
                else:
                    assert old.get((value, "load"), 0) <= loads <= 2 * old.get((value, "load"), 0), (seed, value)
            checked += 1
    assert checked > 20


def by_value(case: Case, program: Program) -> dict[tuple[str, str], int]:
    ours = chunked(case, program, 2)
    sizes = {dim: max(1, size) for dim, size in ours.sizes.items()}
    sizes |= {chunk: sizes[base] for chunk, base in program.chunks.items()}
    result: dict[tuple[str, str], int] = {}
    for move in movements(program):
        key = move.value, move.direction
        result[key] = result.get(key, 0) + move.itemsize * move.count.value(sizes, ours.tiles)
    return result


def test_flash_decoding_by_hand() -> None:
    """One row: keys and values once; a maximum, a sum and a row of partial results for every chunk."""
    text, dim, _ = REDUCTIONS["flash_decoding"]
    (snapshot,) = split(derive(Case(f"program {text}", {}, {}, frozenset("de"))), {dim}).snapshots
    formula = str(traffic_formula(safe(snapshot)).expand())
    terms = ["4*d*m", "4*B_m*d*n", "4*B_m*e*n", "4*e*m", "16*B_n_chunk*m", "8*B_n_chunk*e*m"]
    assert sorted(formula.split(" + ")) == sorted(terms)
    sizes, tiles = {"m": 1, "n": 4096, "d": 64, "e": 64}, {"m": 1, "n": 128, "n_chunk": 1024}
    assert work(snapshot, sizes, tiles)[0] >= 2 * 4096 * 128


def test_a_chunk_has_whole_blocks() -> None:
    text, dim, _ = REDUCTIONS["maximum"]
    case = Case(f"program {text}", {"n": 7}, {"n": 2, "n_chunk": 3}, frozenset())
    (snapshot,) = split(derive(case), {dim}).snapshots
    with pytest.raises(ValueError, match="not whole blocks of 2"):
        interpret(snapshot, inputs(case), case.sizes, case.tiles)


BLOCKED = """program blocked
dim m
dim e
dim n_chunk = chunks(n)
dim n
array X: f32[m, n]
array V: f32[n, e]
array O: f32[m, e]
input X: slow f32[m][n](m, n) = X[m, n]
input V: slow f32[e][n](e, n) = V[n, e]
map m uses V {
  x: slow f32[n](m, n) <- X
  map n_chunk uses V, x {
    map n {
      y: local f32(m, n) <- x
      v: slow f32[e](e, n) <- V
      map e uses y {
        u: local f32(e, n) <- v
        p: local f32(m, e) = contract[n](u, y)
        => A: slow f32[e](m, e) = stack(p)
      }
      => G: slow f32[e](m, e) = add(A)
    }
    => P: slow f32[e][n_chunk](m, e) = stack(G)
  }
  map e {
    q: slow f32[n_chunk](m, e) <- P
    map n_chunk {
      r: local f32(m, e) <- q
      => R: local f32(m, e) = add(r)
    }
    => S: slow f32[e](m, e) = stack(R)
  }
  => O: slow f32[m][e](m, e) = stack(S)
}
output O = O
"""


@pytest.mark.parametrize("n", [0, 1, 6, 7, 13])
@pytest.mark.parametrize("blocks", [1, 2, 3, 9])
def test_lists_are_accumulated_anew_in_every_chunk(n: int, blocks: int) -> None:
    source = "program p(X: f32[m, n], V: f32[n, e]) -> O: f32[m, e] { O = dot[n](X, V) }"
    case = Case(source, {"m": 3, "n": n, "e": 5}, {"m": 2, "n": 2, "e": 2}, frozenset(), 4)
    program = parse_program(BLOCKED)
    verify(program)
    ours = chunked(case, program, blocks)
    run = interpret(program, inputs(case), ours.sizes, ours.tiles)
    assert wrong_outputs(run.outputs, evaluate(case.program, inputs(case))) == ""
    check_traffic(ours, "blocked", program, run)


BASE = (Path(__file__).parent / "data" / "broken" / "bases" / "chunks.txt").read_text()


@pytest.mark.parametrize(("n", "chunk"), [(1, 3), (9, 3), (10, 6), (20, 9), (20, 300)])
def test_lists_over_the_blocks_of_a_chunk(n: int, chunk: int) -> None:
    """Made and read in one chunk, by the interpreter and by a kernel, with and without padded tiles."""
    program = parse_program(BASE)
    draw = np.random.default_rng(n)
    arrays = {"X": draw.standard_normal((5, n)), "G": np.zeros(4)}
    tiles = {"m": 2, "n": 3, "k": 4, "n_chunk": chunk}
    parts = [arrays["X"][:, start : start + chunk] for start in range(0, n, chunk)]
    expected = sum(part.sum(1) + np.exp(part).max(1) for part in parts)
    run = interpret(program, arrays, {"m": 5, "n": n, "d": 4}, tiles)
    padded = interpret(mask(program), arrays, {"m": 5, "n": n, "d": 4}, tiles, padding=0.0)
    launch = loader.load(numpy_source.emit(program, tiles))
    single = {name: array.astype(np.float32) for name, array in arrays.items()}
    assert run.outputs["S"] == pytest.approx(expected, rel=1e-12)
    assert padded.outputs["S"] == pytest.approx(expected, rel=1e-12)
    assert launch(single, 1)["S"] == pytest.approx(expected, rel=1e-5)
