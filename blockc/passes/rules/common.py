"""What several rules ask of a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from blockc.ir.block import (
    REDUCTIONS,
    Apply,
    Constant,
    Definition,
    Expression,
    Fresh,
    Graph,
    Map,
    Operand,
    Output,
    Path,
    Program,
    Reduce,
    Rename,
    graph_at,
    operand_names,
    paths,
    substitute,
)


def sites(program: Program, path: Path | None) -> Iterator[tuple[Path, Graph]]:
    """The graph at a path, or every graph."""
    if path is None:
        yield from paths(program)
    else:
        yield path, graph_at(program, path)


def find(graph: Graph, name: str) -> int:
    """The position of the definition that binds a name in a graph."""
    return next(position for position, definition in enumerate(graph) if name in definition.defines)


def map_pairs(graph: Graph) -> Iterator[tuple[int, Map, int, Map]]:
    """Every two maps of a graph that map a common list, in the order of the later one, nearest first."""
    positions: dict[str, list[int]] = {}  # the maps so far that map a list
    for second, b in enumerate(graph):
        if not isinstance(b, Map):
            continue
        earlier = {position for port in b.ports for position in positions.get(port.source, ())}
        for first in sorted(earlier, reverse=True):
            a = graph[first]
            assert isinstance(a, Map)
            yield first, a, second, b
        for source in {port.source for port in b.ports}:
            positions.setdefault(source, []).append(second)


def stacked(node: Map) -> dict[str, str]:
    """The stacked outputs of a map: name to the value in the body."""
    return {output.names[0]: output.values[0] for output in node.outputs if output.monoid is None}


def reduced(node: Map) -> frozenset[str]:
    """The names of the accumulated outputs."""
    return frozenset(name for output in node.outputs if output.monoid is not None for name in output.names)


def merged(a: Map, b: Map) -> Map:
    """One map with both bodies; ports of `b` that read stacked outputs of `a` become the values themselves."""
    values: dict[str, str] = stacked(a)
    direct: dict[str, Operand] = {port.name: values[port.source] for port in b.ports if port.source in values}
    ports = tuple(port for port in b.ports if port.source not in values)
    body = tuple(substitute(definition, direct) for definition in b.body)
    outputs = tuple(
        Output(out.names, tuple(str(direct.get(value, value)) for value in out.values), out.monoid) for out in b.outputs
    )
    return Map(a.dim, (*a.ports, *ports), (*a.body, *body), (*a.outputs, *outputs), b.span or a.span)


def applies(program: Program) -> Mapping[str, Apply]:
    """Tile operators of the program by name."""
    return program.facts.applies


def enclosing(program: Program, path: Path) -> tuple[Map, ...]:
    """The maps that lead to a graph, outermost first."""
    result = []
    graph = program.body
    for name in path:
        node = graph[find(graph, name)]
        assert isinstance(node, Map)
        result.append(node)
        graph = node.body
    return tuple(result)


def bound_inside(maps: tuple[Map, ...]) -> frozenset[str]:
    """The names that the graphs on the way through these nested maps bind."""
    result: set[str] = set()
    for node in maps:
        result.update(port.name for port in node.ports)
        for definition in node.body:
            result.update(definition.defines)
    return frozenset(result)


def upstream_reductions(program: Program) -> dict[str, frozenset[str]]:
    """For every name, the dimensions that anything upstream of it reduces."""
    result: dict[str, frozenset[str]] = {entry.name: frozenset() for entry in program.inputs}

    def of(names: Iterator[str] | frozenset[str] | tuple[str, ...]) -> frozenset[str]:
        return frozenset().union(*(result[name] for name in names))

    def visit(graph: Graph) -> None:
        for definition in graph:
            match definition:
                case Apply():
                    own = frozenset(definition.dims) if definition.op in REDUCTIONS else frozenset()
                    result[definition.name] = of(definition.uses) | own
                case Reduce(names, sources, dim, _):
                    result.update(dict.fromkeys(names, of(sources) | {dim}))
                case Rename(name, source):
                    result[name] = result[source]
                case Map():
                    result.update({port.name: result[port.source] for port in definition.ports})
                    visit(definition.body)
                    for output in definition.outputs:
                        own = frozenset((definition.dim,)) if output.monoid is not None else frozenset()
                        for name, value in zip(output.names, output.values, strict=True):
                            result[name] = result[value] | own

    visit(program.body)
    return result


class Writer:
    """Collects new tile operators, in order, under fresh names."""

    def __init__(self, program: Program) -> None:
        self.fresh = Fresh(program)
        self.out: list[Definition] = []

    def put(self, like: Apply, op: str, args: tuple[Operand, ...], dims: tuple[str, ...] = ()) -> Operand:
        """The result of an operator, of the type and place in the source of another one."""
        if op in ("mul", "add") and len(args) < 2:
            return args[0] if args else Constant(1 if op == "mul" else 0)
        operands = tuple(self.named(like, arg) for arg in args)
        apply = Apply(self.fresh(like.name), op, operands, dims, like.dtype, like.span)
        self.out.append(apply)
        return apply.name

    def named(self, like: Apply, operand: Operand) -> Operand:
        """The operand with composed operators on items written out as operators of their own."""
        if isinstance(operand, Expression) and any(operand_names(operand.args)):
            return self.put(like, operand.op, operand.args)
        return operand
