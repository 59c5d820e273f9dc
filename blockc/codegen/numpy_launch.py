"""The `launch` function of generated NumPy files: sizes from shapes, memory for lists, kernels in order, outputs."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from blockc.codegen.kernel_state import Kernel
from blockc.codegen.numpy_values import (
    Lines,
    Listing,
    compute_dtype,
    dtype_text,
    element_dtype,
    permuted,
    product,
    sequence,
    shape_text,
)
from blockc.codegen.scratch import Pool, Scope
from blockc.ir.array_program import Argument
from blockc.ir.block import Map, Program, Rename, Result, kernels
from blockc.ir.dtypes import DTYPES


@dataclass(frozen=True, slots=True)
class Storage:
    """Where the values of the top graph lie: inputs, lists, and items that several kernels use.

    `made` are the arrays that launch allocates, `direct` the outputs whose value is computed in their own array.
    """

    lists: Mapping[str, Listing]
    made: tuple[Listing, ...]
    direct: frozenset[str]


def allocate(program: Program, tiles: Mapping[str, int]) -> Storage:
    """Decide where every value of the top graph is stored."""
    kernel = Kernel(program, tiles, dict(program.types), set())
    scope = Scope(Lines(), Pool("r", kernel.numbers))
    lists = {entry.name: _input(kernel, entry.name) for entry in program.inputs}
    groups = kernels(program)
    home = {name: number for number, graph in enumerate(groups) for d in graph for name in d.defines}
    readers: dict[str, set[int]] = {}
    for number, graph in enumerate(groups):
        for definition in graph:
            for name in definition.uses:
                readers.setdefault(name, set()).add(number)
    renamed = {definition.source for definition in program.body if isinstance(definition, Rename)}
    wanted = {result.value for result in program.outputs} | renamed
    stacked = {
        name
        for definition in program.body
        if isinstance(definition, Map)
        for output in definition.outputs
        if output.monoid is None
        for name in output.names
    }
    outputs: dict[str, Result] = {}
    for result in program.outputs:
        alone = not readers.get(result.value) and result.value not in renamed
        same = element_dtype(result.argument.dtype) == element_dtype(kernel.types[result.value].dtype)
        if result.value in home and result.value not in outputs and (alone or (same and result.value in stacked)):
            outputs[result.value] = result
    made: list[Listing] = []
    for definition in program.body:
        if isinstance(definition, Rename):
            lists[definition.name] = _renamed(kernel, lists[definition.source], definition)
            continue
        for name in definition.defines:
            kind = kernel.types[name]
            if kind.is_item and name not in wanted and readers.get(name, set()) <= {home[name]}:
                continue
            compute = compute_dtype(kind.dtype)
            axes = kernel.list_axes(scope, kind)
            stored = compute if kind.is_item else element_dtype(kind.dtype)
            if name in outputs:
                argument = outputs[name].argument
                axes = tuple(kernel.full_axis(dim) for dim in argument.dims)
                stored = element_dtype(argument.dtype)
            lists[name] = Listing(f"x{len(made)}", axes, compute, stored, kind.lists)
            made.append(lists[name])
    return Storage(lists, tuple(made), frozenset(result.argument.name for result in outputs.values()))


def _input(kernel: Kernel, name: str) -> Listing:
    program = kernel.program
    entry = next(entry for entry in program.inputs if entry.name == name)
    position = [argument.name for argument in program.arguments].index(entry.argument)
    axes = tuple(kernel.full_axis(dim) for dim in entry.dims)
    stored = element_dtype(program.arguments[position].dtype)
    return Listing(f"a{position}", axes, compute_dtype(entry.dtype), stored, kernel.types[name].lists)


def _renamed(kernel: Kernel, source: Listing, definition: Rename) -> Listing:
    """The same array under another name of one dimension."""
    new = kernel.full_axis(definition.new)
    axes = tuple(new if axis.dim == definition.old else axis for axis in source.axes)
    lists = kernel.types[definition.name].lists
    return Listing(source.text, axes, source.dtype, source.stored, lists)


# The function


def launch_lines(
    program: Program,
    tiles: Mapping[str, int],
    storage: Storage,
    calls: Sequence[tuple[str, ...]],
    helpers: Container[str],
) -> Iterator[str]:
    """The lines of `launch`. `calls` are the kernels' calls, each followed by the arrays that it reads and writes."""
    limits = "one_thread(), one_thread_of_torch()" if "product" in helpers else "one_thread()"
    yield "def launch(arrays, threads=None):"
    yield '    """Return the outputs by name. `arrays`: the inputs by name, in any strides.'
    yield ""
    yield "    Sizes follow from the shapes; ValueError names an array that does not fit. The number of"
    yield "    threads changes no bit of the results."
    yield '    """'
    yield "    if threads is None:"
    yield "        threads = available()"
    yield f'    with {limits}, np.errstate(all="ignore"):'
    lines = Lines()
    for position, argument in enumerate(program.arguments):
        dtype = dtype_text(element_dtype(argument.dtype))
        name = json.dumps(argument.name)
        lines.add(f"a{position} = argument(arrays, {name}, {dtype}, {len(argument.axes)})")
    lines.add(*size_lines(program))
    for position, argument in enumerate(program.arguments):
        lines.add(f"check({json.dumps(argument.name)}, a{position}, {packed_shape(program, argument)})")
        if any(len(axis) > 1 for axis in argument.axes):
            lines.add(f"a{position} = a{position}.reshape({sequence(sizes_of(program, argument.dims))})")
    lines.add(*_memory_lines(program, tiles, storage))
    kept = {storage.lists[result.value].text for result in program.outputs}
    made = {listing.text for listing in storage.made} - kept
    last = {array: number for number, (_, *arrays) in enumerate(calls) for array in arrays if array in made}
    unneeded: dict[int, list[str]] = {}
    for array, number in last.items():
        unneeded.setdefault(number, []).append(array)
    for number, (call, *_) in enumerate(calls):
        lines.add(call)
        if number in unneeded:
            lines.add(f"del {', '.join(unneeded[number])}")
    lines.add("return {")
    lines.nest().add(*(f"{json.dumps(r.argument.name)}: {_output(program, storage, r)}," for r in program.outputs))
    lines.add("}")
    yield from lines.render("        ")


def sizes_of(program: Program, dims: Sequence[str]) -> list[str]:
    return [f"d{program.rank[dim]}" for dim in dims]


def packed_shape(program: Program, argument: Argument) -> str:
    return sequence(product(sizes_of(program, axis)) for axis in argument.axes)


def _memory_lines(program: Program, tiles: Mapping[str, int], storage: Storage) -> Iterator[str]:
    counts = sorted({axis for listing in storage.made for axis in listing.axes if axis.extent.startswith("k")}, key=str)
    for axis in counts:
        size = f"d{axis.extent[1:]}"
        tile = f"max(1, {size})" if axis.dim not in tiles else f"max(1, min({tiles[axis.dim]}, {size}))"
        yield f"{axis.extent} = -(-{size} // {tile})"
    for listing in storage.made:
        yield f"{listing.text} = np.empty({shape_text(listing.axes)}, {dtype_text(listing.stored)})"


def _output(program: Program, storage: Storage, result: Result) -> str:
    listing = storage.lists[result.value]
    argument = result.argument
    if argument.name in storage.direct:
        text = listing.text
    else:
        view = permuted(listing.text, [axis.dim for axis in listing.axes], argument.dims)
        text = f'np.array({view}, {dtype_text(element_dtype(argument.dtype))}, order="C")'
    packed = any(len(axis) > 1 for axis in argument.axes)
    return f"{text}.reshape({packed_shape(program, argument)})" if packed else text


def size_lines(program: Program) -> list[str]:
    """Statements that set the size of every dimension, from declarations and from the shapes of the arguments."""
    sizes = {dim.name: f"{dim.size}" for dim in program.dims if dim.size is not None}
    same = [(dim.name, dim.same_as) for dim in program.dims if dim.same_as is not None]
    by_name = {argument.name: argument for argument in program.arguments}
    for entry in program.inputs:
        same += [pair for pair in zip(entry.dims, by_name[entry.argument].dims, strict=True) if pair[0] != pair[1]]
    before = -1
    while before < len(sizes):
        before = len(sizes)
        _shape_sizes(program, sizes)
        for first, second in (*same, *((b, a) for a, b in same)):
            if second in sizes:
                sizes.setdefault(first, f"d{program.rank[second]}")
    missing = [dim.name for dim in program.dims if dim.name not in sizes]
    if missing:
        raise ValueError(f"the size of `{missing[0]}` follows from no array")
    return [f"d{program.rank[dim]} = {text}" for dim, text in sizes.items()]


def _shape_sizes(program: Program, sizes: dict[str, str]) -> None:
    for position, argument in enumerate(program.arguments):
        for number, axis in enumerate(argument.axes):
            unknown = [dim for dim in axis if dim not in sizes]
            if len(unknown) == 1:
                others = [dim for dim in axis if dim != unknown[0]]
                divisor = f" // max(1, {product(sizes_of(program, others))})" if others else ""
                sizes[unknown[0]] = f"a{position}.shape[{number}]{divisor}"


def main_lines(program: Program) -> Iterator[str]:
    """The lines that run the file by itself, on random data of small sizes."""
    sizes = {dim.name: dim.size if dim.size is not None else 8 for dim in program.dims}
    yield 'if __name__ == "__main__":'
    yield "    random = np.random.default_rng(0)"
    yield "    example = {"
    for argument in program.arguments:
        extents = []
        for axis in argument.axes:
            extent = 1
            for dim in axis:
                extent *= sizes[dim]
            extents.append(str(extent))
        shape = sequence(extents)
        real = DTYPES[argument.dtype].kind == "float"
        data = f"random.standard_normal({shape})" if real else f"random.integers(0, 2, {shape})"
        yield f"        {json.dumps(argument.name)}: np.asarray({data}, {dtype_text(element_dtype(argument.dtype))}),"
    yield "    }"
    yield "    for name, array in launch(example).items():"
    yield "        print(name, array.dtype, array.shape)"
