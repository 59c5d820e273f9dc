"""Rule 6: what makes a buffered list is copied into every map that uses the list whole, with all on the way to it.

The list need not leave local memory any more, but the work is repeated in every iteration of those maps. Each use is a
snapshot of its own: whether the exchange pays is for the machine to decide.

Two conditions are a choice, without which the rule is right too: with `needs_mapped_value` the copy would read a list
whole in every iteration of a map over its blocks, and with `reads_more` one kernel less would cost more bytes.

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

In the top graph, where a copy makes one kernel out of several, the producer is copied only if it then joins loops that
are there anyway: what it reads is read there already, or is a small part of that, or takes the place of what it made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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
    roots,
    substitute,
    walk,
)
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.passes.rules.common import find, reduced, sites, stacked

REASONS = {
    "nests_dimension": "the copy would put a map over a dimension inside another one over it",
    "needs_mapped_value": "the producer reads whole a list that the map itself takes block by block",
    "stays_for_others": "the list is an output, or something else than a map reads it, so it stays stored",
    "reads_more": "in the kernel that gets the copy, the producer would read what is not read there anyway",
}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    for site, graph in sites(program, path):
        for node in graph:
            if not isinstance(node, Map):
                continue
            if not site:
                yield from _of_kernels(program, node)
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


def _of_kernels(program: Program, node: Map) -> Iterator[Match | Refusal]:
    """A kernel whose results other kernels use whole."""
    graph = program.body
    readers = _kernels_after(graph, node)
    if readers:
        name = node.defines[0]
        yield _answer((), name, _problem(graph, node, "", readers) or _kernel_problem(program, node, readers))


def _kernel_problem(program: Program, node: Map, readers: list[Map]) -> tuple[str, str] | None:
    group = _carried(program.body, node)
    made = {name for definition in group for name in definition.defines}
    other = {result.value for result in program.outputs}.union(
        *(node.uses for node in program.body if node not in group and node not in readers)
    )
    if made & other:
        return "stays_for_others", f"`{min(made & other)}` is an output, or needed outside these maps too"
    for reader in readers:
        further = _read_besides(program, node, reader, made)
        if further is not None:
            return "reads_more", f"the producer reads `{further}`, which the map does not read at the same time"
    return None


def _carried(graph: Graph, producer: Map) -> Graph:
    """A kernel and the operators after it that need it: what is copied together."""
    group: list[Definition] = [producer]
    made = set(producer.defines)
    for definition in graph[find(graph, producer.defines[0]) + 1 :]:
        if isinstance(definition, Apply) and not made.isdisjoint(definition.uses):
            group.append(definition)
            made.add(definition.name)
    return tuple(group)


def _kernels_after(graph: Graph, producer: Map) -> list[Map]:
    """The kernels that need a producer, and take nothing of it block by block."""
    made = {name for definition in _carried(graph, producer) for name in definition.defines}
    return [
        other
        for other in graph
        if isinstance(other, Map)
        and not made.isdisjoint(other.captures)
        and made.isdisjoint(port.source for port in other.ports)
    ]


@dataclass(frozen=True, slots=True)
class _Load:
    """Items of a list that nested maps over `dims` load; `late` if one of them waits for what the producer makes."""

    source: str
    dims: tuple[str, ...]
    axes: frozenset[str]
    late: bool


def _loads(program: Program, graph: Graph, made: set[str], names: Mapping[str, str]) -> Iterator[_Load]:
    """What the maps of a graph load. `made` is what the producer makes, and is added to; names lead to the lists."""
    for definition in graph:
        if isinstance(definition, Map):
            late = not made.isdisjoint(definition.captures)
            for port in definition.ports:
                if program.types[port.name].is_item:
                    axes = frozenset(program.types[port.name].axes)
                    yield _Load(names[port.name], (definition.dim,), axes, late)
            inside = made | {port.name for port in definition.ports if port.source in made}
            for load in _loads(program, definition.body, inside, names):
                yield _Load(load.source, (definition.dim, *load.dims), load.axes, late or load.late)
        if not made.isdisjoint(definition.uses):
            made.update(definition.defines)


def _read_besides(program: Program, producer: Map, reader: Map, made: set[str]) -> str | None:
    """A list that the reader would read only for the producer's sake; None if there is none.

    Where the reader runs through a list anyway, the producer's loop becomes part of that loop, unless that has to wait
    for it; a list of fewer axes beside it is of lower order. A list that the producer made is no longer read.
    """
    names = roots(program)
    there = list(_loads(program, reader.body, set(made), names))
    dropped = [load for load in there if load.source in made]
    for load in dict.fromkeys(_loads(program, (producer,), set(), names)):
        beside = [other for other in there if other.dims == load.dims and not other.late and other.source not in made]
        if any(other.source == load.source or other.axes > load.axes for other in beside):
            continue
        replaced = next((other for other in dropped if other.dims == load.dims and other.axes >= load.axes), None)
        if replaced is None or replaced.late:
            return load.source
        dropped.remove(replaced)
    return None


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
    for reader in readers_of(graph, producer, match.at[0]) if match.path else _kernels_after(graph, producer):
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
