"""A machine: tiers of memory, moves between them, units that compute. What a machine file says, in plain numbers.

    capacity, alignment, granularity    bytes
    read, write, bandwidth              bytes per second
    rate                                operations per second, of the whole device
    latency, dispatch, call             seconds

A tier belongs to the device, or every parallel unit has one of its own (`scope`). What is said of a unit's tier is said
of one of them. A move with an end in a unit's tier has the bandwidth of one unit; all units together move no more than
the tiers at its ends read and write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

SCOPES = ("device", "unit")
KINDS = ("scratchpad", "cache")
DUPLEX = ("full", "half")
BACKENDS = ("numpy", "triton", "none")  # "none": costs and byte counts only
OPERATIONS = ("matmul", "vector", "special")
NUMPY, TORCH = PRODUCTS = ("numpy", "torch")


@dataclass(frozen=True, slots=True)
class Tier:
    """A memory. A scratchpad holds what it is told to; a cache decides by itself.

    `buffers` is how many copies of a streamed tile it holds: with two, moves overlap with computing. `duplex` is "full"
    if it is read and written at the same time, each at its own bandwidth, and "half" if reading and writing take turns.
    """

    name: str
    capacity: int
    read: float
    write: float
    scope: str
    kind: str
    alignment: int
    latency: float
    buffers: int
    duplex: str = "full"


@dataclass(frozen=True, slots=True)
class Move:
    """A direct way from one tier to another, in whole pieces of `granularity` bytes."""

    source: str
    destination: str
    bandwidth: float
    granularity: int


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast an operation is on elements of one type, and the sizes that tiles are multiples of: m, n and k of a
    product, the number of elements of anything else."""

    rate: float
    tile: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ComputeUnit:
    """What reads operands from tiers and leaves results in the tier `accumulator`.

    `operands` is one tier for all operands, or one for the left and one for the right. `operations` maps "matmul"
    (multiplications and additions count), "vector" (elementwise operators and reductions) or "special" (exp and the
    like), and the type of the elements, to a rate.
    """

    name: str
    operands: tuple[str, ...]
    accumulator: str
    operations: Mapping[str, Mapping[str, Rate]]


@dataclass(frozen=True, slots=True)
class Machine:
    """A device of `units` parallel units. Tiers are listed outermost (largest, slowest) first.

    `dispatch` is what starting a kernel costs, `call` what starting one operator on a tile costs inside a kernel.
    `capability` is what kernels are compiled for: 90 is NVIDIA's compute capability 9.0, 0 is none. `products` is the
    library by which NumPy kernels multiply matrices.
    """

    name: str
    description: str
    backend: str
    units: int
    dispatch: float
    call: float
    tiers: tuple[Tier, ...]
    moves: tuple[Move, ...]
    compute: tuple[ComputeUnit, ...]
    capability: int = 0
    products: str = NUMPY


def chain(tiers: tuple[Tier, ...]) -> tuple[Move, ...]:
    """The moves of tiers that form a chain: from each to its neighbours, as fast as the slower end."""
    return tuple(
        Move(source.name, destination.name, min(source.read, destination.write), 1)
        for outer, inner in pairwise(tiers)
        for source, destination in ((outer, inner), (inner, outer))
    )
