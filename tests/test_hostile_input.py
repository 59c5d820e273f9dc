"""Whatever bytes come in, the answer is a program or a message with a place: never a traceback, never a long wait.

Every case goes through `blockc check`. A share of those that are programs is compiled, run and checked as well, with
small sizes. The normal run takes 2,100 mutations; more, or others, come from

    python tests/test_hostile_input.py --count 100000 --seed 7
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import re
import sys
import time
import unicodedata
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest

from blockc import running
from blockc.cli import main
from blockc.errors import BlockcError, Problem, render, visible
from blockc.ir.array_program import Span
from blockc.language import parse, program_names

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.blk"))
COUNT, CHUNKS, SEED = 2_100, 7, 20250711
COMPILED = 25  # of the mutations that are programs, one in so many is compiled
SECONDS = 5.0  # of the processor, the most that one case may take

# One problem as it is printed: code, sentence, place, the line, carets with a hint.
PROBLEM = re.compile(r"error\[E01\d\d\]: .+\n +--> .+:\d+:\d+\n +\|\n\d+ \| .*\n +\| +\^+ \S.*")
UNREADABLE = re.compile(r"error\[E0900\]: .+:\d+:\d+`: byte 0x[0-9a-f]{2} is not UTF-8 text\n  hint: .+")

WORDS = re.compile(rb"\w+|\s+|->|\*\*|[^\w\s]")
SPICE = (
    b"\xff", b"\xc0\x80", b"\xe2\x82", b"\xf8\x88\x80\x80\x80",
    *(text.encode("utf-8", "surrogatepass") for text in (
        *"()[]{}=:;,.#@\"'\\$%&|!?^~`<>+-*/", *("->", "**", "==", "<=", "//", "/*", ":=", "not ", "and", "or", "..."),
        "def ", "program ", "return ", "if ", "lambda ", "import os", "__import__", "X.__class__", "{X}", "${X}", "%s",
        "inf", "nan", "true", "1e9", "1e999", "1e-999", "0", "00", "2147483648", "-2147483648", "9" * 40, "9" * 5000,
        "f16", "f8e4m3", "bool", "i8", "d", "n", "X", "sum", "max", "index", "size", "softmax", "mean[n]", "[n -> k]",
        "[m -> n]", "(h, d)", "=64", "=0", "=1099511627776", "=1099511627777", "\n", "\r", "\r\n", "\t", "\v", "\f",
        "\x00", "\x07", "\x1b[31m", "\x1b]0;title\x07", "\x7f", "\x85", "\x9b", "\xa0", "\xad", "\u200b", "\u200e",
        "\u2028", "\u202a", "\u202e", "\u2066", "\u2069", "\ufeff", "\ufffe", "\ud800", "\u0301", "\u115f", "\u3164",
        "\ufe0f", "\U000e0041", "\U0001f525", "\u0425", "\u2212", "\uff08", "a" * 300, "(" * 70, "[" * 70, "-" * 70,
        "exp(" * 70, "{" * 70, ")" * 70, "X + " * 200, "not " * 70, "2 ** " * 70,
    )),
)  # fmt: skip


def answer(content: bytes) -> tuple[int, str, float]:
    """The exit code of `blockc check` for these bytes, what it printed, and its processor time."""
    output, given = io.StringIO(), io.TextIOWrapper(io.BytesIO(content))
    start = time.process_time()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), patch("sys.stdin", given):
        code = main(["check", "-"])
    return code, output.getvalue().rstrip("\n"), time.process_time() - start


def check_answer(content: bytes, reproduction: str) -> bool:
    """Asserts that the answer to a text is one that a user can work with. True if the text is a program."""
    code, text, seconds = answer(content)
    assert seconds < SECONDS, f"{seconds:.1f} s for {reproduction}"
    assert code in (0, 1, 2, 3), f"exit code {code} for {reproduction}: {text}"
    assert all(visible(line) == line for line in text.split("\n")), reproduction
    for problem in text.split("\n\n") if code else ():
        assert (UNREADABLE if code == 2 else PROBLEM).fullmatch(problem), f"{problem}\nfor {reproduction}"
    return code == 0


def mutated(numbers: random.Random, sources: list[bytes]) -> bytes:
    """One of the sources with a few words and bytes deleted, put in, doubled, swapped, or spliced with another one."""
    source = numbers.choice(sources)
    if numbers.random() < 0.1:
        other = numbers.choice(sources)
        source = source[: numbers.randrange(len(source))] + other[numbers.randrange(len(other)) :]
    words = WORDS.findall(source)
    for _ in range(numbers.randint(1, 4)):
        at, other_at = numbers.randrange(len(words)), numbers.randrange(len(words))
        match numbers.randrange(8):
            case 0:
                del words[at]
            case 1:
                words.insert(at, numbers.choice(SPICE))
            case 2:
                words[at] = numbers.choice(SPICE)
            case 3:
                words[at], words[other_at] = words[other_at], words[at]
            case 4:
                words[at] = words[other_at]
            case 5:
                words[at:at] = words[other_at : other_at + numbers.randint(1, 12)]
            case 6:
                words[at] = _bytes_changed(numbers, words[at])
            case _:
                del words[at : at + numbers.randint(2, 30)]
        words = words or [b" "]
    return _layout_changed(numbers, b"".join(words))


def _bytes_changed(numbers: random.Random, word: bytes) -> bytes:
    """A word with one byte deleted, doubled or replaced by any other."""
    at = numbers.randrange(len(word))
    middle = numbers.choice((b"", word[at : at + 1] * 2, bytes([numbers.randrange(256)])))
    return word[:at] + middle + word[at + 1 :]


def _layout_changed(numbers: random.Random, text: bytes) -> bytes:
    """Now and then the text with other line breaks, a byte order mark, or in an encoding that is not UTF-8."""
    match numbers.randrange(40):
        case 0:
            return text.replace(b"\n", b"\r\n")
        case 1:
            return text.replace(b"\n", b"\r")
        case 2:
            return b"\xef\xbb\xbf" + text
        case 3:
            return text.replace(b"    ", b"\t")
        case 4:
            return text.decode("utf-8", "replace").encode("utf-16")
        case 5:
            return text.replace(b"\n", b" ")
        case _:
            return text


def check_compiles(content: bytes, reproduction: str) -> str:
    """Compiles, runs and checks every program of a source with small sizes: "wrong", "refused" or "ran", the worst one.

    A size that does not fit, or a limit, is a refusal; a result that is wrong is counted; anything else is raised.
    """
    source = content.decode("utf-8")
    outcomes = set()
    for name in program_names(source):
        try:
            program = parse(source, program=name)
            open_dims = [dim for dim in program.dims if dim.size is None and dim.same_as is None]
            sizes = {dim.name: 2 + number % 3 for number, dim in enumerate(open_dims)}
            report, _ = running.run(running.Request(program, "cpu", sizes, {}, {}, 0, 1))
            outcomes.add("ran" if report.comparison.ok else "wrong")
        except BlockcError:
            outcomes.add("refused")
        except Exception:
            print(f"reproduce with: {reproduction}\n{source}", file=sys.stderr)
            raise
    return "wrong" if "wrong" in outcomes else "refused" if "refused" in outcomes else "ran"


def campaign(seed: int, count: int, compiled: int) -> Counter[str]:
    """Checks `count` mutations; of those that are programs, one in `compiled` is compiled as well."""
    numbers = random.Random(seed)
    sources = [path.read_bytes() for path in EXAMPLES]
    outcomes: Counter[str] = Counter()
    for number in range(count):
        content = mutated(numbers, sources)
        reproduction = f"mutation {number} of seed {seed}: {content!r}"
        is_program = check_answer(content, reproduction)
        outcomes["programs" if is_program else "messages"] += 1
        if is_program and outcomes["programs"] % compiled == 0:
            outcomes[check_compiles(content, reproduction)] += 1
    return outcomes


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_prefix_of_an_example_is_survived(path: Path) -> None:
    content = path.read_bytes()
    for end in range(len(content)):
        check_answer(content[:end], f"the first {end} bytes of {path.name}")


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_mutations_of_the_examples_are_survived(chunk: int) -> None:
    seed = SEED + chunk
    print(f"seed {seed}")
    outcomes = campaign(seed, COUNT // CHUNKS, COMPILED)
    assert outcomes["messages"] > outcomes["programs"] > 0
    assert outcomes["ran"] > 0


# What a person sees is escaped, wherever it comes from.

NASTY = "\x1b[31m\x07\x00\x7f\x85\x9b31m\xad\u061c\u200b\u200e\u2028\u202a\u202e"
NASTY += "\u2066\u2069\ufeff\u115f\u3164\ufe0f\U000e0041"


def outcome(*arguments: str) -> tuple[int, str]:
    """The exit code of a command and everything that it printed."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        return main(list(arguments)), output.getvalue()


def hostile_files(folder: Path) -> tuple[str, str]:
    """A program and a wrong program, with nasty comments and names."""
    program = f"# {NASTY}\nprogram f(X: f32[m, n]) -> Y: f32[m] {{ # {NASTY}\n    Y = sum[n](X) # {NASTY}\n}} # {NASTY}"
    name = NASTY.replace("\0", "")
    good, bad = folder / f"good{name}.blk", folder / f"bad{name}.blk"
    good.write_text(program, encoding="utf-8")
    bad.write_text(program.replace("X) #", f"X) {NASTY} + Q #"), encoding="utf-8")
    return str(good), str(bad)


def assert_escaped(text: str) -> None:
    assert [line for line in text.split("\n") if visible(line) != line] == []


@pytest.mark.parametrize("stage", ["array", "block", "snapshot", "stable", "plan", "kernel"])
def test_no_stage_shows_a_control_character(stage: str, tmp_path: Path) -> None:
    code, text = outcome("show", hostile_files(tmp_path)[0], "--stage", stage)
    assert code == 0
    assert_escaped(text)


@pytest.mark.parametrize("command", [["explain"], ["explain", "--json"], ["run"], ["run", "--json"], ["check"]])
def test_no_command_shows_a_control_character(command: list[str], tmp_path: Path) -> None:
    for file, expected in zip(hostile_files(tmp_path), (0, 1), strict=True):
        code, text = outcome(command[0], file, *command[1:])
        assert code == expected
        assert_escaped(text)


def test_an_emitted_file_shows_no_control_character(tmp_path: Path) -> None:
    folder = tmp_path / f"out{NASTY}".replace("\0", "")
    code, text = outcome("emit", hostile_files(tmp_path)[0], "-o", str(folder))
    assert code == 0
    assert_escaped(text)
    assert_escaped((folder / "f_cpu.py").read_text(encoding="utf-8"))
    assert outcome("emit", hostile_files(tmp_path)[0], "-o", f"{tmp_path}/{NASTY}")[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dim", NASTY], ["--dim", f"m={NASTY}"], ["--tile", f"{NASTY}=1"], ["--input", f"X={NASTY}"], [f"-{NASTY}"],
        ["--input", NASTY], ["--output", f"Y={NASTY}"], ["--output", f"Y=nowhere{NASTY}/y.npy"], ["--dtype", NASTY],
        ["--program", NASTY], ["--target", NASTY], ["--seed", NASTY], ["--threads", NASTY], [f"--{NASTY}"], [NASTY],
    ],
)  # fmt: skip
def test_what_was_typed_is_shown_escaped(arguments: list[str], tmp_path: Path) -> None:
    code, text = outcome("run", hostile_files(tmp_path)[0], *arguments)
    assert code == 2
    assert_escaped(text)


def test_the_caret_stands_under_wide_and_combining_characters() -> None:
    line = "\u8868\uff08e\u0301 @"
    problem = Problem("E0101", "here", Span(1, len(line), 1, len(line) + 1), "a hint")
    shown, carets = render(problem, line, "a.blk").split("\n")[-2:]
    columns = [
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in shown
    ]
    assert sum(columns[: shown.index("@")]) == carets.index("^")


def test_very_long_names_are_shortened() -> None:
    name = "a" * 100_000
    code, text = outcome("check", "--program", name, str(EXAMPLES[0]))
    assert (code, len(text) < 300) == (2, True)
    with pytest.raises(BlockcError) as caught:
        parse(f"program f(X: f32[m]) -> Y: f32[m] {{ Y = X + {name} }}")
    assert len(str(caught.value)) < 800


def campaign_command(arguments: list[str]) -> None:
    """`python tests/test_hostile_input.py`: the same for any number of mutations, each program compiled."""
    parser = argparse.ArgumentParser(description=campaign_command.__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="how many mutations")
    parser.add_argument("--seed", type=int, default=SEED, help="the first of the seeds, one for 500 mutations")
    parser.add_argument("--compiled", type=int, default=COMPILED, help="one in so many programs is compiled")
    options = parser.parse_args(arguments)
    outcomes: Counter[str] = Counter()
    for start in range(0, options.count, 500):
        count = min(500, options.count - start)
        outcomes += campaign(options.seed + start // 500, count, options.compiled)
        print(f"\r{start + count} of {options.count}", end="", file=sys.stderr, flush=True)
    print("\n" + ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items())))


if __name__ == "__main__":
    campaign_command(sys.argv[1:])
