"""Safe arithmetic: the rules work on exact reals, here exponentials learn not to overflow (design, section 7).

A value made by `exp` is carried as an exponent pair (x, t), meaning x * e^t. Products add exponents, reciprocals negate
them, equal ones cancel; a sum aligns to the largest exponent along what it sums; a pair is unwrapped only at an output
or before an operator that has no rule. An accumulated pair becomes two outputs of the monoid `exponent_add`. Nothing
here looks for a softmax: the online softmax of flash attention is what these rules make of `sum(exp(s) * v)`.

Sources: Milakov and Gimelshein 2018 (online softmax); Dekel 2025, section 4 (safety after fusion).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import assert_never

from blockc.ir.block import (
    Apply,
    Graph,
    Map,
    Output,
    Port,
    Program,
    Reduce,
    Rename,
    Type,
    renamed_type,
    stacked_type,
    walk,
    with_body,
    without,
)
from blockc.ir.decisions import Match
from blockc.ir.monoids import MONOIDS
from blockc.ir.verify import verify
from blockc.passes.exponent_pairs import ONE, Builder, Exponents, Pair, Scope, combine
from blockc.passes.pair_rules import exponents_of, largest_of_some, multiple, paired
from blockc.passes.prune import prune
from blockc.passes.rules import fuse_map_with_reduce

STATISTIC = frozenset({"maximum", "minimum", "cast", "broadcast"})  # of statistics, these make statistics


WITH_EXPONENT = {"shift_1": "pair_shift_1", "shift_2": "pair_shift_2"}  # sums with a pivot whose weights are pairs
OF_PAIRS = {"shift_1": "pivot_pair_1", "shift_2": "pivot_pair_2"}  # and those of values that are pairs themselves


def stabilize(program: Program, bounded: frozenset[str] = frozenset()) -> Program:
    """The program with exponent pairs in place of exponentials: the same in exact arithmetic, and safe in floats.

    `bounded` names exponentials that are safe as they are.
    """
    for definition in list(walk(program.body)):
        if isinstance(definition, Reduce):
            program = _with_reduce_fused(program, definition)
    if not any(isinstance(node, Apply) and node.op == "exp" for node in walk(program.body)):
        return program
    exported = stacked_into(program, {result.value for result in program.outputs})
    reread = stacked_into(program, {node.source for node in program.body if isinstance(node, Rename)})
    added = stacked_into(program, accumulated(program, "add"))
    compared = stacked_into(program, accumulated(program, "max", "min"))
    numbers = read_as_numbers(program)
    stable = prune(_Stabilizer(Builder(program, exported, bounded, compared), reread, added, numbers).run())
    verify(stable)
    return stable


def _with_reduce_fused(program: Program, reduce: Reduce) -> Program:
    for found in fuse_map_with_reduce.match(program, None):
        if isinstance(found, Match) and found.at == reduce.names:
            return fuse_map_with_reduce.rewrite(program, found)
    return program


@dataclass(slots=True)
class _Stabilizer:
    build: Builder
    reread: frozenset[str]  # what is read again under another dimension: its parts need all axes
    added: frozenset[str]  # the lists that are added up, and those that become part of them
    numbers: frozenset[str]  # what is read by more than exponentials
    stored: set[str] = field(default_factory=set)  # pairs that are also lists of numbers, under their own name

    def run(self) -> Program:
        self.build.scopes.append(Scope())
        self.fill(self.build.program.body)
        outputs = []
        for result in self.build.program.outputs:
            pair = self.build.pairs.get(result.value)
            if pair is not None and result.value not in self.stored:
                kind = self.build.types[result.value]
                value = self.build.named(self.build.unwrap(pair, kind.dtype), kind)
                result = replace(result, value=value)
            outputs.append(result)
        return replace(with_body(self.build.program, tuple(self.build.scopes.pop().out)), outputs=tuple(outputs))

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
        self.build.applies[node.name] = node
        if node.op == "max" or (node.op in STATISTIC and all(arg in self.build.statistics for arg in node.args)):
            self.build.statistics.add(node.name)
        multiple(self.build, node)
        result = paired(self.build, node)
        if result is not None:
            self.build.pairs[node.name] = result
            return
        args = tuple(self.build.plain(arg) for arg in node.args)
        self.build.place(replace(node, args=args), (node.op, args, node.dims, node.dtype))

    def rename(self, node: Rename) -> None:
        pair = self.build.pairs.get(node.source)
        sources = [node.source] if pair is None else [n for n in (pair.x, *dict(pair.exponents)) if isinstance(n, str)]
        now: dict[str, str] = {}
        for source in sources:
            kind = self.build.types[source]
            if node.old not in kind.axes:
                now[source] = source
                continue
            now[source] = (
                node.name if source == node.source or (pair and source == pair.x) else self.build.fresh(node.name)
            )
            moved = Rename(now[source], source, node.old, node.new, node.span)
            self.build.scopes[-1].out.append(moved)
            self.build.scopes[-1].bound.add(moved.name)
            self.build.types[moved.name] = renamed_type(self.build.program, moved, kind)
        if pair is not None:
            x = now[pair.x] if isinstance(pair.x, str) else pair.x
            self.build.pairs[node.name] = Pair(x, tuple((now[name], count) for name, count in pair.exponents))

    def map(self, node: Map) -> None:
        ports: list[Port] = []
        self.build.scopes.append(Scope())
        for port in node.ports:
            if port.source in self.build.statistics:
                self.build.statistics.add(port.name)
            pair = self.build.pairs.get(port.source)
            if pair is None:
                self.port(ports, port, node.dim)
                continue
            x = pair.x
            if isinstance(x, str) and node.dim in self.build.types[x].lists:
                x = self.port(ports, Port(port.name, x), node.dim)
            exponents, now = [], {}
            for name, count in pair.exponents:
                listed = node.dim in self.build.types[name].lists
                now[name] = self.exponent_port(ports, port, name, node.dim) if listed else name
                exponents.append((now[name], count))
            found = Pair(x, tuple(exponents), pair.hollow)
            if port.source in self.build.extremes:
                found = self.extreme(port.name, now.get(port.source, ""), self.build.extremes[port.source], found)
            self.build.pairs[port.name] = found
        self.fill(node.body)
        outputs = self.outputs(node)
        scope = self.build.scopes.pop()
        self.build.scopes[-1].out.append(Map(node.dim, tuple(ports), tuple(scope.out), outputs, node.span))
        self.build.scopes[-1].bound.update(name for output in outputs for name in output.names)
        for name in (name for output in outputs for name in output.names if name in self.build.extremes):
            self.build.pairs[name] = self.extreme(name, name, self.build.extremes[name], self.build.pairs[name])

    def extreme(self, name: str, best: str, dims: tuple[str, ...], pair: Pair) -> Pair:
        """The largest of exponentials along dimensions that may be empty; of a list, that is for who reads an item."""
        if self.build.program.types[name].is_item:
            return largest_of_some(self.build, name, best, dims, pair)
        self.build.extremes[name] = dims
        return pair

    def exponent_port(self, ports: list[Port], like: Port, source: str, dim: str) -> str:
        """The element of a list of exponents; values that share the list share the element too."""
        known = next((port.name for port in ports if port.source == source), None)
        return known or self.port(ports, Port(self.build.fresh(like.name), source), dim)

    def port(self, ports: list[Port], port: Port, dim: str) -> str:
        source = self.build.types[port.source]
        self.build.types[port.name] = Type(source.dtype, without(source.lists, dim), source.axes)
        self.build.scopes[-1].bound.add(port.name)
        self.build.element(port.name, port.source, dim)
        ports.append(port)
        return port.name

    def outputs(self, node: Map) -> tuple[Output, ...]:
        result: list[Output] = []
        groups: dict[frozenset[tuple[str, float]], int] = {}
        for output in node.outputs:
            if output.monoid == "max" or (output.monoid is None and output.values[0] in self.build.statistics):
                self.build.statistics.update(output.names)
            output = self.safe_difference(output)
            if output.monoid in WITH_EXPONENT:
                pair = self.build.pairs.get(output.values[0])
                some = pair is not None and pair.exponents
                result.extend(self.pivoted(node.dim, output) if some else self.shifted(node.dim, output))
                continue
            if output.monoid is not None and MONOIDS[output.monoid].has_scalar:
                output = replace(output, values=tuple(map(self.number, output.values)))
            pair = self.build.pairs.get(output.values[0])
            if pair is None:
                for result_name, value in zip(output.names, output.values, strict=True):
                    self.build.combined(result_name, value, output.monoid, node.dim)
                result.append(output)
                continue
            (name,) = output.names
            kind = self.build.types[output.values[0]]
            inner = tuple(entry for entry in pair.exponents if entry[0] in self.build.scopes[-1].bound)
            outer = tuple(entry for entry in pair.exponents if entry not in inner)
            if output.monoid is None and name in self.build.exported:
                result.extend(self.stack_number(node.dim, output, pair, inner, outer))
            elif output.monoid is None and name in self.added | self.build.compared:
                result.extend(self.stack_for_loop(node.dim, name, kind, pair, inner))
            elif output.monoid is None:
                result.extend(self.stack(node.dim, name, kind, Pair(pair.x, inner), outer))
            elif output.monoid == "add" and inner:
                key = frozenset(inner)
                x = self.build.named(ONE if pair.x is None else pair.x, kind)
                self.build.types[name] = kind
                if key not in groups:
                    shift = self.build.fresh(name)
                    exponent = self.build.named(self.build.total(inner), Type(kind.dtype, (), ()))
                    self.build.types[shift] = self.build.types[exponent]
                    self.build.combined(shift, exponent, "max", node.dim)
                    groups[key] = len(result)
                    result.append(Output((shift,), (exponent,), "exponent_add"))
                group = result[groups[key]]
                result[groups[key]] = Output((*group.names, name), (*group.values, x), group.monoid)
                self.build.pairs[name] = Pair(name, combine(((group.names[0], 1),), outer))
            elif output.monoid in ("max", "min") and pair.x is None and inner:
                value = self.build.named(self.build.total(inner), kind)
                result.append(Output((name,), (value,), output.monoid))
                self.build.pairs[name] = Pair(None, combine(((name, 1),), outer))
                if output.monoid == "max":
                    base = self.build.program.chunks.get(node.dim, node.dim)
                    self.build.extremes[name] = (*self.build.extremes.get(output.values[0], ()), base)
            else:
                # A sum lets the exponents of the outside through; for others the value has to be whole.
                exact, left = (pair.x, outer) if output.monoid == "add" else (self.build.unwrap(pair), ())
                result.append(
                    Output((name,), (self.build.named(ONE if exact is None else exact, kind),), output.monoid)
                )
                if left:
                    self.build.pairs[name] = Pair(name, left)
        return tuple(result)

    def safe_difference(self, output: Output) -> Output:
        """A stored exponent, with what is subtracted from it made finite: it is read by exponentials only."""
        value = output.values[0]
        if output.monoid is not None or output.names[0] in self.numbers or value not in self.build.applies:
            return output
        pair = self.build.pairs.get(value)
        kind = self.build.types[value]
        if not kind.is_item or (pair is not None and pair.exponents):
            return output
        total = self.build.total(exponents_of(self.build, value))
        return replace(output, values=(self.build.named(total, kind),))

    def number(self, name: str) -> str:
        """The value as a plain number."""
        return self.build.named(self.build.plain(name), self.build.types[name])

    def shifted(self, dim: str, output: Output) -> Iterator[Output]:
        """The coefficients of sums with a pivot; those that are pairs get one exponent for all powers."""
        assert output.monoid is not None
        step = MONOIDS[output.monoid].degree + 1
        scalar = self.number(output.values[0])
        plain = Output(output.names[:1], (scalar,), output.monoid)
        paired_groups: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        for start in range(1, len(output.names), step):
            names, values = output.names[start : start + step], output.values[start : start + step]
            if any(value in self.build.pairs for value in values):
                paired_groups.append((names, values))
            else:
                plain = Output((*plain.names, *names), (*plain.values, *values), output.monoid)
        if len(plain.names) > 1:
            yield plain
        for number, (names, values) in enumerate(paired_groups):
            largest, numbers = self.build.aligned(values)
            first = number == 0 and len(plain.names) == 1
            pivot = output.names[0] if first else self.build.fresh(output.names[0])
            exponent = self.build.fresh(names[0])
            self.build.types[exponent] = self.build.types[largest]
            self.build.combined(exponent, largest, "max", dim)
            for name, value in zip(names, values, strict=True):
                self.build.types[name] = self.build.types[value]
                self.build.pairs[name] = Pair(name, ((exponent, 1),))
            yield Output((exponent, pivot, *names), (largest, scalar, *numbers), WITH_EXPONENT[output.monoid])

    def pivoted(self, dim: str, output: Output) -> Iterator[Output]:
        """The coefficients of sums with a pivot that is a pair: each power has an exponent of its own."""
        assert output.monoid is not None
        build, step = self.build, MONOIDS[output.monoid].degree + 1
        for start in range(1, len(output.names), step):
            names, values = output.names[start : start + step], output.values[start : start + step]
            pivot = output.names[0] if start == 1 else build.fresh(output.names[0])
            pairs = [build.pair(value) for value in (output.values[0], *values)]
            kinds = [build.types[value] for value in (output.values[0], *values)]
            numbers = [build.named(ONE if p.x is None else p.x, kind) for p, kind in zip(pairs, kinds, strict=True)]
            totals = [build.named(build.total(pair.exponents), Type(kinds[0].dtype, (), ())) for pair in pairs]
            axes = set(build.types[totals[0]].axes)
            for power in reversed(range(1, step)):  # what a coefficient gets from that of the next power
                axes.update(build.types[totals[power + 1]].axes)
                totals[power] = build.named(totals[power], Type(kinds[0].dtype, (), build.program.ordered(axes)))
            exponents = [build.fresh(name) for name in (pivot, *names)]
            for exponent, total in zip(exponents, totals, strict=True):
                build.types[exponent] = build.types[total]
            build.combined(exponents[0], totals[0], "max", dim)
            for name, number, exponent in zip((pivot, *names), numbers, exponents, strict=True):
                build.types[name] = build.types[number]
                build.pairs[name] = Pair(name, ((exponent, 1),))
            yield Output((*exponents, pivot, *names), (*totals, *numbers), OF_PAIRS[output.monoid])

    def stack_number(
        self, dim: str, output: Output, pair: Pair, inner: Exponents, outer: Exponents
    ) -> Iterator[Output]:
        """A stored output of the program: the number itself, and the pair for what reads it again."""
        (name,), (value,) = output.names, output.values
        kind = self.build.types[value]
        yield Output(
            (name,), (self.build.named(self.build.unwrap(pair, kind.dtype), kind) if kind.is_item else value,), None
        )
        if pair.exponents:
            again = self.build.fresh(name)
            if name in self.reread:
                self.reread |= {again}
            yield from self.stack(dim, again, kind, Pair(pair.x, inner), outer)
            self.build.pairs[name] = self.build.pairs.pop(again)
            self.stored.add(name)

    def stack(self, dim: str, name: str, kind: Type, pair: Pair, outer: Exponents) -> list[Output]:
        """A stored pair: a list for each part that the iterations make, but only one for each value."""
        exponents = outer
        x = pair.x
        result: list[Output] = []
        again = name in self.reread
        if again and x is not None and kind.is_item:
            x = self.build.named(x, kind)
        if isinstance(x, str) and x in self.build.scopes[-1].bound:
            x = self.stacked(dim, name, x, result)
        listed = tuple(entry for entry in pair.exponents if not self.build.types[entry[0]].is_item)
        items = tuple(entry for entry in pair.exponents if entry not in listed)
        for inner, count in listed:
            exponents = combine(exponents, ((self.stacked(dim, self.build.fresh(name), inner, result), count),))
        if items:
            # Not the axes of a list that a map inside has made: what was the same in all its blocks has none of them.
            own = tuple(axis for axis in kind.axes if axis not in kind.lists)
            axes = own if again or (x is None and not listed) else ()
            total = self.build.named(self.build.total(items), Type(kind.dtype, (), axes))
            exponents = combine(exponents, ((self.stacked(dim, self.build.fresh(name), total, result), 1),))
        self.build.pairs[name] = Pair(x, exponents)
        return result

    def stack_for_loop(self, dim: str, name: str, kind: Type, pair: Pair, inner: Exponents) -> list[Output]:
        """A list of pairs that a loop accumulates: one exponent for each element, or for all if none is made here."""
        result: list[Output] = []
        if name in self.build.compared and (pair.x is not None or name in self.added or not inner):
            # The largest of such pairs is not known from the exponents.
            self.stacked(dim, name, self.build.named(self.build.unwrap(pair, kind.dtype), kind), result)
            return result
        x: str | None = None
        if name in self.added:
            whole = self.build.named(ONE if pair.x is None else pair.x, kind) if kind.is_item else str(pair.x)
            x = self.stacked(dim, name, whole, result)
        exponents = pair.exponents
        if inner:
            listed = [exponent for exponent, _ in exponents if not self.build.types[exponent].is_item]
            axes = tuple(axis for axis in kind.axes if axis == dim)
            total = listed[0] if listed else self.build.named(self.build.total(exponents), Type(kind.dtype, (), axes))
            exponents = ((self.stacked(dim, self.build.fresh(name), total, result), 1),)
        self.build.pairs[name] = Pair(x, exponents)
        return result

    def stacked(self, dim: str, name: str, value: str, outputs: list[Output]) -> str:
        """The list of a value over the iterations; of a value that is stacked already, that list."""
        key = ("stack", value)
        known = self.build.scopes[-1].known
        if key not in known:
            inner = self.build.types[value]
            self.build.types[name] = stacked_type(self.build.program, inner, dim)
            outputs.append(Output((name,), (value,), None))
            self.build.combined(name, value, None, dim)
            known[key] = name
        return known[key]


def accumulated(program: Program, *monoids: str) -> set[str]:
    """The values that maps accumulate by one of the monoids."""
    maps = [node for node in walk(program.body) if isinstance(node, Map)]
    return {value for node in maps for out in node.outputs if out.monoid in monoids for value in out.values}


def stacked_into(program: Program, names: Collection[str]) -> frozenset[str]:
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
    return frozenset(result)


def read_as_numbers(program: Program) -> frozenset[str]:
    """The names that something but an exponential reads, also as an element or a list of them."""
    made_of: dict[str, str] = {}
    found = {result.value for result in program.outputs}
    for node in walk(program.body):
        match node:
            case Map():
                made_of.update((port.name, port.source) for port in node.ports)
                for output in node.outputs:
                    if output.monoid is None:
                        made_of[output.names[0]] = output.values[0]
                    else:
                        found.update(output.values)
            case Apply(op="exp"):
                pass
            case _:
                found.update(node.uses)
    pending = list(found)
    while pending:
        source = made_of.get(pending.pop())
        if source is not None and source not in found:
            found.add(source)
            pending.append(source)
    return frozenset(found)
