"""Loops with a condition on positions in Triton: between which blocks they run, and in which no mask is needed.

A part of the condition that compares whole numbers, in which the position along the loop stands once, bounds the loop:
blocks in which it holds nowhere lie on one side, and those in which it holds everywhere on the other. What else is
asked is asked in each block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from blockc.codegen.triton_tiles import literal
from blockc.codegen.triton_values import Kernel, Tile
from blockc.ir.block import Condition, Constant, Index, Map, Operand, Reading, Size, Term
from blockc.ir.conditions import UNKNOWN, as_term, choices, positions
from blockc.ir.intervals import Bounds, Leaf, bounds, is_whole


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a part of a condition lets positions along a loop begin or end: `some` that of a block in which it holds
    somewhere, `every` that of those in which it holds throughout, both as expressions."""

    upper: bool
    some: str
    every: str


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks from one position to another. If it is `full`, the condition of the loop holds in all of them. If they are
    `filled`, none is short; if it is `last`, there are some only where one is."""

    start: str
    end: str
    full: bool
    filled: bool = False
    last: bool = False


def sections(kernel: Kernel, node: Map, start: str, end: str) -> tuple[tuple[Section, ...], Term | None]:
    """The sections of a loop, in order, and what is still to be asked in each block, or None."""
    if node.where is None:
        return (Section(start, end, full=False),), None
    found: list[Limits] = []
    asked: list[Term] = []
    existing = Condition("lt", (Index(node.dim), Size(node.dim)))  # what holds but in a short block
    for part in _parts(node.where):
        if part == existing:
            continue
        limits = tuple(_limits(kernel, part, node.dim))
        found += limits
        if not limits:
            asked.append(part if _is_written(part) else UNKNOWN)
    number, tile = kernel.number(node.dim), kernel.extent(node.dim)
    base = kernel.program.chunks.get(node.dim, node.dim)
    lower = [limit for limit in found if not limit.upper]
    upper = [limit for limit in found if limit.upper]
    begin, last = start, end
    for limit in lower:
        begin = f"max({begin}, {_down(limit.some, tile)})"
    for limit in upper:
        last = f"min({last}, {limit.some} + 1)"
    kernel.lines.add(f"begin{number} = {begin}", f"end{number} = {last}")
    rest = None if not asked else asked[0] if len(asked) == 1 else Condition("and", tuple(asked))
    if rest is not None or not _masks(kernel, node):
        return (Section(f"begin{number}", f"end{number}", full=False),), rest
    # Full blocks lie between `full` and `rest`, which are beginnings of blocks.
    first, behind = f"begin{number}", f"end{number}"
    if lower:
        for limit in lower:
            first = f"max({first}, {_down(f'{limit.every} + {tile} - 1', tile)})"
        kernel.lines.add(f"full{number} = min({first}, end{number})")
        first = f"full{number}"
    for limit in upper:
        behind = f"min({behind}, {_down(f'{limit.every} + 1', tile)})"
    filled = existing in _parts(node.where) and not kernel.is_unit(node.dim)
    if filled:
        whole = f"{kernel.size(base)} // {tile} * {tile}"
        behind = f"min({behind}, {whole})" if upper or start != "0" else whole
    if upper or lower or start != "0":
        behind = f"max({behind}, {first})"
    if upper or filled:
        kernel.lines.add(f"rest{number} = {behind}")
        behind = f"rest{number}"
    made = [Section(first, behind, full=True, filled=filled)]
    if lower:
        made.insert(0, Section(f"begin{number}", first, full=False))
    if upper or filled:
        made.append(Section(behind, f"end{number}", full=not upper, last=not upper))
    return tuple(made), None


def _down(position: str, tile: str) -> str:
    """The beginning of the block of a position, which is none of a negative one."""
    return f"max({position}, 0) // {tile} * {tile}"


def _masks(kernel: Kernel, node: Map) -> list[tuple[Operand, bool]]:
    """What the body chooses by that the condition of the loop implies to hold, or not to hold."""
    parts = tuple(_parts(node.where)) if node.where is not None else ()
    found = []
    for operand in dict.fromkeys(choices(node.body)):
        term = as_term(kernel.program, operand)
        for holds in (True, False):
            if term is not None and _implied(term if holds else Condition("not", (term,)), parts):
                found.append((operand, holds))
    return found


def _implied(term: Term, parts: tuple[Term, ...]) -> bool:
    return all(part in parts for part in _parts(term))


def _parts(term: Term) -> Iterator[Term]:
    """The terms that all have to hold."""
    if isinstance(term, Condition) and term.op == "and":
        for arg in term.args:
            yield from _parts(arg)
    else:
        yield term


def settled(kernel: Kernel, node: Map) -> dict[Operand, bool]:
    """The conditions of the body that have one value in full blocks."""
    return dict(_masks(kernel, node))


def somewhere(kernel: Kernel, condition: Term) -> str:
    """An expression that is true if a condition may hold somewhere in the current block."""
    return bounds(condition, _operator, lambda term: _extremes(kernel, term))[1]


# Limits


def _limits(kernel: Kernel, part: Term, dim: str) -> Iterator[Limits]:
    found = _compared(part, dim)
    if found is None:
        return
    factor, rest = found
    assert isinstance(part, Condition)
    less, more = part.op in ("lt", "le", "eq"), part.op in ("gt", "ge", "eq")
    strict, more_strict = (" - 1", " + 1") if part.op in ("lt", "gt") else ("", "")
    low, high = _sum(kernel, [(-factor * scale, term) for scale, term in rest])  # of what n is compared with
    if (less and factor == 1) or (more and factor == -1):
        yield Limits(True, f"{high}{strict}", f"{low}{strict}")
    if (more and factor == 1) or (less and factor == -1):
        yield Limits(False, f"{low}{more_strict}", f"{high}{more_strict}")


Sum = list[tuple[int, Term]]  # multiples, by 1 or -1, of terms


def _compared(part: Term, dim: str) -> tuple[int, Sum] | None:
    """A comparison as one of a position, times 1 or -1 and plus a sum, with 0; None if it is something else."""
    if not isinstance(part, Condition) or part.op not in ("lt", "le", "gt", "ge", "eq"):
        return None
    if not all(map(is_whole, part.args)):
        return None
    left, right = (_linear(arg, dim) for arg in part.args)
    if left is None or right is None:
        return None
    factor = left[0] - right[0]
    rest = [*left[1], *((-scale, term) for scale, term in right[1])]
    if factor not in (1, -1) or any(isinstance(term, Reading) and dim in term.dims for _, term in rest):
        return None
    return factor, rest


def slope(loop: Map, dim: str) -> int:
    """More than 0 if a loop has more blocks at later positions along another dimension, less if it has fewer, 0 if
    neither is known."""
    found = 0
    for part in _parts(loop.where) if loop.where is not None else ():
        compared = _compared(part, loop.dim)
        if compared is None or not isinstance(part, Condition) or part.op == "eq":
            continue
        factor, rest = compared
        lines = [(scale, _linear(term, dim)) for scale, term in rest]
        rises = sum(-factor * scale * line[0] for scale, line in lines if line is not None)
        upper = (part.op in ("lt", "le")) == (factor == 1)
        found += rises if upper else -rises
    return found


def _linear(term: Term, dim: str) -> tuple[int, Sum] | None:
    """A term as a multiple of the position along a dimension and a sum of multiples of others."""
    if term == Index(dim):
        return 1, []
    if dim not in positions(term):
        return 0, [(1, term)]
    if isinstance(term, Condition) and term.op == "mul":
        others = [arg for arg in term.args if not isinstance(arg, Constant)]
        scale = math.prod(int(arg.value) for arg in term.args if isinstance(arg, Constant))
        inner = _linear(others[0], dim) if len(others) == 1 and scale in (1, -1) else None
        return None if inner is None else (scale * inner[0], [(scale * sign, other) for sign, other in inner[1]])
    if not isinstance(term, Condition) or term.op not in ("add", "sub", "neg"):
        return None
    factor, rest = 0, []
    for at, arg in enumerate(term.args):
        sign = -1 if term.op == "neg" or (term.op == "sub" and at > 0) else 1
        part = _linear(arg, dim)
        if part is None:
            return None
        factor += sign * part[0]
        rest += [(sign * scale, other) for scale, other in part[1]]
    return factor, rest


def _sum(kernel: Kernel, terms: Sum) -> Bounds[str]:
    """The lowest and the highest value of a sum."""
    low, high = [], []
    for scale, term in terms:
        least, most = bounds(term, _operator, lambda leaf: _extremes(kernel, leaf))
        low.append(least if scale > 0 else f"-{_wrapped(most)}")
        high.append(most if scale > 0 else f"-{_wrapped(least)}")
    return _added(low), _added(high)


def _added(texts: list[str]) -> str:
    text = " + ".join(text for text in texts if text not in ("0", "-0")) or "0"
    return text.replace("+ -", "- ")


def _wrapped(text: str) -> str:
    return text if text.isidentifier() or text.isdigit() else f"({text})"


def _extremes(kernel: Kernel, term: Leaf) -> Bounds[str]:
    """The lowest and the highest value of a position, of a table or of a number in the current block."""
    match term:
        case Constant(value):
            text = literal(
                value, "int1" if isinstance(value, bool) else "int32" if isinstance(value, int) else "float32"
            )
            return text, text
        case Size(dim):
            return kernel.size(dim), kernel.size(dim)
        case Reading(name):
            tile = kernel.tile(name)
            return _reduced(kernel, tile, "min"), _reduced(kernel, tile, "max")
        case Index(dim):
            number = kernel.number(dim)
            if dim not in kernel.mapped:
                return "0", f"{kernel.size(dim)} - 1"
            if kernel.is_unit(dim):
                return f"b{number}", f"b{number}"
            return f"b{number}", f"(min(b{number} + {kernel.extent(dim)}, {kernel.size(dim)}) - 1)"


def _reduced(kernel: Kernel, tile: Tile, op: str) -> str:
    """The least or the largest element of a tile that exists."""
    text = tile.text
    limit = 2**31 - 1 if op == "min" else -(2**31)
    for at, dim in reversed(list(enumerate(tile.dims))):
        inside = ", ".join(":" if other == at else "None" for other in range(at + 1))
        text = f"tl.{op}(tl.where(in{kernel.number(dim)}[{inside}], {text}, {limit}), {at})"
    return text


_OPERATORS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "and": "&",
    "or": "|",
}
_WRITTEN = frozenset({*_OPERATORS, "eq", "ne", "neg", "not", "minimum", "maximum", "abs", "relu", "floor", "unknown"})


def _is_written(term: Term) -> bool:
    """True if there is an expression for the bounds of a condition; else it may hold in every block."""
    return not isinstance(term, Condition) or (term.op in _WRITTEN and all(map(_is_written, term.args)))


def _operator(op: str, *operands: str) -> str:
    """An operator of numbers, as an expression."""
    match op:
        case "neg":
            return f"(-({operands[0]}))"
        case "not":
            return f"(({operands[0]}) == 0)"
        case "rounded":
            return f"({operands[0]})"  # numbers are f32 here
        case "minimum" | "maximum":
            text = operands[0]
            for other in operands[1:]:
                text = f"{op[:3]}({text}, {other})"
            return text
        case "relu":
            return f"max({operands[0]}, 0)"
        case "floor":
            return f"tl.floor(({operands[0]}) + tl.full([], 0.0, tl.float32))"  # it takes no constants
        case "abs":
            return f"max({operands[0]}, -({operands[0]}))"
        case _ if op in _OPERATORS:
            return "(" + f" {_OPERATORS[op]} ".join(f"({operand})" for operand in operands) + ")"
    raise NotImplementedError(op)
