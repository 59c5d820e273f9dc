"""`compile`: a program from its text or file to a kernel that is called with arrays; `reference`: to its meaning."""

from __future__ import annotations

import json
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blockc import meaning, self_check
from blockc.cache import Ingredient, Store, key_of, usual_store
from blockc.codegen import loader, triton_runtime
from blockc.codegen.numpy_source import for_self_check
from blockc.data import numpy_dtype, sizes_of
from blockc.driver import (
    GPU_BACKEND,
    Forms,
    Split,
    Tiles,
    check_dims,
    check_target,
    default_sizes,
    emit,
    empty_dims,
    has_kernels,
    load_program,
    planned,
    tiles_for,
)
from blockc.errors import BlockcWarning, CheckError, LimitError, Problem, UsageError, visible
from blockc.integrations import as_array, like_inputs
from blockc.ir import array_program
from blockc.ir.array_program import ArrayProgram
from blockc.ir.decisions import Derivation
from blockc.ir.dtypes import DTYPES
from blockc.ir.machine import Machine
from blockc.ir.plan import Cost, Plan
from blockc.machines.loading import load_machine, machine_of
from blockc.machines.writing import machine_text
from blockc.passes import choose, fuse

if TYPE_CHECKING:
    from blockc.inspector.explanation import Explanation

Array = np.ndarray[Any, np.dtype[Any]]
Launch = Callable[..., dict[str, Array]]
REMEMBERED = 64  # sizes whose plan a kernel keeps
KERNEL = "kernel"  # the kind of the cache's entries
CLOSED, UNFUSED = "a kernel that opens no sums", "the unfused program"  # what runs instead of one that is wrong
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
            self._add(form, plan, derivation)
        if form in self._failed:
            return self._instead(derivation, sizes)[1]
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

    def _add(self, form: str, plan: Plan, derivation: Derivation) -> None:
        """Make a kernel and check it. One that fails is not used, with a warning; with `strict` it is a CheckError."""
        source, launch, mismatch = self._checked(plan)
        if mismatch is None:
            self._kernels[form] = source, launch
            return
        self._report(mismatch, source, UNFUSED if self.strict else self._instead(derivation, plan.sizes)[0])
        self._failed.add(form)

    def _report(self, mismatch: self_check.Mismatch, source: str, instead: str = UNFUSED) -> None:
        """Keep what reproduces a failed self-check, and warn; CheckError if `strict`."""
        kept = self.store.keep_failure(self_check.reproduction(mismatch, source))
        message = f"the kernel of program `{visible(self.program.name)}` failed its self-check: {mismatch}"
        where = f"what reproduces it is in {kept}" if kept else "what reproduces it could not be kept"
        if self.strict:
            raise CheckError((Problem("E0908", message, None, where),))
        warnings.warn(f"{message}; {instead} runs instead; {where}", BlockcWarning, stacklevel=3)

    def _checked(self, plan: Plan) -> tuple[str, Launch, self_check.Mismatch | None]:
        """The kernel of a plan, and what its self-check has found."""
        source = emit(plan, self.program, self.target)
        launch: Launch = loader.load(source)
        changed = for_self_check(source)
        checked: Launch = launch if changed == source else loader.load(changed)
        return source, launch, self_check.probe(self.program, plan, lambda arrays: checked(arrays, 1))

    def _instead(self, derivation: Derivation, sizes: Mapping[str, int]) -> tuple[str, Compiled]:
        """What runs instead of a kernel that fails: one in which no sum is opened, if that passes the self-check, else
        the unfused program, as kernels if these pass it, else operator by operator on whole arrays."""
        unfused = replace(derivation, snapshots=(derivation.unfused,), steps=(), refusals=())
        closed = fuse.without_opening(derivation)
        tried = (*(((CLOSED, closed),) if closed is not None else ()), (UNFUSED, unfused))
        for name, other in tried:
            programs = choose.ready(other)
            plan = choose.choose(programs, sizes, tiles_for(programs, sizes, self.tiles))
            form = f"{name}: {form_of(plan)}"
            if form not in self._kernels and form not in self._failed:
                source, launch, mismatch = self._checked(plan)
                if mismatch is None:
                    self._kernels[form] = source, launch
                else:
                    self._failed.add(form)
            if form in self._kernels:
                break
        else:
            self._kernels[form] = array_program.text(self.program), self._evaluated
        return name, Compiled(*self._kernels[form], lambda: (other, plan))

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
    one; with `strict` a kernel that fails its self-check is a CheckError, and one that Triton refuses a LimitError.
    Raises BlockcError: the program is wrong, an option does not fit it, or there is no GPU.
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
    """The float64 meaning of a program on arrays by name: one output as it is, several as a dictionary.

    LimitError if it takes more memory than there is."""
    loaded = load_program(source, program)
    plain = plain_arrays(arrays)
    for name, array in plain.items():
        if array.dtype.kind not in "biufV" or array.dtype.fields is not None:  # V: the types of ml_dtypes
            raise UsageError(f"input `{name}` must hold real numbers, not {array.dtype}")
    try:
        results = meaning.evaluate(loaded, plain)
    except MemoryError as error:
        message = f"the float64 meaning of `{visible(loaded.name)}` needs too much memory: {visible(str(error))}"
        raise LimitError((Problem("E0902", message, None, "give smaller arrays"),)) from error
    return next(iter(results.values())) if len(results) == 1 else results
