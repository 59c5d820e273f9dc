"""Kernels that run on a GPU: torch tensors in and out, on the current stream.

A call does nothing but look up the kernel for the shapes and launch it: no copy, no synchronisation, so that it may be
captured in a CUDA graph. While torch records a graph (`torch.compile`, `torch.export`), it sees one operator.

Sizes that are not fixed fall into classes, up to the next power of two, and each class has one kernel.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from blockc import meaning, self_check
from blockc.attempts import Attempts
from blockc.cache import key_of
from blockc.codegen import triton_runtime
from blockc.codegen.triton_runtime import RefusedError
from blockc.data import numpy_dtype, sizes_of
from blockc.errors import BlockcWarning, LimitError, Problem, UsageError, visible
from blockc.integrations import as_array, as_tensor, is_tensor
from blockc.ir import array_program
from blockc.ir.machine import Machine
from blockc.ir.plan import Plan
from blockc.kernel import Compiled, Found, Kernel
from blockc.linting import Compiler
from blockc.machines.writing import machine_text
from blockc.partition import Part, Partition
from blockc.passes.cost import cost
from blockc.planning import with_sizes
from blockc.triton_kernels import TritonKernels
from blockc.tuning import books

if TYPE_CHECKING:
    from blockc.inspector.explanation import Explanation

Array = np.ndarray[Any, np.dtype[Any]]

CHECKED = "checked"  # the kind of entries in the cache: kernels that have passed
EMITTED = "emitted"  # and another one: their text, for a program, its sizes and a GPU


@dataclass(frozen=True, slots=True)
class Emitted:
    """A file of kernels: its text, the function that launches them, and their blocks."""

    text: str
    launcher: str
    tiles: Mapping[str, int]


@dataclass(slots=True)
class GpuKernel(Kernel):
    """A program compiled for a GPU. Call it with tensors on that GPU, in declared order or by name; it returns tensors:
    one output as it is, several as a dictionary."""

    machine: Machine | None = None
    device: str = triton_runtime.GPU
    compiler: Compiler | None = None  # what compiles all ways ahead; None starts processes
    _attempts: Attempts | None = None
    _made: dict[tuple[tuple[str, int], ...], TritonKernels] = field(default_factory=dict)
    _passed: dict[str, bool] = field(default_factory=dict)  # by text: whether its kernels are right and run here
    _stored: set[str] = field(default_factory=set)  # texts that are in the store, as far as this process knows
    _launches: dict[tuple[object, ...], Callable[..., Any]] = field(default_factory=dict)
    _is_traced: Callable[[Sequence[Any]], bool] = field(init=False)
    operator: Callable[..., Any] | None = field(init=False)

    def __post_init__(self) -> None:
        self._is_traced = triton_runtime.traced()
        self.operator = triton_runtime.operator(operator_name(self), self.program, self._in_order)

    def __call__(self, /, *tensors: Any, **named: Any) -> Any:
        if named or len(tensors) != len(self.program.inputs):
            tensors = self._ordered(tensors, named)
        if self.operator is not None and self._is_traced(tensors):
            results = self.operator(*tensors)
            names = [result.argument.name for result in self.program.outputs]
            return results if len(names) == 1 else dict(zip(names, results, strict=True))
        return self._run(tensors)

    def _ordered(self, tensors: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        given = self._bind(tensors, named)
        for argument in self.program.inputs:
            if argument.name not in given:
                kind = array_program.argument_type(argument)
                raise UsageError(f"input `{argument.name}` is missing: it is {kind}")
        if len(given) > len(self.program.inputs):
            names = [argument.name for argument in self.program.inputs]
            unknown = next(name for name in given if name not in names)
            hint = f"its inputs: {', '.join(names)}"
            raise UsageError(f"program `{self.program.name}` has no input `{unknown}`", hint)
        return tuple(given[argument.name] for argument in self.program.inputs)

    def _in_order(self, *tensors: Any) -> tuple[Any, ...]:
        """The outputs in declared order: what the operator does."""
        results = self._run(tensors)
        return tuple(results.values()) if len(self.program.outputs) > 1 else (results,)

    def _run(self, tensors: Sequence[Any]) -> Any:
        try:
            key = tuple([(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors])
            launch = self._launches.get(key)
        except (AttributeError, TypeError):  # no tensors: the check below says so
            key, launch = (), None
        return launch(*tensors) if launch is not None else self._first_run(tensors, key)

    def _first_run(self, tensors: Sequence[Any], key: tuple[object, ...]) -> Any:
        """Check the tensors, and launch what is compiled for their sizes; something else if the GPU refuses it."""
        self.check_tensors(tensors)
        named = {argument.name: tensor for argument, tensor in zip(self.program.inputs, tensors, strict=True)}
        sizes = sizes_of(self.program, named, self.dims)
        device = tensors[0].device if tensors else None
        while True:
            compiled = self.specialise(sizes)
            launch = compiled.launch
            if device is not None:
                launch = triton_runtime.on_device(launch, device)
            try:
                with triton_runtime.refusals():
                    if not self._is_right(compiled):
                        launch = self._evaluated_there
                    results = launch(*tensors)
            except RefusedError as error:
                self._try_next(sizes, compiled.source, error)
                continue
            self._keep(sizes, compiled.source)
            if len(self._launches) >= REMEMBERED_SHAPES:
                self._launches.clear()
            self._launches[key] = launch
            return results

    def _is_right(self, compiled: Compiled) -> bool:
        """True if the kernels have passed their self-check, now, before, or in another process. If they fail it, that
        is a CheckError with `strict`, and else a warning."""
        text = compiled.source
        if text not in self._passed:
            key = key_of(
                {"text": text, "device": triton_runtime.name_of(self.device), "with": triton_runtime.versions()}
            )
            mismatch = None
            if self.store.read(CHECKED, key) is None:
                mismatch = self_check.probe(
                    self.program, compiled.plan, lambda arrays: self._on_arrays(compiled, arrays)
                )
                if mismatch is None:
                    self.store.write(CHECKED, key, b"passed")
            self._passed[text] = mismatch is None
            if mismatch is not None:
                self._report(mismatch, text)
        return self._passed[text]

    def _on_arrays(self, compiled: Compiled, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """What the kernels make of arrays, which are copied to the GPU and back."""
        tensors = on_gpu(self, arrays)
        in_order = [tensors[argument.name] for argument in self.program.inputs]
        device = in_order[0].device if in_order else None
        launch = triton_runtime.on_device(compiled.launch, device) if device is not None else compiled.launch
        return as_arrays(self, launch(*in_order))

    def _evaluated_there(self, *tensors: Any) -> Any:
        """The array program, operator by operator, on copies in the memory of the CPU: slow, and without any kernel."""
        names = [argument.name for argument in self.program.inputs]
        arrays = {name: as_array(tensor) for name, tensor in zip(names, tensors, strict=True)}
        results = meaning.baseline(self.program, arrays)
        found = {}
        for result in self.program.outputs:
            value = results[result.argument.name].astype(numpy_dtype(result.argument.dtype))
            found[result.argument.name] = triton_runtime.placed(as_tensor(value), str(tensors[0].device))
        return found if len(found) > 1 else next(iter(found.values()))

    def check_tensors(self, tensors: Sequence[Any]) -> None:
        """UsageError for what is no tensor on the GPU of the right type."""
        for argument, tensor in zip(self.program.inputs, tensors, strict=True):
            name = argument.name
            if not is_tensor(tensor):
                hint = f"kernels copy nothing by themselves: torch.as_tensor({name}).to({self.device!r}), for example"
                raise UsageError(f"input `{name}` must be a torch tensor on {self.device}, not {type(tensor)}", hint)
            if str(tensor.dtype) != triton_runtime.type_name(argument.dtype):
                hint = "convert it, or compile the program for another float type (`--dtype`, in Python `dtype=`)"
                raise UsageError(f"input `{name}` must be {argument.dtype}, not {tensor.dtype}", hint)
            first = tensors[0].device
            if tensor.device != first:
                raise UsageError(f"inputs are on one device: `{name}` is on {tensor.device}, the first one on {first}")
            kind, _, index = self.device.partition(":")
            if tensor.device.type != kind or (index and tensor.device.index != int(index)):
                hint = f"kernels copy nothing by themselves: {name}.to({self.device!r})"
                raise UsageError(f"input `{name}` is on {tensor.device}, and the kernel runs on {self.device}", hint)

    def _choose(self, sizes: Mapping[str, int]) -> Compiled:
        shapes = self._class_of(sizes)
        known = self._made.get(tuple(shapes.items()))
        emitted = self._read(shapes) if known is None else None
        if emitted is None:
            known = known or self._known(shapes)
            emitted = Emitted(known.source.text, known.source.launcher, dict(known.plan.tiles))
        text = emitted.text
        if text not in self._kernels:
            self._kernels[text] = text, triton_runtime.load(text, emitted.launcher)

        def found() -> Found:
            made = self._known(shapes)
            if dict(made.plan.tiles) != emitted.tiles:  # it was made smaller
                made = self.attempts.with_blocks(made, shapes, emitted.tiles)
            return made.searched[0].chosen.derivation, priced(made.plan, sizes)

        return Compiled(*self._kernels[text], found)

    def _class_of(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes that the kernel for some sizes is chosen for."""
        return shape_class(sizes, array_program.sizes(self.program, self.dims))

    @property
    def attempts(self) -> Attempts:
        """What is tried for the program on the device."""
        if self._attempts is None:
            assert self.machine is not None
            given = (self.program, self.machine, self.tiles, self.split, self.device, self.store, self.compiler)
            self._attempts = Attempts(*given)
        return self._attempts

    def _known(self, shapes: Mapping[str, int]) -> TritonKernels:
        """The kernels for a class of sizes, with all that was decided."""
        key = tuple(shapes.items())
        if key not in self._made:
            self._made[key] = self.attempts.first(shapes)
        return self._made[key]

    # What other processes need not decide again

    def _key(self, shapes: Mapping[str, int]) -> str:
        """The key of the text for a class of sizes: all that it depends on, results of tuning too."""
        assert self.machine is not None
        facts = {**self._ingredients(), "machine": machine_text(self.machine), "sizes": dict(shapes)}
        facts["device"] = triton_runtime.name_of(self.device)
        facts["tuned"] = [repr(book) for book in books(self.machine)]
        return key_of(facts)

    def _read(self, shapes: Mapping[str, int]) -> Emitted | None:
        """What is in the store for a class of sizes."""
        body = self.store.read(EMITTED, self._key(shapes))
        if body is None:
            return None
        emitted = Emitted(**json.loads(body))
        self._stored.add(emitted.text)
        return emitted

    def _keep(self, sizes: Mapping[str, int], text: str) -> None:
        """Put the text for some sizes into the store, if its kernels have passed their self-check."""
        shapes = self._class_of(sizes)
        made = self._made.get(tuple(shapes.items()))
        if made is None or made.source.text != text or text in self._stored or not self._passed.get(text):
            return
        emitted = Emitted(text, made.source.launcher, dict(made.plan.tiles))
        self.store.write(EMITTED, self._key(shapes), json.dumps(asdict(emitted)).encode())
        self._stored.add(text)

    def _try_next(self, sizes: Mapping[str, int], text: str, error: RefusedError) -> None:
        """Go on to other kernels for some sizes. If there are none, the unfused program will run, with a warning; with
        `strict`, or if blocks that were asked for are too large, that is a LimitError."""
        shapes = self._class_of(sizes)
        found = self.attempts.after(self._known(shapes), shapes, error)
        if found is not None:
            self._made[tuple(shapes.items())] = found
            self._by_sizes.clear()
            self._launches.clear()
            return
        name = visible(self.program.name)
        if error.is_too_large:
            message, hint = f"the kernels of `{name}` need more than this GPU has", "smaller blocks (--tile) need less"
        else:
            message, hint = f"Triton compiles no kernels of `{name}` for this GPU", "`blockc lint` shows all ways"
        if self.strict or (error.is_too_large and self.tiles):
            raise LimitError((Problem("E0297", f"{message}: {error}", None, hint),)) from error
        warnings.warn(f"{message}: {error}; the unfused program runs instead", BlockcWarning, stacklevel=4)
        self._passed[text] = False

    def explain(self) -> Explanation:
        """The derivation and the choice for the machine, at the sizes and in the blocks of that specialisation."""
        from blockc.inspector.explanation import explain_for

        assert self.machine is not None
        sizes = self._current().plan.sizes
        made = self._known(self._class_of(sizes))
        parts = []
        for at, plan in enumerate(made.searched):
            program = made.parts[at].program if made.parts else self.program
            names = made.parts[at].dims if made.parts else {dim: dim for dim in made.plan.tiles}
            blocks = {dim: made.plan.tiles[name] for dim, name in names.items() if name in made.plan.tiles}
            extents = {dim.name: sizes[dim.name] for dim in program.dims}
            parts.append(Part(program, with_sizes(plan, extents, blocks)))
        return explain_for(self.target, Partition(self.program, self.machine, sizes, tuple(parts), ()))


REMEMBERED_SHAPES = 1024  # of tensors whose kernel is found without a look at sizes


def shape_class(sizes: Mapping[str, int], fixed: Mapping[str, int]) -> dict[str, int]:
    """The sizes that a kernel for these sizes is chosen for: those that are not fixed, up to a power of two."""
    return {dim: size if dim in fixed else 1 << max(0, size - 1).bit_length() for dim, size in sizes.items()}


def priced(plan: Plan, sizes: Mapping[str, int]) -> Plan:
    """The plan with what it costs at other sizes."""
    if dict(plan.sizes) == dict(sizes):
        return plan
    return replace(plan, sizes=dict(sizes), costs=(cost(plan.program, sizes, plan.tiles),))


def operator_name(kernel: GpuKernel) -> str:
    """A name of an operator in torch that says what it computes and how: the same in every process."""
    facts = (
        array_program.text(kernel.program),
        kernel.program.source,
        repr(kernel.machine),
        kernel.device,
        *(repr(sorted(values.items())) for values in (kernel.dims, kernel.tiles, kernel.split)),
    )
    digest = sha256("\0".join(facts).encode()).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9]', '_', kernel.program.name)[:60]}_{digest}"


def on_gpu(kernel: GpuKernel, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Copies of arrays as tensors on the GPU of a kernel. LimitError if it has not enough memory."""
    needed = sum(array.nbytes for array in arrays.values())
    free = triton_runtime.free_bytes(kernel.device)
    if free is not None and needed > free:
        raise no_memory(f"the arrays need {needed / 2**30:,.1f} GiB, and the GPU has {free / 2**30:,.1f} GiB left")
    own = {name: np.asarray(array, array.dtype.newbyteorder("=")) for name, array in arrays.items()}
    with triton_runtime.memory_errors(no_memory):
        return {name: triton_runtime.placed(as_tensor(array), kernel.device) for name, array in own.items()}


def timed_on_gpu(kernel: GpuKernel, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], list[float]]:
    """The outputs as arrays by name, and the seconds of several runs, without the copies to the GPU and back."""
    tensors = on_gpu(kernel, arrays)
    with triton_runtime.memory_errors(no_memory):
        outputs = as_arrays(kernel, kernel(**tensors))
        return outputs, triton_runtime.seconds(lambda: kernel(**tensors), kernel.device)


def as_arrays(kernel: GpuKernel, results: Any) -> dict[str, Array]:
    """What a kernel returned, as arrays by name: copies."""
    names = [result.argument.name for result in kernel.program.outputs]
    tensors = results if len(names) > 1 else {names[0]: results}
    return {name: as_array(tensors[name]) for name in names}


def no_memory(why: str) -> LimitError:
    """The message for a GPU that has too little memory."""
    return LimitError((Problem("E0902", why, None, "give smaller sizes with --dim"),))
