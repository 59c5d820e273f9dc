"""Rule 1: a map and a map over the same dimension that reads what the first one makes become one.

What was a list between them is an item in local memory.

    map m {
      x: local f32(m) <- X
      e: local f32(m) = exp(x)
      => E: slow f32[m](m) = stack(e)
    }
    map m {
      y: local f32(m) <- E
      z: local f32(m) = mul(y, y)
      => Z: slow f32[m](m) = stack(z)
    }
  =>
    map m {
      x: local f32(m) <- X
      e: local f32(m) = exp(x)
      z: local f32(m) = mul(e, e)
      => Z: slow f32[m](m) = stack(z)
    }
"""

from __future__ import annotations

from collections.abc import Iterator

from blockc.ir.block import Graph, Map, Path, Program, graph_at, replace_graph
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.ir.graph import merge_at, reaches_around
from blockc.passes.rules.common import find, merged, reduced, sites, stacked

REASONS = {
    "different_dimensions": "the second map runs over another dimension of the list",
    "reads_reduced_value": "the second map needs a value that the first one has only after its last iteration",
    "reads_whole_list": "the body of the second map reads the whole list, not only the element for its block",
    "path_around": "something between the two needs the first and is needed by the second",
}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    for site, graph in sites(program, path):
        makers: dict[str, int] = {}  # the lists that maps have made so far
        for second, node in enumerate(graph):
            if not isinstance(node, Map):
                continue
            lists = {makers[port.source]: port.source for port in reversed(node.ports) if port.source in makers}
            for first in sorted(lists, reverse=True):
                at = (graph[first].defines[0], node.defines[0])
                problem = refusal(graph, first, second, lists[first])
                yield Match(site, at) if problem is None else Refusal(problem[0], site, at, problem[1])
            makers.update(dict.fromkeys(stacked(node), second))


def refusal(graph: Graph, first: int, second: int, shared: str) -> tuple[str, str] | None:
    """Why two maps of a graph, of which the second takes the list `shared` of the first, cannot become one."""
    a, b = graph[first], graph[second]
    assert isinstance(a, Map) and isinstance(b, Map)
    if a.dim != b.dim:
        why = f"`{shared}` is made block by block of `{a.dim}` and read block by block of `{b.dim}`"
        return "different_dimensions", why
    needed = b.uses & reduced(a)
    if needed:
        return "reads_reduced_value", f"`{min(needed)}` is complete only after the loop over `{a.dim}`"
    whole = b.captures & stacked(a).keys()
    if whole:
        return "reads_whole_list", f"`{min(whole)}` is used whole in every iteration over `{b.dim}`"
    if reaches_around(graph, first, second):
        names = f"that of `{a.defines[0]}` and feeds that of `{b.defines[0]}`"
        return "path_around", f"a value between the two maps depends on {names}"
    return None


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    first, second = (find(graph, name) for name in match.at)
    fused = merged(graph[first], graph[second])  # type: ignore[arg-type]
    return replace_graph(program, match.path, merge_at(graph, first, second, (fused,)))


RULE = Rule("fuse_consecutive_maps", "1", "never more slow traffic", match, rewrite, REASONS)
