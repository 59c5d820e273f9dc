"""What a multiprocessor of a GPU has, by compute capability.

Source: NVIDIA, CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_KIB = 1024


@dataclass(frozen=True, slots=True)
class Gpu:
    """`shared` are the bytes of shared memory that a multiprocessor has, `shared_of_block` those that a block may have;
    `registers` of 32 bits, `warps` and `blocks` there at the same time."""

    capability: int
    shared_of_block: int
    shared: int
    warps: int = 64
    blocks: int = 32
    registers: int = 65_536

    @property
    def multiplies_in_groups(self) -> bool:
        """True if four warps multiply together, from shared memory (wgmma and tcgen05)."""
        return 90 <= self.capability < 120

    @property
    def copies_tiles(self) -> bool:
        """True if it has an engine that copies tiles into shared memory by descriptors of tensors (TMA)."""
        return self.capability >= 90


GPUS: Mapping[int, Gpu] = {
    80: Gpu(80, 163 * _KIB, 164 * _KIB),
    86: Gpu(86, 99 * _KIB, 100 * _KIB, 48, 16),
    89: Gpu(89, 99 * _KIB, 100 * _KIB, 48, 24),
    90: Gpu(90, 227 * _KIB, 228 * _KIB),
    100: Gpu(100, 227 * _KIB, 228 * _KIB),
    120: Gpu(120, 99 * _KIB, 100 * _KIB, 48, 24),
}
FLOAT8 = 89  # the first capability that converts f8e4m3


def registers_of_block(warps: int, registers: int) -> int:
    """The registers that a block of so many warps takes, if a thread needs some: warps get them in pieces of 256."""
    return -(-max(registers, 1) * 32 // 256) * 256 * warps


def occupancy(gpu: Gpu, warps: int, registers: int, shared: int) -> float:
    """The share of a multiprocessor's warps that fit at the same time: a block takes 1 KiB of shared memory more than
    it asks for."""
    blocks = min(
        gpu.registers // registers_of_block(warps, registers),
        gpu.shared // (shared + 1024),
        gpu.warps // warps,
        gpu.blocks,
    )
    return blocks * warps / gpu.warps
