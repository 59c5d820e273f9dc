"""The normal form of numbers: operators on constants and sizes, which are known once the sizes are."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from blockc.ir.block import Constant, Expression, Leaf, Operand, Size, operand_names
from blockc.ir.ops import OPERATORS

ONE = Constant(1)
MINUS_ONE = Constant(-1)


def folded(operand: Operand) -> Operand:
    """The operand with constants folded, at any depth."""
    if not isinstance(operand, Expression):
        return operand
    args = tuple(folded(arg) for arg in operand.args)
    return Expression(operand.op, args) if any(operand_names(args)) else fold(operand.op, tuple(map(as_leaf, args)))


def as_leaf(operand: Operand) -> Leaf:
    """The operand, which must be a number."""
    if isinstance(operand, str):
        raise TypeError(f"a number is needed, not {operand}")
    return operand


def fold(op: str, args: tuple[Leaf, ...]) -> Leaf:
    """The normal form of an elementwise operator on leaves: a constant if all of them are and the result is finite."""
    if all(isinstance(arg, Constant) for arg in args):
        values = [arg.value for arg in args if isinstance(arg, Constant)]
        value = _evaluate(op, values)
        if value is not None:
            return Constant(value)
    match op, args:
        case "div", (x, y):
            return fold("mul", (x, fold("recip", (y,))))
        case "sub", (x, y):
            return fold("add", (x, fold("mul", (MINUS_ONE, y))))
        case "neg", (x,):
            return fold("mul", (MINUS_ONE, x))
        case "pow", (x, Constant(0.5)):
            return fold("sqrt", (x,))
        case "pow", (x, Constant(-0.5)):
            return fold("rsqrt", (x,))
        case "recip", (Expression("mul", factors),):
            return fold("mul", tuple(fold("recip", (as_leaf(factor),)) for factor in factors))
        case "recip", (Expression("recip" | "sqrt" | "rsqrt" as inner, (x,)),):
            undone = {"sqrt": "rsqrt", "rsqrt": "sqrt"}.get(inner)
            return as_leaf(x) if undone is None else Expression(undone, (x,))
        case "mul", _:
            return number_product(args)
        case _:
            return Expression(op, args)


def number_product(args: Iterable[Leaf]) -> Leaf:
    """A product of numbers: flat, constants multiplied, a size times its reciprocal gone."""
    number: float = 1
    factors: list[Leaf] = []
    for arg in args:
        for factor in map(as_leaf, arg.args if isinstance(arg, Expression) and arg.op == "mul" else (arg,)):
            inverse = fold("recip", (factor,)) if isinstance(factor, Size | Expression) else None
            if isinstance(factor, Constant):
                number *= factor.value
            elif inverse is not None and inverse in factors:
                factors.remove(inverse)
            else:
                factors.append(factor)
    if number != 1 or not factors:
        factors.append(Constant(number))
    return factors[0] if len(factors) == 1 else Expression("mul", tuple(factors))


def _evaluate(op: str, values: list[float]) -> float | int | bool | None:
    with np.errstate(all="ignore"):
        value = np.asarray(OPERATORS[op].meaning(*values)).item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value  # type: ignore[no-any-return]
