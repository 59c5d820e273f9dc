"""The compute units of a simulated machine: what operators compute, what they count, and how long they take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from blockc.codegen.tiered_memory import SimulationError
from blockc.ir.block import (
    REDUCTIONS,
    STRUCTURAL,
    Apply,
    Constant,
    Expression,
    Operand,
    Size,
    operand_names,
)
from blockc.ir.dtypes import DTYPES, is_float
from blockc.ir.machine import ComputeUnit, Machine
from blockc.ir.monoids import MONOIDS
from blockc.ir.ops import OPERATORS
from blockc.ir.tile_operators import Blocks, Tile, TileOperators

Count = tuple[int, int]  # arithmetic operations, and special functions


def applied(operators: TileOperators, apply: Apply, operands: Sequence[Tile], blocks: Blocks) -> tuple[Tile, Count]:
    """What a tile operator computes of operands, in their order among its names, and what that takes."""
    rest = iter(operands)

    def value(operand: Operand) -> Tile:
        match operand:
            case str():
                return next(rest)
            case Constant(number):
                return operators.number(number)
            case Size(dim):
                return operators.number(operators.sizes[dim])
            case Expression(op, args):
                return operators.elementwise(op, *[value(arg) for arg in args])

    tiles = tuple([value(arg) for arg in apply.args])
    if apply.op in STRUCTURAL:
        result = operators.structural(apply, tiles, blocks)
    else:
        result = operators.elementwise(apply.op, *tiles)
    lengths = {axis: length for tile in (result, *operands) for axis, length in _lengths(tile)}
    elements = math.prod(lengths.values())
    flops, special = _of_one_element(apply)
    return result, (elements * flops, elements * special)


def _lengths(tile: Tile) -> Iterator[tuple[str, int]]:
    return zip(tile.axes, tile.array.shape, strict=True)


def _of_one_element(apply: Apply) -> Count:
    """What one element of the operands takes."""
    flops = special = 0
    waiting: list[Operand] = list(apply.args)
    if apply.op in REDUCTIONS:
        flops = 2 if apply.op == "contract" else 1
    elif apply.op in OPERATORS:
        waiting = [Expression(apply.op, apply.args)]
    else:
        return 0, 0
    while waiting:
        operand = waiting.pop()
        if isinstance(operand, Expression) and any(operand_names((operand,))):
            operator = OPERATORS[operand.op]
            flops += operator.flops * (len(operand.args) - 1 if operator.arity is None else 1)
            special += operator.special
            waiting += operand.args
    return flops, special


def combined(
    operators: TileOperators, monoid: str, wanted: Sequence[int], old: Sequence[Tile], new: Sequence[Tile]
) -> tuple[list[Tile], Count]:
    """The components `wanted` of two values combined, and what these take."""
    made: dict[int, tuple[Tile, Count, tuple[Tile, ...]]] = {}

    def noted(op: str, *tiles: Tile) -> Tile:
        result = operators.elementwise(op, *tiles)
        size, operator = int(result.array.size), OPERATORS[op]
        made[id(result)] = result, (size * operator.flops, size * operator.special), tiles
        return result

    every = MONOIDS[monoid].combine(noted, tuple(old), tuple(new))
    results = [every[at] for at in wanted]
    flops = special = 0
    waiting = list(results)
    while waiting:
        _, count, operands = made.pop(id(waiting.pop()), (None, (0, 0), ()))
        flops, special = flops + count[0], special + count[1]
        waiting += operands
    return results, (flops, special)


def seconds(machine: Machine, unit: ComputeUnit, operation: str, rated: str, count: Count) -> float:
    """For how long one unit is busy with an operator."""
    rates = unit.operations.get(operation, {})
    if rated not in rates:
        raise SimulationError(f"{unit.name} has no rate for {operation} in {rated}")
    share = 1 / machine.units
    result = machine.call + count[0] / (rates[rated].rate * share)
    if count[1]:
        known = unit.operations.get("special") or rates
        wider = [dtype for dtype in known if is_float(dtype) and DTYPES[dtype].size > DTYPES[rated].size]
        nearest = rated if rated in known else min(wider, key=lambda dtype: DTYPES[dtype].size, default="")
        result += count[1] / (known[nearest or next(iter(known))].rate * share)
    return result
