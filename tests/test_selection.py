"""The normal run's part of a large table has every value on every axis."""

from __future__ import annotations

import pytest
from selection import in_turn


def test_every_value_on_every_axis_is_in_the_normal_run() -> None:
    cases = in_turn("abcd", [("x", 1), ("y", 2)], range(3), of=4)
    assert len(cases) == 24 and {case.id for case in cases} >= {"a-x-1-0", "d-y-2-2"}
    now = [case.values for case in cases if not case.marks]
    assert len(now) == 6
    assert [set(column) for column in zip(*now, strict=True)] == [set("abcd"), {"x", "y"}, {1, 2}, {0, 1, 2}]


def test_a_part_that_is_too_small_is_an_error() -> None:
    with pytest.raises(ValueError, match="one case of 3"):
        in_turn("ab", of=3)
