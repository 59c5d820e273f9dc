"""The meaning of a program: what its outputs are, in float64 and without fusion. Every kernel is compared with it.

`evaluate` follows the array program node by node in the arithmetic of `extended.py` (design, section 3, "Meaning"). It
shares no code with the passes. `baseline` is the same in the precision of the target: the unfused program that a fused
kernel has to match in accuracy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockc import extended
from blockc.accuracy import Comparison, compare, error_bound, same_nonfinite
from blockc.data import numpy_dtype, sizes_of
from blockc.extended import Value, plain
from blockc.ir import dtypes
from blockc.ir.array_program import Argument, ArrayProgram, Node
from blockc.ir.ops import OPERATORS
from blockc.named_axes import contract, reduce, to_dims
from blockc.sampling import Selection, demands, operand_selection, output_demand, restrict_outputs, sample

__all__ = [
    "Comparison",
    "baseline",
    "compare",
    "error_bound",
    "evaluate",
    "restrict_outputs",
    "same_nonfinite",
    "sample",
]

MADE_OF = frozenset(  # what masks are made by
    {"where", "cast", "add", "sub", "mul", "div", "neg", "recip", "rename", "maximum", "minimum", "abs", "relu", "pow"}
)

Array = NDArray[Any]
Key = tuple[str, Selection]


@dataclass(frozen=True, slots=True)
class _Setting:
    """What every node's evaluation needs.

    `real` is the float type of the arithmetic, None for that of each node (f64, else f32); `rounds` are the types to
    which casts round; `masks` the values that are made of conditions and constants only.
    """

    program: ArrayProgram
    arrays: Mapping[str, Array]
    sizes: Mapping[str, int]
    positions: Mapping[str, Array]
    real: np.dtype[Any] | None
    rounds: frozenset[str]
    masks: frozenset[str]

    def real_of(self, dtype: str) -> np.dtype[Any]:
        """The float type in which a node of type `dtype` is computed."""
        return self.real if self.real is not None else np.dtype(np.float64 if dtype == "f64" else np.float32)

    def extents(self, selection: Selection) -> dict[str, int]:
        """The size of every dimension, or the number of positions chosen along it."""
        chosen = {dim: len(self.positions[source]) for dim, source in selection}
        return {**self.sizes, **chosen}


def evaluate(
    program: ArrayProgram,
    arrays: Mapping[str, Array],
    positions: Mapping[str, Array] | None = None,
    precision: str = "f64",
) -> dict[str, Array]:
    """The outputs of a program, by name, with the declared axes.

    `arrays` holds every input whole, with its declared axes. With `positions` (dimension to indices, as from `sample`)
    only those rows of the outputs are computed: the result equals `restrict_outputs` of the full one.

    precision "f64": the meaning. Real outputs come as float64, not rounded to the declared type; values too large for
    float64 as infinities. A cast between float types is the identity. A program with f64 values is computed in the
    platform's long double, where that is wider: else its reference would be no better than its kernel.
    precision "f32": the same steps in float32, casts and outputs rounded to their types: the unfused baseline.

    Raises UsageError (from `sizes_of`) if the arrays do not fit the program.
    """
    match precision:
        case "f64":
            sizes = sizes_of(program, arrays)
            wide = any(node.dtype == "f64" for node in program.nodes)
            real = np.dtype(np.longdouble if wide else np.float64)  # a reference is finer than what it judges
            results = _run(_Setting(program, arrays, sizes, positions or {}, real, frozenset(), _masks(program)))
            return {name: _at_most_float64(result) for name, result in results.items()}
        case "f32":
            return _unfused(program, arrays, positions, np.dtype(np.float32))
        case _:
            raise ValueError(f"precision is f64 or f32, not {precision}")


def _at_most_float64(array: Array) -> Array:
    with np.errstate(over="ignore"):
        return array.astype(np.float64) if array.dtype == np.longdouble else array


def baseline(
    program: ArrayProgram, arrays: Mapping[str, Array], positions: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """The unfused program in the precision of a kernel: f64 values in float64, others in float32; outputs rounded."""
    return _unfused(program, arrays, positions, None)


def _unfused(
    program: ArrayProgram,
    arrays: Mapping[str, Array],
    positions: Mapping[str, Array] | None,
    real: np.dtype[Any] | None,
) -> dict[str, Array]:
    rounds = frozenset(name for name in dtypes.DTYPES if dtypes.is_float(name))
    sizes = sizes_of(program, arrays)
    results = _run(_Setting(program, arrays, sizes, positions or {}, real, rounds, _masks(program)))
    with np.errstate(all="ignore"):
        return {
            result.argument.name: results[result.argument.name].astype(numpy_dtype(result.argument.dtype))
            for result in program.outputs
        }


def _masks(program: ArrayProgram) -> frozenset[str]:
    """The numbers that are made of conditions and constants only, and of one condition at least."""
    conditions = {node.name for node in program.nodes if node.dtype == "bool"}
    constants: set[str] = set()
    masks: set[str] = set()
    for node in program.nodes:
        args = set(node.args[1:] if node.op == "where" else node.args)
        if node.op in ("constant", "size"):
            constants.add(node.name)
        elif node.op in MADE_OF and node.name not in conditions and args <= masks | constants | conditions:
            (masks if node.op == "where" or not args <= constants else constants).add(node.name)
    return frozenset(masks)


def _run(setting: _Setting) -> dict[str, Array]:
    """The outputs at the setting's positions, real ones in its float type."""
    nodes = {node.name: node for node in setting.program.nodes}
    keys = demands(setting.program, frozenset(setting.positions))
    operands = {key: _operand_keys(nodes, *key) for key in keys}
    readers = Counter(operand for key in keys for operand in operands[key])
    wanted: dict[Key, list[Argument]] = {}
    for result in setting.program.outputs:
        wanted.setdefault(output_demand(result, nodes, setting.positions), []).append(result.argument)
    values: dict[Key, Value] = {}
    outputs = {}
    with np.errstate(all="ignore"):
        for key in keys:
            node, selection = nodes[key[0]], key[1]
            value = _evaluate_node(setting, nodes, node, selection, [values[operand] for operand in operands[key]])
            values[key] = _typed(value, node, setting.real_of(node.dtype))
            for argument in wanted.get(key, []):
                outputs[argument.name] = _output(setting, argument, node, values[key])
            readers.subtract(operands[key])
            for used in {key, *operands[key]}:
                # Whole arrays are large: let go of each after its last reader.
                if readers[used] == 0:
                    del values[used]
    return {result.argument.name: outputs[result.argument.name] for result in setting.program.outputs}


def _operand_keys(nodes: Mapping[str, Node], name: str, selection: Selection) -> list[Key]:
    return [(arg, operand_selection(nodes[name], selection, nodes[arg])) for arg in nodes[name].args]


def _evaluate_node(
    setting: _Setting, nodes: Mapping[str, Node], node: Node, selection: Selection, args: list[Value]
) -> Value:
    shapes = [nodes[arg].shape for arg in node.args]
    if node.op in ("mul", "div", "contract") and any(arg.exponent is not None for arg in args):
        real = setting.real_of(node.dtype)
        closing = node.args[:1] if node.op == "div" else node.args  # what is divided by a mask is not closed by it
        args = [
            extended.mask(value.x.astype(real)) if name in closing and name in setting.masks else value
            for name, value in zip(node.args, args, strict=True)
        ]
    match node.op:
        case "input":
            return Value(_input(setting, node, selection))
        case "constant":
            return Value(np.asarray(node.value))
        case "size":
            return Value(np.asarray(setting.sizes[node.dims[0]], np.int64))
        case "index":
            return Value(_index(setting, node, selection))
        case "cast":
            cast = extended.each(args[0], lambda x: to_dims(x, shapes[0], node.shape))
            return _cast(cast, nodes[node.args[0]].dtype, node.dtype, setting.rounds)
        case "rename":
            renamed = tuple(node.dims[1] if dim == node.dims[0] else dim for dim in shapes[0])
            return extended.each(args[0], lambda x: to_dims(x, renamed, node.shape))
        case "contract":
            return contract(args, shapes, node, setting.extents(selection))
        case "sum" | "max" | "min":
            return reduce(args[0], shapes[0], node, setting.extents(selection))
        case _:
            expanded = [
                extended.each(arg, lambda x, dims=shape: to_dims(x, dims, node.shape))  # type: ignore[misc]
                for arg, shape in zip(args, shapes, strict=True)
            ]
            return _elementwise(node.op, _promoted(expanded, node, setting.real_of(node.dtype)))


def _input(setting: _Setting, node: Node, selection: Selection) -> Array:
    """The input array with unpacked axes in the order of the node's shape, at the selected positions."""
    argument = next(argument for argument in setting.program.inputs if argument.name == node.name)
    array = np.asarray(setting.arrays[argument.name])
    array = array.reshape(tuple(setting.sizes[dim] for dim in argument.dims))
    for dim, source in selection:
        array = np.take(array, setting.positions[source], axis=argument.dims.index(dim))
    return to_dims(array, argument.dims, node.shape)


def _index(setting: _Setting, node: Node, selection: Selection) -> Array:
    for dim, source in selection:
        if dim == node.dims[0]:
            return np.asarray(setting.positions[source], np.int64)
    return np.arange(setting.sizes[node.dims[0]], dtype=np.int64)


def _output(setting: _Setting, argument: Argument, node: Node, value: Value) -> Array:
    """The output array with the axes of its declaration; packed dimensions are merged."""
    extents = {
        dim: len(setting.positions[dim]) if dim in setting.positions else setting.sizes[dim] for dim in argument.dims
    }
    array = to_dims(plain(value), node.shape, argument.dims)
    array = np.broadcast_to(array, tuple(extents[dim] for dim in argument.dims))
    array = array.reshape(tuple(math.prod(extents[dim] for dim in axis) for axis in argument.axes))
    if not dtypes.is_float(argument.dtype):
        return _integers(array).astype(numpy_dtype(argument.dtype))
    return np.array(array, setting.real_of(node.dtype))


def _typed(value: Value, node: Node, real: np.dtype[Any]) -> Value:
    """The value as the kind of number that the node declares: real, integer (64 bits inside) or boolean."""
    match dtypes.DTYPES[node.dtype].kind:
        case "float":
            exponent = None if value.exponent is None else np.asarray(value.exponent, real)
            return Value(np.asarray(plain(value) if exponent is None else value.x).astype(real), exponent, value.absent)
        case "int":
            return Value(_integers(np.asarray(plain(value))))
        case _:
            return Value(np.asarray(plain(value)).astype(np.bool_))


def _promoted(args: list[Value], node: Node, real: np.dtype[Any]) -> list[Value]:
    """The operands as one kind of number: real if one of them or the result is, never booleans in arithmetic."""
    if node.op == "where":
        return [args[0], *_promoted(args[1:], replace(node, op="add"), real)]
    if dtypes.is_float(node.dtype) or any(arg.x.dtype.kind == "f" for arg in args):
        return [arg if arg.x.dtype.kind == "f" else Value(arg.x.astype(real)) for arg in args]
    if dtypes.DTYPES[node.dtype].kind == "int":
        return [Value(arg.x.astype(np.int64)) for arg in args]
    return args


def _elementwise(op: str, args: list[Value]) -> Value:
    match op, args:
        case "add", [first, *rest]:
            return _folded(extended.add, first, rest)
        case "mul", [first, *rest]:
            return _folded(extended.multiply, first, rest)
        case "sub", [a, b]:
            return extended.add(a, extended.negate(b))
        case "div", [a, b]:
            return extended.divide(a, b)
        case "neg", [a]:
            return extended.negate(a)
        case "recip", [a]:
            return extended.divide(_one(a), a)
        case "exp", [a]:
            return extended.exp(a)
        case "log", [a]:
            return extended.log(a)
        case "sqrt", [a]:
            return extended.square_root(a)
        case "rsqrt", [a]:
            return extended.divide(_one(a), extended.square_root(a))
        case "pow", [a, b] if b.exponent is None and b.x.size == 1:
            return extended.power(a, float(b.x.reshape(())))
        case "abs", [a] if a.exponent is not None:
            return Value(np.abs(a.x), a.exponent)
        case "relu", [a] if a.exponent is not None:
            return Value(np.maximum(a.x, 0), a.exponent)
        case "where", [condition, a, b]:
            return extended.select(plain(condition).astype(np.bool_), a, b)
        case "lt" | "le" | "gt" | "ge" | "eq" | "ne", [a, b]:
            return extended.compare(OPERATORS[op].meaning, a, b)
        case "maximum" | "minimum", _:
            stack = extended.stacked(tuple(args))
            best = extended.largest(stack, (0,)) if op == "maximum" else extended.smallest(stack, (0,))
            return extended.each(best, lambda x: x[0])
        case _:
            return Value(np.asarray(OPERATORS[op].meaning(*(plain(arg) for arg in args))))


def _folded(function: Any, first: Value, rest: list[Value]) -> Value:
    for value in rest:
        first = function(first, value)
    return first


def _one(like: Value) -> Value:
    return Value(np.ones((), like.x.dtype))


def _cast(value: Value, source: str, target: str, rounds: frozenset[str]) -> Value:
    """A cast. Float to integer truncates towards zero and saturates (NaN gives 0); integer to i8 wraps."""
    kind = dtypes.DTYPES[target].kind
    if kind == "float":
        if target not in rounds or target in ("f64", source):
            return value
        return _round_value(value, target)
    if kind == "bool":
        return Value(plain(value) != 0)
    if not dtypes.is_float(source):
        return Value(plain(value).astype(np.int64).astype(numpy_dtype(target)))
    limits = np.iinfo(numpy_dtype(target))
    return Value(np.clip(np.nan_to_num(np.trunc(plain(value)), nan=0.0), limits.min, limits.max))


def _round_value(value: Value, target: str) -> Value:
    """The value rounded to a float type; pairs that do not fit it keep their exponent."""
    numbers = plain(value)
    rounded = numbers.astype(numpy_dtype(target)).astype(numbers.dtype)
    if value.exponent is None:
        return Value(rounded, None, value.absent)
    fits = np.isfinite(rounded) & (rounded != 0)
    return Value(np.where(fits, rounded, value.x), np.where(fits, rounded.dtype.type(0), value.exponent))


def _integers(array: Array) -> Array:
    """The array as 64-bit integers, real numbers truncated."""
    if array.dtype.kind == "f":
        return np.nan_to_num(np.trunc(array), nan=0.0, posinf=2.0**31, neginf=-(2.0**31)).astype(np.int64)
    return array if array.dtype.kind == "b" else array.astype(np.int64)
