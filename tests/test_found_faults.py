"""Faults that were found by hand or by review: each a program, the data that showed it, and what must hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import blockc
from blockc import meaning
from blockc.accuracy import compare, computed_dtype
from blockc.data import random_arrays
from blockc.driver import Tiles, default_sizes
from blockc.ir.interpret import interpret

Arrays = dict[str, NDArray[Any]]
ROWS = {"m": 4, "n": 9}
CUT = {"m": 2, "n": 4}


def check(
    source: str,
    sizes: dict[str, int],
    tiles: Tiles | None = None,
    change: Callable[[Arrays], object] = lambda arrays: None,
) -> None:
    """The kernel is within the error rule of the meaning, and predicted traffic is what the interpreter counts."""
    kernel = blockc.compile(source, tiles=tiles, strict=True)
    program = kernel.program
    full = default_sizes(program, sizes)
    arrays = random_arrays(program, full, seed=0)
    change(arrays)
    outputs = kernel(**arrays)
    outputs = outputs if isinstance(outputs, dict) else {program.outputs[0].argument.name: outputs}
    exact, unfused = meaning.evaluate(program, arrays), meaning.baseline(program, arrays)
    for result in program.outputs:
        name, dtype = result.argument.name, result.argument.dtype
        found = compare(outputs[name], exact[name], unfused[name], dtype, computed_dtype(program, result))
        assert found.ok, f"{source}\n{name}: {found}"
    plan = kernel.specialise(full).plan
    run = interpret(plan.program, arrays, full, plan.tiles)
    counted = {(n, "load"): b for n, b in run.loads.items()} | {(n, "store"): b for n, b in run.stores.items()}
    predicted = plan.costs[plan.snapshot].traffic
    assert {k: b for k, b in predicted.items() if b} == {k: b for k, b in counted.items() if b}


def set_row(name: str, value: float) -> Callable[[Arrays], object]:
    return lambda arrays: arrays[name].__setitem__(1, value)


def scale(name: str, factor: float) -> Callable[[Arrays], object]:
    return lambda arrays: arrays[name].__imul__(factor)


def test_a_value_that_is_read_only_under_another_dimension_is_made_first() -> None:
    source = (
        "program p(W: f32[d=4, e=3], Z: f32[e], V: f32[m, g=8], X: f32[g, f=4]) -> (O: f32[m, f], U: f32[d], B: f32[])"
        "{ w = max[e](W); O = dot[g](V, X) * w[d -> f] * 1.5; U = w * 2; B = sum[e](Z) }"
    )
    check(source, {"m": 5})


def test_an_output_may_be_renamed_to_a_dimension_that_it_had_summed() -> None:
    check(
        "program p(X: f32[m, d], W: f32[d, e]) -> Y: f32[m, d] { Y = dot[d](X, W)[e -> d] }", {"m": 3, "d": 4, "e": 4}
    )


def test_default_sizes_honour_renames() -> None:
    program = blockc.compile(
        "program p(X: f32[m, d], W: f32[d, e]) -> Y: f32[m, d] { Y = relu(dot[d](X, W)[e -> d]) + X }"
    ).program
    sizes = default_sizes(program, {})
    assert sizes["d"] == sizes["e"]


def test_what_cancels_leaves_no_integer_behind() -> None:
    check("program p(I: i32[m], Y: f32[n]) -> O: f32[m, n] { O = I + Y - I }", ROWS)


def test_the_logarithm_of_a_quotient_of_negative_numbers() -> None:
    def negative(arrays: Arrays) -> None:
        for array in arrays.values():
            np.negative(np.abs(array), out=array)

    check("program p(A: f32[m], B: f32[m]) -> O: f32[m] { O = log(A / B) }", ROWS, None, negative)


@pytest.mark.parametrize(
    "exponent", ["(S - M) * 0.5", "(S - M) / 2", "(S - M) / size(n)", "S * 0.5 - M * 0.5", "S - M"]
)
def test_a_masked_row_is_zeros_at_any_temperature(exponent: str) -> None:
    body = f"M = max[n](S); E = exp({exponent}); O = E / sum[n](E)"
    check(f"program p(S: f32[m, n]) -> O: f32[m, n] {{ {body} }}", ROWS, CUT, set_row("S", -np.inf))


def test_a_masked_row_of_two_softmaxes_together_is_zeros() -> None:
    body = "M = max(max[n](S), max[n](T)); A = exp(S - M); B = exp(T - M); O = A / (sum[n](A) + sum[n](B))"

    def both(arrays: Arrays) -> None:
        arrays["S"][1] = arrays["T"][1] = -np.inf

    check(f"program p(S: f32[m, n], T: f32[m, n]) -> O: f32[m, n] {{ {body} }}", ROWS, CUT, both)


@pytest.mark.parametrize(
    "normalised",
    ["E / sqrt(sum[n](E * E))", "E / sqrt(sum[n](E))", "E / sum[n](abs(E))", "where(sum[n](E) > 0, E / sum[n](E), 0)"],
)
def test_large_exponentials_stay_pairs(normalised: str) -> None:
    source = f"program p(S: f32[m, n]) -> O: f32[m, n] {{ E = exp(S); O = {normalised} }}"
    check(source, ROWS, CUT, scale("S", 1000))


@pytest.mark.parametrize("weight", ["f32(index(n) <= index(m))", "where(index(n) <= index(m), 1, 0)"])
def test_a_mask_may_be_a_factor(weight: str) -> None:
    body = f"S = dot[d](Q, K); E = exp(S) * {weight}; O = dot[n](E, V) / sum[n](E)"
    source = f"program p(Q: f32[m, d], K: f32[n, d], V: f32[n, e]) -> O: f32[m, e] {{ {body} }}"
    check(source, {"m": 7, "n": 5, "d": 4, "e": 3}, {"m": 2, "n": 2}, scale("Q", 40))


@pytest.mark.parametrize("std", [100, 1000])
@pytest.mark.parametrize("masked", ["where(index(n) <= index(m), {}, 0)", "{} * f32(index(n) <= index(m))"])
def test_a_mask_after_the_exponential_keeps_the_digits_of_large_logits(masked: str, std: float) -> None:
    body = f"E = {masked.format('exp(S - max[n](S))')}; O = E / sum[n](E)"
    source = f"program p(S: f32[m, n]) -> O: f32[m, n] {{ {body} }}"
    check(source, {"m": 64, "n": 64}, {"m": 16, "n": 16}, scale("S", std))


def test_infinite_exponents() -> None:
    check("program p(A: f32[m]) -> O: f32[m] { O = log(1 + exp(A)) }", ROWS, None, set_row("A", np.inf))
    source = "program p(A: f32[m], B: f32[n]) -> O: f32[m, n] { O = exp(A - B) }"
    check(source, ROWS, None, set_row("B", -np.inf))


def test_casts_to_integers_and_booleans() -> None:
    check("program p(A: f32[m]) -> O: i8[m] { O = i8(A * 100) }", ROWS, None, set_row("A", np.nan))
    check("program p(A: i32[m]) -> O: i8[m] { O = i8(A * 100) }", ROWS)
    check("program p(A: f32[m]) -> O: i32[m] { O = where(bool(A), 1, 2) }", ROWS, None, set_row("A", 0.0))
    check("program p(A: i8[m]) -> O: i32[] { O = sum[m](A * A * A) }", ROWS)


@pytest.mark.parametrize(
    "source",
    [
        "program p(A: f32[m], D: f32[n]) -> L: f32[] { L = mean[m](A - 1) + mean[n](D - 2) }",
        "program p(A: f32[m], D: f32[m]) -> L: f32[] { L = mean[m](exp(A) - D) + mean[n](A[m -> n] - D[m -> n]) }",
    ],
)
def test_numbers_between_kernels_are_counted_as_the_plan_has_them(source: str) -> None:
    check(source, {"m": 7, "n": 7}, {"m": 2, "n": 3})


def test_a_tile_that_is_asked_for_shrinks_the_others() -> None:
    kernel = blockc.compile(
        "program p(A: f32[m, k], B: f32[k, n]) -> O: f32[m, n] { O = dot[k](A, B) }",
        dims={"m": 8192, "n": 8192, "k": 8192},
        tiles={"n": 8192},
    )
    tiles = kernel.explain().parts[0].plan.tiles
    assert tiles["n"] == 8192 and tiles["m"] * tiles["n"] <= 2**18


@pytest.mark.parametrize("outputs", ["(N: f32[s, d], K: f32[t, h])", "(N: f32[s, d], K: f32[t, h], J: f32[s, h])"])
def test_an_output_that_is_also_read_under_another_dimension(outputs: str) -> None:
    source = f"program p(X: f32[s, d], G: f32[d], W: f32[d, h]) -> {outputs} "
    check(source + "{ N = X * G; J = dot[d](N, W); K = J[s -> t] }", {"s": 7, "d": 3, "h": 4}, {"s": 2, "t": 3})


@pytest.mark.parametrize("change", [set_row("X", 1e4), scale("X", 30), scale("X", 1e4)])
def test_statistics_of_exponentials_that_are_no_number_have_their_digits(change: Callable[[Arrays], object]) -> None:
    weights = "E = exp(X); W = E / sum[n](E); C = W - mean[n](W); O = C * rsqrt(mean[n](C ** 2) + 0.5)"
    check(f"program p(X: f32[m, n]) -> O: f32[m, n] {{ {weights} }}", ROWS, CUT, change)


def test_a_sum_of_products_of_exponentials_has_the_largest_exponent_of_the_products() -> None:
    source = "program p(X: f32[e, m]) -> O: f32[e, m] { O = layernorm[m](softmax[e](X), 1, 0, 0.5) }"
    check(source, {"e": 5, "m": 7}, {"e": 2, "m": 3}, lambda arrays: arrays["X"].__setitem__((0, 0), 1e4))


@pytest.mark.parametrize("mean", [10, 1000])
def test_a_pivot_serves_values_their_squares_and_their_exponentials(mean: float) -> None:
    body = "W = softmax[n](0.25 * X); C = X - mean[n](X); O = dot[n](W, C) * rsqrt(mean[n](C ** 2) + 0.5)"
    source = f"program p(X: f32[m, n]) -> O: f32[m] {{ {body} }}"
    check(source, {"m": 9, "n": 9}, CUT, lambda arrays: arrays["X"].__iadd__(mean))


def test_the_entropy_of_large_logits_of_lists_has_its_digits() -> None:
    body = "T = X * (1 + tanh(max[e](X))); W = softmax[d](0.5 * T); O = sum[d](W * log(W))"
    source = f"program p(X: f32[d, b, e]) -> O: f32[b, e] {{ {body} }}"
    check(source, {"d": 9, "b": 3, "e": 9}, {"d": 4, "b": 1, "e": 4}, scale("X", 30))


PICKED = "program p(X: f32[m, d], W: f32[d, n], t: i32[m]) -> L: f32[m] { S = dot[d](X, W); "
SEEN = "program p(Q: f32[m, d], K: f32[n, d], a: i32[m], b: i32[n]) -> H: f32[m] { c = a == b; "


@pytest.mark.parametrize(
    "source",
    [
        PICKED + "L = sum[n](where(index(n) == t, log_softmax[n](S), 0)) }",
        SEEN + "T = log_softmax[n](where(c, dot[d](Q, K), -inf)); H = sum[n](where(c, exp(T) * T, 0)) }",
    ],
)
def test_a_logarithm_of_nothing_does_not_matter_where_nothing_is_chosen(source: str) -> None:
    sizes = {**ROWS, "d": 5}
    kernel = blockc.compile(source, tiles=CUT, dims=sizes, strict=True)  # its self-check has infinite logits
    assert kernel.cost.kernels == 1
    arrays = random_arrays(kernel.program, sizes, seed=0)
    exact = meaning.evaluate(kernel.program, arrays)
    assert all(np.allclose(kernel(**arrays), wanted, 0, 1e-5) for wanted in exact.values())


@pytest.mark.parametrize("change", [scale("X", 1000), lambda arrays: arrays["X"].__iadd__(1e4)])
def test_exponents_that_nearly_cancel_do_so_before_others_are_added(change: Callable[[Arrays], object]) -> None:
    body = "P = softmax[n](X); Y = dot[c](softmax[c](G), P)"
    source = f"program p(X: f32[m, c, n], G: f32[m, c]) -> Y: f32[m, n] {{ {body} }}"
    check(source, {**ROWS, "c": 5}, {**CUT, "c": 2}, change)


@pytest.mark.parametrize("change", [scale("A", 1000), lambda arrays: arrays["B"].__iadd__(1e4)])
def test_a_sum_is_not_opened_for_a_loop_that_needs_the_same_statistic(change: Callable[[Arrays], object]) -> None:
    body = "P = softmax[n](A); R = softmax[n](B); D = sum[n](P * log(P / (P + R)))"
    check(f"program p(A: f32[m, n], B: f32[m, n]) -> D: f32[m] {{ {body} }}", ROWS, CUT, change)


CENTRED = "a = X - mean[n](X); b = Y - mean[n](Y); "
SLOPE = "sum[n](X * Y) / sum[n](X * X)"
CORRELATION = "sum[n](a / sqrt(sum[n](a * a)) * (b / sqrt(sum[n](b * b))))"


@pytest.mark.parametrize(
    ("source", "sizes"),
    [
        (f"(X: f32[m, n], Y: f32[k, n]) -> C: f32[m, k] {{ {CENTRED} C = dot[n](a, b) / size(n) }}", {"k": 5}),
        (f"(X: f32[m, n], Y: f32[m, n]) -> C: f32[m] {{ {CENTRED} C = sum[n](a * b) / sum[n](a * a) }}", {}),
        (f"(X: f32[m, n], Y: f32[m, n]) -> C: f32[m] {{ {CENTRED} C = {CORRELATION} }}", {}),
        ("(X: f32[m, n]) -> S: f32[m] { a = X - mean[n](X); S = mean[n](a ** 3) / mean[n](a ** 2) ** 1.5 }", {}),
        (f"(X: f32[m, n], Y: f32[m, n]) -> R: f32[m] {{ b = {SLOPE}; R = sum[n]((Y - b * X) ** 2) }}", {}),
        ("(X: f32[m, n]) -> V: f32[m] { a = 7 * X + 3; V = mean[n]((a - mean[n](a)) ** 2) }", {}),
        ("(X: f32[m, n, k]) -> V: f32[m] { V = mean[n, k]((X - mean[n, k](X)) ** 2) }", {"k": 5}),
        ("(X: f32[m, n, k]) -> V: f32[m] { V = mean[n](mean[k]((X - mean[k](mean[n](X))) ** 2)) }", {"k": 5}),
    ],
)
def test_centred_values_are_multiplied_as_written_where_their_sums_have_no_pivot(
    source: str, sizes: dict[str, int]
) -> None:
    check(f"program p{source}", {**ROWS, **sizes}, {**CUT, "k": 2} if sizes else CUT, shift("X", "Y"))


@pytest.mark.parametrize(
    "body",
    [
        "W = S * S; M = sum[n](W * X) / sum[n](W); V = sum[n](W * (X - M) ** 2) / sum[n](W)",
        "W = softmax[n](S); M = sum[n](W * X); V = sum[n](W * (X - M) ** 2)",
        "M = mean[n](X); V = sum[n](S * (X - M) ** 2)",
        "a = X - mean[n](X); N = a / sqrt(mean[n](a * a)); V = sum[n](N * N * S)",
        "V = sum[n](layernorm[n](X, 1, 0, 0.00001) * S)",
    ],
)
def test_weighted_sums_have_a_pivot(body: str) -> None:
    source = f"program p(X: f32[m, n], S: f32[m, n]) -> V: f32[m] {{ {body} }}"
    check(source, ROWS, CUT, shift("X", "S"))
    assert blockc.compile(source, tiles=CUT, dims=ROWS).cost.traffic_bytes == 4 * (2 * 4 * 9 + 4)  # X and S once


def test_a_zero_stays_a_number_where_exponents_are_multiples() -> None:
    body = "W = softmax[n](S); a = X - sum[n](W * X); V = sum[n](W * a * a * a) / sum[n](W * a * a)"
    check(f"program p(X: f32[m, n], S: f32[n]) -> V: f32[m] {{ {body} }}", ROWS, CUT, set_row("X", 0))


def test_what_leaves_one_sum_may_not_leave_another() -> None:
    body = "T = X - min[d](X); U = T + dot[m](T, T); Y = dot[d](U, U)"
    check(f"program p(X: f32[d, m]) -> Y: f32[m] {{ {body} }}", {"d": 5, "m": 5}, {"d": 2, "m": None})


def test_a_pivot_may_cancel_from_a_part_of_a_sum() -> None:
    body = "a = X - mean[n](X); N = a / sqrt(mean[n](a * a)); V = sum[n](N * N * S) + sum[n](X * S)"
    source = f"program p(X: f32[m, n], S: f32[m, n]) -> V: f32[m] {{ {body} }}"
    check(source, ROWS, CUT, lambda arrays: arrays["X"].__iadd__(1000))


@pytest.mark.parametrize("wide", ["X", "W"])
def test_the_pivot_is_that_of_what_serves_most_sums(wide: str) -> None:
    body = "Y = dot[k](layernorm[k](X, 1, 0, 0.00001), W)"
    source = f"program p(X: f32[m, k], W: f32[k, n]) -> Y: f32[m, n] {{ {body} }}"
    check(source, {**ROWS, "k": 9}, {**CUT, "k": 4}, lambda arrays: arrays[wide].__iadd__(1e4))


def shift(*names: str) -> Callable[[Arrays], object]:
    return lambda arrays: [arrays[name].__iadd__(1000) for name in names if name in arrays]
