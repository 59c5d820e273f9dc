"""Options that several commands of the command line share, and what their values look like."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from blockc.errors import UsageError, visible

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Pair:
    """An option of the form NAME=VALUE."""

    name: str
    value: str


class PairType(click.ParamType[Pair]):
    """NAME=VALUE. `metavar` is shown in the help."""

    name = "pair"

    def __init__(self, metavar: str, pattern: str, wanted: str) -> None:
        self.metavar, self.pattern, self.wanted = metavar, re.compile(pattern), wanted

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What the help shows."""
        return self.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Pair:
        """The two parts of the text."""
        name, equals, text = str(value).partition("=")
        if not equals or not NAME.fullmatch(name) or not self.pattern.fullmatch(text):
            self.fail(f"{visible(str(value))!r} is not of the form {self.metavar}: {self.wanted}", param, ctx)
        return Pair(name, text)


SIZE = PairType("NAME=SIZE", r"-?[0-9]{1,100}", "a dimension and its size, such as m=4096")
TILE = PairType("NAME=SIZE", r"-?[0-9]{1,100}|whole", "a dimension and its block size, such as m=256 or d=whole")
CHUNKS = PairType("NAME=COUNT", r"-?[0-9]{1,19}", "a dimension and a number of chunks, such as n=4")
ARRAY_FILE = PairType("NAME=FILE", r".+", "an array and a .npy file, such as Q=q.npy")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of every command that compiles."""

    target: str
    dims: Mapping[str, int]
    tiles: Mapping[str, int | None]
    split: Mapping[str, int]
    dtype: str | None
    program: str | None
    form: str


Command = Callable[..., None]

_FILE = click.argument("file", metavar="FILE")
_COMPILING = (
    click.option(
        "--target",
        metavar="TARGET",
        default="cpu",
        show_default=True,
        help="A name that `blockc targets` lists, or a machine file.",
    ),
    click.option("--dim", "dims", type=SIZE, multiple=True, help="The size of a dimension. Repeatable."),
    click.option("--tile", "tiles", type=TILE, multiple=True, help="Its block size, or `whole`. Repeatable."),
    click.option("--split", type=CHUNKS, multiple=True, help="Into how many chunks loops over it are cut. Repeatable."),
)
_SHARED = (
    click.option("--dtype", metavar="TYPE", help="Replace all float types of the program, for example by f32."),
    click.option("--program", metavar="NAME", help="Which program, if the file has several."),
    click.option("--json", "form", flag_value="json", default="text", help="Print one JSON object."),
)

inputs_option = click.option(
    "--input", "inputs", type=ARRAY_FILE, multiple=True, help="Read an input from a .npy file. Repeatable."
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="For random inputs."
)
device_option = click.option(
    "--device", metavar="NAME", help="The GPU, as torch calls it, if the target is one (default: cuda)."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Worker threads (default: as BLAS has)."
)


def program_options(command: Command) -> Command:
    """Adds FILE, --program, --dtype and --json to a command."""
    return _with_options(command, (_FILE, *_SHARED))


def compile_options(command: Command) -> Command:
    """Adds FILE and the options of every command that compiles to a command, which gets them as `options`."""

    def gathered(
        file: str,
        target: str,
        dims: tuple[Pair, ...],
        tiles: tuple[Pair, ...],
        split: tuple[Pair, ...],
        dtype: str | None,
        program: str | None,
        form: str,
        **others: Any,
    ) -> None:
        sizes = {name: int(value) for name, value in unique(dims, "--dim").items()}
        blocks = {name: None if value == "whole" else int(value) for name, value in unique(tiles, "--tile").items()}
        chunks = {name: int(value) for name, value in unique(split, "--split").items()}
        command(file=file, options=Options(target, sizes, blocks, chunks, dtype, program, form), **others)

    return _with_options(functools.wraps(command)(gathered), (_FILE, *_COMPILING, *_SHARED))


def _with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """The command with options that its help lists in this order, before its own."""
    for option in reversed(options):
        command = option(command)
    return command


def unique(pairs: Sequence[Pair], option: str) -> dict[str, str]:
    """The pairs as a mapping; UsageError for a name with two values."""
    result: dict[str, str] = {}
    for pair in pairs:
        if result.setdefault(pair.name, pair.value) != pair.value:
            raise UsageError(f"{option} {pair.name} is given twice: {result[pair.name]} and {visible(pair.value)}")
    return result
