"""Families of input data on which a kernel has to be as accurate as the unfused program: ordinary and adversarial ones.

A family makes all float inputs of a program; integers and booleans are drawn as `random_arrays` does. Special values
stand in one float input at a time, in a row along its last axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from blockc.data import Array, numpy_dtype, random_arrays
from blockc.ir import dtypes
from blockc.ir.array_program import ArrayProgram

Change = Callable[[Array], Array]  # of N(0, 1) in float64


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of data. `change` is applied to every float input, or only to the one called `only`."""

    name: str
    change: Change
    only: str = ""


def _scaled(factor: float, offset: float = 0) -> Change:
    return lambda x: x * factor + offset


def _every_second_row(change: Change) -> Change:
    """The change of every second row along the last axis; the others keep the size of results what it usually is."""

    def changed(x: Array) -> Array:
        rows = np.array(x).reshape(-1, x.shape[-1] if x.ndim and x.size else 1)
        rows[::2] = change(rows[::2])
        return rows.reshape(x.shape)

    return changed


def _row(values: tuple[float, ...], rest: float | None) -> Change:
    """The first row along the last axis: these values, and then `rest`, or what was there."""

    def change(x: Array) -> Array:
        if not x.size:
            return x
        rows = np.array(x).reshape(-1, x.shape[-1] if x.ndim else 1)
        rows[0] = rows[0] if rest is None else rest
        rows[0, : len(values)] = values[: rows.shape[1]]
        return rows.reshape(x.shape)

    return change


ORDINARY = (
    Family("N(0, 1)", _scaled(1)),
    Family("std 30", _scaled(30)),
    Family("std 1e-3", _scaled(1e-3)),
    Family("mean 10", _scaled(1, 10)),
    Family("mean 1000", _scaled(1, 1000)),
    Family("constant rows", _every_second_row(lambda rows: rows[:, :1])),
    Family("rows of zeros", _every_second_row(_scaled(0))),
)
SPECIAL = (
    ("an outlier", _row((1e4,), None)),
    ("one NaN", _row((np.nan,), None)),
    ("one inf", _row((np.inf,), None)),
    ("all -inf", _row((), -np.inf)),
    ("all -1e4", _row((), -1e4)),
    ("denormals", _row((), 1e-40)),
)


def families(program: ArrayProgram) -> Iterator[Family]:
    """Every family for a program: the ordinary ones, and each special row in each float input."""
    yield from ORDINARY
    for argument in program.inputs:
        if dtypes.is_float(argument.dtype):
            yield from (Family(f"{name} in {argument.name}", change, argument.name) for name, change in SPECIAL)


def draw(program: ArrayProgram, sizes: Mapping[str, int], family: Family, seed: int) -> dict[str, Array]:
    """One array for every input, in its declared type."""
    arrays = random_arrays(program, sizes, seed)
    for argument in program.inputs:
        if dtypes.is_float(argument.dtype) and family.only in ("", argument.name):
            with np.errstate(all="ignore"):
                changed = family.change(arrays[argument.name].astype(np.float64))
                arrays[argument.name] = np.asarray(changed).astype(numpy_dtype(argument.dtype))
    return arrays
