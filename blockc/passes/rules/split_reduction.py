"""A reduction is cut into chunks that may run in parallel, and a second kernel combines their results.

With few rows there are few parallel iterations, however long the reduced dimension is: split-K, flash-decoding. It
holds for every monoid: chunks are neighbouring blocks, and they are combined in order.

Two conditions are choices, without which the rule is right too: with `inside_a_loop` the loop around would become two
loops in two kernels, and with `also_stacked` the second kernel would store the list once more.

    map m uses W {
      x: slow f32[n](m, n) <- X
      map n {
        y: local f32(m, n) <- x
        w: local f32(n, d) <- W
        o: local f32(m, d) = contract[n](w, y)
        => O: local f32(m, d) = add(o)
      }
      p: local f32(m, d) = exp(O)
      => P: slow f32[m](m, d) = stack(p)
    }
  =>
    map m uses W {
      x: slow f32[n](m, n) <- X
      map n_chunk uses W, x {
        map n {
          y: local f32(m, n) <- x
          w: local f32(n, d) <- W
          o: local f32(m, d) = contract[n](w, y)
          => O.1: local f32(m, d) = add(o)
        }
        => O.2: slow f32[n_chunk](m, d) = stack(O.1)
      }
      => O.3: slow f32[n_chunk][m](m, d) = stack(O.2)
    }
    map m {
      O.4: slow f32[n_chunk](m, d) <- O.3
      map n_chunk {
        O.5: local f32(m, d) <- O.4
        => O: local f32(m, d) = add(O.5)
      }
      p: local f32(m, d) = exp(O)
      => P: slow f32[m](m, d) = stack(p)
    }
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from blockc.ir.array_program import chunk_dim
from blockc.ir.block import Definition, Fresh, Graph, Map, Operand, Output, Path, Port, Program, copy, graph_at, walk
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.passes.rules.common import enclosing, find, sites

REASONS = {
    "inside_a_loop": "a map around accumulates too, so its iterations do not run in parallel",
    "also_stacked": "the loop also makes a list over the reduced dimension",
    "accumulates_a_list": "what is accumulated is a list",
    "waits_for_another_loop": "the loop needs the result of another loop of the same kernel",
    "already_in_chunks": "the loop goes through chunks, or through the blocks of one",
}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    for site, graph in sites(program, path):
        for node in graph:
            if not isinstance(node, Map) or not node.is_loop:
                continue
            problem = _problem(program, site, node)
            if problem is None:
                yield Match(site, node.defines)
            else:
                yield Refusal(problem[0], site, node.defines, problem[1])


def _problem(program: Program, site: Path, node: Map) -> tuple[str, str] | None:
    around = enclosing(program, site)
    dims = [other.dim for other in around]
    if node.dim in program.chunks or any(program.chunks.get(dim) == node.dim for dim in dims):
        return "already_in_chunks", f"`{node.dim}` is split here"
    loop = next((other for other in around if other.is_loop), None)
    if loop is not None:
        return "inside_a_loop", f"the map over `{loop.dim}` accumulates `{loop.defines[0]}`"
    for output in node.outputs:
        if output.monoid is None:
            return "also_stacked", f"`{output.names[0]}` is a list over `{node.dim}`"
        if not all(program.types[name].is_item for name in output.names):
            return "accumulates_a_list", f"`{output.names[0]}` is a list"
    for before in _needed(program, site, node):
        for inner in walk(before):
            if isinstance(inner, Map) and inner.dim not in program.chunks:
                return "waits_for_another_loop", f"it reads what the map over `{inner.dim}` makes"
    return None


def _needed(program: Program, site: Path, node: Map) -> list[Graph]:
    """For each graph around the loop but the top one, outermost first, the definitions that the loop needs."""
    wanted = set(node.uses)
    result: list[Graph] = []
    for depth in reversed(range(1, len(site) + 1)):
        graph = graph_at(program, site[:depth])
        end = find(graph, node.defines[0] if depth == len(site) else site[depth])
        kept: list[Definition] = []
        for definition in reversed(graph[:end]):
            if not wanted.isdisjoint(definition.defines):
                wanted |= definition.uses
                kept.append(definition)
        wanted |= {port.source for port in enclosing(program, site[:depth])[-1].ports if port.name in wanted}
        result.append(tuple(reversed(kept)))
    return result[::-1]


@dataclass(frozen=True, slots=True)
class Partials:
    """The chunk's results: how the innermost map calls them, and as what they come out of the kernel."""

    graph: Graph
    names: dict[str, str]


def rewrite(program: Program, match: Match) -> Program:
    site = match.path
    node = graph_at(program, site)[find(graph_at(program, site), match.at[0])]
    assert isinstance(node, Map)
    program, chunk = with_chunks(program, node.dim)
    fresh = Fresh(program)
    partials = _partials(program, site, node, chunk, fresh)
    body = _combined(program.body, site, node, chunk, partials.names, fresh)
    position = find(program.body, site[0] if site else node.defines[0])
    return replace(program, body=(*body[:position], *partials.graph, *body[position:]))


def with_chunks(program: Program, dim: str) -> tuple[Program, str]:
    """The program with chunks of a dimension, ahead of it in the order, and their name."""
    known = next((chunk for chunk, base in program.chunks.items() if base == dim), None)
    if known is not None:
        return replace(program), known
    chunk = f"{dim}_chunk"
    while chunk in program.rank:
        chunk += "_"
    position = program.rank[dim]
    dims = (*program.dims[:position], chunk_dim(chunk, dim), *program.dims[position:])
    return replace(program, dims=dims), chunk


def _partials(program: Program, site: Path, node: Map, chunk: str, fresh: Fresh) -> Partials:
    """The kernel that reduces every chunk, in copies of the maps around the loop."""
    mapping: dict[str, Operand] = {}
    needed = _needed(program, site, node)
    around = enclosing(program, site)
    copies: list[tuple[tuple[Port, ...], Graph]] = []
    for other, graph in zip(around, needed, strict=True):
        used = set(node.uses).union(*(definition.uses for part in needed for definition in part))
        used |= {port.source for inner in around for port in inner.ports}
        ports = tuple(
            Port(fresh(port.name), str(mapping.get(port.source, port.source)))
            for port in other.ports
            if port.name in used
        )
        kept = [port for port in other.ports if port.name in used]
        mapping.update({old.name: new.name for old, new in zip(kept, ports, strict=True)})
        copies.append((ports, tuple(copy(definition, fresh, mapping) for definition in graph)))
    loop = copy(node, fresh, mapping)
    names = {name: str(mapping[name]) for name in node.defines}
    result, names = _stacking(Map(chunk, (), (loop,), ()), names, fresh)
    for other, (ports, graph) in zip(reversed(around), reversed(copies), strict=True):
        result, names = _stacking(Map(other.dim, ports, (*graph, result), (), other.span), names, fresh)
    return Partials((result,), names)


def _stacking(node: Map, names: dict[str, str], fresh: Fresh) -> tuple[Map, dict[str, str]]:
    """The map with these values of its body stacked, and what the lists are called."""
    lists = {name: fresh(name) for name in names}
    outputs = tuple(Output((lists[name],), (value,), None) for name, value in names.items())
    return Map(node.dim, node.ports, node.body, outputs, node.span), lists


def _combined(graph: Graph, site: Path, node: Map, chunk: str, names: dict[str, str], fresh: Fresh) -> Graph:
    """The kernel as it was, with the chunks' results combined in place of the loop."""
    position = find(graph, site[0] if site else node.defines[0])
    if not site:
        ports = {name: Port(fresh(name), source) for name, source in names.items()}
        outputs = tuple(
            Output(output.names, tuple(ports[name].name for name in output.names), output.monoid)
            for output in node.outputs
        )
        changed: Definition = Map(chunk, tuple(ports.values()), (), outputs, node.span)
    else:
        outer = graph[position]
        assert isinstance(outer, Map)
        inner = {name: Port(fresh(name), source) for name, source in names.items()}
        now = {name: port.name for name, port in inner.items()}
        body = _combined(outer.body, site[1:], node, chunk, now, fresh)
        changed = Map(outer.dim, (*outer.ports, *inner.values()), body, outer.outputs, outer.span)
    return (*graph[:position], changed, *graph[position + 1 :])


RULE = Rule("split_reduction", "-", "moves the partial results too", match, rewrite, REASONS)
