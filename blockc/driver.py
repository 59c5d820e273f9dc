"""The pipeline: one function for each arrow from program text to a callable kernel (design, section 2)."""

from __future__ import annotations

import json
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blockc import files, meaning, self_check
from blockc.cache import Ingredient, Store, key_of, usual_store
from blockc.codegen import loader, numpy_source, triton_runtime
from blockc.data import numpy_dtype, sizes_of
from blockc.errors import BlockcWarning, CheckError, LimitError, Problem, UsageError, visible
from blockc.integrations import as_array, like_inputs
from blockc.ir import array_program
from blockc.ir.array_program import ArrayProgram
from blockc.ir.block import Program
from blockc.ir.decisions import Derivation
from blockc.ir.dtypes import DTYPES
from blockc.ir.machine import Machine
from blockc.ir.plan import Cost, Plan
from blockc.language import parse
from blockc.machines.loading import load_machine, machine_of
from blockc.machines.writing import machine_text
from blockc.parsing import MAX_SIZE
from blockc.passes import choose, fuse, lower
from blockc.passes import split as in_chunks
from blockc.passes.cost import NOMINAL
from blockc.passes.rules import split_reduction

if TYPE_CHECKING:
    from blockc.inspector.explanation import Explanation

Array = np.ndarray[Any, np.dtype[Any]]
Launch = Callable[..., dict[str, Array]]
Tiles = Mapping[str, int | None]  # elements of a block; None keeps the dimension whole
Split = Mapping[str, int]  # into how many chunks loops over a dimension are cut
UNSPLIT: Split = {}

EMITTERS = ("numpy",)  # the backends whose kernels blockc runs itself, everywhere
GPU_BACKEND = "triton"  # and where there is a GPU
OUTER_SIZE, FEATURE_SIZE, LOOP_SIZE = 2, 64, 512  # what a dimension is taken to be when nobody says
REMEMBERED = 64  # sizes whose plan a kernel keeps
KERNEL = "kernel"  # the kind of the cache's entries


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
    check_target(target)
    sizes = array_program.sizes(plan.program, plan.sizes)
    return numpy_source.emit(plan.program, plan.tiles, header(plan, program), empty_dims(sizes))


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


Found = tuple[Derivation, Plan]


@dataclass(slots=True)
class Compiled:
    """One specialisation: the source, the function that launches it, and what finds its derivation and plan if somebody
    asks for them."""

    source: str
    launch: Launch
    find: Callable[[], Found]
    _found: Found | None = None

    def found(self) -> Found:
        """The derivation and the plan."""
        self._found = self._found or self.find()
        return self._found

    @property
    def plan(self) -> Plan:
        """The plan that the source implements."""
        return self.found()[1]


@dataclass(slots=True)
class Kernel:
    """A compiled program. Call it with arrays, in declared order or by name; it returns the outputs.

    Without fixed sizes it accepts any, and specialises by which dimensions are whole and by tiles. NumPy arrays in give
    NumPy arrays out, torch tensors give torch tensors. One output is returned as it is, several as a dictionary.

    What is in the store need not be made again. What is made is checked first (`self_check.py`): instead of a kernel
    that fails, the unfused program runs, with a warning; with `strict` that is a CheckError.
    """

    program: ArrayProgram
    target: str
    dims: Mapping[str, int]
    tiles: Tiles
    threads: int | None = None
    split: Split = field(default_factory=dict)
    strict: bool = False
    store: Store = field(default_factory=usual_store)
    _forms: Forms | None = None
    _identity: Mapping[str, Ingredient] = field(default_factory=dict)
    _kernels: dict[str, tuple[str, Launch]] = field(default_factory=dict)  # by form
    _failed: set[str] = field(default_factory=set)  # forms whose kernels have failed their self-check
    _written: int = 0
    _by_sizes: dict[tuple[tuple[str, int], ...], Compiled] = field(default_factory=dict)
    _latest: Compiled | None = None

    def __call__(self, /, *arrays: Any, **named: Any) -> Any:
        given = self._bind(arrays, named)
        plain = plain_arrays(given)
        self._check_types(plain)
        sizes = sizes_of(self.program, plain, self.dims)
        results = self.specialise(sizes).launch(plain, self.threads)
        outputs = like_inputs(results, tuple(given.values()))
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def _bind(self, arrays: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        names = [argument.name for argument in self.program.inputs]
        if len(arrays) > len(names):
            raise UsageError(f"program `{self.program.name}` takes {len(names)} arrays, not {len(arrays)}")
        given = dict(zip(names, arrays, strict=False))
        twice = given.keys() & named.keys()
        if twice:
            raise UsageError(f"input `{min(twice)}` is given twice")
        return {**given, **named}

    def _check_types(self, arrays: Mapping[str, Array]) -> None:
        for argument in self.program.inputs:
            value = arrays.get(argument.name)
            if value is not None and value.dtype.newbyteorder("=") != numpy_dtype(argument.dtype):
                hint = (
                    "convert the array, or compile the program for another float type (`--dtype`, in Python `dtype=`)"
                )
                raise UsageError(f"input `{argument.name}` must be {argument.dtype}, not {value.dtype}", hint)

    def specialise(self, sizes: Mapping[str, int]) -> Compiled:
        """The kernel for these sizes, compiled if no earlier one has the same whole dimensions, tiles and snapshot."""
        key = tuple(sizes.items())
        if key not in self._by_sizes:
            if len(self._by_sizes) >= REMEMBERED:
                self._by_sizes.clear()
            self._by_sizes[key] = self._choose(sizes)
        self._latest = self._by_sizes[key]
        return self._latest

    def _choose(self, sizes: Mapping[str, int]) -> Compiled:
        key = key_of({**self._ingredients(), "sizes": dict(sizes)})
        kept = self._kept(key)
        if kept is not None:
            return Compiled(*kept, lambda: self._planned(sizes))
        derivation, plan = self._planned(sizes)
        form = form_of(plan)
        if form not in self._failed and form not in self._kernels:
            self._add(form, plan)
        if form in self._failed:
            return self._without_fusion(derivation, sizes)
        source, launch = self._kernels[form]
        if self._written < REMEMBERED:  # sizes that grow call by call would fill the disk
            self._written += 1
            self.store.write(KERNEL, key, json.dumps({"form": form, "source": source}).encode())
        return Compiled(source, launch, lambda: (derivation, plan))

    def _ingredients(self) -> Mapping[str, Ingredient]:
        """What the kernels depend on, besides sizes."""
        if not self._identity:
            arguments = [*self.program.inputs, *(result.argument for result in self.program.outputs)]
            self._identity = {
                "source": self.program.source,
                "program": array_program.text(self.program),
                "arguments": [f"{argument.name}: {array_program.argument_type(argument)}" for argument in arguments],
                "machine": machine_text(load_machine(self.target)),
                "tiles": dict(self.tiles),
                "split": dict(self.split),
            }
        return self._identity

    def _kept(self, key: str) -> tuple[str, Launch] | None:
        """The kernel of an entry of the store."""
        body = self.store.read(KERNEL, key)
        if body is None:
            return None
        try:
            entry = json.loads(body)
            form, source = entry["form"], entry["source"]
            if form not in self._kernels:
                self._kernels[form] = source, loader.load(source)
        except (ValueError, LookupError, TypeError, loader.UnsafeSourceError):
            warnings.warn("an entry of the cache holds no kernel; it is made again", BlockcWarning, stacklevel=2)
            return None
        return self._kernels[form]

    def _planned(self, sizes: Mapping[str, int]) -> Found:
        if self._forms is None:
            self._forms = Forms(self.program, self.tiles)
        return planned(self._forms, sizes, self.split)

    def _add(self, form: str, plan: Plan) -> None:
        """Make a kernel and check it. One that fails is not used, with a warning; with `strict` it is a CheckError."""
        source, launch, mismatch = self._checked(plan)
        if mismatch is None:
            self._kernels[form] = source, launch
            return
        self._report(mismatch, source)
        self._failed.add(form)

    def _report(self, mismatch: self_check.Mismatch, source: str) -> None:
        """Keep what reproduces a failed self-check, and warn; CheckError if `strict`."""
        kept = self.store.keep_failure(self_check.reproduction(mismatch, source))
        message = f"the kernel of program `{visible(self.program.name)}` failed its self-check: {mismatch}"
        where = f"what reproduces it is in {kept}" if kept else "what reproduces it could not be kept"
        if self.strict:
            raise CheckError((Problem("E0908", message, None, where),))
        warnings.warn(f"{message}; the unfused program runs instead; {where}", BlockcWarning, stacklevel=3)

    def _checked(self, plan: Plan) -> tuple[str, Launch, self_check.Mismatch | None]:
        """The kernel of a plan, and what its self-check has found."""
        source = emit(plan, self.program, self.target)
        launch: Launch = loader.load(source)
        return source, launch, self_check.probe(self.program, plan, lambda arrays: launch(arrays, 1))

    def _without_fusion(self, derivation: Derivation, sizes: Mapping[str, int]) -> Compiled:
        """The unfused program: as kernels if these pass the self-check, else operator by operator on whole arrays."""
        derivation = replace(derivation, snapshots=(derivation.unfused,), steps=(), refusals=())
        programs = choose.ready(derivation)
        plan = choose.choose(programs, sizes, tiles_for(programs, sizes, self.tiles))
        form = f"unfused {form_of(plan)}"
        if form not in self._kernels:
            source, launch, mismatch = self._checked(plan)
            if mismatch is not None:
                source, launch = array_program.text(self.program), self._evaluated
            self._kernels[form] = source, launch
        return Compiled(*self._kernels[form], lambda: (derivation, plan))

    def _evaluated(self, arrays: Mapping[str, Array], threads: int | None = None) -> dict[str, Array]:
        """The array program, operator by operator on whole arrays: slow, and without any kernel."""
        return meaning.baseline(self.program, arrays)

    def _current(self) -> Compiled:
        return self._latest or self.specialise(default_sizes(self.program, self.dims))

    @property
    def source(self) -> str:
        """The source of the specialisation used last (before any call, of the one for default sizes)."""
        return self._current().source

    @property
    def cost(self) -> Cost:
        """What the chosen snapshot of that specialisation costs."""
        plan = self._current().plan
        return plan.costs[plan.snapshot]

    def explain(self) -> Explanation:
        """The derivation, the snapshots and the choice of that specialisation: text, JSON, and a view for notebooks."""
        from blockc.inspector.explanation import explain_for
        from blockc.partition import Part, Partition
        from blockc.planning import kernel_plan

        derivation, plan = self._current().found()
        found = kernel_plan(self.program, load_machine(self.target), derivation, plan)
        part = Part(self.program, found)
        return explain_for(self.target, Partition(self.program, found.machine, plan.sizes, (part,), ()))


def form_of(plan: Plan) -> str:
    """What tells kernels of one program apart, whatever the sizes: equal forms have equal source but for comments."""
    sizes = array_program.sizes(plan.program, plan.sizes)
    dims = [sorted(found) for found in (plan.program.whole, empty_dims(sizes), choose.peeled_dimensions(plan.program))]
    return json.dumps([dims, list(plan.tiles.items()), plan.snapshot])


def plain_arrays(given: Mapping[str, Any]) -> dict[str, Array]:
    """The values as NumPy arrays; UsageError for one that is none."""
    arrays = {}
    for name, value in given.items():
        try:
            arrays[name] = as_array(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"input `{name}` is no array: {error}") from error
    return arrays


def whole_numbers(option: str, values: Mapping[str, Any]) -> dict[str, int]:
    """The values of an option as integers, from NumPy's as well; UsageError for one that is no whole number."""
    for name, value in values.items():
        if not hasattr(value, "__index__"):
            raise UsageError(f"{option} `{name}` must be a whole number, not {value!r}")
    return {name: operator.index(value) for name, value in values.items()}


def compile(
    source: str | Path,
    target: str = "cpu",
    dims: Mapping[str, int] | None = None,
    *,
    tiles: Tiles | None = None,
    dtype: str | None = None,
    program: str | None = None,
    threads: int | None = None,
    split: Split | None = None,
    device: str | None = None,
    strict: bool = False,
) -> Kernel:
    """Compile a program, given as text or as a path to a `.blk` file, to a callable kernel.

    `dims` fixes sizes; `tiles` block sizes in elements (None keeps a dimension whole); `dtype` replaces all float
    types; `program` names one of several; `threads` limits the worker threads; `split` cuts the loops over
    a dimension into so many chunks that may run in parallel; `device` is the GPU, as torch calls it, if the target is
    one; with `strict` a kernel that fails its self-check is a CheckError. Raises BlockcError: the program
    is wrong, an option does not fit it, or there is no GPU.
    """
    machine = check_target(target, device)
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"unknown type `{dtype}`", f"known: {', '.join(DTYPES)}")
    loaded = load_program(source, program, dtype)
    sizes = whole_numbers("dimension", dims or {})
    cut = whole_numbers("tile", {name: tile for name, tile in (tiles or {}).items() if tile is not None})
    blocks = {name: cut.get(name) for name in tiles or {}}
    chunks = whole_numbers("split", split or {})
    check_dims(loaded, sizes, blocks, chunks)
    kernel = kernel_for(machine, Kernel(loaded, target, sizes, blocks, threads, chunks, strict), device)
    usual = default_sizes(loaded, kernel.dims)
    if has_kernels(machine) or array_program.sizes(loaded, sizes) == usual:  # for a GPU no plan is made to no purpose
        kernel.specialise(usual)
    return kernel


def kernel_for(machine: Machine, kernel: Kernel, device: str | None) -> Kernel:
    """The kernel, as it is for the CPU, as one for a GPU if the machine is one."""
    if machine.backend != GPU_BACKEND:
        return kernel
    from blockc.gpu_kernel import GpuKernel

    options = (kernel.program, kernel.target, kernel.dims, kernel.tiles, kernel.threads, kernel.split, kernel.strict)
    made = GpuKernel(*options, machine=machine, device=device or triton_runtime.GPU)
    if unlike := other_gpu(machine, made.device):
        warnings.warn(unlike, BlockcWarning, stacklevel=3)
    return made


def other_gpu(machine: Machine, device: str) -> str:
    """What is wrong if a machine describes a GPU of another compute capability than the one that is there, or ""."""
    found = triton_runtime.capability(device)
    if found in (None, machine.capability) or not machine.capability:
        return ""
    own, there = (f"{capability // 10}.{capability % 10}" for capability in (machine.capability, found or 0))
    name = triton_runtime.name_of(device)
    fitting = machine_of(name)
    hint = f"; `{fitting}` describes it" if fitting not in (None, machine.name) else ""
    return f"blocks are chosen for `{machine.name}`, of capability {own}, and {name} has {there}{hint}"


def reference(source: str | Path, /, program: str | None = None, **arrays: Any) -> Any:
    """The float64 meaning of a program on arrays by name: one output as it is, several as a dictionary."""
    loaded = load_program(source, program)
    plain = plain_arrays(arrays)
    for name, array in plain.items():
        if array.dtype.kind not in "biufV" or array.dtype.fields is not None:  # V: the types of ml_dtypes
            raise UsageError(f"input `{name}` must hold real numbers, not {array.dtype}")
    results = meaning.evaluate(loaded, plain)
    return next(iter(results.values())) if len(results) == 1 else results
