"""The interpreter: the meaning of a block program in float64, block by block, counting every load and store.

It is the oracle of the rewrite rules: slow, direct, and independent of the emitters and of the cost model. Traffic is
counted as design section 4 defines it, in bytes of the declared types, per value and per direction. An accumulated list
is stored in every iteration and loaded in all but the first; the lists that feed it are never stored themselves.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar, assert_never

import numpy as np

from blockc.ir.arithmetic import FLOAT64, Arithmetic, Array
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import (
    STRUCTURAL,
    Apply,
    Constant,
    Definition,
    Expression,
    Graph,
    Index,
    Map,
    Operand,
    Port,
    Program,
    Reading,
    Reduce,
    Rename,
    Size,
    Type,
    kernels,
    roots,
    without,
)
from blockc.ir.conditions import readings
from blockc.ir.dtypes import DTYPES
from blockc.ir.intervals import Bounds, Leaf, bounds
from blockc.ir.monoids import MONOIDS, identity
from blockc.ir.ops import OPERATORS
from blockc.ir.sharing import Shared

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tile:
    """An item: its axes, in canonical order, and the array with one axis for each."""

    axes: tuple[str, ...]
    array: Array


@dataclass(frozen=True, slots=True)
class Stack:
    """A list that a map made: one element per block of `dim`, from the block `first` on (in a chunk, not from 0)."""

    dim: str
    elements: tuple[Value, ...]
    first: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """A list that lies in an array: an input. `blocks` are the list dimensions already peeled, with their slices."""

    lists: tuple[str, ...]
    tile: Tile
    blocks: tuple[tuple[str, slice], ...]


Value = Tile | Stack | Stored


@dataclass(frozen=True, slots=True)
class Run:
    """The outputs, in declared axis order, and the bytes loaded and stored per value."""

    outputs: dict[str, Array]
    loads: Counter[str]
    stores: Counter[str]

    @property
    def traffic(self) -> int:
        """All bytes moved."""
        return sum(self.loads.values()) + sum(self.stores.values())


def interpret(
    program: Program,
    arrays: Mapping[str, Array],
    sizes: Mapping[str, int],
    tiles: Mapping[str, int],
    padding: float | None = None,
    arithmetic: Arithmetic = FLOAT64,
    shared: Shared | None = None,
) -> Run:
    """Execute `program`, in float64 or another arithmetic. `arrays` by argument name; `sizes` and `tiles` in elements.

    Dimensions that are neither whole nor in `tiles` are one block. No array of `arrays` is changed. With `padding`,
    tiles have their full size in the last block too, filled up with that number when they are read, as on hardware
    with tiles of fixed sizes (the traffic then includes it). With `shared`, runs of the
    programs of one derivation take over what earlier ones have computed from the same arrays. ValueError if chunks are
    not made of whole blocks.
    """
    known = complete_sizes(program, dict(sizes))
    blocks = {dim: max(1, tiles.get(dim, size)) for dim, size in known.items()}
    for dim, base in program.chunks.items():
        if blocks[dim] < known[dim] and blocks[dim] % blocks[base]:
            raise ValueError(f"chunks of {blocks[dim]} elements are not whole blocks of {blocks[base]}")
    if shared is not None:
        shared.bind((program.dims, known, blocks, padding, arithmetic))
    machine = _Interpreter(program, known, blocks, padding, arithmetic, shared)
    environment: dict[str, Value] = {}
    for entry in program.inputs:
        kind = program.input_types[entry.name]
        environment[entry.name] = machine.stored(entry.dims, arrays[entry.argument], kind)
    with np.errstate(all="ignore"):
        for kernel in kernels(program):
            machine.cross(kernel)
        machine.graph(program.body, environment, {}, frozenset())
    outputs = {}
    for result in program.outputs:
        value = machine.assemble(environment[result.value], program.types[result.value], {})
        order = [value.axes.index(dim) for dim in result.argument.dims]
        array = np.transpose(value.array, order)
        packed = [np.prod([known[dim] for dim in axis], dtype=int) for axis in result.argument.axes]
        outputs[result.argument.name] = array.reshape(packed)
    return Run(outputs, *machine.counted())


Blocks = Mapping[str, slice]  # where the enclosing maps are: the elements of each dimension's current block


@dataclass(slots=True)
class _Interpreter:
    program: Program
    sizes: dict[str, int]
    tiles: dict[str, int]
    padding: float | None
    arithmetic: Arithmetic
    shared: Shared | None
    loads: Counter[str] = field(default_factory=Counter)  # in bytes, by the name that a map reads
    stores: Counter[str] = field(default_factory=Counter)  # in bytes, by the name that a map gives

    def counted(self) -> tuple[Counter[str], Counter[str]]:
        """The bytes loaded and stored, by the lists of the outermost graph."""
        origin = roots(self.program)
        totals = Counter[str](), Counter[str]()
        for total, counts in zip(totals, (self.loads, self.stores), strict=True):
            for name, count in counts.items():
                total[origin.get(name, name)] += count
        return totals

    def once(self, what: Hashable, values: tuple[object, ...], compute: Callable[[], T]) -> T:
        """The result of computing `what` from some values, or that of an earlier run."""
        return compute() if self.shared is None else self.shared.once(what, values, compute)

    # Values

    def stored(self, dims: tuple[str, ...], array: Array, kind: Type) -> Value:
        """An argument as a value: packed axes taken apart, axes in canonical order, in the interpreter's arithmetic."""
        return self.once(("argument", dims, kind), (array,), lambda: self._stored(dims, array, kind))

    def _stored(self, dims: tuple[str, ...], array: Array, kind: Type) -> Value:
        unpacked = np.asarray(array).reshape([self.sizes[dim] for dim in dims])
        ordered = np.transpose(unpacked, [dims.index(dim) for dim in kind.axes])
        tile = Tile(kind.axes, self.arithmetic.encode(ordered, kind.dtype))
        return Stored(kind.lists, tile, ()) if kind.lists else tile

    def blocks(self, dim: str, around: Blocks) -> list[slice]:
        """The blocks of a dimension, of the current chunk if a map around has chunks of it; the last may be short."""
        base = self.program.chunks.get(dim, dim)
        cuts = [block for other, block in around.items() if self.program.chunks.get(other) == base]
        bounds = cuts[-1] if cuts else slice(0, self.sizes[dim])
        starts = range(bounds.start, bounds.stop, self.tiles[dim])
        return [self.block(dim, start // self.tiles[dim], bounds.stop) for start in starts]

    def block(self, dim: str, index: int, end: int) -> slice:
        """One block by its number, not beyond `end` unless it is padded."""
        tile = self.tiles[dim]
        padded = self.padding is not None and dim not in self.program.chunks
        return slice(index * tile, (index + 1) * tile if padded else min((index + 1) * tile, end))

    def peel(self, value: Value, dim: str, index: int) -> Value:
        """The element of a list for one block."""
        match value:
            case Stack(own, elements, first) if own == dim:
                return elements[index - first]
            case Stack() | Stored():
                return self.once(("peel", dim, index), (value,), lambda: self.peeled(value, dim, index))
            case Tile():
                raise TypeError("an item cannot be mapped")
            case _:
                assert_never(value)

    def peeled(self, value: Stack | Stored, dim: str, index: int) -> Value:
        """The elements of the elements of a list, or the block of an array."""
        if isinstance(value, Stack):
            return self.stack(value.dim, tuple(self.peel(one, dim, index) for one in value.elements), value.first)
        rest = without(value.lists, dim)
        chosen = (*value.blocks, (dim, self.block(dim, index, self.sizes[dim])))
        if rest:
            return Stored(rest, value.tile, chosen)
        slices = dict(chosen)
        axes = value.tile.axes
        array = value.tile.array[tuple(slices.get(axis, slice(None)) for axis in axes)]
        return Tile(axes, self.filled(array, self.shape(axes, slices)))

    def read_again(self, tile: Tile, blocks: Blocks) -> Tile:
        """A stored tile as it is read: behind the ends of its dimensions there is padding, whatever was computed."""
        ends = {axis: slice(0, self.sizes[axis] - blocks[axis].start) for axis in tile.axes if axis in blocks}
        kept = tuple(ends.get(axis, slice(None)) for axis in tile.axes)
        return Tile(tile.axes, self.filled(tile.array[kept], tile.array.shape))

    def filled(self, array: Array, shape: tuple[int, ...]) -> Array:
        """The array, filled up behind its ends to a shape."""
        if array.shape == shape:
            return array
        result = np.full(shape, self.padding, array.dtype)
        result[tuple(slice(0, extent) for extent in array.shape)] = array
        return result

    def shape(self, axes: tuple[str, ...], blocks: Blocks) -> tuple[int, ...]:
        """The extents of a tile here."""
        return tuple(blocks[axis].stop - blocks[axis].start if axis in blocks else self.sizes[axis] for axis in axes)

    def assemble(self, value: Value, kind: Type, blocks: Blocks) -> Tile:
        """A list as one tile over whole dimensions, where `blocks` says which block of a dimension is meant."""
        if isinstance(value, Tile):
            array = np.zeros(self.shape(kind.axes, blocks), value.array.dtype)
            array[...] = self.aligned(value, kind.axes)
            return Tile(kind.axes, array)
        array = self.arithmetic.full(self.shape(kind.axes, blocks), 0)
        for indices in itertools.product(*(enumerate(self.blocks(dim, {})) for dim in kind.lists)):
            element: Value = value
            for dim, (index, _) in zip(kind.lists, indices, strict=True):
                element = self.peel(element, dim, index)
            assert isinstance(element, Tile)
            chosen = {dim: block for dim, (_, block) in zip(kind.lists, indices, strict=True)}
            part = array[tuple(chosen.get(axis, slice(None)) for axis in kind.axes)]
            part[...] = self.aligned(element, kind.axes)[tuple(slice(0, extent) for extent in part.shape)]
        return Tile(kind.axes, array)

    def aligned(self, tile: Tile, axes: tuple[str, ...]) -> Array:
        """The tile's array with length-one axes where it lacks one of `axes`, ready to broadcast."""
        return tile.array.reshape(
            [tile.array.shape[tile.axes.index(axis)] if axis in tile.axes else 1 for axis in axes]
        )

    # Operators

    def elementwise(self, op: str, *tiles: Tile) -> Tile:
        """An elementwise operator on tiles that broadcast by axis name."""
        return self.once(op, tiles, lambda: self._elementwise(op, tiles))

    def _elementwise(self, op: str, tiles: tuple[Tile, ...]) -> Tile:
        axes = self.program.ordered(axis for tile in tiles for axis in tile.axes)
        return Tile(axes, self.arithmetic.elementwise(op, *(self.aligned(tile, axes) for tile in tiles)))

    def apply(self, apply: Apply, environment: Mapping[str, Value], blocks: Blocks) -> Tile:
        tiles = tuple([self.operand(arg, environment) for arg in apply.args])
        if apply.op not in STRUCTURAL:
            return self.elementwise(apply.op, *tiles)
        here = located(blocks) if apply.op in ("index", "broadcast") else ()
        what = (apply.op, apply.dims, apply.dtype, here)
        return self.once(what, tiles, lambda: self.structural(apply, tiles, blocks))

    def structural(self, apply: Apply, tiles: tuple[Tile, ...], blocks: Blocks) -> Tile:
        """An operator that is not elementwise."""
        match apply.op:
            case "index":
                (dim,) = apply.dims
                block = blocks.get(dim, slice(0, self.sizes[dim]))
                return Tile((dim,), self.arithmetic.encode(np.arange(block.start, block.stop), "i32"))
            case "broadcast":
                axes = self.program.ordered((*tiles[0].axes, *apply.dims))
                return Tile(axes, np.broadcast_to(self.aligned(tiles[0], axes), self.shape(axes, blocks)))
            case "cast":
                return Tile(tiles[0].axes, self.arithmetic.cast(tiles[0].array, apply.dtype))
            case "contract":
                return self.contract(apply.dims, *tiles)
            case _:
                return self.reduce(apply.op, apply.dims, tiles[0])

    def operand(self, operand: Operand, environment: Mapping[str, Value]) -> Tile:
        match operand:
            case str():
                value = environment[operand]
                assert isinstance(value, Tile)
                return value
            case Constant(number):
                return self.once(("constant", repr(number)), (), lambda: self.number(number, number_dtype(number)))
            case Size(dim):
                return self.once(("size", dim), (), lambda: self.number(self.sizes[dim], "i32"))
            case Expression(op, args):
                return self.elementwise(op, *(self.operand(arg, environment) for arg in args))
            case _:
                assert_never(operand)

    def number(self, number: float | int | bool, dtype: str) -> Tile:
        """A number as a tile without axes."""
        return Tile((), self.arithmetic.encode(np.asarray(number), dtype))

    def contract(self, dims: tuple[str, ...], a: Tile, b: Tile) -> Tile:
        letters = {axis: position for position, axis in enumerate(self.program.ordered((*a.axes, *b.axes)))}
        axes = tuple(axis for axis in letters if axis not in dims)
        subscripts = [[letters[axis] for axis in held] for held in (a.axes, b.axes, axes)]
        return Tile(axes, self.arithmetic.contract(a.array, subscripts[0], b.array, subscripts[1], subscripts[2]))

    def reduce(self, op: str, dims: tuple[str, ...], tile: Tile) -> Tile:
        positions = tuple(tile.axes.index(dim) for dim in dims)
        axes = tuple(axis for axis in tile.axes if axis not in dims)
        return Tile(axes, self.arithmetic.reduce(op, tile.array, positions))

    # Definitions

    def graph(self, graph: Graph, environment: dict[str, Value], blocks: Blocks, passed: frozenset[str]) -> None:
        """Execute a graph. `passed` are the lists that only accumulations read, which are never stored."""
        for definition in graph:
            self.definition(definition, environment, blocks, passed)

    def definition(
        self, definition: Definition, environment: dict[str, Value], blocks: Blocks, passed: frozenset[str]
    ) -> None:
        match definition:
            case Apply():
                environment[definition.name] = self.apply(definition, environment, blocks)
            case Map():
                self.map(definition, environment, blocks, passed)
            case Reduce(names, sources, dim, monoid):
                indices = [block.start // self.tiles[dim] for block in self.blocks(dim, blocks)]
                runs = [[self.peel(environment[source], dim, index) for source in sources] for index in indices]
                environment.update(zip(names, self.accumulate(monoid, names, runs, blocks), strict=True))
            case Rename(name, source, old, new):
                kind = self.program.types[source]
                tile = self.assemble(environment[source], kind, {})
                renamed = tuple(new if axis == old else axis for axis in tile.axes)
                target = self.program.types[name]
                array = np.transpose(tile.array, [renamed.index(axis) for axis in target.axes])
                moved = Tile(target.axes, array)
                environment[name] = Stored(target.lists, moved, ()) if target.lists else moved
            case _:
                assert_never(definition)

    def map(self, node: Map, environment: dict[str, Value], blocks: Blocks, passed: frozenset[str]) -> None:
        """Execute a map, unless it is one that an earlier run has executed on the same values in the same place."""
        place = "map", located(blocks), passed
        used = tuple([environment[name] for name in node.uses])
        compute = partial(self.mapped, node, environment, blocks, passed)
        results, loads, stores = self.once(place, (node, *used), compute)
        environment.update(results)
        self.loads.update(loads)
        self.stores.update(stores)

    def mapped(
        self, node: Map, environment: Mapping[str, Value], blocks: Blocks, passed: frozenset[str]
    ) -> tuple[dict[str, Value], Counter[str], Counter[str]]:
        """What a map gives, and the bytes that it loads and stores."""
        outside = self.loads, self.stores
        self.loads, self.stores = Counter(), Counter()
        try:
            return self.iterations(node, environment, blocks, passed), self.loads, self.stores
        finally:
            self.loads, self.stores = outside

    def iterations(
        self, node: Map, environment: Mapping[str, Value], blocks: Blocks, passed: frozenset[str]
    ) -> dict[str, Value]:
        """What a map gives, by name."""
        used = frozenset[str]().union(*[definition.uses for definition in node.body])
        body_uses = used.union(*[output.values for output in node.outputs])
        kept = used.union(*[out.values for out in node.outputs if out.monoid is None and out.names[0] not in passed])
        inside = body_uses - kept
        captured = {name: environment[name] for name in node.captures}
        runs: list[dict[str, Value]] = []
        sections = self.blocks(node.dim, blocks)
        first_read = readings(node.where)
        for block in sections:
            index = block.start // self.tiles[node.dim]
            inner = dict(captured)
            for port in node.ports:
                element = self.peel(environment[port.source], node.dim, index)
                if isinstance(element, Tile) and self.padding is not None:
                    element = self.read_again(element, {**blocks, node.dim: block})
                inner[port.name] = element
                if port.name in first_read:
                    self.load(port, element)
            if not self.takes_part(node, inner, {**blocks, node.dim: block}):
                continue
            for port in node.ports:
                if port.name in body_uses and port.name not in first_read:
                    self.load(port, inner[port.name])
            self.graph(node.body, inner, {**blocks, node.dim: block}, inside)
            runs.append(inner)
            for output in node.outputs:
                value = inner[output.values[0]]
                name = output.names[0]
                if output.monoid is None and isinstance(value, Tile) and name not in passed:
                    self.stores[name] += self.bytes(value, name)
        results: dict[str, Value] = {}
        for output in node.outputs:
            if output.monoid is None:
                first = sections[0].start // self.tiles[node.dim] if sections else 0
                results[output.names[0]] = self.stack(node.dim, tuple([run[output.values[0]] for run in runs]), first)
                continue
            values = [[run[value] for value in output.values] for run in runs]
            for index, run in enumerate(values):
                self.count_accumulation(output.names, run, index)
            results.update(zip(output.names, self.accumulate(output.monoid, output.names, values, blocks), strict=True))
        return results

    def load(self, port: Port, element: Value) -> None:
        """Count what the body loads of a port: an item; a list stays where it is."""
        if isinstance(element, Tile):
            self.loads[port.source] += self.bytes(element, port.source)

    def takes_part(self, node: Map, environment: Mapping[str, Value], blocks: Blocks) -> bool:
        """False for a block of a loop in which its condition holds nowhere."""

        def ends(term: Leaf) -> Bounds[float]:
            if isinstance(term, Index):
                block = blocks.get(term.dim, slice(0, self.sizes[term.dim]))
                return block.start, block.stop - 1
            if isinstance(term, Reading):
                table = environment[term.name]
                assert isinstance(table, Tile)
                numbers = table.array
                return (float(numbers.min()), float(numbers.max())) if numbers.size else (math.inf, -math.inf)
            number = term.value if isinstance(term, Constant) else self.sizes[term.dim]
            return number, number

        def apply(op: str, *operands: float) -> float:
            result: float = OPERATORS[op].meaning(*operands)
            return result

        return node.where is None or bool(bounds(node.where, apply, ends)[1])

    def bytes(self, tile: Tile, name: str) -> int:
        return int(tile.array.size) * DTYPES[self.program.types[name].dtype].size

    def count_accumulation(self, names: tuple[str, ...], values: list[Value], index: int) -> None:
        """Count what one iteration loads and stores of accumulated lists."""
        for name, value in zip(names, values, strict=True):
            if isinstance(value, Tile):
                continue
            moved = sum(self.bytes(tile, name) for tile in tiles_of(value))
            self.stores[name] += moved
            if index:
                self.loads[name] += moved

    def accumulate(self, monoid: str, names: tuple[str, ...], runs: list[list[Value]], blocks: Blocks) -> list[Value]:
        """The values of all iterations combined, from the identity on, one component after the other."""
        kinds = [self.program.types[name] for name in names]
        results: list[Value] = []
        for component in range(len(names)):
            # A scalar part acts on every payload alike, whatever the others are.
            parts = MONOIDS[monoid].group(component)
            chosen = [tuple(run[part] for part in parts) for run in runs]
            shapes = [kinds[part] for part in parts]
            results.append(self.combined(monoid, parts, parts.index(component), shapes, chosen, blocks))
        return results

    def combined(
        self,
        monoid: str,
        parts: tuple[int, ...],
        wanted: int,
        kinds: list[Type],
        runs: list[tuple[Value, ...]],
        blocks: Blocks,
    ) -> Value:
        """One of some components; of a list, block by block."""
        if kinds[wanted].lists:
            dim = kinds[wanted].lists[0]
            inner = [Type(kind.dtype, without(kind.lists, dim), kind.axes) for kind in kinds]
            elements = []
            sections = self.blocks(dim, blocks)
            first = sections[0].start // self.tiles[dim] if sections else 0
            for index, block in enumerate(sections, first):
                peeled = [
                    tuple(
                        self.peel(value, dim, index) if dim in kind.lists else value
                        for value, kind in zip(run, kinds, strict=True)
                    )
                    for run in runs
                ]
                elements.append(self.combined(monoid, parts, wanted, inner, peeled, {**blocks, dim: block}))
            return self.stack(dim, tuple(elements), first)
        total = tuple(
            self.full(kind.axes, self.shape(kind.axes, blocks), identity(monoid, part))
            for part, kind in zip(parts, kinds, strict=True)
        )
        for run in runs:
            tiles = tuple(value for value in run if isinstance(value, Tile))
            total = MONOIDS[monoid].combine(self.elementwise, total, tiles)
        return total[wanted]

    def stack(self, dim: str, elements: tuple[Value, ...], first: int) -> Stack:
        """A list."""
        return self.once(("stack", dim, first), elements, lambda: Stack(dim, elements, first))

    def full(self, axes: tuple[str, ...], shape: tuple[int, ...], number: float) -> Tile:
        """A tile of one number."""
        return self.once(("full", axes, shape, number), (), lambda: Tile(axes, self.arithmetic.full(shape, number)))

    def cross(self, kernel: Graph) -> None:
        """Count the items of the top graph that one launch loads, and those that it stores."""
        kinds = self.program.types
        made = {name for definition in kernel for name in definition.defines}
        used: set[str] = set()
        for definition in kernel:
            used |= definition.uses
        for name in sorted(used - made):
            if kinds[name].is_item:
                self.loads[name] += self.item_bytes(name)
        elsewhere = {result.value for result in self.program.outputs}
        for other in self.program.body:
            if made.isdisjoint(other.defines):
                elsewhere |= other.uses
        for name in sorted(made & elsewhere):
            if kinds[name].is_item:
                self.stores[name] += self.item_bytes(name)

    def item_bytes(self, name: str) -> int:
        kind = self.program.types[name]
        return int(np.prod(self.shape(kind.axes, {}), dtype=int)) * DTYPES[kind.dtype].size


def number_dtype(number: float | int | bool) -> str:
    """The element type of a constant."""
    return "bool" if isinstance(number, bool) else "i32" if isinstance(number, int) else "f64"


def located(blocks: Blocks) -> tuple[tuple[str, int, int], ...]:
    """Where the enclosing maps are, as a key."""
    return tuple([(dim, block.start, block.stop) for dim, block in blocks.items()])


def tiles_of(value: Value) -> Iterator[Tile]:
    """The tiles of a list that a map made, in order."""
    match value:
        case Tile():
            yield value
        case Stack(elements=elements):
            for element in elements:
                yield from tiles_of(element)
        case Stored():
            raise TypeError("an input cannot be accumulated")
        case _:
            assert_never(value)
