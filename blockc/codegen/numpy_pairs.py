"""Accumulated exponent pairs (t, x, ...), which stand for x * e^t, as NumPy calls.

Where `exponents.may_run` allows it, a block is computed with the exponent so far. That need not be the largest element,
only close enough that nothing overflows and nothing that counts underflows. So one maximum over the whole block, which
is several times cheaper than one for each row, says whether it may stay; if not, it becomes the maximum, or zero where
that is close enough. Exponents that are all zero need not be subtracted.
"""

from __future__ import annotations

from dataclasses import replace

from blockc.codegen.exponents import may_run
from blockc.codegen.kernel_state import Kernel, Powers, Running
from blockc.codegen.numpy_ops import LOG2_E
from blockc.codegen.numpy_powers import let_go, start_powers
from blockc.codegen.numpy_tiles import apply_operator
from blockc.codegen.numpy_values import Tile, aligned, compute_dtype, dtype_text
from blockc.codegen.scratch import Scope, new_tile
from blockc.ir.block import Apply, Map, Output

NEAR = 16.0  # how far an exponent may be from the largest element: a factor of 2e-8 to 9e6, tiny in the range of f32


def start_running(kernel: Kernel, scope: Scope, node: Map, output: Output, totals: tuple[Tile, ...]) -> None:
    """Note, ahead of a loop, that the exponent of `output` may be the one so far, if so.

    Of the first iteration, which has no `totals` yet, what is known goes on to the rest of the loop.
    """
    if not may_run(node.body, output, node.outputs):
        return
    name = output.values[0]
    (apply,) = (d for d in node.body if isinstance(d, Apply) and d.name == name)
    # log(x) + t of numbers close to zero is most exact where t is the maximum.
    if output.names[0] in kernel.read or not _is_maximum(kernel, apply):
        if totals:
            kernel.running[name] = Running(totals)
        return
    known = kernel.running.get(output.starts[0]) if output.starts else None
    if known is not None:
        running = replace(known, totals=totals)
    else:
        number = next(kernel.numbers)
        running = Running(totals, f"y{number}", f"z{number}")
        kernel.running[output.names[0]] = running
    if totals:
        running = start_powers(kernel, scope, node, apply, running)
    kernel.running[name] = running
    if known is None:
        scope.lines.add(f"{running.limit}, {running.shifts} = -np.inf, {running.powers is None}")
    elif running.powers is not None:
        scope.lines.add(f"if not {running.shifts}:", f"    {running.limit} = {NEAR * LOG2_E}")


def end_running(kernel: Kernel, scope: Scope, output: Output) -> None:
    """Give back, behind a loop, what the exponent of `output` has taken."""
    running = kernel.running.get(output.values[0])
    if running is not None and running.powers is not None:
        _give_back(scope, running.powers.scaled)


def _is_maximum(kernel: Kernel, apply: Apply) -> bool:
    """True if the exponent is the maximum of the rows of a tile, in the type that it is computed in."""
    (source, *_) = apply.args
    if apply.op != "max" or not isinstance(source, str) or all(map(kernel.is_unit, apply.dims)):
        return False
    return compute_dtype(kernel.types[source].dtype) == compute_dtype(apply.dtype)


def move_exponent(kernel: Kernel, scope: Scope, apply: Apply, running: Running) -> None:
    """Write the exponent of a block: the one so far, after it has moved if an element is far above it."""
    if not running.totals:
        largest = apply_operator(kernel, scope, apply, frozenset())
        _round_to_zero(scope, largest)
        _know(scope, running, largest)
        kernel.environment[apply.name] = largest
        return
    (source, *_) = apply.args
    exponent, *payloads = running.totals
    scope.lines.add(
        "# The exponent so far serves as well, unless an element is far above it.",
        f"if not np.maximum.reduce({kernel.tile(str(source)).text}, axis=None, initial=-np.inf) <= {running.limit}:",
    )
    inside = replace(scope, lines=scope.lines.nest())
    if running.powers is not None:
        inside = _leave_powers(kernel, inside, apply, running, running.powers)
    largest = apply_operator(kernel, inside, apply, frozenset())
    _round_to_zero(inside, largest)
    inside.lines.add(f"np.maximum({aligned(exponent, largest.dims)}, {largest.text}, out={largest.text})")
    scale = _scale(kernel, inside, exponent, aligned(largest, exponent.dims))
    inside.lines.add(f"np.copyto({exponent.text}, {aligned(largest, exponent.dims)})")
    for total in payloads:
        inside.lines.add(f"np.multiply({total.text}, {aligned(scale, total.dims)}, out={total.text})")
    _know(inside, running, exponent)
    for tile in (largest, scale):
        _give_back(inside, tile)
    if running.powers is not None:
        inside.lines.add(f"if not {running.shifts}:", f"    {running.limit} = {NEAR * LOG2_E}")
        let_go(inside, running.powers)
    assert exponent.buffer is not None
    exponent.buffer.users += 1
    kernel.environment[apply.name] = exponent


def _leave_powers(kernel: Kernel, scope: Scope, apply: Apply, running: Running, powers: Powers) -> Scope:
    """Write what becomes of logits for powers of two when one of them is above the limit, which it is in the first
    block: if those of each row are close to zero, nothing needs to be subtracted. Else they are computed again, as they
    were written, and the exponent moves, in the scope that is returned."""
    exponent, source = running.totals[0], str(apply.args[0])
    scope.lines.add(f"if {powers.used}:")
    inside = replace(scope, lines=scope.lines.nest())
    largest = apply_operator(kernel, inside, apply, frozenset())
    inside.lines.add(
        f"np.absolute({largest.text}, out={largest.text})",
        f"{powers.used} = np.maximum.reduce({largest.text}, axis=None, initial=0.0) <= {NEAR * LOG2_E}",
    )
    _give_back(inside, largest)
    scope.lines.add(f"if {powers.used}:", f"    {exponent.text}.fill(0.0)", f"    {running.limit} = {NEAR * LOG2_E}")
    scope.lines.add("else:")
    otherwise = replace(scope, lines=scope.lines.nest())
    otherwise.lines.add(f"if not {running.shifts}:")
    _write_again(kernel, replace(otherwise, lines=otherwise.lines.nest()), kernel.tile(source), powers)
    return otherwise


def _write_again(kernel: Kernel, scope: Scope, tile: Tile, powers: Powers) -> None:
    """Write the definitions of logits as they are, into the tile that has them for powers of two."""
    gone = powers.held.keys() - kernel.environment.keys()
    kernel.environment.update(powers.held)
    product, *masks = powers.made
    kernel.places[product.name] = tile
    known = {made.name: kernel.powers.pop(made.name) for made in powers.made}
    kernel.environment[product.name] = apply_operator(kernel, scope, product, frozenset())
    for mask in masks:
        result = apply_operator(kernel, scope, mask, frozenset({product.name}))
        if result.text != tile.text:
            scope.lines.add(f"np.copyto({tile.text}, {aligned(result, tile.dims)})")
        _give_back(scope, result)
        del kernel.environment[product.name]
    for name in gone:
        del kernel.environment[name]
    del kernel.places[product.name]
    kernel.powers.update(known)


def _know(scope: Scope, running: Running, exponent: Tile) -> None:
    """Write what is known of an exponent that has moved."""
    scope.lines.add(
        f"{running.limit} = np.minimum.reduce({exponent.text}, axis=None, initial=np.inf) + {NEAR}",
        f"{running.shifts} = {exponent.text}.any()",
    )


def _round_to_zero(scope: Scope, exponent: Tile) -> None:
    """Write zeros over the exponents that are so small that none is needed."""
    size, near = (new_tile(scope, exponent.axes, dtype) for dtype in (exponent.dtype, "bool"))
    scope.lines.add(
        f"np.absolute({exponent.text}, out={size.text})",
        f"np.less_equal({size.text}, {NEAR}, out={near.text})",
        f"np.copyto({exponent.text}, 0.0, where={near.text})",
    )
    for tile in (size, near):
        _give_back(scope, tile)


def run_exponent(kernel: Kernel, scope: Scope, name: str, running: Running) -> None:
    """Replace the exponent of the current block by the largest so far."""
    tile, accumulator = kernel.tile(name), running.totals[0]
    scope.lines.add("# The largest exponent so far serves as well, and leaves nothing of this block to rescale.")
    if tile.buffer is not None and tile.buffer.users == 1:
        scope.lines.add(f"np.maximum({aligned(accumulator, tile.dims)}, {tile.text}, out={tile.text})")
        return
    out = new_tile(scope, accumulator.axes, accumulator.dtype)
    scope.lines.add(f"np.maximum({accumulator.text}, {aligned(tile, out.dims)}, out={out.text})")
    kernel.environment[name] = out
    _give_back(scope, tile)


def add_aligned(kernel: Kernel, scope: Scope, running: Running, values: list[Tile]) -> None:
    """Add payloads that were computed with the exponent so far: only what is accumulated is rescaled, if anything."""
    exponent, *totals = running.totals
    scale = None
    if not running.limit:
        scale = _scale(kernel, scope, exponent, aligned(values[0], exponent.dims))
        scope.lines.add(f"np.copyto({exponent.text}, {aligned(values[0], exponent.dims)})")
    for total, value in zip(totals, values[1:], strict=True):
        if scale is not None:
            scope.lines.add(f"np.multiply({total.text}, {aligned(scale, total.dims)}, out={total.text})")
        scope.lines.add(f"np.add({total.text}, {aligned(value, total.dims)}, out={total.text})")
    if scale is not None:
        _give_back(scope, scale)


def add_pairs(kernel: Kernel, scope: Scope, accumulators: list[Tile], values: list[Tile]) -> None:
    """Add pairs with any exponents: both sides are rescaled to the larger exponent."""
    exponent, *totals = accumulators
    largest = new_tile(scope, exponent.axes, exponent.dtype)
    own = aligned(values[0], exponent.dims)
    scope.lines.add(f"np.maximum({exponent.text}, {own}, out={largest.text})")
    scale = _scale(kernel, scope, exponent, largest.text)
    other = _scale(kernel, scope, Tile(own, exponent.axes, exponent.dtype), largest.text)
    scope.lines.add(f"np.copyto({exponent.text}, {largest.text})")
    for total, value in zip(totals, values[1:], strict=True):
        room = new_tile(scope, total.axes, total.dtype)
        scope.lines.add(
            f"np.multiply({total.text}, {aligned(scale, total.dims)}, out={total.text})",
            f"np.multiply({aligned(value, total.dims)}, {aligned(other, total.dims)}, out={room.text})",
            f"np.add({total.text}, {room.text}, out={total.text})",
        )
        _give_back(scope, room)
    for tile in (largest, scale, other):
        _give_back(scope, tile)


def _scale(kernel: Kernel, scope: Scope, exponent: Tile, largest: str) -> Tile:
    """exp(exponent - largest), and 0 where both are minus infinity."""
    scale = new_tile(scope, exponent.axes, exponent.dtype)
    # Minus infinity becomes the lowest number, so that the difference is minus infinity and not NaN.
    lowest = f"np.finfo({dtype_text(exponent.dtype)}).min"
    floor = kernel.named_constant(lowest)
    scope.lines.add(
        f"np.maximum({largest}, {floor}, out={scale.text})",
        f"np.subtract({exponent.text}, {scale.text}, out={scale.text})",
        f"np.exp({scale.text}, out={scale.text})",
    )
    return scale


def _give_back(scope: Scope, tile: Tile) -> None:
    if tile.buffer is not None:
        scope.pool.release(tile.buffer)
