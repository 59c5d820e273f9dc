"""Programs as JSON, for other tools: what `blockc show --format json` prints.

    document   := schema (1), stage, programs: program*         several where a machine's plan has parts
    program    := name, dims, arguments, inputs, body: definition*, outputs, traffic: {value, direction, bytes}*,
                  traffic_bytes, edges
    dim        := name, size, block (null if whole, or if it has no loop), whole, same_as, chunks_of
    input      := name, argument, dims, type
    definition := kind "apply":  name, op, dims, operands, type, bytes, line
                | kind "map":    dim, part, where, captures, ports, body, outputs, line
                | kind "reduce": names, types, dim, monoid, sources, line
                | kind "rename": name, type, source, old, new, line
    port       := name, source, type, bytes
    output     := names, types, values, monoid (null: stacked), starts, bytes
    operand    := {name} | {constant} | {size} | {op, operands}
    type       := dtype, lists, axes, tier ("slow" for lists, "local" for items)
    edge       := from, to, kind ("operator", "port", "capture", "result" or "output"), value, type, buffered, bytes

Names are those of the text form. `bytes` are {loaded, stored} at the sizes of `dims`: at a port or output all that pass
it, nested ones included; at a tile operator of the top graph what launches load and store of it. `line` is that of the
source, or null. `traffic` is the cost model's, as in `explain`. An edge goes from and to a port, an input, an output of
the program or the first name that something defines; as a capture, to the map. Constants that are no finite numbers
are texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, assert_never

from blockc.drawing import Box, boxes, draw_program, nodes
from blockc.ir.array_program import Argument, ArrayProgram, Dim, Span
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import (
    Apply,
    Constant,
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
    Size,
    Type,
)
from blockc.ir.text import format_term
from blockc.passes.cost import traffic
from blockc.passing import Passing, passing

SCHEMA = 1


def document(stage: str, programs: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole document."""
    return {"schema": SCHEMA, "stage": stage, "programs": programs}


def array_program_json(program: ArrayProgram) -> dict[str, Any]:
    """An array program: `body` has one node for each operator, with `shape` for its dimensions."""
    nodes_json = [
        {
            "kind": node.op,
            "name": node.name,
            "dims": list(node.dims),
            "operands": list(node.args),
            "value": _number(node.value),
            "dtype": node.dtype,
            "shape": list(node.shape),
            "line": _line(node.span),
        }
        for node in program.nodes
    ]
    return {
        "name": program.name,
        "dims": [{"name": dim.name, "size": dim.size, "same_as": dim.same_as} for dim in program.dims],
        "arguments": [_argument(argument) for argument in program.inputs],
        "body": nodes_json,
        "outputs": [{"argument": _argument(result.argument), "value": result.node} for result in program.outputs],
    }


def program_json(program: Program, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> dict[str, Any]:
    """A block program, with the bytes that it moves for sizes and tiles in elements."""
    found, known = passing(program, sizes, tiles), complete_sizes(program, sizes)
    moved = sorted(traffic(program, known, tiles).items())
    return {
        "name": program.name,
        "dims": [_dim(program, dim, known, tiles) for dim in program.dims],
        "arguments": [_argument(argument) for argument in program.arguments],
        "inputs": [_input(program, entry) for entry in program.inputs],
        "body": [_definition(program, definition, found) for definition in program.body],
        "outputs": [{"argument": _argument(result.argument), "value": result.value} for result in program.outputs],
        "traffic": [{"value": value, "direction": direction, "bytes": number} for (value, direction), number in moved],
        "traffic_bytes": sum(number for _, number in moved),
        "edges": list(_edges(draw_program(program, sizes, tiles))),
    }


def _dim(program: Program, dim: Dim, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> dict[str, Any]:
    whole = dim.name in program.whole
    size = sizes.get(dim.chunks_of or dim.name)
    block = None if whole else tiles.get(dim.name)
    result = {"name": dim.name, "size": size, "block": block, "whole": whole}
    return {**result, "same_as": dim.same_as, "chunks_of": dim.chunks_of}


def _argument(argument: Argument) -> dict[str, Any]:
    return {"name": argument.name, "dtype": argument.dtype, "axes": [list(axis) for axis in argument.axes]}


def _input(program: Program, entry: Input) -> dict[str, Any]:
    kind = _type(program.input_types[entry.name])
    return {"name": entry.name, "argument": entry.argument, "dims": list(entry.dims), "type": kind}


def _type(kind: Type) -> dict[str, Any]:
    tier = "local" if kind.is_item else "slow"
    return {"dtype": kind.dtype, "lists": list(kind.lists), "axes": list(kind.axes), "tier": tier}


def _definition(program: Program, definition: Definition, found: Passing) -> dict[str, Any]:
    types, line = program.types, _line(definition.span)
    match definition:
        case Apply(name, op, args, dims):
            operands = [_operand(arg) for arg in args]
            result: dict[str, Any] = {"kind": "apply", "name": name, "op": op, "dims": list(dims)}
            result |= {"operands": operands, "type": _type(types[name]), "bytes": _bytes(found, name)}
        case Map(dim, ports, body, outputs):
            where = None if definition.where is None else format_term(definition.where)
            result = {"kind": "map", "dim": dim, "part": definition.part, "where": where}
            result["captures"] = sorted(definition.captures)
            result["ports"] = [_port(program, port, found) for port in ports]
            result["body"] = [_definition(program, inner, found) for inner in body]
            result["outputs"] = [_output(program, output, found) for output in outputs]
        case Reduce(names, sources, dim, monoid):
            result = {"kind": "reduce", "names": list(names), "types": [_type(types[name]) for name in names]}
            result |= {"dim": dim, "monoid": monoid, "sources": list(sources)}
        case Rename(name, source, old, new):
            result = {"kind": "rename", "name": name, "type": _type(types[name]), "source": source}
            result |= {"old": old, "new": new}
        case _:
            assert_never(definition)
    return {**result, "line": line}


def _port(program: Program, port: Port, found: Passing) -> dict[str, Any]:
    kind = _type(program.types[port.name])
    return {"name": port.name, "source": port.source, "type": kind, "bytes": _bytes(found, port.name)}


def _output(program: Program, output: Output, found: Passing) -> dict[str, Any]:
    return {
        "names": list(output.names),
        "types": [_type(program.types[name]) for name in output.names],
        "values": list(output.values),
        "monoid": output.monoid,
        "starts": list(output.starts),
        "bytes": _bytes(found, output.names[0]),
    }


def _bytes(found: Passing, name: str) -> dict[str, int]:
    return {"loaded": found.loaded.get(name, 0), "stored": found.stored.get(name, 0)}


def _operand(operand: Operand) -> dict[str, Any]:
    match operand:
        case str():
            return {"name": operand}
        case Constant(value):
            return {"constant": _number(value)}
        case Size(dim):
            return {"size": dim}
        case Expression(op, args):
            return {"op": op, "operands": [_operand(arg) for arg in args]}
        case _:
            assert_never(operand)


def _number(value: float | int | bool | None) -> float | int | bool | str | None:
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _line(span: Span | None) -> int | None:
    return None if span is None else span.line


def _edges(drawing: Box) -> Iterator[dict[str, Any]]:
    """The edges of all graphs. What a body takes whole from outside is an edge of its graph, from that name."""
    every = [node for box in boxes(drawing) for node in nodes(box)]
    names = {node.number: node.names[0] for node in every}
    kinds = {node.number: "capture" if node.kind == "pin" else node.kind for node in every}
    ends = {node.number: box.names[0] for box in boxes(drawing) for node in box.entries if node.kind == "pin"}
    for box in boxes(drawing):
        for edge in box.edges:
            yield {
                "from": names[edge.source],
                "to": ends.get(edge.target, names[edge.target]),
                "kind": kinds[edge.target],
                "value": edge.value,
                "type": edge.type,
                "buffered": edge.heavy,
                "bytes": edge.moved,
            }
