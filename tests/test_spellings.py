"""Fusion is by meaning, not by spelling: every program of a group becomes as good a kernel as the plainest one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from spelling_table import (
    CUTS,
    DRIVEN,
    FOLDER,
    PLAIN,
    arguments,
    chosen_cuts,
    disagreement,
    faults,
    members,
    pending,
    places,
    row,
    spelling,
    table_lines,
    wrong_snapshots,
)

from blockc.meaning import evaluate

Place = tuple[str, str, str]  # group, member, cut
MEMBERS = [(group, member) for group in CUTS for member in members(group)]


def identifier(place: Place) -> str:
    return "-".join(place).replace(" ", "")


@pytest.mark.parametrize(("group", "member"), MEMBERS)
def test_a_spelling_becomes_as_good_a_kernel(group: str, member: str) -> None:
    for cut in chosen_cuts(group, member):
        if (group, member, cut) not in pending():
            assert not faults(row(group, member, cut)), cut


@pytest.mark.parametrize("place", pending(), ids=identifier)
def test_a_pending_spelling_still_falls_short(place: Place) -> None:
    assert faults(row(*place)), "it no longer does: take it out of PENDING in tests/spelling_table.py"


def test_pending_rows_exist() -> None:
    assert set(pending()) <= set(places()) and len(set(pending())) == len(pending())


@pytest.mark.parametrize("place", [place for place in places() if place[1] == PLAIN], ids=identifier)
def test_the_plain_program_is_one_kernel(place: Place) -> None:
    plain = row(*place)
    assert (plain.chosen_kernels, plain.last_kernels) == (1, 1)


@pytest.mark.parametrize(("group", "member"), MEMBERS)
def test_a_spelling_means_the_same(group: str, member: str) -> None:
    assert not disagreement(group, evaluate(spelling(group, member), arguments(group, member)))


@pytest.mark.parametrize(("group", "member"), MEMBERS)
def test_what_a_spelling_becomes_means_the_same(group: str, member: str) -> None:
    for cut in chosen_cuts(group, member):
        assert cut in DRIVEN or not list(wrong_snapshots(group, member, cut)), cut


def test_every_cut_has_spellings() -> None:
    for group, cuts in CUTS.items():
        assert {cut for member in members(group)[1:] for cut in chosen_cuts(group, member)} == {*cuts, *DRIVEN}


@pytest.mark.parametrize(
    "change",
    [{"chosen_kernels": 2}, {"last_kernels": 2}, {"last_traffic": 1}, {"least_traffic": 1}, {"lists": ("S", "P")}],
    ids=lambda change: str(*change),
)
def test_the_table_sees_every_difference(change: dict[str, object]) -> None:
    plain = row("attention", PLAIN, CUTS["attention"][0])
    assert not faults(plain) and len(faults(replace(plain, **change))) == 1  # type: ignore[arg-type]


def test_the_table_has_every_program() -> None:
    files = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.blk")}
    assert files == {f"{group}/{member}" for group, member, _ in places()}
    assert len(files) >= 40
    assert len(table_lines(["variance"])) == 1 + sum(group == "variance" for group, _, _ in places())
