"""Which kernels the operators of the source ended in: by hand, for the examples and for random programs.

What was removed is removed in the reference too: the results are the same with any numbers in its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from oracle import NORMAL_RUN, example, example_names, random_case

from blockc import driver, meaning
from blockc.data import random_arrays
from blockc.inspector.origins import Origins, neighbours, operators_of, origins
from blockc.ir.array_program import Argument, ArrayProgram, Node
from blockc.ir.block import Apply, kernels, walk
from blockc.language import parse
from blockc.machines.loading import load_machine
from blockc.partition import Partition, partition


def cut(program: ArrayProgram, target: str = "cpu", sizes: Mapping[str, int] | None = None) -> Partition:
    """The parts of a program for a target."""
    return partition(program, load_machine(target), driver.default_sizes(program, sizes or {}), {})


@cache
def of_example(name: str, target: str) -> tuple[Partition, Origins]:
    """The parts of an example, and where its operators are."""
    found = cut(parse(example(name)), target)
    return found, origins(found)


def of_text(body: str, target: str = "cpu", sizes: Mapping[str, int] | None = None) -> Origins:
    """The origins of a program."""
    return origins(cut(parse(f"program p{body}\n"), target, sizes))


RANDOM = NORMAL_RUN[::4]


@cache
def of_random(seed: int) -> tuple[Partition, Origins]:
    """The same for a random program, with the dimensions whole that are whole elsewhere in the tests."""
    case = random_case(seed)
    tiles = {dim: None if dim in case.whole else tile for dim, tile in case.tiles.items()}
    found = partition(case.program, load_machine("cpu"), case.sizes, tiles)
    return found, origins(found)


# By hand


def test_attention_is_one_kernel_and_its_steps_join_neighbours() -> None:
    _, found = of_example("attention", "h200")
    assert found.kernels == 1 and {operator.kernels for operator in found.operators} == {frozenset({0})}
    stage = found.joined_by("S.1", "S")
    assert stage is not None and stage.step is not None and stage.step.rule == "fuse_consecutive_maps"
    assert found.stages[0].step is None and len({*found.stages[0].kernels.values()}) > 1
    for pair in found.neighbours:
        assert [found.joined_by(*pair)] == [stage for stage in found.stages if pair in stage.joined]


ROWS = {"m": 256, "n": 4096, "e": 4096}
NORM = """(X: f32[m, n], gain: f32[n], W: f32[n, e]) -> Y: f32[m, e] {
    A = mean[n](X)
    C = X - A
    N = C * rsqrt(mean[n](C * C) + 1e-5) * gain
    Y = dot[n](N, W)
}"""


def test_what_is_in_two_parts_is_in_two_kernels() -> None:
    found = of_text(NORM, "toy", ROWS)
    assert {name: set(found.by_name[name].kernels) for name in ("A", "N", "Y")} == {"A": {0}, "N": {0}, "Y": {1}}
    assert ("N", "Y") in found.neighbours and found.joined_by("N", "Y") is None and not found.together("N", "Y")
    assert found.together("A", "N") == {0} and found.kernels == 2


def test_names_do_not_matter() -> None:
    names = {"A": "Q", "C": "A", "N": "C", "X": "N", "W": "V", "Y": "B", "m": "z", "n": "m", "e": "a"}
    renamed = re.sub(r"\b[A-Zmne]\b", lambda found: names[found[0]], NORM)
    sizes = {names[dim]: size for dim, size in ROWS.items()}
    found = of_text(NORM, "toy", ROWS), of_text(renamed, "toy", sizes)
    places = [[sorted(operator.kernels) for operator in one.operators] for one in found]
    assert places[0] == places[1]


def test_a_maximum_that_cancels_is_removed() -> None:
    found = of_text("""(X: f32[m, n=4096], V: f32[n=4096, e]) -> Y: f32[m, e] {
        M = max[n](X)
        D = X - M
        E = exp(D)
        Y = dot[n](E / sum[n](E), V)
    }""")
    assert not found.by_name["M"].kernels and "undone" in found.by_name["M"].removed
    assert not found.by_name["D"].kernels and "`X` in its place" in found.by_name["D"].removed
    assert found.by_name["E"].kernels == found.by_name["Y"].kernels != frozenset()
    stage = found.removed_by("M")
    assert stage is not None and stage.step is not None and "M" not in stage.kernels
    assert found.removed_by("E") is None


def test_equal_operators_are_in_the_same_kernels() -> None:
    found = of_text("""(X: f32[m, n], V: f32[n, e]) -> (Y: f32[m, e], Z: f32[m]) {
        A = exp(0.1 * X)
        B = exp(0.1 * X)
        Y = dot[n](A, V)
        Z = sum[n](B)
    }""")
    assert found.by_name["A"].kernels == found.by_name["B"].kernels != frozenset()


def test_what_no_output_needs_is_removed() -> None:
    found = of_text("""(X: f32[m, n]) -> Y: f32[m, n] {
        A = sum[n](X)
        Y = exp(X)
    }""")
    assert found.by_name["A"].removed == "no output needs it" and not found.by_name["A"].kernels


def test_a_product_and_a_sum_are_one_contraction() -> None:
    found = of_text("""(X: f32[m, k], W: f32[n, k]) -> Y: f32[m, n] {
        A = X * W
        Y = sum[k](A)
    }""")
    assert found.by_name["A"].kernels == found.by_name["Y"].kernels == frozenset({0})
    assert found.stages[0].joined == (("A", "Y"),)


# For every program


def check_cover(partition: Partition, found: Origins) -> None:
    """Every operator is in a kernel, or is removed; who reads another runs later; every kernel is of some operator."""
    assert [operator.name for operator in found.operators] == [n.name for n in operators_of(partition.program)]
    for operator in found.operators:
        assert bool(operator.kernels) != bool(operator.removed), operator
        assert all(0 <= kernel < found.kernels for kernel in operator.kernels), operator
        if not operator.kernels and operator.part >= 0:
            assert found.removed_by(operator.name) is not None, operator
    for first, second in found.neighbours:
        made, used = found.by_name[first].kernels, found.by_name[second].kernels
        assert not made or not used or min(made) <= min(used), (first, second)
        assert bool(found.together(first, second)) == (found.joined_by(first, second) is not None), (first, second)
    at = 0
    for part in partition.parts:
        chosen = part.plan.chosen
        for kernel in kernels(chosen.derivation.snapshots[chosen.choice.snapshot]):
            inside = [o.name for o in found.operators if at in o.kernels]
            copies = all(not isinstance(n, Apply) or n.op in ("broadcast", "cast") for n in walk(kernel))
            assert inside or copies, at
            at += 1
    assert at == found.kernels


def check_removed(program: ArrayProgram, found: Origins, sizes: Mapping[str, int]) -> int:
    """The results of the reference with random numbers in place of what was removed, or what is said to do as well."""
    arrays = random_arrays(program, sizes, 1)
    expected = meaning.evaluate(program, arrays)
    checked = 0
    for operator in found.operators:
        if operator.removed and operator.part >= 0:
            nodes = {node.name: node for node in program.nodes}
            node = nodes[operator.name]
            instead = next((arg for arg in node.args if f"`{arg}`" in operator.removed), None)
            other = with_input(program, node) if instead is None else without_node(program, node, instead)
            more = {} if instead is not None else {node.name: random_arrays(other, sizes, 2)[node.name] * 0.3}
            for name, array in meaning.evaluate(other, {**arrays, **more}).items():
                scale = np.max(np.abs(expected[name]), initial=1e-3, where=np.isfinite(expected[name]))
                np.testing.assert_allclose(array, expected[name], rtol=1e-9, atol=1e-9 * scale, err_msg=operator.name)
            checked += 1
    return checked


def with_input(program: ArrayProgram, node: Node) -> ArrayProgram:
    """The program with an operator's result as one more input."""
    argument = Argument(node.name, "f64", tuple((dim,) for dim in node.shape))
    given = Node(node.name, "input", (), (), node.shape, "f64")
    nodes = (given, *(other for other in program.nodes if other.name != node.name))
    return replace(program, inputs=(*program.inputs, argument), nodes=nodes)


def without_node(program: ArrayProgram, node: Node, instead: str) -> ArrayProgram:
    """The program with an operand in place of an operator."""
    nodes = tuple(
        replace(other, args=tuple(instead if arg == node.name else arg for arg in other.args))
        for other in program.nodes
        if other.name != node.name
    )
    outputs = tuple(replace(r, node=instead if r.node == node.name else r.node) for r in program.outputs)
    return replace(program, nodes=nodes, outputs=outputs)


def small(program: ArrayProgram) -> dict[str, int]:
    """Small sizes, as far as none are declared."""
    open_dims = {dim.name: 6 for dim in program.dims if dim.size is None}
    return driver.default_sizes(program, open_dims)


@pytest.mark.parametrize("target", ["cpu", "toy"])
def test_every_operator_of_the_examples_is_somewhere(target: str) -> None:
    names = example_names() if target == "cpu" else ["layernorm_matmul", "cross_entropy", "mlp"]
    for name in names:
        found, where = of_example(name, target)
        check_cover(found, where)
        check_removed(found.program, where, small(found.program))


def test_every_operator_of_random_programs_is_somewhere() -> None:
    removed = 0
    for seed in RANDOM:
        found, where = of_random(seed)
        check_cover(found, where)
        if min(found.sizes.values()) > 0:
            removed += check_removed(found.program, where, found.sizes)
    assert removed > 0


def test_neighbours_are_seen_through_renames_and_numbers() -> None:
    program = parse("program p(X: f32[m, d]) -> Y: f32[m, n] {\n A = exp(X)\n Y = dot[d](A, A[m -> n] * size(d))\n}\n")
    product = next(node.name for node in program.nodes if node.op == "mul")
    assert set(neighbours(program)) == {("A", product), ("A", "Y"), (product, "Y")}
