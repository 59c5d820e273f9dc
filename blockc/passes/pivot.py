"""Pivots: sums of values with a large common offset are taken of differences from a pivot, where they would cancel.

A variance as E[x^2] - E[x]^2, the statistics and the product of a LayerNorm in one loop, or the entropy of a softmax
lose digits when x is large and varies little. So x is written as (x - p) + p, with one p for the blocks of the loop:
their largest mean, or the largest x where the sums are weighted by exp(x). Every sum becomes a polynomial in p, whose
coefficients are accumulated (`shift_1`, `exponent_shift_1`, ... of `monoids.py`). Behind the loop, what is linear in
the sums is brought to a polynomial normal form with sympy: where p cancels from a value that leaves, digits would have
been lost, and the loop gets its pivot. Where p stays (the mean itself, the root mean square) nothing cancels.

No pattern is involved: any value in the loop may be the x. Source: design, section 7; shifted sums after Chan et al.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

from blockc.ir.block import (
    REDUCTIONS,
    Apply,
    Constant,
    Definition,
    Expression,
    Fresh,
    Graph,
    Map,
    Operand,
    Output,
    Path,
    Program,
    Size,
    graph_at,
    operand_names,
    paths,
    replace_graph,
    roots,
    walk,
)
from blockc.passes.leaves import as_leaf, fold
from blockc.passes.linear import MOST_TERMS, ONE, Opening, product, reaches
from blockc.passes.normalise import normalise, prune
from blockc.passes.rules.common import Term, Writer, contraction

if TYPE_CHECKING:
    import sympy

HIGHEST = 2  # power of the pivot
MOST_VALUES = 48  # in a loop that are tried as the x


@dataclass(frozen=True, slots=True)
class Pivoted:
    """A program with pivots. `bounded` names exponentials that cannot overflow: their arguments are at most 0."""

    program: Program
    bounded: frozenset[str]
    pivots: frozenset[str]


def cancels(program: Program) -> str:
    """Why sums of a program lose digits, though it has all the pivots that it can have; "" if they do not.

    A pivot that stays beside the sum of another loop says that the values of that loop have no pivot. A sum times its
    own reciprocal is 1 up to a rounding error, which the logarithm of a sum of exponentials makes large.
    """
    found = pivot(program)
    table, links = found.program.facts.applies, found.program.facts.links
    moved = {name: name for name in found.pivots}  # what a pivot is in, with that pivot
    plain = {
        name
        for node in walk(found.program.body)
        if isinstance(node, Map)
        for output in node.outputs
        if output.monoid == "add"
        for name in output.names
    }
    for definition in walk(found.program.body):
        if not isinstance(definition, Apply):
            continue
        names = set(operand_names(definition.args))
        if definition.op in ("add", "mul") and names & moved.keys():
            moved[definition.name] = moved[min(names & moved.keys())]
        if definition.op == "mul":
            inverses = {name: table[name].args[0] for name in names if name in table and table[name].op == "recip"}
            for name, of in inverses.items():
                if of in names and any(_is_logarithm(other, table, plain) for other in names - {name, of}):
                    return f"`{definition.name}` multiplies `{of}` by its reciprocal"
        elif definition.op == "add":
            pivots = [
                next((moved[name] for name in operand_names((arg,)) if name in moved), "") for arg in definition.args
            ]
            others = [arg for arg, name in zip(definition.args, pivots, strict=True) if not name]
            if names & moved.keys() and any(
                _is_plain_sum(name, links, table, plain) for arg in others for name in _product(arg, table)
            ):
                return f"`{definition.name}` adds a sum that has no pivot to a multiple of `{max(pivots)}`"
    return ""


def _is_plain_sum(name: str, links: Mapping[str, str], table: Mapping[str, Apply], plain: set[str]) -> bool:
    """True for what a loop adds up, or an element of a list of such sums."""
    while name in links and name not in table and name not in plain:
        name = links[name]
    return name in plain


def _product(operand: Operand, table: Mapping[str, Apply]) -> tuple[str, ...]:
    """The names of the factors of a value."""
    apply = table.get(operand) if isinstance(operand, str) else None
    args = apply.args if apply is not None and apply.op == "mul" else (operand,)
    return tuple(operand_names(args))


def _is_logarithm(name: str, table: Mapping[str, Apply], plain: set[str]) -> bool:
    """True for the logarithm of sums that may be as large as exponentials, and for what adds one."""
    apply = table.get(name)
    if apply is None or apply.op not in ("log", "add"):
        return False
    names = tuple(operand_names(apply.args))
    if apply.op == "add":
        return any(_is_logarithm(other, table, plain) for other in names)
    return any(_is_large(other, table, plain) for other in names)


def _is_large(name: str, table: Mapping[str, Apply], plain: set[str]) -> bool:
    apply = table.get(name)
    if apply is None or apply.op not in ("mul", "recip"):
        return name in plain
    return any(_is_large(other, table, plain) for other in operand_names(apply.args))


def pivot(program: Program) -> Pivoted:
    """The program with a pivot in every loop whose sums would cancel."""
    result = Pivoted(program, frozenset(), frozenset())
    lists = roots(program)
    known: dict[tuple[str, str], tuple[str, Path]] = {}  # the pivot of a list along a dimension, and where it is
    for path, first in list(_loops(program)):
        node = _loop_now(result.program, path, first)
        for name in _candidates(result.program, node) if node is not None else ():
            assert node is not None
            place = lists.get(name, name), node.dim
            given, home = known.get(place, ("", ()))
            visible = given if path[: len(home)] == home else ""
            change = _Attempt.of(result.program, path, node, name, visible) if visible else None
            change = change or _Attempt.of(result.program, path, node, name, "")
            if change is not None:
                changed = normalise(prune(change.rewritten()))
                known.setdefault(place, (change.made, path))
                result = Pivoted(changed, result.bounded | change.bounded, result.pivots | {change.made})
                break
    return result


def _loop_now(program: Program, path: Path, node: Map) -> Map | None:
    """The loop as it is after pivots of others."""
    try:
        graph = graph_at(program, path)
    except KeyError:
        return None
    names = set(node.defines)
    return next((other for other in graph if isinstance(other, Map) and not names.isdisjoint(other.defines)), None)


def _loops(program: Program) -> Iterator[tuple[Path, Map]]:
    """The loops that add up contractions, with the path of the graph that they stand in."""
    table = program.facts.applies
    for path, graph in paths(program):
        for node in graph:
            if isinstance(node, Map) and any(_is_sum(node, output, table) for output in node.outputs):
                yield path, node


def _is_sum(node: Map, output: Output, table: Mapping[str, Apply]) -> bool:
    apply = table.get(output.values[0])
    return output.monoid == "add" and apply is not None and apply.op in ("contract", "sum") and node.dim in apply.dims


def _candidates(program: Program, node: Map) -> list[str]:
    """The values in a loop that have its dimension, nearest to the sums first."""
    names = [port.name for port in node.ports]
    names += [name for definition in node.body for name in definition.defines]
    wide = [name for name in names if program.types[name].is_item and node.dim in program.types[name].axes]
    return wide[: -MOST_VALUES - 1 : -1]


@dataclass(frozen=True, slots=True)
class _Sum:
    """An accumulated sum as a polynomial in the pivot: the terms by power, the numbers that all of them are times, and
    whether it has the factor exp(p)."""

    output: Output
    like: Apply
    numbers: tuple[Operand, ...]
    powers: tuple[tuple[tuple[Operand, ...], ...], ...]
    weighted: bool

    @property
    def degree(self) -> int:
        return len(self.powers) - 1


@dataclass(slots=True)
class _Attempt:
    """One loop with one of its values as the x."""

    program: Program
    path: Path
    node: Map
    x: str
    fresh: Fresh
    centred: str
    pivot: str
    factor: str
    given: str  # the pivot, if one is known outside the loop
    made: str = ""  # the name of the pivot behind the loop
    exponentials: dict[str, tuple[str, Operand]] = field(default_factory=dict)  # centred ones, with their arguments
    sums: list[_Sum] = field(default_factory=list)
    leaving: dict[str, sympy.Expr] = field(default_factory=dict)
    symbols: _Symbols | None = None

    @staticmethod
    def of(program: Program, path: Path, node: Map, x: str, given: str) -> _Attempt | None:
        """The attempt, if a pivot for this value makes something cancel."""
        fresh = Fresh(program)
        attempt = _Attempt(program, path, node, x, fresh, fresh(x), fresh(x), fresh(x), given)
        if not attempt.opened() or not attempt.may_cancel():
            return None
        return attempt if attempt.cancels() else None

    def opened(self) -> bool:
        """Write every sum of the loop as a polynomial in the pivot. False if one is none of a low degree."""
        table = dict(self.program.facts.applies)
        like = Apply(self.x, "add", (self.centred, self.pivot), (), self.program.types[self.x].dtype)
        table[self.x] = like
        self.undo_scale(table)
        for definition in self.node.body:
            if isinstance(definition, Apply) and definition.op == "exp" and self.depends(definition.args[0], table):
                rest = self.exponent(definition.args[0], table)
                if rest is None:
                    return False
                own = self.fresh(definition.name)
                self.exponentials[definition.name] = own, rest
                table[definition.name] = replace(definition, op="mul", args=(own, self.factor))
        for output in self.node.outputs:
            if not _is_sum(self.node, output, table):
                continue
            apply = table[output.values[0]]
            if any(self.depends(arg, table) for arg in apply.args):
                terms = contraction(self.opening(table), apply)
                total = None if terms is None else self.polynomial(output, apply, terms)
                if total is None:
                    return False
                self.sums.append(total)
        return True

    def may_cancel(self) -> bool:
        """False if too few powers of the pivot occur for one to cancel another."""
        degrees = sum(total.degree for total in self.sums)
        return degrees > 0 and (degrees > 1 or bool(self.given or self.exponentials))

    def undo_scale(self, table: dict[str, Apply]) -> None:
        """If the x is a multiple of another value, write that one as a multiple of the x: a scale of scores leaves the
        sums of them, but stays in their exponentials."""
        apply = self.program.facts.applies.get(self.x)
        if apply is None or apply.op != "mul":
            return
        names = [arg for arg in apply.args if isinstance(arg, str)]
        numbers = [arg for arg in apply.args if not isinstance(arg, str)]
        if len(names) == 1 and numbers and self.node.dim in self.program.types[names[0]].axes:
            inverse = tuple(fold("recip", (as_leaf(number),)) for number in numbers)
            table[names[0]] = replace(apply, name=names[0], args=(self.x, *inverse))

    def opening(self, table: Mapping[str, Apply]) -> Opening:
        moved = {self.pivot, self.factor}
        return Opening(moved.__contains__, moved.__contains__, table)

    def depends(self, operand: Operand, table: Mapping[str, Apply]) -> bool:
        return reaches(operand, {self.pivot, self.factor}.__contains__, table)

    def exponent(self, argument: Operand, table: Mapping[str, Apply]) -> Operand | None:
        """What is left of an exponent without the pivot, which it must contain once."""
        groups = self.opening(table).groups(argument)
        if groups is None or len(groups) != 2:
            return None
        rest = [group.rest for group in groups if not group.scales]
        moved = [group for group in groups if group.scales == (self.pivot,) and group.rest is None]
        return rest[0] if rest and moved else None

    def polynomial(self, output: Output, like: Apply, terms: tuple[Term, ...]) -> _Sum | None:
        if any(self.differs(rest) for _, rests in terms for rest in rests):
            return None
        weights = {scales.count(self.factor) for scales, _ in terms}
        degree = max(scales.count(self.pivot) for scales, _ in terms)
        if len(weights) != 1 or max(weights) > 1 or degree > HIGHEST:
            return None
        apart = [tuple(map(_without_numbers, rests)) for _, rests in terms]
        numbers = {tuple(sorted((n for part, _ in rests for n in part), key=repr)) for rests in apart}
        common = next(iter(numbers)) if len(numbers) == 1 else ()
        bare = [tuple(rest for _, rest in rests if rest is not None) for rests in apart]
        kept = bare if common else [rests for _, rests in terms]
        powers = tuple(
            tuple(rests for (scales, _), rests in zip(terms, kept, strict=True) if scales.count(self.pivot) == power)
            for power in range(degree + 1)
        )
        return _Sum(output, like, common, powers, weights == {1})

    def differs(self, rest: Operand) -> bool:
        """True if something else along the dimension of the loop is added to the centred value: their difference may be
        small already."""
        if not isinstance(rest, Expression):
            return False
        names = [name for arg in rest.args for name in operand_names((arg,))]
        others = [name for name in names if name != self.centred and self.node.dim in self.axes(name)]
        if rest.op == "add" and self.centred in names and others:
            return True
        return any(self.differs(arg) for arg in rest.args)

    def axes(self, name: str) -> tuple[str, ...]:
        kind = self.program.types.get(name)
        return kind.axes if kind is not None else self.program.types[self.x].axes

    # What happens behind the loop

    def cancels(self) -> bool:
        """True if the pivot cancels from a value that depends on a sum of it."""
        if self.given and self.exponentials:
            return False
        symbols = self.symbols = _Symbols(self)
        for depth in range(len(self.path) if self.given else 0):
            for definition in graph_at(self.program, self.path[:depth]):
                if isinstance(definition, Apply):
                    symbols.apply(definition)
        graph = graph_at(self.program, self.path)
        symbols.follow(graph[graph.index(self.node) + 1 :])
        for node in _enclosing(self.program, self.path)[-1:]:
            symbols.leave(*(value for output in node.outputs for value in output.values))
        if not self.path:
            symbols.leave(*(result.value for result in self.program.outputs))
        self.leaving = symbols.leaving = symbols.settled()
        shifted = [symbols.coefficient(total, 0).free_symbols for total in self.sums if total.degree]
        return any(
            not expression.has(symbols.pivot) and any(expression.free_symbols & symbol for symbol in shifted)
            for expression in self.leaving.values()
        )

    # The new program

    @property
    def bounded(self) -> frozenset[str]:
        return frozenset(own for own, _ in self.exponentials.values())

    def rewritten(self) -> Program:
        """The program with the pivot."""
        assert self.symbols is not None
        groups: dict[str, tuple[list[str], list[str]]] = {}
        write = Writer(self.program)
        write.fresh = self.fresh
        block = self.block_pivot(write)
        coefficients: dict[tuple[str, int], str] = {}
        for total in self.sums:
            if not (total.degree or total.weighted):
                continue
            monoid = monoid_of(total)
            for power, terms in enumerate(total.powers):
                name = coefficients[total.output.names[0], power] = self.fresh(total.output.names[0])
                value = self.value(write, total, terms)
                if self.given:
                    groups[name] = [name], [value]
                    continue
                names, values = groups.setdefault(monoid, ([self.fresh(self.x)], [block]))
                names.append(name)
                values.append(value)
        changed = {total.output for total in self.sums if total.degree or total.weighted}
        outputs = tuple(output for output in self.node.outputs if output not in changed)
        added = tuple(
            Output(tuple(names), tuple(values), "add" if self.given else monoid)
            for monoid, (names, values) in groups.items()
        )
        body = (*self.node.body, *write.out)
        loop = Map(self.node.dim, self.node.ports, body, (*outputs, *added), self.node.span)
        self.made = self.given or next(iter(groups.values()))[0][0]
        self.symbols.settle(coefficients, self.made)
        graph = graph_at(self.program, self.path)
        position = graph.index(self.node)
        made = [name for output in changed for name in output.names if name in self.leaving]
        behind = tuple(definition for name in made for definition in self.symbols.emitted(name))
        rest = self.symbols.replaced(graph[position + 1 :])
        return replace_graph(self.program, self.path, (*graph[:position], loop, *behind, *rest))

    def block_pivot(self, write: Writer) -> str:
        """The pivot of one block, and the values that are centred by it."""
        kind = self.program.types[self.x]
        like = Apply(self.x, "add", (), (), "f64" if kind.dtype == "f64" else "f32")
        dims = tuple(dim for dim in kind.axes if any(dim in total.like.dims for total in self.sums))
        block: Operand = self.given
        shift = block
        if self.exponentials:
            block = write.put(like, "max", (self.x,), dims)
            shift = write.put(like, "finite", (block,))
        elif not self.given:
            ones = write.put(like, "broadcast", (ONE,), dims)
            count = write.put(like, "recip", (write.put(like, "sum", (ones,), dims),))
            block = shift = write.put(like, "mul", (write.put(like, "sum", (self.x,), dims), count))
        write.out.append(Apply(self.centred, "sub", (self.x, shift), (), like.dtype))
        for own, argument in self.exponentials.values():
            write.out.append(Apply(own, "exp", (write.named(like, argument),), (), like.dtype))
        return str(block)

    def value(self, write: Writer, total: _Sum, terms: tuple[tuple[Operand, ...], ...]) -> str:
        """A coefficient of the polynomial, for one block."""
        parts = tuple(
            write.contraction(total.like, tuple(write.named(total.like, rest) for rest in rests)) for rests in terms
        )
        if not parts:
            return str(write.put(total.like, "broadcast", (Constant(0.0),)))
        return str(write.put(total.like, "add", parts))


def _factors(operand: Operand) -> tuple[Operand, ...]:
    if isinstance(operand, Expression) and operand.op == "mul":
        return tuple(factor for arg in operand.args for factor in _factors(arg))
    return (operand,)


def _without_numbers(rest: Operand) -> tuple[tuple[Operand, ...], Operand | None]:
    """The numbers among the factors of a value, and the others."""
    factors = _factors(rest)
    values: list[Operand] = [factor for factor in factors if any(operand_names((factor,)))]
    return tuple(factor for factor in factors if factor not in values), product(values)


def monoid_of(total: _Sum) -> str:
    """How the coefficients of a polynomial are accumulated."""
    if not total.degree:
        return "exponent_add"
    return f"{'exponent_' if total.weighted else ''}shift_{total.degree}"


def _enclosing(program: Program, path: Path) -> list[Map]:
    result: list[Map] = []
    graph = program.body
    for name in path:
        node = next(d for d in graph if isinstance(d, Map) and d.defines[:1] == (name,))
        result.append(node)
        graph = node.body
    return result


def _key(like: Apply, operands: tuple[Operand, ...], table: Mapping[str, Apply]) -> tuple[object, ...]:
    """What a sum is of, whatever the order of the factors and the names of their products."""
    known: dict[Operand, Counter[str]] = {}
    factors = sum((_named_factors(operand, table, known) for operand in operands), Counter[str]())
    return (tuple(sorted(like.dims)), tuple(sorted(factors.items())))


def _named_factors(operand: Operand, table: Mapping[str, Apply], known: dict[Operand, Counter[str]]) -> Counter[str]:
    """How often each factor occurs in a value, those of products with a name too."""
    apply = table.get(operand) if isinstance(operand, str) else operand
    if not isinstance(apply, Apply | Expression) or apply.op != "mul":
        return Counter((repr(operand),))
    if operand not in known:
        known[operand] = Counter()
        for arg, times in Counter(apply.args).items():
            for factor, count in _named_factors(arg, table, known).items():
                known[operand][factor] += count * times
    return known[operand]


class _Symbols:
    """What values behind a loop are in terms of its sums: polynomials where they are, else symbols of their own."""

    def __init__(self, attempt: _Attempt) -> None:
        import sympy

        self.sympy = sympy
        self.attempt = attempt
        self.program = attempt.program
        self.pivot = sympy.Symbol("pivot", real=True)
        self.factor = sympy.Symbol("factor", positive=True)
        self.count = 0
        self.operands: dict[sympy.Symbol, Operand] = {}
        self.atoms: dict[Operand, sympy.Symbol] = {}
        self.known: dict[str, sympy.Expr] = {attempt.given: self.pivot} if attempt.given else {}
        self.leaving: dict[str, sympy.Expr] = {}
        self.coefficients: dict[tuple[str, int], sympy.Expr] = {}
        self.totals: dict[tuple[object, ...], sympy.Expr] = {}  # what is accumulated, by what is summed
        self.plain_sums()
        for total in attempt.sums:
            name = total.output.names[0]
            for power, terms in enumerate(total.powers):
                self.coefficients[name, power] = self.total(total, terms)
            powers = (self.coefficient(total, power) * self.pivot**power for power in range(total.degree + 1))
            numbers = sympy.Mul(*map(self.of, total.numbers))
            self.known[name] = numbers * sympy.Add(*powers) * (self.factor if total.weighted else 1)

    def coefficient(self, total: _Sum, power: int) -> sympy.Expr:
        return self.coefficients[total.output.names[0], power]

    def plain_sums(self) -> None:
        """The sums of the loop that do not depend on the pivot: others may be made of them."""
        moved = {total.output for total in self.attempt.sums}
        for output in self.attempt.node.outputs:
            if output not in moved and _is_sum(self.attempt.node, output, self.program.facts.applies):
                apply = self.program.facts.applies[output.values[0]]
                self.totals.setdefault(_key(apply, apply.args, self.program.facts.applies), self.atom(output.names[0]))

    def total(self, total: _Sum, terms: tuple[tuple[Operand, ...], ...]) -> sympy.Expr:
        """What terms add up to: a multiple of a known sum, the number of elements, or a symbol."""
        keys = {_key(total.like, rests, self.program.facts.applies) for rests in terms}
        if not keys:
            return self.sympy.Integer(0)
        if len(keys) > 1:
            return self.symbol("s")
        (key,) = keys
        if key not in self.totals:
            loop = {self.attempt.node.dim, *self.program.whole}
            if not terms[0] and loop.issuperset(total.like.dims):
                self.totals[key] = self.sympy.Mul(*(self.atom(Size(dim)) for dim in total.like.dims))
            else:
                self.totals[key] = self.symbol("t")
        return len(terms) * self.totals[key]

    def symbol(self, stem: str) -> sympy.Symbol:
        self.count += 1
        return self.sympy.Symbol(f"{stem}{self.count}", positive=True)

    def follow(self, graph: Graph) -> None:
        """Take note of what a graph computes from the sums, and of what leaves the polynomials."""
        for definition in graph:
            match definition:
                case Apply():
                    self.apply(definition)
                case Map():
                    self.leave(*(port.source for port in definition.ports))
                    self.follow(definition.body)
                    self.leave(*(value for output in definition.outputs for value in output.values))
                case _:
                    self.leave(*definition.uses)

    def apply(self, apply: Apply) -> None:
        names = [name for name in operand_names(apply.args) if name in self.known]
        if not names:
            return
        expression = self.result(apply) if apply.op not in REDUCTIONS else None
        if expression is None:
            self.leave(*names)
        else:
            self.known[apply.name] = expression

    def result(self, apply: Apply) -> sympy.Expr | None:
        """The result of an operator in terms of the sums; None if it is no polynomial or power of one."""
        args = [self.of(arg) for arg in apply.args]
        match apply.op:
            case "add":
                return self.sympy.Add(*args)
            case "mul":
                sums = [count for count in map(self.expanded, args) if count > 1]
                return self.sympy.Mul(*args) if len(sums) < 2 or prod(sums) <= MOST_TERMS else None
            case "recip" | "log":
                single = self.normal(args[0])
                if isinstance(single, self.sympy.Add) or single.has(self.sympy.log):
                    return None
                return 1 / single if apply.op == "recip" else self.sympy.log(single)
            case _:
                return None

    def expanded(self, expression: sympy.Expr) -> int:
        """A bound on the number of terms of the polynomial normal form."""
        if expression.is_Pow and expression.exp.is_Integer:
            return int(self.expanded(expression.base) ** abs(expression.exp))
        counts = map(self.expanded, expression.args)
        return sum(counts) if expression.is_Add else prod(counts) if expression.is_Mul else 1

    def of(self, operand: Operand) -> sympy.Expr:
        match operand:
            case str():
                return self.known[operand] if operand in self.known else self.atom(operand)
            case Constant(value):
                return (
                    self.sympy.Rational(value) if value == value and abs(value) != float("inf") else self.atom(operand)
                )
            case Expression("mul", args):
                return self.sympy.Mul(*(self.of(arg) for arg in args))
            case Expression("recip", (arg,)):
                return 1 / self.of(arg)
            case Expression("sqrt", (arg,)):
                return self.sympy.sqrt(self.of(arg))
            case Expression("rsqrt", (arg,)):
                return 1 / self.sympy.sqrt(self.of(arg))
            case _:
                return self.atom(operand)

    def atom(self, operand: Operand) -> sympy.Symbol:
        if operand not in self.atoms:
            symbol = self.atoms[operand] = self.sympy.Symbol(f"a{len(self.atoms)}", positive=True)
            self.operands[symbol] = operand
        return self.atoms[operand]

    def leave(self, *names: str) -> None:
        """Take note that values leave the polynomials."""
        for name in names:
            if name in self.known and name not in self.leaving:
                self.leaving[name] = self.normal(self.known[name])

    def normal(self, expression: sympy.Expr) -> sympy.Expr:
        """The polynomial normal form."""
        apart = self.sympy.expand_log(self.sympy.expand(expression), force=True)
        return self.sympy.expand(apart.subs(self.sympy.log(self.factor), self.pivot))

    def settled(self) -> dict[str, sympy.Expr]:
        """What is computed from the coefficients: values from which the pivot cancels, and for others, which stay as
        they are, the sums that they are made of."""
        sums = {total.output.names[0] for total in self.attempt.sums}
        result: dict[str, sympy.Expr] = {}
        waiting = list(self.leaving)
        while waiting:
            name = waiting.pop()
            expression = self.normal(self.known[name])
            if name in sums or not (expression.has(self.pivot) or expression.has(self.factor)):
                result[name] = expression
            elif name != self.attempt.given:
                args = self.program.facts.applies[name].args
                waiting.extend(arg for arg in operand_names(args) if arg in self.known and arg not in result)
        return result

    # Emission

    def settle(self, names: Mapping[tuple[str, int], str], pivot: str) -> None:
        """Say how the coefficients and the pivot are called; a sum without a pivot has its own name."""
        self.operands[self.pivot] = pivot
        self.made = {names.get(place, place[0]): place[0] for place in self.coefficients}
        for place, total in sorted(self.coefficients.items(), key=lambda entry: str(entry[1]), reverse=True):
            count, symbol = total.as_coeff_Mul()
            name: Operand = names.get(place, place[0])
            if symbol.is_Symbol and (symbol not in self.operands or count == 1) and symbol not in self.atoms.values():
                self.operands[symbol] = name if count == 1 else Expression("mul", (Constant(float(1 / count)), name))

    def replaced(self, graph: Graph) -> Graph:
        """The graph with what leaves computed from the coefficients."""
        result: list[Definition] = []
        for definition in graph:
            if isinstance(definition, Map):
                result.append(
                    Map(
                        definition.dim,
                        definition.ports,
                        self.replaced(definition.body),
                        definition.outputs,
                        definition.span,
                    )
                )
            elif isinstance(definition, Apply) and definition.name in self.leaving:
                result.extend(self.emitted(definition.name))
            else:
                result.append(definition)
        return tuple(result)

    def emitted(self, name: str) -> Graph:
        """The definitions that compute a value that leaves."""
        kind = self.program.types[name]
        like = self.program.facts.applies.get(name) or Apply(name, "add", (), (), kind.dtype)
        write = Writer(self.program)
        write.fresh = self.attempt.fresh
        terms = tuple(self.term(write, like, term) for term in self.sympy.Add.make_args(self.leaving[name]))
        axes = {axis for term in self.sympy.Add.make_args(self.leaving[name]) for axis in self.axes(term)}
        missing = tuple(axis for axis in kind.axes if axis not in axes)
        total = write.put(like, "add", terms)
        return *write.out, Apply(name, "broadcast", (total,), missing, kind.dtype, like.span)

    def axes(self, term: sympy.Expr) -> set[str]:
        operands = [self.operands[symbol] for symbol in term.free_symbols if symbol is not self.factor]
        if term.has(self.factor):
            operands.append(self.operands[self.pivot])
        return {axis for name in operand_names(operands) for axis in self.axes_of(name)}

    def axes_of(self, name: str) -> tuple[str, ...]:
        if name in self.program.types:
            return self.program.types[name].axes
        attempt = self.attempt
        if name in self.made:
            return self.program.types[self.made[name]].axes
        dims = {dim for total in attempt.sums for dim in total.like.dims}
        return tuple(axis for axis in self.program.types[attempt.x].axes if axis not in dims)

    def term(self, write: Writer, like: Apply, term: sympy.Expr) -> Operand:
        factors: list[Operand] = []
        for factor in self.sympy.Mul.make_args(term):
            factors.extend(self.factors(write, like, factor))
        return write.put(like, "mul", tuple(factors))

    def factors(self, write: Writer, like: Apply, factor: sympy.Expr) -> list[Operand]:
        if factor.is_Rational:
            return [Constant(int(factor) if factor.is_Integer else float(factor))]
        base, exponent = factor.as_base_exp()
        if base.is_Rational and exponent == -1:
            return [Constant(float(1 / base))]
        operand = self.operand(write, like, base)
        if exponent.q == 2:  # of a size
            operand, exponent = Expression("sqrt", (operand,)), exponent * 2
        if exponent < 0:
            operand = self.reciprocal(write, like, base, operand)
        return [operand] * abs(int(exponent))

    def operand(self, write: Writer, like: Apply, base: sympy.Expr) -> Operand:
        if isinstance(base, self.sympy.log):
            return write.put(like, "log", (self.operand(write, like, base.args[0]),))
        if base == self.factor:
            return write.put(like, "exp", (self.operands[self.pivot],))
        return self.operands[base]

    def reciprocal(self, write: Writer, like: Apply, base: sympy.Expr, operand: Operand) -> Operand:
        """The reciprocal; of a sum of no exponentials at all it is 0."""
        if not isinstance(operand, str):
            return Expression("recip", (operand,))
        inverse = write.put(like, "recip", (operand,))
        weighted = [self.coefficient(total, 0) for total in self.attempt.sums if total.weighted]
        if base not in weighted:
            return inverse
        empty = write.put(replace(like, dtype="bool"), "eq", (self.operands[self.pivot], Constant(float("-inf"))))
        return write.put(like, "where", (empty, Constant(0.0), inverse))
