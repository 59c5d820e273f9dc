"""What `blockc bench` says: for a person, as JSON, and what failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blockc.benchmarking import Benchmark, Candidate
from blockc.errors import Problem
from blockc.formatting import duration, listed, table, wrapped
from blockc.run_report import inaccurate

INDENT = " " * 10


def failures(found: Benchmark) -> Iterator[Problem]:
    """What is wrong with the result of blockc. Other candidates may be wrong."""
    blockc = found.candidates[0]
    yield from inaccurate(blockc.output, blockc.comparison)


def as_json(found: Benchmark) -> dict[str, Any]:
    """The object that `blockc bench --json` prints."""
    return {
        "program": found.program,
        "target": found.target,
        "dims": dict(found.sizes),
        "rounds": found.rounds,
        "candidates": [
            {
                "name": candidate.name,
                "seconds": candidate.seconds,
                "quartiles": list(candidate.quartiles),
                "max_abs_error": candidate.comparison.max_abs_error,
                "error_bound": candidate.comparison.bound,
                "ok": candidate.comparison.ok,
            }
            for candidate in found.candidates
        ],
        "predicted_seconds": found.predicted,
        "bottleneck": found.bottleneck,
        "ratios": dict(found.ratios),
        "computer": dict(found.computer),
    }


def lines(found: Benchmark) -> Iterator[str]:
    """What `blockc bench` prints for a person."""
    blockc = found.candidates[0]
    facts = [f"{name} {value}" for name, value in found.computer.items() if name not in ("processor", "cores")]
    yield f"program   {found.program}, target {found.target}"
    yield from wrapped(f"sizes     {listed(found.sizes)}", INDENT)
    if found.defaults:
        yield from wrapped(f"          {', '.join(found.defaults)}: default, give others with --dim", INDENT)
    yield from wrapped(f"computer  {found.computer['processor']}, {found.computer['cores']} cores", INDENT)
    yield f"          {', '.join(facts)}"
    yield f"rounds    {found.rounds}, in each every candidate once; times are medians and quartiles"
    yield "ratio     of blockc's time to that of the candidate: below 1 blockc is faster"
    yield ""
    rows: list[tuple[str, ...]] = [("candidate", "median", "lower", "upper", "ratio", "max abs error", "bound", "")]
    rows += [_row(candidate, found.ratios.get(candidate.name)) for candidate in found.candidates]
    yield from table(rows, frozenset(range(1, 7)))
    yield ""
    yield f"predicted {duration(found.predicted)} for blockc, which waits for: {found.bottleneck or 'nothing'}"
    yield f"measured  {duration(blockc.seconds)}, {_times(blockc.seconds, found.predicted)}"
    for candidate in found.candidates[1:]:
        if not candidate.comparison.ok:
            yield f"note      {candidate.name} is not right here: its arithmetic is plain, exponentials may overflow"
    yield "not ok" if any(failures(found)) else "ok"


def _row(candidate: Candidate, ratio: float | None) -> tuple[str, ...]:
    compared = candidate.comparison
    return (
        candidate.name,
        *(duration(seconds) for seconds in (candidate.seconds, *candidate.quartiles)),
        "" if ratio is None else f"{ratio:.3g}",
        f"{compared.max_abs_error:.3g}",
        f"{compared.bound:.3g}",
        "ok" if compared.ok else "not ok",
    )


def _times(measured: float, predicted: float) -> str:
    return f"{measured / predicted:.3g} times what is predicted" if predicted else "and nothing predicted"
