"""What was looked at for a program, and why one of them was chosen: the time of each, the margin, and its cause."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from blockc.driver import has_kernels
from blockc.formatting import duration
from blockc.ir.block import Program
from blockc.ir.plan import Cost, Plan
from blockc.passes.choose import CLOSE as CLOSE_KERNELS
from blockc.passes.cost import NOMINAL
from blockc.passes.machine_cost import MachineCost
from blockc.passes.search import CLOSE
from blockc.planning import Candidate, MachinePlan

STARTING = "starting kernels"


@dataclass(frozen=True, slots=True)
class Alternative:
    """A snapshot of a form of the program, with the plan that was found for it. `seconds` are what the choice goes by:
    those of the machine or, for kernels that blockc runs itself, those at nominal rates; infinite if there is no plan.
    `why` says why it was not chosen."""

    snapshot: int
    form: str
    program: Program
    tiles: Mapping[str, int]
    placement: Mapping[str, str]
    cost: MachineCost | None
    seconds: float
    why: str
    chosen: bool
    as_fast: bool

    @property
    def name(self) -> str:
        """What it is called: the number of its snapshot, and its form."""
        return f"snapshot {self.snapshot} ({self.form})"


def alternatives(found: MachinePlan, plan: Plan) -> tuple[Alternative, ...]:
    """All that was looked at, the chosen one first, then by time."""
    result = []
    for candidate in found.candidates:
        choice = candidate.choice
        chosen = candidate is found.chosen
        if has_kernels(found.machine):
            seconds = plan.costs[choice.snapshot].seconds
            best = plan.costs[plan.snapshot]
            as_fast = seconds <= best.seconds * CLOSE_KERNELS
            why = "" if chosen else slower_kernels(plan.costs[choice.snapshot], best)
        else:
            seconds = choice.cost.seconds if choice.cost is not None else math.inf
            as_fast = abs(seconds - found.cost.seconds) <= found.cost.seconds * (CLOSE - 1)
            why = why_not(found, candidate)
        result.append(
            Alternative(
                choice.snapshot,
                candidate.form,
                choice.program,
                choice.tiles,
                choice.placement,
                choice.cost,
                seconds,
                why,
                chosen,
                as_fast and not chosen,
            )
        )
    return tuple(sorted(result, key=lambda entry: (not entry.chosen, entry.seconds)))


def runner_up(found: tuple[Alternative, ...]) -> Alternative | None:
    """The fastest that was not chosen."""
    return next((entry for entry in found if not entry.chosen and math.isfinite(entry.seconds)), None)


def margin(found: tuple[Alternative, ...]) -> float | None:
    """How much longer than the chosen one the fastest other one takes, as a part of its time; None if there is none."""
    other = runner_up(found)
    return other.seconds / found[0].seconds - 1 if other is not None and found[0].seconds else None


def why_not(plan: MachinePlan, candidate: Candidate) -> str:
    """The reason why a candidate was not chosen: what it waits for, beside what the chosen one needs of that."""
    cost = candidate.choice.cost
    if candidate is plan.chosen:
        return ""
    if cost is None:
        return candidate.choice.why
    if cost.seconds * CLOSE < plan.cost.seconds:
        return "the kernels were chosen for other sizes, or written in other blocks"
    if cost.seconds <= plan.cost.seconds * CLOSE:
        return simpler(len(cost.kernels), len(plan.cost.kernels))
    mine, chosen = waited(plan, cost), used(plan, plan.cost)
    worse = max(mine, key=lambda name: mine[name] - chosen.get(name, 0.0))
    return f"{worse}: {duration(mine[worse])}, in the chosen one {duration(chosen.get(worse, 0.0))}"


def simpler(kernels: int, chosen: int) -> str:
    """What the chosen one has less of than another one that is as fast."""
    return f"as fast, with {kernels} kernels, not {chosen}" if kernels > chosen else "as fast, with more loops"


def waited(plan: MachinePlan, cost: MachineCost) -> dict[str, float]:
    """Seconds by resource: of each kernel what it waits for, and what starting kernels takes."""
    total = {STARTING: plan.machine.dispatch * len(cost.kernels)}
    for kernel in cost.kernels:
        total[kernel.bottleneck] = total.get(kernel.bottleneck, 0.0) + kernel.seconds - plan.machine.dispatch
    return total


def used(plan: MachinePlan, cost: MachineCost) -> dict[str, float]:
    """Seconds by resource, waited for or not, and what starting kernels takes."""
    total = {STARTING: plan.machine.dispatch * len(cost.kernels)}
    for kernel in cost.kernels:
        for name, seconds in kernel.resources.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def slower_kernels(cost: Cost, chosen: Cost) -> str:
    """Why a snapshot was not chosen at nominal rates."""
    if cost.seconds <= chosen.seconds * CLOSE_KERNELS:
        return "as fast" if cost.kernels <= chosen.kernels else simpler(cost.kernels, chosen.kernels)
    mine, best = nominal(cost), nominal(chosen)
    worse = max(mine, key=lambda name: mine[name] - best[name])
    return f"{worse}: {duration(mine[worse])}, in the chosen one {duration(best[worse])}"


def nominal(cost: Cost) -> dict[str, float]:
    """Seconds by resource at nominal rates."""
    return {
        "moving bytes": cost.traffic_bytes / NOMINAL.bytes,
        "operations": cost.flops / NOMINAL.flops,
        "special functions": cost.special / NOMINAL.special,
        STARTING: cost.kernels * NOMINAL.launch,
    }
