"""NumPy as an array library for programs that are run operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from blockc.codegen import loader
from blockc.codegen.numpy_helpers import HELPERS
from blockc.data import numpy_dtype
from blockc.eager import Library

Array = NDArray[Any]

_ERF = f"""import numpy as np
{HELPERS["erf"]}

def launch(x, room, other, mask, out):
    erf(x, room, other, mask, out)
"""


def numpy_library() -> Library:
    """NumPy: elementwise operators by one thread, matrix products by those of its BLAS."""
    return Library(
        version=np.__version__,
        elementwise={
            "add": _folded(np.add),
            "sub": np.subtract,
            "mul": _folded(np.multiply),
            "div": np.divide,
            "neg": np.negative,
            "recip": lambda x: np.divide(1.0, x),
            "pow": lambda x, y: x ** (float(y) if y.ndim == 0 else y),
            "exp": np.exp,
            "log": np.log,
            "sqrt": np.sqrt,
            "rsqrt": lambda x: np.divide(1.0, np.sqrt(x)),
            "tanh": np.tanh,
            "sigmoid": lambda x: np.divide(1.0, 1.0 + np.exp(-x)),
            "relu": lambda x: np.maximum(x, 0),
            "gelu": lambda x: x * 0.5 * (1.0 + _erf(x * 0.5**0.5)),
            "erf": _erf,
            "abs": np.abs,
            "sin": np.sin,
            "cos": np.cos,
            "floor": np.floor,
            "minimum": _folded(np.minimum),
            "maximum": _folded(np.maximum),
            "lt": np.less,
            "le": np.less_equal,
            "gt": np.greater,
            "ge": np.greater_equal,
            "eq": np.equal,
            "ne": np.not_equal,
            "and": _folded(np.logical_and),
            "or": _folded(np.logical_or),
            "not": np.logical_not,
            "where": np.where,
        },
        reductions={
            "sum": lambda x, axes: np.sum(x, axis=axes, dtype=x.dtype),
            "max": lambda x, axes: np.max(x, axis=axes),
            "min": lambda x, axes: np.min(x, axis=axes),
        },
        product=np.matmul,
        permuted=np.transpose,
        expanded=np.broadcast_to,
        constant=lambda value, held: np.asarray(value, numpy_dtype(held)),
        positions=lambda size: np.arange(size, dtype=np.int32),
        converted=lambda x, held: x.astype(numpy_dtype(held), copy=False),
        rounded=lambda x, dtype: x.astype(numpy_dtype(dtype)).astype(x.dtype),
        truncated=_truncated,
        stored=lambda x, dtype: x.astype(numpy_dtype(dtype), copy=False),
        own=np.asarray,
        plain=np.asarray,
        quiet=lambda: np.errstate(all="ignore"),
        limited=lambda threads: threadpool_limits(threads, "blas"),
    )


def _folded(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *operands: reduce(function, operands)


def _truncated(x: Array, dtype: str) -> Array:
    """A cast to an integer type: real numbers lose their fraction and saturate, NaN gives 0, whole numbers wrap."""
    if x.dtype.kind == "f":
        limits = np.iinfo(numpy_dtype(dtype))
        wide = np.nan_to_num(np.trunc(x.astype(np.float64)), nan=0.0, posinf=np.inf, neginf=-np.inf)
        x = np.clip(wide, limits.min, limits.max)
    return x.astype(numpy_dtype(dtype)).astype(np.int32)


def _erf(x: Any) -> Array:
    """The error function, which NumPy lacks: that of the kernels, which is as good as its type."""
    x = np.asarray(x, order="C")
    out: Array = np.empty_like(x)
    _launch_erf()(x, np.empty_like(x), np.empty_like(x), np.empty(x.shape, np.bool_), out)
    return out


@cache
def _launch_erf() -> Callable[..., Any]:
    return loader.load(_ERF)
