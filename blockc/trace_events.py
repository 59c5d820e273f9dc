"""The timeline of a simulated run as Chrome trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

The device is a process, with its kernels and with what it has once: reading and writing of its tiers, ways between
them. So is each unit, with its compute units and with a way for each boundary on which it moves tiles: the bytes are
there, and a move includes what it waits for the device. Counters are the bytes that the schedule holds in a tier at the
latest operation that has begun. Times are in microseconds, to the picosecond. Format: "Trace Event Format" (Google),
the JSON array.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from blockc.codegen.timeline import Placed, Room, Timeline
from blockc.ir.machine import Machine

Event = dict[str, Any]
DEVICE = 0  # the number of its process; those of units follow


def trace_json(timelines: Sequence[Timeline], machine: Machine) -> str:
    """The text of a trace file: of parts that are executed one after the other."""
    lines = ",\n".join(json.dumps(event, allow_nan=False) for event in trace_events(timelines, machine))
    return f"[\n{lines}\n]\n"


def trace_events(timelines: Sequence[Timeline], machine: Machine) -> Iterator[Event]:
    """All events, those that give names first."""
    writer = _Writer(machine)
    start = 0.0
    for number, timeline in enumerate(timelines, 1):
        name = f"part {number}, kernel" if len(timelines) > 1 else "kernel"
        writer.kernels(timeline, start, name)
        placed = sorted(timeline.events(), key=lambda one: one.number)
        for one in placed:
            writer.event(one, start)
        writer.space(timeline, placed, start)
        start += sum(timeline.kernels)
    yield from writer.names()
    yield from sorted(writer.events, key=lambda event: (event["ts"], event["pid"], event["tid"]))
    yield from writer.counters(start)


@dataclass
class _Writer:
    machine: Machine
    events: list[Event] = field(default_factory=list)
    threads: dict[tuple[int, str], int] = field(default_factory=dict)
    changes: dict[tuple[int, str], list[tuple[float, int]]] = field(default_factory=dict)

    def span(
        self, process: int, thread: str, name: str, begin: float, end: float, details: Mapping[str, int | str]
    ) -> None:
        """Something takes a resource from `begin` to `end`, in seconds."""
        number = self.threads.setdefault((process, thread), len(self.threads))
        since = _microseconds(begin)
        long = round(_microseconds(end) - since, 6)
        event = {"ph": "X", "pid": process, "tid": number, "ts": since, "dur": long, "name": name}
        self.events.append({**event, "args": dict(details)} if details else event)

    def kernels(self, timeline: Timeline, start: float, name: str) -> None:
        """A kernel takes the device from its dispatch on."""
        for number, (begin, seconds) in enumerate(zip(timeline.starts(), timeline.kernels, strict=True)):
            self.span(DEVICE, "kernels", f"{name} {number}", start + begin, start + begin + seconds, {})

    def event(self, one: Placed, start: float) -> None:
        """A unit moves or computes something, and what it takes of the device for that."""
        event = one.event
        details: dict[str, int | str] = {"bytes": event.size} if event.size else {}
        self.span(1 + one.unit, event.engine, event.label, start + one.begin, start + one.end, details)
        for engine, since, until in one.shared:
            self.span(DEVICE, engine, event.label, start + since, start + until, {"unit": one.unit})

    def space(self, timeline: Timeline, placed: Sequence[Placed], start: float) -> None:
        """What is held in tiers: of the device outside of tasks, and in the task of each unit."""
        shared = {tier.name for tier in self.machine.tiers if tier.scope == "device"}
        rooms, end = timeline.trace.rooms, sum(timeline.kernels)
        by_begin = sorted(placed, key=lambda one: (one.begin, one.number))
        for tier in self.machine.tiers:
            outside = _held([room for room in rooms if room.tier == tier.name and not room.in_task], len(placed))
            self.change(DEVICE, tier.name, start, outside[0])
            last = self.frontier(by_begin, outside, outside[0], DEVICE, tier.name, start)
            self.change(DEVICE, tier.name, start + end, -last)
        tasks: dict[int, list[Placed]] = {}
        for one in by_begin:
            tasks.setdefault(one.task, []).append(one)
        for tier in self.machine.tiers:
            inside = _held([room for room in rooms if room.tier == tier.name and room.in_task], len(placed))
            for events in tasks.values():
                process = DEVICE if tier.name in shared else 1 + events[0].unit
                last = self.frontier(events, inside, 0, process, tier.name, start)
                self.change(process, tier.name, start + max(one.there for one in events), -last)

    def frontier(
        self, events: Iterable[Placed], held: Sequence[int], now: int, process: int, tier: str, start: float
    ) -> int:
        """Note how what is held changes, as ever later operations begin. Returns what is held at the last one."""
        latest = -1
        for one in events:
            if one.number > latest:
                latest = one.number
                self.change(process, tier, start + one.begin, held[latest] - now)
                now = held[latest]
        return now

    def change(self, process: int, tier: str, time: float, change: int) -> None:
        """Note that there are more or fewer bytes in a tier from a time on."""
        if change:
            self.changes.setdefault((process, tier), []).append((time, change))

    def names(self) -> Iterator[Event]:
        """What processes and their threads are called, in this order."""
        units = {process for process, _ in self.threads} - {DEVICE}
        processes = {DEVICE: f"{self.machine.name}: device", **{unit: f"unit {unit - 1}" for unit in sorted(units)}}
        for process, name in processes.items():
            yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}}
            yield {"ph": "M", "pid": process, "name": "process_sort_index", "args": {"sort_index": process}}
        for (process, name), number in self.threads.items():
            yield {"ph": "M", "pid": process, "tid": number, "name": "thread_name", "args": {"name": name}}

    def counters(self, end: float) -> Iterator[Event]:
        """The bytes that lie in every tier, whenever that changes, until the end."""
        for (process, tier), changes in sorted(self.changes.items()):
            for time, held in (*_sums(changes), (end, 0)):
                shown = {"ph": "C", "pid": process, "ts": _microseconds(time), "name": f"bytes in {tier}"}
                yield {**shown, "args": {"bytes": held}}


def _held(rooms: Iterable[Room], events: int) -> list[int]:
    """The bytes that are taken at each event."""
    changes = [0] * (events + 1)
    for room in rooms:
        changes[room.first] += room.size
        changes[events if room.last is None else room.last] -= room.size
    return list(accumulate(changes))


def _sums(changes: Iterable[tuple[float, int]]) -> Iterator[tuple[float, int]]:
    """What changes add up to at each time at which there are some."""
    held = 0
    at: dict[float, int] = {}
    for time, change in changes:
        at[time] = at.get(time, 0) + change
    for time, change in sorted(at.items()):
        if change:
            held += change
            yield time, held


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 6)
