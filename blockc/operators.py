"""The rules of dimensions and types: what each operator of the language makes of its operands, or what is wrong.

One function per kind of operator. Each returns `Made`, a node to be, or the `Problem` that forbids it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blockc import syntax
from blockc.errors import Problem
from blockc.ir import dtypes
from blockc.ir.array_program import Argument, Span, argument_type
from blockc.ir.dtypes import is_float
from blockc.ir.ops import OPERATORS, Result, result_dtype
from blockc.names import listing
from blockc.syntax import Identifier

_LARGEST_F32 = (2 - 2**-23) * 2.0**127
_COMPARISONS = {"lt", "le", "gt", "ge", "eq", "ne"}
_LOGIC = {"and", "or", "not"}


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the program: its node's position, its free dimensions and its type."""

    node: int
    shape: frozenset[str]
    dtype: str


@dataclass(frozen=True, slots=True)
class Made:
    """A node to be."""

    op: str
    args: tuple[Value, ...]
    dims: tuple[str, ...]
    shape: frozenset[str]
    dtype: str
    value: float | int | bool | None = None


Outcome = Made | Problem
# Puts a set of dimensions into the order in which the program names them, for messages.
InOrder = Callable[[frozenset[str]], tuple[str, ...]]


def constant(literal: syntax.Literal) -> Outcome:
    """A literal: `true` is a bool, a whole number an i32, any other number an f32."""
    value = literal.value
    if isinstance(value, bool):
        return Made("constant", (), (), frozenset(), "bool", value)
    if isinstance(value, float):
        return Made("constant", (), (), frozenset(), "f32", value)
    if not -(2**31) <= value < 2**31:
        return Problem(
            "E0119", "this whole number does not fit i32", literal.span, f"write it as a real number: `{value}.0`"
        )
    return Made("constant", (), (), frozenset(), "i32", value)


def elementwise(op: str, expression: syntax.Expression, operands: Sequence[Value]) -> Outcome:
    """An elementwise operator: operands broadcast by name, so only their types can be wrong."""
    types = tuple(operand.dtype for operand in operands)
    problem = _type_problem(op, expression, types)
    if problem is not None:
        return problem
    shape = frozenset[str]().union(*(operand.shape for operand in operands))
    return Made(op, tuple(operands), (), shape, result_dtype(op, types))


def _type_problem(op: str, expression: syntax.Expression, types: tuple[str, ...]) -> Problem | None:
    spelling, place, places = _written(expression)
    if op in _LOGIC or op == "where":
        wanted = types[:1] if op == "where" else types
        wrong = [at for at, dtype in enumerate(wanted) if dtype != "bool"]
        if not wrong:
            return None
        what = "the condition of `where`" if op == "where" else f"an operand of `{spelling}`"
        span = places[wrong[0]]
        return Problem("E0109", f"{what} must be bool, not {types[wrong[0]]}", span, "compare it: `x != 0`")
    if op in _COMPARISONS and "bool" in types:
        span = places[types.index("bool")]
        return Problem("E0109", f"`{spelling}` compares numbers, not bool", span, "use `and`, `or` and `not`")
    if set(types) == {"bool"} and OPERATORS[op].result is not Result.SELECT:
        return Problem("E0109", f"`{spelling}` takes numbers, not bool", place, "`where(x, 1, 0)` makes a number of it")
    return None


def in_range(made: Made, constants: Sequence[float | None], expression: syntax.Expression) -> Outcome:
    """The node, or the problem that a constant operand is too large for the type in which the node is computed.

    `constants` has the value of every operand that is a constant, and None for the others.
    """
    if made.dtype == "f64" or "f64" in {operand.dtype for operand in made.args}:
        return made
    for value, operand in zip(constants, syntax.operands(expression), strict=False):  # a mean has an operand of its own
        if value is not None and _LARGEST_F32 < abs(value) < math.inf:
            hint = f"`{'-inf' if value < 0 else 'inf'}` is infinity; with an f64 operand the result is f64"
            return Problem("E0119", "this number is too large for f32", operand.span, hint)
    return made


def _written(expression: syntax.Expression) -> tuple[str, Span, tuple[Span, ...]]:
    """How an operator is written, where, and where its operands are."""
    places = tuple(operand.span for operand in syntax.operands(expression))
    if isinstance(expression, syntax.Unary | syntax.Binary):
        return expression.operator.text, expression.operator.span, places
    if isinstance(expression, syntax.Call):
        return expression.name.text, expression.name.span, places
    return "", expression.span, places


def cast(value: Value, dtype: str) -> Outcome:
    """A conversion. Between float types it only says how the value is stored; to an integer it drops the fraction."""
    return Made("cast", (value,), (), value.shape, dtype)


def reduction(
    call: syntax.Call,
    operands: Sequence[Value],
    dims: tuple[str, ...],
    in_order: InOrder,
) -> Outcome:
    """sum, mean (its sum), max, min or dot along `dims`."""
    name = call.name.text
    shape = frozenset[str]().union(*(operand.shape for operand in operands))
    types = tuple(operand.dtype for operand in operands)
    if name != "sum" and set(types) == {"bool"}:
        return Problem(
            "E0109", f"`{name}` takes numbers, not bool", call.name.span, "`where(x, 1, 0)` makes a number of it"
        )
    for written, dim in zip(call.dims, dims, strict=True):
        # A sum of equal terms has a meaning that formulas use; for the others it is a slip of the pen.
        if dim not in shape and name in ("max", "min", "dot"):
            has = " and ".join(_dims_text(in_order(operand.shape)) for operand in operands)
            what = "neither operand has" if len(operands) == 2 else "the operand has no"
            message = f"{what} dimension `{dim}`"
            return Problem("E0110", message, written.span, f"{'they have' if len(operands) == 2 else 'it has'} {has}")
    if name == "dot":
        return Made("contract", tuple(operands), dims, shape - set(dims), dtypes.number(*types))
    if name in ("sum", "mean"):
        return Made("sum", tuple(operands), dims, shape - set(dims), dtypes.number(*types))
    return Made(name, tuple(operands), dims, shape - set(dims), types[0])


def rename(value: Value, names: tuple[str, str], old: Identifier, new: Identifier, in_order: InOrder) -> Outcome:
    """`value[old -> new]`."""
    if names[0] not in value.shape:
        message = f"the value has no dimension `{names[0]}` to rename"
        return Problem("E0111", message, old.span, f"it has {_dims_text(in_order(value.shape))}")
    if names[1] in value.shape:
        message = f"the value already has a dimension `{names[1]}`"
        return Problem("E0111", message, new.span, f"it has {_dims_text(in_order(value.shape))}; choose a new name")
    return Made("rename", (value,), names, value.shape - {names[0]} | {names[1]}, value.dtype)


def output_problem(argument: Argument, value: Value, in_order: InOrder) -> Problem | None:
    """Why a value cannot be the output that was declared. Dimensions that only the output has are broadcast."""
    declared = argument_type(argument)
    dims = in_order(value.shape)
    extra = [dim for dim in dims if dim not in argument.dims]
    if extra:
        message = f"output `{argument.name}` is declared {declared}, but its value has {_dims_text(dims)}"
        return Problem("E0110", message, argument.span, f"reduce {listing(extra)}, or declare the output with it")
    return _conversion_problem(f"output `{argument.name}`", argument.dtype, value.dtype, argument.span)


def declaration_problem(
    statement: syntax.Assignment, value: Value, declared: frozenset[str], dtype: str, in_order: InOrder
) -> Problem | None:
    """Why a value does not fit the type that its statement declares."""
    name = statement.name
    place = statement.type.span if statement.type is not None else name.span
    shown = [dim.name.text for dim in statement.type.dims] if statement.type is not None else []
    if declared != value.shape:
        dims = in_order(value.shape)
        more = [dim for dim in dims if dim not in declared]
        less = sorted(declared - value.shape)
        hint = f"add {listing(more)}" if more else f"remove {listing(less)}"
        message = f"`{name.text}` is declared with {_dims_text(shown)}, but its value has {_dims_text(dims)}"
        return Problem("E0110", message, place, hint)
    return _conversion_problem(f"`{name.text}`", dtype, value.dtype, place)


def _conversion_problem(what: str, declared: str, dtype: str, span: Span | None) -> Problem | None:
    loses = (declared == "bool") != (dtype == "bool") or (is_float(dtype) and not is_float(declared))
    if not loses:
        return None
    hint = "compare it: `x != 0`" if declared == "bool" else f"convert it: `{declared}(...)`"
    return Problem("E0109", f"{what} is declared {declared}, but its value is {dtype}", span, hint)


def _dims_text(dims: Sequence[str]) -> str:
    return f"[{', '.join(dims)}]"
