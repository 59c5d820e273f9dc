"""The manifest of a file of Triton kernels: what is in it, for those who compile or check it elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blockc.codegen import triton_source
from blockc.codegen.triton_storage import Storage
from blockc.ir.array_program import ArrayProgram
from blockc.ir.block import kernels
from blockc.ir.machine import Machine
from blockc.passes.cost import launch_figures
from blockc.triton_kernels import TritonKernels, needs_of


def manifest(made: TritonKernels, program: ArrayProgram, machine: Machine, file: str) -> dict[str, Any]:
    """What is in a file of kernels, for those who compile or check it elsewhere: types and constants as Triton's
    compiler takes them, `strides` of contiguous tensors, and what all kernels together, and each, are predicted to move
    and compute. `shared_bytes` is what a kernel's block needs at most. `parts` are there if there are several."""
    source, plan = made.source, made.plan
    cost = plan.costs[0]
    contents = []
    for function, (moved, flops, special) in zip(source.functions, _figures(made), strict=True):
        contents.append(
            {
                "file": file,
                "function": function.name,
                "arguments": dict(function.parameters),
                "constexprs": dict(function.constants),
                "strides": {name: source.strides[name] for name in function.parameters if name in source.strides},
                "num_warps": function.options.warps,
                "num_stages": function.options.stages,
                "grid": function.grid,
                "predicted_bytes": moved,
                "flops": flops,
                "special_ops": special,
                "shared_bytes": needs_of(function, machine, function.options).shared_bytes,
            }
        )
    return {
        "file": file,
        "program": program.name,
        "target": machine.name,
        "capability": machine.capability,
        "launcher": source.launcher,
        "dims": dict(plan.sizes),
        "tiles": dict(plan.tiles),
        "predicted_bytes": cost.traffic_bytes,
        "flops": cost.flops,
        "special_ops": cost.special,
        "predicted_seconds": made.seconds,
        "parts": [_part_facts(made, at) for at in range(len(made.parts))],
        "kernels": contents,
    }


def _part_facts(made: TritonKernels, at: int) -> dict[str, Any]:
    """What the manifest says of a part: what it reads and gives, the blocks of its dimensions, and its functions."""
    part = made.parts[at]
    return {
        "inputs": [argument.name for argument in part.program.inputs],
        "outputs": list(dict.fromkeys(result.argument.name for result in part.program.outputs)),
        "tiles": {dim: made.plan.tiles[name] for dim, name in part.dims.items() if name in made.plan.tiles},
        "functions": [function.name for function in made.source.functions if function.part == at],
    }


def _figures(made: TritonKernels) -> Iterator[tuple[int, int, int]]:
    """What each function moves and computes, without the masks that padding needs."""
    program, arrays = made.plan.program, Storage(made.block).arrays
    for group in kernels(made.block):
        for launch in triton_source.launches(group, arrays):
            names = {name for node in launch.nodes for name in node.defines}
            nodes = tuple(node for node in program.body if not names.isdisjoint(node.defines))
            yield launch_figures(program, nodes, made.plan.sizes, made.plan.tiles)
