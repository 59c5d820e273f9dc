"""Sums of products in the array program as contractions of two operands, however they are written.

`sum[x](a * b)` is `dot[x](a, b)`; a product of more factors, quotients and masks (`where(c, a * b, 0)`) among them, is
grouped by dimensions, so that no operand has more dimensions than one of its factors. A sum of several products is
taken term by term where it has more dimensions than every factor. This is the one question that is asked of the array
program: a product that is grouped badly makes intermediate values larger than any input, which no later rule can take
back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from itertools import combinations

from blockc.ir.array_program import ArrayProgram, Node
from blockc.ir.block import REDUCTIONS
from blockc.ir.dtypes import is_float
from blockc.ir.ops import result_dtype

DEEPEST = 32  # operators that are looked through for factors
MOST_FACTORS = 32
LINEAR = frozenset({"add", "sub", "neg", "mul", "div", "cast"})


def as_contractions(program: ArrayProgram) -> tuple[Node, ...]:
    """The nodes with every sum of products as contractions, without nodes that nothing uses.

    Operands that lack a reduced dimension are broadcast to it first.
    """
    rewriter = _Rewriter({node.name: node for node in program.nodes})
    for node in program.nodes:
        rewriter.add(node)
    return live(tuple(rewriter.result), {result.node for result in program.outputs})


def unused(name: str, taken: Collection[str], first: int = 1) -> str:
    """A name that is not taken, with the same stem and a number from `first` on."""
    stem, number = name.split(".")[0], first
    while f"{stem}.{number}" in taken:
        number += 1
    return f"{stem}.{number}"


def live(nodes: tuple[Node, ...], wanted: set[str]) -> tuple[Node, ...]:
    """The nodes that the wanted ones need."""
    needed = set(wanted)
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.args)
    return tuple(node for node in nodes if node.name in needed)


@dataclass(slots=True)
class _Rewriter:
    nodes: dict[str, Node]
    result: list[Node] = field(default_factory=list)
    products: dict[Factors, str] = field(default_factory=dict)  # a product in the program, by its factors
    known: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)  # the factors found, by name and depth
    made: dict[tuple[object, ...], str] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        """The node, rewritten if it sums products."""
        if node.op in ("sum", "contract"):
            node = self.by_terms(node) or self.grouped(node)
        if node.op in REDUCTIONS:
            node = replace(node, args=tuple(self.widened(node, arg) for arg in node.args))
        self.nodes[node.name] = node
        self.result.append(node)

    def widened(self, node: Node, arg: str) -> str:
        """The operand of a reduction with all the dimensions that are reduced."""
        missing = tuple(dim for dim in node.dims if dim not in self.nodes[arg].shape)
        return self.make(node, "broadcast", (arg,), missing, self.nodes[arg].dtype) if missing else arg

    def make(self, like: Node, op: str, args: tuple[str, ...], dims: tuple[str, ...], dtype: str) -> str:
        """A new operator, or an equal one that has been made before."""
        key = (op, args, dims, dtype)
        if key not in self.made:
            axes = tuple(dict.fromkeys(axis for arg in args for axis in self.nodes[arg].shape))
            shape = tuple(axis for axis in axes if axis not in dims) if op in REDUCTIONS else (*axes, *dims)
            self.put(Node(unused(like.name, self.nodes.keys()), op, args, dims, shape, dtype, None, like.span))
            self.made[key] = self.result[-1].name
        return self.made[key]

    def put(self, node: Node) -> None:
        self.nodes[node.name] = node
        self.result.append(node)

    def elementwise(self, like: Node, op: str, *args: str) -> str:
        return self.make(like, op, args, (), result_dtype(op, tuple(self.nodes[arg].dtype for arg in args)))

    # Factors

    def factors(self, like: Node, name: str, depth: int = DEEPEST) -> tuple[str, ...]:
        """The factors of a value, which may be new nodes. What is too deep or would give too many is one itself."""
        if (name, depth) not in self.known:
            self.known[name, depth] = self.taken_apart(like, name, depth)
        return self.known[name, depth]

    def taken_apart(self, like: Node, name: str, depth: int) -> tuple[str, ...]:
        node = self.nodes[name]
        found: tuple[str, ...] = (name,)
        if depth == 0:
            return found
        match node.op:
            case "mul":
                found = tuple(factor for arg in node.args for factor in self.factors(like, arg, depth - 1))
            case "div":
                above, below = (self.factors(like, arg, depth - 1) for arg in node.args)
                found = (*above, *(self.elementwise(like, "recip", factor) for factor in below))
            case "pow" if self.nodes[node.args[1]].value == 2:
                found = self.factors(like, node.args[0], depth - 1) * 2
            case "neg":
                found = (self.number(like, -1), *self.factors(like, node.args[0], depth - 1))
            case "cast" if is_float(node.dtype) and is_float(self.nodes[node.args[0]].dtype):
                found = self.factors(like, node.args[0], depth - 1)
            case "where" if self.nodes[node.args[2]].value == 0 and self.nodes[node.args[2]].op == "constant":
                found = self.masked(like, node, depth)
        if len(found) > MOST_FACTORS:
            return (name,)
        if found != (name,):
            self.products.setdefault(multiset(found), name)
        return found

    def number(self, like: Node, value: int) -> str:
        key = ("constant", value)
        if key not in self.made:
            self.put(Node(unused(like.name, self.nodes.keys()), "constant", (), (), (), "i32", value, like.span))
            self.made[key] = self.result[-1].name
        return self.made[key]

    def masked(self, like: Node, node: Node, depth: int) -> tuple[str, ...]:
        """The factors of a masked value: the mask goes to what may be infinite where others are 0, such as a logarithm,
        or to the factor that grows least by it."""
        condition, value, zero = node.args
        factors = self.factors(like, value, depth - 1)
        infinite = [k for k, factor in enumerate(factors) if self.may_be_infinite(factor)]
        if len(factors) < 2 or len(infinite) > 1:
            return (node.name,)
        axes = set(self.nodes[condition].shape)
        places = infinite or range(len(factors))
        chosen = min(places, key=lambda k: len(axes - set(self.nodes[factors[k]].shape)))
        masked = self.elementwise(like, "where", condition, factors[chosen], zero)
        return (*factors[:chosen], masked, *factors[chosen + 1 :])

    def may_be_infinite(self, name: str, depth: int = DEEPEST) -> bool:
        """True for a logarithm, for a value that a mask makes infinite, and for what is added to such a value."""
        node = self.nodes[name]
        if node.op == "where" or node.op in LINEAR:
            values = node.args[1:] if node.op == "where" else node.args
            return depth > 0 and any(self.may_be_infinite(arg, depth - 1) for arg in values)
        return node.op == "log" or (node.op == "constant" and node.value in (math.inf, -math.inf))

    # Terms

    def by_terms(self, node: Node) -> Node | None:
        """A sum of sums as a sum of its terms' sums, if that saves a value larger than all factors."""
        operand = self.nodes[node.args[0]]
        if node.op != "sum" or operand.op not in ("add", "sub"):
            return None
        terms = [self.factors(node, term) for term in self.terms(operand.name)]
        axes = set(operand.shape)
        if any(axes <= set(self.nodes[factor].shape) for factors in terms for factor in factors):
            return None
        if all(len(self.groups(factors, set(node.dims))[0]) < 2 for factors in terms):  # no product to sum
            return None
        return replace(node, op=operand.op, args=tuple(self.summed(node, arg) for arg in operand.args), dims=())

    def terms(self, name: str) -> list[str]:
        """The terms of a value. One that would have too many is one itself."""
        found = [name]
        while any(self.nodes[term].op in ("add", "sub") for term in found):
            if len(found) > MOST_FACTORS:
                return [name]
            parts = [self.nodes[term].args if self.nodes[term].op in ("add", "sub") else (term,) for term in found]
            found = [term for part in parts for term in part]
        return found

    def summed(self, like: Node, name: str) -> str:
        """The sum of a value over the dimensions of a node, rewritten."""
        shape = tuple(axis for axis in self.nodes[name].shape if axis not in like.dims)
        node = replace(like, name=unused(like.name, self.nodes.keys()), op="sum", args=(name,), shape=shape)
        self.nodes[node.name] = node  # so that what it is rewritten to takes other names
        self.add(node)
        return node.name

    def smaller(self, like: Node, factors: tuple[str, ...]) -> tuple[str, ...]:
        """The factors with masks that make one larger, but not another, as factors of zeros and ones."""
        result = list(factors)
        for at, name in enumerate(factors):
            node = self.nodes[name]
            if node.op != "where" or self.nodes[node.args[2]].op != "constant" or self.nodes[node.args[2]].value != 0:
                continue
            condition, value, _ = node.args
            axes = set(self.nodes[condition].shape)
            fits = any(axes <= set(self.nodes[other].shape) for other in factors if other != name)
            if fits and not axes <= set(self.nodes[value].shape):
                result[at] = value
                result.append(self.make(like, "cast", (condition,), (), node.dtype))
        return tuple(result)

    # Groups

    def grouped(self, node: Node) -> Node:
        """A sum or contraction with its factors grouped by dimensions: one or two operands."""
        parts = [self.factors(node, arg) for arg in node.args]
        factors = self.smaller(node, tuple(factor for part in parts for factor in part))
        groups, outside = self.groups(factors, set(node.dims))
        if len(groups) == 1 and not outside:
            if node.op == "contract" and (apart := self.without_dimension(node)) is not None:
                return apart
            pair = len(factors) == 2 and all(set(node.dims) <= set(self.nodes[factor].shape) for factor in factors)
            return replace(node, op="contract", args=factors) if pair and node.op == "sum" else node
        own = {multiset(part): arg for arg, part in zip(node.args, parts, strict=True)}
        operands = [own.get(multiset(group)) or self.product(node, group) for group in groups]
        while len(operands) > 2:
            operands, reduced = self.joined(node, operands)
            node = replace(node, dims=tuple(dim for dim in node.dims if dim not in reduced))
        op = "sum" if len(operands) == 1 else "contract"
        if not outside:
            return replace(node, op=op, args=tuple(operands))
        inner = self.make(node, op, tuple(self.widened(node, arg) for arg in operands), node.dims, node.dtype)
        return replace(node, op="mul", args=(self.product(node, outside), inner), dims=())

    def without_dimension(self, node: Node) -> Node | None:
        """A contraction of a value with one that has no reduced dimension: their product, the first one summed."""
        free = [arg for arg in node.args if set(node.dims).isdisjoint(self.nodes[arg].shape)]
        others = [arg for arg in node.args if arg not in free]
        if not free or len(others) != 1:
            return None
        return replace(node, op="mul", args=(*free, self.summed(node, others[0])), dims=())

    def groups(self, factors: tuple[str, ...], reduced: set[str]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
        """The factors by the largest sets of axes among them, and those that stay outside the sum."""
        axes = {factor: frozenset(self.nodes[factor].shape) for factor in factors}
        largest = dict.fromkeys(own for own in axes.values() if not any(own < other for other in axes.values()))
        members: dict[frozenset[str], list[str]] = {own: [] for own in largest}
        for factor in factors:
            members[next(own for own in largest if axes[factor] <= own)].append(factor)
        inside = [tuple(group) for own, group in members.items() if not reduced.isdisjoint(own)]
        outside = tuple(factor for own, group in members.items() if reduced.isdisjoint(own) for factor in group)
        return (inside, outside) if inside else ([factors], ())

    def product(self, like: Node, factors: tuple[str, ...]) -> str:
        """The product of factors: a value of the program, if it is one."""
        if len(factors) == 1:
            return factors[0]
        return self.products.get(multiset(factors)) or self.elementwise(like, "mul", *factors)

    def joined(self, node: Node, operands: list[str]) -> tuple[list[str], tuple[str, ...]]:
        """One operand less: of two, which give the smallest result, the contraction over what no other operand has; and
        the dimensions that it reduces."""

        def private(pair: tuple[str, str]) -> tuple[str, ...]:
            others = {axis for name in operands if name not in pair for axis in self.nodes[name].shape}
            both = {axis for name in pair for axis in self.nodes[name].shape}
            return tuple(dim for dim in node.dims if dim in both and dim not in others)

        def axes(pair: tuple[str, str]) -> int:
            return len({axis for name in pair for axis in self.nodes[name].shape}.difference(private(pair)))

        pair = min(combinations(operands, 2), key=axes)
        dims = private(pair)
        if dims:
            wide = tuple(self.make_wide(node, name, dims) for name in pair)
            made = self.make(node, "contract", wide, dims, node.dtype)
        else:
            made = self.elementwise(node, "mul", *pair)
        return [made, *(name for name in operands if name not in pair)], dims

    def make_wide(self, node: Node, name: str, dims: tuple[str, ...]) -> str:
        return self.widened(replace(node, dims=dims), name)


Factors = frozenset[tuple[str, int]]


def multiset(factors: Iterable[str]) -> Factors:
    """Factors without their order."""
    return frozenset(Counter(factors).items())
