"""The NumPy emitter: a block program as one Python file that runs on its own.

The file has one function per kernel and `launch`, which takes the input arrays by name and returns the outputs. The
parallel maps at the top of a kernel become tasks for a pool of threads, each with scratch memory of its own; maps
below them become loops. User names appear in comments and in string literals only.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping

from blockc.codegen.exponents import read_as_numbers
from blockc.codegen.kernel_state import Kernel
from blockc.codegen.numpy_helpers import HELPERS, LEAST, REQUIRES
from blockc.codegen.numpy_launch import Storage, allocate, launch_lines, main_lines
from blockc.codegen.numpy_maps import (
    comment,
    comment_text,
    head_text,
    inner_targets,
    load,
    load_ports,
    port_names,
    release,
    write_body,
    write_definition,
)
from blockc.codegen.numpy_values import Lines, Listing, Tile, aligned, dtype_text, product
from blockc.codegen.scale_folding import fold_scales
from blockc.codegen.scratch import Pool, Scope
from blockc.ir.block import Graph, Map, Program, kernels, walk
from blockc.ir.machine import NUMPY
from blockc.ir.parallel import nested_maps

_SIZE, _TILE, _COUNT = re.compile(r"\bd\d+\b"), re.compile(r"\bt\d+\b"), re.compile(r"\bk\d+\b")
_ARRAY = re.compile(r"\b[ax]\d+\b")


def emit(
    program: Program,
    tiles: Mapping[str, int],
    header: tuple[str, ...] = (),
    empty: frozenset[str] = frozenset(),
    products: str = NUMPY,
) -> str:
    """The Python source of a verified program.

    `tiles` gives the elements per block of each dimension that is cut; one that is absent is one block. `header` are
    lines that go into a comment at the top; `empty` dimensions that will have no elements; `products` the library that
    multiplies matrices. The file defines `launch(arrays, threads=None)`, arrays by argument name in any strides.
    ValueError if the size of a dimension follows from no array and no declaration.
    """
    program = fold_scales(program, empty)
    storage = allocate(program, tiles)
    helpers = {"argument", "check", "one_thread"}
    functions: list[str] = []
    calls: list[tuple[str, ...]] = []
    for position, graph in enumerate(kernels(program)):
        kernel = Kernel(program, tiles, ChainMap({}, program.facts.types), helpers, products=products)
        lines = list(_kernel_function(kernel, storage, graph, position))
        functions += ["", "", *lines]
        calls.append((lines[0].removeprefix("def ").removesuffix(":"), *_reads_and_writes(storage, graph)))
    launch = launch_lines(program, tiles, storage, calls, helpers)
    body = "\n".join([*functions, "", "", *launch, "", "", *main_lines(program)])
    top = [comment_text(line) for text in header for line in text.split("\n")]
    return "\n".join([*top, *_legend(program, tiles), *_imports(body, helpers), *_helper_lines(helpers), body]) + "\n"


def for_self_check(source: str) -> str:
    """The source with products by torch, if it has any, from one multiplication on: the check has no large ones."""
    return source.replace(LEAST, "LEAST = 1")


def _legend(program: Program, tiles: Mapping[str, int]) -> Iterator[str]:
    yield "#"
    yield "# Dimensions: dN is the size, tN the size of a block, bN:eN the current block and wN its length."
    for number, dim in enumerate(program.dims):
        cut = f"blocks of {tiles[dim.name]}" if dim.name in tiles else "one block"
        yield comment_text(f"  d{number} is {dim.name}, {'whole' if dim.name in program.whole else cut}")


def _imports(body: str, helpers: Iterable[str]) -> Iterator[str]:
    needed = {line for helper in helpers for line in REQUIRES[helper]}
    needed |= {f"import {name}" for name in ("itertools", "math") if f"{name}." in body}
    third = {"import numpy as np"} | ({"import ml_dtypes"} if "ml_dtypes." in body else set())
    third |= {line for line in needed if "threadpoolctl" in line}
    yield ""
    yield from sorted(needed - third, key=lambda line: (line.startswith("from"), line))
    yield ""
    yield from sorted(third, key=lambda line: (line.startswith("from"), line))


def _helper_lines(helpers: Iterable[str]) -> Iterator[str]:
    for name in HELPERS:
        if name in helpers:
            yield ""
            yield HELPERS[name].rstrip("\n")


# Kernels


def _kernel_function(kernel: Kernel, storage: Storage, graph: Graph, position: int) -> Iterator[str]:
    """The lines of one kernel's function."""
    kernel.read = read_as_numbers(graph) | storage.lists.keys()
    statements = Lines()
    scope = Scope(statements, Pool("r", kernel.numbers))
    used = {name for definition in graph for name in definition.uses}
    made = {name for definition in graph for name in definition.defines}
    for name in sorted(used - made):
        listing = storage.lists[name]
        kernel.environment[name] = listing if listing.lists else load(kernel, scope, listing)
    last = {name: number for number, definition in enumerate(graph) for name in (*definition.uses, *definition.defines)}
    for number, definition in enumerate(graph):
        targets = {name: storage.lists[name] for name in definition.defines if name in storage.lists}
        lists = {name: target for name, target in targets.items() if target.lists}
        ends = frozenset(name for name in (*definition.uses, *definition.defines) if last[name] == number)
        if isinstance(definition, Map) and not definition.is_loop:
            _write_tasks(kernel, scope, definition, lists)
        else:
            write_definition(kernel, scope, definition, ends & made, lists)
        for name, target in targets.items():
            _keep(kernel, scope, name, target)
        release(kernel, scope, ends)
    yield from _assemble(kernel, scope, position)


def _keep(kernel: Kernel, scope: Scope, name: str, target: Listing) -> None:
    """Store an item or an accumulated list of the top graph where other kernels find it."""
    value = kernel.environment[name]
    if isinstance(value, Tile) or value.text != target.text:
        tile = value if isinstance(value, Tile) else Tile(value.selected, value.rest, value.dtype)
        dims = [axis.dim for axis in target.axes]
        scope.lines.add(f'np.copyto({target.text}, {aligned(tile, dims)}, casting="unsafe")')


def _assemble(kernel: Kernel, scope: Scope, position: int) -> Iterator[str]:
    pool = scope.pool
    memory = [f"{name} = np.empty({size}, {dtype})" for name, (size, dtype) in pool.allocations.items()]
    memory += [f"{array} = np.arange({kernel.size(dim)})" for dim, array in kernel.positions.items()]
    memory += [f"{array} = np.ones({length}, {dtype_text(dtype)})" for (length, dtype), array in kernel.ones.items()]
    body = [*kernel.constant_lines.render(), *memory, *scope.head.render(), *scope.lines.render()]
    code = "\n".join(line for line in body if not line.lstrip().startswith("#"))
    definitions = [f"{name} = -(-d{name[1:]} // t{name[1:]})" for name in _names(_COUNT, code)]
    tiles = _names(_TILE, "\n".join([code, *definitions]))
    dims = kernel.program.dims
    extents = [(name, kernel.tiles.get(dims[int(name[1:])].name)) for name in tiles]
    blocks = [
        f"{name} = max(1, d{name[1:]})" if tile is None else f"{name} = max(1, min({tile}, d{name[1:]}))"
        for name, tile in extents
    ]
    preamble = [*blocks, *definitions]
    parameters = [*_names(_SIZE, "\n".join([code, *preamble])), *_names(_ARRAY, code)]
    threads = ["threads"] if re.search(r"\bthreads\b", code) else []
    yield f"def kernel{position}({', '.join([*threads, *parameters])}):"
    yield from (f"    {line}" if line else "" for line in [*preamble, *body])


def _names(pattern: re.Pattern[str], code: str) -> list[str]:
    return sorted(set(pattern.findall(code)), key=lambda name: (name[0], int(name[1:])))


def _reads_and_writes(storage: Storage, graph: Graph) -> tuple[str, ...]:
    names = [name for definition in graph for name in (*definition.uses, *definition.defines)]
    return tuple(dict.fromkeys(storage.lists[name].text for name in names if name in storage.lists))


# Tasks


def _write_tasks(kernel: Kernel, scope: Scope, node: Map, targets: Mapping[str, Listing]) -> None:
    """Write a parallel map as tasks: one for each block of it and of the parallel maps that are all of its body."""
    task = Scope(Lines(), Pool("s", kernel.numbers))
    results = dict(targets)
    chain = nested_maps(kernel.program, node)
    _enter(kernel, task, node)
    for inner in chain[1:]:
        load_ports(kernel, task, node)
        for definition in node.body[:-1]:
            write_definition(kernel, task, definition, frozenset(), {})
        results = inner_targets(kernel, node, results)
        node = inner
        _enter(kernel, task, node)
    write_body(kernel, task, node, results, {})
    kernel.environment.update(targets)
    ranges = [kernel.blocks_text(scope, link.dim) for link in chain]
    blocks = ", ".join(f"b{kernel.number(link.dim)}" for link in chain)
    _write_scratch(kernel, scope, task.pool)
    scope.lines.add("", f"def task(room, {blocks}):")
    inside = scope.lines.nest()
    if task.pool.allocations:
        inside.add(f"{', '.join(task.pool.allocations)}{',' if len(task.pool.allocations) == 1 else ''} = room")
    inside.parts += [task.start, task.head, task.lines]
    indices = f"itertools.product({', '.join(ranges)})"
    scope.lines.add("", f"run(task, scratch, {indices}, threads, {_work(kernel, chain[0])})")
    kernel.helpers.add("run")


def _enter(kernel: Kernel, task: Scope, node: Map) -> None:
    """Make the task one for a block of the map's dimension too."""
    comment(task, head_text(node))
    number, (_, end) = kernel.number(node.dim), kernel.bounds(task, node.dim)
    task.blocks = {**task.blocks, node.dim: kernel.block_axis(node.dim)}
    task.ports |= port_names(node)
    if not kernel.is_unit(node.dim):
        task.start.add(f"e{number} = min(b{number} + t{number}, {end})")
        if node.dim not in kernel.program.chunks:  # no tile has an axis of chunks
            task.start.add(f"w{number} = e{number} - b{number}")


def _write_scratch(kernel: Kernel, scope: Scope, pool: Pool) -> None:
    """Write what each thread begins with: memory, and a limit of torch, which has one in every thread."""
    scope.lines.add("", "def scratch():")
    inside = scope.lines.nest()
    if "product" in kernel.helpers:
        inside.add("limit_torch()")
    arrays = [f"np.empty({size}, {dtype})" for size, dtype in pool.allocations.values()]
    if not arrays:
        inside.add("return ()")
        return
    inside.add("return (")
    inside.nest().add(*(f"{array}," for array in arrays))
    inside.add(")")


def _work(kernel: Kernel, node: Map) -> str:
    """The number of elements that the map goes through, as a Python expression."""
    dims = {node.dim}
    for definition in walk((node,)):
        if isinstance(definition, Map):
            dims.add(definition.dim)
        for name in definition.defines:
            dims.update(kernel.types[name].axes)
    return product(kernel.size(dim) for dim in kernel.program.ordered(dims - kernel.program.chunks.keys()))
