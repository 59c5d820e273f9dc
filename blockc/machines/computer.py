"""This computer: what the operating system says of its cores, caches and memory."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from blockc.ir.machine import Machine, Rate, Tier, chain

SYSTEM_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_SIZE = re.compile(r"([0-9]{1,12})([KMG]?)")
_FACTORS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, slots=True)
class Computer:
    """Cores that this process may use, bytes of memory, and bytes of caches by level; what is not known is missing."""

    cores: int
    memory: int | None
    caches: dict[int, int]


def this_computer(caches: Path = SYSTEM_CACHES) -> Computer:
    """What can be read from the system, without measuring anything."""
    return Computer(_cores(), _memory(), dict(_caches(caches)))


def detected(machine: Machine, computer: Computer | None = None) -> Machine:
    """The description of one core, with the cores, caches and memory of this computer.

    A tier called l2 or l3 gets the size of that cache. A cache that there is not, or that is larger than what is
    outside it, is left out; where nothing is known, everything stays. Rates are of all cores.
    """
    computer = computer or this_computer()
    known = {"dram": computer.memory, **{f"l{level}": size for level, size in computer.caches.items()}}
    tiers: list[Tier] = []
    for tier in machine.tiers:
        size = known.get(tier.name)
        if tier.kind == "cache" and computer.caches and size is None:
            continue
        sized = replace(tier, capacity=size or tier.capacity)
        if not tiers or sized.capacity <= tiers[-1].capacity:
            tiers.append(sized)
    if len(tiers) < 2:  # a computer without caches, says the system
        tiers = list(machine.tiers)
    compute = tuple(
        replace(
            unit,
            operands=(tiers[-1].name,),
            accumulator=tiers[-1].name,
            operations={
                operation: {dtype: Rate(rate.rate * computer.cores, rate.tile) for dtype, rate in rates.items()}
                for operation, rates in unit.operations.items()
            },
        )
        for unit in machine.compute
    )
    return replace(machine, units=computer.cores, tiers=tuple(tiers), moves=chain(tuple(tiers)), compute=compute)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _memory() -> int | None:
    """Bytes of memory, where the system tells."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return size if size > 0 else None
    return None


def _caches(folder: Path) -> Iterator[tuple[int, int]]:
    """The levels and sizes of the caches for data, where the system tells."""
    for entry in sorted(folder.glob("index*")):
        with contextlib.suppress(OSError, ValueError):
            kind, level, size = ((entry / name).read_text().strip() for name in ("type", "level", "size"))
            match = _SIZE.fullmatch(size)
            if kind in ("Data", "Unified") and match and int(match[1]) > 0:
                yield int(level), int(match[1]) * _FACTORS[match[2]]
