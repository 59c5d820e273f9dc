"""Tiles: how dimensions are cut into blocks, and what the tile operators compute, in any arithmetic.

Whatever executes a program block by block, the interpreter or the simulator of a machine, takes its tiles from here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from blockc.ir.arithmetic import Arithmetic, Array
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import Apply, Condition, Constant, Index, Program, Reading
from blockc.ir.intervals import Bounds, Leaf, bounds
from blockc.ir.ops import OPERATORS

Blocks = Mapping[str, slice]  # where the enclosing maps are: the elements of each dimension's current block


@dataclass(frozen=True, slots=True)
class Tile:
    """An item: its axes, in canonical order, and the array with one axis for each."""

    axes: tuple[str, ...]
    array: Array


def cut(program: Program, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """The size of every dimension and of its blocks; a dimension without a tile is one block.

    ValueError if chunks are not made of whole blocks.
    """
    known = complete_sizes(program, dict(sizes))
    blocks = {dim: max(1, tiles.get(dim, size)) for dim, size in known.items()}
    for dim, base in program.chunks.items():
        if blocks[dim] < known[dim] and blocks[dim] % blocks[base]:
            raise ValueError(f"chunks of {blocks[dim]} elements are not whole blocks of {blocks[base]}")
    return known, blocks


def extent(program: Program, sizes: Mapping[str, int], dim: str, around: Blocks) -> slice:
    """What a map over a dimension goes through: all of it, or the current chunk if a map around has chunks of it."""
    base = program.chunks.get(dim, dim)
    chunks = [block for other, block in around.items() if program.chunks.get(other) == base]
    return chunks[-1] if chunks else slice(0, sizes[dim])


@dataclass(frozen=True, slots=True)
class TileOperators:
    """The operators of a program on tiles. `blocks` say where the enclosing maps are."""

    program: Program
    sizes: Mapping[str, int]
    arithmetic: Arithmetic

    def shape(self, axes: tuple[str, ...], blocks: Blocks) -> tuple[int, ...]:
        """The extents of a tile here."""
        return tuple(blocks[axis].stop - blocks[axis].start if axis in blocks else self.sizes[axis] for axis in axes)

    def elementwise(self, op: str, *tiles: Tile) -> Tile:
        """An elementwise operator on tiles that broadcast by axis name."""
        distinct = {tile.axes for tile in tiles}
        axes = distinct.pop() if len(distinct) == 1 else self.program.ordered(itertools.chain(*distinct))
        return Tile(axes, self.arithmetic.elementwise(op, *[aligned(tile, axes) for tile in tiles]))

    def structural(self, apply: Apply, tiles: tuple[Tile, ...], blocks: Blocks) -> Tile:
        """An operator that is not elementwise."""
        match apply.op:
            case "index":
                (dim,) = apply.dims
                block = blocks.get(dim, slice(0, self.sizes[dim]))
                return Tile((dim,), self.arithmetic.encode(np.arange(block.start, block.stop), "i32"))
            case "broadcast":
                axes = self.program.ordered((*tiles[0].axes, *apply.dims))
                return Tile(axes, np.broadcast_to(aligned(tiles[0], axes), self.shape(axes, blocks)))
            case "cast":
                return Tile(tiles[0].axes, self.arithmetic.cast(tiles[0].array, apply.dtype))
            case "contract":
                return self._contract(apply.dims, *tiles)
            case _:
                return self._reduce(apply.op, apply.dims, tiles[0])

    def number(self, number: float | int | bool) -> Tile:
        """A number as a tile without axes."""
        return Tile((), self.arithmetic.encode(np.asarray(number), number_dtype(number)))

    def _contract(self, dims: tuple[str, ...], a: Tile, b: Tile) -> Tile:
        letters = {axis: position for position, axis in enumerate(self.program.ordered((*a.axes, *b.axes)))}
        axes = tuple(axis for axis in letters if axis not in dims)
        subscripts = [[letters[axis] for axis in held] for held in (a.axes, b.axes, axes)]
        return Tile(axes, self.arithmetic.contract(a.array, subscripts[0], b.array, subscripts[1], subscripts[2]))

    def _reduce(self, op: str, dims: tuple[str, ...], tile: Tile) -> Tile:
        positions = tuple(tile.axes.index(dim) for dim in dims)
        axes = tuple(axis for axis in tile.axes if axis not in dims)
        return Tile(axes, self.arithmetic.reduce(op, tile.array, positions))

    def may_hold(self, condition: Condition, tables: Mapping[str, Tile], blocks: Blocks) -> bool:
        """False if a condition holds nowhere in a block. `tables` are the tiles that it reads."""

        def ends(term: Leaf) -> Bounds[float]:
            if isinstance(term, Index):
                block = blocks.get(term.dim, slice(0, self.sizes[term.dim]))
                return block.start, block.stop - 1
            if isinstance(term, Reading):
                numbers = tables[term.name].array
                return (float(numbers.min()), float(numbers.max())) if numbers.size else (math.inf, -math.inf)
            number = term.value if isinstance(term, Constant) else self.sizes[term.dim]
            return number, number

        def apply(op: str, *operands: float) -> float:
            if op == "rounded":
                return float(np.float32(*operands))
            result: float = OPERATORS[op].meaning(*operands)
            return result

        return bool(bounds(condition, apply, ends)[1])


def aligned(tile: Tile, axes: tuple[str, ...]) -> Array:
    """The tile's array with length-one axes where it lacks one of `axes`, ready to broadcast."""
    if tile.axes == axes:
        return tile.array
    return tile.array.reshape([tile.array.shape[tile.axes.index(axis)] if axis in tile.axes else 1 for axis in axes])


def number_dtype(number: float | int | bool) -> str:
    """The element type of a constant."""
    return "bool" if isinstance(number, bool) else "i32" if isinstance(number, int) else "f64"
