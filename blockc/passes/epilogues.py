"""Epilogues of a schedule in pieces: what a task computes and stores behind its loops takes the space of a piece only.

A unit that starts an operator for nothing (`call` is 0) computes elementwise operators on as few elements at a time as
its machine file says (the `tile` of a rate). So of a tile that is loaded for them, of their results and of what is on
its way to a list, no more than that has to be at hand along one axis.
"""

from __future__ import annotations

from blockc.ir.block import Program
from blockc.ir.machine import Machine
from blockc.ir.pieces import axis_of_pieces, is_elementwise
from blockc.ir.schedule import Compute, Loop, Move, Pieces, Statement
from blockc.passes.lifetimes import releasing


def in_pieces(program: Program, machine: Machine, statements: list[Statement]) -> list[Statement]:
    """The statements of a task, without releases, with those behind its last loop in pieces."""
    if machine.call:
        return statements
    end = len(statements)
    while end and _may_be_in_pieces(statements[end - 1]):
        end -= 1
    behind = statements[end:]
    computed = [statement for statement in behind if isinstance(statement, Compute)]
    dim = axis_of_pieces(program, [program.types[statement.apply.name].axes for statement in computed])
    step = max((_step(machine, statement) for statement in computed), default=1)
    if dim is None or step == 1 or not any(isinstance(statement, Loop) for statement in statements[:end]):
        return statements
    cut = [statement for statement in behind if dim in _axes(program, statement)]
    rest = [statement for statement in behind if dim not in _axes(program, statement)]
    return [*statements[:end], *rest, Pieces(dim, step, releasing(program, cut))]


def _may_be_in_pieces(statement: Statement) -> bool:
    match statement:
        case Compute():
            return statement.into is None and is_elementwise(statement.apply)
        case Move():
            return statement.again is None
    return False


def _axes(program: Program, statement: Statement) -> tuple[str, ...]:
    """The axes of what a statement moves or makes."""
    if isinstance(statement, Compute):
        return program.types[statement.apply.name].axes
    return statement.axes if isinstance(statement, Move) else ()


def _step(machine: Machine, compute: Compute) -> int:
    """The elements that a unit computes at once; 1 where its machine file does not say."""
    unit = next(unit for unit in machine.compute if unit.name == compute.unit)
    rates = [unit.operations[compute.operation][compute.rated], *unit.operations.get("special", {}).values()]
    return max((size for rate in rates for size in rate.tile), default=1)
