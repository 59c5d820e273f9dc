"""The generator of random programs: valid, finite, well conditioned, deterministic and varied; and the minimiser.

That every operator and form occurs is a quota of the random run in `test_meaning.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from generator import random_program, random_sizes, random_tiles
from minimiser import minimise

from blockc.data import random_arrays, sizes_of
from blockc.language import parse
from blockc.meaning import baseline, compare, evaluate

SEEDS = range(180)


def test_programs_are_valid_and_finite() -> None:
    for seed in SEEDS:
        source = random_program(seed)
        program = parse(source)
        sizes = random_sizes(seed, program)
        arrays = random_arrays(program, sizes, seed)
        assert sizes_of(program, arrays) == sizes, source
        outputs = evaluate(program, arrays)
        for name, array in outputs.items():
            assert np.isfinite(array).all() and np.max(np.abs(array), initial=0) < 1e3, (seed, name, sizes, source)
        unfused = baseline(program, arrays)
        for result in program.outputs:
            name, dtype = result.argument.name, result.argument.dtype
            assert compare(unfused[name], outputs[name], unfused[name], dtype).ok, (seed, name, source)


def test_programs_are_well_conditioned() -> None:
    for seed in SEEDS:
        source = random_program(seed)
        program = parse(source)
        arrays = random_arrays(program, random_sizes(seed, program), seed)
        noise = np.random.default_rng(seed)
        wide = {
            name: array.astype(np.float64) if array.dtype.kind not in "ib" else array for name, array in arrays.items()
        }
        nudged = {
            name: array * (1 + 1e-14 * noise.standard_normal(array.shape)) if array.dtype.kind == "f" else array
            for name, array in wide.items()
        }
        exact, moved = evaluate(program, wide), evaluate(program, nudged)
        for name, array in exact.items():
            error = np.max(np.abs(moved[name] - array), initial=0)
            assert error <= 1e-11 * np.max(np.abs(array), initial=0) + 1e-13, (seed, name, source)


def test_programs_vary() -> None:
    programs = [parse(random_program(seed)) for seed in SEEDS]
    ranks = {max(len(node.shape) for node in program.nodes) for program in programs}
    assert {2, 3, 4} <= ranks
    assert {len(program.outputs) for program in programs} == {1, 2, 3}
    arguments = [argument for program in programs for argument in program.inputs]
    assert {"f64", "f32", "f16", "bf16", "f8e4m3", "f8e5m2", "i32", "i8", "bool"} == {arg.dtype for arg in arguments}
    assert any(len(axis) > 1 for argument in arguments for axis in argument.axes)
    assert any(argument.axes == () for argument in arguments)
    assert any(dim.size is not None for program in programs for dim in program.dims)
    sizes = [size for seed, program in enumerate(programs) for size in random_sizes(seed, program).values()]
    assert set(sizes) == set(range(8))


def test_statements_are_few() -> None:
    lengths = [random_program(seed).count("\n    ") for seed in SEEDS]
    assert min(lengths) >= 3 and max(lengths) <= 16


def test_sizes_keep_what_the_program_fixes() -> None:
    program = parse("program p(X: f32[m, d=5], M: f32[m, n]) -> O: f32[m] { O = max[n](dot[d](X, X[m -> n]) + M) }")
    for seed in range(100):
        sizes = random_sizes(seed, program)
        assert sizes["d"] == 5 and sizes["m"] == sizes["n"] >= 1
        tiles = random_tiles(seed, sizes)
        assert all(1 <= tiles[dim] <= sizes[dim] + 1 for dim in sizes)


def test_programs_do_not_depend_on_the_hash_seed() -> None:
    code = "from generator import *; from blockc.language import parse; import hashlib\n" + (
        "text = [random_program(s) for s in range(60)]\n"
        "sizes = [sorted(random_sizes(s, parse(t)).items()) for s, t in enumerate(text)]\n"
        "print(hashlib.sha256(repr((text, sizes)).encode()).hexdigest())"
    )
    here = Path(__file__).parent
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": f"{here.parent}:{here}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(digests) == 1


def test_minimise_shrinks_a_planted_failure() -> None:
    source = """program fuzz(A: f32[m, d], B: f32[d, n], C: f32[n, e]) -> (O1: f32[m, e], O2: f32[m]) {
    T1 = dot[d](A, B) / sqrt(size(d))
    T2 = exp(T1 - max[n](T1))
    T3 = T2 / sum[n](T2)
    T4 = tanh(T3 + 0.5) * 2
    T5 = dot[n](T4, C)
    T6 = mean[d](A)
    O1 = T5
    O2 = T6
}
"""

    def fails(text: str) -> bool:
        operators = [node.op for node in parse(text).nodes]
        return "tanh" in operators and "exp" in operators

    smaller = minimise(source, fails)
    assert fails(smaller)
    assert smaller.count(" = ") <= 3 and len(smaller) < 110, smaller


def test_minimise_keeps_what_matters() -> None:
    for seed in range(8):
        source = random_program(seed)
        operator = parse(source).nodes[-1].op

        def fails(text: str, operator: str = operator) -> bool:
            return any(node.op == operator for node in parse(text).nodes)

        smaller = minimise(source, fails)
        assert fails(smaller) and len(smaller) <= len(source)
