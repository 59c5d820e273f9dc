"""What kernels for GPUs are tested on: every program of the examples, ragged sizes, and families of data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from oracle import EXAMPLES

from blockc.data import random_arrays
from blockc.ir.array_program import ArrayProgram
from blockc.language import program_names

Arrays = Mapping[str, np.ndarray[Any, np.dtype[Any]]]

SIZES = {"b": 1, "h": 2, "m": 19, "n": 37, "d": 24, "e": 20, "k": 21, "z": 18, "v": 35, "kv": 2, "g": 2}
FAMILIES = ("ordinary", "large", "shifted", "strange")


def data(program: ArrayProgram, sizes: Mapping[str, int], family: str) -> Arrays:
    """Arrays of a family."""
    arrays = dict(random_arrays(program, sizes, seed=7))
    for name, value in arrays.items():
        if value.dtype.kind not in "fV":
            continue
        wide = np.array(value, np.float32)
        match family:
            case "large":
                wide = wide * 30  # so that products of two are times 900
            case "shifted":
                wide = wide - 20
            case "strange" if wide.ndim > 1 and wide.size:
                rows = wide.reshape(-1, wide.shape[-1])
                for at, row in enumerate((np.nan, np.inf, -np.inf, 0.0)):
                    rows[at % len(rows), :: 1 + at] = row
        with np.errstate(over="ignore"):
            arrays[name] = wide.astype(value.dtype)
    return arrays


def example_programs(only: str) -> Iterator[tuple[str, str]]:
    """The text and name of every program of the examples."""
    for path in sorted(EXAMPLES.glob("*.blk")):
        text = path.read_text()
        for name in program_names(text, str(path)):
            if only in name:
                yield text, name
