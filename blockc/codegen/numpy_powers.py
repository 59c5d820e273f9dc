"""Logits in powers of two: products that are computed times log2(e) while nothing is subtracted from them.

    S: local f32(m, n) = contract[d](Q, K)                  S' = contract[d](mul(Q, log2(e)), K)
    P: local f32(m, n) = exp(sub(S, finite(T)))      =>     P  = exp2(S')                  while the exponent is zero

Then the exponential takes one pass over the tile less. That is for logits close to zero only: a large one times log2(e)
has an error that counts. So where the exponent has to move, the block is computed again as it was written.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from blockc.codegen.kernel_state import Kernel, Powers, Running
from blockc.codegen.numpy_ops import LOG2_E, POWER_OF_TWO, Spelling, has_fast_exp2
from blockc.codegen.numpy_values import Tile
from blockc.codegen.scratch import Scope, new_tile
from blockc.ir.block import Apply, Constant, Expression, Map, Operand, operand_names


def start_powers(kernel: Kernel, scope: Scope, node: Map, maximum: Apply, running: Running) -> Running:
    """The record of an exponent, the `maximum` of a loop's blocks, with the product that it is the maximum of if that
    may be scaled. What is needed for it is written ahead of the loop."""
    made = _logits(node, maximum)
    changing = {port.name for port in node.ports} | {name for other in node.body for name in other.defines}
    fixed = [arg for arg in made[0].args if isinstance(arg, str) and arg not in changing] if made else []
    if not has_fast_exp2() or len(fixed) != 1 or {definition.dtype for definition in made} != {"f32"}:
        return running
    exact = kernel.tile(fixed[0])
    if exact.dtype != "float32":
        return running
    scaled = new_tile(scope, exact.axes, exact.dtype)
    powers = Powers(made, fixed[0], scaled, running.shifts, f"p{next(kernel.numbers)}")
    scope.lines.add(
        "# While nothing is subtracted from the logits, they are computed for powers of two.",
        f"np.multiply({exact.text}, {LOG2_E!r}, out={scaled.text})",
    )
    kernel.powers.update((definition.name, powers) for definition in made)
    return replace(running, powers=powers)


def _logits(node: Map, maximum: Apply) -> tuple[Apply, ...]:
    """The definitions from a product to the tile of a maximum: the product, and maybe a mask. Empty if there is no
    product, or if its elements are read by more than the maximum and one exponential."""
    (source, *_) = maximum.args
    applies = {definition.name: definition for definition in node.body if isinstance(definition, Apply)}
    reads = Counter(name for other in node.body if not isinstance(other, Apply) for name in other.uses)
    reads.update(value for output in node.outputs for value in output.values)
    reads.update(name for apply in applies.values() for name in operand_names(apply.args))
    power = Expression("exp", (Expression("sub", (source, Expression("finite", (maximum.name,)))),))
    powers = sum(_count(Expression(apply.op, apply.args), power) for apply in applies.values())
    if reads[str(source)] != 2 or powers != 1:
        return ()
    found = applies.get(str(source))
    if found is None or found.op == "contract":
        return (found,) if found is not None else ()
    product = applies.get(_masked(found))
    return (product, found) if product is not None and product.op == "contract" and reads[product.name] == 1 else ()


def _masked(apply: Apply) -> str:
    """The tile of a mask that puts minus infinity elsewhere; "" for any other operator."""
    match apply.op, apply.args:
        case ("where", (_, str(chosen), Constant(value)) | (_, Constant(value), str(chosen))) if value == -math.inf:
            return chosen
        case _:
            return ""


def _count(operand: Operand, wanted: Expression) -> int:
    if not isinstance(operand, Expression):
        return 0
    return (operand == wanted) + sum(_count(arg, wanted) for arg in operand.args)


def either(scope: Scope, powers: Powers, args: tuple[Operand, ...], tiles: list[Tile]) -> Iterator[Tile]:
    """The operands of the product, the one that does not change scaled where nothing is subtracted."""
    scope.lines.add(f"{powers.used} = not {powers.shifts}")
    for arg, tile in zip(args, tiles, strict=True):
        if arg == powers.operand:
            yield replace(tile, text=f"({powers.scaled.text} if {powers.used} else {tile.text})")
        else:
            yield tile


def hold(kernel: Kernel, powers: Powers, definition: Apply) -> None:
    """Keep what one of the definitions reads, for the case that it is needed again in this block."""
    made = {other.name for other in powers.made}
    for name in definition.uses.difference(made, powers.held):
        value = powers.held[name] = kernel.environment[name]
        if value.buffer is not None:
            value.buffer.users += 1


def let_go(scope: Scope, powers: Powers) -> None:
    """Give back what was kept."""
    for value in powers.held.values():
        if value.buffer is not None:
            scope.pool.release(value.buffer)
    powers.held.clear()


def exponential(kernel: Kernel, op: str, args: tuple[Operand, ...], compute: str) -> Spelling | None:
    """The spelling of exponentials of differences to an exponent where NumPy is fast at powers of two: for large
    numbers these have fewer digits, but of such differences only small ones count. None for all others."""
    if op != "exp" or compute != "float32" or not has_fast_exp2():
        return None
    match args:
        case (Expression("sub", (_, Expression("finite", (exponent,)))),):
            running = kernel.running.get(exponent) if isinstance(exponent, str) else None
            if running is None or running.powers is None:
                return POWER_OF_TWO
            scale, power = POWER_OF_TWO.calls
            return replace(POWER_OF_TWO, calls=(f"if not {running.powers.used}:", f"    {scale}", power))
        case _:
            return None
