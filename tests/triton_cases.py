"""Triton kernels in Triton's interpreter, on the CPU: examples and random programs against the error rule.

    python tests/triton_cases.py --random 200 --report FILE
    python tests/triton_cases.py --dtypes f32,f16,bf16 --only attention

Each example runs with all its dimensions as the sizes say and with all of them cut, at ragged sizes and in several
families of data; each random program as its last snapshot, at random blocks. Nothing is timed here: the interpreter is
a thousand times slower than a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import numpy as np
import torch
import triton
import triton_interpreter  # noqa: F401  (repairs the interpreter)
from generator import random_program, random_sizes
from oracle import EXAMPLES
from triton_data import FAMILIES, NAMES, SIZES, Arrays, data, example_programs, in_parts

from blockc import driver
from blockc.accuracy import compare, computed_dtype
from blockc.codegen import triton_runtime, triton_source
from blockc.codegen.triton_maps import Unsupported
from blockc.codegen.triton_storage import Options, Source
from blockc.data import random_arrays
from blockc.ir.array_program import ArrayProgram
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import Program
from blockc.ir.decisions import Derivation
from blockc.language import parse_all
from blockc.meaning import baseline, evaluate
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower
from blockc.passes.segments import operators
from blockc.passes.split import split
from blockc.triton_blocks import triton_tiles
from blockc.triton_kernels import emitted, with_sums_in_loops

BATCHES = ("b", "h", "kv")
SMALL = {"b": 1, "h": 2, "d": 24, "c": 24, "k": 20}  # sizes of programs in parts; c and d are the same there
DRAWS = 32  # that are pooled
BLOCKS = {"pieces": {"m": 128, "n": 256, "k": 16}}  # of what is not in small ones, as large as a GPU's
IN_CHUNKS = ("decode",)  # what of PROGRAMS runs with the loop over n in chunks
POINTERS, DESCRIPTORS = Options(), Options(loads="descriptors")

# What examples and random programs do not have, by what it is about.
PROGRAMS = {
    "powers": """program p(X: f32[m, n], Y: f32[n]) -> (A: f32[m], B: f32[m, n], C: f32[m, n], D: f64[m, n]) {
    A = sum[n](abs(X) ** Y)
    B = 2 ** X + 0.3 ** Y
    C = X ** floor(Y)
    D = f64(size(n)) ** (f64(X) * 0.1) + (-relu(X)) ** (-3)
}
""",
    "whole numbers": """program p(I: i32[m, n], J: i8[m, n], F: f32[m, n])
    -> (A: i32[m], B: i32[m], C: i32[m], D: f32[m, n], E: i32[m, n]) {
    A = max[n](-16777217 - abs(I))
    B = sum[n](16777217 + I) + min[n](J * J + 16777217)
    C = sum[n](where(F > 0, i32(F * 4), 3))
    D = F * i32(2.7) + i8(size(n)) + where(size(n) > 3, F, 0)
    E = I - (size(n) - 1)
}
""",
    "hyperbolic": """program p(X: f64[m, n]) -> (A: f64[m, n], B: f64[m, n]) {
    A = tanh(X)
    B = tanh(X * 0.1)
}
""",
    "conditions": """program p(X: f32[m, n]) -> A: f32[m] {
    near = floor(index(n) / 4) <= floor(index(m) / 4) and relu(index(n) - 3) * 0.5 <= index(m)
    A = logsumexp[n](where(near and tanh(index(n) * 0.1) < 0.9 and index(n) < size(n) / sqrt(size(m)), X, -inf))
}
""",
    "scales": """program p(X: f32[m, n], Y: f32[n])
    -> (A: f32[m], B: f32[m], C: f32[m], D: f32[m], E: f32[m], F: f32[m], G: f32[m]) {
    S = X * 20 / sqrt(size(n))
    A = logsumexp[n](S * 7)
    B = sum[n](S * softmax[n](S))
    C = sum[n](exp(X * -2)) + max[n](S)
    D = logsumexp[n](where(X > 0, S, X * 5))
    E = dot[n](softmax[n](where(index(n) <= index(m), S + Y * 3, -inf)), Y)
    F = max[n](exp(max(S, 0) * 0.01)) + sum[n](exp(S) / sum[n](exp(X * 0.5)))
    G = logsumexp[n](X * (0 * size(m)))
}
""",
    "decode": """program decode(Q: f16[kv, g, m, d=16], K: f16[kv, n, d], V: f16[kv, n, e=24]) -> O: f16[kv, g, m, e] {
    P = softmax[n](where(index(n) < size(n) - 3, dot[d](Q, K) * 4, -inf))
    O = dot[n](P, V)
}
""",
    "pieces": """program pieces(A: f16[m, k], B: f16[k, n], c: f32[n], R: f16[m, n])
    -> (Y: f16[m, n], Z: f32[n, m], H: f32[m, n]) {
    H = dot[k](A, B)
    L = log(sum[k](A * A))
    Y = gelu(H + c) * L + R
    Z = where(index(n) <= index(m), tanh(H) * R, c) + tanh(L)
}
""",
    "names": """program range(tuple: f32[m, n], float: f32[n]) -> max: f32[m] {
    max = logsumexp[n](where(index(n) <= index(m), tuple * float, -inf))
}
""",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case: what was wrong, or ""."""

    name: str
    problem: str
    launches: int


def snapshots(derivation: Derivation) -> Iterator[Program]:
    """What may be emitted of a derivation, the last snapshot first."""
    yield from reversed(derivation.snapshots)
    yield with_sums_in_loops(derivation.unfused)


def source(
    derivation: Derivation, sizes: Mapping[str, int], tiles: Mapping[str, int], options: Options = POINTERS
) -> Source:
    """The source of the last snapshot that can be written."""
    every = dict.fromkeys((f"kernel{number}" for number in range(100)), options)
    for snapshot in snapshots(derivation):
        block = emitted(snapshot)
        try:
            blocks, extents = triton_tiles(block, tiles), complete_sizes(block, sizes)
            return triton_source.emit(block, blocks, extents, options=every)
        except Unsupported:
            continue
    raise AssertionError("no snapshot can be written")


def as_tensor(array: np.ndarray[Any, np.dtype[Any]]) -> torch.Tensor:
    """An array as a tensor of the same type."""
    bits = {"bfloat16": np.int16, "float8_e4m3fn": np.uint8, "float8_e5m2": np.uint8}
    if array.dtype.name in bits:
        return torch.from_numpy(np.array(array).view(bits[array.dtype.name])).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(np.array(array))


def launch(made: Source, program: ArrayProgram, tensors: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs by name."""
    results = triton_runtime.load(made.text, made.launcher)(*tensors)
    return results if isinstance(results, dict) else {program.outputs[0].argument.name: results}


def judged(made: Source, program: ArrayProgram, *data: Arrays) -> str:
    """What is wrong with the outputs of a file on some arrays, pooled over all of them, or ""."""
    runs = [launch(made, program, [as_tensor(arrays[given.name]) for given in program.inputs]) for arrays in data]
    references, baselines = ([means(program, arrays) for arrays in data] for means in (evaluate, baseline))
    for result in program.outputs:
        name, dtype = result.argument.name, result.argument.dtype
        got = [as_numbers(run[name]) for run in runs]
        if any(one.shape != reference[name].shape for one, reference in zip(got, references, strict=True)):
            return f"output {name}: another shape"
        exact, unfused = (np.stack([one[name] for one in every]) for every in (references, baselines))
        pooled = len(data) if got[0].size >= 1000 else 1
        found = compare(np.stack(got), exact, unfused, dtype, computed_dtype(program, result), pooled)
        if not found.ok:
            return f"output {name}: {found}"
    return ""


def as_numbers(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """A tensor as an array that holds its numbers exactly."""
    return tensor.double().numpy() if tensor.dtype.is_floating_point else tensor.numpy()


# Cases


def run_example(
    text: str, name: str, dtype: str, families: tuple[str, ...], options: Options = POINTERS
) -> Iterator[Outcome]:
    """One program of the examples: with features whole and with everything cut, in some families of data."""
    program = parse_all(text, f"{name}.blk", dtype)[name]
    asked = {dim.name: dim.size or SIZES.get(dim.name, 17) for dim in program.dims if dim.same_as is None}
    sizes = driver.default_sizes(program, asked)
    whole = driver.whole_dimensions(program, sizes, {}, {})
    for form in dict.fromkeys((whole, frozenset[str]())):
        derivation = fuse(lower(program, form))
        made = source(derivation, sizes, {dim: 1 if dim in BATCHES else 16 for dim in sizes}, options)
        for family in families if form == whole else families[:1]:
            title = f"{name}, {dtype}, {'whole' if form == whole else 'cut'}, {family}"
            yield Outcome(title, judged(made, program, data(program, sizes, family)), len(made.functions))


def run_text(title: str, text: str) -> Iterator[Outcome]:
    """A program with n whole and with everything cut, or with loops over n in chunks if it is for that."""
    program = driver.load_program(text)
    given = {"m": 11, "n": 23} | ({"m": 3} if title in IN_CHUNKS else {})
    given = {dim: size + 7 for dim, size in BLOCKS[title].items()} if title in BLOCKS else given
    sizes = driver.default_sizes(program, given)
    for whole in (frozenset("de" if title in IN_CHUNKS else "n"), frozenset[str]()):
        derivation = fuse(lower(program, whole))
        if title in IN_CHUNKS:
            derivation = split(derivation, {"n"})
        dims = {dim for snapshot in derivation.snapshots for dim in snapshot.dims}
        tiles = {dim.name: 12 if dim.chunks_of else 4 for dim in dims} | BLOCKS.get(title, {})
        made = source(derivation, sizes, tiles)
        name = f"{title}, {'n whole' if 'n' in whole else 'in chunks' if title in IN_CHUNKS else 'cut'}"
        yield Outcome(name, judged(made, program, random_arrays(program, sizes, seed=7)), len(made.functions))


def run_random(seed: int) -> Outcome:
    """A random program with random whole dimensions and blocks.

    Where the exact result is about 0, the unfused program may hit it by luck: its two terms were rounded alike. So what
    is outside on one draw is judged on many, as the error rule pools them.
    """
    text = random_program(seed)
    program = driver.load_program(text)
    sizes = driver.default_sizes(program, random_sizes(seed, program))
    draw = random.Random(f"triton {seed}")
    share = draw.choice((0.0, 0.4))
    whole = frozenset(dim for dim in sorted(sizes) if draw.random() < share)
    made = source(fuse(lower(program, whole)), sizes, {dim: draw.choice((1, 2, 4, 16)) for dim in sorted(sizes)})
    problem = judged(made, program, random_arrays(program, sizes, seed=seed))
    if problem:
        problem = judged(made, program, *(random_arrays(program, sizes, seed=seed + at) for at in range(DRAWS)))
    return Outcome(f"seed {seed}", problem, len(made.functions))


def run_in_parts(title: str, text: str, sizes: Mapping[str, int], dtype: str | None = None) -> Outcome:
    """A program cut into parts, on random arrays."""
    program = driver.load_program(text, None, dtype)
    extents = driver.default_sizes(program, sizes)
    made = next(in_parts(program, extents))
    problem = judged(made.source, program, random_arrays(program, extents, seed=5))
    return Outcome(f"{title}, {len(made.parts)} parts", problem, len(made.source.functions))


def outcomes(options: argparse.Namespace) -> Iterator[Outcome]:
    """All that is asked for."""
    for case in options.cases.split():
        only, dtype, families, *loads = case.split("/")
        for text, name in example_programs(only):
            yield from run_example(text, name, dtype, tuple(families.split(",")), DESCRIPTORS if loads else POINTERS)
    for title in options.programs.split(",") if options.programs else ():
        yield from run_text(title, PROGRAMS[title])
    for dtype in options.dtypes.split(",") if options.dtypes else ():
        for text, name in example_programs(options.only):
            loads = DESCRIPTORS if options.descriptors else POINTERS
            yield from run_example(text, name, dtype, tuple(options.families.split(",")), loads)
    for seed in range(options.start, options.start + options.random):
        yield run_random(seed)
    if options.parts:
        yield run_in_parts("names", NAMES, {"b": 2, "m": 11, "k": 5, "n_0": 7})
    for case in options.parts.split(",") if options.parts else ():
        name, _, dtype = case.partition(":")
        text = (EXAMPLES / f"{name}.blk").read_text()
        dims = {dim.name for dim in driver.load_program(text).dims if dim.same_as is None and dim.size is None}
        yield run_in_parts(case, text, {dim: SMALL.get(dim, 19) for dim in dims}, dtype or "f32")
    for seed in range(options.start + 100, options.start + 100 + options.random_parts):
        text = random_program(seed)
        program = driver.load_program(text)
        if len(operators(program)) > 1:
            yield run_in_parts(f"seed {seed}", text, random_sizes(seed, program))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", default="", help="of the examples, separated by commas; none without it")
    parser.add_argument("--only", default="", help="only examples with this in their name")
    parser.add_argument("--cases", default="", help="instead: name/type/families[/descriptors], separated by blanks")
    parser.add_argument("--descriptors", action="store_true", help="load tiles of examples by descriptors")
    parser.add_argument("--programs", default="", help=f"of {','.join(PROGRAMS)}, separated by commas")
    parser.add_argument("--families", default=",".join(FAMILIES), help="of data, separated by commas")
    parser.add_argument("--random", type=int, default=0, help="how many random programs")
    parser.add_argument("--parts", default="", help="files of the examples to cut into parts: name or name:type,...")
    parser.add_argument("--random-parts", type=int, default=0, help="how many random programs that are cut into parts")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--report", type=Path, help="write a summary to a file")
    parser.add_argument("--json", action="store_true", help="print every outcome as a line of JSON")
    options = parser.parse_args()
    start = time.perf_counter()
    found = []
    for outcome in outcomes(options):
        found.append(outcome)
        if options.json:
            print(json.dumps([outcome.name, outcome.problem, outcome.launches]), flush=True)
        elif outcome.problem:
            print(f"{outcome.name}: {outcome.problem}", flush=True)
    bad = [outcome for outcome in found if outcome.problem]
    asked = " ".join(sys.argv[1:]).partition(" --report")[0]
    summary = (
        f"command     python tests/triton_cases.py {asked}\n"
        f"cases       {len(found)}, {sum(outcome.launches for outcome in found)} launches\n"
        f"outside     {len(bad)} of the error rule{''.join(f', {outcome.name}' for outcome in bad)}\n"
        f"versions    Python {platform.python_version()}, torch {torch.__version__}, Triton {triton.__version__}, "
        f"NumPy {np.__version__}\n"
        f"date        {datetime.now(UTC):%Y-%m-%d}, {time.perf_counter() - start:.0f} s\n"
    )
    if not options.json:
        print(summary, end="")
    if options.report is not None:
        options.report.write_text(summary)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
