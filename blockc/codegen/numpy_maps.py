"""Graphs, maps and their outputs as Python statements: loops, accumulators, loads and stores of tiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import assert_never

from blockc.codegen.kernel_state import Kernel
from blockc.codegen.numpy_bounds import loop_head
from blockc.codegen.numpy_pairs import add_aligned, add_pairs, end_running, move_exponent, run_exponent, start_running
from blockc.codegen.numpy_tiles import apply_operator, in_new_memory
from blockc.codegen.numpy_values import (
    Lines,
    Listing,
    Tile,
    Value,
    aligned,
    compute_dtype,
    identity_text,
)
from blockc.codegen.scratch import Scope, new_tile
from blockc.ir.block import Apply, Definition, Graph, Map, Output, Port, Reduce, Rename, Type
from blockc.ir.monoids import MONOIDS
from blockc.ir.text import format_combination, format_definition, format_part, format_type, format_where

Targets = Mapping[str, Listing]  # stacked values that are stored in another list's array


def write_graph(kernel: Kernel, scope: Scope, graph: Graph, finals: Iterable[str], targets: Targets) -> None:
    """Write a body. `finals` are the names that its outputs read; memory of all others is given back on the way."""
    last: dict[str, int] = {}
    local: set[str] = set()
    for position, definition in enumerate(graph):
        last.update(dict.fromkeys((*definition.uses, *definition.defines), position))
        local.update(definition.defines)
    last.update(dict.fromkeys(finals, len(graph)))
    for position, definition in enumerate(graph):
        ends = frozenset(
            name
            for name in (*definition.uses, *definition.defines)
            if last[name] == position and (name in local or name in scope.ports)
        )
        running = kernel.running.get(definition.name) if isinstance(definition, Apply) else None
        if running is not None and running.limit and isinstance(definition, Apply):
            comment(scope, format_definition(kernel.program, definition, "")[0])
            move_exponent(kernel, scope, definition, running)
        else:
            write_definition(kernel, scope, definition, ends, targets)
            if running is not None and isinstance(definition, Apply):
                run_exponent(kernel, scope, definition.name, running)
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
            write_map(kernel, scope, definition, targets, dying)
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


def write_map(kernel: Kernel, scope: Scope, node: Map, targets: Targets, dying: frozenset[str]) -> None:
    """Write a map as a loop, or what is the first iteration of one."""
    comment(scope, head_text(node))
    if node.part == "first":
        write_first(kernel, scope, node)
    else:
        write_loop(kernel, scope, node, targets, dying)


def head_text(node: Map) -> str:
    """The first line of a map in the text form."""
    uses = f" uses {', '.join(sorted(node.captures))}" if node.captures else ""
    return f"map {node.dim}{format_part(node.part)}{format_where(node.where)}{uses} {{"


def output_text(kernel: Kernel, output: Output) -> str:
    """The line of a map's output in the text form."""
    bound = ", ".join(f"{name}: {format_type(kernel.types[name])}" for name in output.names)
    return f"=> {bound} = {format_combination(output)}"


def write_loop(kernel: Kernel, scope: Scope, node: Map, targets: Targets, dying: frozenset[str] = frozenset()) -> None:
    """Write the loop of a map, and before it what its accumulators start from."""
    results: dict[str, Value] = {}
    accumulators: dict[str, Tile] = {}
    for output in node.outputs:
        for component, name in enumerate(output.names):
            kind = kernel.types[name]
            if output.monoid is None:
                results[name] = targets[name] if name in targets else new_list(kernel, scope, kind)
            elif output.starts:
                start = output.starts[component]
                results[name] = accumulators[name] = _kept(kernel, scope, start, kind, start in dying)
            else:
                accumulators[name] = tile = kernel.places.get(name) or new_accumulator(kernel, scope, kind)
                results[name] = tile if kind.is_item else as_list(tile, kind)
                scope.lines.add(f"{tile.text}.fill({identity_text(output.monoid, component, tile.dtype)})")
    for output in node.outputs:
        if output.monoid == "exponent_add":
            start_running(kernel, scope, node, output, tuple(accumulators[name] for name in output.names))
    masks = dict(kernel.masks)
    inner = open_loop(kernel, scope, node)
    write_body(kernel, inner, node, results, accumulators)
    close_loop(kernel, inner)
    for output in node.outputs:
        end_running(kernel, scope, output)
    kernel.masks = masks
    kernel.environment.update(results)


def open_loop(kernel: Kernel, scope: Scope, node: Map) -> Scope:
    """Write the head of a loop over the blocks of the map's dimension; `close_loop` completes it."""
    position = kernel.number(node.dim)
    before = scope.lines.nest("")
    if node.where is None:
        scope.lines.add(f"for b{position} in {kernel.blocks_text(scope, node.dim, node.part)}:")
    else:
        scope.lines.add(loop_head(kernel, scope, node, node.where))
    return body_scope(kernel, scope, node, before)


def body_scope(kernel: Kernel, scope: Scope, node: Map, before: Lines) -> Scope:
    """The body of a map, below the line that was written last. `before` is ahead of that line."""
    lines = scope.lines.nest()
    start = lines.nest("")
    blocks = {**scope.blocks, node.dim: kernel.block_axis(node.dim)}
    return Scope(lines, scope.pool, scope, node.dim, blocks, port_names(node), before, start)


def close_loop(kernel: Kernel, scope: Scope) -> None:
    """Write what sets the block of a loop. Its views are made anew only when the length of the block changes."""
    if kernel.is_unit(scope.bound):
        return
    position = kernel.number(scope.bound)
    _, end = kernel.bounds(scope.above or scope, scope.bound)
    scope.start.add(f"e{position} = min(b{position} + t{position}, {end})")
    if scope.bound in kernel.program.chunks:  # no tile has that axis
        return
    if not scope.head.parts:
        scope.start.add(f"w{position} = e{position} - b{position}")
        return
    scope.before.add(f"w{position} = -1")
    scope.start.add(f"if e{position} - b{position} != w{position}:  # the first block, and a short last one")
    changed = scope.start.nest()
    changed.add(f"w{position} = e{position} - b{position}")
    changed.parts.append(scope.head)


def write_first(kernel: Kernel, scope: Scope, node: Map) -> None:
    """Write the first iteration of a loop: it gives what its body makes of the first block; identities if there is
    none."""
    number, (start, end) = kernel.number(node.dim), kernel.bounds(scope, node.dim)
    before = replace(scope, lines=scope.lines.nest(""))
    scope.lines.add(f"if {end} > {start}:")
    inner = body_scope(kernel, scope, node, Lines())
    inner.start.add(f"b{number} = {start}")
    if not kernel.is_unit(node.dim):
        inner.start.add(f"e{number} = min(b{number} + t{number}, {end})")
        if node.dim not in kernel.program.chunks:  # no tile has that axis
            inner.start.add(f"w{number} = e{number} - b{number}")
    inner.start.parts.append(inner.head)
    for output in node.outputs:
        if output.monoid == "exponent_add":
            start_running(kernel, before, node, output, ())
    load_ports(kernel, inner, node)
    finals = {value for output in node.outputs for value in output.values}
    local = {name for definition in node.body for name in definition.defines} | inner.ports
    write_graph(kernel, inner, node.body, finals, {})
    results: dict[str, Tile] = {}
    scope.lines.add("else:")
    otherwise = scope.lines.nest()
    for output in node.outputs:
        comment(inner, output_text(kernel, output))
        for component, (name, value) in enumerate(zip(output.names, output.values, strict=True)):
            results[name] = tile = _kept(kernel, inner, value, kernel.types[name], value in local)
            otherwise.add(f"{tile.text}.fill({identity_text(output.monoid or '', component, tile.dtype)})")
    release(kernel, inner, finals & local)
    kernel.environment.update(results)


def _kept(kernel: Kernel, scope: Scope, name: str, kind: Type, ends: bool) -> Tile:
    """An item in memory to accumulate in: its own, if it `ends` here and nothing else is in there, or a copy."""
    tile, axes, dtype = kernel.tile(name), kernel.axes(scope, kind.axes), compute_dtype(kind.dtype)
    if ends and tile.buffer is not None and tile.buffer.users == 1 and (tile.axes, tile.dtype) == (axes, dtype):
        tile.buffer.users += 1  # the name gives back its share
        return tile
    result = new_tile(scope, axes, dtype)
    scope.lines.add(f"np.copyto({result.text}, {aligned(tile, result.dims)})")
    return result


def port_names(node: Map) -> frozenset[str]:
    """The names of a map's ports."""
    return frozenset(port.name for port in node.ports)


def write_body(
    kernel: Kernel, scope: Scope, node: Map, results: Mapping[str, Value], accumulators: Mapping[str, Tile]
) -> None:
    """Write one iteration: load the ports, compute, store and accumulate the outputs."""
    load_ports(kernel, scope, node)
    stacked = {name: result for name, result in results.items() if isinstance(result, Listing)}
    targets = inner_targets(kernel, node, stacked)
    finals = {value for output in node.outputs for value in output.values}
    places = _places(kernel, scope, node, stacked)
    kernel.places.update((value, place) for value, (place, _) in places.items())
    views = scope.lines.nest("")
    write_graph(kernel, scope, node.body, finals, targets)
    for output in node.outputs:
        comment(scope, output_text(kernel, output))
        place, view = places.get(output.values[0], (None, ""))
        if place is not None and kernel.environment[output.values[0]] is place:
            views.add(view)
            continue
        if output.monoid is not None:
            _accumulate(kernel, scope, output, [accumulators[name] for name in output.names])
        elif output.values[0] not in targets or targets[output.values[0]].text != stacked[output.names[0]].text:
            element = element_of(kernel, node.dim, stacked[output.names[0]], output.names[0])
            _store(kernel, scope, element, kernel.environment[output.values[0]])
    local = {name for definition in node.body for name in definition.defines} | scope.ports
    release(kernel, scope, finals & local)


def _places(kernel: Kernel, scope: Scope, node: Map, stacked: Mapping[str, Listing]) -> dict[str, tuple[Tile, str]]:
    """Where values are stored that nothing but one output of the map reads, and that may be computed there, with the
    lines that make these views of the output's array. They have the type and the order of axes that the value is
    computed in."""
    made = {name for definition in node.body if not isinstance(definition, Reduce) for name in definition.defines}
    uses = Counter(value for output in node.outputs for value in output.values)
    uses.update(name for definition in node.body for name in definition.uses)
    places = {}
    for output in node.outputs:
        value, kind = output.values[0], kernel.types[output.values[0]]
        if output.monoid is not None or uses[value] > 1 or value not in made or not kind.is_item:
            continue
        element = element_of(kernel, node.dim, stacked[output.names[0]], output.names[0])
        axes = kernel.axes(scope, kind.axes)
        if axes and element.rest == axes and element.stored == element.dtype == compute_dtype(kind.dtype):
            name = f"v{next(kernel.numbers)}"
            places[value] = Tile(name, axes, element.dtype), f"{name} = {element.selected}"
    return places


def load_ports(kernel: Kernel, scope: Scope, node: Map) -> None:
    """Bind the ports of a map: lists stay where they are, items are loaded."""
    used = {value for output in node.outputs for value in output.values}
    for definition in node.body:
        used |= definition.uses
    for port in node.ports:
        source = kernel.environment[port.source]
        assert isinstance(source, Listing)
        element = element_of(kernel, node.dim, source, port.source)
        if element.lists or port.name not in used:
            kernel.environment[port.name] = element
            continue
        comment(scope, f"{port.name}: {format_type(kernel.types[port.name])} <- {port.source}")
        kernel.environment[port.name] = load(kernel, scope, element)


def element_of(kernel: Kernel, dim: str, listing: Listing, name: str) -> Listing:
    """The element of the list `name` for the current block of `dim`."""
    return listing.peel(dim, kernel.choice(dim, kernel.types[name]))


def load(kernel: Kernel, scope: Scope, listing: Listing) -> Tile:
    """Load an item: a view of where it is stored, or a copy if it is stored in another type."""
    if listing.stored == listing.dtype:
        name = f"v{next(kernel.numbers)}"
        scope.lines.add(f"{name} = {listing.selected}")
        return Tile(name, listing.rest, listing.dtype)
    tile = new_tile(scope, listing.rest, listing.dtype)
    scope.lines.add(f'np.copyto({tile.text}, {listing.selected}, casting="unsafe")')
    return tile


def inner_targets(kernel: Kernel, node: Map, stacked: Mapping[str, Listing]) -> dict[str, Listing]:
    """The lists that maps of the body make and the map stacks: they are stored in place, in the outer list's array."""
    made = {
        name
        for definition in node.body
        if isinstance(definition, Map)
        for output in definition.outputs
        if output.monoid is None
        for name in output.names
    }
    targets: dict[str, Listing] = {}
    for output in node.outputs:
        if output.monoid is None and output.values[0] in made and output.values[0] not in targets:
            name = output.names[0]
            targets[output.values[0]] = element_of(kernel, node.dim, stacked[name], name)
    return targets


def _store(kernel: Kernel, scope: Scope, element: Listing, value: Value) -> None:
    dims = [axis.dim for axis in element.rest]
    scope.lines.add(f"{element.selected} = {aligned(as_array(value), dims)}")


def as_array(value: Value) -> Tile:
    """An item, or a list as one array."""
    return value if isinstance(value, Tile) else Tile(value.selected, value.rest, value.dtype)


def as_list(tile: Tile, kind: Type) -> Listing:
    """Accumulators as the list that they are."""
    return Listing(tile.text, tile.axes, tile.dtype, tile.dtype, kind.lists, buffer=tile.buffer)


def new_list(kernel: Kernel, scope: Scope, kind: Type) -> Listing:
    """A list in scratch memory, in full along its list dimensions."""
    return as_list(new_tile(scope, kernel.list_axes(scope, kind), compute_dtype(kind.dtype)), kind)


def new_accumulator(kernel: Kernel, scope: Scope, kind: Type) -> Tile:
    """Memory for an accumulated item or list."""
    return new_tile(scope, kernel.list_axes(scope, kind), compute_dtype(kind.dtype))


# Accumulation

_COMBINE = {"add": "add", "max": "maximum", "min": "minimum"}


def _accumulate(kernel: Kernel, scope: Scope, output: Output, accumulators: list[Tile]) -> None:
    values = [as_array(kernel.environment[value]) for value in output.values]
    if output.monoid in _COMBINE:
        (total,), (value,) = accumulators, values
        scope.lines.add(f"np.{_COMBINE[output.monoid]}({total.text}, {aligned(value, total.dims)}, out={total.text})")
    elif output.values[0] in kernel.running:
        add_aligned(kernel, scope, kernel.running[output.values[0]], values)
    elif output.monoid == "exponent_add":
        add_pairs(kernel, scope, accumulators, values)
    else:
        _combine_by_definition(kernel, scope, output.monoid or "", accumulators, values)


def _combine_by_definition(
    kernel: Kernel, scope: Scope, monoid: str, accumulators: list[Tile], values: list[Tile]
) -> None:
    """Combine by the definition of the monoid, operator by operator, in new memory, and keep the result."""
    made: list[Tile] = []

    def apply(op: str, *operands: Tile) -> Tile:
        made.append(in_new_memory(kernel, scope, op, operands))
        return made[-1]

    results = MONOIDS[monoid].combine(apply, tuple(accumulators), tuple(values))
    for total, result in zip(accumulators, results, strict=True):
        if result is not total:
            scope.lines.add(f"np.copyto({total.text}, {aligned(result, total.dims)})")
    for tile in made:
        _give_back(scope, tile)


def _give_back(scope: Scope, tile: Tile) -> None:
    if tile.buffer is not None:
        scope.pool.release(tile.buffer)
