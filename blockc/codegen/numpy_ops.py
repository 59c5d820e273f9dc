"""The NumPy spelling of every elementwise operator, as calls that write into memory that exists.

Adding an operator here is one record. In the calls, `{0}`, `{1}` ... are the operands, which broadcast, `{out}` the
result, `{room}`, `{other}` and `{third}` scratch like the result, `{mask}` boolean scratch. `number` is the meaning for
numbers that are known once the sizes are, as a Python expression.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from blockc.ir.block import Constant, Expression, Operand


@dataclass(frozen=True, slots=True)
class Spelling:
    """`reuse`: the operands whose memory may be the result's. `folds`: more operands are taken in one by one.

    `inverse`: one divided by the result, where that takes less: to multiply with the result is to divide by it.
    """

    calls: tuple[str, ...]
    number: str
    reuse: tuple[int, ...] = ()
    folds: str | None = None
    helper: str | None = None
    inverse: Callable[[Operand], Operand] | None = None


def _ufunc(name: str, arity: int) -> Spelling:
    operands = ", ".join(f"{{{position}}}" for position in range(arity))
    return Spelling((f"np.{name}({operands}, out={{out}})",), f"np.{name}({operands})", tuple(range(arity)))


def _folded(name: str) -> Spelling:
    return Spelling((f"np.{name}({{0}}, {{1}}, out={{out}})",), f"np.{name}({{0}}, {{1}})", (0, 1), f"np.{name}")


SPELLINGS: dict[str, Spelling] = {
    "add": _folded("add"),
    "sub": _ufunc("subtract", 2),
    "mul": _folded("multiply"),
    "div": _ufunc("divide", 2),
    "neg": _ufunc("negative", 1),
    "recip": Spelling(("np.divide(1.0, {0}, out={out})",), "np.divide(1.0, {0})", (0,), inverse=lambda x: x),
    "pow": Spelling(("np.power({0}, {1}, out={out})",), "np.power(float({0}), {1})", (0, 1)),
    "exp": _ufunc("exp", 1),
    "log": _ufunc("log", 1),
    "sqrt": _ufunc("sqrt", 1),
    "rsqrt": Spelling(
        ("np.sqrt({0}, out={out})", "np.divide(1.0, {out}, out={out})"), "np.divide(1.0, np.sqrt({0}))", (0,)
    ),
    "tanh": _ufunc("tanh", 1),
    # exp overflows to infinity for very negative operands, whose result is then 0, as it should be.
    "sigmoid": Spelling(
        (
            "np.negative({0}, out={out})",
            "np.exp({out}, out={out})",
            "np.add({out}, 1.0, out={out})",
            "np.divide(1.0, {out}, out={out})",
        ),
        "np.divide(1.0, 1.0 + np.exp(np.negative({0})))",
        (0,),
        inverse=lambda x: Expression("add", (Expression("exp", (Expression("neg", (x,)),)), Constant(1.0))),
    ),
    "relu": Spelling(("np.maximum({0}, 0, out={out})",), "np.maximum({0}, 0)", (0,)),
    "gelu": Spelling(
        (
            "np.multiply({0}, 0.7071067811865476, out={room})",
            "erf({room}, {other}, {third}, {mask}, {out})",
            "np.add({out}, 1.0, out={out})",
            "np.multiply({out}, {0}, out={out})",
            "np.multiply({out}, 0.5, out={out})",
        ),
        "0.5 * {0} * (1.0 + math.erf({0} / math.sqrt(2.0)))",
        helper="erf",
    ),
    "erf": Spelling(
        ("np.copyto({room}, {0})", "erf({room}, {other}, {third}, {mask}, {out})"), "math.erf({0})", helper="erf"
    ),
    "abs": _ufunc("absolute", 1),
    "sin": _ufunc("sin", 1),
    "cos": _ufunc("cos", 1),
    "floor": _ufunc("floor", 1),
    "minimum": _folded("minimum"),
    "maximum": _folded("maximum"),
    "lt": _ufunc("less", 2),
    "le": _ufunc("less_equal", 2),
    "gt": _ufunc("greater", 2),
    "ge": _ufunc("greater_equal", 2),
    "eq": _ufunc("equal", 2),
    "ne": _ufunc("not_equal", 2),
    "and": _folded("logical_and"),
    "or": _folded("logical_or"),
    "not": _ufunc("logical_not", 1),
    "where": Spelling(("np.copyto({out}, {2})", "np.copyto({out}, {1}, where={0})"), "np.where({0}, {1}, {2})", (2,)),
    "finite": Spelling(
        (
            "np.equal({0}, -np.inf, out={mask})",
            "np.copyto({out}, {0})",
            "np.copyto({out}, 0.0, where={mask})",
        ),
        "np.where(np.isneginf({0}), 0.0, {0})",
        (0,),
    ),
}

LOG2_E = math.log2(math.e)
# exp where NumPy has vector instructions for powers of two.
POWER_OF_TWO = Spelling(
    (f"np.multiply({{0}}, {LOG2_E!r}, out={{out}})", "np.exp2({out}, out={out})"), "np.exp({0})", (0,)
)


@cache
def has_fast_exp2() -> bool:
    """True if NumPy has vector instructions for powers of two on this computer: then they take half the time of exp."""
    found = np.lib.introspect.opt_func_info(func_name="^exp2$").get("exp2", {})
    targets = [entry["current"] for entry in found.values()]
    return bool(targets) and not any(target.startswith("baseline") for target in targets)
