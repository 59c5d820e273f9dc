"""Kernels for a GPU: the plan that is chosen for its machine file, as Triton source with a manifest.

Triton's tiles have a power of two of elements along each axis, and 16 or more where tensor cores multiply them, so the
blocks of the plan are made so. A plan that cannot be written as it is (one that accumulates a list) gives way to the
next best one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from blockc import driver
from blockc.codegen import triton_source
from blockc.codegen.triton_grid import device_of
from blockc.codegen.triton_maps import Unsupported
from blockc.codegen.triton_storage import Options, Source
from blockc.codegen.triton_tiles import LEAST
from blockc.errors import LimitError, Problem, visible
from blockc.ir.array_program import ArrayProgram
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import Program
from blockc.ir.decisions import Match
from blockc.ir.machine import Machine
from blockc.ir.plan import Plan
from blockc.passes.bound_loops import bound_loops
from blockc.passes.choose import compose, power_of_two, safe
from blockc.passes.cost import cost
from blockc.passes.padding import mask
from blockc.passes.place import without_reductions
from blockc.passes.rules import fuse_map_with_reduce
from blockc.planning import MachinePlan, search_plan

BACKEND = "triton"  # of the machines that kernels are emitted for here


@dataclass(frozen=True, slots=True)
class TritonKernels:
    """The source of a plan for a GPU, the program with masks that it was written from, and the plan."""

    source: Source
    block: Program
    plan: Plan
    searched: MachinePlan


def triton_kernels(
    program: ArrayProgram,
    machine: Machine,
    sizes: Mapping[str, int],
    tiles: driver.Tiles,
    split: driver.Split = driver.UNSPLIT,
) -> TritonKernels:
    """The Triton kernels of a program. LimitError if there are none."""
    searched = search_plan(program, machine, sizes, tiles, split)
    possible = [candidate for candidate in searched.candidates if candidate.choice.cost is not None]
    snapshots = [(found, found.derivation.snapshots[found.choice.snapshot]) for found in possible]
    # Where all accumulate lists: the unfused program, in which only items are accumulated.
    snapshots.append((possible[0], with_sums_in_loops(possible[0].derivation.unfused)))
    whys = []
    for candidate, snapshot in snapshots:
        block = emitted(snapshot)
        blocks = triton_tiles(block, candidate.choice.tiles)
        plan = _plan(candidate.choice.snapshot, snapshot, sizes, blocks)
        every = complete_sizes(block, sizes)
        try:
            source = triton_source.emit(
                block, blocks, every, _header(plan, program, machine), device=device_of(machine)
            )
        except Unsupported as error:
            whys.append(str(error))
            continue
        return TritonKernels(source, block, plan, searched)
    message = f"`{program.name}` cannot be written in Triton: {'; '.join(dict.fromkeys(whys))}"
    raise LimitError((Problem("E0293", message, None, ""),))


def launched_with(
    made: TritonKernels, program: ArrayProgram, machine: Machine, options: Mapping[str, Options]
) -> TritonKernels:
    """The same kernels, launched with other options, by function."""
    sizes = complete_sizes(made.block, made.plan.sizes)
    header = _header(made.plan, program, machine)
    return replace(
        made, source=triton_source.emit(made.block, made.plan.tiles, sizes, header, options, device_of(machine))
    )


def emitted(program: Program) -> Program:
    """A block program as the Triton emitter takes it: safe, with masks for padded blocks, composed."""
    plain = without_reductions(safe(program))
    return bound_loops(compose(mask(plain, plain.whole)))


def with_sums_in_loops(program: Program) -> Program:
    """The program with every list that is only reduced accumulated in the loop that makes it."""
    rule = fuse_map_with_reduce.RULE
    while (found := next((place for place in rule.match(program, None) if isinstance(place, Match)), None)) is not None:
        program = rule.rewrite(program, found)
    return program


def triton_tiles(program: Program, tiles: Mapping[str, int]) -> dict[str, int]:
    """Blocks that Triton takes: powers of two, where the axes that a product has on one side only, or sums over,
    together have 1 element or at least 16; and chunks of whole ones.

    So several axes of one side, such as queries and heads that share keys, fill a tile together.
    """
    result = {dim: power_of_two(tile) for dim, tile in tiles.items() if dim not in (*program.chunks, *program.whole)}
    groups = list(dict.fromkeys(_merged(program)))
    small = True
    while small:
        small = False
        for group in groups:
            elements = math.prod(result.get(dim, LEAST) for dim in group)
            if 1 < elements < LEAST:
                last = [dim for dim in group if result[dim] > 1][-1]
                result[last] *= LEAST // elements
                small = True
    for chunk, base in program.chunks.items():
        result[chunk] = -(-tiles[chunk] // result[base]) * result[base]
    return result


def _merged(program: Program) -> Iterator[tuple[str, ...]]:
    """The axes that become one in each product of matrices: those of one side only, and those that are summed over."""
    for node in program.facts.applies.values():
        if node.op == "contract" and node.name in program.types:
            sides = [set(program.types[name].axes) for name in node.uses]
            for side in sides:
                yield program.ordered(side.difference(*(other for other in sides if other is not side), node.dims))
            yield program.ordered(node.dims)


def _plan(snapshot: int, program: Program, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> Plan:
    """The plan of what is emitted, priced without the masks that padding needs."""
    ready = bound_loops(compose(safe(program)))
    return Plan(ready, 0, dict(tiles), dict(sizes), (cost(ready, sizes, tiles),), (ready,), f"snapshot {snapshot}")


def _header(plan: Plan, program: ArrayProgram, machine: Machine) -> tuple[str, ...]:
    """The comment lines at the top of a file."""
    cost = plan.costs[0]
    sizes = ", ".join(f"{dim}={size}" for dim, size in plan.sizes.items())
    return (
        f"Program {program.name} for {machine.name}, {plan.note}; kernels: {cost.kernels}.",
        f"Tuned for {sizes}:",
        f"{cost.traffic_bytes} bytes moved, {cost.flops} operations, {cost.special} special functions.",
        *map(visible, program.source.splitlines()),
    )


def manifest(made: TritonKernels, program: ArrayProgram, machine: Machine) -> dict[str, Any]:
    """What is in a file of kernels, for those who compile or check it elsewhere: types and constants as Triton's
    compiler takes them, `strides` of contiguous tensors, and what all kernels together are predicted to move."""
    source, plan = made.source, made.plan
    cost = plan.costs[0]
    return {
        "program": program.name,
        "target": machine.name,
        "launcher": source.launcher,
        "dims": dict(plan.sizes),
        "tiles": dict(plan.tiles),
        "predicted_bytes": cost.traffic_bytes,
        "flops": cost.flops,
        "special_ops": cost.special,
        "kernels": [
            {
                "function": function.name,
                "arguments": dict(function.parameters),
                "constexprs": dict(function.constants),
                "strides": {name: source.strides[name] for name in function.parameters if name in source.strides},
                "num_warps": function.options.warps,
                "num_stages": function.options.stages,
                "grid": function.grid,
            }
            for function in source.functions
        ],
    }
