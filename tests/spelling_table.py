"""The table of spellings: programs of equal meaning, and whether they become equally good kernels.

A group is a folder of `data/spellings`; its plainest program is `plain.blk`. Every member is fused with the same sizes
and tiles and compared with the plain one: launches of the chosen and of the last snapshot, bytes moved by the last and
by the cheapest snapshot, and lists that the last one keeps in slow memory, of which there should be none. Where a
formula by hand says how many bytes have to be moved, that counts, also for the plain one.

    python tests/spelling_table.py [GROUP ...]      prints the table, of all groups or of these
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from oracle import difference

from blockc.data import random_arrays
from blockc.driver import UNSPLIT, Tiles, load_program, tiles_for, whole_dimensions
from blockc.formatting import table
from blockc.ir.array_program import ArrayProgram
from blockc.ir.block import Program
from blockc.ir.decisions import Derivation
from blockc.ir.interpret import interpret
from blockc.meaning import evaluate
from blockc.passes import choose
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower

Arrays = dict[str, NDArray[Any]]

FOLDER = Path(__file__).parent / "data" / "spellings"
PLAIN = "plain"
SIZES = {"h": 2, "m": 7, "n": 11, "d": 6, "e": 10, "k": 5, "v": 9, "z": 13}
TILE = 4  # elements of a block of a dimension that is cut

# The cuts of every group: the dimensions that are cut into tiles, all others being whole.
CUTS = {
    "attention": ("h m n", "h m n e", "h m n d", "h m n d e"),
    "cross_entropy": ("m v", "m d v"),
    "differential_attention": ("m n", "m n e", "m n d e"),
    "divergence": ("m", "m n"),
    "entropy": ("m n", "m n d"),
    "layernorm_matmul": ("m", "m d", "m n", "m d n"),
    "masked_attention": ("h m n", "h m n e", "h m n d e"),
    "rmsnorm_qkv": ("m", "m d", "m d e k v"),
    "rmsnorm_swiglu": ("m z", "m z e", "m d z", "m d z e"),
    "variance": ("m", "m n"),
}

# Sizes at which all is left to the driver: what is whole, and the tiles.
DRIVEN = {
    "small features": {"h": 2, "m": 4096, "n": 4096, "d": 64, "e": 128, "k": 64, "v": 512, "z": 4096},
    "large features": {"h": 2, "m": 4096, "n": 4096, "d": 2048, "e": 1024, "k": 1024, "v": 8192, "z": 8192},
}

H, M, N, D, E, K, V, Z = (SIZES[dim] for dim in "hmndekvz")
ROWS = -(-M // TILE)  # blocks along m
ATTENTION = H * M * D + H * M * E + ROWS * H * N * (D + E)
SEEN = sum(min(N, row + TILE) for row in range(0, M, TILE))  # keys of the blocks that a block of queries sees some of
CAUSAL = H * M * D + H * M * E + H * SEEN * (D + E)

# Elements of four bytes that the last snapshot has to move, by group and cut: no snapshot moves fewer.
ELEMENTS = {
    ("attention", "h m n"): ATTENTION,
    ("cross_entropy", "m v"): M * D + ROWS * D * V + M + M,
    ("differential_attention", "m n"): 2 * M * D + M * E + ROWS * N * (2 * D + E) + 1,
    ("divergence", "m"): 2 * M * N + M,
    ("divergence", "m n"): 2 * M * N + M,
    ("entropy", "m n"): M * D + ROWS * N * D + M,
    ("layernorm_matmul", "m"): M * D + M * N + D * N + 2 * D,
    ("layernorm_matmul", "m d"): M * D + M * N + ROWS * (D * N + 2 * D),
    ("layernorm_matmul", "m n"): M * D + M * N + ROWS * D * N + 2 * D,
    ("masked_attention", "h m n"): CAUSAL,
    ("rmsnorm_qkv", "m"): M * D + (M + D) * (E + K + V) + D,
    ("rmsnorm_qkv", "m d"): M * D + M * (E + K + V) + ROWS * (D * (E + K + V) + D),
    ("rmsnorm_swiglu", "m z"): M * D + M * E + ROWS * Z * (2 * D + E) + D,
    ("variance", "m"): M * N + 2 * M,
    ("variance", "m n"): M * N + 2 * M,
}

# Rows that still fall short, by group and cut. One that no longer does has to leave.
PENDING: dict[str, dict[str, str]] = {
    "divergence": {
        "m n": "plain by_hand difference_of_logarithms expected_difference exponential_of_log_softmax"
        " log_softmax negated products ratio_of_products two_sums",
        "small features": "expectation unnormalised",
        "large features": "expectation unnormalised",
    },
    # What is divided out needs all blocks, and a sum times its reciprocal is not taken for 1.
    "masked_attention": dict.fromkeys((*CUTS["masked_attention"], *DRIVEN), "renormalised"),
}


@dataclass(frozen=True)
class Row:
    """What became of one member at one cut. Traffic is in bytes."""

    group: str
    member: str
    cut: str
    chosen_kernels: int
    last_kernels: int
    last_traffic: int
    least_traffic: int
    lists: tuple[str, ...]


def members(group: str) -> list[str]:
    """The names of all programs of a group, the plain one first."""
    names = {path.stem for path in (FOLDER / group).glob("*.blk")}
    return [PLAIN, *sorted(names - {PLAIN})]


def places() -> list[tuple[str, str, str]]:
    """Group, member and cut of every row."""
    return [(group, member, cut) for group in CUTS for cut in (*CUTS[group], *DRIVEN) for member in members(group)]


def chosen_cuts(group: str, member: str) -> list[str]:
    """The cuts of a member in the normal run: the most dimensions, and in turn one of the others and one of the
    driver's.

    The plain program has all of them.
    """
    *others, last = CUTS[group]
    if member == PLAIN:
        return [*CUTS[group], *DRIVEN]
    turn = members(group).index(member)
    return [others[turn % len(others)], last, [*DRIVEN][turn % len(DRIVEN)]]


@cache
def spelling(group: str, member: str) -> ArrayProgram:
    """The program of a member."""
    return load_program(FOLDER / group / f"{member}.blk")


def dimensions(group: str, member: str) -> dict[str, str]:
    """The member's name of every dimension of the plain program: inputs correspond by position."""
    ours, plain = spelling(group, member).inputs, spelling(group, PLAIN).inputs
    pairs = zip(plain, ours, strict=True)
    return {old: new for first, second in pairs for old, new in zip(first.dims, second.dims, strict=True)}


def sizes_and_tiles(group: str, member: str, cut: str) -> tuple[dict[str, int], Tiles]:
    """The sizes of a member's dimensions, and the tiles that are asked for."""
    names = dimensions(group, member)
    sizes = {new: DRIVEN.get(cut, SIZES)[old] for old, new in names.items()}
    if cut in DRIVEN:
        return sizes, {}
    return sizes, {new: TILE if old in cut.split() else None for old, new in names.items()}


@cache
def derivation(group: str, member: str, whole: frozenset[str]) -> Derivation:
    """How a member was fused."""
    return fuse(lower(spelling(group, member), whole))


@cache
def ready(group: str, member: str, whole: frozenset[str]) -> tuple[Program, ...]:
    """The snapshots as they would be emitted."""
    return choose.ready(derivation(group, member, whole))


def snapshots(group: str, member: str, cut: str) -> tuple[Program, ...]:
    """The snapshots of a member at a cut. Several cuts may leave the same dimensions whole."""
    sizes, tiles = sizes_and_tiles(group, member, cut)
    return ready(group, member, whole_dimensions(spelling(group, member), sizes, tiles, UNSPLIT))


@cache
def row(group: str, member: str, cut: str) -> Row:
    """The figures of one member at one cut."""
    sizes, asked = sizes_and_tiles(group, member, cut)
    programs = snapshots(group, member, cut)
    chosen, costs = choose.price(programs, sizes, tiles_for(programs, sizes, asked))
    least = min(cost.traffic_bytes for cost in costs)
    last = costs[-1]
    return Row(group, member, cut, costs[chosen].kernels, last.kernels, last.traffic_bytes, least, last.buffered)


def faults(found: Row) -> list[str]:
    """In what a row falls short of the formula or the plain one, in words."""
    plain = row(found.group, PLAIN, found.cut)
    elements = ELEMENTS.get((found.group, found.cut))
    traffic = (plain.last_traffic, plain.least_traffic) if elements is None else (4 * elements, 4 * elements)
    compared = {
        "launches of the chosen snapshot": (found.chosen_kernels, plain.chosen_kernels),
        "launches of the last snapshot": (found.last_kernels, plain.last_kernels),
        "bytes moved by the last snapshot": (found.last_traffic, traffic[0]),
        "bytes moved by the cheapest snapshot": (found.least_traffic, traffic[1]),
        "lists kept by the last snapshot": (len(found.lists), 0),
    }
    return [f"{what}: {ours}, not {wanted}" for what, (ours, wanted) in compared.items() if ours != wanted]


@cache
def data(group: str) -> tuple[NDArray[Any], ...]:
    """One array for every input of a group. Integers are labels, and labels count from 0."""
    sizes, _ = sizes_and_tiles(group, PLAIN, CUTS[group][0])
    arrays = random_arrays(spelling(group, PLAIN), sizes, seed=7)
    return tuple(np.abs(array) if array.dtype.kind == "i" else array for array in arrays.values())


def arguments(group: str, member: str) -> Arrays:
    """The data of a group under the names of a member's inputs."""
    return {argument.name: array for argument, array in zip(spelling(group, member).inputs, data(group), strict=True)}


@cache
def reference(group: str) -> tuple[NDArray[Any], ...]:
    """The float64 meaning of the plain program."""
    return tuple(evaluate(spelling(group, PLAIN), arguments(group, PLAIN)).values())


def disagreement(group: str, outputs: Mapping[str, NDArray[Any]]) -> str:
    """Where outputs differ from the meaning of the plain program, in words; or ""."""
    pairs = zip(outputs.items(), reference(group), strict=True)
    problems = (f"{name}: {difference(array, expected)}" for (name, array), expected in pairs)
    return next((problem for problem in problems if not problem.endswith(": ")), "")


def wrong_snapshots(group: str, member: str, cut: str) -> Iterator[str]:
    """What the interpreter finds different from the meaning of the plain program, for every snapshot of a member."""
    program, arrays = spelling(group, member), arguments(group, member)
    sizes = {new: SIZES[old] for old, new in dimensions(group, member).items()}
    for number, snapshot in enumerate(snapshots(group, member, cut)):
        outputs = interpret(snapshot, arrays, sizes, dict.fromkeys(sizes, TILE)).outputs
        problem = disagreement(
            group, {result.argument.name: outputs[result.argument.name] for result in program.outputs}
        )
        if problem:
            yield f"snapshot {number}: {problem}"


def pending() -> list[tuple[str, str, str]]:
    """Group, member and cut of the rows that still fall short."""
    return [(group, member, cut) for group, cuts in PENDING.items() for cut in cuts for member in cuts[cut].split()]


def table_lines(groups: list[str]) -> list[str]:
    """The table of these groups, a line for every row."""
    rows: list[tuple[str, ...]] = [
        ("group", "member", "cut", "chosen", "last", "bytes of last", "least bytes", "lists", "as plain?")
    ]
    for group, member, cut in places():
        if group in groups:
            found = row(group, member, cut)
            figures = (found.chosen_kernels, found.last_kernels, found.last_traffic, found.least_traffic)
            told = "; ".join(faults(found)) or "equal"
            rows.append((group, member, cut, *map(str, figures), str(len(found.lists)), told))
    return table(rows, right=frozenset(range(3, 8)))


if __name__ == "__main__":
    print("\n".join(table_lines(sys.argv[1:] or list(CUTS))))
