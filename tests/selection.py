"""Which cases of a large table the normal run takes; `python -m pytest -m long` runs the others."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from _pytest.mark import ParameterSet


def in_turn(*axes: Iterable[Any], of: int) -> list[ParameterSet]:
    """All combinations, of which the normal run takes one of so many, so that every value on every axis is in it.

    An axis with values that are tuples gives several parameters. ValueError if a value would not be taken.
    """
    tables = [list(axis) for axis in axes]
    cases, taken = [], [set[int]() for _ in tables]
    for places in itertools.product(*(range(len(table)) for table in tables)):
        now = sum(places) % of == 0
        cases.append(case([table[place] for table, place in zip(tables, places, strict=True)], now))
        for seen, place in zip(taken, places, strict=True):
            if now:
                seen.add(place)
    if [len(seen) for seen in taken] != [len(table) for table in tables]:
        raise ValueError(f"with one case of {of} some values are never taken")
    return cases


def case(values: Sequence[Any], now: bool) -> ParameterSet:
    """One case, for the normal run or for the long one."""
    parameters = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    name = "-".join(str(part) for part in parameters if isinstance(part, str | int | float | None))
    return pytest.param(*parameters, id=name, marks=[] if now else [pytest.mark.long])
