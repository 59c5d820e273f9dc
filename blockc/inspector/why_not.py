"""Whether two places of a program ended in one kernel: the steps that joined them, or the reason and what would help.

What is asked about may be several operators, and need not be neighbours: then the answer is about the first two
neighbours on the way from one to the other that are apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from blockc import driver
from blockc.errors import UsageError, visible
from blockc.inspector.loops import Loops, loops_of
from blockc.inspector.obstacles import Obstacle
from blockc.inspector.origins import Stage
from blockc.inspector.pairs import Inspection, Reason
from blockc.inspector.places import Named, named
from blockc.inspector.suggestions import Search, Tried, in_one_kernel, in_one_loop
from blockc.ir.array_program import ArrayProgram
from blockc.ir.machine import Machine
from blockc.partition import partition

RELATIONS = ("neighbours", "way", "siblings", "independent")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: two places of a program that is compiled for a machine."""

    program: ArrayProgram
    machine: Machine
    sizes: Mapping[str, int]
    tiles: driver.Tiles
    split: driver.Split
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Where two places ended. `way` are operators from one to the other, each of which reads the one before; it is
    empty if no value goes from one to the other, and then `relation` says whether they read something in common.

    `apart` are the two operators that `reason` is about; without a reason all are in one kernel, and `joined` are the
    stages that brought those of the way into it. There `loops` says why the operators `apart` are in two loops, if they
    are. `others` are further conditions that fail, and `tried` is what was changed to see whether they come together.
    """

    first: Named
    second: Named
    inspection: Inspection
    relation: str
    way: tuple[str, ...]
    kernels: frozenset[int]
    apart: tuple[str, str] | None
    reason: Reason | None
    others: tuple[Obstacle, ...]
    joined: tuple[tuple[tuple[str, str], Stage], ...]
    loops: Loops | None
    tried: Tried | None


def answer(request: Request) -> Answer:
    """Why two places of a program are not in one kernel, or how they came into one. UsageError for what is no place."""
    program = request.program
    first, second = named(program, request.first), named(program, request.second)
    first, second = without_common(first, second)
    found = Inspection.of(partition(program, request.machine, request.sizes, request.tiles, request.split))
    way = way_between(found.origins.neighbours, first.names, second.names)
    pairs = decisive(found, first, second, way)
    relation = related(found, first, second, way, pairs)
    apart = next((pair for pair in pairs if not found.origins.together(*pair)), None)
    if apart is None:
        shown = list(itertools.pairwise(way)) or pairs
        stages = ((pair, found.origins.joined_by(*pair)) for pair in shown)
        joined = tuple((pair, stage) for pair, stage in stages if stage is not None)
        kernels = frozenset.intersection(*(found.origins.together(*pair) for pair in pairs))
        inside = next(((pair, loops) for pair in pairs if (loops := loops_of(found, *pair)) is not None), None)
        if inside is None:
            return Answer(first, second, found, relation, way, kernels, None, None, (), joined, None, None)
        search = Search(found, request.machine, request.tiles, request.split, (inside[0],), in_one_loop)
        tried = search.run(None)
        return Answer(first, second, found, relation, way, kernels, inside[0], None, (), joined, inside[1], tried)
    reason = found.reason(*apart)
    others = found.others(*apart) if reason.kind in ("refused", "shape") else ()
    search = Search(found, request.machine, request.tiles, request.split, (apart,), in_one_kernel)
    changed = search.run(reason) if reason.kind != "removed" else None
    return Answer(first, second, found, relation, way, frozenset(), apart, reason, others, (), None, changed)


def without_common(first: Named, second: Named) -> tuple[Named, Named]:
    """Two places, of which the larger one lacks the operators that both have. UsageError if nothing is left of it."""
    common = set(first.names) & set(second.names)
    left = [
        replace(place, operators=tuple(node for node in place.operators if node.name not in common))
        for place in (first, second)
    ]
    if common and not any(place.operators for place in left):
        both = f"`{visible(first.text)}` and `{visible(second.text)}`"
        raise UsageError(f"{both} mean the same operator", "name two that are different")
    return left[0] if left[0].operators else first, left[1] if left[1].operators else second


def decisive(found: Inspection, first: Named, second: Named, way: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of operators that have to be in one kernel for two places to be: neighbours of which one is in each,
    and then those in each; if there are none between them those on the way from one to the other, and its ends; else
    the last operators of both."""
    names = set(first.names), set(second.names)
    between = [
        pair
        for pair in found.origins.neighbours
        if (pair[0] in names[0] and pair[1] in names[1]) or (pair[0] in names[1] and pair[1] in names[0])
    ]
    if between:
        parts = [pair for pair in found.origins.neighbours for own in names if own.issuperset(pair)]
        return between + [pair for pair in parts if all(found.origins.by_name[name].kernels for name in pair)]
    order = [operator.name for operator in found.origins.operators]
    if not way:
        one, other = sorted((first.names[-1], second.names[-1]), key=order.index)
        return [(one, other)]
    return list(dict.fromkeys([*itertools.pairwise(way), (way[0], way[-1])]))


def related(
    found: Inspection, first: Named, second: Named, way: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> str:
    """How two places stand to each other."""
    if way:
        return "neighbours" if len(way) == 2 else "way"
    common = inputs_of(found.partition.program, first.names) & inputs_of(found.partition.program, second.names)
    return "siblings" if common else "independent"


def inputs_of(program: ArrayProgram, names: Sequence[str]) -> set[str]:
    """The inputs and operators that operators read, directly or through other names of values."""
    nodes = {node.name: node for node in program.nodes}
    found: set[str] = set()
    waiting = [arg for name in names for arg in nodes[name].args]
    while waiting:
        node = nodes[waiting.pop()]
        if node.op == "rename":
            waiting.extend(node.args)
        elif node.op not in ("constant", "size", "index") and node.name not in names:
            found.add(node.name)
    return found


def way_between(neighbours: Sequence[tuple[str, str]], first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """The shortest way along which a value goes from one place to the other, either of them first; empty if none
    does."""
    readers: dict[str, list[str]] = {}
    for made, reader in neighbours:
        readers.setdefault(made, []).append(reader)
    ways = [_shortest(readers, start, set(end)) for start, end in ((first, second), (second, first))]
    return min((way for way in ways if way), key=len, default=())


def _shortest(readers: Mapping[str, Sequence[str]], start: Sequence[str], end: set[str]) -> tuple[str, ...]:
    ways: list[tuple[str, ...]] = [(name,) for name in start]
    seen = set(start)
    while ways:
        way = ways.pop(0)
        if way[-1] in end:
            return way
        for reader in readers.get(way[-1], ()):
            if reader not in seen:
                seen.add(reader)
                ways.append((*way, reader))
    return ()
