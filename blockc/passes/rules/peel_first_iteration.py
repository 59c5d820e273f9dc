"""Rule 7: the first iteration of a loop stands ahead of it, and the others start from what it gives.

For emission: what a loop accumulates then starts from the values of the first block and not from an identity that they
are combined with. Of a loop of one block no combination is left, of one of two blocks half of them. It moves the same
bytes and does the same work.

    map m {
      x: slow f32[n](m, n) <- X
      map n {
        y: local f32(m, n) <- x
        s: local f32(m) = max[n](y)
        => S: local f32(m) = max(s)
      }
      => T: slow f32[m](m) = stack(S)
    }
  =>
    map m {
      x: slow f32[n](m, n) <- X
      map n first {
        y.1: local f32(m, n) <- x
        s.1: local f32(m) = max[n](y.1)
        => S.1: local f32(m) = max(s.1)
      }
      map n rest {
        y: local f32(m, n) <- x
        s: local f32(m) = max[n](y)
        => S: local f32(m) = max(s) from S.1
      }
      => T: slow f32[m](m) = stack(S)
    }
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from blockc.ir.block import Apply, Fresh, Map, Operand, Path, Program, copy, graph_at, replace_graph
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.passes.rules.common import find, sites

REASONS = {
    "kernel_of_its_own": "the loop is a kernel, and its first iteration would be another one",
    "also_stacked": "the loop also makes a list, which would be in two parts",
    "leaves_out_blocks": "which block is the first that takes part is known only when the loop runs",
    "has_maps_inside": "the maps in the loop would be written twice",
}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    for site, graph in sites(program, path):
        for node in graph:
            if isinstance(node, Map) and node.is_loop and node.part == "all":
                problem = _problem(program, site, node)
                if problem is None:
                    yield Match(site, node.defines)
                else:
                    yield Refusal(problem[0], site, node.defines, problem[1])


def _problem(program: Program, site: Path, node: Map) -> tuple[str, str] | None:
    if not site:
        return "kernel_of_its_own", f"the loop over `{node.dim}` is in no map"
    for output in node.outputs:
        if output.monoid is None:
            return "also_stacked", f"`{output.names[0]}` is a list over `{node.dim}`"
    if node.where is not None:
        return "leaves_out_blocks", f"a condition bounds the loop over `{node.dim}`"
    inner = next((other for other in node.body if not isinstance(other, Apply)), None)
    if inner is not None:
        return "has_maps_inside", f"`{inner.defines[0]}` is made in the loop over `{node.dim}`"
    return None


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    position = find(graph, match.at[0])
    loop = graph[position]
    assert isinstance(loop, Map)
    names: dict[str, Operand] = {}
    first = copy(loop, Fresh(program), names)
    assert isinstance(first, Map)
    outputs = tuple(replace(out, starts=tuple(str(names[name]) for name in out.names)) for out in loop.outputs)
    parts = (replace(first, part="first"), replace(loop, outputs=outputs, part="rest"))
    return replace_graph(program, match.path, (*graph[:position], *parts, *graph[position + 1 :]))


RULE = Rule("peel_first_iteration", "7", "the same bytes and work", match, rewrite, REASONS)
