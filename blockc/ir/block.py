"""The block program: a hierarchical graph that shows how blocks of data move between memory tiers.

    program  := dims, whole, arguments, inputs, graph, outputs
    graph    := definition*                                    in dependency order, lexically scoped
    definition
             := name = op[dims](operand*)                      Apply: a tile operator on items in local memory
              | names = map dim part (port*) { graph } output* Map: one execution of the body per block of dim
              | names = reduce[dim, monoid](list*)             Reduce: a list over dim to one item
              | name = rename[old -> new](list)                Rename: a stored list, read again under another dimension
    port     := name <- list                                   the body sees the element for its block
    output   := names = stack(value) | names = monoid(value*)  one more list dimension, or accumulated: items, or
                                                               lists that a map of the body stacks, item by item;
                                                               monoid(value*) from name*: not from the identity on
    part     := all | first | rest                             of a loop: the first block alone, all but the first
    where    := Condition                                      blocks in which it holds nowhere are left out of a loop
    operand  := name | constant | size(dim) | op(operand*)     the last: an elementwise operator, composed
    op       := an elementwise operator of ops.py | contract | sum | max | min | index | broadcast | cast

    type     := dtype, lists, axes                             no lists: an item, in local memory; else buffered

A dimension that is not *whole* is cut into blocks: it is a list dimension outside the maps over it and an axis of the
tiles inside. A dimension of *chunks* cuts another one a second time: a map over it goes through groups of neighbouring
blocks, and a map over the other dimension inside goes through the blocks of one group. Of a list over that dimension a
port over chunks takes those blocks, and an output over chunks joins them again. List dimensions and axes are sets, kept
in the order of `Program.dims`. Names are unique in the whole program. Values are frozen: a rewrite returns a new
program. Source: Blockbuster, part 1 (Dekel 2025), section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import assert_never

from blockc.ir.array_program import Argument, Dim, Span

REDUCTIONS = {"sum": "add", "max": "max", "min": "min", "contract": "add"}  # tile operator to the monoid of its blocks
STRUCTURAL = frozenset({*REDUCTIONS, "index", "broadcast", "cast"})


@dataclass(frozen=True, slots=True)
class Constant:
    """A number or truth value in an expression."""

    value: float | int | bool


@dataclass(frozen=True, slots=True)
class Size:
    """The extent of a dimension, as a number in an expression."""

    dim: str


@dataclass(frozen=True, slots=True)
class Expression:
    """An elementwise operator as an operand: of constants and sizes (a number that is known once the sizes are), or,
    after `fuse_elementwise`, of items too."""

    op: str
    args: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """The position along a dimension, in a condition."""

    dim: str


@dataclass(frozen=True, slots=True)
class Reading:
    """The numbers of an item of the body, which has these axes and is part of an input, in a condition."""

    name: str
    dims: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """An elementwise operator of positions, numbers and tables; "unknown", without operands, may be true or false."""

    op: str
    args: tuple[Term, ...]


Term = Index | Reading | Condition | Constant | Size


Leaf = Constant | Size | Expression  # the Expression without names
Operand = str | Constant | Size | Expression


def operand_names(operands: Iterable[Operand]) -> list[str]:
    """The names in operands, in order, with repeats."""
    names: list[str] = []
    for operand in operands:
        if isinstance(operand, str):
            names.append(operand)
        elif type(operand) is Expression:
            names += operand_names(operand.args)
    return names


def depth(operand: Operand) -> int:
    """How deep operators are composed in an operand: 0 for names, constants and sizes."""
    return 1 + max(map(depth, operand.args), default=0) if isinstance(operand, Expression) else 0


def replace_names(operand: Operand, mapping: Mapping[str, Operand]) -> Operand:
    """The operand with names replaced."""
    match operand:
        case str():
            return mapping.get(operand, operand)
        case Expression(op, args):
            return Expression(op, tuple(replace_names(arg, mapping) for arg in args))
        case _:
            return operand


@dataclass(frozen=True, slots=True)
class Type:
    """What a name stands for: an item (no `lists`) with some axes, or a list of them over some dimensions."""

    dtype: str
    lists: tuple[str, ...]
    axes: tuple[str, ...]

    @property
    def is_item(self) -> bool:
        """True for a tile in local memory, False for a buffered list."""
        return not self.lists


@dataclass(frozen=True, slots=True)
class Apply:
    """A tile operator. `dims`: what "contract", "sum", "max", "min" reduce, "broadcast" adds, "index" asks about."""

    name: str
    op: str
    args: tuple[Operand, ...]
    dims: tuple[str, ...]
    dtype: str
    span: Span | None = field(default=None, compare=False)
    uses: frozenset[str] = field(init=False, compare=False, repr=False)
    defines: tuple[str, ...] = field(init=False, compare=False, repr=False)  # the names that it binds in its graph

    def __post_init__(self) -> None:
        object.__setattr__(self, "uses", frozenset(operand_names(self.args)))
        object.__setattr__(self, "defines", (self.name,))


@dataclass(frozen=True, slots=True)
class Port:
    """A mapped input: the body sees, as `name`, the element of the list `source` for its block."""

    name: str
    source: str


@dataclass(frozen=True, slots=True)
class Output:
    """What a map gives: `monoid` None stacks one value, else the values are accumulated over the iterations, from the
    identity on or, in the rest of a loop, from the values `starts`."""

    names: tuple[str, ...]
    values: tuple[str, ...]
    monoid: str | None
    starts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Map:
    """The body, once for each block of `dim`. `uses` are the names that it takes from outside, ports included.

    Of a loop with a condition `where`, blocks in which the condition is shown to hold nowhere are left out: in them the
    body would accumulate nothing. A `part` of a loop is its "first" block alone, in each chunk if the map is in chunks,
    or the "rest"; both may be no blocks at all.
    """

    dim: str
    ports: tuple[Port, ...]
    body: Graph
    outputs: tuple[Output, ...]
    span: Span | None = field(default=None, compare=False)
    where: Condition | None = None
    part: str = "all"
    uses: frozenset[str] = field(init=False, compare=False, repr=False)
    captures: frozenset[str] = field(init=False, compare=False, repr=False)
    defines: tuple[str, ...] = field(init=False, compare=False, repr=False)  # the names of all outputs, in order
    maps: int = field(init=False, compare=False, repr=False)  # itself and those inside
    reduces: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        used = frozenset(value for output in self.outputs for value in output.values)
        defined = {port.name for port in self.ports}
        defined.update(*[definition.defines for definition in self.body])
        captures = used.union(*[definition.uses for definition in self.body]) - defined
        object.__setattr__(self, "defines", tuple([name for output in self.outputs for name in output.names]))
        object.__setattr__(self, "maps", 1 + count_maps(self.body))
        object.__setattr__(self, "reduces", count_reduces(self.body))
        object.__setattr__(self, "captures", captures)
        starts = [start for output in self.outputs for start in output.starts]
        object.__setattr__(self, "uses", captures.union([port.source for port in self.ports], starts))

    @property
    def is_loop(self) -> bool:
        """True if an output is accumulated, so that the iterations are not independent."""
        return any(output.monoid is not None for output in self.outputs)


@dataclass(frozen=True, slots=True)
class Reduce:
    """The lists `sources` over `dim`, combined by a monoid into one value per component."""

    names: tuple[str, ...]
    sources: tuple[str, ...]
    dim: str
    monoid: str
    span: Span | None = field(default=None, compare=False)

    @property
    def uses(self) -> frozenset[str]:
        """The names read."""
        return frozenset(self.sources)

    @property
    def defines(self) -> tuple[str, ...]:
        """The names bound."""
        return self.names


@dataclass(frozen=True, slots=True)
class Rename:
    """A stored list whose dimension `old` is read as `new`, cut into blocks of `new`."""

    name: str
    source: str
    old: str
    new: str
    span: Span | None = field(default=None, compare=False)

    @property
    def uses(self) -> frozenset[str]:
        """The name read."""
        return frozenset((self.source,))

    @property
    def defines(self) -> tuple[str, ...]:
        """The name bound."""
        return (self.name,)


Definition = Apply | Map | Reduce | Rename
Graph = tuple[Definition, ...]

DEFINES, USES = attrgetter("defines"), attrgetter("uses")  # of a definition


def count_maps(graph: Graph) -> int:
    """The number of maps in a graph, at any depth."""
    return sum([definition.maps for definition in graph if type(definition) is Map])


def count_reduces(graph: Graph) -> int:
    """The number of reduces in a graph, at any depth."""
    inside = sum([definition.reduces for definition in graph if type(definition) is Map])
    return inside + list(map(type, graph)).count(Reduce)


@dataclass(frozen=True, slots=True)
class Input:
    """An argument, read under `dims`: its dimensions in storage order, after renaming."""

    name: str
    argument: str
    dims: tuple[str, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Result:
    """An output argument and the value that it gets."""

    argument: Argument
    value: str


@dataclass(frozen=True)
class Program:
    """A block program. `whole` are the dimensions kept in one block, which no map runs over."""

    name: str
    dims: tuple[Dim, ...]
    whole: frozenset[str]
    arguments: tuple[Argument, ...]
    inputs: tuple[Input, ...]
    body: Graph
    outputs: tuple[Result, ...]

    @cached_property
    def rank(self) -> Mapping[str, int]:
        """The position of each dimension in the canonical order of list dimensions and axes."""
        return {dim.name: position for position, dim in enumerate(self.dims)}

    @cached_property
    def chunks(self) -> Mapping[str, str]:
        """For each dimension of chunks the dimension whose blocks it groups."""
        return {dim.name: dim.chunks_of for dim in self.dims if dim.chunks_of is not None}

    def ordered(self, dims: Iterable[str]) -> tuple[str, ...]:
        """A set of dimensions in canonical order."""
        return tuple(sorted(set(dims), key=self.rank.__getitem__))

    @cached_property
    def input_types(self) -> Mapping[str, Type]:
        """The type of each input."""
        return {entry.name: self.argument_type(entry.dims, entry.dtype) for entry in self.inputs}

    def argument_type(self, dims: Iterable[str], dtype: str) -> Type:
        """The type of an array with these dimensions: a list over those that are cut, of tiles with all of them."""
        axes = self.ordered(dims)
        return Type(dtype, tuple(dim for dim in axes if dim not in self.whole), axes)

    @cached_property
    def graphs(self) -> dict[Path, Graph]:
        """The graphs that have been asked for, by path."""
        return {(): self.body}

    @cached_property
    def reduced_upstream(self) -> dict[str, frozenset[str]]:
        """For every name the dimensions that anything upstream of it reduces, once that has been asked for."""
        return {}

    @cached_property
    def measured(self) -> dict[str, int | tuple[int, ...]]:
        """The parts of the measure that have been asked for, by name."""
        return {}

    @property
    def types(self) -> Mapping[str, Type]:
        """The type of every name in the program."""
        return self.facts.types

    @cached_property
    def facts(self) -> Facts:
        """What is known of the names, found once: a program made by `with_body` takes over what its origin knew."""
        origin: Program | None = self.__dict__.pop("_origin", None)
        while origin is not None and "facts" not in origin.__dict__ and "_origin" in origin.__dict__:
            origin = origin.__dict__["_origin"]  # programs on the way that nobody asked about
        if origin is None:
            facts = Facts({}, {}, {}, {}, {})
            for name, kind in self.input_types.items():
                facts.add(name, kind)
        else:
            known = origin.facts
            facts = Facts(
                dict(known.types), dict(known.applies), dict(known.links), dict(known.numbers), dict(known.maps)
            )
        infer(self, self.body, facts)
        return facts

    def take_over(self, origin: Program) -> None:
        """Take what `origin`, a program on the way to this one that nobody needs any more, knows of the names."""
        if origin is not self and "facts" not in self.__dict__ and "facts" in origin.__dict__:
            facts: Facts = origin.__dict__.pop("facts")
            infer(self, self.body, facts)
            self.__dict__["facts"] = facts
            self.__dict__.pop("_origin", None)

    def forget(self) -> None:
        """Let go of what is known of the names, to save memory; it is found again when it is asked for."""
        self.__dict__.pop("facts", None)
        self.__dict__.pop("graphs", None)
        self.__dict__.pop("reduced_upstream", None)
        self.__dict__.pop("measured", None)

    def recall(self, origin: Program) -> None:
        """Take over again what `origin`, the program before it in a derivation, knows of the names."""
        if "facts" not in self.__dict__:
            self.__dict__["_origin"] = origin


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known by name: types; tile operators; for ports, outputs of maps and reductions what they are made of
    (`links`); the next free number of every stem; and the maps that have been looked into.

    A name keeps its type as long as it exists, and no later program of a derivation gives it to something else. Names
    that have gone may still be listed.
    """

    types: dict[str, Type]
    applies: dict[str, Apply]
    links: dict[str, str]
    numbers: dict[str, int]
    maps: dict[int, Map]

    def add(self, name: str, kind: Type) -> None:
        """Note the type of a new name, and that it is taken."""
        stem, _, suffix = name.partition(".")
        if suffix.isdigit():
            self.numbers[stem] = max(self.numbers.get(stem, 1), int(suffix) + 1)
        self.types[name] = kind


def infer(program: Program, graph: Graph, facts: Facts) -> None:
    """Add what is to know of every name that `graph` defines, at any depth. Undefined names raise KeyError."""
    types, links, applies, maps = facts.types, facts.links, facts.applies, facts.maps
    new = [
        node
        for node in graph
        if id(node) not in maps and (type(node) is not Apply or applies.get(node.name) is not node)
    ]
    for definition in new:
        match definition:
            case Apply():
                applies[definition.name] = definition
                if definition.name not in types:
                    facts.add(definition.name, Type(definition.dtype, (), apply_axes(program, definition, types)))
            case Map(dim):
                maps[id(definition)] = definition
                for port in definition.ports:
                    links[port.name] = port.source
                    if port.name not in types:
                        facts.add(port.name, element_type(types[port.source], dim))
                infer(program, definition.body, facts)
                for output in definition.outputs:
                    for name, value in zip(output.names, output.values, strict=True):
                        links[name] = value
                        if name not in types:
                            inner = types[value]
                            facts.add(name, stacked_type(program, inner, dim) if output.monoid is None else inner)
            case Reduce():
                for name, source in zip(definition.names, definition.sources, strict=True):
                    links[name] = source
                    if name not in types:
                        facts.add(name, element_type(types[source], definition.dim))
            case Rename(name, source):
                links[name] = source
                if name not in types:
                    facts.add(name, renamed_type(program, definition, types[source]))
            case _:
                assert_never(definition)


def element_type(kind: Type, dim: str) -> Type:
    """The type of the elements of a list over a dimension, or over several; for chunks of such a dimension a part of
    the list."""
    return Type(kind.dtype, without(kind.lists, dim), kind.axes)


def stacked_type(program: Program, kind: Type, dim: str) -> Type:
    """The type of what a map over a dimension stacks: for chunks of a dimension of the lists, these joined."""
    lists = kind.lists if program.chunks.get(dim) in kind.lists else program.ordered((*kind.lists, dim))
    return Type(kind.dtype, lists, kind.axes)


def renamed_type(program: Program, rename: Rename, source: Type) -> Type:
    """The type of a stored value that is read under another dimension: cut like an argument with its axes."""
    axes = (rename.new if axis == rename.old else axis for axis in source.axes)
    return program.argument_type(axes, source.dtype)


def apply_axes(program: Program, apply: Apply, types: Mapping[str, Type]) -> tuple[str, ...]:
    """The axes of a tile operator's result."""
    held = {types[name].axes for name in apply.uses}
    if not apply.dims and len(held) == 1:
        return held.pop()
    axes: set[str] = set().union(*held)
    if apply.op in REDUCTIONS:
        axes.difference_update(apply.dims)
    else:
        axes.update(apply.dims)
    return program.ordered(axes)


def without(dims: tuple[str, ...], dim: str) -> tuple[str, ...]:
    """The dimensions less one."""
    return tuple(other for other in dims if other != dim)


def walk(graph: Graph) -> Iterator[Definition]:
    """Every definition of the graph and of the bodies in it, in program order, a map before its body."""
    for definition in graph:
        yield definition
        if isinstance(definition, Map):
            yield from walk(definition.body)


class Fresh:
    """Gives names that the program does not use: the stem of an old name with the next free number."""

    def __init__(self, program: Program) -> None:
        self._free = program.facts.numbers
        self._next: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        stem = name.partition(".")[0]
        number = self._next.get(stem) or self._free.get(stem, 1)
        self._next[stem] = number + 1
        return f"{stem}.{number}"


def substitute(definition: Definition, mapping: Mapping[str, Operand]) -> Definition:
    """The definition with the names that it uses replaced, in nested bodies too. Lists and outputs need names."""
    if mapping.keys().isdisjoint(definition.uses):
        return definition
    match definition:
        case Apply():
            args = tuple(replace_names(arg, mapping) for arg in definition.args)
            return Apply(definition.name, definition.op, args, definition.dims, definition.dtype, definition.span)
        case Map():
            return Map(
                definition.dim,
                tuple(Port(port.name, as_name(mapping.get(port.source, port.source))) for port in definition.ports),
                tuple(substitute(inner, mapping) for inner in definition.body),
                tuple(
                    Output(
                        output.names,
                        tuple(as_name(mapping.get(v, v)) for v in output.values),
                        output.monoid,
                        tuple(as_name(mapping.get(start, start)) for start in output.starts),
                    )
                    for output in definition.outputs
                ),
                definition.span,
                definition.where,
                definition.part,
            )
        case Reduce():
            sources = tuple(as_name(mapping.get(source, source)) for source in definition.sources)
            return Reduce(definition.names, sources, definition.dim, definition.monoid, definition.span)
        case Rename():
            source = as_name(mapping.get(definition.source, definition.source))
            return Rename(definition.name, source, definition.old, definition.new, definition.span)
        case _:
            assert_never(definition)


def as_name(operand: Operand) -> str:
    """The operand, which must be a name: lists, ports and outputs cannot be constants."""
    if not isinstance(operand, str):
        raise TypeError(f"a name is needed, not {operand}")
    return operand


def copy(definition: Definition, fresh: Callable[[str], str], mapping: dict[str, Operand]) -> Definition:
    """A copy under fresh names. `mapping` gives replacements for outside names and receives the new ones."""
    match definition:
        case Apply() | Reduce() | Rename():
            renamed = substitute(definition, mapping)
            for name in definition.defines:
                mapping[name] = fresh(name)
            return rebind(renamed, mapping)
        case Map():
            ports = tuple(
                Port(fresh(port.name), as_name(mapping.get(port.source, port.source))) for port in definition.ports
            )
            mapping.update({old.name: new.name for old, new in zip(definition.ports, ports, strict=True)})
            body = tuple(copy(inner, fresh, mapping) for inner in definition.body)
            outputs = []
            for output in definition.outputs:
                values = tuple(as_name(mapping.get(value, value)) for value in output.values)
                starts = tuple(as_name(mapping.get(start, start)) for start in output.starts)
                mapping.update({name: fresh(name) for name in output.names})
                names = tuple(as_name(mapping[name]) for name in output.names)
                outputs.append(Output(names, values, output.monoid, starts))
            return Map(definition.dim, ports, body, tuple(outputs), definition.span, definition.where, definition.part)
        case _:
            assert_never(definition)


def rebind(definition: Apply | Reduce | Rename | Map, mapping: Mapping[str, Operand]) -> Definition:
    """The definition with the names that it binds replaced (bodies of maps keep theirs)."""

    def new(name: str) -> str:
        return as_name(mapping.get(name, name))

    match definition:
        case Apply(name, op, args, dims, dtype, span):
            return Apply(new(name), op, args, dims, dtype, span)
        case Reduce(bound, sources, dim, monoid, span):
            return Reduce(tuple(new(name) for name in bound), sources, dim, monoid, span)
        case Rename(name, source, old, other, span):
            return Rename(new(name), source, old, other, span)
        case Map(dim, ports, body, outputs, span, where, part):
            renamed = tuple(
                Output(tuple(new(n) for n in out.names), out.values, out.monoid, out.starts) for out in outputs
            )
            return Map(dim, ports, body, renamed, span, where, part)
        case _:
            assert_never(definition)


Path = tuple[str, ...]  # the maps that lead from the top graph to a graph, each by the first name that it binds


def graph_at(program: Program, path: Path) -> Graph:
    """The graph that a path leads to. KeyError if it leads nowhere."""
    known = program.graphs
    if path not in known:
        known[path] = _child(graph_at(program, path[:-1]), path[-1])[1].body
    return known[path]


def _child(graph: Graph, name: str) -> tuple[int, Map]:
    for position, definition in enumerate(graph):
        if name in definition.defines and isinstance(definition, Map) and definition.defines[0] == name:
            return position, definition
    raise KeyError(name)


def replace_graph(program: Program, path: Path, graph: Graph) -> Program:
    """The program with another graph at `path`."""
    return with_body(program, _replace(program.body, path, graph))


def with_body(program: Program, body: Graph, outputs: tuple[Result, ...] | None = None) -> Program:
    """The program with another top graph, as a step of a derivation: it takes over what is known of the names."""
    results = program.outputs if outputs is None else outputs
    result = Program(program.name, program.dims, program.whole, program.arguments, program.inputs, body, results)
    result.__dict__.update(_origin=program, rank=program.rank, chunks=program.chunks, input_types=program.input_types)
    return result


def _replace(graph: Graph, path: Path, new: Graph) -> Graph:
    if not path:
        return new
    position, child = _child(graph, path[0])
    body = _replace(child.body, path[1:], new)
    changed = Map(child.dim, child.ports, body, child.outputs, child.span, child.where, child.part)
    return (*graph[:position], changed, *graph[position + 1 :])


def paths(program: Program) -> Iterator[tuple[Path, Graph]]:
    """Every graph with its path, outermost first and in program order."""
    yield from _paths((), program.body)


def _paths(path: Path, graph: Graph) -> Iterator[tuple[Path, Graph]]:
    yield path, graph
    for definition in graph:
        if isinstance(definition, Map):
            yield from _paths((*path, definition.defines[0]), definition.body)


def roots(program: Program) -> dict[str, str]:
    """For each port the list of the outermost graph that it reads from, and for each stacked output of a nested map
    the outermost list that it becomes part of; other names stand for themselves. Traffic is reported per root."""
    result: dict[str, str] = {}

    def visit(graph: Graph, becomes: Mapping[str, str]) -> None:
        for definition in graph:
            if not isinstance(definition, Map):
                continue
            for port in definition.ports:
                result[port.name] = result.get(port.source, port.source)
            inner: dict[str, str] = {}
            for output in definition.outputs:
                for name, value in zip(output.names, output.values, strict=True):
                    result[name] = becomes.get(name, name)
                    if output.monoid is None:
                        inner.setdefault(value, result[name])
            visit(definition.body, inner)

    visit(program.body, {})
    return result


def kernels(program: Program) -> tuple[Graph, ...]:
    """The launches: each top-level map with the top-level tile operators that finish or prepare it.

    A tile operator of the top graph (a scalar, or all dimensions whole) belongs to the latest kernel that it reads
    from; if it reads inputs only, to the first that uses it; else it is a launch of its own. What is renamed is read
    from memory, so it is of an earlier launch, unless it comes from the tasks of the kernel's own map.
    """
    home: dict[str, int] = {}
    least: dict[str, int] = {}  # the first kernel that may use a name, where that is not the one that makes it
    makers = {name: definition for definition in program.body for name in definition.defines}
    groups: list[list[Definition]] = []
    waiting: list[Definition] = []

    def taken(uses: Iterable[str]) -> list[Definition]:
        """What waits and is needed, in order: it waits no more."""
        wanted = set(uses)
        found: list[Definition] = []
        for other in reversed(waiting):
            if not wanted.isdisjoint(other.defines):
                wanted |= other.uses
                found.insert(0, other)
        waiting[:] = [other for other in waiting if other not in found]
        return found

    def add(group: int, members: Iterable[Definition]) -> None:
        for member in members:
            if not isinstance(member, Rename):
                groups[group].append(member)
            home.update(dict.fromkeys(member.defines, group))

    for definition in program.body:
        if isinstance(definition, Rename):  # another name for what lies in memory: no work, but it needs its source
            name, source = definition.name, definition.source
            if needed := taken((source,)):
                groups.append([])
                add(len(groups) - 1, needed)
            if source not in home:  # an input
                waiting.append(definition)
                continue
            home[name] = home[source]
            maker = makers[source]
            if source in least or not isinstance(maker, Map | Rename) or (isinstance(maker, Map) and maker.is_loop):
                least[name] = home[source] + 1
            continue
        earlier = [home[name] for name in definition.uses if name in home]
        first = max((least.get(name, 0) for name in definition.uses), default=0)
        if isinstance(definition, Map | Reduce):
            groups.append([])
            group = len(groups) - 1
        elif earlier and max(earlier) >= first:
            group = max(earlier)
        else:
            if first:
                least.update(dict.fromkeys(definition.defines, first))
            waiting.append(definition)
            continue
        add(group, [*taken(definition.uses), definition])
    groups.append([member for member in waiting if not isinstance(member, Rename)])
    return tuple(tuple(group) for group in groups if group)
