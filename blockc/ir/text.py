"""The text form of block programs: one definition per line, the memory tier of every value, parses back to the same.

    program row_sum
    dim m
    dim d = 64 whole
    array X: f32[m, d]
    array S: f32[m]
    input X: slow f32[m](m, d) = X[m, d]
    map m {
      X.1: local f32(m, d) <- X
      S.1: local f32(m) = sum[d](X.1)
      => S: slow f32[m](m) = stack(S.1)
    }
    output S = S

`<-` is a port of the map, `=>` an output. `uses` after a map lists what its body takes whole from outside.
`map n first` is the first block of a loop alone, `map n rest` all others, which start `from` what the first has given.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any, assert_never

from lark import Lark, Token, Transformer

from blockc.ir.array_program import Argument, Dim, argument_type, chunk_dim
from blockc.ir.block import (
    Apply,
    Condition,
    Constant,
    Definition,
    Expression,
    Graph,
    Index,
    Input,
    Map,
    Operand,
    Output,
    Port,
    Program,
    Reading,
    Reduce,
    Rename,
    Result,
    Size,
    Term,
    Type,
)


def format_program(program: Program) -> str:
    """The whole program as text."""
    lines = [f"program {program.name}"]
    for dim in program.dims:
        lines.append(f"dim {dim.name}{_size(dim)}{' whole' if dim.name in program.whole else ''}")
    for argument in (*program.arguments, *(result.argument for result in program.outputs)):
        lines.append(f"array {argument.name}: {argument_type(argument)}")
    for entry in program.inputs:
        kind = format_type(program.input_types[entry.name])
        lines.append(f"input {entry.name}: {kind} = {entry.argument}[{', '.join(entry.dims)}]")
    lines.extend(format_graph(program, program.body, ""))
    lines.extend(f"output {result.argument.name} = {result.value}" for result in program.outputs)
    return "\n".join(lines) + "\n"


def _size(dim: Dim) -> str:
    if dim.chunks_of is not None:
        return f" = chunks({dim.chunks_of})"
    return f" = {dim.size}" if dim.size is not None else f" = size({dim.same_as})" if dim.same_as else ""


def format_graph(program: Program, graph: Graph, indent: str) -> list[str]:
    """The lines of a graph."""
    lines: list[str] = []
    for definition in graph:
        lines.extend(format_definition(program, definition, indent))
    return lines


def format_definition(program: Program, definition: Definition, indent: str) -> list[str]:
    """The lines of one definition."""
    types = program.types
    match definition:
        case Apply(name, op, args, dims):
            return [f"{indent}{name}: {format_type(types[name])} = {op}{_marks(dims)}({_operands(args)})"]
        case Reduce(bound, sources, dim, monoid):
            return [f"{indent}{_bound(program, bound)} = reduce[{dim}, {monoid}]({', '.join(sources)})"]
        case Rename(name, source, old, new):
            return [f"{indent}{name}: {format_type(types[name])} = rename[{old} -> {new}]({source})"]
        case Map(dim, ports, body, outputs):
            uses = f" uses {', '.join(sorted(definition.captures))}" if definition.captures else ""
            inner = indent + "  "
            lines = [f"{indent}map {dim}{format_part(definition.part)}{format_where(definition.where)}{uses} {{"]
            lines += [f"{inner}{port.name}: {format_type(types[port.name])} <- {port.source}" for port in ports]
            lines += format_graph(program, body, inner)
            for output in outputs:
                lines.append(f"{inner}=> {_bound(program, output.names)} = {format_combination(output)}")
            return [*lines, f"{indent}}}"]
        case _:
            assert_never(definition)


def format_part(part: str) -> str:
    """The part of a loop that a map is, as its first line has it."""
    return "" if part == "all" else f" {part}"


def format_combination(output: Output) -> str:
    """What a map makes of the values of an output."""
    start = f" from {', '.join(output.starts)}" if output.starts else ""
    return f"{output.monoid or 'stack'}({', '.join(output.values)}){start}"


def format_where(condition: Condition | None) -> str:
    """The condition of a map, as its first line has it."""
    return "" if condition is None else f" where {format_term(condition)}"


def format_term(term: Term) -> str:
    """A condition or a part of one."""
    match term:
        case Index(dim):
            return f"index({dim})"
        case Reading(name, dims):
            return f"{name}[{', '.join(dims)}]"
        case Condition(op, args):
            return f"{op}({', '.join(map(format_term, args))})"
        case _:
            return format_operand(term)


def format_type(kind: Type) -> str:
    """A type, with the tier in words: `slow f32[m](m, d)` is a list over m of tiles, `local f32(m)` an item."""
    lists = "".join(f"[{dim}]" for dim in kind.lists)
    return f"{'local' if kind.is_item else 'slow'} {kind.dtype}{lists}({', '.join(kind.axes)})"


def format_operand(operand: Operand) -> str:
    """An operand."""
    match operand:
        case str():
            return operand
        case Constant(value):
            return str(value).lower() if isinstance(value, bool) else repr(value)
        case Size(dim):
            return f"size({dim})"
        case Expression(op, args):
            return f"{op}({_operands(args)})"
        case _:
            assert_never(operand)


def _operands(operands: tuple[Operand, ...]) -> str:
    return ", ".join(format_operand(operand) for operand in operands)


def _marks(dims: tuple[str, ...]) -> str:
    return f"[{', '.join(dims)}]" if dims else ""


def _bound(program: Program, names: tuple[str, ...]) -> str:
    return ", ".join(f"{name}: {format_type(program.types[name])}" for name in names)


GRAMMAR = r"""
start: "program" NAME dim* array* input* definition* output*
dim: "dim" NAME ["=" dim_size] [WHOLE]
dim_size: INT -> fixed | "size" "(" NAME ")" -> same | "chunks" "(" NAME ")" -> chunks
array: "array" NAME ":" DTYPE "[" [axis ("," axis)*] "]"
axis: NAME | "(" NAME ("," NAME)* ")"
input: "input" NAME ":" TYPE "=" NAME "[" [names] "]"
names: NAME ("," NAME)*
?definition: apply | map | reduce | rename
apply: typed "=" NAME ["[" names "]"] "(" [operands] ")"
reduce: typed ("," typed)* "=" "reduce" "[" NAME "," NAME "]" "(" names ")"
rename: typed "=" "rename" "[" NAME "->" NAME "]" "(" NAME ")"
map: "map" NAME [PART] ["where" condition] ["uses" names] "{" port* definition* map_output* "}"
port: typed "<-" NAME
map_output: "=>" bound "=" NAME "(" names ")" ["from" names]
bound: typed ("," typed)*
typed: NAME ":" TYPE
operands: operand ("," operand)*
?operand: NAME -> value | NUMBER -> number | "size" "(" NAME ")" -> size | NAME "(" operands ")" -> scalar
condition: NAME "(" [term ("," term)*] ")"
?term: "index" "(" NAME ")" -> index | "size" "(" NAME ")" -> size | NUMBER -> number | table | condition
table: NAME "[" [names] "]"
output: "output" NAME "=" NAME
WHOLE: "whole"
PART: "first" | "rest"
DTYPE: /(f64|f32|f16|bf16|f8e4m3|f8e5m2|i32|i8|bool)\b/
NUMBER.2: /-?(inf|nan|(\d+\.?\d*([eE][-+]?\d+)?))\b|(true|false)\b/
INT.3: /\d+\b(?![.eE])/
NAME: /[A-Za-z_][A-Za-z0-9_]*(\.[0-9]+)*/
TYPE: /(slow|local)\s+/ DTYPE /(\[\w+\])*\((\w+(,\s*\w+)*)?\)/
%import common.WS
%ignore WS
"""


def _dtype(kind: Token) -> str:
    """The element type of a type; lists and axes follow from what is around it."""
    return re.split(r"[\s\[(]+", kind, maxsplit=2)[1]


class _Build(Transformer):  # type: ignore[type-arg]
    def fixed(self, items: list[Token]) -> int:
        return int(items[0])

    def same(self, items: list[Token]) -> str:
        return str(items[0])

    def chunks(self, items: list[Token]) -> Dim:
        return chunk_dim("", str(items[0]))

    def dim(self, items: list[Any]) -> tuple[Dim, bool]:
        name, size, whole = items
        if isinstance(size, Dim):
            return replace(size, name=str(name)), whole is not None
        fixed = size if isinstance(size, int) else None
        return Dim(str(name), fixed, size if isinstance(size, str) else None), whole is not None

    def axis(self, items: list[Token]) -> tuple[str, ...]:
        return tuple(str(item) for item in items)

    def array(self, items: list[Any]) -> Argument:
        return Argument(str(items[0]), str(items[1]), tuple(axis for axis in items[2:] if axis is not None))

    def names(self, items: list[Token]) -> tuple[str, ...]:
        return tuple(str(item) for item in items)

    def typed(self, items: list[Token]) -> tuple[str, str]:
        return str(items[0]), _dtype(items[1])

    def bound(self, items: list[tuple[str, str]]) -> tuple[str, ...]:
        return tuple(name for name, _ in items)

    def input(self, items: list[Any]) -> Input:
        name, kind, argument, dims = items
        return Input(str(name), str(argument), dims or (), _dtype(kind))

    def value(self, items: list[Token]) -> str:
        return str(items[0])

    def number(self, items: list[Token]) -> Constant:
        text = str(items[0])
        if text in ("true", "false"):
            return Constant(text == "true")
        return Constant(int(text) if text.lstrip("-").isdigit() else float(text))

    def size(self, items: list[Token]) -> Size:
        return Size(str(items[0]))

    def index(self, items: list[Token]) -> Index:
        return Index(str(items[0]))

    def table(self, items: list[Any]) -> Reading:
        return Reading(str(items[0]), items[1] or ())

    def condition(self, items: list[Any]) -> Condition:
        op, *args = items
        return Condition(str(op), tuple(arg for arg in args if arg is not None))

    def scalar(self, items: list[Any]) -> Expression:
        return Expression(str(items[0]), items[1])

    def operands(self, items: list[Operand]) -> tuple[Operand, ...]:
        return tuple(items)

    def apply(self, items: list[Any]) -> Apply:
        (name, dtype), op, dims, args = items
        return Apply(name, str(op), args or (), dims or (), dtype)

    def reduce(self, items: list[Any]) -> Reduce:
        *bound, dim, monoid, sources = items
        return Reduce(tuple(name for name, _ in bound), sources, str(dim), str(monoid))

    def rename(self, items: list[Any]) -> Rename:
        (name, _), old, new, source = items
        return Rename(name, str(source), str(old), str(new))

    def port(self, items: list[Any]) -> Port:
        return Port(items[0][0], str(items[1]))

    def map_output(self, items: list[Any]) -> Output:
        bound, monoid, values, starts = items
        return Output(bound, values, None if monoid == "stack" else str(monoid), starts or ())

    def map(self, items: list[Any]) -> Map:
        dim, part, where, _, *parts = items
        ports = tuple(part for part in parts if isinstance(part, Port))
        body = tuple(part for part in parts if isinstance(part, Apply | Map | Reduce | Rename))
        outputs = tuple(part for part in parts if isinstance(part, Output))
        return Map(str(dim), ports, body, outputs, where=where, part=str(part or "all"))

    def output(self, items: list[Token]) -> tuple[str, str]:
        return str(items[0]), str(items[1])

    def start(self, items: list[Any]) -> Program:
        name, *parts = items
        dims = [part for part in parts if isinstance(part, tuple) and isinstance(part[0], Dim)]
        arguments = {part.name: part for part in parts if isinstance(part, Argument)}
        results = [part for part in parts if isinstance(part, tuple) and isinstance(part[0], str)]
        outputs = tuple(Result(arguments.pop(argument), value) for argument, value in results)
        return Program(
            str(name),
            tuple(dim for dim, _ in dims),
            frozenset(dim.name for dim, whole in dims if whole),
            tuple(arguments.values()),
            tuple(part for part in parts if isinstance(part, Input)),
            tuple(part for part in parts if isinstance(part, Apply | Map | Reduce | Rename)),
            outputs,
        )


@cache
def _parser() -> Lark:
    return Lark(GRAMMAR, parser="lalr", maybe_placeholders=True, transformer=_Build())


def parse_program(text: str) -> Program:
    """The program that `format_program` wrote. Raises lark's errors on text that is not in the form."""
    result: Any = _parser().parse(text)
    assert isinstance(result, Program)
    return result
