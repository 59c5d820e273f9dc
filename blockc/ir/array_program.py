"""The array program: a flat list of named-axis operators on whole arrays. What the language produces.

    program := dims, inputs, nodes, outputs
    node    := name = op(args)                one operator, assigned once; `shape` is its set of free dimensions
    op      := any elementwise operator of `ops.py` ("add", "exp", "where", ...)
             | "input" | "constant" | "size" | "index" | "cast" | "rename" | "contract" | "sum" | "max" | "min"

Axes have names and no order: `shape` lists them in the order of `ArrayProgram.dims`. Operands broadcast by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

Axis = tuple[str, ...]  # the dimensions packed into one array axis, outermost first; usually one

STRUCTURAL = frozenset({"input", "constant", "size", "index", "cast", "rename", "contract", "sum", "max", "min"})


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of source text: 1-based line and column, and the first column after it on its last line."""

    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, slots=True)
class Dim:
    """A dimension. `size` is None until run time; `same_as` names the dimension whose size a renamed one shares.

    In a block program a dimension may be cut a second time: `chunks_of` names the dimension whose blocks this one
    groups. It has the same elements, in larger blocks.
    """

    name: str
    size: int | None = None
    same_as: str | None = None
    chunks_of: str | None = None


def chunk_dim(name: str, of: str) -> Dim:
    """The dimension of chunks of another one's blocks."""
    return Dim(name, None, of, of)


@dataclass(frozen=True, slots=True)
class Argument:
    """An input or output array as the caller sees it: its axes in order, each one dimension or several packed."""

    name: str
    dtype: str
    axes: tuple[Axis, ...]
    span: Span | None = field(default=None, compare=False)

    @property
    def dims(self) -> tuple[str, ...]:
        """The dimensions in order, packed ones taken apart."""
        return tuple(dim for axis in self.axes for dim in axis)


@dataclass(frozen=True, slots=True)
class Node:
    """One operator.

    `dims` holds the dimensions that the operator itself names: reduced ones ("contract", "sum", "max", "min"), the one
    that "index" or "size" asks about, or (old, new) for "rename". `value` is set for "constant". `name` is the name
    that the source gave the value, or that name with a dotted number (`S.2`) for a part of its expression.
    """

    name: str
    op: str
    args: tuple[str, ...]
    dims: tuple[str, ...]
    shape: tuple[str, ...]
    dtype: str
    value: float | int | bool | None = None
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """An output: the argument that the caller gets, and the node whose value it is (broadcast to its dimensions)."""

    argument: Argument
    node: str


@dataclass(frozen=True, slots=True)
class ArrayProgram:
    """A checked program. Node names are unique; a node comes after its operands; inputs are nodes with op "input"."""

    name: str
    dims: tuple[Dim, ...]
    inputs: tuple[Argument, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Result, ...]
    source: str = ""
    filename: str = "<string>"

    def dim(self, name: str) -> Dim:
        """The dimension called `name`; KeyError if there is none."""
        for dim in self.dims:
            if dim.name == name:
                return dim
        raise KeyError(name)


def text(program: ArrayProgram) -> str:
    """The program as one line per node, for `blockc show --stage array` and for tests."""
    lines = [f"array program {program.name}"]
    for dim in program.dims:
        size = f" = {dim.size}" if dim.size is not None else f" = size of {dim.same_as}" if dim.same_as else ""
        lines.append(f"  dim {dim.name}{size}")
    for node in program.nodes:
        operands = [*node.args] if node.value is None else [repr(node.value)]
        marks = ", ".join(node.dims) if node.op != "rename" else " -> ".join(node.dims)
        op = f"{node.op}[{marks}]" if node.dims else node.op
        call = "input" if node.op == "input" else f"{op}({', '.join(operands)})"
        lines.append(f"  {node.name}: {node.dtype}[{', '.join(node.shape)}] = {call}")
    for result in program.outputs:
        lines.append(f"  output {result.argument.name}: {argument_type(result.argument)} = {result.node}")
    return "\n".join(lines) + "\n"


def argument_type(argument: Argument) -> str:
    """The type of an argument as the language writes it, such as `f16[b, (h, d)]`."""
    axes = (axis[0] if len(axis) == 1 else f"({', '.join(axis)})" for axis in argument.axes)
    return f"{argument.dtype}[{', '.join(axes)}]"


class HasDims(Protocol):
    """An array program or a block program."""

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The declared dimensions."""
        ...


def sizes(program: HasDims, known: Mapping[str, int]) -> dict[str, int]:
    """Every dimension's size, from declared sizes, `known` ones and renames. Dimensions that stay open are absent."""
    result = {dim.name: dim.size for dim in program.dims if dim.size is not None}
    result.update(known)
    renamed = [dim for dim in program.dims if dim.same_as is not None]
    for _ in renamed:
        for dim in renamed:
            if dim.same_as in result and dim.name not in result:
                result[dim.name] = result[dim.same_as]
            if dim.same_as is not None and dim.name in result and dim.same_as not in result:
                result[dim.same_as] = result[dim.name]
    return result
