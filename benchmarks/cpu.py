"""Times blockc against torch and unfused NumPy on the CPU, and its choice of tiles against others.

    python benchmarks/cpu.py                          the default sizes
    python benchmarks/cpu.py --rows 2048 --rounds 20  others
    python benchmarks/cpu.py --tiles                  and a grid of tiles beside the chosen ones
    python benchmarks/cpu.py --json results.json      the numbers as well
    python benchmarks/cpu.py --target mine.toml       with another machine file than that of cpu

`blockc targets calibrate` measures which library multiplies faster here, for the target cpu; without it, NumPy does.

The work: attention, attention of one query over many keys (decode), LayerNorm and a product, RMSNorm and a gated
feed-forward layer. All candidates of a case run in one process, in turn, round after round, so that a machine that
speeds up or slows down does so for all of them. The table gives medians, the spread between the quartiles, and ratios
of times: above 1, blockc is faster. Every candidate waits until the busily waiting threads of the one before have gone
to sleep, and the second of two calls is timed, as in a loop. CPU time counts all threads; on a machine that does other
work as well, its ratio is the more reliable one, and CPU time over wall time says how many cores were at work. Memory
is the peak of what NumPy allocates during one call, the result included.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info

import blockc
from blockc.benchmarking import settle
from blockc.machines.loading import load_machine

EXAMPLES = Path(__file__).parent.parent / "examples"
FEWEST_ROUNDS = 3

Array = np.ndarray[Any, np.dtype[Any]]
Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One piece of work: its example, sizes and arrays, everyone else who does it, and tiles to try."""

    name: str
    example: str
    sizes: Mapping[str, int]
    arrays: Mapping[str, Array]
    others: Mapping[str, Call]
    grid: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Row:
    """What one candidate did: seconds of the median round and of the quartiles, and bytes if NumPy allocates them.

    `ratio` and `cpu_ratio` are its times over blockc's, `cores` its CPU time over its time.
    """

    case: str
    candidate: str
    median: float
    lower: float
    upper: float
    ratio: float
    cpu_ratio: float
    cores: float
    peak_bytes: int | None
    max_difference: float


@dataclass(frozen=True, slots=True)
class Tiles:
    """The chosen tiles of a case, the fastest of the grid, and how much longer the chosen ones take.

    `cpu_ratio` is the CPU time of the chosen tiles over the least of all.
    """

    case: str
    chosen: Mapping[str, int]
    best: Mapping[str, int]
    ratio: float
    cpu_ratio: float
    candidates: int


def random_arrays(**shapes: tuple[int, ...]) -> dict[str, Array]:
    """Random numbers; those of a weight, which has two axes and is not X, are scaled so that its products are not."""
    generator = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for name, shape in shapes.items():
        scale = np.sqrt(shape[0]) if len(shape) == 2 and name != "X" else 1.0
        arrays[name] = (generator.standard_normal(shape) / scale).astype(np.float32)
    return arrays


def attention(queries: int, keys: int, heads: int, width: int, name: str = "attention") -> Case:
    """Attention in f32, one batch: torch's own, and NumPy step by step, with new arrays and in place."""
    shapes = {"Q": queries, "K": keys, "V": keys}
    arrays = random_arrays(**{operand: (1, heads, rows, width) for operand, rows in shapes.items()})
    q, k, v = arrays.values()
    tq, tk, tv = (torch.from_numpy(array) for array in arrays.values())

    def numpy_unfused() -> Array:
        scores = (q @ k.swapaxes(-1, -2)) / np.float32(np.sqrt(width))
        exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = exponentials / exponentials.sum(axis=-1, keepdims=True)
        result: Array = weights @ v
        return result

    def numpy_in_place() -> Array:
        scores = q @ k.swapaxes(-1, -2)
        scores /= np.float32(np.sqrt(width))
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        result: Array = scores @ v
        return result

    others = {
        "torch": lambda: torch.nn.functional.scaled_dot_product_attention(tq, tk, tv),
        "NumPy": numpy_unfused,
        "in place": numpy_in_place,
    }
    sizes = {"b": 1, "h": heads, "m": queries, "n": keys, "d": width, "e": width}
    grid = {"m": (128, 256, 512, 1024), "n": (256, 512, 1024, 2048)} if queries > 1 else {"n": (512, 2048, 8192, 16384)}
    return Case(name, "attention", sizes, arrays, others, grid)


def layernorm(rows: int, features: int, columns: int) -> Case:
    """LayerNorm and a product, in f32: torch eager and NumPy."""
    arrays = random_arrays(X=(rows, features), gain=(features,), bias=(features,), W=(features, columns))
    x, gain, bias, w = arrays.values()
    tx, tgain, tbias, tw = (torch.from_numpy(array) for array in arrays.values())

    def torch_eager() -> torch.Tensor:
        return torch.nn.functional.layer_norm(tx, (features,), tgain, tbias, 1e-5) @ tw

    def numpy_unfused() -> Array:
        centred = x - x.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred * centred).mean(axis=1, keepdims=True) + np.float32(1e-5))
        result: Array = (centred / deviation * gain + bias) @ w
        return result

    sizes = {"m": rows, "d": features, "n": columns}
    grid = {"m": (128, 256, 512, 1024), "n": (256, 512, 1024)}
    others = {"torch": torch_eager, "NumPy": numpy_unfused}
    return Case("layernorm_matmul", "layernorm_matmul", sizes, arrays, others, grid)


def feed_forward(rows: int, features: int, hidden: int) -> Case:
    """RMSNorm, two projections, a gate and one projection, in f32: torch eager and NumPy."""
    arrays = random_arrays(
        X=(rows, features), gain=(features,), Wg=(features, hidden), Wu=(features, hidden), Wd=(hidden, features)
    )
    x, gain, gate, up, down = arrays.values()
    tensors = [torch.from_numpy(array) for array in arrays.values()]

    def torch_eager() -> torch.Tensor:
        tx, tgain, tgate, tup, tdown = tensors
        normal = torch.nn.functional.rms_norm(tx, (features,), tgain, 1e-6)
        return (torch.nn.functional.silu(normal @ tgate) * (normal @ tup)) @ tdown

    def numpy_unfused() -> Array:
        normal = x * (1 / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + np.float32(1e-6))) * gain
        gated = normal @ gate
        gated /= 1 + np.exp(-gated)
        gated *= normal @ up
        result: Array = gated @ down
        return result

    sizes = {"m": rows, "d": features, "z": hidden, "e": features}
    grid = {"m": (128, 256, 512, 1024), "z": (256, 512, 1024), "e": (256, 512)}
    others = {"torch": torch_eager, "NumPy": numpy_unfused}
    return Case("rmsnorm_swiglu", "rmsnorm_swiglu", sizes, arrays, others, grid)


def kernel_of(case: Case, target: str, tiles: Mapping[str, int] | None = None) -> blockc.Kernel:
    """blockc's kernel for a case."""
    example = EXAMPLES / f"{case.example}.blk"
    return blockc.compile(example, dtype="f32", dims=case.sizes, target=target, tiles=tiles)


def interleaved(calls: Mapping[str, Call], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds, and seconds of CPU, of every call in every round: of the second of two calls, as in a loop."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    work: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for position in range(rounds):
        # Each comes first in turn: what runs behind another finds its memory.
        for name in (*names[position % len(names) :], *names[: position % len(names)]):
            settle()
            calls[name]()
            busy, started = time.process_time(), time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - started)
            work[name].append(time.process_time() - busy)
    return times, work


def measure(case: Case, target: str, rounds: int) -> list[Row]:
    """One row for each candidate, after one warm-up call each."""
    calls: dict[str, Call] = {"blockc": partial(kernel_of(case, target), **case.arrays), **case.others}
    results = {name: np.asarray(call()) for name, call in calls.items()}
    peaks = {name: peak_memory(call) for name, call in calls.items() if name != "torch"}
    times, work = interleaved(calls, rounds)
    rows = []
    for name, taken in times.items():
        lower, median, upper = statistics.quantiles(taken, n=4, method="inclusive")
        # The median of the ratios within rounds: what changes from round to round changes both.
        ratio = median_ratio(taken, times["blockc"])
        cpu_ratio, cores = median_ratio(work[name], work["blockc"]), median_ratio(work[name], taken)
        difference = float(np.abs(results[name] - results["blockc"]).max())
        rows.append(Row(case.name, name, median, lower, upper, ratio, cpu_ratio, cores, peaks.get(name), difference))
    return rows


def median_ratio(these: list[float], those: list[float]) -> float:
    """The median of the ratios within rounds."""
    return statistics.median(one / other for one, other in zip(these, those, strict=True))


def measure_tiles(case: Case, target: str, rounds: int) -> Tiles:
    """The chosen tiles of a case beside all of its grid."""
    kernel = kernel_of(case, target)
    chosen = {dim: tile for dim, tile in kernel.explain().parts[0].plan.tiles.items() if dim in case.grid}
    candidates = {"": chosen}
    for combination in itertools.product(*case.grid.values()):
        tiles = dict(zip(case.grid, combination, strict=True))
        if any(min(tiles[dim], case.sizes[dim]) != min(chosen[dim], case.sizes[dim]) for dim in tiles):
            candidates[spelled(tiles)] = tiles
    kernels = {name: kernel_of(case, target, tiles) if name else kernel for name, tiles in candidates.items()}
    calls = {name: partial(kernel, **case.arrays) for name, kernel in kernels.items()}
    for call in calls.values():
        call()
    times, work = interleaved(calls, rounds)
    ratios = {name: median_ratio(taken, times[""]) for name, taken in times.items()}
    least_work = min(median_ratio(taken, work[""]) for taken in work.values())
    best = min(ratios, key=ratios.__getitem__)
    return Tiles(case.name, chosen, candidates[best], 1 / ratios[best], 1 / least_work, len(candidates))


def spelled(tiles: Mapping[str, int]) -> str:
    """Tiles as they are asked for on the command line."""
    return ", ".join(f"{dim}={tile}" for dim, tile in tiles.items())


def peak_memory(call: Call) -> int:
    """The largest number of bytes that one call holds in NumPy arrays and Python objects."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def machine(target: str) -> dict[str, Any]:
    """What the numbers depend on."""
    described = load_machine(target)
    names = [line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "blas": sorted({f"{pool['internal_api']} {pool['version']}" for pool in threadpool_info() if pool["version"]}),
        "numpy_threads": max((pool["num_threads"] for pool in threadpool_info()), default=1),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "blockc": blockc.__version__,
        "target": f"{described.name}: {described.description}",
        "products": described.products,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def cpu_lines() -> list[str]:
    """What Linux says about the processors; nothing elsewhere."""
    information = Path("/proc/cpuinfo")
    return information.read_text().splitlines() if information.exists() else []


def table(case: Case, rows: list[Row]) -> Iterator[str]:
    """The rows of a case as text."""
    yield ""
    yield f"{case.name} f32, {spelled(case.sizes)}"
    heads = f"{'time/blockc':>13}{'CPU/blockc':>12}{'cores':>7}{'memory':>12}{'difference':>12}"
    yield f"  {'':<8}{'median':>11}{'quartiles':>24}{heads}"
    for row in rows:
        quartiles = f"{row.lower * 1e3:.1f} to {row.upper * 1e3:.1f} ms"
        memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f} MiB"
        ratios = f"{row.ratio:>13.2f}{row.cpu_ratio:>12.2f}{row.cores:>7.2f}"
        times = f"{f'{row.median * 1e3:.1f} ms':>11}{quartiles:>24}"
        yield f"  {row.candidate:<8}{times}{ratios}{memory:>12}{row.max_difference:>12.1e}"


def tiles_line(found: Tiles) -> str:
    """What `measure_tiles` found, as text."""
    return (
        f"{found.case:<18}chosen {spelled(found.chosen)}; best of {found.candidates}: {spelled(found.best)}; "
        f"chosen/best {found.ratio:.2f}, in CPU time {found.cpu_ratio:.2f}"
    )


def options(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="of every candidate (default: 9)")
    parser.add_argument("--rows", type=int, default=4096, help="queries and keys, or rows (default: 4096)")
    parser.add_argument("--keys", type=int, default=32768, help="of one query (default: 32768)")
    parser.add_argument("--heads", type=int, default=8, help="of attention (default: 8)")
    parser.add_argument("--width", type=int, default=64, help="of a head (default: 64)")
    parser.add_argument("--features", type=int, default=512, help="of the norms (default: 512)")
    parser.add_argument("--hidden", type=int, default=1408, help="features behind them (default: 1408)")
    parser.add_argument("--target", default="cpu", help="the machine, a name or a file (default: cpu)")
    parser.add_argument("--tiles", action="store_true", help="time a grid of tiles as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds must be at least {FEWEST_ROUNDS}")
    return chosen


def cases(chosen: argparse.Namespace) -> Iterator[Case]:
    """The pieces of work."""
    yield attention(chosen.rows, chosen.rows, chosen.heads, chosen.width)
    yield attention(1, chosen.keys, 1, chosen.width, "decode")
    yield layernorm(chosen.rows, chosen.features, chosen.hidden)
    yield feed_forward(chosen.rows, chosen.features, chosen.hidden)


def main(arguments: list[str]) -> None:
    """Measure all cases and print the tables."""
    chosen = options(arguments)
    facts = machine(chosen.target)
    print("\n".join(f"{name}: {', '.join(fact) if isinstance(fact, list) else fact}" for name, fact in facts.items()))
    rows: list[Row] = []
    for case in cases(chosen):
        measured = measure(case, chosen.target, chosen.rounds)
        print("\n".join(table(case, measured)), flush=True)
        rows += measured
    tiles: list[Tiles] = []
    for case in cases(chosen) if chosen.tiles else ():
        tiles.append(measure_tiles(case, chosen.target, FEWEST_ROUNDS))
        print(("" if len(tiles) > 1 else "\n") + tiles_line(tiles[-1]), flush=True)
    if chosen.json is not None:
        options_used = {name: value for name, value in vars(chosen).items() if name not in ("json", "target")}
        content = {
            "machine": facts,
            "options": options_used,
            "rows": [*map(asdict, rows)],
            "tiles": [*map(asdict, tiles)],
        }
        chosen.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
