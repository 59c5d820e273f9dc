"""The derivation of a part for a report: the stops of the slider, their pictures, and what changes between them.

Pictures are made from the last one backwards: that one is laid out freely, and every other one near to the one behind
it. What several have in common is stored once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockc.drawing import Box, Node, boxes, draw_program, nodes
from blockc.drawing_layout import Point
from blockc.errors import visible
from blockc.formatting import readable
from blockc.inspector.explanation import PartExplanation
from blockc.inspector.frames import Camera, Change, Frame, Line, Placed, change
from blockc.inspector.report_rules import PLAN
from blockc.ir.block import Program, kernels
from blockc.ir.text import format_program
from blockc.passes.cost import cost

MOST_DRAWN, LEAST_DRAWN = 12_000, 1_000  # nodes in all pictures of a part: some stops may have no picture
CONTEXT = 2  # lines around those that change


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop of the slider: a program, the number of the stop that it comes from (-1: none), and what was done."""

    program: Program
    before: int
    snapshot: int
    rule: str
    paper: str = "-"
    at: tuple[str, ...] = ()
    line: int | None = None
    deltas: tuple[int, int, int] = (0, 0, 0)


def stops(explained: PartExplanation) -> list[Stop]:
    """The unfused program, every step, and the program that is executed."""
    plan = explained.found
    derivation = plan.chosen.derivation
    found = [Stop(derivation.unfused, -1, 0, "")]
    places = {id(derivation.unfused): 0}
    for step, priced in zip(derivation.steps, explained.steps, strict=True):
        old, new = priced.before.cost, priced.after.cost
        deltas = (new.traffic_bytes - old.traffic_bytes, new.flops - old.flops, new.local_bytes - old.local_bytes)
        before = places.get(id(step.before), len(found) - 1)
        line = step.span.line if step.span is not None else None
        found.append(Stop(step.after, before, step.snapshot, step.rule, step.paper, step.at, line, deltas))
        places[id(step.after)] = len(found) - 1
    chosen = derivation.snapshots[plan.chosen.choice.snapshot]
    before = places.get(id(chosen), len(found) - 1)
    old, new = (cost(one, plan.sizes, plan.plan.tiles) for one in (found[before].program, plan.plan.program))
    figures = ((one.traffic_bytes, one.flops, one.local_bytes) for one in (old, new))
    first, second = figures
    changes = (second[0] - first[0], second[1] - first[1], second[2] - first[2])
    found.append(Stop(plan.plan.program, before, plan.chosen.choice.snapshot, PLAN, deltas=changes))
    return found


def steps_json(explained: PartExplanation, share: float) -> dict[str, Any]:
    """The derivation of a part. `share`: of the pictures that a report may have."""
    most = max(LEAST_DRAWN, round(MOST_DRAWN * share))
    return drawn(stops(explained), explained.found.sizes, explained.found.plan.tiles, most)


def drawn(
    every: Sequence[Stop], sizes: Mapping[str, int], tiles: Mapping[str, int], most: int = MOST_DRAWN
) -> dict[str, Any]:
    """Stops with their pictures, of about `most` nodes, and texts."""
    gallery = _Gallery(sizes, tiles, most)
    gallery.draw(every)
    texts = _Texts()
    lines = [_lines(stop.program) for stop in every]
    moved = {0: cost(every[0].program, sizes, tiles).traffic_bytes}
    entries = []
    counts: dict[int, int] = {}
    for number, stop in enumerate(every):
        counts[stop.snapshot] = counts.get(stop.snapshot, 0) + (1 if stop.rule and stop.rule != PLAN else 0)
        moved[number] = moved[max(stop.before, 0)] + stop.deltas[0]
        entries.append(
            {
                "label": _label(stop, counts[stop.snapshot]),
                "snapshot": stop.snapshot,
                "rule": stop.rule,
                "paper": stop.paper,
                "at": visible(" ".join(stop.at)),
                "line": stop.line,
                "deltas": [readable(stop.deltas[0], "B"), readable(stop.deltas[1]), readable(stop.deltas[2], "B")],
                "quiet": not any(stop.deltas),
                "bytes": moved[number],
                "moved": readable(moved[number], "B").lstrip("+"),
                "kernels": len(kernels(stop.program)),
                "before": stop.before,
                "frame": gallery.at.get(number),
                **gallery.changes_json(number, stop.before),
                "text": texts.difference(lines[stop.before], lines[number]) if stop.before >= 0 else [],
            }
        )
    boxes_of = gallery.kernels(len(every) - 1)
    return {"stops": entries, "lines": texts.lines, "kernels": boxes_of, **gallery.as_json()}


def _label(stop: Stop, number: int) -> str:
    if not stop.rule:
        return "start"
    return "plan" if stop.rule == PLAN else f"{stop.snapshot}.{number}"


def _lines(program: Program) -> list[str]:
    return [visible(line) for line in format_program(program).splitlines()]


@dataclass
class _Texts:
    """Lines of programs, each once."""

    lines: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, line: str) -> int:
        """The number of a line."""
        if line not in self.numbers:
            self.numbers[line] = len(self.lines)
            self.lines.append(line)
        return self.numbers[line]

    def difference(self, old: Sequence[str], new: Sequence[str]) -> list[list[Any]]:
        """What changes, with some lines around it: a sign and the number of a line; ["@"] where lines are left out.
        Depth alone is no change."""
        first = [line.strip() for line in old]
        second = [line.strip() for line in new]
        start = 0
        while start < min(len(first), len(second)) and first[start] == second[start]:
            start += 1
        end = 0
        while end < min(len(first), len(second)) - start and first[-1 - end] == second[-1 - end]:
            end += 1
        low = max(0, start - CONTEXT - 1)
        spare = max(0, end - CONTEXT - 1)
        matcher = difflib.SequenceMatcher(
            None, first[low : len(first) - spare], second[low : len(second) - spare], autojunk=False
        )
        result: list[list[Any]] = []
        for group in matcher.get_grouped_opcodes(CONTEXT):
            if result:
                result.append(["@"])
            for tag, i1, i2, j1, j2 in group:
                if tag == "equal":
                    result += [[" ", self.number(line)] for line in new[low + j1 : low + j2]]
                else:
                    result += [["-", self.number(line)] for line in old[low + i1 : low + i2]]
                    result += [["+", self.number(line)] for line in new[low + j1 : low + j2]]
        return result


@dataclass
class _Gallery:
    """The pictures of a derivation."""

    sizes: Mapping[str, int]
    tiles: Mapping[str, int]
    most: int
    at: dict[int, int] = field(default_factory=dict)  # the number of the picture of a stop
    frames: dict[int, Frame] = field(default_factory=dict)
    pools: dict[str, dict[tuple[Any, ...], int]] = field(
        default_factory=lambda: {"looks": {}, "places": {}, "titles": {}, "ways": {}}
    )

    def draw(self, every: Sequence[Stop]) -> None:
        """Draw the stops, or, if there is too much to draw, some of them."""
        camera = Camera(self.sizes, self.tiles)
        first = draw_program(every[0].program, self.sizes, self.tiles)
        affordable = max(3, self.most // max(1, sum(len(list(nodes(box))) for box in boxes(first))))
        after: Frame | None = None
        for number in reversed(chosen_stops(every, affordable)):
            after = self.frames[number] = camera.frame(every[number].program, after)
        self.at = {number: at for at, number in enumerate(sorted(self.frames))}

    def changes_json(self, number: int, before: int) -> dict[str, Any]:
        """What is added, removed and changed between two stops, if both have pictures."""
        if number not in self.frames or before not in self.frames:
            return {"added": [], "removed": [], "changed": []}
        found: Change = change(self.frames[before], self.frames[number])
        return {"added": sorted(found.added), "removed": sorted(found.removed), "changed": sorted(found.changed)}

    def kernels(self, number: int) -> list[list[int]]:
        """The boxes of the kernels at a stop."""
        frame = self.frames[number]
        outer = [(one.number, set(one.part.names)) for one in frame.boxes[1:]]
        launched = [{name for node in group for name in node.defines} for group in kernels(frame.program)]
        return [[box for box, names in outer if names & launch] for launch in launched]

    def as_json(self) -> dict[str, Any]:
        """All pictures."""
        frames = [self.frame(self.frames[number]) for number in sorted(self.frames)]
        return {"frames": frames, **{name: [list(entry) for entry in pool] for name, pool in self.pools.items()}}

    def frame(self, frame: Frame) -> dict[str, Any]:
        """A picture: numbers of places and ways."""
        left = min(one.place.x for one in frame.boxes)
        return {
            "size": [round(left), 0, round(frame.width - left), round(frame.height)],
            "places": [self.place(one) for one in (*frame.boxes, *frame.nodes)],
            "ways": [self.way(line) for line in sorted(frame.lines, key=lambda line: line.thick)],
        }

    def place(self, one: Placed) -> int:
        place = one.place
        corner = (round(one.title[0] - place.x), round(one.title[1] - place.y)) if one.title is not None else ()
        sides = (round(place.x), round(place.y), round(place.width), round(place.height))
        return self.pooled("places", (one.number, self.look(one.part), *sides, *corner))

    def look(self, part: Node | Box) -> int:
        text, names = (
            tuple(map(visible, some)) for some in (part.text if isinstance(part, Node) else part.title, part.names)
        )
        if isinstance(part, Node):
            return self.pooled("looks", (part.kind, text, names, part.line, part.head, part.heavy, part.moved))
        return self.pooled("looks", (part.kind, text, names, part.line))

    def way(self, line: Line) -> int:
        edge = line.edge
        moved = f", {edge.moved:,} bytes" if edge.moved else ""
        title = visible(f"{edge.value}: {edge.type}{moved}")
        ends = (line.source, line.target, self.pooled("titles", (title,)), int(line.thick) + 2 * int(line.tip))
        return self.pooled("ways", (*ends, *bends(line.points)))

    def pooled(self, name: str, entry: tuple[Any, ...]) -> int:
        return self.pools[name].setdefault(entry, len(self.pools[name]))


def bends(points: Sequence[Point]) -> list[int]:
    """The way of an edge in few numbers: it goes straight down at first and then at every other point."""
    found = [round(points[0][0])]
    for number, (x, y) in enumerate(points):
        found += [round(x), round(y)] if number and number % 2 == 0 else [round(y)]
    return found


def chosen_stops(every: Sequence[Stop], affordable: int) -> list[int]:
    """The stops that get a picture: all, or the first, the last ones of snapshots, and others at equal distances."""
    if len(every) <= affordable:
        return list(range(len(every)))
    ends = {stop.snapshot: number for number, stop in enumerate(every)}
    spread = {round(at * (len(every) - 1) / (affordable - 1)) for at in range(affordable)}
    return sorted({0, len(every) - 1, *ends.values(), *spread})
