"""What has to hold for kernels on a device, as functions that take the device and raise AssertionError.

`test_gpu.py` runs them on a GPU, `gpu_interpreted.py` those that need none in Triton's interpreter on the CPU. Sizes
and counts come from a `Scale`, so that the interpreter, a thousand times slower, gets through.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from triton_data import Arrays, data, example_programs

import blockc
from blockc import driver
from blockc.accuracy import compare, computed_dtype
from blockc.codegen import triton_runtime
from blockc.codegen.triton_storage import Options
from blockc.gpu_kernel import GpuKernel
from blockc.integrations import as_array, as_tensor
from blockc.ir.array_program import ArrayProgram
from blockc.language import parse_all
from blockc.machines.loading import load_machine, machine_of
from blockc.meaning import baseline, evaluate
from blockc.triton_kernels import launched_with, triton_kernels

WITHOUT_GPU = "h200"  # for Triton's interpreter, and for a GPU that no machine describes


@dataclass(frozen=True, slots=True)
class Scale:
    """How large tests are: sizes of dimensions that nothing fixes, lengths of sequences, and repetitions."""

    sizes: Mapping[str, int]
    lengths: tuple[int, ...]
    rows: int
    repeats: int


ON_GPU = Scale(
    {"b": 2, "h": 3, "m": 200, "n": 333, "d": 64, "e": 64, "k": 200, "z": 190, "v": 1000, "kv": 2, "g": 4},
    (0, 1, 2, 3, 63, 64, 65, 127, 128, 129, 257, 4097),
    300,
    250,
)
INTERPRETED = Scale(
    {"b": 1, "h": 2, "m": 9, "n": 21, "d": 16, "e": 10, "k": 12, "z": 18, "v": 20, "kv": 1, "g": 2}, (0, 17), 5, 3
)

ATTENTION = """program p(Q: f32[b, m, d], K: f32[b, n, d], V: f32[b, n, e]) -> O: f32[b, m, e] {
    O = dot[n](softmax[n](dot[d](Q, K) / sqrt(size(d))), V)
}
"""
MASKED = """program p(Q: f16[m, d], K: f16[n, d], V: f16[n, e]) -> O: f16[m, e] {
    O = dot[n](softmax[n](where(index(n) + 3 <= index(m), dot[d](Q, K), -inf)), V)
}
"""
PRODUCT = "program p(X: f32[m, k], W: f32[k, n]) -> Y: f32[m, n] {\n    Y = dot[k](X, W)\n}\n"
STATISTICS = (
    "program p(X: f32[m, n]) -> (M: f32[m], L: f32[m]) {\n    M = max[n](X)\n    L = logsumexp[n](X * 0.5)\n}\n"
)
CONSTANT = "program p(X: f32[m, n]) -> Y: f32[m] {\n    Y = sum[n](X) * rsqrt(size(n)) + size(m) / 3\n}\n"


KERNELS: dict[str, GpuKernel] = {}  # by program, device and options


def target_of(device: str) -> str:
    """The machine that describes a device."""
    return machine_of(triton_runtime.name_of(device)) or WITHOUT_GPU


def kernel_of(text: str, device: str, **options: Any) -> GpuKernel:
    """A program compiled for a device, once."""
    key = repr((text, device, options))
    if key not in KERNELS:
        kernel = blockc.compile(text, target=target_of(device), device=device, **options)
        assert isinstance(kernel, GpuKernel)
        KERNELS[key] = kernel
    return KERNELS[key]


def on(arrays: Arrays, device: str) -> dict[str, torch.Tensor]:
    """Arrays as tensors on a device."""
    return {name: as_tensor(np.array(array)).to(device) for name, array in arrays.items()}


def by_name(kernel: GpuKernel, results: Any) -> dict[str, torch.Tensor]:
    """What a kernel returned, by name."""
    return results if isinstance(results, dict) else {kernel.program.outputs[0].argument.name: results}


def check(program: ArrayProgram, arrays: Arrays, results: Mapping[str, torch.Tensor]) -> None:
    """The outputs are inside the error rule, with NaN and infinities in the right places."""
    expected, unfused = evaluate(program, arrays), baseline(program, arrays)
    for result in program.outputs:
        name, dtype = result.argument.name, result.argument.dtype
        found = as_array(results[name])
        assert found.shape == expected[name].shape, name
        compared = compare(found, expected[name], unfused[name], dtype, computed_dtype(program, result))
        assert compared.ok, f"output {name}: {compared}"


def check_on(device: str, text: str, arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]], **options: Any) -> None:
    """A program is right on some arrays."""
    kernel = kernel_of(text, device, **options)
    check(kernel.program, arrays, by_name(kernel, kernel(**on(arrays, device))))


def normal(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray[Any, np.dtype[Any]]:
    """Random numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def example(device: str, scale: Scale, name: str, dtype: str, family: str) -> None:
    """An example is right in a type on a family of data, and torch is told its shapes, strides and types beforehand."""
    text = next(text for text, found in example_programs("") if found == name)
    program = parse_all(text, "example.blk", dtype)[name]
    asked = {dim.name: dim.size or scale.sizes.get(dim.name, 17) for dim in program.dims if dim.same_as is None}
    sizes = driver.default_sizes(program, asked)
    arrays = data(program, sizes, family)
    kernel = kernel_of(text, device, program=name, dtype=dtype)
    tensors = on(arrays, device)
    results = by_name(kernel, kernel(**tensors))
    check(program, arrays, results)
    expect_fakes(kernel, tensors, results)


def expect_fakes(kernel: GpuKernel, tensors: Mapping[str, torch.Tensor], results: Mapping[str, torch.Tensor]) -> None:
    """What torch expects of the operator is what comes out."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        faked = by_name(kernel, kernel(**{name: mode.from_tensor(tensor) for name, tensor in tensors.items()}))
    for name, result in results.items():
        assert faked[name].shape == result.shape and faked[name].stride() == result.stride(), name
        assert faked[name].dtype == result.dtype and faked[name].device == result.device, name


# Sizes and layouts


def lengths(device: str, scale: Scale) -> None:
    """One kernel object takes sequences of any length, also of none."""
    kernel = kernel_of(ATTENTION, device)
    for length in scale.lengths:
        q, k, v = normal(2, scale.rows, 8), normal(2, length, 8, seed=1), normal(2, length, 8, seed=2)
        check(kernel.program, {"Q": q, "K": k, "V": v}, {"O": kernel(*(as_tensor(x).to(device) for x in (q, k, v)))})


def head_size(device: str, scale: Scale, size: int) -> None:
    """Heads of any size, also of none that tensor cores have."""
    for dtype, kind in {"f16": "float16", "f32": "float32"}.items() if device != "cpu" else [("f16", "float16")]:
        shapes = (1, scale.rows, size), (1, scale.rows + 1, size), (1, scale.rows + 1, size)
        q, k, v = (normal(*shape, dtype=kind, seed=at) for at, shape in enumerate(shapes))
        check_on(device, ATTENTION, {"Q": q, "K": k, "V": v}, dtype=dtype)


def empty(device: str, scale: Scale) -> None:
    """Dimensions without elements give outputs of the right shape: sums of nothing are zero, maxima minus infinity."""
    statistics, attention = kernel_of(STATISTICS, device), kernel_of(ATTENTION, device)
    for m, n in ((0, 5), (scale.rows, 0), (0, 0)):
        x, q, k, v = normal(m, n), normal(1, m, 4), normal(1, n, 4), normal(1, n, 3)
        check(statistics.program, {"X": x}, statistics(as_tensor(x).to(device)))
        arrays = {"Q": q, "K": k, "V": v}
        check(attention.program, arrays, {"O": attention(**on(arrays, device))})


def strides(device: str, scale: Scale) -> None:
    """Tensors that are transposed, sliced or broadcast give the same bits as contiguous ones."""
    rows, width = scale.rows, 8
    kernel = kernel_of(ATTENTION, device, dims={"b": 2, "d": width, "e": width})
    base = as_tensor(normal(width, 2, 2 * rows)).to(device).permute(1, 2, 0)
    q = base[:, ::2]
    k = as_tensor(normal(2, rows + 5, 3 * width, seed=1)).to(device)[:, 5:, width : 2 * width]
    v = as_tensor(normal(rows, width, seed=2)).to(device).expand(2, rows, width)
    assert not q.is_contiguous() and not k.is_contiguous() and v.stride(0) == 0
    plain = kernel(q.contiguous(), k.contiguous(), v.contiguous())
    assert torch.equal(kernel(q, k, v), plain) and plain.is_contiguous()
    arrays = {"Q": as_array(q), "K": as_array(k), "V": as_array(v)}
    check(kernel.program, arrays, {"O": plain})


def far_apart(device: str, scale: Scale) -> None:
    """Rows may be more than 2**31 elements apart."""
    storage = torch.empty(2**31 + 4096, dtype=torch.int8, device=device)
    x = storage.as_strided((3, 16), (2**30 + 7, 1))
    x.copy_(torch.arange(48, dtype=torch.int8).reshape(3, 16))
    text = "program p(X: i8[m, n]) -> (S: i32[m], D: i32[m, n]) {\n    S = sum[n](i32(X))\n    D = X * 2\n}\n"
    results = kernel_of(text, device, tiles={"m": 1})(x)
    assert results["S"].tolist() == [120, 376, 632] and torch.equal(results["D"].cpu(), 2 * x.cpu().int())


def described(device: str, scale: Scale) -> None:
    """Tiles are loaded by descriptors where tensors allow it, and by pointers elsewhere."""
    program, machine = driver.load_program(PRODUCT, None, "f16"), load_machine(target_of(device))
    sizes = {"m": scale.rows, "k": 40, "n": 24}
    made = triton_kernels(program, machine, sizes, {"m": 16, "k": 16, "n": 16})
    (function,) = made.source.functions
    source = launched_with(made, machine, {function.name: Options(4, 3, "descriptors")}).source
    assert ".load([" in source.text
    launch = triton_runtime.load(source.text, source.launcher)
    wide = as_tensor(normal(scale.rows, 48, dtype="float16")).to(device)
    w = as_tensor(normal(40, 24, dtype="float16", seed=1)).to(device)
    for x in (wide[:, :40], wide[:, 1:41], wide.t().contiguous().t()[:, :40]):
        check(program, {"X": as_array(x), "W": as_array(w)}, {"Y": launch(x, w)})


# Numbers


def masked_rows(device: str, scale: Scale) -> None:
    """A row in which nothing is seen gives zeros."""
    shape = scale.rows + 3, 16
    arrays = {name: normal(*shape, dtype="float16", seed=at) for at, name in enumerate("QKV")}
    kernel = kernel_of(MASKED, device)
    result = kernel(**on(arrays, device))
    assert not result[:3].any() and result[3:].any(dim=1).all()
    check(kernel.program, arrays, {"O": result})


def strange_rows(device: str, scale: Scale) -> None:
    """NaN and infinities come out where the meaning has them."""
    inf, nan, most = np.inf, np.nan, np.finfo(np.float32).max
    rows = [
        [-inf] * 5,
        [-1e30] * 5,
        [nan] * 5,
        [-inf, nan, -inf, -inf, -inf],
        [0, 1, nan, 2, 3],
        [0, 1, inf, 2, 3],
        [inf, 0, -inf, 1, 2],
        [inf] * 5,
        [0] * 5,
        [1e-42] * 5,
        [most, -inf, -inf, -inf, -inf],
    ]
    check_on(device, STATISTICS, {"X": np.array(rows, np.float32)})


def exact_f32(device: str, scale: Scale) -> None:
    """f32 means f32, not TF32: products of numbers with 24 bits are off by less than 10 bits would be."""
    x, w = normal(scale.rows, 256), normal(256, 24, seed=1)
    kernel = kernel_of(PRODUCT, device)
    found = as_array(kernel(as_tensor(x).to(device), as_tensor(w).to(device))).astype(np.float64)
    exact = x.astype(np.float64) @ w.astype(np.float64)
    assert np.abs(found - exact).max() < 2e-6 * np.abs(x).astype(np.float64).sum(axis=1).max()
    check(kernel.program, {"X": x, "W": w}, {"Y": torch.from_numpy(found)})


def repeats(device: str, scale: Scale) -> None:
    """The same call gives the same bits, every time."""
    kernel = kernel_of(ATTENTION, device)
    shapes = (2, scale.rows, 16), (2, scale.rows, 16), (2, scale.rows, 16)
    tensors = [as_tensor(normal(*shape, seed=at)).to(device) for at, shape in enumerate(shapes)]
    first = kernel(*tensors)
    assert all(torch.equal(kernel(*tensors), first) for _ in range(scale.repeats))


# torch


def in_parts(device: str, scale: Scale) -> None:
    """A program that is planned in parts, since launches cost nothing here, takes tensors of any strides and sizes."""
    text = next(text for text, found in example_programs("") if found == "mlp")
    program = parse_all(text, "mlp.blk", "f16")["mlp"]
    machine = replace(load_machine(target_of(device)), dispatch=0.0)
    kernel = GpuKernel(program, machine.name, {}, {}, machine=machine, device=device)
    for rows in (20, 31):
        arrays = data(program, driver.default_sizes(program, {"m": rows, "d": 24, "z": 32, "e": 17}), "ordinary")
        tensors = on(arrays, device)
        tensors["W1"] = tensors["W1"].t().contiguous().t()
        check(program, arrays, by_name(kernel, kernel(**tensors)))
    assert "# Part 1" in kernel.source and kernel.source.count("torch.empty") == 2


def compiled_by_torch(device: str, scale: Scale) -> None:
    """`torch.compile` sees one operator, by position and by name, and keeps it when sizes change."""
    kernel = kernel_of(STATISTICS, device)

    def both(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = kernel(x + 1)["L"] + kernel(X=x)["M"]
        return result

    wrapped = torch.compile(both, backend="inductor" if device != "cpu" else "aot_eager", fullgraph=True)
    for rows in (scale.rows, scale.rows + 1, scale.rows + 2):
        x = as_tensor(normal(rows, 33)).to(device)
        torch.testing.assert_close(wrapped(x), both(x))


def exported(device: str, scale: Scale) -> None:
    """`torch.export` keeps the operator, with a size that is open."""
    kernel = kernel_of(ATTENTION, device)

    class Module(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = kernel(q, k, v) + 1
            return result

    q, k, v = (as_tensor(normal(1, scale.rows, 8, seed=at)).to(device) for at in range(3))
    keys = torch.export.Dim("keys", min=2, max=4096)
    shapes: Any = ({}, {1: keys}, {1: keys})
    program = torch.export.export(Module(), (q, k, v), dynamic_shapes=shapes)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert len([name for name in calls if name.startswith("blockc.")]) == 1
    more = torch.cat((k, k), 1), torch.cat((v, v), 1)
    found: torch.Tensor = program.module()(q, *more)
    torch.testing.assert_close(found, kernel(q, *more) + 1)


def operator_is_sound(device: str, scale: Scale) -> None:
    """torch's own checks of an operator."""
    kernel = kernel_of(STATISTICS, device)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    assert kernel.operator is not None
    operator: Any = kernel.operator
    found = torch.library.opcheck(operator, (as_tensor(normal(scale.rows, 9)).to(device),), test_utils=tests)
    assert found == dict.fromkeys(tests, "SUCCESS")


def no_derivative(device: str, scale: Scale) -> None:
    """A derivative is refused; without one, parameters of a model are inputs like others."""
    kernel = kernel_of(CONSTANT, device)
    weight = torch.nn.Parameter(as_tensor(normal(scale.rows, 7)).to(device))
    with pytest.raises((RuntimeError, NotImplementedError), match="autograd"):
        kernel(weight).sum().backward()
    with torch.no_grad():
        plain = kernel(weight.detach())
        assert torch.equal(kernel(weight), plain)


def default_device(device: str, scale: Scale) -> None:
    """Numbers that depend on sizes are computed where they are needed, whatever torch's default device is."""
    kernel = kernel_of(CONSTANT, device)
    x = normal(scale.rows, 11)
    tensor = as_tensor(x).to(device)
    with torch.device("meta"):
        result = kernel(tensor)
    check(kernel.program, {"X": x}, {"Y": result})


def refused(device: str, scale: Scale) -> None:
    """What is no tensor on the device, or of another type or shape, is named; nothing is copied."""
    kernel = kernel_of(PRODUCT, device)
    x = torch.zeros(4, 5, device=device)
    elsewhere = "meta"
    for bad, message in (
        (np.zeros((5, 6), np.float32), "`W` must be a torch tensor on"),
        ([[1.0]], "`W` must be a torch tensor on"),
        (torch.zeros(5, 6, dtype=torch.float16, device=device), "`W` must be f32, not torch.float16"),
        (torch.zeros(5, 6, device=elsewhere), "inputs are on one device: `W` is on meta"),
        (torch.zeros(7, 6, device=device), "input `W`, axis 0 `k`: size 7, but input `X` gives 5"),
    ):
        with pytest.raises(blockc.BlockcError, match=message):
            kernel._run((x, bad))
    with pytest.raises(blockc.BlockcError, match="is on meta, and the kernel runs on"):
        kernel._run((x.to(elsewhere), torch.zeros(5, 6, device=elsewhere)))
    with pytest.raises(blockc.BlockcError, match="input `W` is missing"):
        kernel(x)
    with pytest.raises(blockc.BlockcError, match="has no input `Z`"):
        kernel(x, W=x, Z=x)


# On a GPU only


def captured(device: str, scale: Scale) -> None:
    """A call can be captured in a CUDA graph, and its replay computes on what the inputs hold then."""
    kernel = kernel_of(ATTENTION, device)
    tensors = [as_tensor(normal(2, scale.rows, 16, seed=at)).to(device) for at in range(3)]
    kernel(*tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = kernel(*tensors)
    for at, tensor in enumerate(tensors):
        tensor.copy_(as_tensor(normal(2, scale.rows, 16, seed=10 + at)))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(result, kernel(*tensors))


def current_stream(device: str, scale: Scale) -> None:
    """Kernels run on the current stream: behind what is waiting there, without any waiting of ours."""
    kernel = kernel_of(CONSTANT, device)
    large = torch.ones(4096, 4096, device=device)
    x = torch.zeros(scale.rows, 64, device=device)
    kernel(x)
    torch.cuda.synchronize()
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream), no_waiting():
        for _ in range(20):
            large = large @ large / 4096
        x.copy_(large[: scale.rows, :64])
        result = kernel(x)
    stream.synchronize()
    assert torch.equal(result, kernel(x)) and x.any()


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """torch raises where something waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def second_device(device: str, scale: Scale) -> None:
    """Where there are several GPUs, kernels run where their tensors are."""
    last = f"cuda:{torch.cuda.device_count() - 1}"
    check_on(last, STATISTICS, {"X": normal(scale.rows, 40)})


BODIES = (
    lengths,
    empty,
    strides,
    described,
    far_apart,
    masked_rows,
    strange_rows,
    exact_f32,
    repeats,
    in_parts,
    compiled_by_torch,
    exported,
    operator_is_sound,
    no_derivative,
    default_device,
    refused,
)
GPU_ONLY = (captured, current_stream, second_device)
HEAD_SIZES = (8, 46, 80, 96, 192)
