"""The interpreter: the meaning of a block program in float64, block by block, counting every load and store.

It is the oracle of the rewrite rules: slow, direct, and independent of the emitters and of the cost model. Traffic is
counted as design section 4 defines it, in bytes of the declared types, per value and per direction. An accumulated list
is stored in every iteration and loaded in all but the first; the lists that feed it are never stored themselves.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import assert_never

import numpy as np

from blockc.ir.arithmetic import FLOAT64, Arithmetic, Array
from blockc.ir.array_program import Argument
from blockc.ir.block import (
    STRUCTURAL,
    Apply,
    Condition,
    Constant,
    Definition,
    Expression,
    Graph,
    Map,
    Operand,
    Port,
    Program,
    Reduce,
    Rename,
    Size,
    Type,
    element_type,
    kernels,
    roots,
    without,
)
from blockc.ir.conditions import readings
from blockc.ir.dtypes import DTYPES
from blockc.ir.monoids import MONOIDS, identity
from blockc.ir.sharing import Once, Shared, once
from blockc.ir.tile_operators import Blocks, Tile, TileOperators, aligned, cut, extent


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
Place = tuple[tuple[str, int, int], ...]  # the blocks of the maps around
PLACED = frozenset({"index", "broadcast"})  # operators whose result depends on it


Moves = list["tuple[str, str, int] | Moves"]
"""What was moved: "load" or "store", a name and a number of elements; what a map inside moved stands as one."""


@dataclass(frozen=True)
class Run:
    """The outputs, in declared axis order, and all moves between them and the inputs."""

    outputs: dict[str, Array]
    program: Program
    sizes: Mapping[str, int]
    moves: Moves

    @cached_property
    def loads(self) -> Counter[str]:
        """The bytes loaded per list of the outermost graph."""
        return self.moved("load")

    @cached_property
    def stores(self) -> Counter[str]:
        """The bytes stored per list of the outermost graph."""
        return self.moved("store")

    def moved(self, wanted: str) -> Counter[str]:
        """The bytes moved in a direction."""
        origin, types, total = roots(self.program), self.program.types, Counter[str]()
        crossing = (move for kernel in kernels(self.program) for move in cross(self.program, kernel, self.sizes))
        for direction, name, elements in (*crossing, *flat(self.moves)):
            if direction == wanted:
                total[origin.get(name, name)] += elements * DTYPES[types[name].dtype].size
        return total

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
    known, blocks = cut(program, sizes, tiles)
    if shared is not None:
        shared.bind((program.dims, known, blocks, padding, arithmetic))
    machine = _Interpreter(program, known, blocks, padding, arithmetic, once if shared is None else shared.once)
    environment: dict[str, Value] = {}
    for entry in program.inputs:
        kind = program.input_types[entry.name]
        environment[entry.name] = machine.stored(entry.dims, arrays[entry.argument], kind)
    with np.errstate(all="ignore"):
        machine.graph(program.body, environment, {}, frozenset())
    outputs = {}
    for result in program.outputs:
        value, kind, argument = environment[result.value], program.types[result.value], result.argument
        outputs[argument.name] = machine.once((argument, kind), (value,), machine.output, argument, value, kind)
    return Run(outputs, program, known, machine.moves)


@dataclass(slots=True)
class _Interpreter:
    program: Program
    sizes: dict[str, int]
    tiles: dict[str, int]
    padding: float | None
    arithmetic: Arithmetic
    once: Once
    moves: Moves = field(default_factory=list)  # of loads the name that a map reads, of stores the one that it gives
    operators: TileOperators = field(init=False)

    def __post_init__(self) -> None:
        self.operators = TileOperators(self.program, self.sizes, self.arithmetic)

    # Values

    def stored(self, dims: tuple[str, ...], array: Array, kind: Type) -> Value:
        """An argument as a value: packed axes taken apart, axes in canonical order, in the interpreter's arithmetic."""
        return self.once(("argument", dims, kind), (array,), self._stored, dims, array, kind)

    def _stored(self, dims: tuple[str, ...], array: Array, kind: Type) -> Value:
        unpacked = np.asarray(array).reshape([self.sizes[dim] for dim in dims])
        ordered = np.transpose(unpacked, [dims.index(dim) for dim in kind.axes])
        tile = Tile(kind.axes, self.arithmetic.encode(ordered, kind.dtype))
        return Stored(kind.lists, tile, ()) if kind.lists else tile

    def blocks(self, dim: str, around: Blocks) -> list[slice]:
        """The blocks of a dimension, of the current chunk if a map around has chunks of it; the last may be short."""
        bounds = extent(self.program, self.sizes, dim, around)
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
                return self.once(("peel", dim, index), (value,), self.peeled, value, dim, index)
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
        return Tile(axes, self.filled(array, self.operators.shape(axes, slices)))

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
        result[tuple(slice(0, length) for length in array.shape)] = array
        return result

    def assemble(self, value: Value, kind: Type, blocks: Blocks) -> Tile:
        """A list as one tile over whole dimensions, where `blocks` says which block of a dimension is meant."""
        if isinstance(value, Tile):
            array = np.zeros(self.operators.shape(kind.axes, blocks), value.array.dtype)
            array[...] = aligned(value, kind.axes)
            return Tile(kind.axes, array)
        array = self.arithmetic.full(self.operators.shape(kind.axes, blocks), 0)
        for indices in itertools.product(*(enumerate(self.blocks(dim, {})) for dim in kind.lists)):
            element: Value = value
            for dim, (index, _) in zip(kind.lists, indices, strict=True):
                element = self.peel(element, dim, index)
            assert isinstance(element, Tile)
            chosen = {dim: block for dim, (_, block) in zip(kind.lists, indices, strict=True)}
            part = array[tuple(chosen.get(axis, slice(None)) for axis in kind.axes)]
            part[...] = aligned(element, kind.axes)[tuple(slice(0, length) for length in part.shape)]
        return Tile(kind.axes, array)

    def output(self, argument: Argument, value: Value, kind: Type) -> Array:
        """What an argument gets: a value in the order of its dimensions, with axes packed as declared."""
        tile = self.assemble(value, kind, {})
        array = np.transpose(tile.array, [tile.axes.index(dim) for dim in argument.dims])
        return array.reshape([math.prod(self.sizes[dim] for dim in axis) for axis in argument.axes])

    # Operators

    def elementwise(self, op: str, *tiles: Tile) -> Tile:
        """An elementwise operator on tiles that broadcast by axis name."""
        return self.once(op, tiles, self.operators.elementwise, op, *tiles)

    def apply(self, apply: Apply, environment: Mapping[str, Value], blocks: Blocks) -> Tile:
        """An operator, unless it is one that an earlier run has applied to the same values."""
        here = located(blocks) if apply.op in PLACED else ()
        used = [environment[name] for name in apply.uses]
        return self.once(here, (apply, *used), self.applied, apply, environment, blocks, here)

    def applied(self, apply: Apply, environment: Mapping[str, Value], blocks: Blocks, here: Place) -> Tile:
        """What an operator gives."""
        tiles = tuple([self.operand(arg, environment) for arg in apply.args])
        if apply.op not in STRUCTURAL:
            return self.elementwise(apply.op, *tiles)
        what = (apply.op, apply.dims, apply.dtype, here)
        return self.once(what, tiles, self.operators.structural, apply, tiles, blocks)

    def operand(self, operand: Operand, environment: Mapping[str, Value]) -> Tile:
        match operand:
            case str():
                value = environment[operand]
                assert isinstance(value, Tile)
                return value
            case Constant(number):
                return self.once(("constant", repr(number)), (), self.operators.number, number)
            case Size(dim):
                return self.once(("size", dim), (), self.operators.number, self.sizes[dim])
            case Expression(op, args):
                return self.elementwise(op, *[self.operand(arg, environment) for arg in args])
            case _:
                assert_never(operand)

    # Definitions

    def graph(self, graph: Graph, environment: dict[str, Value], blocks: Blocks, passed: frozenset[str]) -> None:
        """Execute a graph. `passed` are the lists that only accumulations read, which are never stored."""
        for definition in graph:
            if type(definition) is Apply:  # most are
                environment[definition.name] = self.apply(definition, environment, blocks)
            else:
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
        used = [environment[name] for name in node.uses]
        results, moves = self.once(place, (node, *used), self.mapped, node, environment, blocks, passed)
        environment.update(results)
        self.moves.append(moves)

    def mapped(
        self, node: Map, environment: Mapping[str, Value], blocks: Blocks, passed: frozenset[str]
    ) -> tuple[dict[str, Value], Moves]:
        """What a map gives, and what it moves."""
        outside, self.moves = self.moves, []
        try:
            return self.iterations(node, environment, blocks, passed), self.moves
        finally:
            self.moves = outside

    def iterations(
        self, node: Map, environment: Mapping[str, Value], blocks: Blocks, passed: frozenset[str]
    ) -> dict[str, Value]:
        """What a map gives, by name."""
        used = frozenset[str]().union(*[definition.uses for definition in node.body])
        body_uses = used.union(*[output.values for output in node.outputs])
        stored = [out for out in node.outputs if out.monoid is None and out.names[0] not in passed]
        inside = body_uses - used.union(*[output.values for output in stored])
        captured = {name: environment[name] for name in node.captures}
        runs: list[dict[str, Value]] = []
        sections = self.part(node.part, self.blocks(node.dim, blocks))
        types, first_read = self.program.types, readings(node.where)
        # The others have a list, of which a chunk is looked at.
        peeled = {port.name for port in node.ports if node.dim in types[port.source].lists}
        for block in sections:
            index = block.start // self.tiles[node.dim]
            here = {**blocks, node.dim: block}
            inner = dict(captured)
            for port in node.ports:
                element = environment[port.source]
                if port.name in peeled:
                    element = self.peel(element, node.dim, index)
                if self.padding is not None and isinstance(element, Tile):
                    element = self.read_again(element, here)
                inner[port.name] = element
                if port.name in first_read:
                    self.load(port, element)
            if node.where is not None and not self.takes_part(node.where, inner, here):
                continue
            for port in node.ports:
                if port.name in body_uses and port.name not in first_read:
                    self.load(port, inner[port.name])
            self.graph(node.body, inner, here, inside)
            runs.append(inner)
            for output in stored:
                value = inner[output.values[0]]
                if isinstance(value, Tile):
                    self.moves.append(("store", output.names[0], value.array.size))
        results: dict[str, Value] = {}
        for output in node.outputs:
            if output.monoid is None:
                elements = tuple([run[output.values[0]] for run in runs])
                base = self.program.chunks.get(node.dim)
                if base is not None and base in self.program.types[output.values[0]].lists and elements:
                    results[output.names[0]] = self.joined(base, elements)
                    continue
                first = sections[0].start // self.tiles[node.dim] if sections else 0
                results[output.names[0]] = self.stack(node.dim, elements, first)
                continue
            values = [[run[value] for value in output.values] for run in runs]
            for index, run in enumerate(values):
                self.note_accumulation(output.names, run, index)
            if output.starts:
                values = [[environment[start] for start in output.starts], *values]
            results.update(zip(output.names, self.accumulate(output.monoid, output.names, values, blocks), strict=True))
        return results

    def part(self, part: str, blocks: list[slice]) -> list[slice]:
        """The blocks of a part of a loop."""
        match part:
            case "first":
                return blocks[:1]
            case "rest":
                return blocks[1:]
            case _:
                return blocks

    def load(self, port: Port, element: Value) -> None:
        """Note what the body loads of a port: an item; a list stays where it is."""
        if isinstance(element, Tile):
            self.moves.append(("load", port.source, element.array.size))

    def takes_part(self, where: Condition, environment: Mapping[str, Value], blocks: Blocks) -> bool:
        """False for a block of a loop in which its condition holds nowhere."""
        tables = {name: table for name in readings(where) if isinstance(table := environment[name], Tile)}
        return self.operators.may_hold(where, tables, blocks)

    def note_accumulation(self, names: tuple[str, ...], values: list[Value], index: int) -> None:
        """Note what one iteration loads and stores of accumulated lists."""
        for name, value in zip(names, values, strict=True):
            if isinstance(value, Tile):
                continue
            elements = sum(tile.array.size for tile in tiles_of(value))
            self.moves.append(("store", name, elements))
            if index:
                self.moves.append(("load", name, elements))

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
            inner = [element_type(kind, dim) for kind in kinds]
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
        shapes = tuple([(kind.axes, self.operators.shape(kind.axes, blocks)) for kind in kinds])
        values = tuple([value for run in runs for value in run])
        return self.once((monoid, parts, wanted, shapes), values, self.items, monoid, parts, wanted, shapes, runs)

    def items(
        self,
        monoid: str,
        parts: tuple[int, ...],
        wanted: int,
        shapes: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...],
        runs: list[tuple[Value, ...]],
    ) -> Tile:
        """One of some components that are items."""
        total = tuple(
            self.full(axes, shape, identity(monoid, part)) for part, (axes, shape) in zip(parts, shapes, strict=True)
        )
        for run in runs:
            tiles = tuple(value for value in run if isinstance(value, Tile))
            total = MONOIDS[monoid].combine(self.elementwise, total, tiles)
        return total[wanted]

    def stack(self, dim: str, elements: tuple[Value, ...], first: int) -> Stack:
        """A list."""
        return self.once(("stack", dim, first), elements, Stack, dim, elements, first)

    def joined(self, dim: str, chunks: tuple[Value, ...]) -> Stack:
        """The lists of neighbouring chunks of a dimension as one list."""
        parts = [chunk for chunk in chunks if isinstance(chunk, Stack)]
        first = parts[0]
        if first.dim == dim:
            return self.stack(dim, tuple([element for part in parts for element in part.elements]), first.first)
        inner = zip(*(part.elements for part in parts), strict=True)
        return self.stack(first.dim, tuple([self.joined(dim, elements) for elements in inner]), first.first)

    def full(self, axes: tuple[str, ...], shape: tuple[int, ...], number: float) -> Tile:
        """A tile of one number."""
        return self.once(("full", axes, shape, number), (), self._full, axes, shape, number)

    def _full(self, axes: tuple[str, ...], shape: tuple[int, ...], number: float) -> Tile:
        return Tile(axes, self.arithmetic.full(shape, number))


def flat(moves: Moves) -> Iterator[tuple[str, str, int]]:
    """All moves, those of maps inside too."""
    for move in moves:
        if isinstance(move, list):
            yield from flat(move)
        else:
            yield move


def cross(program: Program, kernel: Graph, sizes: Mapping[str, int]) -> Iterator[tuple[str, str, int]]:
    """The items of the top graph that one launch loads, and those that it stores."""
    made = {name for definition in kernel for name in definition.defines}
    used = {name for definition in kernel for name in definition.uses}
    elsewhere = {result.value for result in program.outputs}
    for other in program.body:
        if made.isdisjoint(other.defines):
            elsewhere |= other.uses
    for direction, names in (("load", used - made), ("store", made & elsewhere)):
        for name in sorted(names):
            if program.types[name].is_item:
                yield direction, name, math.prod(sizes[axis] for axis in program.types[name].axes)


def located(blocks: Blocks) -> Place:
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
