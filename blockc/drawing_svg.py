"""A drawing as SVG: text as text, colours for light and dark, no scripts and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape, quoteattr

from blockc.drawing import Box, Edge, Node, boxes, nodes
from blockc.drawing_layout import LINE, PADDING, Layout, Rectangle, Route, layout, text_width
from blockc.errors import visible

LEGEND = (
    "thick, blue: lists in slow memory, with the bytes that move at the sizes above",
    "thin: tiles in local memory; nothing moves",
    "orange: loops that accumulate; dots are values that a body takes whole from outside",
)
STYLE = """
.blockc text { font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1d2330; }
.blockc .paper { fill: #ffffff; }
.blockc .box { fill: #2f6fd0; fill-opacity: 0.05; stroke: #7f9cc8; stroke-width: 1.2; }
.blockc .loop { fill: #fdf1e3; fill-opacity: 1; stroke: #cf8a45; }
.blockc .program { fill: none; stroke: #b9bfca; }
.blockc .title { font-weight: bold; }
.blockc .node { fill: #ffffff; stroke: #8d95a3; stroke-width: 1; }
.blockc .heavy { fill: #dfe9fb; stroke: #2f6fd0; }
.blockc .name, .blockc .note { fill: #5a6273; }
.blockc .bytes { fill: #1a4fa3; font-weight: bold; }
.blockc .edge { fill: none; stroke: #5a6273; stroke-width: 1.2; }
.blockc .thick { stroke: #2f6fd0; stroke-width: 3.2; }
.blockc .tip { fill: #5a6273; }
.blockc .thicktip { fill: #2f6fd0; }
.blockc .pin { fill: #5a6273; }
.blockc .heavypin { fill: #2f6fd0; }
@media (prefers-color-scheme: dark) {
.blockc text { fill: #e4e8f0; }
.blockc .paper { fill: #14171d; }
.blockc .box { fill: #6ea0f0; fill-opacity: 0.07; stroke: #55719f; }
.blockc .loop { fill: #2a2118; fill-opacity: 1; stroke: #a8743f; }
.blockc .program { fill: none; stroke: #4a515e; }
.blockc .node { fill: #1f242d; stroke: #6b7382; }
.blockc .heavy { fill: #1c3157; stroke: #6ea0f0; }
.blockc .name, .blockc .note { fill: #a4adbd; }
.blockc .bytes { fill: #9cc1ff; }
.blockc .edge { stroke: #a4adbd; }
.blockc .thick { stroke: #6ea0f0; }
.blockc .tip, .blockc .pin { fill: #a4adbd; }
.blockc .thicktip, .blockc .heavypin { fill: #6ea0f0; }
}
"""


def svg(drawings: Sequence[Box], title: str) -> str:
    """One picture of drawings, below one another."""
    layouts = [layout(box) for box in drawings]
    width = max(text_width(LEGEND), *(placed.width for placed in layouts)) + 2 * PADDING
    height = sum(placed.height + PADDING for placed in layouts) + LINE * len(LEGEND) + 2 * PADDING
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="blockc" role="img" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}">',
        f"<title>{_text(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{width:.0f}" height="{height:.0f}"/>',
    ]
    y = PADDING
    for box, placed in zip(drawings, layouts, strict=True):
        lines += [f'<g transform="translate({PADDING:.0f} {y:.1f})">', *_drawing(box, placed), "</g>"]
        y += placed.height + PADDING
    for number, line in enumerate(LEGEND, 1):
        lines.append(f'<text class="note" x="{PADDING:.0f}" y="{y + LINE * number:.1f}">{_text(line)}</text>')
    return "\n".join((*lines, "</svg>")) + "\n"


def _drawing(box: Box, placed: Layout) -> Iterator[str]:
    """Boxes at the back, edges on them, nodes on top."""
    every = list(boxes(box))
    for one in every:
        yield from _box(one, placed)
    heavy = [route for route in placed.routes if _thick(route.edge)]
    light = [route for route in placed.routes if not _thick(route.edge)]
    pins = {node.number for one in every for node in nodes(one) if node.kind == "pin"}
    for route in (*light, *heavy):
        yield _edge(route, pins)
    for one in every:
        for node in nodes(one):
            yield from _node(node, placed.places[node.number])


def _box(box: Box, placed: Layout) -> Iterator[str]:
    place, (x, y) = placed.places[box.number], placed.titles[box.number]
    kind = {"program": "box program", "loop": "box loop", "map": "box"}[box.kind]
    yield f'<rect class="{kind}"{_rectangle(place)} rx="6"{_source(box.line)}/>'
    for number, line in enumerate(box.title):
        style = "title" if number == 0 else "note"
        yield f'<text class="{style}" x="{x:.1f}" y="{y + 12 + LINE * number:.1f}">{_text(line)}</text>'


def _node(node: Node, place: Rectangle) -> Iterator[str]:
    name = quoteattr(visible(", ".join(node.names)))
    yield f"<g data-name={name}{_source(node.line)}>"
    tip = f"{', '.join(node.names)}: {node.moved:,} bytes" if node.moved else ", ".join(node.names)
    yield f"<title>{_text(tip)}</title>"
    if node.kind == "pin":
        style = "heavypin" if node.heavy else "pin"
        x, y = place.x + place.width / 2, place.y + place.height / 2
        yield f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{place.width / 2:.1f}"/></g>'
        return
    radius = 3 if node.kind == "operator" else 11
    yield f'<rect class="node{" heavy" if node.heavy else ""}"{_rectangle(place)} rx="{radius}"/>'
    for number, line in enumerate(node.text):
        last = number == len(node.text) - 1
        style = ' class="bytes"' if last and node.moved else ' class="name"' if number >= node.head else ""
        y = place.y + 16 + LINE * number
        yield f'<text{style} x="{place.x + place.width / 2:.1f}" y="{y:.1f}" text-anchor="middle">{_text(line)}</text>'
    yield "</g>"


def _edge(route: Route, pins: set[int]) -> str:
    """The line of an edge, with a tip unless it goes on, at a pin."""
    (x, y), *rest = route.points
    path = [f"M{x:.1f} {y:.1f}"]
    for number, (to_x, to_y) in enumerate(rest):
        if number % 2 == 0:  # through a layer
            path.append(f"V{to_y:.1f}")
        elif abs(to_x - x) < 0.5:
            path.append(f"L{to_x:.1f} {to_y:.1f}")
        else:
            middle = (y + to_y) / 2
            path.append(f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}")
        x, y = to_x, to_y
    thick = _thick(route.edge)
    half, long = (5.0, 9.0) if thick else (3.5, 7.0)
    tip = f"M{x:.1f} {y:.1f}L{x - half:.1f} {y - long:.1f}H{x + half:.1f}Z"
    moved = f", {route.edge.moved:,} bytes" if route.edge.moved else ""
    text = _text(f"{route.edge.value}: {route.edge.type}{moved}")
    line = f'<path class="edge{" thick" if thick else ""}" d="{"".join(path)}"/>'
    arrow = f'<path class="{"thicktip" if thick else "tip"}" d="{tip}"/>' if route.edge.target not in pins else ""
    return f"<g><title>{text}</title>{line}{arrow}</g>"


def _thick(edge: Edge) -> bool:
    return edge.heavy or edge.moved > 0


def _rectangle(place: Rectangle) -> str:
    return f' x="{place.x:.1f}" y="{place.y:.1f}" width="{place.width:.1f}" height="{place.height:.1f}"'


def _source(line: int | None) -> str:
    return "" if line is None else f' data-line="{line}"'


def _text(text: str) -> str:
    return escape(visible(text))
