"""Times blockc's kernels on a GPU against torch: its attention (cuDNN, FlashAttention 2), FlexAttention, torch.compile.

    python benchmarks/gpu.py --json results.json   within 8 minutes
    python benchmarks/gpu.py --quick               within 90 seconds
    python benchmarks/gpu.py --only decode         rows with this in their name
    python benchmarks/gpu.py --floor               no GPU: how fast each row can be, beside what blockc predicts
    python benchmarks/gpu.py --target FILE.toml    for a GPU that no machine of blockc describes

Every result is compared with the formula in float64 on some rows before it is timed. The candidates of a row run in
turn, round after round, with the cache emptied before each; calls under 100 microseconds are captured ten at a time in
a CUDA graph. The table gives medians and quartiles, ratios of times (above 1, blockc is faster), and the share of the
floor: the larger of operations over the rate of bf16 products and bytes over the bandwidth of the memory, both of the
machine file for the GPU. The same run measures a product of 8192 by 8192 by 8192 and a copy. Rows that do not fit the
time are named.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gpu_work
import torch
from gpu_work import Work

import blockc
from blockc.codegen import triton_runtime
from blockc.ir.machine import Machine
from blockc.machines.loading import load_machine, machine_of
from blockc.partition import partition

WITHOUT_GPU = "h200"  # the target of floors, if nobody says
BUDGET, QUICK = 480.0, 90.0  # seconds
MARGIN = 10.0  # of these, for what comes after the last row
FEWEST_ROUNDS, MOST_ROUNDS, ROUNDS_SECONDS = 5, 50, 1.0
SHORT, TOGETHER = 100e-6, 10  # calls shorter than this are captured, so many in a graph
WRONG = 2e-2  # relative error in the norm: bf16 is between 1e-3 and 1e-2
# Seconds that a row of a group takes, before one was measured.
EXPECTED = {"attention": 8.0, "variant": 15.0, "decode": 10.0, "norm": 40.0, "example": 10.0}

Call = Callable[[], Any]
Maker = Callable[[], Call]
Clock = Callable[[], float]


class OutOfTimeError(BaseException):
    """The time of a run has passed while something was compiled. Not an Exception: torch's compiler wraps those."""


@dataclass(frozen=True, slots=True)
class Roof:
    """What a machine does at most: operations of products in bf16, and bytes of its memory, per second."""

    flops: float
    bytes: float

    def floor(self, work: Work) -> float:
        """The seconds that the products and the bytes of a row take at least."""
        return max(work.flops / self.flops, work.bytes / self.bytes)


def roof_of(target: Machine) -> Roof:
    """The roof of a machine."""
    rates = [unit.operations.get("matmul", {}).get("bf16") for unit in target.compute]
    return Roof(max(rate.rate for rate in rates if rate is not None), target.tiers[0].read)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one candidate did: seconds of the median round and of the quartiles, its relative error, its time over
    blockc's, and what went wrong, or ""."""

    name: str
    median: float
    lower: float
    upper: float
    difference: float
    ratio: float
    problem: str


@dataclass(frozen=True, slots=True)
class Row:
    """A piece of work and what its candidates did, blockc first; `floor` is the least number of seconds."""

    group: str
    name: str
    dtype: str
    flops: int
    bytes: int
    floor: float
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Bench:
    """What a run needs of a device: what makes the calls of a row, how far a result is off, how long a call takes, what
    the time is, and what interrupts after some seconds."""

    makers: Callable[[Work], Mapping[str, Maker]]
    difference: Callable[[Work, Any], float]
    prepared: Callable[[Call], tuple[Call, int]]
    seconds: Callable[[Call], float]
    clock: Clock
    limited: Callable[[float], contextlib.AbstractContextManager[None]]


# --- a run ------------------------------------------------------------------------------------------------------------


def run(
    works: Sequence[Work], bench: Bench, roof: Roof, budget: float, say: Callable[[Row], None]
) -> tuple[list[Row], list[str]]:
    """The rows that fit into some seconds, in order, and the names of those that do not. A row is not begun if one of
    its group took longer before than is left, and is given up when the time has passed."""
    started = bench.clock()
    longest = dict(EXPECTED)
    rows: list[Row] = []
    left_out: list[str] = []
    for work in works:
        begun = bench.clock()
        left = budget - (begun - started)
        if left < longest[work.group]:
            left_out.append(work.name)
            continue
        try:
            with bench.limited(left):
                row = measure(work, bench, roof)
        except OutOfTimeError:
            left_out.append(work.name)
            continue
        taken = bench.clock() - begun
        seen = any(other.group == work.group for other in rows)
        rows.append(row)
        say(row)
        longest[work.group] = max(longest[work.group], taken) if seen else taken
    return rows, left_out


def measure(work: Work, bench: Bench, roof: Roof) -> Row:
    """Make and check all candidates of a row, then time those that are right."""
    calls: dict[str, Call] = {}
    together: dict[str, int] = {}
    differences: dict[str, float] = {}
    problems: dict[str, str] = {}
    for name, maker in bench.makers(work).items():
        try:
            call = maker()
            differences[name] = bench.difference(work, call())
            calls[name], together[name] = bench.prepared(call)
        except Exception as error:  # noqa: BLE001 - whatever a library lacks for this row is said in the table
            problems[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            calls.pop(name, None)
        else:
            if not differences[name] <= WRONG:
                problems[name] = f"wrong: relative error {differences[name]:.1e}"
    times = interleaved(calls, bench)
    own = times.get("blockc")
    candidates = []
    for name in (*calls, *(name for name in problems if name not in calls)):
        taken = [seconds / together[name] for seconds in times.get(name, [])]
        lower, median, upper = statistics.quantiles(taken, n=4, method="inclusive") if taken else (math.nan,) * 3
        ratio = math.nan
        if own and taken:
            scale = together["blockc"]
            ratio = statistics.median(other / (mine / scale) for other, mine in zip(taken, own, strict=True))
        difference = differences.get(name, math.nan)
        candidates.append(Candidate(name, median, lower, upper, difference, ratio, problems.get(name, "")))
    candidates.sort(key=lambda found: found.name != "blockc")
    return Row(work.group, work.name, work.dtype, work.flops, work.bytes, roof.floor(work), tuple(candidates))


def interleaved(calls: Mapping[str, Call], bench: Bench) -> dict[str, list[float]]:
    """Seconds of every call in every round; each comes first in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    started = bench.clock()
    for position in range(MOST_ROUNDS if names else 0):
        if position >= FEWEST_ROUNDS and bench.clock() - started > ROUNDS_SECONDS:
            break
        for name in (*names[position % len(names) :], *names[: position % len(names)]):
            times[name].append(bench.seconds(calls[name]))
    return times


# --- on a GPU ---------------------------------------------------------------------------------------------------------


def on_gpu(target: str, device: str) -> Bench:
    """A run on a GPU that a target describes."""
    event: Any = torch.cuda.Event
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device=device)
    tensors: dict[str, dict[str, torch.Tensor]] = {}

    def inputs(work: Work) -> dict[str, torch.Tensor]:
        if work.name not in tensors:
            tensors.clear()
            torch.cuda.empty_cache()
            tensors[work.name] = gpu_work.tensors_of(work, device)
        return tensors[work.name]

    def makers(work: Work) -> dict[str, Maker]:
        torch._dynamo.reset()
        return makers_for(work, inputs(work), target, device)

    def seconds(call: Call) -> float:
        flush.zero_()
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1000

    def prepared(call: Call) -> tuple[Call, int]:
        if min(seconds(call) for _ in range(3)) > SHORT:
            return call, 1
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for _ in range(TOGETHER):
                    call()
        except RuntimeError:  # it cannot be captured
            return call, 1
        return graph.replay, TOGETHER

    def difference(work: Work, results: Any) -> float:
        return gpu_work.difference(work, inputs(work), results)

    return Bench(makers, difference, prepared, seconds, time.perf_counter, interrupted_after)


def makers_for(work: Work, tensors: Mapping[str, torch.Tensor], target: str, device: str) -> dict[str, Maker]:
    """What makes the call of each candidate of a row, blockc first."""

    def own() -> Call:
        text = work.file.read_text(encoding="utf-8")
        kernel = blockc.compile(text, target, work.sizes, dtype=work.dtype, program=work.program_name, device=device)
        single = len(work.program.outputs) == 1
        return lambda: (kernel(**tensors),) if single else tuple(kernel(**tensors).values())

    def another(name: str) -> Maker:
        return lambda: gpu_work.other(work, name, tensors)

    return {"blockc": own, **{name: another(name) for name in work.against}}


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError in what takes longer."""

    def interrupt(number: int, frame: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def rates(bench: Bench, device: str) -> dict[str, float]:
    """What the device does in this run: operations per second of a large product in bf16 on random numbers, and bytes
    per second, read and written, of a large copy."""
    size = 8192
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    source = torch.randint(0, 127, (4 * 2**30,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)

    def rate(amount: int, call: Call) -> float:
        call()
        return amount / statistics.median(bench.seconds(call) for _ in range(10))

    return {
        "matmul_flops_per_second": rate(2 * size**3, lambda: a @ b),
        "copy_bytes_per_second": rate(2 * source.numel(), lambda: target.copy_(source)),
    }


def machine(device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    import triton

    cudnn: Any = torch.backends.cudnn.version
    return {
        "gpu": torch.cuda.get_device_name(device),
        "multiprocessors": torch.cuda.get_device_properties(device).multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": cudnn(),
        "clocks": clocks(),
        **versions(),
        "triton": triton.__version__,
    }


def versions() -> dict[str, str]:
    """Versions and the date."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "blockc": blockc.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def clocks() -> dict[str, str]:
    """What the driver says of clocks, power and temperature; nothing where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return {}
    names = ["driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "temperature.gpu"]
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.splitlines()
    return dict(zip(names, (part.strip() for part in said[0].split(",")), strict=False)) if said else {}


# --- tables -----------------------------------------------------------------------------------------------------------


def lines(row: Row) -> Iterator[str]:
    """A row as text."""
    yield ""
    yield f"{row.group}: {row.name}, {row.dtype}; floor {row.floor * 1e6:.1f} us"
    yield f"  {'':<10}{'median':>12}{'quartiles':>26}{'time/blockc':>13}{'floor/time':>12}{'TFLOP/s':>10}{'error':>10}"
    for found in row.candidates:
        if math.isnan(found.median):
            yield f"  {found.name:<10} {found.problem}"
            continue
        quartiles = f"{found.lower * 1e6:.1f} to {found.upper * 1e6:.1f} us"
        share, rate = row.floor / found.median, row.flops / found.median / 1e12
        ratio = f"{found.ratio:>13.2f}{share:>12.2f}{rate:>10.0f}{found.difference:>10.1e}"
        yield f"  {found.name:<10}{f'{found.median * 1e6:.1f} us':>12}{quartiles:>26}{ratio}  {found.problem}".rstrip()


@dataclass(frozen=True, slots=True)
class Floor:
    """How fast a row can be, what limits it, and what blockc predicts for its kernels."""

    group: str
    name: str
    dtype: str
    flops: int
    bytes: int
    floor: float
    limit: str
    predicted: float
    waits_for: str


def floors(works: Sequence[Work], target: Machine) -> Iterator[Floor]:
    """The floor of every row, and the time that is predicted for the plan that is chosen."""
    roof = roof_of(target)
    for work in works:
        limit = "products" if work.flops / roof.flops > work.bytes / roof.bytes else "bytes"
        plan = partition(work.program, target, work.sizes, {})
        yield Floor(
            work.group,
            work.name,
            work.dtype,
            work.flops,
            work.bytes,
            roof.floor(work),
            limit,
            plan.seconds,
            plan.bottleneck,
        )


def floor_line(found: Floor) -> str:
    """A floor as text."""
    times = f"{found.floor * 1e6:>12.1f}{found.predicted * 1e6:>12.1f}{found.predicted / found.floor:>8.2f}"
    return f"{found.name:<72}{found.limit:>9}{times}  {found.waits_for}"


def write(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, if there is a path; what is no number becomes null."""
    if path is not None:
        path.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {key: _plain(part) for key, part in value.items()}
        case list() | tuple():
            return [_plain(part) for part in value]
        case _:
            return value


def options(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"a few rows, within {QUICK:.0f} s")
    parser.add_argument("--seconds", type=float, help=f"how long it may take (default: {BUDGET:.0f})")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows with this in their group or name")
    parser.add_argument("--device", default=triton_runtime.GPU, help="the GPU, as torch calls it (default: cuda)")
    target = f"the machine that describes it (default: by what the GPU calls itself; floors: {WITHOUT_GPU})"
    parser.add_argument("--target", metavar="NAME", help=target)
    parser.add_argument("--floor", action="store_true", help="measure nothing: floors and predictions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file")
    return parser.parse_args(arguments)


def chosen_works(chosen: argparse.Namespace) -> list[Work]:
    """The rows that are asked for."""
    found = [work for work in gpu_work.works() if work.quick or not chosen.quick]
    return [work for work in found if chosen.only in f"{work.group} {work.name}"]


def print_floors(chosen: argparse.Namespace) -> int:
    """Print how fast each row can be."""
    target = load_machine(chosen.target or WITHOUT_GPU)
    roof = roof_of(target)
    rates = f"{roof.flops / 1e12:.0f} TFLOP/s, {roof.bytes / 1e12:.1f} TB/s"
    print(f"{target.name}: {rates}; times in us; nothing is measured")
    print(f"{'':<72}{'limit':>9}{'floor':>12}{'predicted':>12}{'ratio':>8}  predicted to wait for")
    found = []
    for floor in floors(chosen_works(chosen), target):
        found.append(floor)
        print(floor_line(floor), flush=True)
    facts = {"target": target.name, "flops_per_second": roof.flops, "bytes_per_second": roof.bytes}
    write(chosen.json, {"versions": versions(), **facts, "rows": [asdict(floor) for floor in found]})
    return 0


def main(arguments: list[str]) -> int:
    """Measure, or print floors."""
    started = time.perf_counter()
    chosen = options(arguments)
    if chosen.floor:
        return print_floors(chosen)
    if obstacle := triton_runtime.obstacle(chosen.device):
        print(f"nothing can be measured: {obstacle}; --floor works without a GPU", file=sys.stderr)
        return 3
    name = triton_runtime.name_of(chosen.device)
    target = chosen.target or machine_of(name)
    if target is None:
        print(f"no machine describes {name}: write one (blockc targets new) and give it with --target", file=sys.stderr)
        return 3
    roof = roof_of(load_machine(target))
    budget = chosen.seconds or (QUICK if chosen.quick else BUDGET)
    bench = on_gpu(target, chosen.device)
    facts = {"target": target, **machine(chosen.device)}
    measured = rates(bench, chosen.device)
    print("\n".join(f"{name}: {fact}" for name, fact in {**facts, **measured}.items()), flush=True)
    left = budget - MARGIN - (time.perf_counter() - started)
    works = chosen_works(chosen)
    rows, left_out = run(works, bench, roof, left, lambda row: print("\n".join(lines(row)), flush=True))
    facts["clocks_afterwards"] = clocks()
    print("\n" + (f"left out for lack of time: {'; '.join(left_out)}" if left_out else "no row was left out"))
    print(f"{len(rows)} rows in {time.perf_counter() - started:.0f} s")
    used = {name: value for name, value in vars(chosen).items() if name != "json"}
    content = {"machine": facts, "rates": measured, "options": used, "rows": [asdict(row) for row in rows]}
    write(chosen.json, {**content, "left_out": left_out, "seconds": time.perf_counter() - started})
    return 1 if any(found.problem for row in rows for found in row.candidates[:1]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
