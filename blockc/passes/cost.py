"""What a block program moves and computes: exact formulas in the sizes of dimensions and their numbers of blocks.

Traffic follows design section 4: a port or stacked output whose element is an item moves one tile per execution of the
body; an accumulated list is stored in every iteration of its loop and loaded in all but the first, and what is stacked
only to be accumulated is not stored; nothing else moves, except the items of the top graph between launches. Since the
tiles of all blocks of a dimension add up to its size, a product of sizes (for axes) and block counts (for other
enclosing maps) is exact. Chunks are whole blocks: maps over both count as one over the blocks. Inside loops that leave
out blocks, those that are left are counted, block by block.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import (
    REDUCTIONS,
    Apply,
    Condition,
    Expression,
    Graph,
    Map,
    Operand,
    Output,
    Program,
    kernels,
    roots,
)
from blockc.ir.conditions import positions, readings
from blockc.ir.dtypes import DTYPES
from blockc.ir.ops import OPERATORS
from blockc.ir.parallel import nested_maps
from blockc.ir.plan import Cost
from blockc.passes.live_blocks import NO_TABLES, Arrays, Tables, live, tables_of

if TYPE_CHECKING:
    import sympy


@dataclass(frozen=True, slots=True)
class Part:
    """The "first" block of a dimension, or the "rest" of its blocks; of every chunk, for chunks of it around."""

    dim: str
    kind: str
    chunk: str | None

    def elements(self, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> int:
        """The elements along the dimension."""
        size, tile = sizes[self.dim], tiles[self.dim]
        long = size if self.chunk is None else tiles[self.chunk]
        first = size // max(1, long) * min(tile, long) + min(tile, size % max(1, long))
        return first if self.kind == "first" else size - first

    def blocks(self, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> int:
        """The number of blocks."""
        size = sizes[self.dim]
        first = min(1, size) if self.chunk is None else -(-size // tiles[self.chunk])
        return first if self.kind == "first" else -(-size // tiles[self.dim]) - first

    def symbols(self) -> tuple[sympy.Expr, sympy.Expr]:
        """Both as formulas: first(x) are the elements of the first block of x, or of the first blocks of its chunks."""
        import sympy

        size, blocks = _symbol(self.dim), _symbol(f"B_{self.dim}")
        first = sympy.Function("first")(size)
        number = sympy.Integer(1) if self.chunk is None else _symbol(f"B_{self.chunk}")
        return (first, number) if self.kind == "first" else (size - first, blocks - number)


def _symbol(name: str) -> sympy.Symbol:
    import sympy

    return sympy.Symbol(name, integer=True, nonnegative=True)


@dataclass(frozen=True, slots=True)
class Count:
    """A number of elements: the sizes of `sizes` times the numbers of blocks of `blocks`, times `times`.

    `again` are dimensions whose first block does not count. `where` are the conditions of the loops around: only blocks
    in which each may hold count. Of one dimension only a `part` may count, on which there are no conditions.
    """

    sizes: tuple[str, ...]
    blocks: tuple[str, ...]
    times: int = 1
    again: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()
    part: Part | None = None

    def value(self, sizes: Mapping[str, int], tiles: Mapping[str, int], tables: Tables = NO_TABLES) -> int:
        """The number, for sizes and tiles in elements."""
        bounded = self.bounded.intersection(tiles)
        cut = None if self.part is None else self.part.dim
        whole = math.prod(sizes[dim] for dim in self.sizes if dim not in bounded and dim != cut)
        repeats = math.prod(-(-sizes[dim] // tiles[dim]) for dim in self.blocks if dim not in bounded and dim != cut)
        if self.part is not None:
            whole *= self.part.elements(sizes, tiles) if cut in self.sizes else 1
            repeats *= self.part.blocks(sizes, tiles) if cut in self.blocks else 1
        further = math.prod(max(0, -(-sizes[dim] // tiles[dim]) - 1) for dim in self.again)
        number = self.times * whole * repeats * further
        if not self.where:
            return number
        return number * live(self.where, bounded.intersection(self.sizes), sizes, tiles, tables)

    @property
    def bounded(self) -> frozenset[str]:
        """The dimensions whose positions the conditions are about."""
        return frozenset(dim for condition in self.where for dim in positions(condition))

    def symbol(self) -> sympy.Expr:
        """The number as a formula, for dimensions that are not empty: a size is the name of its dimension, B_x the
        number of blocks of x, and live(...) what conditions leave of a product of them."""
        import sympy

        names = [(dim, dim) for dim in self.sizes] + [(dim, f"B_{dim}") for dim in self.blocks]
        cut = None if self.part is None else self.part.dim
        symbols = [(dim, _symbol(name)) for dim, name in names if dim != cut]
        further = [_symbol(f"B_{dim}") - 1 for dim in self.again]
        if self.part is not None:
            elements, blocks = self.part.symbols()
            further += [elements] * (cut in self.sizes) + [blocks] * (cut in self.blocks)
        free = sympy.Mul(self.times, *(symbol for dim, symbol in symbols if dim not in self.bounded), *further)
        left = sympy.Mul(*(symbol for dim, symbol in symbols if dim in self.bounded))
        return free * sympy.Function("live")(left) if self.where else free


@dataclass(frozen=True, slots=True)
class Movement:
    """Elements of one value loaded or stored (`direction`), of `itemsize` bytes each, `at` a port, an output (by its
    first name) or an item of the top graph."""

    value: str
    direction: str
    itemsize: int
    count: Count
    at: str


def movements(program: Program) -> tuple[Movement, ...]:
    """Everything that moves between slow and local memory."""
    names = roots(program)
    return (*_items(program, kernels(program)), *_of_graph(program, program.body, (), names, frozenset()))


def _items(program: Program, groups: tuple[Graph, ...]) -> Iterator[Movement]:
    """The items of the top graph that launches load and store."""
    outputs = {result.value for result in program.outputs}
    readers: dict[str, set[str]] = {}  # of each name, by what they define
    for definition in program.body:
        for name in definition.uses:
            readers.setdefault(name, set()).update(definition.defines)
    for group in groups:
        made = {name for definition in group for name in definition.defines}
        used = {name for definition in group for name in definition.uses}
        elsewhere = {name for name in made if name in outputs or not readers.get(name, made) <= made}
        for name in sorted(used - made):
            if program.types[name].is_item:
                yield _movement(program, name, name, "load", ())
        for name in sorted(elsewhere):
            if program.types[name].is_item:
                yield _movement(program, name, name, "store", ())


def _movement(
    program: Program,
    name: str,
    root: str,
    direction: str,
    mapped: tuple[str, ...],
    where: tuple[Condition, ...] = (),
    part: Part | None = None,
    at: str = "",
) -> Movement:
    kind = program.types[name]
    count = Count(kind.axes, repeating(program, mapped, kind.axes), where=where, part=part)
    return Movement(root, direction, DTYPES[kind.dtype].size, count, at or name)


def part_of(program: Program, node: Map, mapped: tuple[str, ...]) -> Part | None:
    """Which part of a loop a map inside others is; None for all of it."""
    if node.part == "all":
        return None
    return Part(node.dim, node.part, next((dim for dim in mapped if program.chunks.get(dim) == node.dim), None))


def repeating(program: Program, mapped: tuple[str, ...], axes: Collection[str]) -> tuple[str, ...]:
    """The dimensions of enclosing maps, outermost first, whose blocks repeat what has these axes (or, of a list, these
    dimensions). A chunk repeats nothing that has the dimension: it has its part of it."""
    chunks = program.chunks
    innermost = {chunks.get(dim, dim): dim for dim in mapped}
    return tuple(
        dim
        for dim in mapped
        if innermost[chunks.get(dim, dim)] == dim and dim not in axes and chunks.get(dim, dim) not in axes
    )


def _of_graph(
    program: Program,
    graph: Graph,
    mapped: tuple[str, ...],
    names: Mapping[str, str],
    fed: frozenset[str],
    where: tuple[Condition, ...] = (),
) -> Iterator[Movement]:
    """What the maps of a graph move. `fed` are its lists that accumulations take item by item: they lie nowhere."""
    for node in graph:
        if not isinstance(node, Map):
            continue
        inside = (*mapped, node.dim)
        within = where if node.where is None else (*where, node.where)
        read = {value for output in node.outputs for value in output.values}.union(*(d.uses for d in node.body))
        for port in node.ports:
            if program.types[port.name].is_item and port.name in read:
                around = where if port.name in readings(node.where) else within  # the condition is read in every block
                part = part_of(program, node, mapped)
                yield _movement(program, port.name, names[port.name], "load", inside, around, part)
        yield from _of_graph(program, node.body, inside, names, _feeding(node, fed), within)
        for output in node.outputs:
            root = names.get(output.names[0], output.names[0])
            if output.monoid is not None:
                yield from _accumulated(program, output, mapped, node.dim, names, where)
            elif program.types[output.values[0]].is_item and output.names[0] not in fed:
                yield _movement(program, output.values[0], root, "store", inside, within, at=output.names[0])


def _feeding(node: Map, fed: frozenset[str]) -> frozenset[str]:
    """The values of a map's body that are accumulated, or part of what is, and read by nothing else."""
    elsewhere = {name for definition in node.body for name in definition.uses}
    taken: set[str] = set()
    for output in node.outputs:
        stored = output.monoid is None and output.names[0] not in fed
        (elsewhere if stored else taken).update(output.values)
    return frozenset(taken - elsewhere)


def _accumulated(
    program: Program,
    output: Output,
    mapped: tuple[str, ...],
    dim: str,
    names: Mapping[str, str],
    where: tuple[Condition, ...],
) -> Iterator[Movement]:
    """What a loop over `dim` moves of lists that it accumulates: all items, in every iteration."""
    for name in output.names:
        kind = program.types[name]
        if not kind.is_item:
            lists = tuple(other for other in kind.lists if other not in kind.axes)
            root, size, at = names.get(name, name), DTYPES[kind.dtype].size, output.names[0]
            around = (*repeating(program, mapped, (*kind.axes, *lists)), *lists)
            stores = Count(kind.axes, (*repeating(program, (*mapped, dim), (*kind.axes, *lists)), *lists), where=where)
            if any(program.chunks.get(other) == dim for other in mapped):  # the first time in every chunk
                yield Movement(root, "load", size, stores, at)
                yield Movement(root, "load", size, replace(stores, blocks=around, times=-1), at)
            else:
                yield Movement(root, "load", size, Count(kind.axes, around, again=(dim,), where=where), at)
            yield Movement(root, "store", size, stores, at)


def traffic_formula(program: Program) -> sympy.Expr:
    """All bytes moved, as a formula in sizes and block counts."""
    import sympy

    return sympy.Add(*(movement.itemsize * movement.count.symbol() for movement in movements(program)))


def traffic(
    program: Program, sizes: Mapping[str, int], tiles: Mapping[str, int], arrays: Arrays | None = None
) -> dict[tuple[str, str], int]:
    """Bytes by value and direction. Conditions that read inputs leave out what they do for `arrays`, or nothing."""
    sizes = complete_sizes(program, sizes)
    tables = NO_TABLES if arrays is None else tables_of(program, sizes, arrays)
    result: dict[tuple[str, str], int] = {}
    for movement in movements(program):
        key = (movement.value, movement.direction)
        result[key] = result.get(key, 0) + movement.itemsize * movement.count.value(sizes, tiles, tables)
    return result


def work(
    program: Program, sizes: Mapping[str, int], tiles: Mapping[str, int], arrays: Arrays | None = None
) -> tuple[int, int]:
    """Arithmetic operations and special functions, with all repeats, for `arrays` or whatever they are."""
    sizes = complete_sizes(program, sizes)
    tables = NO_TABLES if arrays is None else tables_of(program, sizes, arrays)
    return _work_of(program, program.body, sizes, tiles, tables)


def launch_figures(
    program: Program, launch: Graph, sizes: Mapping[str, int], tiles: Mapping[str, int]
) -> tuple[int, int, int]:
    """Bytes that some definitions of the top graph move if they are one launch, their operations and special
    functions."""
    sizes = complete_sizes(program, sizes)
    moved = (*_items(program, (launch,)), *_of_graph(program, launch, (), roots(program), frozenset()))
    total = sum(movement.itemsize * movement.count.value(sizes, tiles) for movement in moved)
    return total, *_work_of(program, launch, sizes, tiles, NO_TABLES)


def _work_of(
    program: Program, graph: Graph, sizes: Mapping[str, int], tiles: Mapping[str, int], tables: Tables
) -> tuple[int, int]:
    flops = special = 0
    for apply, mapped, where, part in _applies(program, graph, (), ()):
        axes = set(program.types[apply.name].axes).union(*(program.types[name].axes for name in apply.uses))
        blocks = repeating(program, mapped, axes)
        elements = Count(tuple(axes), blocks, where=where, part=part).value(sizes, tiles, tables)
        own, own_special = per_element(apply)
        flops += elements * own
        special += elements * own_special
    return flops, special


def _applies(
    program: Program,
    graph: Graph,
    mapped: tuple[str, ...],
    where: tuple[Condition, ...],
    part: Part | None = None,
) -> Iterator[tuple[Apply, tuple[str, ...], tuple[Condition, ...], Part | None]]:
    """The tile operators with the dimensions of the maps around, the conditions of those maps, and the part of a loop
    that the innermost one is."""
    for definition in graph:
        if isinstance(definition, Apply):
            yield definition, mapped, where, part
        elif isinstance(definition, Map):
            within = where if definition.where is None else (*where, definition.where)
            inside = (*mapped, definition.dim)
            yield from _applies(program, definition.body, inside, within, part_of(program, definition, mapped))


def per_element(apply: Apply) -> tuple[int, int]:
    """Operations and special functions for one element of the (unreduced) operands."""
    if apply.op in REDUCTIONS:
        nested = [_nested(arg) for arg in apply.args]
        return (2 if apply.op == "contract" else 1) + sum(f for f, _ in nested), sum(s for _, s in nested)
    if apply.op in OPERATORS:
        return _nested(Expression(apply.op, apply.args))
    return 0, 0


def _nested(operand: Operand) -> tuple[int, int]:
    if not isinstance(operand, Expression) or not _has_names(operand):
        return 0, 0
    operator = OPERATORS[operand.op]
    times = len(operand.args) - 1 if operator.arity is None else 1
    parts = [_nested(arg) for arg in operand.args]
    return operator.flops * times + sum(f for f, _ in parts), operator.special + sum(s for _, s in parts)


def _has_names(operand: Operand) -> bool:
    return isinstance(operand, str) or (isinstance(operand, Expression) and any(map(_has_names, operand.args)))


def local_bytes(program: Program, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> int:
    """The peak of the bytes of live tiles in one worker: an item lives from its definition to its last use."""
    sizes = complete_sizes(program, sizes)

    def size(name: str) -> int:
        kind = program.types[name]
        if not kind.is_item:
            return 0
        extents = (min(sizes[axis], tiles.get(axis, sizes[axis])) for axis in kind.axes)
        return math.prod(extents) * DTYPES[kind.dtype].size

    def peak(graph: Graph, kept: frozenset[str], ports: tuple[str, ...]) -> int:
        """The peak in a graph at whose end `kept` is still needed."""
        last: dict[str, int] = {}
        for position, definition in enumerate(graph):
            for name in (*definition.uses, *definition.defines):
                last[name] = position
        for name in kept:
            last[name] = len(graph)
        live = {name: size(name) for name in ports}
        highest = sum(live.values())
        for position, definition in enumerate(graph):
            inner = 0
            if isinstance(definition, Map):
                own = frozenset(value for output in definition.outputs for value in output.values)
                inner = peak(definition.body, own, tuple(port.name for port in definition.ports))
            live.update({name: size(name) for name in definition.defines})
            highest = max(highest, sum(live.values()) + inner)
            live = {name: held for name, held in live.items() if last.get(name, position) > position}
        return highest

    return peak(program.body, frozenset(), ())


def buffered_lists(program: Program) -> tuple[str, ...]:
    """The lists in slow memory that are neither an input nor an output of the program, by their outermost name.

    Accumulated lists are among them; what is stacked only to be accumulated is not.
    """
    names = roots(program)
    outputs = {result.value for result in program.outputs}
    found = (names.get(name, name) for name in _lists(program, program.body, frozenset()))
    return tuple(dict.fromkeys(root for root in found if root not in outputs))


def _lists(program: Program, graph: Graph, fed: frozenset[str]) -> Iterator[str]:
    for definition in graph:
        yield from (name for name in definition.defines if program.types[name].lists and name not in fed)
        if isinstance(definition, Map):
            yield from _lists(program, definition.body, _feeding(definition, fed))


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine does in a second, all its parallel units together: bytes, operations, special functions; and
    seconds for one launch."""

    bytes: float
    flops: float
    special: float
    launch: float
    units: int


# A nominal two-core CPU: a fixed yardstick for comparing snapshots, not a measurement of this machine.
NOMINAL = Rates(bytes=2e10, flops=2e11, special=2e9, launch=2e-5, units=2)


def cost(
    program: Program,
    sizes: Mapping[str, int],
    tiles: Mapping[str, int],
    rates: Rates = NOMINAL,
    arrays: Arrays | None = None,
) -> Cost:
    """All figures of a program. `tiles` must have every dimension that is cut. Loops that leave out blocks by what an
    input holds are counted for `arrays`; without, as if they left out none."""
    moved = traffic(program, sizes, tiles, arrays)
    flops, special = work(program, sizes, tiles, arrays)
    launches = len(kernels(program))
    slowest = max(sum(moved.values()) / rates.bytes, flops / rates.flops, special / rates.special)
    seconds = slowest + launches * rates.launch
    local = local_bytes(program, sizes, tiles)
    return Cost(launches, buffered_lists(program), moved, flops, special, local, seconds)


def cost_for(
    figures: Cost, program: Program, sizes: Mapping[str, int], tiles: Mapping[str, int], arrays: Arrays
) -> Cost:
    """The figures of a program for these inputs, whose numbers may bound its loops."""
    return cost(program, sizes, tiles, arrays=arrays) if tables_of(program, sizes, arrays) else figures


def tasks(program: Program, kernel: Graph, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> int:
    """The blocks of a kernel that may be computed at the same time."""
    sizes = complete_sizes(program, sizes)
    maps = [nested_maps(program, node) for node in kernel if isinstance(node, Map) and not node.is_loop]
    counts = (math.prod(_blocks(program, node, sizes, tiles) for node in chain) for chain in maps)
    return max(counts, default=1)


def _blocks(program: Program, node: Map, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> int:
    return -(-sizes[program.chunks.get(node.dim, node.dim)] // tiles[node.dim])


def idleness(program: Program, sizes: Mapping[str, int], tiles: Mapping[str, int], rates: Rates = NOMINAL) -> float:
    """How many times as long a program takes as if its kernels had tasks for all units, all the time."""
    sizes = complete_sizes(program, sizes)
    ideal = taken = 0.0
    for kernel in kernels(program):
        flops, special = _work_of(program, kernel, sizes, tiles, NO_TABLES)
        seconds = flops / rates.flops + special / rates.special
        parts = tasks(program, kernel, sizes, tiles)
        ideal += seconds
        taken += seconds * -(-parts // rates.units) * rates.units / parts if parts else 0.0
    return taken / ideal if ideal else 1.0
