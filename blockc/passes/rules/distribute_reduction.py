"""Rules 4 and 5 for loops: a factor from outside a map leaves an accumulated sum and is applied once, behind it.

The loop no longer needs the factor, which may come from an earlier loop over the same dimension.

    map n {
      x: local f32(m, n) <- X
      s: local f32(m) = sum[n](x)
      t: local f32(m) = mul(s, r)
      => T: local f32(m) = add(t)
    }
  =>
    map n {
      x: local f32(m, n) <- X
      s: local f32(m) = sum[n](x)
      => T.1: local f32(m) = add(s)
    }
    T: local f32(m) = mul(r, T.1)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from blockc.ir.block import (
    Apply,
    Map,
    Operand,
    Output,
    Path,
    Program,
    graph_at,
    replace_graph,
)
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.passes.linear import factor_out
from blockc.passes.rules.common import Writer, applies, bound_inside, find, sites

REASONS = {
    "not_additive": "the values are combined by another operation than addition, which scales do not distribute over",
    "scale_changes_in_the_loop": "the factor is computed from the block of the iteration",
    "nothing_left": "the whole value comes from outside the map",
}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    table = applies(program)
    for site, graph in sites(program, path):
        for node in graph:
            if not isinstance(node, Map):
                continue
            for output in node.outputs:
                if output.monoid is None or len(output.values) != 1:
                    continue
                scales, rest = split(node, output.values[0], table)
                value = table.get(output.values[0])
                if not scales:
                    if value is not None and value.op == "mul":
                        why = f"all factors of `{value.name}` change from block to block of `{node.dim}`"
                        yield Refusal("scale_changes_in_the_loop", site, output.names, why)
                elif rest is None:
                    why = f"`{output.values[0]}` does not change in the loop"
                    yield Refusal("nothing_left", site, output.names, why)
                elif output.monoid != "add":
                    why = f"`{scales[0]}` cannot leave a reduction by {output.monoid}"
                    yield Refusal("not_additive", site, output.names, why)
                else:
                    yield Match(site, output.names)


def split(node: Map, value: str, table: Mapping[str, Apply]) -> tuple[tuple[Operand, ...], Operand | None]:
    """The factors of a value in the body of a map that come from outside, and the rest."""
    inside = bound_inside((node,))
    return factor_out(value, lambda other: not isinstance(other, str) or other not in inside, table)


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    position = find(graph, match.at[0])
    node = graph[position]
    assert isinstance(node, Map)
    table = applies(program)
    write = Writer(program)
    output = next(output for output in node.outputs if output.names == match.at)
    like = table[output.values[0]]
    scales, rest = split(node, output.values[0], table)
    assert rest is not None
    value = write.named(like, rest)
    total = write.fresh(output.names[0])
    changed = Output((total,), (str(value),), "add")
    outputs = tuple(changed if other is output else other for other in node.outputs)
    reduced = Map(node.dim, node.ports, (*node.body, *write.out), outputs, node.span)
    after = Writer(program)
    after.fresh = write.fresh
    factors = tuple(after.named(like, scale) for scale in scales)
    scaled = Apply(output.names[0], "mul", (*factors, total), (), program.types[match.at[0]].dtype, like.span)
    return replace_graph(program, match.path, (*graph[:position], reduced, *after.out, scaled, *graph[position + 1 :]))


RULE = Rule("distribute_reduction", "4, 5", "never more slow traffic", match, rewrite, REASONS)
