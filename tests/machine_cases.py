"""Predicted and simulated bytes of random programs on random machines, and the campaign over many of them.

    python tests/machine_cases.py --start 0 --count 2000 [--jobs 2] [--report FILE]

Every snapshot of a program, as it would be emitted, and the last one with a second cut, is placed on a machine of its
own, first with all lists in the outermost tier and then with lists anywhere, and simulated: the bytes of every value
across every boundary of two tiers have to be those that were predicted, no tier may hold more than was predicted, and
the outputs have to be the float64 meaning of the program.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from oracle import Case, derive, difference, inputs, random_case

from blockc import __version__
from blockc.codegen.simulator import CapacityExceeded, simulate
from blockc.ir.machine import DUPLEX, ComputeUnit, Machine, Rate, Tier, chain
from blockc.ir.schedule import Schedule
from blockc.meaning import evaluate as meaning_of
from blockc.passes import choose
from blockc.passes.cut_again import cut_again, loops
from blockc.passes.machine_cost import evaluate
from blockc.passes.machine_model import model
from blockc.passes.place import place
from blockc.passes.search import in_chunks
from blockc.passes.units import Unplaceable


def agreed(schedule: Schedule, case: Case, arrays: Any) -> None:
    """Predicted bytes are those that the simulator counts, by value and boundary; space is at least what is used."""
    predicted = evaluate(model(schedule), case.sizes, case.tiles, arrays)
    counted = simulate(schedule, arrays, case.sizes, case.tiles)
    for name, expected in meaning_of(case.program, arrays).items():
        assert not difference(counted.outputs[name], expected, 1e-9), case.reproduction()
    assert {key: count for key, count in predicted.moved.items() if count} == counted.moved, case.reproduction()
    for tier, space in counted.peak.items():
        assert space <= predicted.peak.get(tier, 0), f"{tier}\n{case.reproduction()}"


def random_machine(seed: int) -> Machine:
    """A machine with 2 to 5 tiers, one or two compute units, and sometimes several copies of what is streamed."""
    choice = random.Random(f"machine {seed}")
    count = choice.randint(2, 5)
    private = choice.randint(1, count)  # from which tier on each unit has its own
    tiers = tuple(
        Tier(
            f"t{at}",
            2**40 >> (4 * at),
            1e9 * 2**at,
            1e9 * 2**at,
            "unit" if at >= private else "device",
            "scratchpad" if at in (0, count - 1) else choice.choice(["scratchpad", "cache"]),
            choice.choice([1, 4, 64]),
            0.0,
            choice.choice([1, 2, 3]) if at else 1,
        )
        for at in range(count)
    )
    later = random.Random(f"duplex and pieces {seed}")
    tiers = tuple(replace(tier, duplex=later.choice(DUPLEX)) for tier in tiers)
    step = later.choice([1, 2, 3, 8])
    last, before = tiers[-1].name, tiers[-2].name if count > 2 else tiers[-1].name
    vector = {"vector": {"f32": Rate(1e9, (step,)), "f64": Rate(1e9, (1,))}, "special": {"f32": Rate(1e8, (1,))}}
    units = [ComputeUnit("vector", (last,), last, vector)]
    if choice.random() < 0.6:
        accumulator = choice.choice([last, before])
        operands = (choice.choice([last, before]), choice.choice([last, before]))
        rates = {
            "matmul": {name: Rate(1e10, (4, 4, 4)) for name in choice.choice([("f16", "f32"), ("f32",), ("f16",)])}
        }
        units.insert(0, ComputeUnit("matrix", operands, accumulator, rates))
    return Machine(f"random_{seed}", "", "none", choice.randint(1, 5), 1e-6, 0.0, tiers, chain(tiers), tuple(units))


def check_random(seed: int) -> Counter[str]:
    """Checks the program with this seed on its machine. What happened, by kind."""
    case, target = random_case(seed), random_machine(seed)
    choice, found = random.Random(f"placement {seed}"), Counter[str]()
    arrays, derivation = inputs(case), derive(case)
    last = derivation.snapshots[-1]
    cut = tuple(cut for loop in (None, *loops(last)) if (cut := cut_again(last, loop)) is not None)
    for program in choose.ready(replace(derivation, snapshots=(*derivation.snapshots, *cut))):
        names = [name for name, kind in program.types.items() if kind.lists]
        placed = {name: choice.choice(target.tiers[1:]).name for name in names if choice.random() < 0.3}
        if program.chunks:
            placed = {name: choice.choice(target.tiers[1:]).name for name in in_chunks(program)}
        chunks = {chunk: choice.randint(1, 3) * case.tiles[dim] for chunk, dim in program.chunks.items()}
        own = replace(case, tiles={**case.tiles, **chunks})
        for placement in ({}, placed):
            try:
                agreed(place(program, target, placement), own, arrays)
                found["plain" if not placement else "placed"] += 1
                found["cut again"] += bool(chunks)
            except Unplaceable:
                assert placement, "with all lists in the outermost tier every program has its place"
                found["cannot be placed"] += 1
            except CapacityExceeded:
                found["does not fit"] += 1
    found[f"{len(target.tiers)} tiers"] += 1
    return found


def named(seed: int) -> Counter[str]:
    """As `check_random`, with the seed in whatever it raises."""
    try:
        return check_random(seed)
    except Exception as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error


def main() -> None:
    """Check many, and write what was found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--start", type=int, default=0)
    options.add_argument("--count", type=int, default=2000)
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("--report", type=Path, metavar="FILE")
    chosen = options.parse_args()
    started, total = time.monotonic(), Counter[str]()
    with ProcessPoolExecutor(chosen.jobs) as pool:
        for done, found in enumerate(pool.map(named, range(chosen.start, chosen.start + chosen.count)), 1):
            total.update(found)
            if sys.stderr.isatty() or done % 500 == 0:
                print(f"\r{done} of {chosen.count}", end="", file=sys.stderr)
    last = chosen.start + chosen.count - 1
    versions = f"blockc {__version__}, Python {platform.python_version()}, NumPy {np.__version__}"
    text = [
        f"Random programs {chosen.start} to {last}, each on a random machine: predicted and simulated bytes",
        f"{versions}, {time.strftime('%Y-%m-%d')}",
        f"{time.monotonic() - started:.0f} s with {chosen.jobs} processes",
        *(f"{kind}: {count}" for kind, count in sorted(total.items())),
        "mismatches: 0 (the first one ends the run)",
    ]
    print("\n".join(("", *text)))
    if chosen.report is not None:
        chosen.report.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
