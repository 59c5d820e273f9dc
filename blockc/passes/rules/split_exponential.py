"""`exp(a + c)` becomes `exp(a) * exp(c)` where c is known only after another loop over a dimension of this loop.

The second factor can then leave the loop (rules 4 and 5). Where loops are nested, what waits for each of them becomes a
factor of its own at once. With the normal form this removes a maximum that was
subtracted by hand; `stabilize` brings a safe one back in the end.

    map n {
      s: local f32(m, n) <- S
      d: local f32(m, n) = add(s, c)
      e: local f32(m, n) = exp(d)
      => E: slow f32[n](m, n) = stack(e)
    }
  =>
    map n {
      s: local f32(m, n) <- S
      e.1: local f32(m, n) = exp(s)
      e.2: local f32(m) = exp(c)
      e: local f32(m, n) = mul(e.1, e.2)
      => E: slow f32[n](m, n) = stack(e)
    }
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from blockc.ir.block import (
    Apply,
    Expression,
    Map,
    Operand,
    Path,
    Program,
    graph_at,
    operand_names,
    replace_graph,
)
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.passes.linear import product, terms
from blockc.passes.rules.common import (
    Writer,
    applies,
    bound_inside,
    enclosing,
    find,
    sites,
    upstream_reductions,
)

REASONS = {"does_not_block": "the outside term is not computed by a reduction over a dimension of this loop"}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    table = applies(program)
    upstream: dict[str, frozenset[str]] = {}
    for site, graph in sites(program, path):
        for node in graph:
            if not isinstance(node, Apply) or node.op != "exp":
                continue
            upstream = upstream or upstream_reductions(program)
            divided = divide(enclosing(program, site), node.args[0], table, upstream)
            if divided.moved:
                yield Match(site, (node.name,))
            elif divided.idle:
                outside = divided.idle[0]
                why = f"`{outside}` comes from outside the loop but does not depend on one over the same dimension"
                yield Refusal("does_not_block", site, (node.name,), why)


@dataclass(frozen=True, slots=True)
class Divided:
    """An exponent in nested maps: what stays, and what leaves so many of them; or the names from outside that block
    nothing."""

    kept: Operand
    moved: Operand | None = None
    left: tuple[Map, ...] = ()  # the maps that are still around what leaves
    idle: tuple[str, ...] = ()


def divide(
    maps: tuple[Map, ...], exponent: Operand, table: Mapping[str, Apply], upstream: Mapping[str, frozenset[str]]
) -> Divided:
    """What leaves the innermost of these maps that something can leave."""
    idle: tuple[str, ...] = ()
    for depth in reversed(range(len(maps))):
        inside = bound_inside(maps[depth:])
        parts = terms(exponent, inside.__contains__, table)
        outside = [part for part in parts if inside.isdisjoint(operand_names(part))]
        dim = maps[depth].dim
        moved = tuple(part for part in outside if any(dim in upstream[name] for name in operand_names(part)))
        kept = tuple(part for part in parts if part not in moved)
        if moved and kept:
            return Divided(total(kept), total(moved), maps[:depth])
        if len(parts) > 1:
            idle += tuple(name for part in outside for name in operand_names(part))
    return Divided(exponent, idle=idle)


def separated(
    maps: tuple[Map, ...], exponent: Operand, table: Mapping[str, Apply], upstream: Mapping[str, frozenset[str]]
) -> tuple[Operand, ...]:
    """An exponent as terms of which none can be divided further: a second loop around may wait for a part of either."""
    divided = divide(maps, exponent, table, upstream)
    if divided.moved is None:
        return (exponent,)
    kept = separated(maps, divided.kept, table, upstream)
    return *kept, *separated(divided.left, divided.moved, table, upstream)


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    position = find(graph, match.at[0])
    node = graph[position]
    assert isinstance(node, Apply)
    maps = enclosing(program, match.path)
    parts = separated(maps, node.args[0], applies(program), upstream_reductions(program))
    write = Writer(program)
    factors = tuple(write.put(node, "exp", (write.named(node, part),)) for part in parts)
    split = Apply(node.name, "mul", factors, (), node.dtype, node.span)
    return replace_graph(program, match.path, (*graph[:position], *write.out, split, *graph[position + 1 :]))


def total(parts: tuple[tuple[Operand, ...], ...]) -> Operand:
    """The sum of these products."""
    products = tuple(operand for part in parts if (operand := product(list(part))) is not None)
    return products[0] if len(products) == 1 else Expression("add", products)


RULE = Rule("split_exponential", "-", "never more slow traffic", match, rewrite, REASONS)
