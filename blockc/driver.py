"""The stages between the text of a program and its kernels: one function for each arrow (design, section 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from blockc import files
from blockc.codegen import numpy_source, triton_runtime
from blockc.errors import LimitError, Problem, UsageError, visible
from blockc.ir import array_program
from blockc.ir.array_program import ArrayProgram
from blockc.ir.block import Program
from blockc.ir.decisions import Derivation
from blockc.ir.machine import Machine
from blockc.ir.plan import Plan
from blockc.language import parse
from blockc.machines.loading import load_machine
from blockc.parsing import MAX_SIZE
from blockc.passes import choose, fuse, lower
from blockc.passes import split as in_chunks
from blockc.passes.cost import NOMINAL
from blockc.passes.rules import split_reduction

Tiles = Mapping[str, int | None]  # elements of a block; None keeps the dimension whole
Split = Mapping[str, int]  # into how many chunks loops over a dimension are cut
UNSPLIT: Split = {}
EMITTERS = ("numpy",)  # the backends whose kernels blockc runs itself, everywhere
GPU_BACKEND = "triton"  # and where there is a GPU
OUTER_SIZE, FEATURE_SIZE, LOOP_SIZE = 2, 64, 512  # what a dimension is taken to be when nobody says


def read_source(source: str | Path) -> tuple[str, str]:
    """The text and the name of a program: a path (a Path, or a string that ends in ".blk"), or the text itself."""
    if isinstance(source, str) and ("\n" in source or not source.endswith(".blk")):
        return source, "<string>"
    return files.read_source(str(source))


def load_program(source: str | Path, program: str | None = None, dtype: str | None = None) -> ArrayProgram:
    """The checked array program of a source text or file."""
    text, filename = read_source(source)
    return parse(text, filename, program, dtype)


def check_target(target: str, device: str | None = None) -> Machine:
    """The machine of a target, a name or a path. UsageError for one that is not known, BlockcError for a machine file
    with problems, LimitError for one whose kernels blockc cannot run here, on a device of torch if they are for one."""
    machine = load_machine(target)
    if has_kernels(machine):
        if device is not None:
            raise UsageError(f"kernels for `{visible(target)}` take NumPy arrays and no device")
        return machine
    backends = ", ".join(EMITTERS)
    message = f"no kernels can be run for `{visible(target)}`: its backend is {machine.backend}"
    hint = f"`explain` and `run --simulate` work; kernels run for {backends}, such as cpu"
    if machine.backend == GPU_BACKEND:
        obstacle = triton_runtime.obstacle(device or triton_runtime.GPU)
        if not obstacle:
            return machine
        message += f", and {obstacle}"
        hint = (
            f"without one `emit`, `lint`, `explain` and `run --simulate` work; kernels run for {backends}, such as cpu"
        )
    raise LimitError((Problem("E0291", message, None, hint),))


def has_kernels(machine: Machine) -> bool:
    """True if blockc runs kernels of a machine; for others there are plans, costs and simulations."""
    return machine.backend in EMITTERS


def check_dims(program: ArrayProgram, dims: Mapping[str, int], tiles: Tiles, split: Split = UNSPLIT) -> None:
    """UsageError for sizes or tiles of dimensions that the program does not have, or that cannot be; LimitError for too
    large ones."""
    known = {dim.name for dim in program.dims}
    for option, values in (("dim", dims), ("tile", tiles), ("split", split)):
        for name, value in values.items():
            if name not in known:
                hint = f"it has {', '.join(sorted(known))}"
                raise UsageError(f"program `{program.name}` has no dimension `{name}`", hint)
            least = 0 if option == "dim" else 1
            if value is not None and value < least:
                raise UsageError(f"--{option} {name}={value} is not between {least} and 2^40")
            if value is not None and value > MAX_SIZE:
                message = f"--{option} {name}={value} is not between {least} and 2^40"
                raise LimitError((Problem("E0194", message, None, f"at most {MAX_SIZE}"),))
    settled = array_program.sizes(program, dims)
    for dim in program.dims:
        other = dim.same_as
        if dim.size is not None and settled[dim.name] != dim.size:
            raise UsageError(f"dimension `{dim.name}` has the size {dim.size} in the program, not {settled[dim.name]}")
        if other is not None and settled.get(other) != settled.get(dim.name):
            both = f"{settled[dim.name]} and {settled[other]}"
            raise UsageError(f"dimensions `{dim.name}` and `{other}` have the same size, not {both}")


def default_sizes(program: ArrayProgram, known: Mapping[str, int]) -> dict[str, int]:
    """Sizes for all dimensions: known ones, and where nobody says 64 for features, 512 for the two innermost loops that
    are no batch, 2 for all others."""
    sizes = array_program.sizes(program, known)
    everything = {dim.name: sizes.get(dim.name, 1) for dim in program.dims}
    features = lower.whole_dimensions(program, everything, {})
    loops = [dim for dim in _no_batches(program) if dim not in features]
    renames = [node.dims for node in program.nodes if node.op == "rename"]
    equal = [*renames, *((new, old) for old, new in renames)]
    for dim in program.dims:
        if dim.name not in sizes and (dim.same_as is None or dim.same_as not in sizes):
            sizes.update((dim.name, sizes[other]) for name, other in equal if name == dim.name and other in sizes)
        if dim.name not in sizes and (dim.same_as is None or dim.same_as not in sizes):
            usual = FEATURE_SIZE if dim.name in features else LOOP_SIZE if dim.name in loops[-2:] else OUTER_SIZE
            sizes[dim.name] = usual
    sizes = array_program.sizes(program, sizes)
    return {dim.name: sizes[dim.name] for dim in program.dims}


@lru_cache(maxsize=16)
def _no_batches(program: ArrayProgram) -> tuple[str, ...]:
    """The dimensions that are no batch, in the order in which maps over them nest."""
    unfused = lower.lower(program, frozenset())
    batches = choose.batch_dimensions(unfused)
    return tuple(dim.name for dim in unfused.dims if dim.name not in batches)


def derive(program: ArrayProgram, sizes: Mapping[str, int], tiles: Tiles, split: Split = UNSPLIT) -> Derivation:
    """Lower, fuse, and cut into chunks what `split` asks for: everything about a program that depends on no more than
    which dimensions are whole. UsageError for a dimension without a loop that can be cut."""
    return with_chunks(fuse.fuse(lower.lower(program, whole_dimensions(program, sizes, tiles, split))), split)


def with_chunks(derivation: Derivation, split: Split) -> Derivation:
    """The derivation with loops cut into chunks as asked for. UsageError for a dimension without a loop to cut."""
    if not split:
        return derivation
    divided = in_chunks.split(derivation, split.keys())
    for dim in split:
        if not any(dim in snapshot.chunks.values() for snapshot in divided.snapshots):
            whys = [refusal.why for refusal in divided.refusals if refusal.rule == split_reduction.RULE.name]
            raise UsageError(f"no loop over `{dim}` can be cut into chunks", whys[0] if whys else "nothing reduces it")
    return divided


def whole_dimensions(program: ArrayProgram, sizes: Mapping[str, int], tiles: Tiles, split: Split) -> frozenset[str]:
    """The dimensions that are kept in one block; not those that are cut into chunks."""
    return lower.whole_dimensions(program, dict(sizes), dict(tiles)).difference(split)


@dataclass(slots=True)
class Forms:
    """The fused forms of a program, derived once each: by the dimensions that are whole and by chunks."""

    program: ArrayProgram
    tiles: Tiles
    known: dict[tuple[object, ...], tuple[Derivation, tuple[Program, ...]]] = field(default_factory=dict)

    def of(self, sizes: Mapping[str, int], split: Split) -> tuple[Derivation, tuple[Program, ...]]:
        """The derivation, and its snapshots as they are emitted."""
        key = whole_dimensions(self.program, sizes, self.tiles, split), tuple(split)
        if key not in self.known:
            derivation = derive(self.program, sizes, self.tiles, split)
            self.known[key] = derivation, choose.ready(derivation)
        return self.known[key]


def planned(forms: Forms, sizes: Mapping[str, int], split: Split = UNSPLIT) -> tuple[Derivation, Plan]:
    """The plan, and the derivation that it is from.

    Where too few blocks could be computed at the same time, smaller blocks and, unless `split` asks for some, chunks of
    loops are tried too, one dimension at a time.
    """
    derivation, programs = forms.of(sizes, split)
    plan = choose.choose(programs, sizes, tiles_for(programs, sizes, forms.tiles, split))
    best, least = (derivation, plan), choose.time_with_idle_units(plan)
    for found, other, change in _alternatives(forms, programs, plan, sizes, split):
        seconds = choose.time_with_idle_units(other)
        if seconds < least:
            note = (
                f"{change}: {1e3 * seconds:.3f} ms predicted, and not {1e3 * choose.time_with_idle_units(plan):.3f} ms"
            )
            note += f" with some of {NOMINAL.units} units idle"
            best, least = (found or derivation, replace(other, note=note)), seconds
    return best[0], choose.peel(best[1])


def _alternatives(
    forms: Forms, programs: tuple[Program, ...], plan: Plan, sizes: Mapping[str, int], split: Split
) -> Iterator[tuple[Derivation | None, Plan, str]]:
    """Other plans that give more units something to do, with what is changed, and the derivation if it is another."""
    if not choose.leaves_units_idle(plan):
        return
    for dim in choose.parallel_dimensions(plan):
        if dim not in forms.tiles:
            tile = plan.tiles[dim] // 2
            tiles = tiles_for(programs, sizes, {**forms.tiles, dim: tile}, split)
            yield None, choose.choose(programs, sizes, tiles), f"blocks of {dim} have {tile} elements"
    for dim in choose.loop_dimensions(plan) if not split else ():
        chunks = {dim: NOMINAL.units}
        try:
            derivation, divided = forms.of(sizes, chunks)
        except UsageError:  # no loop over it can be cut
            continue
        tiles = tiles_for(divided, sizes, forms.tiles, chunks)
        change = f"loops over {dim} are cut into {NOMINAL.units} chunks"
        yield derivation, choose.choose(divided, sizes, tiles), change


def tiles_for(
    programs: tuple[Program, ...], sizes: Mapping[str, int], tiles: Tiles, split: Split = UNSPLIT
) -> dict[str, int]:
    """The block size of every dimension that is cut, for snapshots as they are emitted: as asked for, else chosen."""
    asked = {dim: tile for dim, tile in tiles.items() if tile is not None}
    chosen = choose.choose_tiles(programs, sizes, asked)
    return in_chunks.chunk_tiles(programs, sizes, chosen, split, asked)


def emit(plan: Plan, program: ArrayProgram, target: str = "cpu") -> str:
    """The standalone source of a plan's kernels."""
    products = check_target(target).products
    sizes = array_program.sizes(plan.program, plan.sizes)
    return numpy_source.emit(plan.program, plan.tiles, header(plan, program), empty_dims(sizes), products)


def empty_dims(sizes: Mapping[str, int]) -> frozenset[str]:
    """The dimensions without elements."""
    return frozenset(dim for dim, size in sizes.items() if size == 0)


def header(plan: Plan, program: ArrayProgram) -> tuple[str, ...]:
    """The comment lines at the top of a kernel file: the program, its snapshot, and what it was predicted to cost."""
    cost = plan.costs[plan.snapshot]
    sizes = ", ".join(f"{dim}={size}" for dim, size in plan.sizes.items())
    tiles = ", ".join(f"{dim}={tile}" for dim, tile in plan.tiles.items())
    return (
        f"Program {program.name}, snapshot {plan.snapshot} of {len(plan.costs)}; kernels: {cost.kernels}.",
        f"At {sizes}: {cost.traffic_bytes} bytes moved, {cost.flops} operations, {cost.special} special functions.",
        f"Tiles: {tiles or 'none, everything is whole'}.",
        *map(visible, program.source.splitlines()),
    )
