"""Arrays for programs: NumPy types, sizes from array shapes, random inputs.

An array argument has the axes of its declaration, in order; an axis that packs dimensions `(h, d)` is one array axis of
size h*d.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockc.errors import LimitError, Problem, UsageError
from blockc.ir import array_program, dtypes
from blockc.ir.array_program import Argument, ArrayProgram

Array = NDArray[Any]

_MISSING_FROM_NUMPY = frozenset({"bf16", "f8e4m3", "f8e5m2"})

# Random integers are drawn from -range to range - 1: small enough that sums and products of them stay far inside i32.
_INTEGER_RANGE = 8


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy type of an element type of the language. LimitError if it needs `ml_dtypes` and that is missing."""
    if name not in _MISSING_FROM_NUMPY:
        return np.dtype(dtypes.NUMPY_NAMES[name])
    try:
        import ml_dtypes
    except ImportError as error:
        message = f"the type {name} needs the package `ml_dtypes`, which is not installed"
        raise LimitError((Problem("E0901", message, hint="pip install ml_dtypes"),)) from error
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, dtypes.NUMPY_NAMES[name]))
    return dtype


def random_arrays(program: ArrayProgram, sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
    """One array for every input, in its declared type: N(0, 1), integers uniform in [-8, 8), booleans a fair coin.

    The same seed gives the same arrays; an argument's values do not depend on the other arguments' types.
    """
    return {
        argument.name: _random_array(argument, array_shape(argument, sizes), np.random.default_rng([seed, position]))
        for position, argument in enumerate(program.inputs)
    }


def _random_array(argument: Argument, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    dtype = numpy_dtype(argument.dtype)
    match dtypes.DTYPES[argument.dtype].kind:
        case "bool":
            return generator.integers(0, 2, shape).astype(dtype)
        case "int":
            return generator.integers(-_INTEGER_RANGE, _INTEGER_RANGE, shape).astype(dtype)
        case _:
            return np.asarray(generator.standard_normal(shape)).astype(dtype)


def array_shape(argument: Argument, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of the array of an argument: one entry for every declared axis, packed dimensions multiplied."""
    return tuple(math.prod(sizes[dim] for dim in axis) for axis in argument.axes)


def with_equals(program: ArrayProgram, known: Mapping[str, int]) -> dict[str, int]:
    """The sizes with those of dimensions that are renamed to one another."""
    sizes = array_program.sizes(program, known)
    pairs = [node.dims for node in program.nodes if node.op == "rename"]
    for _ in pairs:
        for old, new in (*pairs, *((new, old) for old, new in pairs)):
            if old in sizes:
                sizes.setdefault(new, sizes[old])
        sizes = array_program.sizes(program, sizes)
    return sizes


def sizes_of(
    program: ArrayProgram, arrays: Mapping[str, Array], known: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The size of every dimension, from the shapes of all inputs, declared sizes, renames and `known` sizes.

    Raises UsageError, naming the argument and the axis, if an argument is missing or unknown, has the wrong rank, or
    contradicts another size, and if a dimension's size follows from nothing.
    """
    _check_names(program, arrays)
    origins = {dim.name: "the program" for dim in program.dims if dim.size is not None}
    sizes = array_program.sizes(program, {})
    for dim, size in (known or {}).items():
        if sizes.setdefault(dim, size) != size:
            raise UsageError(f"dimension `{dim}` has size {sizes[dim]} in {origins.get(dim, 'a rename')}, not {size}")
        origins.setdefault(dim, "the given sizes")
    axes = [
        (argument, position, int(extent))
        for argument in program.inputs
        for position, extent in enumerate(_checked_shape(argument, arrays[argument.name]))
    ]
    sizes = array_program.sizes(program, sizes)
    # Every round settles at least one dimension, or it is the last.
    for _ in range(len(program.dims) + 1):
        for argument, position, extent in axes:
            _settle_axis(argument, position, extent, sizes, origins)
        sizes = array_program.sizes(program, sizes)
    _check_complete(program, sizes)
    _check_renames(program, sizes)
    return sizes


def _check_names(program: ArrayProgram, arrays: Mapping[str, Array]) -> None:
    declared = [argument.name for argument in program.inputs]
    for name in arrays:
        if name not in declared:
            raise UsageError(f"program `{program.name}` has no input `{name}`", f"its inputs: {', '.join(declared)}")
    for argument in program.inputs:
        if argument.name not in arrays:
            raise UsageError(f"input `{argument.name}` is missing: it is {array_program.argument_type(argument)}")


def _checked_shape(argument: Argument, value: Array) -> tuple[int, ...]:
    shape = np.shape(value)
    if len(shape) != len(argument.axes):
        wanted, kind = len(argument.axes), array_program.argument_type(argument)
        raise UsageError(f"input `{argument.name}` has {len(shape)} axes {shape}, not {wanted}: it is {kind}")
    return shape


def _settle_axis(
    argument: Argument, position: int, extent: int, sizes: dict[str, int], origins: dict[str, str]
) -> None:
    """Check one array axis against the known sizes, and add the size of its only dimension without one."""
    axis = argument.axes[position]
    unknown = [dim for dim in axis if dim not in sizes]
    product = math.prod(sizes[dim] for dim in axis if dim in sizes)
    place = f"input `{argument.name}`, axis {position} `{_axis_text(axis)}`"
    if not unknown:
        if product != extent:
            origin = origins.get(axis[0], "a rename") if len(axis) == 1 else "the other sizes"
            raise UsageError(f"{place}: size {extent}, but {origin} {_give(origin)} {product}")
    elif product == 0 and extent != 0:
        raise UsageError(f"{place}: size {extent}, but a dimension in it has size 0")
    elif product != 0 and extent % product != 0:
        raise UsageError(f"{place}: size {extent} is not a multiple of {product}")
    elif product != 0 and len(unknown) == 1:
        sizes[unknown[0]] = extent // product
        origins[unknown[0]] = f"input `{argument.name}`"


def _give(origin: str) -> str:
    return "give" if origin.endswith("sizes") else "gives"


def _check_complete(program: ArrayProgram, sizes: Mapping[str, int]) -> None:
    for dim in program.dims:
        if dim.name in sizes:
            continue
        packed = [argument.name for argument in program.inputs if dim.name in argument.dims]
        where = f": input `{packed[0]}` packs it with another one" if packed else ": no input has it"
        raise UsageError(f"the size of dimension `{dim.name}` is not known{where}", f"give it: {dim.name}=SIZE")


def _check_renames(program: ArrayProgram, sizes: Mapping[str, int]) -> None:
    pairs = [(dim.same_as, dim.name) for dim in program.dims if dim.same_as is not None]
    pairs += [(node.dims[0], node.dims[1]) for node in program.nodes if node.op == "rename"]
    for old, new in pairs:
        if sizes[old] != sizes[new]:
            raise UsageError(f"`{old}` of size {sizes[old]} is renamed to `{new}` of size {sizes[new]}")


def _axis_text(axis: tuple[str, ...]) -> str:
    return axis[0] if len(axis) == 1 else f"({', '.join(axis)})"
