"""What the NumPy emitter keeps about the values of a kernel: nested source lines, tiles, lists, and scratch buffers.

A buffer is flat and holds one tile at a time; the arrays that kernels work on are views of its first elements, so short
last blocks are contiguous too. A view is made where its shape becomes known: in the head of the innermost loop that
sets one of its extents, not where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

from blockc.ir.dtypes import DTYPES

# What tiles are computed in, and what a stored element is, by NumPy's name: narrow types are widened when loaded.
COMPUTE = {"f64": "float64", "i32": "int64", "i8": "int64", "bool": "bool"}


def compute_dtype(dtype: str) -> str:
    """The NumPy name of the type that a value of an element type is computed in."""
    return COMPUTE.get(dtype, "float32")


def element_dtype(dtype: str) -> str:
    """The Python expression for the NumPy type that stores an element type."""
    spelled = {"bf16": "bfloat16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2"}.get(dtype)
    if spelled is not None:
        return f"ml_dtypes.{spelled}"
    kind = DTYPES[dtype]
    if kind.kind == "bool":
        return "np.bool_"
    return f"np.{kind.kind}{8 * kind.size}"


def dtype_text(compute: str) -> str:
    """The Python expression for a compute type."""
    return "np.bool_" if compute == "bool" else f"np.{compute}"


@dataclass(slots=True)
class Lines:
    """Source lines, some of them filled in later than what follows them."""

    parts: list[str | Lines] = field(default_factory=list)
    indent: str = ""

    def add(self, line: str) -> None:
        """Append one line."""
        self.parts.append(line)

    def nest(self, indent: str = "    ") -> Lines:
        """Append a group of lines, to be filled now or later."""
        child = Lines([], indent)
        self.parts.append(child)
        return child

    def render(self, indent: str = "") -> Iterator[str]:
        """All lines in order, indented."""
        indent += self.indent
        for part in self.parts:
            if isinstance(part, Lines):
                yield from part.render(indent)
            else:
                yield indent + part if part else ""


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of an array: its dimension, and Python expressions for its length here and for the largest length."""

    dim: str
    extent: str
    limit: str


@dataclass(slots=True, eq=False)
class Buffer:
    """A flat piece of scratch memory; `users` counts the live values in it."""

    name: str
    key: tuple[str, ...]
    users: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """An array of a compute type. `buffer` is None if it may not be written to; else the axes lie in C order."""

    text: str
    axes: tuple[Axis, ...]
    dtype: str
    buffer: Buffer | None = None

    @property
    def dims(self) -> tuple[str, ...]:
        """The dimensions of the axes, in order."""
        return tuple(axis.dim for axis in self.axes)


@dataclass(frozen=True, slots=True)
class Number:
    """A scalar that is the same for the whole launch, as a Python expression."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """A list in an array, in the element type `element`, or (None) in the compute type of `dtype`.

    `lists` are the list dimensions not yet peeled; `chosen` has the index for each one that is.
    """

    text: str
    axes: tuple[Axis, ...]
    dtype: str
    lists: tuple[str, ...]
    element: str | None
    chosen: Mapping[str, str] = field(default_factory=dict)
    buffer: Buffer | None = None

    @property
    def selected(self) -> str:
        """The Python expression for the array of what is not peeled."""
        return subscript(self.text, [self.chosen.get(axis.dim, ":") for axis in self.axes])

    @property
    def rest(self) -> tuple[Axis, ...]:
        """The axes of `selected`; for a peeled dimension that is an axis of the tile, its block."""
        return tuple(
            Axis(axis.dim, *self.chosen[axis.dim].split(":")) if False else axis
            for axis in self.axes
            if ":" in self.chosen.get(axis.dim, ":")
        )


Value = Tile | Listing


def subscript(text: str, indices: list[str]) -> str:
    """`text` indexed, without the full slices at the end."""
    while indices and indices[-1] == ":":
        indices.pop()
    return f"{text}[{', '.join(indices)}]" if indices else text


def product(extents: Iterable[str]) -> str:
    """The Python expression for a product of lengths."""
    known = prod(int(extent) for extent in extents if extent.isdigit())
    rest = [extent for extent in extents if not extent.isdigit()]
    return " * ".join(rest if known == 1 and rest else [str(known), *rest])
