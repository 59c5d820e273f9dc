"""Drawings with one box for maps that are nested without anything between them: "map b, h, m"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from blockc.drawing import Box, Node

TIMES = " \u00d7 "
Numbers = Mapping[int, tuple[int, ...]]  # what takes the place of nodes of a box that is no more


@dataclass(frozen=True, slots=True)
class _Folded:
    """A box, and the nodes of it that edges from and to outside end at now."""

    box: Box
    instead: Numbers


def folded(box: Box) -> Box:
    """The same drawing with nests of maps as one box each. A port of it is that of the innermost map, an output shows
    the list that all of them make. What stacks says only that list."""
    return _folded(box).box


def _folded(box: Box) -> _Folded:
    inside = {part.number: _folded(part) for part in box.content if isinstance(part, Box)}
    instead = {old: new for one in inside.values() for old, new in one.instead.items()}
    content = tuple(inside[part.number].box if isinstance(part, Box) else part for part in box.content)
    edges = tuple(
        replace(edge, source=source, target=target)
        for edge in box.edges
        for source in instead.get(edge.source, (edge.source,))
        for target in instead.get(edge.target, (edge.target,))
    )
    plain = replace(box, content=content, edges=edges, exits=tuple(map(_short, box.exits)))
    return _merged(plain) if _is_nest(plain) else _Folded(plain, {})


def _short(node: Node) -> Node:
    """A result that stacks, without saying so."""
    if node.kind != "result" or not node.heavy or not node.text[0].startswith("stack("):
        return node
    return replace(node, text=node.text[node.head :], head=len(node.text) - node.head - (node.moved > 0))


def _is_nest(box: Box) -> bool:
    """True for a map that has nothing but a map in it, both without accumulating."""
    if box.kind != "map" or len(box.content) != 1:
        return False
    (inner,) = box.content
    if not isinstance(inner, Box) or inner.kind != "map" or len(box.title) != 2 or len(inner.title) != 2:
        return False
    inward, outward = _numbers(inner.entries), _numbers(inner.exits)
    return all((edge.source in outward) != (edge.target in inward) for edge in box.edges)


def _numbers(nodes: tuple[Node, ...]) -> set[int]:
    return {node.number for node in nodes}


def _merged(box: Box) -> _Folded:
    (inner,) = box.content
    assert isinstance(inner, Box)
    entries = {entry.number: entry for entry in inner.entries}
    instead: dict[int, tuple[int, ...]] = {}
    for entry in box.entries:
        instead[entry.number] = tuple(edge.target for edge in box.edges if edge.source == entry.number)
        for number in instead[entry.number]:
            if entry.kind == "port" and entries[number].kind == "pin" and not entry.heavy:  # here its tile is loaded
                entries[number] = replace(entry, number=number)
    makers = {edge.target: edge.source for edge in box.edges}
    old = {node.number: node for node in inner.exits}
    exits = []
    for result in box.exits:
        inside = old[makers[result.number]]
        names = (*result.names, *(name for name in inside.names if name not in result.names))
        exits.append(replace(result, number=inside.number, names=names, moved=inside.moved))
        instead[result.number] = (inside.number,)
    maps, blocks = zip(box.title, inner.title, strict=True)
    title = (f"{maps[0]}, {maps[1].removeprefix('map ')}", f"{blocks[0]}{TIMES}{blocks[1].removeprefix('blocks of ')}")
    made = replace(inner, title=title, names=box.names, entries=tuple(entries.values()), exits=tuple(exits))
    return _Folded(made, instead)
