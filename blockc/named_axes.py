"""Reductions and contractions of extended numbers whose axes have names: the array part of the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockc import extended
from blockc.extended import Value, plain
from blockc.ir.array_program import Node

Array = NDArray[Any]


def to_dims(array: Array, dims: tuple[str, ...], target: tuple[str, ...]) -> Array:
    """The array with axes in the order of `target`, of size 1 where it lacks the dimension."""
    present = [dim for dim in target if dim in dims]
    moved = array.transpose([dims.index(dim) for dim in present])
    return moved[tuple(slice(None) if dim in dims else np.newaxis for dim in target)]


def reduce(value: Value, shape: tuple[str, ...], node: Node, extents: Mapping[str, int]) -> Value:
    """A reduction. Dimensions that the operand lacks count as often as their size says."""
    dims = (*(dim for dim in shape if dim not in node.dims), *node.dims)
    size = tuple(extents[dim] for dim in dims)
    value = extended.each(value, lambda x: np.broadcast_to(to_dims(x, shape, dims), size))
    if value.x.dtype.kind == "b":
        value = Value(value.x.astype(np.int64))
    axes = tuple(range(len(dims) - len(node.dims), len(dims)))
    reduced = {"sum": extended.total, "max": extended.largest, "min": extended.smallest}[node.op](value, axes)
    kept = dims[: axes[0]]
    return extended.each(reduced, lambda x: to_dims(x.reshape(x.shape[: axes[0]]), kept, node.shape))


def contract(args: list[Value], shapes: list[tuple[str, ...]], node: Node, extents: Mapping[str, int]) -> Value:
    """A contraction, as a batched matrix product. A pair aligns over the contracted dimensions first.

    A sum of exponentials with weights of no other dimensions is not taken apart: some weights may be 0.
    """
    args = [Value(arg.x.astype(np.int64)) if arg.x.dtype.kind == "b" else arg for arg in args]
    pairs = [arg.exponent is not None for arg in args]
    weighted = any(pairs) and any(set(dims) == {*shapes[0], *shapes[1]} for dims in shapes)
    if weighted or (all(pairs) and any(_is_wide(arg) for arg in args)):
        return _contract_elementwise(args, shapes, node, extents)
    (a, at), (b, bt) = (_aligned_operand(arg, dims, node) for arg, dims in zip(args, shapes, strict=True))
    x = _matrix_product(a, shapes[0], b, shapes[1], node, extents)
    free = [tuple(dim for dim in dims if dim not in node.dims) for dims in shapes]
    parts = [to_dims(t, dims, node.shape) for t, dims in zip((at, bt), free, strict=True) if t is not None]
    # An exponent is -inf only beside zeros, and a product of such zeros is one: no sum of exponents needs a case.
    return Value(x, np.broadcast_to(sum(parts), x.shape)) if parts else Value(x)


def _aligned_operand(value: Value, dims: tuple[str, ...], node: Node) -> tuple[Array, Array | None]:
    """The operand with one exponent along the contracted dimensions, and that exponent without them."""
    if value.exponent is None:
        return plain(value), None
    axes = tuple(position for position, dim in enumerate(dims) if dim in node.dims)
    x, top = extended.aligned(value, axes)
    return x, np.squeeze(top, axes)


def _is_wide(value: Value) -> bool:
    """True if the exponents spread so far that a product of two aligned values could vanish."""
    assert value.exponent is not None
    present = np.broadcast_to(value.exponent, value.x.shape)[value.x != 0]
    return bool(present.size) and bool(np.ptp(present) > np.log(np.finfo(present.dtype).max) / 3)


def _contract_elementwise(
    args: list[Value], shapes: list[tuple[str, ...]], node: Node, extents: Mapping[str, int]
) -> Value:
    """The contraction by the elementwise product of the operands: exact whatever the exponents are, but large."""
    dims = (*node.shape, *node.dims)
    a, b = (
        extended.each(arg, lambda x, own=shape: to_dims(x, own, dims))  # type: ignore[misc]
        for arg, shape in zip(args, shapes, strict=True)
    )
    size = tuple(extents[dim] for dim in dims)
    product = extended.each(extended.multiply(a, b), lambda x: np.broadcast_to(x, size))
    summed = extended.total(product, tuple(range(len(node.shape), len(dims))))
    return extended.each(summed, lambda x: x.reshape(x.shape[: len(node.shape)]))


def _matrix_product(
    a: Array,
    a_dims: tuple[str, ...],
    b: Array,
    b_dims: tuple[str, ...],
    node: Node,
    extents: Mapping[str, int],
) -> Array:
    """The sum of a * b over the contracted dimensions: [batch, rows, inner] times [batch, inner, columns]."""
    repeats = math.prod(extents[dim] for dim in node.dims if dim not in a_dims and dim not in b_dims)
    inner = tuple(dim for dim in node.dims if dim in a_dims and dim in b_dims)
    a, a_dims = _sum_lonely(a, a_dims, node, inner)
    b, b_dims = _sum_lonely(b, b_dims, node, inner)
    batch = tuple(dim for dim in node.shape if dim in a_dims and dim in b_dims)
    rows = tuple(dim for dim in node.shape if dim in a_dims and dim not in b_dims)
    columns = tuple(dim for dim in node.shape if dim in b_dims and dim not in a_dims)

    def matrices(array: Array, dims: tuple[str, ...], *groups: tuple[str, ...]) -> Array:
        order = tuple(dim for group in groups for dim in group)
        return to_dims(array, dims, order).reshape([math.prod(extents[dim] for dim in group) for group in groups])

    product = np.matmul(matrices(a, a_dims, batch, rows, inner), matrices(b, b_dims, batch, inner, columns))
    dims = batch + rows + columns
    result = to_dims(product.reshape([extents[dim] for dim in dims]), dims, node.shape)
    return result if repeats == 1 else result * np.asarray(repeats, result.dtype)


def _sum_lonely(
    array: Array, dims: tuple[str, ...], node: Node, inner: tuple[str, ...]
) -> tuple[Array, tuple[str, ...]]:
    """The array summed over the contracted dimensions that the other operand lacks."""
    axes = tuple(position for position, dim in enumerate(dims) if dim in node.dims and dim not in inner)
    if not axes:
        return array, dims
    return np.sum(array, axis=axes, dtype=array.dtype), tuple(
        dim for dim in dims if dim not in node.dims or dim in inner
    )
