"""Pivots: sums of values with a large common offset are taken of differences from a pivot, where they would cancel.

A variance as E[x^2] - E[x]^2, the statistics and the product of a LayerNorm in one loop, or the entropy of a softmax
lose digits when x is large and varies little. So x is written as (x - p) + p, with one p for the blocks of the loop:
their largest mean, or the largest x where the sums are weighted by exp(x). Every sum becomes a polynomial in p, whose
coefficients are accumulated (`shift_1`, `exponent_shift_1`, ... of `monoids.py`). Behind the loop, what is linear in
the sums is brought to a polynomial normal form with sympy: where p cancels from a value that leaves, digits would have
been lost, and the loop gets its pivot. Where p stays (the mean itself, the root mean square) nothing cancels.

No pattern is involved: any value in the loop may be the x. A pivot of exponentials is a pair itself (`pivot_pair_1`,
...), unless what they are exponentials of serves more sums. Source: design, section 7; shifted sums after Chan et al.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from blockc.ir.block import Apply, Map, Operand, Path, Program, graph_at, operand_names, paths, roots, walk
from blockc.passes.normalise import normalise
from blockc.passes.pivot_attempt import Attempt
from blockc.passes.pivot_sums import is_sum
from blockc.passes.prune import prune

MOST_VALUES = 48  # in a loop that are tried as the x


@dataclass(frozen=True, slots=True)
class Pivoted:
    """A program with pivots. `bounded` names exponentials that cannot overflow: their arguments are at most 0.
    `without` is a value that has none, since its loop has the pivot of another one: sums of its exponentials cancel."""

    program: Program
    bounded: frozenset[str]
    pivots: frozenset[str]
    without: str = ""


def cancels(program: Program) -> str:
    """Why sums of a program lose digits, though it has all the pivots that it can have; "" if they do not.

    A pivot that stays beside the sum of another loop says that the values of that loop have no pivot. A sum times its
    own reciprocal is 1 up to a rounding error, which the logarithm of a sum of exponentials makes large.
    """
    found = pivot(program)
    if found.without:
        return f"sums of exponentials of `{found.without}` have no pivot, but others in their loop have one"
    table, links = found.program.facts.applies, found.program.facts.links
    moved = {name: name for name in found.pivots}  # what a pivot is in, with that pivot
    plain = {
        name
        for node in walk(found.program.body)
        if isinstance(node, Map)
        for output in node.outputs
        if output.monoid == "add"
        for name in output.names
    }
    for definition in walk(found.program.body):
        if not isinstance(definition, Apply):
            continue
        names = set(operand_names(definition.args))
        if definition.op in ("add", "mul") and names & moved.keys():
            moved[definition.name] = moved[min(names & moved.keys())]
        if definition.op == "mul":
            inverses = {name: table[name].args[0] for name in names if name in table and table[name].op == "recip"}
            for name, of in inverses.items():
                if of in names and any(_is_logarithm(other, links, table, plain) for other in names - {name, of}):
                    return f"`{definition.name}` multiplies `{of}` by its reciprocal"
        elif definition.op == "add":
            pivots = [
                next((moved[name] for name in operand_names((arg,)) if name in moved), "") for arg in definition.args
            ]
            others = [arg for arg, name in zip(definition.args, pivots, strict=True) if not name]
            if names & moved.keys() and any(
                _is_plain_sum(name, links, table, plain) for arg in others for name in _product(arg, table)
            ):
                return f"`{definition.name}` adds a sum that has no pivot to a multiple of `{max(pivots)}`"
    return ""


def _is_plain_sum(name: str, links: Mapping[str, str], table: Mapping[str, Apply], plain: set[str]) -> bool:
    """True for what a loop adds up, or an element of a list of such sums."""
    while name in links and name not in table and name not in plain:
        name = links[name]
    return name in plain


def _product(operand: Operand, table: Mapping[str, Apply]) -> tuple[str, ...]:
    """The names of the factors of a value."""
    apply = table.get(operand) if isinstance(operand, str) else None
    args = apply.args if apply is not None and apply.op == "mul" else (operand,)
    return tuple(operand_names(args))


def _is_logarithm(name: str, links: Mapping[str, str], table: Mapping[str, Apply], plain: set[str]) -> bool:
    """True for the logarithm of sums that may be as large as exponentials, and for what adds one."""
    apply = table.get(name)
    if apply is None or apply.op not in ("log", "add"):
        return False
    names = tuple(operand_names(apply.args))
    if apply.op == "add":
        return any(_is_logarithm(other, links, table, plain) for other in names)
    return any(_is_large(other, links, table, plain) for other in names)


def _is_large(name: str, links: Mapping[str, str], table: Mapping[str, Apply], plain: set[str]) -> bool:
    apply = table.get(name)
    if apply is None or apply.op not in ("mul", "recip"):
        return _is_plain_sum(name, links, table, plain)
    return any(_is_large(other, links, table, plain) for other in operand_names(apply.args))


def pivot(program: Program) -> Pivoted:
    """The program with a pivot in every loop whose sums would cancel, found once: the fuser and the choice both ask."""
    known: Pivoted | None = program.__dict__.get("pivoted")
    if known is None:
        known = program.__dict__["pivoted"] = _pivot(program)
    return known


def _pivot(program: Program) -> Pivoted:
    result = Pivoted(program, frozenset(), frozenset())
    lists = roots(program)
    known: dict[tuple[str, str], tuple[str, Path]] = {}  # the pivot of a list along a dimension, and where it is
    for path, first in list(_loops(program)):
        node = _loop_now(result.program, path, first)
        if node is None:
            continue
        found: list[Attempt] = []
        for name in _candidates(result.program, node):
            given, home = known.get((lists.get(name, name), node.dim), ("", ()))
            visible = given if path[: len(home)] == home else ""
            change = Attempt.of(result.program, path, node, name, visible) if visible else None
            change = change or Attempt.of(result.program, path, node, name, "")
            if change is not None:
                found.append(change)
        # Of those that serve as many sums the first: an exponential rather than what it is the exponential of.
        best = max(found, key=lambda change: len(change.changed), default=None)
        if best is not None:
            with_pivot = {best.x, *best.exponentials}
            others = (change.x for change in found if not change.exponentials.keys() <= with_pivot)
            changed = normalise(prune(best.rewritten()))
            known.setdefault((lists.get(best.x, best.x), best.node.dim), (best.made, path))
            pivots, bounded = result.pivots | {best.made}, result.bounded | best.bounded
            result = Pivoted(changed, bounded, pivots, result.without or next(others, ""))
    return result


def _loop_now(program: Program, path: Path, node: Map) -> Map | None:
    """The loop as it is after pivots of others."""
    try:
        graph = graph_at(program, path)
    except KeyError:
        return None
    names = set(node.defines)
    return next((other for other in graph if isinstance(other, Map) and not names.isdisjoint(other.defines)), None)


def _loops(program: Program) -> Iterator[tuple[Path, Map]]:
    """The loops that add up contractions, with the path of the graph that they stand in."""
    table = program.facts.applies
    for path, graph in paths(program):
        for node in graph:
            if isinstance(node, Map) and any(is_sum(node, output, table) for output in node.outputs):
                yield path, node


def _candidates(program: Program, node: Map) -> list[str]:
    """The values in a loop that have its dimension, nearest to the sums first."""
    names = [port.name for port in node.ports]
    names += [name for definition in node.body for name in definition.defines]
    wide = [name for name in names if program.types[name].is_item and node.dim in program.types[name].axes]
    return wide[: -MOST_VALUES - 1 : -1]
