"""The lists of a simulated machine: arrays in a tier that hold the tiles of all blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from blockc.codegen.tiered_memory import SimulationError, Slot
from blockc.ir.arithmetic import FLOAT64, Array
from blockc.ir.block import Program
from blockc.ir.schedule import Storage
from blockc.ir.tile_operators import Blocks, Tile, extent

Part = tuple[slice, ...]  # of an array


@dataclass(frozen=True, slots=True)
class Cut:
    """A program with the sizes of its dimensions and of their blocks."""

    program: Program
    sizes: Mapping[str, int]
    tiles: Mapping[str, int]

    def blocks(self, dim: str, around: Blocks) -> list[slice]:
        """The blocks of a dimension, of the current chunk if a loop around has chunks of it; the last may be short."""
        whole, tile = extent(self.program, self.sizes, dim, around), self.tiles[dim]
        return [slice(start, min(start + tile, whole.stop)) for start in range(whole.start, whole.stop, tile)]


@dataclass(frozen=True, slots=True)
class Extents:
    """What a storage covers here: the numbers of blocks of list dimensions that are no axes, and the elements of axes;
    each with where it begins."""

    numbered: tuple[tuple[str, int, int], ...]
    axes: tuple[tuple[str, int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return tuple(stop - start for _, start, stop in (*self.numbered, *self.axes))


def extents(storage: Storage, cut: Cut, around: Blocks) -> Extents:
    """What a storage covers that is made inside of loops: the current block where there is one, else all of them."""

    def here(dim: str) -> slice:
        return around[dim] if dim in around else extent(cut.program, cut.sizes, dim, around)

    numbered = []
    for dim in storage.lists:
        if dim not in storage.axes:
            tile = cut.tiles[dim]
            numbered.append((dim, here(dim).start // tile, -(-here(dim).stop // tile)))
    axes = [(dim, here(dim).start, here(dim).stop) for dim in storage.axes]
    return Extents(tuple(numbered), tuple(axes))


@dataclass(slots=True)
class Stored:
    """A storage with its array, which of its elements have been written, and the events that wrote them last."""

    storage: Storage
    extents: Extents
    slot: Slot
    array: Array
    written: Array
    writers: dict[tuple[tuple[int, int], ...], int] = field(default_factory=dict)

    def part(self, cut: Cut, blocks: Blocks) -> Part:
        """The part for the current blocks; whole, where no loop is over a dimension. SimulationError if it is not
        covered."""
        found = []
        for dim, first, last in self.extents.numbered:
            start, stop = first, last
            if dim in blocks:
                start = blocks[dim].start // cut.tiles[dim]
                stop = start + 1
            found.append((dim, start, stop, first, last))
        for dim, first, last in self.extents.axes:
            block = blocks.get(dim, slice(first, last))
            found.append((dim, block.start, block.stop, first, last))
        for dim, start, stop, first, last in found:
            if start < first or stop > last:
                name, tier = self.storage.name, self.storage.tier
                raise SimulationError(
                    f"`{name}` in {tier} holds {first}:{last} of {dim}, and {start}:{stop} is asked for"
                )
        return tuple(slice(start - first, stop - first) for _, start, stop, first, _ in found)

    def check_tile(self, blocks: Blocks) -> None:
        """SimulationError unless loops say which tile is meant."""
        for dim in self.storage.lists:
            if dim not in blocks:
                raise SimulationError(f"a tile of `{self.storage.name}` is moved outside of any loop over {dim}")

    def read(self, part: Part) -> Tile:
        """A tile. SimulationError if some of it has never been written."""
        if not self.written[part].all():
            raise SimulationError(f"`{self.storage.name}` in {self.storage.tier} is read where nothing was written")
        found = self.array[part].copy()
        return Tile(self.storage.axes, found.reshape(found.shape[len(self.extents.numbered) :]))

    def write(self, part: Part, tile: Array, event: int | None) -> None:
        """A tile is written, by an event."""
        if self.array.dtype != tile.dtype:  # a maximum over nothing is no whole number
            self.array = self.array.astype(np.result_type(self.array, tile))
        self.array[part] = tile
        self.written[part] = True
        if event is not None:
            self.writers[key(part)] = event

    def ready(self, part: Part) -> tuple[int, ...]:
        """The events after which a part has been written."""
        if not self.writers:
            return ()
        return (self.writers[key(part)] if key(part) in self.writers else max(self.writers.values()),)

    def renamed(self, storage: Storage, old: str, new: str) -> Stored:
        """The same memory, read under another dimension."""
        names = [new if dim == old else dim for dim, _, _ in self.extents.axes]
        order = [names.index(dim) for dim in storage.axes]
        covered = Extents((), tuple((names[at], *self.extents.axes[at][1:]) for at in order))
        return Stored(storage, covered, self.slot, self.array.transpose(order), self.written.transpose(order))


def key(part: Part) -> tuple[tuple[int, int], ...]:
    """A part as a key."""
    return tuple((section.start, section.stop) for section in part)


def empty(storage: Storage, covered: Extents, slot: Slot) -> Stored:
    """A storage in which nothing has been written."""
    array = np.zeros(covered.shape, FLOAT64.encode(np.zeros(()), storage.dtype).dtype)
    return Stored(storage, covered, slot, array, np.zeros(covered.shape, np.bool_))


def elements(covered: Extents) -> int:
    """How many elements a storage has."""
    return math.prod(covered.shape)
