"""What is computed from the sums of a loop, as polynomials in the pivot (`pivot.py`): brought to normal form with
sympy, and written as tile operators again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from blockc.ir.block import (
    REDUCTIONS,
    Apply,
    Constant,
    Definition,
    Expression,
    Graph,
    Map,
    Operand,
    Size,
    operand_names,
)
from blockc.passes.linear import MOST_TERMS
from blockc.passes.pivot_sums import Opened, Sum, is_sum
from blockc.passes.rules.common import Writer

if TYPE_CHECKING:
    import sympy


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


class Symbols:
    """What values behind a loop are in terms of its sums: polynomials where they are, else symbols of their own."""

    def __init__(self, loop: Opened) -> None:
        import sympy

        self.sympy = sympy
        self.loop = loop
        self.program = loop.program
        self.pivot = sympy.Symbol("pivot", real=True)
        self.factor = sympy.Symbol("factor", positive=True)
        self.count = 0
        self.operands: dict[sympy.Symbol, Operand] = {}
        self.atoms: dict[Operand, sympy.Symbol] = {}
        self.known: dict[str, sympy.Expr] = {loop.given: self.pivot} if loop.given else {}
        self.moved = {total.output.names[0] for total in loop.sums} | self.known.keys()  # what depends on the pivot
        self.leaving: dict[str, sympy.Expr] = {}
        self.coefficients: dict[tuple[str, int], sympy.Expr] = {}
        self.totals: dict[tuple[object, ...], sympy.Expr] = {}  # what is accumulated, by what is summed
        self.equal: dict[Operand, str] = {}  # for the sum of a loop that has it twice, its first name
        self.opened: dict[sympy.Symbol, sympy.Expr] = {}  # what the sums of the pivot are
        self.plain_sums()
        for total in loop.sums:
            name = total.output.names[0]
            for power, terms in enumerate(total.powers):
                self.coefficients[name, power] = self.total(total, terms)
            powers = (self.coefficient(total, power) * self.pivot**power for power in range(total.degree + 1))
            numbers = sympy.Mul(*map(self.of, total.numbers))
            symbol = self.known[name] = self.symbol("u")
            self.opened[symbol] = numbers * sympy.Add(*powers) * (self.factor if total.weighted else 1)

    def coefficient(self, total: Sum, power: int) -> sympy.Expr:
        return self.coefficients[total.output.names[0], power]

    def plain_sums(self) -> None:
        """The sums of the loop that do not depend on the pivot: others may be made of them."""
        moved = {total.output for total in self.loop.sums}
        first: dict[tuple[object, ...], str] = {}
        for output in self.loop.node.outputs:
            if output not in moved and is_sum(self.loop.node, output, self.program.facts.applies):
                apply = self.program.facts.applies[output.values[0]]
                key = _key(apply, apply.args, self.program.facts.applies)
                (name,) = output.names
                self.equal[name] = first.setdefault(key, name)
                self.known[name] = self.totals[key] = self.atom(name)

    def total(self, total: Sum, terms: tuple[tuple[Operand, ...], ...]) -> sympy.Expr:
        """What terms add up to: a multiple of a known sum, the number of elements, or a symbol."""
        keys = {_key(total.like, rests, self.program.facts.applies) for rests in terms}
        if not keys:
            return self.sympy.Integer(0)
        if len(keys) > 1:
            return self.symbol("s")
        (key,) = keys
        if key not in self.totals:
            loop = {self.loop.node.dim, *self.program.whole}
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
            return
        self.known[apply.name] = expression
        if not self.moved.isdisjoint(names):
            self.moved.add(apply.name)

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
        expression = self.opened.get(expression, expression)
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
        operand = self.equal.get(operand, operand)
        if operand not in self.atoms:
            symbol = self.atoms[operand] = self.sympy.Symbol(f"a{len(self.atoms)}", positive=True)
            self.operands[symbol] = operand
        return self.atoms[operand]

    def leave(self, *names: str) -> None:
        """Take note that values leave the polynomials."""
        for name in names:
            if name in self.moved and name not in self.leaving:
                self.leaving[name] = self.normal(self.known[name])

    def normal(self, expression: sympy.Expr) -> sympy.Expr:
        """The polynomial normal form."""
        apart = self.sympy.expand_log(self.sympy.expand(expression.xreplace(self.opened)), force=True)
        return self.sympy.expand(apart.subs(self.sympy.log(self.factor), self.pivot))

    def settled(self) -> dict[str, sympy.Expr]:
        """What is computed from the coefficients: values in which the pivot cancels, and for others, which stay as they
        are, the sums that they are made of."""
        sums = {total.output.names[0] for total in self.loop.sums}
        result: dict[str, sympy.Expr] = {}
        waiting = list(self.leaving)
        while waiting:
            name = waiting.pop()
            if name in sums or self.cancels(name):
                result[name] = self.normal(self.known[name])
            elif name != self.loop.given:
                args = self.program.facts.applies[name].args
                waiting.extend(arg for arg in operand_names(args) if arg in self.moved and arg not in result)
        return result

    def cancels(self, name: str) -> bool:
        """True if a value does not depend on the pivot, or is a sum in which a multiple of it vanishes."""
        apply, expression = self.program.facts.applies.get(name), self.normal(self.known[name])
        if not expression.has(self.pivot) and not expression.has(self.factor):
            return True
        if apply is None or apply.op != "add" or expression.has(self.factor):
            return False
        terms = self.sympy.Add.make_args(self.sympy.expand(self.known[name]))
        parts = (self.multiples(self.normal(term)) for term in terms)
        return not set().union(*parts) <= self.multiples(expression)

    def multiples(self, expression: sympy.Expr) -> set[sympy.Expr]:
        """The terms that are multiples of the pivot, without their numbers."""
        return {term.as_coeff_Mul()[1] for term in self.sympy.Add.make_args(expression) if term.has(self.pivot)}

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
        write.fresh = self.loop.fresh
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
        loop = self.loop
        if name in self.made:
            return self.program.types[self.made[name]].axes
        dims = {dim for total in loop.sums for dim in total.like.dims}
        return tuple(axis for axis in self.program.types[loop.x].axes if axis not in dims)

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
        weighted = [self.coefficient(total, 0) for total in self.loop.sums if total.weighted]
        if base not in weighted:
            return inverse
        empty = write.put(replace(like, dtype="bool"), "eq", (self.operands[self.pivot], Constant(float("-inf"))))
        return write.put(like, "where", (empty, Constant(0.0), inverse))
