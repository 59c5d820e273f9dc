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

from blockc.ir.block import Path, Program, graph_at, replace_graph
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.ir.graph import merge_at, reaches_around
from blockc.passes.rules.common import find, map_pairs, merged, reduced, sites, stacked

REASONS = {
    "different_dimensions": "the second map runs over another dimension of the list",
    "reads_reduced_value": "the second map needs a value that the first one has only after its last iteration",
    "reads_whole_list": "the body of the second map reads the whole list, not only the element for its block",
    "path_around": "something between the two needs the first and is needed by the second",
}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    for site, graph in sites(program, path):
        for first, a, second, b in map_pairs(graph):
            lists = stacked(a)
            shared = [port.source for port in b.ports if port.source in lists]
            if not shared:
                continue
            at = (a.defines[0], b.defines[0])
            needed = b.uses & reduced(a)
            whole = b.captures & lists.keys()
            if a.dim != b.dim:
                why = f"`{shared[0]}` is made block by block of `{a.dim}` and read block by block of `{b.dim}`"
                yield Refusal("different_dimensions", site, at, why)
            elif needed:
                why = f"`{min(needed)}` is complete only after the loop over `{a.dim}`"
                yield Refusal("reads_reduced_value", site, at, why)
            elif whole:
                why = f"`{min(whole)}` is used whole in every iteration over `{b.dim}`"
                yield Refusal("reads_whole_list", site, at, why)
            elif reaches_around(graph, first, second):
                why = f"a value between them depends on the map of `{at[0]}` and feeds that of `{at[1]}`"
                yield Refusal("path_around", site, at, why)
            else:
                yield Match(site, at)


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    first, second = (find(graph, name) for name in match.at)
    fused = merged(graph[first], graph[second])  # type: ignore[arg-type]
    return replace_graph(program, match.path, merge_at(graph, first, second, (fused,)))


RULE = Rule("fuse_consecutive_maps", "1", "never more slow traffic", match, rewrite, REASONS)
