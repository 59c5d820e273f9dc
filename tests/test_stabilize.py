"""Safe arithmetic: no overflow at any logits, NaN and infinities where the reference has them, and the structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle import difference, example, final_programs

from blockc.ir.array_program import ArrayProgram
from blockc.ir.block import Apply, Map, Program, walk
from blockc.ir.interpret import interpret
from blockc.ir.verify import verify
from blockc.language import parse
from blockc.meaning import evaluate
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower
from blockc.passes.stabilize import stabilize

Arrays = dict[str, NDArray[Any]]

SIZES = {"m": 12, "n": 7, "e": 3, "d": 4}
TILES = ({"m": 5, "n": 3, "e": 2, "d": 2}, {"m": 12, "n": 1, "e": 3, "d": 4})


@cache
def programs(source: str) -> tuple[tuple[str, Program], ...]:
    """All that may be emitted, stabilized, with everything cut, with all but the rows whole, and in between."""
    found = []
    for whole in ("", "e d", "n e d"):
        dims = {dim.name for dim in parse(source).dims}
        derivation = fuse(lower(parse(source), frozenset(whole.split()) & dims))
        for stage, program in final_programs(derivation):
            if stage.endswith(("stable", "composed")):
                verify(program)
                found.append((f"whole {whole}, {stage}", program))
    return tuple(found)


def check(name: str, rows: NDArray[Any], excused: Collection[int] = ()) -> None:
    """Every stabilized program of a formula gives what the reference gives, row by row."""
    source = SAFE[name]
    program = parse(source)
    arrays = arrays_for(program, rows)
    reference = evaluate(program, arrays)
    sizes = {dim.name: SIZES[dim.name] for dim in program.dims}
    for stage, candidate in programs(source):
        for tiles in TILES:
            outputs = interpret(candidate, arrays, sizes, tiles).outputs
            for output, expected in reference.items():
                for row in set(range(len(rows))) - set(excused):
                    problem = difference(outputs[output][row], expected[row], 1e-9)
                    assert not problem, f"{stage}, tiles {tiles}, {output} of row {row}: {problem}"


def values(seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((SIZES["n"], SIZES["e"]))


INF, NAN = np.inf, np.nan
ROWS = {
    "all -inf": [-INF] * 7,
    "all -1e30": [-1e30] * 7,
    "all NaN": [NAN] * 7,
    "NaN among -inf": [-INF, -INF, NAN, -INF, -INF, -INF, -INF],
    "one NaN": [1.0, 2.0, NAN, 0.0, -1.0, 3.0, 2.0],
    "one +inf": [1.0, 2.0, 3.0, INF, -1.0, 0.0, 2.0],
    "both infs": [1.0, -INF, 3.0, INF, -1.0, 0.0, 2.0],
    "all +inf": [INF] * 7,
    "zeros": [0.0] * 7,
    "denormals": [5e-324, 1e-310, 0.0, 2e-308, -5e-324, 1e-320, 0.0],
    "the largest finite": [1.7e308, -1.7e308, 1.0, 0.0, 1.7e308, 2.0, 3.0],
    "one finite, rest -inf": [-INF, -INF, -INF, -INF, -INF, 3.0, -INF],
}

# Every program in which an exponential could overflow or lose everything, over a row of logits S.
HEADER = "program p(S: f64[m, n], V: f64[n, e]) -> "
SAFE = {
    "softmax": HEADER + "O: f64[m, n] { O = softmax[n](S) + 0 * sum[e](V) }",
    "softmax alone": "program p(S: f64[m, n]) -> O: f64[m, n] { O = softmax[n](S) }",
    "attention": HEADER + "O: f64[m, e] { O = dot[n](softmax[n](S), V) }",
    "attention, divided after": HEADER + "O: f64[m, e] { E = exp(S); O = dot[n](E, V) / sum[n](E) }",
    "maximum subtracted": HEADER + "O: f64[m, e] { E = exp(S - max[n](S)); O = dot[n](E, V) / sum[n](E) }",
    "log-sum-exp subtracted": HEADER + "O: f64[m, e] { O = dot[n](exp(S - logsumexp[n](S)), V) }",
    "log-sum-exp": "program p(S: f64[m, n]) -> L: f64[m] { L = logsumexp[n](S) }",
    "two outputs": HEADER + "(O: f64[m, e], L: f64[m]) { L = logsumexp[n](S); O = dot[n](exp(S - L), V) }",
    "mean of exponentials, logarithm": "program p(S: f64[m, n]) -> L: f64[m] { L = log(mean[n](exp(S))) }",
    "weighted mean of the exponents": "program p(S: f64[m, n]) -> L: f64[m] { L = sum[n](softmax[n](S) * tanh(S)) }",
    "largest probability": "program p(S: f64[m, n]) -> L: f64[m] { L = max[n](softmax[n](S)) }",
    "logarithm of the largest exponential": "program p(S: f64[m, n]) -> L: f64[m] { L = log(max[n](exp(S))) }",
    "mask after exp": HEADER
    + "O: f64[m, e] { E = where(index(n) <= index(m), exp(S), 0); O = dot[n](E, V) / sum[n](E) }",
    "mask after exp, maximum subtracted": "program p(S: f64[m, n]) -> O: f64[m, n] "
    "{ E = where(index(n) <= index(m), exp(S - max[n](S)), 0); O = E / sum[n](E) }",
    "mask after exp, exported": "program p(S: f64[m, n]) -> O: f64[m, n] "
    "{ O = where(index(n) <= index(m), exp(S - max[n](S)), 0) }",
    "rows masked by a factor": HEADER + "O: f64[m, e] { E = exp(S) * f32(index(m) > 3); O = dot[n](E, V) / sum[n](E) }",
    "mask before exp": HEADER + "O: f64[m, e] { O = dot[n](softmax[n](where(index(n) <= index(m), S, -inf)), V) }",
    "difference of two": HEADER + "O: f64[m, e] { O = dot[n](softmax[n](S) - 0.5 * softmax[n](-S), V) }",
    "sum of two exponentials": "program p(S: f64[m, n]) -> L: f64[m] { L = log(sum[n](exp(S) + exp(0.5 * S))) }",
    "softmax of two parts": "program p(S: f64[m, n], T: f64[n]) -> O: f64[m, n] "
    "{ E = exp(S); O = E / (sum[n](E) + sum[n](exp(T))) }",
    "square root": "program p(S: f64[m, n]) -> O: f64[m] { O = log(sqrt(sum[n](exp(S)))) }",
    "entropy": "program p(S: f64[m, n]) -> O: f64[m] { P = softmax[n](S); O = -sum[n](P * log(P)) }",
    "at least nothing": "program p(S: f64[m, n]) -> O: f64[m, n] { E = exp(S); O = E / max(sum[n](E), 0.0) }",
    "maximum subtracted, at least nothing": "program p(S: f64[m, n]) -> O: f64[m, n] "
    "{ E = exp(S - max[n](S)); O = E / max(sum[n](E), 0.0) }",
    "numerator is an output": "program p(S: f64[m, n]) -> (E: f64[m, n], O: f64[m, n]) "
    "{ E = exp(S); O = E / sum[n](E) }",
    "squares": "program p(S: f64[m, n]) -> O: f64[m] { P = softmax[n](S); O = sum[n](P * P) }",
    "exponential of a maximum": "program p(S: f64[m, n]) -> O: f64[m] { O = exp(-max[n](S) / 1e4) }",
    "a sum of quotients": "program p(S: f64[m, n]) -> O: f64[m] { E = exp(S); O = sum[n](E / sum[n](E)) }",
}

# Standard deviation and offset of the logits of a row.
FAMILIES = (
    *((1, 0), (10, 0), (100, 0), (1000, 0), (1000, 0), (1000, 0)),
    *((1, -1e4), (10, -1e4), (1, 1e4), (10, 1e4), (0, 0), (0, 700)),
)

# Where the steps that the text spells lose all digits in float64 and the fused program is right; and where twice an
# exponent is beyond float64.
INEXACT = {
    "entropy": {"the largest finite"},
    "log-sum-exp subtracted": {"all -1e30", "the largest finite"},
    "two outputs": {"all -1e30", "the largest finite"},
    "squares": {"the largest finite"},
}


def arrays_for(program: ArrayProgram, rows: NDArray[Any]) -> Arrays:
    every = {"S": rows, "V": values(1), "T": 800.0 * values(2)[:, 0]}
    return {argument.name: every[argument.name] for argument in program.inputs}


@pytest.mark.parametrize("name", SAFE)
def test_large_logits(name: str) -> None:
    draw = np.random.default_rng(3)
    check(name, np.array([offset + std * draw.standard_normal(SIZES["n"]) for std, offset in FAMILIES]))


@pytest.mark.parametrize("name", SAFE)
def test_special_rows(name: str) -> None:
    check(name, np.array(list(ROWS.values())), [list(ROWS).index(row) for row in INEXACT.get(name, ())])


def test_empty_rows_give_zeros_in_every_spelling() -> None:
    rows = np.full((SIZES["m"], SIZES["n"]), -np.inf)
    spellings = ("attention", "attention, divided after", "maximum subtracted", "log-sum-exp subtracted")
    for name in (*spellings, "mask before exp"):
        for stage, program in programs(SAFE[name]):
            arrays = arrays_for(parse(SAFE[name]), rows)
            outputs = interpret(program, arrays, SIZES, TILES[0]).outputs
            assert np.all(outputs["O"] == 0), (name, stage)


def operators(program: Program) -> Counter[str]:
    return Counter(node.op for node in walk(program.body) if isinstance(node, Apply))


def loops(program: Program) -> list[Map]:
    return [node for node in walk(program.body) if isinstance(node, Map) and node.is_loop]


def test_attention_becomes_the_online_softmax() -> None:
    (snapshot,) = fuse(lower(parse(example("attention")), frozenset("de"))).snapshots
    stable = stabilize(snapshot)
    (loop,) = loops(stable)
    assert operators(stable)["exp"] == 1 and operators(stable)["max"] == 1, "one of each, for the sum and the product"
    assert [output.monoid for output in loop.outputs] == ["exponent_add"]
    assert len(loop.outputs[0].names) == 3, "the maximum, the sum of a row, and the product"
    after = [node for node in walk(stable.body) if isinstance(node, Apply) and set(node.uses) & set(loop.defines)]
    assert not any(node.op in ("exp", "log") for node in after), "no exponent is left behind the loop"


def test_softmax_in_two_kernels_stores_exponents() -> None:
    """Unfused, every exponential is stored as its exponent: unwrapped it would overflow."""
    source = SAFE["softmax alone"]
    unfused = fuse(lower(parse(source), frozenset())).unfused
    arrays = {"S": 1000.0 + np.zeros((12, 7))}
    plain = interpret(unfused, arrays, SIZES, TILES[0]).outputs["O"]
    stable = interpret(stabilize(unfused), arrays, SIZES, TILES[0]).outputs["O"]
    assert np.all(np.isnan(plain)) and np.allclose(stable, 1 / 7)


def test_sigmoid_stays_an_operator() -> None:
    source = "program p(G: f32[m, n], U: f32[m, n]) -> O: f32[m] { O = sum[n](G / (1 + exp(-G)) * U) }"
    (snapshot,) = fuse(lower(parse(source), frozenset())).snapshots
    stable = stabilize(snapshot)
    assert operators(stable)["sigmoid"] == 1 and operators(stable)["exp"] == 0
    assert [output.monoid for loop in loops(stable) for output in loop.outputs] == ["add"]


def test_programs_without_exponentials_are_left_alone() -> None:
    for name in ("mlp", "matmul_epilogue", "rmsnorm_swiglu"):
        for program in fuse(lower(parse(example(name)), frozenset())).snapshots:
            assert stabilize(program) is program


def test_a_variance_of_exponentials_has_a_pivot_and_an_exponent() -> None:
    source = "program p(X: f64[m, n]) -> O: f64[m] { E = exp(X); a = mean[n](E); O = mean[n](E * E) - a * a }"
    rows = np.random.default_rng(3).standard_normal((SIZES["m"], SIZES["n"]))
    for stage, program in programs(source):
        outputs = interpret(program, {"X": rows}, SIZES, TILES[0]).outputs
        assert np.allclose(outputs["O"], np.exp(rows).var(axis=1), rtol=1e-10), stage
