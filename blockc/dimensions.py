"""The dimensions of one program: their order, what fixes their sizes, and whether every size can be known."""

from __future__ import annotations

from dataclasses import dataclass, field

from blockc.errors import Problem
from blockc.ir.array_program import Axis, Dim, Span


@dataclass(slots=True)
class Dimensions:
    """Facts about dimensions, collected in source order. `first` says where each appears first, in that order."""

    first: dict[str, Span] = field(default_factory=dict)
    fixed: dict[str, tuple[int, Span]] = field(default_factory=dict)
    input_axes: list[tuple[Axis, Span]] = field(default_factory=list)
    renames: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, span: Span) -> None:
        """Makes `name` a dimension of the program."""
        self.first.setdefault(name, span)

    def fix(self, name: str, size: int, span: Span) -> Problem | None:
        """Gives a dimension its size; a problem if it already has another one."""
        known, place = self.fixed.setdefault(name, (size, span))
        if known == size:
            return None
        return Problem(
            "E0113", f"dimension `{name}` has two sizes, {known} and {size}", span, f"line {place.line} says {known}"
        )

    def resolve(self) -> tuple[tuple[Dim, ...], list[Problem]]:
        """The dimensions in order, and the problems of those whose size nothing determines."""
        same_as: dict[str, str] = {}
        by_inputs = self._determined(same_as)
        for old, new in self.renames:
            # A dimension that an input determines keeps its own size; that both agree is a matter for run time.
            if new not in by_inputs:
                _join(same_as, new, old)
            elif old not in by_inputs:
                _join(same_as, old, new)
        determined = self._determined(same_as)
        problems = self._size_conflicts()
        problems += [self._undetermined(name, span) for name, span in self.first.items() if name not in determined]
        dims = tuple(
            Dim(name, self.fixed[name][0]) if name in self.fixed else Dim(name, None, same_as.get(name))
            for name in self.first
        )
        return dims, problems

    def _determined(self, same_as: dict[str, str]) -> set[str]:
        known = set(self.fixed)
        count = -1
        while count < len(known):
            count = len(known)
            for axis, _ in self.input_axes:
                open_dims = [dim for dim in axis if dim not in known]
                if len(open_dims) == 1:
                    known.add(open_dims[0])
            # In the order of the renames, so that a chain of them takes one pass.
            for new, old in same_as.items():
                if (old in known) != (new in known):
                    known |= {old, new}
        return known

    def _size_conflicts(self) -> list[Problem]:
        problems = []
        sizes = dict(self.fixed)
        for old, new in dict.fromkeys(self.renames):
            known = sizes.get(old) or sizes.get(new)
            if known is None:
                continue
            old_size, new_size = sizes.setdefault(old, known)[0], sizes.setdefault(new, known)[0]
            if old_size != new_size:
                message = f"`{old}` of size {old_size} is renamed to `{new}` of size {new_size}"
                problems.append(Problem("E0113", message, sizes[new][1], "a renamed dimension keeps its size"))
        return problems

    def _undetermined(self, name: str, span: Span) -> Problem:
        packed = [axis for axis, _ in self.input_axes if name in axis]
        hint = f"fix it (`{name}=64`), or use an input that has it"
        if packed:
            hint = f"`({', '.join(packed[0])})` is one array axis: fix the size of all but one, such as `{name}=8`"
        return Problem("E0112", f"nothing determines the size of dimension `{name}`", span, hint)


def _join(same_as: dict[str, str], name: str, other: str) -> None:
    """Gives `name` the size of `other`; if it has another one's already, these two become one."""
    top = _origin(same_as, other)
    if top == _origin(same_as, name):
        return
    if name in same_as:
        same_as[top] = same_as[name]
    else:
        same_as[name] = other


def _origin(same_as: dict[str, str], name: str) -> str:
    """The dimension at the end of the chain that gives `name` its size."""
    while name in same_as:
        name = same_as[name]
    return name
