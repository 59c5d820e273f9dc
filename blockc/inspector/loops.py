"""How two operators stand to each other inside the kernel that both are in: in one loop, or in loops of their own."""

from __future__ import annotations

from dataclasses import dataclass

from blockc.inspector.obstacles import Obstacle, Obstacles
from blockc.inspector.origins import PartOrigins
from blockc.inspector.pairs import Inspection
from blockc.ir.block import Graph, Map, Path, Program
from blockc.ir.decisions import Refusal
from blockc.passes.rules import distribute_reduction, split_product, swap_shift_and_contraction

ALGEBRA = (swap_shift_and_contraction.RULE, distribute_reduction.RULE, split_product.RULE)
FINAL = frozenset({"not_linear", "needed_elsewhere", "may_be_negative", "not_additive"})  # no other order helps


@dataclass(frozen=True, slots=True)
class Loops:
    """Two operators in different loops of one kernel: the dimensions of both, and what keeps the loops apart, the most
    specific first. `algebra` are conditions of rules that would let the second loop do without the first one's result.
    """

    dims: tuple[str, str]
    obstacles: tuple[Obstacle, ...]
    algebra: tuple[Obstacle, ...]


def loops_of(found: Inspection, first: str, second: str) -> Loops | None:
    """The loops of two operators in their kernel, if these are two."""
    for kernel in sorted(found.origins.together(first, second)):
        part = found.part_of(kernel)
        places = [places_of(part, name) for name in (first, second)]
        if not places[0] or not places[1]:
            return None  # algebra has changed one of them: it has no place of its own
        split = [apart(part.chosen, a, b) for a in places[0] for b in places[1]]
        if None in split:
            return None
        return next((one for one in split if one is not None), None)
    return None


def places_of(part: PartOrigins, name: str) -> list[Path]:
    """The graphs in which an operator's value is computed in the chosen snapshot."""
    numbers = part.numbers_in(part.chosen)
    wanted = part.numbers[name]
    found: list[Path] = []

    def visit(graph: Graph, path: Path) -> None:
        for definition in graph:
            if isinstance(definition, Map):
                visit(definition.body, (*path, definition.defines[0]))
            elif any(numbers[bound] == wanted for bound in definition.defines):
                found.append(path)

    visit(part.chosen.body, ())
    return found


def apart(program: Program, first: Path, second: Path) -> Loops | None:
    """What keeps the loops of two paths apart; None if one of the paths leads on from the other."""
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    if common in (len(first), len(second)) or common == 0:
        return None
    obstacles = Obstacles(program, first[:common])
    ends = [obstacles.home[path[common]] for path in (first, second)]
    maps = [obstacles.groups[at][0] for at in ends]
    assert isinstance(maps[0], Map) and isinstance(maps[1], Map)
    if ends[0] == ends[1]:
        return None
    algebra = (
        Obstacle(rule.name, one.reason, one.why, one.at)
        for rule in ALGEBRA
        for one in rule.match(program, None)
        if isinstance(one, Refusal) and one.reason in FINAL and one.path[: common + 1] == second[: common + 1]
    )
    return Loops((maps[0].dim, maps[1].dim), obstacles.of(min(ends), max(ends)), tuple(dict.fromkeys(algebra)))
