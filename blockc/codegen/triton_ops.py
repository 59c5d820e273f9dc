"""The Triton spelling of every elementwise operator, as an expression of its operands.

Adding an operator here is one record. Operands are names, or expressions in parentheses, that broadcast. `host` is the
meaning for numbers that are known once the sizes are, of f64 tensors without axes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spelling:
    """`folds`: more than two operands are taken in one by one. `helper`: a function of the file that it calls."""

    text: str
    host: str
    folds: bool = False
    helper: str | None = None


def _infix(symbol: str, host: str | None = None, folds: bool = False) -> Spelling:
    return Spelling(f"({{0}} {symbol} {{1}})", host or f"({{0}} {symbol} {{1}})", folds)


def _call(name: str) -> Spelling:
    return Spelling(f"tl.{name}({{0}})", f"torch.{name}({{0}})")


_NAN = "propagate_nan=tl.PropagateNan.ALL"

SPELLINGS: dict[str, Spelling] = {
    "add": _infix("+", folds=True),
    "sub": _infix("-"),
    "mul": _infix("*", folds=True),
    "div": _infix("/"),
    "neg": Spelling("(-{0})", "(-{0})"),
    "recip": Spelling("(1.0 / {0})", "(1.0 / {0})"),
    "pow": Spelling("_pow({0}, {1})", "torch.pow({0}, {1})", helper="_pow"),
    "exp": _call("exp"),
    "log": _call("log"),
    "sqrt": Spelling("tl.sqrt({0})", "torch.sqrt({0})"),
    "rsqrt": _call("rsqrt"),
    "tanh": Spelling("_tanh({0})", "torch.tanh({0})", helper="_tanh"),
    "sigmoid": Spelling("(1.0 / (1.0 + tl.exp(-{0})))", "torch.sigmoid({0})"),
    "relu": Spelling(f"tl.maximum({{0}}, 0, {_NAN})", "torch.relu({0})"),
    "gelu": Spelling("(0.5 * {0} * (1.0 + tl.erf({0} * 0.7071067811865476)))", "torch.nn.functional.gelu({0})"),
    "erf": _call("erf"),
    "abs": _call("abs"),
    "sin": _call("sin"),
    "cos": _call("cos"),
    "floor": _call("floor"),
    "minimum": Spelling(f"tl.minimum({{0}}, {{1}}, {_NAN})", "torch.minimum({0}, {1})", True),
    "maximum": Spelling(f"tl.maximum({{0}}, {{1}}, {_NAN})", "torch.maximum({0}, {1})", True),
    "lt": _infix("<"),
    "le": _infix("<="),
    "gt": _infix(">"),
    "ge": _infix(">="),
    "eq": _infix("=="),
    "ne": _infix("!="),
    "and": _infix("&", "torch.logical_and({0}, {1})", True),
    "or": _infix("|", "torch.logical_or({0}, {1})", True),
    "not": Spelling("({0} == 0)", "torch.logical_not({0})"),
    "where": Spelling("tl.where({0}, {1}, {2})", "torch.where({0} != 0, {1}, {2})"),
    "finite": Spelling('tl.where({0} == float("-inf"), 0.0, {0})', "torch.where(torch.isneginf({0}), 0.0, {0})"),
}

# What a bool is where the operator takes numbers.
TRUTH = {"maximum": "({0} | {1})", "minimum": "({0} & {1})"}

HELPERS: dict[str, str] = {
    "_maximum": """
@triton.jit
def _maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
""",
    "_minimum": """
@triton.jit
def _minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
""",
    "_tanh": """
@triton.jit
def _tanh(x):
    square = x * x  # near 0, where 1 - e would lose digits, Lambert's continued fraction: exact to 4e-16 there
    near = x * (10395.0 + square * (1260.0 + square * 21.0))
    near = near / (10395.0 + square * (4725.0 + square * (210.0 + square)))
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.3, near, tl.where(x < 0, -far, far))
""",
    "_pow": """
@triton.jit
def _pow(x, y):
    base = tl.abs(x.to(tl.float64))
    exponent = y.to(tl.float64)
    size = tl.exp2(exponent * tl.log2(base))
    size = tl.where((exponent == 0.0) | (base == 1.0), 1.0, size)
    whole = tl.floor(exponent) == exponent
    odd = whole & (tl.floor(exponent * 0.5) * 2.0 != exponent)
    size = tl.where(odd & ((x < 0.0) | (1.0 / x < 0.0)), -size, size)  # 1 / x tells -0 from 0
    return tl.where((x < 0.0) & (whole == 0), float("nan"), size).to(x.dtype)
""",
}
