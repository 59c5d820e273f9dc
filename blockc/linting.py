"""Triton kernels compiled for a GPU that need not be there, in several ways, and which way is chosen.

The kernels of a program are compiled with the blocks that `triton_kernels.py` ranks first, with several numbers of
warps and of stages (how many blocks are on their way at the same time), and with tensor descriptors where there can be
some (`triton_loads.py`). A way is out if the compiler fails, registers are spilled to memory, products wait for one
another, or more shared memory is needed than a block may have. If a kernel has no way that is not out, the next blocks
are tried, of a program in parts for the parts with such kernels. Of the ways of one kernel the one is chosen that keeps
most warps of a multiprocessor busy, at most as many as hide latency well; of equal ones that with more stages, then
with fewer warps. Descriptors are chosen if their best way keeps more warps busy, or if nothing speaks against them and
it takes fewer registers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from blockc.cache import Ingredient, Store, key_of
from blockc.codegen.triton_storage import LOADS, Function, Options, Source
from blockc.compiling import Job, Result, shared
from blockc.errors import LimitError, Problem
from blockc.ir.machine import Machine
from blockc.machines.gpus import GPUS, Gpu, occupancy, registers_of_block
from blockc.triton_kernels import (
    BUSY,
    DESCRIBED,
    WAYS,
    RankedParts,
    TritonKernels,
    launched_with,
    merit,
    needs_of,
)
from blockc.triton_loads import Described, Loads, described

MOST = 24  # compilations of a kernel
COMPILED = "compiled"  # the kind of entries in the cache

Way = tuple[str, tuple[tuple[str, int], ...], Options]  # a function, its blocks, and how it is launched
NONE_REFUSED: Mapping[Way, str] = {}


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

    @property
    def key(self) -> Way:
        """What tells it from others."""
        return self.function, tuple(self.tiles.items()), self.options

    def fits(self, gpu: Gpu) -> bool:
        """True if there is a kernel, and a GPU has what it needs."""
        return not self.error and self.shared_bytes <= gpu.shared_of_block

    def is_clean(self, gpu: Gpu) -> bool:
        """True if nothing speaks against it."""
        return self.fits(gpu) and not self.spill_bytes and not self.warnings


@dataclass(frozen=True, slots=True)
class Linted:
    """The kernels with the blocks that are chosen, everything that was compiled, in order, and how the kernels load
    tiles, with the reasons."""

    made: TritonKernels
    candidates: tuple[Candidate, ...]
    loads: tuple[Loads, ...] = ()

    def options(self) -> dict[str, Options]:
        """How each kernel is launched that a way is chosen for."""
        return {candidate.function: candidate.options for candidate in self.candidates if candidate.chosen}

    def ways(self, function: Function, gpu: Gpu) -> list[Candidate]:
        """The ways of a function, with the blocks that are chosen, that there is a kernel for which fits the GPU, the
        best first: the chosen one, clean ones, and then those that spill and wait least."""

        def badness(way: Candidate) -> tuple[float, ...]:
            faults = (not way.is_clean(gpu), way.spill_bytes, len(way.warnings))
            return not way.chosen, *faults, *(-figure for figure in merit(way.options, way.occupancy))

        own = [way for way in self.candidates if way.key == way_of(self.made, function, way.options)]
        return sorted((way for way in own if way.fits(gpu)), key=badness)


def way_of(made: TritonKernels, function: Function, options: Options) -> Way:
    """A way to launch a function."""
    return function.name, tuple(made.tiles_of(function).items()), options


def launched(found: Linted, machine: Machine) -> TritonKernels:
    """The kernels that are chosen, each launched in its best way; one without any as estimates prefer."""
    gpu, options = gpu_of(machine), {}
    for function in found.made.source.functions:
        ways = found.ways(function, gpu)
        options[function.name] = ways[0].options if ways else function.options
    return launched_with(found.made, machine, options)


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
    choices: Iterable[TritonKernels],
    machine: Machine,
    store: Store | None = None,
    compiler: Compiler | None = None,
    refused: Mapping[Way, str] = NONE_REFUSED,
) -> Linted:
    """The first choice of blocks with which every kernel has a way that is not out, or the first of all if none has.
    LimitError if triton is not installed. `store` keeps what the compiler said; without a `compiler`, it is that of
    this process. Ways that a GPU has `refused` are out, with the reasons."""
    compiler = compiler or shared()
    gpu = gpu_of(machine)
    first: Linted | None = None
    found: list[Candidate] = []
    compiled = 0
    with tempfile.TemporaryDirectory(prefix="blockc-lint-") as folder:
        for made in choices:
            both = described(made, machine, gpu)
            asked = list(_asked(both, gpu, Path(folder) / f"kernels{compiled}"))
            compiled += max(
                (sum(way.function.name == each.name for way in asked) for each in made.source.functions), default=0
            )
            if first is not None and compiled > MOST:
                break
            linted = _compiled(both, asked, machine, gpu, compiler, store, refused)
            if linted.options().keys() == {function.name for function in made.source.functions}:
                kept = (replace(candidate, chosen=False) for candidate in found)
                return replace(linted, candidates=(*kept, *linted.candidates))
            if isinstance(choices, RankedParts):
                choices.kept = clean_parts(made, linted.candidates)
            found += linted.candidates if first is None else (replace(one, chosen=False) for one in linted.candidates)
            first = first or linted
    assert first is not None
    return replace(first, candidates=tuple(found))


def clean_parts(made: TritonKernels, ways: Iterable[Candidate]) -> frozenset[int]:
    """The parts of a program of which every kernel has a way that is chosen."""
    chosen = {way.function for way in ways if way.chosen}
    bad = {function.part for function in made.source.functions if function.name not in chosen}
    return frozenset(range(len(made.parts))) - bad


@dataclass(frozen=True, slots=True)
class _Asked:
    """A function that is to be compiled in a way, and the file that it stands in."""

    function: Function
    options: Options
    job: dict[str, Ingredient]
    path: Path

    @property
    def key(self) -> str:
        """The key of the result: the text, the job, and with them versions and blockc's source, which has all
        helpers."""
        return key_of({"text": "\n".join(self.function.text), "job": self.job})


def _asked(both: Described, gpu: Gpu, path: Path) -> Iterator[_Asked]:
    """Every function in every way: with pointers, and with descriptors where there can be some."""
    sources = {"pointers": both.plain.source, "descriptors": both.made.source}
    paths = {loads: path.with_suffix(f".{loads}.py") for loads in sources}
    for loads, source in sources.items():
        paths[loads].write_text(source.text, encoding="utf-8")
    for functions in zip(*(source.functions for source in sources.values()), strict=True):
        named = dict(zip(sources, functions, strict=True))
        ways = (*WAYS, *(DESCRIBED if functions[0].name not in both.impossible else ()))
        for way in ways:
            function = named[way.loads]
            yield _Asked(function, way, job_of(sources[way.loads], function, way, gpu), paths[way.loads])


def _compiled(
    both: Described,
    asked: list[_Asked],
    machine: Machine,
    gpu: Gpu,
    compiler: Compiler,
    store: Store | None,
    refused: Mapping[Way, str],
) -> Linted:
    """What became of everything that is asked for, with the choice for each kernel."""
    results = {way.key: known for way in asked if (known := _read(store, way.key)) is not None}
    missing = {way.key: way for way in asked if way.key not in results}
    fresh = compiler.results({**way.job, "file": str(way.path)} for way in missing.values()) if missing else []
    for key, result in zip(missing, fresh, strict=True):
        results[key] = result
        if store is not None and "error" not in result:
            store.write(COMPILED, key, json.dumps(result).encode())
    found = []
    for way in asked:
        why = refused.get(way_of(both.plain, way.function, way.options))
        result = results[way.key] if why is None else {"error": why}
        found.append(_candidate(both.plain, machine, gpu, way.function, way.options, result))
    return with_choice(both, found, gpu)


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
    """What is to be compiled: for contiguous tensors at aligned addresses, and the sizes that the file is tuned for, of
    which Triton knows whether they are multiples of 16, or 1. The file is to be added."""
    signature: dict[str, Ingredient] = dict(function.parameters)
    constants: dict[str, Ingredient] = dict(function.constants)
    divisible = []
    for position, (name, kind) in enumerate(function.parameters.items()):
        number = source.strides.get(name, source.sizes.get(name))
        if number == 1:
            signature[name], constants[name] = "constexpr", 1
        elif kind.startswith("*") or (number is not None and number % 16 == 0):
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


def _read(store: Store | None, key: str) -> Result | None:
    body = store.read(COMPILED, key) if store is not None else None
    return None if body is None else dict(json.loads(body))


def with_choice(both: Described, found: list[Candidate], gpu: Gpu) -> Linted:
    """The candidates of one choice of blocks, of each kernel the best way marked, if there is one."""
    marked: list[Candidate] = []
    loads = []
    for function in both.plain.source.functions:
        ways = [candidate for candidate in found if candidate.function == function.name]
        clean = [candidate for candidate in ways if candidate.is_clean(gpu)]
        best = {
            kind: max(
                (way for way in clean if way.options.loads == kind),
                key=lambda way: merit(way.options, way.occupancy),
                default=None,
            )
            for kind in LOADS
        }
        chosen = loads_of(function.name, both, best["pointers"], best["descriptors"])
        loads.append(chosen)
        marked += (replace(candidate, chosen=candidate is best[chosen.way]) for candidate in ways)
    return Linted(both.plain, tuple(marked), tuple(loads))


def loads_of(function: str, both: Described, pointers: Candidate | None, descriptors: Candidate | None) -> Loads:
    """How a function loads tiles, of the best ways that are not out."""
    if why := both.impossible.get(function):
        return Loads(function, "pointers", why)
    if descriptors is None:
        return Loads(function, "pointers", "no way with descriptors is clean")
    if pointers is None:
        return Loads(function, "descriptors", "no way with pointers is clean")
    busy = [min(way.occupancy, BUSY) for way in (pointers, descriptors)]
    registers = [registers_of_block(way.options.warps, way.registers) for way in (pointers, descriptors)]
    if busy[0] != busy[1]:
        why = f"descriptors have an occupancy of {descriptors.occupancy:.0%} instead of {pointers.occupancy:.0%}"
        return Loads(function, "descriptors" if busy[1] > busy[0] else "pointers", why)
    if against := both.against.get(function):
        return Loads(function, "pointers", against)
    why = f"descriptors take {registers[1]:,} registers of a block instead of {registers[0]:,}"
    return Loads(function, "descriptors" if registers[1] < registers[0] else "pointers", why)
