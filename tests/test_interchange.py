"""Accumulated lists on the whole way: snapshots by interchange as kernels, against the float64 meaning."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle import Case, difference, example
from oracle import check as check_every_step
from selection import in_turn

from blockc import meaning
from blockc.accuracy import compare, computed_dtype
from blockc.codegen import loader, numpy_source
from blockc.data import random_arrays
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import Map, Program, walk
from blockc.ir.interpret import interpret
from blockc.language import parse
from blockc.passes.choose import compose, safe
from blockc.passes.cost import traffic
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower

ROWS = "program p(Q: f32[m, d], K: f32[n, d], V: f32[n, e]) -> O: f32[m, e]"
DEEP = "program p(Q: f32[m, d], K: f32[n, d], V: f32[n, e], W: f32[n, e, k]) -> O: f32[m, e]"
WIDE = "program p(Q: f32[m, d], K: f32[n, d], W: f32[n, e, k]) -> O: f32[m, e, k]"
S = "S = dot[d](Q, K) / sqrt(size(d))"

# Text and whole dimensions of programs with a snapshot that accumulates a list, each for what it asks of the pairs.
PROGRAMS = {
    "attention": (example("attention").replace("f16", "f32"), "d"),
    "attention, all cut": (example("attention").replace("f16", "f32"), ""),
    "feed-forward": (example("mlp"), ""),
    "gated feed-forward": (example("rmsnorm_swiglu").replace("f16", "f32"), ""),
    "norm and product": (
        "program p(X: f32[m, d], W: f32[d, n], g: f32[d]) -> O: f32[m, n] { O = dot[d](rmsnorm[d](X, g, 0.001), W) }",
        "",
    ),
    # One exponent for every row: it is made ahead of the inner map.
    "two dimensions of features": (f"{WIDE} {{ {S}; O = dot[n](softmax[n](S), W) }}", "d"),
    # One exponent for every element of the list.
    "exponents inside": (f"{ROWS} {{ {S}; O = log(sum[n](exp(S * V))) }}", "d"),
    "exponents inside and outside": (f"{DEEP} {{ {S}; O = log(sum[n](exp(S) * sum[k](exp(W * V)))) }}", "d"),
    "two levels": (f"{WIDE} {{ {S}; O = log(sum[n](exp(S) * exp(W))) }}", "d"),
    # The largest exponential is that of the exponents.
    "maximum": (f"{ROWS} {{ {S}; O = log(max[n](exp(S * V))) }}", "d"),
    "maximum and sum": (f"{ROWS} {{ {S}; E = exp(S * V); O = max[n](E) / sum[n](E) }}", "d"),
    # What the loop needs of the outer map is stacked before it.
    "code before the loop": (f"{DEEP} {{ {S}; O = dot[n](softmax[n](S), tanh(V + sum[n, k](W))) }}", "d"),
}
# In every snapshot, with accumulated lists or without, the largest of no exponentials is 0 where the meaning says minus
# infinity, and a sum of products of two exponentials may underflow where their largest ones do not meet.
OF_SOMETHING = ("maximum", "maximum and sum")
PRODUCTS = ("exponents inside and outside", "two levels")
SIZES = [
    {"b": 2, "h": 1, "m": 7, "n": 11, "d": 5, "e": 9, "z": 10, "k": 4},
    {"b": 1, "h": 2, "m": 4, "n": 3, "d": 4, "e": 2, "z": 1, "k": 1},
    {"b": 1, "h": 1, "m": 1, "n": 1, "d": 1, "e": 1, "z": 1, "k": 3},
    {"b": 1, "h": 1, "m": 7, "n": 0, "d": 5, "e": 9, "z": 0, "k": 2},
    {"b": 1, "h": 1, "m": 7, "n": 3, "d": 5, "e": 0, "z": 2, "k": 2},
    {"b": 1, "h": 1, "m": 0, "n": 3, "d": 5, "e": 4, "z": 2, "k": 0},
]


def accumulates_a_list(program: Program) -> bool:
    """True if a map accumulates a list."""
    return any(
        output.monoid is not None and any(program.types[name].lists for name in output.names)
        for node in walk(program.body)
        if isinstance(node, Map)
        for output in node.outputs
    )


@cache
def interchanged(name: str) -> tuple[Program, ...]:
    """The snapshots that accumulate a list, ready to emit."""
    source, whole = PROGRAMS[name]
    lowered = lower(parse(source), frozenset(whole.split()))
    return tuple(compose(safe(found)) for found in fuse(lowered).snapshots if accumulates_a_list(found))


@pytest.mark.parametrize("name", PROGRAMS)
def test_lists_stay_accumulated_through_safe_arithmetic(name: str) -> None:
    assert interchanged(name) and all(map(accumulates_a_list, interchanged(name)))


def launched(program: Program, sizes: dict[str, int], tile: int, arrays: Any, threads: int) -> dict[str, NDArray[Any]]:
    """What the kernels of a program give."""
    tiles = {dim: tile for dim in sizes if dim not in program.whole}
    source = numpy_source.emit(program, tiles, (), frozenset(dim for dim, size in sizes.items() if size == 0))
    return kernel(source)(arrays, threads)


@cache
def kernel(source: str) -> Callable[[Any, int], dict[str, NDArray[Any]]]:
    """The kernels of a file."""
    return loader.load(source)


def check(name: str, sizes: dict[str, int], tile: int, scale: float) -> None:
    """The kernels of all snapshots are within the error rule, and the interpreter counts what is predicted."""
    program = parse(PROGRAMS[name][0])
    known = complete_sizes(program, {dim.name: sizes[dim.name] for dim in program.dims if dim.size is None})
    arrays = random_arrays(program, known, seed=tile)
    arrays = {key: (value * scale).astype(value.dtype) for key, value in arrays.items()}
    expected, unfused = meaning.evaluate(program, arrays), meaning.baseline(program, arrays)
    for snapshot in interchanged(name):
        tiles = dict.fromkeys(known, tile)
        run = interpret(snapshot, arrays, known, tiles)
        moved = traffic(snapshot, known, tiles)
        assert sum(moved.values()) == run.traffic
        found = [launched(snapshot, known, tile, arrays, threads) for threads in (1, 4)]
        for result in program.outputs:
            output, dtype = result.argument.name, result.argument.dtype
            assert not difference(run.outputs[output], expected[output], 1e-9), f"{known}, tile {tile}"
            first, second = (outputs[output] for outputs in found)
            assert np.array_equal(first, second, equal_nan=True)
            held = compare(first, expected[output], unfused[output], dtype, computed_dtype(program, result))
            assert held.ok, f"{known}, tile {tile}: {held}"


@pytest.mark.parametrize(("name", "tile"), in_turn(PROGRAMS, [1, 3, 16], of=2))
def test_kernels_with_accumulated_lists_are_right_at_ragged_and_empty_sizes(name: str, tile: int) -> None:
    for sizes in SIZES:
        if sizes["n"] or name not in OF_SOMETHING:
            check(name, sizes, tile, 1.0)


@pytest.mark.parametrize("name", PROGRAMS)
def test_kernels_with_accumulated_lists_are_safe_for_large_logits(name: str) -> None:
    for scale in (3.0,) if name in PRODUCTS else (30.0, 1000.0):
        check(name, SIZES[0], 3, scale)


def test_masked_rows_of_an_accumulated_list_are_zero() -> None:
    source = f"{ROWS} {{ {S}; O = dot[n](softmax[n](where(index(n) < index(m) - 2, S, -inf)), V) }}"
    program = parse(source)
    sizes = {"m": 6, "n": 5, "d": 3, "e": 4, "k": 2}
    arrays = random_arrays(program, sizes, seed=1)
    expected = meaning.evaluate(program, arrays)["O"]
    snapshots = fuse(lower(program, frozenset("d"))).snapshots
    found = [compose(safe(snapshot)) for snapshot in snapshots if accumulates_a_list(snapshot)]
    assert found and np.all(expected[:3] == 0) and np.any(expected[3:] != 0)
    for snapshot in found:
        outputs = launched(snapshot, sizes, 2, arrays, 1)
        assert np.allclose(outputs["O"], expected, rtol=1e-5, atol=1e-6) and np.all(outputs["O"][:3] == 0)


def test_a_list_that_a_map_between_accumulates_stays_where_it_is() -> None:
    source = """program p(X: f32[m, h], Y: f32[m, b, n]) -> O: f32[h, b, m] {
    T = dot[m](X / sum[m](X), Y)
    O = sum[n](Y * T)
}
"""
    check_every_step(Case(source, {"h": 2, "m": 3, "b": 1, "n": 5}, {"h": 1, "m": 2, "b": 1, "n": 2}, frozenset()))
