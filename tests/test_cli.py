"""The command line: every command, every exit code, and what it leaves behind when something is wrong."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import blockc
from blockc import cli, driver, files, meaning
from blockc.accuracy import Comparison
from blockc.errors import BlockcError
from blockc.formatting import readable
from blockc.kernel import Kernel

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
ATTENTION = str(EXAMPLES / "attention.blk")
SMALL = ("--dim", "b=1", "--dim", "h=2", "--dim", "m=16", "--dim", "n=24", "--dim", "d=8", "--dim", "e=8")
DOUBLE = "program double(X: f32[m, n]) -> Y: f32[m, n] { Y = 2 * X }\n"
SCALED = "program scaled(X: f32[m, n], w: f32[n]) -> (Y: f32[m, n], s: f32[m]) { Y = X * w; s = sum[n](Y) }\n"

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Blockc = Callable[..., Outcome]


@pytest.fixture
def run_blockc(capsys: pytest.CaptureFixture[str]) -> Blockc:
    """Runs the command line in this process."""

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def start(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs the command line in a process of its own."""
    command = [sys.executable, "-m", "blockc", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, input=stdin, capture_output=True, env=variables, check=False, timeout=120)


@pytest.fixture
def double(tmp_path: Path) -> str:
    return written(tmp_path / "double.blk", DOUBLE)


@pytest.fixture
def scaled(tmp_path: Path) -> str:
    return written(tmp_path / "scaled.blk", SCALED)


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def saved(path: Path, array: Array) -> str:
    np.save(path, array)
    return str(path)


# --- help and version ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", "check", "show", "explain", "run", "emit", "verify"])
def test_help_names_every_option_of_a_command(run_blockc: Blockc, command: str) -> None:
    result = run_blockc(*([command] if command else []), "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: blockc {command}".rstrip())
    if command:
        options = ("--program", "--dtype", "--json")
        compiling = (
            () if command == "check" else ("--target", "--dim NAME=SIZE", "--tile NAME=SIZE", "--split NAME=COUNT")
        )
        assert [option for option in (*options, *compiling) if option not in result.out] == []


def test_version(run_blockc: Blockc) -> None:
    assert run_blockc("--version") == Outcome(0, f"blockc {blockc.__version__}\n", "")


def test_module_and_command_are_the_same() -> None:
    assert start("--version").stdout.decode() == f"blockc {blockc.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], ["torch", "triton", "numpy", "sympy", "networkx", "lark"]),
        (["--version"], ["torch", "triton", "numpy", "sympy", "networkx", "lark"]),
        (["targets"], ["torch", "triton", "numpy", "sympy", "networkx", "lark"]),
        (["check", ATTENTION], ["torch", "triton", "sympy", "networkx"]),
        (["show", ATTENTION, "--stage", "kernel"], ["torch", "triton"]),
        (["explain", ATTENTION], ["torch", "triton"]),
        (["run", ATTENTION, *SMALL], ["torch", "triton"]),
        (["verify", str(EXAMPLES / "mlp.blk")], ["torch", "triton"]),
    ],
)
def test_commands_import_only_what_they_need(arguments: list[str], absent: list[str]) -> None:
    code = (
        "import sys; from blockc.cli import main; code = main(sys.argv[1:]); "
        f"print(code, [name for name in {absent} if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=120)
    assert result.stderr.strip().splitlines()[-1] == "0 []"


# --- check -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.blk")), ids=lambda path: path.stem)
def test_check_accepts_the_examples(run_blockc: Blockc, path: Path) -> None:
    result = run_blockc("check", str(path))
    assert result.code == 0
    assert result.out.startswith(f"{path}: no problems in {path.stem.removesuffix('_epilogue')}")


def test_check_lists_all_programs(run_blockc: Blockc) -> None:
    path = str(EXAMPLES / "matmul_epilogue.blk")
    expected = {"file": path, "ok": True, "programs": ["matmul_gelu", "matmul_relu"], "problems": []}
    assert run_blockc("check", path, "--json").json == expected


def test_check_reports_every_problem_with_a_caret(run_blockc: Blockc, tmp_path: Path) -> None:
    path = written(tmp_path / "bad.blk", "program bad(X: f32[m]) -> Y: f32[m] {\n    Y = softmx[m](X) + Z\n}\n")
    result = run_blockc("check", path)
    assert (result.code, result.out) == (1, "")
    assert result.err.count("error[") == 2
    assert f"--> {path}:2:9" in result.err
    assert "^^^^^^ did you mean `softmax`?" in result.err


def test_check_as_json_gives_the_problems_and_the_text(run_blockc: Blockc, tmp_path: Path) -> None:
    path = written(tmp_path / "bad.blk", "program bad(X: f32[m]) -> Y: f32[m] {\n    Y = softmx[m](X)\n}\n")
    result = run_blockc("check", path, "--json")
    assert result.code == 1
    assert result.err.startswith("error[E0102]")
    (problem,) = result.json["problems"]
    place = {"line": 2, "column": 9, "end_line": 2, "end_column": 15}
    assert problem.items() >= {"code": "E0102", "hint": "did you mean `softmax`?", **place}.items()
    assert result.json["ok"] is False


def test_check_reads_standard_input() -> None:
    good = start("check", "-", stdin=DOUBLE.encode())
    assert (good.returncode, good.stdout) == (0, b"<stdin>: no problems in double\n")
    bad = start("check", "-", stdin=b"program p(X: f32[m]) -> Y: f32[m] { Y = Q }")
    assert (bad.returncode, bad.stdout) == (1, b"")
    assert b"--> <stdin>:1:41" in bad.stderr


def test_a_missing_file_is_usage(run_blockc: Blockc, tmp_path: Path) -> None:
    path = str(tmp_path / "absent.blk")
    for command in (["check"], ["show", "--stage", "array"], ["explain"], ["run"], ["emit", "-o", str(tmp_path / "o")]):
        result = run_blockc(command[0], path, *command[1:])
        assert (result.code, result.out) == (2, "")
        assert f"cannot read `{path}`: No such file or directory" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"\xff\xfe\x00", 2, ":1:1`: byte 0xff is not UTF-8 text"),
        (b" " * (2**20 + 4), 3, "the file is larger than 1 MiB"),
        (b"# " + b"\r\n" * 2**20, 3, "the file is larger than 1 MiB"),
        (b"#" + b"x" * 2**20, 3, "the file is larger than 1 MiB"),
        (b"", 1, "the file has no program"),
    ],
)
def test_files_that_are_no_programs(
    run_blockc: Blockc, tmp_path: Path, content: bytes, code: int, message: str
) -> None:
    path = tmp_path / "file.blk"
    path.write_bytes(content)
    result = run_blockc("check", str(path))
    assert (result.code, result.out) == (code, "")
    assert message in result.err


def test_a_folder_is_no_program(run_blockc: Blockc, tmp_path: Path) -> None:
    assert run_blockc("check", str(tmp_path)).code == 2


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dim", "m"], "is not of the form NAME=SIZE"),
        (["--dim", "m=x"], "is not of the form NAME=SIZE"),
        (["--dim", "m=4.0"], "is not of the form NAME=SIZE"),
        (["--dim", "9=4"], "is not of the form NAME=SIZE"),
        (["--dim", "m=\u0664"], "is not of the form NAME=SIZE"),
        (["--dim", "m=4", "--dim", "m=5"], "--dim m is given twice: 4 and 5"),
        (["--dim", "zz=4"], "has no dimension `zz`"),
        (["--dim", "m=-1"], "--dim m=-1 is not between 0 and 2^40"),
        (["--tile", "m=0"], "--tile m=0 is not between 1 and 2^40"),
        (["--tile", "m=all"], "is not of the form NAME=SIZE"),
        (["--tile", "zz=whole"], "has no dimension `zz`"),
        (["--dtype", "f12"], "`f12` is no type that can replace floats"),
        (["--dtype", "i32"], "`i32` is no type that can replace floats"),
        (["--program", "other"], "there is no program `other`"),
        (["--target", "abacus"], "unknown target `abacus`"),
        (["--frobnicate"], "No such option"),
    ],
)
@pytest.mark.parametrize("command", [["show", "--stage", "block"], ["explain"], ["run"], ["emit", "-o", "never"]])
def test_options_that_do_not_fit_are_usage(
    run_blockc: Blockc,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: list[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_blockc(command[0], ATTENTION, *command[1:], *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["check"], ["frobnicate"], ["show", ATTENTION], ["emit", ATTENTION]])
def test_incomplete_commands_are_usage(run_blockc: Blockc, arguments: list[str]) -> None:
    result = run_blockc(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Usage: blockc" in result.err


def test_one_of_several_programs_must_be_named(run_blockc: Blockc) -> None:
    path = str(EXAMPLES / "matmul_epilogue.blk")
    result = run_blockc("explain", path)
    assert result.code == 2
    assert "the programs are `matmul_gelu` and `matmul_relu`" in result.err
    named = run_blockc(
        "run", path, "--program", "matmul_relu", "--dim", "m=8", "--dim", "n=8", "--dim", "k=8", "--json"
    )
    assert (named.code, named.json["program"]) == (0, "matmul_relu")


# --- show ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "first_line"),
    [
        ("array", "array program attention"),
        ("block", "program attention"),
        ("snapshot", "program attention"),
        ("stable", "program attention"),
        ("plan", "# Program attention, snapshot "),
        ("kernel", "# Program attention, snapshot "),
    ],
)
def test_show_prints_each_stage(run_blockc: Blockc, stage: str, first_line: str) -> None:
    result = run_blockc("show", ATTENTION, "--stage", stage, *SMALL)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(first_line)
    assert result.out.endswith("\n")
    assert run_blockc("show", ATTENTION, "--stage", stage, *SMALL, "--json").json == {
        "stage": stage,
        "text": result.out,
    }


def test_show_takes_a_snapshot(run_blockc: Blockc) -> None:
    path = str(EXAMPLES / "mlp.blk")
    options = ("--stage", "snapshot", "--dim", "e=1024", "--dim", "z=1024")
    texts = [run_blockc("show", path, *options, "--snapshot", str(index)).out for index in (0, 1, 2)]
    assert len(set(texts)) == 3
    assert run_blockc("show", path, *options).out == texts[2]
    beyond = run_blockc("show", path, *options, "--snapshot", "3")
    assert (beyond.code, beyond.out) == (2, "")
    assert "there is no snapshot 3" in beyond.err
    assert "the last one is 2" in beyond.err


def test_only_snapshots_have_numbers(run_blockc: Blockc) -> None:
    result = run_blockc("show", ATTENTION, "--stage", "plan", "--snapshot", "0")
    assert (result.code, result.out) == (2, "")


def test_a_whole_tile_removes_the_map(run_blockc: Blockc) -> None:
    cut = run_blockc("show", ATTENTION, "--stage", "snapshot", *SMALL)
    whole = run_blockc("show", ATTENTION, "--stage", "snapshot", *SMALL, "--tile", "n=whole")
    assert "map n " in cut.out
    assert "map n " not in whole.out


# --- explain ---------------------------------------------------------------------------------------------------------


def test_explain_says_how_attention_became_one_kernel(run_blockc: Blockc) -> None:
    result = run_blockc("explain", ATTENTION, *SMALL)
    assert re.search(r"^Chosen for cpu \(.*\): snapshot 0 \(whole: d, e\), 1 kernel, ", result.out, re.MULTILINE)
    assert "swap_scale_and_contraction" in result.out
    assert "\x1b" not in result.out


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "+999 B"),
        (-1000, "-1.00 kB"),
        (16_777_216, "+16.8 MB"),
        (999_949_999, "+1.00 GB"),
        (-(10**30), "-1.00 QB"),
    ],
)
def test_changes_are_readable(number: int, text: str) -> None:
    assert readable(number, "B") == text


def on_terminal(*arguments: str, **environment: str) -> str:
    """What the command line writes to a terminal."""
    parent, child = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    variables |= {"PYTHONPATH": str(ROOT), "TERM": "xterm", **environment}
    command = [sys.executable, "-m", "blockc", *arguments]
    with subprocess.Popen(command, stdout=child, stderr=child, stdin=child, env=variables) as process:
        os.close(child)
        chunks = []
        while True:
            try:
                chunk = os.read(parent, 65536)
            except OSError:  # the other side is closed
                break
            if not chunk:
                break
            chunks.append(chunk)
        process.wait(timeout=60)
    os.close(parent)
    return b"".join(chunks).decode()


def test_colours_only_on_a_terminal_that_wants_them() -> None:
    assert "\x1b[1m" in on_terminal("explain", ATTENTION, *SMALL)
    assert "\x1b[" not in on_terminal("explain", ATTENTION, *SMALL, NO_COLOR="1")


def test_long_work_shows_progress_on_a_terminal() -> None:
    shown = on_terminal("run", ATTENTION, *SMALL, "--json")
    assert shown.startswith("compiling, running and checking ...\r")


# --- run -------------------------------------------------------------------------------------------------------------

RUN_KEYS = ["program", "target", "dims", "kernels", "seconds", "max_abs_error", "error_bound", "ok", "traffic_bytes"]


# All examples as kernels are in `test_kernels.py`, and on all machines in `test_simulator.py`.
RUNS = {
    "attention_lse": ["--dim", "m=70"],
    "causal_attention": ["--dim", "m=70"],
    "cross_entropy": ["--dim", "m=70"],
    "grouped_heads": ["--dim", "g=3", "--dim", "m=70"],
    "layernorm_matmul": ["--dim", "m=70"],
    "linear_attention": ["--dim", "d=20", "--dim", "n=70"],
    "matmul_epilogue": ["--dim", "m=70", "--program", "matmul_gelu"],
    "rmsnorm_swiglu": ["--dim", "m=70"],
}


@pytest.mark.parametrize("name", RUNS)
def test_run_checks_the_result_and_its_traffic(run_blockc: Blockc, name: str) -> None:
    result = run_blockc("run", str(EXAMPLES / f"{name}.blk"), *RUNS[name], "--simulate", "--json")
    assert (result.code, result.err) == (0, "")
    value = result.json
    assert list(value) == [*RUN_KEYS, "machine"]
    assert value["ok"] is True
    assert all(way["predicted"] == way["measured"] for way in value["machine"]["boundaries"])
    assert value["kernels"] >= 1
    assert 0 <= value["max_abs_error"] <= value["error_bound"]
    assert value["seconds"] > 0
    assert value["traffic_bytes"]["measured"] == value["traffic_bytes"]["predicted"] > 0


def test_run_without_simulate_measures_no_traffic(run_blockc: Blockc) -> None:
    assert list(run_blockc("run", ATTENTION, *SMALL, "--json").json["traffic_bytes"]) == ["predicted"]


def test_run_says_what_it_did(run_blockc: Blockc) -> None:
    result = run_blockc("run", ATTENTION, *SMALL, "--simulate")
    assert (result.code, result.err) == (0, "")
    labels = [
        "program",
        "sizes",
        "kernels",
        "time",
        "traffic",
        "",
        "machine",
        "time",
        *[""] * 9,
        "error",
        "checked",
        "ok",
    ]
    assert [line.split(" ")[0] for line in result.out.splitlines()] == labels
    assert "b=1, h=2, m=16, " in result.out
    assert "default" not in result.out
    assert "every element" in result.out


def test_run_names_the_sizes_that_are_defaults(run_blockc: Blockc) -> None:
    result = run_blockc("run", ATTENTION, "--dim", "m=8", "--dim", "n=8", "--dim", "h=1", "--dim", "d=8")
    assert "          b, e: default, give others with --dim\n" in result.out


def test_a_large_result_is_checked_on_a_sample_of_rows(run_blockc: Blockc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockc.running.CHECKED_ELEMENTS", 300)
    result = run_blockc("run", ATTENTION, *SMALL, "--dim", "m=16")
    assert result.code == 0
    assert re.search(r"^checked .*: [0-9]+ of 16 along m", result.out, re.MULTILINE)


def test_the_same_seed_gives_the_same_result(run_blockc: Blockc, tmp_path: Path) -> None:
    arrays = []
    for number, seed in enumerate(("7", "7", "8")):
        path = tmp_path / f"o{number}.npy"
        assert run_blockc("run", ATTENTION, *SMALL, "--seed", seed, "--output", f"O={path}").code == 0
        arrays.append(np.load(path))
    assert np.array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[0], arrays[2])


def test_threads_do_not_change_the_result(run_blockc: Blockc, tmp_path: Path) -> None:
    results = []
    for threads in ("1", "2"):
        path = tmp_path / f"o{threads}.npy"
        options = ("--dim", "h=4", "--dim", "m=300", "--threads", threads, "--output", f"O={path}")
        assert run_blockc("run", ATTENTION, *options).code == 0
        results.append(np.load(path))
    assert np.array_equal(*results)
    assert run_blockc("run", ATTENTION, "--threads", "0").code == 2


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": lambda array: array,
    "fortran": np.asfortranarray,
    "transposed": lambda array: np.ascontiguousarray(array.T).T,
    "negative stride": lambda array: np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
    "every second": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "big endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_and_output_files_of_any_layout(run_blockc: Blockc, scaled: str, tmp_path: Path, layout: str) -> None:
    x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    w = np.arange(7, dtype=np.float32)
    arguments = [
        "--input",
        f"X={saved(tmp_path / 'x.npy', LAYOUTS[layout](x))}",
        "--input",
        f"w={saved(tmp_path / 'w.npy', w)}",
    ]
    arguments += ["--output", f"Y={tmp_path / 'y.npy'}", "--output", f"s={tmp_path / 's.npy'}"]
    result = run_blockc("run", scaled, *arguments)
    assert (result.code, result.err) == (0, "")
    assert f"written   Y to {tmp_path / 'y.npy'}" in result.out
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), x * w)
    np.testing.assert_allclose(np.load(tmp_path / "s.npy"), (x * w).sum(1), rtol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.npy", "scaled.blk", "w.npy", "x.npy", "y.npy"]


def test_sizes_come_from_the_files_and_other_inputs_are_random(run_blockc: Blockc, scaled: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npy", np.ones((3, 11), np.float32))
    value = run_blockc("run", scaled, "--input", f"X={path}", "--json").json
    assert value["dims"] == {"m": 3, "n": 11}
    assert "default" not in run_blockc("run", scaled, "--input", f"X={path}").out


def test_sizes_of_packed_axes_come_from_the_files(run_blockc: Blockc, tmp_path: Path) -> None:
    text = "program packed(X: f32[m, (h=4, d)], W: f32[d]) -> Y: f32[m, h] { Y = dot[d](X, W) }"
    file = written(tmp_path / "packed.blk", text)
    path = saved(tmp_path / "x.npy", np.ones((3, 12), np.float32))
    result = run_blockc("run", file, "--input", f"X={path}", "--json")
    assert (result.code, result.json["dims"]) == (0, {"m": 3, "h": 4, "d": 3})
    odd = saved(tmp_path / "odd.npy", np.ones((3, 13), np.float32))
    wrong = run_blockc("run", file, "--input", f"X={odd}")
    assert (wrong.code, wrong.out) == (2, "")
    assert "input `X`, axis 1" in wrong.err


def test_bfloat16_files_go_in_and_out(run_blockc: Blockc, double: str, tmp_path: Path) -> None:
    x = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    arguments = ("--input", f"X={saved(tmp_path / 'x.npy', x)}", "--output", f"Y={tmp_path / 'y.npy'}")
    assert run_blockc("run", double, "--dtype", "bf16", *arguments).code == 0
    y = np.load(tmp_path / "y.npy").view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(y.astype(np.float32), 2 * x.astype(np.float32))


def broken_npy(path: Path, name: str) -> str:
    """A .npy file that does not hold a 2x3 array of f32, one way or another."""
    good = np.ones((2, 3), np.float32)
    match name:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("1 2 3")
        case "cut":
            np.save(path, good)
            path.write_bytes(path.read_bytes()[:-4])
        case "pickle":
            np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
        case "archive":
            with path.open("wb") as stream:
                np.savez(stream, X=good)
        case "strings":
            np.save(path, np.array([["a", "b", "c"]] * 2))
        case "records":
            np.save(path, np.zeros((2, 3), dtype=[("a", np.float32)]))
        case "huge":
            np.save(path, good)
            path.write_bytes(path.read_bytes().replace(b"(2, 3)", b"(2, 99999999999999)")[:128])
        case "f64":
            np.save(path, good.astype(np.float64))
        case "complex":
            np.save(path, good.astype(np.complex64))
        case "vector":
            np.save(path, np.ones(3, np.float32))
    return str(path)


BROKEN = [
    "empty",
    "text",
    "cut",
    "pickle",
    "archive",
    "strings",
    "records",
    "huge",
    "f64",
    "complex",
    "vector",
    "absent",
]


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_array_file_is_usage_and_named(run_blockc: Blockc, double: str, tmp_path: Path, name: str) -> None:
    path = broken_npy(tmp_path / "x.npy", name)
    result = run_blockc("run", double, "--input", f"X={path}", "--output", f"Y={tmp_path / 'y.npy'}")
    assert (result.code, result.out) == (2, "")
    assert "input `X`" in result.err
    assert not (tmp_path / "y.npy").exists()


def test_mutated_array_files_never_crash(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    good = (tmp_path / "x.npy").read_bytes()
    argument = driver.load_program(DOUBLE).inputs[0]
    generator = random.Random(0)
    for _ in range(1000):
        content = bytearray(good)
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        (tmp_path / "x.npy").write_bytes(content)
        try:
            files.read_array(str(tmp_path / "x.npy"), argument)
        except BlockcError as error:
            assert error.exit_code == 2  # noqa: PT017 - most mutations are no error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dim", "m=3"], "input `X`, axis 0 `m`: size 2, but the given sizes give 3"),
        (["--input", "Z={x}"], "has no input `Z`"),
        (["--input", "X={x}", "--input", "X=other.npy"], "--input X is given twice"),
        (["--input", "X"], "is not of the form NAME=FILE"),
        (["--output", "Z={folder}/z.npy"], "has no output `Z`"),
        (["--output", "Y={folder}/z.txt"], "the name must end in .npy"),
        (["--output", "Y={folder}/nowhere/z.npy"], "there is no folder"),
        (["--output", "Y={folder}/folder.npy"], "it is a folder"),
    ],
)
def test_arrays_and_names_that_do_not_fit_are_usage(
    run_blockc: Blockc, double: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    path = saved(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    (tmp_path / "folder.npy").mkdir()
    before = sorted(tmp_path.rglob("*"))
    filled = [argument.format(x=path, folder=tmp_path) for argument in arguments]
    result = run_blockc("run", double, "--input", f"X={path}", *filled)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert sorted(tmp_path.rglob("*")) == before


def test_two_outputs_need_two_files(run_blockc: Blockc, scaled: str, tmp_path: Path) -> None:
    path = tmp_path / "y.npy"
    result = run_blockc("run", scaled, "--output", f"Y={path}", "--output", f"s={tmp_path / '.' / 'y.npy'}")
    assert (result.code, path.exists()) == (2, False)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (0, 0), (1, 1), (1, 5)])
def test_sizes_zero_and_one(run_blockc: Blockc, scaled: str, tmp_path: Path, sizes: tuple[int, int]) -> None:
    m, n = sizes
    output = tmp_path / "s.npy"
    result = run_blockc("run", scaled, "--dim", f"m={m}", "--dim", f"n={n}", "--output", f"s={output}", "--simulate")
    assert (result.code, result.err) == (0, "")
    assert np.load(output).shape == (m,)


def test_attention_over_no_keys_is_zero(run_blockc: Blockc, tmp_path: Path) -> None:
    dims = ("--dim", "b=1", "--dim", "h=1", "--dim", "m=4", "--dim", "n=0", "--dim", "d=8", "--dim", "e=8")
    assert run_blockc("run", ATTENTION, *dims, "--output", f"O={tmp_path / 'o.npy'}").code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), np.zeros((1, 1, 4, 8)))


def test_inputs_may_have_any_name(run_blockc: Blockc, tmp_path: Path) -> None:
    text = "program p(self: f32[m], lambda: f32[m], np: f32[m]) -> arrays: f32[m] { arrays = self * lambda + np }"
    result = run_blockc("run", written(tmp_path / "p.blk", text), "--dim", "m=5", "--simulate")
    assert (result.code, result.err) == (0, "")


def test_run_reads_standard_input() -> None:
    result = start("run", "-", "--dim", "m=3", "--dim", "n=4", "--json", stdin=DOUBLE.encode())
    assert (result.returncode, result.stderr) == (0, b"")
    assert json.loads(result.stdout)["dims"] == {"m": 3, "n": 4}


# --- limits and failures ---------------------------------------------------------------------------------------------


def test_arrays_larger_than_memory_are_a_limit(run_blockc: Blockc, double: str) -> None:
    result = run_blockc("run", double, "--dim", "m=1099511627776", "--dim", "n=1000")
    assert (result.code, result.out) == (3, "")
    assert "this machine has" in result.err


def test_too_much_to_simulate_is_a_limit(run_blockc: Blockc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockc.running.SIMULATED_OPERATIONS", 1000)
    result = run_blockc("run", ATTENTION, *SMALL, "--simulate", "--json")
    assert (result.code, result.out) == (3, "")
    assert "too many to simulate" in result.err


@pytest.fixture
def inaccurate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every comparison find an error."""
    monkeypatch.setattr("blockc.running.compare", lambda *_: Comparison(1.0, 0.5, False))


@pytest.mark.usefixtures("inaccurate")
def test_an_inaccurate_result_fails_and_is_not_written(run_blockc: Blockc, double: str, tmp_path: Path) -> None:
    arguments = ("run", double, "--dim", "m=3", "--dim", "n=3", "--output", f"Y={tmp_path / 'y.npy'}")
    result = run_blockc(*arguments)
    assert result.code == 4
    assert result.out.endswith("not ok\n")
    assert "output `Y` is not accurate enough: max abs error 1, bound 0.5" in result.err
    as_json = run_blockc(*arguments, "--json")
    assert (as_json.code, as_json.json["ok"]) == (4, False)
    assert [path.name for path in tmp_path.iterdir()] == ["double.blk"]


def test_a_wrong_kernel_is_found(run_blockc: Blockc, double: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Kernel.__call__
    monkeypatch.setattr(Kernel, "__call__", lambda self, **arrays: call(self, **arrays) * np.float32(1.0001))
    assert run_blockc("run", double, "--dim", "m=9", "--dim", "n=9").code == 4


def test_nan_in_the_wrong_place_is_found(run_blockc: Blockc, double: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Kernel.__call__

    def poisoned(self: Kernel, **arrays: Array) -> Array:
        result: Array = call(self, **arrays)
        result[0, 0] = np.nan
        return result

    monkeypatch.setattr(Kernel, "__call__", poisoned)
    result = run_blockc("run", double, "--dim", "m=9", "--dim", "n=9")
    assert result.code == 4
    assert "NaN or infinities in the wrong places" in result.err


def test_wrong_traffic_is_found(run_blockc: Blockc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockc.passes.choose.cost", lambda *given: _more_traffic(*given))
    result = run_blockc("run", ATTENTION, *SMALL, "--simulate", "--json")
    assert result.code == 4
    assert "the simulation disagrees with the prediction" in result.err
    assert result.json["ok"] is False
    assert result.json["traffic_bytes"]["measured"] < result.json["traffic_bytes"]["predicted"]


def _more_traffic(*given: Any) -> Any:
    from dataclasses import replace

    from blockc.passes.cost import cost

    true = cost(*given)
    return replace(true, traffic={key: count + 4 for key, count in true.traffic.items()})


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def evaluate(*_: object) -> None:
        raise error

    monkeypatch.setattr(meaning, "evaluate", evaluate)


def test_an_internal_error_is_one_line(run_blockc: Blockc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLOCKC_DEBUG", raising=False)
    fail_with(monkeypatch, KeyError("first line\nsecond line"))
    result = run_blockc("run", ATTENTION, *SMALL)
    assert (result.code, result.out) == (70, "")
    assert result.err.startswith("internal error: KeyError: ")
    assert result.err.count("\n") == 1
    monkeypatch.setenv("BLOCKC_DEBUG", "1")
    shown = run_blockc("run", ATTENTION, *SMALL)
    assert (shown.code, shown.out) == (70, "")
    assert "Traceback (most recent call last)" in shown.err


def test_an_interrupt_has_its_own_exit_code(run_blockc: Blockc, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    result = run_blockc("run", ATTENTION, *SMALL)
    assert (result.code, result.out) == (130, "")
    assert "Traceback" not in result.err


def test_running_out_of_memory_is_a_limit(run_blockc: Blockc, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, MemoryError())
    assert run_blockc("run", ATTENTION, *SMALL).code == 3


def test_a_reader_that_leaves_is_no_error() -> None:
    command = (
        f"{sys.executable} -m blockc show {ATTENTION} --stage kernel | (exec <&-; sleep 0.1); echo ${{PIPESTATUS[0]}}"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=variables, check=True)
    assert result.stderr == ""
    assert result.stdout.strip() == "141"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_output_that_has_no_room_is_told() -> None:
    command = [sys.executable, "-m", "blockc", "check", ATTENTION]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert result.stderr == "error: cannot write the output: No space left on device\n"


def test_output_without_unicode_shows_escapes(tmp_path: Path) -> None:
    path = written(tmp_path / "bad.blk", "program p(X: f32[m]) -> Y: f32[m] { Y = X + \u00e9 }\n")
    result = start("check", path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert result.returncode == 1
    assert b"\\xe9" in result.stderr
    assert b"Traceback" not in result.stderr


# --- emit ------------------------------------------------------------------------------------------------------------


def test_emit_writes_a_file_that_runs_on_its_own(run_blockc: Blockc, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    result = run_blockc("emit", ATTENTION, "-o", str(folder), *SMALL, "--json")
    path = folder / "attention_cpu.py"
    assert (result.code, result.err) == (0, "")
    assert list(result.json) == ["program", "target", "dims", "files"]
    assert result.json["files"] == [str(path)]
    assert [entry.name for entry in folder.iterdir()] == ["attention_cpu.py"]
    assert path.read_text() == run_blockc("show", ATTENTION, "--stage", "kernel", *SMALL).out
    script = subprocess.run([sys.executable, "-I", str(path)], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert script.stdout.startswith("O float16")


def test_emit_as_text_and_again(run_blockc: Blockc, tmp_path: Path) -> None:
    for _ in range(2):
        result = run_blockc("emit", ATTENTION, "-o", str(tmp_path), *SMALL)
        assert (result.code, result.out) == (0, f"written   {tmp_path / 'attention_cpu.py'}\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["attention_cpu.py"]


def test_emit_makes_no_folder_for_a_wrong_program(run_blockc: Blockc, tmp_path: Path) -> None:
    path = written(tmp_path / "bad.blk", "program bad(X: f32[m]) -> Y: f32[m] { Y = Q }")
    assert run_blockc("emit", path, "-o", str(tmp_path / "out")).code == 1
    assert not (tmp_path / "out").exists()


def test_emit_into_a_file_is_usage(run_blockc: Blockc, double: str) -> None:
    result = run_blockc("emit", double, "-o", double)
    assert (result.code, result.out) == (2, "")
    assert "is not a folder" in result.err
    assert Path(double).read_text() == DOUBLE


def test_a_failed_write_leaves_nothing(
    run_blockc: Blockc, double: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    result = run_blockc("emit", double, "-o", str(tmp_path / "new" / "folder"))
    assert (result.code, result.out) == (2, "")
    assert "No space left on device" in result.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["double.blk"]


@pytest.mark.parametrize("name", ["numpy", "math", "itertools", "threadpoolctl"])
def test_an_emitted_file_hides_no_module_that_it_needs(run_blockc: Blockc, tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "p.blk", DOUBLE.replace("double", name))
    assert run_blockc("emit", path, "-o", str(tmp_path)).code == 0
    script = tmp_path / f"{name}_cpu.py"
    subprocess.run([sys.executable, str(script)], capture_output=True, cwd=tmp_path, check=True)


def test_emit_needs_a_folder_with_a_name() -> None:
    command = [sys.executable, "-m", "blockc", "emit", str(ATTENTION), "-o", ""]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert "no name" in result.stderr and result.stdout == ""
