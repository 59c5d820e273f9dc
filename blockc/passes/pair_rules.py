"""What operators make of exponent pairs: products add exponents, equal ones cancel, a sum aligns to the largest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from blockc.ir.block import Apply, Constant, Expression, Operand, Size, Type
from blockc.ir.dtypes import is_float, real
from blockc.passes.exponent_pairs import (
    EMPTY,
    INFINITE,
    LOWEST,
    NOTHING,
    ONE,
    ZERO,
    Builder,
    Exponents,
    Logarithm,
    Pair,
    combine,
)
from blockc.passes.linear import terms
from blockc.passes.masks import is_mask

Shift = Callable[[Builder, str, tuple[str, ...]], str]


def paired(build: Builder, node: Apply) -> Pair | None:
    """The pair that the operator gives, or None if its result is plain."""
    if node.op == "exp" and node.name not in build.bounded:
        return Pair(None, exponents_of(build, node.args[0]))
    if node.op == "add" and any(arg in build.logarithms for arg in node.args):
        return sum_of_logarithms(build, node)
    pairs = [build.pair(arg) for arg in node.args]
    if not any(pair.exponents or pair.hollow for pair in pairs):
        return None
    match node.op:
        case "mul":
            if any(pair.exponents for pair in pairs):
                pairs = [as_exponent(build, *factor) for factor in zip(node.args, pairs, strict=True)]
            return simple(build, node, multiplied(build, pairs))
        case "recip":
            return Pair(reciprocal(build, pairs[0]), build.opposite(pairs[0].exponents))
        case "add" | "maximum" | "minimum":
            return aligned(build, node.op, pairs)
        case "where":
            return select(build, build.plain(node.args[0]), pairs[1], pairs[2])
        case "sqrt":
            return power(build, node.op, (), pairs[0], 0.5)
        case "rsqrt":
            root = power(build, "sqrt", (), pairs[0], 0.5)
            return Pair(reciprocal(build, root), build.opposite(root.exponents))
        case "pow" if isinstance(node.args[1], Constant) and node.args[1].value > 0:
            return power(build, node.op, node.args[1:], pairs[0], node.args[1].value)
        case "abs":
            return power(build, node.op, (), pairs[0], 1)
        case "lt" | "le" | "gt" | "ge" | "eq" | "ne" if pairs[1] == NOTHING:
            x: Operand = ONE if pairs[0].x is None else pairs[0].x
            if pairs[0].exponents:
                empty = build.put("eq", (build.total(pairs[0].exponents), EMPTY), (), "bool")
                x = build.put("where", (empty, ZERO, x), (), "f32")
            found = build.put(node.op, (x, ZERO), (), "bool")
            return Pair(build.named(found, build.program.types[node.name]), ())
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
    name = build.named(build.plain(operand), Type("f32", (), ()))
    kept: list[Operand] = []
    removed: list[tuple[str, float]] = []
    for part in terms(operand if operand in build.logarithms else name, partial(opens, build), build.applies):
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
    """A sum, or maximum, of pairs: all brought to the largest exponent first. Zero has any exponent."""
    filled = [pair for pair in pairs if pair != NOTHING]
    first = filled[0].exponents
    if all(dict(pair.exponents) == dict(first) for pair in filled):
        hollow = all(pair.hollow for pair in filled)
        return Pair(build.put(op, tuple(ONE if pair.x is None else pair.x for pair in pairs)), first, hollow)
    totals = [exponent(build, pair) for pair in pairs]
    top = build.put("maximum", tuple(dict.fromkeys(total for total in totals if total != EMPTY)))
    finite = build.put("finite", (top,))
    scaled: list[Operand] = []
    for pair, total in zip(pairs, totals, strict=True):
        if pair == NOTHING:
            scaled.append(ZERO)
            continue
        # The largest is scaled by 1, also where it is infinite and the difference no number.
        same = build.put("eq", (total, top), (), "bool")
        scale = build.put("where", (same, ONE, build.put("exp", (build.put("sub", (total, finite)),))))
        scaled.append(scale if pair.x is None else build.put("mul", (pair.x, scale)))
    return Pair(build.put(op, tuple(scaled)), ((top, 1),))


def exponent(build: Builder, pair: Pair) -> Operand:
    """The exponent of a pair among others; that of nothing where a plain number is 0."""
    if pair == NOTHING:
        return EMPTY
    if pair.exponents or not isinstance(pair.x, str):
        return build.total(pair.exponents)
    dtype = real(build.types[pair.x].dtype)
    return build.put("where", (build.put("eq", (pair.x, ZERO), (), "bool"), EMPTY, ZERO), (), dtype)


def select(build: Builder, condition: Operand, yes: Pair, no: Pair) -> Pair:
    """A choice between pairs; the number 0 is the empty pair."""
    yes, no = emptied(build, yes), emptied(build, no)
    x = None
    if yes.x is not None or no.x is not None:
        x = build.put("where", (condition, ONE if yes.x is None else yes.x, ONE if no.x is None else no.x))
    if dict(yes.exponents) == dict(no.exponents):
        return Pair(x, yes.exponents)
    if NOTHING in (yes, no) and (found := choice_or_nothing(build, condition, yes, no)) is not None:
        return Pair(x, found)
    totals = (EMPTY if pair is NOTHING else build.total(pair.exponents) for pair in (yes, no))
    return Pair(x, ((build.put("where", (condition, *totals)), 1),))


def choice_or_nothing(build: Builder, condition: Operand, yes: Pair, no: Pair) -> Exponents | None:
    """The exponents of a pair or nothing, those that are subtracted apart: they may cancel. None if none are."""
    exponents = yes.exponents if no is NOTHING else no.exponents
    added = tuple(entry for entry in exponents if entry[1] > 0)
    subtracted = tuple(entry for entry in exponents if entry[1] < 0)
    if not added or not subtracted:
        return None
    total = build.named(build.total(added), Type("f32", (), ()))
    name = build.put("where", (condition, *((total, EMPTY) if no is NOTHING else (EMPTY, total))))
    build.choices[name] = condition, total, no is NOTHING
    return ((name, 1), *subtracted)


def emptied(build: Builder, pair: Pair) -> Pair:
    return NOTHING if isinstance(pair.x, Constant) and pair.x.value == 0 else pair


def multiplied(build: Builder, pairs: list[Pair]) -> Pair:
    """The product of pairs: exponents are added."""
    exponents = build.multiplied(*(pair.exponents for pair in pairs))
    return Pair(build.product(*(pair.x for pair in pairs)), exponents, any(pair.hollow for pair in pairs))


def as_exponent(build: Builder, operand: Operand, pair: Pair) -> Pair:
    """The pair of a factor; what a mask closes is nothing, as it is where a choice between exponentials closes it."""
    if not isinstance(operand, str) or pair.exponents or pair.hollow or not is_mask(build.made_of, operand):
        return pair
    assert pair.x is not None
    closed = build.put("where", (build.put("eq", (pair.x, ZERO), (), "bool"), EMPTY, ZERO), (), "f32")
    build.closing.add(closed)
    return Pair(pair.x, ((closed, 1),))


def weighted(build: Builder, node: Apply, pairs: list[Pair]) -> tuple[Apply, list[Pair]] | None:
    """A contraction as the sum of a product, if one operand is a pair and the other has no axes beyond its.

    The largest exponent is then looked for where the weight is not 0. Not so if the exponentials are summed without
    weights, too: then the quotient of both is right without a second exponential. Of two exponents the largest sum is
    looked for, which may be far below the sum of the largest.
    """
    varying = {varying_along(build, pair, node.dims) for pair in pairs}
    several = len(varying) > 1 and () not in varying
    for one, other in ((0, 1), (1, 0)):
        arg, weight = node.args[one], node.args[other]
        weighs = pairs[one].exponents and not pairs[other].exponents and (arg, node.dims) not in build.summed
        if not isinstance(arg, str) or not isinstance(weight, str) or not (weighs or several):
            continue
        if set(build.program.types[weight].axes) <= set(build.program.types[arg].axes):
            product = multiplied(build, [pairs[one], as_exponent(build, weight, pairs[other])])
            return replace(node, op="sum", args=(arg,)), [product]
    return None


def summed(build: Builder, node: Apply, pairs: list[Pair]) -> Pair:
    """A sum or contraction: each operand is aligned along what is summed."""
    if node.op == "contract" and (product := weighted(build, node, pairs)) is not None:
        node, pairs = product
    operands = []
    exponents: Exponents = ()
    aligned = False
    groups = [varying_along(build, pair, node.dims) for pair in pairs]
    several = len({varying for varying in groups if varying}) > 1
    for pair, varying, arg in zip(pairs, groups, node.args, strict=True):
        exponents = combine(exponents, tuple(e for e in pair.exponents if e not in varying))
        x = pair.x
        if varying:
            shift, exponential = shifted(build, varying, node.dims, x, above if several else largest)
            x = build.product(x, exponential)
            exponents = combine(exponents, ((shift, 1),))
            aligned = True
        kind = build.types[arg] if isinstance(arg, str) else Type(node.dtype, (), node.dims)
        needed = Type(kind.dtype, (), tuple(axis for axis in kind.axes if axis in node.dims))
        operands.append(build.named(ONE if x is None else x, needed))
    return Pair(build.put(node.op, tuple(operands), node.dims, node.dtype), exponents, aligned and not exponents)


def varying_along(build: Builder, pair: Pair, dims: tuple[str, ...]) -> Exponents:
    """The exponents of a pair that differ along the dimensions."""
    return tuple(entry for entry in pair.exponents if not set(dims).isdisjoint(build.types[entry[0]].axes))


def largest(build: Builder, exponent: str, dims: tuple[str, ...]) -> str:
    """The largest exponent along the dimensions."""
    return build.put("max", (exponent,), tuple(dim for dim in dims if dim in build.types[exponent].axes))


def above(build: Builder, exponent: str, dims: tuple[str, ...]) -> str:
    """A whole number, at most 1 above the largest exponent: sums of such numbers are exact where they are large."""
    return build.put("floor", (build.put("add", (largest(build, exponent, dims), ONE)),))


def shifted(
    build: Builder, exponents: Exponents, dims: tuple[str, ...], x: Operand | None, shift_of: Shift = largest
) -> tuple[str, Operand]:
    """The exponent that all elements along the dimensions get, and e to the difference: one of each per value.

    Where `x` is 0 the exponent does not matter, however large. It stays one: a sum of zeros is 0, but not nothing.
    """
    total = build.total(exponents)
    if isinstance(x, str) and not set(dims).isdisjoint(build.types[x].axes):
        finite = build.put("lt", (total, INFINITE), (), "bool")  # 0 times infinity is no number
        zero = build.put("and", (finite, build.put("eq", (x, ZERO), (), "bool")), (), "bool")
        total = build.put("where", (zero, build.put("minimum", (total, LOWEST)), total))
    assert isinstance(total, str)
    shift = shift_of(build, total, dims)
    return shift, build.put("exp", (build.put("sub", (total, build.put("finite", (shift,)))),))


def extreme(build: Builder, node: Apply, pair: Pair) -> Pair:
    """The largest or smallest of exponentials: that of the exponents."""
    varying = varying_along(build, pair, node.dims)
    staying = tuple(e for e in pair.exponents if e not in varying)
    kind = build.program.types[str(node.args[0])]
    maybe_empty = tuple(dim for dim in node.dims if dim in build.program.whole)
    if not varying:
        x = None if pair.x is None else build.put(node.op, (build.named(pair.x, kind),), node.dims, node.dtype)
        return Pair(x, staying, pair.hollow)
    if pair.x is None:
        best = build.put(node.op, (build.named(build.total(varying), kind),), node.dims)
        found = Pair(None, combine(((best, 1),), staying))
        return found if node.op == "min" else largest_of_some(build, node.name, best, maybe_empty, found)
    shift, exponential = shifted(build, varying, node.dims, None)
    scaled = build.named(build.product(pair.x, exponential) or ONE, kind)
    x = build.put(node.op, (scaled,), node.dims, node.dtype)
    return Pair(x, combine(((if_some(build, maybe_empty, shift), 1),), staying))


def largest_of_some(build: Builder, name: str, best: str, dims: tuple[str, ...], pair: Pair) -> Pair:
    """The largest of exponentials, whose exponent is `best`, or -inf if there are none.

    A loop that goes on comparing does this in the end.
    """
    empty = no_elements(build, dims)
    if name in build.compared or empty is None:
        build.extremes[name] = dims
        return pair
    found = tuple((if_some(build, dims, e) if e == best else e, count) for e, count in pair.exponents)
    return Pair(Expression("where", (empty, EMPTY, ONE)), found)


def if_some(build: Builder, dims: tuple[str, ...], exponent: str) -> str:
    """The exponent, or 0 where there is nothing along the dimensions: that of the number -inf."""
    empty = no_elements(build, dims)
    return exponent if empty is None else build.put("where", (empty, ZERO, exponent))


def no_elements(build: Builder, dims: tuple[str, ...]) -> Operand | None:
    """A number that is true if one of the dimensions has size 0; None if none can have."""
    unknown = {dim.name for dim in build.program.dims if not dim.size}
    empty = tuple(Expression("eq", (Size(dim), ZERO)) for dim in dict.fromkeys(dims) if dim in unknown)
    return None if not empty else empty[0] if len(empty) == 1 else Expression("or", empty)


def logarithm(build: Builder, node: Apply, pair: Pair) -> Pair:
    """log x + t, as a number and as a sum that others may join."""
    small = () if pair.x is None else (build.put("log", (pair.x,)),)
    total = build.total(pair.exponents)
    build.statistics.add(node.name)
    if pair.exponents:
        build.logarithms[node.name] = Logarithm(pair.exponents, small)
    return Pair(build.named(build.put("add", (*small, total)) if small else total, build.program.types[node.name]), ())


def sum_of_logarithms(build: Builder, node: Apply) -> Pair:
    """A sum with logarithms of pairs in it: first what nearly cancels, last the logarithms of payloads."""
    large: Exponents = ()
    small: tuple[Operand, ...] = ()
    for arg in node.args:
        known = build.logarithms.get(arg) if isinstance(arg, str) else None
        if known is not None:
            large, small = combine(large, known.large), (*small, *known.small)
        elif isinstance(arg, str):
            name, count = multiple_of(build, arg)
            large = combine(large, ((build.named(build.plain(name), build.types[name]), count),))
        else:
            small = (*small, arg)
    build.logarithms[node.name] = Logarithm(large, small)
    parts = (*build.close(large), *small)
    total = build.put("add", parts) if len(parts) > 1 else parts[0] if parts else ZERO
    return Pair(build.named(total, build.program.types[node.name]), ())


def multiple_of(build: Builder, name: str) -> tuple[str, float]:
    """The value that a value is a multiple of, and by which number."""
    node = build.applies.get(name)
    names = [arg for arg in node.args if isinstance(arg, str)] if node is not None and node.op == "mul" else []
    numbers = [arg.value for arg in node.args if isinstance(arg, Constant)] if node is not None else []
    if len(names) != 1 or node is None or len(numbers) != len(node.args) - 1 or names[0] not in build.types:
        return name, 1
    return names[0], math.prod(numbers)


def multiple(build: Builder, node: Apply) -> None:
    """Note that a multiple of a sum of logarithms is one."""
    known = [build.logarithms[arg] for arg in node.args if isinstance(arg, str) and arg in build.logarithms]
    numbers = [arg.value for arg in node.args if isinstance(arg, Constant)]
    if node.op == "mul" and len(known) == 1 and len(numbers) == len(node.args) - 1:
        factor = math.prod(numbers)
        scaled = tuple(build.times(operand, factor) for operand in known[0].small)
        build.logarithms[node.name] = Logarithm(combine((), known[0].large, factor), scaled)
