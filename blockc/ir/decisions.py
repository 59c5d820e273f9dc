"""Plain records of what the fuser did and did not do. One stream of them feeds every view (design, section 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from blockc.ir.array_program import Span
from blockc.ir.block import Path, Program


@dataclass(frozen=True, slots=True)
class Match:
    """A place where a rule applies: the graph, and the names of the definitions that the rule is about."""

    path: Path
    at: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A place where a rule has the right shape but a condition fails. `reason` is one of the rule's reasons."""

    reason: str
    path: Path
    at: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A rewrite rule. `paper` is its number in the paper, or "-".

    `match(program, path)` yields, in program order, every match and refusal in the graph at `path`, or in the whole
    program if `path` is None. `rewrite(program, match)` is pure and checks nothing again. Neither raises on a valid
    program. `reasons` are all refusal reasons with a sentence each.
    """

    name: str
    paper: str
    effect: str
    match: Callable[[Program, Path | None], Iterator[Match | Refusal]]
    rewrite: Callable[[Program, Match], Program]
    reasons: dict[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """An applied rule: where, the place in the source if known, and the programs before and after (in normal form)."""

    snapshot: int
    rule: str
    paper: str
    at: tuple[str, ...]
    span: Span | None
    before: Program
    after: Program


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal that stood when the fuser had finished a snapshot."""

    snapshot: int
    rule: str
    reason: str
    at: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Derivation:
    """All that `fuse` found: the unfused program in normal form, the snapshots, and how they came about.

    `complete` is False, and `stopped` says why, if a budget ended the search: the snapshots are correct all the same.
    """

    unfused: Program
    snapshots: tuple[Program, ...]
    steps: tuple[Step, ...]
    refusals: tuple[Refused, ...]
    complete: bool
    stopped: str
