"""From when and until when tiles and storages of a schedule are needed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from blockc.ir.block import Program
from blockc.ir.monoids import MONOIDS
from blockc.ir.ops import OPERATORS
from blockc.ir.schedule import Combine, Compute, Copy, Loop, Move, Pieces, Stage, Statement


def behind_loops(statements: Iterable[Statement]) -> list[Statement]:
    """The statements with what is loaded directly ahead of its first use, where a loop that does not use it comes
    before that: it takes no space meanwhile."""
    result = list(statements)
    for at in reversed(range(len(result))):
        moved = result[at]
        loads = moved.source if isinstance(moved, Move) else moved.storage.origin if isinstance(moved, Stage) else None
        if loads is None:
            continue
        made = set(created(moved))
        made |= {(name, "") for name, _ in made}
        end = at + 1
        while end < len(result) and made.isdisjoint(touched(result[end])) and loads not in _changed(result[end]):
            end += 1
        if any(isinstance(passed, Loop) for passed in result[at + 1 : end]):
            result[at:end] = [*result[at + 1 : end], moved]
    return result


def _changed(statement: Statement) -> frozenset[str]:
    """The storages that a statement stores to."""
    if isinstance(statement, Loop | Pieces):
        return frozenset().union(*map(_changed, statement.body))
    return frozenset((statement.target,)) if isinstance(statement, Move) and statement.target else frozenset()


def releasing(program: Program, statements: list[Statement], more: Iterable[Copy] = ()) -> tuple[Statement, ...]:
    """The statements, each with the tiles and storages of this graph (and `more`) that nothing after it needs."""
    last: dict[Copy, int] = dict.fromkeys(more, 0)
    for at, statement in enumerate(statements):
        used = set(touched(statement))
        stored = {name for name, tier in used if not tier}
        for copy in last:
            if copy in used or copy[0] in stored:
                last[copy] = at
        last.update((copy, at) for copy in created(statement))
    ends: list[tuple[Copy, ...]] = [()] * len(statements)
    for copy, at in last.items():
        ends[at] = (*ends[at], copy)
    lasting = {*more, *(copy for statement in statements for copy in _in_place(statement))}
    return tuple(
        _reusing(program, replace(statement, releases=end), lasting)
        for statement, end in zip(statements, ends, strict=True)
    )


def _in_place(statement: Statement) -> tuple[Copy, ...]:
    """A tile that is read where a list has it, and must not be overwritten."""
    return created(statement) if isinstance(statement, Move) and len(statement.path) == 1 else ()


def _reusing(program: Program, statement: Statement, lasting: Collection[Copy]) -> Statement:
    """An elementwise operator in the place of an operand that nothing else needs, unless it is `lasting`."""
    if not isinstance(statement, Compute) or statement.into is not None or statement.apply.op not in OPERATORS:
        return statement
    types, result = program.types, program.types[statement.apply.name]
    for name, tier in statement.releases:
        kind = types[name]
        if (
            tier == statement.tier
            and (name, tier) not in lasting
            and name != statement.apply.name
            and (kind.dtype, kind.axes) == (result.dtype, result.axes)
        ):
            rest = tuple(copy for copy in statement.releases if copy != (name, tier))
            return replace(statement, reuses=name, releases=rest)
    return statement


def created(statement: Statement) -> tuple[Copy, ...]:
    """The tiles and storages that begin to exist with a statement, for those after it."""
    match statement:
        case Move():
            return () if statement.target is not None else ((statement.name, statement.path[-1]),)
        case Stage():
            return ((statement.storage.name, statement.storage.tier),)
        case Compute():
            return () if statement.into is not None else ((statement.apply.name, statement.tier),)
        case Combine() | Pieces():
            return ()
        case Loop():
            storages = ((storage.name, storage.tier) for storage in statement.storages)
            return (*((made.name, made.tier) for made in statement.accumulators), *storages)


def touched(statement: Statement) -> Iterator[Copy]:
    """The tiles that a statement reads or changes, and the names of storages (with the tier "")."""
    match statement:
        case Move():
            if statement.source is None:
                yield statement.name, statement.path[0]
            elif statement.source:
                yield statement.source, ""
            if statement.target is not None:
                yield statement.target, ""
        case Stage():
            if statement.storage.origin is not None:
                yield statement.storage.origin, ""
        case Compute():
            yield from statement.reads
            if statement.into is not None:
                yield statement.into, statement.tier
        case Combine():
            groups = [MONOIDS[statement.monoid].group(part) for part in statement.updates]
            for part in {part for group in groups for part in group}:
                yield statement.names[part], statement.tier
                yield statement.values[part], statement.tier
        case Loop() | Pieces():
            inside: set[Copy] = {copy for made in created(statement) for copy in (made, (made[0], ""))}
            guard = statement.guard if isinstance(statement, Loop) else ()
            for inner in (*guard, *statement.body):
                yield from (copy for copy in touched(inner) if copy not in inside)
                inside.update(copy for made in created(inner) for copy in (made, (made[0], "")))
