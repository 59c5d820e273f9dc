"""The report: a page that is whole, safe whatever names are, and true to the derivation, the costs and the kernels."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from report_pages import EXAMPLES, HOSTILE, Parsed, data_of, page_of

from blockc import driver
from blockc.cli import main
from blockc.drawing import Node, boxes, draw_program, nodes
from blockc.errors import visible
from blockc.inspector.frames import Camera, change
from blockc.inspector.nests import folded
from blockc.inspector.pictures import step_picture
from blockc.inspector.report_page import allowed, embedded
from blockc.inspector.report_rules import rule_json
from blockc.inspector.report_source import pieces
from blockc.inspector.report_steps import Stop, chosen_stops
from blockc.inspector.report_timeline import affordable_sizes, timeline_json
from blockc.ir.decisions import Derivation
from blockc.ir.plan import Plan
from blockc.language import parse
from blockc.machines.loading import load_machine
from blockc.partition import partition
from blockc.passes.rules import ALL_RULES

SMALL = (("b", 1), ("h", 2), ("m", 256), ("n", 256))


def attention() -> dict[str, Any]:
    """The data of attention on the toy and on a GPU."""
    return data_of(page_of("attention.blk", "toy", "h200", dims=SMALL))


def derived(name: str = "attention.blk") -> tuple[Derivation, Plan]:
    program = driver.load_program(EXAMPLES / name)
    return driver.planned(driver.Forms(program, {"m": 64, "n": 64}), driver.default_sizes(program, dict(SMALL)))


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["attention.blk", HOSTILE], ids=["attention", "hostile"])
def test_a_page_requests_nothing_and_allows_only_its_own_script_and_style(source: str) -> None:
    page = page_of(source, "toy", "h200", dims=SMALL) if source != HOSTILE else page_of(source, "toy")
    parsed = Parsed(page)
    names = {name for _, attributes in parsed.elements for name in attributes}
    assert not names & {"src", "srcset", "style", "action", "data", "poster", "background"}
    assert not {name for name in names if name.startswith("on")}
    assert not {tag for tag, _ in parsed.elements} & {"link", "img", "iframe", "object", "embed", "base", "svg:image"}
    links = [attributes["href"] for _, attributes in parsed.elements if "href" in attributes]
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert max(Counter(ids).values()) == 1
    assert {str(link).removeprefix("#") for link in links} <= set(map(str, ids))
    assert all(str(link).startswith("#") for link in links)
    labels = [attributes.get("aria-labelledby") for _, attributes in parsed.elements]
    assert {label for label in labels if label} <= set(map(str, ids))
    (policy,) = [a["content"] for _, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
    (style,) = parsed.texts["style"]
    script = parsed.texts["script"][-1]
    hashes = f"style-src '{allowed(style)}'; script-src '{allowed(script)}'"
    assert policy == f"default-src 'none'; {hashes}; base-uri 'none'; form-action 'none'"
    assert "url(" not in style and "@import" not in style
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|fetch\(|XMLHttp|import\(", script
    )
    assert len(page.encode()) < 1_000_000


def test_hostile_texts_stay_texts() -> None:
    page = page_of(HOSTILE, "toy")
    parsed = Parsed(page)
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    assert "".join(parsed.texts["title"]) == "constructor: fusion report"
    (data,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert not re.search(r"[<>&\u2028\u2029]", data)
    lines = data_of(page)["machines"][0]["source"]["lines"]
    assert ["".join(text for text, _ in line) for line in lines] == [visible(line) for line in HOSTILE.splitlines()]


def test_data_in_a_script_element_read_back_as_they_were() -> None:
    data = {"text": "</script><!-- & \u2028 \u2029 \x00 \" ' \\ ü"}
    kind, text = embedded(data)
    assert kind == "application/json" and json.loads(text) == data
    assert not set(text) & set("<>&\u2028\u2029")
    many = {"texts": [data["text"]] * 100_000}
    kind, text = embedded(many)
    assert kind == "text/plain" and len(text) < 100_000
    assert data_of(f'<script type="{kind}" id="data">{text}</script>') == many


# --- the derivation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1], ids=["toy", "h200"])
def test_every_step_is_a_stop_with_a_picture(at: int) -> None:
    for part in attention()["machines"][at]["parts"]:
        found = part["steps"]
        stops = found["stops"]
        assert stops[0]["rule"] == "" and stops[-1]["rule"] == "stabilize"
        assert all(stop["rule"] in attention()["rules"] for stop in stops[1:])
        for number, stop in enumerate(stops):
            frame = found["frames"][stop["frame"]]
            shown = [found["places"][index] for index in frame["places"]]
            numbers = [place[0] for place in shown]
            assert len(set(numbers)) == len(numbers)
            assert set(stop["added"]) | set(stop["changed"]) <= set(numbers)
            for source, target, *_ in (found["ways"][index] for index in frame["ways"]):
                assert source in numbers and target in numbers
            if number:
                assert 0 <= stop["before"] < number
                before = found["frames"][stops[stop["before"]]["frame"]]
                assert set(stop["removed"]) <= {found["places"][index][0] for index in before["places"]}
                assert stop["text"] and all(line < len(found["lines"]) for _, *lines in stop["text"] for line in lines)
            left, top, width, height = frame["size"]
            for place in shown:
                x, y, wide, high = place[2:6]
                assert left <= x and x + wide <= left + width + 1 and top <= y and y + high <= top + height + 1


def test_the_number_of_a_node_stands_for_the_same_name_in_all_pictures() -> None:
    for part in attention()["machines"][1]["parts"]:
        found = part["steps"]
        names: dict[int, set[str]] = {}
        for number, look, *rest in found["places"]:
            kind, _, defined, *_ = found["looks"][look]
            if len(rest) == 4 and kind != "pin":
                names.setdefault(number, set()).add(defined[0])
        assert max(map(len, names.values())) == 1


def test_the_text_of_a_step_makes_the_program_behind_it_of_the_one_before() -> None:
    for part in attention()["machines"][0]["parts"]:
        found = part["steps"]
        for stop in found["stops"][1:]:
            signs = Counter(sign for sign, *_ in stop["text"])
            assert signs["+"] + signs["-"] > 0
            texts = [found["lines"][entry[1]].strip() for entry in stop["text"] if entry[0] in "+-"]
            assert len(texts) == len([text for text in texts if text])


@pytest.mark.parametrize("name", ["attention.blk", "rmsnorm_swiglu.blk"])
def test_folding_nests_keeps_every_operator_and_every_byte(name: str) -> None:
    derivation, plan = derived(name)
    for program in (derivation.unfused, derivation.steps[-1].before, *derivation.snapshots):
        plain = draw_program(program, plan.sizes, plan.tiles)
        short = folded(plain)
        assert operators(short) == operators(plain)
        inner = [part for one in boxes(short) for part in (*nodes(one), *one.content)]
        known = {part.number for part in inner}
        assert all(edge.source in known and edge.target in known for one in boxes(short) for edge in one.edges)
        assert len(list(boxes(short))) <= len(list(boxes(plain)))
        shown, every = (Counter(moved(box)) for box in (short, plain))
        assert shown.keys() <= every.keys() and shown.keys() >= set(innermost(plain))


def operators(box: Any) -> list[tuple[str, ...]]:
    return sorted(node.text[:1] for one in boxes(box) for node in nodes(one) if node.kind == "operator")


def moved(box: Any) -> list[int]:
    return [node.moved for one in boxes(box) for node in nodes(one) if node.moved]


def innermost(box: Any) -> list[int]:
    """The bytes of ports of items, where they are loaded."""
    every = [node for one in boxes(box) for node in nodes(one) if isinstance(node, Node)]
    return [node.moved for node in every if node.kind == "port" and not node.heavy and node.moved]


def test_most_of_a_picture_stays_where_it_was() -> None:
    derivation, plan = derived()
    camera = Camera(plan.sizes, plan.tiles)
    after = None
    far = kept = 0
    for program in (derivation.snapshots[-1], *(step.before for step in reversed(derivation.steps))):
        frame = camera.frame(program, after)
        if after is not None:
            places = {one.number: one.place for one in after.nodes}
            both = [one for one in frame.nodes if one.number in places]
            far += sum(abs(one.place.x - places[one.number].x) > 60 for one in both)
            kept += len(both)
        after = frame
    assert kept > 500
    assert far < 0.1 * kept


def test_a_picture_of_a_step_marks_what_it_changes() -> None:
    derivation, plan = derived()
    step = derivation.steps[-1]
    text = step_picture(step, plan.sizes, plan.tiles)
    assert text == step_picture(step, plan.sizes, plan.tiles)
    assert "changed" in text.partition("</style>")[2] and "<script" not in text
    camera = Camera(plan.sizes, plan.tiles)
    frame = camera.frame(step.after)
    assert change(frame, camera.frame(step.after, frame)) == change(frame, frame)
    assert not change(frame, frame).changed


def test_long_derivations_have_pictures_of_some_stops() -> None:
    derivation, _ = derived()
    every = [Stop(derivation.unfused, at - 1, at // 40, "rule") for at in range(100)]
    chosen = chosen_stops(every, 10)
    assert {0, 39, 79, 99} <= set(chosen) and len(chosen) <= 13
    assert chosen_stops(every, 100) == list(range(100))


def test_every_rule_has_a_text_and_an_example() -> None:
    for rule in ALL_RULES:
        found = rule_json(rule.name)
        assert found["text"] and found["before"] and found["after"], rule.name
        assert all(line == line.rstrip() for line in (*found["before"], *found["after"]))


# --- source, costs, kernels, timeline --------------------------------------------------------------------------------


def test_the_source_is_whole_and_every_operator_has_its_kernels() -> None:
    program = driver.load_program(EXAMPLES / "attention.blk")
    for machine in attention()["machines"]:
        source = machine["source"]
        lines = ["".join(text for text, _ in line) for line in source["lines"]]
        assert lines == program.source.splitlines()
        shown = {index for line in source["lines"] for _, own in line for index in own}
        assert shown == set(range(len(source["operators"])))
        assert all(operator["kernels"] or operator["removed"] for operator in source["operators"])
        for at, part in enumerate(machine["parts"]):
            assert len(part["steps"]["kernels"]) == [kernel["part"] for kernel in source["kernels"]].count(at)
            assert all(part["steps"]["kernels"])
        assert len(source["kernels"]) == machine["kernels"] == sum(part["kernels"] for part in machine["parts"])


def test_neighbours_in_different_kernels_have_their_reason() -> None:
    for machine in attention()["machines"]:
        source = machine["source"]
        places = {operator["name"]: operator["kernels"] for operator in source["operators"]}
        for pair in source["pairs"]:
            assert pair["why"] and not set(pair["kernels"][0]) & set(pair["kernels"][1])
            assert [places[pair["first"]], places[pair["second"]]] == pair["kernels"]


def test_pieces_of_source_belong_to_the_innermost_operators() -> None:
    program = driver.load_program(EXAMPLES / "attention.blk")
    assert all(not own for line in pieces(program.source, ()) for _, own in line)


def test_costs_are_those_of_the_plan() -> None:
    for machine in attention()["machines"]:
        for part in machine["parts"]:
            costs = part["costs"]
            assert [row["chosen"] for row in costs["candidates"]].count(True) == 1
            assert [point["kind"] for point in costs["roofline"]["points"]].count("chosen") == 1
            roofs = {tier["name"]: tier["bandwidth"] for tier in costs["roofline"]["tiers"]}
            best = costs["roofline"]["rates"][0]["rate"]
            for point in costs["roofline"]["points"]:
                assert point["rate"] <= best
                if machine["name"] == "toy":  # no cache that serves several units with one read
                    assert all(point["rate"] <= 1.001 * roofs[tier] * at for tier, at in point["intensity"].items())
            assert costs["snapshots"][0]["bytes"] == part["before"]["bytes"]
            chosen = [row for row in costs["snapshots"] if row["chosen"]]
            assert [row["bytes"] for row in chosen] == [part["after"]["bytes"]] or "cut again" in costs["choice"][
                "form"
            ]


def test_lines_of_kernels_are_linked_with_the_program() -> None:
    toy, gpu = (machine["emitted"] for machine in attention()["machines"])
    assert toy["kind"] == "schedule" and gpu["kind"] == "Triton"
    for found in (toy, gpu):
        linked = [
            (line, found["program"][to]) for line, to in zip(found["source"], found["links"], strict=True) if to >= 0
        ]
        assert len(linked) > 10
    for line, definition in zip(gpu["source"], gpu["links"], strict=True):
        if line.strip().startswith("# ") and definition >= 0 and line.strip()[2:] in gpu["program"]:
            assert gpu["program"][definition].strip() == line.strip()[2:]
    dots = [gpu["program"][to] for line, to in zip(gpu["source"], gpu["links"], strict=True) if "tl.dot(" in line]
    assert dots and all("contract" in line for line in dots)
    for line, to in zip(toy["source"], toy["links"], strict=True):
        if " = " in line and to >= 0:
            assert line.split()[0] in toy["program"][to]


def test_the_timeline_fits_its_tiers_and_says_its_sizes() -> None:
    for machine in attention()["machines"]:
        for part in machine["parts"]:
            found = part["timeline"]
            assert not found["why"] and found["held"] and found["busy"]
            assert all(max(row["values"]) <= row["top"] for row in found["held"])
            assert all(0 < row["share"] <= 1 for row in found["busy"])
            assert all(0 <= value <= 1 for row in found["busy"] for value in row["values"])
            assert found["smaller"] == (found["sizes"] != part["sizes"])


def test_what_takes_too_long_is_simulated_at_smaller_sizes() -> None:
    program = parse("program p(X: f16[s, d], W: f16[d, c]) -> Y: f16[s, d] { Y = dot[d](X, W)[c -> d] }", "p.blk")
    (part,) = partition(program, load_machine("toy"), {"s": 64, "d": 128, "c": 128}, {"s": 16, "d": 16}).parts
    for share, smaller in ((1.0, False), (0.05, True)):
        found = timeline_json(part, share)
        assert not found["why"] and found["smaller"] == smaller
        sizes = affordable_sizes(part, share)
        assert sizes is not None and sizes["c"] == sizes["d"]
    assert affordable_sizes(part, 0.0) is not None  # one block along every dimension


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "p.blk", tmp_path / "out.html"
    source.write_text("program double(X: f32[m]) -> Y: f32[m] { Y = 2 * X + size(m) }\n")
    assert main(["report", str(source), "-o", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"program": "double", "targets": ["cpu"], "file": str(out), "bytes": out.stat().st_size}
    assert data_of(out.read_text())["machines"][0]["emitted"]["kind"] == "NumPy"
    assert main(["report", str(source), "-o", str(tmp_path / "out.txt")]) == 2
    assert main(["report", str(source), "-o", str(out), "--against", "nothing"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "p.blk"]
