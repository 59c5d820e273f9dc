"""Tile operators in Triton: elementwise operators, reductions within a tile, products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from blockc.codegen.triton_ops import SPELLINGS, TRUTH
from blockc.codegen.triton_scales import LN_2, LOG2_E, is_number, is_unchanged, scale_of, times, value_of
from blockc.codegen.triton_values import Kernel, Number, Tile, compute_dtype, expanded
from blockc.ir.block import Apply, Constant, Expression, Leaf, Operand, Size, operand_names
from blockc.ir.conditions import COMPARISONS
from blockc.ir.ops import OPERATORS, Result, operand_dtype, result_dtype

_INTEGER_LIMITS = {"int32": (-(2**31), 2**31 - 1)}  # what stands for infinity
_COMBINE = {"max": "_maximum", "min": "_minimum"}
LEAST = 16  # elements along each side of a product on tensor cores


def apply_operator(kernel: Kernel, apply: Apply) -> Tile:
    """Write one tile operator; the result has a name."""
    match apply.op:
        case "index":
            return _index(kernel, apply.dims[0])
        case "cast":
            return _cast(kernel, apply)
        case "broadcast":
            tile = _kept(kernel, apply, _operand(kernel, apply.args[0], compute_dtype(apply.dtype)))
            axes = kernel.axes(kernel.program.types[apply.name].axes)
            text = expanded(tile.text, tile.dims, axes)
            shape = kernel.shape(axes)
            full = (
                f"tl.full({shape}, {text}, tl.{tile.dtype})" if not tile.dims else f"tl.broadcast_to({text}, {shape})"
            )
            return Tile(kernel.assign(full), axes, tile.dtype, scale=tile.scale) if axes else tile
        case "sum" | "max" | "min":
            return _reduce(kernel, apply)
        case "contract":
            return contract(kernel, apply, "")
        case "where" if (dim := guarded(kernel, apply.args[0])) is not None:
            return _guard(kernel, apply, dim)
        case _:
            tile = _kept(kernel, apply, _elementwise(kernel, apply.op, apply.args))
            text = kernel.assign(tile.text)
            return Tile(text, tile.dims, tile.dtype, within_one=tile.within_one, scale=tile.scale)


# Elementwise operators


def _operand(kernel: Kernel, operand: Operand, dtype: str = "") -> Tile:
    """An operand as an expression, perhaps with a scale, converted to a type if one is given."""
    match operand:
        case str():
            tile = kernel.tile(operand)
        case Expression(op, args) if any(operand_names(args)):
            tile = _elementwise(kernel, op, args)
        case _:
            tile = number(kernel, operand, dtype)
    return converted(scaled(kernel, tile), dtype) if dtype not in ("", tile.dtype) else tile


def _read(kernel: Kernel, operand: Operand, dtype: str = "") -> Tile:
    """An operand as an expression of its value."""
    return scaled(kernel, _operand(kernel, operand, dtype))


def scaled(kernel: Kernel, tile: Tile, wanted: Leaf | None = None) -> Tile:
    """The tile with another scale, or without one."""
    if tile.scale == wanted:
        return tile
    factors = [] if tile.scale is None else [tile.scale]
    if wanted is not None:
        factors.append(LOG2_E if wanted == LN_2 else Expression("recip", (wanted,)))
    text = f"({tile.text} * {number(kernel, times(*factors), tile.dtype).text})"
    return Tile(text, tile.dims, tile.dtype, within_one=tile.within_one, scale=wanted)


def _kept(kernel: Kernel, apply: Apply, tile: Tile) -> Tile:
    """What is kept of a result: its value, unless that waits for an exponential."""
    return scaled(kernel, tile, kernel.scales.get(apply.name))


def converted(tile: Tile, dtype: str) -> Tile:
    """The tile in another type."""
    if tile.dtype == dtype:
        return tile
    text = f"({tile.text} != 0)" if dtype == "int1" else f"{tile.text}.to(tl.{dtype})"
    return Tile(text, tile.dims, dtype)


def number(kernel: Kernel, operand: Constant | Size | Expression, dtype: str = "") -> Tile:
    """A number: a literal, a size, or an argument that is computed once per launch."""
    match operand:
        case Constant(value):
            kind = dtype or ("int1" if isinstance(value, bool) else "int32" if isinstance(value, int) else "float32")
            return Tile(literal(value, kind), (), kind)
        case Size(dim) if dtype in ("", "int32"):
            return Tile(kernel.size(dim), (), "int32")
        case _:
            kind = dtype or compute_dtype(operand_dtype(kernel.program.types, operand))
            text = f"float({_host(kernel, operand)})" if kind.startswith("float") else f"int({_host(kernel, operand)})"
            # Arguments are f32 or integers; a number for f64 is a constant of the kernel.
            letter = {"float64": "g", "float32": "f"}.get(kind, "h")
            key = letter + text
            if key not in kernel.numbers:
                value = float(value_of(operand, kernel.sizes))
                kernel.numbers[key] = Number(f"{letter}{len(kernel.numbers)}", text, value)
            name = kernel.numbers[key].name
            return Tile(f"({name} != 0)" if kind == "int1" else name, (), kind)


def _tensor(tile: Tile) -> Tile:
    """A number as a tensor without axes, as functions and casts take it."""
    return Tile(f"tl.full([], {tile.text}, tl.{tile.dtype})", (), tile.dtype)


def literal(value: float | bool, dtype: str) -> str:
    """A number as it stands in a kernel; of an integer type, the identities of maxima are its limits."""
    if dtype == "int1":
        return str(bool(value))
    if dtype.startswith("int"):
        return str(int(value) if math.isfinite(value) else _INTEGER_LIMITS[dtype][value > 0])
    value = float(value)
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def _host(kernel: Kernel, operand: Operand) -> str:
    match operand:
        case Constant(value):
            return f"_number({literal(value, 'float64')})"
        case Size(dim):
            return f"_number({kernel.size(dim)})"
        case Expression(op, args):
            return _folded([_host(kernel, arg) for arg in args], SPELLINGS[op].host, SPELLINGS[op].folds)
        case _:
            raise TypeError(f"`{operand}` is not a number")


def _folded(texts: Sequence[str], spelling: str, folds: bool) -> str:
    if not folds:
        return spelling.format(*texts)
    text = texts[0]
    for other in texts[1:]:
        text = spelling.format(text, other)
    return text


def _elementwise(kernel: Kernel, op: str, args: tuple[Operand, ...]) -> Tile:
    """An elementwise operator as an expression."""
    given = tuple(operand_dtype(kernel.program.types, arg) for arg in args)
    result = compute_dtype(result_dtype(op, given))
    match OPERATORS[op].result:
        case Result.REAL | Result.NUMBER:
            tiles = [_operand(kernel, arg, result) for arg in args]
        case Result.SELECT:
            tiles = [_operand(kernel, args[0], "int1"), *(_operand(kernel, arg, result) for arg in args[1:])]
        case Result.BOOLEAN:
            wanted = _common(given) if op not in ("and", "or", "not") else "int1"
            tiles = [_operand(kernel, arg, wanted) for arg in args]
    axes = kernel.program.ordered({dim for tile in tiles for dim in tile.dims})
    if op == "where" and args[0] in kernel.settled:
        chosen = tiles[1 if kernel.settled[args[0]] else 2]
        if chosen.dims == axes:
            return chosen
    tile = _of_tiles(kernel, op, args, tiles)
    return replace(tile, dtype=result, within_one=_is_within_one(op, args))


def combined(kernel: Kernel, op: str, operands: tuple[Tile, ...]) -> Tile:
    """An elementwise operator of floats as an expression."""
    return _of_tiles(kernel, op, tuple(operand.text for operand in operands), list(operands))


def _of_tiles(kernel: Kernel, op: str, args: tuple[Operand, ...], tiles: list[Tile]) -> Tile:
    axes = kernel.program.ordered({dim for tile in tiles for dim in tile.dims})
    dtype = tiles[-1].dtype
    if op == "exp":
        return Tile(exponentials(kernel, tiles[0]), axes, dtype)
    if op == "sub" and tiles[1].scale == LN_2 and tiles[0].scale not in (None, LN_2):
        factor = number(kernel, times(tiles[0].scale, LOG2_E), dtype).text
        first, second = (expanded(tile.text, tile.dims, axes) for tile in tiles)
        return Tile(f"tl.fma({first}, {factor}, -{second})", axes, dtype, scale=LN_2)
    tiles, scale = _scales(kernel, op, args, tiles)
    texts = [expanded(tile.text, tile.dims, axes) for tile in tiles]
    spelling = SPELLINGS[op]
    if spelling.helper is not None:
        kernel.helpers.add(spelling.helper)
        texts = [
            t if any(operand_names((arg,))) else _tensor(tile).text
            for t, tile, arg in zip(texts, tiles, args, strict=True)
        ]
    text = TRUTH[op] if dtype == "int1" and op in TRUTH else spelling.text
    if text.count("{0}") > 1:  # its operand is named, and not computed again
        texts = [
            kernel.assign(t) if not t.isidentifier() and tile.dims else t for t, tile in zip(texts, tiles, strict=True)
        ]
    return Tile(texts[0] if len(tiles) < len(args) else _folded(texts, text, spelling.folds), axes, dtype, scale=scale)


def _scales(kernel: Kernel, op: str, args: tuple[Operand, ...], tiles: list[Tile]) -> tuple[list[Tile], Leaf | None]:
    """What an operator is computed of, and the scale that its result then has. Of a product the numbers wait."""
    if op in COMPARISONS and any(map(is_unchanged, args)):
        return [replace(tile, scale=None) for tile in tiles], None
    scale = scale_of(op, args, [tile.scale for tile in tiles]) if tiles[-1].dtype == "float32" else None
    if scale is None:
        return [scaled(kernel, tile) for tile in tiles], None
    if op == "mul":
        tiles = [tile for tile, arg in zip(tiles, args, strict=True) if not is_number(arg)]
    return tiles, scale


def exponentials(kernel: Kernel, tile: Tile) -> str:
    """The exponentials of a tile: with a scale, powers of two."""
    if tile.scale is None:
        return SPELLINGS["exp"].text.format(tile.text)
    if tile.scale == LN_2:
        return f"tl.exp2({tile.text})"
    return f"tl.exp2({tile.text} * {number(kernel, times(tile.scale, LOG2_E), tile.dtype).text})"


def _common(dtypes: tuple[str, ...]) -> str:
    """The type that operands are compared in."""
    kinds = {compute_dtype(dtype) for dtype in dtypes}
    return next(kind for kind in ("float64", "float32", "int32", "int1") if kind in kinds)


def _is_within_one(op: str, args: tuple[Operand, ...]) -> bool:
    """True for exponentials of differences to a maximum, which `stabilize` writes with `finite`, and for sigmoids."""
    if op == "sigmoid":
        return True
    match args:
        case (Expression("sub", (_, Expression("finite", _))),):
            return op == "exp"
    return False


def _index(kernel: Kernel, dim: str) -> Tile:
    if kernel.is_unit(dim):
        return Tile(f"tl.cast(b{kernel.number(dim)}, tl.int32)", (), "int32")
    return Tile(kernel.position(dim), (dim,), "int32")


def _cast(kernel: Kernel, apply: Apply) -> Tile:
    """Floats keep the precision that they are computed in, whatever they are cast to: rounding is left to stores."""
    wanted = compute_dtype(apply.dtype)
    tile = _kept(kernel, apply, _operand(kernel, apply.args[0]))
    if not any(operand_names(apply.args)):
        tile = _tensor(tile)
    if apply.dtype == "i8" and operand_dtype(kernel.program.types, apply.args[0]) != "i8":
        tile = Tile(f"{tile.text}.to(tl.int8)", tile.dims, "int8")
    if tile.dtype == wanted:
        if tile.text.isidentifier():
            return tile
        return Tile(kernel.assign(tile.text), tile.dims, tile.dtype, scale=tile.scale)
    tile = scaled(kernel, tile)
    return Tile(kernel.assign(converted(tile, wanted).text), tile.dims, wanted)


def guarded(kernel: Kernel, condition: Operand) -> str | None:
    """The dimension of whose positions a condition only says that they exist."""
    applies = kernel.program.facts.applies
    node: Operand | Apply | None = applies.get(condition) if isinstance(condition, str) else condition
    if isinstance(node, Apply | Expression) and node.op == "lt" and isinstance(node.args[0], str):
        index = applies.get(node.args[0])
        if index is not None and index.op == "index" and node.args[1] == Size(index.dims[0]):
            return index.dims[0]
    return None


def _guard(kernel: Kernel, apply: Apply, dim: str) -> Tile:
    """A choice that matters only behind the end of a dimension, so only where a block is not full."""
    result = compute_dtype(apply.dtype)
    inside, outside = (_operand(kernel, arg, result) for arg in apply.args[1:])
    scale = scale_of("where", apply.args, [None, inside.scale, outside.scale])
    if scale is None or apply.name not in kernel.scales:
        inside, outside, scale = scaled(kernel, inside), scaled(kernel, outside), None
    if kernel.is_unit(dim) or dim in kernel.filled:
        return Tile(kernel.assign(inside.text), inside.dims, result, within_one=inside.within_one, scale=scale)
    axes = kernel.program.ordered({dim, *inside.dims, *outside.dims})
    number = kernel.number(dim)
    name = kernel.assign(expanded(inside.text, inside.dims, axes))
    texts = expanded(f"in{number}", (dim,), axes), name, expanded(outside.text, outside.dims, axes)
    kernel.lines.add(f"if SHORT{number}:", f"    {name} = tl.where({', '.join(texts)})")
    return Tile(name, axes, result, within_one=inside.within_one, scale=scale)


# Reductions


def _reduce(kernel: Kernel, apply: Apply) -> Tile:
    """A reduction over axes of a tile, one after the other."""
    result = compute_dtype(apply.dtype)
    tile = _operand(kernel, apply.args[0], "int32" if result == "int1" else result)
    scale = scale_of(apply.op, apply.args, [tile.scale])
    if scale is None or apply.name not in kernel.scales:
        tile, scale = scaled(kernel, tile), None
    dims = [dim for dim in apply.dims if not kernel.is_unit(dim)]
    text, axes = tile.text, list(tile.dims)
    for dim in dims:
        if dim not in axes:
            text = f"({text} * {kernel.size(dim)})" if apply.op == "sum" else text
            continue
        at = axes.index(dim)
        axes.remove(dim)
        if apply.op == "sum":
            text = f"tl.sum({text}, {at})"
        else:
            kernel.helpers.add(_COMBINE[apply.op])
            text = f"tl.reduce({text}, {at}, {_COMBINE[apply.op]})"
    if result == "int1":
        text = f"({text} != 0)"
    tile = Tile(text, tuple(axes), result, scale=scale)
    if scale is not None:
        tile = scaled(kernel, tile, kernel.scales[apply.name])
    return replace(tile, text=kernel.assign(tile.text))


# Products


@dataclass(frozen=True, slots=True)
class _Roles:
    """What the axes of a product of two tiles are: in both and kept, summed over, or of one side only."""

    batch: tuple[str, ...]
    reduced: tuple[str, ...]
    left: tuple[str, ...]
    right: tuple[str, ...]


def _roles(kernel: Kernel, apply: Apply, a: Tile, b: Tile) -> _Roles:
    reduced = tuple(dim for dim in kernel.axes(apply.dims) if dim in a.dims or dim in b.dims)
    both = tuple(dim for dim in a.dims if dim in b.dims and dim not in reduced)
    left = tuple(dim for dim in a.dims if dim not in b.dims and dim not in reduced)
    right = tuple(dim for dim in b.dims if dim not in a.dims and dim not in reduced)
    return _Roles(both, reduced, left, right)


def contract(kernel: Kernel, apply: Apply, onto: str) -> Tile:
    """Write a product that is summed over some dimensions; added to the variable `onto`, if one is given.

    On tensor cores where both sides have rows of their own; else element by element.
    """
    result = compute_dtype(apply.dtype)
    a, b = (_read(kernel, arg) for arg in apply.args)
    roles = _roles(kernel, apply, a, b)
    both = set(roles.reduced) <= set(a.dims) and set(roles.reduced) <= set(b.dims)
    if not (roles.left and roles.right and roles.reduced and both) or result != "float32":
        return _by_elements(kernel, apply, converted(a, result), converted(b, result), onto)
    order = kernel.program.rank
    if order[roles.right[0]] < order[roles.left[0]]:
        a, b = b, a
        roles = _Roles(roles.batch, roles.reduced, roles.right, roles.left)
    left, right, precision = _operands(a, b, apply.name in kernel.exact)
    first = _grouped(kernel, left, a.dims, (roles.batch, roles.left, roles.reduced))
    second = _grouped(kernel, right, b.dims, (roles.batch, roles.reduced, roles.right))
    made = (*roles.batch, *roles.left, *roles.right)
    axes = kernel.program.ordered(made)
    plain = made == axes and len(roles.left) == len(roles.right) == 1 and len(roles.batch) <= 1
    sums = ""
    if onto:
        sums = onto if plain else _grouped(kernel, onto, axes, (roles.batch, roles.left, roles.right))
        sums += ", "
    text = f"tl.dot({first}, {second}, {sums}{precision}out_dtype=tl.float32)"
    if not plain:
        text = f"tl.reshape({text}, {kernel.shape(made)})"
        if made != axes:
            text = f"tl.permute({text}, {[made.index(dim) for dim in axes]})"
    if onto:
        kernel.lines.add(f"{onto} = {text}")
        return Tile(onto, axes, result)
    return Tile(kernel.assign(text), axes, result)


def _operands(a: Tile, b: Tile, exact: bool) -> tuple[str, str, str]:
    """Both sides of a product in one type, and how f32 is to be multiplied.

    Two sides as they were loaded, in the same type of 16 bits, are taken as they are. One that was loaded beside one
    that was computed: the latter is rounded to the type of the former if that has its range, which it has for bf16,
    and for f16 if the numbers are between 0 and 1; else both are taken as tf32, which has the digits of f16 and the
    range of f32. Types of 8 bits are exact in f16. Two sides in f32 are multiplied in f32, and so is everything where
    the result has to be `exact`, because it becomes part of an output in f32 or f64.
    """
    elements = {tile.element for tile in (a, b) if tile.stored}
    narrow = {element: "float16" if element.startswith("float8") else element for element in elements}
    kinds = {kind for kind in narrow.values() if kind in ("float16", "bfloat16")}
    loaded = all(tile.stored and narrow[tile.element] in ("float16", "bfloat16") for tile in (a, b))
    if len(kinds) == 1:
        (kind,) = kinds
        fits = kind == "bfloat16" or all(tile.stored or tile.within_one for tile in (a, b))
        same = all(not tile.stored or narrow[tile.element] == kind for tile in (a, b))
        if loaded or (fits and same and not exact):
            return _in_element(a, kind), _in_element(b, kind), ""
    first, second = converted(a, "float32").text, converted(b, "float32").text
    if kinds and not exact and not any(tile.stored and tile.element == "float32" for tile in (a, b)):
        return first, second, 'input_precision="tf32", '
    return first, second, 'input_precision="ieee", '


def _in_element(tile: Tile, kind: str) -> str:
    if tile.stored and tile.element == kind:
        return tile.stored
    return f"{tile.stored or tile.text}.to(tl.{kind})"


def _grouped(kernel: Kernel, text: str, dims: tuple[str, ...], groups: tuple[tuple[str, ...], ...]) -> str:
    """A tile as a matrix, or a stack of them: one axis for each group that is not empty or is no batch."""
    wanted = tuple(dim for group in groups for dim in group)
    if dims != wanted:
        text = f"tl.permute({text}, {[dims.index(dim) for dim in wanted]})" if len(dims) > 2 else f"tl.trans({text})"
    if any(len(group) > 1 for group in groups):
        shape = ", ".join(" * ".join(map(kernel.extent, group)) for group in groups if group)
        text = f"tl.reshape({text}, [{shape}])"
    return text


def _by_elements(kernel: Kernel, apply: Apply, a: Tile, b: Tile, onto: str) -> Tile:
    """A product of two tiles with all their axes, and its sum."""
    axes = kernel.program.ordered({*a.dims, *b.dims})
    text = f"({expanded(a.text, a.dims, axes)} * {expanded(b.text, b.dims, axes)})"
    left = list(axes)
    for dim in kernel.axes(apply.dims):
        if dim in left:
            text = f"tl.sum({text}, {left.index(dim)})"
            left.remove(dim)
    if onto:
        kernel.lines.add(f"{onto} = {onto} + {text}")
        return Tile(onto, tuple(left), a.dtype)
    return Tile(kernel.assign(text), tuple(left), a.dtype)
