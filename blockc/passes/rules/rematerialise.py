"""Rule 8: a stored value that is elementwise in at most one large list is computed again where it is read.

Its reader then depends on what the value was made of, not on the map that made it. The paper duplicates scales; this is
the general case.

    map n {
      x: local f32(m, n) <- X
      y: local f32(m, n) = mul(x, r)
      => Y: slow f32[n](m, n) = stack(y)
    }
    map e {
      w: slow f32[n](n, e) <- W
      map n uses Y {
        z: local f32(m, n) <- Y
        v: local f32(n, e) <- w
        o: local f32(m, e) = contract[n](z, v)
        => O: local f32(m, e) = add(o)
      }
      => P: slow f32[e](m, e) = stack(O)
    }
  =>
    map e {
      w: slow f32[n](n, e) <- W
      map n {
        v: local f32(n, e) <- w
        x.1: local f32(m, n) <- X
        y.1: local f32(m, n) = mul(x.1, r)
        o: local f32(m, e) = contract[n](y.1, v)
        => O: local f32(m, e) = add(o)
      }
      => P: slow f32[e](m, e) = stack(O)
    }
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from blockc.ir.block import (
    REDUCTIONS,
    Apply,
    Definition,
    Fresh,
    Graph,
    Map,
    Operand,
    Output,
    Path,
    Port,
    Program,
    as_name,
    copy,
    graph_at,
    operand_names,
    replace_graph,
    substitute,
    without,
)
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.passes.rules import fuse_consecutive_maps
from blockc.passes.rules.common import find, sites, stacked

REASONS = {
    "not_elementwise": "computing the value again would repeat a contraction, a reduction or a map",
    "two_large_leaves": "the value is made of several lists as large as itself, which would be read instead of it",
}


@dataclass(frozen=True, slots=True)
class Cone:
    """How an element of a stored list is made: operators in order, its name, and the lists that it reads, by name."""

    operators: tuple[Apply, ...]
    value: str
    leaves: dict[str, str]  # the port in the maker's body, to the list in the maker's graph


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    for site, graph in sites(program, path):
        makers = [node for node in graph if isinstance(node, Map)]
        for maker in makers:
            for name in stacked(maker):
                readers = [node for node in makers if name in node.uses and reads_elements(node, name, program)]
                if not readers:
                    continue
                cone = make_cone(program, maker, name)
                for reader in readers:
                    if fusible(graph, maker, reader, name):
                        continue
                    at = (name, reader.defines[0])
                    if isinstance(cone, Cone):
                        yield Match(site, at)
                    else:
                        yield Refusal(cone[0], site, at, cone[1])


def fusible(graph: Graph, maker: Map, reader: Map, name: str) -> bool:
    """True if rule 1 applies to the two, which is better."""
    first, second = (find(graph, node.defines[0]) for node in (maker, reader))
    mapped = any(port.source == name for port in reader.ports)
    return mapped and fuse_consecutive_maps.refusal(graph, first, second, name) is None


def reads_elements(node: Map, name: str, program: Program) -> bool:
    """True if somewhere in the map a port peels the last list dimension of `name`."""
    lists = program.types[name].lists
    for port in node.ports:
        if port.source == name:
            if lists == (node.dim,):
                return True
            if any(isinstance(inner, Map) and reads_elements(inner, port.name, program) for inner in node.body):
                return True
    return name in node.captures and any(
        isinstance(inner, Map) and reads_elements(inner, name, program) for inner in node.body
    )


def make_cone(program: Program, maker: Map, name: str) -> Cone | tuple[str, str]:
    """The cone of a stacked output, or the reason and explanation of why it is not to be computed again."""
    sources: dict[str, str] = {}
    inside: list[Definition] = []
    node, value = maker, stacked(maker)[name]
    while True:
        sources.update({port.name: sources.get(port.source, port.source) for port in node.ports})
        inside.extend(node.body)
        inner = next((other for other in node.body if isinstance(other, Map) and value in stacked(other)), None)
        if inner is None:
            break
        node, value = inner, stacked(inner)[value]
    needed = {value}
    operators: list[Apply] = []
    for definition in reversed(inside):
        made = needed.intersection(definition.defines)
        if not made:
            continue
        if not isinstance(definition, Apply) or definition.op in REDUCTIONS:
            return "not_elementwise", f"`{name}` needs `{min(made)}`, which is not elementwise"
        needed |= definition.uses
        operators.insert(0, definition)
    read = dict.fromkeys((*(arg for apply in operators for arg in operand_names(apply.args)), value))
    leaves = {port: sources[port] for port in read if port in sources}
    bound = {other for definition in inside for other in definition.defines}
    for leaf in leaves.values():
        if leaf in bound:
            return "not_elementwise", f"`{name}` needs `{leaf}`, a list that another map makes inside"
    axes = set(program.types[value].axes)
    large = [leaf for leaf in leaves.values() if set(program.types[leaf].axes) >= axes]
    if len(set(large)) > 1:
        return "two_large_leaves", f"`{name}` is made of {', '.join(f'`{leaf}`' for leaf in dict.fromkeys(large))}"
    return Cone(tuple(operators), value, leaves)


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    name, reader_name = match.at
    maker = graph[find(graph, name)]
    position = find(graph, reader_name)
    reader = graph[position]
    assert isinstance(maker, Map) and isinstance(reader, Map)
    cone = make_cone(program, maker, name)
    assert isinstance(cone, Cone)
    again = _Recompute(program, Fresh(program), cone)
    lists = {port: (leaf, program.types[leaf].lists) for port, leaf in cone.leaves.items()}
    changed = again.map(reader, name, program.types[name].lists, lists)
    return replace_graph(program, match.path, (*graph[:position], changed, *graph[position + 1 :]))


Lists = dict[str, tuple[str, tuple[str, ...]]]  # a leaf to what it is called here, and its list dimensions left


@dataclass(slots=True)
class _Recompute:
    program: Program
    fresh: Fresh
    cone: Cone

    def map(self, node: Map, name: str, lists: tuple[str, ...], leaves: Lists) -> Map:
        """The map with every element of the list `name` that it or a map inside reads computed from the leaves."""
        ports = list(node.ports)
        body = node.body
        outputs = node.outputs
        if name in node.captures:
            body = self.graph(body, name, lists, leaves)
        for port in node.ports:
            if port.source != name:
                continue
            inner: Lists = {}
            for leaf, (current, left) in leaves.items():
                inner[leaf] = (current, left)
                if node.dim in left:
                    peeled = Port(self.fresh(current), current)
                    ports.append(peeled)
                    inner[leaf] = (peeled.name, without(left, node.dim))
            rest = without(lists, node.dim)
            if rest:
                body = self.graph(body, port.name, rest, inner)
                continue
            mapping: dict[str, Operand] = {leaf: current for leaf, (current, _) in inner.items()}
            computed = tuple(copy(operator, self.fresh, mapping) for operator in self.cone.operators)
            direct: dict[str, Operand] = {port.name: mapping.get(self.cone.value, self.cone.value)}
            body = (*computed, *(substitute(definition, direct) for definition in body))
            outputs = tuple(
                Output(out.names, tuple(as_name(direct.get(value, value)) for value in out.values), out.monoid)
                for out in outputs
            )
        return Map(node.dim, tuple(ports), body, outputs, node.span)

    def graph(self, graph: Graph, name: str, lists: tuple[str, ...], leaves: Lists) -> Graph:
        return tuple(
            self.map(inner, name, lists, leaves) if isinstance(inner, Map) and name in inner.uses else inner
            for inner in graph
        )


RULE = Rule("rematerialise", "8", "never more slow traffic in leading order", match, rewrite, REASONS)
