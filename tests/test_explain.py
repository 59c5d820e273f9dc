"""What `explain` says: in windows of any width, as JSON that its schema describes, and with the right numbers."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from selection import in_turn

import blockc
from blockc import cli, driver
from blockc.errors import columns
from blockc.inspector.choices import alternatives, margin
from blockc.inspector.explain_tables import ways
from blockc.inspector.explanation import Explanation, explain_for
from blockc.inspector.savings import graphs, saved_bytes
from blockc.inspector.skeleton import skeleton
from blockc.inspector.tables import Cell, Column, beside, table
from blockc.ir.block import Map, Program
from blockc.ir.decisions import Refused, Step
from blockc.language import parse_all
from blockc.machines.loading import load_machine
from blockc.partition import partition
from blockc.passes.cost import cost
from blockc.passes.place import place
from blockc.passing import passing

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SCHEMA = ROOT / "blockc" / "inspector" / "explain.schema.json"
NAMES = tuple(sorted(path.stem for path in EXAMPLES.glob("*.blk")))
IN_PARTS = ("cosine_attention", "toy")
WIDTHS = (60, 80, 100, 160)


@cache
def explained(name: str, target: str = "cpu") -> Explanation:
    """The explanation of the first program of an example, at its default sizes."""
    path = EXAMPLES / f"{name}.blk"
    program = next(iter(parse_all(path.read_text(), path.name).values()))
    sizes = driver.default_sizes(program, {})
    return explain_for(target, partition(program, load_machine(target), sizes, {}))


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "first"), in_turn(NAMES, [0, 1], of=2))
def test_no_line_is_wider_than_the_window(name: str, first: int) -> None:
    check_widths(explained(name), WIDTHS[first::2])


def test_parts_and_candidates_fit_the_window_too() -> None:
    check_widths(explained("attention", "toy"))
    assert len(explained(*IN_PARTS).parts) == 2
    check_widths(explained(*IN_PARTS), (60, 160), (2,))


def check_widths(found: Explanation, widths: tuple[int, ...] = WIDTHS, said: tuple[int, ...] = (0, 1, 2)) -> None:
    """Lines fit, have no space at the end, and name the same rules in every window."""
    for verbosity in said:
        texts = {width: found.text(width, verbosity) for width in widths}
        for width, text in texts.items():
            assert [line for line in text.splitlines() if columns(line) > width and len(line.split()) > 1] == []
            assert [line for line in text.splitlines() if line != line.rstrip()] == []
        rules = [sorted(set(re.findall(r"[a-z]+_[a-z_]+", text))) for text in texts.values()]
        assert all(names == rules[0] for names in rules)


def test_a_window_may_be_very_narrow() -> None:
    assert explained("attention").text(1) == explained("attention").text(40)


def test_styles_change_nothing_else() -> None:
    for width in WIDTHS:
        for verbosity in (0, 1, 2):
            found = explained("attention", "toy")
            painted = found.text(width, verbosity, lambda text, style: f"\x1b[1m{text}\x1b[0m" if style else text)
            assert "\x1b[1m" in painted
            assert re.sub(r"\x1b\[[01]m", "", painted) == found.text(width, verbosity)


def test_how_much_is_said() -> None:
    found = explained("attention", "h200")
    quiet, normal, full = (found.text(100, verbosity).splitlines() for verbosity in (0, 1, 2))
    assert len(quiet) <= 15 < len(normal) <= 100 < len(full)
    assert any(line.startswith("Chosen for h200 (") for line in quiet)
    for heading in ("Derivation, from 7 kernels", "Candidates side by side", "Their loops", "Refused in the chosen"):
        assert any(line.startswith(heading) for line in normal) and not any(line.startswith(heading) for line in quiet)
    for heading in ("Space taken", "Computed:", "Lists of the snapshots", "Parts looked at (*"):
        assert any(line.startswith(heading) for line in full) and not any(line.startswith(heading) for line in normal)


def test_everything_has_exact_numbers_and_every_step() -> None:
    (part,) = explained("attention", "toy").parts
    text = " ".join(explained("attention", "toy").text(100, 2).split())
    for step in part.steps:
        assert f"{step.snapshot}.{step.number} {step.rule}" in text
        assert step.before.machine is not None and step.after.machine is not None
        before, after = (
            ways(part.machine, found.machine.boundaries) for found in (step.before, step.after) if found.machine
        )
        for way in before.keys() | after.keys():
            if before.get(way, 0) != after.get(way, 0):
                name = "dram bytes" if "dram" in way else " - ".join(way)
                assert f"{name} {before.get(way, 0):,} -> {after.get(way, 0):,}" in text


def test_the_choice_has_a_runner_up_and_a_margin() -> None:
    (part,) = explained("attention", "toy").parts
    times = [found.choice.cost.seconds for found in part.found.candidates if found.choice.cost is not None]
    best, second = sorted(times)[:2]
    assert best == part.found.cost.seconds
    assert margin(part.alternatives) == pytest.approx(second / best - 1) and second / best > 1.1
    assert f"{100 * (second / best - 1):.0f} % slower" in " ".join(str(explained("attention", "toy")).split())


def test_what_is_as_fast_is_called_so() -> None:
    (part,) = explained("attention", "h200").parts
    assert part.alternatives[1].as_fast
    assert "as fast, with more loops" in " ".join(explained("attention", "h200").text(100, 0).split())


def test_there_may_be_nothing_to_choose_from() -> None:
    assert "none: there is no other" in str(explained("attention"))


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "target"), [("attention", "toy"), ("mlp", "cpu"), ("cosine_attention", "cpu")])
def test_steps_lead_from_the_unfused_program_to_the_chosen_one(name: str, target: str) -> None:
    for part in explained(name, target).parts:
        way = [step.step for step in part.steps if step.number in part.way]
        programs = [part.derivation.unfused, *(step.after for step in way)]
        assert [step.before for step in way] == programs[:-1]
        assert programs[-1] is part.derivation.snapshots[part.base]


def test_bytes_of_steps_are_those_of_the_machine() -> None:
    """With all lists in the outermost tier, the last step moves what the chosen plan does."""
    for target in ("cpu", "h200"):
        (part,) = explained("attention", target).parts
        last = part.steps[-1].after
        assert last.machine is not None and last.cost.traffic_bytes == part.plan.costs[0].traffic_bytes
        assert ways(part.machine, last.machine.boundaries) == ways(part.machine, part.found.cost.boundaries)
        outermost = next(iter(ways(part.machine, part.found.cost.boundaries).values()))
        assert outermost == last.cost.traffic_bytes


def applied(rules: set[str]) -> Iterator[tuple[Step, dict[str, int], dict[str, int]]]:
    """Steps of all examples, with all dimensions cut and without, and sizes and blocks."""
    for name in NAMES:
        path = EXAMPLES / f"{name}.blk"
        program = next(iter(parse_all(path.read_text(), path.name).values()))
        sizes = driver.default_sizes(program, {})
        for tiles in ({}, {dim.name: 1 for dim in program.dims}):
            derivation = driver.derive(program, sizes, tiles)
            whole = derivation.unfused.whole
            blocks = {dim.name: min(sizes[dim.name], 64) for dim in program.dims if dim.name not in whole}
            yield from ((step, sizes, blocks) for step in derivation.steps if step.rule in rules)


def joins_operators(step: Step) -> bool:
    """True for a step that joins what has no map in it that goes on with a list between the two."""
    nodes = {name: node for graph in graphs(step.before.body) for node in graph for name in node.defines}
    found = [nodes[name] for name in step.at]
    if len(found) == 1:
        return True
    first, second = found
    assert isinstance(first, Map) and isinstance(second, Map)
    ports = [port for port in second.ports if port.source in first.defines]
    ports = ports or [port for port in second.ports if port.source in {other.source for other in first.ports}]
    return all(step.before.types[port.name].is_item for port in ports)


def test_refusals_would_save_what_applied_rules_save() -> None:
    """What is said of a place where a rule does not apply is right where it does."""
    seen = {"fuse_consecutive_maps": 0, "fuse_sibling_maps": 0, "fuse_map_with_reduce": 0}
    for step, sizes, blocks in applied(set(seen)):
        if joins_operators(step):
            saved = saved_bytes(
                step.before, Refused(0, step.rule, "", step.at, ""), passing(step.before, sizes, blocks)
            )
            before, after = (cost(program, sizes, blocks).traffic_bytes for program in (step.before, step.after))
            assert saved == before - after
            seen[step.rule] += 1
    assert min(seen.values()) > 10


def test_refusals_come_with_the_most_valuable_first() -> None:
    (part,) = explained("mlp").parts
    for number in range(len(part.derivation.snapshots)):
        saved = [found.saved or 0 for found in part.refusals if found.refused.snapshot == number]
        assert saved == sorted(saved, reverse=True)
    (hidden,) = [found for found in part.refusals if found.refused.rule == "rematerialise"]
    stored = 4 * part.plan.sizes["m"] * part.plan.sizes["z"]  # and every block of e reads it
    blocks = -(-part.plan.sizes["e"] // part.plan.tiles["e"]) if "e" in part.plan.tiles else 1
    assert hidden.saved == stored * (1 + blocks)
    text = (EXAMPLES / "mlp.blk").read_text().splitlines()
    assert [text[line - 1].split()[0] for line in hidden.lines] == ["H", "Y"]


def test_what_is_not_in_one_kernel_is_listed() -> None:
    assert explained("attention").apart == () and "Neighbours" not in str(explained("attention"))
    found = explained(*IN_PARTS)
    assert [(pair.first, pair.second) for pair in found.apart] == [("S.13", "S")]
    assert all(not pair.together and pair.reason is not None for pair in found.apart)
    assert "S.13 and S (1.05 MB): they are in different parts" in " ".join(str(found).split())
    assert len(found.text(100, 0).splitlines()) < 20


def test_algebra_saves_no_bytes_by_itself() -> None:
    (part,) = explained("attention").parts
    assert {(found.refused.rule, found.saved) for found in part.refusals} == {("reassociate_contraction", None)}
    assert "reassociate_contraction: not_linear, 2 places; no bytes by itself" in str(explained("attention"))


def test_every_program_is_priced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`explain` is quick: placing a program is most of what it takes to price a step."""
    from blockc.inspector import explanation

    seen: list[int] = []

    def counted(program: Program, *rest: Any) -> Any:
        seen.append(id(program))
        return right(program, *rest)

    right = place
    monkeypatch.setattr(explanation, "place", counted)
    (part,) = explain_for("toy", explained("attention", "toy").partition).parts
    assert len(seen) == len(set(seen)) == 1 + len(part.steps)


# --- JSON -------------------------------------------------------------------------------------------------------------


def closed(schema: Any, name: str = "") -> Any:
    """The schema with nothing allowed that it does not describe."""
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value, key) for key, value in schema.items()}
    if "allOf" in found or schema == {"$ref": "#/$defs/part"}:
        return (
            {"allOf": [found], "unevaluatedProperties": False}
            if "$ref" in found
            else {**found, "unevaluatedProperties": False}
        )
    if "properties" in found and found.get("type") == "object" and name != "part":
        return {**found, "additionalProperties": False}
    return found


@cache
def validator() -> Any:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    strict = closed(schema)
    first = strict["oneOf"][0]
    first["allOf"] = schema["oneOf"][0]["allOf"]  # together they describe all keys
    return jsonschema.Draft202012Validator(strict)


@pytest.mark.parametrize("name", NAMES)
def test_json_is_what_the_schema_says(name: str) -> None:
    check_json(explained(name))


def test_json_of_machines_and_parts_is_what_the_schema_says() -> None:
    check_json(explained("attention", "toy"))
    check_json(explained(*IN_PARTS))


def check_json(found: Explanation) -> None:
    value = json.loads(json.dumps(found.to_json()))
    assert [error.message[:300] for error in validator().iter_errors(value)] == []
    for part in value.get("parts", [value]):
        assert 0 <= part["chosen"] < len(part["snapshots"])
        assert [step["number"] for step in part["steps"]] == list(range(1, len(part["steps"]) + 1))
        for step in part["steps"]:
            for key in ("traffic_bytes", "flops", "local_bytes"):
                assert step[f"{key}_delta"] == step["after"][key] - step["before"][key]
        assert [entry["why"] == "" for entry in part["machine"]["candidates"]].count(True) >= 1


def test_the_schema_finds_what_it_does_not_describe() -> None:
    value = explained("mlp").to_json()
    change: dict[str, Any]
    for change in ({"schema": "blockc.explain/2"}, {"colour": 1}, {"steps": [{}]}, {"chosen": -1}, {"cuts": None}):
        assert not validator().is_valid({**value, **change})
    assert not validator().is_valid({key: entry for key, entry in value.items() if key != "machine"})


# --- the command and kernels ------------------------------------------------------------------------------------------


def test_the_command_prints_as_much_as_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", str(EXAMPLES / "mlp.blk"), "--verbosity"]
    texts = []
    for verbosity in ("0", "1", "2"):
        assert cli.main([*arguments, verbosity]) == 0
        texts.append(capsys.readouterr().out)
    assert len(texts[0]) < len(texts[1]) < len(texts[2])
    assert cli.main([*arguments, "3"]) == 2


def test_a_file_gets_lines_of_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.window_width() == 100
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli.window_width() == 60


def test_a_kernel_explains_itself_as_the_command_does(capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES / "attention.blk"
    kernel = blockc.compile(path, dims={"m": 96, "n": 80})
    before = str(kernel.explain())
    assert cli.main(["explain", str(path), "--dim", "m=96", "--dim", "n=80"]) == 0
    assert before + "\n" == capsys.readouterr().out
    sizes = {"b": 1, "h": 1, "m": 96, "n": 80, "d": 64, "e": 64}
    kernel.specialise(sizes)
    assert dict(kernel.explain().partition.sizes) == sizes


# --- notebooks --------------------------------------------------------------------------------------------------------


def test_a_notebook_shows_tables_and_pictures() -> None:
    text = explained("attention", "toy")._repr_html_()
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and not tags.names & {"script", "img", "link", "iframe", "object", "form"}
    assert not tags.addresses - {"http://www.w3.org/2000/svg"}
    assert "url(" not in text and "@import" not in text and len(text) < 400_000
    (part,) = explained("attention", "toy").parts
    changing = [step for step in part.steps if step.number in part.way and step.before.cost != step.after.cost]
    assert text.count("<svg ") == 1 + min(12, len(changing)) and text.count("<style>") == 1
    most = max(changing, key=lambda step: step.before.cost.traffic_bytes - step.after.cost.traffic_bytes)
    assert f"<summary>{most.snapshot}.{most.number} {most.rule} at " in text
    assert "safe arithmetic, tiers of lists" in text and "O.19 in sram" in text


def test_what_users_write_is_text_in_a_notebook() -> None:
    evil = "<script>alert('x')</script><img src=x onerror=alert(1)>&\u202e"
    found = explained("mlp").partition
    (part,) = found.parts
    machine = replace(part.plan.machine, description=evil)
    parts = (replace(part, plan=replace(part.plan, machine=machine, note=evil)),)
    program = replace(found.program, name=evil)
    text = explain_for(evil, replace(found, program=program, parts=parts))._repr_html_()
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and not tags.names & {"script", "img"} and "\u202e" not in text
    assert text.count("&lt;script&gt;alert(") >= 3


class Tags(HTMLParser):
    """The elements of a page: which there are, which are still open, and all addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.open: list[str] = []
        self.addresses: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.open.append(tag)
        self.addresses |= {value for name, value in attrs if value and (name in ("href", "src") or "://" in value)}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# --- the walk through a derivation ------------------------------------------------------------------------------------


@cache
def walkthrough() -> Any:
    """The script that draws the pictures of examples/README.md."""
    spec = importlib.util.spec_from_file_location("walkthrough", EXAMPLES / "walkthrough.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_of_the_walk_are_those_that_are_drawn() -> None:
    drawn = walkthrough().pictures()
    there = {path.name: path.read_text(encoding="utf-8") for path in (EXAMPLES / "pictures").iterdir()}
    assert sorted(drawn) == sorted(there)
    assert [name for name in drawn if drawn[name] != there[name]] == [], "run python examples/walkthrough.py"
    text = (EXAMPLES / "README.md").read_text()
    assert re.findall(r"\(pictures/(.*?)\)", text) == sorted(there)
    assert all(len(text) < 40_000 for text in there.values())
    for name, bytes_ in (("1-unfused", "4.99 GB"), ("6-one-loop", "75.5 MB")):
        assert f"{bytes_} moved" in drawn[f"{name}.svg"] and bytes_ in text


def test_every_example_is_listed_with_its_kernels() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\]\((\w+)\.blk\) \|.*\| (\d+) \| (\d+) \|$", (EXAMPLES / "README.md").read_text(), re.M
    )
    assert [name for name, _, _, _ in rows] == [file for _, file, _, _ in rows] == list(NAMES)
    for name, _, before, after in rows:
        (part,) = explained(name).parts
        assert (part.unfused.cost.kernels, len(part.found.cost.kernels)) == (int(before), int(after))


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_tables_give_way_to_narrow_windows() -> None:
    cells = tuple(map(Cell, ("alpha", "b")))
    shown = (
        Column("name", cells, head=True),
        Column("bytes", tuple(map(Cell, ("10 -> 200", ""))), right=True, short=tuple(map(Cell, ("-> 200", "")))),
        Column("more", tuple(map(Cell, ("1", "2"))), spare=True),
    )
    assert table(shown, 40) == ["  name       bytes  more", "  alpha  10 -> 200  1", "  b                 2"]
    assert table(shown, 20) == ["  name       bytes", "  alpha  10 -> 200", "  b"]
    assert table(shown, 16) == ["  name    bytes", "  alpha  -> 200", "  b"]
    assert table(shown, 12) == ["  alpha", "      bytes 10 -> 200,", "      more 1", "  b", "      more 2"]


def test_blocks_stand_beside_one_another_where_there_is_room() -> None:
    blocks = [["one", "1"], ["two"], ["three", "3", "33"]]
    assert beside(blocks, 40) == ["  one    two    three", "  1             3", "                33"]
    assert beside(blocks, 12) == ["  one    two", "  1", "", "  three", "  3", "  33"]


def test_loops_in_short() -> None:
    (part,) = explained("attention", "toy").parts
    chosen = part.alternatives[0]
    assert chosen.placement == {"O.19": "sram"}
    assert skeleton(chosen.program, chosen.placement, "dram") == [
        "map b, h, m {",
        "  loop n {",
        "    loop d {",
        "      contract[d]",
        "    }",
        "    mul, max[n], exp, sum[n]",
        "    map e {",
        "      contract[n]",
        "    }",
        "    keeps O.19 in sram",
        "  }",
        "  where",
        "  map e {",
        "    mul, cast",
        "  }",
        "}",
    ]


def test_alternatives_are_those_that_were_searched() -> None:
    (part,) = explained("attention", "h200").parts
    found = alternatives(part.found, part.plan)
    assert len(found) == len(part.found.candidates) and found[0].chosen and not any(one.chosen for one in found[1:])
    assert [one.seconds for one in found[1:]] == sorted(one.seconds for one in found[1:])
    assert all(one.why for one in found[1:]) and all(math.isfinite(one.seconds) for one in found)
