"""An array program, operator by operator on whole arrays: what somebody without a compiler would run.

`translate` goes over the nodes once and gives a function of the input arrays. Each node is one operator of an array
library, computed in the node's own type: f64, f32 for all other floats, i32, bool. Equal nodes are computed once,
values are let go of after their last reader, and contractions are matrix products. Nothing is fused, and nothing looks
for operators that a library has under one name. Unlike the meaning and the kernels, this arithmetic is not made safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from blockc.ir import dtypes
from blockc.ir.array_program import Argument, ArrayProgram, Node
from blockc.ir.dtypes import DTYPES

Array = Any  # of a library
Compute = Callable[..., Array]
Sizes = Mapping[str, int]

EMPTY = {"max": {"i32": -(2**31)}, "min": {"i32": 2**31 - 1}}  # what is the maximum or minimum of nothing


@dataclass(frozen=True, slots=True)
class Library:
    """An array library: what it calls everything that array programs consist of.

    Values are held as "f64", "f32", "i32" or "bool". `elementwise` is by the names of `ops.py`, `reductions` are
    "sum", "max" and "min" over axes. `converted` is to a type that is held. `rounded` and `truncated` are casts, to
    any float and any integer type, of a value that stays held. `stored` makes an output of its declared type.
    `own` and `plain` convert a NumPy array to the library's own and back, `quiet` is around every call, and `limited`
    restricts the library to so many threads.
    """

    version: str
    elementwise: Mapping[str, Compute]
    reductions: Mapping[str, Callable[[Array, tuple[int, ...]], Array]]
    product: Callable[[Array, Array], Array]
    permuted: Callable[[Array, tuple[int, ...]], Array]
    expanded: Callable[[Array, tuple[int, ...]], Array]
    constant: Callable[[float, str], Array]
    positions: Callable[[int], Array]
    converted: Callable[[Array, str], Array]
    rounded: Callable[[Array, str], Array]
    truncated: Callable[[Array, str], Array]
    stored: Callable[[Array, str], Array]
    own: Callable[[Any], Array]
    plain: Callable[[Array], Any]
    quiet: Callable[[], AbstractContextManager[Any]]
    limited: Callable[[int], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class _Step:
    """One node: what computes it, from which values, and which of them nobody reads any more."""

    name: str
    args: tuple[str, ...]
    compute: Compute
    unneeded: tuple[str, ...]


def translate(
    program: ArrayProgram, sizes: Sizes, library: Library
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """A function from the inputs to the outputs, by name, both arrays of the library with the declared axes."""
    nodes, results = distinct(program)
    by_name = {node.name: node for node in nodes}
    arguments = {argument.name: argument for argument in program.inputs}
    last = _last_uses(nodes, results)
    steps = [
        _Step(node.name, node.args, _computation(node, by_name, sizes, library), last.get(node.name, ()))
        for node in nodes
        if node.op != "input"
    ]
    inputs = [(node.name, _input(arguments[node.name], node, sizes, library)) for node in nodes if node.op == "input"]
    outputs = [
        (result.argument.name, name, _output(result.argument, by_name[name], sizes, library))
        for result, name in zip(program.outputs, results, strict=True)
    ]

    def call(arrays: Mapping[str, Array]) -> dict[str, Array]:
        with library.quiet():
            values = {name: compute(arrays[name]) for name, compute in inputs}
            for step in steps:
                values[step.name] = step.compute(*(values[arg] for arg in step.args))
                for name in step.unneeded:
                    del values[name]
            return {name: compute(values[value]) for name, value, compute in outputs}

    return call


def peak_bytes(program: ArrayProgram, sizes: Sizes) -> int:
    """The most bytes that a call holds at the same time, temporary arrays inside operators aside."""
    nodes, results = distinct(program)
    last = _last_uses(nodes, results)
    held: dict[str, int] = {}
    peak = 0
    for node in nodes:
        held[node.name] = DTYPES[held_type(node.dtype)].size * math.prod(sizes[dim] for dim in node.shape)
        peak = max(peak, sum(held.values()))
        for name in last.get(node.name, ()):
            del held[name]
    return peak


def held_type(dtype: str) -> str:
    """The type in which values of a type are held and computed."""
    if DTYPES[dtype].kind == "bool":
        return "bool"
    return dtypes.number(dtype)


def distinct(program: ArrayProgram) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """The nodes without those that equal an earlier one or that no output needs, and the node of every output."""
    first: dict[tuple[object, ...], str] = {}
    same: dict[str, str] = {}
    nodes: list[Node] = []
    for node in program.nodes:
        args = tuple(same[arg] for arg in node.args)
        own = node.name if node.op == "input" else ""
        key = own, node.op, args, node.dims, node.shape, node.dtype, repr(node.value)
        same[node.name] = first.setdefault(key, node.name)
        if same[node.name] == node.name:
            nodes.append(replace(node, args=args))
    results = tuple(same[result.node] for result in program.outputs)
    needed = set(results)
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.args)
    return tuple(node for node in nodes if node.name in needed), results


def _last_uses(nodes: tuple[Node, ...], results: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The values that nobody reads after a node, by its name."""
    last = {arg: node.name for node in nodes for arg in node.args}
    uses: dict[str, tuple[str, ...]] = {}
    for value, reader in last.items():
        if value not in results:
            uses[reader] = (*uses.get(reader, ()), value)
    return uses


def _input(argument: Argument, node: Node, sizes: Sizes, library: Library) -> Compute:
    shape = tuple(sizes[dim] for dim in argument.dims)
    order = tuple(argument.dims.index(dim) for dim in node.shape)
    held = held_type(node.dtype)
    return lambda array: library.converted(library.permuted(array.reshape(shape), order), held)


def _output(argument: Argument, node: Node, sizes: Sizes, library: Library) -> Compute:
    """The value broadcast to the declared dimensions, with the declared axes and type."""
    axes = tuple(math.prod(sizes[dim] for dim in axis) for axis in argument.axes)
    expand = _expansion(node.shape, argument.dims, sizes, library)
    return lambda value: library.stored(expand(value).reshape(axes), argument.dtype)


def _computation(node: Node, nodes: Mapping[str, Node], sizes: Sizes, library: Library) -> Compute:
    """What computes a node from its operands."""
    args = [nodes[arg] for arg in node.args]
    match node.op:
        case "constant":
            assert node.value is not None
            constant = library.constant(node.value, held_type(node.dtype))
            return lambda: constant
        case "size":
            size = library.constant(sizes[node.dims[0]], "i32")
            return lambda: size
        case "index":
            return lambda: library.positions(sizes[node.dims[0]])
        case "rename":
            renamed = [node.dims[1] if dim == node.dims[0] else dim for dim in args[0].shape]
            order = tuple(renamed.index(dim) for dim in node.shape)
            return lambda x: library.permuted(x, order)
        case "cast":
            return _cast(args[0].dtype, node.dtype, library)
        case "sum" | "max" | "min":
            return _reduction(node, args[0], sizes, library)
        case "contract":
            return _contraction(node, args[0].shape, args[1].shape, sizes, library)
        case _:
            return _elementwise(node, args, library)


def _elementwise(node: Node, args: list[Node], library: Library) -> Compute:
    """An elementwise operator on operands of one type, with their axes in their places."""
    operator = library.elementwise[node.op]
    types = [_operand_type(node, args)] * len(args)
    if node.op == "where":
        types[0] = "bool"
    places = [_places(arg.shape, node.shape) for arg in args]

    def compute(*values: Array) -> Array:
        placed = (value if place is None else value[place] for value, place in zip(values, places, strict=True))
        return operator(*(library.converted(value, held) for value, held in zip(placed, types, strict=True)))

    return compute


def _operand_type(node: Node, args: list[Node]) -> str:
    if node.dtype != "bool":
        return held_type(node.dtype)
    kinds = [arg.dtype for arg in args]
    return "bool" if kinds[-1] == "bool" else held_type(dtypes.number(*kinds))


def _places(dims: tuple[str, ...], target: tuple[str, ...]) -> tuple[slice | None, ...] | None:
    """The index that gives an array the axes of `target`, of size 1 where it lacks one; None if it needs none."""
    if not dims or dims == target:
        return None
    return tuple(slice(None) if dim in dims else None for dim in target)


def _cast(source: str, target: str, library: Library) -> Compute:
    if source == target or (DTYPES[target].kind == "float" and target in ("f32", "f64")):
        return lambda x: library.converted(x, held_type(target))
    match DTYPES[target].kind:
        case "float":
            wide = "f64" if source == "f64" else "f32"
            return lambda x: library.converted(library.rounded(library.converted(x, wide), target), "f32")
        case "int":
            return lambda x: library.truncated(x, target)
        case _:
            zero = library.constant(0, held_type(source))
            return lambda x: library.elementwise["ne"](x, zero) if source != "bool" else x


def _expansion(dims: tuple[str, ...], target: tuple[str, ...], sizes: Sizes, library: Library) -> Compute:
    """Repeats an array along the dimensions of `target` that it lacks, without a copy, and puts axes in that order."""
    order = tuple(dims.index(dim) for dim in target if dim in dims)
    place = tuple(slice(None) if dim in dims else None for dim in target)
    shape = tuple(sizes[dim] for dim in target)
    if len(order) == len(target):
        return lambda x: library.permuted(x, order)
    return lambda x: library.expanded(library.permuted(x, order)[place], shape)


def _reduction(node: Node, arg: Node, sizes: Sizes, library: Library) -> Compute:
    """A reduction. What lacks one of its dimensions is repeated along it first."""
    dims = (*arg.shape, *(dim for dim in node.dims if dim not in arg.shape))
    axes = tuple(position for position, dim in enumerate(dims) if dim in node.dims)
    held = held_type(node.dtype)
    if node.op != "sum" and any(sizes[dim] == 0 for dim in node.dims):
        nothing = EMPTY[node.op].get(held, math.inf if node.op == "min" else -math.inf)
        return lambda _: library.expanded(library.constant(nothing, held), tuple(sizes[dim] for dim in node.shape))
    expand = _expansion(arg.shape, dims, sizes, library)
    reduce = library.reductions[node.op]
    return lambda x: reduce(expand(library.converted(x, held)), axes)


def _contraction(node: Node, a: tuple[str, ...], b: tuple[str, ...], sizes: Sizes, library: Library) -> Compute:
    """A contraction as a product of matrices, [batch, rows, inner] times [batch, inner, columns].

    The operand with the last dimension of the result gives the columns. Dimensions of one operand only are summed
    before.
    """
    swapped = bool(node.shape) and node.shape[-1] not in b
    left, right = (b, a) if swapped else (a, b)
    inner = tuple(dim for dim in node.dims if dim in a and dim in b)
    batch = tuple(dim for dim in node.shape if dim in a and dim in b)
    rows = tuple(dim for dim in node.shape if dim in left and dim not in right)
    columns = tuple(dim for dim in node.shape if dim in right and dim not in left)
    held = held_type(node.dtype)
    first = _matrices(left, node, (batch, rows, inner), sizes, library)
    second = _matrices(right, node, (batch, inner, columns), sizes, library)
    made = batch + rows + columns
    shape, order = tuple(sizes[dim] for dim in made), tuple(made.index(dim) for dim in node.shape)

    def compute(x: Array, y: Array) -> Array:
        x, y = library.converted(x, held), library.converted(y, held)
        product = library.product(first(y if swapped else x), second(x if swapped else y))
        return library.permuted(product.reshape(shape), order)

    return compute


def _matrices(
    dims: tuple[str, ...], node: Node, groups: tuple[tuple[str, ...], ...], sizes: Sizes, library: Library
) -> Compute:
    """Brings an operand into the form of matrices: one axis for each group of dimensions, none for an empty batch."""
    wanted = [dim for group in groups for dim in group]
    lonely = tuple(position for position, dim in enumerate(dims) if dim not in wanted)
    kept = [dim for dim in dims if dim in wanted]
    order = tuple(kept.index(dim) for dim in wanted)
    extents = [math.prod(sizes[dim] for dim in group) for group in groups]
    shape = tuple(extents if groups[0] else extents[1:])

    def compute(x: Array) -> Array:
        summed = library.reductions["sum"](x, lonely) if lonely else x
        return library.permuted(summed, order).reshape(shape)

    return compute
