"""The answer of `why-not` for a person and as JSON. `SCHEMA` is the name of the form of the JSON, with its version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blockc.errors import visible
from blockc.formatting import duration, table, wrapped
from blockc.inspector.loops import Loops
from blockc.inspector.obstacles import Obstacle
from blockc.inspector.origins import Operator, Stage
from blockc.inspector.pairs import Reason
from blockc.inspector.places import Named
from blockc.inspector.suggestions import Suggestion, Tried
from blockc.inspector.why_not import Answer
from blockc.ir.array_program import Span

SCHEMA = "blockc.why-not/1"
MOST_ROWS = 12  # operators of one place that are shown


def lines(answer: Answer, target: str) -> list[str]:
    """The answer as text."""
    parts = [list(head(answer, target)), list(operator_rows(answer))]
    if answer.reason is None:
        parts += [list(joined_lines(answer)), list(loop_lines(answer))]
    else:
        parts += [list(reason_lines(answer)), list(tried_lines(answer.tried))]
    return "\n\n".join("\n".join(part) for part in parts if part).split("\n")


def head(answer: Answer, target: str) -> Iterator[str]:
    """The answer in a sentence, and how the two stand to each other."""
    first, second = (visible(named.text) for named in (answer.first, answer.second))
    if answer.reason is None:
        yield f"{first} and {second} are in one kernel for {target}: {kernel_names(answer.kernels)}"
    else:
        yield f"{first} and {second} are not in one kernel for {target}"
    if answer.relation == "siblings":
        yield "  No value goes from one to the other; they read the same."
    elif answer.relation == "independent":
        yield "  No value goes from one to the other, and they read nothing in common."
    elif len(answer.way) > 2:
        yield from wrapped(f"  The way from one to the other: {' -> '.join(answer.way)}", "    ")


def operator_rows(answer: Answer) -> Iterator[str]:
    """The operators that were asked about."""
    rows: list[tuple[str, ...]] = [("place", "operator", "", "line", "kernel")]
    for named in (answer.first, answer.second):
        for node in named.operators[:MOST_ROWS]:
            operator = answer.inspection.origins.by_name[node.name]
            line = str(node.span.line) if node.span else ""
            places = kernel_names(operator.kernels, "") if operator.kernels else "none"
            rows.append((visible(named.text), node.name, node.op, line, places))
        if len(named.operators) > MOST_ROWS:
            rows.append(("", f"... {len(named.operators) - MOST_ROWS} more", "", "", ""))
    yield from table(rows, right=frozenset({3}))


def kernel_names(kernels: frozenset[int], word: str = "kernel") -> str:
    """Kernels by their numbers."""
    numbers = ", ".join(map(str, sorted(kernels)))
    return f"{word}{'s' if len(kernels) > 1 and word else ''} {numbers}".strip()


def joined_lines(answer: Answer) -> Iterator[str]:
    """The steps that brought operators into one kernel."""
    rows: list[tuple[str, ...]] = [("operators", "step", "rule", "paper", "at", "line")]
    for pair, stage in answer.joined:
        step = stage.step
        shown = " ".join(pair)
        if step is None:
            rows.append((shown, "", "the normal form", "", "", ""))
        else:
            line = str(step.span.line) if step.span else ""
            rows.append((shown, str(stage.number + 1), step.rule, step.paper, " ".join(step.at), line))
    if len(rows) > 1:
        yield "Joined by:"
        yield from table(rows, right=frozenset({1, 5}))


def loop_lines(answer: Answer) -> Iterator[str]:
    """How operators stand to each other in their kernel, if they are in different loops."""
    loops, apart, tried = answer.loops, answer.apart, answer.tried
    if loops is None or apart is None:
        return
    yield f"There {apart[0]} and {apart[1]} are in loops of their own, over {loops.dims[0]} and over {loops.dims[1]}:"
    for obstacle in (*loops.obstacles[:1], *loops.algebra):
        yield from obstacle_lines(obstacle)
    if tried is not None and tried.obstacle is not None:
        yield "An operator that no rule can move stands between them. They are in one loop in:"
        yield from suggestion_lines(tried.obstacle, tried.before)


def obstacle_lines(obstacle: Obstacle) -> Iterator[str]:
    """A condition that fails."""
    name = f"{obstacle.rule}: {obstacle.reason}" if obstacle.rule else obstacle.reason
    yield from wrapped(f"  {name.replace('_', ' ') if not obstacle.rule else name}", "    ")
    yield from wrapped(f"    {obstacle.why}", "    ")


def reason_lines(answer: Answer) -> Iterator[str]:
    """The one reason, and what it costs."""
    reason, apart = answer.reason, answer.apart
    assert reason is not None and apart is not None
    operators = [answer.inspection.origins.by_name[name] for name in apart]
    yield f"The reason, for {apart[0]} ({operators[0].op}) and {apart[1]} ({operators[1].op}):"
    name = f"{reason.rule}: {reason.reason}" if reason.rule and reason.kind != "removed" else reason.reason
    yield f"  {name if reason.rule else name.replace('_', ' ')}"
    yield from wrapped(f"    {reason.why}", "    ")
    if reason.span is not None:
        yield f"    in line {reason.span.line}, column {reason.span.column}"
    if reason.saved_bytes:
        kept = f"{abs(reason.saved_bytes):,} bytes"
        yield f"  In one kernel they would move {kept} {'less' if reason.saved_bytes > 0 else 'more'}."
    if answer.others:
        yield "Other rules for the two refuse as well:"
        for obstacle in answer.others:
            yield from obstacle_lines(obstacle)


def tried_lines(tried: Tried | None) -> Iterator[str]:
    """What would bring them into one kernel."""
    if tried is None:
        return
    times = f"compiled again {tried.runs} times, {tried.seconds:.1f} s"
    if tried.suggestion is not None:
        yield f"They come into one kernel ({times}) with:"
        yield from suggestion_lines(tried.suggestion, tried.before)
        if tried.ended:
            yield f"  The search for a better one is not complete: {tried.ended}."
        return
    if tried.runs == 0:
        yield "There is no change that could be tried."
        return
    yield from wrapped(f"No change that was tried brings them into one kernel ({times}):", "")
    for change in tried.changes:
        yield from wrapped(f"  {change}", "    ")
    if tried.ended:
        yield f"  The search is not complete: {tried.ended}."
    if tried.obstacle is not None:
        yield "An operator that no rule can move stands between them. They do come into one kernel in:"
        yield from suggestion_lines(tried.obstacle, tried.before)


def suggestion_lines(suggestion: Suggestion, before: float) -> Iterator[str]:
    """A change that helps, and what it takes."""
    yield from wrapped(f"  {suggestion.change.text}", "    ")
    times = f"{duration(suggestion.seconds)} predicted for all, and now {duration(before)}"
    yield f"    then they are in {kernel_names(suggestion.kernels)}; {times}"


def as_json(answer: Answer, target: str) -> dict[str, Any]:
    """The answer as an object."""
    program = answer.inspection.partition.program
    return {
        "schema": SCHEMA,
        "program": program.name,
        "target": target,
        "dims": dict(answer.inspection.partition.sizes),
        "first": _named(answer, answer.first),
        "second": _named(answer, answer.second),
        "together": answer.reason is None,
        "kernels": sorted(answer.kernels),
        "relation": answer.relation,
        "way": list(answer.way),
        "joined": [_joined(pair, stage) for pair, stage in answer.joined],
        "loops": _loops(answer.loops),
        "apart": list(answer.apart) if answer.apart is not None else None,
        "reason": _reason(answer.reason),
        "others": [_obstacle(one) for one in answer.others],
        "tried": _tried(answer.tried),
    }


def _named(answer: Answer, named: Named) -> dict[str, Any]:
    by_name = answer.inspection.origins.by_name
    return {"text": named.text, "operators": [_operator(by_name[name]) for name in named.names]}


def _operator(operator: Operator) -> dict[str, Any]:
    return {
        "name": operator.name,
        "op": operator.op,
        **_place(operator.span),
        "kernels": sorted(operator.kernels),
        "removed": operator.removed,
    }


def _place(span: Span | None) -> dict[str, int | None]:
    return {"line": span.line if span else None, "column": span.column if span else None}


def _joined(pair: tuple[str, str], stage: Stage) -> dict[str, Any]:
    step = stage.step
    return {
        "operators": list(pair),
        "step": stage.number + 1,
        "rule": step.rule if step else None,
        "paper_rule": step.paper if step else None,
        "at": list(step.at) if step else [],
        **_place(step.span if step else None),
    }


def _reason(reason: Reason | None) -> dict[str, Any] | None:
    if reason is None:
        return None
    return {
        "kind": reason.kind,
        "rule": reason.rule or None,
        "reason": reason.reason,
        "why": reason.why,
        "values": dict(reason.values),
        "saved_bytes": reason.saved_bytes,
        **_place(reason.span),
    }


def _obstacle(obstacle: Obstacle) -> dict[str, Any]:
    return {"rule": obstacle.rule or None, "reason": obstacle.reason, "why": obstacle.why, "at": list(obstacle.at)}


def _loops(loops: Loops | None) -> dict[str, Any] | None:
    if loops is None:
        return None
    return {
        "dims": list(loops.dims),
        "obstacles": [_obstacle(one) for one in loops.obstacles],
        "algebra": [_obstacle(one) for one in loops.algebra],
    }


def _tried(tried: Tried | None) -> dict[str, Any] | None:
    if tried is None:
        return None
    return {
        "suggestion": _suggestion(tried.suggestion),
        "obstacle": _suggestion(tried.obstacle),
        "changes": list(tried.changes),
        "compilations": tried.runs,
        "seconds": tried.seconds,
        "predicted_seconds": tried.before,
        "complete": not tried.ended,
    }


def _suggestion(found: Suggestion | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "kind": found.change.kind,
        "change": found.change.text,
        "values": dict(found.change.values),
        "kernels": sorted(found.kernels),
        "predicted_seconds": found.seconds,
    }
