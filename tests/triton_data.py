"""What kernels for GPUs are tested on: every program of the examples, ragged sizes, and families of data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from oracle import EXAMPLES

from blockc import driver
from blockc.data import random_arrays
from blockc.ir.array_program import ArrayProgram
from blockc.ir.array_program import sizes as complete_sizes
from blockc.language import program_names
from blockc.machines.loading import load_machine
from blockc.passes.segments import cuts, rounded, segment
from blockc.planning import MachinePlan, search_plan
from blockc.triton_kernels import RankedParts

# A value that several parts read, under two names of a dimension, an output that a part reads, and packed axes, with
# names that a file could use for something else.
NAMES = """program tl(d0: f32[b, m, (h=2, k)], m_1: f32[(h=2, k), n_0]) -> (x0: f16[m, (b, n_0)], kernel1: f32[b, m]) {
    S = dot[h, k](d0, m_1)
    T = dot[n_0](S, S[m -> m_2])
    kernel1 = logsumexp[m_2](where(index(m_2) <= index(m), T, -inf))
    U = dot[m_2](softmax[m_2](T), S[m -> m_2])
    x0 = U + S * kernel1
}
"""

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


def in_parts(program: ArrayProgram, sizes: Mapping[str, int]) -> RankedParts:
    """The kernels of a program for h200 in as many parts as it can be cut into, with several choices of blocks."""
    machine, declared = load_machine("h200"), complete_sizes(program, {})
    parts: list[tuple[ArrayProgram, MachinePlan, driver.Tiles]] = []
    for start, end in pairwise(cuts(program, sizes)):
        part = segment(program, start, end, declared, rounded(program))
        if part.outputs:
            parts.append((part, search_plan(part, machine, {dim.name: sizes[dim.name] for dim in part.dims}, {}), {}))
    return RankedParts(program, machine, sizes, parts)
