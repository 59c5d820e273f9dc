"""Draws the pictures of examples/README.md, in which attention becomes one kernel; run it from anywhere.

Nothing here knows the steps by number: a picture is of the program before or after the first or last step of a rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from blockc import driver
from blockc.inspector.explanation import PartExplanation, explain_for
from blockc.inspector.frames import Camera, change
from blockc.inspector.pictures import frame_svg
from blockc.ir.block import Program
from blockc.machines.loading import load_machine
from blockc.partition import partition

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
SIZES = {"b": 1, "h": 8, "m": 4096, "n": 4096, "d": 64, "e": 64}


def derivation() -> PartExplanation:
    """How attention is fused for the CPU, in blocks of 512 queries and keys."""
    program = driver.load_program(HERE / "attention.blk")
    found = partition(program, load_machine("cpu"), SIZES, {"m": 512, "n": 512})
    (part,) = explain_for("cpu", found).parts
    return part


def scenes(part: PartExplanation) -> Iterator[tuple[str, Program]]:
    """Names of pictures, and programs: what is new in one since the one before it is marked."""
    steps = [step.step for step in part.steps]
    first = {rule: next(step for step in steps if step.rule == rule) for rule in {step.rule for step in steps}}
    yield "1-unfused", part.derivation.unfused
    yield "2-one-kernel", first["fuse_map_with_reduce"].before
    yield "3-two-loops", first["swap_scale_and_contraction"].before
    yield "4-a-scale-leaves-the-product", first["swap_scale_and_contraction"].after
    yield "5-and-the-loop", first["distribute_reduction"].after
    yield "6-one-loop", steps[-1].after
    yield "7-safe-arithmetic", part.plan.program


def pictures() -> dict[str, str]:
    """The text of every picture, by the name of its file."""
    part = derivation()
    camera = Camera(part.plan.sizes, part.plan.tiles)
    result = {}
    before = None
    for name, program in scenes(part):
        frame = camera.frame(program, before)
        marked = change(before or frame, frame)
        result[f"{name}.svg"] = frame_svg(frame, name.replace("-", " "), marked.added, marked.changed)
        before = frame
    return result


def main() -> None:
    """Write the pictures, and remove others."""
    PICTURES.mkdir(exist_ok=True)
    made = pictures()
    for path in PICTURES.glob("*.svg"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (PICTURES / name).write_text(text, encoding="utf-8")
        print(PICTURES.name + "/" + name)


if __name__ == "__main__":
    main()
