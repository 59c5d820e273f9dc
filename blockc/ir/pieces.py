"""Which operators can be computed piece by piece: elementwise ones behind the loops of a map.

Elements of what they read and make belong together, so of what is loaded for them and of what they make only a piece
has to be at hand, beside the tiles that the loops have accumulated.
"""

from __future__ import annotations

from collections.abc import Iterable

from blockc.ir.block import REDUCTIONS, Apply, Graph, Map, Program


def is_elementwise(apply: Apply) -> bool:
    """True if elements of the result depend on the same elements of operands, or on their positions."""
    return apply.op not in REDUCTIONS


def behind_loops(graph: Graph) -> tuple[Apply, ...]:
    """The elementwise operators behind the last loop of a graph, and behind whatever else it computes."""
    found: list[Apply] = []
    for node in graph:
        if isinstance(node, Apply) and is_elementwise(node):
            found.append(node)
        else:
            found = []
    return tuple(found) if any(isinstance(node, Map) for node in graph) else ()


def axis_of_pieces(program: Program, tiles: Iterable[tuple[str, ...]]) -> str | None:
    """The axis along which tiles are in pieces: the last one of the largest. None if that is not cut into blocks, or
    the only one."""
    largest = max(tiles, key=len, default=())
    return largest[-1] if len(largest) > 1 and largest[-1] not in program.whole else None
