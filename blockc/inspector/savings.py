"""What a refusal costs: the bytes of the lists that would have stayed local if the rule had applied."""

from __future__ import annotations

from blockc.ir.block import Definition, Graph, Map, Program, Reduce, walk
from blockc.ir.decisions import Refused
from blockc.passing import Passing

FUSING = frozenset(
    {
        "extend_map",
        "fuse_consecutive_maps",
        "fuse_map_with_reduce",
        "fuse_sibling_maps",
        "interchange_maps",
        "rematerialise",
    }
)  # the rules that keep lists local; what the others do is algebra


def saved_bytes(program: Program, refused: Refused, moved: Passing) -> int | None:
    """The bytes of the lists between what a refused rule would have joined, in a snapshot whose `moved` these are.

    The first of two maps makes lists for the second: their loads there count, and their stores if nothing else reads
    them; so do the loads in the second map of what the first one reads as well. Joining two maps that have nothing in
    them but operators saves exactly that; of maps in which there are others, these have to be joined too. None for a
    rule of algebra, which may help other rules and saves no bytes by itself.
    """
    if refused.rule not in FUSING or not refused.at:
        return None
    for graph in graphs(program.body):
        made = {name: definition for definition in graph for name in definition.defines}
        if refused.at[0] not in made:
            continue
        first = made[refused.at[0]]
        if isinstance(first, Reduce):
            return sum(_between(program, graph, made[name], first, moved) for name in first.sources if name in made)
        readers = [made[name] for name in refused.at[1:] if name in made and made[name] is not first]
        if not readers:  # a rule about one map: what it makes stays local in all that read it
            readers = [definition for definition in graph if definition.uses & set(first.defines)]
        return sum(_between(program, graph, first, second, moved) for second in readers)
    return None


def graphs(graph: Graph) -> list[Graph]:
    """A graph and all graphs in it."""
    return [graph, *(node.body for node in walk(graph) if isinstance(node, Map))]


def _between(program: Program, graph: Graph, first: Definition, second: Definition, moved: Passing) -> int:
    """The bytes that two definitions of a graph move for one another, and of what both read."""
    outputs = {result.value for result in program.outputs}
    total = 0
    lists = [name for name in first.defines if name in second.uses and program.types[name].lists]
    for name in lists:
        total += _loaded(second, name, moved)
        readers = [definition for definition in graph if name in definition.uses]
        if readers == [second] and name not in outputs:
            total += moved.stored.get(name, 0)
    if isinstance(first, Map) and isinstance(second, Map) and first.dim == second.dim:
        both = {port.source for port in first.ports}
        shared = [port.name for port in second.ports if port.source in both]
        total += sum(moved.loaded[name] for name in shared if program.types[name].is_item or not lists)
    return total


def _loaded(reader: Definition, name: str, moved: Passing) -> int:
    """The bytes of a list that a definition loads."""
    if not isinstance(reader, Map):
        return moved.loaded.get(name, 0)
    ports = [port.name for port in reader.ports if port.source == name]
    within = moved.into(reader, name) if name in reader.captures else 0
    return sum(moved.loaded[port] for port in ports) + within
