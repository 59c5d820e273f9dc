"""The table of elementwise operators: one record each, read by every stage.

Adding an operator is one record here and one spelling per backend. The structural operators (contractions, reductions
within a tile, `index`, `broadcast`) are not elementwise and are part of the grammar in `block.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, assert_never

import numpy as np

from blockc.ir import dtypes
from blockc.ir.block import Constant, Expression, Operand, Size, Type


class Result(Enum):
    """How the type of a result follows from the types of the operands."""

    REAL = "real"  # f32, or f64 if an operand is f64
    NUMBER = "number"  # integers stay integers
    BOOLEAN = "boolean"
    SELECT = "select"  # as NUMBER, of all operands but the first


@dataclass(frozen=True, slots=True)
class Operator:
    """An elementwise operator.

    `arity` is None for operators that take two or more operands. `meaning` is its NumPy meaning, elementwise on
    float64 (or integer, or boolean) arrays that broadcast. `flops` and `special` count arithmetic and
    special-function instructions for one element (an n-ary operator counts `flops` once less than its operands).
    `of_product` combines the results for the factors into the result for a product of positive numbers, "" if nothing
    does.
    """

    name: str
    arity: int | None
    result: Result
    meaning: Callable[..., Any]
    flops: int = 1
    special: int = 0
    commutative: bool = False
    of_product: str = ""


def _fold(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(first: Any, *rest: Any) -> Any:
        for operand in rest:
            first = function(first, operand)
        return first

    return apply


def _sigmoid(x: Any) -> Any:
    # Both branches keep the argument of exp below zero, so neither overflows.
    small = np.exp(-np.abs(x))
    return np.where(np.signbit(x), small, 1.0) / (1.0 + small)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(x: Any) -> Any:
    return 0.5 * np.multiply(x, 1.0 + _erf(np.asarray(x, np.float64) / math.sqrt(2.0)))


def _finite(t: Any) -> Any:
    return np.where(np.isneginf(t), 0.0, t)


_REAL, _NUMBER, _BOOLEAN, _SELECT = Result.REAL, Result.NUMBER, Result.BOOLEAN, Result.SELECT

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        Operator("add", None, _NUMBER, _fold(np.add), commutative=True),
        Operator("sub", 2, _NUMBER, np.subtract),
        Operator("mul", None, _NUMBER, _fold(np.multiply), commutative=True),
        Operator("div", 2, _REAL, np.true_divide),
        Operator("neg", 1, _NUMBER, np.negative),
        Operator("recip", 1, _REAL, lambda x: np.true_divide(1.0, x)),
        Operator("pow", 2, _REAL, lambda x, y: np.power(np.asarray(x, np.float64), y), special=2),
        Operator("exp", 1, _REAL, np.exp, flops=0, special=1),
        Operator("log", 1, _REAL, np.log, flops=0, special=1, of_product="add"),
        Operator("sqrt", 1, _REAL, np.sqrt, flops=0, special=1, of_product="mul"),
        Operator("rsqrt", 1, _REAL, lambda x: 1.0 / np.sqrt(x), flops=0, special=1, of_product="mul"),
        Operator("tanh", 1, _REAL, np.tanh, flops=0, special=1),
        Operator("sigmoid", 1, _REAL, _sigmoid, flops=2, special=1),
        Operator("relu", 1, _NUMBER, lambda x: np.maximum(x, 0)),
        Operator("gelu", 1, _REAL, _gelu, flops=4, special=1),
        Operator("erf", 1, _REAL, _erf, flops=0, special=1),
        Operator("abs", 1, _NUMBER, np.abs),
        Operator("sin", 1, _REAL, np.sin, flops=0, special=1),
        Operator("cos", 1, _REAL, np.cos, flops=0, special=1),
        Operator("floor", 1, _REAL, np.floor),
        Operator("minimum", None, _NUMBER, _fold(np.minimum), commutative=True),
        Operator("maximum", None, _NUMBER, _fold(np.maximum), commutative=True),
        Operator("lt", 2, _BOOLEAN, np.less),
        Operator("le", 2, _BOOLEAN, np.less_equal),
        Operator("gt", 2, _BOOLEAN, np.greater),
        Operator("ge", 2, _BOOLEAN, np.greater_equal),
        Operator("eq", 2, _BOOLEAN, np.equal),
        Operator("ne", 2, _BOOLEAN, np.not_equal),
        Operator("and", None, _BOOLEAN, _fold(np.logical_and), commutative=True),
        Operator("or", None, _BOOLEAN, _fold(np.logical_or), commutative=True),
        Operator("not", 1, _BOOLEAN, np.logical_not),
        Operator("where", 3, _SELECT, np.where),
        # Zero where the operand is minus infinity: what an exponent may be subtracted from (design, section 7).
        Operator("finite", 1, _REAL, _finite),
    )
}


def result_dtype(name: str, operands: tuple[str, ...]) -> str:
    """The type that the elementwise operator `name` gives for operands of these types."""
    match OPERATORS[name].result:
        case Result.REAL:
            return dtypes.real(*operands)
        case Result.NUMBER:
            return dtypes.number(*operands)
        case Result.BOOLEAN:
            return "bool"
        case Result.SELECT:
            chosen = operands[1:]
            return "bool" if set(chosen) == {"bool"} else dtypes.number(*chosen)


def operand_dtype(types: Mapping[str, Type], operand: Operand) -> str:
    """The element type of an operand, by the types of names."""
    match operand:
        case str():
            return types[operand].dtype
        case Constant(value):
            return "bool" if isinstance(value, bool) else "i32" if isinstance(value, int) else "f32"
        case Size():
            return "i32"
        case Expression(op, args):
            return result_dtype(op, tuple(operand_dtype(types, arg) for arg in args))
        case _:
            assert_never(operand)
