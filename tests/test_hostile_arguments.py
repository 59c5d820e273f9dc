"""Arguments that fit no program: sizes at and beyond the limits, arrays that are none, values of the wrong kind."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blockc
from blockc.cli import main
from blockc.errors import LimitError, UsageError

SCALED = "program f(X: f32[m, n], W: f32[n]) -> Y: f32[m] { Y = sum[n](X * W) }\n"
ATTENTION = """program attention(Q: f32[b, m, d], K: f32[b, n, d], V: f32[b, n, e]) -> O: f32[b, m, e] {
    O = dot[n](softmax[n](dot[d](Q, K)), V)
}
"""
LARGEST = 2**40


def outcome(folder: Path, source: str, *arguments: str) -> tuple[int, str]:
    """The exit code of a command on a program, and what it printed."""
    file = folder / "program.blk"
    file.write_text(source, encoding="utf-8")
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main([arguments[0], str(file), *arguments[1:]])
    return code, output.getvalue()


def dims(**sizes: int) -> list[str]:
    """The options for these sizes."""
    return [text for name, size in sizes.items() for text in ("--dim", f"{name}={size}")]


@pytest.mark.parametrize("option", ["--dim", "--tile"])
@pytest.mark.parametrize("command", [["show", "--stage", "plan"], ["explain"]])
def test_sizes_end_at_the_limit(command: list[str], option: str, tmp_path: Path) -> None:
    assert outcome(tmp_path, SCALED, *command, option, f"m={LARGEST}")[0] == 0
    for size in (LARGEST + 1, 99999999999999999999, 10**99):
        code, text = outcome(tmp_path, SCALED, *command, option, f"m={size}")
        assert (code, text.splitlines()[0]) == (
            3,
            f"error[E0194]: {option} m={size} is not between {0 if option == '--dim' else 1} and 2^40",
        )


def test_a_file_ends_at_the_limit(tmp_path: Path) -> None:
    full = SCALED + "#" * (2**20 - len(SCALED))
    assert outcome(tmp_path, full, "check")[0] == 0
    assert outcome(tmp_path, "\ufeff" + full, "check")[0] == 0
    code, text = outcome(tmp_path, full + "#", "check")
    assert (code, "larger than 1 MiB" in text) == (3, True)


@pytest.mark.parametrize(
    "sizes",
    [
        {"b": 0, "m": LARGEST},
        {"b": 1, "n": 2, "m": LARGEST, "d": 0, "e": 0},
        {"b": 1, "n": LARGEST, "m": 2**20, "d": 0, "e": 0},
        {"b": 1, "n": 2**32, "m": 8, "d": 0, "e": 0},
        {"b": 1, "n": 0, "m": 0, "d": LARGEST, "e": LARGEST},
        {"b": LARGEST, "n": LARGEST, "m": LARGEST, "d": LARGEST, "e": LARGEST},
        {"b": 1, "n": 0, "m": 2, "d": LARGEST, "e": 0},
    ],
)
def test_enormous_sizes_beside_empty_ones_are_a_limit(sizes: dict[str, int], tmp_path: Path) -> None:
    code, text = outcome(tmp_path, ATTENTION, "run", *dims(**sizes))
    assert code == 3
    assert "give smaller sizes with --dim" in text
    assert "E0902" in text or "E0906" in text


def test_a_reference_larger_than_memory_is_a_limit(tmp_path: Path) -> None:
    code, text = outcome(tmp_path, ATTENTION, "run", *dims(b=1, m=2, d=0, e=0, n=2_000_000_000))
    assert code == 3
    assert "the check against the float64 meaning needs" in text


@pytest.mark.parametrize(("size", "other"), [("m", "n"), ("n", "m"), ("k", "m")])
def test_one_size_is_enough_for_dimensions_that_are_renamed_to_one(size: str, other: str, tmp_path: Path) -> None:
    source = "program f(X: f32[m], Z: f32[n]) -> Y: f32[k] { Y = X[m -> k] + Z[n -> k] }\n"
    code, text = outcome(tmp_path, source, "run", "--dim", f"{size}=7")
    assert (code, "m=7, n=7, k=7" in text) == (0, True)
    code, text = outcome(tmp_path, source, "run", *dims(**{size: 7, other: 8}))
    assert code == 2
    assert "have the same size, not" in text


def test_renames_in_circles_are_survived(tmp_path: Path) -> None:
    source = "program f(X: f32[m]) -> Y: f32[p, q] { Y = index(p)[p -> q] + index(q)[q -> p] + 0 * sum[m](X) }\n"
    code, text = outcome(tmp_path, source, "check")
    assert (code, "nothing determines the size" in text) == (1, True)


def header(text: str) -> bytes:
    """The beginning of a .npy file with a header of one's own."""
    content = text.encode("utf-8") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content


def described(shape: str, dtype: str = "'<f4'", order: str = "False") -> bytes:
    return header(f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}}}")


FILES: dict[str, bytes] = {
    "negative": described("(-2, 3)"),
    "enormous": described(f"({LARGEST}, {LARGEST})"),
    "beyond integers": described("(99999999999999999999999999, 3)"),
    "large but absent": described("(4294967296, 3)"),
    "bool": described("(True, 3)"),
    "real": described("(2.0, 3)"),
    "list": described("[2, 3]"),
    "rank 70": described(str((1,) * 70)),
    "order is text": described("(2, 3)", order="'no'"),
    "part of a type": described("(2, 3)", "('<f4', (2,))"),
    "escape in the type": described("(2, 3)", "'\\x1b[31m'"),
    "objects": described("(2, 3)", "'|O'"),
    "dates": described("(2, 3)", "'<M8[s]'") + bytes(48),
    "fields": described("(2, 3)", "[('a', '<f4')]") + bytes(24),
    "complex": described("(2, 3)", "'<c8'") + bytes(48),
    "f64": described("(2, 3)", "'<f8'") + bytes(48),
    "call": header("__import__('os').system('touch owned')"),
    "deep": header("(" * 5_000),
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": b"\x80\x04\x95\t\x00",
    "zeros": bytes(10_000),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_fitting_array_is_usage(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.npy"
    path.write_bytes(FILES[name])
    code, text = outcome(tmp_path, SCALED, "run", "--input", f"X={path}")
    assert code == 2
    assert text.startswith("error[E0900]: input `X`")
    assert "\x1b" not in text
    assert {entry.name for entry in tmp_path.iterdir()} == {"x.npy", "program.blk"}


@pytest.mark.parametrize("kind", ["fortran", "reversed", "byte-swapped", "broadcast", "unaligned", "strided"])
def test_any_layout_of_an_array_gives_the_same(kind: str) -> None:
    x, w = np.arange(12, dtype=np.float32).reshape(3, 4), np.ones(4, np.float32)
    variants: dict[str, np.ndarray[Any, Any]] = {
        "fortran": np.asfortranarray(x),
        "reversed": x[::-1, ::-1].copy()[::-1, ::-1],
        "byte-swapped": x.astype(">f4"),
        "broadcast": np.broadcast_to(x[:1], (3, 4)),
        "unaligned": np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(3, 4),
        "strided": np.repeat(x, 2, axis=1)[:, ::2],
    }
    given = variants[kind]
    np.testing.assert_array_equal(blockc.compile(SCALED)(given, w), given.astype(np.float32).sum(1))


WRONG_CALLS: dict[str, Callable[[blockc.Kernel, Any], Any]] = {
    "a list of other numbers": lambda kernel, w: kernel([[1.0]], w),
    "a ragged list": lambda kernel, w: kernel([[1], [1, 2]], w),
    "text": lambda kernel, w: kernel("text", w),
    "nothing": lambda kernel, w: kernel(None, w),
    "too many": lambda kernel, w: kernel(w, w, w),
    "one unknown": lambda kernel, w: kernel(w, Q=w),
    "one twice": lambda kernel, w: kernel(w, X=w),
    "a reference of text": lambda kernel, w: blockc.reference(SCALED, X=np.full((3, 4), "1"), W=w),
    "a complex reference": lambda kernel, w: blockc.reference(SCALED, X=np.ones((3, 4), np.complex64), W=w),
    "a reference of objects": lambda kernel, w: blockc.reference(SCALED, X=np.ones((3, 4), object), W=w),
    "a size that is no number": lambda kernel, w: blockc.compile(SCALED, dims={"m": "4"}),  # type: ignore[dict-item]
    "a real size": lambda kernel, w: blockc.compile(SCALED, dims={"m": 4.5}),  # type: ignore[dict-item]
    "a real tile": lambda kernel, w: blockc.compile(SCALED, tiles={"m": 4.5}),  # type: ignore[dict-item]
    "a path with a zero": lambda kernel, w: blockc.compile("a\0.blk"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_calls_from_python_are_usage(name: str) -> None:
    with pytest.raises(UsageError):
        WRONG_CALLS[name](blockc.compile(SCALED), np.ones(4, np.float32))


def test_sizes_may_be_numbers_of_numpy() -> None:
    kernel = blockc.compile(SCALED, dims={"m": np.int64(3)}, tiles={"n": np.int32(2)})  # type: ignore[dict-item]
    assert kernel(np.ones((3, 4), np.float32), np.ones(4, np.float32)).tolist() == [4, 4, 4]


def test_a_program_file_of_any_size_is_read_in_bounds(tmp_path: Path) -> None:
    path = tmp_path / "large.blk"
    path.write_bytes(b"#" * 3_000_000)
    with pytest.raises(LimitError, match="larger than 1 MiB"):
        blockc.compile(path)
