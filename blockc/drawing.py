"""What a program looks like as a picture: boxes inside of boxes, nodes, and edges between them, for any format.

    box  := title, entries, (node | box)*, exits, edges     a program, or a map in it; entries above, exits below
    edge := from an entry, a node, or an exit of a box inside, to a node, an exit, or an entry of a box inside

Entries of a program are its inputs; those of a map are its ports, and pins for what its body takes whole from outside.
Nodes and boxes have numbers, so that names, which users choose, are texts and nothing else. Bytes are those of the cost
model: at a port or output all bytes that pass it, so that those of nested maps count in the maps around as well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import assert_never

from blockc.errors import visible
from blockc.formatting import listed, readable
from blockc.ir.array_program import ArrayProgram, Span, argument_type
from blockc.ir.block import (
    Apply,
    Definition,
    Graph,
    Map,
    Output,
    Port,
    Program,
    Reduce,
    Rename,
    Type,
    kernels,
    operand_names,
)
from blockc.ir.text import format_combination, format_operand, format_part, format_where
from blockc.passing import Passing, passing

COLUMNS, LINES = 44, 8  # of the text of a node


@dataclass(frozen=True, slots=True)
class Node:
    """A thing with a text: an "operator", "input", "output", "port", "pin" or "result" (an output of a map). `names`
    are what it defines or, for a pin, takes; `moved` are the bytes that pass it, which the last line says; a `heavy`
    one stands for a list. The first `head` lines say what it computes."""

    number: int
    kind: str
    names: tuple[str, ...]
    text: tuple[str, ...]
    heavy: bool = False
    moved: int = 0
    line: int | None = None
    head: int = 1


@dataclass(frozen=True, slots=True)
class Edge:
    """A value on its way between two nodes, by their numbers: a list in slow memory if `heavy`, else a tile. `moved`
    are the bytes that move for it."""

    source: int
    target: int
    value: str
    type: str
    heavy: bool
    moved: int = 0


@dataclass(frozen=True, slots=True)
class Box:
    """A "program", or a "map" (a "loop" if it accumulates)."""

    number: int
    kind: str
    names: tuple[str, ...]
    title: tuple[str, ...]
    entries: tuple[Node, ...]
    content: tuple[Node | Box, ...]
    exits: tuple[Node, ...]
    edges: tuple[Edge, ...]
    line: int | None = None


def boxes(box: Box) -> Iterator[Box]:
    """A box and all boxes in it, a box before those inside."""
    yield box
    for part in box.content:
        if isinstance(part, Box):
            yield from boxes(part)


def nodes(box: Box) -> Iterator[Node]:
    """All nodes of one box, without those of boxes inside."""
    yield from box.entries
    yield from (part for part in box.content if isinstance(part, Node))
    yield from box.exits


def readable_bytes(number: int) -> str:
    """A number of bytes to three figures: 512 B, 16.8 MB."""
    return readable(number, "B").lstrip("+") if number >= 1000 else f"{number} B"


def type_text(kind: Type) -> str:
    """A type in short: f32(m, n) is a tile, f32[m][n] a list."""
    return f"{kind.dtype}{''.join(f'[{dim}]' for dim in kind.lists)}" if kind.lists else _item(kind)


def _item(kind: Type) -> str:
    return f"{kind.dtype}({', '.join(kind.axes)})"


def lines_of(*texts: str) -> tuple[str, ...]:
    """Texts as lines that are not too long, nor too many, without characters that cannot be seen."""
    lines = [line for text in texts for line in textwrap.wrap(visible(text), COLUMNS, subsequent_indent="  ")]
    return tuple(lines) if len(lines) <= LINES else (*lines[: LINES - 1], f"... {len(lines) - LINES + 1} more lines")


def draw_array_program(program: ArrayProgram) -> Box:
    """The picture of an array program: whole arrays, one node for each operator."""
    numbers = count(1)
    providers: dict[str, int] = {}
    types = {node.name: f"{node.dtype}[{', '.join(node.shape)}]" for node in program.nodes}
    entries: list[Node] = []
    content: list[Node] = []
    edges: list[Edge] = []
    for node in program.nodes:
        number = next(numbers)
        operands = node.args if node.value is None else (repr(node.value),)
        marks = f"[{(' -> ' if node.op == 'rename' else ', ').join(node.dims)}]" if node.dims else ""
        typed = f"{node.name}: {types[node.name]}"
        texts = (typed,) if node.op == "input" else (f"{node.op}{marks}({', '.join(operands)})", typed)
        place = entries if node.op == "input" else content
        kind = "input" if node.op == "input" else "operator"
        place.append(Node(number, kind, (node.name,), lines_of(*texts), line=_line(node.span)))
        edges += [Edge(providers[name], number, name, types[name], False) for name in dict.fromkeys(node.args)]
        providers[node.name] = number
    exits = []
    for result in program.outputs:
        exits.append(_output(next(numbers), result.argument.name, argument_type(result.argument), 0))
        edges.append(Edge(providers[result.node], exits[-1].number, result.node, types[result.node], False))
    return Box(0, "program", (), lines_of(program.name), tuple(entries), tuple(content), tuple(exits), tuple(edges))


def _line(span: Span | None) -> int | None:
    return None if span is None else span.line


def _output(number: int, name: str, kind: str, moved: int) -> Node:
    return Node(number, "output", (name,), lines_of(f"{name}: {kind}"), moved=moved)


def draw_program(program: Program, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> Box:
    """The picture of a block program, with the bytes that it moves for sizes and tiles in elements."""
    return _Drawer(program, passing(program, sizes, tiles), tiles).program_box(sizes)


@dataclass
class _Drawer:
    program: Program
    passing: Passing
    tiles: Mapping[str, int]
    numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        """The definitions of the top graph that load an item, one for each launch that reads it."""
        self.first_readers: set[tuple[str, str]] = set()
        for launch in kernels(self.program):
            made = {name for definition in launch for name in definition.defines}
            for definition in launch:
                self.first_readers |= {(name, definition.defines[0]) for name in definition.uses - made}
                made |= definition.uses

    def program_box(self, sizes: Mapping[str, int]) -> Box:
        """The whole program."""
        number, program = next(self.numbers), self.program
        entries = tuple(
            self.node("input", (entry.name,), *self.typed((entry.name,)), moved=self.passing.loaded.get(entry.name, 0))
            for entry in program.inputs
        )
        providers = {entry.names[0]: entry.number for entry in entries}
        content, edges = self.graph(program.body, providers)
        exits = []
        for result in program.outputs:
            kind = argument_type(result.argument)
            exits.append(_output(next(self.numbers), result.argument.name, kind, 0))
            edges.append(self.edge(providers, result.value, exits[-1].number, 0))
        title = lines_of(program.name, listed(sizes), f"{readable_bytes(self.passing.total)} moved")
        return Box(number, "program", (), title, entries, content, tuple(exits), tuple(edges))

    def graph(self, graph: Graph, providers: dict[str, int]) -> tuple[tuple[Node | Box, ...], list[Edge]]:
        """What a graph consists of. `providers` are the nodes of names, and get those of what the graph defines."""
        content: list[Node | Box] = []
        edges: list[Edge] = []
        for definition in graph:
            part = self.definition(definition)
            content.append(part)
            for name, target in self.takes(definition, part):
                edges.append(self.edge(providers, name, target.number, self.moved_for(definition, name, target)))
            makers = part.exits if isinstance(part, Box) else (part,)
            providers.update({name: maker.number for maker in makers for name in maker.names})
        return tuple(content), edges

    def takes(self, definition: Definition, part: Node | Box) -> Iterator[tuple[str, Node]]:
        """The names that a definition uses, with the nodes that they go to."""
        if isinstance(part, Node):
            yield from ((name, part) for name in _in_order(definition))
        else:
            assert isinstance(definition, Map)
            sources = [port.source for port in definition.ports]
            pins = [pin.names[0] for pin in part.entries[len(sources) :]]
            yield from zip((*sources, *pins), part.entries, strict=True)

    def moved_for(self, definition: Definition, name: str, target: Node) -> int:
        """The bytes that an edge to a definition stands for: of an item of the top graph, one load of its launch."""
        if (name, definition.defines[0]) in self.first_readers and self.program.types[name].is_item:
            return self.passing.once.get(name, 0)
        return target.moved if target.kind in ("port", "pin") else 0

    def definition(self, definition: Definition) -> Node | Box:
        """The node or box of a definition."""
        match definition:
            case Apply(name, op, args, dims):
                marks = f"[{', '.join(dims)}]" if dims else ""
                call = f"{op}{marks}({', '.join(map(format_operand, args))})"
                moved = self.passing.stored.get(name, 0)  # of an item of the top graph
                return self.node("operator", (name,), call, *self.typed((name,)), moved=moved, span=definition.span)
            case Reduce(names, sources, dim, monoid):
                call = f"reduce[{dim}, {monoid}]({', '.join(sources)})"
                return self.node("operator", names, call, *self.typed(names), span=definition.span)
            case Rename(name, source, old, new):
                call = f"rename[{old} -> {new}]({source})"
                return self.node("operator", (name,), call, *self.typed((name,)), span=definition.span)
            case Map():
                return self.map(definition)
            case _:
                assert_never(definition)

    def map(self, node: Map) -> Box:
        """A map, with all that is in it."""
        number = next(self.numbers)
        ports = [self.port(port) for port in node.ports]
        starts = [start for output in node.outputs for start in output.starts]
        pins = [self.pin(node, name) for name in dict.fromkeys((*sorted(node.captures), *starts))]
        providers = {entry.names[0]: entry.number for entry in (*ports, *pins)}
        content, edges = self.graph(node.body, providers)
        exits = []
        for output in node.outputs:
            result = self.result(output)
            exits.append(result)
            first = result.moved
            for name in dict.fromkeys((*output.values, *output.starts)):
                edges.append(self.edge(providers, name, result.number, first))
                first = 0
        title = f"map {node.dim}{format_part(node.part)}{format_where(node.where)}"
        blocks = f"blocks of {self.tiles[node.dim]:,}" if node.part != "first" else "the first block"
        entries, kind = (*ports, *pins), "loop" if node.is_loop else "map"
        shown = lines_of(title, blocks)
        return Box(number, kind, node.defines, shown, entries, content, tuple(exits), tuple(edges), _line(node.span))

    def port(self, port: Port) -> Node:
        """A port of a map."""
        return self.node("port", (port.name,), *self.typed((port.name,)), moved=self.passing.loaded[port.name])

    def pin(self, node: Map, name: str) -> Node:
        """What the body of a map takes whole from outside."""
        moved = self.passing.into(node, name) if self.program.types[name].lists else 0
        heavy = bool(self.program.types[name].lists)
        return Node(next(self.numbers), "pin", (name,), (), heavy, moved)

    def result(self, output: Output) -> Node:
        """An output of a map."""
        moved = self.passing.loaded[output.names[0]] + self.passing.stored[output.names[0]]
        return self.node("result", output.names, format_combination(output), *self.typed(output.names), moved=moved)

    def typed(self, names: Iterable[str]) -> list[str]:
        """Names with their types."""
        return [f"{name}: {type_text(self.program.types[name])}" for name in names]

    def node(self, kind: str, names: tuple[str, ...], *texts: str, moved: int = 0, span: Span | None = None) -> Node:
        """A node with a text, and the bytes that pass it in the last line."""
        heavy = bool(self.program.types[names[0]].lists)
        moves = (f"{readable_bytes(moved)}",) if moved else ()
        text, head = (*lines_of(*texts), *moves), len(lines_of(texts[0]))
        return Node(next(self.numbers), kind, names, text, heavy, moved, _line(span), head)

    def edge(self, providers: Mapping[str, int], name: str, target: int, moved: int) -> Edge:
        """An edge from where a value is to a node."""
        kind = self.program.types[name]
        return Edge(providers[name], target, name, type_text(kind), bool(kind.lists), moved)


def _in_order(definition: Definition) -> tuple[str, ...]:
    """The names that a definition uses, each once, in an order that does not depend on hashes."""
    if isinstance(definition, Apply):
        return tuple(dict.fromkeys(operand_names(definition.args)))
    return tuple(sorted(definition.uses))
