"""Safe arithmetic: the rules work on exact reals, here exponentials learn not to overflow (design, section 7).

A value made by `exp` is carried as an exponent pair (x, t), meaning x * e^t. Products add exponents, reciprocals negate
them, equal ones cancel; a sum aligns to the largest exponent along what it sums; a pair is unwrapped only at an output
or before an operator that has no rule. An accumulated pair becomes two outputs of the monoid `exponent_add`. Nothing
here looks for a softmax: the online softmax of flash attention is what these rules make of `sum(exp(s) * v)`.

Sources: Milakov and Gimelshein 2018 (online softmax); Dekel 2025, section 4 (safety after fusion).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import assert_never

from blockc.ir.block import (
    Apply,
    Constant,
    Definition,
    Fresh,
    Graph,
    Map,
    Operand,
    Output,
    Port,
    Program,
    Reduce,
    Rename,
    Type,
    apply_axes,
    renamed_type,
    walk,
    with_body,
    without,
)
from blockc.ir.decisions import Match
from blockc.ir.dtypes import is_float, real
from blockc.ir.verify import verify
from blockc.passes.linear import terms
from blockc.passes.normalise import prune
from blockc.passes.rules import fuse_map_with_reduce

ZERO, ONE, EMPTY = Constant(0.0), Constant(1.0), Constant(-math.inf)
STATISTIC = frozenset({"maximum", "minimum", "cast", "broadcast"})  # of statistics, these make statistics

Exponents = tuple[tuple[str, float], ...]  # names with how often each counts, in order of appearance, none with 0


@dataclass(frozen=True, slots=True)
class Pair:
    """x * e^t, where t is the sum of `exponents` and `x` is None for 1.

    `hollow`: the exponents cancelled in a sum of exponentials, which is 0 where all that it adds up are exact zeros.
    """

    x: Operand | None
    exponents: Exponents
    hollow: bool = False


def stabilize(program: Program) -> Program:
    """The program with exponent pairs in place of exponentials: the same in exact arithmetic, and safe in floats."""
    for definition in list(walk(program.body)):
        if isinstance(definition, Reduce):
            program = _with_reduce_fused(program, definition)
    if not any(isinstance(node, Apply) and node.op == "exp" for node in walk(program.body)):
        return program
    stable = prune(_Stabilizer(program).run())
    verify(stable)
    return stable


def _with_reduce_fused(program: Program, reduce: Reduce) -> Program:
    for found in fuse_map_with_reduce.match(program, None):
        if isinstance(found, Match) and found.at == reduce.names:
            return fuse_map_with_reduce.rewrite(program, found)
    return program


def combine(first: Exponents, second: Exponents, sign: float = 1) -> Exponents:
    """The sum, or difference, of two sums of exponents; what cancels is gone."""
    counts = dict(first)
    for name, count in second:
        counts[name] = counts.get(name, 0) + sign * count
    return tuple((name, count) for name, count in counts.items() if count != 0)


@dataclass(slots=True)
class _Scope:
    out: list[Definition] = field(default_factory=list)
    bound: set[str] = field(default_factory=set)
    known: dict[tuple[object, ...], str] = field(default_factory=dict)


@dataclass(slots=True)
class _Stabilizer:
    program: Program
    fresh: Fresh = field(init=False)
    types: dict[str, Type] = field(init=False)
    exported: set[str] = field(init=False)  # what becomes an output of the program: stored plain
    reread: set[str] = field(init=False)  # what is read again under another dimension: its parts need all axes
    statistics: set[Operand] = field(default_factory=set)  # -inf only together with all that they are subtracted from
    applies: dict[str, Apply] = field(default_factory=dict)
    pairs: dict[str, Pair] = field(default_factory=dict)
    scopes: list[_Scope] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fresh = Fresh(self.program)
        self.types = dict(self.program.types)
        self.exported = stacked_into(self.program, {result.value for result in self.program.outputs})
        reread = {node.source for node in self.program.body if isinstance(node, Rename)}
        self.reread = stacked_into(self.program, reread)

    def run(self) -> Program:
        self.scopes.append(_Scope())
        self.fill(self.program.body)
        outputs = []
        for result in self.program.outputs:
            pair = self.pairs.get(result.value)
            if pair is not None:
                kind = self.types[result.value]
                value = self.named(self.unwrap(pair, kind.dtype), kind)
                result = replace(result, value=value)
            outputs.append(result)
        return replace(with_body(self.program, tuple(self.scopes.pop().out)), outputs=tuple(outputs))

    # Building operators

    def put(self, op: str, args: tuple[Operand, ...], dims: tuple[str, ...] = (), dtype: str = "") -> str:
        """The name of an operator's result: one that exists in this graph, or a new one."""
        names = [arg for arg in args if isinstance(arg, str)]
        dtype = dtype or real(*(self.types[name].dtype for name in names))
        key = (op, args, dims, dtype)
        for scope in reversed(self.scopes):
            if key in scope.known:
                return scope.known[key]
        stem = names[0] if names else "c"
        return self.place(Apply(self.fresh(stem), op, args, dims, dtype), key)

    def place(self, apply: Apply, key: tuple[object, ...]) -> str:
        scope = self.scopes[-1]
        scope.out.append(apply)
        scope.bound.add(apply.name)
        scope.known[key] = apply.name
        self.types[apply.name] = Type(apply.dtype, (), apply_axes(self.program, apply, self.types))
        return apply.name

    def named(self, operand: Operand, kind: Type) -> str:
        """A name for an operand, with all the axes of `kind`."""
        axes = self.types[operand].axes if isinstance(operand, str) else ()
        missing = tuple(axis for axis in kind.axes if axis not in axes)
        if isinstance(operand, str) and not missing:
            return operand
        return self.put("broadcast", (operand,), missing, kind.dtype)

    def product(self, *factors: Operand | None) -> Operand | None:
        kept = tuple(factor for factor in factors if factor is not None)
        return self.put("mul", kept) if len(kept) > 1 else kept[0] if kept else None

    def total(self, exponents: Exponents) -> Operand:
        """The sum of exponents. What is subtracted is made finite: nothing less nothing is nothing, not NaN."""
        added = [self.times(name, count) for name, count in exponents if count > 0]
        result: Operand = ZERO if not added else added[0] if len(added) == 1 else self.put("add", tuple(added))
        for name, count in exponents:
            if count < 0:
                result = self.put("sub", (result, self.times(self.put("finite", (name,)), -count)))
        return result

    def times(self, name: str, count: float) -> Operand:
        return name if count == 1 else self.put("mul", (name, Constant(count)))

    def unwrap(self, pair: Pair, dtype: str = "") -> Operand:
        """The plain value of a pair."""
        if not pair.exponents:
            same = not dtype or not isinstance(pair.x, str) or self.types[pair.x].dtype == dtype
            return ONE if pair.x is None else pair.x if same else self.put("cast", (pair.x,), (), dtype)
        (name, count), *others = pair.exponents
        alone = pair.x is None and not others  # e^-t is infinite where t is -inf: only a difference has to be finite
        total = self.times(name, count) if alone else self.total(pair.exponents)
        exponential = self.put("exp", (total,), (), dtype if pair.x is None else "")
        return exponential if pair.x is None else self.put("mul", (pair.x, exponential), (), dtype)

    def plain(self, operand: Operand) -> Operand:
        pair = self.pairs.get(operand) if isinstance(operand, str) else None
        return operand if pair is None else self.unwrap(pair)

    def pair(self, operand: Operand) -> Pair:
        """An operand as a pair; a plain one has no exponents."""
        found = self.pairs.get(operand) if isinstance(operand, str) else None
        return found if found is not None else Pair(operand, ())

    # Definitions

    def fill(self, graph: Graph) -> None:
        for definition in graph:
            match definition:
                case Apply():
                    self.apply(definition)
                case Map():
                    self.map(definition)
                case Rename():
                    self.rename(definition)
                case Reduce():
                    raise TypeError("reductions of lists are fused into their maps before")
                case _:
                    assert_never(definition)

    def apply(self, node: Apply) -> None:
        self.applies[node.name] = node
        if node.op == "max" or (node.op in STATISTIC and all(arg in self.statistics for arg in node.args)):
            self.statistics.add(node.name)
        result = self.paired(node)
        if result is not None:
            self.pairs[node.name] = result
            return
        args = tuple(self.plain(arg) for arg in node.args)
        self.place(replace(node, args=args), (node.op, args, node.dims, node.dtype))

    def paired(self, node: Apply) -> Pair | None:
        """The pair that the operator gives, or None if its result is plain."""
        if node.op == "exp":
            return Pair(None, self.exponents_of(self.plain(node.args[0])))
        pairs = [self.pair(arg) for arg in node.args]
        if not any(pair.exponents or pair.hollow for pair in pairs):
            return None
        match node.op:
            case "mul":
                exponents: Exponents = ()
                for pair in pairs:
                    exponents = combine(exponents, pair.exponents)
                hollow = any(pair.hollow for pair in pairs)
                return self.simple(node, Pair(self.product(*(pair.x for pair in pairs)), exponents, hollow))
            case "recip":
                return Pair(self.reciprocal(pairs[0]), combine((), pairs[0].exponents, -1))
            case "add" | "maximum" | "minimum":
                return self.aligned(node.op, pairs)
            case "where":
                return self.select(self.plain(node.args[0]), pairs[1], pairs[2])
            case "sqrt":
                return self.power(node.op, (), pairs[0], 0.5)
            case "rsqrt":
                root = self.power("sqrt", (), pairs[0], 0.5)
                return Pair(self.reciprocal(root), combine((), root.exponents, -1))
            case "pow" if isinstance(node.args[1], Constant) and node.args[1].value > 0:
                return self.power(node.op, node.args[1:], pairs[0], node.args[1].value)
            case "abs":
                return self.power(node.op, (), pairs[0], 1)
            case "lt" | "le" | "gt" | "ge" | "eq" | "ne" if pairs[1] == NOTHING:
                x = self.put(node.op, (ONE if pairs[0].x is None else pairs[0].x, ZERO), (), "bool")
                return Pair(self.named(x, self.program.types[node.name]), ())
            case "sum" | "contract":
                return self.summed(node, pairs)
            case "max" | "min":
                return self.extreme(node, pairs[0])
            case "broadcast":
                x = self.put("broadcast", (ONE if pairs[0].x is None else pairs[0].x,), node.dims, node.dtype)
                return Pair(x, pairs[0].exponents, pairs[0].hollow)
            case "cast" if is_float(node.dtype):
                return pairs[0]
            case "log":
                return self.logarithm(node, pairs[0])
            case _:
                return None

    def simple(self, node: Apply, pair: Pair) -> Pair | None:
        """The pair, or None once no exponent is left and the plain value has been defined under the node's name."""
        if pair.exponents or node.name in self.exported:
            return pair
        value = self.named(ONE if pair.x is None else pair.x, self.program.types[node.name])
        return Pair(value, (), pair.hollow)

    def power(self, op: str, rest: tuple[Operand, ...], pair: Pair, exponent: float) -> Pair:
        """An operator that takes x * e^t to f(x) * e^(exponent * t)."""
        scaled = tuple((name, count * exponent) for name, count in pair.exponents)
        return Pair(None if pair.x is None else self.put(op, (pair.x, *rest)), scaled, pair.hollow)

    def exponents_of(self, operand: Operand) -> Exponents:
        """The exponent of e^operand, with subtracted statistics of rows kept apart so that they can cancel."""
        name = self.named(operand, Type("f32", (), ()))
        kept: list[Operand] = []
        removed: list[tuple[str, float]] = []
        for part in terms(name, self.opens, self.applies):
            count = math.prod(factor.value for factor in part if isinstance(factor, Constant))
            factors = tuple(factor for factor in part if not isinstance(factor, Constant))
            if count < 0 and any(factor in self.statistics for factor in factors):
                row = self.product(*(self.plain(factor) for factor in factors))
                removed.append((self.named(ONE if row is None else row, Type("f32", (), ())), count))
            else:
                kept.append(self.product(*(self.plain(factor) for factor in part)) or ONE)
        if not removed:
            return ((name, 1),)
        if not kept:
            return tuple(removed)
        rest = self.named(kept[0] if len(kept) == 1 else self.put("add", tuple(kept)), Type("f32", (), ()))
        if any(set(self.types[row].axes) >= set(self.types[rest].axes) for row, _ in removed):
            return ((name, 1),)
        return combine(((rest, 1),), tuple(removed))

    def opens(self, operand: Operand) -> bool:
        """True for a sum or product that an exponent is taken apart at."""
        return isinstance(operand, str) and operand in self.applies and operand not in self.statistics

    def reciprocal(self, pair: Pair) -> Operand | None:
        """1/x, and 0 where the pair is empty: that one line is "a fully masked row gives zeros"."""
        if pair.x is None:
            return None
        inverse = self.put("recip", (pair.x,))
        if pair.hollow:
            return self.put("where", (self.put("eq", (pair.x, ZERO), (), "bool"), ZERO, inverse))
        if not pair.exponents:
            return inverse
        return self.put("where", (self.put("eq", (self.total(pair.exponents), EMPTY), (), "bool"), ZERO, inverse))

    def aligned(self, op: str, pairs: list[Pair]) -> Pair:
        """A sum, or maximum, of pairs: all brought to the largest exponent first."""
        first = pairs[0].exponents
        if all(dict(pair.exponents) == dict(first) for pair in pairs):
            hollow = all(pair.hollow or pair == NOTHING for pair in pairs)
            return Pair(self.put(op, tuple(ONE if pair.x is None else pair.x for pair in pairs)), first, hollow)
        totals = [self.total(pair.exponents) for pair in pairs]
        largest = self.put("maximum", tuple(dict.fromkeys(totals)))
        finite = self.put("finite", (largest,))
        scaled = []
        for pair, total in zip(pairs, totals, strict=True):
            # The largest is scaled by 1, also where it is infinite and the difference no number.
            same = self.put("eq", (total, largest), (), "bool")
            scale = self.put("where", (same, ONE, self.put("exp", (self.put("sub", (total, finite)),))))
            scaled.append(scale if pair.x is None else self.put("mul", (pair.x, scale)))
        return Pair(self.put(op, tuple(scaled)), ((largest, 1),))

    def select(self, condition: Operand, yes: Pair, no: Pair) -> Pair:
        """A choice between pairs; the number 0 is the empty pair."""
        yes, no = self.emptied(yes), self.emptied(no)
        x = None
        if yes.x is not None or no.x is not None:
            x = self.put("where", (condition, ONE if yes.x is None else yes.x, ONE if no.x is None else no.x))
        if dict(yes.exponents) == dict(no.exponents):
            return Pair(x, yes.exponents)
        totals = (EMPTY if pair is NOTHING else self.total(pair.exponents) for pair in (yes, no))
        return Pair(x, ((self.put("where", (condition, *totals)), 1),))

    def emptied(self, pair: Pair) -> Pair:
        return NOTHING if isinstance(pair.x, Constant) and pair.x.value == 0 else pair

    def summed(self, node: Apply, pairs: list[Pair]) -> Pair:
        """A sum or contraction: each operand is aligned along what is summed."""
        operands = []
        exponents: Exponents = ()
        aligned = False
        for pair, arg in zip(pairs, node.args, strict=True):
            dims = set(node.dims)
            varying = tuple(e for e in pair.exponents if not dims.isdisjoint(self.types[e[0]].axes))
            exponents = combine(exponents, tuple(e for e in pair.exponents if e not in varying))
            x = pair.x
            if varying:
                shift, exponential = self.shifted(varying, node.dims, x)
                x = self.product(x, exponential)
                exponents = combine(exponents, ((shift, 1),))
                aligned = True
            kind = self.types[arg] if isinstance(arg, str) else Type(node.dtype, (), node.dims)
            needed = Type(kind.dtype, (), tuple(axis for axis in kind.axes if axis in dims))
            operands.append(self.named(ONE if x is None else x, needed))
        return Pair(self.put(node.op, tuple(operands), node.dims, node.dtype), exponents, aligned and not exponents)

    def shifted(self, exponents: Exponents, dims: tuple[str, ...], x: Operand | None) -> tuple[str, Operand]:
        """The largest exponent along the dimensions, and e to the difference: one of each per value and dimension.

        Where `x` is 0 the element is nothing, however large its exponent.
        """
        total = self.total(exponents)
        if isinstance(x, str) and not set(dims).isdisjoint(self.types[x].axes):
            total = self.put("where", (self.put("eq", (x, ZERO), (), "bool"), EMPTY, total))
        assert isinstance(total, str)
        along = tuple(dim for dim in dims if dim in self.types[total].axes)
        largest = self.put("max", (total,), along)
        return largest, self.put("exp", (self.put("sub", (total, self.put("finite", (largest,)))),))

    def extreme(self, node: Apply, pair: Pair) -> Pair:
        """The largest or smallest of exponentials: that of the exponents."""
        dims = set(node.dims)
        varying = tuple(e for e in pair.exponents if not dims.isdisjoint(self.types[e[0]].axes))
        staying = tuple(e for e in pair.exponents if e not in varying)
        kind = self.program.types[str(node.args[0])]
        if not varying:
            x = None if pair.x is None else self.put(node.op, (self.named(pair.x, kind),), node.dims, node.dtype)
            return Pair(x, staying, pair.hollow)
        if pair.x is None:
            largest = self.put(node.op, (self.named(self.total(varying), kind),), node.dims)
            return Pair(None, combine(((largest, 1),), staying))
        shift, exponential = self.shifted(varying, node.dims, None)
        scaled = self.named(self.product(pair.x, exponential) or ONE, kind)
        return Pair(self.put(node.op, (scaled,), node.dims, node.dtype), combine(((shift, 1),), staying))

    def logarithm(self, node: Apply, pair: Pair) -> Pair:
        total = self.total(pair.exponents)
        value = total if pair.x is None else self.put("add", (self.put("log", (pair.x,)), total))
        self.statistics.add(node.name)
        return Pair(self.named(value, self.program.types[node.name]), ())

    def rename(self, node: Rename) -> None:
        pair = self.pairs.get(node.source)
        sources = [node.source] if pair is None else [n for n in (pair.x, *dict(pair.exponents)) if isinstance(n, str)]
        now: dict[str, str] = {}
        for source in sources:
            kind = self.types[source]
            if node.old not in kind.axes:
                now[source] = source
                continue
            now[source] = node.name if source == node.source or (pair and source == pair.x) else self.fresh(node.name)
            moved = Rename(now[source], source, node.old, node.new, node.span)
            self.scopes[-1].out.append(moved)
            self.scopes[-1].bound.add(moved.name)
            self.types[moved.name] = renamed_type(self.program, moved, kind)
        if pair is not None:
            x = now[pair.x] if isinstance(pair.x, str) else pair.x
            self.pairs[node.name] = Pair(x, tuple((now[name], count) for name, count in pair.exponents))

    def map(self, node: Map) -> None:
        ports: list[Port] = []
        self.scopes.append(_Scope())
        for port in node.ports:
            if port.source in self.statistics:
                self.statistics.add(port.name)
            pair = self.pairs.get(port.source)
            if pair is None:
                self.port(ports, port, node.dim)
                continue
            x = pair.x
            if isinstance(x, str) and node.dim in self.types[x].lists:
                x = self.port(ports, Port(port.name, x), node.dim)
            exponents = []
            for name, count in pair.exponents:
                listed = node.dim in self.types[name].lists
                exponents.append((self.exponent_port(ports, port, name, node.dim) if listed else name, count))
            self.pairs[port.name] = Pair(x, tuple(exponents), pair.hollow)
        self.fill(node.body)
        outputs = self.outputs(node)
        scope = self.scopes.pop()
        self.scopes[-1].out.append(Map(node.dim, tuple(ports), tuple(scope.out), outputs, node.span))
        self.scopes[-1].bound.update(name for output in outputs for name in output.names)

    def exponent_port(self, ports: list[Port], like: Port, source: str, dim: str) -> str:
        """The element of a list of exponents; values that share the list share the element too."""
        known = next((port.name for port in ports if port.source == source), None)
        return known or self.port(ports, Port(self.fresh(like.name), source), dim)

    def port(self, ports: list[Port], port: Port, dim: str) -> str:
        source = self.types[port.source]
        self.types[port.name] = Type(source.dtype, without(source.lists, dim), source.axes)
        self.scopes[-1].bound.add(port.name)
        ports.append(port)
        return port.name

    def outputs(self, node: Map) -> tuple[Output, ...]:
        result: list[Output] = []
        groups: dict[frozenset[tuple[str, float]], int] = {}
        for output in node.outputs:
            if output.monoid == "max" or (output.monoid is None and output.values[0] in self.statistics):
                self.statistics.update(output.names)
            pair = self.pairs.get(output.values[0])
            if pair is None:
                result.append(output)
                continue
            (name,) = output.names
            kind = self.types[output.values[0]]
            if output.monoid is None and name in self.exported and kind.is_item:
                value = self.named(self.unwrap(pair, kind.dtype), kind)
                result.append(Output((name,), (value,), None))
                continue
            inner = tuple(entry for entry in pair.exponents if entry[0] in self.scopes[-1].bound)
            outer = tuple(entry for entry in pair.exponents if entry not in inner)
            if output.monoid is None:
                result.extend(self.stack(node.dim, name, kind, Pair(pair.x, inner), outer))
            elif output.monoid == "add" and inner:
                key = frozenset(inner)
                x = self.named(ONE if pair.x is None else pair.x, kind)
                self.types[name] = kind
                if key not in groups:
                    shift = self.fresh(name)
                    exponent = self.named(self.total(inner), Type(kind.dtype, (), ()))
                    self.types[shift] = self.types[exponent]
                    groups[key] = len(result)
                    result.append(Output((shift,), (exponent,), "exponent_add"))
                group = result[groups[key]]
                result[groups[key]] = Output((*group.names, name), (*group.values, x), group.monoid)
                self.pairs[name] = Pair(name, combine(((group.names[0], 1),), outer))
            elif output.monoid in ("max", "min") and pair.x is None and inner:
                value = self.named(self.total(inner), kind)
                result.append(Output((name,), (value,), output.monoid))
                self.pairs[name] = Pair(None, combine(((name, 1),), outer))
            else:
                # A sum lets the exponents of the outside through; for others the value has to be whole.
                exact, left = (pair.x, outer) if output.monoid == "add" else (self.unwrap(pair), ())
                result.append(Output((name,), (self.named(ONE if exact is None else exact, kind),), output.monoid))
                if left:
                    self.pairs[name] = Pair(name, left)
        return tuple(result)

    def stack(self, dim: str, name: str, kind: Type, pair: Pair, outer: Exponents) -> list[Output]:
        """A stored pair: a list for each part that the iterations make, but only one for each value."""
        exponents = outer
        x = pair.x
        result: list[Output] = []
        again = name in self.reread
        if again and x is not None and kind.is_item:
            x = self.named(x, kind)
        if isinstance(x, str) and x in self.scopes[-1].bound:
            x = self.stacked(dim, name, x, result)
        listed = tuple(entry for entry in pair.exponents if not self.types[entry[0]].is_item)
        items = tuple(entry for entry in pair.exponents if entry not in listed)
        for inner, count in listed:
            exponents = combine(exponents, ((self.stacked(dim, self.fresh(name), inner, result), count),))
        if items:
            # Not the axes of a list that a map inside has made: what was the same in all its blocks has none of them.
            own = tuple(axis for axis in kind.axes if axis not in kind.lists)
            axes = own if again or (x is None and not listed) else ()
            total = self.named(self.total(items), Type(kind.dtype, (), axes))
            exponents = combine(exponents, ((self.stacked(dim, self.fresh(name), total, result), 1),))
        self.pairs[name] = Pair(x, exponents)
        return result

    def stacked(self, dim: str, name: str, value: str, outputs: list[Output]) -> str:
        """The list of a value over the iterations; of a value that is stacked already, that list."""
        key = ("stack", value)
        known = self.scopes[-1].known
        if key not in known:
            inner = self.types[value]
            self.types[name] = Type(inner.dtype, self.program.ordered((*inner.lists, dim)), inner.axes)
            outputs.append(Output((name,), (value,), None))
            known[key] = name
        return known[key]


NOTHING = Pair(ZERO, ())


def stacked_into(program: Program, names: set[str]) -> set[str]:
    """The names and the values that become part of them, in every body that stacks them."""
    result = set(names)

    def visit(graph: Graph) -> None:
        for definition in graph:
            if isinstance(definition, Map):
                for output in definition.outputs:
                    if output.monoid is None and output.names[0] in result:
                        result.update(output.values)
                visit(definition.body)

    visit(program.body)
    return result
