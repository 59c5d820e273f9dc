"""Scratch memory of a kernel: buffers that are allocated once per thread, reused by values that do not live together.

Buffers are flat. The arrays that a kernel works on are views of their first elements, so short last blocks are in C
order too. A view is made in the head of the innermost loop that sets one of its extents, not where it is used: the
body of a loop makes none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from blockc.codegen.numpy_values import Axis, Buffer, Lines, Tile, dtype_text, product, shape_text


@dataclass(slots=True)
class Scope:
    """A body being written. `before`: what comes ahead of its loop; `start`: ahead of its statements; `head`: the views
    whose shapes its block determines."""

    lines: Lines
    pool: Pool
    above: Scope | None = None
    bound: str = ""  # the dimension that this body is a block of
    blocks: Mapping[str, Axis] = field(default_factory=dict)  # the tile axis of each dimension mapped here or above
    ports: frozenset[str] = frozenset()
    before: Lines = field(default_factory=Lines)
    start: Lines = field(default_factory=Lines)
    head: Lines = field(default_factory=Lines)
    views: dict[tuple[str, ...], str] = field(default_factory=dict)


@dataclass(slots=True)
class Pool:
    """The buffers of one function. `prefix` makes their names differ from those of other functions of the kernel."""

    prefix: str
    numbers: Iterator[int]
    allocations: dict[str, tuple[str, str]] = field(default_factory=dict)  # name to size and type
    free: dict[tuple[str, ...], list[Buffer]] = field(default_factory=dict)

    def take(self, axes: tuple[Axis, ...], dtype: str) -> Buffer:
        """A buffer that no live value uses, large enough for every block."""
        limits = sorted(axis.limit for axis in axes)
        key = (dtype, *limits)
        unused = self.free.get(key)
        if unused:
            return unused.pop()
        name = f"{self.prefix}{len(self.allocations)}"
        self.allocations[name] = (product(limits), dtype_text(dtype))
        return Buffer(name, key)

    def release(self, buffer: Buffer) -> None:
        """One value fewer uses the buffer."""
        buffer.users -= 1
        if buffer.users == 0:
            self.free.setdefault(buffer.key, []).append(buffer)


def new_tile(scope: Scope, axes: tuple[Axis, ...], dtype: str) -> Tile:
    """A tile with memory of its own and unspecified contents."""
    return tile_in(scope, scope.pool.take(axes, dtype), axes, dtype)


def tile_in(scope: Scope, buffer: Buffer, axes: tuple[Axis, ...], dtype: str) -> Tile:
    """One more tile in a buffer."""
    buffer.users += 1
    return Tile(_view(scope, buffer, axes), axes, dtype, buffer)


def _view(scope: Scope, buffer: Buffer, axes: tuple[Axis, ...]) -> str:
    """The name of a view of the buffer, made in the scope that sets the last of its extents."""
    home = scope
    while home.above is not None and home.above.pool is home.pool and not _sets(home, axes):
        home = home.above
    key = (buffer.name, *(axis.extent for axis in axes))
    if key not in home.views:
        name = home.views[key] = f"v{next(home.pool.numbers)}"
        extents = [axis.extent for axis in axes]
        home.head.add(f"{name} = {buffer.name}[:{product(extents)}].reshape({shape_text(axes)})")
    return home.views[key]


def _sets(scope: Scope, axes: tuple[Axis, ...]) -> bool:
    return any(axis == scope.blocks.get(scope.bound) for axis in axes)
