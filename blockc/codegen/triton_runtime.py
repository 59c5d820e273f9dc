"""Triton kernels at run time: where they can run, loaded as functions of tensors, as operators of torch, and timed.

torch and triton are imported when they are needed. Nothing here copies a tensor or waits for a GPU, but for the timing.
"""

from __future__ import annotations

import contextlib
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

from blockc.codegen.loader import import_kernels
from blockc.ir.array_program import Argument, ArrayProgram
from blockc.ir.dtypes import NUMPY_NAMES

GPU = "cuda"
NAMESPACE = "blockc"  # of the operators in torch
WARM_UP, MEASURED = 25, 100  # milliseconds of a timing

Launch = Callable[..., Any]


def obstacle(device: str) -> str:
    """Why Triton kernels cannot run on a device of torch, or ""."""
    try:
        import torch
    except ImportError:
        return "torch is not installed (pip install 'blockc[triton]')"
    try:
        import triton
    except ImportError:
        return "triton is not installed (pip install 'blockc[triton]')"

    interpreted = bool(triton.knobs.runtime.interpret)
    try:
        kind = torch.device(device).type
    except RuntimeError:
        return f"torch knows no device {device!r}"
    if kind == "cpu" and interpreted:
        return ""
    if kind != GPU:
        return f"Triton's kernels run on a GPU ({GPU}), and on cpu in its interpreter only (TRITON_INTERPRET=1)"
    if not torch.cuda.is_available():
        return "torch finds no GPU" + (": for Triton's interpreter give the device cpu" if interpreted else "")
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        return f"torch finds {torch.cuda.device_count()} GPUs"
    return ""


@cache
def _folder() -> TemporaryDirectory[str]:
    """Where the files of this process are: Triton reads the text of functions from files. It is removed at the end."""
    return TemporaryDirectory(prefix="blockc-kernels-")


def load(source: str, launcher: str) -> Launch:
    """The function of a Triton file that takes tensors."""
    with NamedTemporaryFile("w", dir=_folder().name, suffix=".py", delete=False, encoding="utf-8") as file:
        file.write(source)
    path = file.name
    launch: Launch = getattr(import_kernels(path), launcher)
    return launch


def on_device(launch: Launch, device: Any) -> Launch:
    """The function with a device as the current one: Triton launches on that, and on its current stream."""
    import torch

    if device.type != GPU or torch.cuda.device_count() == 1:
        return launch

    def there(*tensors: Any) -> Any:
        with torch.cuda.device(device):
            return launch(*tensors)

    return there


class RefusedError(Exception):
    """Kernels that Triton does not compile for a GPU, or that need more than it has: the function, or "" if that is not
    known, and what was said."""

    def __init__(self, function: str, why: str, is_too_large: bool) -> None:
        self.function, self.why, self.is_too_large = function, why, is_too_large
        super().__init__(f"`{function}`: {why}" if function else why)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What Triton raises for a kernel that it does not compile, or that does not fit, as RefusedError. Other errors
    stay what they are."""
    from triton.errors import TritonError
    from triton.runtime.errors import OutOfResources

    try:
        yield
    except (TritonError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and _PASSES not in str(error):
            raise
        raise RefusedError(_function(error), _said(error), isinstance(error, OutOfResources)) from error


def _said(error: BaseException) -> str:
    """The first line of what Triton says, without the text of the kernel: its own reason, or that of a function that
    the kernel calls."""
    from triton.compiler.errors import CompilationError

    while isinstance(error, CompilationError) and not error.error_message and error.__cause__ is not None:
        error = error.__cause__
    text = error.error_message if isinstance(error, CompilationError) else str(error)
    lines = (line.strip() for line in (text or "").splitlines())
    return next(filter(None, lines), type(error).__name__)[:300].replace("`", "'")


_PASSES = "PassManager::run failed"  # a RuntimeError that the passes of Triton's compiler end with


def _function(error: Exception) -> str:
    """The function whose launch has raised an error, by the line of the launcher; "" if that is not to be seen."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        found = re.match(r"(kernel\d+)\[", frame.line or "") if frame.filename.startswith(_folder().name) else None
        if found is not None:
            return found[1]
    return ""


# Tensors and operators


def type_name(dtype: str) -> str:
    """What torch calls an element type."""
    return f"torch.{NUMPY_NAMES[dtype]}"


def traced() -> Callable[[Sequence[Any]], bool]:
    """A function that says whether a call has to go through the operator: torch is recording a graph, or a derivative
    would be asked for, which the operator refuses."""
    import torch

    plain = (torch.Tensor, torch.nn.Parameter)

    def is_traced(tensors: Sequence[Any]) -> bool:
        if torch.compiler.is_compiling():
            return True
        if not all(type(tensor) in plain for tensor in tensors):
            return all(isinstance(tensor, torch.Tensor) for tensor in tensors)
        needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        return needs_gradient or torch.utils._python_dispatch._get_current_dispatch_mode() is not None

    return is_traced


def operator(name: str, program: ArrayProgram, run: Callable[..., tuple[Any, ...]]) -> Callable[..., Any] | None:
    """An operator of torch with this name, made unless there is one: its meaning is in its name. None for a program
    without inputs. `run` takes and returns tensors in declared order."""
    import torch

    if not program.inputs:
        return None
    known: Callable[..., Any] | None = getattr(getattr(torch.ops, NAMESPACE), name, None)
    if known is not None:
        return known
    inputs = ", ".join(f"Tensor {name}" for name in argument_names(program))
    outputs = ", ".join("Tensor" for _ in program.outputs)
    single = len(program.outputs) == 1

    def kernel(*tensors: Any) -> Any:
        results = run(*tensors)
        return results[0] if single else results

    def fake(*tensors: Any) -> Any:
        sizes = symbolic_sizes(program, tensors)
        results = tuple(
            tensors[0].new_empty(
                [_product(sizes[dim] for dim in axis) for axis in result.argument.axes],
                dtype=getattr(torch, NUMPY_NAMES[result.argument.dtype]),
            )
            for result in program.outputs
        )
        return results[0] if single else results

    schema = f"({inputs}) -> {outputs if single else f'({outputs})'}"
    made = torch.library.custom_op(f"{NAMESPACE}::{name}", kernel, mutates_args=(), schema=schema)
    made.register_fake(fake)
    found: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name)
    return found


def argument_names(program: ArrayProgram) -> list[str]:
    """Names for the arguments of an operator: torch has uses for some."""
    return [f"in_{at}" for at, _ in enumerate(program.inputs)]


def symbolic_sizes(program: ArrayProgram, tensors: Sequence[Any]) -> dict[str, Any]:
    """The size of every dimension, as a number or a symbol of torch, from the shapes of the inputs. torch is told that
    sizes are equal which have to be."""
    import torch

    check: Callable[..., None] = torch._check
    sizes: dict[str, Any] = {dim.name: dim.size for dim in program.dims if dim.size is not None}
    same = [(dim.name, dim.same_as) for dim in program.dims if dim.same_as is not None]
    same += [(node.dims[0], node.dims[1]) for node in program.nodes if node.op == "rename"]
    for argument, tensor in zip(program.inputs, tensors, strict=True):
        check(tensor.dim() == len(argument.axes), lambda: "a tensor has another number of axes than its type")
    for _ in range(len(program.dims) + 1):
        for argument, tensor in zip(program.inputs, tensors, strict=True):
            _settle(argument, tensor.shape, sizes)
        for first, second in (*same, *((second, first) for first, second in same)):
            if second in sizes:
                sizes.setdefault(first, sizes[second])
    for argument, tensor in zip(program.inputs, tensors, strict=True):
        for axis, extent in zip(argument.axes, tensor.shape, strict=True):
            check(extent == _product(sizes[dim] for dim in axis), lambda: "tensors have sizes that do not fit")
    for first, second in same:
        check(sizes[first] == sizes[second], lambda: "tensors have sizes that do not fit")
    return sizes


def _settle(argument: Argument, shape: Sequence[Any], sizes: dict[str, Any]) -> None:
    for axis, extent in zip(argument.axes, shape, strict=True):
        unknown = [dim for dim in axis if dim not in sizes]
        if len(unknown) == 1:
            others = _product(sizes[dim] for dim in axis if dim in sizes)
            sizes[unknown[0]] = extent // others if len(axis) > 1 else extent


def _product(factors: Iterator[Any]) -> Any:
    result: Any = 1
    for factor in factors:
        result = factor * result
    return result


# Timing


def seconds(call: Callable[[], Any], device: str) -> list[float]:
    """The seconds that a call takes, several times, after some to warm up: on a GPU between two events, with the cache
    emptied before each."""
    import torch

    if torch.device(device).type != GPU:
        call()
        started = time.perf_counter()
        call()
        return [time.perf_counter() - started]
    import triton

    with torch.cuda.device(device):
        times = triton.testing.do_bench(call, warmup=WARM_UP, rep=MEASURED, return_mode="all")
    return [float(milliseconds) / 1000 for milliseconds in times]


def wait(device: str) -> None:
    """Returns when everything that was started on a device is done."""
    import torch

    if torch.device(device).type == GPU:
        torch.cuda.synchronize(device)


def free_bytes(device: str) -> int | None:
    """The bytes that a GPU has left; None for other devices."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0]) if torch.device(device).type == GPU else None


def versions() -> str:
    """Those of torch and Triton."""
    import torch
    import triton

    return f"torch {torch.__version__}, Triton {triton.__version__}"


@contextlib.contextmanager
def unusable(otherwise: Callable[[str], Exception]) -> Iterator[None]:
    """What Triton and torch raise for a kernel that does not compile or fit, as another exception."""
    from triton.errors import TritonError

    try:
        yield
    except (TritonError, RuntimeError) as error:  # passes of the compiler raise the second
        raise otherwise(" ".join(str(error).split())[:200]) from error


@contextlib.contextmanager
def memory_errors(otherwise: Callable[[str], Exception]) -> Iterator[None]:
    """What torch raises where a GPU has too little memory, as another exception."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise otherwise(str(error).split("\n")[0]) from error


def name_of(device: str) -> str:
    """What a device calls itself."""
    import torch

    if torch.device(device).type != GPU:
        return f"{device}, in Triton's interpreter: its time says nothing"
    return torch.cuda.get_device_name(device)


def capability(device: str) -> int | None:
    """The compute capability of a GPU, 90 for 9.0; None for other devices."""
    import torch

    if torch.device(device).type != GPU:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def placed(tensor: Any, device: str) -> Any:
    """The tensor on a device: a copy, unless it is there."""
    return tensor.to(device)
