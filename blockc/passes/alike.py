"""Programs that differ in their names only: what they have in common, and which name stands for which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from blockc.ir.block import (
    Apply,
    Condition,
    Constant,
    Definition,
    Expression,
    Index,
    Map,
    Operand,
    Output,
    Program,
    Reading,
    Reduce,
    Size,
    Term,
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """What programs are but for names: equal for programs of which one is the other with all names replaced, which then
    stand in the same places of `names` and `dims`."""

    key: object
    names: tuple[str, ...]
    dims: tuple[str, ...]


def pattern(programs: tuple[Program, ...]) -> Pattern:
    """The pattern of programs that have dimensions in common."""
    reader = _Reader()
    key = tuple(map(reader.program, programs))
    return Pattern(key, tuple(reader.names), tuple(reader.dims))


@dataclass(slots=True)
class _Reader:
    names: dict[str, int] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)

    def name(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names))

    def dim(self, dim: str | None) -> int:
        return -1 if dim is None else self.dims.setdefault(dim, len(self.dims))

    def all_names(self, names: Iterable[str]) -> tuple[int, ...]:
        return tuple(map(self.name, names))

    def all_dims(self, dims: Iterable[str]) -> tuple[int, ...]:
        return tuple(map(self.dim, dims))

    def program(self, program: Program) -> object:
        dims = tuple(
            (self.dim(dim.name), dim.size, self.dim(dim.same_as), self.dim(dim.chunks_of), dim.name in program.whole)
            for dim in program.dims
        )
        inputs = tuple((self.name(entry.name), self.all_dims(entry.dims), entry.dtype) for entry in program.inputs)
        body = tuple(map(self.definition, program.body))
        outputs = tuple(
            (self.name(result.value), result.argument.dtype, self.all_dims(result.argument.dims))
            for result in program.outputs
        )
        return dims, inputs, body, outputs

    def definition(self, definition: Definition) -> object:
        match definition:
            case Apply(name, op, args, dims, dtype):
                return op, tuple(map(self.operand, args)), self.name(name), self.all_dims(dims), dtype
            case Map(dim, ports, body, outputs, _, where):
                return (
                    self.dim(dim),
                    tuple((self.name(port.source), self.name(port.name)) for port in ports),
                    tuple(map(self.definition, body)),
                    tuple(map(self.output, outputs)),
                    None if where is None else self.term(where),
                    definition.part,
                )
            case Reduce(names, sources, dim, monoid):
                return monoid, self.all_names(sources), self.all_names(names), self.dim(dim)
            case _:
                dims = (definition.old, definition.new)
                return "rename", self.name(definition.source), self.name(definition.name), self.all_dims(dims)

    def output(self, output: Output) -> object:
        starts = self.all_names(output.starts)
        return self.all_names(output.values), starts, self.all_names(output.names), output.monoid

    def operand(self, operand: Operand) -> object:
        match operand:
            case str():
                return self.name(operand)
            case Size(dim):
                return "size", self.dim(dim)
            case Expression(op, args):
                return op, tuple(map(self.operand, args))
            case Constant(value):
                return "constant", repr(value)

    def term(self, term: Term) -> object:
        match term:
            case Index(dim):
                return "index", self.dim(dim)
            case Reading(name, dims):
                return "reading", self.name(name), self.all_dims(dims)
            case Condition(op, args):
                return op, tuple(map(self.term, args))
            case _:
                return self.operand(term)
