"""`blockc verify`: what it says of right programs, and that it fails, at the right row, where something is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracle import example, example_names
from test_cli import ATTENTION, EXAMPLES, Blockc, on_terminal, run_blockc, written

from blockc import families, verifying
from blockc.ir.block import Apply, Constant, Graph, Map, Program, with_body
from blockc.ir.decisions import Match, Rule
from blockc.ir.plan import Cost
from blockc.language import parse
from blockc.passes import choose, fuse, lower
from blockc.passes.rules import RULES
from blockc.verifying import checked_output

__all__ = ["run_blockc"]

KEYS = ["program", "ok", "failures", "ways"]
WAY_KEYS = ["whole", "dims", "tiles", "stopped", "steps", "snapshots"]
STEP_KEYS = [
    "step",
    "rule",
    "paper_rule",
    "at",
    "line",
    "float64_difference",
    "field",
    "field_elements",
    "verifier",
    "ok",
]
SNAPSHOT_KEYS = ["index", "kernels", "float64_difference", "loads", "stores", "numbers", "ok"]
NUMBER_KEYS = ["family", "output", "max_abs_error", "error_bound", "ok"]
NORM = "program norm(X: f32[m, n]) -> Y: f32[m, n] { Y = X * rsqrt(mean[n](X * X) + 1e-13) }\n"
SOFTMAX = "program s(X: f32[m, n], V: f32[n, e]) -> Y: f32[m, e] { Y = dot[n](softmax[n](X), V) }\n"


@pytest.mark.parametrize(
    "name",
    ["attention", "mlp", *(pytest.param(name, marks=pytest.mark.long) for name in ("rmsnorm_swiglu", "cross_entropy"))],
)
def test_examples_verify(run_blockc: Blockc, name: str) -> None:
    result = run_blockc("verify", str(EXAMPLES / f"{name}.blk"), "--json")
    assert (result.code, result.err) == (0, "")
    found = result.json
    assert list(found) == KEYS and found["ok"] and found["failures"] == []
    assert [list(way) for way in found["ways"]] == [WAY_KEYS] * 2  # features whole and cut
    for way in found["ways"]:
        assert way["stopped"] is None and way["steps"] and way["snapshots"]
        for step in way["steps"]:
            assert list(step) == STEP_KEYS
            assert step["float64_difference"] <= 1e-10 and step["field"] == "equal" and step["verifier"] == "ok"
        for snapshot in way["snapshots"]:
            assert list(snapshot) == SNAPSHOT_KEYS
            assert snapshot["loads"]["predicted"] == snapshot["loads"]["counted"] > 0
            assert snapshot["stores"]["predicted"] == snapshot["stores"]["counted"] > 0
            assert [list(row) for row in snapshot["numbers"]] == [NUMBER_KEYS] * len(snapshot["numbers"])
            assert len(snapshot["numbers"]) >= 13


def test_every_step_of_every_snapshot_is_listed(run_blockc: Blockc) -> None:
    explained = run_blockc("explain", str(EXAMPLES / "mlp.blk"), "--json").json
    found = run_blockc("verify", str(EXAMPLES / "mlp.blk"), "--json").json["ways"][0]
    assert [step["rule"] for step in found["steps"][:2]] == ["lower", "normal form"]
    assert [(step["rule"], step["at"]) for step in found["steps"][2:]] == [
        (step["rule"], step["at"]) for step in explained["steps"]
    ]
    assert len(found["snapshots"]) == len(explained["snapshots"]) > 1


def test_dimensions_without_a_size_are_whole_and_cut(run_blockc: Blockc, tmp_path: Path) -> None:
    text = "program p(X: f32[m, d], Z: f32[m, e]) -> Y: f32[m] { Y = sum[d](tanh(X)) + sum[e](Z) }\n"
    file = written(tmp_path / "p.blk", text)

    def whole(*options: str) -> list[list[str]]:
        return [way["whole"] for way in run_blockc("verify", file, "--json", *options).json["ways"]]

    assert whole() == [["d", "e"], []]
    assert whole("--dim", "d=4", "--dim", "e=3") == [["d", "e"]]
    assert whole("--dim", "d=4", "--dim", "e=3", "--tile", "e=2") == [["d"]]


def test_tables_for_a_person(run_blockc: Blockc) -> None:
    result = run_blockc("verify", ATTENTION, "--dtype", "f32")
    assert result.code == 0 and result.out.endswith("\nok\n")
    assert "  0.1 " in result.out and "swap_scale_and_contraction" in result.out
    assert "  one NaN in Q " in result.out and "  std 30 " in result.out


def test_what_the_field_cannot_decide_is_said(run_blockc: Blockc, tmp_path: Path) -> None:
    file = written(tmp_path / "e.blk", "program e(X: f32[m]) -> Y: f32[m] { Y = exp(tanh(X) - exp(exp(X))) }\n")
    found = run_blockc("verify", file, "--json").json
    assert found["ok"] and {step["field"] for step in found["ways"][0]["steps"]} == {"outside"}
    assert "outside of what the prime field can decide" in run_blockc("verify", file).out


@pytest.mark.parametrize("name", example_names())
def test_sizes_that_nobody_gave_are_small_and_ragged(name: str) -> None:
    program = parse(example(name))
    whole = lower.whole_dimensions(program, {dim.name: dim.size or 4 for dim in program.dims}, {})
    sizes, tiles = verifying.small_sizes(verifying.Request(program, {}, {}), lower.lower(program, whole))
    assert sizes.keys() == {dim.name for dim in program.dims} and tiles.keys() == sizes.keys() - whole
    assert all(sizes[dim] <= 8 for dim in sizes if program.dim(dim).size is None)
    assert all(2 <= -(-sizes[dim] // tile) <= 3 and sizes[dim] % tile for dim, tile in tiles.items() if tile > 1)
    assert any(tile > 1 for tile in tiles.values())


def test_sizes_and_tiles_may_be_given(run_blockc: Blockc, tmp_path: Path) -> None:
    file = written(tmp_path / "s.blk", SOFTMAX)
    result = run_blockc("verify", file, "--dim", "n=20", "--dim", "m=0", "--tile", "n=6", "--tile", "e=2", "--json")
    (way,) = result.json["ways"]
    assert result.code == 0 and way["whole"] == []
    assert (way["dims"]["n"], way["dims"]["m"]) == (20, 0) and (way["tiles"]["n"], way["tiles"]["e"]) == (6, 2)


def test_sizes_too_large_to_interpret_are_a_limit(run_blockc: Blockc) -> None:
    result = run_blockc("verify", ATTENTION, "--dim", "m=100000", "--dim", "n=100000")
    assert result.code == 3 and "give smaller sizes with --dim" in result.err


def test_progress_on_a_terminal() -> None:
    shown = on_terminal("verify", str(EXAMPLES / "mlp.blk"), "--json")
    assert shown.startswith("verifying ...") and "\rverifying: step 1 of " in shown and "snapshot 3 of 3" in shown


def test_families_are_what_they_say() -> None:
    program = parse("program p(X: f32[m, n], T: i32[m]) -> Y: f32[m] { Y = sum[n](X) * f32(T) }")
    found = {family.name: family for family in families.families(program)}
    assert len(found) == len(families.ORDINARY) + len(families.SPECIAL)
    drawn = {name: families.draw(program, {"m": 3, "n": 4}, family, 0)["X"] for name, family in found.items()}
    assert np.isneginf(drawn["all -inf in X"][0]).all() and np.isfinite(drawn["all -inf in X"][1:]).all()
    assert np.isnan(drawn["one NaN in X"]).sum() == 1 and np.isposinf(drawn["one inf in X"]).sum() == 1
    same = (drawn["constant rows"] == drawn["constant rows"][:, :1]).all(1)
    assert same.tolist() == [True, False, True] and drawn["mean 1000"].min() > 900
    assert drawn["rows of zeros"].any(1).tolist() == [False, True, False] and drawn["N(0, 1)"].dtype == np.float32
    for sizes in ({"m": 0, "n": 4}, {"m": 3, "n": 0}):
        assert all(families.draw(program, sizes, family, 0)["X"].size == 0 for family in found.values())


# --- something is wrong ----------------------------------------------------------------------------------------------


def planted(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[Program, Match], Program]) -> None:
    """A rule that spoils what it has made."""

    def wrong(rule: Rule) -> Rule:
        return replace(rule, rewrite=lambda program, match: spoil(rule.rewrite(program, match), match))

    monkeypatch.setattr(fuse, "RULES", tuple(wrong(rule) if rule.name == name else rule for rule in RULES))


def edited(program: Program, change: Callable[[Apply], Apply]) -> Program:
    """The program with every operator changed."""

    def visit(graph: Graph) -> Graph:
        return tuple(
            change(node) if isinstance(node, Apply)
            else replace(node, body=visit(node.body)) if isinstance(node, Map) else node
            for node in graph
        )  # fmt: skip

    return replace(with_body(program, visit(program.body)))


def test_a_rule_that_loses_a_factor_is_found(
    run_blockc: Blockc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def spoil(program: Program, match: Match) -> Program:
        def lose(node: Apply) -> Apply:
            return (
                replace(node, args=(*node.args[:-2], Constant(1.0), node.args[-1])) if node.name in match.at else node
            )

        return edited(program, lose)

    planted(monkeypatch, "swap_scale_and_contraction", spoil)
    result = run_blockc("verify", written(tmp_path / "s.blk", SOFTMAX), "--tile", "n=2", "--tile", "e=2", "--json")
    assert result.code == 4 and "error[E0907]: step 0." in result.err
    (way,) = result.json["ways"]
    wrong = [step for step in way["steps"] if not step["ok"]]
    assert wrong[0]["rule"] == "swap_scale_and_contraction" and not result.json["ok"]
    assert wrong[0]["field"] == "different" and wrong[0]["float64_difference"] > 1e-3
    assert not any(snapshot["ok"] for snapshot in way["snapshots"])


def test_an_error_that_float64_does_not_see_is_found_in_the_field(
    run_blockc: Blockc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def without_epsilon(node: Apply) -> Apply:
        args = tuple(Constant(0.0) if arg == Constant(1e-13) else arg for arg in node.args)
        return replace(node, args=args)

    planted(monkeypatch, "fuse_consecutive_maps", lambda program, match: edited(program, without_epsilon))
    result = run_blockc("verify", written(tmp_path / "n.blk", NORM), "--tile", "n=2", "--json")
    wrong = next(step for step in result.json["ways"][0]["steps"] if not step["ok"])
    assert result.code == 4 and wrong["rule"] == "fuse_consecutive_maps"
    assert wrong["field"] == "different" and wrong["float64_difference"] < 1e-10


def test_a_program_that_the_verifier_rejects_is_found(
    run_blockc: Blockc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nonsense(program: Program, match: Match) -> Program:
        return edited(program, lambda node: replace(node, dims=("m",)) if node.op == "contract" else node)

    planted(monkeypatch, "fuse_consecutive_maps", nonsense)
    result = run_blockc("verify", written(tmp_path / "n.blk", NORM), "--tile", "n=2", "--json")
    assert result.code == 4 and "fuse_consecutive_maps" in result.err and "the verifier rejects it" in result.err
    (way,) = result.json["ways"]
    assert way["steps"][0]["rule"] == "fuse_consecutive_maps" and way["snapshots"] == []


def test_a_kernel_without_safe_arithmetic_is_found(
    run_blockc: Blockc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(choose, "ready", lambda derivation: derivation.snapshots)
    result = run_blockc("verify", written(tmp_path / "s.blk", SOFTMAX), "--tile", "n=2", "--tile", "e=2")
    assert result.code == 4 and "FAILED" in result.out and result.out.endswith("not ok\n")
    assert "snapshot 0: output `Y` is finite or infinite in the wrong places" in result.err


def test_a_wrong_prediction_of_bytes_is_found(
    run_blockc: Blockc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    price = choose.price

    def wrong(*arguments: object) -> tuple[int, tuple[Cost, ...]]:
        chosen, costs = price(*arguments)  # type: ignore[arg-type]
        return chosen, tuple(replace(cost, traffic={**cost.traffic, ("V", "load"): 4}) for cost in costs)

    monkeypatch.setattr(choose, "price", wrong)
    result = run_blockc("verify", written(tmp_path / "s.blk", SOFTMAX), "--tile", "n=2", "--tile", "e=2")
    assert result.code == 4 and "loads of `V` are " in result.err and "predicted 4" in result.err
    assert " / " in result.out


@pytest.mark.parametrize(
    ("given", "expected", "ok"),
    [
        (math.inf, math.inf, True),
        (math.nan, math.inf, True),
        (-math.inf, math.nan, True),
        (math.inf, -math.inf, False),
        (1.0, math.inf, False),
        (math.nan, 1.0, False),
        (-math.inf, 1.0, False),
    ],
)
def test_kinds_of_numbers_are_told_apart(given: float, expected: float, ok: bool) -> None:
    (result,) = parse("program p(X: f32[m]) -> Y: f32[m] { Y = exp(X) }").outputs
    output, exact = np.array([1, given], np.float32), np.array([1.0, expected])
    assert checked_output("any", result, "f32", output, exact, exact.astype(np.float32)).ok == ok
    other = np.array([1, 2 if math.isnan(expected) or math.isinf(expected) else math.nan], np.float32)
    assert checked_output("any", result, "f32", output, exact, other).ok  # the unfused program is wrong itself
