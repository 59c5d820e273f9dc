"""Where the values of a program lie in GPU memory: arguments, and what launches make for others and as outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from blockc.codegen.triton_values import Array
from blockc.ir.array_program import Argument
from blockc.ir.block import Map, Program, Rename, kernels, walk
from blockc.ir.dtypes import DTYPES, NUMPY_NAMES

Loading = Literal["pointers", "descriptors"]
LOADS: tuple[Loading, ...] = get_args(Loading)


@dataclass(frozen=True, slots=True)
class Options:
    """What a kernel is launched with, and how it loads tiles: by descriptors only where tensors allow it."""

    warps: int = 4
    stages: int = 2
    loads: Loading = "pointers"


@dataclass(frozen=True, slots=True)
class Function:
    """A launch: its name, its text, its parameters in order with their types as Triton writes them, what constants
    among them are at the sizes that the file is tuned for, how many programs there are, as an expression, how it is
    launched, and which part of the program it computes."""

    name: str
    text: tuple[str, ...]
    parameters: Mapping[str, str]
    constants: Mapping[str, int | bool | float]
    grid: str
    options: Options
    part: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """A file, the function that starts its launches, and these. `lengths` are the elements of a tile along each
    dimension, `sizes` and `strides` those of contiguous tensors that the file is tuned for, by parameter, `described`
    the tensors that parameters are descriptors of."""

    text: str
    launcher: str
    functions: tuple[Function, ...]
    lengths: Mapping[str, int]
    sizes: Mapping[str, int]
    strides: Mapping[str, int]
    described: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Around:
    """What kernels outside a part do with its arguments: some of its inputs were `computed` by them, and some of its
    outputs will be `rounded` to 16 bits before they are used."""

    computed: frozenset[str] = frozenset()
    rounded: frozenset[str] = frozenset()


ALONE = Around()


def exact_values(program: Program, around: Around = ALONE) -> frozenset[str]:
    """The values that become part of outputs of 32 bits or more, which no operand may be rounded to 16 bits for."""
    made: dict[str, frozenset[str]] = {}
    for node in walk(program.body):
        if isinstance(node, Map):
            made.update((port.name, frozenset((port.source,))) for port in node.ports)
            made.update((name, frozenset(output.values)) for output in node.outputs for name in output.names)
        else:
            made.update((name, node.uses) for name in node.defines)
    results = [result for result in program.outputs if result.argument.name not in around.rounded]
    waiting = [result.value for result in results if DTYPES[result.argument.dtype].size >= 4]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(made.get(name, ()))
    return frozenset(found)


class Storage:
    """The tensors of the values of the top graph, and of lists inside kernels."""

    def __init__(self, program: Program, around: Around = ALONE) -> None:
        self.program = program
        self.arrays: dict[str, Array] = {}
        self.made: dict[str, tuple[Array, Argument | None]] = {}  # by variable
        self.exact = exact_values(program, around)
        positions = {argument.name: at for at, argument in enumerate(program.arguments)}
        for entry in program.inputs:
            at = positions[entry.argument]
            element, computed = NUMPY_NAMES[program.arguments[at].dtype], entry.argument in around.computed
            self.arrays[entry.name] = Array(f"a{at}", entry.dims, element, computed=computed)
        groups = kernels(program)
        home = {name: at for at, group in enumerate(groups) for node in group for name in node.defines}
        readers: dict[str, set[int]] = {}
        for at, group in enumerate(groups):
            for node in group:
                for name in node.uses:
                    readers.setdefault(name, set()).add(at)
        renamed = {node.source for node in program.body if isinstance(node, Rename)}
        results = {result.value: result.argument for result in reversed(program.outputs)}
        for node in program.body:
            if isinstance(node, Rename):
                source = self.arrays[node.source]
                dims = tuple(node.new if dim == node.old else dim for dim in source.dims)
                self.arrays[node.name] = replace(source, dims=dims)
                continue
            for name in node.defines:
                kind = program.types[name]
                if (
                    kind.is_item
                    and name not in results
                    and name not in renamed
                    and readers.get(name, set()) <= {home[name]}
                ):
                    continue
                argument = results.get(name)
                if argument is not None and (readers.get(name) or name in renamed) and argument.dtype != kind.dtype:
                    argument = None  # others read it as it was before it is rounded
                dims = argument.dims if argument is not None else program.ordered((*kind.lists, *kind.axes))
                element = NUMPY_NAMES[argument.dtype if argument is not None else kind.dtype]
                counted = frozenset(dim for dim in kind.lists if dim not in kind.axes)
                text = f"x{len(self.made)}"
                self.arrays[name] = Array(text, dims, element, counted, computed=True)
                self.made[text] = self.arrays[name], argument

    def every(self) -> Iterator[Array]:
        """All tensors."""
        yield from self.arrays.values()
        yield from (array for array, _ in self.made.values())

    def room(self, name: str, tasks: tuple[str, ...]) -> Array:
        """Memory for a list that a kernel makes and uses: each task has its own."""
        kind = self.program.types[name]
        own = tuple(dim for dim in tasks if dim not in (*kind.lists, *kind.axes))
        dims = (*own, *self.program.ordered((*kind.lists, *kind.axes)))
        counted = frozenset(dim for dim in (*own, *kind.lists) if dim not in kind.axes)
        array = Array(f"x{len(self.made)}", dims, NUMPY_NAMES[kind.dtype], counted, computed=True)
        self.made[array.text] = array, None
        return array
