"""Epilogues in pieces in Triton: a large accumulated tile is halved until what is computed of it fits into registers.

The halves are those of its last axis, which threads have beside one another, so that nothing moves between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from blockc.codegen.triton_tiles import LEAST
from blockc.codegen.triton_values import Kernel, Tile
from blockc.ir.block import Apply, Map, Output
from blockc.ir.pieces import axis_of_pieces, behind_loops

_MOST = 2**14  # elements of accumulated tiles that leave room for a whole epilogue in registers
_PIECE = 2**13  # elements of a piece


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a map computes and stores in `count` pieces along `dim`, of tiles that are there as a `whole`."""

    dim: str
    count: int
    graph: tuple[Apply, ...]
    outputs: tuple[Output, ...]
    whole: tuple[str, ...]


def pieces_of(kernel: Kernel, node: Map) -> Pieces | None:
    """The pieces of a task's map, or None if its tiles are small."""
    types, behind = kernel.program.types, behind_loops(node.body)
    dim = axis_of_pieces(kernel.program, [types[apply.name].axes for apply in behind])
    if dim is None or kernel.mapped != kernel.tasks or kernel.is_unit(dim):
        return None
    graph = tuple(apply for apply in behind if dim in types[apply.name].axes)
    values = {output: types[output.values[0]] for output in node.outputs}
    outputs = tuple(output for output, kind in values.items() if kind.is_item and dim in kind.axes)
    used = {name for apply in graph for name in apply.uses}.union(*(output.values for output in outputs))
    used -= {apply.name for apply in graph} | kernel.later.keys()
    whole = tuple(sorted(name for name in used if dim in types[name].axes))
    elements = [math.prod(kernel.tiles.get(axis, kernel.sizes[axis]) for axis in types[name].axes) for name in whole]
    count = 1
    while sum(elements) > _MOST and max(elements) > _PIECE * count and kernel.tiles[dim] >= 2 * count * LEAST:
        count *= 2
    return Pieces(dim, count, graph, outputs, whole) if count > 1 else None


def halved(kernel: Kernel, tiles: Mapping[str, Tile], dim: str, count: int) -> Iterator[dict[str, Tile]]:
    """Tiles in pieces, one after the other; before each, what makes it is written."""
    yield from _halved(kernel, dict(tiles), dim, 1, count)


def _halved(kernel: Kernel, tiles: dict[str, Tile], dim: str, level: int, count: int) -> Iterator[dict[str, Tile]]:
    if level == count:
        yield tiles
        return
    left, right = {}, {}
    for name, tile in tiles.items():
        at = tile.dims.index(dim)
        half = [kernel.extent(axis) for axis in tile.dims]
        half[at] = f"2, {half[at]} // {2 * level}"
        order = [axis + (axis >= at) for axis in range(len(tile.dims))]
        text = f"tl.permute(tl.reshape({tile.text}, [{', '.join(half)}]), {[*order, at]})"
        first, second = f"v{next(kernel.fresh)}", f"v{next(kernel.fresh)}"
        kernel.lines.add(f"{first}, {second} = tl.split({text})")
        left[name], right[name] = (replace(tile, text=part, stored="", element="") for part in (first, second))
    for half_of in (left, right):
        yield from _halved(kernel, half_of, dim, 2 * level, count)
