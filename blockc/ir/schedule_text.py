"""The text form of a schedule, for people: one statement per line, with the tiers of everything."""

from __future__ import annotations

from collections.abc import Iterator

from blockc.ir.schedule import Combine, Compute, Copy, Loop, Move, Pieces, Schedule, Stage, Statement, Storage
from blockc.ir.text import format_operand, format_term


def format_schedule(schedule: Schedule) -> str:
    """A schedule as text. `a -> b` is a way between tiers, `x in t` a tile or list in a tier, and `free` says what is
    not needed any more."""
    lines = [f"schedule {schedule.program.name} on {schedule.machine.name}"]
    lines += [f"list {_storage(storage)}" for storage in schedule.storages]
    lines += [f"list {alias.name} = {alias.source}[{alias.old} -> {alias.new}]" for alias in schedule.aliases]
    for number, statements in enumerate(schedule.kernels):
        lines += ["", f"kernel {number}", *_statements(statements, "  ")]
    return "\n".join(lines) + "\n"


def _statements(statements: tuple[Statement, ...], indent: str) -> Iterator[str]:
    for statement in statements:
        yield from (f"{indent}{line}" for line in _lines(statement))


def _lines(statement: Statement) -> Iterator[str]:
    freed = _freed(statement.releases)
    match statement:
        case Loop(dim, parallel, storages, accumulators, where, guard, body):
            condition = f" where {format_term(where)}" if where is not None else ""
            yield f"{'parallel' if parallel else 'loop'} {dim}{condition} {{"
            yield from (f"  list {_storage(storage)}" for storage in storages)
            yield from (f"  {made.name} in {made.tier} = {made.identity:g}" for made in accumulators)
            yield from _statements((*guard, *body), "  ")
            yield f"}}{freed}"
        case Pieces(dim, step, body):
            yield f"pieces of {step} along {dim} {{"
            yield from _statements(body, "  ")
            yield f"}}{freed}"
        case Move(name, path, dtype, axes, source, target):
            tile = f"{dtype}({', '.join(axes)})"
            way = " -> ".join(path)
            if source is not None:
                other = f" or {statement.identity:g} at first" if statement.again is not None else ""
                yield f"{name} in {path[-1]}: {tile} <- {source}, {way}{other}{freed}"
            elif target is not None:
                yield f"{target} <- {name}: {tile}, {way}{freed}"
            else:
                yield f"{name} in {path[-1]}: {tile}, {way}{freed}"
        case Stage(storage, path):
            yield f"list {_storage(storage)} <- {storage.origin}, {' -> '.join(path)}{freed}"
        case Compute(apply):
            place = f"{statement.into} += " if statement.into is not None else f"{apply.name} in {statement.tier} = "
            dims = f"[{', '.join(apply.dims)}]" if apply.dims else ""
            args = ", ".join(map(format_operand, apply.args))
            yield f"{place}{apply.op}{dims}({args}) by {statement.unit}, {statement.operation} {statement.rated}{freed}"
        case Combine():
            updated = ", ".join(statement.names[part] for part in statement.updates)
            values = ", ".join(statement.values)
            yield f"{updated} in {statement.tier} {statement.monoid}= {values} by {statement.unit}{freed}"


def _storage(storage: Storage) -> str:
    lists = "".join(f"[{dim}]" for dim in storage.lists)
    return f"{storage.name} in {storage.tier}: {storage.dtype}{lists}({', '.join(storage.axes)})"


def _freed(copies: tuple[Copy, ...]) -> str:
    return f"; free {', '.join(f'{name} in {tier}' for name, tier in copies)}" if copies else ""
