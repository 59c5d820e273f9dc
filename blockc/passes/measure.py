"""The measure that every rule decreases: why fusion ends (design, section 5).

Lexicographic: maps; reduces; the list depths of all ports, largest first; exponentials that can be split; factors that
can leave a sum, weighted by how deep they stand; definitions. The parts are computed one by one, as far as needed.
"""

from __future__ import annotations

from collections.abc import Callable

from blockc.ir.block import Graph, Map, Program, Reduce, walk
from blockc.ir.decisions import Match
from blockc.passes.rules import (
    distribute_reduction,
    split_exponential,
    swap_scale_and_contraction,
)

Part = int | tuple[int, ...]


def decreases(before: Program, after: Program) -> bool:
    """True if the measure of `after` is below that of `before`."""
    for part in PARTS:
        old, new = part(before), part(after)
        if new != old:
            return bool(new < old)  # type: ignore[operator]
    return False


def _maps(program: Program) -> Part:
    return sum(isinstance(node, Map) for node in walk(program.body))


def _reduces(program: Program) -> Part:
    return sum(isinstance(node, Reduce) for node in walk(program.body))


def _depths(program: Program) -> Part:
    """List depths of all ports: 0 for an input, else one more than the deepest list that its producer reads."""
    depth: dict[str, int] = {entry.name: 0 for entry in program.inputs}
    ports: list[int] = []

    def visit(graph: Graph) -> int:
        deepest = -1
        for definition in graph:
            read = max((depth[name] for name in definition.uses if program.types[name].lists), default=-1)
            if isinstance(definition, Map):
                for port in definition.ports:
                    depth[port.name] = depth[port.source]
                    ports.append(depth[port.name])
                read = max(read, visit(definition.body))
            depth.update(dict.fromkeys(definition.defines, read + 1))
            deepest = max(deepest, read)
        return deepest

    visit(program.body)
    return tuple(sorted(ports, reverse=True))


def _splittable(program: Program) -> Part:
    return sum(isinstance(found, Match) for found in split_exponential.match(program, None))


def _leaving(program: Program) -> Part:
    rules = (swap_scale_and_contraction.match, distribute_reduction.match)
    weights = (2, 1)  # a factor that leaves a tile operator stands before the loop's end, where it may leave again
    found = ((weight, place) for weight, rule in zip(weights, rules, strict=True) for place in rule(program, None))
    return sum(2 * len(place.path) + weight for weight, place in found if isinstance(place, Match))


def _size(program: Program) -> Part:
    return sum(1 for _ in walk(program.body))


PARTS: tuple[Callable[[Program], Part], ...] = (_maps, _reduces, _depths, _splittable, _leaving, _size)
