"""The targets that there are, this computer as one of them, and the commands about them."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from machine_files import GOOD, changed, move

from blockc import cli, driver
from blockc.errors import LimitError, UsageError
from blockc.ir.machine import Machine
from blockc.machines import calibrating, computer, fields, loading
from blockc.machines.reading import read_machine
from blockc.machines.writing import machine_text

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "blockc" / "machines").glob("*.toml"))


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or changes the machine files of whoever runs it."""
    monkeypatch.setattr(loading, "user_folder", lambda: tmp_path / "settings" / "machines")


# --- this computer ----------------------------------------------------------------------------------------------------


def shipped_cpu() -> Machine:
    """The description of one core, as it is in the file."""
    return read_machine((ROOT / "blockc" / "machines" / "cpu.toml").read_text())


def test_the_cpu_is_that_of_this_computer() -> None:
    machine = loading.load_machine("cpu")
    assert (machine.backend, machine.units) == ("numpy", computer.this_computer().cores)
    core, all_cores = shipped_cpu().compute[0], machine.compute[0]
    rate = core.operations["matmul"]["f32"].rate
    assert all_cores.operations["matmul"]["f32"].rate == rate * machine.units


@pytest.mark.parametrize(
    ("cores", "memory", "caches", "tiers"),
    [
        (1, None, {}, {"dram": 2**33, "l3": 2**25, "l2": 2**20}),  # nothing is known
        (64, 2**38, {1: 2**15, 2: 2**21, 3: 2**28}, {"dram": 2**38, "l3": 2**28, "l2": 2**21}),
        (4, 2**33, {1: 2**16, 2: 2**22}, {"dram": 2**33, "l2": 2**22}),  # no third level
        (2, 2**28, {2: 2**21, 3: 2**29}, {"dram": 2**28, "l2": 2**21}),  # a small part of a large computer
        (2, 2**33, {1: 2**15}, {"dram": 2**33, "l3": 2**25, "l2": 2**20}),  # no cache that is a tier
    ],
)
def test_computers_of_all_kinds_are_sound(
    cores: int, memory: int | None, caches: dict[int, int], tiers: dict[str, int]
) -> None:
    machine = computer.detected(shipped_cpu(), computer.Computer(cores, memory, caches))
    assert {tier.name: tier.capacity for tier in machine.tiers} == tiers
    assert machine.units == cores
    assert read_machine(machine_text(machine)) == machine


def test_caches_are_read_from_the_system(tmp_path: Path) -> None:
    entries = (
        ("Data", "1", "48K"),
        ("Instruction", "1", "64K"),
        ("Unified", "2", "2048K"),
        ("Unified", "3", "odd"),
        ("Unified", "x", "1M"),
    )
    for number, entry in enumerate(entries):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, value in zip(("type", "level", "size"), entry, strict=True):
            (folder / name).write_text(f"{value}\n")
    (tmp_path / "index9").mkdir()
    assert computer.this_computer(tmp_path).caches == {1: 48 * 1024, 2: 2048 * 1024}
    assert computer.this_computer(tmp_path / "absent").caches == {}


def test_calibration_measures_everything_and_reads_back(tmp_path: Path) -> None:
    small = computer.detected(shipped_cpu(), computer.Computer(2, 2**28, {2: 2**18, 3: 2**22}))
    said: list[str] = []
    machine = calibrating.calibrated(small, said.append, 0.01)
    rates = [f"{operation} {dtype}" for operation in ("matmul", "vector", "special") for dtype in ("f32", "f64")]
    ports = [f"{tier} {port}" for tier in ("dram", "l3", "l2") for port in ("read", "write")]
    assert said == ["products", "call", "dispatch", *rates, *ports]
    assert read_machine(calibrating.calibrated_text(machine)) == machine
    assert 0 < machine.call < 1e-3
    assert machine.compute[0].operations["matmul"]["f32"].rate > 1e8
    assert (machine.units, [tier.capacity for tier in machine.tiers]) == (2, [tier.capacity for tier in small.tiers])
    assert (machine.products == "torch") == ("torch" in machine.description)


def test_calibration_chooses_what_multiplies_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    now = iter(range(10**9)).__next__  # a clock on which all work takes the same time, but for what is said below
    extra = {"torch": 0.0}
    clock = {"late": 0.0}

    def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        clock["late"] += extra["torch"]

    def numpy_matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        clock["late"] += 99.0

    torch = SimpleNamespace(set_num_threads=lambda _: None, from_numpy=lambda array: array, matmul=matmul)
    monkeypatch.setattr(np, "matmul", numpy_matmul)
    monkeypatch.setattr(time, "perf_counter", lambda: now() + clock["late"])
    for extra["torch"], faster in ((90.0, True), (98.0, False), (99.0, False), (120.0, False)):
        assert (calibrating._faster(torch, 0) is not numpy_matmul) == faster
    assert calibrating._faster(None, 0) is numpy_matmul


def test_calibration_leaves_the_threads_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    with calibrating.one_thread() as given:
        assert given.get_num_threads() == 1
    assert torch.get_num_threads() == before
    monkeypatch.setitem(sys.modules, "torch", None)
    with calibrating.one_thread() as given:
        assert given is None


# --- names and paths --------------------------------------------------------------------------------------------------


def test_a_file_in_the_folder_for_settings_has_a_name() -> None:
    folder = loading.user_folder()
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(GOOD)
    (folder / "cpu.toml").write_text(GOOD.replace('"none"', '"numpy"'))
    assert loading.load_machine("mine").name == "small"
    assert loading.load_machine("cpu").units == 4
    assert driver.check_target("cpu").name == "small"
    assert set(loading.machine_names()) == {path.stem for path in SHIPPED} | {"mine"}


def test_a_target_is_a_name_or_a_path(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(GOOD.replace('"none"', '"numpy"'))
    assert driver.check_target(str(path)).name == "small"
    with pytest.raises(UsageError, match="unknown target `toi`\n  hint: did you mean `toy`"):
        driver.check_target("toi")
    with pytest.raises(UsageError, match="known: a100, ascend, cpu, h100, h200, scratchpad, toy, or a path"):
        driver.check_target("abacus")
    with pytest.raises(UsageError, match="No such file"):
        driver.check_target(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize("target", ["toy", "h200", "ascend"])
def test_a_target_that_nothing_can_be_emitted_for_is_a_limit(target: str) -> None:
    with pytest.raises(LimitError, match=f"no kernels can be run for `{target}`: its backend is .*\n.*such as cpu"):
        driver.check_target(target)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The exit code of the command, and what it prints."""
    capsys.readouterr()
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_targets_lists_all_machines(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "targets")
    assert (code, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["a100", "triton"],
        ["ascend", "none"],
        ["cpu", "numpy"],
        ["h100", "triton"],
        ["h200", "triton"],
        ["scratchpad", "none"],
        ["toy", "none"],
    ]
    listed = json.loads(run(capsys, "targets", "--json")[1])["targets"]
    assert listed[-1] == {"name": "toy", "tiers": ["dram", "sram", "local"], "backend": "none"}


def test_targets_lists_the_others_when_a_file_of_the_users_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    loading.user_folder().mkdir(parents=True)
    (loading.user_folder() / "broken.toml").write_text("name = 1\n")
    code, out, err = run(capsys, "targets")
    assert (code, out.count("\n") > len(SHIPPED)) == (1, True)
    assert "broken.toml:1:8" in err


def test_targets_show_prints_every_field(capsys: pytest.CaptureFixture[str], mine: str) -> None:
    code, out, err = run(capsys, "targets", "show", mine)
    assert (code, err, read_machine(out)) == (0, "", read_machine(GOOD))
    shown = json.loads(run(capsys, "targets", "show", "ascend", "--json")[1])
    assert {"from": "GM", "to": "L1", "bandwidth": 115.2e9, "granularity": 32} in shown["moves"]
    assert shown["compute"][0]["matmul"]["f16"] == {"rate": 353.9e12, "tile": [16, 16, 16]}
    assert (shown["units"], shown["tiers"][1]["capacity"], shown["dispatch"]) == (24, 512 * 1024, 1e-5)


def test_targets_check_reports_problems(capsys: pytest.CaptureFixture[str], mine: str, tmp_path: Path) -> None:
    assert run(capsys, "targets", "check", mine) == (0, f"{mine}: no problems in machine small\n", "")
    assert json.loads(run(capsys, "targets", "check", mine, "--json")[1]) == {
        "file": mine,
        "ok": True,
        "name": "small",
        "problems": [],
    }
    bad = tmp_path / "bad.toml"
    bad.write_text(changed(("dispatch", "dispach")))
    code, out, err = run(capsys, "targets", "check", str(bad), "--json")
    assert (code, [problem["code"] for problem in json.loads(out)["problems"]]) == (1, ["E0202"])
    assert err.count("error[") == 1


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"\xff\xfe", 2, ":1:1`: byte 0xff is not UTF-8 text"),
        (b"name = '" + b"x" * 2**17, 3, "the file is larger than 64 KiB"),
        (b"", 1, "the machine has no `name`"),
        (b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode(), 0, "no problems"),
        (b"\x00", 1, "this is not TOML"),
    ],
)
def test_files_of_all_kinds(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, code: int, message: str
) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(content)
    found, out, err = run(capsys, "targets", "check", str(path))
    assert found == code
    assert message in out + err


@pytest.mark.parametrize("path", ["absent.toml", "."])
def test_what_is_no_file_is_usage(capsys: pytest.CaptureFixture[str], path: str) -> None:
    code, out, err = run(capsys, "targets", "check", path)
    assert (code, out) == (2, "")
    assert err.startswith(f"error[E0900]: cannot read `{path}`: ")


def test_an_endless_file_is_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "targets", "check", "/dev/zero")[0] == 3


def test_targets_new_prints_a_machine_file_that_passes_check(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run(capsys, "targets", "new")
    assert (code, err) == (0, "")
    path = tmp_path / "new.toml"
    path.write_text(out)
    assert run(capsys, "targets", "check", str(path))[0] == 0
    assert json.loads(run(capsys, "targets", "new", "--json")[1]) == {"text": out}
    keys = {field.key for table in (fields.MACHINE, fields.TIER, fields.MOVE, fields.COMPUTE) for field in table}
    assert [key for key in keys if not re.search(rf"^(# +)?{key} = ", out, re.MULTILINE)] == []
    # The moves in its comments are right as well.
    assert (
        len(
            read_machine(
                re.sub(r"^#     ", "", out, flags=re.MULTILINE).replace('to = "local"', 'to = "sram"', 1)
                + move("sram", "dram")
                + move("sram", "local")
                + move("local", "sram")
            ).moves
        )
        == 4
    )


def test_targets_calibrate_keeps_what_it_measures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(computer, "this_computer", lambda: computer.Computer(1, 2**28, {2: 2**18, 3: 2**22}))
    monkeypatch.setattr(calibrating, "calibrated", lambda machine, say: calibrating_for_tests(machine))
    code, out, _ = run(capsys, "targets", "calibrate", "--print")
    assert (code, read_machine(out).units, loading.user_folder().exists()) == (0, 1, False)
    code, out, _ = run(capsys, "targets", "calibrate", "--json")
    (path,) = loading.user_folder().iterdir()
    assert (code, json.loads(out)["path"]) == (0, str(path))
    assert loading.load_machine("cpu").description == "measured"
    assert str(path) in run(capsys, "targets")[1]


def calibrating_for_tests(machine: Machine) -> Machine:
    """A machine as if it had been measured."""
    from dataclasses import replace

    return replace(machine, description="measured")


def test_commands_that_compile_take_a_path(capsys: pytest.CaptureFixture[str], tmp_path: Path, mine: str) -> None:
    program = tmp_path / "double.blk"
    program.write_text("program double(X: f32[m]) -> Y: f32[m] { Y = 2 * X }\n")
    own = tmp_path / "own.toml"
    own.write_text(GOOD.replace('"none"', '"numpy"'))
    assert run(capsys, "run", str(program), "--target", str(own), "--dim", "m=5")[0] == 0
    assert run(capsys, "emit", str(program), "--target", str(own), "-o", str(tmp_path / "out"))[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["double_small.py"]
    for command in (["explain"], ["show", "--stage", "plan"], ["show", "--stage", "schedule"]):
        code, out, _ = run(capsys, command[0], str(program), *command[1:], "--target", mine)
        assert code == 0 and "double" in out
    for command in (["run"], ["show", "--stage", "kernel"], ["emit", "-o", str(tmp_path / "never")]):
        code, out, err = run(capsys, command[0], str(program), *command[1:], "--target", mine)
        assert (code, out) == (3, "")
        assert "its backend is none" in err
    own.write_text(changed(("units", "unitz")))
    code, _, err = run(capsys, "run", str(program), "--target", str(own))
    assert (code, "own.toml:3:1" in err) == (1, True)
