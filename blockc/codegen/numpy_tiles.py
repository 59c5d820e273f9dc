"""Tile operators as NumPy calls: elementwise operators, reductions within a tile, contractions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from blockc.codegen.kernel_state import Kernel, Running
from blockc.codegen.numpy_contract import contract
from blockc.codegen.numpy_ops import SPELLINGS, Spelling
from blockc.codegen.numpy_powers import either, exponential, hold
from blockc.codegen.numpy_values import (
    Axis,
    Number,
    Tile,
    aligned,
    compute_dtype,
    identity_text,
    sequence,
)
from blockc.codegen.scratch import Scope, new_tile, tile_in
from blockc.ir.block import Apply, Constant, Expression, Operand, Size, Type, operand_names
from blockc.ir.dtypes import DTYPES, is_float
from blockc.ir.ops import OPERATORS, Result, operand_dtype, result_dtype

_REDUCTIONS = {"sum": "add", "max": "maximum", "min": "minimum"}
_INTEGER_LIMITS = {"i32": (-(2**31), 2**31 - 1), "i8": (-(2**7), 2**7 - 1)}


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """An operand. `dies`: nobody needs it afterwards. `temporary`: its memory is given back by who uses it.

    `shared`: how many dying names of the same operator have their values in its memory, which it was written over.
    """

    value: Tile | Number
    dies: bool = False
    temporary: bool = False
    shared: int = 0


def apply_operator(kernel: Kernel, scope: Scope, apply: Apply, dying: frozenset[str]) -> Tile:
    """Write the calls for one tile operator; `dying` are the names that nothing reads afterwards."""
    compute = compute_dtype(apply.dtype)
    op, args = as_quotient(kernel, apply.op, apply.args)
    uses = Counter(operand_names(args))
    if (powers := kernel.powers.get(apply.name)) is not None:
        hold(kernel, powers, apply)
    if _skips_mask(kernel, op, args):
        return _tile_of(_masked(kernel, scope, args, uses, dying, compute))
    if (running := _lazy_shift(kernel, op, args)) is not None:
        return _tile_of(_shifted(kernel, scope, running, args, uses, dying, compute))
    given = _operands(kernel, scope, args, uses, dying)
    match op:
        case "index":
            return _index(kernel, scope, apply.dims[0])
        case "cast":
            result = _cast(kernel, scope, given[0], apply)
        case "broadcast":
            result = _broadcast(kernel, scope, given[0], apply.dims, compute)
        case "sum" | "max" | "min":
            result = _reduce(kernel, scope, apply, given[0])
        case "contract":
            operands = [_as_type(scope, entry, compute) for entry in given]
            tiles = [_tile_of(entry) for entry in operands]
            result = contract(kernel, scope, apply, *(either(scope, powers, args, tiles) if powers else tiles))
            _release_temporaries(scope, [entry for entry in operands if entry not in given])
        case _:
            place = kernel.places.get(apply.name)
            spelling = exponential(kernel, op, args, compute) or SPELLINGS[op]
            return _elementwise(kernel, scope, op, given, compute, spelling, place)
    _release_temporaries(scope, given)
    return result


def _release_temporaries(scope: Scope, given: Iterable[Given]) -> None:
    """Give back memory, in an order that is always the same: what is free last is taken first."""
    for entry in given:
        if entry.temporary and isinstance(entry.value, Tile) and entry.value.buffer is not None:
            scope.pool.release(entry.value.buffer)


# Operands


def _operands(
    kernel: Kernel, scope: Scope, args: tuple[Operand, ...], uses: Counter[str], dying: frozenset[str]
) -> list[Given]:
    """The operands of one operator; composed ones are computed now.

    A name dies here only if all its `uses` are operands of this very operator: those of an operator around it are read
    later.
    """
    here = Counter(arg for arg in args if isinstance(arg, str))
    given = []
    for arg in args:
        match arg:
            case str():
                given.append(Given(kernel.tile(arg), dies=arg in dying and here[arg] == uses[arg]))
            case Expression(op, inner) if any(operand_names(inner)):
                compute = compute_dtype(
                    result_dtype(op, tuple(operand_dtype(kernel.types, operand) for operand in inner))
                )
                given.append(_composed(kernel, scope, op, inner, uses, dying, compute))
            case _:
                given.append(Given(number(kernel, arg)))
    return given


def _composed(
    kernel: Kernel,
    scope: Scope,
    op: str,
    args: tuple[Operand, ...],
    uses: Counter[str],
    dying: frozenset[str],
    compute: str,
) -> Given:
    """The result of an operator inside another one."""
    op, args = as_quotient(kernel, op, args)
    if _skips_mask(kernel, op, args):
        return _masked(kernel, scope, args, uses, dying, compute)
    if (running := _lazy_shift(kernel, op, args)) is not None:
        return _shifted(kernel, scope, running, args, uses, dying, compute)
    entries = _operands(kernel, scope, args, uses, dying)
    spelling = exponential(kernel, op, args, compute) or SPELLINGS[op]
    result = _elementwise(kernel, scope, op, entries, compute, spelling)
    return Given(result, dies=True, temporary=True, shared=_sharing(entries, result))


def _sharing(entries: Iterable[Given], result: Tile) -> int:
    """How many dying names have their values in the memory of a result."""
    same = [entry for entry in entries if isinstance(entry.value, Tile) and entry.value.buffer is result.buffer]
    return sum(entry.shared + (not entry.temporary) for entry in same) if result.buffer is not None else 0


def number(kernel: Kernel, operand: Constant | Size | Expression) -> Number:
    """A number as a Python expression; one that takes computing is computed once per launch."""
    match operand:
        case Constant(value):
            return Number(literal(value))
        case Size(dim):
            return Number(kernel.size(dim))
        case Expression():
            convert = DTYPES[operand_dtype(kernel.types, operand)].kind
            return Number(kernel.named_constant(f"{convert}({_number_text(kernel, operand)})"))
        case _:
            assert_never(operand)


def _number_text(kernel: Kernel, operand: Operand) -> str:
    match operand:
        case Expression(op, args):
            spelling = SPELLINGS[op]
            texts = [_number_text(kernel, arg) for arg in args]
            if spelling.folds is None:
                return f"({spelling.number.format(*texts)})"
            text = texts[0]
            for other in texts[1:]:
                text = spelling.number.format(text, other)
            return text
        case Constant() | Size():
            return number(kernel, operand).text
        case str():
            raise TypeError(f"`{operand}` is not a number")
        case _:
            assert_never(operand)


def literal(value: float | bool) -> str:
    """A Python literal for a number; infinities and NaN by NumPy's names."""
    if isinstance(value, float) and not math.isfinite(value):
        return "np.nan" if math.isnan(value) else "np.inf" if value > 0 else "-np.inf"
    return repr(value)


# Elementwise operators


def as_quotient(kernel: Kernel, op: str, args: tuple[Operand, ...]) -> tuple[str, tuple[Operand, ...]]:
    """An operator as it is written: a product with 1/x, where x has all axes, is a quotient, which is one call less."""
    if op != "mul":
        return op, args
    axes = [{axis for name in operand_names((arg,)) for axis in kernel.types[name].axes} for arg in args]
    for position, arg in enumerate(args):
        if axes[position] and axes[position] == set.union(*axes) and (divisor := _divisor(arg)) is not None:
            rest = args[:position] + args[position + 1 :]
            return "div", (rest[0] if len(rest) == 1 else Expression("mul", rest), divisor)
    return op, args


def _divisor(operand: Operand) -> Operand | None:
    """x for an operand that is 1/x and takes more than x, by the spelling of its operator."""
    match operand:
        case Expression(op, (value,)) if (inverse := SPELLINGS[op].inverse) is not None:
            return inverse(value)
        case _:
            return None


def _elementwise(
    kernel: Kernel,
    scope: Scope,
    op: str,
    given: list[Given],
    compute: str,
    spelling: Spelling,
    place: Tile | None = None,
) -> Tile:
    """Write the calls of an elementwise operator, into its place if it has one and takes one call. Operands without a
    name give back their memory."""
    if OPERATORS[op].result is Result.BOOLEAN:
        compute = "bool"
    entries = _converted(scope, op, given, compute)
    axes = _union(kernel, entries)
    dims = [axis.dim for axis in axes]
    if spelling.folds and OPERATORS[op].commutative:
        entries.sort(key=lambda entry: not _reusable(entry, axes, compute, entries))
    target = next(
        (
            entries[position].value
            for position in spelling.reuse
            if position < len(entries) and _reusable(entries[position], axes, compute, entries)
        ),
        None,
    )
    if place is not None and place.axes == axes and len(spelling.calls) == 1 and len(entries) <= 2:
        out = place
    elif isinstance(target, Tile) and target.buffer is not None:
        out = tile_in(scope, target.buffer, axes, compute)
    else:
        out = new_tile(scope, axes, compute)
    texts = [aligned(e.value, dims) if isinstance(e.value, Tile) else e.value.text for e in entries]
    scope.lines.add(*_calls(scope, op, spelling, texts, out))
    if spelling.helper is not None:
        kernel.helpers.add(spelling.helper)
    _release_temporaries(scope, dict.fromkeys((*entries, *given)))
    return out


def _skips_mask(kernel: Kernel, op: str, args: tuple[Operand, ...]) -> bool:
    """True for a choice between a tile and a number by a condition that holds in some blocks as a whole."""
    return op == "where" and any((args[0], holds) in kernel.masks for holds in _maskable(kernel, args))


def _maskable(kernel: Kernel, args: tuple[Operand, ...]) -> Iterator[bool]:
    """If a choice is between a tile with all axes and a number: whether the tile is where the condition holds."""
    condition, first, second = ({a for name in operand_names((arg,)) for a in kernel.types[name].axes} for arg in args)
    for holds, own, number in ((True, first, args[2]), (False, second, args[1])):
        if own and condition <= own and not any(operand_names((number,))):
            yield holds


def _masked(
    kernel: Kernel, scope: Scope, args: tuple[Operand, ...], uses: Counter[str], dying: frozenset[str], compute: str
) -> Given:
    """Write a choice that puts a number where a mask is closed, and nothing in a block where it is open throughout."""
    holds = next(holds for holds in _maskable(kernel, args) if (args[0], holds) in kernel.masks)
    condition, chosen, otherwise = args if holds else (args[0], args[2], args[1])
    (given,) = _operands(kernel, scope, (chosen,), uses, dying)
    entry = _as_type(scope, given, compute)
    tile = _tile_of(entry)
    if tile.buffer is not None and _reusable(entry, tile.axes, compute, [entry]):
        out = tile_in(scope, tile.buffer, tile.axes, compute)
    else:
        out = new_tile(scope, tile.axes, compute)
        scope.lines.add(f"np.copyto({out.text}, {tile.text})")
    scope.lines.add(f"if {kernel.masks[condition, holds]}:")
    inside = replace(scope, lines=scope.lines.nest())
    (test,) = _operands(kernel, inside, (condition,), uses, dying)
    mask = _tile_of(_as_mask(inside, test))
    closed = new_tile(inside, mask.axes, "bool") if holds else mask
    (other,) = _operands(kernel, inside, (otherwise,), uses, dying)
    assert isinstance(other.value, Number)
    if holds:
        inside.lines.add(f"np.logical_not({mask.text}, out={closed.text})")
    inside.lines.add(f"np.copyto({out.text}, {other.value.text}, where={aligned(closed, out.dims)})")
    _release_temporaries(inside, (test, Given(closed, temporary=holds)))
    _release_temporaries(scope, dict.fromkeys((given, entry)))
    return Given(out, dies=True, temporary=True, shared=_sharing([entry], out))


def _lazy_shift(kernel: Kernel, op: str, args: tuple[Operand, ...]) -> Running | None:
    """For a tile less an exponent that is zero in some blocks as a whole: what is known of the exponent."""
    if op != "sub":
        return None
    shift = args[1].args[0] if isinstance(args[1], Expression) and args[1].op == "finite" else args[1]
    running = kernel.running.get(shift) if isinstance(shift, str) else None
    if running is None or not running.shifts:
        return None
    own = {axis for name in operand_names(args[:1]) for axis in kernel.types[name].axes}
    return running if own.issuperset(kernel.types[str(shift)].axes) else None


def _shifted(
    kernel: Kernel,
    scope: Scope,
    running: Running,
    args: tuple[Operand, ...],
    uses: Counter[str],
    dying: frozenset[str],
    compute: str,
) -> Given:
    """Write a difference with such an exponent, which takes nothing while the exponent is zero."""
    (given,) = _operands(kernel, scope, args[:1], uses, dying)
    entry = _as_type(scope, given, compute)
    tile = _tile_of(entry)
    in_place = tile.buffer is not None and _reusable(entry, tile.axes, compute, [entry])
    if in_place and tile.buffer is not None:
        out = tile_in(scope, tile.buffer, tile.axes, compute)
    else:
        out = new_tile(scope, tile.axes, compute)
    scope.lines.add(f"if {running.shifts}:")
    inside = replace(scope, lines=scope.lines.nest())
    (shift,) = _operands(kernel, inside, args[1:], uses, dying)
    inside.lines.add(f"np.subtract({tile.text}, {aligned(_tile_of(shift), out.dims)}, out={out.text})")
    if not in_place:
        scope.lines.add("else:", f"    np.copyto({out.text}, {tile.text})")
    _release_temporaries(inside, (shift,))
    _release_temporaries(scope, dict.fromkeys((given, entry)))
    return Given(out, dies=True, temporary=True, shared=_sharing([entry], out))


def in_new_memory(kernel: Kernel, scope: Scope, op: str, operands: tuple[Tile, ...]) -> Tile:
    """Write an elementwise operator whose operands stay as they are."""
    dims = {axis.dim: axis for operand in operands for axis in operand.axes}
    axes = tuple(sorted(dims.values(), key=lambda axis: kernel.program.rank[axis.dim]))
    out = new_tile(scope, axes, operands[0].dtype)
    texts = [aligned(operand, out.dims) for operand in operands]
    scope.lines.add(*_calls(scope, op, SPELLINGS[op], texts, out))
    return out


def _calls(scope: Scope, op: str, spelling: Spelling, texts: list[str], out: Tile) -> list[str]:
    if op == "pow" and texts[1] in ("2", "2.0"):
        return [f"np.square({texts[0]}, out={out.text})"]
    rooms: dict[str, Tile] = {}
    for name in ("room", "other", "third", "mask"):
        if any(f"{{{name}}}" in call for call in spelling.calls):
            rooms[name] = new_tile(scope, out.axes, "bool" if name == "mask" else out.dtype)
    names = {name: tile.text for name, tile in rooms.items()}
    calls = [call.format(*texts, out=out.text, **names) for call in spelling.calls]
    if spelling.folds is not None:
        calls += [f"{spelling.folds}({out.text}, {text}, out={out.text})" for text in texts[2:]]
    for tile in rooms.values():
        if tile.buffer is not None:
            scope.pool.release(tile.buffer)
    return [call for call in calls if call != f"np.copyto({out.text}, {out.text})"]


def _reusable(entry: Given, axes: tuple[Axis, ...], compute: str, entries: Sequence[Given]) -> bool:
    """True if the result may be written over the operand: nobody else reads it, now or later."""
    tile = entry.value
    if not (isinstance(tile, Tile) and tile.buffer and entry.dies and tile.buffer.users == 1 + entry.shared):
        return False
    again = sum(isinstance(other.value, Tile) and other.value.buffer is tile.buffer for other in entries)
    return tile.axes == axes and tile.dtype == compute and (again == 1 or len(entries) == 2)


def _converted(scope: Scope, op: str, given: list[Given], compute: str) -> list[Given]:
    """The operands in the type that the operator computes in, so that NumPy never widens a tile by itself."""
    match OPERATORS[op].result:
        case Result.REAL | Result.NUMBER:
            return [_as_type(scope, entry, compute) for entry in given]
        case Result.SELECT:
            return [_as_mask(scope, given[0]), *(_as_type(scope, entry, compute) for entry in given[1:])]
        case Result.BOOLEAN:
            return list(given)


def _as_type(scope: Scope, entry: Given, compute: str) -> Given:
    tile = entry.value
    if isinstance(tile, Number) or tile.dtype == compute:
        return entry
    out = new_tile(scope, tile.axes, compute)
    scope.lines.add(f'np.copyto({out.text}, {tile.text}, casting="unsafe")')
    return Given(out, dies=True, temporary=True)


def _as_mask(scope: Scope, entry: Given) -> Given:
    if isinstance(entry.value, Number):
        return Given(Number(f"bool({entry.value.text})"))
    if entry.value.dtype == "bool":
        return entry
    out = new_tile(scope, entry.value.axes, "bool")
    scope.lines.add(f"np.not_equal({entry.value.text}, 0, out={out.text})")
    return Given(out, dies=True, temporary=True)


def _union(kernel: Kernel, entries: Sequence[Given]) -> tuple[Axis, ...]:
    found = {axis.dim: axis for entry in entries if isinstance(entry.value, Tile) for axis in entry.value.axes}
    return tuple(found[dim] for dim in kernel.program.ordered(found))


# Other operators


def _index(kernel: Kernel, scope: Scope, dim: str) -> Tile:
    """The positions along a dimension: a part of one array of all of them."""
    array = kernel.positions.setdefault(dim, f"i{kernel.number(dim)}")
    axes = kernel.axes(scope, (dim,))
    if dim not in scope.blocks:
        return Tile(array, axes, "int64")
    return Tile(f"{array}[{kernel.choice(dim, Type('i32', (dim,), (dim,))).index}]", axes, "int64")


def _cast(kernel: Kernel, scope: Scope, given: Given, apply: Apply) -> Tile:
    """Floats keep the precision that they are computed in, whatever they are cast to: rounding is left to stores."""
    compute = compute_dtype(apply.dtype)
    source = operand_dtype(kernel.types, apply.args[0])
    tile = given.value
    if isinstance(tile, Tile) and tile.dtype == compute and (apply.dtype != "i8" or source == "i8"):
        if tile.buffer is not None:
            tile.buffer.users += 1
        return tile
    out = new_tile(scope, tile.axes if isinstance(tile, Tile) else (), compute)
    kind = DTYPES[apply.dtype].kind
    if kind == "bool":
        scope.lines.add(f"np.not_equal({tile.text}, 0, out={out.text})")
    elif kind == "int" and is_float(source):
        low, high = _INTEGER_LIMITS[apply.dtype]
        kernel.helpers.add("to_integer")
        scope.lines.add(f"to_integer({tile.text}, {low}, {high}, {out.text})")
    elif apply.dtype == "i8":  # integers wrap around
        scope.lines.add(f"np.copyto({out.text}, np.asarray({tile.text}).astype(np.int8))")
    else:
        scope.lines.add(f'np.copyto({out.text}, {tile.text}, casting="unsafe")')
    return out


def _broadcast(kernel: Kernel, scope: Scope, given: Given, dims: tuple[str, ...], compute: str) -> Tile:
    tile = given.value
    own = {axis.dim: axis for axis in tile.axes} if isinstance(tile, Tile) else {}
    found = {**{axis.dim: axis for axis in kernel.axes(scope, dims)}, **own}
    out = new_tile(scope, tuple(found[dim] for dim in kernel.program.ordered(found)), compute)
    text = aligned(tile, out.dims) if isinstance(tile, Tile) else tile.text
    scope.lines.add(f'np.copyto({out.text}, {text}, casting="unsafe")')
    return out


def _tile_of(given: Given) -> Tile:
    """The operand of a reduction or contraction: it has the reduced axes (invariant B07), so it is no number."""
    if isinstance(given.value, Number):
        raise TypeError(f"`{given.value.text}` has no axes")
    return given.value


def _reduce(kernel: Kernel, scope: Scope, apply: Apply, given: Given) -> Tile:
    compute = compute_dtype(apply.dtype)
    entry = _as_type(scope, given, compute)
    tile = _tile_of(entry)
    positions = [position for position, axis in enumerate(tile.axes) if axis.dim in apply.dims]
    if positions:
        out = new_tile(scope, tuple(axis for axis in tile.axes if axis.dim not in apply.dims), compute)
        scope.lines.add(_reduction_call(kernel, apply, tile, positions, out))
    else:  # blocks of one element: nothing is left to reduce
        out = tile
        if tile.buffer is not None:
            tile.buffer.users += 1
    if entry is not given:
        _release_temporaries(scope, [entry])
    return out


def _reduction_call(kernel: Kernel, apply: Apply, tile: Tile, positions: list[int], out: Tile) -> str:
    if apply.op == "sum" and is_float(apply.dtype) and 0 < positions[0] == len(tile.axes) - 1:
        # A product with ones: BLAS adds in many lanes, about as exactly as np.add.reduce in pairs, and 3 times faster.
        ones = kernel.ones.setdefault((tile.axes[-1].limit, out.dtype), f"u{len(kernel.ones)}")
        return f"np.matmul({tile.text}, {ones}[:{tile.axes[-1].extent}], out={out.text})"
    axis = str(positions[0]) if len(positions) == 1 else sequence(map(str, positions))
    start = f", initial={identity_text(apply.op, 0, out.dtype)}" if _may_be_empty(kernel, apply) else ""
    return f"np.{_REDUCTIONS[apply.op]}.reduce({tile.text}, axis={axis}{start}, out={out.text})"


def _may_be_empty(kernel: Kernel, apply: Apply) -> bool:
    """True if a maximum or minimum may be asked of nothing, which NumPy refuses. Blocks are never empty."""
    known = {dim.name for dim in kernel.program.dims if dim.size}
    return apply.op != "sum" and not kernel.program.whole.intersection(apply.dims) <= known
