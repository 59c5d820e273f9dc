"""How long blockc itself takes: text to callable kernel, a long chain, and the command line's start.

    python benchmarks/compile_time.py [--operators 1000]

Attention is compiled several times, imports excluded and the self-check included; the first time, which also builds the
parser, stands apart, and so does what comes from the cache, which is a folder of its own here. The chain has a product
at every third operator, so that it has as many loops inside loops as operators.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from blockc.cache import usual_store
from blockc.kernel import compile

ATTENTION = Path(__file__).parent.parent / "examples" / "attention.blk"


def chain(operators: int) -> str:
    """A program of that many operators: products, tanh, and scale with shift in turn."""
    arguments, lines, current, products = ["X: f32[m, a0]"], [], "X", 0
    for index in range(operators):
        match index % 3:
            case 0:
                lines.append(f"T{index} = {current} * 2.0 + 1.0")
            case 1:
                lines.append(f"T{index} = tanh({current})")
            case _:
                arguments.append(f"W{products}: f32[a{products}, a{products + 1}]")
                lines.append(f"T{index} = dot[a{products}]({current}, W{products})")
                products += 1
        current = f"T{index}"
    text = "\n".join(lines)
    return f"program chain({', '.join(arguments)}) -> O: f32[m, a{products}] {{\n{text}\nO = {current}\n}}\n"


def seconds(source: str) -> tuple[float, int]:
    """The time from text to kernel, with nothing in the cache, and the number of launches."""
    usual_store().clear()
    return cached_seconds(source)


def cached_seconds(source: str) -> tuple[float, int]:
    """The time from text to kernel, and the number of launches."""
    started = time.perf_counter()
    kernel = compile(source)
    return time.perf_counter() - started, kernel.cost.kernels


def main() -> None:
    parser = argparse.ArgumentParser(description="times blockc itself")
    parser.add_argument("--operators", type=int, default=1000)
    operators: int = parser.parse_args().operators
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BLOCKC_CACHE"] = str(Path(folder) / "cache")
        measure(operators)


def measure(operators: int) -> None:
    """Print everything."""
    print(f"python {platform.python_version()}, {platform.machine()}")
    text = ATTENTION.read_text(encoding="utf-8")
    first, _ = seconds(text)
    again = statistics.median(seconds(text)[0] for _ in range(9))
    print(f"attention        {again * 1e3:8.1f} ms, median of 9 ({first * 1e3:.1f} ms the first time, with the parser)")
    kept = statistics.median(cached_seconds(text)[0] for _ in range(9))
    print(f"  from the cache {kept * 1e3:8.1f} ms, median of 9")
    taken, kernels = seconds(chain(operators))
    print(f"{operators} operators   {taken:8.1f} s, {kernels} kernel{'s' if kernels > 1 else ''}")
    starts = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "blockc", "--help"], check=True, stdout=subprocess.DEVNULL)
        starts.append(time.perf_counter() - started)
    print(f"blockc --help    {statistics.median(starts) * 1e3:8.1f} ms, median of 5")


if __name__ == "__main__":
    main()
