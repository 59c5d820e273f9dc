"""Sums and products that would become very large if they were opened all the way are left as they are, in time."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest

import blockc
from blockc.errors import BlockcWarning
from blockc.ir.block import Apply
from blockc.language import parse
from blockc.passes.choose import ready
from blockc.passes.fuse import fuse
from blockc.passes.linear import LARGEST, factor_out, size, terms
from blockc.passes.lower import lower

INPUTS = {"X": "f32[m, n]", "Y": "f32[m]", "W": "f32[n, e]"}


def program(first: str, step: str, last: str, times: int = 40) -> str:
    """A program that makes the next value of the last one, T, so many times, and then something of it."""
    lines = [f"T0 = {first}", *(f"T{at + 1} = {step.replace('T', f'T{at}')}" for at in range(times))]
    lines.append(last.replace("T", f"T{times}"))
    inputs = ", ".join(f"{name}: {kind}" for name, kind in INPUTS.items() if name in "".join(lines))
    return "\n".join([f"program p({inputs}) -> O: {'f32[m, e]' if 'W' in last else 'f32[m]'} {{", *lines, "}\n"])


def squared(first: str, last: str) -> str:
    return program(first, "T * T", last)


VARIANCE = "mean[n](X * X) - mean[n](X) * mean[n](X)"
PROGRAMS = [
    squared("X", "O = sum[n](T)"),
    squared("X * Y", "O = sum[n](T)"),
    squared("X * sum[n](X)", "O = sum[n](T)"),
    squared("X - mean[n](X)", "O = sum[n](T)"),
    squared("exp(X - max[n](X))", "O = sum[n](T)"),
    squared("X - max[n](X)", "O = sum[n](exp(T))"),
    squared("X * Y", "O = dot[n](T, W)"),
    squared("X * Y", "O = sum[n](1 / T)"),
    squared("exp(X)", "O = log(sum[n](T))"),
    squared(VARIANCE, "O = T"),
    squared("mean[n](X * X) + 3 * mean[n](X)", "O = T"),
    squared("Y * X", f"V = {VARIANCE}; O = V + sum[n](T)"),
    program("X * Y", "T * Y + T * X", "O = sum[n](T)"),
    program("X - sum[n](X)", "T * sum[n](X) + T * X", "O = sum[n](T)"),
]


@pytest.mark.parametrize("source", PROGRAMS)
def test_a_value_that_is_squared_forty_times_compiles_in_a_second(source: str) -> None:
    parse(source)
    started = time.process_time()
    with warnings.catch_warnings():  # such powers overflow, where the kernel may do so and its meaning does not
        warnings.simplefilter("ignore", BlockcWarning)
        blockc.compile(source)
    ready(fuse(lower(parse(source), frozenset())))  # all dimensions cut
    assert time.process_time() - started < 2  # for both


def test_what_is_left_as_it_is_has_the_same_meaning() -> None:
    source = program("1 + Y * X", "T * T", "O = sum[n](T)", times=10)
    draw = np.random.default_rng(0)
    x, y = draw.uniform(-1e-3, 1e-3, (5, 70)), draw.uniform(-1, 1, 5)
    kernel = blockc.compile(source, dtype="f64", tiles={"m": 2, "n": 16})
    np.testing.assert_allclose(kernel(x, y), ((1 + y[:, None] * x) ** 1024).sum(1), rtol=1e-12)


def test_expansions_have_a_limit() -> None:
    table = {f"T{at + 1}": Apply(f"T{at + 1}", "mul", (f"T{at}", f"T{at}"), (), "f32") for at in range(20)}
    table["T0"] = Apply("T0", "mul", ("x", "c"), (), "f32")
    kept = {f"T{at}": factor_out(f"T{at}", {"c"}.__contains__, table) for at in (9, 10)}
    assert kept["T9"][0] == ("c",) * 512 and size(kept["T9"][1]) == 512
    assert kept["T10"] == ((), "T10")
    assert [len(*terms(name, table.__contains__, table)) for name in ("T9", "T10")] == [LARGEST, 1]
