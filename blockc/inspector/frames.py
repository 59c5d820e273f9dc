"""The pictures of a derivation as frames: what is the same in two of them has the same number, and nearly its place.

A frame is a drawing (`drawing.py`) with nests folded (`nests.py`), laid out near to another (`drawing_layout.py`). A
node is the same if what it defines has the same name. A map is the one that it shares most of its operators with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from statistics import median

from blockc.drawing import Box, Edge, Node, boxes, draw_program, nodes
from blockc.drawing_layout import Layout, Point, Rectangle, layout
from blockc.inspector.nests import folded
from blockc.ir.block import Program

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """A node or a box of a frame, with its number, its place and, for a box, the corner of its title."""

    number: int
    part: Node | Box
    place: Rectangle
    title: Point | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """An edge of a frame: from and to which node, by the numbers of the frame, and its way as in a `Route`. `tip`:
    the value is used there, and does not only go on."""

    source: int
    target: int
    edge: Edge
    points: tuple[Point, ...]
    tip: bool

    @property
    def thick(self) -> bool:
        """True if bytes move."""
        return self.edge.heavy or self.edge.moved > 0


@dataclass(frozen=True, slots=True)
class Frame:
    """The picture of one program: boxes from the outermost on, nodes and edges."""

    program: Program
    width: float
    height: float
    boxes: tuple[Placed, ...]
    nodes: tuple[Placed, ...]
    lines: tuple[Line, ...]

    def numbers(self) -> set[int]:
        """The numbers of all boxes and nodes."""
        return {one.number for one in (*self.boxes, *self.nodes)}


@dataclass(frozen=True, slots=True)
class Change:
    """What is different between two frames, by number: what is only in the first, only in the second, and in both but
    with another text or, for a map, with other operators."""

    removed: frozenset[int]
    added: frozenset[int]
    changed: frozenset[int]


@dataclass
class Camera:
    """Makes the frames of one derivation, one after the other."""

    sizes: Mapping[str, int]
    tiles: Mapping[str, int]
    numbers: dict[Key, int] = field(default_factory=dict)
    fresh: Iterator[int] = field(default_factory=lambda: count(1))

    def frame(self, program: Program, before: Frame | None = None) -> Frame:
        """The frame of a program, near to the one before."""
        box = folded(draw_program(program, self.sizes, self.tiles))
        known = self.known(box, before)
        wanted: dict[int, float] = {}
        if before is not None:
            places = {one.number: one.place for one in (*before.boxes, *before.nodes)}
            wanted = {own: _middle(places[number]) for own, number in known.items() if number in places}
        found = layout(box, wanted)
        shift = _shift(found, wanted)
        return self.placed(program, box, found, known, shift)

    def placed(self, program: Program, box: Box, found: Layout, known: Mapping[int, int], shift: float) -> Frame:
        """A drawing with its places, moved to the right."""
        every = list(boxes(box))
        pins = {node.number for one in every for node in nodes(one) if node.kind == "pin"}
        lines = []
        for route in found.routes:
            points = tuple((x + shift, y) for x, y in route.points)
            source, target = known[route.edge.source], known[route.edge.target]
            lines.append(Line(source, target, route.edge, points, route.edge.target not in pins))
        boxed = []
        for one in every:
            x, y = found.titles[one.number]
            boxed.append(
                Placed(known[one.number], one, found.places[one.number].moved(shift, 0.0), (x + shift, y)),
            )
        noded = [
            Placed(known[node.number], node, found.places[node.number].moved(shift, 0.0))
            for one in every
            for node in nodes(one)
        ]
        return Frame(program, found.width + shift, found.height, tuple(boxed), tuple(noded), tuple(lines))

    def known(self, box: Box, before: Frame | None) -> dict[int, int]:
        """The numbers in frames of all nodes and boxes, by their numbers in the drawing."""
        result: dict[int, int] = {}
        taken = self.same_boxes(box, before)
        for one in boxes(box):
            result[one.number] = taken.get(one.number) or next(self.fresh)
            for node in nodes(one):
                place = (result[one.number],) if node.kind == "pin" else ()
                kind = node.kind if node.kind in ("pin", "output") else "value"
                result[node.number] = self.number((kind, *place, node.names[0]))
        return result

    def number(self, key: Key) -> int:
        """The number of what has a key."""
        if key not in self.numbers:
            self.numbers[key] = next(self.fresh)
        return self.numbers[key]

    def same_boxes(self, box: Box, before: Frame | None) -> dict[int, int]:
        """For boxes that are those of the frame before, their numbers there: by the part of operators in common."""
        if before is None:
            return {}
        former = {one.number: one.part for one in before.boxes if isinstance(one.part, Box)}
        old = {number: operators(part) for number, part in former.items()}
        holders: dict[str, list[int]] = {}
        for number, names in old.items():
            for name in names:
                holders.setdefault(name, []).append(number)
        every = list(boxes(box))
        pairs = []
        for at, one in enumerate(every):
            names = operators(one)
            for number in {number for name in names for number in holders.get(name, ())}:
                common = len(names & old[number]) / len(names | old[number])
                pairs.append((-common - 0.1 * (one.title[:1] == former[number].title[:1]), at, number))
        if not former[next(iter(former))].names:  # the program itself
            pairs.append((-9.0, 0, next(iter(former))))
        result: dict[int, int] = {}
        used: set[int] = set()
        for _, at, number in sorted(pairs):
            own = every[at].number
            if own not in result and number not in used and (at == 0) == (former[number].kind == "program"):
                result[own] = number
                used.add(number)
        return result


def operators(box: Box) -> frozenset[str]:
    """The names that operators and results in a box define, at any depth."""
    parts = (node for one in boxes(box) for node in nodes(one) if node.kind in ("operator", "result"))
    return frozenset(node.names[-1] for node in parts)


def change(before: Frame, after: Frame) -> Change:
    """What is different between two frames."""
    old = {one.number: one for one in (*before.boxes, *before.nodes)}
    new = {one.number: one for one in (*after.boxes, *after.nodes)}
    both = _all_operators(before) & _all_operators(after)
    changed = {number for number in old.keys() & new.keys() if _differs(old[number].part, new[number].part, both)}
    added = {number for number in new.keys() - old.keys() if not _is_pin(new[number].part)}
    removed = {number for number in old.keys() - new.keys() if not _is_pin(old[number].part)}
    return Change(frozenset(removed), frozenset(added), frozenset(changed))


def _all_operators(frame: Frame) -> frozenset[str]:
    outermost = frame.boxes[0].part
    assert isinstance(outermost, Box)
    return operators(outermost)


def _differs(old: Node | Box, new: Node | Box, both: frozenset[str]) -> bool:
    """Whether a node has another text, apart from bytes, or a map other operators out of those in both frames."""
    if isinstance(old, Node) and isinstance(new, Node):
        return _words(old) != _words(new)
    if isinstance(old, Box) and isinstance(new, Box):
        return operators(old) & both != operators(new) & both or (old.kind != new.kind)
    return True


def _words(node: Node) -> tuple[str, ...]:
    return node.text[:-1] if node.moved else node.text


def _is_pin(part: Node | Box) -> bool:
    return isinstance(part, Node) and part.kind == "pin"


def _middle(place: Rectangle) -> float:
    return place.x + place.width / 2


def _shift(found: Layout, wanted: Mapping[int, float]) -> float:
    """How far to the right a drawing goes, so that most of it stays where it was."""
    moved = [x - _middle(found.places[number]) for number, x in wanted.items() if number != 0]
    return max(0.0, median(moved)) if moved else 0.0
