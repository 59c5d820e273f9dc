"""Products by torch: they mean the same as those of NumPy, and a call leaves torch and BLAS as they were."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController

import blockc
from blockc.cache import usual_store
from blockc.codegen import loader
from blockc.codegen.numpy_source import for_self_check
from blockc.data import random_arrays
from blockc.driver import default_sizes
from blockc.errors import BlockcWarning
from blockc.kernel import Kernel
from blockc.machines.loading import load_shipped
from blockc.machines.writing import machine_text

EXAMPLES = Path(__file__).parent.parent / "examples"
PRODUCT = "program p(A: f32[m, k], B: f32[k, n]) -> C: f32[m, n] {\n C = dot[k](A, B)\n}"
BATCHES = "program p(A: f32[b, m, k], B: f32[b, n, k]) -> C: f32[b, m, n] {\n C = exp(dot[k](A, B))\n}"
PROGRAMS: dict[str, str | Path] = {
    "product": PRODUCT,
    "batches": BATCHES,
    "attention": EXAMPLES / "attention.blk",
    "norm": EXAMPLES / "layernorm_matmul.blk",
}
SIZES = (0, 1, 2, 3, 17, 30)  # blocks have 8 elements

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]
Launch = Callable[..., Arrays]
Target = Callable[[str], str]


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """The path of a machine file for this computer with products of a library."""

    def written(products: str) -> str:
        path = tmp_path / f"{products}.toml"
        path.write_text(machine_text(replace(load_shipped("cpu"), products=products)))
        return str(path)

    return written


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number for each product of torch: how many threads torch may use there."""
    found: list[int] = []
    true = torch.matmul

    def matmul(*operands: Any, **named: Any) -> Any:
        found.append(torch.get_num_threads())
        return true(*operands, **named)

    monkeypatch.setattr(torch, "matmul", matmul)
    return found


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """No test changes how many threads torch and BLAS use."""
    before = threads()
    yield
    assert threads() == before


def threads() -> list[int]:
    """How many threads torch and every BLAS library use."""
    pools = ThreadpoolController().select(user_api="blas").info()
    return [torch.get_num_threads(), *(pool["num_threads"] for pool in pools)]


def kernel_of(name: str, target: str, dtype: str | None = None) -> Kernel:
    tiles = {"m": 8, "n": 8} if name != "batches" else {"b": 2, "m": 8, "n": 8}
    return blockc.compile(PROGRAMS[name], target=target, dtype=dtype, tiles=tiles)


def launches(name: str, target: Target, dtype: str | None = None) -> tuple[Kernel, Launch, Launch]:
    """A kernel with products of torch, also of small matrices; its function, and that of one with NumPy's."""
    kernel = kernel_of(name, target("torch"), dtype)
    source = for_self_check(kernel.source)
    assert source != kernel.source
    return kernel, loader.load(source), loader.load(kernel_of(name, target("numpy"), dtype).source)


def arrays_of(kernel: Kernel, size: int) -> Arrays:
    free = {dim.name: size + number for number, dim in enumerate(kernel.program.dims) if dim.size is None}
    return random_arrays(kernel.program, default_sizes(kernel.program, {**free, "m": size, "n": size}), seed=size)


def agree(found: Arrays, expected: Arrays, context: str = "") -> None:
    for name, array in expected.items():
        limit = 1e-11 if array.dtype == np.float64 else 2e-5
        np.testing.assert_allclose(found[name], array, rtol=limit, atol=limit, err_msg=f"{name} {context}")


@pytest.mark.parametrize(("name", "dtype"), [*((name, "f32") for name in PROGRAMS), ("product", "f64")])
def test_both_libraries_agree_at_ragged_sizes(name: str, dtype: str, target: Target, multiplied: list[int]) -> None:
    kernel, by_torch, by_numpy = launches(name, target, dtype)
    for size in SIZES:
        arrays = arrays_of(kernel, size)
        agree(by_torch(arrays, 1), by_numpy(arrays, 1), f"at size {size}")
    assert multiplied


@pytest.mark.parametrize("name", PROGRAMS)
def test_both_libraries_agree_on_nan_and_infinity(name: str, target: Target, multiplied: list[int]) -> None:
    kernel, by_torch, by_numpy = launches(name, target, "f32")
    random = np.random.default_rng(0)
    for number in (np.nan, np.inf, -np.inf):
        arrays = arrays_of(kernel, 17)
        for array in arrays.values():
            array[random.random(array.shape) < 0.01] = number
            array[random.random(array.shape) < 0.1] = 0
        agree(by_torch(arrays, 1), by_numpy(arrays, 1), f"with {number}")
    assert multiplied


@pytest.mark.parametrize("name", ["product", "batches"])
def test_arrays_may_have_any_strides_and_be_read_only(name: str, target: Target, multiplied: list[int]) -> None:
    kernel, by_torch, by_numpy = launches(name, target)
    arrays = arrays_of(kernel, 17)
    expected = by_numpy(arrays, 1)
    changes: dict[str, Callable[[Array], Array]] = {
        "Fortran order": np.asfortranarray,
        "reversed": lambda array: np.flip(np.flip(array).copy()),
        "every second": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
        "wide": lambda array: np.concatenate([array, array], axis=-1)[..., : array.shape[-1]],
        "read only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
        "not aligned": lambda array: (
            np.frombuffer(b"x" + array.tobytes(), np.uint8)[1:].view("f4").reshape(array.shape)
        ),
    }
    for kind, change in changes.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            agree(by_torch({key: change(array) for key, array in arrays.items()}, 1), expected, kind)
    constant = {key: np.broadcast_to(np.float32(1), array.shape) for key, array in arrays.items()}
    agree(by_torch(constant, 1), by_numpy(constant, 1))
    assert multiplied


def test_torch_multiplies_large_matrices_in_one_thread(target: Target, multiplied: list[int]) -> None:
    kernel = blockc.compile(PRODUCT, target=target("torch"), tiles={"m": 64, "n": 256})
    multiplied.clear()
    arrays = random_arrays(kernel.program, {"m": 256, "k": 64, "n": 256}, seed=0)
    kernel(**arrays)
    assert multiplied == [1] * 4
    expected = kernel.specialise({"m": 256, "k": 64, "n": 256}).launch(arrays, 1)["C"].tobytes()
    for count in (2, 3, None):
        launch = kernel.specialise({"m": 256, "k": 64, "n": 256}).launch
        assert launch(arrays, count)["C"].tobytes() == expected
    assert set(multiplied) == {1}
    multiplied.clear()
    kernel(A=arrays["A"][:1], B=arrays["B"])
    kernel(A=arrays["A"][:16, :16], B=arrays["B"][:16])
    assert multiplied == []


@pytest.mark.parametrize("names", [("one_thread",), ("one_thread", "one_thread_of_torch")])
def test_calls_that_overlap_leave_all_as_it_was(names: tuple[str, ...], target: Target) -> None:
    helpers = loader.load(kernel_of("product", target("torch" if len(names) > 1 else "numpy")).source).__globals__
    before = threads()
    limited = [1 if len(names) > 1 else before[0], *(1 for _ in before[1:])]

    def call(stack: ExitStack) -> list[int]:
        for name in names:
            stack.enter_context(helpers[name]())
        return threads()

    def end(stack: ExitStack) -> int:
        stack.close()
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as other:
        first, second, third = ExitStack(), ExitStack(), ExitStack()
        assert call(first) == limited
        assert other.submit(call, second).result() == limited
        first.close()
        assert threads() == [before[0], *limited[1:]]
        assert call(third) == limited
        assert other.submit(end, second).result() == before[0]
        third.close()
    assert threads() == before


def test_an_error_leaves_all_as_it_was(target: Target) -> None:
    kernel = blockc.compile(PRODUCT, target=target("torch"))
    before = threads()
    with pytest.raises(ValueError, match="'B' has shape"):
        kernel.specialise({"m": 4, "k": 4, "n": 4}).launch({"A": np.ones((4, 4)), "B": np.ones((5, 4))})
    assert threads() == before


@pytest.mark.parametrize(("setting", "exact"), [("highest", True), ("high", False), ("medium", False)])
def test_torch_does_not_multiply_if_it_may_round(
    setting: str, exact: bool, target: Target, multiplied: list[int]
) -> None:
    kernel, by_torch, by_numpy = launches("product", target)
    arrays = arrays_of(kernel, 30)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        multiplied.clear()
        agree(by_torch(arrays, 1), by_numpy(arrays, 1))
    finally:
        torch.set_float32_matmul_precision(before)
    assert bool(multiplied) == exact


def test_without_torch_numpy_multiplies(target: Target, monkeypatch: pytest.MonkeyPatch, multiplied: list[int]) -> None:
    kernel, _, by_numpy = launches("attention", target, "f32")
    monkeypatch.setitem(sys.modules, "torch", None)
    launch = loader.load(for_self_check(kernel.source))
    arrays = arrays_of(kernel, 17)
    multiplied.clear()
    found, expected = launch(arrays, 2), by_numpy(arrays, 1)
    assert [array.tobytes() for array in found.values()] == [array.tobytes() for array in expected.values()]
    assert multiplied == []


def test_only_files_with_products_by_torch_import_it(target: Target) -> None:
    assert "import torch\n" in kernel_of("norm", target("torch")).source
    assert "torch" not in kernel_of("norm", target("numpy")).source
    sums = "program p(A: f32[m, n]) -> S: f32[m] {\n S = sum[n](A)\n}"
    assert "torch" not in blockc.compile(sums, target=target("torch")).source


def test_the_self_check_sees_products_by_torch(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    true = torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda a, b, out: true(a, b, out=out).mul_(1 + 1e-4))
    with pytest.warns(BlockcWarning, match="failed its self-check"):
        blockc.compile(PRODUCT.replace("program p", "program wrong"), target=target("torch"))


def test_the_library_is_part_of_what_is_kept(target: Target) -> None:
    sources = [kernel_of("product", target(products)).source for products in ("numpy", "torch", "numpy")]
    assert sources[0] == sources[2] != sources[1]
    kept = {entry.path for entry in usual_store().entries()}
    again = kernel_of("product", target("torch"))
    assert again.source == sources[1]
    assert {entry.path for entry in usual_store().entries()} == kept
    assert sources[1] in [
        json.loads(path.read_bytes().split(b"\n", 1)[1])["source"] for path in kept if path.name.startswith("kernel")
    ]
