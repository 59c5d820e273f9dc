"""`blockc why-not`: both answers, verified suggestions, obstacles, what is not neighbours, and wrong questions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from oracle import EXAMPLES

from blockc import cli, driver
from blockc.errors import UsageError
from blockc.inspector.pairs import Inspection
from blockc.inspector.places import Place, named
from blockc.inspector.suggestions import SECONDS, Search, in_one_kernel, operand, without
from blockc.inspector.why_not import Answer, Request, answer
from blockc.inspector.why_not_text import SCHEMA, as_json, lines
from blockc.ir.array_program import ArrayProgram
from blockc.ir.machine import Machine
from blockc.language import parse
from blockc.machines.loading import load_machine
from blockc.partition import Partition, partition

WIDE = {"m": 1024, "n": 4096, "k": 1024, "e": 1024}


def asked(
    text: str, first: str, second: str, target: str | Machine = "cpu", sizes: Mapping[str, int] | None = None
) -> Answer:
    """The answer for a program."""
    machine = load_machine(target) if isinstance(target, str) else target
    program = parse(text)
    known = {dim.name: WIDE[dim.name] for dim in program.dims if dim.name in WIDE} if sizes is None else sizes
    request = Request(program, machine, driver.default_sizes(program, known), {}, {}, first, second)
    return answer(request)


def fast_memory(name: str) -> Machine:
    """A machine that reads and writes its memory at the same time, so that not fusing may be faster."""
    machine = load_machine(name)
    return replace(machine, tiers=tuple(replace(tier, duplex="full") for tier in machine.tiers))


def example_text(name: str) -> str:
    """The text of an example."""
    return (EXAMPLES / f"{name}.blk").read_text()


WAITS = """program p(X: f32[m, k], W: f32[k, n]) -> Y: f32[m, n] {
    A = dot[k](X, W)
    T = max[m, n](A)
    Y = tanh(A / T)
}
"""
TWO_LOOPS = """program p(X: f32[m, k], W: f32[k, n], V: f32[n, e]) -> Y: f32[m, e] {
    A = dot[k](X, W)
    T = mean[n](A)
    E = tanh(A - T)
    Y = dot[n](E, V)
}
"""


# In one kernel


def test_what_is_in_one_kernel_is_told_with_the_steps_that_joined_it() -> None:
    found = asked(example_text("attention"), "S", "O", sizes={})
    assert found.reason is None and found.kernels == {0} and found.way == ("S", "P.1", "P", "O")
    steps = {pair: stage.step for pair, stage in found.joined}
    assert set(steps) == {("S", "P.1"), ("P.1", "P"), ("P", "O")}
    assert all(step is not None and step.rule == "fuse_consecutive_maps" and step.span for step in steps.values())
    text = "\n".join(lines(found, "cpu"))
    assert text.startswith("S and O are in one kernel for cpu: kernel 0\n") and "Joined by:" in text


def test_the_order_of_the_two_does_not_matter() -> None:
    found = [asked(WAITS, *names) for names in (("A", "Y"), ("Y", "A"))]
    assert found[0].reason == found[1].reason and found[0].apart == found[1].apart


def test_loops_of_one_kernel_and_the_operator_between_them() -> None:
    found = asked(TWO_LOOPS, "A", "E")
    assert found.reason is None and found.loops is not None and found.loops.dims == ("n", "n")
    assert [(one.rule, one.reason) for one in found.loops.algebra] == [("swap_shift_and_contraction", "not_linear")]
    assert found.tried is not None and found.tried.obstacle is not None
    assert found.tried.obstacle.change.values["operator"] == "E"
    linear = asked(TWO_LOOPS.replace("tanh(A - T)", "A - T"), "A", "E")
    assert linear.loops is None and "loops of their own" not in "\n".join(lines(linear, "cpu"))


# Not in one kernel


def test_an_obstacle_is_named_and_without_it_they_are_in_one_kernel() -> None:
    found = asked(WAITS, "A", "Y")
    assert found.reason is not None and found.apart == ("A", "Y.1")
    assert (found.reason.rule, found.reason.reason) == ("fuse_consecutive_maps", "reads_reduced_value")
    assert found.reason.saved_bytes == 2 * 4 * WIDE["m"] * WIDE["n"]
    tried = found.tried
    assert tried is not None and tried.suggestion is None and not tried.ended and len(tried.changes) == tried.runs
    assert tried.obstacle is not None and tried.obstacle.change.values["operator"] == "Y.1"
    program = found.inspection.partition.program
    node = next(node for node in program.nodes if node.name == "Y.1")
    assert operand(program, node) == "A"
    assert len(partition_of(without(program, node), load_machine("cpu"), found).parts[0].plan.cost.kernels) == 1
    text = "\n".join(lines(found, "cpu"))
    assert "33,554,432 bytes less" in text and "the program without the operator div of `Y.1`" in text


def partition_of(
    program: ArrayProgram, machine: Machine, found: Answer, tiles: driver.Tiles | None = None
) -> Partition:
    """What is chosen for a program at the sizes of an answer."""
    return partition(program, machine, found.inspection.partition.sizes, tiles or {})


def test_a_suggested_tier_does_help_and_half_of_it_does_not() -> None:
    found = asked(example_text("cross_entropy"), "logits", "loss", fast_memory("toy"), {})
    assert found.reason is not None and found.reason.kind == "cut" and found.apart is not None
    assert found.tried is not None and found.tried.suggestion is not None
    change = found.tried.suggestion.change
    assert change.kind == "tier" and str(change.values["tier"]) in change.text
    times = int(change.values["times"])
    helps = {}
    for factor in (times // 2, times):
        machine = fast_memory("toy")
        tiers = tuple(
            replace(tier, capacity=tier.capacity * factor) if tier.name == change.values["tier"] else tier
            for tier in machine.tiers
        )
        chosen = partition_of(found.inspection.partition.program, replace(machine, tiers=tiers), found)
        helps[factor] = in_one_kernel(Inspection.of(chosen), [found.apart])
    assert helps[times] == found.tried.suggestion.kernels != frozenset()
    assert helps[times // 2] == frozenset()


def test_a_suggested_tile_does_help() -> None:
    found = asked(NORM_OF_ROWS, "N", "Y", fast_memory("scratchpad"), {"m": 4096, "n": 256, "e": 256})
    assert found.reason is not None and found.apart is not None
    assert found.tried is not None and found.tried.suggestion is not None
    change = found.tried.suggestion.change
    assert change.kind == "tile" and change.text == f"--tile {change.values['dim']}={change.values['tile']}"
    tiles: driver.Tiles = {str(change.values["dim"]): int(change.values["tile"])}
    chosen = partition_of(found.inspection.partition.program, fast_memory("scratchpad"), found, tiles)
    assert in_one_kernel(Inspection.of(chosen), [found.apart]) == found.tried.suggestion.kernels
    assert chosen.seconds == found.tried.suggestion.seconds


NORM_OF_ROWS = """program p(X: f32[m, n], W: f32[n, e]) -> Y: f32[m, e] {
    C = X - mean[n](X)
    N = C * rsqrt(mean[n](C * C) + 1e-5)
    Y = dot[n](N, W)
}
"""


def test_a_search_ends_and_says_so() -> None:
    found = asked(WAITS, "A", "Y")
    times = iter((0.0, 1.0, SECONDS + 1, SECONDS + 1, SECONDS + 1))
    assert found.apart is not None
    search = Search(
        found.inspection, load_machine("cpu"), {}, {}, [found.apart], in_one_kernel, lambda: next(times)
    )  # fmt: skip
    tried = search.run(found.reason)
    assert tried.runs == 1 and tried.suggestion is None and "ended after 1 compilations" in tried.ended
    text = "\n".join(lines(replace(found, tried=tried), "cpu"))
    assert "The search is not complete" in text


def test_what_was_removed_is_not_searched_for() -> None:
    text = """program p(X: f32[m, n=4096], V: f32[n=4096, e]) -> Y: f32[m, e] {
        M = max[n](X)
        E = exp(X - M)
        Y = dot[n](E / sum[n](E), V)
    }"""
    found = asked(text, "M", "E", sizes={})
    assert found.reason is not None and found.reason.kind == "removed" and found.tried is None
    assert any("`M` was removed by" in line for line in lines(found, "cpu"))


def test_far_apart_the_first_pair_on_the_way_that_is_apart_is_told() -> None:
    text = WAITS.replace("Y = tanh(A / T)", "B = A / T\n    Y = exp(tanh(B))")
    found = asked(text, "A", "Y")
    assert found.relation == "way" and found.way == ("A", "B", "Y.1") and found.apart == ("A", "B")
    assert "A -> B -> Y.1" in "\n".join(lines(found, "cpu"))


def test_siblings_and_strangers() -> None:
    text = """program p(X: f32[m, n], Z: f32[k]) -> (A: f32[m], B: f32[n], C: f32[k]) {
        A = sum[n](exp(X))
        B = max[m](X)
        C = exp(Z)
    }"""
    siblings, strangers = asked(text, "A", "B"), asked(text, "A", "C")
    assert siblings.relation == "siblings" or siblings.reason is None
    assert strangers.relation == "independent" and strangers.reason is not None
    assert strangers.reason.reason == "nothing_in_common"
    assert "No value goes from one to the other" in "\n".join(lines(strangers, "cpu"))


# Which operators are meant


def test_names_and_places_mean_operators() -> None:
    program = parse(example_text("attention"), "some/attention.blk")
    line = next(node.span.line for node in program.nodes if node.name == "P" and node.span)
    softmax = ("P.1", "P.2", "P.3", "P")
    assert named(program, "P").names == softmax and named(program, "P.3").names == ("P.3",)
    for place in (f"{line}", f"attention.blk:{line}", f"{line}:9", f"some/attention.blk:{line}:9"):
        assert named(program, place).names == softmax, place
    inner = named(program, f"{line - 1}:10").names
    assert inner == ("S.1",) and named(program, "S").names == ("S.1", "S")
    assert Place.of("a:b.blk:3:4") == Place("a:b.blk", 3, 4) and Place.of("P.1") is None


def test_a_statement_and_one_of_its_operators() -> None:
    found = asked(example_text("attention"), "P", "P.3", sizes={})
    assert found.first.names == ("P.1", "P.2", "P") and found.second.names == ("P.3",)


def test_another_name_of_a_value_means_the_operator() -> None:
    program = parse("program p(X: f32[m, d]) -> Y: f32[m, n] {\n A = exp(X)\n B = A[m -> n]\n Y = dot[d](A, B)\n}\n")
    assert named(program, "B").names == ("A",)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("Q", "O", "`Q` is an input"),
        ("S", "S", "mean the same operator"),
        ("S.1", "9:10", "mean the same operator"),
        ("SS", "O", "did you mean `S`?"),
        ("softmax", "O", "has no `softmax`"),
        ("1", "O", "there is no operator at 1"),
        ("999999999999", "O", "has no `999999999999`"),
        ("x.blk:9:9", "O", "not in x.blk"),
        ("", "O", "has no ``"),
        ("\x1b[31mS", "O", "\\x1b[31mS"),
        ("S" * 500, "O", "has no `SSS"),
    ],
)
def test_a_question_about_nothing_is_usage(first: str, second: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        asked(example_text("attention"), first, second, sizes={})
    assert message in str(raised.value) and "\x1b" not in str(raised.value) and raised.value.exit_code == 2


# The command


def test_the_command_prints_text_or_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a\u202eb.blk"
    path.write_text(WAITS)
    sizes = [option for dim, size in WIDE.items() if dim != "e" for option in ("--dim", f"{dim}={size}")]
    assert cli.main(["why-not", str(path), "A", "Y", *sizes]) == 0
    text = capsys.readouterr().out
    assert "A and Y are not in one kernel for cpu" in text and max(map(len, text.split("\n"))) <= 100
    assert cli.main(["why-not", str(path), "A", "4:9", *sizes, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == SCHEMA and not found["together"] and found["apart"] == ["A", "Y.1"]
    assert found["reason"]["rule"] == "fuse_consecutive_maps" and found["tried"]["obstacle"]["kind"] == "operator"
    assert cli.main(["why-not", str(path), "A", "B"]) == 2
    assert "has no `B`" in capsys.readouterr().err
    assert cli.main(["why-not", str(path), "A"]) == 2


def test_the_object_of_what_is_in_one_kernel() -> None:
    found = as_json(asked(example_text("attention"), "S", "P", sizes={}), "cpu")
    assert found["together"] and found["kernels"] == [0] and found["reason"] is None and found["tried"] is None
    assert [operator["name"] for operator in found["second"]["operators"]] == ["P.1", "P.2", "P.3", "P"]
    assert all(entry["rule"] == "fuse_consecutive_maps" for entry in found["joined"])
    json.dumps(found)
