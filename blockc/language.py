"""The language: text to checked array programs (`parse`), or every problem of the text with a caret under it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from blockc import inline, names, syntax
from blockc.errors import BlockcError, LimitError, Problem, UsageError
from blockc.ir.array_program import ArrayProgram, Span
from blockc.ir.dtypes import DTYPES, is_float
from blockc.names import Definitions, listing, suggest
from blockc.parsing import MAX_PROBLEMS, normalise, parse_file


def parse(
    source: str, filename: str = "<string>", program: str | None = None, dtype: str | None = None
) -> ArrayProgram:
    """The program called `program`, or the only one of the source. `dtype` replaces every float type in it.

    Raises `BlockcError` with all problems of the source, also those of its other programs; `LimitError` for a source
    that is too large; `UsageError` if `program` or `dtype` names nothing.
    """
    programs = parse_all(source, filename, dtype)
    return programs[selected(tuple(programs), program)]


def parse_all(source: str, filename: str = "<string>", dtype: str | None = None) -> dict[str, ArrayProgram]:
    """The programs of a source by their names. Raises as `parse` does."""
    if dtype is not None and not (dtype in DTYPES and is_float(dtype)):
        floats = [name for name in DTYPES if is_float(name)]
        raise UsageError(f"`{dtype}` is no type that can replace floats", f"the types are {listing(floats)}")
    text = normalise(source)
    return _programs(parse_file(text, filename), text, filename, dtype)


def program_names(source: str, filename: str = "<string>") -> tuple[str, ...]:
    """The names of the programs in a source, in its order. Raises for syntax errors only."""
    return tuple(item.name.text for item in parse_file(normalise(source), filename).programs)


@cache
def prelude() -> Definitions:
    """The definitions that every program may use."""
    source = files("blockc").joinpath("prelude.blk").read_text(encoding="utf-8")
    return {definition.name.text: definition for definition in parse_file(source, "prelude.blk").definitions}


def _programs(file: syntax.File, source: str, filename: str, dtype: str | None) -> dict[str, ArrayProgram]:
    own = {definition.name.text: definition for definition in reversed(file.definitions)}
    findings = names.check(file, {**prelude(), **own})
    if not file.programs:
        hint = "such as `program double(X: f32[m]) -> Y: f32[m] { Y = 2 * X }`"
        findings.add("E0118", "the file has no program", Span(1, 1, 1, 2), hint)
    programs = {}
    try:
        for item in file.programs:
            checked = inline.array_program(item, inline.Library(own, prelude()), findings, dtype, source, filename)
            if checked is not None:
                programs[checked.name] = checked
    except inline.LimitReached as reached:
        raise LimitError((reached.problem,), source, filename) from None
    if findings.problems:
        raise BlockcError(_presented(findings.problems), source, filename)
    return programs


def _presented(problems: list[Problem]) -> tuple[Problem, ...]:
    """The problems in source order, as many as anyone will read."""
    ordered = sorted(
        dict.fromkeys(problems),
        key=lambda problem: (problem.span.line, problem.span.column) if problem.span else (0, 0),
    )
    if len(ordered) <= MAX_PROBLEMS:
        return tuple(ordered)
    message = f"{len(ordered) - MAX_PROBLEMS:,} more problems are not shown"
    rest = Problem("E0199", message, ordered[MAX_PROBLEMS].span, "this is the next one; correct the others first")
    return (*ordered[:MAX_PROBLEMS], rest)


def selected(available: tuple[str, ...], program: str | None) -> str:
    """The name of the program that is meant by `program`, which may be None if there is one only."""
    if program is None and len(available) == 1:
        return available[0]
    choice = f"the programs are {listing(available)}"
    if program is None:
        raise UsageError("the file has several programs and none was named", choice)
    if program not in available:
        raise UsageError(f"there is no program `{program}`", suggest(program, available) or choice)
    return program
