"""One loop with one of its values as the x that a pivot is subtracted from (`pivot.py`): whether that makes something
cancel, and the program in which it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from blockc.ir.block import (
    Apply,
    Constant,
    Expression,
    Fresh,
    Map,
    Operand,
    Output,
    Path,
    Program,
    graph_at,
    operand_names,
    replace_graph,
)
from blockc.passes.leaves import as_leaf, fold
from blockc.passes.linear import ONE, Opening, reaches
from blockc.passes.pivot_sums import Opened, Sum, apart_if_equal, is_sum, monoid_of, without_numbers
from blockc.passes.pivot_symbols import Symbols
from blockc.passes.rules.common import Term, Writer, contraction

if TYPE_CHECKING:
    import sympy

HIGHEST = 2  # power of the pivot


@dataclass(slots=True)
class Attempt:
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
    sums: list[Sum] = field(default_factory=list)
    leaving: dict[str, sympy.Expr] = field(default_factory=dict)
    symbols: Symbols | None = None

    @staticmethod
    def of(program: Program, path: Path, node: Map, x: str, given: str) -> Attempt | None:
        """The attempt, if a pivot for this value makes something cancel."""
        fresh = Fresh(program)
        attempt = Attempt(program, path, node, x, fresh, fresh(x), fresh(x), fresh(x), given)
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
            if not is_sum(self.node, output, table):
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

    def polynomial(self, output: Output, like: Apply, terms: tuple[Term, ...]) -> Sum | None:
        if any(self.differs(rest) for _, rests in terms for rest in rests):
            return None
        weights = {scales.count(self.factor) for scales, _ in terms}
        degree = max(scales.count(self.pivot) for scales, _ in terms)
        if len(weights) != 1 or max(weights) > 1 or degree > HIGHEST:
            return None
        terms = tuple((scales, equal) for scales, rests in terms for equal in apart_if_equal(rests))
        apart = [tuple(map(without_numbers, rests)) for _, rests in terms]
        numbers = {tuple(sorted((n for part, _ in rests for n in part), key=repr)) for rests in apart}
        common = next(iter(numbers)) if len(numbers) == 1 else ()
        bare = [tuple(rest for _, rest in rests if rest is not None) for rests in apart]
        kept = bare if common else [rests for _, rests in terms]
        powers = tuple(
            tuple(rests for (scales, _), rests in zip(terms, kept, strict=True) if scales.count(self.pivot) == power)
            for power in range(degree + 1)
        )
        return Sum(output, like, common, powers, weights == {1})

    def differs(self, rest: Operand) -> bool:
        """True if something else along the dimension of the loop is added to the centred value: their difference may be
        small already."""
        if not isinstance(rest, Expression):
            return False
        names = [tuple(operand_names((arg,))) for arg in rest.args]
        others = [part for part in names if self.centred not in part and any(map(self.is_wide, part))]
        if rest.op == "add" and others and len(others) < len(names):
            return True
        return any(self.differs(arg) for arg in rest.args)

    def is_wide(self, name: str) -> bool:
        return self.node.dim in self.axes(name)

    def axes(self, name: str) -> tuple[str, ...]:
        kind = self.program.types.get(name)
        return kind.axes if kind is not None else self.program.types[self.x].axes

    # What happens behind the loop

    def cancels(self) -> bool:
        """True if the pivot cancels from a value that depends on a sum of it."""
        if self.given and self.exponentials:
            return False
        symbols = self.symbols = Symbols(
            Opened(self.program, self.node, self.x, self.given, self.fresh, tuple(self.sums))
        )
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
            symbols.cancels(name) and any(expression.free_symbols & symbol for symbol in shifted)
            for name, expression in self.leaving.items()
        )

    # The new program

    @property
    def changed(self) -> list[Sum]:
        """The sums that the pivot makes others of."""
        return [total for total in self.sums if total.degree or total.weighted]

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
        for total in self.changed:
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
        changed = {total.output for total in self.changed}
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

    def value(self, write: Writer, total: Sum, terms: tuple[tuple[Operand, ...], ...]) -> str:
        """A coefficient of the polynomial, for one block."""
        parts = tuple(
            write.contraction(total.like, tuple(write.named(total.like, rest) for rest in rests)) for rests in terms
        )
        if not parts:
            return str(write.put(total.like, "broadcast", (Constant(0.0),)))
        return str(write.put(total.like, "add", parts))


def _enclosing(program: Program, path: Path) -> list[Map]:
    result: list[Map] = []
    graph = program.body
    for name in path:
        node = next(d for d in graph if isinstance(d, Map) and d.defines[:1] == (name,))
        result.append(node)
        graph = node.body
    return result
