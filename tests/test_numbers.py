"""Numbers: every kernel is within the error rule on adversarial data, and puts NaN and infinities where they belong.

The oracle is `numeric_oracle.py`, which also runs longer campaigns. The end of this file breaks kernels on purpose and
shows that the oracle sees it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from numeric_oracle import (
    FAMILIES,
    MEANS,
    Arrays,
    Family,
    Kernel,
    built,
    failures,
    judge,
    judge_on,
    kernels,
    launch_guarded,
)
from numeric_subjects import (
    BEYOND,
    CENTRED,
    COARSE,
    LENGTH,
    OTHERS,
    ROWS,
    SOFTMAX_LIKE,
    TILES,
    Subject,
    examples,
    ordinary,
    subject,
)
from selection import in_turn

from blockc import meaning
from blockc.accuracy import same_nonfinite
from blockc.data import numpy_dtype, random_arrays, sizes_of
from blockc.ir.block import Program
from blockc.ir.interpret import interpret
from blockc.passes.choose import compose
from blockc.passes.fuse import fuse
from blockc.passes.lower import lower
from blockc.passes.stabilize import stabilize

BY_NAME = {family.name: family for family in (*FAMILIES, *MEANS)}
EXAMPLES = examples("f32")
LOGITS = ("std 1000", "near -1e4", "an outlier")
BETWEEN = ("std 10", "std 100")  # logits that are neither ordinary nor extreme: for a few programs, and in campaigns
EVERYWHERE = ("N(0, 1)",)  # for every example
IN_TURN = [family.name for family in FAMILIES if family.name not in (*EVERYWHERE, *BETWEEN)]


def named(names: tuple[str, ...]) -> list[Family]:
    return [BY_NAME[name] for name in names]


# The error rule


def families_of(place: int) -> list[Family]:
    """What an example is judged on: ordinary numbers, and two of the other families in turn."""
    return named((*EVERYWHERE, *(IN_TURN[(2 * place + turn) % len(IN_TURN)] for turn in range(2))))


@pytest.mark.parametrize(("place", "name"), list(enumerate(EXAMPLES)))
def test_examples(place: int, name: str) -> None:
    for family in families_of(place):
        assert not failures(judge(EXAMPLES[name], family)), family.name


def test_every_family_is_some_examples() -> None:
    judged = {family.name for place in range(len(EXAMPLES)) for family in families_of(place)}
    assert judged | set(BETWEEN) == {family.name for family in FAMILIES}


# `numeric_oracle.py` has them with all data.
@pytest.mark.parametrize(("name", "dtype"), in_turn(EXAMPLES, ["f16", "bf16", "f64"], of=3))
def test_examples_in_other_types(name: str, dtype: str) -> None:
    for family in named(("N(0, 1)", "near the f16 maximum") if dtype == "f16" else ("N(0, 1)",)):
        assert not failures(judge(examples(dtype)[name], family)), family.name


@pytest.mark.parametrize("family", named(BETWEEN), ids=lambda family: family.name)
@pytest.mark.parametrize("name", ["attention", "attention_lse", "cross_entropy", "linear_attention"])
def test_ordinary_logits(name: str, family: Family) -> None:
    assert not failures(judge(EXAMPLES[name], family))


@pytest.mark.parametrize(("name", "family"), in_turn(SOFTMAX_LIKE, LOGITS, of=3))
def test_large_logits_in_every_spelling(name: str, family: str) -> None:
    assert not failures(judge(ordinary(SOFTMAX_LIKE)[name], BY_NAME[family]))


@pytest.mark.parametrize(("place", "name"), list(enumerate(OTHERS)))
def test_other_programs(place: int, name: str) -> None:
    odd = ("near -1e4", "zeros", "+-1e2", "an outlier")[place % 4]
    for family in named(("N(0, 1)", odd)):
        assert not failures(judge(ordinary(OTHERS)[name], family)), family.name


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", [name for name in OTHERS if name.startswith("divergence")])
def test_a_divergence_of_two_rows_does_not_depend_on_what_they_have_in_common(name: str, which: int) -> None:
    assert not failures(judge(ordinary(OTHERS)[name], BY_NAME["mean/std 1000"], which=which))


@pytest.mark.parametrize("family", [*MEANS, BY_NAME["constant rows"]], ids=lambda family: family.name)
@pytest.mark.parametrize("name", CENTRED)
def test_rows_far_from_zero(name: str, family: Family) -> None:
    assert not failures(judge(ordinary(CENTRED)[name], family))


HEADS = (
    "program p(Q: f32[m, d], K: f32[n, d], V: f32[n, e]) -> O: f32[m, e] "
    "{ O = dot[n](softmax[n](dot[d](Q, K) / sqrt(size(d))), V) }"
)
LENGTHS = (0, 1, 2, 3, 7, 8, 9, 31, 4097)  # around a block of 8, a prime, and many blocks with a short last one


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["attention", "rmsnorm, product", "swiglu, product", "log-sum-exp"])
def test_lengths_of_what_is_reduced(name: str, length: int) -> None:
    text = {**SOFTMAX_LIKE, **OTHERS}[name]
    tiles = {**TILES, "n": 8 if length < 100 else 256}
    chosen = subject(text, {"m": 17 if length > 100 else 251, "n": length, "e": 4}, tiles)
    assert not failures(judge(chosen, BY_NAME["std 100"], draws=32 if length < 100 else 4))


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_of_what_is_kept(length: int) -> None:
    tiles = {**TILES, "m": 8 if length < 100 else 512}
    chosen = subject(SOFTMAX_LIKE["attention"], {"m": length, "n": 5, "e": 4}, tiles)
    assert not failures(judge(chosen, BY_NAME["std 100"], draws=32 if length < 100 else 4))


@pytest.mark.parametrize("size", [8, 46, 80, 96, 192, 512])
def test_head_sizes(size: int) -> None:
    rows = max(5, -(-1000 // size))
    chosen = subject(HEADS, {"m": rows, "n": 27, "d": size, "e": size}, {"m": 64, "n": 16, "d": 64, "e": 64})
    assert not failures(judge(chosen, BY_NAME["std 10"]))


# Special rows


def special(name: str, row: str) -> tuple[Subject, Arrays]:
    """A softmax-like program with special rows in S."""
    rows = np.array(ROWS[row], np.float32)
    chosen = subject(SOFTMAX_LIKE[name], {"m": 5, "n": LENGTH, "e": 6}, {"m": 4, "n": 8, "e": 4})
    arrays = random_arrays(chosen.array_program, {**dict(chosen.sizes), "m": len(rows)}, seed=0)
    return chosen, arrays | {"S": rows}


def row_problem(chosen: Subject, arrays: Arrays, candidates: tuple[Kernel, ...], row: str) -> str:
    """What is wrong with the kernels' outputs on special rows, or "".

    NaN and infinities have to stand where they do in the reference; the other numbers are compared unless it is coarse.
    """
    program = chosen.array_program
    reference = meaning.evaluate(program, arrays)
    for kernel in candidates:
        outputs = kernel.launch(arrays, 1)
        for result in program.outputs:
            name = result.argument.name
            with np.errstate(over="ignore"):
                stored = reference[name].astype(numpy_dtype(result.argument.dtype))
            if not same_nonfinite(outputs[name], stored):
                return f"{kernel.name}, output {name}:\n{outputs[name]}\nis to be\n{stored}"
    return "" if row in COARSE else failures(judge_on(program, [arrays], candidates))


@pytest.mark.parametrize(
    ("name", "row"), [(name, row) for name in SOFTMAX_LIKE for row in ROWS if (name, row) not in BEYOND]
)
def test_special_rows(name: str, row: str) -> None:
    chosen, arrays = special(name, row)
    assert not row_problem(chosen, arrays, kernels(chosen), row)


ZEROS = [
    name
    for name, text in SOFTMAX_LIKE.items()
    if ("dot[n]" in text or "nothing" in name) and not set(name.split()) & {"softcap", "two"}
]


# Of nothing a softcap makes -30, and the negative of nothing is infinite: not zeros, but what the reference says.
@pytest.mark.parametrize("name", ZEROS)
def test_a_row_of_nothing_is_zeros(name: str) -> None:
    chosen, arrays = special(name, "all -inf")
    for kernel in kernels(chosen):
        assert np.all(kernel.launch(arrays, 1)["O"] == 0), kernel.name


# Memory


@pytest.mark.parametrize("name", [*EXAMPLES, *SOFTMAX_LIKE, *OTHERS])
def test_kernels_stay_inside_their_memory(name: str) -> None:
    """New memory full of NaN does not show in the results, guards stay as they are, and so do the inputs."""
    chosen = EXAMPLES[name] if name in EXAMPLES else ordinary({**SOFTMAX_LIKE, **OTHERS})[name]
    arrays = random_arrays(chosen.array_program, dict(chosen.sizes), seed=0)
    for kernel in kernels(chosen):
        expected = kernel.launch(arrays, 1)
        outputs, guards, given = launch_guarded(kernel, arrays)
        assert len(guards.regions) > len(arrays), "the kernel allocates through the guards"
        assert guards.damaged() == 0
        for output, array in expected.items():
            assert outputs[output].tobytes() == array.tobytes(), (kernel.name, output)
        for argument, array in arrays.items():
            assert given[argument].tobytes() == array.tobytes(), (kernel.name, argument)


def test_the_guards_see_a_write_outside_and_a_read_of_new_memory() -> None:
    chosen = ordinary(SOFTMAX_LIKE)["attention"]
    kernel = kernels(chosen)[-1]
    arrays = random_arrays(chosen.array_program, dict(chosen.sizes), seed=0)
    assert np.isfinite(launch_guarded(kernel, arrays)[0]["O"]).all()
    unset = built("no zeros", kernel.block, chosen, lambda text: re.sub(r"\n +v\d+\.fill\(0\.0\)", "", text))
    assert np.isnan(launch_guarded(unset, arrays)[0]["O"]).any()
    _, guards, _ = launch_guarded(kernel, arrays)
    for region in guards.regions:
        region[-1] = 0
    assert guards.damaged() == len(guards.regions)


@pytest.mark.parametrize("name", ["attention", "rmsnorm, product"])
def test_250_repeats_are_equal_bit_by_bit(name: str) -> None:
    chosen = subject({**SOFTMAX_LIKE, **OTHERS}[name], {"m": 211, "n": 67, "e": 16}, {"m": 32, "n": 16})
    arrays = random_arrays(chosen.array_program, dict(chosen.sizes), seed=0)
    kernel = kernels(chosen)[-1]
    expected = kernel.launch(arrays, 1)["O"].tobytes()
    for repeat in range(250):
        assert kernel.launch(arrays, 1 + repeat % 4)["O"].tobytes() == expected, repeat


# Deliberately broken kernels: what the oracle is for


def fused(chosen: Subject, whole: str) -> Program:
    """The first snapshot, before it is made safe."""
    return fuse(lower(chosen.array_program, frozenset(whole.split()))).snapshots[0]


def edited(chosen: Subject, whole: str, pattern: str, replacement: str) -> Kernel:
    """The kernel with a change to its source."""
    block = compose(stabilize(fused(chosen, whole)))
    sound = built("sound", block, chosen).source
    assert re.search(pattern, sound), f"{pattern} is not in\n{sound}"
    return built("broken", block, chosen, partial(re.sub, pattern, replacement))


def unmasked(chosen: Subject, whole: str) -> Kernel:
    """The block program with tiles of fixed sizes, filled up with zeros that no mask hides."""
    block = compose(stabilize(fused(chosen, whole)))

    def launch(arrays: Arrays, threads: int) -> Arrays:
        sizes = sizes_of(chosen.array_program, arrays)
        return interpret(block, arrays, sizes, dict(chosen.tiles), padding=0.0).outputs

    return Kernel("broken", block, "", launch)


ACCUMULATE = r"(\n +)np\.add\((\w+), \w+, out=\2\)"
SOFTMAX, NORM = ordinary(SOFTMAX_LIKE)["attention"], ordinary(OTHERS)["rmsnorm, product"]
BROKEN: dict[str, tuple[Subject, Callable[[], Kernel]]] = {
    "no shift": (SOFTMAX, lambda: built("broken", compose(fused(SOFTMAX, "e")), SOFTMAX)),
    "running maximum from 0": (SOFTMAX, lambda: edited(SOFTMAX, "e", r"fill\(-np\.inf\)", "fill(0.0)")),
    "eps left out": (NORM, lambda: edited(NORM, "e", r"\b1e-06\b", "0.0")),
    "f16 accumulation": (
        SOFTMAX,
        lambda: edited(SOFTMAX, "e", ACCUMULATE, r"\g<0>\1\2[...] = \2.astype(np.float16)"),
    ),
    "unmasked short tile": (SOFTMAX, lambda: unmasked(SOFTMAX, "e")),
}
# What must see it, of the families and the special rows.
SEEN_BY = {
    "no shift": {"std 1000", "near -1e4", "row all -1e30", "row the largest finite"},
    "running maximum from 0": {"near -1e4", "row all -1e30"},
    "eps left out": {"zeros"},
    "f16 accumulation": {"N(0, 1)", "std 1000", "constant rows"},
    "unmasked short tile": {"N(0, 1)", "near -1e4", "zeros"},
}


def seen_by(chosen: Subject, kernel: Kernel) -> list[str]:
    """The families and special rows under which a kernel is wrong."""
    found = [family.name for family in FAMILIES if failures(judge(chosen, family, candidates=(kernel,)))]
    if chosen is SOFTMAX:
        for row in ROWS:
            found += [f"row {row}"] if row_problem(*special("attention", row), (kernel,), row) else []
    return found


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_kernel_is_seen(name: str) -> None:
    """The tests of this file fail for it. `pytest -rP -k broken` prints by what each is seen."""
    chosen, broken = BROKEN[name]
    caught = seen_by(chosen, broken())
    print(f"{name:24} {', '.join(caught)}")
    assert SEEN_BY[name] <= set(caught), caught
