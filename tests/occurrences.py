"""What occurs in random programs, and the quotas of a run: rules, refusals, operators, types and shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from oracle import Case

from blockc.ir.array_program import STRUCTURAL
from blockc.ir.decisions import Derivation
from blockc.ir.dtypes import DTYPES
from blockc.ir.ops import OPERATORS
from blockc.passes.rules import ALL_RULES

# Not written in the language: the normal form makes them.
INTERNAL = {"recip", "finite"}


@dataclass
class Seen:
    """Counts over programs: applied rules, refusals that stood, and the programs that have each feature."""

    programs: int = 0
    steps: int = 0
    compared: int = 0  # programs on the way
    rules: Counter[str] = field(default_factory=Counter)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)

    def update(self, other: Seen) -> None:
        """Add the counts of others."""
        self.programs += other.programs
        self.steps += other.steps
        self.compared += other.compared
        self.rules.update(other.rules)
        self.refusals.update(other.refusals)
        self.features.update(other.features)


# Refusals that random programs do not show, only the files under `data/rules`, and why.
_ONE_LOOP = "every reduce is lowered behind a map over its dimension"
_IN_THE_TILE = "sums are opened in the tile first, and only there where a term blocks"
_SEVEN_SUMS = "that takes a product of seven sums"
ONLY_IN_DATA: dict[tuple[str, str], str] = {
    ("fuse_map_with_reduce", "not_made_by_a_map"): _ONE_LOOP,
    ("fuse_map_with_reduce", "other_dimension"): _ONE_LOOP,
    ("fuse_consecutive_maps", "reads_whole_list"): "a map is lowered with a port for every list over its dimension",
    ("extend_map", "needs_mapped_value"): "what reads a whole list has a loop over it, and that would nest",
    ("swap_shift_and_contraction", "too_many_terms"): _SEVEN_SUMS,
    ("distribute_reduction", "too_many_terms"): _SEVEN_SUMS,
    ("distribute_reduction", "not_additive"): "no rule moves a factor out of the maximum of a tile",
    ("distribute_reduction", "nothing_left"): "the sum of what does not change is lowered as a product with the size",
    ("distribute_reduction", "does_not_block"): _IN_THE_TILE,
}


def _is_cut(case: Case, dim: str) -> bool:
    return dim not in case.whole


def _reads_minus_infinity(case: Case) -> bool:
    nodes = {node.name: node for node in case.program.nodes}
    chosen = [nodes[arg] for node in nodes.values() if node.op == "where" for arg in node.args[1:]]
    return any(node.op == "neg" and nodes[node.args[0]].value == math.inf for node in chosen) or any(
        node.value == -math.inf for node in chosen
    )


def _shares(case: Case) -> bool:
    """True if an intermediate value is used more than once."""
    computed = {node.name for node in case.program.nodes if node.op not in ("input", "constant", "size", "index")}
    uses = Counter(arg for node in case.program.nodes for arg in set(node.args))
    uses.update(result.node for result in case.program.outputs)
    return any(uses[name] > 1 for name in computed)


# What else has to occur: a name, and whether a case has it.
FORMS: dict[str, Callable[[Case], bool]] = {
    "a dimension without elements": lambda case: 0 in case.sizes.values(),
    "a dimension of one element": lambda case: 1 in case.sizes.values(),
    "a dimension of fixed size": lambda case: any(dim.size is not None for dim in case.program.dims),
    "a short last block": lambda case: any(
        _is_cut(case, dim) and size > case.tiles[dim] and size % case.tiles[dim] for dim, size in case.sizes.items()
    ),
    "blocks of one element": lambda case: any(
        _is_cut(case, dim) and size > case.tiles[dim] == 1 for dim, size in case.sizes.items()
    ),
    "one block, not filled": lambda case: any(
        _is_cut(case, dim) and 0 < size < case.tiles[dim] for dim, size in case.sizes.items()
    ),
    "a whole dimension": lambda case: bool(case.whole),
    "no whole dimension": lambda case: not case.whole,
    "a renamed dimension": lambda case: any(node.op == "rename" for node in case.program.nodes),
    "a mask of positions": lambda case: {"where", "index"} <= {node.op for node in case.program.nodes},
    "a mask from an input": lambda case: any(argument.dtype == "bool" for argument in case.program.inputs),
    "minus infinity where masked": _reads_minus_infinity,
    "a packed axis of an input": lambda case: any(len(axis) > 1 for one in case.program.inputs for axis in one.axes),
    "a packed axis of an output": lambda case: any(
        len(axis) > 1 for one in case.program.outputs for axis in one.argument.axes
    ),
    "an input without axes": lambda case: any(argument.axes == () for argument in case.program.inputs),
    "an output without axes": lambda case: any(one.argument.axes == () for one in case.program.outputs),
    "inputs of several types": lambda case: len({argument.dtype for argument in case.program.inputs}) > 1,
    "two outputs": lambda case: len(case.program.outputs) == 2,
    "three outputs": lambda case: len(case.program.outputs) == 3,
    "outputs of several types": lambda case: len({one.argument.dtype for one in case.program.outputs}) > 1,
    "a value that is used again": _shares,
}
OPERATORS_WRITTEN = sorted((set(OPERATORS) | STRUCTURAL) - INTERNAL)
DEPTHS = ("several snapshots", "three snapshots or more", "twenty steps or more")


def features(case: Case, derivation: Derivation) -> set[str]:
    """What a program shows of what has to occur."""
    program = case.program
    found = {name for name, holds in FORMS.items() if holds(case)}
    found |= {f"operator {node.op}" for node in program.nodes}
    found |= {f"input of type {argument.dtype}" for argument in program.inputs}
    found |= {f"output of type {result.argument.dtype}" for result in program.outputs}
    found |= {f"value of rank {len(node.shape)}" for node in program.nodes}
    snapshots = len(derivation.snapshots)
    depths = (snapshots > 1, snapshots > 2, len(derivation.steps) >= 20)
    return found | {name for name, holds in zip(DEPTHS, depths, strict=True) if holds}


QUOTAS: tuple[str, ...] = (
    *FORMS,
    *DEPTHS,
    *(f"operator {name}" for name in OPERATORS_WRITTEN),
    *(f"input of type {name}" for name in DTYPES),
    *(f"output of type {name}" for name in ("f16", "f32", "f64")),
    *(f"value of rank {rank}" for rank in range(5)),
)


def missing(seen: Seen, least: int) -> list[str]:
    """What occurred fewer times than `least`, of the rules and of everything else, and the refusals that never did."""
    counts = [(f"rule {rule.name}", seen.rules[rule.name]) for rule in ALL_RULES]
    counts += [(name, seen.features[name]) for name in QUOTAS]
    found = [f"{name}: {count} times" for name, count in counts if count < least]
    reasons = {(rule.name, reason) for rule in ALL_RULES for reason in rule.reasons}
    reasons -= {*seen.refusals, *ONLY_IN_DATA}
    found += [f"{rule} refused for {reason}: never" for rule, reason in sorted(reasons)]
    return found
