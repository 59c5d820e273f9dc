"""Which unit executes every operator of a kernel, and in which tiers its operands have to lie."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from blockc.ir.block import Apply, Graph, Map, Program, operand_names
from blockc.ir.conditions import readings
from blockc.ir.dtypes import DTYPES
from blockc.passes.units import Assigned, Units


@dataclass(slots=True)
class Needs:
    """What the operators of a kernel need.

    `assigned` is where each of them is executed; `tiers` are for every tile those in which it is an operand, with the
    type that it has there; `into` are products with the accumulator that they are added to as they are computed, and
    `accumulated` these accumulators with their tiers.
    """

    program: Program
    units: Units
    assigned: dict[str, Assigned] = field(default_factory=dict)
    tiers: dict[str, dict[str, str]] = field(default_factory=dict)
    into: dict[str, str] = field(default_factory=dict)
    accumulated: dict[str, str] = field(default_factory=dict)

    def graph(self, graph: Graph, feeds: Collection[str]) -> None:
        """Assign units to the operators of a graph, and note which tiers need which tiles."""
        for node in graph:
            if isinstance(node, Apply):
                assigned = self.assigned[node.name] = self.units.assign(self.program, node)
                for name, tier in zip(operand_names(node.args), assigned.operands, strict=True):
                    self.need(name, tier, assigned.narrow)
            elif isinstance(node, Map):
                self.map(node, feeds)

    def map(self, node: Map, feeds: Collection[str]) -> None:
        types, tier = self.program.types, self.units.vector[1]
        inner: list[str] = []
        for output in node.outputs:
            for name, value in zip(output.names, output.values, strict=True):
                if name in feeds or (output.monoid is not None and not types[value].is_item):
                    inner.append(value)
        self.graph(node.body, inner)
        for name in (*inner, *readings(node.where)):
            if types[name].is_item:
                self.need(name, tier)
        applies = {other.name: other for other in node.body if isinstance(other, Apply)}
        for output in node.outputs:
            value = output.values[0]
            if output.monoid is None:
                if types[value].is_item and value in {port.name for port in node.ports}:
                    self.need(value, tier)
                continue
            readers = sum(value in other.uses for other in node.body)
            readers += sum(other.values.count(value) for other in node.outputs)
            product = applies.get(value)
            if (
                output.monoid == "add"
                and types[value].is_item
                and readers == 1
                and product is not None
                and product.op == "contract"
            ):
                self.into[value] = output.names[0]
                self.accumulated[output.names[0]] = self.assigned[value].result
                continue
            for value in output.values:
                if types[value].is_item:
                    self.need(value, tier)

    def need(self, name: str, tier: str, narrow: str = "") -> None:
        own = self.program.types[name].dtype
        dtype = narrow if narrow and DTYPES[narrow].size < DTYPES[own].size else own
        tiers = self.tiers.setdefault(name, {})
        if tier not in tiers or DTYPES[dtype].size > DTYPES[tiers[tier]].size:
            tiers[tier] = dtype
