"""The memory of a simulated machine: an allocator for each tier, which refuses to overflow, and the tiles in it.

What is allocated outside of tasks exists once. A task has memory of its own: in the tiers of its unit, and, once for
each unit that is active at the same time, in those of the device. It sees nothing else of other units.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from blockc.codegen.timeline import Room, Trace
from blockc.ir.machine import Machine
from blockc.ir.schedule import Copy
from blockc.ir.tile_operators import Tile

LISTED = 8  # the largest allocations that a message names


class SimulationError(Exception):
    """A schedule does what its machine cannot do. This is an error of what made the schedule."""


class CapacityExceeded(Exception):
    """A tier cannot hold what a schedule puts there: the bytes that it would `need`, of `limit`. `held` is what took
    space already, with its bytes."""

    def __init__(self, name: str, tier: str, need: int, limit: int, held: dict[str, int]) -> None:
        self.tier, self.need, self.limit, self.held = tier, need, limit, held
        largest = sorted(held.items(), key=lambda entry: (-entry[1], entry[0]))[:LISTED]
        more = f" and {len(held) - LISTED} more" if len(held) > LISTED else ""
        holding = ", ".join(f"`{other}` {size:,}" for other, size in largest) + more
        super().__init__(
            f"no room for `{name}` in {tier}: it would hold {need:,} bytes, and its capacity is {limit:,}"
            f" (it holds {holding or 'nothing'})"
        )


@dataclass(slots=True)
class Slot:
    """Room in a tier, taken after so many events (`since`). `users` are the events that read or write what is there."""

    name: str
    tier: str
    size: int
    in_task: bool
    since: int
    users: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Held:
    """A tile in a tier. Its number is there after the events `ready`."""

    tile: Tile
    slot: Slot
    ready: tuple[int, ...]


@dataclass
class TieredMemory:
    """The tiers, with the tiles in them and the highest use so far of each (`peak`)."""

    machine: Machine
    trace: Trace
    tiles: dict[Copy, Held] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    _outside: dict[Copy, Held] = field(default_factory=dict)
    _used: dict[str, int] = field(default_factory=dict)
    _used_by_task: dict[str, int] = field(default_factory=dict)
    _slots: dict[int, Slot] = field(default_factory=dict)
    _earlier: dict[Copy, deque[Slot]] = field(default_factory=dict)
    _given_back: dict[str, dict[int, Slot]] = field(default_factory=dict)  # room whose users may not be over, by tier
    _active: int = 0  # units at the same time, in a task

    def __post_init__(self) -> None:
        self.tiers = {tier.name: tier for tier in self.machine.tiers}
        self.peak = dict.fromkeys(self.tiers, 0)
        self._used = dict.fromkeys(self.tiers, 0)
        self._used_by_task = dict.fromkeys(self.tiers, 0)

    # Tasks

    def begin_task(self, active: int) -> None:
        """From here on a task is executed, on one of so many units that are active at the same time."""
        self._outside, self.tiles, self._active = self.tiles, {}, active
        self._given_back.clear()  # what came before is over

    def end_task(self) -> None:
        """The end of a task, which must have released everything."""
        left = sorted(slot.name for slot in self._slots.values() if slot.in_task)
        if self.tiles or left:
            names = ", ".join(f"`{name}`" for name in left or sorted({name for name, _ in self.tiles}))
            raise SimulationError(f"{names} is left over at the end of a task")
        self.tiles, self._outside, self._active = self._outside, {}, 0

    @property
    def in_task(self) -> bool:
        """True while a task is executed."""
        return self._active > 0

    def is_shared(self, tier: str) -> bool:
        """True for a tier of the device."""
        return self.tiers[tier].scope == "device"

    # Space

    def allocate(self, name: str, tier: str, size: int, copies: int = 1) -> tuple[Slot, tuple[int, ...]]:
        """Room for so many copies, each aligned, and the events after which it is free: those of the tile of this name
        that was there so many allocations ago, and of other tiles as far as their room is needed, the first ones first.
        CapacityExceeded if there is not enough; a cache makes room itself."""
        if tier not in self.tiers:
            raise SimulationError(f"`{name}` is put into {tier}, which is no tier of the machine")
        alignment = self.tiers[tier].alignment
        slot = Slot(name, tier, copies * (-(-size // alignment) * alignment), self.in_task, self.trace.count)
        used = self._used_by_task if slot.in_task else self._used
        used[tier] += slot.size
        need = self._use(tier)
        if need > self.tiers[tier].capacity and self.tiers[tier].kind == "scratchpad":
            held: dict[str, int] = {}
            for other in self._slots.values():
                if other.tier == tier:
                    held[other.name] = held.get(other.name, 0) + other.size * self._times(other)
            raise CapacityExceeded(name, tier, need, self.tiers[tier].capacity, held)
        self.peak[tier] = max(self.peak[tier], need)
        self._slots[id(slot)] = slot
        earlier = self._earlier.setdefault((name, tier), deque())
        for same in earlier:  # in the same room
            self._given_back.get(tier, {}).pop(id(same), None)
        free = earlier.popleft().users if len(earlier) >= copies else []
        earlier.append(slot)
        return slot, (*free, *self._until_free(tier, need))

    def _until_free(self, tier: str, need: int) -> Iterator[int]:
        """The events after which so many bytes can be used: room that was given back may still be in use, and is taken
        in the order in which it was given back."""
        given_back = self._given_back.get(tier, {})
        need += sum(slot.size * self._times(slot) for slot in given_back.values())
        while need > self.tiers[tier].capacity and given_back:
            slot = given_back.pop(next(iter(given_back)))
            need -= slot.size * self._times(slot)
            for same in (slot, *self._earlier.get((slot.name, tier), ())):
                yield from same.users

    def free(self, slot: Slot) -> None:
        """Gives room back."""
        del self._slots[id(slot)]
        if slot.size and self.tiers[slot.tier].kind == "scratchpad":
            self._given_back.setdefault(slot.tier, {})[id(slot)] = slot
        self.trace.rooms.append(Room(slot.tier, slot.size, slot.in_task, slot.since, self.trace.count))
        (self._used_by_task if slot.in_task else self._used)[slot.tier] -= slot.size

    def close(self) -> None:
        """Note what was never given back: the arguments."""
        for slot in self._slots.values():
            self.trace.rooms.append(Room(slot.tier, slot.size, slot.in_task, slot.since, None))

    def _times(self, slot: Slot) -> int:
        return self._active if slot.in_task and self.is_shared(slot.tier) else 1

    def _use(self, tier: str) -> int:
        times = self._active if self.in_task and self.is_shared(tier) else 1
        return self._used[tier] + self._used_by_task[tier] * times

    # Tiles

    def tile(self, name: str, tier: str) -> Held:
        """The tile in a tier, which this unit can see. SimulationError if it is not there."""
        held = self.tiles.get((name, tier))
        if held is None and self.is_shared(tier):
            held = self._outside.get((name, tier))
        if held is None:
            places = [where for other, where in self.tiles if other == name]
            places += [f"{where} of another unit" for other, where in self._outside if other == name]
            raise SimulationError(f"the tile `{name}` is not in {tier}, but in {', '.join(places) or 'no tier'}")
        return held

    def anywhere(self, name: str) -> Held:
        """The tile in whatever tier it is."""
        tiers = [tier for other, tier in self.tiles if other == name]
        if not tiers:
            raise SimulationError(f"the tile `{name}` is in no tier")
        return self.tiles[name, tiers[0]]

    def check_absent(self, name: str, tier: str) -> None:
        """SimulationError if a tile is in a tier already."""
        if (name, tier) in self.tiles:
            raise SimulationError(f"the tile `{name}` is in {tier} already")

    def hold(self, name: str, tier: str, held: Held) -> None:
        """Puts a tile into its tier."""
        self.check_absent(name, tier)
        self.tiles[name, tier] = held

    def take(self, name: str, tier: str) -> Held:
        """Removes a tile, but not the room that it has."""
        if (name, tier) not in self.tiles:
            raise SimulationError(f"the tile `{name}` is released, but it is not in {tier}")
        return self.tiles.pop((name, tier))
