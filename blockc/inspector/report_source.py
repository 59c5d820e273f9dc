"""The source text for a report, in pieces: each belongs to the operators whose text it is, and to their kernels."""

from __future__ import annotations

from typing import Any

from blockc.drawing import readable_bytes
from blockc.errors import visible
from blockc.inspector.origins import Operator, Origins
from blockc.inspector.pairs import Inspection, Pair
from blockc.ir.block import kernels
from blockc.partition import Partition


def source_json(found: Partition) -> dict[str, Any]:
    """The lines of the source, and what is known of its operators and of the kernels."""
    inspection = Inspection.of(found)
    located = inspection.origins
    return {
        "lines": pieces(found.program.source, located.operators),
        "operators": [operator_json(operator) for operator in located.operators],
        "kernels": kernels_json(found, located),
        "pairs": [pair_json(pair) for pair in inspection.pairs if pair.reason is not None],
    }


def pair_json(pair: Pair) -> dict[str, Any]:
    """Two neighbouring operators that are not in one kernel, with the one reason."""
    reason = pair.reason
    assert reason is not None
    saved = reason.saved_bytes
    return {
        "first": visible(pair.first),
        "second": visible(pair.second),
        "kernels": [sorted(kernels) for kernels in pair.kernels],
        "kind": reason.kind,
        "rule": reason.rule,
        "reason": reason.reason,
        "why": visible(reason.why).replace(" us", " µs"),
        "saved": "" if saved is None else f"{'-' if saved < 0 else ''}{readable_bytes(abs(saved))}",
        "bytes": saved or 0,
        "line": reason.span.line if reason.span is not None else None,
    }


def operator_json(operator: Operator) -> dict[str, Any]:
    """An operator with the kernels that it is in."""
    return {
        "name": visible(operator.name),
        "op": operator.op,
        "line": operator.span.line if operator.span is not None else None,
        "part": operator.part,
        "kernels": sorted(operator.kernels),
        "removed": visible(operator.removed),
    }


def kernels_json(found: Partition, located: Origins) -> list[dict[str, Any]]:
    """The kernels of all parts, in the order in which they run, with the operators that they compute."""
    result: list[dict[str, Any]] = []
    for at, part in enumerate(found.parts):
        chosen = part.plan.chosen
        for number in range(len(kernels(chosen.derivation.snapshots[chosen.choice.snapshot]))):
            kernel = len(result)
            names = [one.name for one in located.operators if kernel in one.kernels]
            result.append({"part": at, "number": number, "operators": [visible(name) for name in names]})
    return result


def pieces(source: str, operators: tuple[Operator, ...]) -> list[list[list[Any]]]:
    """Every line as pieces of text with the numbers of their operators, the innermost ones: those whose spans are
    shortest. Text that is no operator's has none."""
    lines = source.splitlines()
    owners: list[list[tuple[int, ...]]] = [[()] * len(line) for line in lines]
    spans: dict[tuple[int, int, int, int], list[int]] = {}
    for number, operator in enumerate(operators):
        if operator.span is not None:
            span = operator.span
            spans.setdefault((span.line, span.column, span.end_line, span.end_column), []).append(number)
    for line, column, end_line, end_column in sorted(spans, key=lambda span: _length(span, lines), reverse=True):
        own = tuple(spans[line, column, end_line, end_column])
        for at in range(line, min(end_line, len(lines)) + 1):
            first = column - 1 if at == line else len(lines[at - 1]) - len(lines[at - 1].lstrip())
            last = end_column - 1 if at == end_line else len(lines[at - 1])
            for place in range(first, min(last, len(lines[at - 1]))):
                owners[at - 1][place] = own
    return [_pieces(line, own) for line, own in zip(lines, owners, strict=True)]


def _length(span: tuple[int, int, int, int], lines: list[str]) -> int:
    line, column, end_line, end_column = span
    return sum(len(text) for text in lines[line - 1 : end_line - 1]) + end_column - column


def _pieces(line: str, owners: list[tuple[int, ...]]) -> list[list[Any]]:
    found: list[list[Any]] = []
    start = 0
    for place in range(1, len(line) + 1):
        if place == len(line) or owners[place] != owners[start]:
            found.append([visible(line[start:place]), list(owners[start])])
            start = place
    return found
