"""The block programs of consecutive parts as one program: the values that go from part to part are lists of it.

Every part keeps dimensions of its own, since it may cut them into other blocks or keep others whole: the first one that
has a dimension takes its name, those behind it take `NAME_1`, `NAME_2` and so on, by the number of the part. What a
part reads of another one is renamed, dimension by dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from blockc.ir.array_program import Argument, ArrayProgram, Dim, chunk_dim
from blockc.ir.block import (
    Apply,
    Definition,
    Expression,
    Input,
    Map,
    Operand,
    Output,
    Port,
    Program,
    Reduce,
    Rename,
    Result,
    Size,
    walk,
)
from blockc.ir.verify import verify

Names = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Naming:
    """What the dimensions and the values of a part are called in the joined program."""

    dims: Names
    values: Names


def namings(program: ArrayProgram, parts: Sequence[Sequence[Program]]) -> tuple[Naming, ...]:
    """Names for parts, each given as programs that share them. `program` is what they are the parts of."""
    dims = _dim_names({dim.name for dim in program.dims}, [part[0].dims for part in parts])
    every = [dict.fromkeys(name for variant in part for name in _bound(variant)) for part in parts]
    numbers: dict[str, int] = {}
    for name in (name for names in every for name in names):
        stem, _, suffix = name.partition(".")
        numbers[stem] = max(numbers.get(stem, 1), int(suffix) + 1 if suffix.isdigit() else 1)
    taken: set[str] = set()
    values: list[dict[str, str]] = []
    for names in every:
        now = {}
        for name in names:
            now[name] = name
            if name in taken:
                stem = name.partition(".")[0]
                now[name] = f"{stem}.{numbers[stem]}"
                numbers[stem] += 1
        taken.update(now.values())
        values.append(now)
    return tuple(Naming(*pair) for pair in zip(dims, values, strict=True))


def _dim_names(known: set[str], parts: Sequence[tuple[Dim, ...]]) -> list[dict[str, str]]:
    everywhere = known.union(dim.name for part in parts for dim in part)
    taken: set[str] = set()
    found = []
    for at, part in enumerate(parts):
        now = {}
        for dim in part:
            name = dim.name
            if name in taken or (dim.chunks_of is not None and name in known):
                name = f"{dim.name}_{at}"
                while name in taken or name in everywhere:
                    name += "_"
            now[dim.name] = name
            taken.add(name)
        found.append(now)
    return found


def _bound(program: Program) -> Iterator[str]:
    """All names of a program."""
    yield from (entry.name for entry in program.inputs)
    for node in walk(program.body):
        if isinstance(node, Map):
            yield from (port.name for port in node.ports)
        yield from node.defines


def join(program: ArrayProgram, parts: Sequence[tuple[Program, Naming]]) -> Program:
    """The parts of a program, in order, as one; without conditions at loops, which are found again in all of it.

    What a part reads of earlier ones are inputs that have the names of these values.
    """
    given = {argument.name for argument in program.inputs}
    finished = {result.argument.name: result.argument for result in program.outputs}
    inputs: list[Input] = []
    body: list[Definition] = []
    made: dict[str, tuple[str, tuple[str, ...]]] = {}  # between parts, by name: the value and its dimensions
    outputs: dict[str, Result] = {}
    for part, naming in parts:
        values = dict(naming.values)
        for entry in part.inputs:
            dims = _now(naming.dims, entry.dims)
            if entry.argument in given:
                inputs.append(replace(entry, name=values[entry.name], dims=dims))
                continue
            source, old = made[entry.argument]
            chain = list(_renames(values[entry.name], source, old, dims))
            values[entry.name] = chain[-1].name if chain else source
            body.extend(chain)
        renamed = Naming(naming.dims, values)
        body.extend(_definition(node, renamed) for node in part.body)
        for result in part.outputs:
            name, value = result.argument.name, values[result.value]
            made.setdefault(name, (value, _now(naming.dims, result.argument.dims)))
            if result.argument == finished.get(name):
                outputs[name] = Result(_argument(result.argument, naming.dims), value)
    whole = frozenset(naming.dims[dim] for part, naming in parts for dim in part.whole)
    results = tuple(outputs[result.argument.name] for result in program.outputs)
    every = tuple(_dims(program, parts))
    joined = Program(program.name, every, whole, program.inputs, tuple(inputs), tuple(body), results)
    verify(joined)
    return joined


def _dims(program: ArrayProgram, parts: Iterable[tuple[Program, Naming]]) -> Iterator[Dim]:
    """The dimensions of all parts, and those that no part has: an argument may have them."""
    declared = {dim.name: dim for dim in program.dims}
    seen = set()
    for part, naming in parts:
        for dim in part.dims:
            name = naming.dims[dim.name]
            seen.add(name)
            if dim.chunks_of is not None:
                yield chunk_dim(name, naming.dims[dim.chunks_of])
            else:
                yield declared[name] if name == dim.name else Dim(name, None, dim.name)
    yield from (dim for dim in program.dims if dim.name not in seen)


def _renames(name: str, source: str, old: Sequence[str], new: Sequence[str]) -> Iterator[Rename]:
    """A value under other dimensions; the last rename has the name."""
    pairs = list(zip(old, new, strict=True))
    for at, (before, behind) in enumerate(pairs):
        target = name if at == len(pairs) - 1 else f"{name}.0.{at}"
        yield Rename(target, source, before, behind)
        source = target


def _argument(argument: Argument, dims: Names) -> Argument:
    return replace(argument, axes=tuple(_now(dims, axis) for axis in argument.axes))


def _now(names: Names, old: Iterable[str]) -> tuple[str, ...]:
    return tuple(names[name] for name in old)


def _definition(node: Definition, naming: Naming) -> Definition:
    """A definition, and all that is in it, under other names."""
    dims, values = naming.dims, naming.values
    match node:
        case Apply(name, op, args, own, dtype, span):
            operands = tuple(_operand(arg, naming) for arg in args)
            return Apply(values[name], op, operands, _now(dims, own), dtype, span)
        case Map(dim, ports, body, outputs, span, _, part):
            return Map(
                dims[dim],
                tuple(Port(values[port.name], values[port.source]) for port in ports),
                tuple(_definition(inner, naming) for inner in body),
                tuple(
                    Output(_now(values, out.names), _now(values, out.values), out.monoid, _now(values, out.starts))
                    for out in outputs
                ),
                span,
                None,
                part,
            )
        case Reduce(names, sources, dim, monoid, span):
            return Reduce(_now(values, names), _now(values, sources), dims[dim], monoid, span)
        case Rename(name, source, old, new, span):
            return Rename(values[name], values[source], dims[old], dims[new], span)
        case _:
            assert_never(node)


def _operand(operand: Operand, naming: Naming) -> Operand:
    match operand:
        case str():
            return naming.values[operand]
        case Size(dim):
            return Size(naming.dims[dim])
        case Expression(op, args):
            return Expression(op, tuple(_operand(arg, naming) for arg in args))
        case _:
            return operand
