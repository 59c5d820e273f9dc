"""What reading a machine file has found so far: sound values, and problems with their places."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from blockc.errors import Problem
from blockc.ir.array_program import Span
from blockc.machines.toml_places import Path, Place

_ROOT = Place(Span(1, 1, 1, 2), Span(1, 1, 1, 2))

Values = dict[str, Any]


@dataclass(slots=True)
class Findings:
    """The problems of a file so far, where everything in it stands, which keys misspelt ones probably meant, and which
    of these keys have no value that could be read."""

    places: dict[Path, Place]
    problems: list[Problem] = field(default_factory=list)
    meant: set[Path] = field(default_factory=set)
    unread: set[Path] = field(default_factory=set)

    def at_key(self, code: str, message: str, path: Path, hint: str = "") -> None:
        """Records a problem of a key or a table."""
        self.problems.append(Problem(code, message, self.places.get(path, _ROOT).key, hint))

    def at_value(self, code: str, message: str, path: Path, hint: str = "") -> None:
        """Records a problem of a value."""
        self.problems.append(Problem(code, message, self.places.get(path, _ROOT).value, hint))

    def also(self, path: Path, other: Path) -> None:
        """What stands at a path is looked up under another one too."""
        length = len(path)
        inside = [(known, place) for known, place in self.places.items() if known[:length] == path]
        self.places.update(((*other, *known[length:]), place) for known, place in inside)


@dataclass(slots=True)
class Contents:
    """What is sound in a file: values by field, for the machine and each of its tables. `whole` are the lists of tables
    of which every table is here."""

    machine: Values
    tiers: list[Values]
    moves: list[Values]
    compute: list[Values]  # beside the fields: "operations", a dictionary of dictionaries of values
    whole: frozenset[str]
