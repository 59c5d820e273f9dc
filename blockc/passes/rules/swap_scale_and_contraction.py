"""Rule 4: a factor that does not change along a contracted dimension leaves the contraction.

A scale that is known only after another loop over the same dimension no longer keeps the two loops apart.

    e: local f32(m, n) = exp(s)
    p: local f32(m, n) = mul(e, r)
    o: local f32(m, d) = contract[n](p, v)
  =>
    e: local f32(m, n) = exp(s)
    o.1: local f32(m, d) = contract[n](e, v)
    o: local f32(m, d) = mul(r, o.1)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from blockc.ir.block import Apply, Operand, Path, Program, graph_at, replace_graph
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.passes.linear import ONE, factor_out
from blockc.passes.rules.common import Writer, applies, enclosing, find, sites

REASONS = {"no_loop": "no map runs over the contracted dimension here, so no loop would lose its dependence"}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    table = applies(program)
    for site, graph in sites(program, path):
        mapped = {node.dim for node in enclosing(program, site)}
        for node in graph:
            if not isinstance(node, Apply) or node.op not in ("contract", "sum"):
                continue
            scales = [scale for arg in node.args for scale in split(program, table, node, arg)[0]]
            if not scales:
                continue
            if mapped.isdisjoint(node.dims):
                why = f"`{scales[0]}` could leave the sum over {', '.join(node.dims)}, which is one tile here"
                yield Refusal("no_loop", site, (node.name,), why)
            else:
                yield Match(site, (node.name,))


def split(
    program: Program, table: Mapping[str, Apply], node: Apply, operand: Operand
) -> tuple[tuple[Operand, ...], Operand | None]:
    """The scales of an operand of a contraction or sum, and the rest."""
    dims = set(node.dims)

    def lacks(other: Operand) -> bool:
        return not isinstance(other, str) or dims.isdisjoint(program.types[other].axes)

    spread = table.get(operand) if isinstance(operand, str) else None
    if spread is not None and spread.op == "broadcast":
        (value,) = spread.args
        return ((value,), None) if value != ONE and lacks(value) and set(spread.dims) <= dims else ((), operand)
    return factor_out(operand, lacks, table)


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    position = find(graph, match.at[0])
    node = graph[position]
    assert isinstance(node, Apply)
    table = applies(program)
    write = Writer(program)
    parts = [split(program, table, node, arg) for arg in node.args]
    scales = tuple(write.named(node, scale) for own, _ in parts for scale in own)
    rests = tuple(rest for _, rest in parts if rest is not None)
    scaled = Apply(node.name, "mul", (*scales, write.contraction(node, rests)), (), node.dtype, node.span)
    changed = (*graph[:position], *write.out, scaled, *graph[position + 1 :])
    return replace_graph(program, match.path, changed)


RULE = Rule("swap_scale_and_contraction", "4", "never more slow traffic", match, rewrite, REASONS)
