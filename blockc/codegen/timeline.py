"""When things happen on a simulated machine: a discrete-event model of what its engines do, kernel after kernel.

Every unit has engines: its compute units, and one for each way between tiers with an end in its memory. An engine does
one thing at a time, in the order of the program; different engines overlap as far as data and space allow. What the
device has once (its tiers' reading and writing, ways between them) serves the units in the order in which they ask. A
way is free again before what it moved is there: that takes its latency longer.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """An engine is busy for some seconds, after the events of its task `after`; `shared` are the engines of the device
    that it takes too, with their seconds. The result is there `latency` later."""

    engine: str
    seconds: float
    after: tuple[int, ...]
    shared: tuple[tuple[str, float], ...]
    latency: float


Task = list[Event]
Phase = list[Task]  # tasks that may be executed at the same time


@dataclass(slots=True)
class Trace:
    """What was executed: for each kernel phases, one after the other. Events are numbered through; those of other tasks
    are over or have nothing to do with a task."""

    kernels: list[list[Phase]] = field(default_factory=list)
    gate: tuple[int, ...] = ()  # events that all others wait for
    _first: int = 0
    _count: int = 0

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
        self._first = self._count
        self.gate = ()

    def add(
        self,
        engine: str,
        seconds: float,
        after: Iterable[int],
        shared: tuple[tuple[str, float], ...] = (),
        latency: float = 0.0,
    ) -> int:
        """The number of a new event."""
        needs = sorted({number - self._first for number in (*after, *self.gate) if number >= self._first})
        self.kernels[-1][-1][-1].append(Event(engine, seconds, tuple(needs), shared, latency))
        self._count += 1
        return self._count - 1


def timed(trace: Trace, units: int, dispatch: float) -> tuple[tuple[float, ...], dict[str, float]]:
    """The seconds of every kernel, and for how long engines were busy, added up over units."""
    busy: dict[str, float] = {}
    for event in (event for kernel in trace.kernels for phase in kernel for task in phase for event in task):
        taken = dict(event.shared)
        taken.setdefault(event.engine, event.seconds)
        for engine, seconds in taken.items():
            busy[engine] = busy.get(engine, 0.0) + seconds
    kernels = tuple(dispatch + sum(_phase(phase, units) for phase in kernel) for kernel in trace.kernels)
    return kernels, dict(sorted(busy.items()))


@dataclass
class _Running:
    """A task on a unit: which of its events may begin, and when."""

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


def _phase(tasks: Phase, units: int) -> float:
    """The seconds until all tasks are over: each is for the unit that is free first."""
    waiting = deque(task for task in tasks if task)
    shared: dict[str, float] = {}
    running: dict[int, _Running] = {}
    free = -1
    heap: list[tuple[float, int, int]] = [(0.0, unit, free) for unit in range(min(units, len(waiting)))]
    end = 0.0
    while heap:
        time, unit, number = heapq.heappop(heap)
        if number == free:
            if not waiting:
                continue
            work = running[unit] = _Running(waiting.popleft(), time)
            begun = work.starts(range(len(work.task)))
        else:
            work = running[unit]
            event = work.task[number]
            over = time + event.seconds
            for engine, seconds in event.shared:
                shared[engine] = max(shared.get(engine, 0.0), time) + seconds
                over = max(over, shared[engine])
            begun = work.finish(number, over)
            end = max(end, work.end)
            if not work.left:
                heapq.heappush(heap, (work.end, unit, free))
        for start, other in begun:
            heapq.heappush(heap, (start, unit, other))
    return end
