"""What values are in a Triton kernel that is being written, and what is known meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blockc.ir.block import Apply, Leaf, Operand, Program
from blockc.ir.dtypes import DTYPES

if TYPE_CHECKING:
    from blockc.codegen.triton_descriptors import Descriptors


def compute_dtype(dtype: str) -> str:
    """The Triton type that values of an element type are computed in."""
    if dtype == "f64":
        return "float64"
    return {"float": "float32", "int": "int32", "bool": "int1"}[DTYPES[dtype].kind]


@dataclass(frozen=True, slots=True)
class Tile:
    """An item: an expression with one axis for each of `dims`, in canonical order, in the type `dtype`.

    `stored` is the same as it was loaded, in the element type `element`, for products that take that. The item is
    `text` times the number `scale`, if there is one: multiplied where somebody reads it (`triton_scales.py`).
    """

    text: str
    dims: tuple[str, ...]
    dtype: str
    stored: str = ""
    element: str = ""
    within_one: bool = False  # between 0 and 1, NaN aside
    scale: Leaf | None = None


@dataclass(frozen=True, slots=True)
class Array:
    """A list, or an item between kernels: a tensor with one axis for each of `dims`. Dimensions in `counted` have one
    element for each block. What is `computed` by a kernel is rounded for products like what stays in one."""

    text: str
    dims: tuple[str, ...]
    element: str
    counted: frozenset[str] = frozenset()
    computed: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """A contraction that is written where it is accumulated."""

    apply: Apply


Value = Tile | Array | Waiting


@dataclass(frozen=True, slots=True)
class Number:
    """A number that sizes determine: a parameter, the expression that computes it, and what it is at the sizes that the
    kernel is tuned for."""

    name: str
    text: str
    value: float


@dataclass(slots=True)
class Lines:
    """Lines of a function, with their indentation."""

    text: list[str] = field(default_factory=list)
    depth: int = 1

    def add(self, *lines: str) -> None:
        self.text += [f"{'    ' * self.depth}{line}" if line else "" for line in lines]


@dataclass(slots=True)
class Kernel:
    """The kernel being written. Dimension number 3 has the size `d3` and tiles of `T3` elements; the current block
    begins at `b3` (`o3` in 64 bits), `r3` counts its elements, `i3` are their positions and `in3` says which exist.
    `SHORT3` is True if some block is not full."""

    program: Program
    tiles: Mapping[str, int]
    sizes: Mapping[str, int]
    numbers: dict[str, Number]  # by type and expression
    helpers: set[str]
    room: Callable[[str, tuple[str, ...]], Array]  # memory for a list that each task makes for itself
    read: frozenset[str] = frozenset()  # the lists that something in this kernel reads
    exact: frozenset[str] = frozenset()  # the values that become part of outputs in f32 or f64
    scales: Mapping[str, Leaf] = field(default_factory=dict)  # of the values that are kept without their scale
    tasks: tuple[str, ...] = ()  # the dimensions whose blocks are tasks
    descriptors: Descriptors | None = None  # None where tiles are loaded by pointers
    loaded: list[Array] = field(default_factory=list)  # what tiles are loaded of
    lines: Lines = field(default_factory=Lines)
    environment: dict[str, Value] = field(default_factory=dict)
    later: dict[str, str] = field(default_factory=dict)  # items to be loaded where they are used, with a comment
    running: dict[str, Tile] = field(default_factory=dict)  # exponents that are replaced by the maximum so far
    mapped: tuple[str, ...] = ()
    settled: dict[Operand, bool] = field(default_factory=dict)  # conditions that have one value in all these blocks
    filled: frozenset[str] = frozenset()  # dimensions of which no block here is short
    pieces: Mapping[str, int] = field(default_factory=dict)  # in how many pieces tiles are, by dimension
    fresh: Iterator[int] = field(default_factory=itertools.count)

    def number(self, dim: str) -> int:
        """The number of a dimension in names."""
        return self.program.rank[dim]

    def size(self, dim: str) -> str:
        """The name of a dimension's size."""
        return f"d{self.number(dim)}"

    def is_unit(self, dim: str) -> bool:
        """True if blocks of the dimension have one element: tiles have no axis for it."""
        return dim not in self.program.whole and dim not in self.program.chunks and self.tiles[dim] == 1

    def axes(self, dims: Collection[str]) -> tuple[str, ...]:
        """The axes of a tile with these dimensions."""
        return tuple(dim for dim in self.program.ordered(dims) if not self.is_unit(dim))

    def position(self, dim: str) -> str:
        """The positions of the elements of the current tile along a dimension that tiles have an axis for."""
        return f"i{self.number(dim)}" if dim in self.mapped else f"r{self.number(dim)}"

    def extent(self, dim: str) -> str:
        """How long tiles are along a dimension."""
        return f"T{self.number(dim)}" + (f" // {self.pieces[dim]}" if dim in self.pieces else "")

    def shape(self, dims: tuple[str, ...]) -> str:
        """The shape of a tile."""
        return f"[{', '.join(map(self.extent, dims))}]"

    def assign(self, text: str) -> str:
        """Write the statement that names an expression."""
        name = f"v{next(self.fresh)}"
        self.lines.add(f"{name} = {text}")
        return name

    def tile(self, name: str) -> Tile:
        """The item called `name`."""
        value = self.environment[name]
        if not isinstance(value, Tile):
            raise TypeError(f"`{name}` is no tile")
        return value


def expanded(text: str, own: tuple[str, ...], dims: tuple[str, ...]) -> str:
    """An expression with axes `own` as one with all axes `dims`, those that it lacks of length one."""
    if own == dims or not own:
        return text
    return f"{text}[{', '.join(':' if dim in own else 'None' for dim in dims)}]"
