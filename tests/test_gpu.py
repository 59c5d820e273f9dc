"""Kernels on a GPU: `python -m pytest -m gpu -n 1`. The normal run leaves these tests out.

What they do is in `gpu_bodies.py`; `test_gpu_kernel.py` runs the same in Triton's interpreter, without a GPU.
"""

from __future__ import annotations

from typing import Any

import gpu_bodies
import pytest
from gpu_bodies import BODIES, GPU_ONLY, HEAD_SIZES, ON_GPU
from triton_data import FAMILIES, example_programs

from blockc.codegen import triton_runtime

pytestmark = pytest.mark.gpu

EXAMPLES = [name for _, name in example_programs("")]
DTYPES = ("f32", "f16", "bf16")


@pytest.fixture
def device() -> str:
    """The GPU. Without one, the tests that were asked for cannot run."""
    if obstacle := triton_runtime.obstacle(triton_runtime.GPU):
        pytest.skip(obstacle)
    return triton_runtime.GPU


@pytest.mark.parametrize("body", [*BODIES, *GPU_ONLY], ids=lambda body: body.__name__)
def test_on_a_gpu(device: str, body: Any) -> None:
    body(device, ON_GPU)


@pytest.mark.parametrize("size", HEAD_SIZES)
def test_head_sizes(device: str, size: int) -> None:
    gpu_bodies.head_size(device, ON_GPU, size)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(device: str, name: str, dtype: str, family: str) -> None:
    gpu_bodies.example(device, ON_GPU, name, dtype, family)
