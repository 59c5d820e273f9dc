"""The forms of a program at each stage of the compilation: what `blockc show` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blockc import driver
from blockc.drawing import Box, draw_array_program, draw_program
from blockc.drawing_dot import dot
from blockc.drawing_svg import svg
from blockc.errors import UsageError
from blockc.ir import array_program
from blockc.ir.array_program import ArrayProgram
from blockc.ir.block import Program
from blockc.ir.machine import Machine
from blockc.ir.plan import Plan
from blockc.ir.schedule_text import format_schedule
from blockc.ir.text import format_program
from blockc.machines.loading import load_machine
from blockc.partition import partition
from blockc.passes.lower import lower
from blockc.passes.stabilize import stabilize
from blockc.program_json import array_program_json, document, program_json
from blockc.triton_kernels import BACKEND, triton_kernels

DRAWN = ("array", "block", "snapshot", "stable", "plan")  # the stages that have all formats


@dataclass(frozen=True, slots=True)
class Request:
    """What to show: a program for a target, at a stage. `snapshot` is the number of one, or None for the last."""

    program: ArrayProgram
    target: str
    dims: Mapping[str, int]
    tiles: driver.Tiles
    split: driver.Split
    stage: str
    snapshot: int | None


@dataclass(frozen=True, slots=True)
class Shown:
    """A block program with the sizes and tiles, in elements, for which its bytes are counted."""

    program: Program
    sizes: Mapping[str, int]
    tiles: Mapping[str, int]


def shown(request: Request, form: str) -> str:
    """A program at a stage, in a format. UsageError for a stage that does not have it."""
    if form == "text":
        return stage_text(request)
    if request.stage not in DRAWN:
        stages = ", ".join(DRAWN)
        raise UsageError(f"the stage {request.stage} is text only", f"--format {form} works for: {stages}")
    if request.stage == "array":
        if form == "json":
            return _json(document("array", [array_program_json(request.program)]))
        return _picture([draw_array_program(request.program)], request, form)
    programs = block_programs(request)
    if form == "json":
        found = [program_json(one.program, one.sizes, one.tiles) for one in programs]
        return _json(document(request.stage, found))
    return _picture([draw_program(one.program, one.sizes, one.tiles) for one in programs], request, form)


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def _picture(drawings: Sequence[Box], request: Request, form: str) -> str:
    title = f"{request.program.name}, {request.stage}"
    return svg(drawings, title) if form == "svg" else dot(drawings, title)


def block_programs(request: Request) -> tuple[Shown, ...]:
    """The block programs of a stage: several for a plan in parts. Bytes are counted for the tiles that are chosen."""
    sizes = driver.default_sizes(request.program, request.dims)
    if request.stage == "plan":
        return tuple(Shown(plan.program, plan.sizes, plan.tiles) for plan, _ in plans(request, sizes))
    program = block_program(request, sizes)
    _, plan = driver.planned(driver.Forms(request.program, request.tiles), sizes, request.split)
    return (Shown(program, sizes, plan.tiles),)


def block_program(request: Request, sizes: Mapping[str, int]) -> Program:
    """The unfused program or a snapshot."""
    if request.stage == "block":
        whole = driver.whole_dimensions(request.program, sizes, request.tiles, request.split)
        return lower(request.program, whole)
    derivation = driver.derive(request.program, sizes, request.tiles, request.split)
    return snapshot_of(derivation.snapshots, request.snapshot, request.stage)


def snapshot_of(snapshots: Sequence[Program], index: int | None, stage: str) -> Program:
    """The snapshot with a number, the last one without; made safe for the stage "stable"."""
    if index is not None and index >= len(snapshots):
        raise UsageError(f"there is no snapshot {index}", f"the last one is {len(snapshots) - 1}")
    chosen = snapshots[-1 if index is None else index]
    return stabilize(chosen) if stage == "stable" else chosen


def plans(request: Request, sizes: Mapping[str, int]) -> tuple[tuple[Plan, ArrayProgram], ...]:
    """The plan, with the program that it is for: several, of parts, for a machine without kernels."""
    machine = load_machine(request.target)
    if not driver.has_kernels(machine):
        parts = partition(request.program, machine, sizes, request.tiles, request.split).parts
        return tuple((part.plan.plan, part.program) for part in parts)
    _, plan = driver.planned(driver.Forms(request.program, request.tiles), sizes, request.split)
    return ((plan, request.program),)


def stage_text(request: Request) -> str:
    """The text form of a program at a stage."""
    program, stage = request.program, request.stage
    if stage == "array":
        return array_program.text(program)
    sizes = driver.default_sizes(program, request.dims)
    if stage in ("block", "snapshot", "stable"):
        return format_program(block_program(request, sizes))
    machine = load_machine(request.target)
    if stage == "kernel":
        return kernel_source(request, machine, sizes)
    if stage == "schedule":
        parts = partition(program, machine, sizes, request.tiles, request.split).parts
        return "\n".join(format_schedule(part.plan.schedule) for part in parts)
    return "\n".join(plan_text(plan, part) for plan, part in plans(request, sizes))


def kernel_source(request: Request, machine: Machine, sizes: Mapping[str, int]) -> str:
    """The source of a program's kernels. LimitError for a machine without an emitter."""
    program = request.program
    if machine.backend == BACKEND:
        return triton_kernels(program, machine, sizes, request.tiles, request.split).source.text
    driver.check_target(request.target)
    _, plan = driver.planned(driver.Forms(program, request.tiles), sizes, request.split)
    return driver.emit(plan, program, request.target)


def plan_text(plan: Plan, program: ArrayProgram) -> str:
    """The text form of a plan, under what is known of its cost."""
    comments = "".join(f"# {line}\n" for line in driver.header(plan, program)[:3])
    return comments + format_program(plan.program)
