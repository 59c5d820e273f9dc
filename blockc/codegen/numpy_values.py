"""What the NumPy emitter keeps about a kernel while it writes it: nested source lines, arrays, lists and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from blockc.ir.dtypes import DTYPES
from blockc.ir.monoids import identity

# What values are computed in, by NumPy's name: narrow types are widened when they are loaded.
_COMPUTE = {"f64": "float64", "i32": "int64", "i8": "int64", "bool": "bool"}
_EXTENSIONS = {"bf16": "bfloat16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2"}


def compute_dtype(dtype: str) -> str:
    """The NumPy name of the type that values of an element type are computed in."""
    return _COMPUTE.get(dtype, "float32")


def element_dtype(dtype: str) -> str:
    """The NumPy name of the type that stores an element type."""
    if dtype in _EXTENSIONS:
        return _EXTENSIONS[dtype]
    kind = DTYPES[dtype]
    return "bool" if kind.kind == "bool" else f"{kind.kind}{8 * kind.size}"


def dtype_text(name: str) -> str:
    """The Python expression for a type."""
    if name in _EXTENSIONS.values():
        return f"ml_dtypes.{name}"
    return "np.bool_" if name == "bool" else f"np.{name}"


@dataclass(slots=True)
class Lines:
    """Source lines; some are filled in later than what follows them."""

    parts: list[str | Lines] = field(default_factory=list)
    indent: str = ""

    def add(self, *lines: str) -> None:
        """Append lines."""
        self.parts.extend(lines)

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
    """An axis of an array: its dimension, and Python expressions for its length here and for its largest length."""

    dim: str
    extent: str
    limit: str


@dataclass(slots=True, eq=False)
class Buffer:
    """A flat piece of scratch memory. `users` counts the live values in it."""

    name: str
    key: tuple[str, ...]
    users: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """An array of a compute type. With a `buffer` it is in C order and ours to overwrite; without, it is read only."""

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
    """A number that is the same for the whole launch, as a Python expression."""

    text: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Which part of an axis of a list's array a map looks at: an index, and the axis that is left, if one is."""

    index: str
    axis: Axis | None


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """A list, stored in one array of NumPy type `stored`, whose elements are computed in `dtype`.

    A list dimension that is no axis of the elements has one entry per block. `chosen` are the dimensions peeled.
    """

    text: str
    axes: tuple[Axis, ...]
    dtype: str
    stored: str
    lists: tuple[str, ...]
    chosen: Mapping[str, Choice] = field(default_factory=dict)
    buffer: Buffer | None = None

    def peel(self, dim: str, choice: Choice) -> Listing:
        """The element for one block of `dim`."""
        lists = tuple(other for other in self.lists if other != dim)
        chosen = {**self.chosen, dim: choice}
        return Listing(self.text, self.axes, self.dtype, self.stored, lists, chosen, None)

    @property
    def selected(self) -> str:
        """The Python expression for the array of what is not peeled, and of the blocks that are."""
        return subscript(self.text, [self.chosen[a.dim].index if a.dim in self.chosen else ":" for a in self.axes])

    @property
    def rest(self) -> tuple[Axis, ...]:
        """The axes of `selected`."""
        left = (self.chosen[axis.dim].axis if axis.dim in self.chosen else axis for axis in self.axes)
        return tuple(axis for axis in left if axis is not None)


Value = Tile | Listing


def subscript(text: str, indices: Sequence[str]) -> str:
    """`text` indexed, less the full slices at the end."""
    needed = list(indices)
    while needed and needed[-1] == ":":
        needed.pop()
    return f"{text}[{', '.join(needed)}]" if needed else text


def product(extents: Iterable[str]) -> str:
    """The Python expression for a product of lengths."""
    factors = list(extents)
    known = prod(int(factor) for factor in factors if factor.isdigit())
    rest = [factor for factor in factors if not factor.isdigit()]
    return " * ".join(rest if known == 1 and rest else [str(known), *rest])


def shape_text(axes: Iterable[Axis]) -> str:
    """The Python expression for the shape of an array with these axes."""
    return sequence(axis.extent for axis in axes)


def sequence(items: Iterable[str]) -> str:
    """A Python tuple."""
    parts = list(items)
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


def aligned(tile: Tile, dims: Sequence[str]) -> str:
    """The Python expression that makes the tile broadcast against an array with the axes `dims`, by name."""
    wanted = [dim for dim in dims if dim in tile.dims]
    text = permuted(tile.text, tile.dims, wanted)
    indices = [":" if dim in wanted else "None" for dim in dims]
    while indices and indices[0] == "None":
        indices.pop(0)
    return subscript(text, indices)


def permuted(text: str, dims: Sequence[str], wanted: Sequence[str]) -> str:
    """The Python expression for the array with its axes in another order."""
    if list(dims) == list(wanted):
        return text
    if len(wanted) == 2:
        return f"{text}.T"
    return f"{text}.transpose{sequence(str(list(dims).index(dim)) for dim in wanted)}"


def identity_text(monoid: str, component: int, dtype: str) -> str:
    """The Python expression for the identity of a monoid's component; for integers, of the range of i32."""
    value = identity(monoid, component)
    if value == 0.0:
        return {"bool": "False", "int64": "0"}.get(dtype, "0.0")
    sign = "-" if value < 0 else ""
    integer = str(-(2**31)) if value < 0 else str(2**31 - 1)
    return {"bool": str(value > 0), "int64": integer}.get(dtype, f"{sign}np.inf")
