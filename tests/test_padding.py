"""Padding of short last blocks: masks where a reduction would see it, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from generator import random_program, random_sizes, random_tiles

from blockc import meaning
from blockc.data import random_arrays
from blockc.ir.block import Apply, Program, walk
from blockc.ir.interpret import interpret
from blockc.language import parse
from blockc.passes.choose import safe
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower, whole_dimensions
from blockc.passes.padding import mask

ATTENTION = (Path(__file__).parent.parent / "examples" / "attention.blk").read_text()


def fused(source: str, whole: str = "") -> Program:
    """The last snapshot of a program, stabilized."""
    return safe(fuse(lower(parse(source), frozenset(whole))).snapshots[-1])


def masks(program: Program) -> list[str]:
    """The values that `mask` guards, with the number that it puts in their place."""
    before = {node.name for node in walk(program.body) if isinstance(node, Apply)}
    added = [node for node in walk(mask(program).body) if isinstance(node, Apply) and node.name not in before]
    return [f"{node.args[1]} by {node.args[2].value}" for node in added if node.op == "where"]  # type: ignore[union-attr]


def small(body: str) -> str:
    return f"program p(X: f32[m, n], Y: f32[n, e]) -> O: f32[m, e] {{\n{body}\n}}\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("O = dot[n](X, Y)", []),  # zeros add nothing
        ("O = dot[n](X * 2.0, Y)", []),
        ("O = dot[n](relu(X), Y)", []),
        ("O = dot[n](X + 1.0, Y)", ["by 0.0"]),
        ("O = dot[n](exp(tanh(X)), Y)", ["by -inf"]),  # the exponent's maximum is masked, and e^-inf is 0
        ("O = dot[n](X, Y) + max[n](X)", ["by -inf"]),
        ("O = dot[n](X, Y) + min[n](X)", ["by inf"]),
        ("O = dot[n](X, Y) + max[n](X) + min[n](X)", ["by -inf", "by inf"]),
        ("O = dot[n](sigmoid(X), Y)", ["by 0.0"]),
    ],
)
def test_a_mask_stands_where_a_reduction_would_see_padding(body: str, expected: list[str]) -> None:
    found = masks(fused(small(body)))
    assert [text[text.index("by") :] for text in found] == expected


def test_attention_needs_one_mask() -> None:
    program = fused(ATTENTION, "de")
    (found,) = masks(program)
    assert found.endswith("by -inf")


def test_without_the_mask_attention_is_wrong() -> None:
    source = parse(ATTENTION)
    sizes = {"b": 1, "h": 1, "m": 5, "n": 7, "d": 4, "e": 4}
    tiles = {"b": 1, "h": 1, "m": 2, "n": 3}
    arrays = random_arrays(source, sizes, seed=0)
    exact = meaning.evaluate(source, arrays)["O"]
    program = fused(ATTENTION, "de")
    masked, unmasked = (interpret(p, arrays, sizes, tiles, padding=0.0).outputs["O"] for p in (mask(program), program))
    np.testing.assert_allclose(masked, exact, rtol=1e-10, atol=1e-12)
    assert np.abs(unmasked - exact).max() > 1e-3


def test_random_programs_mean_the_same_on_padded_tiles() -> None:
    needed = 0
    for seed in range(36):
        text = random_program(seed)
        source = parse(text)
        sizes = random_sizes(seed, source)
        tiles = random_tiles(seed, sizes)
        arrays = random_arrays(source, sizes, seed)
        exact = meaning.evaluate(source, arrays)
        derivation = fuse(lower(source, whole_dimensions(source, sizes, {})))
        program = safe(derivation.snapshots[-1])
        outputs = interpret(mask(program), arrays, sizes, tiles, padding=0.0).outputs
        for name, array in exact.items():
            np.testing.assert_allclose(outputs[name], array, rtol=1e-9, atol=1e-10, err_msg=f"seed {seed}\n{text}")
        needed += mask(program) != program
    assert needed >= 12, "the random programs hardly need masks"
