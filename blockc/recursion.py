"""Finds definitions that call themselves, directly or through others, before anything is inlined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


def cycles(calls: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """Yields cycles `(f, g, ..., f)`, so many that without the last call of each of them no cycle is left.

    A depth-first search with a stack of its own: call chains may be longer than Python's.
    """
    finished: set[str] = set()
    for root in calls:
        path: dict[str, Iterator[str]] = {} if root in finished else {root: iter(calls[root])}
        while path:
            caller = next(reversed(path))
            callee = next(path[caller], None)
            if callee is None:
                finished.add(caller)
                del path[caller]
            elif callee in path:
                names = list(path)
                yield (*names[names.index(callee) :], callee)
            elif callee in calls and callee not in finished:
                path[callee] = iter(calls[callee])
