"""The verifier: the invariants of block programs, each with a number. Run after every rewrite, in users' builds too.

B01 every name is bound once              B07 a reduction's dimensions are axes of its operands
B02 a name is bound before it is used     B08 an accumulated value lacks the axis of its map
B03 every dimension is declared           B09 a monoid gets the number of values that it takes
B04 a port or reduce peels a list         B10 whole dimensions are neither mapped nor list dimensions
B05 a dimension never nests in itself     B11 a tile with the axis of a cut dimension stays inside a map over it
B06 a tile operator takes items, as       B12 an output has the dimensions that are declared for it
    many as it needs                      B13 an accumulated list is stacked in the same body; a reduce gives items
                                          B14 a scalar part has no list dimension or axis that a payload lacks
                                          B15 chunks group the blocks of a cut dimension, outside the maps over it
                                          B16 a condition is one on positions here, of a loop that accumulates items
                                          B17 a part of a loop stands in a map, stacks nothing, has no maps inside and
                                              no condition; only the rest starts from values, of the types that it has
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import is_
from typing import assert_never

from blockc.ir.block import (
    DEFINES,
    REDUCTIONS,
    STRUCTURAL,
    USES,
    Apply,
    Condition,
    Constant,
    Definition,
    Expression,
    Graph,
    Index,
    Map,
    Operand,
    Output,
    Program,
    Reading,
    Reduce,
    Rename,
    Result,
    Size,
    Term,
    Type,
    element_type,
    renamed_type,
    stacked_type,
)
from blockc.ir.conditions import UNKNOWN
from blockc.ir.monoids import MONOIDS
from blockc.ir.ops import OPERATORS

PARTS = ("first", "rest")


class VerifyError(Exception):
    """A block program breaks an invariant: a fault of ours. `rule` is the rewrite that made it, if one did."""

    def __init__(self, invariant: str, at: str, message: str) -> None:
        self.invariant = invariant
        self.at = at
        self.rule = ""
        super().__init__(f"[{invariant}] at `{at}`: {message}")


@dataclass(slots=True)
class Verified:
    """The program that was verified last in a derivation, with the types of all its names."""

    program: Program | None = None
    types: dict[str, Type] = field(default_factory=dict)


def verify(program: Program, verified: Verified | None = None) -> None:
    """Check every invariant; VerifyError names the first that fails and the definition at fault.

    What the program has in common with the one that was `verified` before is right already: names are looked up there,
    and what stands behind a change must not use what has gone. Where that finds a problem, everything is checked.
    """
    verified = verified or Verified()
    before, verified.program = verified.program, None
    if before is None or not _same_declarations(before, program) or not _follows(before, program, verified.types):
        verified.types = {}
        _Checker(program, verified.types).everything()
    verified.program = program


def _same_declarations(a: Program, b: Program) -> bool:
    return (a.dims, a.whole, a.arguments, a.inputs) == (b.dims, b.whole, b.arguments, b.inputs)


def _follows(before: Program, program: Program, types: dict[str, Type]) -> bool:
    """True if all that differs from a program that is right is right, too. `types` are those of the names before, and
    are changed to those of the names now."""
    checker = _Checker(program, types, [set(program.input_types)])
    try:
        checker.changes(before.body, program.body, (), frozenset())
        checker.outputs(program.outputs)
    except VerifyError:
        return False
    return True


def common(old: Graph, new: Graph) -> tuple[int, int]:
    """How many definitions at the beginning, and how many of the others at the end, are the same in two graphs."""
    start = [*map(is_, old, new), False].index(False)
    end = [*map(is_, reversed(old), reversed(new)), False].index(False)
    return start, min(end, min(len(old), len(new)) - start)


@dataclass(slots=True)
class _Checker:
    program: Program
    types: dict[str, Type]  # of every name that is bound, in scope or not
    scopes: list[set[str]] = field(default_factory=list)  # the names in scope, by graph
    gone: dict[str, Type] = field(default_factory=dict)  # the names that were bound before a change

    def everything(self) -> None:
        """Every invariant, of every definition."""
        program = self.program
        self.scopes = [set()]
        self.chunks()
        for entry in program.inputs:
            self.dims(entry.name, entry.dims)
            self.no_chunks(entry.name, entry.dims)
        for result in program.outputs:
            self.dims(result.argument.name, result.argument.dims)
            self.no_chunks(result.argument.name, result.argument.dims)
        for entry in program.inputs:
            self.bind(entry.name, entry.name, program.input_types[entry.name])
        self.graph(program.body, ())
        self.outputs(program.outputs)

    def outputs(self, results: tuple[Result, ...]) -> None:
        """B12 for all outputs."""
        for result in results:
            kind = self.use(result.argument.name, result.value)
            declared = self.program.argument_type(result.argument.dims, kind.dtype)
            if (kind.lists, kind.axes) != (declared.lists, declared.axes):
                raise VerifyError(
                    "B12", result.argument.name, f"`{result.value}` does not have the declared dimensions"
                )

    # What differs from a program that is right

    def changes(self, old: Graph, new: Graph, mapped: tuple[str, ...], foreign: frozenset[str]) -> None:
        """The invariants of a graph by those of what it was before. It may not bind names that are `foreign`."""
        start, end = common(old, new)
        left, came = old[start : len(old) - end], new[start : len(new) - end]
        stay = set(map(id, left)).intersection(map(id, came))
        twins = self.twins(left, came, stay)
        paired = set(map(id, twins.values()))
        for definition in left:
            if id(definition) not in stay:
                self.remove(definition, id(definition) not in paired)
        scope = self.scopes[-1]
        scope.update(*map(DEFINES, new[:start]))
        for definition in came:
            if not foreign.isdisjoint(definition.defines):
                raise VerifyError("B02", definition.defines[0], "it is used before it is bound")
            if id(definition) in stay:
                stay.remove(id(definition))  # a second time it would be bound twice
                self.in_scope(definition)
                scope.update(definition.defines)
            elif isinstance(definition, Map):
                self.map(definition, mapped, twins.get(id(definition)))
            else:
                self.definition(definition, mapped)
        lost = set().union(*map(DEFINES, left)).difference(*map(DEFINES, came))
        behind = new[len(new) - end :]
        if lost and not lost.isdisjoint(set().union(*map(USES, behind))):
            raise VerifyError("B02", min(lost), "it is used and no longer bound")
        scope.update(*map(DEFINES, behind))

    def twins(self, left: Graph, came: Graph, stay: set[int]) -> dict[int, Map]:
        """For changed maps, by identity, the maps that they were before: those whose bodies begin with the same, or
        that bind the same."""
        before: dict[object, Map] = {}
        for node in left:
            if isinstance(node, Map) and node.body and id(node) not in stay:
                before.update({id(node.body[0]): node, node.defines[:1]: node})
        found: dict[int, Map] = {}
        taken: set[int] = set()
        for node in came:
            if isinstance(node, Map) and node.body and id(node) not in stay:
                twin = before.get(id(node.body[0])) or before.get(node.defines[:1])
                if twin is not None and id(twin) not in taken and _alike(twin, node):
                    found[id(node)] = twin
                    taken.add(id(twin))
        return found

    def remove(self, definition: Definition, inside: bool) -> None:
        """Forget the names that a definition bound before, and those in it if nothing has taken them over."""
        names = list(definition.defines)
        if isinstance(definition, Map):
            names += [port.name for port in definition.ports]
            for inner in definition.body if inside else ():
                self.remove(inner, inside)
        for name in names:
            self.gone[name] = self.types.pop(name)

    def in_scope(self, definition: Definition) -> None:
        """B02 for all that a definition uses."""
        missing = definition.uses.difference(*self.scopes)
        if missing:
            self.use(definition.defines[0], min(missing))

    # Names

    def bind(self, at: str, name: str, kind: Type) -> None:
        if name in self.types:
            raise VerifyError("B01", at, f"`{name}` is bound a second time")
        if self.gone.get(name, kind) != kind:
            raise VerifyError("B02", at, f"`{name}` had another type before")
        self.types[name] = kind
        self.scopes[-1].add(name)

    def use(self, at: str, name: str) -> Type:
        if not any(name in scope for scope in self.scopes):
            raise VerifyError("B02", at, f"`{name}` is not in scope")
        return self.types[name]

    def dims(self, at: str, dims: tuple[str, ...]) -> None:
        for dim in dims:
            if dim not in self.program.rank:
                raise VerifyError("B03", at, f"dimension `{dim}` is not declared")

    def chunks(self) -> None:
        """B15 for the declarations."""
        program = self.program
        for dim, base in program.chunks.items():
            if base not in program.rank or base in program.chunks or program.whole & {dim, base}:
                raise VerifyError("B15", dim, f"`{base}` is no dimension that is cut into blocks")

    def no_chunks(self, at: str, dims: tuple[str, ...]) -> None:
        """B15: tiles have no axis of chunks, and no array is stored with one."""
        for dim in dims:
            if dim in self.program.chunks:
                raise VerifyError("B15", at, f"`{dim}` are chunks, which are no axis")

    def graph(self, graph: Graph, mapped: tuple[str, ...]) -> None:
        for definition in graph:
            self.definition(definition, mapped)

    def definition(self, definition: Definition, mapped: tuple[str, ...]) -> None:
        match definition:
            case Apply():
                self.apply(definition, mapped)
            case Map():
                self.map(definition, mapped)
            case Reduce(names, sources, dim, monoid):
                at = names[0]
                self.dims(at, (dim,))
                self.monoid(at, monoid, len(sources), len(names))
                for name, source in zip(names, sources, strict=True):
                    kind = self.peel(at, source, dim)
                    if dim in kind.axes:
                        raise VerifyError("B08", at, f"the elements of `{source}` have the axis `{dim}`")
                    if kind.lists:
                        raise VerifyError("B13", at, f"the elements of `{source}` are lists")
                    self.bind(at, name, kind)
                self.acts(at, monoid, names)
            case Rename(name, source, old, new):
                self.dims(name, (old, new))
                self.no_chunks(name, (old, new))
                kind = self.use(name, source)
                if old not in kind.axes or new in kind.axes or mapped:
                    raise VerifyError("B04", name, f"cannot read `{source}` with `{old}` as `{new}` here")
                self.bind(name, name, renamed_type(self.program, definition, kind))
            case _:
                assert_never(definition)

    def peel(self, at: str, source: str, dim: str) -> Type:
        kind = self.use(at, source)
        if dim not in kind.lists and self.program.chunks.get(dim) not in kind.lists:
            raise VerifyError("B04", at, f"`{source}` is not a list over `{dim}`")
        return element_type(kind, dim)

    def monoid(self, at: str, name: str, values: int, names: int) -> None:
        monoid = MONOIDS.get(name)
        if monoid is None or values != names or not monoid.takes(values):
            raise VerifyError("B09", at, f"`{name}` does not take {values} values to {names} names")

    def acts(self, at: str, monoid: str, names: tuple[str, ...]) -> None:
        """B14: a scalar part acts on every element of its payloads."""
        if not MONOIDS[monoid].has_scalar:
            return
        scalar, first = self.types[names[0]], MONOIDS[monoid].scalars
        for component, name in enumerate(names[first:], first):
            payload = self.types[name]
            if not MONOIDS[monoid].acts_on(component):
                continue
            extra = {*scalar.lists, *scalar.axes}.difference(payload.lists, payload.axes)
            if extra or not set(scalar.lists) <= set(payload.lists):
                raise VerifyError("B14", at, f"`{names[0]}` has dimensions that `{name}` lacks")

    def apply(self, apply: Apply, mapped: tuple[str, ...]) -> None:
        at = apply.name
        self.dims(at, apply.dims)
        self.no_chunks(at, apply.dims)
        count = len(apply.args)
        operand_axes = [self.operand(at, arg) for arg in apply.args]
        axes = {axis for held in operand_axes for axis in held}
        if not _arity_fits(apply.op, count) or (apply.op not in STRUCTURAL and apply.dims):
            counts = f"{count} operands and {len(apply.dims)} dimensions"
            raise VerifyError("B06", at, f"`{apply.op}` does not take {counts}")
        if apply.op in REDUCTIONS:
            for dim in apply.dims:
                if any(dim not in held for held in operand_axes):
                    raise VerifyError("B07", at, f"an operand lacks the reduced axis `{dim}`")
            axes.difference_update(apply.dims)
        else:
            axes.update(apply.dims)
        if apply.op in ("index", "broadcast"):
            for dim in apply.dims:
                if dim not in mapped and dim not in self.program.whole:
                    raise VerifyError("B11", at, f"outside a map over `{dim}`")
        kind = Type(apply.dtype, (), self.program.ordered(axes))
        self.bind(at, at, kind)

    def operand(self, at: str, operand: Operand) -> tuple[str, ...]:
        """The axes of an operand, which must be an item or a number."""
        match operand:
            case str():
                kind = self.use(at, operand)
                if kind.lists:
                    raise VerifyError("B06", at, f"`{operand}` is a list, not an item")
                return kind.axes
            case Size(dim):
                self.dims(at, (dim,))
                return ()
            case Expression(op, args):
                if op not in OPERATORS or not _arity_fits(op, len(args)):
                    raise VerifyError("B06", at, f"`{op}` does not take {len(args)} operands")
                return tuple(axis for arg in args for axis in self.operand(at, arg))
            case Constant():
                return ()
            case _:
                assert_never(operand)

    def map(self, node: Map, mapped: tuple[str, ...], twin: Map | None = None) -> None:
        """A map; `twin` is what it was before, if that is known."""
        at = node.defines[0] if node.outputs else f"map {node.dim}"
        self.dims(at, (node.dim,))
        if node.dim in self.program.whole:
            raise VerifyError("B10", at, f"`{node.dim}` is whole")
        if node.dim in mapped:
            raise VerifyError("B05", at, f"a map over `{node.dim}` inside one")
        if node.part != "all" and (node.part not in PARTS or not mapped or node.where is not None):
            raise VerifyError("B17", at, f"no part `{node.part}` of a loop can be here")
        if node.part != "all" and any(not isinstance(inner, Apply) for inner in node.body):
            raise VerifyError("B17", at, "a part of a loop has maps inside")
        if self.program.chunks.get(node.dim) in mapped:
            raise VerifyError("B15", at, f"a map over chunks of `{self.program.chunks[node.dim]}` inside one over it")
        self.scopes.append(set())
        for port in node.ports:
            self.bind(at, port.name, self.peel(at, port.source, node.dim))
        if twin is None:
            self.graph(node.body, (*mapped, node.dim))
        else:
            self.in_scope(node)
            self.changes(twin.body, node.body, (*mapped, node.dim), twin.captures)
        if node.where is not None:
            self.condition(at, node.where, (*mapped, node.dim))
        results = []
        for output in node.outputs:
            if output.monoid is not None:
                self.monoid(at, output.monoid, len(output.values), len(output.names))
            elif len(output.values) != 1 or len(output.names) != 1:
                raise VerifyError("B09", at, "a stack takes one value")
            for name, value in zip(output.names, output.values, strict=True):
                kind = self.output(at, node.dim, output.monoid, value)
                if output.monoid is not None and kind.lists and not stacks(node.body, value):
                    raise VerifyError("B13", at, f"no map of the body stacks the list `{value}`")
                if node.where is not None and (output.monoid is None or kind.lists):
                    raise VerifyError("B16", at, f"`{value}` needs all blocks")
                if node.part != "all" and output.monoid is None:
                    raise VerifyError("B17", at, f"`{value}` would be a part of a list")
                results.append((name, kind))
        self.scopes.pop()
        kinds = dict(results)
        for output in node.outputs:
            self.starts(at, node.part, output, [kinds[name] for name in output.names])
        for name, kind in results:
            self.bind(at, name, kind)
        for output in node.outputs:
            if output.monoid is not None:
                self.acts(at, output.monoid, output.names)

    def starts(self, at: str, part: str, output: Output, kinds: list[Type]) -> None:
        """B17 for what an output starts from."""
        if len(output.starts) != (len(output.values) if part == "rest" else 0):
            raise VerifyError("B17", at, f"{len(output.starts)} values to start from")
        for start, kind in zip(output.starts, kinds, strict=False):
            if self.use(at, start) != kind:
                raise VerifyError("B17", at, f"`{start}` has another type than what is accumulated")

    def condition(self, at: str, term: Term, mapped: tuple[str, ...]) -> None:
        """B16 for a condition or a part of one."""
        match term:
            case Index(dim):
                self.dims(at, (dim,))
                if dim not in mapped and dim not in self.program.whole:
                    raise VerifyError("B16", at, f"a position along `{dim}` outside a map over it")
            case Reading(name, dims):
                if self.use(at, name) != Type(self.types[name].dtype, (), dims):
                    raise VerifyError("B16", at, f"`{name}` is no item with these axes")
            case Size(dim):
                self.dims(at, (dim,))
            case Condition(op, args):
                if not (_arity_fits(op, len(args)) and op in OPERATORS) and term != UNKNOWN:
                    raise VerifyError("B16", at, f"`{op}` does not take {len(args)} operands in a condition")
                for arg in args:
                    self.condition(at, arg, mapped)
            case Constant():
                pass
            case _:
                assert_never(term)

    def output(self, at: str, dim: str, monoid: str | None, value: str) -> Type:
        kind = self.use(at, value)
        if monoid is not None:
            if dim in kind.axes or dim in kind.lists:
                raise VerifyError("B08", at, f"`{value}` has the dimension `{dim}`")
            if self.program.chunks.get(dim) in kind.lists:
                raise VerifyError("B15", at, f"`{value}` has another list of blocks in every chunk")
            return kind
        if dim in kind.lists:
            raise VerifyError("B05", at, f"`{value}` is already a list over `{dim}`")
        return stacked_type(self.program, kind, dim)


def _alike(twin: Map, node: Map) -> bool:
    """True if what is known of the body of one map holds in another: names that it takes from ports and from outside
    are the same things there."""
    sources = {port.name: port.source for port in twin.ports}
    if (twin.dim, twin.part) != (node.dim, node.part) or twin.where is not None or node.where is not None:
        return False
    if any(sources.pop(port.name, port.source) != port.source or port.name in twin.captures for port in node.ports):
        return False
    return not sources or node.captures.union(*map(DEFINES, node.body)).isdisjoint(sources)


def stacks(graph: Graph, name: str) -> bool:
    """True if a map of the graph has this stacked output."""
    nodes = (node for node in graph if isinstance(node, Map) and name in node.defines)
    return any(output.monoid is None and name in output.names for node in nodes for output in node.outputs)


def _arity_fits(op: str, count: int) -> bool:
    if op in STRUCTURAL:
        return count == {"contract": 2, "index": 0}.get(op, 1)
    operator = OPERATORS.get(op)
    if operator is None:
        return False
    return count >= 2 if operator.arity is None else count == operator.arity
