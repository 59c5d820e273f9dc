"""How many blocks the conditions of loops leave, counted block by block, for all blocks at once."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockc.ir.block import Condition, Index, Map, Program, Reading, Size, Term, roots, walk
from blockc.ir.conditions import positions
from blockc.ir.intervals import Bounds, Leaf, bounds
from blockc.ir.ops import OPERATORS

Arrays = Mapping[str, NDArray[Any]]
Tables = Mapping[str, tuple[tuple[str, ...], NDArray[Any]]]  # what a condition reads: its dimensions, and the array

NO_TABLES: Tables = {}
MOST_BLOCKS = 10**8  # that are counted one by one; beyond, conditions are taken to leave all of them


def tables_of(program: Program, sizes: Mapping[str, int], arrays: Arrays) -> Tables:
    """The inputs that conditions read, by the names that they read them under."""
    origin, entries = roots(program), {entry.name: entry for entry in program.inputs}
    result = {}
    for reading in _readings(program):
        entry = entries[origin.get(reading.name, reading.name)]
        array = np.asarray(arrays[entry.argument]).reshape([sizes[dim] for dim in entry.dims])
        result[reading.name] = reading.dims, np.transpose(array, [entry.dims.index(dim) for dim in reading.dims])
    return result


def _readings(program: Program) -> Iterator[Reading]:
    conditions = [node.where for node in walk(program.body) if isinstance(node, Map) and node.where is not None]
    return (term for condition in conditions for term in _leaves(condition) if isinstance(term, Reading))


def _leaves(term: Term) -> Iterator[Leaf]:
    if isinstance(term, Condition):
        for arg in term.args:
            yield from _leaves(arg)
    else:
        yield term


def live(
    where: tuple[Condition, ...],
    along: Collection[str],
    sizes: Mapping[str, int],
    tiles: Mapping[str, int],
    tables: Tables = NO_TABLES,
) -> int:
    """The blocks in which each condition may hold, each times its elements along some dimensions.

    Conditions on what is not among `tables` may hold everywhere.
    """
    dims = sorted({dim for condition in where for dim in positions(condition)})
    known = {term.dim for condition in where for term in _leaves(condition) if isinstance(term, Size)}
    asked = (
        where,
        tuple(dim for dim in dims if dim in along),
        tuple((dim, sizes[dim]) for dim in sorted(known.union(dims))),
        tuple((dim, tiles[dim]) for dim in dims if dim in tiles),
    )
    return _count(*asked, tables) if tables else _live(*asked)


@lru_cache(maxsize=1024)
def _live(
    where: tuple[Condition, ...],
    along: tuple[str, ...],
    known: tuple[tuple[str, int], ...],
    tiles: tuple[tuple[str, int], ...],
) -> int:
    return _count(where, along, known, tiles, NO_TABLES)


def _count(
    where: tuple[Condition, ...],
    along: tuple[str, ...],
    known: tuple[tuple[str, int], ...],
    tiles: tuple[tuple[str, int], ...],
    tables: Tables,
) -> int:
    sizes, cut = dict(known), [dim for dim, _ in tiles]
    total = math.prod(sizes[dim] for dim in along if dim not in cut)
    counts = [-(-sizes[dim] // tile) for dim, tile in tiles]
    if math.prod(counts) > MOST_BLOCKS:
        return total * math.prod(sizes[dim] if dim in along else count for dim, count in zip(cut, counts, strict=True))
    starts = np.ogrid[tuple(slice(0, sizes[dim], tile) for dim, tile in tiles)]
    ends = [np.minimum(start + tile, sizes[dim]) for (dim, tile), start in zip(tiles, starts, strict=True)]

    def extremes(term: Leaf) -> Bounds[Any]:
        match term:
            case Index(dim) if dim in cut:
                return starts[cut.index(dim)], ends[cut.index(dim)] - 1
            case Index(dim):
                return 0, sizes[dim] - 1
            case Reading(name):
                return _extremes_of(tables[name], dict(tiles)) if name in tables else (math.nan, math.nan)
            case Size(dim):
                return sizes[dim], sizes[dim]
            case _:
                return term.value, term.value

    def apply(op: str, *operands: Any) -> Any:
        if op == "rounded":
            return np.float64(np.float32(*operands))
        return OPERATORS[op].meaning(*operands)

    held: Any = np.ones(counts, bool)
    for condition in where:
        held = held & bounds(condition, apply, extremes)[1]
    for dim, start, end in zip(cut, starts, ends, strict=True):
        held = held * (end - start) if dim in along else held
    return total * int(held.sum())


def _extremes_of(table: tuple[tuple[str, ...], NDArray[Any]], tiles: Mapping[str, int]) -> Bounds[Any]:
    """The least and the largest number of every block of a table, along all dimensions that are cut."""
    dims, array = table
    if not array.size:
        return math.inf, -math.inf
    low = high = array.astype(np.float64)  # in which sums of what is stored do not overflow
    for axis, dim in enumerate(dims):
        blocks = range(0, array.shape[axis], tiles[dim]) if dim in tiles else (0,)
        low, high = np.minimum.reduceat(low, blocks, axis), np.maximum.reduceat(high, blocks, axis)
    shape = [low.shape[dims.index(dim)] if dim in dims else 1 for dim in tiles]
    order = [dims.index(dim) for dim in tiles if dim in dims] + [at for at, dim in enumerate(dims) if dim not in tiles]
    return np.transpose(low, order).reshape(shape), np.transpose(high, order).reshape(shape)
