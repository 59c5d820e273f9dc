"""The meaning of a program in the prime field: what its outputs are by the laws of arithmetic, with no rounding at all.

`evaluate` follows the array program node by node, as `meaning.py` does in float64; it shares no code with the passes.
Block programs are interpreted in the same field by `ir/interpret.py`. Both together are the algebraic oracle: a rewrite
that means something else gives other residues, however small the difference in floating point would be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockc.data import array_shape, random_arrays
from blockc.ir import dtypes
from blockc.ir.array_program import Argument, ArrayProgram, Node
from blockc.ir.block import Program
from blockc.ir.interpret import interpret
from blockc.ir.prime_field import FIELD
from blockc.ir.residues import Verdict, compare, encode, random_numbers
from blockc.ir.sharing import Shared

Array = NDArray[Any]


def random_inputs(program: ArrayProgram, sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
    """One array for every input: random residues for floats, small random integers and booleans as numbers."""
    plain = random_arrays(program, sizes, seed)
    return {
        argument.name: random_numbers(array_shape(argument, sizes), np.random.default_rng([seed, position, 1]))
        if dtypes.is_float(argument.dtype)
        else encode(plain[argument.name], argument.dtype)
        for position, argument in enumerate(program.inputs)
    }


def evaluate(program: ArrayProgram, arrays: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
    """The outputs of a program, by name, with the declared axes, as arrays of `prime_field.NUMBER`."""
    nodes = {node.name: node for node in program.nodes}
    values: dict[str, Array] = {}
    arguments = {argument.name: argument for argument in program.inputs}
    with np.errstate(all="ignore"):
        for node in program.nodes:
            if node.op == "input":
                values[node.name] = _input(arguments[node.name], node, arrays[node.name], sizes)
                continue
            values[node.name] = _node(node, [(values[arg], nodes[arg].shape) for arg in node.args], sizes)
        return {
            result.argument.name: _output(result.argument, nodes[result.node], values[result.node], sizes)
            for result in program.outputs
        }


def judge(
    program: Program,
    arrays: Mapping[str, Array],
    sizes: Mapping[str, int],
    tiles: Mapping[str, int],
    expected: Mapping[str, Array],
    shared: Shared | None = None,
) -> Verdict:
    """How a block program, interpreted in the field, agrees with the outputs `expected`, all of them together.

    With `shared`, the programs of one derivation take over what earlier ones have computed from the same arrays.
    """
    outputs = interpret(program, arrays, sizes, tiles, arithmetic=FIELD, shared=shared).outputs
    return sum((compare(outputs[name], array) for name, array in expected.items()), Verdict(0, 0, 0))


def _input(argument: Argument, node: Node, array: Array, sizes: Mapping[str, int]) -> Array:
    unpacked = encode(array, argument.dtype).reshape([sizes[dim] for dim in argument.dims])
    return _spread(unpacked, argument.dims, node.shape)


def _node(node: Node, args: list[tuple[Array, tuple[str, ...]]], sizes: Mapping[str, int]) -> Array:
    match node.op:
        case "constant":
            assert node.value is not None
            kind = "f64" if dtypes.is_float(node.dtype) else node.dtype
            number = float(node.value) if kind == "f64" else node.value
            return encode(np.asarray(number), kind)
        case "size":
            return encode(np.asarray(sizes[node.dims[0]]), "i32")
        case "index":
            return encode(np.arange(sizes[node.dims[0]]), "i32")
        case "cast":
            ((array, shape),) = args
            return _spread(FIELD.cast(array, node.dtype), shape, node.shape)
        case "rename":
            ((array, shape),) = args
            old, new = node.dims
            return _spread(array, tuple(new if dim == old else dim for dim in shape), node.shape)
        case "contract" | "sum" | "max" | "min":
            return _reduced(node, args, sizes)
        case _:
            return FIELD.elementwise(node.op, *(_spread(array, shape, node.shape) for array, shape in args))


def _reduced(node: Node, args: list[tuple[Array, tuple[str, ...]]], sizes: Mapping[str, int]) -> Array:
    """A reduction. Dimensions that the operands lack count as often as their size says."""
    dims = (*node.shape, *node.dims)
    spread = [_spread(array, shape, dims) for array, shape in args]
    product = FIELD.elementwise("mul", *spread) if node.op == "contract" else spread[0]
    whole = [sizes[dim] if dim in node.dims else product.shape[at] for at, dim in enumerate(dims)]
    axes = tuple(range(len(node.shape), len(dims)))
    return FIELD.reduce("sum" if node.op == "contract" else node.op, np.broadcast_to(product, whole), axes)


def _output(argument: Argument, node: Node, value: Array, sizes: Mapping[str, int]) -> Array:
    array = np.broadcast_to(_spread(value, node.shape, argument.dims), [sizes[dim] for dim in argument.dims])
    if dtypes.is_float(node.dtype) != dtypes.is_float(argument.dtype):
        array = FIELD.cast(array, argument.dtype)
    return array.reshape([math.prod(sizes[dim] for dim in axis) for axis in argument.axes])


def _spread(array: Array, dims: tuple[str, ...], target: tuple[str, ...]) -> Array:
    """The array with axes in the order of `target`, of size 1 where it lacks the dimension."""
    moved = np.transpose(array, [dims.index(dim) for dim in target if dim in dims])
    return moved[tuple(slice(None) if dim in dims else np.newaxis for dim in target)]
