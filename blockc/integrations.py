"""Arrays of other libraries: torch tensors in, torch tensors out. torch is imported only if a tensor is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from blockc.data import numpy_dtype
from blockc.ir.dtypes import NUMPY_NAMES

Array = np.ndarray[Any, np.dtype[Any]]

_MISSING_FROM_NUMPY = {"bf16": "int16", "f8e4m3": "int8", "f8e5m2": "int8"}  # each with a type of its size


def is_tensor(value: object) -> bool:
    """True for a torch tensor, without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch"


def as_array(value: Any) -> Array:
    """The value as a NumPy array that shares its memory where possible."""
    if not is_tensor(value):
        return np.asarray(value)
    import torch

    tensor = value.detach().cpu()
    for name, same_size in _MISSING_FROM_NUMPY.items():
        if tensor.dtype == getattr(torch, NUMPY_NAMES[name]):
            return np.asarray(tensor.view(getattr(torch, same_size)).numpy()).view(numpy_dtype(name))
    return np.asarray(tensor.numpy())


def as_tensor(array: Array) -> Any:
    """The array as a torch tensor that shares its memory where possible."""
    import torch

    own = np.require(array, requirements=["C", "W"])
    for name, same_size in _MISSING_FROM_NUMPY.items():
        if own.dtype.name == NUMPY_NAMES[name]:
            return torch.from_numpy(own.view(same_size)).view(getattr(torch, NUMPY_NAMES[name]))
    return torch.from_numpy(own)


def like_inputs(results: Mapping[str, Array], inputs: tuple[Any, ...]) -> dict[str, Any]:
    """The results as torch tensors, on the device of the first input that is one, if there is any; else as they are."""
    tensors = [value for value in inputs if is_tensor(value)]
    if not tensors:
        return dict(results)
    return {name: as_tensor(array).to(tensors[0].device) for name, array in results.items()}
