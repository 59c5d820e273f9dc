"""Where the nodes and boxes of a drawing lie: layers from top to bottom, inside of each box.

A node lies one layer below the lowest of those that it takes something from (longest path; what takes nothing lies
right above its first reader). An edge over several layers has a place of its own in each of them, so that nothing lies
on it; edges from one source share these. Within a layer the order is that of the mean position of the neighbours,
above and below in turn (Sugiyama, Tagawa and Toda 1981), and the positions are the least squares from those of the
neighbours that keep the order (by pooling adjacent violators). Boxes are laid out before what they are in. Lengths are
in pixels.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from blockc.drawing import Box, Edge, Node
from blockc.errors import columns

CHARACTER, LINE = 7.25, 16.0  # of a monospaced font of 12 pixels
PADDING, GAP, RISE, LANE = 12.0, 18.0, 26.0, 10.0  # in boxes, between neighbours and layers; width of an edge
PIN = 8.0
STAY = 1  # how much the place in another drawing counts, in edges
SWEEPS, MOST_MOVED = 12, 60_000  # at most so often, and less where there is much to order


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A place: left, top, width and height."""

    x: float
    y: float
    width: float
    height: float

    def moved(self, x: float, y: float) -> Rectangle:
        """The same, further right and down."""
        return Rectangle(self.x + x, self.y + y, self.width, self.height)


Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Route:
    """The way of an edge: from point to point, straight down from the first to the second, then curved and straight in
    turn."""

    edge: Edge
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """A drawing with places: rectangles by the numbers of nodes and boxes, titles of boxes by their corners."""

    width: float
    height: float
    places: Mapping[int, Rectangle]
    titles: Mapping[int, Point]
    routes: tuple[Route, ...]


@dataclass(slots=True)
class _Item:
    """What takes up room in a layer: a node, a box, the place of an edge, or the title of the box around. `above` and
    `below` are links to items of neighbouring layers: which, where it begins there, and where here, from the left;
    `chain` are the places of the same edge in all layers."""

    width: float
    height: float
    x: float = 0.0
    weight: float = 1.0
    above: list[tuple[_Item, float, float]] = field(default_factory=list)
    below: list[tuple[_Item, float, float]] = field(default_factory=list)
    position: float = 0.0
    chain: list[_Item] = field(default_factory=list)


def size_of(node: Node) -> tuple[float, float]:
    """The width and height of a node."""
    if node.kind == "pin":
        return PIN, PIN
    return text_width(node.text) + 16, LINE * len(node.text) + 8


def text_width(lines: Iterable[str]) -> float:
    """The width of the longest line."""
    return CHARACTER * max((columns(line) for line in lines), default=0)


def layout(box: Box, near: Mapping[int, float] | None = None) -> Layout:
    """The places of everything in a box, whose own top left corner is at 0, 0. `near` are positions from the left, by
    the numbers of nodes and boxes, of another drawing whose order is kept where that makes no more edges cross."""
    return _Layers(box, near or {}).result()


class _Layers:
    """One box on its way to a layout: what is inside of it has one already."""

    def __init__(self, box: Box, near: Mapping[int, float]) -> None:
        self.box, self.near = box, near
        self.inner = {part.number: layout(part, near) for part in box.content if isinstance(part, Box)}
        self.home: dict[int, int] = {}  # of every node that an edge may end at, the node or box that has a layer
        for part in (*box.entries, *box.content, *box.exits):
            self.home[part.number] = part.number
            if isinstance(part, Box):
                self.home.update({node.number: part.number for node in (*part.entries, *part.exits)})
        self.layer = self.layers()
        self.items = {number: _Item(*self.size(part)) for number, part in self.parts().items()}
        self.lanes: dict[int, list[_Item]] = {}  # of every source, its places in the layers below it
        self.title = _Item(text_width(box.title), LINE * len(box.title), weight=0.01)
        self.order = self.ordered()
        self.place()

    def parts(self) -> dict[int, Node | Box]:
        """What has a layer of its own, by number."""
        return {part.number: part for part in (*self.box.entries, *self.box.content, *self.box.exits)}

    def size(self, part: Node | Box) -> tuple[float, float]:
        if isinstance(part, Node):
            return size_of(part)
        inner = self.inner[part.number]
        return inner.width, inner.height

    def layers(self) -> dict[int, int]:
        """The layer of every node and box: entries are in the first, exits in the last one."""
        links = [(self.home[edge.source], self.home[edge.target]) for edge in self.box.edges]
        result = {part.number: 0 for part in self.box.entries}
        above: dict[int, list[int]] = {}
        below: dict[int, list[int]] = {}
        for source, target in links:
            above.setdefault(target, []).append(source)
            below.setdefault(source, []).append(target)
        for part in self.box.content:  # in dependency order
            result[part.number] = 1 + max((result[source] for source in above.get(part.number, ())), default=0)
        last = 1 + max(result.values(), default=0)
        result.update({part.number: last for part in self.box.exits})
        for part in reversed(self.box.content):
            readers = below.get(part.number)
            if part.number not in above and readers:
                result[part.number] = min(result[reader] for reader in readers) - 1
        return result

    def anchor(self, number: int) -> float:
        """Where edges to or from a node are, from the left of what has a layer."""
        home = self.home[number]
        if home == number:
            return self.items[home].width / 2
        place = self.inner[home].places[number]
        return place.x + place.width / 2

    def ordered(self) -> list[list[_Item]]:
        """The items of every layer in their order, linked with their neighbours."""
        last = max(self.layer.values(), default=0)
        order: list[list[_Item]] = [[] for _ in range(last + 1)]
        order[0].append(self.title)
        for number, item in self.items.items():
            order[self.layer[number]].append(item)
        for edge in self.box.edges:
            source, target = self.home[edge.source], self.home[edge.target]
            before, offset = self.items[source], self.anchor(edge.source)
            lanes = self.lanes.setdefault(edge.source, [])
            for number in range(self.layer[source] + 1, self.layer[target]):
                if len(lanes) < number - self.layer[source]:
                    lane = _Item(LANE, 0.0, weight=4.0, chain=lanes)
                    lanes.append(lane)
                    order[number].append(lane)
                    _link(before, offset, lane, LANE / 2)
                before, offset = lanes[number - self.layer[source] - 1], LANE / 2
            _link(before, offset, self.items[target], self.anchor(edge.target))
        if self.near:
            self.start_near(order)
        _number(order)
        best, fewest = [list(items) for items in order], _crossings(order)
        for sweep in range(self.sweeps(order)):
            if not fewest:
                break
            for items in order[1:] if sweep % 2 == 0 else reversed(order[:-1]):
                self.sort(items, sweep)
                _number([items])
            if (found := _crossings(order)) < fewest:
                best, fewest = [list(items) for items in order], found
        _number(best)
        return best

    def start_near(self, order: list[list[_Item]]) -> None:
        """Order the layers as in the other drawing; what is new there is where its neighbours above are."""
        known = {id(self.items[number]): x for number, x in self.near.items() if number in self.items}
        known[id(self.title)] = -1.0
        for items in order:
            for item in items:
                if id(item) not in known:
                    above = [known[id(other)] for other, _, _ in item.above]
                    known[id(item)] = sum(above) / len(above) if above else 0.0
            items.sort(key=lambda item: known[id(item)])

    @staticmethod
    def sweeps(order: list[list[_Item]]) -> int:
        """How often to go over all layers."""
        return max(2, min(SWEEPS, MOST_MOVED // sum(map(len, order))))

    def sort(self, items: list[_Item], sweep: int) -> None:
        """Order a layer by the mean positions of the neighbours above, or below; the title stays first."""

        def middle(item: _Item) -> float:
            links = item.above if sweep % 2 == 0 else item.below
            if item is self.title:
                return -1.0
            return sum(_at(other, there) for other, there, _ in links) / len(links) if links else item.position

        items.sort(key=middle)

    def place(self) -> None:
        """Give every item its position from the left."""
        for items in self.order:
            _spread(items, [0.0] * len(items), [1.0] * len(items))
        for sweep in range(self.sweeps(self.order)):
            before = self.positions()
            for items in self.order if sweep % 2 == 0 else reversed(self.order):
                links = [tuple(item.above if sweep % 2 == 0 else item.below) for item in items]
                _pull(items, [_wishes(some) for some in links])
            if sweep % 2 and self.positions() == before:
                break
        for sweep in range(self.sweeps(self.order)):
            former, before = self.former(), self.positions()
            for items in self.order if sweep % 2 == 0 else reversed(self.order):
                _pull(items, [_straight(item) + former.get(id(item), []) for item in items])
            if sweep % 2 and self.positions() == before:
                break

    def positions(self) -> list[int]:
        """Where items are, in tenths of a pixel."""
        return [round(item.x * 10) for items in self.order for item in items]

    def former(self) -> dict[int, list[float]]:
        """Where items would be if they were as far from one another as in the other drawing."""
        known = [
            (item, self.near[number] - item.width / 2) for number, item in self.items.items() if number in self.near
        ]
        if not known:
            return {}
        shift = median(x - item.x for item, x in known)
        return {id(item): [x - shift] * STAY for item, x in known}

    def result(self) -> Layout:
        """The places, from the top left corner of the box on."""
        everything = [item for items in self.order for item in items if item is not self.title]
        right = max((item.x + item.width for item in everything), default=0.0)
        left = min((item.x for item in everything), default=0.0)  # the title is beside the first entry
        left = min(left, *(item.x - GAP - self.title.width for item in self.order[0][1:2]), right - self.title.width)
        width = right - left + 2 * PADDING
        tops, y = [], PADDING
        heights = [max((item.height for item in items), default=0.0) for items in self.order]
        for items, height in zip(self.order, heights, strict=True):
            tops.append(y)
            y += height + (RISE if len(items) > 1 or items[0] is not self.title else 6.0)
        height = y - RISE + PADDING
        places, titles = {self.box.number: Rectangle(0.0, 0.0, width, height)}, {self.box.number: (PADDING, PADDING)}
        routes: list[Route] = []
        for number, item in self.items.items():
            layer = self.layer[number]
            last = layer == len(tops) - 1 and layer > 0
            down = heights[layer] - item.height if last else 0.0
            x, y = item.x - left + PADDING, tops[layer] + down
            if number in self.inner:
                inner = self.inner[number]
                places.update({key: place.moved(x, y) for key, place in inner.places.items()})
                titles.update({key: (point[0] + x, point[1] + y) for key, point in inner.titles.items()})
                routes += [Route(one.edge, tuple((a + x, b + y) for a, b in one.points)) for one in inner.routes]
            else:
                places[number] = Rectangle(x, y, item.width, item.height)
        routes += [self.route(edge, places, tops, heights, left) for edge in self.box.edges]
        return Layout(width, height, places, titles, tuple(routes))

    def route(
        self,
        edge: Edge,
        places: Mapping[int, Rectangle],
        tops: Sequence[float],
        heights: Sequence[float],
        left: float,
    ) -> Route:
        """The way of an edge: straight through layers, curved between them."""
        source, target = places[edge.source], places[edge.target]
        first, last = self.layer[self.home[edge.source]], self.layer[self.home[edge.target]]
        x = source.x + source.width / 2
        points = [(x, source.y + source.height), (x, tops[first] + heights[first])]
        for layer in range(first + 1, last):
            x = self.lanes[edge.source][layer - first - 1].x + LANE / 2 - left + PADDING
            points += [(x, tops[layer]), (x, tops[layer] + heights[layer])]
        x = target.x + target.width / 2
        return Route(edge, (*points, (x, tops[last]), (x, target.y)))


def _link(upper: _Item, there: float, lower: _Item, here: float) -> None:
    upper.below.append((lower, here, there))
    lower.above.append((upper, there, here))


def _number(order: list[list[_Item]]) -> None:
    for items in order:
        for position, item in enumerate(items):
            item.position = float(position)


def _at(item: _Item, offset: float) -> float:
    """The position of a link in its layer."""
    return item.position + offset / (item.width + 1.0)


def _crossings(order: list[list[_Item]]) -> int:
    """How many edges cross between neighbouring layers."""
    total = 0
    for items in order[:-1]:
        ends = sorted((_at(item, here), _at(other, there)) for item in items for other, there, here in item.below)
        seen: list[float] = []
        for _, end in ends:
            total += len(seen) - bisect_right(seen, end)
            insort(seen, end)
    return total


def _wishes(links: Iterable[tuple[_Item, float, float]]) -> list[float]:
    """Where an item would be right below or above others."""
    return [other.x + there - here for other, there, here in links]


def _straight(item: _Item) -> list[float]:
    """Where an item would be in line with its neighbours; the places of an edge, with one another."""
    if item.chain:
        return [sum(lane.x for lane in item.chain) / len(item.chain)]
    return _wishes((*item.above, *item.below))


def _pull(items: list[_Item], wishes: Sequence[list[float]]) -> None:
    """Move items to the means of their wishes, as far as others leave room."""
    wanted = [sum(some) / len(some) if some else item.x for item, some in zip(items, wishes, strict=True)]
    weights = [item.weight * len(some) or 0.01 for item, some in zip(items, wishes, strict=True)]
    _spread(items, wanted, weights)


def _spread(items: list[_Item], wanted: Sequence[float], weights: Sequence[float]) -> None:
    """Move the items of a layer as near as possible to where they are wanted, by weighted squares, so that they keep
    their order and a distance."""
    starts, room = [], 0.0
    for item in items:
        starts.append(room)
        room += item.width + GAP
    blocks: list[list[float]] = []  # mean, weight and number of items that touch one another
    for start, wish, weight in zip(starts, wanted, weights, strict=True):
        blocks.append([wish - start, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, more, number = blocks.pop()
            other = blocks[-1]
            other[0] = (other[0] * other[1] + mean * more) / (other[1] + more)
            other[1], other[2] = other[1] + more, other[2] + number
    means = [mean for mean, _, number in blocks for _ in range(int(number))]
    for item, start, mean in zip(items, starts, means, strict=True):
        item.x = start + mean
