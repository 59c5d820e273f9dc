"""When things happen on a simulated machine: a discrete-event model of what its engines do, kernel after kernel.

Every unit has engines: its compute units, and one for each way between tiers with an end in its memory. An engine does
one thing at a time, in the order of the program; different engines overlap as far as data and space allow. What the
device has once (its tiers' reading and writing, ways between them) serves the units in the order in which they ask, and
so does a tier of a unit its ways, if reading and writing take turns. A way is free again before what it moved is there:
that takes its latency longer.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Event:
    """An engine is busy for some seconds, after the events of its task `after`; `shared` are the engines of the device
    that it takes too, with their seconds, and `own` further ones of its unit. The result is there `latency` later.
    `label` says what is moved (`size` bytes) or computed."""

    engine: str
    seconds: float
    after: tuple[int, ...]
    shared: tuple[tuple[str, float], ...]
    latency: float
    label: str = ""
    size: int = 0
    own: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes in a tier that are taken from the event `first` on to the one before `last`; None: to the end."""

    tier: str
    size: int
    in_task: bool
    first: int
    last: int | None


Task = list[Event]
Phase = list[Task]  # tasks that may be executed at the same time


@dataclass(slots=True)
class Trace:
    """What was executed: for each kernel phases, one after the other. Events are numbered through; those of other tasks
    are over or have nothing to do with a task."""

    kernels: list[list[Phase]] = field(default_factory=list)
    rooms: list[Room] = field(default_factory=list)
    gate: tuple[int, ...] = ()  # events that all others wait for
    _first: int = 0
    count: int = 0

    def kernel(self) -> None:
        """A kernel begins."""
        self.kernels.append([])
        self.phase()
        self.task()

    def phase(self) -> None:
        """What follows begins when all before it is over."""
        self.kernels[-1].append([])

    def task(self) -> None:
        """A task begins."""
        self.kernels[-1][-1].append([])
        self._first = self.count
        self.gate = ()

    def add(
        self,
        engine: str,
        seconds: float,
        after: Iterable[int],
        shared: tuple[tuple[str, float], ...] = (),
        latency: float = 0.0,
        label: str = "",
        size: int = 0,
        own: tuple[tuple[str, float], ...] = (),
    ) -> int:
        """The number of a new event."""
        needs = sorted({number - self._first for number in (*after, *self.gate) if number >= self._first})
        self.kernels[-1][-1][-1].append(Event(engine, seconds, tuple(needs), shared, latency, label, size, own))
        self.count += 1
        return self.count - 1


def timed(trace: Trace, units: int, dispatch: float) -> tuple[tuple[float, ...], dict[str, float]]:
    """The seconds of every kernel, and for how long engines were busy, added up over units."""
    busy: dict[str, float] = {}
    for event in (event for kernel in trace.kernels for phase in kernel for task in phase for event in task):
        taken = dict((*event.shared, *event.own))
        taken.setdefault(event.engine, event.seconds)
        for engine, seconds in taken.items():
            busy[engine] = busy.get(engine, 0.0) + seconds
    kernels = tuple(dispatch + sum(_seconds(_phase(phase, units)) for phase in kernel) for kernel in trace.kernels)
    return kernels, dict(sorted(busy.items()))


@dataclass(frozen=True, slots=True)
class Placed:
    """An event with its times, in seconds from the beginning: it is over at `end` and its result is `there`; `shared`
    are the engines of the device, each from and to when. `number` is that of the event in the trace, `task` that of the
    first event of its task."""

    event: Event
    number: int
    task: int
    unit: int
    begin: float
    end: float
    there: float
    shared: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """What was executed, on so many units, and the seconds of every kernel."""

    trace: Trace
    units: int
    dispatch: float
    kernels: tuple[float, ...]

    def starts(self) -> tuple[float, ...]:
        """When kernels are dispatched."""
        return (0.0, *accumulate(self.kernels))[:-1]

    def events(self) -> Iterator[Placed]:
        """Every event with its times."""
        number = 0
        for start, phases in zip(self.starts(), self.trace.kernels, strict=True):
            begin = start + self.dispatch
            for phase in phases:
                firsts = list(accumulate(map(len, phase), initial=number))
                number, end = firsts.pop(), 0.0
                for task, place, unit, times, shared in _phase(phase, self.units):
                    begun, over, there = (begin + time for time in times)
                    taken = tuple((engine, begin + since, begin + until) for engine, since, until in shared)
                    event = phase[task][place]
                    yield Placed(event, firsts[task] + place, firsts[task], unit, begun, over, there, taken)
                    end = max(end, times[2])
                begin += end


@dataclass
class _Running:
    """A task on a unit: which of its events may begin, and when."""

    position: int
    task: Task
    begin: float

    def __post_init__(self) -> None:
        self.queues: dict[str, deque[int]] = {}
        self.followers: list[list[int]] = [[] for _ in self.task]
        self.missing = [len(event.after) for event in self.task]
        self.ready = [self.begin] * len(self.task)
        self.free: dict[str, float] = {}
        self.left = len(self.task)
        self.end = self.begin
        for number, event in enumerate(self.task):
            self.queues.setdefault(event.engine, deque()).append(number)
            for other in event.after:
                self.followers[other].append(number)

    def starts(self, numbers: Iterable[int]) -> list[tuple[float, int]]:
        """Those of some events that may begin now, with when."""
        found = []
        for number in sorted(set(numbers)):
            engine = self.task[number].engine
            if not self.missing[number] and self.queues[engine][0] == number:
                found.append((max(self.ready[number], self.free.get(engine, self.begin)), number))
        return found

    def finish(self, number: int, time: float) -> list[tuple[float, int]]:
        """An event is over; those that may begin now."""
        engine = self.task[number].engine
        self.free[engine] = time
        there = time + self.task[number].latency
        self.end = max(self.end, there)
        self.left -= 1
        self.queues[engine].popleft()
        for other in self.followers[number]:
            self.missing[other] -= 1
            self.ready[other] = max(self.ready[other], there)
        ahead = [self.queues[engine][0]] if self.queues[engine] else []
        return self.starts([*self.followers[number], *ahead])


_Times = tuple[float, float, float]  # when an event begins, is over, and its result is there
_Done = tuple[int, int, int, _Times, list[tuple[str, float, float]]]  # task, event, unit, times, shared engines


def _seconds(events: Iterable[_Done]) -> float:
    """When all events are over."""
    return max((times[2] for _, _, _, times, _ in events), default=0.0)


def _phase(tasks: Phase, units: int) -> Iterator[_Done]:
    """The events of all tasks as they come: each task is for the unit that is free first."""
    waiting = deque((number, task) for number, task in enumerate(tasks) if task)
    free_from: dict[tuple[str, int], float] = {}  # engines, by the unit that they belong to
    device = -1
    running: dict[int, _Running] = {}
    free = -1
    heap: list[tuple[float, int, int]] = [(0.0, unit, free) for unit in range(min(units, len(waiting)))]
    while heap:
        time, unit, number = heapq.heappop(heap)
        if number == free:
            if not waiting:
                continue
            position, task = waiting.popleft()
            work = running[unit] = _Running(position, task, time)
            begun = work.starts(range(len(work.task)))
        else:
            work = running[unit]
            event = work.task[number]
            over = time + event.seconds
            taken = []
            owners = *((device, *taking) for taking in event.shared), *((unit, *taking) for taking in event.own)
            for owner, engine, seconds in owners:
                since = max(free_from.get((engine, owner), 0.0), time)
                until = free_from[engine, owner] = since + seconds
                over = max(over, until)
                if owner == device:
                    taken.append((engine, since, until))
            begun = work.finish(number, over)
            yield work.position, number, unit, (time, over, over + event.latency), taken
            if not work.left:
                heapq.heappush(heap, (work.end, unit, free))
        for start, other in begun:
            heapq.heappush(heap, (start, unit, other))
