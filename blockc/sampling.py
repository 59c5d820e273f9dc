"""Which part of a program's outputs to compute, when all of it is too large for the reference.

A selection says where a value is needed: `(dim, source)` pairs, for "along `dim` only at the positions chosen for the
output dimension `source`". A rename changes the dimension of a pair, and a reduction needs its operand whole, so one
value may be needed under several selections: self-attention needs some rows as queries and all of them as keys.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockc.ir.array_program import ArrayProgram, Node, Result

Array = NDArray[Any]
Selection = tuple[tuple[str, str], ...]


def demands(program: ArrayProgram, sampled: frozenset[str]) -> list[tuple[str, Selection]]:
    """Every node that the outputs need with the selection under which they need it, operands before their readers."""
    nodes = {node.name: node for node in program.nodes}
    wanted: dict[str, set[Selection]] = {}
    for result in program.outputs:
        name, selection = output_demand(result, nodes, sampled)
        wanted.setdefault(name, set()).add(selection)
    for node in reversed(program.nodes):
        for selection in wanted.get(node.name, ()):
            for arg in node.args:
                wanted.setdefault(arg, set()).add(operand_selection(node, selection, nodes[arg]))
    return [(node.name, selection) for node in program.nodes for selection in sorted(wanted.get(node.name, ()))]


def output_demand(result: Result, nodes: Mapping[str, Node], sampled: Container[str]) -> tuple[str, Selection]:
    """The node of an output with the selection under which the output needs it."""
    return result.node, tuple((dim, dim) for dim in nodes[result.node].shape if dim in sampled)


def operand_selection(node: Node, selection: Selection, operand: Node) -> Selection:
    """The selection under which a node that is needed under `selection` needs its operand."""
    if node.op == "rename":
        old, new = node.dims
        selection = tuple((old if dim == new else dim, source) for dim, source in selection)
    chosen = dict(selection)
    return tuple((dim, chosen[dim]) for dim in operand.shape if dim in chosen)


def sample(program: ArrayProgram, sizes: Mapping[str, int], seed: int, limit: int) -> dict[str, Array]:
    """Positions along dimensions of the outputs such that no value in the evaluation has more than `limit` elements.

    Sorted positions, always with the first and the last one. Where that is not possible, because the largest value is
    needed whole, the sample is as small as that value allows. A dimension that is absent is computed whole. The same
    seed gives the same positions.
    """
    candidates = sorted({dim for result in program.outputs for dim in result.argument.dims if sizes[dim] > 2})
    counts = {dim: sizes[dim] for dim in candidates}
    shapes = _evaluated(program, candidates)

    def elements(entry: tuple[tuple[str, ...], dict[str, str]]) -> int:
        return _elements(*entry, sizes, counts)

    while shapes and elements(largest := max(shapes, key=elements)) > limit:
        reducible = sorted(source for source in largest[1].values() if counts[source] > 2)
        if not reducible:
            break
        longest = max(reducible, key=lambda dim: counts[dim])
        counts[longest] = max(2, counts[longest] // 2)
    return {
        dim: _positions(sizes[dim], counts[dim], np.random.default_rng([seed, number]))
        for number, dim in enumerate(candidates)
        if counts[dim] < sizes[dim]
    }


def largest_value(program: ArrayProgram, sizes: Mapping[str, int], positions: Mapping[str, Array]) -> int:
    """The elements of the largest value, other than an input, in the evaluation at a sample's positions."""
    counts = {dim: len(chosen) for dim, chosen in positions.items()}
    shapes = _evaluated(program, sorted(counts))
    return max((_elements(shape, chosen, sizes, counts) for shape, chosen in shapes), default=0)


def _evaluated(program: ArrayProgram, sampled: Collection[str]) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    """The shapes of all values that the evaluation needs, each with the sample that applies to its dimensions."""
    nodes = {node.name: node for node in program.nodes}
    needed = demands(program, frozenset(sampled))
    # Inputs do not count: they are there already.
    shapes = [(nodes[name].shape, dict(chosen)) for name, chosen in needed if nodes[name].op != "input"]
    return shapes + [(result.argument.dims, {dim: dim for dim in sampled}) for result in program.outputs]


def _elements(
    shape: tuple[str, ...], chosen: Mapping[str, str], sizes: Mapping[str, int], counts: Mapping[str, int]
) -> int:
    return math.prod(counts[chosen[dim]] if dim in chosen else sizes[dim] for dim in shape)


def _positions(size: int, count: int, generator: np.random.Generator) -> Array:
    inner = generator.choice(size - 2, count - 2, replace=False) + 1
    return np.concatenate([[0], np.sort(inner), [size - 1]]).astype(np.int64)


def restrict_outputs(
    program: ArrayProgram, outputs: Mapping[str, Array], sizes: Mapping[str, int], positions: Mapping[str, Array]
) -> dict[str, Array]:
    """The rows of whole outputs at the positions: what `evaluate` gives for them."""
    restricted = {}
    for result in program.outputs:
        argument = result.argument
        array = np.asarray(outputs[argument.name]).reshape([sizes[dim] for dim in argument.dims])
        for axis, dim in enumerate(argument.dims):
            if dim in positions:
                array = np.take(array, positions[dim], axis=axis)
        extents = {dim: array.shape[axis] for axis, dim in enumerate(argument.dims)}
        restricted[argument.name] = array.reshape([math.prod(extents[dim] for dim in axis) for axis in argument.axes])
    return restricted
