"""Mutants: rules with one of their conditions deleted, and the oracles that have to notice.

A refusal reason stands in the source of a rule below the condition that it is about. `mutants` deletes that condition:
the `if` around the reason never (or always) holds. Of conditions inside one another the innermost is deleted whose
absence makes the rule match where it refused; if none does, every refusal with the reason becomes a match.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from oracle import difference, inputs, random_case, random_derivation
from rule_data import complete, files, random_inputs, small_shapes, with_chunks

from blockc.field_meaning import random_inputs as random_residues
from blockc.ir.array_program import Argument
from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import Apply, Expression, Program, depth, walk
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.ir.interpret import Run, interpret
from blockc.ir.prime_field import FIELD
from blockc.ir.residues import compare, random_numbers
from blockc.ir.verify import VerifyError, verify
from blockc.passes.cost import buffered_lists, traffic, work
from blockc.passes.fuse import Budget, fuse
from blockc.passes.measure import decreases
from blockc.passes.normalise import normalise
from blockc.passes.rules import ALL_RULES, RULES, SNAPSHOT_RULES, fuse_elementwise

# What may notice: the mutant cannot even look or rewrite; the verifier rejects the result; it means something else, in
# float64 or in the prime field; the measure of termination does not decrease; it moves more bytes or does more work
# than the rule ever does, exactly or in leading order; after an exchange nothing is less in the end; a composed
# expression is deeper than a reader can follow. What one of the first two rejects is not shown to the others.
ORACLES = ("rewrite", "verifier", "float64", "field", "measure", "traffic", "work", "gain", "depth")
SEEDS = range(40)  # of the random programs in whose snapshots conditions are deleted too
PLACES = 2  # in random programs, for each reason

Sizes = Mapping[str, int]

LONG, SHORT, SLACK = 4096, 64, 1.05  # elements along a dimension; what is not of leading order where it is long


# Deleting a condition


def chain(tree: ast.AST, reason: str) -> list[tuple[list[ast.AST], ast.AST]]:
    """Where a reason stands in a module, its table of reasons aside: the nodes from the outermost to it, and itself."""
    found: list[tuple[list[ast.AST], ast.AST]] = []

    def visit(node: ast.AST, above: list[ast.AST]) -> None:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REASONS":
            return
        if isinstance(node, ast.Constant) and node.value == reason:
            found.append((above, node))
        for child in ast.iter_child_nodes(node):
            visit(child, [*above, node])

    visit(tree, [])
    return found


def contains(part: list[ast.stmt] | ast.expr, node: ast.AST) -> bool:
    """True if a node stands in a part of another one."""
    trees: list[Any] = part if isinstance(part, list) else [part]
    return any(node is inner for tree in trees for inner in ast.walk(tree))


def without_condition(source: str, reason: str, level: int) -> ast.Module | None:
    """The module without the condition that stands `level` conditions around the reason; None if there are fewer."""
    tree = ast.parse(source)
    for above, literal in chain(tree, reason):
        conditions = [node for node in reversed(above) if isinstance(node, ast.If | ast.IfExp)]
        if level >= len(conditions):
            return None
        condition = conditions[level]
        condition.test = ast.copy_location(ast.Constant(not contains(condition.body, literal)), condition.test)
    return ast.fix_missing_locations(tree) if chain(tree, reason) else None


def loaded(rule: Rule, tree: ast.Module) -> Rule:
    """The rule of a changed module."""
    name = f"blockc.passes.rules.{rule.name}"
    names: dict[str, Any] = {"__name__": name}
    exec(compile(tree, f"<{rule.name} without a condition>", "exec"), names)  # noqa: S102 - our own module, changed
    found: Rule = names["RULE"]
    return found


def forced(rule: Rule, reason: str) -> Rule:
    """The rule with a match wherever it refuses for a reason."""

    def match(program: Program, path: Any) -> Iterator[Match | Refusal]:
        for found in rule.match(program, path):
            refused = isinstance(found, Refusal) and found.reason == reason
            yield Match(found.path, found.at) if refused else found

    return replace(rule, match=match)


def source_of(rule: Rule) -> str:
    module = importlib.import_module(f"blockc.passes.rules.{rule.name}")
    return Path(str(module.__file__)).read_text(encoding="utf-8")


def mutants(rule: Rule, reason: str) -> Iterator[tuple[str, Rule]]:
    """The rule without a condition, by what was done to it, from the innermost condition outwards."""
    for level in range(4):
        tree = without_condition(source_of(rule), reason, level)
        if tree is None:
            break
        yield ("condition", "second condition", "third condition", "fourth condition")[level], loaded(rule, tree)
    yield "refusal", forced(rule, reason)


# What notices


@dataclass(frozen=True)
class Place:
    """A program where a rule refuses, with the shapes to try it at, and the data of both algebraic oracles."""

    program: Program
    shapes: tuple[tuple[Sizes, Sizes], ...]
    numbers: Callable[[Sizes], Mapping[str, Any]]
    residues: Callable[[Sizes], Mapping[str, Any]]


def example_places(rule: Rule, reason: str) -> Iterator[Place]:
    """The data files of a refusal."""
    for example in files(rule.name):
        if example.refusal == reason:
            yield place_of(complete(example.before, "")[0])


def place_of(program: Program) -> Place:
    """A program of an example, with some of its small shapes."""
    shapes = list(small_shapes(program))
    return Place(
        program,
        tuple(shapes[:: max(1, len(shapes) // 8)]),
        lambda sizes: random_inputs(program, dict(sizes), 1),
        lambda sizes: residues(program.arguments, sizes),
    )


def residues(arguments: tuple[Argument, ...], sizes: Sizes) -> dict[str, Any]:
    """Random residues for every argument."""
    return {
        argument.name: random_numbers(tuple(sizes[dim] for dim in argument.dims), np.random.default_rng([7, position]))
        for position, argument in enumerate(arguments)
    }


@cache
def random_places() -> dict[tuple[str, str], list[Place]]:
    """Snapshots of random programs by the rule and reason of a refusal that stands in them."""
    found: dict[tuple[str, str], list[Place]] = {}
    for seed in SEEDS:
        case, derivation = random_case(seed), random_derivation(seed)
        for index, program in enumerate(derivation.snapshots):
            place = Place(
                program,
                ((case.sizes, case.tiles),),
                lambda sizes, case=case: inputs(case),  # type: ignore[misc]
                lambda sizes, case=case: random_residues(case.program, case.sizes, case.seed),  # type: ignore[misc]
            )
            reasons = {(refusal.rule, refusal.reason) for refusal in derivation.refusals if refusal.snapshot == index}
            for key in reasons:
                if len(found.setdefault(key, [])) < PLACES:
                    found[key].append(place)
    return found


def new_matches(rule: Rule, mutant: Rule, place: Place, reason: str) -> list[Match] | None:
    """Where the mutant matches and the rule refuses for the reason; None if the mutant cannot even look."""
    refused = {
        (found.path, found.at[0])
        for found in rule.match(place.program, None)
        if isinstance(found, Refusal) and found.reason == reason
    }
    try:
        found = list(mutant.match(place.program, None))
    except Exception:  # noqa: BLE001 - whatever a rule without a condition runs into
        return None
    return [one for one in found if isinstance(one, Match) and (one.path, one.at[0]) in refused]


def noticed(mutant: Rule, place: Place, match: Match) -> set[str]:
    """The oracles that notice what the mutant does at a place."""
    before = place.program
    try:
        after = mutant.rewrite(before, match)
    except Exception:  # noqa: BLE001 - as above
        return {"rewrite"}
    try:
        verify(after)
    except VerifyError:
        return {"verifier"}
    found = set()
    for sizes, tiles in place.shapes:
        found |= different(before, after, sizes, tiles, place)
    if mutant.name in {rule.name for rule in RULES} and not decreases(normalise(before), normalise(after)):
        found.add("measure")
    if mutant.name in {rule.name for rule in SNAPSHOT_RULES} and not gains(before, after):
        found.add("gain")
    found |= promised(mutant.name, before, after, *place.shapes[-1])
    if deepest(after) > max(deepest(before), fuse_elementwise.DEEPEST):
        found.add("depth")
    return found


def different(before: Program, after: Program, sizes: Sizes, tiles: Sizes, place: Place) -> set[str]:
    """Which algebraic oracles find that two programs differ."""
    found = set()

    def run(program: Program, arrays: Mapping[str, Any], **options: Any) -> Run:
        return interpret(program, arrays, sizes, with_chunks(program, dict(tiles)), **options)

    numbers, residues = place.numbers(sizes), place.residues(sizes)
    first, second = run(before, numbers).outputs, run(after, numbers).outputs
    if any(difference(second[name], first[name]) for name in first):
        found.add("float64")
    first, second = run(before, residues, arithmetic=FIELD).outputs, run(after, residues, arithmetic=FIELD).outputs
    if any(compare(second[name], first[name]).different for name in first):
        found.add("field")
    return found


def promised(name: str, before: Program, after: Program, sizes: Sizes, tiles: Sizes) -> set[str]:
    """What the second program has more of, at these sizes or in leading order, that a rule never makes more of."""
    small = dearer(before, after, sizes, tiles, 1) - allowed(name)[0]
    return small | (dearer(before, after, *long_shape(before), SLACK) - allowed(name)[1])


def dearer(before: Program, after: Program, sizes: Sizes, tiles: Sizes, slack: float) -> set[str]:
    """What the second program has more of: bytes moved ("traffic"), operations or special functions ("work")."""
    first, second = costs(before, sizes, tiles), costs(after, sizes, tiles)
    return {name for name, old, new in zip(COSTS, first, second, strict=True) if new > slack * old}


COSTS = ("traffic", "work", "work")


def costs(program: Program, sizes: Sizes, tiles: Sizes) -> tuple[int, int, int]:
    """Bytes moved, operations, and special functions."""
    known, extents = with_chunks(program, dict(tiles)), complete_sizes(program, sizes)
    return (sum(traffic(program, extents, known).values()), *work(program, extents, known))


def long_shape(program: Program) -> tuple[Sizes, Sizes]:
    """Sizes and tiles at which only what is of leading order counts."""
    sizes = {dim.name: LONG + 97 * at for at, dim in enumerate(program.dims) if dim.name not in program.chunks}
    return sizes, dict.fromkeys(sizes, 64)


@cache
def allowed(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """What a rule may make more of where it applies rightly, since it does so in its examples: at small sizes, and in
    leading order. More of that proves nothing against a mutant."""
    (rule,) = (rule for rule in ALL_RULES if rule.name == name)
    small: set[str] = set()
    leading: set[str] = set()
    for example in files(name):
        if not example.refusal:
            before, _ = complete(example.before, example.after)
            match = next(one for one in rule.match(before, None) if isinstance(one, Match))
            after = rule.rewrite(before, match)
            small = small.union(*(dearer(before, after, *shape, 1) for shape in small_shapes(before)))
            leading |= dearer(before, after, *long_shape(before), SLACK)
    return frozenset(small), frozenset(leading)


def gains(before: Program, after: Program) -> set[str]:
    """What the second program has less of, at once or at the fixed point of the rules: lists in slow memory, or bytes
    or operations, whichever dimensions are long."""
    settled = [fuse(program, Budget(snapshots=1)).snapshots[0] for program in (before, after)]
    sizes, tiles = long_shape(before)
    found = set()
    for old, new in ((before, after), settled):
        found |= {"lists"} if len(buffered_lists(new)) < len(buffered_lists(old)) else set()
        for chosen in product((SHORT, LONG), repeat=len(sizes)):
            found |= dearer(new, old, dict(zip(sizes, chosen, strict=True)), tiles, 1)
    return found


def deepest(program: Program) -> int:
    """The depth of the deepest composed operator."""
    return max(depth(Expression(node.op, node.args)) for node in walk(program.body) if isinstance(node, Apply))


# The table


@dataclass(frozen=True)
class Row:
    """What became of the mutants of one reason: what was deleted, who noticed, and at how many of the places."""

    rule: str
    reason: str
    deleted: str
    noticed: frozenset[str]
    caught: int
    places: int


def row(rule: Rule, reason: str) -> Row:
    """Try the mutants of a reason until one changes what the rule does."""
    examples = list(example_places(rule, reason))
    for deleted, mutant in mutants(rule, reason):
        where = [(place, new_matches(rule, mutant, place, reason)) for place in examples]
        if not any(found is None or found for _, found in where):
            continue
        more = random_places().get((rule.name, reason), [])
        where += [(place, new_matches(rule, mutant, place, reason)) for place in more]
        results = [
            {"rewrite"} if found is None else noticed(mutant, place, found[0])
            for place, found in where
            if found is None or found
        ]
        return Row(rule.name, reason, deleted, frozenset().union(*results), sum(map(bool, results)), len(results))
    return Row(rule.name, reason, "nothing", frozenset(), 0, 0)


def table(rows: list[Row]) -> str:
    """The rows as text."""
    lines = [("rule", "reason", "deleted", "places", "caught by")]
    for one in rows:
        by = ", ".join(oracle for oracle in ORACLES if oracle in one.noticed) or "NOBODY"
        lines.append((one.rule, one.reason, one.deleted, f"{one.caught} of {one.places}", by))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
