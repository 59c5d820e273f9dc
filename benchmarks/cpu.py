"""Times blockc against torch and unfused NumPy on the CPU: attention, and RMSNorm with a gated feed-forward layer.

    python benchmarks/cpu.py                          the default sizes
    python benchmarks/cpu.py --rows 2048 --rounds 20  others
    python benchmarks/cpu.py --json results.json      the numbers as well

All candidates of a case run in one process, in turn, round after round, so that a machine that speeds up or slows down
does so for all of them. The table gives medians, the spread between the quartiles, and ratios: above 1, blockc is
faster. Memory is the peak of what NumPy allocates during one call, the result included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info

import blockc

EXAMPLES = Path(__file__).parent.parent / "examples"
FEWEST_ROUNDS = 3

Array = np.ndarray[Any, np.dtype[Any]]
Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One piece of work: its sizes, and everyone who does it, blockc first."""

    name: str
    sizes: Mapping[str, int]
    calls: Mapping[str, Call]


@dataclass(frozen=True, slots=True)
class Row:
    """What one candidate did: seconds of the median round and of the quartiles, and bytes if NumPy allocates them."""

    case: str
    candidate: str
    median: float
    lower: float
    upper: float
    ratio: float
    peak_bytes: int | None
    max_difference: float


def attention(rows: int, heads: int, width: int) -> Case:
    """Attention in f32, one batch: blockc, torch's own, and NumPy step by step, with new arrays and in place."""
    generator = np.random.default_rng(0)
    shape = (1, heads, rows, width)
    q, k, v = (generator.standard_normal(shape, dtype=np.float32) for _ in range(3))
    tq, tk, tv = (torch.from_numpy(array) for array in (q, k, v))
    kernel = blockc.compile(EXAMPLES / "attention.blk", dtype="f32")

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

    calls = {
        "blockc": lambda: kernel(q, k, v),
        "torch": lambda: torch.nn.functional.scaled_dot_product_attention(tq, tk, tv),
        "NumPy": numpy_unfused,
        "in place": numpy_in_place,
    }
    return Case("attention", {"b": 1, "h": heads, "m": rows, "n": rows, "d": width, "e": width}, calls)


def feed_forward(rows: int, features: int, hidden: int) -> Case:
    """RMSNorm, two projections, a gate and one projection, in f32: blockc, torch eager, and NumPy."""
    generator = np.random.default_rng(0)
    shapes = {"X": (rows, features), "gain": (features,), "Wg": (features, hidden), "Wu": (features, hidden)}
    shapes |= {"Wd": (hidden, features)}
    arrays = {
        name: (generator.standard_normal(shape) / np.sqrt(shape[0] if len(shape) == 2 else 1)).astype(np.float32)
        for name, shape in shapes.items()
    }
    x, gain, gate, up, down = arrays.values()
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    kernel = blockc.compile(EXAMPLES / "rmsnorm_swiglu.blk", dtype="f32")

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

    calls = {"blockc": lambda: kernel(**arrays), "torch": torch_eager, "NumPy": numpy_unfused}
    return Case("rmsnorm_swiglu", {"m": rows, "d": features, "z": hidden, "e": features}, calls)


def measure(case: Case, rounds: int) -> list[Row]:
    """One row for each candidate, after one warm-up call each."""
    results = {name: np.asarray(call()) for name, call in case.calls.items()}
    peaks = {name: peak_memory(call) for name, call in case.calls.items() if name != "torch"}
    times: dict[str, list[float]] = {name: [] for name in case.calls}
    names = list(case.calls)
    for position in range(rounds):
        # Each comes first in turn: what runs behind another finds its memory and its waiting threads.
        for name in (*names[position % len(names) :], *names[: position % len(names)]):
            started = time.perf_counter()
            case.calls[name]()
            times[name].append(time.perf_counter() - started)
    rows = []
    for name, taken in times.items():
        lower, median, upper = statistics.quantiles(taken, n=4, method="inclusive")
        # The median of the ratios within rounds: what changes from round to round changes both.
        ratio = statistics.median(other / own for own, other in zip(times["blockc"], taken, strict=True))
        difference = float(np.abs(results[name] - results["blockc"]).max())
        rows.append(Row(case.name, name, median, lower, upper, ratio, peaks.get(name), difference))
    return rows


def peak_memory(call: Call) -> int:
    """The largest number of bytes that one call holds in NumPy arrays and Python objects."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
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
    }


def cpu_lines() -> list[str]:
    """What Linux says about the processors; nothing elsewhere."""
    information = Path("/proc/cpuinfo")
    return information.read_text().splitlines() if information.exists() else []


def table(case: Case, rows: list[Row]) -> list[str]:
    """The rows of a case as text."""
    sizes = ", ".join(f"{dim}={size}" for dim, size in case.sizes.items())
    lines = ["", f"{case.name} f32, {sizes}"]
    lines.append(f"  {'':<8}{'median':>11}{'quartiles':>24}{'time/blockc':>13}{'memory':>12}{'difference':>12}")
    for row in rows:
        quartiles = f"{row.lower * 1e3:.1f} to {row.upper * 1e3:.1f} ms"
        memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f} MiB"
        median = f"{row.median * 1e3:.1f} ms"
        lines.append(
            f"  {row.candidate:<8}{median:>11}{quartiles:>24}{row.ratio:>13.2f}{memory:>12}{row.max_difference:>12.1e}"
        )
    return lines


def options(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="of every candidate (default: 9)")
    parser.add_argument("--rows", type=int, default=4096, help="queries and keys, or rows (default: 4096)")
    parser.add_argument("--heads", type=int, default=8, help="of attention (default: 8)")
    parser.add_argument("--width", type=int, default=64, help="of a head (default: 64)")
    parser.add_argument("--features", type=int, default=512, help="of the feed-forward layer (default: 512)")
    parser.add_argument("--hidden", type=int, default=1408, help="features in its middle (default: 1408)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds must be at least {FEWEST_ROUNDS}")
    return chosen


def main(arguments: list[str]) -> None:
    """Measure both cases and print the tables."""
    chosen = options(arguments)
    facts = machine()
    print("\n".join(f"{name}: {', '.join(fact) if isinstance(fact, list) else fact}" for name, fact in facts.items()))
    measured: list[Row] = []
    for case in (
        attention(chosen.rows, chosen.heads, chosen.width),
        feed_forward(chosen.rows, chosen.features, chosen.hidden),
    ):
        rows = measure(case, chosen.rounds)
        print("\n".join(table(case, rows)), flush=True)
        measured += rows
    if chosen.json is not None:
        content = {
            "machine": facts,
            "options": vars(chosen) | {"json": str(chosen.json)},
            "rows": [*map(asdict, measured)],
        }
        chosen.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
