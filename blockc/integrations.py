"""Arrays of other libraries: torch tensors in, torch tensors out. torch is imported only if a tensor is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from blockc.data import numpy_dtype

Array = np.ndarray[Any, np.dtype[Any]]


def is_tensor(value: object) -> bool:
    """True for a torch tensor, without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch"


def as_array(value: Any) -> Array:
    """The value as a NumPy array that shares its memory where possible."""
    if not is_tensor(value):
        return np.asarray(value)
    import torch

    tensor = value.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy()).view(numpy_dtype("bf16"))
    return np.asarray(tensor.numpy())


def like_inputs(results: Mapping[str, Array], inputs: tuple[Any, ...]) -> dict[str, Any]:
    """The results as torch tensors, on the device of the first input that is one, if there is any; else as they are."""
    tensors = [value for value in inputs if is_tensor(value)]
    if not tensors:
        return dict(results)
    import torch

    outputs = {}
    for name, array in results.items():
        if array.dtype.name == "bfloat16":
            outputs[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(tensors[0].device)
        else:
            outputs[name] = torch.from_numpy(array).to(tensors[0].device)
    return outputs
