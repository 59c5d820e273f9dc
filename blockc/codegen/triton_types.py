"""What a Triton kernel's text computes with: its statements in order, each with the tiles that it reads and makes.

The text is that of our emitter, so a few kinds of statements are all: assignments, loads and stores, loops, and choices
by constants, of which only what is chosen counts. A tile has a shape and a type, and an origin, which says where its
layout over threads comes from: each load and each product has its own, what is computed from positions has none.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SIZES = {
    "int1": 1, "int8": 1, "fp8e4nv": 1, "fp8e5": 1, "float16": 2, "bfloat16": 2, "float32": 4, "int32": 4,
    "float64": 8, "int64": 8,
}  # fmt: skip
_SHORT = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64", "i32": "int32", "i8": "int8"}
_ORDER = tuple(SIZES)  # operands of two types are computed in the later one
_REDUCTIONS = frozenset({"sum", "max", "min", "reduce"})


@dataclass(frozen=True, slots=True)
class Shaped:
    """A value of a kernel. `origin` is that of its layout, or None; `base` the variable that it is a view of, if it is
    one: transposed, reshaped or converted."""

    shape: tuple[int, ...]
    dtype: str
    origin: str | None = None
    base: str = ""
    narrow: str = ""  # the narrowest type that it had since it was loaded or computed
    sources: frozenset[str] = frozenset()  # the loads that it was computed from

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What all elements take."""
        return self.elements * SIZES[self.dtype]

    @property
    def least_bytes(self) -> int:
        """What they take in the narrowest type that they are at hand in."""
        return self.elements * min(SIZES[self.dtype], SIZES[self.narrow or self.dtype])


@dataclass(frozen=True, slots=True)
class Product:
    """A `tl.dot`: both operands, the result, and whether tensor cores do it."""

    left: Shaped
    right: Shaped
    result: Shaped
    exact: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A statement: the variables that it reads, those that are tiles it makes, and what happens meanwhile.

    `moved` are tiles that may have to change their layout.
    """

    reads: frozenset[str]
    makes: Mapping[str, Shaped]
    products: tuple[Product, ...] = ()
    loads: tuple[Shaped, ...] = ()
    moved: tuple[Shaped, ...] = ()
    reduced: tuple[Shaped, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Statements that are repeated (`loop`) or not."""

    body: tuple[Line | Block, ...]
    loop: bool = False


def read(text: tuple[str, ...], parameters: Mapping[str, str], constants: Mapping[str, Any]) -> Block:
    """The statements of a kernel. `parameters` are their types as Triton writes them."""
    (function,) = ast.parse("\n".join(text)).body
    assert isinstance(function, ast.FunctionDef)
    reader = _Reader(dict(constants))
    for name, kind in parameters.items():
        if kind.startswith("*"):
            reader.variables[name] = Shaped((), _SHORT.get(kind[1:], "int1" if kind == "*i1" else kind[1:]), name)
        elif kind.startswith("tensordesc"):
            reader.variables[name] = replace(tile_type(kind), origin=name)
        elif kind != "constexpr":
            reader.variables[name] = Shaped((), _SHORT.get(kind, kind))
    return Block(tuple(reader.block(function.body)))


def tile_type(kind: str) -> Shaped:
    """The tiles of a tensor descriptor, of its type as Triton writes it."""
    parts = re.fullmatch(r"tensordesc<(\w+)\[([\d, ]+)\]>", kind)
    assert parts is not None
    return Shaped(tuple(map(int, parts[2].split(","))), _SHORT.get(parts[1], parts[1]))


def lines(block: Block) -> Iterator[Line]:
    """All statements of a block."""
    for part in block.body:
        if isinstance(part, Block):
            yield from lines(part)
        else:
            yield part


@dataclass(slots=True)
class _Reader:
    constants: dict[str, Any]
    variables: dict[str, Shaped] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    loads: list[Shaped] = field(default_factory=list)
    moved: list[Shaped] = field(default_factory=list)
    reduced: list[Shaped] = field(default_factory=list)
    count: int = 0

    # Statements

    def block(self, statements: list[ast.stmt]) -> Iterator[Line | Block]:
        for statement in statements:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    yield self.line(statement, {name: value})
                case ast.Assign(targets=[ast.Tuple(elts=[ast.Name(id=first), ast.Name(id=second)])], value=value):
                    yield self.line(statement, {first: value, second: value})
                case ast.Expr(value=value):
                    yield self.line(statement, {"": value})
                case ast.If(test=test, body=body, orelse=other):
                    known = self.constant(test)
                    if known is None:
                        yield self.line(statement.test, {"": test})
                        yield Block(tuple(self.block(body)))
                        yield Block(tuple(self.block(other)))
                    else:
                        yield from self.block(body if known else other)
                case ast.For(target=ast.Name(id=name), iter=over, body=body):
                    self.variables[name] = Shaped((), "int32")
                    yield self.line(over, {"": over})
                    tuple(self.block(body))  # what one iteration leaves to the next
                    yield Block(tuple(self.block(body)), True)
                case _:
                    raise TypeError(f"a {type(statement).__name__} in a kernel")

    def line(self, node: ast.AST, made: Mapping[str, ast.expr]) -> Line:
        self.products, self.loads, self.moved, self.reduced = [], [], [], []
        results = {name: self.value(value) for name, value in made.items()}
        makes = {}
        for name, result in results.items():
            if not name:
                continue
            if self.loads and result.origin == self.loads[-1].origin:
                result = replace(result, sources=frozenset((name,)))
            self.variables[name] = replace(result, dtype=result.dtype or "float32", base=name, narrow="")
            makes[name] = self.variables[name]
        reads = frozenset(
            part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)
        )
        found = tuple(self.products), tuple(self.loads), tuple(self.moved), tuple(self.reduced)
        return Line(reads & self.variables.keys(), makes, *found)

    # Expressions

    def constant(self, node: ast.expr) -> Any:
        """What an expression of constants is, or None."""
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self.constants.get(name)
            case ast.BoolOp(op=op, values=values):
                known = [self.constant(value) for value in values]
                if None in known:
                    return None
                return any(known) if isinstance(op, ast.Or) else all(known)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                first, second = self.constant(left), self.constant(right)
                return None if first is None or second is None else first * second
            case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
                first, second = self.constant(left), self.constant(right)
                return None if first is None or second is None else first // second
        return None

    def shape(self, node: ast.expr) -> tuple[int, ...]:
        assert isinstance(node, ast.List | ast.Tuple)
        return tuple(int(self.constant(part)) for part in node.elts)

    def value(self, node: ast.expr) -> Shaped:
        match node:
            case ast.Constant(value=value):
                return Shaped((), "int1" if isinstance(value, bool) else "int32" if isinstance(value, int) else "")
            case ast.Name(id=name):
                return self.variables.get(name, Shaped((), "int32"))
            case ast.UnaryOp(operand=operand):
                return self.value(operand)
            case ast.BinOp(left=left, right=right):
                return self.together([self.value(left), self.value(right)])
            case ast.BoolOp(values=values):
                return self.together([self.value(part) for part in values])
            case ast.Compare(left=left, comparators=others):
                return replace(self.together([self.value(part) for part in (left, *others)]), dtype="int1")
            case ast.Subscript(value=inner, slice=places):
                tile = self.value(inner)
                parts = places.elts if isinstance(places, ast.Tuple) else [places]
                lengths = iter(tile.shape)
                shape = tuple(1 if isinstance(part, ast.Constant) else next(lengths) for part in parts)
                return replace(tile, shape=shape)
            case ast.Call():
                return self.call(node)
        raise TypeError(f"a {type(node).__name__} in a kernel")

    def together(self, values: list[Shaped]) -> Shaped:
        """Operands that broadcast, and have to have one layout."""
        rank = max(len(value.shape) for value in values)
        shapes = [(1,) * (rank - len(value.shape)) + value.shape for value in values]
        shape = tuple(max(lengths) for lengths in zip(*shapes, strict=True))
        dtype = max((value.dtype for value in values if value.dtype), key=_ORDER.index, default="")
        laid = [value for value in values if value.origin is not None and value.shape]
        best = max(laid, key=lambda value: (value.elements, (value.origin or "").startswith("dot")), default=None)
        origin = None if best is None else best.origin
        self.moved += [value for value in laid if value.origin != origin]
        return Shaped(shape, dtype or "float32", origin, sources=frozenset().union(*(v.sources for v in values)))

    def call(self, node: ast.Call) -> Shaped:
        match node.func:
            case ast.Attribute(value=ast.Name(id="tl"), attr=name):
                return self.function(name, node)
            case ast.Attribute(value=inner, attr="to"):
                tile = self.value(inner)
                (wanted,) = node.args
                assert isinstance(wanted, ast.Attribute)
                narrow = min(tile.narrow or tile.dtype, wanted.attr, key=lambda kind: SIZES.get(kind, 8))
                return replace(tile, dtype=wanted.attr, narrow=narrow)
            case ast.Attribute(value=ast.Name(id=name), attr="load"):  # by a tensor descriptor
                return self.loaded(self.variables[name].shape, self.variables[name].dtype)
            case _:
                return self.together([self.value(part) for part in node.args])

    def loaded(self, shape: tuple[int, ...], dtype: str) -> Shaped:
        """What is loaded, in a layout of its own."""
        self.count += 1
        self.loads.append(Shaped(shape, dtype, f"load{self.count}"))
        return self.loads[-1]

    def function(self, name: str, node: ast.Call) -> Shaped:
        arguments = node.args
        options = {word.arg: word.value for word in node.keywords}
        match name:
            case "arange":
                return Shaped((int(self.constant(arguments[1])),), "int32")
            case "full":
                wanted = arguments[2]
                assert isinstance(wanted, ast.Attribute)
                return Shaped(self.shape(arguments[0]), wanted.attr)
            case "cast":
                wanted = arguments[1]
                assert isinstance(wanted, ast.Attribute)
                return replace(self.value(arguments[0]), dtype=wanted.attr)
            case "broadcast_to":
                return replace(self.value(arguments[0]), shape=self.shape(arguments[1]), base="")
            case "load":
                return self.loaded(self.value(arguments[0]).shape, self.pointed(arguments[0]))
            case "store":
                self.value(arguments[0])
                stored = self.value(arguments[1])
                if stored.shape:
                    kind = self.pointed(arguments[0])
                    self.moved.append(replace(stored, dtype=kind))
                return stored
            case "dot":
                return self.dot(arguments, options)
            case "trans":
                tile = self.value(arguments[0])
                return replace(tile, shape=tile.shape[::-1])
            case "permute":
                tile = self.value(arguments[0])
                return replace(tile, shape=tuple(tile.shape[at] for at in self.shape(arguments[1])))
            case "reshape":
                tile, shape = self.value(arguments[0]), self.shape(arguments[1])
                if [length for length in tile.shape if length > 1] != [length for length in shape if length > 1]:
                    self.moved.append(tile)
                return replace(tile, shape=shape)
            case _ if name in _REDUCTIONS and len(arguments) > 1:
                tile, axis = self.value(arguments[0]), int(self.constant(arguments[1]))
                made = replace(tile, shape=(*tile.shape[:axis], *tile.shape[axis + 1 :]), base="")
                self.reduced.append(made)
                return made
            case "split":  # into halves, which stay where they are
                match arguments[0]:
                    case ast.Call(args=[ast.Call(args=[halved, into]), order]):
                        lengths = self.shape(into)
                        return replace(self.value(halved), shape=tuple(lengths[at] for at in self.shape(order)[:-1]))
                raise TypeError("a split of something else than a permuted tile")
            case "program_id":
                return Shaped((), "int32")
            case _:
                values = [self.value(part) for part in arguments]
                return self.together(values) if values else Shaped((), "int32")

    def dot(self, arguments: list[ast.expr], options: Mapping[str | None, ast.expr]) -> Shaped:
        left, right = self.value(arguments[0]), self.value(arguments[1])
        total = self.value(arguments[2]) if len(arguments) > 2 else None
        precision = options.get("input_precision")
        exact = isinstance(precision, ast.Constant) and precision.value == "ieee" and left.dtype == "float32"
        self.count += 1
        if total is not None and total.origin is not None and total.origin.startswith("dot"):
            origin = total.origin
        else:
            origin = f"dot{self.count}"
        sources = left.sources | right.sources
        made = Shaped((*left.shape[:-1], right.shape[-1]), "float32", origin, sources=sources)
        self.products.append(Product(left, right, made, exact))
        return made

    def pointed(self, node: ast.expr) -> str:
        """The type of what an address points to."""
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and (part.id in self.variables) and self.variables[part.id].origin == part.id:
                return self.variables[part.id].dtype
        raise TypeError("an address without a tensor")
