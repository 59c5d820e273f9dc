"""What stays in normal form through a derivation, so that a step looks at little more than it changed."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

from blockc.ir.block import Apply, Graph, Map


@dataclass(frozen=True, slots=True)
class Body:
    """A body in normal form: its operators by what they are (`known`), the dimensions of the maps around, and the names
    that it takes from outside, in order, with their scopes and operators."""

    graph: Graph
    known: dict[tuple[object, ...], str]
    mapped: tuple[str, ...]
    outside: tuple[tuple[str, int, Apply | None], ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """What stays true through a derivation: what is in normal form, by identity; bodies by their first definitions.

    A remembered map is not looked into again as long as nothing that it uses is replaced; a remembered operator not as
    long as the definitions of its operands are the same too; and a body that has grown at its end only there, as long
    as all is the same around it.
    """

    maps: dict[int, Map] = field(default_factory=dict)
    applies: dict[int, tuple[Apply, tuple[Apply | None, ...]]] = field(default_factory=dict)
    bodies: dict[int, Body] = field(default_factory=dict)

    def note(self, graph: Graph, known: Mapping[str, Apply], grown: Mapping[int, int]) -> None:
        """Remember every definition in a graph that is in normal form. `known` are the operators by name, `grown` the
        definitions at the beginning of bodies that are remembered already."""
        new = graph[grown.get(id(graph[0]), 0) :] if graph else ()
        for definition in [node for node in new if id(node) not in self.maps]:
            if isinstance(definition, Apply):
                self.applies[id(definition)] = definition, tuple(map(known.get, definition.uses))
            elif isinstance(definition, Map):
                self.maps[id(definition)] = definition
                self.note(definition.body, known, grown)

    def settled(self, apply: Apply, known: Mapping[str, Apply]) -> bool:
        """True if the operator is in normal form, and so are its operands as they were then."""
        found = self.applies.get(id(apply))
        if found is None:
            return False
        return all(map(operator.is_, map(known.get, apply.uses), found[1]))
