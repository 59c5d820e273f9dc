"""What `blockc verify` says: as tables for a person, as JSON, and what failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from blockc.errors import Problem
from blockc.verifying import CheckedSnapshot, CheckedStep, Verified, sum_of

HINT = "this is a fault of blockc: please report it with the program and the sizes"


def problems(found: Sequence[Verified]) -> tuple[Problem, ...]:
    """Everything that failed."""
    return tuple(Problem("E0907", failure, None, HINT) for way in found for failure in way.failures)


def as_json(program: str, found: Sequence[Verified]) -> dict[str, Any]:
    """The object that `blockc verify --json` prints."""
    failures = [failure for way in found for failure in way.failures]
    return {"program": program, "ok": not failures, "failures": failures, "ways": [way_json(way) for way in found]}


def way_json(way: Verified) -> dict[str, Any]:
    """One way to cut the program."""
    return {
        "whole": list(way.whole),
        "dims": dict(way.sizes),
        "tiles": dict(way.tiles),
        "stopped": way.stopped or None,
        "steps": [step_json(step) for step in way.steps],
        "snapshots": [snapshot_json(snapshot) for snapshot in way.snapshots],
    }


def step_json(step: CheckedStep) -> dict[str, Any]:
    """One step. `field` is "equal", "different" or "outside" (of what the prime field can decide)."""
    return {
        "step": step.number,
        "rule": step.rule,
        "paper_rule": step.paper,
        "at": " ".join(step.at),
        "line": step.span.line if step.span else None,
        "float64_difference": step.difference,
        "field": agreement(step),
        "field_elements": {
            "equal": step.field.equal,
            "different": step.field.different,
            "undecided": step.field.undecided,
        },
        "verifier": step.broken or "ok",
        "ok": not step.problem,
    }


def agreement(step: CheckedStep) -> str:
    """What the prime field says of a step."""
    return "different" if step.field.different else "outside" if step.field.is_outside else "equal"


def snapshot_json(snapshot: CheckedSnapshot) -> dict[str, Any]:
    """One snapshot."""
    return {
        "index": snapshot.index,
        "kernels": snapshot.kernels,
        "float64_difference": snapshot.difference,
        "loads": dict(zip(("predicted", "counted"), snapshot.moved["load"], strict=True)),
        "stores": dict(zip(("predicted", "counted"), snapshot.moved["store"], strict=True)),
        "numbers": [
            {
                "family": row.family,
                "output": row.output,
                "max_abs_error": row.error,
                "error_bound": row.bound,
                "ok": row.ok,
            }
            for row in snapshot.numbers
        ],
        "ok": not snapshot.problem,
    }


def lines(program: str, found: Sequence[Verified]) -> Iterator[str]:
    """What `blockc verify` prints for a person."""
    yield f"program   {program}"
    for way in found:
        yield from way_lines(way)
    yield "not ok" if any(way.failures for way in found) else "ok"


def way_lines(way: Verified) -> Iterator[str]:
    """The tables of one way to cut the program."""
    yield f"whole     {', '.join(way.whole) or 'nothing'}"
    yield f"sizes     {pairs(way.sizes)}"
    yield f"tiles     {pairs(way.tiles) or 'none'}"
    yield ""
    yield "Every step, against the meaning of the program:"
    titles = ("step", "rule", "paper", "at", "line", "float64", "field", "verifier")
    yield from table([titles, *map(step_row, way.steps)])
    outside = sum(step.field.is_outside for step in way.steps)
    if outside:
        yield f"{outside} of {len(way.steps)} are outside of what the prime field can decide."
    yield ""
    if way.snapshots:
        yield "Every snapshot as it is emitted; bytes are predicted and counted alike, or both are shown:"
        yield from table([("snapshot", "kernels", "float64", "loads", "stores"), *map(snapshot_row, way.snapshots)])
        yield ""
        yield "The kernels on ordinary and adversarial data; of each family the output closest to its bound:"
        yield from table([("data", *(f"snapshot {one.index}" for one in way.snapshots)), *number_rows(way.snapshots)])
        yield ""
    if way.stopped:
        yield f"Fusion stopped early: {way.stopped}."


def pairs(values: Any) -> str:
    """Names with numbers."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def step_row(step: CheckedStep) -> tuple[str, ...]:
    """One line of the first table."""
    field = agreement(step)
    if field == "equal" and step.field.undecided:
        field = f"{step.field.equal} of {sum_of(step.field)}"
    verifier = "rejected" if step.broken else "ok"
    line = str(step.span.line) if step.span else ""
    return step.number, step.rule, step.paper, " ".join(step.at), line, relative(step.difference), field, verifier


def snapshot_row(snapshot: CheckedSnapshot) -> tuple[str, ...]:
    """One line of the second table."""
    moved = [f"{a:,}" if a == b else f"{a:,} / {b:,}" for a, b in snapshot.moved.values()]
    return str(snapshot.index), str(snapshot.kernels), relative(snapshot.difference), *moved


def number_rows(snapshots: Sequence[CheckedSnapshot]) -> Iterator[tuple[str, ...]]:
    """The third table: a line for every family."""
    for rows in zip(*(snapshot.numbers for snapshot in snapshots), strict=True):
        cells = (f"{row.error:.2g} of {row.bound:.2g}{'' if row.ok else ' FAILED'}" for row in rows)
        yield rows[0].family, *cells


def relative(difference: float | None) -> str:
    """A difference, or a dash if there was nothing to compare."""
    return "-" if difference is None else f"{difference:.1e}"


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """The rows with columns aligned, indented."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
