"""An explanation for a notebook: the choice, the derivation with a picture of each step that changed something, and the
picture of what is executed. Nothing but text, tables and SVG: no scripts, and nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from blockc.drawing_svg import STYLE
from blockc.errors import visible
from blockc.formatting import listed
from blockc.inspector.explain_tables import View, compared_title, comparison, step_columns, step_rows
from blockc.inspector.explain_text import (
    choice_entries,
    choice_title,
    refusal_groups,
    refusal_text,
    refusal_title,
    standing,
)
from blockc.inspector.explanation import ExplainedStep, Explanation, PartExplanation
from blockc.inspector.frames import Camera
from blockc.inspector.pictures import MARKS, frame_svg, step_picture
from blockc.inspector.skeleton import skeleton
from blockc.inspector.tables import Column
from blockc.ir.block import count_maps, walk

PICTURES, LARGEST = 12, 250  # steps with a picture, in all parts; definitions of a program that is drawn
VIEW = View(10_000)  # no line is too long
LOOK = """
.blockc-explain { background: #ffffff; color: #1d2330; padding: 12px 16px; border-radius: 6px; line-height: 1.4;
 font: 13px system-ui, sans-serif; }
.blockc-explain h3 { font-size: 16px; margin: 4px 0 8px; color: inherit; }
.blockc-explain h4 { font-size: 14px; margin: 16px 0 6px; color: inherit; }
.blockc-explain p { margin: 4px 0; }
.blockc-explain pre { font: 12px ui-monospace, Menlo, Consolas, monospace; margin: 0; }
.blockc-explain pre, .blockc-explain .wide table.figures :is(tr, th, td) { background: none; color: inherit;
 border: none; }
.blockc-explain .wide { overflow-x: auto; }
.blockc-explain .loops { display: flex; flex-wrap: wrap; gap: 28px; }
.blockc-explain .wide table.figures { border-collapse: collapse; border: none; margin: 4px 0; background: none; }
.blockc-explain .wide table.figures :is(th, td) { padding: 2px 10px 2px 0; text-align: left; white-space: nowrap;
 font-size: 12px; }
.blockc-explain .wide table.figures th { color: #5a6273; font-weight: normal; border-bottom: 1px solid #c9ced8; }
.blockc-explain .wide table.figures .right { text-align: right; font-variant-numeric: tabular-nums; }
.blockc-explain .wide table.figures .name { font-family: ui-monospace, Menlo, Consolas, monospace; color: #1a4fa3; }
.blockc-explain .wide table.figures .less { color: #0b7a4d; }
.blockc-explain .wide table.figures .more { color: #a85f00; }
.blockc-explain .wide table.figures .chosen { color: #0b7a4d; font-weight: bold; }
.blockc-explain details { margin: 2px 0; }
.blockc-explain summary { cursor: pointer; }
.blockc-explain svg { max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) {
.blockc-explain { background: #14171d; color: #e4e8f0; }
.blockc-explain .wide table.figures th { color: #a4adbd; border-bottom-color: #3a414d; }
.blockc-explain .wide table.figures .name { color: #9cc1ff; }
.blockc-explain .wide table.figures :is(.less, .chosen) { color: #3ecf96; }
.blockc-explain .wide table.figures .more { color: #f0b252; }
}
"""


def page_part(explained: Explanation) -> str:
    """The whole explanation, as a piece of HTML."""
    return "\n".join(_lines(explained))


def _lines(explained: Explanation) -> Iterator[str]:
    found, program = explained.partition, explained.partition.program
    arguments = ", ".join(argument.name for argument in program.inputs)
    outputs = ", ".join(result.argument.name for result in program.outputs)
    yield f'<div class="blockc-explain"><style>{LOOK}{STYLE}{MARKS}</style>'
    yield f"<h3>{_text(f'{program.name}: {arguments} -> {outputs}')}</h3>"
    yield f"<p>for {_text(explained.target)} at {_text(listed(found.sizes))}</p>"
    left = PICTURES
    for number, part in enumerate(explained.parts):
        if len(explained.parts) > 1:
            yield f"<h3>Part {number} of {len(explained.parts)}</h3>"
        drawn = _worth_drawing(part, left)
        left -= len(drawn)
        yield from _part(part, drawn)
    yield "</div>"


def _part(part: PartExplanation, drawn: frozenset[int]) -> Iterator[str]:
    yield f"<h4>{_text(choice_title(part))}</h4>"
    yield '<div class="wide"><table class="figures">'
    for name, text in choice_entries(part, VIEW):
        yield f'<tr><td>{_text(name)}</td><td style="white-space: normal">{_text(text)}</td></tr>'
    yield "</table></div>"
    yield "<h4>Derivation, before -&gt; after</h4>"
    yield from _table(list(step_columns(part.machine, step_rows(part, VIEW), VIEW)))
    for step in part.steps:
        if step.number in drawn:
            yield from _picture(step, part)
    if _size(part) <= LARGEST:
        frame = Camera(part.plan.sizes, part.plan.tiles).frame(part.plan.program)
        yield "<h4>What is executed</h4>"
        yield f'<div class="wide">{_plain(frame_svg(frame, part.program.name))}</div>'
    yield f"<details><summary>{_text(compared_title(part).rstrip(':'))}</summary>"
    yield from _comparison(part)
    yield "</details>"
    groups = refusal_groups(standing(part))
    if groups:
        title = "Refused in the chosen snapshot, with the bytes that the rule would have saved"
        yield f"<details><summary>{title}</summary><ul>"
        for several in groups:
            places = "".join(f"<li>{_text(refusal_text(one))}</li>" for one in several)
            yield f"<li>{_text(refusal_title(several, VIEW))}<ul>{places}</ul></li>"
        yield "</ul></details>"


def _worth_drawing(part: PartExplanation, most: int) -> frozenset[int]:
    """The numbers of the steps that get a picture: of those that change something, the ones that change most bytes."""

    def weight(step: ExplainedStep) -> tuple[int, int]:
        before, after = step.before.cost, step.after.cost
        return abs(before.traffic_bytes - after.traffic_bytes), abs(before.flops - after.flops)

    found = [step for step in part.steps if step.number in part.way and any(weight(step))]
    if _size(part) > LARGEST:
        return frozenset()
    return frozenset(step.number for step in sorted(found, key=weight, reverse=True)[: max(0, most)])


def _size(part: PartExplanation) -> int:
    return sum(1 for _ in walk(part.derivation.unfused.body)) + count_maps(part.derivation.unfused.body)


def _picture(found: ExplainedStep, part: PartExplanation) -> Iterator[str]:
    """A step as a picture to open, with what it added and changed marked."""
    step = found.step
    line = f", line {step.span.line}" if step.span is not None else ""
    title = f"{found.snapshot}.{found.number} {step.rule} at {' '.join(step.at)}{line}"
    picture = _plain(step_picture(step, part.plan.sizes, part.plan.tiles))
    yield f'<details><summary>{_text(title)}</summary><div class="wide">{picture}</div></details>'


def _plain(picture: str) -> str:
    """A picture without its style, which stands once for all of them."""
    return re.sub(r"<style>.*?</style>", "", picture, count=1, flags=re.DOTALL)


def _comparison(part: PartExplanation) -> Iterator[str]:
    names, blocks = comparison(part, VIEW)
    yield '<div class="wide"><table class="figures">'
    for name in names:
        cells = "".join(
            f'<td class="right{" chosen" if at == 1 else ""}">{_text(block.get(name, ""))}</td>'
            for at, block in enumerate(blocks)
        )
        yield f"<tr><td>{_text(name)}</td>{cells}</tr>"
    yield "</table></div>"
    home = part.machine.tiers[0].name
    yield '<div class="loops">'
    for entry in part.alternatives[: len(blocks) - 1]:
        mark = " *" if entry.chosen else ""
        lines = [f"{entry.snapshot}{mark}, {entry.form}", *skeleton(entry.program, entry.placement, home)]
        yield f"<pre>{_text_lines(lines)}</pre>"
    yield "</div>"


def _table(columns: Sequence[Column]) -> Iterator[str]:
    shown = [column for column in columns if any(cell.text for cell in column.cells)]
    yield '<div class="wide"><table class="figures"><tr>'
    yield "".join(f"<th{' class=right' if column.right else ''}>{_text(column.title)}</th>" for column in shown)
    yield "</tr>"
    for row in zip(*(column.cells for column in shown), strict=True):
        cells = (
            f'<td class="{cell.style}{" right" if column.right else ""}">{_text(cell.text)}</td>'
            for column, cell in zip(shown, row, strict=True)
        )
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</table></div>"


def _text_lines(lines: Sequence[str]) -> str:
    return "\n".join(map(_text, lines))


def _text(text: str) -> str:
    return escape(visible(text))
