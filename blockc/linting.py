"""Triton kernels compiled for a GPU that need not be there, in several ways, and which way is chosen.

Every kernel of a file is compiled with several numbers of warps and of stages (how many blocks are on their way at the
same time). A way is out if the compiler fails, registers are spilled to memory, products wait for one another, or more
shared memory is needed than a block may have. Of the others the one is chosen that keeps most warps of a multiprocessor
busy, at most as many as hide latency well; of equal ones that with more stages, then with fewer warps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blockc.codegen.triton_storage import Function, Options, Source
from blockc.errors import LimitError, Problem
from blockc.ir.machine import Machine

WAYS = tuple(Options(warps, stages) for warps in (4, 8) for stages in (2, 3))
SECONDS = 120  # that one compilation may take
BUSY = 0.25  # of the warps of a multiprocessor: more do not help products


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a multiprocessor has. Source: CUDA C++ Programming Guide, technical specifications by capability."""

    capability: int
    shared_of_block: int  # bytes
    shared: int
    registers: int = 65_536
    warps: int = 64
    blocks: int = 32


GPUS = {"a100": Gpu(80, 166_912, 167_936), "h200": Gpu(90, 232_448, 233_472)}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One kernel compiled in one way. `registers` are those of a thread; `occupancy` is the share of a multiprocessor's
    warps that can be there at the same time; `error` says why there is no kernel."""

    function: str
    options: Options
    registers: int
    spill_bytes: int
    shared_bytes: int
    occupancy: float
    warnings: tuple[str, ...]
    error: str
    chosen: bool = False

    def is_clean(self, gpu: Gpu) -> bool:
        """True if nothing speaks against it."""
        fits = self.shared_bytes <= gpu.shared_of_block
        return not self.error and not self.spill_bytes and not self.warnings and fits


def gpu_of(machine: Machine) -> Gpu:
    """The GPU that a machine file describes. LimitError for one that nothing is compiled for."""
    if machine.name in GPUS:
        return GPUS[machine.name]
    message = f"nothing is known that compiles kernels for `{machine.name}`"
    raise LimitError((Problem("E0294", message, None, f"known: {', '.join(sorted(GPUS))}"),))


def lint(source: Source, machine: Machine) -> tuple[Candidate, ...]:
    """Every kernel in every way, the chosen ones marked. LimitError if triton is not installed."""
    gpu = gpu_of(machine)
    with tempfile.TemporaryDirectory(prefix="blockc-lint-") as folder:
        path = Path(folder) / "kernels.py"
        path.write_text(source.text, encoding="utf-8")
        jobs = [
            (function, way, _job(source, function, way, gpu, path)) for function in source.functions for way in WAYS
        ]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            found = list(pool.map(lambda job: _compiled(job[0], job[1], job[2], gpu), jobs))
    return tuple(with_choice(found, gpu))


def chosen_options(found: tuple[Candidate, ...]) -> dict[str, Options]:
    """How each kernel is launched that a way is chosen for."""
    return {candidate.function: candidate.options for candidate in found if candidate.chosen}


def _job(source: Source, function: Function, way: Options, gpu: Gpu, path: Path) -> dict[str, Any]:
    """What is to be compiled: for contiguous tensors at aligned addresses."""
    signature, constants = dict(function.parameters), dict(function.constants)
    divisible = []
    for position, name in enumerate(function.parameters):
        stride = source.strides.get(name)
        if stride == 1:
            signature[name], constants[name] = "constexpr", 1
        elif signature[name].startswith("*") or (stride is not None and stride % 16 == 0):
            divisible.append(position)
    return {
        "file": str(path),
        "function": function.name,
        "signature": signature,
        "constants": constants,
        "divisible": divisible,
        "capability": gpu.capability,
        "warps": way.warps,
        "stages": way.stages,
    }


def _compiled(function: Function, way: Options, job: dict[str, Any], gpu: Gpu) -> Candidate:
    command = [sys.executable, "-W", "ignore", "-m", "blockc.codegen.triton_compile"]
    try:
        said = subprocess.run(
            command, input=json.dumps(job), capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return Candidate(function.name, way, 0, 0, 0, 0.0, (), f"compiling took more than {SECONDS} s")
    lines = said.stderr.strip().splitlines()
    if said.returncode != 0:
        if lines and "No module named 'triton'" in lines[-1]:
            hint = "pip install torch triton"
            raise LimitError((Problem("E0295", "triton is not installed, which compiles kernels", None, hint),))
        error = lines[-1][-300:] if lines else f"the compiler ended with {said.returncode}"
        return Candidate(function.name, way, 0, 0, 0, 0.0, (), error)
    result = json.loads(said.stdout)
    return Candidate(
        function.name,
        way,
        result["registers"],
        result["spill_bytes"],
        result["shared_bytes"],
        occupancy(gpu, way.warps, result["registers"], result["shared_bytes"]),
        tuple(result["warnings"]),
        "",
    )


def occupancy(gpu: Gpu, warps: int, registers: int, shared: int) -> float:
    """The share of a multiprocessor's warps that fit at the same time: registers are given to warps in pieces of 256,
    and a block takes 1 KiB of shared memory more than it asks for."""
    per_warp = -(-max(registers, 1) * 32 // 256) * 256
    blocks = min(gpu.registers // (per_warp * warps), gpu.shared // (shared + 1024), gpu.warps // warps, gpu.blocks)
    return blocks * warps / gpu.warps


def with_choice(found: list[Candidate], gpu: Gpu) -> Iterator[Candidate]:
    """The candidates, of each kernel the best way marked, if there is one."""
    for name in dict.fromkeys(candidate.function for candidate in found):
        ways = [candidate for candidate in found if candidate.function == name]
        clean = [candidate for candidate in ways if candidate.is_clean(gpu)]
        best = max(clean, key=_merit, default=None)
        yield from (replace(candidate, chosen=candidate is best) for candidate in ways)


def _merit(candidate: Candidate) -> tuple[float, int, int]:
    return min(candidate.occupancy, BUSY), candidate.options.stages, -candidate.options.warps
