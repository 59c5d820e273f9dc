"""Exponent pairs: values x * e^t, and the operators that are put down for them (design, section 7)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from blockc.ir.block import Apply, Constant, Definition, Fresh, Operand, Program, Type, apply_axes, walk
from blockc.ir.dtypes import real
from blockc.passes.masks import Origins

ZERO, ONE, EMPTY = Constant(0.0), Constant(1.0), Constant(-math.inf)
INFINITE = Constant(math.inf)
LOWEST = Constant(-1e30)  # the exponent of a zero: below all others, and still finite where it is added up

Exponents = tuple[tuple[str, float], ...]  # names with how often each counts, in order of appearance, none with 0

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """x * e^t, where t is the sum of `exponents` and `x` is None for 1.

    `hollow`: the exponents cancelled in a sum of exponentials, which is 0 where all that it adds up are exact zeros.
    """

    x: Operand | None
    exponents: Exponents
    hollow: bool = False


NOTHING = Pair(ZERO, ())


def combine(first: Exponents, second: Exponents, sign: float = 1) -> Exponents:
    """The sum, or difference, of two sums of exponents; what cancels is gone."""
    counts = dict(first)
    for name, count in second:
        counts[name] = counts.get(name, 0) + sign * count
    return tuple((name, count) for name, count in counts.items() if count != 0)


@dataclass(frozen=True, slots=True)
class Logarithm:
    """The sum of `large`, exponents and what has been added to them, and of `small`, logarithms of payloads.

    Kept apart since a large exponent swallows the digits of the rest, unless what it nearly cancels with comes first.
    """

    large: Exponents
    small: tuple[Operand, ...]


@dataclass(slots=True)
class Scope:
    """A graph under construction: its definitions, the names that it binds, and its operators by what they compute."""

    out: list[Definition] = field(default_factory=list)
    bound: set[str] = field(default_factory=set)
    known: dict[tuple[object, ...], str] = field(default_factory=dict)


@dataclass(slots=True)
class Builder:
    """The program under construction, and what is known of its values.

    `pairs`: the values of the old program that are carried as pairs. `applies`: its tile operators. `statistics`: what
    is -inf only together with all that it is subtracted from. `exported`: what becomes an output, stored plain.
    `bounded`: exponentials of what is at most 0, which stay plain. `summed`: values that are added up as they are, and
    along which dimensions. `closing`: exponents that are -inf where a mask closes, where the payload is 0, and else 0.
    `compared`: what loops accumulate by maximum or minimum. `extremes`: the dimensions along which a maximum is taken.
    `choices`: exponents that are another one where a condition holds (True) or does not (False), and elsewhere -inf.
    """

    program: Program
    exported: frozenset[str]
    bounded: frozenset[str]
    compared: frozenset[str] = frozenset()
    fresh: Fresh = field(init=False)
    types: dict[str, Type] = field(init=False)
    made_of: Origins = field(init=False)
    summed: frozenset[tuple[Operand, tuple[str, ...]]] = field(init=False)
    statistics: set[Operand] = field(default_factory=set)
    closing: set[str] = field(default_factory=set)
    choices: dict[str, tuple[Operand, str, bool]] = field(default_factory=dict)
    extremes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    applies: dict[str, Apply] = field(default_factory=dict)
    pairs: dict[str, Pair] = field(default_factory=dict)
    logarithms: dict[str, Logarithm] = field(default_factory=dict)
    scopes: list[Scope] = field(default_factory=list)
    origins: dict[str, object] = field(default_factory=dict)
    derived: dict[tuple[object, ...], object] = field(default_factory=dict)
    parts: dict[object, tuple[object, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fresh = Fresh(self.program)
        self.types = dict(self.program.types)
        facts = self.program.facts
        self.made_of = Origins(facts.applies, facts.links, facts.types)
        sums = (node for node in walk(self.program.body) if isinstance(node, Apply) and node.op == "sum")
        self.summed = frozenset((node.args[0], node.dims) for node in sums)

    def put(self, op: str, args: tuple[Operand, ...], dims: tuple[str, ...] = (), dtype: str = "") -> str:
        """The name of an operator's result: one that exists in this graph, or a new one."""
        names = [arg for arg in args if isinstance(arg, str)]
        dtype = dtype or real(*(self.types[name].dtype for name in names))
        key = (op, args, dims, dtype)
        for scope in reversed(self.scopes):
            if key in scope.known:
                return scope.known[key]
        stem = names[0] if names else "c"
        return self.place(Apply(self.fresh(stem), op, args, dims, dtype), key)

    def place(self, apply: Apply, key: tuple[object, ...]) -> str:
        scope = self.scopes[-1]
        scope.out.append(apply)
        scope.bound.add(apply.name)
        scope.known[key] = apply.name
        self.types[apply.name] = Type(apply.dtype, (), apply_axes(self.program, apply, self.types))
        self.derive(apply.name, apply.op, *map(self.origin, apply.args), apply.dims)
        return apply.name

    def named(self, operand: Operand, kind: Type) -> str:
        """A name for an operand, with all the axes of `kind`."""
        axes = self.types[operand].axes if isinstance(operand, str) else ()
        missing = tuple(axis for axis in kind.axes if axis not in axes)
        if isinstance(operand, str) and not missing:
            return operand
        return self.put("broadcast", (operand,), missing, kind.dtype)

    def product(self, *factors: Operand | None) -> Operand | None:
        kept = tuple(factor for factor in factors if factor is not None)
        return self.put("mul", kept) if len(kept) > 1 else kept[0] if kept else None

    def aligned(self, values: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """The largest of the exponents of values, and the values as multiples of its exponential."""
        pairs = [self.pairs.get(value, Pair(value, ())) for value in values]
        kinds = [self.types[value] for value in values]
        totals = [self.total(pair.exponents) for pair in pairs]
        dtype = kinds[0].dtype
        wide = Type(dtype, (), self.program.ordered({axis for kind in kinds for axis in kind.axes}))
        largest = (
            self.named(self.put("maximum", tuple(dict.fromkeys(totals)), (), dtype), wide)
            if len(set(totals)) > 1
            else self.named(totals[0], Type(dtype, (), ()))
        )
        numbers = []
        for pair, own, kind in zip(pairs, totals, kinds, strict=True):
            scale = self.put("exp", (self.put("sub", (own, self.put("finite", (largest,)))),))
            number = self.product(pair.x, None if own == largest else scale)
            numbers.append(self.named(ONE if number is None else number, kind))
        return largest, tuple(numbers)

    def multiplied(self, *parts: Exponents) -> Exponents:
        """The exponents of a product. What a mask closes stays closed, whatever else it is multiplied with."""
        result: Exponents = ()
        for part in parts:
            result = combine(result, part)
        closing = dict.fromkeys(name for part in parts for name, _ in part if name in self.closing)
        return (*((name, 1) for name in closing), *(entry for entry in result if entry[0] not in closing))

    def opposite(self, exponents: Exponents) -> Exponents:
        """The exponents of a reciprocal: that of nothing is nothing."""
        return tuple((name, count if name in self.closing else -count) for name, count in exponents)

    def total(self, exponents: Exponents) -> Operand:
        """The sum of exponents. What is subtracted is made finite: nothing less nothing is nothing, not NaN.

        Those that count the same are summed first: twice a difference of large ones fits where twice one does not.
        Before that comes what nearly cancels, a value and the maximum of such values.
        What is -inf by choice stays so whatever is added, be it no number.
        """
        for name, count in exponents:
            if name in self.choices and count == 1 and len(exponents) > 1:
                condition, chosen, holds = self.choices[name]
                others = tuple(entry for entry in exponents if entry[0] != name)
                inner = self.total(combine(((chosen, 1),), others))
                return self.put("where", (condition, *((inner, EMPTY) if holds else (EMPTY, inner))))
        result: Operand = ZERO
        for size in dict.fromkeys(abs(count) for _, count in exponents):
            added = tuple(name for name, count in exponents if count == size)
            removed = tuple(name for name, count in exponents if count == -size)
            part: Operand = ZERO
            for near, less in self.beside_maxima(added, removed):
                summed: Operand = self.put("add", near) if len(near) > 1 else near[0] if near else ZERO
                for name in less:
                    summed = self.put("sub", (summed, self.put("finite", (name,))))
                part = summed if part == ZERO else self.put("add", (part, summed))
            part = self.times(part, size)
            result = part if result == ZERO else self.put("add", (result, part))
        return result

    def beside_maxima(self, added: Names, removed: Names) -> list[tuple[Names, Names]]:
        """What is added and what is removed, in parts: each value of which a maximum is removed, and all others."""
        if len(added) < 2:
            return [(added, removed)]
        parts: list[tuple[Names, Names]] = []
        for name in added:
            highest = next((other for other in removed if self.is_maximum(other, name)), None)
            if highest is not None:
                parts.append(((name,), (highest,)))
                added, removed = (tuple(n for n in names if n not in (name, highest)) for names in (added, removed))
        return [*parts, (added, removed)] if added or removed else parts

    def times(self, operand: Operand, count: float) -> Operand:
        return operand if count == 1 else self.put("mul", (operand, Constant(count)))

    def close(self, terms: Exponents) -> list[Operand]:
        """The terms of a sum, those that nearly cancel as differences: a value and the maximum of such values."""
        parts: list[Operand] = []
        left = dict(terms)
        for name, count in terms:
            highest = next((n for n, c in left.items() if c == -count and self.is_maximum(n, name)), None)
            if name in left and highest is not None:
                del left[name], left[highest]
                parts.append(self.times(self.put("sub", (name, highest)), count))
        return [*parts, *(self.times(name, count) for name, count in left.items())]

    # Where values come from

    def origin(self, operand: Operand) -> object:
        """A number that is the same for values computed alike, whichever loop computes them."""
        return self.origins.setdefault(operand, len(self.origins)) if isinstance(operand, str) else operand

    def derive(self, name: str, *parts: object) -> None:
        """Note that a value is computed from `parts`: an operator and origins."""
        self.origins[name] = self.derived.setdefault(parts, self.origin(name))
        self.parts[self.origins[name]] = parts

    def element(self, name: str, source: str, dim: str) -> None:
        """Note that a value is the element of a list: of a stacked one, what was stacked."""
        match self.parts.get(self.origin(source)):
            case ("stack", origin, stacked) if stacked == dim:
                self.origins[name] = origin
            case _:
                self.derive(name, "element", self.origin(source), dim)

    def combined(self, name: str, value: str, monoid: str | None, dim: str) -> None:
        """Note what a map gives: a stacked list, or the maximum, which is one of values like those of a block."""
        if monoid is None:
            self.derive(name, "stack", self.origin(value), dim)
        elif monoid == "max":
            self.origins[name] = self.origin(value)

    def is_maximum(self, name: str, of: str) -> bool:
        """True if `name` is a maximum of values like `of`."""
        match self.parts.get(self.origin(name)):
            case ("max", origin, *_):
                return origin == self.origin(of)
            case _:
                return False

    def unwrap(self, pair: Pair, dtype: str = "") -> Operand:
        """The plain value of a pair."""
        if all(name in self.closing for name, _ in pair.exponents):
            same = not dtype or not isinstance(pair.x, str) or self.types[pair.x].dtype == dtype
            return ONE if pair.x is None else pair.x if same else self.put("cast", (pair.x,), (), dtype)
        (name, count), *others = pair.exponents
        alone = pair.x is None and not others  # e^-t is infinite where t is -inf: only a difference has to be finite
        total = self.times(name, count) if alone else self.total(pair.exponents)
        exponential = self.put("exp", (total,), (), dtype if pair.x is None else "")
        return exponential if pair.x is None else self.put("mul", (pair.x, exponential), (), dtype)

    def plain(self, operand: Operand) -> Operand:
        pair = self.pairs.get(operand) if isinstance(operand, str) else None
        return operand if pair is None else self.unwrap(pair)

    def pair(self, operand: Operand) -> Pair:
        """An operand as a pair; a plain one has no exponents."""
        found = self.pairs.get(operand) if isinstance(operand, str) else None
        return found if found is not None else Pair(operand, ())
