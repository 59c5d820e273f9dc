"""Cutting reductions into chunks, on request: `split_reduction` applied to the snapshots of a derivation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from blockc.ir.block import Map, Program, graph_at
from blockc.ir.decisions import Derivation, Match, Refusal, Refused, Step
from blockc.ir.verify import VerifyError, verify
from blockc.passes.fuse import span_of
from blockc.passes.normalise import normalise
from blockc.passes.rules.common import find
from blockc.passes.rules.split_reduction import RULE


def split(derivation: Derivation, dims: Collection[str]) -> Derivation:
    """The derivation with every loop over one of these dimensions cut into chunks, in every snapshot; loops that cannot
    be are among the refusals."""
    snapshots, steps, refusals = [], list(derivation.steps), list(derivation.refusals)
    for index, snapshot in enumerate(derivation.snapshots):
        program = snapshot
        while (
            found := next((place for place in _places(program, dims) if isinstance(place, Match)), None)
        ) is not None:
            after = normalise(RULE.rewrite(program, found))
            try:
                verify(after)
            except VerifyError as error:
                error.rule = RULE.name
                raise
            steps.append(Step(index, RULE.name, RULE.paper, found.at, span_of(program, found), program, after))
            program = after
        snapshots.append(program)
        for place in _places(program, dims):
            if isinstance(place, Refusal) and place.reason != "already_in_chunks":
                refusals.append(Refused(index, RULE.name, place.reason, place.at, place.why))
    return replace(derivation, snapshots=tuple(snapshots), steps=tuple(steps), refusals=tuple(refusals))


def chunk_tiles(
    snapshots: tuple[Program, ...],
    sizes: Mapping[str, int],
    tiles: Mapping[str, int],
    counts: Mapping[str, int],
    asked: Collection[str],
) -> dict[str, int]:
    """The tiles with those of chunks, `counts` of them or fewer, of whole blocks. Blocks that nobody has `asked` for
    are made as small as a chunk."""
    result = dict(tiles)
    for dim, count in counts.items():
        elements = -(-max(1, sizes[dim]) // count)
        if dim not in asked:
            result[dim] = min(result[dim], elements)
        chunks = {chunk for snapshot in snapshots for chunk, base in snapshot.chunks.items() if base == dim}
        result.update((chunk, -(-elements // result[dim]) * result[dim]) for chunk in sorted(chunks))
    return result


def _places(program: Program, dims: Collection[str]) -> Iterator[Match | Refusal]:
    for place in RULE.match(program, None):
        graph = graph_at(program, place.path)
        loop = graph[find(graph, place.at[0])]
        if isinstance(loop, Map) and loop.dim in dims:
            yield place
