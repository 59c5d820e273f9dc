"""Loads of tiles through tensor descriptors, which GPUs from Hopper on copy into shared memory by themselves.

A descriptor stands for an input and the shape of a block. The launcher makes it where the tensor allows it: its last
axis contiguous, the other strides and the address multiples of 16 bytes. Otherwise it is None, and the kernel, which is
compiled for either case, loads by pointers. What lies behind the end of a tensor is zero, as with pointers and masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from blockc.codegen.triton_values import Array

_TYPES = {
    "float32": ("fp32", 4),
    "float16": ("fp16", 2),
    "bfloat16": ("bf16", 2),
    "float8_e4m3fn": ("fp8e4nv", 1),
    "float8_e5m2": ("fp8e5", 1),
}
_RANKS = range(2, 6)
_LONGEST, _SHORTEST = 256, 16  # a block's axis in elements, and its last one in bytes


@dataclass(frozen=True, slots=True)
class Descriptor:
    """The parameter `t0` for a tensor with its axes in an `order`: those along which a tile is one element come first,
    the others follow as they are stored."""

    name: str
    array: Array
    order: tuple[int, ...]
    block: tuple[int, ...]

    @property
    def type(self) -> str:
        """Its type as Triton writes it."""
        return f"tensordesc<{_TYPES[self.array.element][0]}[{', '.join(map(str, self.block))}]>"

    @property
    def flag(self) -> str:
        """The parameter that says whether there is one."""
        return f"DESC{self.name[1:]}"


@dataclass(slots=True)
class Descriptors:
    """The descriptors of a file. `lengths`: the elements of a tile along each dimension."""

    lengths: Mapping[str, int]
    made: dict[tuple[str, tuple[int, ...], tuple[int, ...]], Descriptor] = field(default_factory=dict)

    def of(self, array: Array, axes: tuple[str, ...]) -> Descriptor | None:
        """The descriptor for tiles with some axes of a tensor; None where there cannot be one.

        Only for inputs: what a kernel writes itself is not seen by such copies.
        """
        if not array.text.startswith("a") or array.element not in _TYPES or len(array.dims) not in _RANKS:
            return None
        own = [at for at, dim in enumerate(array.dims) if dim in axes]
        order = (*(at for at in range(len(array.dims)) if at not in own), *own)
        block = tuple(self.lengths[array.dims[at]] if at in own else 1 for at in order)
        bytes_of_row = block[-1] * _TYPES[array.element][1]
        if order[-1] != len(array.dims) - 1 or not own or max(block) > _LONGEST or bytes_of_row < _SHORTEST:
            return None
        key = array.text, order, block
        return self.made.setdefault(key, Descriptor(f"t{len(self.made)}", array, order, block))

    def named(self, parameter: str) -> Descriptor:
        """The descriptor that a parameter is or is about."""
        return next(found for found in self.made.values() if parameter in (found.name, found.flag))

    def launcher_lines(self) -> Iterator[str]:
        """The lines of the launcher that make them."""
        for found in self.made.values():
            text = found.array.text
            if found.order != tuple(range(len(found.order))):
                text = f"{text}.permute({', '.join(map(str, found.order))})"
            yield f"{found.name} = _descriptor({text}, {list(found.block)})"


HELPER = """
@lru_cache
def _copies_tiles(device):
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def _descriptor(tensor, block):
    \"\"\"The descriptor of a tensor, or None where there cannot be one.\"\"\"
    if not _copies_tiles(tensor.device) or tensor.data_ptr() % 16 != 0:
        return None
    size, strides = tensor.element_size(), tensor.stride()
    if strides[-1] != 1 or not all(0 < n < 2**31 for n in tensor.shape):
        return None
    if any(stride <= 0 or stride * size % 16 != 0 or stride * size >= 2**40 for stride in strides[:-1]):
        return None
    return TensorDescriptor.from_tensor(tensor, block)
"""
