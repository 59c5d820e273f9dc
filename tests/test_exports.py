"""Programs as JSON, DOT and SVG: complete, with the cost model's bytes, well-formed whatever names are, and tidy."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from generator import random_program, random_sizes, random_tiles

from blockc import driver
from blockc.cli import main
from blockc.drawing import Box, Node, boxes, draw_array_program, draw_program, nodes
from blockc.drawing_dot import dot
from blockc.drawing_layout import CHARACTER, Layout, Rectangle, layout
from blockc.drawing_svg import svg
from blockc.ir.block import Map, Program, roots, walk
from blockc.ir.decisions import Derivation
from blockc.ir.plan import Plan
from blockc.kernel import compile
from blockc.language import parse
from blockc.passes.cost import traffic
from blockc.passes.lower import lower
from blockc.program_json import program_json
from blockc.showing import Shown

EXAMPLES = Path(__file__).parent.parent / "examples"
ATTENTION, NORM = str(EXAMPLES / "attention.blk"), str(EXAMPLES / "rmsnorm_swiglu.blk")
SVG = "{http://www.w3.org/2000/svg}"


@cache
def compiled(path: str, *chunks: str) -> tuple[Derivation, Plan]:
    """An example with its default sizes, and blocks of which there are several, or chunks of them."""
    program = driver.load_program(path)
    forms = driver.Forms(program, {dim.name: 128 for dim in program.dims if dim.name in ("m", "n")})
    return driver.planned(forms, driver.default_sizes(program, {}), dict.fromkeys(chunks, 2))


def programs() -> dict[str, Shown]:
    """Unfused, fused and planned programs: causal attention has a loop with a condition, in two parts."""
    found = {}
    for path in (ATTENTION, NORM, str(EXAMPLES / "causal_attention.blk")):
        derivation, plan = compiled(path)
        name = Path(path).stem
        found[f"{name}, unfused"] = Shown(derivation.unfused, plan.sizes, plan.tiles)
        found[f"{name}, snapshot"] = Shown(derivation.snapshots[-1], plan.sizes, plan.tiles)
        found[f"{name}, plan"] = Shown(plan.program, plan.sizes, plan.tiles)
    _, plan = compiled(ATTENTION, "n")
    return {**found, "attention, in chunks": Shown(plan.program, plan.sizes, plan.tiles)}


def random_programs() -> Iterator[Shown]:
    """Unfused programs of many shapes."""
    for seed in range(12):
        program = parse(random_program(seed), "random.blk")
        sizes = random_sizes(seed, program)
        unfused = lower(program, frozenset())
        tiles = {dim.name: 2 for dim in unfused.dims}
        yield Shown(unfused, sizes, {**tiles, **random_tiles(seed, sizes)})


def drawing(shown: Shown) -> Box:
    return draw_program(shown.program, shown.sizes, shown.tiles)


def names_of(program: Program) -> set[str]:
    """Every name that a program binds."""
    ports = {port.name for node in walk(program.body) if isinstance(node, Map) for port in node.ports}
    results = {result.argument.name for result in program.outputs}
    bound = {name for definition in walk(program.body) for name in definition.defines}
    return {entry.name for entry in program.inputs} | bound | ports | results


def json_names(value: Any) -> Iterator[str]:
    """Every name that a JSON document says to be bound."""
    if isinstance(value, list):
        for part in value:
            yield from json_names(part)
    elif isinstance(value, Mapping):
        if isinstance(value.get("type"), Mapping):
            yield value["name"]
        if "types" in value:
            yield from value["names"]
        if isinstance(value.get("argument"), Mapping):
            yield value["argument"]["name"]
        for part in value.values():
            yield from json_names(part)


@pytest.mark.parametrize("case", programs())
def test_everything_is_in_every_format(case: str) -> None:
    shown = programs()[case]
    picture = drawing(shown)
    wanted = names_of(shown.program)
    assert set(json_names(program_json(shown.program, shown.sizes, shown.tiles))) == wanted
    tree = ElementTree.fromstring(svg([picture], case))
    texts = {element.text for element in tree.iter(f"{SVG}text")}
    tips = {name for group in tree.iter(f"{SVG}g") for name in (group.get("data-name") or "").split(", ") if name}
    assert tips == wanted
    assert {line for box in boxes(picture) for node in nodes(box) for line in node.text} <= texts
    named = {
        name for found in re.findall(r'tooltip="([^"]*)"\]$', dot([picture], case), re.M) for name in found.split(", ")
    }
    assert wanted <= named


@pytest.mark.parametrize("case", programs())
def test_bytes_are_those_of_the_cost_model(case: str) -> None:
    shown = programs()[case]
    moved = traffic(shown.program, shown.sizes, shown.tiles)
    value = json.loads(json.dumps(program_json(shown.program, shown.sizes, shown.tiles), allow_nan=False))
    found = {(entry["value"], entry["direction"]): entry["bytes"] for entry in value["traffic"]}
    assert found == moved and value["traffic_bytes"] == sum(moved.values())
    counted: Counter[tuple[str, str]] = Counter()
    types, outermost = shown.program.types, roots(shown.program)
    for name, size in json_bytes(value["body"]):
        if types[name].is_item or name in made_here(shown.program):
            counted[outermost.get(name, name), "load"] += size["loaded"]
            counted[outermost.get(name, name), "store"] += size["stored"]
    for edge in drawing(shown).edges:
        counted[edge.value, "load"] += 0 if edge.heavy else edge.moved  # items of the top graph, launch by launch
    assert {key: size for key, size in counted.items() if size} == {key: size for key, size in moved.items() if size}


def json_bytes(definitions: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, int]]]:
    """The bytes at ports, at outputs, and of what tile operators store, by name."""
    for node in definitions:
        if node["kind"] == "map":
            yield from ((port["name"], port["bytes"]) for port in node["ports"])
            yield from ((output["names"][0], output["bytes"]) for output in node["outputs"])
            yield from json_bytes(node["body"])
        elif node["kind"] == "apply":
            yield node["name"], {"loaded": 0, "stored": node["bytes"]["stored"]}


def made_here(program: Program) -> set[str]:
    """The lists that items are stacked to, or that are accumulated: not those that are only passed on."""
    maps = [node for node in walk(program.body) if isinstance(node, Map)]
    made = [output for node in maps for output in node.outputs]
    return {out.names[0] for out in made if out.monoid is not None or program.types[out.values[0]].is_item}


def test_bytes_are_those_of_explain() -> None:
    derivation, plan = compiled(ATTENTION)
    kernel = compile(ATTENTION, tiles={dim: plan.tiles[dim] for dim in ("m", "n")})
    explained = kernel.explain().to_json()
    unfused = program_json(derivation.unfused, plan.sizes, plan.tiles)
    assert unfused["traffic_bytes"] == explained["unfused"]["traffic_bytes"]
    chosen = program_json(plan.program, plan.sizes, plan.tiles)
    assert chosen["traffic_bytes"] == explained["snapshots"][explained["chosen"]]["traffic_bytes"]


# --- geometry --------------------------------------------------------------------------------------------------------


def inside(inner: Rectangle, outer: Rectangle) -> bool:
    return (
        outer.x <= inner.x
        and outer.y <= inner.y
        and inner.x + inner.width <= outer.x + outer.width
        and inner.y + inner.height <= outer.y + outer.height
    )


def apart(one: Rectangle, other: Rectangle) -> bool:
    return (
        one.x + one.width <= other.x
        or other.x + other.width <= one.x
        or one.y + one.height <= other.y
        or other.y + other.height <= one.y
    )


def title_of(box: Box, placed: Layout) -> Rectangle:
    x, y = placed.titles[box.number]
    return Rectangle(x, y, CHARACTER * max(map(len, box.title)), 16.0 * len(box.title))


def parts_of(box: Box) -> tuple[Node | Box, ...]:
    return (*box.entries, *box.content, *box.exits)


def problems(picture: Box) -> Iterator[str]:
    """What a person would find wrong with a picture."""
    placed = layout(picture)
    for box in boxes(picture):
        around, title = placed.places[box.number], title_of(box, placed)
        places = {part.number: placed.places[part.number] for part in parts_of(box)}
        if not inside(title, around):
            yield f"the title of {box.title[0]} sticks out"
        for number, place in places.items():
            if not inside(place, around):
                yield f"{number} sticks out of {box.title[0]}"
            if not apart(place, title):
                yield f"{number} lies on the title of {box.title[0]}"
            yield from (f"{number} and {o} overlap" for o in places if o < number and not apart(place, places[o]))
        for node in nodes(box):
            if any(CHARACTER * len(line) > placed.places[node.number].width for line in node.text):
                yield f"{node.text} is wider than its place"
    homes = {edge.source: box for box in boxes(picture) for edge in box.edges}
    for route in placed.routes:
        if any(below[1] < above[1] for above, below in zip(route.points, route.points[1:], strict=False)):
            yield f"{route.edge} goes up"
        box = homes[route.edge.source]
        for above, below in list(zip(route.points, route.points[1:], strict=False))[2:-2:2]:
            lane = Rectangle(above[0], above[1], 0.0, below[1] - above[1])
            if any(not apart(lane, placed.places[part.number]) for part in parts_of(box)):
                yield f"{route.edge} goes through something"


@pytest.mark.parametrize("case", programs())
def test_pictures_are_tidy(case: str) -> None:
    assert list(problems(drawing(programs()[case]))) == []


def test_pictures_of_random_programs_are_tidy() -> None:
    for shown in random_programs():
        assert list(problems(drawing(shown))) == []


def test_the_check_of_pictures_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockc.drawing_layout.GAP", -60.0)
    assert any("overlap" in problem for problem in problems(drawing(programs()["attention, snapshot"])))


def test_an_array_program_has_a_picture_too() -> None:
    program = driver.load_program(ATTENTION)
    picture = draw_array_program(program)
    assert list(problems(picture)) == []
    assert {name for node in nodes(picture) for name in node.names} >= {node.name for node in program.nodes}


# --- hostile names and determinism -----------------------------------------------------------------------------------

HOSTILE = {
    "Q": '</title><script>alert("1")</script>',
    "S": '&lt;"\\N\n]]>--',
    "P": "A" * 300,
    "m": "\u202eevil\u65e5\u672c",
}


def renamed(value: Any) -> Any:
    """A record with other names in it."""
    match value:
        case str():
            stem, point, number = value.partition(".")
            return HOSTILE.get(stem, stem) + point + number
        case tuple():
            return tuple(map(renamed, value))
        case frozenset():
            return frozenset(map(renamed, value))
        case Mapping():
            return {renamed(key): entry for key, entry in value.items()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fixed = {"op", "dtype", "monoid", "part"}
            fields = [field.name for field in dataclasses.fields(value) if field.init and field.name not in fixed]
            return dataclasses.replace(value, **{name: renamed(getattr(value, name)) for name in fields})
        case _:
            return value


def test_names_are_text_whatever_they_are() -> None:
    plain = programs()["attention, plan"]
    hostile = Shown(renamed(plain.program), renamed(plain.sizes), renamed(plain.tiles))
    picture, usual = drawing(hostile), drawing(plain)
    assert list(problems(picture)) == []
    tree = ElementTree.fromstring(svg([picture], HOSTILE["S"]))
    tags = {element.tag.removeprefix(SVG) for element in tree.iter()}
    assert tags == {"svg", "title", "style", "rect", "g", "text", "path", "circle"}
    assert HOSTILE["Q"] in {element.get("data-name") for element in tree.iter()}
    unquoted = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
    assert unquoted.sub("", dot([picture], "x")) == unquoted.sub("", dot([usual], "x"))
    labels = unquoted.findall(dot([picture], "x"))
    assert not any("\n" in label or re.search(r"\\[^\\\"nl]|&(?!amp;)", label.replace("\\\\", "")) for label in labels)
    value = program_json(hostile.program, hostile.sizes, hostile.tiles)
    assert HOSTILE["Q"] in {entry["name"] for entry in json.loads(json.dumps(value))["inputs"]}


def test_nothing_in_an_svg_comes_from_elsewhere() -> None:
    text = svg([drawing(programs()["attention, plan"])], "x").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|href|url\(|@import|<script|\bon\w+=", text)
    assert "prefers-color-scheme: dark" in text


def test_the_hash_seed_does_not_matter(capsys: pytest.CaptureFixture[str]) -> None:
    """Another process, with another seed than this one's, which is random unless someone has set it."""
    code = "from blockc.cli import main\n"
    code += "for form in ('svg', 'dot', 'json'): main(['show', FILE, '--stage', 'snapshot', '--format', form])"
    command = [sys.executable, "-c", code.replace("FILE", repr(NORM))]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    other = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
    for form in ("svg", "dot", "json"):
        main(["show", NORM, "--stage", "snapshot", "--format", form])
    assert other.decode() == capsys.readouterr().out
    assert other.count(b"<svg") == 1


# --- the command -----------------------------------------------------------------------------------------------------


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(("show", NORM, *arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("stage", ["array", "block", "snapshot", "stable", "plan"])
def test_show_has_formats(capsys: pytest.CaptureFixture[str], stage: str) -> None:
    code, out, _ = show(capsys, "--stage", stage, "--format", "json")
    value = json.loads(out)
    assert (code, value["schema"], value["stage"], len(value["programs"])) == (0, 1, stage, 1)
    code, out, _ = show(capsys, "--stage", stage, "--format", "svg")
    assert code == 0 and ElementTree.fromstring(out).tag == f"{SVG}svg"
    code, out, _ = show(capsys, "--stage", stage, "--format", "dot", "--json")
    assert code == 0 and json.loads(out)["text"].startswith(f'digraph "rmsnorm_swiglu, {stage}" {{')


def test_a_plan_for_a_machine_has_formats(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "double.blk").write_text("program double(X: f32[m]) -> Y: f32[m] { Y = 2 * X }\n")
    arguments = ["show", str(tmp_path / "double.blk"), "--stage", "plan", "--target", "toy", "--dim", "m=64"]
    assert main([*arguments, "--format", "json"]) == 0
    (program,) = json.loads(capsys.readouterr().out)["programs"]
    assert (program["name"], program["traffic_bytes"]) == ("double", 2 * 64 * 4)


def test_programs_in_parts_are_pictures_below_one_another() -> None:
    pictures = [drawing(programs()["attention, plan"]), drawing(programs()["rmsnorm_swiglu, plan"])]
    drawn = ElementTree.fromstring(svg(pictures, "x")).iter(f"{SVG}rect")
    assert [rect.get("class") for rect in drawn].count("box program") == 2
    made = re.findall(r'^ +("[0-9_]+") \[', dot(pictures, "x"), re.MULTILINE)
    assert len(made) == len(set(made)) == sum(1 for one in pictures for box in boxes(one) for _ in nodes(box))


@pytest.mark.parametrize("stage", ["schedule", "kernel"])
def test_stages_that_are_text_only_say_which_are_not(capsys: pytest.CaptureFixture[str], stage: str) -> None:
    code, out, err = show(capsys, "--stage", stage, "--format", "svg")
    assert (code, out) == (2, "")
    assert f"the stage {stage} is text only" in err and "array, block, snapshot, stable, plan" in err
