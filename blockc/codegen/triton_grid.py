"""In which order the tasks of a Triton kernel start.

A GPU starts tasks in the order of their numbers, about as many at a time as it has units. Tasks that read the same
should run at the same time, so that a cache holds it; and where tasks differ in work, those with most of it should
start first, so that no long one is left at the end. Both follow from which tensors a task reads, and from how the ends
of its loops depend on its position.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from blockc.codegen.triton_bounds import slope
from blockc.codegen.triton_values import Array, Kernel
from blockc.ir.block import Map, walk
from blockc.ir.dtypes import DTYPES, NUMPY_NAMES
from blockc.ir.machine import Machine

_BYTES = {name: DTYPES[dtype].size for dtype, name in NUMPY_NAMES.items()}
_GROUPS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Device:
    """How many tasks run at the same time, and the bytes of the cache that they share."""

    units: int = 128
    cache: int = 40_000_000


ANY = Device()  # about what GPUs of data centres have


def device_of(machine: Machine) -> Device:
    """The device that a machine file describes."""
    caches = [tier.capacity for tier in machine.tiers if tier.kind == "cache" and tier.scope == "device"]
    return Device(machine.units, max(caches, default=ANY.cache))


@dataclass(frozen=True, slots=True)
class Order:
    """Tasks in groups: of `outer` dimensions, as one, `group` blocks; in a group those of the `inner` dimension are
    slower, and `outer` ones are next to one another. With `backwards` the last block of `inner` is the first."""

    outer: tuple[str, ...]
    inner: str
    group: int
    backwards: bool


def order_of(kernel: Kernel, node: Map, read: Iterable[Array], device: Device) -> Order:
    """The order of the tasks of a parallel map, `kernel.tasks`, that read parts of some tensors."""
    arrays = tuple({array.text: array for array in read}.values())

    def shared(dim: str) -> int:
        """Bytes that tasks which differ in their position along a dimension all read."""
        return sum(_bytes(kernel, array, {}) for array in arrays if not _has(kernel, array, dim))

    tasks = sorted(kernel.tasks, key=shared)
    loops = [loop for loop in walk((node,)) if isinstance(loop, Map) and loop.is_loop]
    slopes = {dim: sum(slope(loop, dim) for loop in loops) for dim in tasks}
    uneven = [dim for dim in tasks if slopes[dim] and _count(kernel, dim) > 1]
    inner = uneven[-1] if uneven else tasks[-1]
    outer = tuple(dim for dim in tasks if dim != inner)
    group = 1
    if outer and uneven:  # as many as the cache holds
        most = device.cache // 2 // max(shared(inner), 1)
        group = max(size for size in _GROUPS if size <= max(most, 1))
    elif outer:
        group = min(_GROUPS, key=lambda size: _per_task(kernel, arrays, (outer[-1], size), inner, device))
    return Order(outer, inner, group, slopes[inner] > 0)


def _has(kernel: Kernel, array: Array, dim: str) -> bool:
    return dim in array.dims or kernel.program.chunks.get(dim) in array.dims


def _count(kernel: Kernel, dim: str) -> int:
    """How many blocks a dimension of tasks has at the sizes that the kernel is tuned for, at least 1."""
    return max(1, -(-kernel.sizes[kernel.program.chunks.get(dim, dim)] // kernel.tiles[dim]))


def _bytes(kernel: Kernel, array: Array, blocks: Mapping[str, int]) -> int:
    """What a task reads of a tensor, or tasks of so many neighbouring `blocks` read together."""
    total = _BYTES[array.element]
    for dim in array.dims:
        cuts = [task for task in kernel.tasks if dim in (task, kernel.program.chunks.get(task))]
        total *= min(kernel.sizes[dim], *(kernel.tiles[cut] * blocks.get(cut, 1) for cut in cuts), kernel.sizes[dim])
    return total


def _per_task(kernel: Kernel, arrays: tuple[Array, ...], outer: tuple[str, int], inner: str, device: Device) -> float:
    """What must be read for each of the tasks that run at the same time, if they are in groups of a size."""
    group = min(outer[1], _count(kernel, outer[0]))
    along = min(_count(kernel, inner), max(device.units // group, 1))
    read = sum(_bytes(kernel, array, {outer[0]: group, inner: along}) for array in arrays)
    return read / (group * along)


def order_lines(kernel: Kernel, order: Order) -> Iterator[str]:
    """The lines that find the blocks of a task from its number: each task has others."""
    outer = " * ".join(count_text(kernel, dim) for dim in order.outer)
    if order.group > 1:
        yield f"# Of {_names(kernel, order.outer)} {order.group} blocks run side by side, for they share a cache."
    if order.backwards:
        yield f"# The last blocks of {_names(kernel, (order.inner,))} come first: they have most to do."
    yield "pid = tl.program_id(0)"
    yield f"inner = {count_text(kernel, order.inner)}"
    if order.group > 1:
        yield f"first = pid // ({order.group} * inner) * {order.group}"
        yield f"width = min({outer} - first, {order.group})"
        yield "pid = pid - first * inner"
        at, rest = "pid // width", "first + pid % width"
    else:  # a remainder by % keeps ptxas from overlapping products in some kernels
        yield "first = pid // inner"
        at, rest = "(pid - first * inner)", "first"
    yield _begin(kernel, order.inner, f"inner - 1 - {at}" if order.backwards else at)
    if order.outer:
        yield f"pid = {rest}"
    for dim in reversed(order.outer[1:]):
        yield _begin(kernel, dim, f"pid % {count_text(kernel, dim)}")
        yield f"pid = pid // {count_text(kernel, dim)}"
    for dim in order.outer[:1]:
        yield _begin(kernel, dim, "pid")


def _names(kernel: Kernel, dims: Sequence[str]) -> str:
    return ", ".join(f"d{kernel.number(dim)}" for dim in dims)


def _begin(kernel: Kernel, dim: str, index: str) -> str:
    number = kernel.number(dim)
    if kernel.is_unit(dim):
        return f"b{number} = {index}"
    plain = index.isidentifier() or index[0] == "("
    return f"b{number} = {index if plain else f'({index})'} * T{number}"


def count_text(kernel: Kernel, dim: str) -> str:
    """An expression of how many blocks a dimension has."""
    size = kernel.size(kernel.program.chunks.get(dim, dim))
    return size if kernel.is_unit(dim) else f"(({size} + {kernel.extent(dim)} - 1) // {kernel.extent(dim)})"
