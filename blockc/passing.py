"""How many bytes pass each port and output of a block program, by the cost model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import Map, Output, Program, walk
from blockc.passes.cost import movements


@dataclass(frozen=True, slots=True)
class Passing:
    """Bytes loaded and stored, by the name of a port, the first name of an output, or an item of the top graph.

    What moves at a port or output of a nested map passes those of the maps around too. An item of the top graph is
    loaded by each launch that reads it: `once` are the bytes of one such load.
    """

    loaded: Mapping[str, int]
    stored: Mapping[str, int]
    once: Mapping[str, int]
    total: int

    def into(self, node: Map, name: str) -> int:
        """The bytes of a list that the body of a map takes whole from outside which are loaded in it."""
        return _within(node, name, self.loaded)


def passing(program: Program, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> Passing:
    """The bytes at all ports and outputs, for sizes and tiles in elements. `tiles` has every dimension that is cut."""
    known = complete_sizes(program, sizes)
    loads: dict[str, list[int]] = {}
    stores: dict[str, int] = {}
    for moved in movements(program):
        size = moved.itemsize * moved.count.value(known, tiles)
        if moved.direction == "load":
            loads.setdefault(moved.at, []).append(size)
        else:
            stores[moved.at] = stores.get(moved.at, 0) + size
    loaded = {name: sum(sizes) for name, sizes in loads.items()}
    once = {name: sizes[0] for name, sizes in loads.items()}
    total = sum(loaded.values()) + sum(stores.values())
    maps = [node for node in walk(program.body) if isinstance(node, Map)]
    for node in reversed(maps):  # those inside first
        for port in node.ports:
            loaded.setdefault(port.name, 0)
            if program.types[port.name].lists:
                loaded[port.name] += _within(node, port.name, loaded)
    stacked: dict[str, Output] = {}
    for node in reversed(maps):
        stacked.update({name: output for output in node.outputs for name in output.names})
        for output in node.outputs:
            name, inner = output.names[0], stacked.get(output.values[0])
            loaded.setdefault(name, 0)
            stores.setdefault(name, 0)
            if output.monoid is None and inner is not None and program.types[output.values[0]].lists:
                loaded[name] += loaded[inner.names[0]]
                stores[name] += stores[inner.names[0]]
    return Passing(loaded, stores, once, total)


def _within(node: Map, name: str, loaded: Mapping[str, int]) -> int:
    """The bytes of a list that maps in the body of a map load."""
    ports = [port for inner in walk(node.body) if isinstance(inner, Map) for port in inner.ports]
    return sum(loaded[port.name] for port in ports if port.source == name)
