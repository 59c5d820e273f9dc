"""The interpreter: hand-written programs in IR text, short last blocks, monoids, counts of loads and stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracle import NORMAL_RUN, inputs, lowered, programs, random_case, random_derivation

from blockc.ir.interpret import interpret
from blockc.ir.monoids import MONOIDS, identity
from blockc.ir.ops import OPERATORS
from blockc.ir.sharing import Shared
from blockc.ir.text import parse_program

ROWS = """program rows
dim m
dim n
array X: f32[m, n]
array S: f32[m]
input X: slow f32[m][n](m, n) = X[m, n]
map m {
  x: slow f32[n](m, n) <- X
  map n {
    y: local f32(m, n) <- x
    s: local f32(m) = OP[n](y)
    => T: local f32(m) = MONOID(s)
  }
  => S: slow f32[m](m) = stack(T)
}
output S = S
"""


def rows(op: str, monoid: str) -> str:
    return ROWS.replace("OP", op).replace("MONOID", monoid)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3), (5, 7), (6, 6), (3, 0), (0, 4)])
@pytest.mark.parametrize("tile", [1, 2, 3, 10])
def test_reductions_over_blocks(m: int, n: int, tile: int) -> None:
    x = np.random.default_rng(m * 10 + n).standard_normal((m, n))
    for op, monoid, expected in (
        ("sum", "add", x.sum(1)),
        ("max", "max", x.max(1, initial=-np.inf)),
        ("min", "min", x.min(1, initial=np.inf)),
    ):
        run = interpret(parse_program(rows(op, monoid)), {"X": x}, {"m": m, "n": n}, {"m": tile, "n": tile})
        assert np.allclose(run.outputs["S"], expected, rtol=1e-12)
        assert run.loads == {"X": 4 * m * n} or (m * n == 0 and run.traffic == 4 * m)
        assert run.stores["S"] == 4 * m


def test_inputs_are_not_changed() -> None:
    x = np.arange(6.0).reshape(2, 3)
    interpret(parse_program(rows("sum", "add")), {"X": x}, {"m": 2, "n": 3}, {"m": 1, "n": 2})
    assert np.array_equal(x, np.arange(6.0).reshape(2, 3))


def test_repeated_loads_are_counted_for_every_block() -> None:
    text = """program p
dim m
dim n
array X: f16[n]
array O: f32[m, n]
input X: slow f16[n](n) = X[n]
map m uses X {
  map n {
    x: local f16(n) <- X
    i: local i32(m) = index[m]()
    o: local f32(m, n) = mul(x, i)
    => P: slow f32[n](m, n) = stack(o)
  }
  => O: slow f32[m][n](m, n) = stack(P)
}
output O = O
"""
    run = interpret(parse_program(text), {"X": np.ones(5)}, {"m": 7, "n": 5}, {"m": 2, "n": 3})
    assert run.loads == {"X": 4 * 5 * 2}, "4 blocks of m, 5 elements of 2 bytes"
    assert run.stores == {"O": 7 * 5 * 4}
    assert np.array_equal(run.outputs["O"], np.arange(7)[:, None] * np.ones(5))


def test_a_list_is_read_again_under_another_dimension() -> None:
    text = """program p
dim m
dim n
array X: f32[m]
array O: f32[m, n]
input X: slow f32[m](m) = X[m]
map m {
  x: local f32(m) <- X
  y: local f32(m) = mul(x, 2.0)
  => Y: slow f32[m](m) = stack(y)
}
Z: slow f32[n](n) = rename[m -> n](Y)
map m uses Z {
  a: local f32(m) <- Y
  map n {
    b: local f32(n) <- Z
    o: local f32(m, n) = sub(a, b)
    => P: slow f32[n](m, n) = stack(o)
  }
  => O: slow f32[m][n](m, n) = stack(P)
}
output O = O
"""
    x = np.arange(5.0)
    run = interpret(parse_program(text), {"X": x}, {"m": 5, "n": 5}, {"m": 2, "n": 3})
    assert np.array_equal(run.outputs["O"], 2 * x[:, None] - 2 * x)


def test_packed_axes_are_taken_apart() -> None:
    text = """program p
dim h whole
dim d whole
array X: f32[(h, d)]
array O: f32[d, h]
input X: local f32(h, d) = X[h, d]
o: local f32(h, d) = mul(X, 1)
output O = o
"""
    run = interpret(parse_program(text), {"X": np.arange(6.0)}, {"h": 2, "d": 3}, {})
    assert np.array_equal(run.outputs["O"], np.arange(6.0).reshape(2, 3).T)
    assert run.loads == {"X": 24} and run.stores == {"o": 24}


BROKEN = Path(__file__).parent / "data" / "broken" / "bases"


@pytest.mark.parametrize(("m", "e", "n"), [(5, 4, 7), (1, 1, 1), (4, 6, 3), (3, 2, 0), (2, 0, 4), (0, 3, 4)])
def test_lists_are_accumulated_item_by_item(m: int, e: int, n: int) -> None:
    program = parse_program((BROKEN / "accumulators.txt").read_text())
    draw = np.random.default_rng(m + 10 * n)
    shapes = {"X": (m, n), "V": (n, e), "W": (n, 3), "Y": (m, e)}
    x, v, w, y = (arrays := {name: draw.standard_normal(shape) for name, shape in shapes.items()}).values()
    for tile in (1, 2, 3, 10):
        run = interpret(program, arrays, {"m": m, "e": e, "n": n, "d": 3}, {"m": 2, "e": tile, "n": 3})
        blocks = [slice(start, start + 3) for start in range(0, n, 3)]
        t = np.array([x[:, block].max(1) for block in blocks]).reshape(len(blocks), m)
        largest = t.max(0, initial=-np.inf)
        scale = np.exp(t - np.where(np.isfinite(largest), largest, 0))
        p = np.array([x[:, block] @ v[block] for block in blocks]).reshape(len(blocks), m, e)
        s = np.array([x[:, block] @ w[block] for block in blocks]).reshape(len(blocks), m, 3)
        c = (p * scale[:, :, None]).sum(0)
        z = ((p[..., None] * s[:, :, None]) * scale[:, :, None, None]).sum(0)
        q = s.sum((0, 2))
        assert np.allclose(run.outputs["P"], c + y + p.sum(0) + (q + 2 * largest)[:, None])
        assert np.allclose(run.outputs["Z"], 2 * z.swapaxes(1, 2))
        assert np.array_equal(run.outputs["O"], np.broadcast_to(largest[:, None], (m, e)))


def test_a_list_accumulated_over_no_iterations_is_the_identity_and_never_moves() -> None:
    program = parse_program((BROKEN / "accumulators.txt").read_text())
    arrays = {"X": np.ones((2, 0)), "V": np.ones((0, 4)), "W": np.ones((0, 3)), "Y": np.ones((2, 4))}
    run = interpret(program, arrays, {"m": 2, "e": 4, "n": 0, "d": 3}, {"m": 1, "e": 3, "n": 3})
    assert run.stores["C"] == 0 and run.loads["C"] == 2 * 4 * 4, "only the loop behind reads it"
    assert np.all(run.outputs["O"] == -np.inf) and np.all(run.outputs["Z"] == 0)


def apply(op: str, *operands: float) -> float:
    return float(OPERATORS[op].meaning(*operands))


@pytest.mark.parametrize("name", MONOIDS)
def test_monoids_have_their_laws(name: str) -> None:
    monoid = MONOIDS[name]
    draw = np.random.default_rng(1)
    width = monoid.scalars + 2 * (monoid.degree + 1) if monoid.has_scalar else 1
    empty = tuple(identity(name, component) for component in range(width))
    with np.errstate(all="ignore"):
        for _ in range(50):
            a, b, c = (monoid.combine(apply, empty, tuple(row)) for row in 20 * draw.standard_normal((3, width)))
            left = monoid.combine(apply, monoid.combine(apply, a, b), c)
            right = monoid.combine(apply, a, monoid.combine(apply, b, c))
            assert np.allclose(left, right, rtol=1e-12)
            assert np.allclose(monoid.combine(apply, empty, a), a) and np.allclose(monoid.combine(apply, a, empty), a)
            assert not monoid.commutes or np.allclose(monoid.combine(apply, a, b), monoid.combine(apply, b, a))
        assert monoid.combine(apply, empty, empty) == empty


def test_runs_that_share_results_give_the_same() -> None:
    """Outputs to the bit and every count, for all programs of random derivations."""
    for seed in NORMAL_RUN[::4]:
        case = random_case(seed)
        arrays, shared = inputs(case), Shared()
        for stage, program in programs(case, random_derivation(seed)):
            alone = interpret(program, arrays, case.sizes, case.tiles)
            beside = interpret(program, arrays, case.sizes, case.tiles, shared=shared)
            assert (beside.loads, beside.stores) == (alone.loads, alone.stores), (seed, stage)
            for name, array in alone.outputs.items():
                assert np.array_equal(beside.outputs[name], array, equal_nan=True), (seed, stage)


def test_runs_of_other_sizes_share_nothing() -> None:
    case = random_case(0)
    program, shared = lowered(case), Shared()
    interpret(program, inputs(case), case.sizes, case.tiles, shared=shared)
    with pytest.raises(ValueError, match="share results"):
        interpret(program, inputs(case), case.sizes, dict.fromkeys(case.tiles, 99), shared=shared)
