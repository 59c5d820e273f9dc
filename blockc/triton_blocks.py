"""Blocks near those of a plan that Triton takes: powers of two, as large as tensor cores want them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from blockc.codegen.triton_tiles import LEAST
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import Program
from blockc.ir.machine import Machine
from blockc.passes.choose import power_of_two
from blockc.passes.machine_cost import estimate
from blockc.passes.machine_model import model
from blockc.passes.search import Choice

STEPS: tuple[float, ...] = (
    0.125,
    0.25,
    0.5,
    1.0,
    2.0,
)  # of the blocks of a plan
MOST_BLOCKS = 700  # choices that are priced


def near_blocks(
    block: Program, choice: Choice, machine: Machine, sizes: Mapping[str, int], asked: set[str]
) -> list[tuple[dict[str, int], float]]:
    """Blocks near those of a choice, as Triton takes them, with predicted seconds: first those that fit the machine's
    tiers, the fastest first."""
    extents = complete_sizes(block, sizes)
    fixed = asked.union(block.whole, block.chunks, (dim for dim, tile in choice.tiles.items() if tile == 1))
    free = [dim for dim in choice.tiles if dim not in fixed]
    steps = STEPS
    while len(steps) ** len(free) > MOST_BLOCKS and len(steps) > 1:
        steps = steps[1:] if len(steps) != 3 else steps[:-1]
    found: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
    for chosen in itertools.product(*(steps for _ in free)):
        near = {
            dim: max(min(LEAST, choice.tiles[dim]), min(power_of_two(extents[dim]), round(choice.tiles[dim] * step)))
            for dim, step in zip(free, chosen, strict=True)
        }
        blocks = triton_tiles(block, {**choice.tiles, **near})
        found.setdefault(tuple(blocks.items()), blocks)
    every = list(found.values())
    if choice.schedule is None:
        own = triton_tiles(block, choice.tiles)
        return sorted(((blocks, 0.0) for blocks in every), key=lambda pair: _distance(pair[0], own))
    numbers = {dim: np.array([float(blocks[dim]) for blocks in every]) for dim in every[0]}
    priced = estimate(model(choice.schedule), sizes, numbers)
    fits = priced.fits(machine)
    order = sorted(range(len(every)), key=lambda at: (not fits[at], priced.seconds[at]))
    return [(every[at], float(priced.seconds[at])) for at in order]


def _distance(blocks: Mapping[str, int], others: Mapping[str, int]) -> float:
    return sum(abs(math.log2(max(1, tile) / max(1, others[dim]))) for dim, tile in blocks.items())


def triton_tiles(program: Program, tiles: Mapping[str, int]) -> dict[str, int]:
    """Blocks that Triton takes: powers of two, where the axes that a product has on one side only, or sums over,
    together have 1 element or at least 16; and chunks of whole ones.

    So several axes of one side, such as queries and heads that share keys, fill a tile together.
    """
    result = {dim: power_of_two(tile) for dim, tile in tiles.items() if dim not in (*program.chunks, *program.whole)}
    groups = list(dict.fromkeys(_merged(program)))
    small = True
    while small:
        small = False
        for group in groups:
            elements = math.prod(result.get(dim, LEAST) for dim in group)
            if 1 < elements < LEAST:
                last = [dim for dim in group if result[dim] > 1][-1]
                result[last] *= LEAST // elements
                small = True
    for chunk, base in program.chunks.items():
        result[chunk] = -(-tiles[chunk] // result[base]) * result[base]
    return result


def _merged(program: Program) -> Iterator[tuple[str, ...]]:
    """The axes that become one in each product of matrices: those of one side only, and those that are summed over."""
    for node in program.facts.applies.values():
        if node.op == "contract" and node.name in program.types:
            sides = [set(program.types[name].axes) for name in node.uses]
            for side in sides:
                yield program.ordered(side.difference(*(other for other in sides if other is not side), node.dims))
            yield program.ordered(node.dims)
