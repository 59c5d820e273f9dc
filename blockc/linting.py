"""Triton kernels compiled for a GPU that need not be there, in several ways, and which way is chosen.

The kernels of a program are compiled with the blocks that `triton_kernels.py` ranks first, with several numbers of
warps and of stages (how many blocks are on their way at the same time). A way is out if the compiler fails, registers
are spilled to memory, products wait for one another, or more shared memory is needed than a block may have. If a kernel
has no way that is not out, the next blocks are tried, of a program in parts for the parts with such kernels. Of the
ways of one kernel the one is chosen that keeps most warps of a multiprocessor busy, at most as many as hide latency
well; of equal ones that with more stages, then with fewer warps.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from blockc.cache import Ingredient, Store, key_of
from blockc.codegen.triton_storage import Function, Options, Source
from blockc.compiling import Job, Result, compilers
from blockc.errors import LimitError, Problem
from blockc.ir.machine import Machine
from blockc.machines.gpus import GPUS, Gpu, occupancy
from blockc.triton_kernels import WAYS, RankedParts, TritonKernels, merit, needs_of

MOST = 6  # choices of blocks: with four ways 24 compilations of a kernel
COMPILED = "compiled"  # the kind of entries in the cache


@dataclass(frozen=True, slots=True)
class Candidate:
    """One kernel compiled in one way. `registers` are those of a thread; `occupancy` is the share of a multiprocessor's
    warps that can be there at the same time; `error` says why there is no kernel. `predicted` are the bytes of shared
    memory that it needs at most, known before, and `seconds` what the plan takes with these blocks."""

    function: str
    tiles: Mapping[str, int]
    options: Options
    seconds: float
    predicted: int
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


@dataclass(frozen=True, slots=True)
class Linted:
    """The kernels with the blocks that are chosen, and everything that was compiled, in order."""

    made: TritonKernels
    candidates: tuple[Candidate, ...]

    def options(self) -> dict[str, Options]:
        """How each kernel is launched that a way is chosen for."""
        return {candidate.function: candidate.options for candidate in self.candidates if candidate.chosen}


def gpu_of(machine: Machine) -> Gpu:
    """The GPU that a machine file names. LimitError for one that does not say which."""
    if machine.capability in GPUS:
        return GPUS[machine.capability]
    message = f"`{machine.name}` does not say for which GPU kernels are compiled"
    known = ", ".join(map(str, GPUS))
    raise LimitError((Problem("E0294", message, None, f"capability = 90 in its machine file does; known: {known}"),))


class Compiler(Protocol):
    """What compiles."""

    def results(self, jobs: Iterable[Job]) -> list[Result]:
        """What became of each job, in order."""


def lint(
    choices: Iterable[TritonKernels], machine: Machine, store: Store | None = None, compiler: Compiler | None = None
) -> Linted:
    """The first choice of blocks with which every kernel has a way that is not out, or the first of all if none has.
    LimitError if triton is not installed. `store` keeps what the compiler said; without a `compiler`, processes are
    started."""
    if compiler is None:
        with compilers() as running:
            return lint(choices, machine, store, running)
    gpu = gpu_of(machine)
    first: TritonKernels | None = None
    found: list[Candidate] = []
    with tempfile.TemporaryDirectory(prefix="blockc-lint-") as folder:
        for number, made in enumerate(islice(choices, MOST)):
            path = Path(folder) / f"kernels{number}.py"
            path.write_text(made.source.text, encoding="utf-8")
            ways = list(with_choice(_compiled(made, machine, gpu, path, compiler, store), gpu))
            if all(any(way.chosen for way in ways if way.function == each.name) for each in made.source.functions):
                kept = [replace(candidate, chosen=False) for candidate in found]
                return Linted(made, (*kept, *ways))
            if isinstance(choices, RankedParts):
                choices.kept = clean_parts(made, ways)
            found += ways if first is None else [replace(candidate, chosen=False) for candidate in ways]
            first = first or made
    assert first is not None
    return Linted(first, tuple(found))


def clean_parts(made: TritonKernels, ways: Iterable[Candidate]) -> frozenset[int]:
    """The parts of a program of which every kernel has a way that is chosen."""
    chosen = {way.function for way in ways if way.chosen}
    bad = {function.part for function in made.source.functions if function.name not in chosen}
    return frozenset(range(len(made.parts))) - bad


def _compiled(
    made: TritonKernels, machine: Machine, gpu: Gpu, path: Path, compiler: Compiler, store: Store | None
) -> list[Candidate]:
    """Every kernel of a file in every way."""
    asked = [(function, way) for function in made.source.functions for way in WAYS]
    jobs = [job_of(made.source, function, way, gpu) for function, way in asked]
    keys = [_key(function, job) for (function, _), job in zip(asked, jobs, strict=True)]
    results = {key: known for key in keys if (known := _read(store, key)) is not None}
    missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in results}
    fresh = compiler.results({**job, "file": str(path)} for job in missing.values()) if missing else []
    for key, result in zip(missing, fresh, strict=True):
        results[key] = result
        if store is not None and "error" not in result:
            store.write(COMPILED, key, json.dumps(result).encode())
    return [
        _candidate(made, machine, gpu, function, way, results[key])
        for (function, way), key in zip(asked, keys, strict=True)
    ]


def _candidate(
    made: TritonKernels, machine: Machine, gpu: Gpu, function: Function, way: Options, result: Result
) -> Candidate:
    known = made.tiles_of(function), way, made.seconds, needs_of(function, machine, way).shared_bytes
    if "error" in result:
        return Candidate(function.name, *known, 0, 0, 0, 0.0, (), result["error"])
    registers, shared = result["registers"], result["shared_bytes"]
    share = occupancy(gpu, way.warps, registers, shared)
    warnings = tuple(result["warnings"])
    return Candidate(function.name, *known, registers, result["spill_bytes"], shared, share, warnings, "")


def job_of(source: Source, function: Function, way: Options, gpu: Gpu) -> dict[str, Ingredient]:
    """What is to be compiled: for contiguous tensors at aligned addresses. The file is to be added."""
    signature: dict[str, Ingredient] = dict(function.parameters)
    constants: dict[str, Ingredient] = dict(function.constants)
    divisible = []
    for position, (name, kind) in enumerate(function.parameters.items()):
        stride = source.strides.get(name)
        if stride == 1:
            signature[name], constants[name] = "constexpr", 1
        elif kind.startswith("*") or (stride is not None and stride % 16 == 0):
            divisible.append(position)
    return {
        "function": function.name,
        "signature": signature,
        "constants": constants,
        "divisible": divisible,
        "capability": gpu.capability,
        "warps": way.warps,
        "stages": way.stages,
    }


def _key(function: Function, job: Job) -> str:
    """The key of a result: the text, the job, and with them versions and blockc's source, which has all helpers."""
    return key_of({"text": "\n".join(function.text), "job": dict(job)})


def _read(store: Store | None, key: str) -> Result | None:
    body = store.read(COMPILED, key) if store is not None else None
    return None if body is None else dict(json.loads(body))


def with_choice(found: list[Candidate], gpu: Gpu) -> Iterator[Candidate]:
    """The candidates of one choice of blocks, of each kernel the best way marked, if there is one."""
    for name in dict.fromkeys(candidate.function for candidate in found):
        ways = [candidate for candidate in found if candidate.function == name]
        clean = [candidate for candidate in ways if candidate.is_clean(gpu)]
        best = max(clean, key=lambda way: merit(way.options, way.occupancy), default=None)
        yield from (replace(candidate, chosen=candidate is best) for candidate in ways)
