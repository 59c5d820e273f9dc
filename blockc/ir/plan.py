"""What the choice hands to the emitters, and what it says about every snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blockc.ir.block import Program


@dataclass(frozen=True, slots=True)
class Cost:
    """What one snapshot costs at given sizes and tiles.

    `buffered` are the lists in slow memory that are neither inputs nor outputs, accumulated ones among them; `traffic`
    is bytes by value and direction ("load" or "store"); `flops` and `special` count repeats; `local_bytes` is
    the peak of the live tiles of one worker; `seconds` is predicted.
    """

    kernels: int
    buffered: tuple[str, ...]
    traffic: Mapping[tuple[str, str], int]
    flops: int
    special: int
    local_bytes: int
    seconds: float

    @property
    def traffic_bytes(self) -> int:
        """All bytes loaded and stored."""
        return sum(self.traffic.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """The chosen snapshot, ready to emit: stabilized, composed, with the tile of every dimension that is cut.

    `snapshots` are all of them in this form, `note` is what was done so that no unit is idle.
    """

    program: Program
    snapshot: int
    tiles: Mapping[str, int]
    sizes: Mapping[str, int]
    costs: tuple[Cost, ...]
    snapshots: tuple[Program, ...] = ()
    note: str = ""
