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
from typing import assert_never

from blockc.ir.block import (
    REDUCTIONS,
    STRUCTURAL,
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
    Size,
    Term,
    Type,
    element_type,
    renamed_type,
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


@dataclass(frozen=True, slots=True)
class Verified:
    """What has been verified in a derivation, by identity: operators and maps, each with the dimensions around it, and
    with what the rest of the program needs to know.

    Names keep their types through a derivation, so a definition that was right stays right as long as what it uses is
    in scope and the dimensions around it are the same.
    """

    applies: dict[int, tuple[Apply, tuple[str, ...], Type]] = field(default_factory=dict)
    maps: dict[int, tuple[Map, tuple[str, ...], frozenset[str], tuple[tuple[str, Type], ...]]] = field(
        default_factory=dict
    )


def verify(program: Program, verified: Verified | None = None) -> None:
    """Check every invariant; VerifyError names the first that fails and the definition at fault."""
    checker = _Checker(program, verified or Verified())
    checker.chunks()
    for entry in program.inputs:
        checker.dims(entry.name, entry.dims)
        checker.no_chunks(entry.name, entry.dims)
    for result in program.outputs:
        checker.dims(result.argument.name, result.argument.dims)
        checker.no_chunks(result.argument.name, result.argument.dims)
    for entry in program.inputs:
        checker.bind(entry.name, entry.name, program.input_types[entry.name])
    checker.graph(program.body, ())
    checker.unique()
    for result in program.outputs:
        kind = checker.use(result.argument.name, result.value)
        declared = program.argument_type(result.argument.dims, kind.dtype)
        if (kind.lists, kind.axes) != (declared.lists, declared.axes):
            raise VerifyError("B12", result.argument.name, f"`{result.value}` does not have the declared dimensions")


@dataclass(slots=True)
class _Checker:
    program: Program
    verified: Verified
    types: dict[str, Type] = field(default_factory=dict)  # what is in scope
    bound: set[str] = field(default_factory=set)  # every name so far, in scope or not
    order: list[str] = field(default_factory=list)  # the same, as they came
    skipped: list[tuple[Map, frozenset[str]]] = field(default_factory=list)  # verified before, with the names inside
    seen: set[int] = field(default_factory=set)  # those maps by identity

    def unique(self) -> None:
        """B01 for the maps that were not looked into again."""
        for node, inside in self.skipped:
            if not inside.isdisjoint(self.bound):
                raise VerifyError("B01", node.defines[0], f"`{min(inside & self.bound)}` is bound a second time")

    def bind(self, at: str, name: str, kind: Type) -> None:
        if name in self.bound:
            raise VerifyError("B01", at, f"`{name}` is bound a second time")
        self.bound.add(name)
        self.order.append(name)
        self.types[name] = kind

    def use(self, at: str, name: str) -> Type:
        kind = self.types.get(name)
        if kind is None:
            raise VerifyError("B02", at, f"`{name}` is not in scope")
        return kind

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
        applies, maps = self.verified.applies, self.verified.maps
        for definition in graph:
            if (apply := applies.get(id(definition))) is not None and apply[1] == mapped:
                self.in_scope(definition)
                self.bind(definition.defines[0], definition.defines[0], apply[2])
            elif (node := maps.get(id(definition))) is not None and node[1] == mapped:
                self.again(node[0], node[2], node[3])
            else:
                self.definition(definition, mapped)

    def in_scope(self, definition: Definition) -> None:
        """B02 for all that a definition uses."""
        if not definition.uses <= self.types.keys():
            self.use(definition.defines[0], min(definition.uses - self.types.keys()))

    def again(self, node: Map, inside: frozenset[str], results: tuple[tuple[str, Type], ...]) -> None:
        """A map that has been verified at such a place: what it uses must be in scope, and it must stand here only."""
        self.in_scope(node)
        if id(node) in self.seen:
            raise VerifyError("B01", node.defines[0], "the same map stands twice in the program")
        self.seen.add(id(node))
        self.skipped.append((node, inside))
        if not self.bound.isdisjoint(node.defines):
            self.bind(node.defines[0], min(self.bound.intersection(node.defines)), results[0][1])
        self.bound.update(node.defines)
        self.order.extend(node.defines)
        self.types.update(results)

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
        if dim not in kind.lists:
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
        self.verified.applies[id(apply)] = apply, mapped, kind
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

    def map(self, node: Map, mapped: tuple[str, ...]) -> None:
        at = node.defines[0] if node.outputs else f"map {node.dim}"
        before = len(self.skipped), len(self.order)
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
        for port in node.ports:
            self.bind(at, port.name, self.peel(at, port.source, node.dim))
        self.graph(node.body, (*mapped, node.dim))
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
        names = self.order[before[1] :]
        for name in names:  # which are out of scope again
            self.types.pop(name, None)
        inside = frozenset(names).union(*(hidden for _, hidden in self.skipped[before[0] :]))
        self.verified.maps[id(node)] = (node, mapped, inside, tuple(results))
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
            return kind
        if dim in kind.lists:
            raise VerifyError("B05", at, f"`{value}` is already a list over `{dim}`")
        if self.program.chunks.get(dim) in kind.lists:
            raise VerifyError("B15", at, f"`{value}` has another list of blocks in every chunk")
        return Type(kind.dtype, self.program.ordered((*kind.lists, dim)), kind.axes)


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
