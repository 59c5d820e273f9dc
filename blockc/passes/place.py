"""A block program on a machine: which tier every tile and list lies in, and the moves between them.

Arguments, lists and tiles between kernels lie in the outermost tier. A tile is computed where its unit leaves results,
and is moved, once, to every tier in which a unit takes it as an operand; a tile of a list is moved from where the
list lies. What is accumulated stays where it is combined. A placement puts lists into faster tiers: those that a kernel
makes and uses, and, as copies (stages), those that it reads several times. Each parallel block is a task of one unit,
which shares nothing with others but the device's tiers; what tasks have in common is repeated by each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from blockc.ir.block import (
    Apply,
    Definition,
    Fresh,
    Graph,
    Map,
    Output,
    Port,
    Program,
    Reduce,
    Rename,
    kernels,
    operand_names,
    walk,
    with_body,
)
from blockc.ir.conditions import readings
from blockc.ir.machine import Machine
from blockc.ir.monoids import MONOIDS, identity
from blockc.ir.parallel import needed, nested_maps
from blockc.ir.schedule import (
    Accumulator,
    Combine,
    Compute,
    Loop,
    Move,
    Schedule,
    Stage,
    Statement,
    Storage,
)
from blockc.passes.epilogues import in_pieces
from blockc.passes.lifetimes import behind_loops, created, releasing
from blockc.passes.needs import Needs
from blockc.passes.units import Units, Unplaceable

Placement = Mapping[str, str]  # the tier of a list, by its name
NOWHERE: Placement = {}


def place(program: Program, machine: Machine, placement: Placement = NOWHERE) -> Schedule:
    """The schedule of a program that is ready to emit. Unplaceable if the machine cannot execute it."""
    return _Placer(without_reductions(program), machine, placement).schedule()


@dataclass(frozen=True, slots=True)
class _Feed:
    """A list that is accumulated tile by tile as it is made: the output that takes it, which component it is, the loop,
    and the storage of what is accumulated."""

    output: Output
    component: int
    dim: str
    storage: Storage


@dataclass(slots=True)
class _Scope:
    """What is known inside a graph: where lists lie, in which tiers there are tiles, what lists made here become
    part of (`targets`) and which of them are accumulated at once (`feeds`). `begun` are components of accumulated lists
    whose tile is there, by the first name of their output, with the tile that they are combined with in the end."""

    lists: dict[str, Storage]
    present: dict[str, set[str]]
    targets: dict[str, tuple[Storage, ...]] = field(default_factory=dict)
    feeds: dict[str, tuple[_Feed, ...]] = field(default_factory=dict)
    in_task: bool = False
    in_loop: bool = False
    begun: dict[tuple[str, int], str] = field(default_factory=dict)

    def inner(self, in_task: bool) -> _Scope:
        present = {name: set(tiers) for name, tiers in self.present.items()}
        return _Scope(dict(self.lists), present, {}, {}, in_task, self.in_loop, dict(self.begun))


@dataclass
class _Placer:
    program: Program
    machine: Machine
    placement: Placement
    units: Units = field(init=False)
    needs: Needs = field(init=False)
    aliases: list[Rename] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.units = Units(self.machine)
        self.needs = Needs(self.program, self.units)

    # The whole program

    def schedule(self) -> Schedule:
        program, home = self.program, self.machine.tiers[0].name
        top = _Scope({}, {})
        for entry in program.inputs:
            kind = program.input_types[entry.name]
            top.lists[entry.name] = Storage(entry.name, home, kind.dtype, kind.lists, kind.axes)
        groups = list(kernels(program))
        for rename in program.body:
            if isinstance(rename, Rename):
                self.aliases.append(rename)
        outputs = {result.value for result in program.outputs}
        lives = self.lives(groups, outputs)
        for name in lives:
            kind = program.types[name]
            tier = home if name in outputs else self.tier_of(name, False)
            top.lists[name] = Storage(name, tier, kind.dtype, kind.lists, kind.axes)
        for rename in self.aliases:
            kind = program.types[rename.name]
            source = top.lists[rename.source]
            top.lists[rename.name] = Storage(rename.name, source.tier, kind.dtype, kind.lists, kind.axes)
        storages = tuple(storage for name, storage in top.lists.items() if name not in {r.name for r in self.aliases})
        made = tuple(self.kernel(group, top, set(lives)) for group in groups)
        return Schedule(program, self.machine, storages, tuple(self.aliases), made, lives)

    def lives(self, groups: list[Graph], outputs: set[str]) -> dict[str, tuple[int, int]]:
        """The values between kernels and outputs, with the kernel that makes them and the last one that uses them."""
        source = {rename.name: rename.source for rename in self.aliases}
        born = {name: at for at, group in enumerate(groups) for node in group for name in node.defines}
        last: dict[str, int] = {}
        for at, group in enumerate(groups):
            for node in group:
                for name in node.uses:
                    while name in source:
                        name = source[name]
                    last[name] = at
        result = {}
        for name, first in born.items():
            until = (
                len(groups)
                if name in outputs or any(alias in outputs for alias, of in source.items() if of == name)
                else last.get(name, first)
            )
            if until > first or not self.program.types[name].is_item:
                result[name] = first, until
        return result

    def tier_of(self, name: str, in_task: bool) -> str:
        """The tier of a list that the program makes."""
        tier = self.placement.get(name, self.machine.tiers[0].name)
        if self.units.tiers[tier].scope == "unit" and not in_task:
            raise Unplaceable(f"`{name}` is shared by the units, and cannot lie in {tier}, of which each has its own")
        return tier

    # One kernel

    def kernel(self, group: Graph, top: _Scope, kept: set[str]) -> tuple[Statement, ...]:
        self.needs = Needs(self.program, self.units)
        self.needs.graph(group, ())
        scope = top.inner(False)
        statements: list[Statement] = []
        for name in sorted({name for node in group for name in node.uses} & scope.lists.keys()):
            if name in self.placement and not self.program.types[name].is_item and name not in kept:
                statements += self.stage(name, scope)
        parallel = [node for node in group if isinstance(node, Map) and not node.is_loop]
        before = tuple(node for node in group if isinstance(node, Apply))
        inside = {node.defines: needed(node, before) for node in parallel}
        for node in sorted(group, key=lambda node: node not in parallel):  # tasks have computed for themselves
            if isinstance(node, Apply):
                outside = any(node.name in other.uses for other in group if other.defines not in inside)
                if node.name not in kept and not outside and any(node in chain for chain in inside.values()):
                    continue  # the tasks compute it
            scope.targets = {name: (scope.lists[name],) for name in node.defines if name in scope.lists}
            if isinstance(node, Map) and node.defines in inside:
                statements += self.task(node, inside[node.defines], scope)
            else:
                statements += self.load_items(node.uses, scope)
                statements += self.definition(node, scope)
            for name in node.defines:
                if name in kept and self.program.types[name].is_item:
                    statements.append(self.store(name, scope, scope.lists[name]))
        return releasing(self.program, behind_loops(statements))

    def load_items(self, names: Iterable[str], scope: _Scope) -> list[Statement]:
        """Moves of tiles of the top graph that are stored and not there yet."""
        moves: list[Statement] = []
        for name in sorted(names):
            if self.program.types[name].is_item and name not in scope.present:
                moves += self.spread(name, scope, scope.lists[name])
        return moves

    def task(self, node: Map, prologue: tuple[Apply, ...], scope: _Scope) -> list[Statement]:
        """Parallel loops around one body, which does for itself whatever stands between them."""
        chain = nested_maps(self.program, node)
        outermost = scope.targets
        inner = scope.inner(True)
        inner.present = {}
        body: list[Statement] = []
        outer = {name for apply in prologue for name in apply.uses}.union(*(link.captures for link in chain))
        defined = {apply.name for apply in prologue}
        wanted = {name for name in outer - defined if name in scope.lists}
        body += self.load_items(wanted, inner)
        for apply in prologue:
            body += self.definition(apply, inner)
        targets = outermost
        for link in chain:
            body += self.ports(link, inner)
            parts: dict[str, tuple[Storage, ...]] = {}
            for out in link.outputs:
                parts[out.values[0]] = (*parts.get(out.values[0], ()), *targets.get(out.names[0], ()))
            targets = parts
            for other in link.body:
                if link is not chain[-1] and isinstance(other, Apply):
                    body += self.definition(other, inner)
        inner.targets = targets
        body += self.body(chain[-1], inner)
        statements = releasing(self.program, in_pieces(self.program, self.machine, behind_loops(body)))
        for link in reversed(chain):
            statements = (Loop(link.dim, True, (), (), None, (), statements),)
        return list(statements)

    # Graphs

    def body(self, node: Map, scope: _Scope) -> list[Statement]:
        """The definitions of a map, and the stores of what it stacks. Its ports have been taken care of."""
        values = [out.values[0] for out in node.outputs if out.monoid is None]
        items = [value for value in values if self.program.types[value].is_item]
        fed: dict[Output, dict[int, tuple[str, _Feed]]] = {}
        for value in items:
            for feed in scope.feeds.get(value, ()):
                fed.setdefault(feed.output, {})[feed.component] = value, feed
        statements: list[Statement] = []
        ahead = together(node, self.program)
        for value in values:  # what further maps accumulate together with some of these
            for feed in scope.feeds.get(value, ()) if value not in items else ():
                parts = fed.get(feed.output, {})
                for part in set(MONOIDS[feed.output.monoid or "add"].group(feed.component)) & parts.keys():
                    key = feed.output.names[0], part
                    if key not in scope.begun:
                        scope.begun[key] = parts[part][0]
                        statements.append(self.load(parts[part][1]))
                    ahead.setdefault(value, []).append(parts[part][0])
        for definition in in_order(node.body, ahead):
            statements += self.definition(definition, scope)
        for output, parts in fed.items():
            statements += self.feed(output, parts, scope)
        for value in dict.fromkeys(items):
            statements += [self.store(value, scope, target) for target in scope.targets.get(value, ())]
        return statements

    def definition(self, node: Definition, scope: _Scope) -> list[Statement]:
        match node:
            case Apply():
                return self.compute(node, scope)
            case Map():
                return self.loop(node, scope)
        raise Unplaceable("a list is read under another dimension inside a kernel")

    def compute(self, node: Apply, scope: _Scope) -> list[Statement]:
        assigned = self.needs.assigned[node.name]
        names = tuple(operand_names(node.args))
        reads = tuple(zip(names, assigned.operands, strict=True))
        into = self.needs.into.get(node.name)
        tier = self.needs.accumulated[into] if into else assigned.result
        statement = Compute(node, assigned.unit.name, assigned.operation, assigned.rated, reads, tier, into=into)
        if into:
            return [statement]
        scope.present[node.name] = {tier}
        return [statement, *self.spread(node.name, scope, None)]

    def ports(self, node: Map, scope: _Scope) -> list[Statement]:
        """Where the ports of a map lie, with moves of tiles into the tiers that need them."""
        statements: list[Statement] = []
        first = readings(node.where)
        for port in node.ports:
            scope.lists[port.name] = scope.lists[port.source]
            if not self.program.types[port.name].is_item:
                if port.name in self.placement:
                    statements += self.stage(port.name, scope)
            elif port.name not in first:
                statements += self.spread(port.name, scope, scope.lists[port.name])
        return statements

    def stage(self, name: str, scope: _Scope) -> list[Statement]:
        """A list is copied into its tier, if it is not there."""
        tier = self.placement[name]
        source = scope.lists[name]
        if self.units.tiers[tier].scope == "unit" and not scope.in_task:
            raise Unplaceable(f"`{name}` is read by all units, and cannot lie in {tier}, of which each has its own")
        if source.tier == tier:
            return []
        kind = self.program.types[name]
        storage = Storage(f"{name}@{tier}", tier, kind.dtype, kind.lists, kind.axes, source.name)
        scope.lists[name] = storage
        return [Stage(storage, self.units.path([source.tier], tier), scope.in_loop)]

    def loop(self, node: Map, scope: _Scope) -> list[Statement]:
        """A map inside of a task, or one that accumulates."""
        types = self.program.types
        inner = scope.inner(scope.in_task)
        inner.in_loop = True
        storages: list[Storage] = []
        accumulators: list[Accumulator] = []
        for output in node.outputs:
            for component, (name, value) in enumerate(zip(output.names, output.values, strict=True)):
                if types[name].is_item:
                    _, tier = self.units.vector
                    tier = self.needs.accumulated.get(name, tier)
                    accumulators.append(Accumulator(name, tier, identity(output.monoid or "add", component)))
                    inner.present[name] = {tier}
                    continue
                if output.monoid is None and name in scope.feeds:
                    inner.feeds[value] = (*inner.feeds.get(value, ()), *scope.feeds[name])
                targets = scope.targets.get(name, ())
                if output.monoid is not None or targets or name in self.read:
                    if not targets:
                        targets = (self.storage(name, scope),)
                        storages += targets
                    scope.lists[name] = targets[0]
                    if output.monoid is None:
                        inner.targets[value] = (*inner.targets.get(value, ()), *targets)
                    elif len(targets) > 1:
                        raise Unplaceable(f"`{name}` is accumulated and becomes part of several lists")
                    else:
                        feed = _Feed(output, component, node.dim, targets[0])
                        inner.feeds[value] = (*inner.feeds.get(value, ()), feed)
        guard: list[Statement] = []
        body = self.ports(node, inner)
        for port in node.ports:
            if port.name in readings(node.where):
                guard += self.spread(port.name, inner, inner.lists[port.name])
        body += self.body(node, inner)
        unit, tier = self.units.vector
        for output in node.outputs:
            parts = tuple(at for at, name in enumerate(output.names) if types[name].is_item)
            if output.monoid is not None and parts and output.names[0] not in self.needs.accumulated:
                rated = self.rated(output.names)
                body.append(Combine(output.names, output.values, output.monoid, parts, unit.name, rated, tier))
        moves = tuple(move for move in guard if isinstance(move, Move))
        made = {copy for move in moves for copy in created(move)}
        statements = releasing(self.program, behind_loops(body), made)
        result: list[Statement] = [
            Loop(node.dim, False, tuple(storages), tuple(accumulators), node.where, moves, statements)
        ]
        for accumulator in accumulators:
            scope.present[accumulator.name] = {accumulator.tier}
            result += self.spread(accumulator.name, scope, None)
        return result

    @cached_property
    def read(self) -> frozenset[str]:
        """The lists that something reads as lists."""
        return frozenset(_sources(self.program.body))

    def storage(self, name: str, scope: _Scope) -> Storage:
        kind = self.program.types[name]
        tier = self.tier_of(name, scope.in_task)
        return Storage(f"{name}@{tier}", tier, kind.dtype, kind.lists, kind.axes)

    def rated(self, names: Iterable[str]) -> str:
        """The type of the vector unit's rate for accumulating."""
        return self.units.vector_type([self.program.types[name].dtype for name in names])

    def load(self, feed: _Feed) -> Move:
        """The move of the tile of an accumulated list to where it is combined."""
        name, tier = feed.output.names[feed.component], self.units.vector[1]
        path, kind = self.units.path([feed.storage.tier], tier), self.program.types[name]
        number = identity(feed.output.monoid or "add", feed.component)
        return Move(name, path, kind.dtype, kind.axes, feed.storage.name, None, True, feed.dim, number)

    def feed(self, output: Output, parts: Mapping[int, tuple[str, _Feed]], scope: _Scope) -> list[Statement]:
        """Tiles, by the components that they are, are combined with those of accumulated lists."""
        unit, tier = self.units.vector
        types, monoid = self.program.types, output.monoid or "add"
        before: list[Statement] = []
        after: list[Statement] = []
        values = list(output.values)
        for part in range(len(values)):
            begun = scope.begun.get((output.names[0], part))
            values[part] = begun or (parts[part][0] if part in parts else values[part])
        for part, (_, feed) in parts.items():
            name, kind = output.names[part], types[output.names[part]]
            for acting in MONOIDS[monoid].group(part):
                there = acting in parts or (output.names[0], acting) in scope.begun
                if not there and not types[output.names[acting]].is_item:
                    raise Unplaceable(
                        f"`{output.names[acting]}` and `{name}` are accumulated together, but not made so"
                    )
            if (output.names[0], part) not in scope.begun:
                before.append(self.load(feed))
            back = self.units.path([tier], feed.storage.tier)
            after.append(Move(name, back, kind.dtype, kind.axes, None, feed.storage.name))
        rated = self.rated(output.names)
        combine = Combine(output.names, tuple(values), monoid, tuple(parts), unit.name, rated, tier)
        return [*before, combine, *after]

    def spread(self, name: str, scope: _Scope, source: Storage | None) -> list[Statement]:
        """Moves of a tile into every tier that needs it, the nearest first: from a storage, or from where it is."""
        present = scope.present.setdefault(name, set())
        kind = self.program.types[name]
        wanted = self.needs.tiers.get(name, {})
        start = [source.tier] if source else sorted(present)

        def far(tier: str) -> tuple[float, str]:
            return min(self.units.distance(place, tier) for place in start), tier

        moves: list[Statement] = []
        exact = set(present)  # where it lies in its own type
        for tier in sorted(wanted.keys() - present, key=far):
            path = self.units.path([*start, *sorted(exact)], tier)
            stored = source if source and path[0] not in present else None
            dtype = kind.dtype if stored else wanted[tier]
            moves.append(Move(name, path, dtype, kind.axes, stored.name if stored else None, None, stored is not None))
            present.add(tier)
            if dtype == kind.dtype:
                exact.add(tier)
        return moves

    def store(self, name: str, scope: _Scope, target: Storage) -> Move:
        """The move of a tile into a storage."""
        kind = self.program.types[name]
        path = self.units.path(sorted(scope.present[name]), target.tier)
        return Move(name, path, kind.dtype, kind.axes, None, target.name)


def without_reductions(program: Program) -> Program:
    """The program with reductions of lists as the loops that they are."""
    fresh = Fresh(program)

    def graph(definitions: Graph) -> Graph:
        return tuple(map(definition, definitions))

    def definition(node: Definition) -> Definition:
        if isinstance(node, Map):
            return replace(node, body=graph(node.body))
        if isinstance(node, Reduce):
            ports = tuple(Port(fresh(source), source) for source in node.sources)
            output = Output(node.names, tuple(port.name for port in ports), node.monoid)
            return Map(node.dim, ports, (), (output,), node.span)
        return node

    if not any(isinstance(node, Reduce) for node in walk(program.body)):
        return program
    return with_body(program, graph(program.body))


def together(node: Map, program: Program) -> dict[str, list[str]]:
    """The lists of a map's body that it accumulates, with the tiles that are accumulated together with theirs."""
    result: dict[str, list[str]] = {}
    for output in node.outputs:
        for part, value in enumerate(output.values):
            if output.monoid is not None and not program.types[value].is_item:
                acting = (output.values[other] for other in MONOIDS[output.monoid].group(part))
                result.setdefault(value, []).extend(name for name in acting if program.types[name].is_item)
    return result


def in_order(graph: Graph, ahead: Mapping[str, list[str]]) -> Graph:
    """The definitions of a graph, in an order in which those of the names in `ahead` come before that of their key."""
    if not ahead:
        return graph
    done: dict[tuple[str, ...], Definition] = {}
    begun: set[tuple[str, ...]] = set()

    def visit(definition: Definition) -> None:
        names = definition.defines
        if names in done:
            return
        if names in begun:
            raise Unplaceable(f"`{names[0]}` is accumulated together with what is computed from it")
        begun.add(names)
        wanted = definition.uses.union(*(ahead.get(name, ()) for name in names))
        for other in graph:
            if not wanted.isdisjoint(other.defines):
                visit(other)
        done[names] = definition

    for definition in graph:
        visit(definition)
    return tuple(done.values())


def _sources(graph: Graph) -> Iterator[str]:
    """The lists that something reads."""
    for node in graph:
        if isinstance(node, Map):
            yield from (port.source for port in node.ports)
            yield from _sources(node.body)
        elif isinstance(node, Rename):
            yield node.source
