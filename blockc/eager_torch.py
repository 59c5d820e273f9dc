"""torch as an array library for programs that are run operator by operator. It is imported when it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import reduce
from typing import TYPE_CHECKING, Any

from blockc.eager import Library
from blockc.errors import LimitError, Problem
from blockc.integrations import as_array, as_tensor
from blockc.ir.dtypes import NUMPY_NAMES

if TYPE_CHECKING:
    import torch


def torch_library(device: str = "cpu") -> Library:
    """torch on a device. LimitError if it is not installed."""
    try:
        import torch
    except ImportError as error:
        message = "measuring against torch needs the package `torch`, which is not installed"
        raise LimitError((Problem("E0901", message, None, "pip install 'blockc[torch]'"),)) from error

    return Library(
        version=torch.__version__,
        elementwise={
            "add": _folded(torch.add),
            "sub": torch.sub,
            "mul": _folded(torch.mul),
            "div": torch.div,
            "neg": torch.neg,
            "recip": torch.reciprocal,
            "pow": lambda x, y: torch.pow(x, float(y) if y.ndim == 0 else y),
            "exp": torch.exp,
            "log": torch.log,
            "sqrt": torch.sqrt,
            "rsqrt": torch.rsqrt,
            "tanh": torch.tanh,
            "sigmoid": torch.sigmoid,
            "relu": torch.relu,
            "gelu": torch.nn.functional.gelu,
            "erf": torch.erf,
            "abs": torch.abs,
            "sin": torch.sin,
            "cos": torch.cos,
            "floor": torch.floor,
            "minimum": _folded(torch.minimum),
            "maximum": _folded(torch.maximum),
            "lt": torch.lt,
            "le": torch.le,
            "gt": torch.gt,
            "ge": torch.ge,
            "eq": torch.eq,
            "ne": torch.ne,
            "and": _folded(torch.logical_and),
            "or": _folded(torch.logical_or),
            "not": torch.logical_not,
            "where": torch.where,
        },
        reductions={
            "sum": lambda x, axes: torch.sum(x, axes, dtype=x.dtype),
            "max": torch.amax,
            "min": torch.amin,
        },
        product=torch.matmul,
        permuted=torch.permute,
        expanded=lambda x, shape: x.expand(shape),
        constant=lambda value, held: torch.tensor(value, dtype=_dtype(held), device=device),
        positions=lambda size: torch.arange(size, dtype=torch.int32, device=device),
        converted=lambda x, held: x.to(_dtype(held)),
        rounded=lambda x, dtype: x.to(_dtype(dtype)).to(x.dtype),
        truncated=_truncated,
        stored=lambda x, dtype: x.to(_dtype(dtype)),
        own=lambda array: as_tensor(array).to(device),
        plain=as_array,
        quiet=torch.inference_mode,
        limited=_limited,
    )


def _dtype(name: str) -> torch.dtype:
    """The torch type of an element type: both libraries have the same names."""
    import torch

    found: torch.dtype = getattr(torch, NUMPY_NAMES[name])
    return found


def _folded(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *operands: reduce(function, operands)


def _truncated(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """A cast to an integer type: real numbers lose their fraction and saturate, NaN gives 0, whole numbers wrap."""
    import torch

    if x.is_floating_point():
        limits = torch.iinfo(_dtype(dtype))
        x = torch.nan_to_num(torch.trunc(x.double()), nan=0.0).clamp(limits.min, limits.max)
    return x.to(_dtype(dtype)).to(torch.int32)


@contextlib.contextmanager
def _limited(threads: int) -> Iterator[None]:
    """At most so many threads inside one operator, and afterwards as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
