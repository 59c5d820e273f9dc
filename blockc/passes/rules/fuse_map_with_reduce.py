"""Rule 3: a reduction of a list that a map has just made becomes an accumulated output of the map.

The list is then no longer stored and read back, unless others read it too.

    map n {
      x: local f32(m, n) <- X
      s: local f32(m) = sum[n](x)
      => S: slow f32[n](m) = stack(s)
    }
    T: local f32(m) = reduce[n, add](S)
  =>
    map n {
      x: local f32(m, n) <- X
      s: local f32(m) = sum[n](x)
      => T: local f32(m) = add(s)
    }
"""

from __future__ import annotations

from collections.abc import Iterator

from blockc.ir.block import Map, Output, Path, Program, Reduce, graph_at, replace_graph
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.passes.rules.common import find, sites, stacked

REASONS = {
    "not_made_by_a_map": "the reduced list is an input or was renamed: there is no map to accumulate in",
    "other_dimension": "the map that makes the list runs over another dimension than the reduction",
}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    for site, graph in sites(program, path):
        reduces = [node for node in graph if isinstance(node, Reduce)]
        makers = {name: node for node in graph if isinstance(node, Map) for name in node.defines} if reduces else {}
        for node in reduces:
            maker = makers.get(node.sources[0])
            if maker is None or any(makers.get(source) is not maker for source in node.sources):
                why = f"`{node.sources[0]}` is not made by a map of the same graph"
                yield Refusal("not_made_by_a_map", site, node.names, why)
            elif maker.dim != node.dim:
                why = f"`{node.sources[0]}` is made by a map over `{maker.dim}`, the reduction is over `{node.dim}`"
                yield Refusal("other_dimension", site, node.names, why)
            else:
                yield Match(site, node.names)


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    node = graph[find(graph, match.at[0])]
    assert isinstance(node, Reduce)
    position = find(graph, node.sources[0])
    maker = graph[position]
    assert isinstance(maker, Map)
    values = tuple(stacked(maker)[source] for source in node.sources)
    outputs = (*maker.outputs, Output(node.names, values, node.monoid))
    fused = Map(maker.dim, maker.ports, maker.body, outputs, maker.span or node.span)
    changed = tuple(fused if other is maker else other for other in graph if other is not node)
    return replace_graph(program, match.path, changed)


RULE = Rule("fuse_map_with_reduce", "3", "never more slow traffic", match, rewrite, REASONS)
