"""Results that runs of several programs on the same arrays share, as the programs of a derivation do.

A rule changes one place of a program. The rest computes the same from the same values, so a run may take over what an
earlier one has computed: a result is found by what was computed and by the identity of every value that went in. It is
the result that computing it again would give, since operators and maps are functions of these values only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Once(Protocol):
    """`Shared.once`, or `once` where nothing is shared."""

    def __call__(self, what: Hashable, values: tuple[object, ...], compute: Callable[[*Ts], T], *args: *Ts) -> T: ...


def once(what: Hashable, values: tuple[object, ...], compute: Callable[[*Ts], T], *args: *Ts) -> T:
    """The result of computing `what` from some values."""
    return compute(*args)


@dataclass(slots=True)
class Shared:
    """What the runs of some programs have computed. Everything is kept, so this is for small arrays.

    All runs must have the same sizes and tiles: `setting` is that of the first, which `bind` notes and compares.
    """

    setting: tuple[object, ...] | None = None
    results: dict[Hashable, tuple[Any, tuple[object, ...]]] = field(default_factory=dict)

    def bind(self, setting: tuple[object, ...]) -> None:
        """ValueError if these are not the sizes, tiles and so on of the runs so far."""
        if self.setting is None:
            self.setting = setting
        elif self.setting != setting:
            raise ValueError("only runs with the same dimensions, sizes, tiles, padding and arithmetic share results")

    def once(self, what: Hashable, values: tuple[object, ...], compute: Callable[[*Ts], T], *args: *Ts) -> T:
        """The result of computing `what` from values that are known by identity and that nobody changes."""
        key = (what, *map(id, values))
        found = self.results.get(key)
        if found is None:
            # The values are kept too, because the identity of a value that has gone may be given to another one.
            found = self.results[key] = compute(*args), values
        result: T = found[0]
        return result
