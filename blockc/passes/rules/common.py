"""What several rules ask of a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

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
from blockc.passes.exponentials import EMPTY
from blockc.passes.linear import DEEPEST, MOST_TERMS, ONE, ZERO, Opening, linear_in
from blockc.passes.masks import Origins
from blockc.passes.positive import is_positive

HIGHEST = 2  # power of a term from outside for which sums may have a pivot


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
    ports = [port.name for node in maps for port in node.ports]
    return frozenset(ports).union(*[definition.defines for node in maps for definition in node.body])


def upstream_reductions(program: Program) -> dict[str, frozenset[str]]:
    """For every name, the dimensions that anything upstream of it reduces."""
    result = program.reduced_upstream
    if result:
        return result
    result.update((entry.name, frozenset()) for entry in program.inputs)

    def of(names: Iterator[str] | frozenset[str] | tuple[str, ...]) -> frozenset[str]:
        return frozenset().union(*[result[name] for name in names])

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


@dataclass(frozen=True, slots=True)
class Blocking:
    """Which values keep apart the loop that computes them and one of these nested maps: those that come from outside
    the map and are computed there by a reduction over its dimension."""

    maps: tuple[Map, ...]
    upstream: Mapping[str, frozenset[str]]
    origins: Origins
    inside: tuple[frozenset[str], ...]

    @staticmethod
    def of(maps: tuple[Map, ...], program: Program) -> Blocking:
        """For nested maps of a program, outermost first."""
        inside = tuple(bound_inside(maps[depth:]) for depth in range(len(maps)))
        facts = program.facts
        return Blocking(maps, upstream_reductions(program), Origins(facts.applies, facts.links, facts.types), inside)

    def kept_apart(self, operand: Operand) -> Iterator[Map]:
        """The maps that wait for a value."""
        if isinstance(operand, str):
            reduces = self.upstream[operand]
            for node, inside in zip(self.maps, self.inside, strict=True):
                if node.dim in reduces and operand not in inside:
                    yield node

    def __call__(self, operand: Operand) -> bool:
        return any(True for _ in self.kept_apart(operand))

    def needed_elsewhere(self, operand: Operand) -> str | None:
        """What needs the value in a map that waits for it, or another value that is made of the same sums, other than
        sums that both can leave."""
        for node in self.kept_apart(operand):
            assert isinstance(operand, str)
            sums = self.sums(operand, node.dim)
            tainted = {name for name in node.captures if not sums.isdisjoint(self.sums(name, node.dim))}
            needs = escape(node, tainted, self)
            if needs is not None:
                return needs
        return None

    def sums(self, name: str, dim: str) -> frozenset[str]:
        """The results of loops over a dimension that operators made a value of."""
        waiting, found, seen = [name], set[str](), set[str]()
        while waiting:
            current = waiting.pop()
            if current in seen or dim not in self.upstream[current]:
                continue
            seen.add(current)
            if current in self.origins.applies:
                waiting.extend(self.origins.applies[current].uses)
            else:
                found.add(current)
        return frozenset(found)

    def shifted(self, operands: Iterable[Operand], dims: tuple[str, ...]) -> tuple[str, ...]:
        """The factors of some values that are sums with a term that a reduction over one of the dimensions gives,
        whichever loop makes them; of those that have a value with these dimensions in common, one."""
        found: dict[str, frozenset[str]] = {}
        for made in self.factors(operands):
            if made.op != "add" or not any(self.gives(term, dims) for term in operand_names(made.args)):
                continue
            own = self.sources(made.name, dims)
            if all(own.isdisjoint(other) for other in found.values()):
                found[made.name] = own
        return tuple(found)

    def factors(self, operands: Iterable[Operand]) -> Iterator[Apply]:
        """The operators that make the factors of some values, whichever loop they are in."""
        waiting, seen = list(operands), set[str]()
        while waiting:
            operand = waiting.pop(0)
            made = self.origins.made(operand) if isinstance(operand, str) else None
            if made is None or made.name in seen:
                continue
            seen.add(made.name)
            if made.op == "mul":
                waiting.extend(made.args)
            else:
                yield made

    def stays(self, node: Apply, leaving: Collection[Operand]) -> bool:
        """True if some values do not leave a contraction, since the opened sums would have no pivot."""
        if len(self.shifted(node.args, node.dims)) > 1:
            return True

        def lacks(operand: Operand) -> bool:
            return not isinstance(operand, str) or set(node.dims).isdisjoint(self.origins.types[operand].axes)

        def leaves(operand: Operand) -> bool:
            return operand in leaving and lacks(operand)

        terms = contraction(Opening(lacks, leaves, self.origins.applies), node)
        return terms is not None and without_pivot(terms, leaves, self.origins.applies)

    def gives(self, term: str, dims: tuple[str, ...]) -> bool:
        """True if a reduction over one of the dimensions gives a value, which has none of them."""
        kind = self.origins.types[term]
        reduced = self.upstream.get(term, frozenset())
        return kind.is_item and set(dims).isdisjoint(kind.axes) and not reduced.isdisjoint(dims)

    def sources(self, name: str, dims: tuple[str, ...]) -> frozenset[str]:
        """The inputs and lists that a value has from elements with one of the dimensions."""
        waiting, found, seen = [name], set[str](), set[str]()
        while waiting:
            current = waiting.pop()
            kind = self.origins.types[current]
            if current in seen or set(dims).isdisjoint((*kind.axes, *kind.lists)):
                continue
            seen.add(current)
            if current in self.origins.applies:
                waiting.extend(self.origins.applies[current].uses)
            elif current in self.origins.links:
                waiting.append(self.origins.links[current])
            else:
                found.add(current)
        return frozenset(found)


def escape(node: Map, tainted: set[str], blocks: Blocking) -> str | None:
    """What a map makes of one of these values (which are added to, with all that is linear in them) other than sums
    that they can leave."""
    return _escape(node, tainted, tainted.copy(), blocks)


def _escape(node: Map, tainted: set[str], leaving: set[str], blocks: Blocking) -> str | None:
    for definition in node.body:
        if tainted.isdisjoint(definition.uses):
            continue
        match definition:
            case Apply(op="contract" | "sum"):
                if not tainted.isdisjoint(definition.args) and blocks.stays(definition, leaving):
                    return definition.name
            case Apply():
                if not tainted.isdisjoint(definition.uses.difference(operand_names(linear_in(definition)))):
                    return definition.name
                if not linear_in(definition):
                    return definition.name
                tainted.add(definition.name)
            case Map() if tainted.isdisjoint(port.source for port in definition.ports):
                found = _escape(definition, tainted, leaving, blocks)
                if found is not None:
                    return found
            case _:
                return definition.defines[0]
    for output in node.outputs:
        if output.monoid != "add" and not tainted.isdisjoint(output.values):
            return output.names[0]
    return None


Term = tuple[tuple[Operand, ...], tuple[Operand, ...]]  # scales, and what is left of the operands of a contraction


def contraction(opening: Opening, node: Apply) -> tuple[Term, ...] | None:
    """A contraction or sum as a sum of scaled ones; None if that has too many terms."""
    parts = [opening.groups(arg) for arg in node.args]
    opened = [part for part in parts if part is not None]
    if len(opened) < len(parts) or prod(map(len, opened)) > MOST_TERMS:
        return None
    return tuple(
        (
            tuple(scale for group in chosen for scale in group.scales),
            tuple(group.rest for group in chosen if group.rest is not None),
        )
        for chosen in product(*opened)
    )


def may_be_nothing(program: Program, operands: tuple[Operand, ...], depth: int = DEEPEST) -> bool:
    """True if the product of some values is 0 where conditions choose nothing, and else positive, as far as is seen."""
    nothing = False
    for operand in operands:
        node = operand if isinstance(operand, Expression) else applies(program).get(str(operand))
        if node is None or not depth or not is_positive(program, operand):
            return False
        match node.op:
            case "where":
                nothing |= ZERO in node.args[1:]
            case "exp":
                nothing |= is_closed(program, node.args[0])
            case "sum" | "broadcast" | "mul" | "contract":
                nothing |= may_be_nothing(program, node.args, depth - 1)
            case "add":
                nothing |= all(may_be_nothing(program, (arg,), depth - 1) for arg in node.args)
    return nothing


def is_closed(program: Program, exponent: Operand) -> bool:
    """True if a condition, or one of the terms, makes an exponent minus infinity."""
    node = exponent if isinstance(exponent, Expression) else applies(program).get(str(exponent))
    if node is None or node.op != "add":
        return node is not None and node.op == "where" and EMPTY in node.args[1:]
    return any(is_closed(program, term) for term in node.args)


def has_logarithm(program: Program, operands: tuple[Operand, ...], depth: int = DEEPEST) -> bool:
    """True if a term or factor of a value is a logarithm."""
    found = [operand if isinstance(operand, Expression) else applies(program).get(str(operand)) for operand in operands]
    return any(
        node.op == "log"
        or (node.op in ("add", "mul", "cast") and depth > 0 and has_logarithm(program, node.args, depth - 1))
        for node in found
        if node is not None
    )


def without_pivot(terms: tuple[Term, ...], leaves: Callable[[Operand], bool], applies: Mapping[str, Apply]) -> bool:
    """True if opening a contraction, so that some values leave it, gives sums that could have no pivot.

    That is where a power of such a value is above `HIGHEST`, where it is squared beside as many factors as there are in
    any term (as in (y + c * x)^2), or where it is added to what else does not change (as in (x + 3) - c).
    """
    if not terms:
        return False
    counts = [Counter(scale for scale in scales if leaves(scale)) for scales, _ in terms]
    sizes = [sum(_factors(rest, applies) for rest in rests) for _, rests in terms]
    for scale in frozenset().union(*counts):
        least = min(count[scale] for count in counts)
        squared = [size for count, size in zip(counts, sizes, strict=True) if count[scale] - least == HIGHEST]
        if max(count[scale] for count in counts) - least > HIGHEST or max(sizes) in squared:
            return True
    added: dict[bool, set[tuple[Operand, ...]]] = {True: set(), False: set()}
    for (_, rests), count, size in zip(terms, counts, sizes, strict=True):
        if size < max(sizes):
            added[bool(count)].add(rests)
    return not added[True].isdisjoint(added[False])


def _factors(operand: Operand, applies: Mapping[str, Apply], depth: int = DEEPEST) -> int:
    """The number of factors of a value; of a sum, of one of its terms."""
    node = operand if isinstance(operand, Expression) else applies.get(str(operand))
    if node is None or not depth or node.op not in ("mul", "add"):
        return int(any(operand_names((operand,))))
    parts = [_factors(arg, applies, depth - 1) for arg in node.args]
    return sum(parts) if node.op == "mul" else max(parts)


class Writer:
    """Collects new tile operators, in order, under fresh names."""

    def __init__(self, program: Program) -> None:
        self.program = program
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

    def widened(self, like: Apply, rest: Operand) -> Operand:
        """An operand of a contraction with all the dimensions that are contracted."""
        kinds = [self.program.types.get(name) for name in operand_names((rest,))]
        axes = {axis for kind in kinds if kind is not None for axis in kind.axes}
        missing = tuple(dim for dim in like.dims if dim not in axes)
        return self.put(like, "broadcast", (rest,), missing) if missing and None not in kinds else rest

    def contraction(self, like: Apply, rests: tuple[Operand, ...]) -> Operand:
        """A contraction over the dimensions of another one: a sum if it has one operand, and the extent of the tile if
        it has none."""
        rests = tuple(self.widened(like, rest) for rest in rests)
        match rests:
            case ():
                return self.put(like, "sum", (self.put(like, "broadcast", (ONE,), like.dims),), like.dims)
            case (rest,):
                return self.put(like, "sum", (rest,), like.dims)
            case _:
                return self.put(like, "contract", rests, like.dims)

    def scaled(self, like: Apply, scales: tuple[Operand, ...], total: Operand, rests: tuple[Operand, ...]) -> Operand:
        """The product of a sum of `rests` and what left it. Where a condition chose nothing, the sum is 0, also times a
        logarithm of 0, which is infinite."""
        product = self.put(like, "mul", (*scales, total))
        if product == total or not may_be_nothing(self.program, rests) or not has_logarithm(self.program, scales):
            return product
        nothing = Apply(self.fresh(like.name), "eq", (total, ZERO), (), "bool", like.span)
        self.out.append(nothing)
        return self.put(like, "where", (nothing.name, ZERO, product))

    def named(self, like: Apply, operand: Operand) -> Operand:
        """The operand with composed operators on items written out as operators of their own."""
        if isinstance(operand, Expression) and any(operand_names(operand.args)):
            return self.put(like, operand.op, operand.args)
        return operand
