"""Kernels for a GPU without one: in Triton's interpreter, and around the launch, which is replaced."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from gpu_bodies import BODIES, STATISTICS
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError
from triton_data import example_programs

import blockc
from blockc import cli, driver, gpu_kernel, self_check
from blockc.attempts import Attempts
from blockc.cache import Store
from blockc.codegen import triton_runtime
from blockc.codegen.triton_runtime import RefusedError
from blockc.data import array_shape, numpy_dtype, sizes_of
from blockc.errors import BlockcWarning, CheckError, LimitError, UsageError
from blockc.gpu_kernel import GpuKernel, operator_name, shape_class
from blockc.kernel import Kernel, kernel_for
from blockc.language import parse_all
from blockc.machines.loading import load_machine
from blockc.tuning import Book

TARGET = "h200"
HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"


@cache
def interpreted() -> dict[str, str]:
    """What `gpu_interpreted.py` prints: what is wrong, by name of the body."""
    asked = ["--examples", "rmsnorm_qkv/f16/strange"]
    command = [sys.executable, "-W", "ignore", str(HERE / "gpu_interpreted.py"), *asked]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=HERE)
    assert found.stdout, found.stderr
    return {name: problem for name, problem, _ in map(json.loads, found.stdout.splitlines())}


def test_everything_but_the_gpu_itself_holds_in_the_interpreter() -> None:
    """`test_gpu.py` runs the same on a GPU."""
    assert len(interpreted()) == len(BODIES) + 1
    assert {name: problem for name, problem in interpreted().items() if problem} == {}


def gpu(text: str, name: str | None = None, dtype: str | None = None, **options: Any) -> GpuKernel:
    """A kernel of which nothing is chosen yet."""
    program = parse_all(text, "program.blk", dtype)
    chosen = program[name] if name is not None else next(iter(program.values()))
    return GpuKernel(chosen, TARGET, options.get("dims", {}), options.get("tiles", {}), machine=load_machine(TARGET))


@pytest.mark.parametrize("name", [name for _, name in example_programs("")])
def test_torch_is_told_what_an_example_returns(name: str) -> None:
    """Shapes, types and strides of contiguous outputs, from shapes of inputs, without a kernel."""
    text = next(text for text, found in example_programs("") if found == name)
    kernel = gpu(text, name, "bf16")
    sizes = driver.default_sizes(kernel.program, {})
    assert kernel.operator is not None
    with FakeTensorMode():
        tensors = [
            torch.empty(array_shape(argument, sizes), dtype=getattr(torch, numpy_dtype(argument.dtype).name))
            for argument in kernel.program.inputs
        ]
        results = kernel.operator(*tensors)
    for result, found in zip(
        kernel.program.outputs, results if isinstance(results, tuple | list) else (results,), strict=True
    ):
        assert tuple(found.shape) == array_shape(result.argument, sizes) and found.is_contiguous()
        assert str(found.dtype) == triton_runtime.type_name(result.argument.dtype)


def test_shapes_that_do_not_fit_are_refused_while_torch_records() -> None:
    kernel = gpu("program p(A: f32[m, k], B: f32[k, n]) -> C: f32[m, n] {\n    C = dot[k](A, B)\n}\n")
    with FakeTensorMode(), pytest.raises(RuntimeError, match="sizes that do not fit"):
        kernel(torch.empty(3, 4), torch.empty(5, 6))
    with FakeTensorMode(), pytest.raises(RuntimeError, match="another number of axes"):
        kernel(torch.empty(3), torch.empty(5, 6))


def test_the_name_of_an_operator_says_what_it_computes() -> None:
    names = {
        operator_name(gpu(STATISTICS)),
        operator_name(gpu(STATISTICS, dtype="f16")),
        operator_name(gpu(STATISTICS.replace("0.5", "0.25"))),
        operator_name(gpu(STATISTICS, tiles={"m": 16})),
        operator_name(gpu(STATISTICS, dims={"m": 16})),
    }
    assert len(names) == 5 and all(name.isidentifier() and name.startswith("p_") for name in names)
    assert operator_name(gpu(STATISTICS)) == operator_name(gpu(STATISTICS))


# Without a GPU


def test_without_a_gpu_a_message_says_what_works() -> None:
    if not triton_runtime.obstacle(triton_runtime.GPU):
        pytest.skip("there is a GPU")
    with pytest.raises(LimitError, match=r"no kernels can be run for `h200`.*torch finds no GPU\n.*`emit`, `lint`"):
        blockc.compile(STATISTICS, target="h200")
    with pytest.raises(LimitError, match="on cpu in its interpreter only"):
        blockc.compile(STATISTICS, target="h200", device="cpu")
    with pytest.raises(LimitError, match="torch knows no device 'abacus'"):
        blockc.compile(STATISTICS, target="a100", device="abacus")
    with pytest.raises(UsageError, match="kernels for `cpu` take NumPy arrays and no device"):
        blockc.compile(STATISTICS, device="cuda")
    found = CliRunner().invoke(cli.cli, ["run", str(EXAMPLES / "mlp.blk"), "--target", "h200", "--device", "cuda:7"])
    assert isinstance(found.exception, LimitError) and "its backend is triton" in str(found.exception)


def test_a_machine_for_another_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_runtime, "name_of", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(triton_runtime, "capability", lambda device: 80)
    program = parse_all(STATISTICS, "program.blk", None)["p"]
    for target in ("h200", "a100"):
        expected = pytest.warns(BlockcWarning, match=r"`h200`, of capability 9.0, and NVIDIA A100.* has 8.0; `a100`")
        with expected if target == "h200" else contextlib.nullcontext():
            kernel_for(load_machine(target), Kernel(program, target, {}, {}), None)


@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_a_missing_package_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert triton_runtime.obstacle("cuda") == f"{missing} is not installed (pip install 'blockc[triton]')"


# Around the launch


class Launches:
    """Stands for what is loaded: computes nothing, and fails where a block is larger than a limit."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit, self.texts, self.calls = limit, list[str](), 0

    def load(self, source: str, launcher: str) -> Any:
        self.texts.append(source)
        blocks = [int(line.split()[-1]) for line in source.splitlines() if line.startswith("#   d") and "cut" in line]

        def launch(*tensors: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if max(blocks) > self.limit:
                raise OutOfResources(max(blocks), self.limit, "shared memory")
            return tensors[0]

        return launch


PRODUCT = "program p(X: f16[m, k], W: f16[k, n]) -> Y: f16[m, n] {\n    Y = dot[k](X, W)\n}\n"


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    found = Launches()
    monkeypatch.setattr(triton_runtime, "load", found.load)
    monkeypatch.setattr(self_check, "probe", lambda *given: None)
    return found


def on_cpu(text: str, **options: Any) -> GpuKernel:
    """A kernel that takes tensors on the CPU."""
    kernel = gpu(text, **options)
    kernel.device = "cpu"
    return kernel


def test_sizes_are_looked_at_once_for_each_shape(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = on_cpu(PRODUCT)
    looks: list[Any] = []

    def looked(*given: Any) -> dict[str, int]:
        looks.append(given)
        return sizes_of(*given)

    monkeypatch.setattr(gpu_kernel, "sizes_of", looked)
    x, w = torch.empty(100, 64, dtype=torch.float16), torch.empty(64, 70, dtype=torch.float16)
    for _ in range(3):
        kernel(x, w)
        kernel(W=w, X=x)
    assert (len(looks), len(launches.texts), launches.calls) == (1, 1, 6)
    kernel(x[:90], w)
    assert (len(looks), len(launches.texts)) == (2, 1), "100 and 90 rows are up to 128, and have one kernel"
    kernel(x[:2], w)
    assert len(launches.texts) == 2


def test_sizes_fall_into_classes_unless_they_are_fixed() -> None:
    assert shape_class({"m": 0, "n": 1, "k": 65, "d": 80, "b": 64}, {"d": 80}) == {
        "m": 1,
        "n": 1,
        "k": 128,
        "d": 80,
        "b": 64,
    }


def test_costs_are_those_of_the_sizes_and_not_of_their_class(launches: Launches) -> None:
    kernel = on_cpu("program p(X: f32[m, n]) -> Y: f32[m] {\n    Y = sum[n](X)\n}\n")
    kernel(torch.empty(100, 70))
    assert kernel.cost.traffic_bytes == 4 * (100 * 70 + 100)
    explained = kernel.explain()
    assert dict(explained.to_json()["dims"]) == {"m": 100, "n": 70}
    assert explained.parts[0].plan.tiles == kernel.specialise({"m": 100, "n": 70}).plan.tiles
    assert "Chosen for h200" in str(explained) and "<svg " in explained._repr_html_()


def test_blocks_that_do_not_fit_become_smaller(launches: Launches) -> None:
    launches.limit = 32
    kernel = on_cpu(PRODUCT)
    x = torch.empty(512, 512, dtype=torch.float16)
    assert kernel(x, x) is x
    before = len(launches.texts)
    assert before > 1
    kernel(x, x)
    assert len(launches.texts) == before


# What the GPU refuses


class Refusing(Launches):
    """Stands for what is loaded: kernels whose text has one of some words are refused, all others return zeros."""

    def __init__(self, error: Exception, *words: str) -> None:
        super().__init__()
        self.error, self.words = error, words

    def load(self, source: str, launcher: str) -> Any:
        self.texts.append(source)

        def launch(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if any(word in source for word in self.words):
                raise self.error
            return torch.zeros(x.shape[0], w.shape[1], dtype=torch.float16)

        return launch


@dataclass
class Told:
    """A compiler that says something of every job by its warps, and how many it was given."""

    registers: Mapping[int, int]
    jobs: int = 0

    def results(self, jobs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Registers, and for 0 of them that they spill."""
        given = list(jobs)
        self.jobs += len(given)
        needs = [self.registers[job["warps"]] for job in given]
        return [
            {"registers": n or 255, "spill_bytes": 0 if n else 8, "shared_bytes": 1000, "warnings": []} for n in needs
        ]


def refused(why: str) -> Exception:
    """What Triton raises for a kernel that it does not compile."""
    error: Exception = CompilationError("def kernel0():\n    pass", ast.parse("pass").body[0], why)
    return error


@pytest.fixture
def on_h200(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Launches, Told], GpuKernel]:
    """What makes kernels on the CPU that take it for an H200, with a store that they share."""
    monkeypatch.setattr(triton_runtime, "capability", lambda device: 90)
    monkeypatch.setattr(self_check, "probe", lambda *given: None)

    def made(loaded: Launches, compiler: Told) -> GpuKernel:
        monkeypatch.setattr(triton_runtime, "load", loaded.load)
        kernel = on_cpu(PRODUCT)
        kernel.compiler, kernel.store = compiler, Store(tmp_path / "store")
        return kernel

    return made


OnH200 = Callable[[Launches, Told], GpuKernel]
CLEAN = {4: 100, 8: 100}
HALVES = torch.ones(64, 64, dtype=torch.float16)


@pytest.mark.parametrize(("registers", "warps"), [({4: 0, 8: 100}, 8), ({4: 100, 8: 0}, 4)])
def test_a_way_that_spills_does_not_run_on_a_gpu(registers: Mapping[int, int], warps: int, on_h200: OnH200) -> None:
    """What `lint` chooses is what runs, in other processes without compiling anything again."""
    loaded = Refusing(refused("no"))
    for compiled in (6, 0):
        told = Told(registers)
        kernel = on_h200(loaded, told)
        kernel(HALVES, HALVES)
        assert told.jobs == compiled and f"num_warps={warps}, num_stages=3" in kernel.source


def test_the_gpu_that_is_there_is_compiled_for(on_h200: OnH200, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(CLEAN)
    kernel = on_h200(Refusing(refused("no")), told)
    monkeypatch.setattr(triton_runtime, "capability", lambda device: 80)
    kernel(HALVES, HALVES)
    assert told.jobs == 4, "which has no tensor descriptors"


FAULTS = (
    refused("no"),
    PTXASError("fatal"),
    OutOfResources(9, 8, "shared memory"),
    RuntimeError("PassManager::run failed"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_the_next_way_is_taken_where_triton_refuses_one(fault: Exception, on_h200: OnH200) -> None:
    loaded, told = Refusing(fault, "num_warps=4", "num_stages=3"), Told(CLEAN)
    kernel = on_h200(loaded, told)
    assert torch.equal(kernel(HALVES, HALVES), torch.zeros(64, 64).half())
    assert "num_warps=8, num_stages=2" in kernel.source and len(loaded.texts) > 2
    again, jobs = on_h200(loaded, told), told.jobs
    again(HALVES, HALVES)
    assert again.source == kernel.source and told.jobs == jobs, "another process takes what ran"


def test_the_unfused_program_runs_where_triton_refuses_all(on_h200: OnH200) -> None:
    loaded = Refusing(refused("no"), "tl.dot")
    kernel = on_h200(loaded, Told(CLEAN))
    with pytest.warns(
        BlockcWarning, match="Triton compiles no kernels of `p` for this GPU: no; the unfused program runs"
    ):
        result = kernel(HALVES, HALVES)
    assert torch.equal(result, torch.full((64, 64), 64.0).half())
    calls = loaded.calls
    assert torch.equal(kernel(HALVES, HALVES), result) and loaded.calls == calls, "nothing is tried again"


def test_strictly_that_is_an_error(on_h200: OnH200) -> None:
    kernel = on_h200(Refusing(FAULTS[2], "tl.dot"), Told(CLEAN))
    kernel.strict = True
    with pytest.raises(LimitError, match="kernels of `p` need more than this GPU has: out of resource: shared memory"):
        kernel(HALVES, HALVES)


def test_other_faults_of_a_launch_stay_what_they_are(on_h200: OnH200) -> None:
    loaded = Refusing(RuntimeError("CUDA error: an illegal memory access"), "tl.dot")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        on_h200(loaded, Told(CLEAN))(HALVES, HALVES)
    assert loaded.calls == 1


def test_the_refused_kernel_is_named() -> None:
    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            outer = refused("")
            outer.__cause__ = refused("cannot convert\nit")
            raise outer

    launch = triton_runtime.load("def launch(kernel7):\n    kernel7[(1,)](\n        1,\n    )\n", "launch")
    with pytest.raises(RefusedError) as found, triton_runtime.refusals():
        launch(Kernel())
    assert str(found.value) == "`kernel7`: cannot convert"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is planned from now on."""
    plans: list[Any] = []
    first = Attempts.first

    def planned(self: Attempts, sizes: Mapping[str, int]) -> Any:
        plans.append(sizes)
        return first(self, sizes)

    monkeypatch.setattr(Attempts, "first", planned)
    return plans


def test_another_process_plans_nothing(launches: Launches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was chosen is in the store, in the size that fits the GPU; whoever asks gets its plan all the same."""
    x = torch.empty(512, 512, dtype=torch.float16)
    launches.limit = 32
    plans = counted(monkeypatch)
    first, second = (on_cpu(PRODUCT) for _ in range(2))
    first.store = second.store = Store(tmp_path / "store")
    first(x, x)
    made, texts = len(plans), len(launches.texts)
    second(x, x)
    assert (made, len(plans)) == (1, 1) and texts > 1, "nothing is planned again"
    assert launches.texts[texts:] == [first.source] == [second.source]
    assert second.cost == first.cost and len(plans) == 2


def test_what_fails_its_self_check_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(triton_runtime, "load", Wrong().load)
    kernel = on_cpu(PRODUCT)
    kernel.store = Store(tmp_path / "store")
    with pytest.warns(BlockcWarning, match="failed its self-check"):
        kernel(torch.ones(20, 16).half(), torch.ones(16, 30).half())
    assert {entry.kind for entry in kernel.store.entries()} == {"failed"}


OTHERS: dict[str, Callable[[GpuKernel], None]] = {
    "program": lambda kernel: setattr(kernel, "program", gpu(PRODUCT.replace("[k](X", "[k](-X")).program),
    "types": lambda kernel: setattr(kernel, "program", gpu(PRODUCT, dtype="bf16").program),
    "text": lambda kernel: setattr(kernel, "program", gpu("# Mine.\n" + PRODUCT).program),
    "machine": lambda kernel: setattr(kernel, "machine", replace(load_machine(TARGET), units=7)),
    "blocks": lambda kernel: setattr(kernel, "tiles", {"m": 32}),
    "chunks": lambda kernel: setattr(kernel, "split", {"k": 2}),
    "fixed sizes": lambda kernel: setattr(kernel, "dims", {"m": 100}),
}


@pytest.mark.parametrize("ingredient", [*OTHERS, "sizes", "the GPU", "results of tuning"])
def test_what_is_kept_depends_on_it(
    ingredient: str, launches: Launches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`test_cache.py` has versions."""
    first, second = (on_cpu(PRODUCT) for _ in range(2))
    first.store = second.store = Store(tmp_path / "store")
    x, w = torch.empty(100, 64, dtype=torch.float16), torch.empty(64, 70, dtype=torch.float16)
    first(x, w)
    if ingredient in OTHERS:
        OTHERS[ingredient](second)
    elif ingredient == "the GPU":
        monkeypatch.setattr(triton_runtime, "name_of", lambda device: "another")
    elif ingredient == "results of tuning":
        monkeypatch.setattr(gpu_kernel, "books", lambda machine: [Book("another", ())])
    shapes = {"m": 100, "k": 64, "n": 70} | ({"m": 200} if ingredient == "sizes" else {})
    plans = counted(monkeypatch)
    second.specialise(shapes)
    assert plans


def test_blocks_that_were_asked_for_stay(launches: Launches) -> None:
    launches.limit = 32
    kernel = on_cpu(PRODUCT, tiles={"m": 64, "n": 64, "k": 64})
    x = torch.empty(512, 512, dtype=torch.float16)
    with pytest.raises(LimitError, match=r"need more than this GPU has.*\n.*smaller blocks"):
        kernel(x, x)


class Wrong(Launches):
    """Kernels that return zeros."""

    def load(self, source: str, launcher: str) -> Any:
        self.texts.append(source)

        def launch(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return torch.zeros(x.shape[0], w.shape[1], dtype=torch.float16)

        return launch


def test_kernels_that_fail_their_self_check_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Wrong()
    monkeypatch.setattr(triton_runtime, "load", wrong.load)
    x, w = torch.randn(20, 16).half(), torch.randn(16, 30).half()
    kernel = on_cpu(PRODUCT)
    with pytest.warns(BlockcWarning, match="failed its self-check: output `Y`.*the unfused program runs instead"):
        result = kernel(x, w)
    torch.testing.assert_close(result, (x.float() @ w.float()).half(), rtol=1e-2, atol=1e-2)
    calls = wrong.calls
    assert torch.equal(kernel(x, w), result) and wrong.calls == calls
    strict = on_cpu(PRODUCT)
    strict.strict = True
    with pytest.raises(CheckError, match="failed its self-check"):
        strict(x, w)


def test_kernels_are_checked_once(monkeypatch: pytest.MonkeyPatch, launches: Launches) -> None:
    probes: list[Any] = []
    monkeypatch.setattr(self_check, "probe", lambda *given: probes.append(given))
    x = torch.zeros(48, 48, dtype=torch.float16)
    for _ in range(2):
        kernel = on_cpu(PRODUCT, tiles={"m": 16, "n": 16, "k": 16})
        kernel(x, x)
        kernel(x[:33], x)
    assert len(probes) == 1
