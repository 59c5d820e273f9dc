"""Which blocks of a program may be computed at the same time."""

from __future__ import annotations

from blockc.ir.block import Apply, Map, Program


def nested_maps(program: Program, node: Map) -> tuple[Map, ...]:
    """A parallel map and the parallel maps that are all of its body: a task for each block of all of them.

    Blocks of a chunk are not parallel: a chunk is one task.
    """
    chain = [node]
    while (inner := only_map(program, chain[-1])) is not None:
        if inner.dim in {program.chunks.get(link.dim) for link in chain}:
            break
        chain.append(inner)
    return tuple(chain)


def only_map(program: Program, node: Map) -> Map | None:
    """The parallel map that is all of a map's body, if there is one and its outputs are those of the map.

    Ahead of it operators may stand that each task repeats: any ahead of a map over chunks, which are there to be tasks;
    ahead of others those that need no value, such as the positions along a dimension, if no tile is loaded there.
    """
    *before, inner = node.body or (None,)
    if not isinstance(inner, Map) or inner.is_loop:
        return None
    if before and inner.dim not in program.chunks:
        loads = any(program.types[port.name].is_item for port in node.ports)
        known: set[str] = set()
        for other in before:
            if loads or not isinstance(other, Apply) or not other.uses <= known:
                return None
            known.add(other.name)
    elif not all(isinstance(other, Apply) for other in before):
        return None
    stacked = [output.values[0] for output in node.outputs]
    return inner if sorted(stacked) == sorted(inner.defines) else None


def needed(node: Map, before: tuple[Apply, ...]) -> tuple[Apply, ...]:
    """The operators of a kernel ahead of a map that the map needs, in their order: each of its tasks repeats them."""
    wanted = set(node.uses)
    for apply in reversed(before):
        if apply.name in wanted:
            wanted |= apply.uses
    return tuple(apply for apply in before if apply.name in wanted)
