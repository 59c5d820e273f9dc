"""The reference against torch in float64, NumPy by hand, and what the design says about zeros and infinities."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import blockc
from blockc.accuracy import ulp
from blockc.data import numpy_dtype, random_arrays
from blockc.errors import LimitError
from blockc.ir.ops import OPERATORS
from blockc.language import parse
from blockc.meaning import baseline, compare, error_bound, evaluate, restrict_outputs, same_nonfinite, sample

Array = np.ndarray[Any, Any]
INF = float("inf")


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def run(source: str, **arrays: Any) -> Array:
    """The first output of a program."""
    given = {name: np.asarray(value) for name, value in arrays.items()}
    return next(iter(evaluate(parse(source), given).values()))


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def tensor(array: Array) -> torch.Tensor:
    return torch.tensor(np.asarray(array, np.float64))


# --- against torch -------------------------------------------------------------------------------------------------


def test_attention_is_torchs() -> None:
    source = """program attention(Q: f64[b, h, m, d], K: f64[b, h, n, d], V: f64[b, h, n, e]) -> O: f64[b, h, m, e] {
        O = dot[n](softmax[n](dot[d](Q, K) / sqrt(size(d))), V)
    }"""
    q, k, v = normal(2, 3, 7, 4), normal(2, 3, 5, 4, seed=1), normal(2, 3, 5, 6, seed=2)
    expected = torch.nn.functional.scaled_dot_product_attention(tensor(q), tensor(k), tensor(v))
    np.testing.assert_allclose(run(source, Q=q, K=k, V=v), expected, rtol=1e-13, atol=1e-15)


def test_causal_self_attention_reads_one_array_through_renames() -> None:
    source = """program causal(X: f64[m, (h=2, d)]) -> O: f64[m, (h, d)] {
        Y = X[m -> n]
        S = dot[d](X, Y) / sqrt(size(d))
        O = dot[n](softmax[n](where(index(n) <= index(m), S, -inf)), Y)
    }"""
    x = normal(9, 6)
    heads = tensor(x).reshape(9, 2, 3).transpose(0, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    np.testing.assert_allclose(run(source, X=x), expected.transpose(0, 1).reshape(9, 6), rtol=1e-13)


def test_layernorm_and_product_are_torchs() -> None:
    source = """program norm(X: f64[m, d], G: f64[d], B: f64[d], W: f64[n, d]) -> Y: f64[m, n] {
        Y = dot[d](layernorm[d](X, G, B, 0.00001), W)
    }"""
    x, g, b, w = normal(5, 8), normal(8, seed=1), normal(8, seed=2), normal(3, 8, seed=3)
    norm = torch.nn.functional.layer_norm(tensor(x), (8,), tensor(g), tensor(b), 1e-5)
    np.testing.assert_allclose(run(source, X=x, G=g, B=b, W=w), norm @ tensor(w).T, rtol=1e-12)


def test_cross_entropy_is_torchs() -> None:
    source = """program loss(S: f64[m, n], label: i32[m]) -> L: f64[] {
        picked = sum[n](where(index(n) == label, S, 0))
        L = mean[m](logsumexp[n](S) - picked)
    }"""
    scores, label = 20 * normal(6, 10), np.arange(6, dtype=np.int32)
    expected = torch.nn.functional.cross_entropy(tensor(scores), torch.tensor(label, dtype=torch.long))
    np.testing.assert_allclose(run(source, S=scores, label=label), expected, rtol=1e-13)


def test_swiglu_feed_forward_is_torchs() -> None:
    source = """program ffn(X: f64[m, d], G: f64[d, z], U: f64[d, z], D: f64[z, e]) -> Y: f64[e, m] {
        N = rmsnorm[d](X, 1, 0.000001)
        Y = dot[z](swiglu(dot[d](N, G), dot[d](N, U)), D)
    }"""
    x, g, u, d = normal(4, 5), normal(5, 6, seed=1), normal(5, 6, seed=2), normal(6, 3, seed=3)
    n = torch.nn.functional.rms_norm(tensor(x), (5,), eps=1e-6)
    expected = (torch.nn.functional.silu(n @ tensor(g)) * (n @ tensor(u))) @ tensor(d)
    np.testing.assert_allclose(run(source, X=x, G=g, U=u, D=d), expected.T, rtol=1e-12)


# --- softmax in every spelling -------------------------------------------------------------------------------------

SPELLINGS = {
    "library": "P = softmax[n](S)",
    "quotient": "E = exp(S); P = E / sum[n](E)",
    "reciprocal": "E = exp(S); P = E * (1 / sum[n](E))",
    "recip_power": "E = exp(S); P = E * sum[n](E) ** -1",
    "maximum subtracted": "M = max[n](S); E = exp(S - M); P = E / sum[n](E)",
    "maximum added": "M = max[n](S); E = exp(-M + S); P = E / sum[n](E)",
    "maximum from the left": "M = max[n](S); E = exp(-(M - S)); P = E / sum[n](E)",
    "maximum as a factor": "M = max[n](S); E = exp(S) * exp(-M); P = E / sum[n](E)",
    "maximum subtracted twice": "T = S - max[n](S); E = exp(T - max[n](T)); P = E / sum[n](E)",
    "scaled afterwards": "E = exp((2 * S - 2 * max[n](S)) / 2); P = E / sum[n](E)",
    "logsumexp": "P = exp(S - logsumexp[n](S))",
    "safe logsumexp": "M = max[n](S); L = M + log(sum[n](exp(S - M))); P = exp(S - L)",
    "log_softmax": "P = exp(log_softmax[n](S))",
}
MASKS = {
    "none": "S = X",
    "where": "S = where(A > 0, X, -inf)",
    "added infinity": "S = X + where(A > 0, 0, -inf)",
    "added input": "S = X + log(A)",
}


def softmax(spelling: str, mask: str, x: Array, allowed: Array) -> Array:
    used = ", A: f64[m, n]" if "A" in MASKS[mask] else ""
    source = f"program p(X: f64[m, n]{used}) -> P: f64[m, n] {{ {MASKS[mask]}; {SPELLINGS[spelling]} }}"
    return run(source, X=x, **({"A": allowed} if used else {}))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1000, 0), (1, -1e4), (10, 1e4)])
def test_softmax_of_finite_rows_in_every_spelling(spelling: str, mask: str, scale: float, offset: float) -> None:
    x = scale * normal(6, 9) + offset
    allowed = (normal(6, 9, seed=1) > 0).astype(np.float64)
    allowed[2] = 0
    kept = allowed > 0 if mask != "none" else np.ones((6, 9), np.bool_)
    expected = torch.softmax(tensor(np.where(kept, x, -INF)), 1).nan_to_num(0).numpy()
    np.testing.assert_allclose(softmax(spelling, mask, x, allowed), expected, rtol=1e-9, atol=1e-300)


SPECIAL_ROWS = {
    "all -inf": ([-INF] * 4, [0.0] * 4),
    "all -1e30": ([-1e30] * 4, [0.25] * 4),
    "all NaN": ([math.nan] * 4, [math.nan] * 4),
    "NaN among -inf": ([-INF, math.nan, -INF, -INF], [math.nan] * 4),
    "one NaN": ([0.0, math.nan, 1.0, 2.0], [math.nan] * 4),
    "one +inf": ([0.0, INF, 1.0, 2.0], [math.nan] * 4),
    "both infinities": ([0.0, INF, -INF, 2.0], [math.nan] * 4),
    "all +inf": ([INF] * 4, [math.nan] * 4),
    "zeros": ([0.0] * 4, [0.25] * 4),
    "denormals": ([5e-324] * 4, [0.25] * 4),
    "the largest finite": ([1.7e308] * 4, [0.25] * 4),
    "one finite": ([-INF, -5000.0, -INF, -INF], [0.0, 1.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("row", SPECIAL_ROWS)
@pytest.mark.parametrize("spelling", [name for name in SPELLINGS if name != "scaled afterwards"])
def test_softmax_of_special_rows_in_every_spelling(spelling: str, row: str) -> None:
    values, expected = SPECIAL_ROWS[row]
    result = softmax(spelling, "none", np.array([values, [0.0] * 4]), np.ones((2, 4)))
    # log of a sum loses nothing but the last digits; at 1e308 also all of the log of 4
    if row in ("the largest finite", "all -1e30") and ("log" in spelling):
        assert np.isfinite(result).all()
        return
    np.testing.assert_array_equal(np.isnan(result), np.isnan([expected, [0.25] * 4]))
    np.testing.assert_allclose(result, [expected, [0.25] * 4], rtol=1e-14)


def test_masked_rows_of_attention_are_zero_wherever_the_division_stands() -> None:
    before = "O = dot[n](E / sum[n](E), V)"
    after = "O = dot[n](E, V) / sum[n](E)"
    v = normal(3, 2)
    for body in (before, after):
        source = f"program p(S: f32[m, n], V: f32[n, e]) -> O: f32[m, e] {{ E = exp(S); {body} }}"
        scores = np.full((2, 3), -INF)
        scores[1, 1] = 800
        np.testing.assert_array_equal(run(source, S=scores, V=v), [[0, 0], v[1]])


def test_mask_multiplied_into_exponentials_does_not_underflow() -> None:
    source = """program p(S: f64[n], A: bool[n]) -> (P: f64[n], L: f64[]) {
        E = where(A, exp(S), 0)
        P = E / sum[n](E)
        L = log(sum[n](E))
    }"""
    allowed = np.array([True, False, True])
    scores = np.array([-2000.0, 3000.0, -2000.0])
    np.testing.assert_allclose(run(source, S=scores, A=allowed), [0.5, 0, 0.5])
    np.testing.assert_array_equal(run(source, S=scores, A=np.zeros(3, np.bool_)), [0, 0, 0])


def test_infinities_that_do_not_come_from_masking_stay_floating_point() -> None:
    source = "program p(A: f64[n], B: f64[n]) -> O: f64[n] { O = exp(A - B) }"
    result = run(source, A=[INF, -INF, INF, -INF, 0.0, 0.0], B=[INF, INF, -INF, -INF, -INF, INF])
    np.testing.assert_array_equal(result, [math.nan, 0, INF, 0, INF, 0])


def test_sigmoid_spelt_by_hand_at_both_infinities() -> None:
    source = "program p(A: f64[n]) -> O: f64[n] { O = 1 / (1 + exp(-A)) }"
    np.testing.assert_array_equal(run(source, A=[-INF, -1e5, 0.0, 1e5, INF, math.nan]), [0, 0, 0.5, 1, 1, math.nan])


def test_differences_of_minus_infinities_show_as_nan() -> None:
    source = "program p(A: f64[n]) -> O: f64[n] { O = A - max[n](A) }"
    assert np.isnan(run(source, A=[-INF, -INF])).all()


# --- numbers with an exponent --------------------------------------------------------------------------------------


def test_exponentials_neither_overflow_nor_underflow_on_the_way() -> None:
    def value(body: str, **arrays: Any) -> float:
        declared = ", ".join(f"{name}: f64[n]" for name in arrays)
        return float(run(f"program p({declared}) -> O: f64[] {{ O = {body} }}", **arrays))

    far, low = np.array([1000.0, 1001.0]), np.array([-2000.0, -2001.0])
    lse = 1001 + math.log1p(math.exp(-1))
    assert value("log(sum[n](exp(A)))", A=far) == pytest.approx(lse)
    assert value("log(sum[n](exp(A)) ** 0.5)", A=far) == pytest.approx(lse / 2)
    assert value("log(sqrt(sum[n](exp(A))))", A=far) == pytest.approx(lse / 2)
    assert value("log(rsqrt(sum[n](exp(A))))", A=far) == pytest.approx(-lse / 2)
    assert value("log(abs(-sum[n](exp(A))))", A=far) == pytest.approx(lse)
    assert value("log(relu(sum[n](exp(A))))", A=far) == pytest.approx(lse)
    assert value("log(max[n](exp(A)))", A=far) == 1001
    assert value("log(min[n](exp(A)))", A=far) == 1000
    assert value("log(-max[n](-exp(A)))", A=far) == 1000
    assert value("log(max[n](where(A > 1000, -exp(A), exp(-A))))", A=far) == -1000
    assert value("log(max[n](max(exp(A), exp(2 * A))))", A=far) == 2002
    assert value("log(max[n](min(exp(A), 1)))", A=far) == 0
    assert value("sum[n](where(exp(A) < exp(A + 1), 1, 0))", A=far) == 2
    assert value("dot[n](exp(A), exp(-A))", A=far) == pytest.approx(2)
    assert value("log(dot[n](exp(A), exp(B)))", A=np.array([0.0, -1500]), B=np.array([-1500.0, 0])) == pytest.approx(
        -1500 + math.log(2)
    )
    assert value("log(dot[n](exp(A), B))", A=low, B=np.array([1.0, 1.0])) == pytest.approx(
        -2000 + math.log1p(math.exp(-1))
    )
    assert value("sum[n](exp(A) / (exp(A) + exp(A)))", A=low) == pytest.approx(1)
    assert value("sum[n](exp(A))", A=np.array([math.log(1e300), 0])) == pytest.approx(1e300)
    assert value("sum[n](exp(A))", A=far) == INF


# --- operators -----------------------------------------------------------------------------------------------------

SPELT = {
    "add": "A + B", "sub": "A - B", "mul": "A * B", "div": "A / B", "neg": "-A", "pow": "abs(A) ** B", "exp": "exp(A)",
    "log": "log(A)", "sqrt": "sqrt(A)", "rsqrt": "rsqrt(A)", "tanh": "tanh(A)", "sigmoid": "sigmoid(A)",
    "relu": "relu(A)", "gelu": "gelu(A)", "erf": "erf(A)", "abs": "abs(A)", "sin": "sin(A)", "cos": "cos(A)",
    "floor": "floor(A)", "minimum": "min(A, B)", "maximum": "max(A, B)", "lt": "A < B", "le": "A <= B", "gt": "A > B",
    "ge": "A >= B", "eq": "A == B", "ne": "A != B", "and": "A > 0 and B > 0", "or": "A > 0 or B > 0",
    "not": "not (A > 0)", "where": "where(A > 0, A, B)",
}  # fmt: skip
BY_HAND: dict[str, Callable[..., Any]] = {
    "pow": lambda a, b: np.power(np.abs(a), b),
    "and": lambda a, b: (a > 0) & (b > 0),
    "or": lambda a, b: (a > 0) | (b > 0),
    "not": lambda a: ~(a > 0),
    "where": lambda a, b: np.where(a > 0, a, b),
}
# Not written in the language: the normal form makes them.
INTERNAL = {"recip", "finite"}


def test_every_operator_has_a_spelling_here() -> None:
    assert set(SPELT) | INTERNAL == set(OPERATORS)


@pytest.mark.parametrize("name", SPELT)
def test_operator_means_what_numpy_says(name: str) -> None:
    special = [0.0, -0.0, 1.0, -1.0, 0.3, -2.5, 1e-300, INF, -INF, math.nan, 700.0]
    pairs = np.array(list(itertools.product(special, special)))
    a, b = pairs[:, 0], pairs[:, 1]
    kind = "bool" if OPERATORS[name].result.value == "boolean" else "f64"
    text = SPELT[name]
    inputs = "A: f64[n], B: f64[n]" if "B" in text else "A: f64[n]"
    arrays = {"A": a, "B": b} if "B" in text else {"A": a}
    result = run(f"program p({inputs}) -> O: {kind}[n] {{ O = {text} }}", **arrays)
    with np.errstate(all="ignore"):
        expected = BY_HAND.get(name, OPERATORS[name].meaning)(*arrays.values())
    assert result.dtype == (np.bool_ if kind == "bool" else np.float64)
    np.testing.assert_allclose(result, expected, rtol=1e-15)


@pytest.mark.parametrize("name", SPELT)
def test_operator_on_numbers_with_an_exponent_is_the_same(name: str) -> None:
    a, b = np.abs(normal(20)) + 0.1, np.abs(normal(20, seed=1)) + 0.1
    text = SPELT[name]
    inputs = "X: f64[n], Y: f64[n]" if "B" in text else "X: f64[n]"
    kind = "bool" if OPERATORS[name].result.value == "boolean" else "f64"
    body = "A = exp(X); B = exp(Y)" if "B" in text else "A = exp(X)"
    arrays = {"X": np.log(a), "Y": np.log(b)} if "B" in text else {"X": np.log(a)}
    result = run(f"program p({inputs}) -> O: {kind}[n] {{ {body}; O = {text} }}", **arrays)
    expected = BY_HAND.get(name, OPERATORS[name].meaning)(*([a, b] if "B" in text else [a]))
    np.testing.assert_allclose(result, expected, rtol=1e-13)


def test_reductions_match_numpy_and_propagate_nan() -> None:
    x = normal(3, 4, 5)
    x[0, 0, 0] = math.nan
    for op, function in (("sum", np.sum), ("mean", np.mean), ("max", np.max), ("min", np.min)):
        source = f"program p(X: f64[a, b, c]) -> O: f64[b] {{ O = {op}[a, c](X) }}"
        np.testing.assert_allclose(run(source, X=x), function(x, axis=(0, 2)), rtol=1e-14)


def test_empty_dimensions() -> None:
    source = """program p(X: f32[m, n], Y: f32[n, k]) -> (
        A: f32[m], B: f32[m], C: f32[m], D: f32[m, k], E: f32[m, n], F: f32[m, k], G: f32[m]) {
        A = sum[n](X); B = max[n](X); C = min[n](X); D = dot[n](X, Y); E = softmax[n](X)
        F = dot[n](exp(X), Y) / sum[n](exp(X)); G = mean[n](X)
    }"""
    outputs = evaluate(parse(source), {"X": np.zeros((2, 0)), "Y": np.zeros((0, 3))})
    np.testing.assert_array_equal(outputs["A"], [0, 0])
    np.testing.assert_array_equal(outputs["B"], [-INF, -INF])
    np.testing.assert_array_equal(outputs["C"], [INF, INF])
    np.testing.assert_array_equal(outputs["D"], np.zeros((2, 3)))
    assert outputs["E"].shape == (2, 0)
    np.testing.assert_array_equal(outputs["F"], np.zeros((2, 3)))
    assert np.isnan(outputs["G"]).all()
    empty = evaluate(parse(source), {"X": np.zeros((0, 4)), "Y": np.zeros((4, 0))})
    assert {name: array.shape for name, array in empty.items()} == {
        "A": (0,), "B": (0,), "C": (0,), "D": (0, 0), "E": (0, 4), "F": (0, 0), "G": (0,)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("a", "b", "over", "out"),
    [
        ("i, k", "k, j", "k", "i, j"),
        ("b, i, k", "b, k, j", "k", "j, b, i"),
        ("k", "k", "k", ""),
        ("i, k, l", "l, j, k", "k, l", "i, j"),
        ("i, k, l", "k, j", "k, l", "i, j"),
        ("i, j", "i, j", "j", "i"),
        ("i", "j, k", "k", "i, j"),
    ],
)
def test_contractions_match_einsum(a: str, b: str, over: str, out: str) -> None:
    sizes = {"b": 2, "i": 3, "j": 4, "k": 5, "l": 6}
    x = normal(*(sizes[dim] for dim in a.split(", ")))
    y = normal(*(sizes[dim] for dim in b.split(", ")), seed=1)
    subscripts = "{},{}->{}".format(*(text.replace(", ", "") for text in (a, b, out)))

    def value(body: str) -> Array:
        return run(f"program p(X: f64[{a}], Y: f64[{b}]) -> O: f64[{out}] {{ O = {body} }}", X=x, Y=y)

    expected = np.einsum(subscripts, x, y)
    np.testing.assert_allclose(value(f"dot[{over}](X, Y)"), expected, rtol=1e-12)
    np.testing.assert_allclose(value(f"sum[{over}](X * Y)"), expected, rtol=1e-12)
    paired = f"dot[{over}](exp(log(abs(X))) * where(X < 0, -1, 1), Y)"
    np.testing.assert_allclose(value(paired), expected, rtol=1e-11)
    both = np.einsum(subscripts, np.exp(x), np.exp(y))
    np.testing.assert_allclose(value(f"dot[{over}](exp(X), exp(Y))"), both, rtol=1e-12)
    far = value(f"log(dot[{over}](exp(300 * X), exp(300 * Y)))")
    np.testing.assert_allclose(far, value(f"log(sum[{over}](exp(300 * X + 300 * Y)))"), rtol=1e-12)


def test_integers_stay_integers_and_casts_truncate() -> None:
    source = """program p(I: i32[n], X: f32[n]) -> (A: i32[n], B: i32[], C: i32[n], D: i8[n], E: f64[n], F: bool[n]) {
        A = I * 3 - 1; B = sum[n](I); C = i32(X); D = i8(X); E = I / 2; F = bool(X)
    }"""
    values = np.array([-2.7, 2.7, 0.0, 1e20, -INF, math.nan])
    outputs = evaluate(parse(source), {"I": np.arange(6, dtype=np.int32), "X": values})
    np.testing.assert_array_equal(outputs["A"], [-1, 2, 5, 8, 11, 14])
    assert outputs["A"].dtype == np.int32 and outputs["D"].dtype == np.int8 and outputs["F"].dtype == np.bool_
    assert outputs["B"] == 15
    np.testing.assert_array_equal(outputs["C"], [-2, 2, 0, 2**31 - 1, -(2**31), 0])
    np.testing.assert_array_equal(outputs["D"], [-2, 2, 0, 127, -128, 0])
    np.testing.assert_array_equal(outputs["E"], np.arange(6) / 2)
    np.testing.assert_array_equal(outputs["F"], [True, True, False, True, True, True])


def test_casts_between_floats_are_the_identity_and_outputs_are_not_rounded() -> None:
    source = "program p(X: f32[n]) -> O: f16[n] { O = f8e4m3(X) / 3 }"
    x = np.array([1.001, 300000.0], np.float32)
    np.testing.assert_array_equal(run(source, X=x), x.astype(np.float64) / 3)
    rounded = evaluate(parse(source), {"X": x}, precision="f32")["O"]
    assert rounded.dtype == np.float16 and rounded[0] == np.float16(1 / 3)


def test_narrow_inputs_are_widened() -> None:
    x = normal(5).astype(ml_dtypes.bfloat16)
    y = normal(5, seed=1).astype(ml_dtypes.float8_e4m3fn)
    source = "program p(X: bf16[n], Y: f8e4m3[n]) -> O: bf16[n] { O = X + Y }"
    np.testing.assert_array_equal(run(source, X=x, Y=y), x.astype(np.float64) + y.astype(np.float64))
    assert baseline(parse(source), {"X": x, "Y": y})["O"].dtype == ml_dtypes.bfloat16


def test_packed_axes_index_size_and_broadcast_outputs() -> None:
    source = """program p(X: f64[m, (h=2, d)]) -> (O: f64[(d, h), m], P: f64[m, k=3]) {
        O = X * 10 + index(h) * size(d); P = index(m)
    }"""
    x = normal(3, 8)
    outputs = evaluate(parse(source), {"X": x})
    by_hand = x.reshape(3, 2, 4) * 10 + np.array([0, 4])[None, :, None]
    np.testing.assert_allclose(outputs["O"], by_hand.transpose(2, 1, 0).reshape(8, 3))
    np.testing.assert_array_equal(outputs["P"], np.repeat([[0.0], [1], [2]], 3, axis=1))


def test_arrays_of_any_layout_are_read_and_left_alone() -> None:
    source = "program p(X: f32[m, n]) -> O: f32[n, m] { O = X }"
    x = normal(4, 6)[::-1, ::2]
    x.flags.writeable = False
    result = run(source, X=x)
    np.testing.assert_array_equal(result, x.T)
    result += 1
    swapped = np.asfortranarray(x).astype(">f4")
    np.testing.assert_array_equal(run(source, X=swapped), swapped.T)


# --- precision of the baseline -------------------------------------------------------------------------------------


def test_baseline_is_float32_or_float64_by_the_inputs() -> None:
    source = "program p(X: {0}[n]) -> O: {0}[] {{ O = log(sum[n](exp(X))) }}"
    x = normal(1000)
    exact = np.log(np.sum(np.exp(x)))
    narrow = baseline(parse(source.format("f32")), {"X": x})["O"]
    assert narrow.dtype == np.float32 and 0 <= abs(narrow - exact) < 1e-5
    assert abs(baseline(parse(source.format("f64")), {"X": x})["O"] - exact) < 1e-13


def test_baseline_of_large_logits_is_safe() -> None:
    source = "program p(S: f32[m, n]) -> P: f32[m, n] { P = softmax[n](S) }"
    scores = (1000 * normal(40, 50)).astype(np.float32)
    program = parse(source)
    reference, unfused = evaluate(program, {"S": scores})["P"], baseline(program, {"S": scores})["P"]
    assert np.max(np.abs(unfused - reference)) < 1e-6


def test_too_large_values_are_a_limit_that_says_what_they_need() -> None:
    program = "program p(X: f32[m], Y: f32[n]) -> Z: f32[m, n] {\n    Z = X * Y\n}\n"
    long = np.broadcast_to(np.float32(1), (2**23,))
    with pytest.raises(LimitError, match=r"meaning of `p` needs too much memory: .*512. TiB"):
        blockc.reference(program, X=long, Y=long)


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision"):
        evaluate(parse("program p(X: f32[n]) -> O: f32[n] { O = X }"), {"X": np.zeros(2)}, precision="f16")


# --- sampling ------------------------------------------------------------------------------------------------------

SAMPLED = {
    "attention": """program p(Q: f32[b, m, d], K: f32[b, n, d], V: f32[b, n, e]) -> O: f32[b, m, e] {
        O = dot[n](softmax[n](where(index(n) <= index(m), dot[d](Q, K), -inf)), V) }""",
    "self-attention": """program p(X: f32[b, m, d]) -> (O: f32[b, m, d], L: f32[m, b]) {
        S = dot[d](X, X[m -> n]) / sqrt(size(d)) + index(m)
        O = dot[n](softmax[n](S), X[m -> n]) + mean[m](X); L = logsumexp[n](S) }""",
    "packed": """program p(X: f32[m, (b=20, d)], W: f32[d, e]) -> O: f32[(b, m), e] { O = dot[d](X, W) * size(m) }""",
    "reduced elsewhere": """program p(X: f32[m, b]) -> O: f32[m, b] { O = X / sum[m](exp(X)) - max[b](X) }""",
}


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("limit", [1, 300, 2000, 10**9])
def test_sampled_rows_are_rows_of_the_whole(name: str, limit: int) -> None:
    program = parse(SAMPLED[name])
    sizes = {"b": 20, "m": 31, "n": 31, "d": 6, "e": 5}
    sizes = {dim.name: sizes[dim.name] for dim in program.dims}
    arrays = random_arrays(program, sizes, 0)
    positions = sample(program, sizes, 7, limit)
    assert positions or limit >= 2000
    assert not positions or limit < 10**9
    for dim, chosen in positions.items():
        assert chosen[0] == 0 and chosen[-1] == sizes[dim] - 1 and (np.diff(chosen) > 0).all()
    again = sample(program, sizes, 7, limit)
    assert all(np.array_equal(positions[dim], again[dim]) for dim in positions)
    whole = restrict_outputs(program, evaluate(program, arrays), sizes, positions)
    part = evaluate(program, arrays, positions)
    for output, array in whole.items():
        np.testing.assert_allclose(part[output], array, rtol=1e-13)
    small = baseline(program, arrays, positions)
    assert {output: array.shape for output, array in small.items()} == {o: a.shape for o, a in whole.items()}


def test_sample_keeps_values_within_the_limit() -> None:
    program = parse(SAMPLED["attention"])
    sizes = {"b": 64, "m": 4096, "n": 4096, "d": 64, "e": 64}
    positions = sample(program, sizes, 0, 10**6)
    counts = sizes | {dim: len(chosen) for dim, chosen in positions.items()}
    assert counts["b"] * counts["m"] * sizes["n"] <= 10**6
    assert counts["b"] * counts["m"] * sizes["n"] > 10**5
    assert set(sample(parse(SAMPLED["self-attention"]), {"b": 1, "m": 9999, "n": 9999, "d": 4}, 0, 10**6)) == {"m"}


# --- error bounds --------------------------------------------------------------------------------------------------


def test_a_baseline_that_is_no_number_leaves_the_rounding_of_the_reference() -> None:
    # `Z * f8e4m3(1e9)` failed with a bound of 1e-44 where the unfused program gives NaN and the kernel is right.
    reference, nothing = np.array([0.75e9, -3e9]), np.full(2, np.nan, np.float32)
    found = compare(reference.astype(np.float32), reference, nothing, "f32")
    assert found.ok and found.bound == 8 * 256
    assert not compare(np.array([0.75e9, -3.1e9], np.float32), reference, nothing, "f32").ok


def test_error_bound_by_hand() -> None:
    reference, unfused = np.array([1.0, -3.0, INF]), np.array([1.25, -3.0, INF])
    assert error_bound(reference, unfused, "f32") == 4 * 0.25 + 8 * 2.0**-22
    assert error_bound(reference, unfused, "f16", draws=32) == 4 * 0.25 + 8 * 2.0**-9
    many = np.full(1000, 3.0)
    assert error_bound(many, many + 0.5, "f32", draws=32) == 2 * 0.5 + 4 * 2.0**-22
    assert error_bound(many, many + 0.5, "f32", draws=31) == 4 * 0.5 + 8 * 2.0**-22
    assert error_bound(many[:999], many[:999] + 0.5, "f32", draws=32) == 4 * 0.5 + 8 * 2.0**-22
    assert error_bound(np.array([7]), np.array([7]), "i32") == 0
    assert error_bound(np.zeros(0), np.zeros(0), "f32") == 8 * 2.0**-149


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16", "f8e4m3", "f8e5m2"])
def test_ulp_is_the_spacing_of_the_type(dtype: str) -> None:
    kind = numpy_dtype(dtype)
    for number in (1.0, 1.5, 2.0, 100.0, 0.017, ulp(0.0, dtype)):
        stored = np.asarray(number, kind)
        following = np.nextafter(stored, np.asarray(INF if dtype != "f8e4m3" else 448, kind))
        assert ulp(float(stored), dtype) == float(following) - float(stored)


def test_compare_wants_small_errors_and_the_same_infinities() -> None:
    reference = np.array([1.0, 2.0, math.nan, -INF, 1e6])
    unfused = np.array([1.0, 2.0, math.nan, -INF, INF], np.float16)
    assert compare(unfused, reference, unfused, "f16").ok
    assert compare(unfused, reference, unfused, "f16").max_abs_error == 0
    off = np.array([1.0, 2.5, math.nan, -INF, INF], np.float16)
    assert compare(off, reference, unfused, "f16").max_abs_error == 0.5
    assert not compare(off, reference, unfused, "f16").ok
    for wrong in ([1.0, 2.0, 0.0, -INF, INF], [1.0, 2.0, math.nan, INF, INF], [math.nan, 2.0, math.nan, -INF, INF]):
        assert not compare(np.array(wrong, np.float16), reference, unfused, "f16").ok
        assert not same_nonfinite(np.array(wrong), unfused)
    with pytest.raises(ValueError, match="shapes"):
        compare(unfused[:1], reference, unfused, "f16")
