"""A function of a product that is a product (or sum) of functions is split where a factor waits for another loop.

`log(a * c)` becomes `log(a) + log(c)`, the same for roots, where c is never negative and is known
only after another loop over a dimension of this one. What c gives can then leave the loop (rules 4 and 5).
Where loops are nested, what waits for each of them becomes a term of its own at once.

    map n {
      x: local f32(m, n) <- X
      d: local f32(m, n) = mul(x, c)
      e: local f32(m, n) = log(d)
      => E: slow f32[n](m, n) = stack(e)
    }
  =>
    map n {
      x: local f32(m, n) <- X
      e.1: local f32(m, n) = log(x)
      e.2: local f32(m) = log(c)
      e: local f32(m, n) = add(e.1, e.2)
      => E: slow f32[n](m, n) = stack(e)
    }
"""

from __future__ import annotations

from collections.abc import Iterator

from blockc.ir.block import Apply, Operand, Path, Program, graph_at, replace_graph
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.ir.ops import OPERATORS
from blockc.passes.linear import product
from blockc.passes.positive import is_positive
from blockc.passes.rules.common import Blocking, Writer, applies, enclosing, find, sites

REASONS = {
    "does_not_block": "the outside factor is not computed by a reduction over a dimension of this loop",
    "may_be_negative": "the outside factor may be negative, and roots and logarithms split only for others",
}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    table = applies(program)
    for site, graph in sites(program, path):
        for node in graph:
            if not isinstance(node, Apply) or node.op not in OPERATORS or not OPERATORS[node.op].of_product:
                continue
            inner = table.get(node.args[0]) if isinstance(node.args[0], str) else None
            if not site or inner is None or inner.op != "mul":
                continue
            blocks = Blocking.of(enclosing(program, site), program)
            outside = [factor for factor in inner.args if blocks(factor)]
            moved = [factor for factor in outside if is_positive(program, factor)]
            if moved and len(moved) < len(inner.args):
                yield Match(site, (node.name,))
            elif outside:
                why = f"`{outside[0]}` is not known to be positive"
                yield Refusal("may_be_negative", site, (node.name,), why)
            else:
                why = f"no factor of `{inner.name}` depends on another loop over the same dimension"
                yield Refusal("does_not_block", site, (node.name,), why)


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    position = find(graph, match.at[0])
    node = graph[position]
    assert isinstance(node, Apply) and isinstance(node.args[0], str)
    factors = applies(program)[node.args[0]].args
    blocks = Blocking.of(enclosing(program, match.path), program)
    apart: dict[str, list[Operand]] = {"": []}  # by the outermost map that waits for them
    for factor in factors:
        waiting = next(blocks.kept_apart(factor), None) if is_positive(program, factor) else None
        apart.setdefault("" if waiting is None else waiting.defines[0], []).append(factor)
    write = Writer(program)
    parts = tuple(
        write.put(node, node.op, (write.named(node, operand),))
        for operand in map(product, apart.values())
        if operand is not None
    )
    split = Apply(node.name, OPERATORS[node.op].of_product, parts, (), node.dtype, node.span)
    return replace_graph(program, match.path, (*graph[:position], *write.out, split, *graph[position + 1 :]))


RULE = Rule("split_product", "-", "never more slow traffic", match, rewrite, REASONS)
