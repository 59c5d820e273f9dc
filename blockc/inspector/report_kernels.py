"""The emitted kernels for a report, each line linked with the line of the block program that it implements."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from blockc import driver
from blockc.errors import LimitError, visible
from blockc.ir.block import Program
from blockc.ir.schedule_text import format_schedule
from blockc.ir.text import format_program
from blockc.partition import Partition
from blockc.triton_kernels import BACKEND, kernels_for

BARE = re.compile(r"map [^{]*\{|\}")  # lines that say too little to be linked


def kernels_json(found: Partition, target: str, tiles: driver.Tiles) -> dict[str, Any]:
    """The source of all kernels and the program that they were made of, or the schedule for a machine without an
    emitter. `links` has for each line of the source the number of a line of the program, or -1."""
    machine = found.machine
    if driver.has_kernels(machine):
        plan = found.parts[0].plan.plan
        return linked("NumPy", driver.emit(plan, found.program, target), (plan.program,))
    if machine.backend == BACKEND:
        try:
            made = kernels_for(found, tiles)
        except LimitError as error:
            return {**scheduled(found), "note": visible(error.problems[0].message)}
        return linked("Triton", made.source.text, (made.block,))
    return scheduled(found)


def scheduled(found: Partition) -> dict[str, Any]:
    """The schedules of all parts."""
    text = "\n".join(format_schedule(part.plan.schedule) for part in found.parts)
    return linked("schedule", text, tuple(part.plan.schedule.program for part in found.parts))


def linked(kind: str, text: str, programs: Iterable[Program]) -> dict[str, Any]:
    """A source with its links."""
    program = [line for one in programs for line in format_program(one).splitlines()]
    lines = text.splitlines()
    links = _by_name(lines, program) if kind == "schedule" else _by_comment(lines, program)
    return {
        "kind": kind,
        "note": "",
        "source": [visible(line) for line in lines],
        "program": [visible(line) for line in program],
        "links": links,
    }


def _by_comment(lines: list[str], program: list[str]) -> list[int]:
    """A comment that is a line of the program is about the statements below it."""
    numbers: dict[str, int] = {}
    for number, line in enumerate(program):
        if line.strip() != "}":
            numbers.setdefault(line.strip(), number)
    links: list[int] = []
    now = -1
    for line in lines:
        text = line.strip()
        if text.startswith("# ") and text[2:] in numbers:
            now = numbers[text[2:]]
        elif not text or text.startswith(("def ", "@", "class ")) or (text.startswith("#") and now < 0):
            now = -1
        links.append(now)
    return links


def _by_name(lines: list[str], program: list[str]) -> list[int]:
    """A statement of a schedule is about the definition of the first name in it."""
    numbers: dict[str, int] = {}
    for number, line in enumerate(program):
        if not BARE.fullmatch(line.strip()):
            for name in re.findall(r"(?:^|[,>] ?)([^\s,:]+):", line.strip().removeprefix("input ")):
                numbers.setdefault(name, number)
    links = []
    for line in lines:
        words = line.strip().removeprefix("list ").split(" ")
        links.append(numbers.get(words[0].rstrip(",").partition("@")[0], -1))
    return links
