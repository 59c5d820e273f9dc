"""The bodies of the GPU tests in Triton's interpreter, on the CPU: prints a line for each, what was wrong or "".

python tests/gpu_interpreted.py                                     all of them
python tests/gpu_interpreted.py --examples attention/f16/ordinary   and examples: name/type/family
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial

import gpu_bodies
import triton_interpreter  # noqa: F401  (repairs the interpreter)
from gpu_bodies import BODIES, INTERPRETED

from blockc import self_check

CPU = "cpu"


def cases(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], None]]]:
    """The bodies that are asked for, by name."""
    for body in BODIES:
        if options.only in body.__name__:
            yield body.__name__, partial(body, CPU, INTERPRETED)
    for size in (int(size) for size in options.heads.split(",") if size):
        yield f"head_size {size}", partial(gpu_bodies.head_size, CPU, INTERPRETED, size)
    for asked in options.examples.split():
        yield f"example {asked}", partial(gpu_bodies.example, CPU, INTERPRETED, *asked.split("/"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only bodies with this in their name")
    parser.add_argument("--heads", default="", help="head sizes, separated by commas")
    parser.add_argument("--examples", default="", help="name/type/family, separated by blanks")
    parser.add_argument("--probes", action="store_true", help="self-checks too, as on a GPU; they take longest")
    options = parser.parse_args()
    if not options.probes:
        self_check.probe = lambda program, plan, launch: None
    bad = 0
    for name, body in cases(options):
        started = time.perf_counter()
        problem = ""
        try:
            body()
        except Exception:  # noqa: BLE001 - whatever it is, it is what was wrong
            problem = traceback.format_exc()
        bad += bool(problem)
        print(json.dumps([name, problem, round(time.perf_counter() - started, 2)]), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
