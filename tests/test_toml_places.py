"""Where keys and values stand in a TOML text: everything is found, and is what stands there."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.machines.toml_places import places

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "blockc" / "machines").glob("*.toml"))


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Everything in a TOML value with its path."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key), inner
        yield from paths(inner, (*path, key))


def piece(text: str, line: int, column: int, end_line: int, end_column: int) -> str:
    """The part of a text between two places."""
    lines = text.split("\n")
    if line == end_line:
        return lines[line - 1][column - 1 : end_column - 1]
    return "\n".join(
        (lines[line - 1][column - 1 :], *lines[line : end_line - 1], lines[end_line - 1][: end_column - 1])
    )


def check_places(text: str) -> None:
    """Asserts that all values of a TOML text are found, and that what stands at their places are these values."""
    data = tomllib.loads(text)
    found = places(text)
    expected = dict(paths(data))
    assert set(found) == set(expected)
    for path, place in found.items():
        span = place.value
        shown = piece(text, span.line, span.column, span.end_line, span.end_column)
        if not isinstance(expected[path], dict) and not shown.startswith("[["):
            assert tomllib.loads(f"x = {shown}")["x"] == expected[path], path


NASTY_TOML = (
    """\
"quoted.key" = 'it''s' # "no
""".replace("''s'", "s'")
    + '''\
a."b c".d = """
two "" lines ]] = [[x]] # not a comment \\""" end"""
'e'.f = \'\'\'
[[no]] = '' 'x'\'\'\'
empty = [ ]
none = {  }
list = [ # comment ]
    1, [2, "]", {g = "}", h.i = [3]}], # ]
    1979-05-27 07:32:00, -1.5e3, 0xff,
]
quotes = """""a"""""
[ t . "u.v" ]
x = true
[[many]]
[[many.inner]]
y = 1
[[many.inner]]
y = 2
[many.inner.deep]
z = inf
[[many]]
[[many.inner]]
y = 3
'''
)


def test_places_of_everything_toml_has() -> None:
    check_places(NASTY_TOML)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_places_in_the_shipped_files(path: Path) -> None:
    check_places(path.read_text())


KEYS = st.sampled_from(("a", "b-c", '"d e"', "'f.g'", "1", '"]"', '"#\\""'))
SCALARS = st.sampled_from(("1", "-2.5", "true", '"x"', "'#'", '"]}"', '"""\n"a" ]"""', "1979-05-27 07:32:00", "nan_"))
VALUES = st.recursive(
    SCALARS.filter(lambda text: text != "nan_"),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda values: f"[ {', '.join(values)}\n# ]\n]"),
        st.dictionaries(KEYS, inner.filter(lambda text: "\n" not in text), max_size=3).map(
            lambda table: "{ " + ", ".join(f"{key} = {value}" for key, value in table.items()) + " }"
        ),
    ),
    max_leaves=6,
)
LINES = st.one_of(
    st.tuples(st.lists(KEYS, min_size=1, max_size=3), VALUES).map(
        lambda pair: f"{' . '.join(pair[0])} = {pair[1]} # end"
    ),
    st.lists(KEYS, min_size=1, max_size=3).map(lambda parts: f"[{'.'.join(parts)}]"),
    st.lists(KEYS, min_size=1, max_size=3).map(lambda parts: f"[[ {' .'.join(parts)} ]]  # [["),
)


@settings(max_examples=300, deadline=None)
@given(lines=st.lists(LINES, max_size=8))
def test_places_in_random_texts(lines: list[str]) -> None:
    text = ""
    for line in lines:  # what makes the text wrong is left out
        try:
            tomllib.loads(f"{text}{line}\n")
        except tomllib.TOMLDecodeError:
            continue
        text += f"{line}\n"
    check_places(text)
