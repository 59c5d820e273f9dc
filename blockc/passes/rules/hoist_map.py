"""A map that takes nothing from the block of the map around it runs once, ahead of that map.

What it makes is then made once and not in every iteration. In the top graph it becomes a kernel of its own.

    map m {
      q: local f32(m, d) <- Q
      map n uses X {
        x: local f32(n, d) <- X
        s: local f32(d) = sum[n](x)
        => S: local f32(d) = add(s)
      }
      p: local f32(m) = contract[d](q, S)
      => P: slow f32[m](m) = stack(p)
    }
  =>
    map n {
      x: local f32(n, d) <- X
      s: local f32(d) = sum[n](x)
      => S: local f32(d) = add(s)
    }
    map m uses S {
      q: local f32(m, d) <- Q
      p: local f32(m) = contract[d](q, S)
      => P: slow f32[m](m) = stack(p)
    }
"""

from __future__ import annotations

from collections.abc import Iterator

from blockc.ir.block import Apply, Map, Path, Program, graph_at, replace_graph, walk
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.passes.rules.common import bound_inside, enclosing, find, sites

REASONS = {
    "asks_for_the_position": "the map takes no value of the block around it, but asks where the block lies or how long"
    " it is",
}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    for site, graph in sites(program, path):
        if not site:
            continue
        around = enclosing(program, site)[-1]
        bound = bound_inside((around,))
        for node in graph:
            if not isinstance(node, Map) or not bound.isdisjoint(node.uses):
                continue
            asking = [inner for inner in walk(node.body) if isinstance(inner, Apply) and _asks(inner, around.dim)]
            if asking:
                why = f"`{asking[0].name}` is {asking[0].op}[{around.dim}]"
                yield Refusal("asks_for_the_position", site, node.defines[:1], why)
            else:
                yield Match(site, node.defines[:1])


def _asks(apply: Apply, dim: str) -> bool:
    return apply.op in ("index", "broadcast") and dim in apply.dims


def rewrite(program: Program, match: Match) -> Program:
    body = graph_at(program, match.path)
    node = body[find(body, match.at[0])]
    parent = graph_at(program, match.path[:-1])
    position = find(parent, match.path[-1])
    around = parent[position]
    assert isinstance(around, Map)
    rest = tuple(other for other in body if other is not node)
    changed = Map(around.dim, around.ports, rest, around.outputs, around.span)
    return replace_graph(program, match.path[:-1], (*parent[:position], node, changed, *parent[position + 1 :]))


RULE = Rule("hoist_map", "-", "never more work", match, rewrite, REASONS)
