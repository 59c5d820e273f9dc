"""A drawing in the language of Graphviz: boxes are clusters, names are quoted text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from blockc.drawing import Box, Edge, Node, boxes, readable_bytes
from blockc.errors import visible

COLOURS = {"program": "#b9bfca", "map": "#7f9cc8", "loop": "#cf8a45"}


def dot(drawings: Sequence[Box], title: str) -> str:
    """One graph with all drawings in it."""
    lines = [
        f"digraph {_quoted(title)} {{",
        '  graph [fontname="monospace", fontsize=12, labeljust=l, nodesep=0.2, ranksep=0.3]',
        '  node [fontname="monospace", fontsize=11, shape=box, height=0.2, margin="0.08,0.04"]',
        '  edge [fontname="monospace", fontsize=10, arrowsize=0.7, color="#5a6273"]',
    ]
    for part, box in enumerate(drawings):
        lines += _box(box, part, "  ")
        every = list(boxes(box))
        pins = {node.number for one in every for node in one.entries if node.kind == "pin"}
        lines += [_edge(edge, part, pins) for one in every for edge in one.edges]
    return "\n".join((*lines, "}")) + "\n"


def _box(box: Box, part: int, indent: str) -> Iterator[str]:
    inner = f"{indent}  "
    yield f'{indent}subgraph "cluster_{part}_{box.number}" {{'
    yield f'{inner}graph [label={_lines(box.title, "l")}, style=rounded, color="{COLOURS[box.kind]}"]'
    yield from (f"{inner}{_node(node, part)}" for node in box.entries)
    for one in box.content:
        if isinstance(one, Box):
            yield from _box(one, part, inner)
        else:
            yield f"{inner}{_node(one, part)}"
    yield from (f"{inner}{_node(node, part)}" for node in box.exits)
    yield f"{indent}}}"


def _node(node: Node, part: int) -> str:
    tip = _quoted(", ".join(node.names))
    if node.kind == "pin":
        return f'"{part}_{node.number}" [shape=point, width=0.08, xlabel="", tooltip={tip}]'
    style = "" if node.kind == "operator" else ', style="rounded,filled", fillcolor="#f2f5fa"'
    if node.heavy:
        style = ', style="rounded,filled", fillcolor="#dfe9fb", color="#2f6fd0"'
    return f'"{part}_{node.number}" [label={_lines(node.text, "n")}{style}, tooltip={tip}]'


def _edge(edge: Edge, part: int, pins: set[int]) -> str:
    """An edge, with an arrow unless it goes on, at a pin."""
    head = "none" if edge.target in pins else "normal"
    ends = f'  "{part}_{edge.source}" -> "{part}_{edge.target}"'
    if not edge.heavy and not edge.moved:
        return f"{ends} [arrowhead={head}, tooltip={_quoted(f'{edge.value}: {edge.type}')}]"
    texts = (edge.type, readable_bytes(edge.moved)) if edge.moved else (edge.type,)
    style = f'arrowhead={head}, penwidth=2.5, color="#2f6fd0"'
    return f"{ends} [{style}, label={_lines(texts, 'n')}, tooltip={_quoted(edge.value)}]"


def _lines(lines: Sequence[str], end: str) -> str:
    """Lines as a label: centred ("n") or from the left ("l")."""
    return '"' + "".join(_escaped(line) + "\\" + end for line in lines) + '"'


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """The text, in which Graphviz would read backslashes, quotes and entities such as &lt; otherwise."""
    return visible(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
