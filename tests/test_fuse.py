"""What fusion makes of the programs that it is for, and that neither spelling nor names decide it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import sympy
from oracle import EXAMPLES, NORMAL_RUN, Case, check, derive, example, random_case, random_derivation

from blockc.ir.block import Map, Program, Reduce, walk
from blockc.ir.decisions import Derivation
from blockc.ir.text import format_program
from blockc.language import parse
from blockc.passes.cost import buffered_lists, traffic_formula
from blockc.passes.fuse import Budget, fuse
from blockc.passes.lower import lower
from blockc.passes.measure import decreases
from blockc.passes.rules import RULES


def fused(source: str, whole: str, budget: Budget | None = None) -> Derivation:
    return fuse(lower(parse(source), frozenset(whole.split())), budget)


def internal_lists(program: Program) -> list[str]:
    return [name.split(".")[0] for name in buffered_lists(program)]


def launches(program: Program) -> int:
    return sum(isinstance(definition, Map | Reduce) for definition in program.body)


def summary(derivation: Derivation) -> list[tuple[int, int, str]]:
    """Of every snapshot the launches, the number of lists inside, and the traffic."""
    return [
        (launches(program), len(buffered_lists(program)), str(sympy.expand(traffic_formula(program))))
        for program in derivation.snapshots
    ]


# Structure: (example, whole dimensions, and for every snapshot: launches and the lists kept inside)
STRUCTURE = [
    ("attention", "d e", [(1, [])]),
    ("attention", "d", [(1, ["S"]), (1, [])]),
    ("cross_attention", "d e", [(1, [])]),
    ("grouped_heads", "d e", [(1, [])]),
    ("attention_lse", "d e", [(1, [])]),
    ("cross_entropy", "d", [(1, [])]),
    ("rmsnorm_swiglu", "d e", [(1, [])]),
    ("mlp", "d e", [(1, [])]),
    ("mlp", "", [(1, ["H"]), (1, [])]),
    ("matmul_epilogue", "", [(1, [])]),
]


@pytest.mark.parametrize(("name", "whole", "expected"), STRUCTURE)
def test_structure_of_snapshots(name: str, whole: str, expected: list[tuple[int, list[str]]]) -> None:
    derivation = fused(example(name), whole)
    assert [(launches(p), internal_lists(p)) for p in derivation.snapshots] == expected
    assert derivation.complete and derivation.stopped == ""


def test_feed_forward_with_all_cut_keeps_the_hidden_list_first() -> None:
    derivation = fused(example("rmsnorm_swiglu"), "")
    assert internal_lists(derivation.snapshots[0]) == ["H"]
    assert launches(derivation.snapshots[-1]) == 1 and not internal_lists(derivation.snapshots[-1])
