"""The documents are true: their commands run, their outputs are real, and what they mention exists.

In a document, a block marked `blk FILE` is a program, `console` holds commands after `$` with what they print, `python`
is a program that runs without an error, and `sh` is for readers. `--update-golden` rewrites the outputs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockc import cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")
BLOCK = re.compile(r"^```(?P<kind>[a-z]*) ?(?P<file>\S*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
MAIN_COMMAND = re.compile(r"^pip install -e \. && (blockc run .*)$", re.MULTILINE)
TEST_COMMAND = "pip install -e '.[dev]' && python -m pytest"


@dataclass(frozen=True)
class Block:
    """A fenced block: its kind, its file name if it has one, and its text."""

    document: str
    kind: str
    file: str
    body: str


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(kind: str) -> list[Block]:
    """All blocks of a kind."""
    found = [(name, match) for name in DOCUMENTS for match in BLOCK.finditer(text_of(name))]
    return [Block(name, kind, match["file"], match["body"]) for name, match in found if match["kind"] == kind]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the programs of the documents and the examples, and `blockc` on its path."""
    folder = tmp_path_factory.mktemp("documents")
    for block in blocks("blk"):
        (folder / block.file).write_text(block.body)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "bin").mkdir()
    command = folder / "bin" / "blockc"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m blockc "$@"\n')
    command.chmod(0o755)
    return folder


OutputOf = Callable[[str], str]


@pytest.fixture
def output_of(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> OutputOf:
    """What a command line prints. If it begins with `blockc`, that runs in this process, and what it prints goes
    through the rest of the pipe; other lines are for the shell."""
    monkeypatch.chdir(workplace)

    def output(command: str) -> str:
        simple = re.fullmatch(r"blockc ([^|;&<>']*)(?:\| (.*))?", command)
        if simple is None:
            return shell_output(command, workplace)
        capsys.readouterr()
        code = cli.main(shlex.split(simple[1]))
        printed = capsys.readouterr()
        assert code == 0, f"{command}\n{printed.err}"
        return shell_output(simple[2], workplace, printed.out) if simple[2] else printed.out

    return output


def shell_output(command: str, workplace: Path, standard_input: str = "") -> str:
    """What the shell prints for a command line."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{workplace / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    shell = ["bash", "-o", "pipefail", "-c", command]
    result = subprocess.run(
        shell, input=standard_input, cwd=workplace, env=variables, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stderr}"
    return result.stdout


def comparable(text: str) -> str:
    """The text without what differs from machine to machine: times and rounding errors."""
    return re.sub(
        r"^((?:time|error)\b.*)$", lambda line: re.sub(r"[0-9][0-9.e+-]*", "#", line[1]), text, flags=re.MULTILINE
    )


def replace_body(block: Block, body: str) -> None:
    """Writes a block's new text into its document."""
    head = f"```{block.kind} {block.file}".rstrip()
    old, new = f"{head}\n{block.body}```\n", f"{head}\n{body}```\n"
    assert text_of(block.document).count(old) == 1
    (ROOT / block.document).write_text(text_of(block.document).replace(old, new), encoding="utf-8")


def check(block: Block, body: str, config: pytest.Config) -> None:
    """Compares a block with what it should be, or makes it so."""
    if config.getoption("--update-golden"):
        if comparable(block.body) != comparable(body):
            replace_body(block, body)
    else:
        assert comparable(block.body) == comparable(body)


@pytest.mark.parametrize("block", blocks("console"), ids=lambda block: f"{block.document}: {block.body[:50]}")
def test_commands_print_what_the_document_says(block: Block, output_of: OutputOf, pytestconfig: pytest.Config) -> None:
    commands = [line[2:] for line in block.body.splitlines() if line.startswith("$ ")]
    assert commands
    check(block, "".join(f"$ {command}\n{output_of(command)}" for command in commands), pytestconfig)


def test_the_main_command_prints_what_the_readme_says(workplace: Path, pytestconfig: pytest.Config) -> None:
    (command,) = MAIN_COMMAND.findall(text_of("README.md"))
    (shown,) = blocks("text")
    check(shown, shell_output(command, workplace), pytestconfig)


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.document)
def test_python_examples_run(block: Block, workplace: Path) -> None:
    command = [sys.executable, "-c", block.body]
    subprocess.run(command, cwd=workplace, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def test_the_benchmark_measures_and_writes_what_it_says(tmp_path: Path) -> None:
    sizes = ["--rounds", "3", "--rows", "64", "--heads", "1", "--features", "64", "--hidden", "64", "--keys", "64"]
    command = [sys.executable, str(ROOT / "benchmarks" / "cpu.py"), *sizes, "--json", str(tmp_path / "results.json")]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert "attention f32, b=1, h=1, m=64, n=64, d=64, e=64" in result.stdout
    content = json.loads((tmp_path / "results.json").read_text())
    assert list(content) == ["machine", "options", "rows", "tiles"]
    measured = [(row["case"], row["candidate"]) for row in content["rows"]]
    candidates = ["blockc", "torch", "NumPy"]
    expected = {"attention": [*candidates, "in place"], "decode": [*candidates, "in place"]}
    expected |= {"layernorm_matmul": candidates, "rmsnorm_swiglu": candidates}
    assert measured == [(case, candidate) for case, names in expected.items() for candidate in names]
    assert all(row["max_difference"] < 1e-3 and row["median"] > 0 for row in content["rows"])
    assert content["tiles"] == []


def test_the_example_of_the_readme_is_the_one_in_the_folder() -> None:
    shown, *_ = [block for block in blocks("blk") if block.document == "README.md"]
    lines = (ROOT / "examples" / shown.file).read_text().splitlines(keepends=True)
    assert shown.body == "".join(line for line in lines if not line.startswith("#")).lstrip("\n")


def test_continuous_integration_runs_the_commands_of_the_readme() -> None:
    readme = [block.body.strip() for block in blocks("sh") if block.document == "README.md"]
    assert len(readme) == 2
    assert MAIN_COMMAND.fullmatch(readme[0])
    assert readme[1] == TEST_COMMAND
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [command for command in readme if command not in script] == []


def test_continuous_integration_is_a_script_that_may_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_checkers_in_contributing_are_those_of_continuous_integration() -> None:
    (wanted,) = [block.body.splitlines() for block in blocks("sh") if block.body.startswith("python -m pytest\n")]
    script = (ROOT / ".ci" / "run").read_text()
    assert [command for command in wanted if command not in script] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_mentions_exist(document: str) -> None:
    text = BLOCK.sub("", text_of(document))
    named = re.findall(r"`([\w.-]*/[\w./-]+|[\w-]+\.(?:py|md|toml|lark))`", text)
    linked = re.findall(r"\[[^\]]*\]\(([^)#:]+)\)", re.sub(r"`[^`]*`", "", text))
    known = {path.name for path in (ROOT / "blockc").rglob("*")}
    here = (ROOT / document).parent
    there = [
        name for name in named if name in known or any((place / name).exists() for place in (ROOT, ROOT / "blockc"))
    ]
    assert [name for name in named if name not in there] == []
    assert [name for name in linked if not (here / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tests_that_a_document_mentions_exist(document: str) -> None:
    mentioned = re.findall(r"`(test_\w+)\.py::(test_\w+)`", text_of(document))
    missing = [
        f"{file}::{name}"
        for file, name in mentioned
        if f"def {name}(" not in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
    ]
    assert missing == []


def test_the_architecture_is_short_and_every_invariant_has_its_test() -> None:
    text = text_of("ARCHITECTURE.md")
    assert len(text.splitlines()) < 250
    invariants = re.findall(r"^([0-9]+)\. .*(?:\n   .*)*", section(text, "Invariants"), re.MULTILINE)
    assert [int(number) for number in invariants] == list(range(1, len(invariants) + 1))
    items = re.split(r"^(?=[0-9]+\. )", section(text, "Invariants"), flags=re.MULTILINE)[1:]
    assert [item for item in items if not re.search(r"`test_\w+\.py::test_\w+`", item)] == []


def test_every_module_has_its_place_in_the_architecture() -> None:
    text = section(text_of("ARCHITECTURE.md"), "Modules")
    files = [path for path in (ROOT / "blockc").rglob("*.py") if not path.name.startswith("__")]
    missing = [
        path.relative_to(ROOT).as_posix()
        for path in files
        if f"`{path.name}`" not in text and "rules" not in path.parts
    ]
    assert missing == []


def section(text: str, title: str) -> str:
    """The part of a document under a heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]
