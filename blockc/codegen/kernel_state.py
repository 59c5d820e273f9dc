"""What is known while one kernel is written: names of sizes and blocks, values in scope, numbers, helpers needed."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Container, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field

from blockc.codegen.numpy_values import Axis, Choice, Lines, Tile, Value
from blockc.codegen.scratch import Scope
from blockc.ir.block import Apply, Operand, Program, Type
from blockc.ir.machine import NUMPY


@dataclass(slots=True)
class Powers:
    """Logits that are a product, computed times log2(e) while nothing is subtracted from them (`numpy_powers.py`).

    `made` are the definitions from the product to the logits. `operand` of the product does not change in the loop, and
    `scaled` is that times log2(e). `shifts` names what says if something is subtracted, `used` if this block is the
    product with `scaled`. `held` is what the definitions have read in this block, in case they are needed again.
    """

    made: tuple[Apply, ...]
    operand: str
    scaled: Tile
    shifts: str
    used: str
    held: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Running:
    """An accumulated pair whose exponent may be any that is close enough to the largest so far.

    `totals` are the accumulators, the exponent's first. `limit` names how large an element may be before the exponent
    has to move, `shifts` says if it is not zero everywhere; both are empty if the exponent moves to the maximum in
    every block. `powers` is the product that the elements are, if it may be scaled.
    """

    totals: tuple[Tile, ...]
    limit: str = ""
    shifts: str = ""
    powers: Powers | None = None


@dataclass(slots=True)
class Kernel:
    """The kernel being written. Dimension number 3 has size `d3`, tile size `t3` and `k3` blocks; its block is
    `b3:e3`, `w3` long, or, if tiles have one element, just `b3`."""

    program: Program
    tiles: Mapping[str, int]
    types: MutableMapping[str, Type]
    helpers: set[str]
    environment: dict[str, Value] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)  # the expression of a number to its name
    constant_lines: Lines = field(default_factory=Lines)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    running: dict[str, Running] = field(default_factory=dict)  # exponents of a block that the pair so far replaces
    powers: dict[str, Powers] = field(default_factory=dict)  # what makes logits that may be scaled, by name
    read: Container[str] = ()  # what is read for more than whether it is infinite
    masks: dict[tuple[Operand, bool], str] = field(
        default_factory=dict
    )  # what holds in some blocks to what says if not
    places: dict[str, Tile] = field(default_factory=dict)  # values that are computed where they are stored
    positions: dict[str, str] = field(default_factory=dict)  # dimension to the array of all positions along it
    ones: dict[tuple[str, str], str] = field(default_factory=dict)  # length and type to an array of ones
    products: str = NUMPY  # which library multiplies matrices

    def number(self, dim: str) -> int:
        """The number of a dimension in the generated names."""
        return self.program.rank[dim]

    def size(self, dim: str) -> str:
        """The name of a dimension's size."""
        return f"d{self.number(dim)}"

    def named_constant(self, text: str) -> str:
        """The name of a number that is computed once per launch, given as a Python expression."""
        if text not in self.constants:
            self.constants[text] = f"f{len(self.constants)}"
            self.constant_lines.add(f"{self.constants[text]} = {text}")
        return self.constants[text]

    def is_unit(self, dim: str) -> bool:
        """True if blocks of the dimension have one element: they are indexed and have no axis."""
        return dim not in self.program.whole and dim not in self.program.chunks and self.tiles.get(dim) == 1

    def bounds(self, scope: Scope, dim: str) -> tuple[str, str]:
        """Where the blocks of a dimension begin and end here: in the current chunk, if a map around has chunks."""
        base = self.program.chunks.get(dim, dim)
        cuts = [self.number(other) for other in scope.blocks if self.program.chunks.get(other) == base]
        return (f"b{cuts[-1]}", f"e{cuts[-1]}") if cuts else ("0", self.size(dim))

    def blocks_text(self, scope: Scope, dim: str, part: str = "all") -> str:
        """The Python range of the starts of the blocks of a dimension here; of the "rest" without the first block."""
        start, end = self.bounds(scope, dim)
        if part == "rest":
            length = "1" if self.is_unit(dim) else f"t{self.number(dim)}"
            start = length if start == "0" else f"{start} + {length}"
        if self.is_unit(dim):
            return f"range({end})" if start == "0" else f"range({start}, {end})"
        return f"range({start}, {end}, t{self.number(dim)})"

    def full_axis(self, dim: str) -> Axis:
        """The axis of an array that spans the dimension."""
        return Axis(dim, self.size(dim), self.size(dim))

    def axes(self, scope: Scope, dims: Collection[str]) -> tuple[Axis, ...]:
        """The axes of a tile in this scope."""
        found = (scope.blocks.get(dim, self.full_axis(dim)) for dim in self.program.ordered(dims))
        return tuple(axis for axis in found if axis.extent)

    def block_axis(self, dim: str) -> Axis:
        """The axis of a tile inside a map over the dimension; without an extent if it has none."""
        position = self.number(dim)
        return Axis(dim, "", "") if self.is_unit(dim) else Axis(dim, f"w{position}", f"t{position}")

    def list_axes(self, scope: Scope, kind: Type) -> tuple[Axis, ...]:
        """The axes of the array that stores a list: in full along list dimensions, the current block along others."""
        result: list[Axis] = []
        for dim in self.program.ordered((*kind.lists, *kind.axes)):
            if dim not in kind.lists:
                result.extend(self.axes(scope, (dim,)))
            elif dim in kind.axes or self.is_unit(dim):
                result.append(self.full_axis(dim))
            else:
                count = f"k{self.number(dim)}"
                result.append(Axis(dim, count, count))
        return tuple(result)

    def choice(self, dim: str, kind: Type) -> Choice:
        """The current block's part of the array of a list with elements of this type."""
        position = self.number(dim)
        if self.is_unit(dim):
            return Choice(f"b{position}", None)
        if dim in kind.axes:
            return Choice(f"b{position}:e{position}", self.block_axis(dim))
        return Choice(f"b{position} // t{position}", None)

    def tile(self, name: str) -> Tile:
        """The item called `name`."""
        value = self.environment[name]
        if not isinstance(value, Tile):
            raise TypeError(f"`{name}` is a list")
        return value
