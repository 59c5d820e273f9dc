"""Finds definitions that call themselves, directly or through others, before anything is inlined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


def cycles(calls: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """Yields cycles `(f, g, ..., f)`, so many that without the last call of each of them no cycle is left.

    A depth-first search with a stack of its own: call chains may be longer than Python's.
    """
    finished: set[str] = set()
    for root in calls:
        if root in finished:
            continue
        path, pending, place = [root], [iter(calls[root])], {root: 0}
        while path:
            callee = next(pending[-1], None)
            if callee is None:
                pending.pop()
                del place[path[-1]]
                finished.add(path.pop())
            elif callee in place:
                yield (*path[place[callee] :], callee)
            elif callee in calls and callee not in finished:
                place[callee] = len(path)
                path.append(callee)
                pending.append(iter(calls[callee]))
