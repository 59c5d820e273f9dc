"""Rule 6: what makes a buffered list is copied into every map that uses the list whole, with all on the way to it.

The list need not leave local memory any more, but the work is repeated in every iteration of those maps. Each use is a
snapshot of its own: whether the exchange pays is for the machine to decide.

    map n {
      x: local f32(m, n) <- X
      y: local f32(m, n) = exp(x)
      => Y: slow f32[n](m, n) = stack(y)
    }
    map e {
      w: slow f32[n](n, e) <- W
      map n uses Y {
        z: local f32(m, n) <- Y
        v: local f32(n, e) <- w
        o: local f32(m, e) = contract[n](z, v)
        => O: local f32(m, e) = add(o)
      }
      => P: slow f32[e](m, e) = stack(O)
    }
  =>
    map e uses X {
      w: slow f32[n](n, e) <- W
      map n {
        x.1: local f32(m, n) <- X
        y.1: local f32(m, n) = exp(x.1)
        => Y.1: slow f32[n](m, n) = stack(y.1)
      }
      map n {
        z: local f32(m, n) <- Y.1
        v: local f32(n, e) <- w
        o: local f32(m, e) = contract[n](z, v)
        => O: local f32(m, e) = add(o)
      }
      => P: slow f32[e](m, e) = stack(O)
    }
"""

from __future__ import annotations

from collections.abc import Iterator

from blockc.ir.block import (
    Apply,
    Definition,
    Fresh,
    Graph,
    Map,
    Operand,
    Path,
    Program,
    copy,
    graph_at,
    replace_graph,
    substitute,
    walk,
)
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.passes.rules.common import find, reduced, sites, stacked

REASONS = {
    "nests_dimension": "the copy would put a map over a dimension inside another one over it",
    "needs_mapped_value": "the producer reads whole a list that the map itself takes block by block",
    "stays_for_others": "the list is an output, or something else than a map reads it, so it stays stored",
}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    for site, graph in sites(program, path):
        if not site:
            continue  # lists of the top graph stand between kernels, not inside one
        for node in graph:
            if not isinstance(node, Map):
                continue
            yield from _of_lists(site, graph, node)
            yield from _of_statistics(site, graph, node)


def _of_lists(site: Path, graph: Graph, node: Map) -> Iterator[Match | Refusal]:
    for name in stacked(node):
        readers = readers_of(graph, node, name)
        if readers:
            problem = _problem(graph, node, name, readers)
            yield _answer(site, name, problem)


def _answer(site: Path, name: str, problem: tuple[str, str] | None) -> Match | Refusal:
    return Match(site, (name,)) if problem is None else Refusal(problem[0], site, (name,), problem[1])


def _of_statistics(site: Path, graph: Graph, node: Map) -> Iterator[Match | Refusal]:
    """A loop whose result a later map needs, where that map has a loop over the same list inside."""
    for name in (name for name in node.defines if name in reduced(node)):
        readers = readers_of(graph, node, name)
        if readers:
            problem = _problem(graph, node, "", readers)
            group = {bound for reader in readers for part in copied(graph, node, reader) for bound in part.defines}
            if problem is None and any(
                not group.isdisjoint(other.uses) and other not in readers and group.isdisjoint(other.defines)
                for other in graph
            ):
                problem = "stays_for_others", f"`{name}` is needed outside these maps too"
            yield _answer(site, name, problem)
            return


def readers_of(graph: Graph, producer: Map, name: str) -> list[Map]:
    """The maps that get a copy: those that use the list whole, or, for a statistic, those that have a loop over a list
    of the producer inside."""
    maps = [other for other in graph if isinstance(other, Map)]
    if name in stacked(producer):
        return [other for other in maps if name in other.captures]
    sources = {port.source for port in producer.ports}
    return [
        other
        for other in maps
        if copied(graph, producer, other)
        and any(
            isinstance(inner, Map) and inner.dim == producer.dim and any(port.source in sources for port in inner.ports)
            for inner in other.body
        )
    ]


def copied(graph: Graph, producer: Map, reader: Map) -> Graph:
    """The producer and every definition on a path from it to the reader; empty if the reader does not need it."""
    start, end = find(graph, producer.defines[0]), find(graph, reader.defines[0])
    if end <= start:
        return ()
    needed = set(reader.uses)
    result: list[Definition] = []
    reached = _reached(graph, start, end)
    for definition in reversed(graph[start:end]):
        if not needed.isdisjoint(definition.defines) and not reached.isdisjoint(definition.defines):
            needed |= definition.uses
            result.append(definition)
    return tuple(reversed(result)) if producer in result else ()


def _reached(graph: Graph, start: int, end: int) -> set[str]:
    reached = set(graph[start].defines)
    for definition in graph[start + 1 : end]:
        if not reached.isdisjoint(definition.uses):
            reached.update(definition.defines)
    return reached


def _problem(graph: Graph, node: Map, name: str, readers: list[Map]) -> tuple[str, str] | None:
    for reader in readers:
        group = copied(graph, node, reader)
        made = {bound for definition in group for bound in definition.defines}
        for definition in walk(group):
            if isinstance(definition, Map) and definition.dim == reader.dim:
                return "nests_dimension", f"the producer runs over `{reader.dim}`, and so does the map"
        mapped = {port.source for port in reader.ports}
        for definition in group:
            if mapped & definition.uses:
                both = min(mapped & definition.uses)
                return "needs_mapped_value", f"the producer reads all of `{both}`, which the map takes by blocks"
        if mapped & made:
            return "needs_mapped_value", f"the map takes `{min(mapped & made)}` by blocks"
    if name and any(name in other.uses and other not in readers for other in graph):
        return "stays_for_others", f"`{name}` is read outside these maps too"
    return None


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    producer = graph[find(graph, match.at[0])]
    assert isinstance(producer, Map)
    fresh = Fresh(program)
    changed = list(graph)
    for reader in readers_of(graph, producer, match.at[0]):
        mapping: dict[str, Operand] = {}
        copies = tuple(copy(definition, fresh, mapping) for definition in copied(graph, producer, reader))
        body = tuple(substitute(definition, mapping) for definition in reader.body)
        inside = Map(reader.dim, reader.ports, (*copies, *body), reader.outputs, reader.span)
        changed[graph.index(reader)] = inside
    return replace_graph(program, match.path, tuple(changed))


def repeats(program: Program, match: Match) -> tuple[bool, int]:
    """How costly the repetition is: whether contractions are repeated, and in how many more iterations."""
    graph = graph_at(program, match.path)
    producer = graph[find(graph, match.at[0])]
    assert isinstance(producer, Map)
    contracts = any(isinstance(node, Apply) and node.op == "contract" for node in walk(producer.body))
    readers = sum(isinstance(node, Map) and match.at[0] in node.captures for node in graph)
    return contracts, readers + len(match.path)


RULE = Rule("extend_map", "6", "may repeat work", match, rewrite, REASONS)
