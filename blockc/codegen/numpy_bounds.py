"""Loops with a condition on positions as Python: which blocks are gone through, and which of them need no mask."""

from __future__ import annotations

from blockc.codegen.kernel_state import Kernel
from blockc.codegen.numpy_ops import SPELLINGS
from blockc.codegen.numpy_tiles import literal
from blockc.codegen.numpy_values import Listing
from blockc.codegen.scratch import Scope
from blockc.ir.block import Condition, Constant, Index, Map, Operand, Reading, Size
from blockc.ir.conditions import as_term, choices, conjuncts
from blockc.ir.intervals import Bounds, Leaf, bounds


def loop_head(kernel: Kernel, scope: Scope, node: Map, where: Condition) -> str:
    """The head of a loop over the blocks in which its condition may hold; written ahead of it, which those are."""
    number = kernel.number(node.dim)
    starts, blocks, needs_mask = f"g{number}", f"b{number}", f"q{number}"
    scope.lines.add(f"{starts} = np.array({kernel.blocks_text(scope, node.dim)}, np.int64)")
    everywhere, somewhere = bounds(where, _operator, lambda term: _extremes(kernel, scope, term, node))
    scope.lines.add(
        f"{starts} = {starts}[{somewhere}]",
    )
    known = [(operand, holds) for operand in dict.fromkeys(choices(node.body)) for holds in (True, False)]
    masks = [(operand, holds) for operand, holds in known if _follows(kernel, operand, holds, where)]
    if not masks:
        return f"for {blocks} in {starts}.tolist():"
    kernel.masks.update(dict.fromkeys(masks, needs_mask))
    scope.lines.add(f"{needs_mask} = np.logical_not({everywhere})")
    return f"for {blocks}, {needs_mask} in zip({starts}.tolist(), {needs_mask}.tolist()):"


def _follows(kernel: Kernel, operand: Operand, holds: bool, where: Condition) -> bool:
    """True if the condition of a loop implies that an operand holds, or that it does not."""
    term = as_term(kernel.program, operand)
    return term is not None and (term if holds else Condition("not", (term,))) in conjuncts(where)


def _extremes(kernel: Kernel, scope: Scope, term: Leaf, node: Map) -> Bounds[str]:
    """The lowest and highest value of a position here, of a table or of a number; along the loop, of each block."""
    match term:
        case Constant(value):
            return literal(value), literal(value)
        case Size(dim):
            return kernel.size(dim), kernel.size(dim)
        case Reading(name):
            return _extremes_of(kernel, scope, name, node)
        case Index(dim):
            number = kernel.number(dim)
            if dim == node.dim:
                start, (_, end) = f"g{number}", kernel.bounds(scope, dim)
                last = start if kernel.is_unit(dim) else f"np.minimum({start} + t{number}, {end}) - 1"
                return start, last
            if dim not in scope.blocks:
                return "0", f"{kernel.size(dim)} - 1"
            return f"b{number}", f"b{number}" if kernel.is_unit(dim) else f"e{number} - 1"


def _extremes_of(kernel: Kernel, scope: Scope, name: str, node: Map) -> Bounds[str]:
    """The least and the largest number of a table, in each block of the loop if a port of it reads the table."""
    source = next((port.source for port in node.ports if port.name == name), None)
    if source is None:
        tile = kernel.tile(name)
        return f"float(np.min({tile.text}))", f"float(np.max({tile.text}))"
    listing = kernel.environment[source]
    assert isinstance(listing, Listing)
    others = ", ".join(str(at) for at, axis in enumerate(listing.rest) if axis.dim != node.dim)
    number, (start, end) = kernel.number(node.dim), kernel.bounds(scope, node.dim)
    low, high = (
        f"np.{op}.reduceat({_flat(op, listing.selected, others)}[{start}:{end}], g{number} - {start}, dtype=np.float64)"
        for op in NOTHING
    )
    return low, high


NOTHING = {"minimum": "np.inf", "maximum": "-np.inf"}  # what a reduction gives for no numbers


def _flat(op: str, array: str, others: str) -> str:
    """The extremes of an array along other axes than one."""
    if not others:
        return array
    return f"np.{op}.reduce({array}, axis=({others},), dtype=np.float64, initial={NOTHING[op]})"


def _operator(op: str, *operands: str) -> str:
    """An operator of numbers or of arrays of them, as a Python expression."""
    if op == "rounded":
        return f"np.float64(np.float32({operands[0]}))"
    spelling = SPELLINGS[op]
    if spelling.folds is None:
        return spelling.number.format(*operands)
    text = operands[0]
    for other in operands[1:]:
        text = spelling.number.format(text, other)
    return text
