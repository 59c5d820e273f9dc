"""A schedule: a block program on a machine, as the moves and operators that a unit executes, one after the other.

    schedule   := kernel*                              a kernel is one dispatch
    kernel     := statement*
    statement  := Move | Stage | Compute | Combine | Loop | Pieces

Tiles and lists lie in tiers. A tile is known by its name and its tier, so that the same tile may lie in several tiers;
a list is a *storage*, which holds the tiles of all its blocks. Arguments are storages of the outermost tier. Data reach
a tier by moves only, and whatever computes finds its operands in the tiers of its unit. Every statement says which
tiles and storages are not needed any more after it (`releases`).

The structure depends on the program, the machine and the placement, not on sizes: costs are counted from it
(`passes/machine_cost.py`), and `codegen/simulator.py` executes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from blockc.ir.block import Apply, Condition, Program, Rename
from blockc.ir.machine import Machine

Copy = tuple[str, str]  # a tile or storage by its name, and its tier


@dataclass(frozen=True, slots=True)
class Storage:
    """A list that lies in a tier: dense over the parts of `axes` that it has, once for each block of `lists` that are
    no axes. `origin` is the storage that it is a copy of, or None."""

    name: str
    tier: str
    dtype: str
    lists: tuple[str, ...]
    axes: tuple[str, ...]
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """A tile is copied from tier to tier along `path`; in between it lies in a buffer only until it has gone on.

    From the storage `source`, or from the tile of that name; into the storage `target`, or a tile. In the first
    iteration of the loop over `again`, nothing is there to be loaded: the tile is filled with `identity` instead. A
    tier on the way holds as many copies of what is `streamed` as it has buffers, so that the next one comes while this
    one is used.
    """

    name: str
    path: tuple[str, ...]
    dtype: str
    axes: tuple[str, ...]
    source: str | None = None
    target: str | None = None
    streamed: bool = False
    again: str | None = None
    identity: float = 0.0
    releases: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """The part of a list that this place reads is copied as a whole, tile by tile along `path`, into a storage.

    What is `streamed`, in a loop, has as many copies as its tier has buffers, as with a Move.
    """

    storage: Storage
    path: tuple[str, ...]
    streamed: bool = False
    releases: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True)
class Compute:
    """A tile operator on a compute unit: operands are read from `reads`, in their order among its names.

    The result lies in `tier`. It takes the place of the operand `reuses`, which is not needed any more, or is added to
    the tile `into`, which the unit accumulates. `operation` and `rated` say which rate of the unit applies.
    """

    apply: Apply
    unit: str
    operation: str
    rated: str
    reads: tuple[Copy, ...]
    tier: str
    reuses: str | None = None
    into: str | None = None
    releases: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True)
class Combine:
    """Accumulation: the components `updates` of the tiles `names` become those combined with `values`, in `tier`."""

    names: tuple[str, ...]
    values: tuple[str, ...]
    monoid: str
    updates: tuple[int, ...]
    unit: str
    rated: str
    tier: str
    releases: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True)
class Accumulator:
    """A tile that a loop starts from the identity of its monoid."""

    name: str
    tier: str
    identity: float


@dataclass(frozen=True, slots=True)
class Loop:
    """The body, once for each block of `dim`.

    If it is parallel, its iterations and those of parallel loops that are all of its body are tasks for different
    units. `storages` and `accumulators` begin to exist before the first iteration. `guard` are the moves of what the
    condition `where` reads; blocks in which it holds nowhere are left out.
    """

    dim: str
    parallel: bool
    storages: tuple[Storage, ...]
    accumulators: tuple[Accumulator, ...]
    where: Condition | None
    guard: tuple[Move, ...]
    body: tuple[Statement, ...]
    releases: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True)
class Pieces:
    """The body, once for each piece of the current block of `dim`, of `step` elements. Of tiles from outside it takes
    that piece, and those that it makes have its size; they are gone at its end."""

    dim: str
    step: int
    body: tuple[Statement, ...]
    releases: tuple[Copy, ...] = ()


Statement = Move | Stage | Compute | Combine | Loop | Pieces


@dataclass(frozen=True, slots=True)
class Schedule:
    """The kernels of a program on a machine.

    `storages` are those of arguments, which exist all the time, and of lists and tiles between kernels; `lives` says of
    these in which kernel they begin to exist and after which they are released. `aliases` are stored lists that are
    read under other dimensions.
    """

    program: Program
    machine: Machine
    storages: tuple[Storage, ...]
    aliases: tuple[Rename, ...]
    kernels: tuple[tuple[Statement, ...], ...]
    lives: Mapping[str, tuple[int, int]]


def walk(statements: tuple[Statement, ...]) -> Iterator[Statement]:
    """Every statement, at any depth, a loop before its body."""
    for statement in statements:
        yield statement
        if isinstance(statement, Loop):
            yield from statement.guard
        if isinstance(statement, Loop | Pieces):
            yield from walk(statement.body)
