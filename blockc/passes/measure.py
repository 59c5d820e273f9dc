"""The measure that every rule decreases: why fusion ends (design, section 5).

Lexicographic: maps; reduces; the list depths of all ports, largest first; functions that can be split; factors that
can leave a sum, by what stands downstream; definitions. The parts are computed one by one, as far as needed.
"""

from __future__ import annotations

from collections.abc import Callable

from blockc.ir.block import (
    REDUCTIONS,
    Apply,
    Graph,
    Map,
    Program,
    Reduce,
    count_maps,
    count_reduces,
    walk,
)
from blockc.ir.decisions import Match, Refusal
from blockc.ir.ops import OPERATORS
from blockc.passes.rules import (
    distribute_reduction,
    split_exponential,
    split_product,
    swap_scale_and_contraction,
    swap_shift_and_contraction,
)

Part = int | tuple[int, ...]


def decreases(before: Program, after: Program) -> bool:
    """True if the measure of `after` is below that of `before`."""
    for part in PARTS:
        old, new = (value(program, part) for program in (before, after))
        if new != old:
            return bool(new < old)  # type: ignore[operator]
    return False


def value(program: Program, part: Callable[[Program], Part]) -> Part:
    """A part of the measure, computed once: what is behind one step stands before the next."""
    if part.__name__ not in program.measured:
        program.measured[part.__name__] = part(program)
    return program.measured[part.__name__]


def _maps(program: Program) -> Part:
    return count_maps(program.body)


def _reduces(program: Program) -> Part:
    return count_reduces(program.body)


def _depths(program: Program) -> Part:
    """List depths of all ports: 0 for an input, else one more than the deepest list that its producer reads."""
    depth: dict[str, int] = {entry.name: 0 for entry in program.inputs}
    ports: list[int] = []

    def visit(graph: Graph) -> int:
        deepest = -1
        for definition in graph:
            read = max((depth[name] for name in definition.uses if program.types[name].lists), default=-1)
            if isinstance(definition, Map):
                for port in definition.ports:
                    depth[port.name] = depth[port.source]
                    ports.append(depth[port.name])
                read = max(read, visit(definition.body))
            depth.update(dict.fromkeys(definition.defines, read + 1))
            deepest = max(deepest, read)
        return deepest

    visit(program.body)
    return tuple(sorted(ports, reverse=True))


def _splittable(program: Program) -> Part:
    """The functions that can be split, each by the number of functions downstream, largest first: once it is split, one
    behind it may be of a product, and can be split in turn."""
    behind = _behind(program, lambda apply: apply.op == "exp" or bool(_of_product(apply.op)), 0)
    rules = (split_exponential.match, split_product.match)
    found = [place.at[0] for rule in rules for place in rule(program, None) if isinstance(place, Match)]
    return tuple(sorted((behind[name] for name in found), reverse=True))


def _of_product(op: str) -> str:
    return OPERATORS[op].of_product if op in OPERATORS else ""


def _leaving(program: Program) -> Part:
    """The reductions that a factor can leave, each by the number of reductions downstream, largest first: a factor that
    has left one meets only those behind it, however many there are. One whose sum is opened counts more than one that
    loses a single scale, since each of its groups may have a scale again."""
    behind = _behind(program, lambda apply: apply.op in REDUCTIONS, 1)
    rules = (swap_scale_and_contraction.match, swap_shift_and_contraction.match, distribute_reduction.match)
    found = [[place.at[0] for place in rule(program, None) if counts(place)] for rule in rules]
    opened = [*found[1], *(name for name in found[2] if distribute_reduction.opens_sum(program, name))]
    scaled = [*found[0], *(name for name in found[2] if name not in opened)]
    weights = [*(2 * behind[name] + 1 for name in opened), *(2 * behind[name] for name in scaled)]
    return tuple(sorted(weights, reverse=True))


def counts(place: Match | Refusal) -> bool:
    """True for a match, and for a refusal that a change in another loop may take away."""
    return isinstance(place, Match) or place.reason == "needed_elsewhere"


def _behind(program: Program, counted: Callable[[Apply], bool], loops: int) -> dict[str, int]:
    """For each name, the largest number of tile operators that count on a path from it to an output; what maps and
    reduces accumulate counts for `loops`."""
    edges: list[tuple[str, str, int]] = []

    def visit(graph: Graph) -> None:
        for definition in graph:
            match definition:
                case Map():
                    edges.extend((port.source, port.name, 0) for port in definition.ports)
                    visit(definition.body)
                    for output in definition.outputs:
                        step = loops * (output.monoid is not None)
                        edges.extend((v, n, step) for v, n in zip(output.values, output.names, strict=True))
                case Apply():
                    step = int(counted(definition))
                    edges.extend((name, definition.name, step) for name in sorted(definition.uses))
                case _:
                    step = loops * isinstance(definition, Reduce)
                    edges.extend((u, n, step) for u in sorted(definition.uses) for n in definition.defines)

    visit(program.body)
    behind: dict[str, int] = {}
    for source, target, step in reversed(edges):
        behind[source] = max(behind.get(source, 0), behind.setdefault(target, 0) + step)
    return behind


def _size(program: Program) -> Part:
    return sum(1 for _ in walk(program.body))


PARTS: tuple[Callable[[Program], Part], ...] = (_maps, _reduces, _depths, _splittable, _leaving, _size)
