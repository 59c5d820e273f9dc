"""Rule 2: two maps over the same dimension that read a common list, and do not depend on one another, become one.

The common list is then loaded once.

    map m {
      x: local f32(m) <- X
      y: local f32(m) = exp(x)
      => Y: slow f32[m](m) = stack(y)
    }
    map m {
      u: local f32(m) <- X
      v: local f32(m) = sqrt(u)
      => V: slow f32[m](m) = stack(v)
    }
  =>
    map m {
      x: local f32(m) <- X
      y: local f32(m) = exp(x)
      v: local f32(m) = sqrt(x)
      => Y: slow f32[m](m) = stack(y)
      => V: slow f32[m](m) = stack(v)
    }
"""

from __future__ import annotations

from collections.abc import Iterator

from blockc.ir.block import Path, Program, graph_at, replace_graph
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.ir.graph import depends, merge_at
from blockc.passes.rules.common import find, map_pairs, merged, sites

REASONS = {"dependent": "the second map needs a value that is complete only after the first one"}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    for site, graph in sites(program, path):
        for first, a, second, b in map_pairs(graph):
            common = {port.source for port in a.ports} & {port.source for port in b.ports}
            if a.dim != b.dim or not common:
                continue
            at = (a.defines[0], b.defines[0])
            if depends(graph, first, second):
                why = f"both read `{min(common)}`, but the map of `{at[1]}` depends on that of `{at[0]}`"
                yield Refusal("dependent", site, at, why)
            else:
                yield Match(site, at)


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    first, second = (find(graph, name) for name in match.at)
    fused = merged(graph[first], graph[second])  # type: ignore[arg-type]
    return replace_graph(program, match.path, merge_at(graph, first, second, (fused,)))


RULE = Rule("fuse_sibling_maps", "2", "never more slow traffic", match, rewrite, REASONS)
