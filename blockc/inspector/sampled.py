"""Values by what they are on a sample of elements: two formulas that mean the same have the same number.

Every dimension has a few elements, inputs are random, several times, and every loop has one iteration. So a block
program is a list of tile operators on arrays with named axes: ports, stacked and accumulated outputs and reductions
over blocks only hand values on. A copy of an operator has the number of the original, and a rewrite by algebra keeps
the numbers of what it does not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np

from blockc.ir.arithmetic import FLOAT64, Array
from blockc.ir.array_program import ArrayProgram, Dim, Node
from blockc.ir.block import REDUCTIONS, Apply, Constant, Expression, Graph, Map, Operand, Program, Reduce, Rename, Size
from blockc.ir.dtypes import DTYPES
from blockc.ir.ops import OPERATORS, Result

CLOSE, LEAST = 1e-9, 1e-13  # what rounding may change: of a value, and of one that is zero but for rounding
SEVERAL, FEW = (4, 3, 5), (3, 2)  # elements of dimensions, in turn: of up to so many dimensions, and of more
MANY = 6
MOST_NAMES = 16  # under which a value is looked for
TIMES = 4  # random inputs: the first axis of all arrays
SPREAD = (0, 9, 60, 300, 1100)  # positions of the elements in the sample, roughly: masks compare positions
LABELS = (-3, 6)  # integers of inputs, so that some are equal

Number = int  # of a value: equal values have the same
Axes = tuple[str, ...]  # sorted by name


@dataclass(slots=True)
class Sampled:
    """The values of one array program, and of block programs that were made of it."""

    program: ArrayProgram
    extents: dict[str, int] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)  # a dimension to the first that has the same elements
    places: dict[str, int] = field(default_factory=dict)  # of inputs, in declared order
    arrays: list[tuple[Axes, Array]] = field(default_factory=list)
    known: dict[object, Number] = field(default_factory=dict)
    _alike: dict[tuple[object, ...], tuple[list[Number], Array]] = field(default_factory=dict)
    _random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.places = {argument.name: at for at, argument in enumerate(self.program.inputs)}
        renames = [node.dims for node in self.program.nodes if node.op == "rename"]
        self.same = {dim.name: dim.name for dim in self.program.dims}
        pairs = [*renames, *((dim.name, dim.same_as) for dim in self.program.dims if dim.same_as in self.same)]
        for old, new in pairs:
            first, second = sorted((self.same[old], self.same[str(new)]))
            self.same = {dim: first if of == second else of for dim, of in self.same.items()}
        groups = list(dict.fromkeys(self.same.values()))
        counts = SEVERAL if len(groups) <= MANY else FEW
        extents = {group: counts[at % len(counts)] for at, group in enumerate(groups)}
        self.extents = {dim: extents[group] for dim, group in self.same.items()}

    # Numbers of values

    def number_of(self, axes: Axes, array: Array) -> Number:
        """The number of a value. What is not a number in one of two values proves nothing about them, and truth values
        are too often equal by chance to be the same for that."""
        flat = np.broadcast_to(array, self._shape(axes)).astype(np.float64).reshape(-1)
        self.arrays.append((axes, array))
        if array.dtype.kind == "b":
            return len(self.arrays) - 1
        numbers, table = self._alike.get(axes, ([], np.empty((8, flat.size))))
        found = _first_equal(table[: len(numbers)], flat)
        if found is not None:
            self.arrays.pop()
            return numbers[found]
        if len(numbers) == len(table):
            table = np.concatenate((table, np.empty_like(table)))
        table[len(numbers)] = flat
        numbers.append(len(self.arrays) - 1)
        self._alike[axes] = numbers, table
        return numbers[-1]

    def fresh(self, like: Number) -> Number:
        """A value that depends on nothing, with the axes of another one."""
        axes, array = self.arrays[like]
        shape = self._shape(axes)
        other = self._random.random(shape) < 0.5 if array.dtype.kind == "b" else self._random.normal(size=shape)
        return self.number_of(axes, other)

    def axes(self, number: Number) -> Axes:
        """The axes of a value."""
        return self.arrays[number][0]

    # Operators

    def apply(self, op: str, args: Sequence[Number], dims: Axes, dtype: str) -> Number:
        """The number of the result of an operator, of an array program or of a block program."""
        key = (op, tuple(args), dims, DTYPES[dtype].kind if op == "cast" else "")
        if key not in self.known:
            with np.errstate(all="ignore"):
                self.known[key] = self.number_of(*self._result(op, [self.arrays[arg] for arg in args], dims, dtype))
        return self.known[key]

    def _result(self, op: str, args: Sequence[tuple[Axes, Array]], dims: Axes, dtype: str) -> tuple[Axes, Array]:
        match op:
            case "index":
                return dims, self._positions(dims[0])
            case "cast":
                return args[0][0], FLOAT64.cast(args[0][1], dtype)
            case "rename":
                return self.renamed(*args[0], dims[0], dims[1])
            case "broadcast":
                axes = tuple(sorted({*args[0][0], *dims}))
                return axes, np.broadcast_to(_spread(*args[0], axes), self._shape(axes))
            case _ if op in REDUCTIONS:
                axes = tuple(sorted({*dims, *(axis for held, _ in args for axis in held)}))
                spread = [_spread(held, array, axes) for held, array in args]
                value = FLOAT64.elementwise("mul", *spread) if op == "contract" else spread[0]
                full = np.broadcast_to(value, self._shape(axes))
                kept = tuple(axis for axis in axes if axis not in dims)
                along = tuple(1 + axes.index(dim) for dim in dims)
                return kept, FLOAT64.reduce("sum" if op == "contract" else op, full, along)
            case _:
                axes = tuple(sorted({axis for held, _ in args for axis in held}))
                value = FLOAT64.elementwise(op, *(_spread(held, array, axes) for held, array in args))
                return axes, self._mixed(value) if OPERATORS[op].result is Result.BOOLEAN else value

    def _mixed(self, value: Array) -> Array:
        """Truth values, not the same everywhere: which ones they are is no reason to take an operator for another."""
        constant = value.all() or not value.any()
        return self._random.random((TIMES, *value.shape[1:])) < 0.5 if constant else value

    def renamed(self, axes: Axes, array: Array, old: str, new: str) -> tuple[Axes, Array]:
        """A value whose axis `old` is called `new`."""
        now = [new if axis == old else axis for axis in axes]
        return tuple(sorted(now)), np.transpose(array, [0, *_order(now)])

    def renamings(self, number: Number) -> list[Number]:
        """A value under all other dimensions that renames of the program give it, a few at most, and as it is."""
        pairs = list(dict.fromkeys(node.dims for node in self.program.nodes if node.op == "rename"))
        found = [number]
        for at in found:
            axes = self.axes(at)
            for old, new in pairs:
                if old in axes and new not in axes and len(found) < MOST_NAMES:
                    other = self.apply("rename", [at], (old, new), "f32")
                    if other not in found:
                        found.append(other)
        return found

    def _shape(self, axes: Axes) -> tuple[int, ...]:
        return (TIMES, *(self.extents[axis] for axis in axes))

    def _positions(self, dim: str) -> Array:
        """Where the elements of a dimension are: far enough apart for masks to differ."""
        generator = np.random.default_rng([list(self.same).index(self.same[dim]), 0])
        count = self.extents[dim]
        steps = [int(generator.integers(low, high)) for low, high in zip(SPREAD, (*SPREAD[1:], 4000), strict=True)]
        return np.asarray([steps[:count]], np.int64)

    def constant(self, value: float | int | bool) -> Number:
        """The number of a constant."""
        key = ("constant", repr(value))
        if key not in self.known:
            self.known[key] = self.number_of((), np.asarray([value]))
        return self.known[key]

    def size(self, dim: str) -> Number:
        """The number of an extent."""
        return self.constant(self.extents[dim])

    def input(self, argument: str, stored: Axes, read: Axes, dtype: str) -> Number:
        """The number of an input that is read under the dimensions `read`, in storage order."""
        key = ("input", argument, read)
        if key not in self.known:
            shape = self._shape(stored)
            generator = np.random.default_rng([self.places[argument], 1])
            kinds: dict[str, Any] = {
                "float": lambda: generator.normal(size=shape),
                "int": lambda: generator.integers(*LABELS, shape),
                "bool": lambda: generator.random(shape) < 0.5,
            }
            array = np.transpose(kinds[DTYPES[dtype].kind](), [0, *_order(read)])
            self.known[key] = self.number_of(tuple(sorted(read)), array)
        return self.known[key]

    # Programs

    def of_nodes(self, given: Mapping[str, Number] | None = None) -> dict[str, Number]:
        """The numbers of all nodes of the array program; with `given`, some of them have other values."""
        arguments = {argument.name: argument for argument in self.program.inputs}
        numbers: dict[str, Number] = {}
        for node in self.program.nodes:
            if given and node.name in given:
                numbers[node.name] = given[node.name]
            elif node.op == "input":
                argument = arguments[node.name]
                numbers[node.name] = self.input(argument.name, argument.dims, argument.dims, argument.dtype)
            else:
                numbers[node.name] = self.of_node(node, numbers)
        return numbers

    def of_node(self, node: Node, numbers: Mapping[str, Number]) -> Number:
        """The number of an operator's result, by those of its operands."""
        if node.op == "constant":
            assert node.value is not None
            return self.constant(node.value)
        if node.op == "size":
            return self.size(node.dims[0])
        return self.apply(node.op, [numbers[arg] for arg in node.args], node.dims, node.dtype)

    def of_block_program(self, program: Program) -> dict[str, Number]:
        """The numbers of all names of a block program."""
        self._learn(program.dims)
        stored = {argument.name: argument for argument in program.arguments}
        numbers = {
            entry.name: self.input(entry.argument, stored[entry.argument].dims, entry.dims, entry.dtype)
            for entry in program.inputs
        }
        self._fill(program.body, numbers)
        return numbers

    def _learn(self, dims: Sequence[Dim]) -> None:
        """The extents of dimensions that only a block program has: copies of others, and chunks of them."""
        for dim in dims:
            of = dim.same_as or dim.chunks_of
            if dim.name not in self.extents and of is not None:
                self.extents[dim.name], self.same[dim.name] = self.extents[of], self.same[of]

    def _fill(self, graph: Graph, numbers: dict[str, Number]) -> None:
        for definition in graph:
            match definition:
                case Apply(name, op, args, dims, dtype):
                    operands = [self._operand(arg, numbers) for arg in args]
                    numbers[name] = self.apply(op, operands, dims, dtype)
                case Map(_, ports, body, outputs):
                    numbers.update((port.name, numbers[port.source]) for port in ports)
                    self._fill(body, numbers)
                    for output in outputs:
                        numbers.update((n, numbers[v]) for n, v in zip(output.names, output.values, strict=True))
                case Reduce(names, sources):
                    numbers.update((n, numbers[source]) for n, source in zip(names, sources, strict=True))
                case Rename(name, source, old, new):
                    numbers[name] = self.apply("rename", [numbers[source]], (old, new), "f32")
                case _:
                    assert_never(definition)

    def _operand(self, operand: Operand, numbers: Mapping[str, Number]) -> Number:
        match operand:
            case str():
                return numbers[operand]
            case Constant(value):
                return self.constant(value)
            case Size(dim):
                return self.size(dim)
            case Expression(op, args):
                assert op in OPERATORS
                return self.apply(op, [self._operand(arg, numbers) for arg in args], (), "f32")
            case _:
                assert_never(operand)


def _first_equal(rows: Array, values: Array) -> int | None:
    """The first row with these values, up to rounding."""
    with np.errstate(all="ignore"):
        sizes = np.maximum(np.abs(rows), np.abs(values))
        far = np.abs(rows - values) > CLOSE * sizes + LEAST
        infinite = np.isinf(sizes)
    far = np.where(infinite, rows != values, far)
    unknown = np.isnan(rows) | np.isnan(values)
    equal = np.flatnonzero(~(far & ~unknown).any(axis=1) & ~unknown.all(axis=1))
    return int(equal[0]) if equal.size else None


def _spread(axes: Axes, array: Array, target: Axes) -> Array:
    """The array with axes in the order of `target`, after the first, of size 1 where it lacks one."""
    shape = dict(zip(axes, array.shape[1:], strict=True))
    return array.reshape([array.shape[0], *(shape.get(axis, 1) for axis in target)])


def _order(axes: Sequence[str]) -> list[int]:
    """The places of array axes in the order of their names, behind the first axis."""
    return [1 + at for at in sorted(range(len(axes)), key=axes.__getitem__)]


def computed(graph: Graph) -> Iterator[tuple[tuple[str, ...], frozenset[str]]]:
    """What is computed in a graph, at any depth: the names of results, and those that they are made of directly. What
    an output accumulates is computed by it."""
    for definition in graph:
        if isinstance(definition, Map):
            yield from computed(definition.body)
            yield from ((out.names, frozenset(out.values)) for out in definition.outputs if out.monoid is not None)
        elif not isinstance(definition, Rename):
            yield definition.defines, definition.uses
