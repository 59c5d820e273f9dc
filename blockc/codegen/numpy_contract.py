"""Contractions as matrix products: operands are viewed as matrices, and copied only where no view will do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockc.codegen.kernel_state import Kernel
from blockc.codegen.numpy_values import Tile, aligned, permuted, product, sequence, subscript
from blockc.codegen.scratch import Scope, new_tile
from blockc.ir.block import Apply
from blockc.ir.machine import TORCH

Groups = Sequence[tuple[str, ...]]  # dimensions that are to become one axis each; an empty group has length one


@dataclass(frozen=True, slots=True)
class _Roles:
    """The dimensions of a contraction: in both operands and kept, reduced, and in one operand only."""

    batch: tuple[str, ...]
    reduced: tuple[str, ...]
    left: tuple[str, ...]
    right: tuple[str, ...]


def contract(kernel: Kernel, scope: Scope, apply: Apply, a: Tile, b: Tile) -> Tile:
    """Write the calls for contract[dims](a, b), both of the type that it computes in, into its place if it has one."""
    found = {axis.dim: axis for axis in (*a.axes, *b.axes)}
    reduced = tuple(dim for dim in a.dims if dim in apply.dims)
    kept = tuple(found[dim] for dim in kernel.program.ordered(found) if dim not in reduced)
    order = [axis.dim for axis in kept]
    if order and order[-1] in a.dims and order[-1] not in b.dims:
        a, b = b, a  # the last axis of the result comes from the right operand, so that rows are contiguous
    roles = _Roles(
        tuple(dim for dim in order if dim in a.dims and dim in b.dims),
        reduced,
        tuple(dim for dim in order if dim not in b.dims),
        tuple(dim for dim in order if dim not in a.dims),
    )
    out = kernel.places.get(apply.name) or new_tile(scope, kept, a.dtype)
    if not reduced:  # blocks of one element
        scope.lines.add(f"np.multiply({aligned(a, order)}, {aligned(b, order)}, out={out.text})")
    elif not roles.left and not roles.right:
        _row_products(scope, roles, a, b, out)
    else:
        _matrix_product(kernel, scope, roles, a, b, out)
    return out


def _matrix_product(kernel: Kernel, scope: Scope, roles: _Roles, a: Tile, b: Tile, out: Tile) -> None:
    batch = [(dim,) for dim in roles.batch]
    rooms: list[Tile] = []
    left = _grouped(scope, a, [*batch, roles.left, roles.reduced], rooms)
    right = _grouped(scope, b, [*batch, roles.reduced, roles.right], rooms)
    groups = [*batch, roles.left, roles.right]
    if _is_mergeable(out, groups) and (not roles.right or out.dims[-1] == roles.right[-1]):
        scope.lines.add(_product(kernel, left, right, _view(out, groups), out.dtype))
    else:
        axes = {axis.dim: axis for axis in out.axes}
        room = new_tile(scope, tuple(axes[dim] for group in groups for dim in group), out.dtype)
        rooms.append(room)
        scope.lines.add(_product(kernel, left, right, _view(room, groups), out.dtype))
        scope.lines.add(f"np.copyto({out.text}, {aligned(room, out.dims)})")
    _release(scope, rooms)


def _product(kernel: Kernel, left: str, right: str, out: str, dtype: str) -> str:
    """The call that multiplies matrices of a type, by the library of the machine."""
    if kernel.products == TORCH and dtype in ("float32", "float64"):
        kernel.helpers.add("product")
        return f"product({left}, {right}, {out})"
    return f"np.matmul({left}, {right}, out={out})"


def _row_products(scope: Scope, roles: _Roles, a: Tile, b: Tile, out: Tile) -> None:
    """One scalar product per element: `np.vecdot`, whose partial sums are short (BLAS adds in many lanes) and which is
    three times as fast as multiply and sum; the latter where the reduced axes do not come last."""
    groups = [*((dim,) for dim in roles.batch), roles.reduced]
    flat = tuple(dim for group in groups for dim in group)
    if all(tile.dims == flat and (len(roles.reduced) == 1 or tile.buffer is not None) for tile in (a, b)):
        scope.lines.add(f"np.vecdot({_view(a, groups)}, {_view(b, groups)}, out={out.text})")
        return
    room = new_tile(scope, a.axes, a.dtype)
    positions = [position for position, dim in enumerate(room.dims) if dim in roles.reduced]
    left = [dim for dim in room.dims if dim not in roles.reduced]
    scope.lines.add(f"np.multiply({a.text}, {aligned(b, room.dims)}, out={room.text})")
    target = permuted(out.text, out.dims, left)
    scope.lines.add(f"np.add.reduce({room.text}, axis={sequence(map(str, positions))}, out={target})")
    _release(scope, [room])


def _grouped(scope: Scope, tile: Tile, groups: Groups, rooms: list[Tile]) -> str:
    """The tile with one axis per group; through a copy, added to `rooms`, if it must be."""
    if _is_mergeable(tile, groups):
        return _view(tile, groups)
    axes = {axis.dim: axis for axis in tile.axes}
    room = new_tile(scope, tuple(axes[dim] for group in groups for dim in group), tile.dtype)
    rooms.append(room)
    scope.lines.add(f"np.copyto({room.text}, {aligned(tile, room.dims)})")
    return _view(room, groups)


def _is_mergeable(tile: Tile, groups: Groups) -> bool:
    """True if each group is one axis, or axes that follow each other in memory."""
    several = [group for group in groups if len(group) > 1]
    joined = [tile.dims[start : start + len(group)] for group in several for start in [tile.dims.index(group[0])]]
    return not several or (tile.buffer is not None and joined == several)


def _view(tile: Tile, groups: Groups) -> str:
    """The Python expression for a mergeable tile with one axis per group."""
    text, first = tile.text, [group[0] for group in groups if group]
    if any(len(group) > 1 for group in groups):
        members = {group[0]: group for group in groups if group}
        axes = {axis.dim: axis for axis in tile.axes}
        extents = [product(axes[dim].extent for dim in members[head]) for head in tile.dims if head in members]
        text = f"{text}.reshape({sequence(extents)})"
    text = permuted(text, [dim for dim in tile.dims if dim in first], first)
    return subscript(text, [":" if group else "None" for group in groups])


def _release(scope: Scope, tiles: Sequence[Tile]) -> None:
    for tile in tiles:
        if tile.buffer is not None:
            scope.pool.release(tile.buffer)
