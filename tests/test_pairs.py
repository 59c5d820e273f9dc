"""The reasons why neighbouring operators are not in one kernel: by hand, and that there is always exactly one.

All examples on all machines are looked at by `python tests/pair_cases.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from oracle import NORMAL_RUN, example_names, random_case
from pair_cases import MACHINES, RECORD, faults, inspected, programs, random_inspection
from test_origins import NORM, ROWS, cut

from blockc import driver
from blockc.inspector.pairs import Inspection, Pair, Reason
from blockc.language import parse
from blockc.machines.loading import load_machine
from blockc.partition import Part, Partition
from blockc.planning import search_plan


def pair_of(body: str, first: str, second: str, target: str = "cpu", sizes: Mapping[str, int] | None = None) -> Pair:
    """The pair of two operators of a program."""
    return Inspection.of(cut(parse(f"program p{body}\n"), target, sizes)).pair(first, second)


def reason_of(
    body: str, first: str, second: str, target: str = "cpu", sizes: Mapping[str, int] | None = None
) -> Reason:
    """The reason why two operators of a program are not in one kernel."""
    found = pair_of(body, first, second, target, sizes)
    assert found.reason is not None and not found.together
    return found.reason


WIDE = {"m": 1024, "n": 2048, "k": 1024}


def test_a_rule_that_refuses_is_named_with_its_reason_and_the_bytes() -> None:
    body = """(X: f32[m, k], W: f32[k, n]) -> Y: f32[m, n] {
        A = dot[k](X, W)
        T = max[m, n](A)
        Y = A / T
    }"""
    found = reason_of(body, "A", "Y", sizes=WIDE)
    assert (found.kind, found.rule, found.reason) == ("refused", "fuse_consecutive_maps", "reads_reduced_value")
    assert "`T` is complete only after the loop" in found.why
    assert found.saved_bytes == 2 * 4 * WIDE["m"] * WIDE["n"]  # stored by one, loaded by the other
    assert pair_of(body, "A", "T", sizes=WIDE).together == {0}
    assert reason_of(body, "T", "Y", sizes=WIDE).rule == "fuse_consecutive_maps"


def test_without_a_rule_it_is_said_how_one_needs_the_other() -> None:
    found = reason_of(
        """(X: f32[m, n]) -> Y: f32[m, n] {
            A = exp(X)
            B = A / sum[n](A)
            Y = B / sum[m](B)
        }""",
        "Y.1", "Y", sizes=WIDE,
    )  # fmt: skip
    assert (found.kind, found.rule, found.reason) == ("shape", "", "needs_all_of_it")
    assert found.why == "every iteration over `m` needs all of `Y.1`"


def test_parts_are_told_with_the_times_of_both() -> None:
    found = reason_of(NORM, "N", "Y", "toy", ROWS)
    assert (found.kind, found.reason) == ("cut", "costs_more")
    assert float(found.values["predicted_seconds"]) >= float(found.values["chosen_seconds"]) > 0
    assert found.saved_bytes is not None and found.saved_bytes >= 2 * 4 * ROWS["m"] * ROWS["n"]


def test_what_algebra_removed_is_no_mystery() -> None:
    body = """(X: f32[m, n=4096], V: f32[n=4096, e]) -> Y: f32[m, e] {
        M = max[n](X)
        E = exp(X - M)
        Y = dot[n](E / sum[n](E), V)
    }"""
    found = reason_of(body, "M", "E.1")
    assert found.kind == "removed" and "the same" in found.why and "`M` was removed by" in found.why


def with_plans(size: int, local: int) -> list[Reason]:
    """The reasons for a program with snapshots of different kernels, as one part, on a toy with more local memory."""
    toy = load_machine("toy")
    tiers = tuple(replace(one, capacity=local * one.capacity) if one.scope == "unit" else one for one in toy.tiers)
    program = random_case(12).program
    sizes = driver.default_sizes(program, {dim.name: size for dim in program.dims if dim.size is None})
    machine = replace(toy, tiers=tiers)
    plan = search_plan(program, machine, sizes, {})
    found = Inspection.of(Partition(program, machine, sizes, (Part(program, plan),), ()))
    return [pair.reason for pair in found.pairs if pair.reason is not None]


def test_a_slower_plan_is_told_with_its_time() -> None:
    slower = [reason for reason in with_plans(512, 1024) if reason.kind == "slower"]
    assert slower
    for reason in slower:
        assert float(reason.values["predicted_seconds"]) > float(reason.values["chosen_seconds"])
        assert "computing on core" in reason.why and reason.saved_bytes is not None and reason.saved_bytes > 0


def test_a_plan_that_does_not_fit_is_told_with_the_tier_and_what_is_needed() -> None:
    reasons = [reason for reason in with_plans(512, 1) if reason.kind == "no_room"]
    assert reasons and all("bytes are needed in local, which has 4,096" in reason.why for reason in reasons)


# For every program


@pytest.mark.parametrize("name", example_names())
def test_every_pair_of_the_examples_has_a_kernel_or_a_reason(name: str) -> None:
    for title, program in programs():
        if title.startswith(f"{name} "):
            assert list(faults(inspected(program, "cpu"))) == []


@pytest.mark.parametrize("target", ["toy"])
def test_every_pair_of_parts_has_a_reason(target: str) -> None:
    for title, program in programs():
        if title.split()[0] in ("cross_entropy", "layernorm_matmul"):
            assert list(faults(inspected(program, target))) == []


def test_every_pair_of_random_programs_has_a_kernel_or_a_reason() -> None:
    found = [random_inspection(seed) for seed in NORMAL_RUN[::3]]
    assert [fault for one in found for fault in faults(one)] == []
    kinds = {pair.reason.kind for one in found for pair in one.pairs if pair.reason is not None}
    assert {"removed", "refused", "shape"} <= kinds


def test_the_record_of_all_examples_on_all_machines_has_no_pair_without_a_reason() -> None:
    lines = RECORD.read_text().splitlines()
    assert lines[-1].startswith("0 of ") and lines[-1].endswith(" pairs without a reason")
    for name, program in programs():
        for machine in MACHINES:
            assert any(line.startswith(f"{name} on {machine}: ") for line in lines), (name, machine, program.name)
