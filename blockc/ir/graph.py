"""Graph algorithms on programs. The only module that uses networkx."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import networkx as nx

from blockc.ir.block import Graph


def ranked_order(
    items: Sequence[str], before: Iterable[tuple[str, str]], priority: Callable[[str], tuple[int, ...]]
) -> tuple[str, ...]:
    """A total order of `items` that respects the pairs (first, second) of `before`; ties by `priority`, smallest first.

    A cycle is cut at the same rank: its members come together, ordered by `priority` alone.
    """
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(items)
    graph.add_edges_from((first, second) for first, second in before if first != second)
    condensed = nx.condensation(graph)
    members = {node: sorted(condensed.nodes[node]["members"], key=priority) for node in condensed}
    ordered = nx.lexicographical_topological_sort(condensed, key=lambda node: priority(members[node][0]))
    return tuple(item for node in ordered for item in members[node])


def reaches_around(graph: Graph, first: int, second: int) -> bool:
    """True if a path leads from definition `first` to definition `second` through another definition of the graph."""
    reached = set(graph[first].defines)
    onward: set[str] = set()
    for definition in graph[first + 1 : second]:
        if not reached.isdisjoint(definition.uses):
            reached.update(definition.defines)
            onward.update(definition.defines)
    return not onward.isdisjoint(graph[second].uses)


def depends(graph: Graph, first: int, second: int) -> bool:
    """True if definition `second` uses, directly or through others, what definition `first` binds."""
    return not set(graph[first].defines).isdisjoint(graph[second].uses) or reaches_around(graph, first, second)


def merge_at(graph: Graph, first: int, second: int, merged: Graph) -> Graph:
    """The graph with the definitions at two positions replaced by `merged`, still in dependency order.

    What stands between them and depends on the first moves behind `merged`. No path may lead around from the first to
    the second.
    """
    reached = set(graph[first].defines)
    before, after = [], []
    for definition in graph[first + 1 : second]:
        if reached.isdisjoint(definition.uses):
            before.append(definition)
        else:
            reached.update(definition.defines)
            after.append(definition)
    return (*graph[:first], *before, *merged, *after, *graph[second + 1 :])
