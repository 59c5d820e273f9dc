"""A map around loops becomes loops around a map: the loops run once, and what they accumulate becomes a list.

The list that the loops read is then read once, and in step with the map that makes it if they can become one: it need
not leave local memory. Nothing is repeated, as `extend_map` would; instead the accumulated list is stored and loaded
again in every iteration. What does not depend on the outer map is hoisted: computed once, around the inner one.

    map n {
      x: local f32(m, n) <- X
      y: local f32(m, n) = exp(x)
      => Y: slow f32[n](m, n) = stack(y)
    }
    map e uses Y {
      w: slow f32[n](n, e) <- W
      g: local f32(e) <- G
      map n {
        z: local f32(m, n) <- Y
        v: local f32(n, e) <- w
        o: local f32(m, e) = contract[n](z, v)
        => O: local f32(m, e) = add(o)
      }
      p: local f32(m, e) = mul(O, g)
      => P: slow f32[e](m, e) = stack(p)
    }
  =>
    map n {
      x: local f32(m, n) <- X
      y: local f32(m, n) = exp(x)
      => Y: slow f32[n](m, n) = stack(y)
    }
    map n {
      z: local f32(m, n) <- Y
      w: slow f32[e](n, e) <- W
      map e uses z {
        v: local f32(n, e) <- w
        o: local f32(m, e) = contract[n](z, v)
        => O.1: slow f32[e](m, e) = stack(o)
      }
      => O.2: slow f32[e](m, e) = add(O.1)
    }
    map e {
      g: local f32(e) <- G
      O: local f32(m, e) <- O.2
      p: local f32(m, e) = mul(O, g)
      => P: slow f32[e](m, e) = stack(p)
    }
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from blockc.ir.block import (
    Apply,
    Definition,
    Fresh,
    Graph,
    Map,
    Output,
    Path,
    Port,
    Program,
    graph_at,
    replace_graph,
    substitute,
    walk,
)
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.ir.graph import depends
from blockc.passes.rules.common import find, reduced, sites, stacked

REASONS = {
    "needs_other_loop": "inside one map, a loop over the list needs the result of another one",
    "accumulates_a_list": "a map between accumulates the list that the loop makes",
}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    for site, graph in sites(program, path):
        if not site:
            continue  # lists of the top graph stand between kernels, not inside one
        for node in graph:
            if not isinstance(node, Map):
                continue
            statistics = [name for name in node.defines if name in reduced(node) and readers_of(graph, node, name)]
            for name in (*(name for name in stacked(node) if readers_of(graph, node, name)), *statistics[:1]):
                changed = interchanged(program, graph, node, name)
                if isinstance(changed, Stuck):
                    yield Refusal(changed.reason, site, (name,), changed.why)
                else:
                    yield Match(site, (name,))


def readers_of(graph: Graph, producer: Map, name: str) -> list[Map]:
    """The maps with a loop inside that reads what the producer makes, or, for a statistic of the producer that they
    need, a list that the producer reads."""
    start = find(graph, producer.defines[0])
    maps = [(at, other) for at, other in enumerate(graph) if isinstance(other, Map) and at > start]
    outer = [(at, other) for at, other in maps if other.dim != producer.dim]
    if name in stacked(producer):
        return [other for _, other in outer if name in other.uses and _has_loop(other, producer.dim, {name})]
    sources = {port.source for port in producer.ports}
    return [other for at, other in outer if _has_loop(other, producer.dim, sources) and depends(graph, start, at)]


def swaps(program: Program, match: Match) -> frozenset[tuple[str, str]]:
    """The dimensions of the maps that are interchanged, each with that of the loops inside it."""
    graph = graph_at(program, match.path)
    producer = graph[find(graph, match.at[0])]
    assert isinstance(producer, Map)
    return frozenset((reader.dim, producer.dim) for reader in readers_of(graph, producer, match.at[0]))


def _is_loop(node: Definition, dim: str, lists: Iterable[str]) -> bool:
    """True for a map over the dimension that takes an element of one of the lists."""
    return isinstance(node, Map) and node.dim == dim and not {port.source for port in node.ports}.isdisjoint(lists)


def _has_loop(node: Map, dim: str, lists: set[str]) -> bool:
    """True if a loop over the dimension inside the map takes elements of the lists."""
    known = _seen_inside(node, lists)
    return any(
        isinstance(inner, Map) and (_is_loop(inner, dim, known) or (inner.dim != dim and _has_loop(inner, dim, known)))
        for inner in node.body
    )


def _seen_inside(node: Map, lists: set[str]) -> set[str]:
    """The lists, with what the ports of the map leave of them."""
    return lists | {port.name for port in node.ports if port.source in lists}


@dataclass(frozen=True, slots=True)
class Stuck:
    """Why maps cannot be interchanged."""

    reason: str
    why: str


def interchanged(program: Program, graph: Graph, producer: Map, name: str) -> Graph | Stuck:
    """The graph with all readers interchanged, or why that cannot be."""
    own = stacked(producer)
    lists = set(own) if name in own else {port.source for port in producer.ports}
    change = _Interchange(Fresh(program), producer.dim)
    readers = readers_of(graph, producer, name)
    result: list[Definition] = []
    for node in graph:
        result.extend(change.apart(node, lists) if isinstance(node, Map) and node in readers else (node,))
    return change.stuck or tuple(result)


def loops_outside(node: Map, dim: str, fresh: Fresh) -> Graph | Stuck:
    """The map taken apart, with all loops over another dimension that are inside it around it."""
    change = _Interchange(fresh, dim)
    graph = change.apart(node, set(node.uses))
    return change.stuck or graph


@dataclass(slots=True)
class _Interchange:
    """Takes maps apart into loops over `dim` and what stands before and after them."""

    fresh: Fresh
    dim: str
    stuck: Stuck | None = None

    def apart(self, node: Map, lists: set[str]) -> Graph:
        """A map around loops over the lists: what the loops need, each loop around the map, and what needs them."""
        inside = _seen_inside(node, lists)
        body: list[Definition] = []
        for inner in node.body:
            nested = isinstance(inner, Map) and inner.dim != self.dim and _has_loop(inner, self.dim, inside)
            body.extend(self.apart(inner, inside) if nested and isinstance(inner, Map) else (inner,))
        loops = [inner for inner in body if _is_loop(inner, self.dim, inside)]
        accumulated = {value for output in node.outputs if output.monoid is not None for value in output.values}
        for name in (name for loop in loops if isinstance(loop, Map) for name in stacked(loop)):
            if name in accumulated:
                self.stuck = Stuck("accumulates_a_list", f"the map over `{node.dim}` accumulates the list `{name}`")
        head = self.needed(body, loops)
        rest = [inner for inner in body if inner not in loops and inner not in head]
        parts = _Parts(self.fresh, node, {port.name: port.source for port in node.ports})
        before = parts.before(head, [*loops, *rest])
        around = [parts.around(loop) for loop in loops if isinstance(loop, Map)]
        return (*before, *around, *parts.after(rest))

    def needed(self, body: list[Definition], loops: list[Definition]) -> list[Definition]:
        """What the loops need of the rest of the body."""
        names: set[str] = set().union(*(loop.uses for loop in loops))
        result: list[Definition] = []
        for definition in reversed(body):
            if names.isdisjoint(definition.defines):
                continue
            if definition in loops:
                why = f"the loop of `{definition.defines[0]}` gives what another loop over the same lists needs"
                self.stuck = Stuck("needs_other_loop", why)
            names |= definition.uses
            result.append(definition)
        return result[::-1]


@dataclass(slots=True)
class _Parts:
    """The parts of one map. `lists` are the lists that stand for what changes from block to block of its dimension: the
    sources of its ports, what the part before the loops stacks, and what the loops accumulate."""

    fresh: Fresh
    node: Map
    lists: dict[str, str]
    given: dict[str, str] = field(default_factory=dict)  # outputs of the map that a loop stacks itself, by their value

    def map(self, body: Iterable[Definition], outputs: tuple[Output, ...], names: Iterable[str]) -> Map:
        """A map over the same dimension that takes, of the `names`, what changes from block to block by new ports."""
        wanted = [name for name in self.lists if name in set(names)]
        ports = {name: Port(self.fresh(name), self.lists[name]) for name in wanted}
        mapping = {name: port.name for name, port in ports.items()}
        changed = tuple(
            Output(out.names, tuple(mapping.get(value, value) for value in out.values), out.monoid) for out in outputs
        )
        inner = tuple(substitute(definition, mapping) for definition in body)
        return Map(self.node.dim, tuple(ports.values()), inner, changed, self.node.span)

    def before(self, head: list[Definition], others: list[Definition]) -> Graph:
        """The map over what the loops need, which stacks it."""
        used = set().union(*(other.uses for other in others), *(output.values for output in self.node.outputs))
        made = [name for definition in head for name in definition.defines if name in used]
        if not made:
            return ()
        stacks = {name: self.fresh(name) for name in made}
        outputs = tuple(Output((stack,), (name,), None) for name, stack in stacks.items())
        result = self.map(head, outputs, {name for definition in head for name in definition.uses})
        self.lists.update(stacks)
        return (result,)

    def around(self, loop: Map) -> Map:
        """The loop around the map: what depends on the map's block inside it, the rest once."""
        ports = [port for port in loop.ports if port.source not in self.lists]
        inner_ports = []
        for port in loop.ports:
            if port.source in self.lists:
                outer = Port(self.fresh(port.name), self.lists[port.source])
                ports.append(outer)
                inner_ports.append(Port(port.name, outer.name))
        varying = {port.name for port in inner_ports} | (loop.captures & self.lists.keys())
        once: list[Definition] = []
        inside: list[Definition] = []
        for definition in loop.body:
            changes = not varying.isdisjoint(definition.uses) or _asks_about(definition, self.node.dim)
            varying.update(definition.defines if changes else ())
            (inside if changes else once).append(definition)
        stacks: list[Output] = []
        outputs = tuple(self.output(output, varying, stacks) for output in loop.outputs)
        uses = {name for definition in inside for name in definition.uses}.union(*(out.values for out in stacks))
        inner = self.map(inside, tuple(stacks), uses)
        inner = Map(inner.dim, (*inner_ports, *inner.ports), inner.body, inner.outputs, inner.span)
        return Map(loop.dim, tuple(ports), (*once, *((inner,) if stacks else ())), outputs, loop.span)

    def output(self, output: Output, varying: set[str], stacks: list[Output]) -> Output:
        """An output of a loop around the map; what it takes from the map is added to `stacks`."""
        if varying.isdisjoint(output.values):
            return output
        scalar, *payloads = [value in varying for value in output.values]
        names, values = [], []
        for name, value in zip(output.names, output.values, strict=True):
            # Where the scalar part of a pair is a list, so are its payloads.
            if value in varying or (payloads and scalar):
                direct = self.given_by(name) if output.monoid is None else ""
                stack, self.lists[name] = self.fresh(name), direct or self.fresh(name)
                stacks.append(Output((stack,), (value,), None))
                names.append(self.lists[name])
                values.append(stack)
            else:
                names.append(name)
                values.append(value)
        return Output(tuple(names), tuple(values), output.monoid)

    def given_by(self, name: str) -> str:
        """The output of the map that is a list which a loop makes, or ""."""
        for output in self.node.outputs:
            if output.monoid is None and output.values == (name,):
                self.given[name] = output.names[0]
                return output.names[0]
        return ""

    def after(self, rest: list[Definition]) -> Graph:
        """The map over what is left, with the outputs that the loops do not give."""
        outputs = tuple(output for output in self.node.outputs if output.names[0] not in self.given.values())
        uses = {name for definition in rest for name in definition.uses}.union(*(out.values for out in outputs))
        return (self.map(rest, outputs, uses),) if outputs else ()


def _asks_about(definition: Definition, dim: str) -> bool:
    """True if something in the definition has an axis of the dimension out of nothing."""
    return any(
        isinstance(node, Apply) and node.op in ("index", "broadcast") and dim in node.dims
        for node in walk((definition,))
    )


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    producer = graph[find(graph, match.at[0])]
    assert isinstance(producer, Map)
    changed = interchanged(program, graph, producer, match.at[0])
    assert not isinstance(changed, Stuck)
    return replace_graph(program, match.path, changed)


RULE = Rule("interchange_maps", "-", "repeats nothing", match, rewrite, REASONS)
