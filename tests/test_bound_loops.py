"""Loops with conditions on positions: the interval analysis, which blocks are left out, and what that saves."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from math import ceil
from typing import Any

import numpy as np
import pytest
from oracle import Case, example, final_programs, inputs, mismatch
from selection import in_turn

import blockc
from blockc import driver
from blockc.codegen import loader
from blockc.data import random_arrays
from blockc.ir.block import Condition, Constant, Index, Map, Program, Size, Term, walk
from blockc.ir.conditions import ARITHMETIC, COMPARISONS, UNKNOWN, positions
from blockc.ir.interpret import interpret
from blockc.ir.intervals import Bounds, Leaf, bounds
from blockc.ir.ops import OPERATORS
from blockc.ir.text import format_program, parse_program
from blockc.ir.verify import VerifyError, verify
from blockc.kernel import compile
from blockc.language import parse
from blockc.meaning import baseline, evaluate
from blockc.passes.bound_loops import bound_loops
from blockc.passes.choose import ready
from blockc.passes.cost import traffic, work
from blockc.passes.fuse import fuse
from blockc.passes.live_blocks import live
from blockc.passes.lower import lower

# The analysis


def apply(op: str, *operands: float) -> float:
    if op == "rounded":
        return float(np.float32(*operands))
    result: float = OPERATORS[op].meaning(*operands)
    return result


def evaluated(term: Term, place: dict[str, int]) -> float:
    """The value of a term at one position."""

    def leaf(leaf: Leaf) -> Bounds[float]:
        value = place[leaf.dim] if isinstance(leaf, Index) else leaf.value if isinstance(leaf, Constant) else 12
        return value, value

    return bounds(term, apply, leaf)[0]


def random_number(choice: random.Random, depth: int) -> Term:
    """A random number made of positions along m and n."""
    if depth == 0 or choice.random() < 0.2:
        leaves: list[Term] = [Index("m"), Index("n"), Index("n"), Constant(choice.randint(-5, 9)), Size("n")]
        return choice.choice(leaves)
    op = choice.choice(sorted(ARITHMETIC - {"sigmoid", "tanh"}))
    arity = OPERATORS[op].arity or choice.choice((2, 3))
    return Condition(op, tuple(random_number(choice, depth - 1) for _ in range(arity)))


def random_condition(choice: random.Random, depth: int) -> Condition:
    """A random condition."""
    if depth == 0 or choice.random() < 0.3:
        op = choice.choice(sorted(COMPARISONS))
        return Condition(op, (random_number(choice, 2), random_number(choice, 2)))
    op = choice.choice(("and", "or", "not"))
    count = 1 if op == "not" else choice.choice((2, 3))
    return Condition(op, tuple(random_condition(choice, depth - 1) for _ in range(count)))


def blocks(size: int, tile: int) -> Iterator[range]:
    for start in range(0, size, tile):
        yield range(start, min(start + tile, size))


@pytest.mark.parametrize("seed", range(60))
def test_what_is_shown_of_a_block_is_true_of_every_position(seed: int) -> None:
    choice = random.Random(seed)
    condition = random_condition(choice, 2)
    classes = set()
    with np.errstate(all="ignore"):
        for rows, columns in itertools.product(blocks(9, 3), blocks(12, choice.choice((1, 4, 5)))):
            ends = {"m": rows, "n": columns}

            def leaf(leaf: Leaf, ends: dict[str, range] = ends) -> Bounds[float]:
                if isinstance(leaf, Index):
                    return ends[leaf.dim][0], ends[leaf.dim][-1]
                value = leaf.value if isinstance(leaf, Constant) else 12
                return value, value

            everywhere, somewhere = bounds(condition, apply, leaf)
            truth = {bool(evaluated(condition, {"m": m, "n": n})) for m in rows for n in columns}
            assert not everywhere or truth == {True}, condition
            assert somewhere or truth == {False}, condition
            classes.add((bool(everywhere), bool(somewhere)))
    assert (True, False) not in classes


@pytest.mark.parametrize(
    "condition",
    [
        Condition(op, (Condition("add", (Index("m"), Constant(by))), Condition("mul", (Constant(scale), Index("n")))))
        for op in sorted(COMPARISONS - {"eq", "ne"})
        for by in (-3, 0, 2)
        for scale in (-1, 1, 2)
    ],
    ids=str,
)
def test_comparisons_of_affine_positions_are_classed_exactly(condition: Condition) -> None:
    for rows, columns in itertools.product(blocks(9, 2), blocks(11, 3)):
        ends = {"m": rows, "n": columns}

        def leaf(leaf: Leaf, ends: dict[str, range] = ends) -> Bounds[float]:
            if isinstance(leaf, Index):
                return ends[leaf.dim][0], ends[leaf.dim][-1]
            assert isinstance(leaf, Constant)
            return leaf.value, leaf.value

        everywhere, somewhere = bounds(condition, apply, leaf)
        truth = [bool(evaluated(condition, {"m": m, "n": n})) for m in rows for n in columns]
        assert (bool(everywhere), bool(somewhere)) == (all(truth), any(truth))


def test_what_is_unknown_may_hold() -> None:
    low, high = bounds(Condition("not", (UNKNOWN,)), apply, lambda leaf: (leaf.value, leaf.value))  # type: ignore[union-attr]
    assert (bool(low), bool(high)) == (False, True)
    nothing = Condition("lt", (Condition("mul", (Index("n"), Constant(float("inf")))), Constant(3)))
    with np.errstate(all="ignore"):
        low, high = bounds(nothing, apply, lambda leaf: (0, 5) if isinstance(leaf, Index) else (leaf.value, leaf.value))  # type: ignore[union-attr]
    assert (bool(low), bool(high)) == (False, True)  # 0 * inf is not a number


@pytest.mark.parametrize("condition", ["T - 0.5 < D", "min(T, 1e9) < D", "floor(T * 1.0) < D", "T * 0.5 < D * 0.5"])
def test_whole_numbers_that_f32_rounds_are_masked_alike_in_any_blocks(condition: str) -> None:
    source = (
        f"program p(S: f32[m, n], T: i32[n], D: i32[m]) -> O: f32[m] {{ O = sum[n](where({condition}, exp(S), 0)) }}"
    )
    kernels = [compile(source, tiles={"m": 2, "n": size}) for size in (2, 3, 8)]
    for seed in range(10):
        draw = np.random.default_rng(seed)
        arrays = {
            "S": draw.standard_normal((6, 8)).astype(np.float32),
            "T": (2**24 + draw.integers(-4, 5, 8)).astype(np.int32),
            "D": (2**24 + draw.integers(-4, 5, 6)).astype(np.int32),
        }
        first, *others = (kernel(**arrays) for kernel in kernels)
        assert all(np.allclose(first, other, rtol=1e-4) for other in others), seed


@pytest.mark.parametrize("start", [5, 2**24 - 1, 2**24 + 1, 2**24 + 2, 2**25 + 2])
@pytest.mark.parametrize("op", sorted(COMPARISONS))
def test_bounds_enclose_what_is_computed_in_f32(op: str, start: int) -> None:
    def leaf(leaf: Leaf) -> Bounds[float]:
        return (leaf.value, leaf.value) if isinstance(leaf, Constant) else (start, start)

    low, high = bounds(Condition(op, (Condition("add", (Index("n"), Constant(0.5))), Index("m"))), apply, leaf)
    truth = {
        bool(OPERATORS[op].meaning(number, start)) for number in (start + 0.5, np.float32(start) + np.float32(0.5))
    }
    assert not low or truth == {True}
    assert high or truth == {False}


# Which loops are bounded

HEAD = "program p(Q: f32[m, d], K: f32[n, d], V: f32[n, e]) -> O: f32[m, e] { S = dot[d](Q, K); "
MASKS = {
    "causal": "index(n) <= index(m)",
    "causal, turned round": "not index(m) < index(n)",
    "later": "index(n) > index(m)",
    "window": "index(n) <= index(m) and index(m) - index(n) < 5",
    "window, by distance": "abs(index(m) - index(n)) < 4",
    "prefix": "index(n) < 6 or index(n) <= index(m)",
    "block-diagonal": "floor(index(m) / 6) == floor(index(n) / 6)",
    "the last": "index(n) >= size(n) - 3",
    "dilated": "index(n) <= index(m) and index(m) - index(n) == 3 * floor((index(m) - index(n)) / 3)",
    "nothing": "index(n) < 0",
}
SPELLINGS = {
    "softmax": "O = dot[n](softmax[n](where({}, S, -inf)), V) }}",
    "softmax of scaled scores": "O = dot[n](softmax[n](where({}, S, -inf) / sqrt(size(d))), V) }}",
    "mask added": "O = dot[n](softmax[n](S + where({}, 0, -inf)), V) }}",
    "zeros": "O = dot[n](where({}, sigmoid(S), 0), V) }}",
    "mask multiplied": "O = dot[n](sigmoid(S) * where({}, 1, 0), V) }}",
    "closed mask": "O = dot[n](softmax[n](where(not ({}), -inf, S)), V) }}",
    "one minus closed mask": "E = exp(S) * (1 - f32(not ({}))); O = dot[n](E, V) / sum[n](E) }}",
}
SIZES = {"m": 17, "n": 19, "d": 3, "e": 2}
TILES = {"m": 4, "n": 3}


def emitted(source: str, whole: frozenset[str] = frozenset({"d", "e"})) -> tuple[Program, ...]:
    return ready(fuse(lower(parse(source), whole)))


def bounded(program: Program) -> list[Map]:
    return [node for node in walk(program.body) if isinstance(node, Map) and node.where is not None]


@pytest.mark.parametrize(("mask", "spelling"), in_turn(MASKS, SPELLINGS, of=2))
def test_a_mask_bounds_the_loop(mask: str, spelling: str) -> None:
    source = HEAD + SPELLINGS[spelling].format(MASKS[mask])
    (program,) = emitted(source)
    (loop,) = bounded(program)
    assert loop.dim == "n"
    case = Case(source, SIZES, TILES, frozenset({"d", "e"}))
    arrays = inputs(case)
    assert not mismatch(program, case, arrays, evaluate(case.program, arrays))
    run = interpret(program, arrays, SIZES, TILES)
    assert run.traffic == sum(traffic(program, SIZES, TILES).values())
    kernel = compile(source, dims=SIZES, tiles={**TILES, "d": None, "e": None})
    exact, plain = evaluate(case.program, arrays)["O"], baseline(case.program, arrays)["O"]
    error = 4 * np.abs(plain - exact).max() + 1e-6 * np.abs(exact).max()
    assert np.abs(kernel(**arrays) - exact).max() <= error


@pytest.mark.parametrize(
    "body",
    [
        "O = dot[n](where(index(n) <= index(m), S, 1), V) }",
        "O = dot[n](where(index(n) <= index(m), S, 0) + 1, V) }",
        "O = dot[n](cos(where(index(n) <= index(m), S, 0)), V) }",
        "O = dot[n](where(index(m) < 5, S, 0), V) }",  # the loop has nothing to choose from
        "P = where(index(n) <= index(m), S, -inf); O = dot[n](softmax[n](P), V) + sum[n](P * 0 + S) }",
    ],
)
def test_loops_that_need_every_block(body: str) -> None:
    assert not any(bounded(program) for program in emitted(HEAD + body))


def test_a_list_needs_every_block() -> None:
    source = (
        "program p(S: f32[m, n]) -> (P: f32[m, n], L: f32[m]) { P = where(index(n) <= index(m), S, 0); L = sum[n](P) }"
    )
    for program in emitted(source, frozenset()):
        assert not any(output.monoid is None for node in bounded(program) for output in node.outputs)


def test_names_and_the_order_of_dimensions_do_not_matter() -> None:
    source = (
        "program q(A: f32[queries, features], B: f32[features, keys], C: f32[values, keys]) -> R: f32[queries, values] "
        "{ R = dot[keys](softmax[keys](where(index(queries) >= index(keys), dot[features](B, A), -inf)), C) }"
    )
    (program,) = emitted(source, frozenset({"features", "values"}))
    assert [node.dim for node in bounded(program)] == ["keys"]


# Counts by hand


def loads(program: Program, sizes: dict[str, int], tiles: dict[str, int]) -> dict[str, int]:
    return {name: count for (name, way), count in traffic(program, sizes, tiles).items() if way == "load"}


@pytest.mark.parametrize(("length", "tile"), [(64, 8), (60, 8), (61, 16), (7, 7)])
def test_causal_attention_loads_a_triangle(length: int, tile: int) -> None:
    (program,) = emitted(HEAD + SPELLINGS["softmax"].format(MASKS["causal"]))
    sizes, tiles = {"m": length, "n": length, "d": 4, "e": 8}, {"m": tile, "n": tile}
    count = ceil(length / tile)
    short = length - (count - 1) * tile
    elements = tile * count * (count - 1) // 2 + sum(tile for _ in range(count - 1)) + short  # of a column of K
    found = loads(program, sizes, tiles)
    assert (found["K"], found["V"]) == (4 * 4 * elements, 4 * 8 * elements)


def test_the_work_of_causal_attention_is_about_half() -> None:
    sizes, tiles = {"m": 4096, "n": 4096, "d": 64, "e": 64}, {"m": 64, "n": 64}
    (masked,) = emitted(HEAD + SPELLINGS["softmax"].format(MASKS["causal"]))
    (free,) = emitted(HEAD + "O = dot[n](softmax[n](S), V) }")
    ratio = work(masked, sizes, tiles)[1] / work(free, sizes, tiles)[1]
    assert ratio == pytest.approx((64 * 65 / 2) / 64**2, rel=0.01)


def test_a_window_is_linear_in_the_length() -> None:
    (program,) = emitted(HEAD + SPELLINGS["softmax"].format("index(n) <= index(m) and index(m) - index(n) < 128"))
    tiles = {"m": 64, "n": 64}
    found = [loads(program, {"m": length, "n": length, "d": 64, "e": 64}, tiles)["K"] for length in (4096, 8192, 16384)]
    assert found[2] - found[1] == 2 * (found[1] - found[0])
    # Every block of rows sees its own block of columns and the two before it.
    assert found[0] == 4 * 64 * 64 * (3 * 64 - 2 - 1)


def test_live_blocks_of_several_conditions() -> None:
    first = Condition("le", (Index("n"), Index("m")))
    second = Condition("lt", (Index("n"), Constant(4)))
    sizes, tiles = {"m": 8, "n": 8}, {"m": 2, "n": 2}
    assert live((first,), (), sizes, tiles) == 4 + 3 + 2 + 1
    assert live((first, second), (), sizes, tiles) == 4 + 3
    assert live((first,), ("n",), sizes, {"n": 2}) == 8  # all rows are one block
    assert live((second,), ("n", "m"), sizes, {"n": 3}) == 6
    assert live((first,), ("n", "m"), {"m": 2**40, "n": 8}, {"m": 2, "n": 8}) == 2**43  # too many to look at each


def test_empty_sizes() -> None:
    (program,) = emitted(HEAD + SPELLINGS["softmax"].format(MASKS["causal"]))
    for sizes in ({**SIZES, "n": 0}, {**SIZES, "m": 0}):
        arrays = random_arrays(parse(HEAD + SPELLINGS["softmax"].format(MASKS["causal"])), sizes, 0)
        run = interpret(program, arrays, sizes, TILES)
        assert run.traffic == sum(traffic(program, sizes, TILES).values())
        assert not run.outputs["O"].any()


# Chunks, threads, the text form, invariants


def test_chunks_of_a_bounded_loop() -> None:
    source = HEAD + SPELLINGS["softmax"].format(MASKS["causal"])
    arrays = random_arrays(parse(source), SIZES, 3)
    whole = compile(source, dims=SIZES, tiles=TILES)(**arrays)
    split = compile(source, dims=SIZES, tiles=TILES, split={"n": 3})(**arrays)
    np.testing.assert_allclose(split, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["causal_attention", "sliding_window_attention"])
def test_bounded_programs_parse_back(name: str) -> None:
    derivation = fuse(lower(parse(example(name)), frozenset({"d", "e"})))
    found = [program for _, program in final_programs(derivation) if bounded(program)]
    assert found
    for program in found:
        assert parse_program(format_program(program)) == program


def test_bounding_again_changes_nothing() -> None:
    (program,) = emitted(HEAD + SPELLINGS["softmax"].format(MASKS["window"]))
    assert bound_loops(program) == program


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("le(index(n), index(d))", "outside a map"),
        ("le(index(n))", "1 operands"),
        ("softmax(index(n))", "`softmax`"),
        ("le(index(n), size(w))", "not declared"),
    ],
)
def test_broken_conditions_are_found(change: str, problem: str) -> None:
    *_, program = emitted(HEAD + SPELLINGS["zeros"].format(MASKS["causal"]), frozenset({"e"}))
    text = format_program(program)
    assert "where le(index(n), index(m))" in text
    with pytest.raises(VerifyError, match=problem):
        verify(parse_program(text.replace("where le(index(n), index(m))", f"where {change}")))


def test_a_map_that_stacks_has_no_condition() -> None:
    text = format_program(lower(parse("program p(X: f32[m]) -> Y: f32[m] { Y = exp(X) }"), frozenset()))
    with pytest.raises(VerifyError, match="B16"):
        verify(parse_program(text.replace("map m {", "map m where lt(index(m), 3) {")))


def test_positions_of_a_term() -> None:
    assert set(positions(Condition("le", (Index("n"), Condition("add", (Index("m"), Size("n"))))))) == {"m", "n"}


# Tables

DOCUMENTS = (
    "program p(Q: f32[m, d], K: f32[n, d], V: f32[n, e], a: i32[m], b: i32[n]) -> O: f32[m, e] "
    "{{ O = dot[n](softmax[n](where({}, dot[d](Q, K), -inf)), V) }}"
)
TABLES = {
    "documents": "a == b",
    "documents, causal": "a == b and index(n) <= index(m)",
    "ages": "b <= a",
    "lengths": "index(n) < a and b >= 0",
    "another table": "a == b or b < 0",
}


def tabled(name: str, rows: list[int], columns: list[int]) -> tuple[Program, Case, dict[str, np.ndarray]]:
    case = Case(DOCUMENTS.format(TABLES[name]), SIZES, TILES, frozenset({"d", "e"}))
    (program,) = emitted(case.source)
    arrays = {**inputs(case), "a": np.array(rows, np.int32), "b": np.array(columns, np.int32)}
    return program, case, arrays


@pytest.mark.parametrize("name", TABLES)
def test_tables_bound_a_loop(name: str) -> None:
    rows, columns = [number // 5 for number in range(17)], [number // 6 for number in range(19)]
    program, case, arrays = tabled(name, rows, columns)
    assert [node.dim for node in bounded(program)] == ["n"]
    assert parse_program(format_program(program)) == program
    assert not mismatch(program, case, arrays, evaluate(case.program, arrays))
    run = interpret(program, arrays, SIZES, TILES)
    assert run.traffic == sum(traffic(program, SIZES, TILES, arrays).values())
    assert run.traffic < sum(traffic(program, SIZES, TILES).values())
    assert work(program, SIZES, TILES, arrays) < work(program, SIZES, TILES)
    kernel = compile(case.source, dims=SIZES, tiles={**TILES, "d": None, "e": None})
    exact = evaluate(case.program, arrays)["O"]
    np.testing.assert_allclose(kernel(**arrays), exact, rtol=1e-4, atol=1e-5)


def test_a_table_is_loaded_for_every_block_and_the_rest_where_it_matters() -> None:
    program, _, arrays = tabled("documents", [0] * 8 + [1] * 9, [0] * 9 + [1] * 10)
    run = interpret(program, arrays, SIZES, TILES)
    rows = 5  # blocks; two of them see the first three blocks of columns, the others the last four
    assert run.loads["b"] == rows * 4 * 19
    assert run.loads["K"] == 4 * 3 * (2 * 9 + 3 * 10)


def test_a_table_of_batches() -> None:
    source = (
        "program p(Q: f32[h, m, d], K: f32[h, n, d], t: i32[h, n]) -> O: f32[h, m] "
        "{ O = sum[n](where(t == index(m), dot[d](Q, K), 0)) }"
    )
    sizes, tiles = {"h": 3, "m": 7, "n": 8, "d": 2}, {"h": 1, "m": 2, "n": 3}
    (program,) = emitted(source, frozenset({"d"}))
    case = Case(source, sizes, tiles, frozenset({"d"}))
    arrays = {**inputs(case), "t": np.sort(np.random.default_rng(0).integers(0, 7, (3, 8))).astype(np.int32)}
    assert not mismatch(program, case, arrays, evaluate(case.program, arrays))
    run = interpret(program, arrays, sizes, tiles)
    assert (
        run.traffic
        == sum(traffic(program, sizes, tiles, arrays).values())
        < sum(traffic(program, sizes, tiles).values())
    )
    for way in (tiles, {"h": 2, "m": 2, "n": 3}):
        kernel = compile(source, dims=sizes, tiles={**way, "d": None})
        np.testing.assert_allclose(kernel(**arrays), evaluate(case.program, arrays)["O"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("condition", ["a < 3", "sum[k](b) < 3", "bool(c)"])
def test_what_is_computed_or_no_whole_number_is_no_table(condition: str) -> None:
    source = (
        "program p(X: f32[m, n], a: f32[n], b: i32[n, k], c: bool[n]) -> L: f32[m] "
        f"{{ L = sum[n](where({condition}, X, 0) + where(a < 0 and c, sum[k](b), 0) * 0) }}"
    )
    assert not any(bounded(program) for program in emitted(source, frozenset({"k"})))


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        ("causal", "index(n) <= index(m)"),
        ("window", "index(n) <= index(m) and index(m) - index(n) < 5"),
        ("causal, turned round", "not (index(m) < index(n))"),
        ("prefix", "index(n) <= index(m) or index(n) < 6"),
    ],
)
def test_explain_says_which_blocks_are_left_out(mask: str, text: str) -> None:
    kernel = compile(HEAD + SPELLINGS["softmax"].format(MASKS[mask]), dims=SIZES, tiles=TILES)
    told = " ".join(str(kernel.explain()).split())
    assert f"the loop over n leaves out blocks in which {text} holds nowhere" in told
    assert "live(B_m*n)" in told


# Faults that a review found

ODD = {
    "made of a table outside the loop": "O = sum[n](where(D > 1 and T - D > 0, X, 0))",
    "twice a table outside": "O = sum[n](where(T > 2 * D, X, 0)) + sum[n](where(abs(D) > T, X, 0))",
    "small whole numbers": "O = sum[n](where(i8(T) + i8(100) > 100, X, 0)) + sum[n](where(T * T > D, X, 0))",
    "bounds that are no numbers": "O = sum[n](where(sqrt(index(n) - 5) < 4, X, 0)) + f32(D) * 0 + sum[n](f32(T)) * 0",
    "truth of infinity": "O = max[n](f32(bool(where(index(n) < index(m), X, -inf)))) + f32(D) + sum[n](f32(T))",
    "a whole number of infinity": "O = max[n](f32(i8(where(index(n) > index(m), X - 9, -inf)))) + D + sum[n](f32(T))",
    "a logarithm": "E = where(index(n) <= D, exp(X), 0); O = sum[n](where(E > 0, E * log(E), 0)) + sum[n](T)",
    "an entropy": "P = softmax[n](where(index(n) <= D + 3, X, -inf)); "
    "O = sum[n](where(P > 0, P * log(P), 0)) + sum[n](T)",
    "an exponential above 0": "E = where(index(n) <= D, exp(X), 0); O = sum[n](where(E > 0, X, 0)) + sum[n](T)",
}


@pytest.mark.parametrize("tiles", [{"m": 1, "n": 1}, {"m": 2, "n": 3}, {"m": 4, "n": 16}])
@pytest.mark.parametrize("name", ODD)
def test_odd_conditions(name: str, tiles: dict[str, int]) -> None:
    source = f"program p(X: f32[m, n], T: i32[n], D: i32[m]) -> O: f32[m] {{ {ODD[name]} }}"
    sizes = {"m": 13, "n": 17}
    random = np.random.default_rng(1)
    arrays = {
        "X": random.standard_normal((13, 17)).astype(np.float32),
        "T": random.integers(-60, 60, 17).astype(np.int32),
        "D": random.integers(-2, 4, 13).astype(np.int32),
    }
    # Not by way of `compile`: a NaN that `E > 0` hides, which a self-check puts in, reaches some of these kernels.
    program = parse(source)
    _, plan = driver.planned(driver.Forms(program, tiles), sizes)
    found = loader.load(driver.emit(plan, program))(arrays)["O"]
    np.testing.assert_allclose(found, evaluate(program, arrays)["O"], rtol=1e-4, atol=1e-4)
    for fused in emitted(source, frozenset()):
        assert interpret(fused, arrays, sizes, tiles).traffic == sum(traffic(fused, sizes, tiles, arrays).values())


def test_numbers_of_one_byte() -> None:
    source = "program p(X: f32[m, n], T: i8[n]) -> O: f32[m] { O = sum[n](where(T + 200 > 190 and 3 - T > 0, X, 0)) }"
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "X": np.ones((5, 17), np.float32),
        "T": np.linspace(-120, 120, 17).astype(np.int8),
    }
    kernel = compile(source, tiles={"m": 2, "n": 3})
    np.testing.assert_allclose(kernel(**arrays), evaluate(parse(source), arrays)["O"])


def test_a_mask_of_two_nested_loops() -> None:
    source = (
        "program p(W: f32[m, n, k], U: f32[m, n, k]) -> O: f32[m] { P = index(n) <= index(m); "
        "A = sum[k](where(P and index(k) > index(n) + 3, where(P, U, 3), 0)); O = sum[n](A + where(P, sum[k](W), 0)) }"
    )
    sizes = {"m": 13, "n": 17, "k": 9}
    arrays = random_arrays(parse(source), sizes, 0)
    kernel = compile(source, dims=sizes, tiles=dict.fromkeys(sizes, 4))
    np.testing.assert_allclose(kernel(**arrays), evaluate(parse(source), arrays)["O"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("body", ["sum[n](max[k](where(C, X, 0)))", "max[n](min[k](where(C, X, -inf)))"])
def test_nothing_of_a_whole_dimension(body: str) -> None:
    source = f"program p(X: f32[m, n, k]) -> O: f32[m] {{ C = index(n) < index(m) - 3; O = {body} }}"
    sizes = {"m": 6, "n": 5, "k": 0}
    arrays = random_arrays(parse(source), sizes, 0)
    kernel = compile(source, dims=sizes, tiles={"m": 3, "n": 3, "k": None})
    np.testing.assert_array_equal(kernel(**arrays), evaluate(parse(source), arrays)["O"])


@pytest.mark.parametrize("values", [[-3, -3, 0, 0, -1, -1], [0, 0, 0, 0, 0, 5]])
def test_a_number_that_is_made_another_number_is_no_condition(values: list[int]) -> None:
    """It was taken for one: the first program failed to compile."""
    source = "program p(X: i32[m], V: f32[m]) -> O: f32[] { O = sum[m](f32(X * 2) * V) }"
    kernel = blockc.compile(source, tiles={"m": 2})
    found = kernel(np.array(values, np.int32), np.ones(6, np.float32))
    assert found == 2 * sum(values)
