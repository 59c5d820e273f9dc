"""Scales on the way to exponentials: which values are kept without the number that they are multiplied by.

    S = mul(R, c); T = max[n](S); P = exp(sub(S, T))    =>    T' = max[n](R); P = exp2((R - T') * (c * log2(e)))

A positive number c changes no maximum and no choice. So it waits for the exponential, which multiplies by log2(e)
anyway: each element is multiplied once less, and the difference is taken of numbers that were not rounded again.
Whoever else reads such a value gets it times c.

    P = exp2((R - T') * f)    =>    T'' = T' * f; P = exp2(fma(R, f, -T''))

An exponent T that only exponentials read is kept times all of that, f, as the power of two: then an element takes one
operation instead of two. The rounding of T'' is the same wherever it is read, so it cancels. Not where f is more than
1: there T'' is infinite where T is the lowest number, as masks have it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from blockc.ir.block import (
    Apply,
    Constant,
    Expression,
    Graph,
    Leaf,
    Map,
    Operand,
    Program,
    Size,
    operand_names,
    walk,
)
from blockc.ir.dtypes import is_float
from blockc.ir.ops import OPERATORS

LOG2_E = Constant(1.4426950408889634)
LN_2 = Constant(0.6931471805599453)  # the scale of powers of two
_LARGEST_SIZE = 2.0**40
_LEAST, _MOST = 2.0**-100, 2.0**100  # scales
_KEEPING = frozenset({"where", "sub", "add", "neg", "maximum", "minimum", "finite", "broadcast", "cast", "max", "min"})


def scale_of(op: str, args: Sequence[Operand], scales: Sequence[Leaf | None]) -> Leaf | None:
    """The scale of the result of an operator whose operands are kept without theirs; None if that cannot be."""
    if op == "mul":
        return _of_product(args, scales)
    if op not in _KEEPING:
        return None
    pairs = list(zip(args, scales, strict=True))[1 if op == "where" else 0 :]
    found = {scale for arg, scale in pairs if not is_unchanged(arg)}
    return found.pop() if len(found) == 1 else None


def is_unchanged(operand: Operand) -> bool:
    """True for a number that is the same times any scale: 0 and infinities."""
    return isinstance(operand, Constant) and (operand.value == 0 or math.isinf(operand.value))


def _of_product(args: Sequence[Operand], scales: Sequence[Leaf | None]) -> Leaf | None:
    """The scale of a product of one value with numbers, all of which wait."""
    numbers = [arg for arg in args if not isinstance(arg, str) and is_number(arg)]
    others = [scale for arg, scale in zip(args, scales, strict=True) if not is_number(arg)]
    if len(others) != 1 or not numbers:
        return None
    found = times(*numbers, *(scale for scale in others if scale is not None))
    low, high = _range(found)
    return found if low >= _LEAST and (high <= _MOST or high == math.inf) else None


def is_number(operand: Operand) -> bool:
    """True for what is known once the sizes are."""
    if isinstance(operand, Expression):
        return all(map(is_number, operand.args))
    return not isinstance(operand, str)


def times(first: Leaf, *others: Leaf) -> Leaf:
    """The product of some numbers, as one constant if all are."""
    numbers = (first, *others)
    if all(isinstance(number, Constant) for number in numbers):
        return Constant(math.prod(float(number.value) for number in numbers if isinstance(number, Constant)))
    return Expression("mul", numbers) if others else first


def _range(number: Operand) -> tuple[float, float]:
    """Between which numbers a scale lies, whatever the sizes; from 0 on if nothing is known.

    Only a size of 0 makes one infinite: then what it scales is not a number, here as in the program.
    """
    match number:
        case Constant(value) if value > 0:
            return float(value), float(value)
        case Size():
            return 0.0, _LARGEST_SIZE
        case Expression("mul", args):
            ranges = [_range(arg) for arg in args]
            return math.prod(low for low, _ in ranges), math.prod(high for _, high in ranges)
        case Expression("recip", (arg,)):
            low, high = _range(arg)
            return 1 / high, 1 / low if low else math.inf
        case Expression("sqrt", (arg,)):
            low, high = _range(arg)
            return math.sqrt(low), math.sqrt(high)
        case Expression("rsqrt", (arg,)):
            return _range(Expression("recip", (Expression("sqrt", (arg,)),)))
        case _:
            return 0.0, math.inf


# Which values are kept so


def kept_without_scale(program: Program, stored: Collection[str]) -> dict[str, Leaf]:
    """The scales of the values that are kept without: those in f32 that become part of an exponent, unless they are
    `stored`."""
    wanted = _exponents(program)
    found: dict[str, Leaf] = {}

    def keep(name: str, scale: Leaf | None) -> None:
        kind = program.types[name]
        if scale is not None and name in wanted and name not in stored and kind.is_item and _is_f32(kind.dtype):
            found[name] = scale

    def visit(graph: Graph) -> None:
        for node in graph:
            if isinstance(node, Apply):
                keep(node.name, operand_scale(Expression(node.op, node.args), found))
            elif isinstance(node, Map):
                visit(node.body)
                for output in node.outputs:
                    if output.monoid in _RUNNING:
                        keep(output.names[0], found.get(output.values[0]))

    visit(program.body)
    return found


_RUNNING = ("max", "min", "exponent_add")  # monoids whose first component is a value of a block, or the identity


def _is_f32(dtype: str) -> bool:
    return is_float(dtype) and dtype != "f64"


def operand_scale(operand: Operand, scales: Mapping[str, Leaf]) -> Leaf | None:
    """The scale that an operand has when it is computed from values without theirs."""
    match operand:
        case str():
            return scales.get(operand)
        case Expression(op, args) if not is_number(operand):
            return scale_of(op, args, [operand_scale(arg, scales) for arg in args])
        case _:
            return None


def _exponents(program: Program) -> set[str]:
    """The values that exponents are made of, without other operators than those that keep a scale."""
    found: set[str] = set()
    before = -1
    while before < len(found):
        before = len(found)
        for node in walk(program.body):
            if isinstance(node, Map):
                for output in node.outputs:
                    if output.monoid == "exponent_add" or (output.monoid in _RUNNING and output.names[0] in found):
                        found.update((output.names[0], output.values[0]))
            elif isinstance(node, Apply):
                whole = Expression(node.op, node.args)
                found.update(_parts(whole) if node.name in found else ())
                found.update(_of_exponentials(whole))
    return found


def _of_exponentials(operand: Operand) -> Iterator[str]:
    if isinstance(operand, Expression):
        for arg in operand.args:
            yield from _parts(arg) if operand.op == "exp" else ()
            yield from _of_exponentials(arg)


def _parts(operand: Operand) -> Iterator[str]:
    """The names in an operand, through operators that keep a scale."""
    if isinstance(operand, str):
        yield operand
    elif isinstance(operand, Expression) and operand.op in {*_KEEPING, "mul"}:
        for arg in operand.args[1 if operand.op == "where" else 0 :]:
            yield from _parts(arg)


# Which of them are kept as powers of two


def kept_as_powers(program: Program, kept: Mapping[str, Leaf], sizes: Mapping[str, int]) -> set[str]:
    """The exponents that are kept as powers of two, of the values that are `kept` without their scale."""
    found: set[str] = set()
    read = {result.value for result in program.outputs}
    same: list[tuple[str, str]] = []  # exponents of a block and of all
    for node in walk(program.body):
        match node:
            case Apply():
                for name, is_exponent in _readings(program, Expression(node.op, node.args), kept):
                    (found if is_exponent else read).add(name)
            case Map():
                read.update(port.source for port in node.ports)
                for output in node.outputs:
                    pairs = zip(output.values, output.names, strict=True)
                    same += [next(pairs)] if output.monoid in ("exponent_add", "max") else []
                    read.update((value for value, _ in pairs), output.starts or ())
            case _:
                read |= node.uses
    found = {name for name in found if float(value_of(kept[name], sizes)) * LOG2_E.value <= 1}
    before: set[str] = set()
    while before != found:
        before = set(found)
        found.update(name for pair in same if not found.isdisjoint(pair) for name in pair)
    while bad := found & read | found - kept.keys():
        read |= {name for pair in same if not bad.isdisjoint(pair) for name in pair}
        found -= bad
    return found


def _readings(program: Program, operand: Operand, kept: Mapping[str, Leaf]) -> Iterator[tuple[str, bool]]:
    """The names that an operand reads for more than whether they are infinite, and whether it is as the exponent that
    is subtracted from others with the same scale, of which there are more."""
    match operand:
        case str():
            yield operand, False
        case Expression("exp", (Expression("sub", (first, Expression("finite", (str(name),)))),)) if (
            name in kept and operand_scale(first, kept) == kept[name] and _is_smaller(program, name, first)
        ):
            yield name, True
            yield from _readings(program, first, kept)
        case Expression(op, args):
            counted = args if op not in ("eq", "ne") or not any(map(is_unchanged, args)) else ()
            for arg in counted:
                yield from _readings(program, arg, kept)


def _is_smaller(program: Program, name: str, operand: Operand) -> bool:
    axes = {axis for other in operand_names((operand,)) for axis in program.types[other].axes}
    return axes > set(program.types[name].axes)


def value_of(operand: Operand, sizes: Mapping[str, int]) -> Any:
    """What a number is at some sizes."""
    match operand:
        case Constant(value):
            return value
        case Size(dim):
            return sizes[dim]
        case Expression(op, args):
            with np.errstate(all="ignore"):
                return OPERATORS[op].meaning(*(np.float64(value_of(arg, sizes)) for arg in args))
        case _:
            raise TypeError(f"`{operand}` is not a number")
