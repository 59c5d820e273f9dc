"""Every pair of neighbouring operators that is not in one kernel has one stated reason: examples, machines, campaign.

    python tests/pair_cases.py                      all examples on all shipped machines
    python tests/pair_cases.py --random 300         random programs on the CPU

The first prints how many pairs there are of each kind and those without a reason, of which there are none; its result
is kept in `tests/data/pairs.txt`. It takes three minutes.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from oracle import EXAMPLES, random_case

from blockc import driver
from blockc.inspector.pairs import KINDS, Inspection, Pair
from blockc.ir.array_program import ArrayProgram
from blockc.language import parse_all
from blockc.machines.loading import load_machine
from blockc.partition import partition

MACHINES = ("cpu", "h200", "a100", "ascend", "scratchpad", "toy")
RECORD = Path(__file__).parent / "data" / "pairs.txt"
LARGE = ("large/transformer_layer",)  # the stack is eight of it


def programs() -> Iterator[tuple[str, ArrayProgram]]:
    """All programs of the examples."""
    paths = [*sorted(EXAMPLES.glob("*.blk")), *(EXAMPLES / f"{name}.blk" for name in LARGE)]
    for path in paths:
        for name, program in parse_all(path.read_text(), path.name).items():
            yield f"{path.stem} {name}", program


def inspected(program: ArrayProgram, target: str) -> Inspection:
    """What was chosen for a program at default sizes."""
    sizes = driver.default_sizes(program, {})
    return Inspection.of(partition(program, load_machine(target), sizes, {}))


def random_inspection(seed: int) -> Inspection:
    """The same for a random program, on the CPU."""
    case = random_case(seed)
    tiles = {dim: None if dim in case.whole else tile for dim, tile in case.tiles.items()}
    return Inspection.of(partition(case.program, load_machine("cpu"), case.sizes, tiles))


def faults(found: Inspection) -> Iterator[str]:
    """What is wrong with the pairs of a program: no reason, a reason for what is in one kernel, a vague one."""
    for pair in found.pairs:
        about = f"{pair.first}, {pair.second}"
        if bool(pair.together) != bool(pair.kernels[0] & pair.kernels[1]):
            yield f"{about}: wrong kernels"
        if (pair.reason is None) != bool(pair.together):
            yield f"{about}: one of a kernel and a reason is needed"
        if pair.reason is not None and (pair.reason.kind not in KINDS or not pair.reason.why or is_vague(pair)):
            yield f"{about}: {pair.reason}"


def is_vague(pair: Pair) -> bool:
    """True if the reason of a pair says nothing about how the two need each other."""
    assert pair.reason is not None
    return pair.reason.reason in ("nothing_in_common", "not_joined")


def kinds(found: Inspection) -> Counter[str]:
    """How many pairs are in one kernel, and how many have each reason."""
    return Counter(
        "in one kernel"
        if pair.reason is None
        else " ".join(filter(None, (pair.reason.kind, pair.reason.rule, pair.reason.reason)))
        for pair in found.pairs
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, metavar="N", help="so many random programs instead")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    total: Counter[str] = Counter()
    wrong: list[str] = []
    lines = []
    if arguments.random is not None:
        for seed in range(arguments.first, arguments.first + arguments.random):
            found = random_inspection(seed)
            wrong += (f"random program {seed}: {fault}" for fault in faults(found))
            total += kinds(found)
    else:
        for name, program in programs():
            for target in MACHINES:
                found = inspected(program, target)
                wrong += (f"{name} on {target}: {fault}" for fault in faults(found))
                total += kinds(found)
                apart = sum(pair.reason is not None for pair in found.pairs)
                lines.append(f"{name} on {target}: {len(found.pairs)} pairs, {apart} apart")
    lines += [f"{count:6} {kind}" for kind, count in sorted(total.items(), key=lambda item: (-item[1], item[0]))]
    lines += [*wrong, f"{len(wrong)} of {total.total()} pairs without a reason"]
    print("\n".join(lines))
    if arguments.random is None:
        RECORD.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
