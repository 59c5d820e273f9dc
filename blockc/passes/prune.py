"""Values, ports and outputs that nothing uses are removed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from blockc.ir.block import DEFINES, USES, Definition, Graph, Map, Program, with_body
from blockc.passes.remembered import Memory


def prune(program: Program, memory: Memory | None = None) -> Program:
    """The program without values, ports and outputs that nothing uses."""
    wanted = {result.value for result in program.outputs}
    return with_body(program, _prune(program.body, wanted, memory or Memory()))


def _prune(graph: Graph, wanted: set[str], memory: Memory) -> Graph:
    for _ in range(2):  # mostly little has to go, and nothing after that
        used = wanted.union(*map(USES, graph))
        dead = set(chain.from_iterable(map(DEFINES, graph))).difference(used)
        suspects = [at for at, node in enumerate(graph) if type(node) is Map and id(node) not in memory.maps]
        if dead:
            suspects += [at for at, node in enumerate(graph) if not dead.isdisjoint(node.defines)]
        after: dict[int, tuple[Definition, ...]] = {}
        for at in dict.fromkeys(suspects):
            node = graph[at]
            if dead.issuperset(node.defines):
                after[at] = ()
            elif isinstance(node, Map):
                after[at] = (_prune_map(node, used, memory),)
        if all(left and left[0].uses == graph[at].uses for at, left in after.items()):
            wanted |= used
            return _with(graph, after)
        graph = _with(graph, after)
    kept = []
    for definition in reversed(graph):
        if wanted.isdisjoint(definition.defines):
            continue
        if isinstance(definition, Map):
            settled = id(definition) in memory.maps and wanted.issuperset(definition.defines)
            definition = definition if settled else _prune_map(definition, wanted, memory)
        wanted |= definition.uses
        kept.append(definition)
    return tuple(reversed(kept))


def _with(graph: Graph, changed: Mapping[int, tuple[Definition, ...]]) -> Graph:
    """The graph with what stands at some places replaced."""
    result: list[Definition] = []
    done = 0
    for at in sorted(changed):
        result += (*graph[done:at], *changed[at])
        done = at + 1
    return (*result, *graph[done:]) if changed else graph


def _prune_map(node: Map, wanted: set[str], memory: Memory) -> Map:
    # A monoid with a scalar part keeps all its components: the payloads mean nothing without it.
    outputs = tuple(output for output in node.outputs if not wanted.isdisjoint(output.names))
    inside = {value for output in outputs for value in output.values}
    body = _prune(node.body, inside, memory)
    ports = tuple(port for port in node.ports if port.name in inside)
    if outputs == node.outputs and ports == node.ports and body == node.body:
        return node
    return Map(node.dim, ports, body, outputs, node.span, node.where, node.part)
