"""Random programs in bulk: every program on the way from text to kernel against the text's meaning, and what occurred.

    python tests/campaign.py --start 0 --count 20000 --jobs 2 --report FILE

A failure is made small and written as a `.blk` file, whose comments say how it came about; this checks it again:

    python tests/campaign.py --file FAILURE.blk
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from platform import python_version

import numpy as np
from minimiser import minimise
from occurrences import Seen, features
from oracle import Case, compose_steps, derive, inputs, mismatch, programs, random_case

import blockc
from blockc.ir.block import Program
from blockc.ir.decisions import Derivation, Refusal, Rule
from blockc.ir.sharing import Shared
from blockc.ir.verify import VerifyError
from blockc.language import parse
from blockc.meaning import evaluate
from blockc.passes.choose import safe
from blockc.passes.rules import ALL_RULES, ASKED_RULES, EMISSION_RULES, RULES, SNAPSHOT_RULES
from blockc.passes.split import split

# Whatever a fault of ours may raise.
FINDINGS = (AssertionError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, VerifyError)
TOGETHER = 20  # seeds in one piece of work
CHUNK = 2  # blocks in a chunk of a split loop


@dataclass(frozen=True)
class Outcome:
    """What became of some programs: what occurred in those that are right; by seed, the failures as `.blk` files."""

    seen: Seen
    failures: dict[int, str]


# One program


def everything(case: Case, derivation: Derivation, seen: Seen) -> Iterator[tuple[str, Program]]:
    """Every program that may come of a case, with what made it: all that `programs` has, each step of composition, and
    every loop cut into chunks. What occurs is noted in `seen`."""
    for stage, program in programs(case, derivation):
        yield stage, program
        if stage.endswith(", bounded"):
            seen.refusals.update(refusals(program, EMISSION_RULES))
        if stage.endswith(", stable"):
            composed = program  # in the end that of the last snapshot
    divided = split(derivation, set(case.sizes))
    for step in divided.steps[len(derivation.steps) :]:
        yield f"{step.rule} at {', '.join(step.at)}", step.after
    if divided.snapshots[-1] is not derivation.snapshots[-1]:  # else it has been looked at
        yield "split, stable", safe(divided.snapshots[-1])
    seen.rules.update(step.rule for step in divided.steps)
    seen.refusals.update((refusal.rule, refusal.reason) for refusal in divided.refusals)
    for rule, program in compose_steps(composed):
        seen.rules[rule] += 1
        yield f"composition: {rule}", program
        composed = program
    # Refusals that do not stand in the end are seen before the first step; some show only when all has been done.
    seen.refusals.update(refusals(derivation.unfused, RULES))
    seen.refusals.update(refusals(derivation.snapshots[-1], SNAPSHOT_RULES))
    seen.refusals.update(refusals(divided.snapshots[-1], ASKED_RULES))
    seen.refusals.update(refusals(composed, EMISSION_RULES))


def refusals(program: Program, rules: Iterable[Rule]) -> Iterator[tuple[str, str]]:
    """The refusals of some rules at a program."""
    for rule in rules:
        for found in rule.match(program, None):
            if isinstance(found, Refusal):
                yield rule.name, found.reason


def examine(case: Case, derivation: Derivation | None = None) -> tuple[str, Seen]:
    """What goes wrong with a case, or "", and what occurred."""
    seen = Seen()
    try:
        derivation = derivation or derive(case)
        arrays = inputs(case)
        reference = evaluate(case.program, arrays)
        shared: dict[tuple[object, ...], Shared] = {}
        for stage, program in everything(case, derivation, seen):
            seen.compared += 1
            chunks = {chunk: CHUNK * max(1, case.tiles[base]) for chunk, base in program.chunks.items()}
            here = replace(case, tiles={**case.tiles, **chunks}) if chunks else case
            problem = mismatch(program, here, arrays, reference, shared.setdefault(program.dims, Shared()))
            if problem:
                return f"AssertionError: {stage}: {problem}", seen
    except FINDINGS as error:
        return f"{type(error).__name__}: {error}", seen
    if not derivation.complete and "snapshots were taken" not in derivation.stopped:
        return f"FuseError: {derivation.stopped}", seen
    seen.programs, seen.steps = 1, len(derivation.steps)
    seen.features.update(features(case, derivation))
    return "", seen


def failure(case: Case, derivation: Derivation | None = None) -> str:
    """What goes wrong with a case, or ""."""
    return examine(case, derivation)[0]


# Failures


def minimised(case: Case) -> Case:
    """A smaller case that fails in the same way, at the same sizes and tiles."""
    kind = failure(case).split(":")[0]

    def smaller(source: str) -> Case:
        program = parse(source)
        dims = {dim.name for dim in program.dims}
        sizes = {dim: size for dim, size in case.sizes.items() if dim in dims}
        tiles = {dim: tile for dim, tile in case.tiles.items() if dim in dims}
        return Case(source, sizes, tiles, case.whole & dims, case.seed)

    return smaller(minimise(case.source, lambda source: failure(smaller(source)).split(":")[0] == kind))


def as_file(case: Case) -> str:
    """A failing case as the text of a `.blk` file, made small, with comments that reproduce it."""
    problem, small = failure(case), minimised(case)
    made = {"sizes": small.sizes, "tiles": small.tiles, "whole": sorted(small.whole), "seed": small.seed}
    return (
        f"# {' '.join(problem.split())}\n"
        f"# The whole program again:  python tests/campaign.py --start {case.seed} --count 1\n"
        f"# This smaller one again:   python tests/campaign.py --file {file_name(case.seed)}\n"
        f"# case: {json.dumps(made)}\n"
        f"{small.source}"
    )


def file_name(seed: int) -> str:
    """What the file of a failure is called."""
    return f"seed-{seed}.blk"


def from_file(text: str) -> Case:
    """The case of such a file."""
    found = re.search(r"^# case: (.*)$", text, re.MULTILINE)
    if found is None:
        raise ValueError("the file has no line `# case: ...`")
    made = json.loads(found[1])
    source = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("# "))
    return Case(source, made["sizes"], made["tiles"], frozenset(made["whole"]), made["seed"])


# Many programs


def run(seeds: Iterable[int]) -> Outcome:
    """The outcome of some random programs."""
    outcome = Outcome(Seen(), {})
    for seed in seeds:
        case = random_case(seed)
        problem, seen = examine(case)
        if problem:
            outcome.failures[seed] = as_file(case)
        else:
            outcome.seen.update(seen)
    return outcome


def run_in_parallel(seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    """The outcomes of pieces of the seeds, in order, from so many processes."""
    pieces = [seeds[at : at + TOGETHER] for at in range(0, len(seeds), TOGETHER)]
    # Not a fork: this process may have threads.
    with ProcessPoolExecutor(jobs, get_context("spawn"), rare_collections) as workers:
        yield from workers.map(run, pieces)


def rare_collections() -> None:
    """Programs are many small values that live long and form no cycles: they are searched for garbage less often."""
    gc.set_threshold(100_000, 50, 50)


def joined(outcomes: Iterable[Outcome]) -> Outcome:
    """All outcomes as one."""
    total = Outcome(Seen(), {})
    for outcome in outcomes:
        total.seen.update(outcome.seen)
        total.failures.update(outcome.failures)
    return total


def with_progress(outcomes: Iterable[Outcome], count: int) -> Iterator[Outcome]:
    """The outcomes, with a bar on a terminal that shows how many programs are done."""
    done = failures = 0
    started = time.monotonic()
    for outcome in outcomes:
        done, failures = min(count, done + TOGETHER), failures + len(outcome.failures)
        if sys.stderr.isatty():
            left = (time.monotonic() - started) / done * (count - done)
            bar = "#" * (40 * done // count)
            text = f"[{bar:40}] {done} of {count} programs, {failures} failures, {left / 60:.0f} min left "
            print(f"\r{text}", end="\n" if done == count else "", file=sys.stderr, flush=True)
        yield outcome


def report(outcome: Outcome, seeds: range) -> str:
    """What a campaign found, as text with a date and versions."""
    seen = outcome.seen
    lines = [
        "Random programs, every program on the way from text to kernel compared with the text's meaning in float64",
        "",
        f"date        {datetime.now(UTC):%Y-%m-%d}",
        f"commit      {commit()}",
        f"versions    blockc {blockc.__version__}, Python {python_version()}, NumPy {np.__version__}",
        f"command     python tests/campaign.py --start {seeds.start} --count {len(seeds)}",
        f"programs    {len(seeds)}",
        f"steps       {seen.steps}",
        f"compared    {seen.compared} programs on the way",
        f"mismatches  {len(outcome.failures)}" + "".join(f" {seed}" for seed in sorted(outcome.failures)),
        "",
        "How often each rule was applied, and each refusal seen, before the first step or in the end:",
    ]
    for rule in ALL_RULES:
        lines.append(f"{seen.rules[rule.name]:9} {rule.name}")
        lines += [f"{seen.refusals[rule.name, reason]:9}   refused: {reason}" for reason in rule.reasons]
    lines += ["", "In how many programs there is"]
    lines += [f"{count:9} {name}" for name, count in sorted(seen.features.items())]
    return "\n".join(lines) + "\n"


def commit() -> str:
    """The commit that is checked out, with a mark if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main(arguments: list[str]) -> int:
    """`python tests/campaign.py`: checks a range of seeds and tells what occurred; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes")
    parser.add_argument("--report", type=Path, help="where to write what was found")
    parser.add_argument("--failures", type=Path, help="the folder for failures, else a temporary one")
    parser.add_argument("--file", type=Path, help="check the case in this file instead")
    options = parser.parse_args(arguments)
    if options.file is not None:
        problem = failure(from_file(options.file.read_text(encoding="utf-8")))
        print(problem or "no failure")
        return 1 if problem else 0
    seeds = range(options.start, options.start + options.count)
    outcome = joined(with_progress(run_in_parallel(seeds, options.jobs), options.count))
    text = report(outcome, seeds)
    print(text, end="")
    if options.report is not None:
        options.report.write_text(text, encoding="utf-8")
    if outcome.failures:
        print(f"failures are in {save(outcome.failures, options.failures)}", file=sys.stderr)
    return 1 if outcome.failures else 0


def save(failures: dict[int, str], folder: Path | None) -> Path:
    """Write failures as files, in a new temporary folder if none is given; the folder."""
    folder = folder or Path(tempfile.mkdtemp(prefix="blockc-failures-"))
    folder.mkdir(parents=True, exist_ok=True)
    for seed, text in failures.items():
        (folder / file_name(seed)).write_text(text, encoding="utf-8")
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
