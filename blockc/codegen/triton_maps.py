"""Graphs, maps and their outputs in Triton: loops, accumulators in registers, loads and stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from blockc.codegen.exponents import may_run
from blockc.codegen.triton_bounds import Section, sections, settled, somewhere
from blockc.codegen.triton_descriptors import Descriptor
from blockc.codegen.triton_ops import SPELLINGS
from blockc.codegen.triton_pieces import Pieces, halved, pieces_of
from blockc.codegen.triton_tiles import apply_operator, combined, contract, exponentials, literal, scaled
from blockc.codegen.triton_values import Array, Kernel, Lines, Tile, Value, Waiting, compute_dtype, expanded
from blockc.ir.block import Apply, Definition, Graph, Map, Output, Term
from blockc.ir.conditions import readings
from blockc.ir.monoids import MONOIDS, identity
from blockc.ir.text import format_definition, format_type, format_where


class Unsupported(ValueError):
    """The program has something that is not written as a Triton kernel; the message says what."""


def comment(kernel: Kernel, text: str) -> None:
    """Write a line of the block program as a comment."""
    kernel.lines.add("# " + "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))


def write_graph(kernel: Kernel, graph: Graph, targets: Mapping[str, Array]) -> None:
    """Write the definitions of a body. `targets`: where lists go that maps of it make."""
    for definition in graph:
        write_definition(kernel, definition, targets)


def write_definition(kernel: Kernel, definition: Definition, targets: Mapping[str, Array]) -> None:
    """Write one definition and bind its names."""
    match definition:
        case Apply(name):
            if isinstance(kernel.environment.get(name), Waiting):
                return
            load_later(kernel, definition.uses)
            comment(kernel, format_definition(kernel.program, definition, "")[0])
            kernel.environment[name] = apply_operator(kernel, definition)
            if name in kernel.running:
                _run_exponent(kernel, name)
        case Map():
            load_later(kernel, definition.uses)
            write_loop(kernel, definition, targets)
        case _:
            raise Unsupported("lists are reduced and renamed between kernels only")


def head_text(node: Map) -> str:
    """The first line of a map in the text form."""
    uses = f" uses {', '.join(sorted(node.captures))}" if node.captures else ""
    return f"map {node.dim}{format_where(node.where)}{uses} {{"


def write_loop(kernel: Kernel, node: Map, targets: Mapping[str, Array]) -> None:
    """Write the loop of a map, and before it what its accumulators start from."""
    if node.part != "all":
        raise Unsupported("a loop without its first block")
    comment(kernel, head_text(node))
    results: dict[str, Value] = {}
    for output in node.outputs:
        for component, name in enumerate(output.names):
            kind = kernel.program.types[name]
            if output.monoid is None:
                results[name] = targets[name] if name in targets else kernel.room(name, kernel.tasks)
                continue
            if not kind.is_item:
                raise Unsupported(f"what `{name}` accumulates is a list")
            dtype, axes = compute_dtype(kind.dtype), kernel.axes(kind.axes)
            start = literal(identity(output.monoid, component), dtype)
            text = kernel.assign(f"tl.full({kernel.shape(axes)}, {start}, tl.{dtype})")
            results[name] = Tile(text, axes, dtype, scale=kernel.scales.get(name))
    read_later = not kernel.read.isdisjoint(name for name, result in results.items() if isinstance(result, Array))
    if read_later:  # what is written here may still be read, by threads that are behind
        kernel.lines.add("tl.debug_barrier()")
    parts, asked = sections(kernel, node, *ends(kernel, node.dim))
    for part in parts:
        _write_section(kernel, node, results, part, asked)
    if read_later:
        kernel.lines.add("tl.debug_barrier()")
    kernel.environment.update(results)


def _write_section(kernel: Kernel, node: Map, results: Mapping[str, Value], part: Section, asked: Term | None) -> None:
    """Write the loop over some blocks of a map. If something is `asked`, blocks in which it holds nowhere are left
    out."""
    number = kernel.number(node.dim)
    blocks = f"range({part.start}, {part.end}, {kernel.extent(node.dim)})"
    if part.last:  # of one block, nothing is loaded ahead
        kernel.lines.add(f"if SHORT{number}:")
        kernel.lines.depth += 1
        blocks = f"tl.{blocks[:-1]}, num_stages=1)"
    kernel.lines.add(f"for b{number} in {blocks}:")
    depth = kernel.lines.depth + 1
    body = replace(kernel, lines=Lines([], depth), environment=dict(kernel.environment), later={}, running={})
    body.mapped = (*kernel.mapped, node.dim)
    body.settled = {**kernel.settled, **settled(kernel, node)} if part.full else dict(kernel.settled)
    body.filled = kernel.filled | {node.dim} if part.filled else kernel.filled
    first: frozenset[str] = frozenset()
    if asked is not None:
        first = readings(asked)
        load_ports(body, node, first, ())
        body.lines.add(f"if {somewhere(body, asked)}:")
        body.lines.depth += 1
    write_body(body, node, results, first)
    kernel.lines.text += with_positions(kernel, node.dim, body.lines.text, depth)
    kernel.lines.depth -= part.last


def ends(kernel: Kernel, dim: str) -> tuple[str, str]:
    """Where the blocks of a dimension begin and end here: in the current chunk, if a map around has chunks."""
    base = kernel.program.chunks.get(dim, dim)
    cuts = [kernel.number(other) for other in kernel.mapped if kernel.program.chunks.get(other) == base]
    return (f"b{cuts[-1]}", f"e{cuts[-1]}") if cuts else ("0", kernel.size(base))


def with_positions(kernel: Kernel, dim: str, body: list[str], depth: int) -> list[str]:
    """The body of a map ahead of which stands what it needs of the current block."""
    number, indent = kernel.number(dim), "    " * depth
    text = "\n".join(body)
    head = []
    if dim in kernel.program.chunks:
        base = kernel.number(kernel.program.chunks[dim])
        head.append(f"e{number} = min(b{number} + T{number}, d{base})")
        return [*(indent + line for line in head), *body]
    if f"in{number}" in _words(text):
        head.append(f"in{number} = i{number} < d{number}")
        text = "\n".join([*head, text])
    if f"o{number}" in _words(text):
        head.insert(0, f"o{number} = tl.cast(b{number}, tl.int64)")
    if f"i{number}" in _words(text):
        head.insert(0, f"i{number} = b{number} + r{number}")
    return [*(indent + line for line in head), *body]


def _words(text: str) -> set[str]:
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return set("".join(char if char.isalnum() or char == "_" else " " for char in code).split())


def write_body(kernel: Kernel, node: Map, results: Mapping[str, Value], loaded: frozenset[str] = frozenset()) -> None:
    """Write one iteration: load the ports that are not `loaded`, compute, store and accumulate the outputs."""
    load_ports(kernel, node, frozenset(port.name for port in node.ports) - loaded, node.body)
    stacked = {name: result for name, result in results.items() if isinstance(result, Array)}
    _let_wait(kernel, node)
    for output in node.outputs:
        if output.monoid == "exponent_add" and may_run(node.body, output, node.outputs):
            total = results[output.names[0]]
            assert isinstance(total, Tile)
            kernel.running[output.values[0]] = total
    pieces = pieces_of(kernel, node)
    graph = node.body if pieces is None else tuple(part for part in node.body if part not in pieces.graph)
    write_graph(kernel, graph, inner_targets(node, stacked))
    if pieces is not None:
        _write_pieces(kernel, pieces, stacked)
    for output in node.outputs:
        if pieces is not None and output in pieces.outputs:
            continue
        load_later(kernel, output.values)
        _comment_output(kernel, output)
        if output.monoid is not None:
            _accumulate(kernel, output, [results[name] for name in output.names])
            continue
        value = kernel.environment.get(output.values[0])
        if isinstance(value, Tile):
            store(kernel, stacked[output.names[0]], value)


def _comment_output(kernel: Kernel, output: Output) -> None:
    bound = ", ".join(f"{name}: {format_type(kernel.program.types[name])}" for name in output.names)
    comment(kernel, f"=> {bound} = {output.monoid or 'stack'}({', '.join(output.values)})")


def _write_pieces(kernel: Kernel, pieces: Pieces, stacked: Mapping[str, Array]) -> None:
    """Write what is computed and stored of one piece of tiles after the other."""
    types, dim, number = kernel.program.types, pieces.dim, kernel.number(pieces.dim)
    used = {name for apply in pieces.graph for name in apply.uses}.union(*(output.values for output in pieces.outputs))
    load_later(kernel, [name for name in used if name in types and dim not in types[name].axes])
    later = {name: text for name, text in kernel.later.items() if name in used}
    whole = {name: kernel.tile(name) for name in pieces.whole}
    for at, tiles in enumerate(halved(kernel, whole, dim, pieces.count)):
        part = replace(kernel, lines=Lines([], kernel.lines.depth), pieces={dim: pieces.count}, later=dict(later))
        part.descriptors, part.loaded = None, kernel.loaded if at == 0 else []
        part.environment = {**kernel.environment, **tiles}
        write_graph(part, pieces.graph, {})
        for output in pieces.outputs:
            load_later(part, output.values)
            _comment_output(part, output)
            store(part, stacked[output.names[0]], part.tile(output.values[0]))
        kernel.lines.add(f"# Piece {at + 1} of {pieces.count} along d{number}.")
        kernel.lines.add(f"r{number} = tl.arange(0, {part.extent(dim)}) + {at} * ({part.extent(dim)})")
        words = _words("\n".join(part.lines.text))
        if words & {f"i{number}", f"in{number}"}:
            kernel.lines.add(f"i{number} = b{number} + r{number}", f"in{number} = i{number} < d{number}")
        kernel.lines.text += part.lines.text
    for name in later:
        del kernel.later[name]


def inner_targets(node: Map, stacked: Mapping[str, Array]) -> dict[str, Array]:
    """The lists that maps of the body make and the map stacks: they are stored where the outer list lies."""
    made = {name for definition in node.body if isinstance(definition, Map) for name in definition.defines}
    return {
        output.values[0]: stacked[output.names[0]]
        for output in node.outputs
        if output.monoid is None and output.values[0] in made
    }


def _let_wait(kernel: Kernel, node: Map) -> None:
    """Let products whose only reader is a sum wait for it, so that they are added to it as they are computed."""
    uses = Counter(name for definition in node.body for name in definition.uses)
    uses.update(value for output in node.outputs for value in output.values)
    for output in node.outputs:
        sums = output.values if output.monoid == "add" else ()
        if output.monoid == "exponent_add" and may_run(node.body, output, node.outputs):
            sums = output.values[1:]
        for definition in node.body:
            if not isinstance(definition, Apply) or definition.op != "contract" or definition.name not in sums:
                continue
            if uses[definition.name] == 1 and compute_dtype(definition.dtype) == "float32":
                kernel.environment[definition.name] = Waiting(definition)


# Memory


def behind_loops(names: Iterable[str], graph: Graph) -> frozenset[str]:
    """Of some names those that definitions use first behind a loop, or not at all if there is one."""
    loop = next((at for at, definition in enumerate(graph) if isinstance(definition, Map)), None)
    if loop is None:
        return frozenset()
    return frozenset(names).difference(*(definition.uses for definition in graph[: loop + 1]))


def load_ports(kernel: Kernel, node: Map, wanted: frozenset[str], graph: Graph) -> None:
    """Bind the `wanted` ports of a map: lists stay where they are, items are loaded; those that `graph`, what is
    computed of them, uses behind its loops, only there."""
    used = set(readings(node.where))
    used |= {value for output in node.outputs for value in output.values}
    used = used.union(*(definition.uses for definition in node.body))
    later = behind_loops(wanted, graph)
    for port in node.ports:
        if port.name not in wanted:
            continue
        source = kernel.environment[port.source]
        assert isinstance(source, Array)
        kernel.environment[port.name] = source
        kind = kernel.program.types[port.name]
        if kind.is_item and port.name in used:
            kernel.later[port.name] = f"{port.name}: {format_type(kind)} <- {port.source}"
    load_later(kernel, wanted - later)


def load_later(kernel: Kernel, names: Collection[str]) -> None:
    """Load those of some items that are not there yet, each for the current block."""
    for name in [name for name in kernel.later if name in names]:
        text, source = kernel.later.pop(name), kernel.environment[name]
        if text:
            comment(kernel, text)
        assert isinstance(source, Array)
        kernel.environment[name] = load(kernel, source, kernel.axes(kernel.program.types[name].axes))


def load(kernel: Kernel, source: Array, axes: tuple[str, ...]) -> Tile:
    """Load a tile; behind the end of a dimension there are zeros."""
    kernel.loaded.append(source)
    name = f"v{next(kernel.fresh)}"
    place = pointer(kernel, source, axes)
    choices = [("", f"tl.load({place})")]
    if short := short_blocks(kernel, axes):
        choices.insert(0, (short, f"tl.load({place}, mask={existing(kernel, axes)}, other=0.0)"))
    descriptor = kernel.descriptors.of(source, axes) if kernel.descriptors is not None else None
    if descriptor is not None:
        choices.insert(0, (descriptor.flag, described(kernel, descriptor, axes)))
    if len(choices) == 1:
        kernel.lines.add(f"{name} = {choices[0][1]}")
    for at, (condition, text) in enumerate(choices if len(choices) > 1 else ()):
        kernel.lines.add(f"{'elif' if at else 'if'} {condition}:" if condition else "else:", f"    {name} = {text}")
    dtype = {"float64": "float64", "int32": "int32", "int8": "int32", "bool": "int1"}.get(source.element, "float32")
    same = source.element in (dtype, "bool")
    stored = "" if dtype != "float32" or (source.computed and source.element == "float32") else name
    return Tile(name if same else f"{name}.to(tl.{dtype})", axes, dtype, stored, source.element if stored else "")


def store(kernel: Kernel, target: Array, tile: Tile) -> None:
    """Store the tile that belongs to the current block."""
    tile = scaled(kernel, tile)
    place = pointer(kernel, target, tile.dims)
    short = short_blocks(kernel, tile.dims)
    if not short:
        kernel.lines.add(f"tl.store({place}, {tile.text})")
        return
    kernel.lines.add(
        f"if {short}:",
        f"    tl.store({place}, {tile.text}, mask={existing(kernel, tile.dims)})",
        "else:",
        f"    tl.store({place}, {tile.text})",
    )


def pointer(kernel: Kernel, array: Array, axes: tuple[str, ...]) -> str:
    """Where the elements of a tile lie. Blocks are counted in 64 bits, elements of a block in 32."""
    scalar, along = [array.text], []
    for at, dim in enumerate(array.dims):
        number, stride = kernel.number(dim), f"{array.text}_s{at}"
        if dim in array.counted:
            scalar.append(f"tl.cast(b{number} // T{number}, tl.int64) * {stride}")
            continue
        if dim in kernel.mapped:
            scalar.append(f"o{number} * {stride}")
        if dim in axes:
            along.append(expanded(f"(r{number} * {stride})", (dim,), axes))
    return " + ".join([*scalar, *along])


def described(kernel: Kernel, descriptor: Descriptor, axes: tuple[str, ...]) -> str:
    """A tile loaded through a descriptor."""
    dims = [descriptor.array.dims[at] for at in descriptor.order]
    own = tuple(dim for dim in dims if dim in axes)
    begins = [f"b{kernel.number(dim)}" if dim in kernel.mapped else "0" for dim in dims]
    text = f"{descriptor.name}.load([{', '.join(begins)}])"
    if len(own) < len(dims):
        text = f"tl.reshape({text}, {kernel.shape(own)})"
    if own != axes:
        text = f"tl.permute({text}, {[own.index(dim) for dim in axes]})"
    return text


def short_blocks(kernel: Kernel, axes: tuple[str, ...]) -> str:
    """A condition that holds if a tile may reach over the end of a dimension; "" if none may."""
    return " or ".join(f"SHORT{kernel.number(dim)}" for dim in axes if dim not in kernel.filled)


def existing(kernel: Kernel, axes: tuple[str, ...]) -> str:
    """Which elements of a tile are in front of the end of all its dimensions."""
    short = (dim for dim in axes if dim not in kernel.filled)
    return " & ".join(expanded(f"in{kernel.number(dim)}", (dim,), axes) for dim in short)


# Accumulation


def _run_exponent(kernel: Kernel, name: str) -> None:
    """Replace the exponent of the current block by the largest so far, which leaves nothing of it to rescale."""
    total = kernel.running[name]
    tile = scaled(kernel, kernel.tile(name), total.scale)
    text = SPELLINGS["maximum"].text.format(total.text, tile.text)
    kernel.environment[name] = replace(tile, text=kernel.assign(text))


def _accumulate(kernel: Kernel, output: Output, results: Iterable[Value]) -> None:
    totals = [total for total in results if isinstance(total, Tile)]
    if output.monoid == "add":
        _add(kernel, totals[0], output.values[0])
    elif output.values[0] in kernel.running:
        exponent, *others = totals
        now = kernel.tile(output.values[0])
        lowest = repr(-(2.0 - 2.0**-23) * 2.0**127) if exponent.dtype == "float32" else repr(-1.7976931348623157e308)
        # Minus infinity becomes the lowest number, so that the difference is minus infinity and not NaN.
        floor = SPELLINGS["maximum"].text.format(now.text, lowest)
        scale = kernel.assign(exponentials(kernel, replace(exponent, text=f"({exponent.text} - {floor})")))
        kernel.lines.add(f"{exponent.text} = {now.text}")
        for total, value in zip(others, output.values[1:], strict=True):
            kernel.lines.add(f"{total.text} = {total.text} * {expanded(scale, exponent.dims, total.dims)}")
            _add(kernel, total, value)
    else:
        _combine(kernel, output, totals)


def _add(kernel: Kernel, total: Tile, name: str) -> None:
    value = kernel.environment[name]
    if isinstance(value, Waiting):
        load_later(kernel, value.apply.uses)
        comment(kernel, format_definition(kernel.program, value.apply, "")[0])
        contract(kernel, value.apply, total.text)
        return
    tile = scaled(kernel, kernel.tile(name))
    kernel.lines.add(f"{total.text} = {total.text} + {expanded(tile.text, tile.dims, total.dims)}")


def _combine(kernel: Kernel, output: Output, totals: list[Tile]) -> None:
    """Combine by the definition of the monoid, operator by operator."""

    def apply(op: str, *operands: Tile) -> Tile:
        tile = combined(kernel, op, operands)
        return replace(tile, text=kernel.assign(tile.text))

    values = tuple(kernel.tile(name) for name in output.values)
    made = MONOIDS[output.monoid or ""].combine(apply, tuple(totals), values)
    for total, result in zip(totals, made, strict=True):
        if result is not total:
            kernel.lines.add(f"{total.text} = {scaled(kernel, result, total.scale).text}")
