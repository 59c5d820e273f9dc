"""Masks that are factors: what they close is nothing, in every spelling, and what is divided by nothing is nothing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle import difference, final_programs

import blockc
from blockc.ir.array_program import ArrayProgram
from blockc.ir.interpret import interpret
from blockc.language import parse
from blockc.meaning import evaluate
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower

Arrays = dict[str, NDArray[Any]]

SIZES = {"m": 6, "n": 7, "e": 3}
TILES = ({"m": 4, "n": 3, "e": 2}, {"m": 1, "n": 1, "e": 1})
TYPES = {"X": "[m, n]", "Y": "[m, n]", "G": "[m]", "H": "[n]", "V": "[n, e]"}
OPEN = np.array([-1.0, 2.0, -1.0, 2.0, 0.0, 0.5])  # G: three rows of six are closed as a whole

# Numerators and what they are divided by; O is zeros where G is not positive.
BY_ROWS = {
    "where": "E = exp(X) * where(G > 0, 1, 0); O = E / sum[n](E)",
    "cast": "E = exp(X) * f32(G > 0); O = E / sum[n](E)",
    "on the left": "E = f32(G > 0) * exp(X); O = E / sum[n](E)",
    "complement": "E = exp(X) * (1 - f32(G <= 0)); O = E / sum[n](E)",
    "whole number": "E = exp(X) * i32(G > 0); O = E / sum[n](E)",
    "of two, the larger": "E = exp(X) * max(f32(G > 0), f32(G > 1)); O = E / sum[n](E)",
    "squared": "E = exp(X) * f32(G > 0) ** 2; O = E / sum[n](E)",
    "twice": "E = exp(X) * f32(G > 0) * f32(G > 0); O = E / sum[n](E)",
    "and along the sum": "E = exp(X) * f32(G > 0) * f32(H > 0); O = E / sum[n](E)",
    "two choices": "E = exp(X) * where(G > 0, 1, 0) * where(H > 0, 2, 0); O = E / sum[n](E)",
    "in one condition": "E = exp(X) * f32(G > 0 and H > 0); O = E / sum[n](E)",
    "choice of exponentials": "E = where(G > 0, exp(X), 0); O = E / sum[n](E)",
    "maximum subtracted": "E = exp(X - max[n](X)) * f32(G > 0); O = E / sum[n](E)",
    "maximum subtracted, on the left": "E = f32(G > 0) * exp(X - max[n](X)); O = E / sum[n](E)",
    "after the softmax": "E = softmax[n](X) * f32(G > 0); O = E / sum[n](E)",
    "normalised again": "E = exp(X) * f32(G > 0); P = E / sum[n](E); O = P / sum[n](P)",
    "masked in between": "E = exp(X) * f32(H > 0); P = E / sum[n](E) * f32(G > 0); O = P / sum[n](P)",
    "a factor of the sum": "E = exp(X); O = E * f32(G > 0) / (sum[n](E) * f32(G > 0))",
    "mean": "E = exp(X) * f32(G > 0); O = E / mean[n](E)",
    "power": "E = exp(X) * f32(G > 0); O = E * sum[n](E) ** -1",
    "product": "E = exp(X) * f32(G > 0); O = dot[n](E, V) / sum[n](E)",
    "sum of sums": "E = exp(X) * f32(G > 0); O = E / (sum[n](E) + sum[n](exp(Y) * f32(G > 0)))",
}
OTHERS = {
    "along the sum": "E = exp(X) * f32(H > 0); O = E / sum[n](E)",
    "along both": "E = exp(X) * f32(G + H > 0); O = E / sum[n](E)",
    "along the sum, maximum subtracted": "E = exp(X - max[n](X)) * f32(H > 0); O = E / sum[n](E)",
    "columns, maximum subtracted": "E = exp(X - max[m](X)) * f32(H > 0); O = E / sum[m](E)",
    "rows and columns": "E = exp(X) * f32(G > 0) * f32(H > 0); O = E / sum[n](E) + E / sum[m](E)",
    "everything": "E = exp(X) * f32(G > 0) * f32(H > 4); O = E / sum[m, n](E)",
    "beside a number": "E = exp(X) * f32(G > 0); O = E / (sum[n](E) + 1)",
}


def parsed(body: str, dims: str = "[m, n]") -> ArrayProgram:
    inputs = ", ".join(f"{name}: f64{axes}" for name, axes in TYPES.items() if re.search(rf"\b{name}\b", body))
    return parse(f"program p({inputs}) -> O: f64{dims} {{ {body} }}")


def arrays_of(program: ArrayProgram) -> Arrays:
    """Logits of standard deviations up to 1000, also in closed rows."""
    draw = np.random.default_rng(0)
    arrays = {
        "X": draw.standard_normal((6, 7)) * np.array([1, 1, 1000, 1000, 100, 10])[:, None],
        "Y": draw.standard_normal((6, 7)),
        "G": OPEN,
        "H": np.array([1.0, -1.0, 1.0, -1.0, 2.0, -3.0, 0.3]),
        "V": draw.standard_normal((7, 3)),
    }
    return {argument.name: arrays[argument.name] for argument in program.inputs}


def check(program: ArrayProgram, arrays: Arrays) -> NDArray[Any]:
    """The reference, after every program that may be emitted was found to agree with it."""
    expected = evaluate(program, arrays)["O"]
    dims = {dim.name for dim in program.dims}
    sizes = {dim: SIZES[dim] for dim in dims}
    for whole in ("", "e", "n e", "m"):
        for stage, candidate in final_programs(fuse(lower(program, frozenset(whole.split()) & dims))):
            for tiles in TILES if stage.endswith(("stable", "composed")) else ():
                problem = difference(interpret(candidate, arrays, sizes, tiles).outputs["O"], expected, 1e-9)
                assert not problem, f"whole {whole}, {stage}, tiles {tiles}: {problem}"
    return expected


@pytest.mark.parametrize("name", BY_ROWS)
def test_a_row_that_a_factor_closes_is_zeros(name: str) -> None:
    program = parsed(BY_ROWS[name], "[m, e]" if name == "product" else "[m, n]")
    expected = check(program, arrays_of(program))
    assert np.all(expected[OPEN <= 0] == 0) and np.all(np.isfinite(expected)) and np.any(expected != 0)


@pytest.mark.parametrize("name", OTHERS)
def test_masks_that_are_factors(name: str) -> None:
    program = parsed(OTHERS[name])
    check(program, arrays_of(program))


@pytest.mark.parametrize("name", ["cast", "maximum subtracted", "after the softmax", "normalised again"])
def test_rows_of_minus_infinity_that_a_factor_closes(name: str) -> None:
    program = parsed(BY_ROWS[name])
    arrays = arrays_of(program)
    arrays["X"][:2] = -np.inf
    arrays["X"][2:4, :4] = -np.inf
    assert np.all(check(program, arrays)[:3] == 0)


def test_a_kernel_divides_what_a_factor_closes() -> None:
    source = "program p(X: f32[m, n], G: f32[m]) -> O: f32[m, n] { E = exp(X) * where(G > 0, 1, 0); O = E / sum[n](E) }"
    logits = np.random.default_rng(0).standard_normal((6, 7)).astype(np.float32)
    result = blockc.compile(source, tiles={"m": 4, "n": 3})(X=logits, G=OPEN.astype(np.float32))
    weights = np.exp(logits) * (OPEN > 0)[:, None]
    assert np.allclose(result, weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-30), atol=1e-6)


# Maxima of nothing are -inf and minima of nothing +inf, whatever the numbers would be made of.
OF_NOTHING = {
    "largest": "O = max[n](exp(X))",
    "smallest": "O = min[n](exp(X))",
    "largest product": "O = max[n](exp(X) * Y)",
    "smallest product": "O = min[n](exp(X) * Y)",
    "both": "E = exp(X); O = max[n](E) + min[n](E * Y) * G",
    "smallest sum": "O = min[n](exp(X) + exp(Y))",
    "largest of everything": "O = max[m, n](exp(X)) + G",
    "logarithm": "O = log(max[n](exp(X)))",
    "as a divisor": "O = G / max[n](exp(X))",
    "times an exponential": "O = max[n](exp(X)) * exp(G)",
    "of exponents less their maximum": "O = max[n](exp(X - max[n](X))) + G",
    "of a softmax": "P = softmax[n](X); O = max[n](P) + G",
    "masked": "O = max[n](where(Y > 0, exp(X), 0))",
    "beside a sum": "E = exp(X); O = max[n](E) + sum[n](E)",
}


@pytest.mark.parametrize("size", [0, 1, 5])
@pytest.mark.parametrize("name", OF_NOTHING)
def test_the_largest_of_no_exponentials(name: str, size: int) -> None:
    program = parsed(OF_NOTHING[name], "[m]")
    draw = np.random.default_rng(1)
    arrays = {
        "X": draw.standard_normal((3, size)),
        "Y": draw.standard_normal((3, size)),
        "G": np.array([-1.5, 0.5, 2.0]),
    }
    arrays = {argument.name: arrays[argument.name] for argument in program.inputs}
    expected = evaluate(program, arrays)["O"]
    sizes = {"m": 3, "n": size}
    for whole in ("", "n", "m n"):
        for stage, candidate in final_programs(fuse(lower(program, frozenset(whole.split())))):
            if stage.endswith(("stable", "composed")):
                problem = difference(interpret(candidate, arrays, sizes, {"m": 2, "n": 2}).outputs["O"], expected, 1e-9)
                assert not problem, f"whole {whole}, {stage}: {problem}"
