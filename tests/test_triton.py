"""Triton kernels without a GPU: numbers from the interpreter, source that compiles for two GPUs, and what it says."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from click.testing import CliRunner
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_data import in_parts

from blockc import driver
from blockc.cli import cli
from blockc.codegen.triton_grid import Device, Order, order_lines, order_of
from blockc.codegen.triton_launch import identifier
from blockc.codegen.triton_scales import scale_of
from blockc.codegen.triton_source import emit
from blockc.codegen.triton_storage import Options
from blockc.codegen.triton_values import Array, Kernel
from blockc.errors import LimitError
from blockc.ir.array_program import ArrayProgram
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import Constant, Expression, Map, Size, kernels
from blockc.ir.machine import Machine
from blockc.ir.text import parse_program
from blockc.machines.loading import load_machine
from blockc.passes.lower import lower
from blockc.planning import search_plan
from blockc.triton_blocks import triton_tiles
from blockc.triton_kernels import (
    TritonKernels,
    emitted,
    launched_with,
    triton_kernels,
    with_blocks,
)

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"


CASES = (
    "causal_attention/f16/ordinary,large,strange/descriptors",
    "packed_documents/f32/ordinary",
    "attention_lse/bf16/ordinary,shifted",
    "layernorm_matmul/f32/ordinary,shifted,strange",
    "rmsnorm_swiglu/f16/ordinary,strange",
    "matmul_gelu/f16/large",
    "cross_entropy/f32/ordinary,shifted",
)
PROGRAMS = ("powers", "whole numbers", "hyperbolic", "conditions", "scales", "decode", "names", "pieces")
RANDOM = 4
PARTS, RANDOM_PARTS = "rmsnorm_swiglu,large/transformer_layer,mlp:bf16", 4


@cache
def interpreted() -> list[list[Any]]:
    """What `triton_cases.py` prints: the name of each case, what is wrong with it, and its launches."""
    asked = ["--cases", " ".join(CASES), "--programs", ",".join(PROGRAMS), "--random", str(RANDOM)]
    asked += ["--parts", PARTS, "--random-parts", str(RANDOM_PARTS)]
    command = [sys.executable, "-W", "ignore", str(HERE / "triton_cases.py"), "--json", *asked]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=HERE)
    assert "Traceback" not in found.stderr, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


def test_examples_are_inside_the_error_rule() -> None:
    """And random programs; `triton_cases.py` is the command for more."""
    assert len(interpreted()) > len(CASES) + 2 * len(PROGRAMS) + RANDOM
    assert [case for case in interpreted() if case[1]] == []


def test_programs_in_parts_are_run_part_by_part() -> None:
    """Their results are among those that are checked above."""
    found = {case[0].split(",")[0]: case[2] for case in interpreted() if case[0].endswith(" parts")}
    assert found["rmsnorm_swiglu"] >= 6 <= found["names"] and {"large/transformer_layer", "mlp:bf16"} <= found.keys()
    assert len(found) == 4 + RANDOM_PARTS


# Compiling for GPUs that are not there


@cache
def chosen(name: str, target: str) -> TritonKernels:
    """What is emitted for an example in f16."""
    program = driver.load_program(EXAMPLES / f"{name}.blk", None, "f16")
    sizes = driver.default_sizes(program, {dim.name: 1024 for dim in program.dims if dim.name in ("m", "n")})
    return triton_kernels(program, load_machine(target), sizes, {"m": 64} | ({"n": 64} if name == "attention" else {}))


@cache
def causal() -> str:
    """The source of causal attention with whole features."""
    program = driver.load_program(EXAMPLES / "causal_attention.blk")
    sizes = driver.default_sizes(program, {"m": 1024, "n": 1024})
    block = emitted(driver.derive(program, sizes, {}).snapshots[0])
    return emit(block, {"b": 1, "h": 1, "m": 64, "n": 32}, complete_sizes(block, sizes)).text


def loaded(made: TritonKernels, folder: Path) -> ModuleType:
    """A file of kernels as a module."""
    path = folder / "kernels.py"
    path.write_text(made.source.text)
    spec = importlib.util.spec_from_file_location("kernels", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(made: TritonKernels, folder: Path, capability: int) -> Iterator[Any]:
    """Every kernel of a file, compiled for a GPU of a capability, for contiguous tensors at aligned addresses."""
    module = loaded(made, folder)
    for function in made.source.functions:
        signature, constants = dict(function.parameters), dict(function.constants)
        attributes: dict[tuple[int], list[list[Any]]] = {}
        for position, name in enumerate(function.parameters):
            stride = made.source.strides.get(name)
            if stride == 1:
                signature[name], constants[name] = "constexpr", 1
            elif signature[name].startswith("*") or (stride is not None and stride % 16 == 0):
                attributes[position,] = [["tt.divisibility", 16]]
        source = ASTSource(getattr(module, function.name), signature, constants, attributes)
        options = {"num_warps": function.options.warps, "num_stages": function.options.stages}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize(
    ("name", "target", "capability", "instruction"),
    [
        ("attention", "h200", 90, "wgmma.mma_async"),
        ("attention", "a100", 80, "mma.sync"),
        ("layernorm_matmul", "h200", 90, "wgmma.mma_async"),
    ],
)
def test_examples_compile_for_tensor_cores(
    name: str, target: str, capability: int, instruction: str, tmp_path: Path
) -> None:
    limit = {"h200": 232_448, "a100": 166_912}[target]
    kernels = list(compiled(chosen(name, target), tmp_path, capability))
    assert any(instruction in kernel.asm["ptx"] for kernel in kernels)
    assert all(kernel.metadata.shared <= limit for kernel in kernels)


@cache
def described() -> TritonKernels:
    """Attention whose kernel loads tiles by descriptors."""
    ways = {"kernel0": Options(loads="descriptors")}
    return launched_with(chosen("attention", "h200"), load_machine("h200"), ways)


def test_descriptors_are_copied_by_the_gpu(tmp_path: Path) -> None:
    (kernel,) = compiled(described(), tmp_path, 90)
    assert "cp.async.bulk.tensor" in kernel.asm["ptx"] and "wgmma.mma_async" in kernel.asm["ptx"]
    assert "tensordesc<fp16[1, 1, 64, 64]>" in described().source.functions[0].parameters.values()
    assert "descriptor" not in chosen("attention", "h200").source.text, "only where it is asked for"


def test_a_tensor_that_no_descriptor_takes_is_loaded_by_pointers(tmp_path: Path) -> None:
    text = described().source.text
    assert re.search(r"if DESC0:\n.* = .*t0\.load\(.*\n +elif SHORT.*\n.* = tl\.load\(", text)
    assert "DESC0=t0 is not None" in text
    descriptor = loaded(described(), tmp_path)._descriptor
    good = torch.zeros(2, 32, 64, dtype=torch.float16)
    found = descriptor(good, [1, 16, 64])
    assert found.block_shape == [1, 16, 64] and list(found.shape) == [2, 32, 64]
    assert descriptor(good[:, :, 8:], [1, 16, 16]) is not None
    for bad in (
        good[:, :, 1:33],  # the address
        torch.zeros(2, 32, 65, dtype=torch.float16),  # the stride of rows
        good.transpose(1, 2),  # the last axis
        good[:1].expand(2, 32, 64),
        good[:0],
    ):
        assert descriptor(bad, [1, 16, 16]) is None


def test_loops_carry_one_type(tmp_path: Path) -> None:
    text = (
        "program p(I: i32[m, n], F: f32[m, n]) -> (A: i32[m], B: i32[m], C: f32[m]) {\n A = max[n](I)\n"
        " B = sum[n](where(F > 0, i32(F), 3))\n C = sum[n](2 ** F)\n}\n"
    )
    program = driver.load_program(text)
    made = triton_kernels(program, load_machine("h200"), driver.default_sizes(program, {"m": 50, "n": 1000}), {"n": 64})
    assert "for b" in made.source.text
    assert all(kernel.asm["ptx"] for kernel in compiled(made, tmp_path, 90))


# What the source says


def test_numbers_have_the_type_of_what_they_are_computed_with() -> None:
    program = driver.load_program("program p(I: i32[n]) -> A: i32[n] {\n A = I - (size(n) - 1)\n}\n")
    made = triton_kernels(program, load_machine("h200"), driver.default_sizes(program, {"k": 4096}), {})
    (function,) = made.source.functions
    assert function.parameters["h0"] == "i32" and "int(" in made.source.text


def test_the_source_imports_only_torch_and_triton() -> None:
    tree = ast.parse(causal())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported - {"functools"} == {"torch", "triton", "triton.language"}


def test_a_causal_loop_leaves_out_blocks_and_masks_only_the_last_ones() -> None:
    _, unmasked, masked = causal().split("    for b")
    assert unmasked.startswith("4 in range(begin4, rest4, T4)") and masked.startswith("4 in range(rest4, end4, T4)")
    assert "end4 = min(d4, (min(b0 + T0, d0) - 1) + 1)" in causal(), "no later key is looked at"
    assert "tl.where((i4" in masked and "tl.where((i4" not in unmasked


def test_products_are_added_as_they_are_computed_and_operands_keep_their_type() -> None:
    lines = [line.strip() for line in causal().splitlines() if "tl.dot(" in line]
    assert len(lines) == 4 and not any("ieee" in line for line in lines)
    scores, weighted = lines[:2]
    assert scores.count(".to(") == 0
    total = weighted.split(" = ")[0]
    assert f", {total}, " in weighted and weighted.count(".to(tl.float16)") == 1


def test_exponentials_of_differences_take_the_scale_of_the_scores() -> None:
    program = driver.load_program(EXAMPLES / "attention_lse.blk")
    made = triton_kernels(program, load_machine("h200"), driver.default_sizes(program, {}), {"m": 16, "n": 16})
    (function,) = made.source.functions
    inside = [line for line in function.text if line.startswith("        ") and "#" not in line]
    assert [line.count("tl.exp2((") for line in inside if re.search(r"\bf\d", line)] == [1, 1] * 2
    assert "tl.exp(" not in made.source.text
    assert "rsqrt" in made.source.text and "1.4426950408889634" in made.source.text
    assert re.search(r"\* f\d", made.source.text.split("tl.log(")[1]), "the log-sum-exp is of scaled scores"


@pytest.mark.parametrize(("name", "pipelined"), [("attention", 1), ("causal_attention", 2)])
def test_full_blocks_are_not_masked_along_a_loop_whose_last_block_is_short(name: str, pipelined: int) -> None:
    """The short block is behind them: in the loop with masks, if there is one, else by itself."""
    program = driver.load_program(EXAMPLES / f"{name}.blk")
    made = triton_kernels(program, load_machine("h200"), driver.default_sizes(program, {}), {"m": 16, "n": 16})
    (function,) = made.source.functions
    number = next(at for at, dim in enumerate(made.block.dims) if dim.name == "n")
    masked = re.compile(rf"\bin{number}\b")
    first, last = "\n".join(function.text).split(f"for b{number} in ")[1:]
    assert first.count("tl.load(") == 4 and not masked.search(first) and masked.search(last)
    assert [text.startswith("range(") for text in (first, last)].count(True) == pipelined


@pytest.mark.parametrize(
    ("masked", "powers"),
    [("S", True), ("where(index(n) <= index(m), S, -inf)", True), ("S + M", False), ("where(M > 0, S, -3e38)", False)],
)
def test_exponents_that_only_exponentials_read_are_powers_of_two(masked: str, powers: bool) -> None:
    """One operation for an element, and none for the sums so far; not where the lowest number may be the largest."""
    text = """program p(Q: f16[m, d=64], K: f16[n, d=64], V: f16[n, e=64], M: f32[m, n]) -> O: f16[m, e=64] {
    S = dot[d](Q, K) / sqrt(size(d))
    O = dot[n](softmax[n](MASKED), V) + sum[n](0 * M)
}"""
    program = driver.load_program(text.replace("MASKED", masked))
    made = triton_kernels(program, load_machine("h200"), {"m": 64, "n": 64, "d": 64, "e": 64}, {"m": 16, "n": 16})
    lines = [line for line in made.source.text.splitlines() if "tl.exp2(" in line]
    assert any("tl.exp2(tl.fma(" in line for line in lines) == powers
    assert not powers or all("* f" not in line for line in lines)


def test_a_scale_that_may_not_wait_does_not() -> None:
    size, root = Size("n"), Expression("rsqrt", (Size("n"),))
    assert scale_of("mul", ("x", root), (None, None)) is not None
    assert scale_of("mul", ("x", size), (None, None)) is None, "0 times -inf is not a number"
    assert scale_of("mul", ("x", Constant(-2.0)), (None, None)) is None
    assert scale_of("mul", ("x", Constant(1e-40)), (None, None)) is None
    assert scale_of("mul", ("x", "y", Constant(2.0)), (None,) * 3) is None
    assert scale_of("sub", ("x", "y"), (root, None)) is None
    assert scale_of("where", ("c", "x", Constant(-math.inf)), (None, root, None)) == root
    assert scale_of("maximum", ("x", Constant(1.0)), (root, None)) is None


# In which order tasks start


def kernel_of(dims: str, sizes: dict[str, int], tiles: dict[str, int]) -> Kernel:
    """A kernel with a task for each block of all dimensions."""
    program = lower(driver.load_program(f"program p(X: f32[{dims}]) -> Y: f32[{dims}] {{\n Y = X\n}}\n"), frozenset())
    kernel = Kernel(program, tiles, sizes, {}, set(), lambda name, tasks: Array("x9", (), "float32"))
    kernel.tasks = tuple(dims.split(", "))
    return kernel


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("inner", ["a", "b", "c"])
def test_every_block_has_one_task(group: int, backwards: bool, inner: str) -> None:
    for sizes in itertools.product((1, 5, 16), (1, 3, 9), (2, 7)):
        extents = dict(zip("abc", sizes, strict=True))
        kernel = kernel_of("a, b, c", extents, {"a": 4, "b": 1, "c": 2})
        order = Order(tuple(dim for dim in "abc" if dim != inner), inner, group, backwards)
        lines = "\n".join(order_lines(kernel, order)).replace("tl.program_id(0)", "task")
        counts = [-(-extents[dim] // kernel.tiles[dim]) for dim in "abc"]
        names = {f"d{kernel.number(dim)}": size for dim, size in extents.items()}
        names |= {f"T{kernel.number(dim)}": kernel.tiles[dim] for dim in "abc"}
        found = set()
        for task in range(math.prod(counts)):
            known = {**names, "task": task}
            exec(lines, {}, known)  # noqa: S102
            found.add(tuple(known[f"b{kernel.number(dim)}"] // kernel.tiles[dim] for dim in "abc"))
        assert found == set(itertools.product(*map(range, counts)))


def order_in(name: str, dims: dict[str, int], tiles: dict[str, int]) -> tuple[str, ...]:
    """How the blocks of a kernel are found, in the dimensions' own names."""
    program = driver.load_program(name if "\n" in name else EXAMPLES / f"{name}.blk")
    made = triton_kernels(program, load_machine("h200"), driver.default_sizes(program, dims), tiles)
    text = re.sub(r"\b([bdT])(\d+)\b", lambda m: f"{m[1]}_{made.block.dims[int(m[2])].name}", made.source.text)
    return tuple(line.strip() for line in text.splitlines() if re.match(r"    (b_\w+|first|inner) = ", line))


def test_neighbouring_tasks_read_the_same() -> None:
    sizes = {"h": 8, "m": 4096, "n": 4096}
    found = order_in("attention", sizes, {"b": 1, "h": 1, "m": 64, "n": 64})
    assert found[2] == "b_m = (pid - first * inner) * T_m", "all queries of a head, then those of the next"
    product = "program p(A: f16[m, k], B: f16[k, n]) -> C: f16[m, n] {\n C = dot[k](A, B)\n}\n"
    grouped = order_in(product, {"m": 8192, "n": 8192, "k": 8192}, {"m": 128, "n": 128, "k": 64})
    assert grouped[1] in ("first = pid // (8 * inner) * 8", "first = pid // (16 * inner) * 16"), "squares of tasks"


def test_nothing_to_do_has_an_order_too() -> None:
    kernel = kernel_of("a, b", {"a": 0, "b": 5}, {"a": 4, "b": 1})
    node = kernel.program.body[0]
    assert isinstance(node, Map)
    order = order_of(kernel, node, [Array("a0", ("a", "b"), "float32"), Array("a1", ("a",), "float32")], Device(4, 100))
    assert {*order.outer, order.inner} == {"a", "b"}


def test_tasks_with_most_to_do_come_first() -> None:
    sizes, tiles = {"b": 2, "h": 64, "m": 4096, "n": 4096}, {"b": 1, "h": 1, "m": 64, "n": 64}
    found = order_in("causal_attention", sizes, tiles)
    assert found[1] == "first = pid // (16 * inner) * 16", "K and V of so many heads fit half of the cache"
    assert found[2] == "b_m = (inner - 1 - pid // width) * T_m", "late queries look at more keys"
    window = order_in("sliding_window_attention", sizes, tiles)
    assert window[2] == "b_m = (pid - first * inner) * T_m", "all look at as many"


def test_chunks_are_tasks_of_one_launch_and_a_second_one_combines_them() -> None:
    assert [case[2] for case in interpreted() if case[0].startswith("decode")] == [2, 2]
    text = "program p(Q: f16[kv, g, d=64], K: f16[kv, n, d], V: f16[kv, n, e=64]) -> O: f16[kv, g, e] {\n"
    program = driver.load_program(text + " O = dot[n](softmax[n](dot[d](Q, K)), V)\n}\n")
    sizes = driver.default_sizes(program, {"kv": 8, "g": 8, "n": 32768})
    for split, chunk in (({"n": 16}, 2048), ({}, 0)):
        made = triton_kernels(program, load_machine("h200"), sizes, {"n": 128}, split)
        first, second = made.source.functions
        assert made.plan.tiles["n_chunk"] == (chunk or made.plan.tiles["n_chunk"]) < 32768, "asked for, or chosen"
        tile = made.block.rank["n_chunk"]
        assert f"T{tile}" in first.grid and f"T{tile}" not in second.grid
        assert [sum("tl.dot(" in line for line in function.text) > 0 for function in (first, second)] == [True, False]
        assert made.plan.tiles["g"] == 16, "the heads that share keys are one side of the products"


def test_what_becomes_part_of_an_output_in_f32_is_not_rounded() -> None:
    program = driver.load_program(
        "program p(A: f16[m, k], B: f16[k, n]) -> C: f32[m, n] {\n C = dot[k](exp(A), B)\n}\n"
    )
    made = triton_kernels(program, load_machine("h200"), driver.default_sizes(program, {}), {})
    assert "ieee" in made.source.text and ".to(tl.float16)" not in made.source.text


def test_user_names_stand_only_in_comments_strings_and_the_launcher() -> None:
    text = "program tl(torch: f32[m, n], d0: f32[n]) -> kernel1: f32[m] {\n kernel1 = dot[n](torch, d0)\n}\n"
    program = driver.load_program(text)
    made = triton_kernels(program, load_machine("h200"), driver.default_sizes(program, {}), {})
    assert made.source.launcher == "tl_"
    functions = [node for node in ast.parse(made.source.text).body if isinstance(node, ast.FunctionDef)]
    launcher = next(node for node in functions if node.name == "tl_")
    assert [argument.arg for argument in launcher.args.args] == ["torch_", "in_d0"]


@cache
def feed_forward() -> TritonKernels:
    """A feed-forward layer for few rows, which is predicted to be faster in two parts."""
    program = driver.load_program(EXAMPLES / "rmsnorm_swiglu.blk")
    sizes = driver.default_sizes(program, {"m": 16, "d": 2048, "z": 8192, "e": 2048})
    return triton_kernels(program, load_machine("h200"), sizes, {})


def test_parts_are_one_file_with_one_launcher() -> None:
    made = feed_forward()
    assert made.seconds < search_plan(*made_for(made), {}).cost.seconds / 4
    tree = ast.parse(made.source.text)
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    assert names == ["kernel0", "kernel1", "rmsnorm_swiglu"] and [each.part for each in made.source.functions] == [0, 1]
    assert re.findall(r"^# Part.*", made.source.text, re.MULTILINE) == [
        "# Part 0: X, gain, Wg, Wu -> H, by way of N, G, U, H",
        "# Part 1: H, Wd -> Y, by way of Y",
    ]
    lines = [line.strip() for line in made.source.text.split("def rmsnorm_swiglu")[1].splitlines()]
    steps = [line for line in lines if re.match(r"x\d = |kernel\d|del|return", line)]
    assert [step.split("(")[0] for step in steps] == [
        "x0 = torch.empty", "kernel0[", "x1 = torch.empty", "kernel1[", "del x0", "return x1"
    ]  # fmt: skip
    assert "ieee" not in made.source.text, "what goes from part to part is rounded like what stays in a kernel"


def test_blocks_of_a_part_are_those_of_its_plan() -> None:
    """Before it is joined with the others, too, its kernels are written as they will be: on tensor cores."""
    text = "program p(X: bf16[m, k], A: bf16[k, z], B: bf16[z, n]) -> Y: bf16[m, n] {\n"
    program = driver.load_program(text + " Y = dot[z](relu(dot[k](X, A)), B)\n}\n")
    sizes = driver.default_sizes(program, {"m": 8192, "k": 1024, "z": 4096, "n": 1024})
    made = next(in_parts(program, sizes))
    assert len(made.parts) > 1 and made.likely
    assert "x1 = torch.empty((d3, d4,), dtype=torch.bfloat16" in made.source.text, "a product with B rounds it anyway"
    assert made.seconds == pytest.approx(sum(plan.cost.seconds for plan in made.searched), rel=0.01)


def test_what_is_used_behind_a_loop_is_loaded_behind_it() -> None:
    program = driver.load_program(EXAMPLES / "matmul_epilogue.blk", "matmul_relu")
    made = triton_kernels(program, load_machine("h200"), driver.default_sizes(program, {"k": 4096}), {})
    (function,) = made.source.functions
    loads = [at for at, line in enumerate(function.text) if line.lstrip().startswith("# ") and "<-" in line]
    (loop,) = [at for at, line in enumerate(function.text) if line.lstrip().startswith("for ")]
    names = [function.text[at].split()[1].partition(".")[0] for at in loads]
    assert names == ["X", "W", "bias", "residual"] and loads[0] > loop
    (product,) = [at for at, line in enumerate(function.text) if "tl.dot(" in line]
    assert loads[1] < product < loads[2]


def test_a_large_epilogue_is_written_in_pieces() -> None:
    """One kernel, whose accumulator leaves no room in registers for all of its results (their numbers: `pieces` of
    triton_cases.py)."""
    program = driver.load_program(EXAMPLES / "matmul_epilogue.blk", "matmul_gelu")
    sizes = driver.default_sizes(program, {"m": 8192, "k": 4096, "n": 4096})
    made = triton_kernels(program, load_machine("h200"), sizes, {"m": 128, "n": 256, "k": 64})
    (function,) = made.source.functions
    (halves,) = [line for line in function.text if "T1 // 2" in line]
    assert halves.lstrip() == "v3, v4 = tl.split(tl.permute(tl.reshape(v0, [T0, 2, T1 // 2]), [0, 2, 1]))"
    pieces = "\n".join(function.text).split("    # Piece ")[1:]
    assert [piece[:18] for piece in pieces] == [f"{at} of 4 along d1.\n " for at in (1, 2, 3, 4)]
    assert all(piece.count("tl.load(") == 4 and piece.count("tl.store(") == 2 for piece in pieces), "full and short"
    assert max(function.text.index(line) for line in function.text if "tl.dot(" in line) < function.text.index(halves)
    small = triton_kernels(program, load_machine("h200"), sizes, {"m": 128, "n": 128, "k": 64})
    assert "tl.split(" not in small.source.text


def test_any_sizes_and_strides_go_through_parts(tmp_path: Path) -> None:
    launch = loaded(feed_forward(), tmp_path).rmsnorm_swiglu
    x, w, down = (torch.zeros(shape, dtype=torch.float16) for shape in ((5, 7), (7, 9), (9, 3)))
    for bad in ((x, x[0], w, w, w), (x, x[0], w, w[:, :8], down), (x, x[0], w, w, down.float())):
        with pytest.raises(ValueError, match=r"has another shape|must be a tensor"):
            launch(*bad)
    assert "d0 = _n0[0]" in feed_forward().source.text and "d3 = d0" in feed_forward().source.text


def test_other_blocks_are_for_one_part_alone() -> None:
    made = feed_forward()
    program, machine, sizes = made_for(made)
    changed = with_blocks(made, program, machine, sizes, {**made.plan.tiles, "e": 2 * made.plan.tiles["e"]})
    assert changed.plan.tiles == {**made.plan.tiles, "e": 2 * made.plan.tiles["e"]}
    assert changed.source.functions[0].text == made.source.functions[0].text
    assert made.named({"m": 16}) == {"m": 16, "m_1": 16}


def test_parts_compile_for_a_gpu(tmp_path: Path) -> None:
    assert all("mma" in kernel.asm["ptx"] for kernel in compiled(feed_forward(), tmp_path, 90))


def made_for(made: TritonKernels) -> tuple[ArrayProgram, Machine, dict[str, int]]:
    """What kernels were made for."""
    program, machine = driver.load_program(EXAMPLES / "rmsnorm_swiglu.blk"), load_machine("h200")
    return program, machine, dict(made.plan.sizes)


def test_what_a_rename_reads_is_stored_by_an_earlier_launch() -> None:
    program = parse_program(RENAMED)
    assert [[node.defines[0] for node in group] for group in kernels(program)] == [["A"], ["C"]]


RENAMED = """program p
dim m whole
dim n = size(m) whole
array X: f32[m]
array Y: f32[n]
input X: local f32(m) = X[m]
A: local f32(m) = exp(X)
B: local f32(n) = rename[m -> n](A)
C: local f32(n) = exp(B)
output Y = C
"""


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    program = driver.load_program("program p(X: f16[m, n], W: f32[n]) -> Y: f32[m] {\n Y = dot[n](X, W)\n}\n")
    made = triton_kernels(program, load_machine("h200"), driver.default_sizes(program, {}), {"m": 16, "n": 16})
    launch = getattr(loaded(made, tmp_path), made.source.launcher)
    good = torch.zeros(5, 7, dtype=torch.float16)
    far = torch.zeros(7, dtype=torch.float16).as_strided((1, 7), (2**30, 1))
    for arguments, message in (
        ((good, None), "W must be a tensor"),
        ((good.float(), torch.zeros(7)), "X must be a tensor with 2 axes and the type float16"),
        ((good, torch.zeros(8)), "W has another shape"),
        ((far, torch.zeros(7)), "blocks of X reach over"),
    ):
        with pytest.raises(ValueError, match=message):
            launch(*arguments)


def test_names_that_python_needs_are_changed() -> None:
    assert identifier("lambda", set()) == "lambda_"
    assert identifier("x0", set()) == "in_x0"
    assert identifier("Q", {"Q"}) == "Q_"
    assert identifier("tuple", set()) == "tuple_"


def test_blocks_are_powers_of_two_and_fit_tensor_cores() -> None:
    text = "program p(Q: f16[g, m, d=64], K: f16[n, d]) -> S: f16[g, m, n] {\n S = dot[d](Q, K)\n}\n"
    program = lower(driver.load_program(text), frozenset("d"))
    assert triton_tiles(program, {"g": 2, "m": 4, "n": 100}) == {"g": 2, "m": 8, "n": 128}
    assert triton_tiles(program, {"g": 8, "m": 1, "n": 20}) == {"g": 16, "m": 1, "n": 32}
    assert triton_tiles(program, {"g": 2, "m": 64, "n": 1}) == {"g": 2, "m": 64, "n": 1}


# The command


def test_emit_writes_a_file_and_what_is_in_it(tmp_path: Path) -> None:
    found = CliRunner().invoke(cli, ["emit", str(EXAMPLES / "attention.blk"), "--target", "h200", "-o", str(tmp_path)])
    assert found.exit_code == 0, found.output
    contents = json.loads((tmp_path / "manifest.json").read_text())
    text = (tmp_path / contents["file"]).read_text()
    assert contents["launcher"] == "attention" and f"def {contents['launcher']}(Q, K, V):" in text
    (kernel,) = contents["kernels"]
    assert f"def {kernel['function']}({', '.join(kernel['arguments'])}".split(":")[0][:40] in text
    assert kernel["arguments"]["a0"] == "*fp16" and kernel["num_warps"] >= 1
    constants = {name for name, kind in kernel["arguments"].items() if kind == "constexpr"}
    assert constants == kernel["constexprs"].keys()


def test_show_prints_the_source() -> None:
    found = CliRunner().invoke(cli, ["show", str(EXAMPLES / "mlp.blk"), "--target", "a100", "--stage", "kernel"])
    assert found.exit_code == 0 and "@triton.jit" in found.output


def test_a_machine_without_an_emitter_says_so() -> None:
    found = CliRunner().invoke(cli, ["show", str(EXAMPLES / "mlp.blk"), "--target", "toy", "--stage", "kernel"])
    assert isinstance(found.exception, LimitError)
