"""What a user sees when a program is wrong: every message, and that no text whatever gets anything else.

`tests/data/errors/NAME.blk` is a wrong program, `NAME.txt` what is printed for it; `--update-golden` rewrites those.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from blockc.errors import BlockcError, LimitError, Problem
from blockc.language import parse, parse_all

ROOT = Path(__file__).parent.parent
CASES = sorted((Path(__file__).parent / "data" / "errors").glob("*.blk"))


def failure(source: str, filename: str = "test.blk") -> BlockcError:
    with pytest.raises(BlockcError) as caught:
        parse(source, filename)
    return caught.value


def read(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as file:
        return file.read()


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_message(path: Path, request: pytest.FixtureRequest) -> None:
    message = str(failure(read(path), path.name)) + "\n"
    expected = path.with_suffix(".txt")
    if request.config.getoption("--update-golden"):
        expected.write_text(message, encoding="utf-8")
    assert message == expected.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_problem_has_a_code_a_place_and_a_hint(path: Path) -> None:
    error = failure(read(path), path.name)
    assert error.exit_code == 1
    for problem in error.problems:
        assert re.fullmatch(r"E01\d\d", problem.code)
        assert problem.message
        assert problem.span is not None
        assert problem.hint


def test_no_expected_message_is_left_without_its_program() -> None:
    directory = CASES[0].parent
    assert {path.stem for path in directory.glob("*.txt")} == {path.stem for path in CASES}


def test_the_message_of_the_design() -> None:
    source = (
        "program attn(Q: f16[m, d], K: f16[n, d]) -> P: f16[m, n] {\n    S = dot[d](Q, K)\n    P = softmx[n](S)\n}\n"
    )
    assert str(failure(source, "attn.blk")) == (
        "error[E0102]: unknown operator `softmx`\n"
        " --> attn.blk:3:9\n"
        "  |\n"
        "3 |     P = softmx[n](S)\n"
        "  |         ^^^^^^ did you mean `softmax`?"
    )


def test_all_codes_of_mistakes_occur_among_the_cases() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "blockc").glob("*.py"))
    mistakes = set(re.findall(r'"(E01[0-8]\d)"', sources))
    seen = {problem.code for path in CASES for problem in failure(read(path)).problems}
    assert mistakes == seen


def test_all_codes_of_limits_occur() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "blockc").glob("*.py"))
    limits = set(re.findall(r'"(E019\d)"', sources))
    head = "program f(X: f32[m]) -> Y: f32[m] { Y = "
    texts = (
        "#" * (2**20 + 1), head + "X }" + " ;" * 250_000, head + "(" * 65 + "X }", head + "X" + " + X" * 10_000 + " }",
        f"program f(X: f32[m={2**40 + 1}]) -> Y: f32[m] {{ Y = X }}",
        "program f(X: f32[a, b, c, d, e, f, g, h, i]) -> Y: f32[a, b, c, d, e, f, g, h, i] { Y = X }",
    )  # fmt: skip
    many = head + "X" + "".join(f"; a{number} = Q" for number in range(60)) + " }"
    errors = [failure(text) for text in texts]
    assert limits <= {problem.code for error in (*errors, failure(many)) for problem in error.problems}
    assert {error.exit_code for error in errors} == {3}


@pytest.mark.parametrize(
    ("statements", "codes"),
    [
        # A value that could not be made silences what depends on it.
        ("S = nothing(X); T = S + S; Y = sum[n](T[k -> l])", ["E0102"]),
        ("S = X[k -> l]; Y = sum[l](S) + max[q](S)", ["E0111"]),
        ("S = where(X, 1, 0); Y = not S", ["E0109"]),
        ("S: f33[m, n] = X; Y = S", ["E0106"]),
        # Mistakes that do not depend on one another are all reported, in source order.
        ("A = nothing(X); B = other(X); Y = C", ["E0102", "E0102", "E0103"]),
        ("A = exp(X, X); A = sum(X); Y = X", ["E0107", "E0104", "E0108"]),
        ("A = max[q](X); B = X and X; Y = X[m -> n]", ["E0105", "E0109", "E0111"]),
        # A failed statement may be the one that would have determined a size.
        ("A = X[k -> j]; B = index(j); Y = X", ["E0111", "E0105"]),
        # Syntax errors: one for every statement.
        ("A = X +; B = ) X; C = (X; Y = X", ["E0100", "E0100", "E0100"]),
    ],
)
def test_one_run_reports_all_mistakes(statements: str, codes: list[str]) -> None:
    source = f"program f(X: f32[m, n]) -> Y: f32[m, n] {{ {statements} }}"
    assert [problem.code for problem in failure(source).problems] == codes


def test_mistakes_of_several_programs_and_definitions_are_reported_together() -> None:
    source = (
        "def f(a) = b\n"
        "program p(X: f32[m]) -> Y: f32[m] { Y = q(X) }\n"
        "program q(X: f32[m]) -> Y: f32[m] { Y = f(X) + nothing }\n"
    )
    assert [(problem.code, problem.span.line) for problem in failure(source).problems if problem.span] == [
        ("E0103", 1), ("E0102", 2), ("E0103", 3),
    ]  # fmt: skip


@pytest.mark.parametrize("expression", ["1 + sum[k](a)", "exp(a[k -> j])", "a * size(k)", "exp(softmax[k](a))"])
def test_an_unknown_dimension_deep_in_a_definition_is_reported_once(expression: str) -> None:
    source = f"def g[n](a) = {expression}\nprogram f(X: f32[n]) -> Y: f32[n] {{ Y = g[n](X) + g[n](X) }}"
    problems = failure(source).problems
    assert {problem.code for problem in problems} == {"E0105"}
    assert len(problems) == expression.count("k") + expression.count("j")


def test_very_many_mistakes_are_counted_not_listed() -> None:
    lines = "\n".join(f"a{number} = unknown{number}" for number in range(2_000))
    error = failure(f"program f(X: f32[m]) -> Y: f32[m] {{\nY = X\n{lines}\n}}")
    assert len(error.problems) == 51
    assert error.problems[-1].message == "1,950 more problems are not shown"


def test_control_characters_never_reach_the_terminal() -> None:
    for character in ("\x1b", "\u202e", "\u2066", "\x00", "\x7f", "\u200b", "\ud800"):
        message = str(failure(f"program f(X: f32[m]) -> Y: f32[m] {{ Y = X {character} }}", f"a{character}.blk"))
        assert character not in message
        assert character.encode("unicode_escape").decode() in message


def test_a_very_long_line_is_shown_in_part() -> None:
    source = "program f(X: f32[m]) -> Y: f32[m] { Y = X" + " + X" * 1_000 + " + Q" + " + X" * 1_000 + " }"
    shown = str(failure(source)).splitlines()
    assert max(map(len, shown)) < 250
    column = shown[4].index("^")
    assert shown[3][column] == "Q"


# Whatever the text, the answer is a program or a `BlockcError`, soon. (More of it: `test_hostile_input.py`.)


def check_survives(source: str, reproduction: str) -> None:
    start = time.process_time()
    problems: tuple[Problem, ...] = ()
    try:
        parse_all(source)
    except BlockcError as error:
        problems = error.problems
    except Exception:
        print(f"reproduce with: {reproduction}", file=sys.stderr)
        raise
    assert all(problem.span is not None and problem.hint for problem in problems), reproduction
    assert time.process_time() - start < 5, reproduction


@pytest.mark.parametrize(
    "source",
    [
        "{" * 100_000,
        "(" * 100_000,
        "-" * 100_000,
        "@" * 100_000,
        "program f(X: f32[m]) -> Y: f32[m] { Y = " + "(" * 60_000,
        "program f(X: f32[m]) -> Y: f32[m] {" + "Y = X;" * 20_000 + "}",
        "program f(X: f32[m]) -> Y: f32[m] { Y = " + " + ".join(f"x{number}" for number in range(20_000)) + "}",
        "\n".join(f"def g{number}(a) = g{(number + 1) % 6_000}(a) + g{number}(a)" for number in range(6_000)),
        "\n".join(f"program p{number}(X: f32[m]) -> Y: f32[m] {{ Y = @ }}" for number in range(3_000)),
        "program f(" + ", ".join(f"x{number}: f32[m{number}]" for number in range(9_000)) + ") -> Y: f32[] { Y = 1 }",
        "# " + "\u202e" * 300_000,
        "program f(X: f32[m=" + "9" * 100_000 + "]) -> Y: f32[m] { Y = X }",
    ],
    ids=range(12),
)
def test_hostile_texts_are_survived(source: str) -> None:
    check_survives(source, "see the test")


def test_a_limit_is_not_hidden_by_other_mistakes() -> None:
    with pytest.raises(LimitError):
        parse("program f(X: f32[m]) -> Y: f32[m] { Y = " + "(" * 65 + "X }")
