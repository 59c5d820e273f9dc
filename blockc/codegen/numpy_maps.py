"""Graphs, maps and their outputs as Python statements: loops, accumulators, loads and stores of tiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import assert_never

from blockc.codegen.exponents import may_run
from blockc.codegen.kernel_state import Kernel
from blockc.codegen.numpy_tiles import apply_operator
from blockc.codegen.numpy_values import (
    Choice,
    Listing,
    Tile,
    Value,
    aligned,
    compute_dtype,
    identity_text,
)
from blockc.codegen.scratch import Scope, new_tile, tile_in
from blockc.ir.block import Apply, Definition, Graph, Map, Output, Port, Reduce, Rename, Type
from blockc.ir.text import format_definition, format_type

Targets = Mapping[str, Listing]  # stacked values that are stored in another list's array


def write_graph(kernel: Kernel, scope: Scope, graph: Graph, finals: Iterable[str], targets: Targets) -> None:
    """Write a body. `finals` are the names that its outputs read; memory of all others is given back on the way."""
    last: dict[str, int] = {}
    local: set[str] = set()
    for position, definition in enumerate(graph):
        last.update(dict.fromkeys((*definition.uses, *definition.defines), position))
        local.update(definition.defines)
    last.update(dict.fromkeys(finals, len(graph)))
    running = {name: accumulator for name, accumulator in kernel.running.items() if name in local}
    for position, definition in enumerate(graph):
        ends = frozenset(
            name for name in (*definition.uses, *definition.defines)
            if last[name] == position and (name in local or name in scope.ports)
        )
        write_definition(kernel, scope, definition, ends, targets)
        for name in definition.defines:
            if name in running:
                _run_exponent(kernel, scope, name, running[name])
        release(kernel, scope, ends)


def release(kernel: Kernel, scope: Scope, names: Iterable[str]) -> None:
    """Give back the memory of values that nothing reads any more."""
    for name in sorted(names):
        value = kernel.environment.pop(name)
        if value.buffer is not None:
            scope.pool.release(value.buffer)


def write_definition(
    kernel: Kernel, scope: Scope, definition: Definition, dying: frozenset[str], targets: Targets
) -> None:
    """Write one definition and bind its names."""
    match definition:
        case Apply():
            comment(scope, format_definition(kernel.program, definition, "")[0])
            kernel.environment[definition.name] = apply_operator(kernel, scope, definition, dying)
        case Map():
            write_map(kernel, scope, definition, targets)
        case Reduce(names, sources, dim, monoid):
            comment(scope, format_definition(kernel.program, definition, "")[0])
            # It is the map over the lists that does nothing but accumulate.
            ports = tuple(Port(f"{name} element", source) for name, source in zip(names, sources, strict=True))
            for port in ports:
                source = kernel.types[port.source]
                lists = tuple(other for other in source.lists if other != dim)
                kernel.types[port.name] = Type(source.dtype, lists, source.axes)
            outputs = (Output(names, tuple(port.name for port in ports), monoid),)
            write_loop(kernel, scope, Map(dim, ports, (), outputs), targets)
        case Rename():
            raise TypeError("a list is renamed in the top graph only")
        case _:
            assert_never(definition)


def comment(scope: Scope, text: str) -> None:
    """Write a line of the block program as a comment."""
    scope.lines.add(comment_text(text))


def comment_text(text: str) -> str:
    """A one-line comment, whatever the text."""
    return "# " + "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


# Maps


def write_map(kernel: Kernel, scope: Scope, node: Map, targets: Targets) -> None:
    """Write a map as a loop."""
    comment(scope, head_text(node))
    write_loop(kernel, scope, node, targets)


def head_text(node: Map) -> str:
    """The first line of a map in the text form."""
    uses = f" uses {', '.join(sorted(node.captures))}" if node.captures else ""
    return f"map {node.dim}{uses} {{"


def output_text(kernel: Kernel, output: Output) -> str:
    """The line of a map's output in the text form."""
    bound = ", ".join(f"{name}: {format_type(kernel.types[name])}" for name in output.names)
    return f"=> {bound} = {output.monoid or 'stack'}({', '.join(output.values)})"


def write_loop(kernel: Kernel, scope: Scope, node: Map, targets: Targets) -> None:
    """Write the loop of a map, and before it what its accumulators start from."""
    results: dict[str, Value] = {}
    accumulators: dict[str, Tile] = {}
    for output in node.outputs:
        for component, name in enumerate(output.names):
            kind = kernel.types[name]
            if output.monoid is None:
                results[name] = targets[name] if name in targets else new_list(kernel, scope, kind)
            else:
                accumulators[name] = tile = new_accumulator(kernel, scope, kind)
                results[name] = tile if kind.is_item else as_list(tile, kind)
                scope.lines.add(f"{tile.text}.fill({identity_text(output.monoid, component, tile.dtype)})")
    inner, finish = open_loop(kernel, scope, node.dim)
    write_body(kernel, inner, node, results, accumulators)
    finish()
    kernel.environment.update(results)


def open_loop(kernel: Kernel, scope: Scope, dim: str):
    position = kernel.number(dim)
    before = scope.lines.nest("")
    if kernel.is_unit(dim):
        scope.lines.add(f"for b{position} in range(d{position}):")
    else:
        scope.lines.add(f"for b{position} in range(0, d{position}, t{position}):")
    loop = scope.lines.nest()
    start = loop.nest("")
    from blockc.codegen.numpy_values import Lines
    head = Lines([], "    ")
    inner = Scope(loop, head, scope.pool, scope, {**scope.blocks, dim: kernel.block_axis(dim)}, dim)

    def finish() -> None:
        if kernel.is_unit(dim):
            return
        start.add(f"e{position} = min(b{position} + t{position}, d{position})")
        if head.parts:
            before.add(f"w{position} = -1")
            start.add(f"if e{position} - b{position} != w{position}:  # the first block and a short last one")
            start.add(f"    w{position} = e{position} - b{position}")
            start.parts.append(head)
        else:
            start.add(f"w{position} = e{position} - b{position}")

    return inner, finish
