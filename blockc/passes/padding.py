"""Padding: which reductions see the elements behind the end of a short last block, and where a mask is needed.

A backend whose tiles have fixed sizes reads zeros behind the end of an array. What becomes of them is followed through
the operators of a body: along each cut dimension a value is padded with a known number, or with anything. Behind the
end nothing matters but reductions: a mask is put where one would see something else than its identity, and what reads
the value later gets the masked one, unless it is a reduction that the value itself suits. (NumPy tiles are as short as
their block and need no mask.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from blockc.ir.block import (
    REDUCTIONS,
    Apply,
    Constant,
    Definition,
    Fresh,
    Graph,
    Map,
    Operand,
    Program,
    Size,
    substitute,
    with_body,
)
from blockc.ir.monoids import identity
from blockc.ir.ops import OPERATORS
from blockc.ir.verify import verify

Padding = Mapping[str, float]  # dimension to the number that a value is padded with; a dimension is absent for anything


def mask(program: Program, padded: Collection[str] = ()) -> Program:
    """The program with masks wherever padding of its inputs and lists by zeros would change a reduction.

    Tiles are padded along dimensions that are cut, and along those of `padded` although they are whole.
    """
    whole = program.ordered(padded)
    padding: dict[str, Padding] = {}
    for name, kind in program.input_types.items():
        if kind.is_item:
            padding[name] = {axis: 0.0 for axis in kind.axes if axis in whole}
    masked = with_body(program, _Padder(program, Fresh(program)).graph(program.body, padding, whole))
    verify(masked)
    return masked


@dataclass(slots=True)
class _Padder:
    program: Program
    fresh: Fresh
    masked: dict[str, str] = field(default_factory=dict)  # the types of masked values

    def dtype(self, name: str) -> str:
        """The type of a value of the program, or of a masked one."""
        return self.masked.get(name) or self.program.types[name].dtype

    def graph(self, graph: Graph, padding: dict[str, Padding], mapped: tuple[str, ...]) -> Graph:
        out: list[Definition] = []
        now: dict[str, Operand] = {}
        for definition in graph:
            if isinstance(definition, Apply) and definition.op in REDUCTIONS:
                for name in dict.fromkeys(arg for arg in definition.args if isinstance(arg, str)):
                    if not self.harmless(padding.get(name, {}), definition, mapped):
                        latest = now.get(name, name)
                        now[name] = self.guard(out, padding, definition, str(latest), mapped)
                        definition = substitute(definition, {name: now[name]})
            else:
                definition = substitute(definition, now)
            match definition:
                case Apply():
                    padding[definition.name] = self.padded(definition, padding, mapped)
                case Map(dim, ports, body):
                    inside = (*mapped, dim)
                    inner = dict(padding)
                    for port in ports:
                        axes = self.program.types[port.name].axes
                        inner[port.name] = {axis: 0.0 for axis in axes if axis in inside}
                    definition = replace(definition, body=self.graph(body, inner, inside))
                case _:
                    pass
            out.append(definition)
        return tuple(out)

    def harmless(self, padded: Padding, reduction: Definition, mapped: tuple[str, ...]) -> bool:
        """True if an operand with this padding may stand in a reduction as it is."""
        assert isinstance(reduction, Apply)
        wanted = identity(REDUCTIONS[reduction.op], 0)
        return all(dim not in mapped or padded.get(dim) == wanted for dim in reduction.dims)

    def guard(
        self,
        out: list[Definition],
        padding: dict[str, Padding],
        reduction: Definition,
        name: str,
        mapped: tuple[str, ...],
    ) -> str:
        """An operand of a reduction, masked along every dimension where its padding is not the identity."""
        assert isinstance(reduction, Apply)
        wanted = identity(REDUCTIONS[reduction.op], 0)
        value = name
        for dim in reduction.dims:
            if dim not in mapped or padding.get(value, {}).get(dim) == wanted:
                continue
            index, inside, kept = (self.fresh(name) for _ in range(3))
            out.append(Apply(index, "index", (), (dim,), "i32"))
            out.append(Apply(inside, "lt", (index, Size(dim)), (), "bool"))
            out.append(Apply(kept, "where", (inside, value, Constant(wanted)), (), self.dtype(name)))
            self.masked[kept] = self.dtype(name)
            padding[kept] = {**padding.get(value, {}), dim: wanted}
            value = kept
        return value

    def padded(self, apply: Apply, padding: Mapping[str, Padding], mapped: tuple[str, ...]) -> Padding:
        """What the result of an operator is padded with."""
        result = {}
        for dim in mapped:
            number = self.along(apply, dim, padding)
            if number is not None and not math.isnan(number):
                result[dim] = number
        return result

    def along(self, apply: Apply, dim: str, padding: Mapping[str, Padding]) -> float | None:
        if apply.op in REDUCTIONS or apply.op == "index":
            return None
        if apply.op == "broadcast" and dim in apply.dims:
            return float(apply.args[0].value) if isinstance(apply.args[0], Constant) else None
        numbers = [self.operand(arg, dim, padding) for arg in apply.args]
        if apply.op in ("cast", "broadcast"):
            return numbers[0]
        if apply.op == "sub" and numbers[0] == -math.inf and self.is_finite(apply.args[1]):
            return -math.inf
        known = [number for number in numbers if number is not None]
        if len(known) < len(numbers):
            return None
        with np.errstate(all="ignore"):
            return float(OPERATORS[apply.op].meaning(*known))

    def operand(self, operand: Operand, dim: str, padding: Mapping[str, Padding]) -> float | None:
        """What an operand is behind the end of `dim`; None for anything, and for what does not depend on `dim`."""
        if isinstance(operand, Constant):
            return float(operand.value)
        return padding.get(operand, {}).get(dim) if isinstance(operand, str) else None

    def is_finite(self, operand: Operand) -> bool:
        """True for what an exponent may be subtracted from: not -inf; and where it is NaN, so is the whole row."""
        apply = self.program.facts.applies.get(operand) if isinstance(operand, str) else None
        return apply is not None and apply.op == "finite"
