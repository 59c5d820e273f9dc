"""What kernels for GPUs need, estimated and compiled, the choice among blocks and ways, and the commands for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from triton_data import NAMES, in_parts

from blockc import compiling, driver, linting
from blockc.cache import Store
from blockc.cli import cli
from blockc.codegen.triton_estimate import Launch, needs
from blockc.codegen.triton_storage import Options
from blockc.codegen.triton_types import Block, Line, lines, read
from blockc.compiling import Compilers
from blockc.errors import BlockcError, CheckError, LimitError
from blockc.ir.array_program import ArrayProgram
from blockc.machines.gpus import GPUS, occupancy
from blockc.machines.loading import load_machine
from blockc.triton_kernels import (
    ENOUGH,
    TritonKernels,
    launched_with,
    needs_of,
    ranked,
    triton_kernels,
)
from blockc.triton_loads import described
from blockc.triton_manifest import manifest

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {"b": 1, "h": 1, "m": 64, "n": 64}


def example(name: str, dtype: str = "f16") -> ArrayProgram:
    """An example."""
    return driver.load_program(EXAMPLES / f"{name}.blk", None, dtype)


def kernels_of(name: str, target: str, tiles: Mapping[str, int | None], dtype: str = "f16") -> TritonKernels:
    """The kernels of an example."""
    program = example(name, dtype)
    return triton_kernels(program, load_machine(target), driver.default_sizes(program, {}), tiles)


@pytest.fixture(scope="module")
def running() -> Iterator[Compilers]:
    """Triton's compiler, imported once."""
    with closing(Compilers()) as made:
        yield made


# What is read in a kernel's text

PRODUCTS = """@triton.jit
def kernel0(a0, a1, a2, x0, d0, T0: tl.constexpr, T1: tl.constexpr, SHORT0: tl.constexpr):
    r0 = tl.arange(0, T0)
    r1 = tl.arange(0, T1)
    v0 = tl.load(a0 + (r0 * 64)[:, None] + r1[None, :])
    v1 = tl.full([T0, T0], 0.0, tl.float32)
    for b0 in range(0, d0, T1):
        if SHORT0:
            v2 = tl.load(a1 + (r1 * 64)[:, None] + r0[None, :], mask=(r1 < d0)[:, None], other=0.0)
        else:
            v2 = tl.load(a1 + b0 + (r1 * 64)[:, None] + r0[None, :])
        v1 = tl.dot(v0, v2, v1, out_dtype=tl.float32)
        v3 = tl.exp(v1) * tl.sum(v1, 1)[:, None]
    tl.store(x0 + (r0 * 64)[:, None] + r0[None, :], v3)
"""
TYPES = {"a0": "*fp16", "a1": "*fp16", "a2": "*bf16", "x0": "*fp32", "d0": "i32"}


def kernel(rows: int, depth: int) -> Block:
    """A loop with a product."""
    return read(tuple(PRODUCTS.splitlines()), TYPES, {"T0": rows, "T1": depth, "SHORT0": False})


def test_the_text_of_a_kernel_says_shapes_types_and_loops() -> None:
    found = kernel(128, 64)
    made = {name: tile for line in lines(found) for name, tile in line.makes.items()}
    assert (made["v2"].shape, made["v2"].dtype) == ((64, 128), "float16")
    assert (made["v1"].shape, made["v1"].dtype, made["v3"].bytes) == ((128, 128), "float32", 65_536)
    (loop,) = [part for part in found.body if isinstance(part, Block)]
    (product,) = [product for line in lines(loop) for product in line.products]
    assert product.left.base == "v0" and product.right.base == "v2"
    assert all(isinstance(part, Line) for part in loop.body), "a choice by a constant is made"


def test_loads_by_descriptors_are_read_like_those_by_pointers() -> None:
    program, machine = example("attention"), load_machine("h200")
    made = triton_kernels(program, machine, driver.default_sizes(program, {}), {})
    described = launched_with(made, machine, {"kernel0": Options(4, 3, "descriptors")})
    assert ".load([" in described.source.text
    found = [needs_of(each.source.functions[0], machine, Options(4, 3)) for each in (made, described)]
    assert 0 < found[0].shared_bytes < found[1].shared_bytes < found[0].shared_bytes + 256, "and barriers"


def test_large_accumulators_need_more_warps_and_stages_more_shared_memory() -> None:
    def of(rows: int, warps: int, stages: int, groups: bool = True) -> Any:
        return needs(kernel(rows, 64), Launch(warps, stages, groups))

    assert of(128, 4, 2).registers > ENOUGH > of(128, 8, 2).registers > of(64, 8, 2).registers
    assert of(128, 4, 6).shared_bytes - of(128, 4, 5).shared_bytes == 128 * 64 * 2
    assert of(128, 4, 1).shared_bytes == 128 * 128 * 4, "what is stored changes its layout"


def test_elements_of_a_result_take_the_place_of_those_it_is_made_of() -> None:
    """An epilogue needs no more than both sums; what is used later stays."""
    text = (
        "def f(T0: tl.constexpr):",
        "    a = tl.full([T0, T0], 0.0, tl.float32)",
        "    b = tl.full([T0, T0], 0.0, tl.float32)",
        "    c = a * b",
        "    d = a + c",
    )
    found = needs(read(text, {"T0": "constexpr"}, {"T0": 128}), Launch(8, 2, True))
    assert found.registers == 40 + 2 * 64, "a and b, then a and c"


def test_a_number_that_stands_alone_is_f32() -> None:
    """In blocks of one element a value that is known becomes a number: a variable that is read again has its type."""
    text = (
        "def kernel0(d0, T0: tl.constexpr):",
        "    v0 = 1.0",
        "    for b0 in range(0, d0, T0):",
        "        v1 = v0 * 2.0",
    )
    found = read(text, {"d0": "i32", "T0": "constexpr"}, {"T0": 1})
    assert {tile.dtype for line in lines(found) for name, tile in line.makes.items() if name[0] == "v"} == {"float32"}


@pytest.mark.parametrize(
    ("name", "target", "tiles", "way"),
    [
        ("attention", "h200", SMALL, Options(4, 3)),
        ("attention", "h200", SMALL, Options(4, 3, "descriptors")),
        ("rmsnorm_swiglu", "a100", {}, Options(8, 2)),
    ],
)
def test_shared_memory_is_at_most_what_is_predicted(
    name: str, target: str, tiles: Mapping[str, int], way: Options, running: Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`benchmarks/lint.py` is the command for all examples."""
    monkeypatch.setattr(linting, "WAYS", tuple(each for each in (way,) if each.loads == "pointers"))
    monkeypatch.setattr(linting, "DESCRIBED", tuple(each for each in (way,) if each.loads == "descriptors"))
    found = linting.lint([kernels_of(name, target, tiles)], load_machine(target), None, running)
    for candidate in found.candidates:
        assert (
            candidate.chosen
            and candidate.options == way
            and candidate.spill_bytes == 0
            and 16 <= candidate.registers <= 255
        )
        assert 0 < candidate.shared_bytes <= candidate.predicted and 0 < candidate.occupancy <= 1


# Blocks


def test_blocks_come_with_the_least_predicted_time_first_and_probably_fit() -> None:
    program = example("attention")
    machine = load_machine("h200")
    found = list(islice(ranked(program, machine, driver.default_sizes(program, {}), {}), 5))
    assert all(made.likely for made in found)
    assert [made.seconds for made in found] == sorted(made.seconds for made in found)
    assert len({tuple(made.plan.tiles.items()) for made in found}) == 5
    for made in found:
        assert all(need.registers <= ENOUGH and need.shared_bytes <= 232_448 for need in made.needs.values())


def test_blocks_that_are_asked_for_are_kept_even_if_they_do_not_fit() -> None:
    program, machine = example("attention", "f32"), load_machine("h200")
    sizes = driver.default_sizes(program, {})
    every = list(ranked(program, machine, sizes, {"b": 1, "h": 1, "m": 128, "n": 128}))
    assert every and {(made.plan.tiles["m"], made.plan.tiles["n"]) for made in every} == {(128, 128)}
    assert not every[0].likely
    some = islice(ranked(program, machine, sizes, {"m": 64}), 4)
    assert {made.plan.tiles["m"] for made in some} == {64}


def test_names_do_not_matter_to_blocks_and_ways() -> None:
    text = "program p(A: f16[m, k], B: f16[k, n]) -> C: f16[m, n] {\n C = softmax[n](dot[k](A, B))\n}\n"
    other = "program q(U: f16[x, z], V: f16[z, y]) -> W: f16[x, y] {\n W = softmax[y](dot[z](U, V))\n}\n"
    machine, names = load_machine("h200"), {"m": "x", "n": "y", "k": "z"}
    sizes = {"m": 2048, "n": 300, "k": 700}
    first = triton_kernels(driver.load_program(text), machine, sizes, {})
    second = triton_kernels(driver.load_program(other), machine, {names[d]: size for d, size in sizes.items()}, {})
    assert {names[dim]: tile for dim, tile in first.plan.tiles.items()} == dict(second.plan.tiles)
    assert [each.options for each in first.source.functions] == [each.options for each in second.source.functions]


# The choice, among what a compiler is made to say

CLEAN = {"registers": 100, "spill_bytes": 0, "shared_bytes": 1000, "warnings": []}


class Told:
    """Compilers that say of each job what `say` does."""

    def __init__(self, say: Any) -> None:
        self.say, self.jobs = say, 0

    def results(self, jobs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What is said of each job."""
        given = list(jobs)
        self.jobs += len(given)
        return [dict(self.say(job)) for job in given]


@cache
def eight() -> list[TritonKernels]:
    """Blocks for attention."""
    program = example("attention")
    return list(islice(ranked(program, load_machine("h200"), driver.default_sizes(program, {}), {}), 8))


def choices(count: int = 8) -> list[TritonKernels]:
    """The first ones of them."""
    return eight()[:count]


def test_the_way_that_keeps_more_warps_busy_is_chosen_then_more_stages() -> None:
    said = {4: {**CLEAN, "registers": 200}, 8: CLEAN}
    found = linting.lint(choices(1), load_machine("h200"), None, Told(lambda job: said[job["warps"]]))
    assert found.options() == {"kernel0": Options(8, 3)}


def test_a_way_that_spills_waits_or_does_not_fit_is_never_chosen() -> None:
    bad: dict[tuple[int, int], dict[str, Any]] = {
        (4, 2): {"spill_bytes": 8},
        (4, 3): {"warnings": ["C7510: products one after the other"]},
        (8, 3): {"shared_bytes": 232_449},
    }

    def say(job: Mapping[str, Any]) -> dict[str, Any]:
        return {**CLEAN, **bad.get((job["warps"], job["stages"]), {})}

    assert linting.lint(choices(1), load_machine("h200"), None, Told(say)).options() == {"kernel0": Options(8, 2)}


@pytest.mark.parametrize(
    ("pointers", "descriptors", "chosen", "why"),
    [
        ({"registers": 116}, {"registers": 107}, "descriptors", "take 28,672 registers of a block instead of 30,720"),
        ({"registers": 107}, {"registers": 105}, "pointers", "take 28,672 registers of a block instead of 28,672"),
        ({"registers": 107}, {"registers": 116}, "pointers", "take 30,720 registers of a block instead of 28,672"),
        ({"registers": 200}, {"registers": 120}, "descriptors", "have an occupancy of 25% instead of 12%"),
        ({"registers": 120}, {"registers": 200}, "pointers", "have an occupancy of 12% instead of 25%"),
        ({"spill_bytes": 4}, {}, "descriptors", "no way with pointers is clean"),
        ({}, {"spill_bytes": 4}, "pointers", "no way with descriptors is clean"),
    ],
)
def test_descriptors_are_chosen_where_they_are_better(
    pointers: Mapping[str, int], descriptors: Mapping[str, int], chosen: str, why: str
) -> None:
    def say(job: Mapping[str, Any]) -> dict[str, Any]:
        own = descriptors if any(str(kind).startswith("tensordesc") for kind in job["signature"].values()) else pointers
        return {**CLEAN, **own, "spill_bytes": 4 if job["warps"] == 4 else own.get("spill_bytes", 0)}

    found = linting.lint(choices(1), load_machine("h200"), None, Told(say))
    assert found.options() == {"kernel0": Options(8, 3, "descriptors" if chosen == "descriptors" else "pointers")}
    (loads,) = found.loads
    assert loads.way == chosen and loads.why.endswith(why)
    made = launched_with(found.made, load_machine("h200"), found.options())
    assert (".load([" in made.source.text) == (chosen == "descriptors"), "and written so"


def test_where_no_way_is_clean_kernels_are_launched_as_spills_least() -> None:
    said: dict[tuple[int, int], dict[str, Any]] = {
        (4, 2): {"spill_bytes": 8},
        (4, 3): {"spill_bytes": 4},
        (8, 2): {"error": "no"},
        (8, 3): {"spill_bytes": 16},
    }
    told = Told(lambda job: {**CLEAN, **said[job["warps"], job["stages"]]})
    machine = replace(load_machine("h200"), capability=80)
    found = linting.launched(linting.lint(choices(1), machine, None, told), machine)
    assert [function.options for function in found.source.functions] == [Options(4, 3)]


def test_ways_that_a_gpu_refused_are_out() -> None:
    machine, (made,) = load_machine("h200"), choices(1)
    first = linting.lint([made], machine, None, Told(lambda job: CLEAN))
    (function,) = made.source.functions
    refused = {linting.way_of(made, function, first.options()["kernel0"]): "it does not compile here"}
    found = linting.lint([made], machine, None, Told(lambda job: CLEAN), refused)
    assert found.options() != first.options()
    assert [way.error for way in found.candidates if way.error] == ["it does not compile here"]


PRODUCT = "X: f16[m, k], W: f16[k, n]) -> Y: f16[m, n]"


@pytest.mark.parametrize(
    ("types", "formula", "sizes", "why"),
    [
        (PRODUCT, "dot[k](X, W)", {}, ""),
        (PRODUCT, "dot[k](X * rsqrt(mean[k](X * X) + 1e-6), W)", {}, "X is computed with on its way to a product"),
        (PRODUCT, "dot[k](X, exp(W))", {}, "W is computed with on its way to a product"),
        (f"R: f16[m, n], {PRODUCT}", "dot[k](X, W) + R", {}, ""),
        ("X: f16[m, k]) -> Y: f16[m]", "logsumexp[k](X)", {}, "no product takes a tile as it is loaded"),
        ("X: f16[k]) -> Y: f16[]", "sum[k](X)", {}, "no tile of an input can have a descriptor"),
        (PRODUCT, "dot[k](X, W)", {"k": 44}, "rows of X are 88 bytes apart, no multiple of 16"),
        (PRODUCT, "dot[k](X, W)", {"n": 36}, "rows of W are 72 bytes apart, no multiple of 16"),
    ],
)
def test_what_speaks_against_descriptors(types: str, formula: str, sizes: Mapping[str, int], why: str) -> None:
    program = driver.load_program(f"program p({types} {{\n    Y = {formula}\n}}\n")
    dims = {dim.name for dim in program.dims}
    tiles = dict.fromkeys(dims, 32)
    extents = {dim: sizes.get(dim, 512) for dim in dims}
    machine = load_machine("h200")
    found = described(triton_kernels(program, machine, extents, tiles), machine, GPUS[90])
    assert list({**found.impossible, **found.against}.values()) == ([why] if why else [])


@pytest.mark.parametrize(("registers", "way"), [(90, "pointers"), (60, "pointers"), (130, "descriptors")])
def test_what_speaks_against_descriptors_counts_less_than_busy_warps(registers: int, way: str) -> None:
    """Descriptors take 70 registers of a thread; up to 120, pointers keep as many warps busy."""
    program = driver.load_program(f"program p({PRODUCT} {{\n    Y = dot[k](X * rsqrt(mean[k](X * X) + 1e-6), W)\n}}\n")
    made = triton_kernels(program, load_machine("h200"), driver.default_sizes(program, {}), {})

    def say(job: Mapping[str, Any]) -> dict[str, Any]:
        described = any(str(kind).startswith("tensordesc") for kind in job["signature"].values())
        return {**CLEAN, "registers": 70 if described else registers, "spill_bytes": 4 if job["warps"] == 4 else 0}

    (loads,) = linting.lint([made], load_machine("h200"), None, Told(say)).loads
    assert loads.way == way and ("X is computed with" in loads.why) == (way == "pointers")


def test_the_machine_file_says_whether_there_are_descriptors() -> None:
    told, older = Told(lambda job: CLEAN), replace(load_machine("h200"), capability=80)
    found = linting.lint(choices(1), older, None, told)
    assert told.jobs == 4 and {way.options.loads for way in found.candidates} == {"pointers"}
    assert [loads.why for loads in found.loads] == ["GPUs of capability 8.0 copy no tiles by descriptors"]


def test_other_blocks_are_tried_until_all_kernels_have_a_way() -> None:
    every = choices()
    wanted = dict(every[2].plan.tiles)

    def say(job: Mapping[str, Any]) -> dict[str, Any]:
        good = all(job["constants"].get(f"T{at}", 1) == wanted[dim] for at, dim in ((2, "m"), (4, "n")))
        return {**CLEAN, "spill_bytes": 0 if good else 4}

    told = Told(say)
    found = linting.lint(every, load_machine("h200"), None, told)
    assert found.made is every[2] and told.jobs == len(found.candidates) == 18
    assert [way.tiles for way in found.candidates if way.chosen] == [wanted]


def test_only_parts_without_a_way_get_other_blocks() -> None:
    program = driver.load_program(NAMES)
    ranked_parts = in_parts(program, driver.default_sizes(program, {"b": 2, "m": 500, "k": 64, "n_0": 400}))
    first = next(in_parts(program, driver.default_sizes(program, {"b": 2, "m": 500, "k": 64, "n_0": 400})))
    first_bad = first.source.functions[0]
    bad = {name: value for name, value in first_bad.constants.items() if name.startswith("T")}

    def say(job: Mapping[str, Any]) -> dict[str, Any]:
        same = job["function"] == first_bad.name and bad.items() <= job["constants"].items()
        return {**CLEAN, "spill_bytes": 4 if same else 0}

    found = linting.lint(ranked_parts, load_machine("h200"), None, Told(say))
    assert found.options().keys() == {function.name for function in found.made.source.functions}
    assert found.made.tiles_of(found.made.source.functions[0]) != first.tiles_of(first_bad)
    others = first.source.functions[1:]
    assert [found.made.tiles_of(each) for each in found.made.source.functions[1:]] == [*map(first.tiles_of, others)]


def test_no_more_than_24_configurations_are_compiled() -> None:
    every, told = choices(), Told(lambda job: {"error": "no"})
    found = linting.lint(every, load_machine("h200"), None, told)
    assert told.jobs == 24 and found.made is every[0] and found.options() == {}


def test_what_the_compiler_said_is_kept(tmp_path: Path) -> None:
    store, told, made = Store(tmp_path / "cache"), Told(lambda job: CLEAN), choices(1)
    first = linting.lint(made, load_machine("h200"), store, told)
    assert linting.lint(made, load_machine("h200"), store, told) == first and told.jobs == 6
    linting.lint(made, load_machine("a100"), store, told)
    assert told.jobs == 10, "another GPU is another compilation"
    refused = Told(lambda job: {"error": "out of memory"})
    linting.lint(choices(2)[1:], load_machine("h200"), store, refused)
    linting.lint(choices(2)[1:], load_machine("h200"), store, refused)
    assert refused.jobs == 12, "failures are not kept"


def test_occupancy_counts_registers_shared_memory_and_warps() -> None:
    gpu = GPUS[90]
    assert occupancy(gpu, 8, 128, 0) == 0.25  # 65,536 / (8 * 32 * 128) = 2 blocks of 8 of 64 warps
    assert occupancy(gpu, 4, 32, 100_000) == 2 * 4 / 64
    assert occupancy(gpu, 4, 16, 0) == 1.0
    assert occupancy(gpu, 8, 255, 240_000) == 0.0


# Processes that compile

SAYS = """import json, sys
for line in sys.stdin:
    job = json.loads(line)
    if job["say"] == "die":
        sys.exit("Fatal: it aborted")
    if job["say"] == "wait":
        import time
        time.sleep(60)
    print(json.dumps({"said": job["say"]}), flush=True)
"""


def test_a_kernel_that_ends_its_compiler_is_the_only_one_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "COMMAND", (sys.executable, "-c", SAYS))
    with closing(Compilers()) as running:
        found = running.results({"say": word} for word in ("a", "die", "b", "c", "die", "d"))
    lost = {"error": "Fatal: it aborted"}
    assert found == [{"said": "a"}, lost, {"said": "b"}, {"said": "c"}, lost, {"said": "d"}]


def test_a_process_that_has_ended_while_it_waited_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "COMMAND", (sys.executable, "-c", SAYS))
    with closing(Compilers()) as running:
        running.results([{"say": "a"}])
        process = running.idle.get()
        process.running.kill()
        process.running.wait()
        running.idle.put(process)
        assert running.results([{"say": "b"}]) == [{"said": "b"}]


def test_a_compiler_that_nobody_needs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "from blockc.codegen import triton_compile; triton_compile.PATIENCE = 0.1; triton_compile.main()"
    monkeypatch.setattr(compiling, "COMMAND", (sys.executable, "-W", "ignore", "-c", script))
    process = compiling._started()
    assert process.running.wait(60) == 0
    process.end()


def test_a_compilation_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "COMMAND", (sys.executable, "-c", SAYS))
    monkeypatch.setattr(compiling, "SECONDS", 0.2)
    with closing(Compilers()) as running:
        (found,) = running.results([{"say": "wait"}])
    assert "error" in found


def test_without_triton_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "raise ModuleNotFoundError(\"No module named 'triton'\")"
    monkeypatch.setattr(compiling, "COMMAND", (sys.executable, "-c", script))
    with closing(Compilers()) as running, pytest.raises(LimitError, match="triton is not installed"):
        running.results([{"say": "a"}])


def test_what_the_compiler_cannot_do_is_said(running: Compilers, monkeypatch: pytest.MonkeyPatch) -> None:
    (made,) = choices(1)
    text = made.source.text.replace("tl.arange(0, T4)", "tl.arange(0, 48)")
    assert text != made.source.text
    broken = replace(made, source=replace(made.source, text=text))
    monkeypatch.setattr(linting, "WAYS", (Options(4, 2),))
    monkeypatch.setattr(linting, "DESCRIBED", ())
    found = linting.lint([broken], load_machine("h200"), None, running)
    assert all(way.error for way in found.candidates) and found.options() == {}


# The commands


def lint_command(*words: str) -> Any:
    return CliRunner().invoke(cli, ["lint", *words])


def test_the_command_prints_and_fails_without_a_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(linting, "shared", lambda: Told(lambda job: CLEAN))
    words = (str(EXAMPLES / "mlp.blk"), "--target", "h200")
    found = lint_command(*words)
    assert found.exit_code == 0 and "kernel0 *" in found.output
    printed = json.loads(lint_command(*words, "--json").output)
    assert printed["capability"] == 90 and len(printed["candidates"]) == 6
    (chosen,) = [each for each in printed["candidates"] if each["chosen"]]
    assert chosen["registers"] == 100 and chosen["spill_bytes"] == 0 and chosen["shared_bytes"] == 1000
    assert chosen["occupancy"] == 0.25 and chosen["warnings"] == [] and chosen["tiles"] == printed["tiles"]
    assert chosen["loads"] == "pointers" and [each["way"] for each in printed["loads"]] == ["pointers"]
    assert f"kernel0 loads tiles by pointers: {printed['loads'][0]['why']}" in found.output
    assert chosen["predicted_shared_bytes"] > 0 and chosen["predicted_seconds"] > 0
    monkeypatch.setenv("BLOCKC_CACHE", str(tmp_path))
    monkeypatch.setattr(linting, "shared", lambda: Told(lambda job: {**CLEAN, "spill_bytes": 8}))
    failed = lint_command(*words, "--dim", "m=77")
    assert isinstance(failed.exception, CheckError)
    assert len([line for line in failed.output.splitlines() if "kernel0" in line and "m=" in line]) > 4
    assert isinstance(lint_command(str(EXAMPLES / "mlp.blk")).exception, LimitError)


def own_machine(folder: Path, **changes: str) -> Path:
    """The machine file of an H200 with another name and changes."""
    text = (Path(driver.__file__).parent / "machines" / "h200.toml").read_text().replace('"h200"', '"mine"')
    for key, value in changes.items():
        text = "\n".join(f"{key} = {value}" if line.startswith(f"{key} =") else line for line in text.splitlines())
    path = folder / "mine.toml"
    path.write_text(text + "\n")
    return path


def test_a_machine_file_says_for_which_gpu_kernels_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def say(job: Mapping[str, Any]) -> dict[str, Any]:
        seen.append(job["capability"])
        return CLEAN

    monkeypatch.setattr(linting, "shared", lambda: Told(say))
    words = (str(EXAMPLES / "mlp.blk"), "--target")
    assert lint_command(*words, str(own_machine(tmp_path, capability="120"))).exit_code == 0
    assert set(seen) == {120}
    without = lint_command(*words, str(own_machine(tmp_path, capability="0")))
    assert isinstance(without.exception, LimitError) and "capability = 90" in str(without.exception)
    unknown = lint_command(*words, str(own_machine(tmp_path, capability="91")))
    assert isinstance(unknown.exception, BlockcError) and "`capability` cannot be 91" in str(unknown.exception)


@pytest.mark.parametrize("command", ["lint", "emit"])
def test_what_a_gpu_does_not_convert_is_said(command: str, tmp_path: Path) -> None:
    words = [command, str(EXAMPLES / "attention.blk"), "--target", "a100", "--dtype", "f8e4m3"]
    found = CliRunner().invoke(cli, [*words, *(["-o", str(tmp_path)] if command == "emit" else [])])
    assert isinstance(found.exception, LimitError) and "f8e4m3" in str(found.exception)


def test_float8_with_a_larger_range_is_written_for_all_gpus() -> None:
    assert kernels_of("mlp", "a100", {}, "f8e5m2").source.functions


def test_the_manifest_has_everything_of_each_kernel() -> None:
    program = driver.load_program(
        "program p(X: f32[m, n]) -> (A: f32[m], B: f32[n]) {\n A = sum[n](X)\n B = logsumexp[m](X)\n}\n"
    )
    machine = load_machine("h200")
    made = triton_kernels(program, machine, driver.default_sizes(program, {}), {})
    found = manifest(made, program, machine, "kernels.py")
    assert len(found["kernels"]) > 1
    keys = {"file", "function", "arguments", "constexprs", "num_warps", "num_stages", "grid"}
    for each in found["kernels"]:
        assert each.keys() >= keys and each["file"] == "kernels.py"
        assert each["predicted_bytes"] > 0 and each["flops"] > 0 and each["shared_bytes"] >= 0
    for key in ("predicted_bytes", "flops", "special_ops"):
        assert sum(each[key] for each in found["kernels"]) == found[key]
    assert found["parts"] == []


def test_the_manifest_has_all_parts() -> None:
    program = driver.load_program(NAMES)
    made = next(in_parts(program, driver.default_sizes(program, {"b": 2, "m": 11, "k": 5, "n_0": 7})))
    found = manifest(made, program, load_machine("h200"), "kernels.py")
    functions = [name for part in found["parts"] for name in part["functions"]]
    assert functions == [each["function"] for each in found["kernels"]] and len(found["parts"]) == len(made.parts)
    assert found["parts"][0]["inputs"] == ["d0", "m_1"] and "S" in found["parts"][0]["outputs"]
    assert {dim for part in found["parts"] for dim in part["tiles"]} <= found["dims"].keys()
    for key in ("predicted_bytes", "flops", "special_ops"):
        assert sum(each[key] for each in found["kernels"]) == found[key]
