"""A frame as SVG, for documents and notebooks: what a step adds is green, what it changes is amber."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from xml.sax.saxutils import escape, quoteattr

from blockc.drawing import Box, Node
from blockc.drawing_layout import LINE, Point, Rectangle
from blockc.drawing_svg import STYLE
from blockc.errors import visible
from blockc.inspector.frames import Camera, Frame, Line, Placed, change
from blockc.ir.decisions import Step

MARKS = """
.blockc .added { stroke: #0b8457; stroke-width: 2.4; }
.blockc .changed { stroke: #b26a00; stroke-width: 2.4; }
@media (prefers-color-scheme: dark) {
.blockc .added { stroke: #3ecf96; }
.blockc .changed { stroke: #f0b252; }
}
"""
MARGIN = 8.0


def step_picture(step: Step, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> str:
    """The program behind a step as SVG, with what the step has added or changed marked. `tiles` are in elements."""
    camera = Camera(sizes, tiles)
    after = camera.frame(step.after)
    found = change(camera.frame(step.before, after), after)
    return frame_svg(after, f"{step.rule} at {' '.join(step.at)}", found.added, found.changed)


def frame_svg(frame: Frame, title: str, added: Collection[int] = (), changed: Collection[int] = ()) -> str:
    """A frame as a picture of its own."""
    width, height = frame.width + 2 * MARGIN, frame.height + 2 * MARGIN
    left = min(one.place.x for one in frame.boxes)
    marks = {**dict.fromkeys(changed, " changed"), **dict.fromkeys(added, " added")}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="blockc" role="img" width="{width - left:.0f}"'
        f' height="{height:.0f}" viewBox="{left - MARGIN:.0f} {-MARGIN:.0f} {width - left:.0f} {height:.0f}">',
        f"<title>{_text(title)}</title>",
        f"<style>{STYLE}{MARKS}</style>",
        f'<rect class="paper" x="{left - MARGIN:.0f}" y="{-MARGIN:.0f}" width="100%" height="100%"/>',
    ]
    for one in frame.boxes:
        lines += _box(one, marks.get(one.number, ""))
    lines += [_line(line) for line in sorted(frame.lines, key=lambda line: line.thick)]
    for one in frame.nodes:
        lines += _node(one, marks.get(one.number, ""))
    return "\n".join((*lines, "</svg>")) + "\n"


def path(points: Iterable[Point]) -> str:
    """The way of an edge: straight down, then curved and straight in turn."""
    (x, y), *rest = points
    found = [f"M{x:.0f} {y:.0f}"]
    for number, (to_x, to_y) in enumerate(rest):
        if number % 2 == 0:
            found.append(f"V{to_y:.0f}")
        else:
            middle = (y + to_y) / 2
            found.append(f"C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} {to_x:.0f} {to_y:.0f}")
        x, y = to_x, to_y
    return "".join(found)


def _arrow(line: Line) -> str:
    """The tip of an edge."""
    x, y = line.points[-1]
    half, long = (5.0, 9.0) if line.thick else (3.5, 7.0)
    return f"M{x:.0f} {y:.0f}l{-half:g} {-long:g}h{2 * half:g}Z"


def _box(one: Placed, mark: str) -> Iterator[str]:
    assert isinstance(one.part, Box) and one.title is not None
    kind = {"program": "box program", "loop": "box loop", "map": "box"}[one.part.kind]
    yield f'<rect class="{kind}{mark}"{_rectangle(one.place)} rx="6"/>'
    x, y = one.title
    for number, line in enumerate(one.part.title):
        style = "title" if number == 0 else "note"
        yield f'<text class="{style}" x="{x:.0f}" y="{y + 12 + LINE * number:.0f}">{_text(line)}</text>'


def _node(one: Placed, mark: str) -> Iterator[str]:
    node, place = one.part, one.place
    assert isinstance(node, Node)
    if node.kind == "pin":
        style = "heavypin" if node.heavy else "pin"
        x, y = place.x + place.width / 2, place.y + place.height / 2
        yield f'<circle class="{style}" cx="{x:.0f}" cy="{y:.0f}" r="{place.width / 2:.0f}"/>'
        return
    yield f"<g data-name={quoteattr(visible(', '.join(node.names)))}>"
    radius = 3 if node.kind == "operator" else 11
    yield f'<rect class="node{" heavy" if node.heavy else ""}{mark}"{_rectangle(place)} rx="{radius}"/>'
    for number, line in enumerate(node.text):
        last = number == len(node.text) - 1
        style = ' class="bytes"' if last and node.moved else ' class="name"' if number >= node.head else ""
        x, y = place.x + place.width / 2, place.y + 16 + LINE * number
        yield f'<text{style} x="{x:.0f}" y="{y:.0f}" text-anchor="middle">{_text(line)}</text>'
    yield "</g>"


def _line(line: Line) -> str:
    tip = f'<path class="{"thicktip" if line.thick else "tip"}" d="{_arrow(line)}"/>'
    moved = f", {line.edge.moved:,} bytes" if line.edge.moved else ""
    title = f"<title>{_text(f'{line.edge.value}: {line.edge.type}{moved}')}</title>"
    way = f'<path class="edge{" thick" if line.thick else ""}" d="{path(line.points)}"/>'
    return f"<g>{title}{way}{tip if line.tip else ''}</g>"


def _rectangle(place: Rectangle) -> str:
    return f' x="{place.x:.0f}" y="{place.y:.0f}" width="{place.width:.0f}" height="{place.height:.0f}"'


def _text(text: str) -> str:
    return escape(visible(text))
