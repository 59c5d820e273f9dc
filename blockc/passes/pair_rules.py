"""What operators make of exponent pairs: products add exponents, equal ones cancel, a sum aligns to the largest."""

from __future__ import annotations

import math
from functools import partial

from blockc.ir.block import Apply, Constant, Operand, Type
from blockc.ir.dtypes import is_float
from blockc.passes.exponent_pairs import EMPTY, NOTHING, ONE, ZERO, Builder, Exponents, Pair, combine
from blockc.passes.linear import terms


def paired(build: Builder, node: Apply) -> Pair | None:
    """The pair that the operator gives, or None if its result is plain."""
    if node.op == "exp":
        return Pair(None, exponents_of(build, build.plain(node.args[0])))
    pairs = [build.pair(arg) for arg in node.args]
    if not any(pair.exponents or pair.hollow for pair in pairs):
        return None
    match node.op:
        case "mul":
            exponents: Exponents = ()
            for pair in pairs:
                exponents = combine(exponents, pair.exponents)
            hollow = any(pair.hollow for pair in pairs)
            return simple(build, node, Pair(build.product(*(pair.x for pair in pairs)), exponents, hollow))
        case "recip":
            return Pair(reciprocal(build, pairs[0]), combine((), pairs[0].exponents, -1))
        case "add" | "maximum" | "minimum":
            return aligned(build, node.op, pairs)
        case "where":
            return select(build, build.plain(node.args[0]), pairs[1], pairs[2])
        case "sqrt":
            return power(build, node.op, (), pairs[0], 0.5)
        case "rsqrt":
            root = power(build, "sqrt", (), pairs[0], 0.5)
            return Pair(reciprocal(build, root), combine((), root.exponents, -1))
        case "pow" if isinstance(node.args[1], Constant) and node.args[1].value > 0:
            return power(build, node.op, node.args[1:], pairs[0], node.args[1].value)
        case "abs":
            return power(build, node.op, (), pairs[0], 1)
        case "lt" | "le" | "gt" | "ge" | "eq" | "ne" if pairs[1] == NOTHING:
            x = build.put(node.op, (ONE if pairs[0].x is None else pairs[0].x, ZERO), (), "bool")
            return Pair(build.named(x, build.program.types[node.name]), ())
        case "sum" | "contract":
            return summed(build, node, pairs)
        case "max" | "min":
            return extreme(build, node, pairs[0])
        case "broadcast":
            x = build.put("broadcast", (ONE if pairs[0].x is None else pairs[0].x,), node.dims, node.dtype)
            return Pair(x, pairs[0].exponents, pairs[0].hollow)
        case "cast" if is_float(node.dtype):
            return pairs[0]
        case "log":
            return logarithm(build, node, pairs[0])
        case _:
            return None


def simple(build: Builder, node: Apply, pair: Pair) -> Pair | None:
    """The pair, or None once no exponent is left and the plain value has been defined under the node's name."""
    if pair.exponents or node.name in build.exported:
        return pair
    value = build.named(ONE if pair.x is None else pair.x, build.program.types[node.name])
    return Pair(value, (), pair.hollow)


def power(build: Builder, op: str, rest: tuple[Operand, ...], pair: Pair, exponent: float) -> Pair:
    """An operator that takes x * e^t to f(x) * e^(exponent * t)."""
    scaled = tuple((name, count * exponent) for name, count in pair.exponents)
    return Pair(None if pair.x is None else build.put(op, (pair.x, *rest)), scaled, pair.hollow)


def exponents_of(build: Builder, operand: Operand) -> Exponents:
    """The exponent of e^operand, with subtracted statistics of rows kept apart so that they can cancel."""
    name = build.named(operand, Type("f32", (), ()))
    kept: list[Operand] = []
    removed: list[tuple[str, float]] = []
    for part in terms(name, partial(opens, build), build.applies):
        count = math.prod(factor.value for factor in part if isinstance(factor, Constant))
        factors = tuple(factor for factor in part if not isinstance(factor, Constant))
        if count < 0 and any(factor in build.statistics for factor in factors):
            row = build.product(*(build.plain(factor) for factor in factors))
            removed.append((build.named(ONE if row is None else row, Type("f32", (), ())), count))
        else:
            kept.append(build.product(*(build.plain(factor) for factor in part)) or ONE)
    if not removed:
        return ((name, 1),)
    if not kept:
        return tuple(removed)
    rest = build.named(kept[0] if len(kept) == 1 else build.put("add", tuple(kept)), Type("f32", (), ()))
    if any(set(build.types[row].axes) >= set(build.types[rest].axes) for row, _ in removed):
        return ((name, 1),)
    return combine(((rest, 1),), tuple(removed))


def opens(build: Builder, operand: Operand) -> bool:
    """True for a sum or product that an exponent is taken apart at."""
    return isinstance(operand, str) and operand in build.applies and operand not in build.statistics


def reciprocal(build: Builder, pair: Pair) -> Operand | None:
    """1/x, and 0 where the pair is empty: that one line is "a fully masked row gives zeros"."""
    if pair.x is None:
        return None
    inverse = build.put("recip", (pair.x,))
    if pair.hollow:
        return build.put("where", (build.put("eq", (pair.x, ZERO), (), "bool"), ZERO, inverse))
    if not pair.exponents:
        return inverse
    return build.put("where", (build.put("eq", (build.total(pair.exponents), EMPTY), (), "bool"), ZERO, inverse))


def aligned(build: Builder, op: str, pairs: list[Pair]) -> Pair:
    """A sum, or maximum, of pairs: all brought to the largest exponent first."""
    first = pairs[0].exponents
    if all(dict(pair.exponents) == dict(first) for pair in pairs):
        hollow = all(pair.hollow or pair == NOTHING for pair in pairs)
        return Pair(build.put(op, tuple(ONE if pair.x is None else pair.x for pair in pairs)), first, hollow)
    totals = [build.total(pair.exponents) for pair in pairs]
    largest = build.put("maximum", tuple(dict.fromkeys(totals)))
    finite = build.put("finite", (largest,))
    scaled = []
    for pair, total in zip(pairs, totals, strict=True):
        # The largest is scaled by 1, also where it is infinite and the difference no number.
        same = build.put("eq", (total, largest), (), "bool")
        scale = build.put("where", (same, ONE, build.put("exp", (build.put("sub", (total, finite)),))))
        scaled.append(scale if pair.x is None else build.put("mul", (pair.x, scale)))
    return Pair(build.put(op, tuple(scaled)), ((largest, 1),))


def select(build: Builder, condition: Operand, yes: Pair, no: Pair) -> Pair:
    """A choice between pairs; the number 0 is the empty pair."""
    yes, no = emptied(build, yes), emptied(build, no)
    x = None
    if yes.x is not None or no.x is not None:
        x = build.put("where", (condition, ONE if yes.x is None else yes.x, ONE if no.x is None else no.x))
    if dict(yes.exponents) == dict(no.exponents):
        return Pair(x, yes.exponents)
    totals = (EMPTY if pair is NOTHING else build.total(pair.exponents) for pair in (yes, no))
    return Pair(x, ((build.put("where", (condition, *totals)), 1),))


def emptied(build: Builder, pair: Pair) -> Pair:
    return NOTHING if isinstance(pair.x, Constant) and pair.x.value == 0 else pair


def summed(build: Builder, node: Apply, pairs: list[Pair]) -> Pair:
    """A sum or contraction: each operand is aligned along what is summed."""
    operands = []
    exponents: Exponents = ()
    aligned = False
    for pair, arg in zip(pairs, node.args, strict=True):
        dims = set(node.dims)
        varying = tuple(e for e in pair.exponents if not dims.isdisjoint(build.types[e[0]].axes))
        exponents = combine(exponents, tuple(e for e in pair.exponents if e not in varying))
        x = pair.x
        if varying:
            shift, exponential = shifted(build, varying, node.dims, x)
            x = build.product(x, exponential)
            exponents = combine(exponents, ((shift, 1),))
            aligned = True
        kind = build.types[arg] if isinstance(arg, str) else Type(node.dtype, (), node.dims)
        needed = Type(kind.dtype, (), tuple(axis for axis in kind.axes if axis in dims))
        operands.append(build.named(ONE if x is None else x, needed))
    return Pair(build.put(node.op, tuple(operands), node.dims, node.dtype), exponents, aligned and not exponents)


def shifted(build: Builder, exponents: Exponents, dims: tuple[str, ...], x: Operand | None) -> tuple[str, Operand]:
    """The largest exponent along the dimensions, and e to the difference: one of each per value and dimension.

    Where `x` is 0 the element is nothing, however large its exponent.
    """
    total = build.total(exponents)
    if isinstance(x, str) and not set(dims).isdisjoint(build.types[x].axes):
        total = build.put("where", (build.put("eq", (x, ZERO), (), "bool"), EMPTY, total))
    assert isinstance(total, str)
    along = tuple(dim for dim in dims if dim in build.types[total].axes)
    largest = build.put("max", (total,), along)
    return largest, build.put("exp", (build.put("sub", (total, build.put("finite", (largest,)))),))


def extreme(build: Builder, node: Apply, pair: Pair) -> Pair:
    """The largest or smallest of exponentials: that of the exponents."""
    dims = set(node.dims)
    varying = tuple(e for e in pair.exponents if not dims.isdisjoint(build.types[e[0]].axes))
    staying = tuple(e for e in pair.exponents if e not in varying)
    kind = build.program.types[str(node.args[0])]
    if not varying:
        x = None if pair.x is None else build.put(node.op, (build.named(pair.x, kind),), node.dims, node.dtype)
        return Pair(x, staying, pair.hollow)
    if pair.x is None:
        largest = build.put(node.op, (build.named(build.total(varying), kind),), node.dims)
        return Pair(None, combine(((largest, 1),), staying))
    shift, exponential = shifted(build, varying, node.dims, None)
    scaled = build.named(build.product(pair.x, exponential) or ONE, kind)
    return Pair(build.put(node.op, (scaled,), node.dims, node.dtype), combine(((shift, 1),), staying))


def logarithm(build: Builder, node: Apply, pair: Pair) -> Pair:
    total = build.total(pair.exponents)
    value = total if pair.x is None else build.put("add", (build.put("log", (pair.x,)), total))
    build.statistics.add(node.name)
    return Pair(build.named(value, build.program.types[node.name]), ())
