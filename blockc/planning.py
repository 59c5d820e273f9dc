"""The plan for a machine: every form of a program is searched, and the fastest plan is chosen; all are recorded.

A program has a form for each set of dimensions that are kept whole: as the size says (small features are whole), and
with all of them cut. If the best plan has fewer tasks than the machine has units, forms whose loops are cut into chunks
are searched too; and where it takes longer than it has to, on a machine with a middle tier, forms of it with a second
cut (`passes/cut_again.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from blockc import driver
from blockc.errors import LimitError, Problem, UsageError
from blockc.ir.array_program import ArrayProgram
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import Map, Program, walk
from blockc.ir.decisions import Derivation, Step
from blockc.ir.dtypes import DTYPES
from blockc.ir.machine import Machine
from blockc.ir.plan import Plan
from blockc.ir.schedule import Schedule
from blockc.passes.choose import peel, ready
from blockc.passes.cost import cost
from blockc.passes.cut_again import cut_again, kernels_in_chunks, loops
from blockc.passes.machine_cost import MachineCost, evaluate
from blockc.passes.machine_model import model
from blockc.passes.place import place
from blockc.passes.search import Choice, First, Searched, best_choice, best_score, first_found, search, search_cut
from blockc.passes.units import Unplaceable

WORTH_IT = 0.95  # of the time of a plan: forms with a second cut are searched if less than that may be possible


@dataclass(frozen=True, slots=True)
class Candidate:
    """What was found for one snapshot of one form of the program. `form` says what is particular about it.

    A form with a second cut has one more snapshot than the form `origin`.
    """

    form: str
    derivation: Derivation
    programs: tuple[Program, ...]
    choice: Choice
    origin: str = ""


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """The chosen candidate, and all of them, fastest first; those for which there is no plan come last."""

    machine: Machine
    sizes: Mapping[str, int]
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    note: str = ""

    @property
    def cost(self) -> MachineCost:
        """The cost of what was chosen."""
        assert self.chosen.choice.cost is not None
        return self.chosen.choice.cost

    @property
    def schedule(self) -> Schedule:
        """What units do on the machine."""
        assert self.chosen.choice.schedule is not None
        return self.chosen.choice.schedule

    @property
    def plan(self) -> Plan:
        """The chosen program with its blocks, priced as for kernels, and as it is emitted where there are kernels."""
        choice, programs = self.chosen.choice, self.chosen.programs
        costs = tuple(cost(program, self.sizes, choice.tiles) for program in programs)
        plan = Plan(choice.program, choice.snapshot, choice.tiles, self.sizes, costs, programs, self.note)
        return peel(plan) if driver.has_kernels(self.machine) else plan


def machine_plan(
    program: ArrayProgram,
    machine: Machine,
    sizes: Mapping[str, int],
    tiles: driver.Tiles,
    split: driver.Split = driver.UNSPLIT,
) -> MachinePlan:
    """What is executed on a machine: the plan of its kernels, if there are any, else the one that is searched for.

    LimitError if there is none: it says what does not fit where.
    """
    if not driver.has_kernels(machine):
        return search_plan(program, machine, sizes, tiles, split)
    return kernel_plan(program, machine, *driver.planned(driver.Forms(program, tiles), sizes, split))


def kernel_plan(program: ArrayProgram, machine: Machine, derivation: Derivation, plan: Plan) -> MachinePlan:
    """A plan of kernels with what its snapshots cost on their machine. LimitError if it cannot execute one."""
    form = _named(sorted(derivation.unfused.whole))
    candidates = []
    for at, snapshot in enumerate(plan.snapshots):
        try:
            schedule = place(snapshot, machine)
        except Unplaceable as error:
            raise impossible(program, machine, [str(error)]) from error
        figures = evaluate(model(schedule), plan.sizes, plan.tiles)
        choice = Choice(at, snapshot, plan.tiles, {}, schedule, figures, figures.seconds)
        candidates.append(Candidate(form, derivation, plan.snapshots, choice))
    chosen = candidates[plan.snapshot]
    return MachinePlan(machine, dict(plan.sizes), chosen, _ordered(candidates, chosen), plan.note)


def search_plan(
    program: ArrayProgram,
    machine: Machine,
    sizes: Mapping[str, int],
    tiles: driver.Tiles,
    split: driver.Split = driver.UNSPLIT,
    searched: Searched | None = None,
) -> MachinePlan:
    """The plan with the least predicted time. LimitError if there is none. `searched` is what was found before on the
    machine."""
    asked = _asked(tiles)
    searched = searched or Searched()
    candidates: list[Candidate] = []
    for form, derivation, programs in _forms(program, sizes, tiles, split):
        counts = {chunk: split[dim] for one in programs for chunk, dim in one.chunks.items() if dim in split}
        found = search(programs, machine, sizes, {**asked, **counts}, searched)
        candidates += [Candidate(form, derivation, programs, choice) for choice in found]
    chosen = _best(candidates)
    if chosen is not None and not split and _tasks(chosen) < machine.units:
        for form, derivation, programs in _in_chunks(program, sizes, tiles, chosen):
            found = search(programs, machine, sizes, asked, searched)
            candidates += [Candidate(form, derivation, programs, choice) for choice in found]
        chosen = _best(candidates)
    if chosen is not None and not split and _may_gain(chosen, machine, sizes):
        candidates += _cut_again(chosen, machine, sizes, asked)
        chosen = _best(candidates)
    if chosen is None:
        raise impossible(program, machine, [candidate.choice.why for candidate in candidates])
    return MachinePlan(machine, dict(sizes), chosen, _ordered(candidates, chosen))


def first_estimate(program: ArrayProgram, machine: Machine, sizes: Mapping[str, int], tiles: driver.Tiles) -> float:
    """About what the plan that is searched for will score, in seconds. LimitError if no plan is found."""
    found: list[First] = []
    for _, _, programs in _forms(program, sizes, tiles, driver.UNSPLIT):
        found += first_found(programs, machine, sizes, _asked(tiles))
    score = best_score(found)
    if not math.isfinite(score):
        raise impossible(program, machine, [first.why for first in found])
    return score


def with_sizes(plan: MachinePlan, sizes: Mapping[str, int], tiles: Mapping[str, int]) -> MachinePlan:
    """The plan at other sizes, and what was chosen in other blocks, with what all candidates cost then."""

    def again(candidate: Candidate) -> Candidate:
        choice = candidate.choice
        if choice.schedule is None:
            return candidate
        changed = {dim: tiles.get(dim, tile) for dim, tile in choice.tiles.items()}
        blocks = changed if candidate is plan.chosen else choice.tiles
        figures = evaluate(model(choice.schedule), sizes, blocks)
        return replace(candidate, choice=replace(choice, tiles=blocks, cost=figures, score=figures.seconds))

    found = {id(candidate): again(candidate) for candidate in plan.candidates}
    return replace(
        plan, sizes=dict(sizes), chosen=found[id(plan.chosen)], candidates=tuple(found[id(c)] for c in plan.candidates)
    )


def _asked(tiles: driver.Tiles) -> dict[str, int]:
    return {dim: tile for dim, tile in tiles.items() if tile is not None}


def impossible(program: ArrayProgram, machine: Machine, whys: list[str]) -> LimitError:
    """The error for a program that has no plan, with all reasons."""
    message = f"`{program.name}` cannot be executed on {machine.name}: {'; '.join(dict.fromkeys(whys))}"
    hint = "smaller blocks (--tile) or sizes (--dim) need less; `blockc targets show` prints the machine"
    return LimitError((Problem("E0292", message, None, hint),))


def _ordered(candidates: list[Candidate], chosen: Candidate) -> tuple[Candidate, ...]:
    return tuple(sorted(candidates, key=lambda candidate: (candidate is not chosen, candidate.choice.score)))


def _best(candidates: list[Candidate]) -> Candidate | None:
    best = best_choice(tuple(candidate.choice for candidate in candidates))
    return next((candidate for candidate in candidates if candidate.choice is best), None)


def _tasks(candidate: Candidate) -> int:
    """The tasks of the longest kernel."""
    assert candidate.choice.cost is not None
    return max(candidate.choice.cost.kernels, key=lambda kernel: kernel.seconds).tasks


def _forms(
    program: ArrayProgram, sizes: Mapping[str, int], tiles: driver.Tiles, split: driver.Split
) -> Iterator[tuple[str, Derivation, tuple[Program, ...]]]:
    forms = driver.Forms(program, tiles)
    derivation, programs = forms.of(sizes, split)
    whole = sorted(derivation.unfused.whole)
    yield _named(whole), derivation, programs
    free = [dim for dim in whole if dim not in tiles and sizes[dim] > 1]
    if free:
        derivation, programs = driver.Forms(program, {**tiles, **dict.fromkeys(free, 1)}).of(sizes, split)
        yield _named(sorted(derivation.unfused.whole)), derivation, programs


def _named(whole: list[str]) -> str:
    return f"whole: {', '.join(whole)}" if whole else "all cut"


def _in_chunks(
    program: ArrayProgram, sizes: Mapping[str, int], tiles: driver.Tiles, best: Candidate
) -> Iterator[tuple[str, Derivation, tuple[Program, ...]]]:
    """Forms with the loops over a dimension of the best plan cut into chunks."""
    whole = best.choice.program.whole
    kept: dict[str, int | None] = {dim.name: None if dim.name in whole else 1 for dim in program.dims}
    forms = driver.Forms(program, {**kept, **tiles})
    loops = [node.dim for node in walk(best.choice.program.body) if isinstance(node, Map) and node.is_loop]
    for dim in dict.fromkeys(loops):
        try:
            derivation, programs = forms.of(sizes, {dim: 2})
        except UsageError:  # no loop over it can be cut
            continue
        yield f"{_named(sorted(whole))}; chunks of {dim}", derivation, programs


def _may_gain(candidate: Candidate, machine: Machine, sizes: Mapping[str, int]) -> bool:
    """True if there is a middle tier, and time to gain: a plan takes longer than computing does, and longer than each
    argument takes to be read once."""
    cost, program = candidate.choice.cost, candidate.choice.program
    assert cost is not None
    computing = [
        max((seconds for name, seconds in kernel.resources.items() if name.startswith("computing")), default=0.0)
        for kernel in cost.kernels
    ]
    extents = complete_sizes(program, sizes)
    inputs = [math.prod(extents[dim] for dim in entry.dims) * DTYPES[entry.dtype].size for entry in program.inputs]
    least = machine.dispatch * len(cost.kernels) + max(sum(computing), sum(inputs) / machine.tiers[0].read)
    return len(machine.tiers) > 2 and least < WORTH_IT * cost.seconds


def _cut_again(
    candidate: Candidate, machine: Machine, sizes: Mapping[str, int], asked: Mapping[str, int]
) -> Iterator[Candidate]:
    """The candidate with a second cut, as a further snapshot: once as it is, and with each loop around the blocks."""
    derivation, at = candidate.derivation, len(candidate.derivation.snapshots)
    plain = derivation.snapshots[candidate.choice.snapshot]
    for loop in (None, *loops(plain)):
        cut = cut_again(plain, loop)
        if cut is None:
            continue
        step = Step(at, "cut_again", "-", kernels_in_chunks(cut), None, plain, cut)
        extended = replace(derivation, snapshots=(*derivation.snapshots, cut), steps=(*derivation.steps, step))
        (program,) = ready(replace(derivation, snapshots=(cut,)))
        choice = replace(search_cut(program, machine, sizes, asked, candidate.choice), snapshot=at)
        form = f"{candidate.form}; cut again{f', {loop} outside' if loop else ''}"
        yield Candidate(form, extended, (*candidate.programs, program), choice, candidate.form)
