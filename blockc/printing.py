"""What commands print beside their results: JSON, problems, and how far they are."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from blockc.errors import Problem


def problem_json(problem: Problem) -> dict[str, Any]:
    """A problem as an object: its place is in lines and columns from 1, or null."""
    span = problem.span
    return {
        "code": problem.code,
        "message": problem.message,
        "hint": problem.hint,
        "line": span.line if span else None,
        "column": span.column if span else None,
        "end_line": span.end_line if span else None,
        "end_column": span.end_column if span else None,
    }


def print_json(value: Mapping[str, Any]) -> None:
    """Print one object. Infinities, which JSON does not have, become null."""
    click.echo(json.dumps(_without_infinities(value), indent=2, allow_nan=False))


def _without_infinities(value: Any) -> Any:
    match value:
        case float() if math.isinf(value):
            return None
        case Mapping():
            return {key: _without_infinities(part) for key, part in value.items()}
        case list() | tuple():
            return [_without_infinities(part) for part in value]
        case _:
            return value


@contextlib.contextmanager
def progress(doing: str) -> Iterator[Callable[[str], None]]:
    """Says what is being done while it is being done, if standard error is a terminal. Gives a function that says how
    far it is."""
    shown = 0

    def say(detail: str) -> None:
        nonlocal shown
        if sys.stderr.isatty():
            message = f"{doing}: {detail} ..." if detail else f"{doing} ..."
            print(message.ljust(shown), end="\r", file=sys.stderr, flush=True)
            shown = len(message)

    say("")
    try:
        yield say
    finally:
        if shown:
            print(" " * shown, end="\r", file=sys.stderr, flush=True)
