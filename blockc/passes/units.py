"""Which compute unit of a machine executes an operator, at which rate, and how data get there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from blockc.ir.block import Apply, Program, operand_names
from blockc.ir.dtypes import DTYPES, is_float
from blockc.ir.machine import ComputeUnit, Machine, Tier


class Unplaceable(Exception):
    """A program cannot be scheduled on a machine. The message says why."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """Where an operator is executed: its unit, "matmul" or "vector" and the type whose rate applies, the tier of each
    operand, and that of the result. `narrow` is the type that operands are moved in, or "" for their own."""

    unit: ComputeUnit
    operation: str
    rated: str
    operands: tuple[str, ...]
    result: str
    narrow: str = ""


@dataclass(frozen=True)
class Units:
    """The compute units of a machine, and the ways between its tiers."""

    machine: Machine

    @cached_property
    def tiers(self) -> dict[str, Tier]:
        """The tiers by name."""
        return {tier.name: tier for tier in self.machine.tiers}

    @cached_property
    def vector(self) -> tuple[ComputeUnit, str]:
        """The unit for what is neither a product nor special, and the tier in which it accumulates."""
        unit = next((unit for unit in self.machine.compute if "vector" in unit.operations), None)
        if unit is None:
            raise Unplaceable("no compute unit has a rate for vector operations")
        return unit, unit.operands[0]

    @cached_property
    def _paths(self) -> dict[tuple[str, str], tuple[float, tuple[str, ...]]]:
        """The ways between tiers with the least seconds per byte, by their ends."""
        found: dict[tuple[str, str], tuple[float, tuple[str, ...]]] = {
            (tier.name, tier.name): (0.0, (tier.name,)) for tier in self.machine.tiers
        }
        for _ in self.machine.tiers:
            for (start, end), (seconds, path) in list(found.items()):
                for move in self.machine.moves:
                    if move.source == end and move.destination not in path:
                        longer = seconds + 1 / move.bandwidth, (*path, move.destination)
                        key = (start, move.destination)
                        if key not in found or (longer[0], len(longer[1])) < (found[key][0], len(found[key][1])):
                            found[key] = longer
        return found

    def path(self, sources: Iterable[str], end: str) -> tuple[str, ...]:
        """The fastest way to a tier from one of several."""
        ways = [self._paths[start, end] for start in sources if (start, end) in self._paths]
        if not ways:
            raise Unplaceable(f"no move leads from {' or '.join(sources)} to {end}")
        return min(ways, key=lambda way: (way[0], len(way[1])))[1]

    def distance(self, start: str, end: str) -> float:
        """The seconds per byte of the fastest way."""
        return self._paths[start, end][0] if (start, end) in self._paths else float("inf")

    def assign(self, program: Program, apply: Apply) -> Assigned:
        """The unit of a tile operator.

        A contraction with free axes on both sides is a matrix product, in the type of `product_type`, if a unit has a
        rate for that or a wider type; everything else is for the vector unit.
        """
        kinds = [program.types[name] for name in operand_names(apply.args)]
        if apply.op == "contract" and len(kinds) == 2:
            axes = [set(kind.axes) for kind in kinds]
            if axes[0] - axes[1] and axes[1] - axes[0]:
                operand = product_type([kind.dtype for kind in kinds])
                offers = [
                    (rated != operand, -unit.operations["matmul"][rated].rate, at, unit, rated)
                    for at, unit in enumerate(self.machine.compute)
                    if (rated := closest(unit.operations.get("matmul", {}), operand)) is not None
                ]
                if offers:  # the exact type first, then the highest rate
                    *_, unit, rated = min(offers, key=lambda offer: offer[:3])
                    return Assigned(
                        unit, "matmul", rated, (unit.operands[0], unit.operands[-1]), unit.accumulator, rated
                    )
        unit, tier = self.vector
        rated = self.vector_type([kind.dtype for kind in kinds] + [apply.dtype])
        return Assigned(unit, "vector", rated, (tier,) * len(kinds), unit.accumulator)

    def vector_type(self, dtypes: list[str]) -> str:
        """The type whose rate of the vector unit applies: of the widest float, f32 without one. Where neither that nor
        a wider type has a rate, the widest that has one is taken."""
        rates = self.vector[0].operations["vector"]
        size = {dtype: DTYPES[dtype].size for dtype in (*dtypes, *rates)}
        widest = max((dtype for dtype in dtypes if is_float(dtype)), key=size.__getitem__, default="f32")
        return closest(rates, widest) or max(rates, key=size.__getitem__)


def product_type(dtypes: list[str]) -> str:
    """The type in which a product takes its operands: the narrowest of the floats, else the widest of whole numbers."""
    floats = [dtype for dtype in dtypes if is_float(dtype)]
    size = {dtype: DTYPES[dtype].size for dtype in dtypes}
    return min(floats, key=size.__getitem__) if floats else max(dtypes, key=size.__getitem__)


def closest(rates: Iterable[str], dtype: str) -> str | None:
    """The type of a rate for numbers of a type: the same, or the narrowest wider float."""
    if dtype in rates:
        return dtype
    wider = [other for other in rates if is_float(other) and DTYPES[other].size > DTYPES[dtype].size]
    return min(wider, key=lambda other: DTYPES[other].size, default=None)
