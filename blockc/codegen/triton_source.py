"""The Triton emitter: a block program as one Python file that imports only torch and triton.

The file has one function for each launch and one, with the program's name, that takes and returns torch tensors of any
strides and starts them. Parallel maps at the top of a kernel become the grid; loops stay loops, with accumulators in
registers. Tiles have a power of two of elements along each axis: what a last block lacks is loaded as zeros, and where
that would change a result the program has masks (`passes/padding.py`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from blockc.codegen.triton_descriptors import Descriptors
from blockc.codegen.triton_grid import ANY, Device, count_text, order_lines, order_of
from blockc.codegen.triton_launch import launcher_lines, launcher_name
from blockc.codegen.triton_maps import (
    behind_loops,
    comment,
    head_text,
    inner_targets,
    load_later,
    load_ports,
    store,
    with_positions,
    write_body,
    write_definition,
)
from blockc.codegen.triton_ops import HELPERS
from blockc.codegen.triton_scales import LN_2, kept_as_powers, kept_without_scale
from blockc.codegen.triton_storage import ALONE, Around, Function, Options, Source, Storage
from blockc.codegen.triton_tiles import LEAST
from blockc.codegen.triton_values import Array, Kernel, Number, Tile
from blockc.ir.block import Apply, Definition, Graph, Map, Program, kernels, walk
from blockc.ir.parallel import needed, nested_maps

_PARAMETERS = re.compile(r"\b(?:[ax]\d+(?:_s\d+)?|[dfght]\d+|T\d+|SHORT\d+|DESC\d+)\b")
_CONSTANTS = ("g", "T", "SHORT", "DESC")  # what the names of parameters begin with that kernels are compiled for
_HELPERS = re.compile(r"\b_(?:maximum|minimum|tanh|pow)\b")


DEFAULT: Mapping[str, Options] = {}  # by function; others have those of `Options`


def emit(
    program: Program,
    tiles: Mapping[str, int],
    sizes: Mapping[str, int],
    header: tuple[str, ...] = (),
    options: Mapping[str, Options] = DEFAULT,
    device: Device = ANY,
    parts: Sequence[Part] = (),
    around: Around = ALONE,
) -> Source:
    """The Triton source of a program with masks for padding and without reductions of lists.

    `tiles` are powers of two for all dimensions that are cut, `sizes` those that it is tuned for, `options` how its
    functions are launched, `device` where their tasks are started. The file takes other sizes too; those that are whole
    may be as large as the next power of two. Of a program in several `parts`, functions have a comment that says which
    one they compute. `around` is what there is around the program, if it is a part itself.
    Unsupported if the program accumulates lists.
    """
    storage = Storage(program, around)
    kept = kept_without_scale(program, storage.arrays)
    scales = {**kept, **dict.fromkeys(kept_as_powers(program, kept, sizes), LN_2)}
    lengths = _lengths(program, tiles, sizes)
    numbers: dict[str, Number] = {}
    descriptors = Descriptors(lengths)
    functions: list[Function] = []
    for group in kernels(program):
        for launch in launches(group, storage.arrays):
            title = f"kernel{len(functions)}"
            kernel = Kernel(program, tiles, sizes, numbers, set(), storage.room, exact=storage.exact, scales=scales)
            if options.get(title, Options()).loads == "descriptors":
                kernel.descriptors = descriptors
            found = _function(kernel, storage, launch, title, device)
            functions.append(replace(found, part=_part_of(launch, parts)))
    read = {name for function in functions for name in function.parameters}
    numbers = {key: number for key, number in numbers.items() if number.name in read}
    constants: dict[str, int | bool | float] = {
        name: _constant(program, name, lengths, sizes) for f in functions for name in f.parameters
    }
    constants.update((number.name, number.value) for number in numbers.values())
    functions = [
        replace(
            found,
            constants={name: constants[name] for name, kind in found.parameters.items() if kind == "constexpr"},
            options=options.get(found.name, Options()),
        )
        for found in functions
    ]
    code = list(_code(functions, parts))
    used = dict.fromkeys(name for line in code for name in _HELPERS.findall(line))
    helpers = [line for name in HELPERS if name in used for line in ("", *HELPERS[name].rstrip("\n").split("\n"))]
    body = [
        *helpers,
        *code,
        "",
        "",
        *launcher_lines(program, storage, functions, lengths, numbers, descriptors),
    ]
    top = [_comment(line) for text in header for line in text.split("\n")]
    text = "\n".join([*top, *_legend(program, lengths), *_imports(numbers, descriptors), *body]) + "\n"
    strides = _strides(program, storage, lengths, sizes)
    described = {found.name: found.array.text for found in descriptors.made.values()}
    own = {f"d{number}": sizes[dim.name] for number, dim in enumerate(program.dims) if dim.name in sizes}
    return Source(text, launcher_name(program), tuple(functions), lengths, own, strides, described)


def _part_of(launch: Launch, parts: Sequence[Part]) -> int:
    """Which part a launch computes: that of what it gives."""
    given = {name for node in ((launch.task,) if launch.task is not None else launch.body) for name in node.defines}
    return max((at for at, part in enumerate(parts) if not given.isdisjoint(part.values)), default=0)


def _code(functions: Sequence[Function], parts: Sequence[Part]) -> Iterator[str]:
    """The functions, with a comment where another part begins."""
    before = -1
    for function in functions:
        yield from ("", "")
        if parts and function.part != before:
            yield from (_comment(f"Part {function.part}: {parts[function.part].title}"), "")
        before = function.part
        yield from function.text


def _comment(text: str) -> str:
    return ("# " + "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)).rstrip()


def _legend(program: Program, lengths: Mapping[str, int]) -> Iterator[str]:
    yield "#"
    yield "# Dimensions: dN is the size and TN the elements of a tile. bN is where the current block begins (oN in 64"
    yield "# bits), rN counts its elements, iN are their positions, inN says which exist; SHORTN: a block is not full."
    for number, dim in enumerate(program.dims):
        kind = "whole" if dim.name in program.whole else "cut"
        yield _comment(f"  d{number} is {dim.name}, {kind}, T{number} {lengths[dim.name]}")


def _imports(numbers: Mapping[str, Number], descriptors: Descriptors) -> Iterator[str]:
    yield ""
    if numbers or descriptors.made:
        yield "from functools import lru_cache"
        yield ""
    yield from ("import torch", "import triton", "import triton.language as tl")
    if descriptors.made:
        yield "from triton.tools.tensor_descriptor import TensorDescriptor"
    yield ""


def _lengths(program: Program, tiles: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, int]:
    """The elements of a tile along each dimension: a power of two, at least 16 where products take it."""
    result = {}
    products = product_dims(program)
    for dim in program.dims:
        if dim.name in tiles:
            result[dim.name] = tiles[dim.name]
        else:
            least = LEAST if dim.name in products else 1
            result[dim.name] = max(least, 1 << max(0, sizes[dim.name] - 1).bit_length())
    return result


def _constant(program: Program, name: str, lengths: Mapping[str, int], sizes: Mapping[str, int]) -> int | bool:
    """What a length or a flag of a dimension is at some sizes; 0 for other names."""
    if not name.startswith(("T", "SHORT")):
        return name.startswith("DESC")
    dim = program.dims[int(re.sub(r"\D", "", name))].name
    if name[0] == "T":
        return lengths[dim]
    return sizes[dim] != lengths[dim] if dim in program.whole else sizes[dim] % lengths[dim] != 0


def _strides(
    program: Program, storage: Storage, lengths: Mapping[str, int], sizes: Mapping[str, int]
) -> dict[str, int]:
    """The strides of all tensors if they are contiguous, in elements."""
    result = {}
    for array in storage.every():
        stride = 1
        for at in reversed(range(len(array.dims))):
            result[f"{array.text}_s{at}"] = stride
            dim = array.dims[at]
            base = program.chunks.get(dim, dim)
            stride *= -(-sizes[base] // lengths[dim]) if dim in array.counted else sizes[base]
    return result


def product_dims(program: Program) -> frozenset[str]:
    """The dimensions that are axes of a product that is summed."""
    types = program.types
    products = [node for node in program.facts.applies.values() if node.op == "contract" and node.name in types]
    return frozenset(dim for node in products for name in node.uses for dim in types[name].axes)


# Kernels


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a program: what it computes, for people, and the names that it binds in the top graph."""

    title: str
    values: frozenset[str]


@dataclass(frozen=True, slots=True)
class Launch:
    """A parallel map with the operators that it needs first, or definitions that one program executes."""

    before: tuple[Apply, ...]
    task: Map | None
    body: Graph

    @property
    def nodes(self) -> Graph:
        """All that it executes."""
        return self.body if self.task is None else (*self.before, self.task)


def launches(group: Graph, kept: Container[str]) -> Iterator[Launch]:
    """The launches of a kernel: each parallel map computes for itself what it needs of tile operators. `kept` are
    values that lie in memory."""
    applies = tuple(node for node in group if isinstance(node, Apply))
    rest: list[Definition] = []
    taken: set[str] = set()
    for node in group:
        if isinstance(node, Map) and not node.is_loop:
            before = needed(node, applies)
            taken.update(apply.name for apply in before)
            yield Launch(before, node, ())
        else:
            rest.append(node)
    if any(not isinstance(node, Apply) or node.name not in taken or node.name in kept for node in rest):
        yield Launch((), None, tuple(rest))


def _function(kernel: Kernel, storage: Storage, launch: Launch, title: str, device: Device) -> Function:
    nodes = launch.body if launch.task is None else (launch.task,)
    kernel.read = frozenset(port.source for node in walk(nodes) if isinstance(node, Map) for port in node.ports)
    grid = "1"
    head: list[str] = []
    kernel.environment.update(storage.arrays)
    if launch.task is not None:
        grid, head = _write_task(kernel, launch, storage, device)
    else:
        used = {name for node in launch.body for name in node.uses}
        made = {name for node in launch.body for name in node.defines}
        _load_items(kernel, used - made, storage, launch.body)
        for node in launch.body:  # one program does all of it
            targets = {name: storage.arrays[name] for name in node.defines if name in storage.arrays}
            write_definition(kernel, node, targets)
            for name in node.defines:
                value = kernel.environment[name]
                if name in targets and isinstance(value, Tile):
                    store(kernel, targets[name], value)
    body = [*head, *kernel.lines.text]
    body = [*_ranges(kernel.program, body), *body]
    names = set(_PARAMETERS.findall("\n".join(line for line in body if not line.lstrip().startswith("#"))))
    ordered = sorted(names, key=_order)
    texts = [f"{name}: tl.constexpr" if name.startswith(_CONSTANTS) else name for name in ordered]
    text = ("@triton.jit", f"def {title}({', '.join(texts)}):", *body)
    return Function(title, text, {entry: _type_of(entry, kernel, storage) for entry in ordered}, {}, grid, Options())


_POINTERS = {
    "float64": "*fp64",
    "float32": "*fp32",
    "float16": "*fp16",
    "bfloat16": "*bf16",
    "float8_e4m3fn": "*fp8e4nv",
    "float8_e5m2": "*fp8e5",
    "int32": "*i32",
    "int8": "*i8",
    "bool": "*i1",
}


def _type_of(name: str, kernel: Kernel, storage: Storage) -> str:
    """The type of a parameter, as Triton writes it."""
    if name.startswith(_CONSTANTS):
        return "constexpr"
    if name[0] == "t":
        assert kernel.descriptors is not None
        return kernel.descriptors.named(name).type
    if name[0] == "f":
        return "fp32"
    if name[0] in "dh" or "_s" in name:
        return "i32"
    return _POINTERS[next(array.element for array in storage.every() if array.text == name)]


def _order(name: str) -> tuple[int, list[int]]:
    kinds = ("a", "x", "t", "d", "f", "h", "g", "T", "S", "D")
    return kinds.index(name[0]), [int(part) for part in re.findall(r"\d+", name)]


def _ranges(program: Program, body: list[str]) -> list[str]:
    """What counts the elements of tiles, and for whole dimensions says which exist."""
    text = "\n".join(line for line in body if not line.lstrip().startswith("#"))
    lines = []
    for number, dim in enumerate(program.dims):
        inside = dim.name in program.whole and re.search(rf"\bin{number}\b", text)
        if inside or re.search(rf"\b[ri]{number}\b", text):
            lines.append(f"    r{number} = tl.arange(0, T{number})")
        if inside:
            lines.append(f"    in{number} = r{number} < d{number}")
    return lines


def _load_items(kernel: Kernel, names: set[str], storage: Storage, graph: Graph) -> None:
    """Load the items of the top graph that a launch uses; those that `graph` uses behind its loops, only there."""
    items = {name for name in names & storage.arrays.keys() if kernel.program.types[name].is_item}
    kernel.later.update(dict.fromkeys(sorted(items), ""))
    load_later(kernel, items - behind_loops(items, graph))


def _write_task(kernel: Kernel, launch: Launch, storage: Storage, device: Device) -> tuple[str, list[str]]:
    """Write the program of one task; the number of them, and the lines that find which one it is."""
    node = launch.task
    assert node is not None
    chain = nested_maps(kernel.program, node)
    kernel.mapped = kernel.tasks = tuple(link.dim for link in chain)
    used = {name for apply in launch.before for name in apply.uses}.union(*(link.captures for link in chain))
    made = {apply.name for apply in launch.before}
    bodies = [*(link.body[:-1] for link in chain[:-1]), chain[-1].body]  # of each, what is not the next one
    rest = (*launch.before, *itertools.chain(*bodies))
    _load_items(kernel, used - made, storage, rest)
    for apply in launch.before:
        write_definition(kernel, apply, {})
    results: dict[str, Array] = {name: storage.arrays[name] for name in node.defines}
    for link, inner in pairwise(chain):
        comment(kernel, head_text(link))
        load_ports(kernel, link, frozenset(port.name for port in link.ports), rest)
        for definition in link.body[:-1]:
            write_definition(kernel, definition, {})
        results = inner_targets(link, results)
        assert set(inner.defines) == set(results)
    comment(kernel, head_text(chain[-1]))
    write_body(kernel, chain[-1], results)
    order = order_of(kernel, node, kernel.loaded, device)
    lines = [f"    {line}" for line in order_lines(kernel, order)]
    body = kernel.lines.text
    for link in reversed(chain):
        body = with_positions(kernel, link.dim, body, 1)
    kernel.lines.text = body
    return " * ".join(count_text(kernel, dim) for dim in kernel.tasks), lines
