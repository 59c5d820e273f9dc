"""What a report says of a rule: the text of its module, with the example before and after."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from blockc.ir.decisions import Rule
from blockc.passes import cut_again
from blockc.passes.rules import ALL_RULES

PLAN = "stabilize"  # the last stop of a derivation: what kernels are made of
RULES = {rule.name: rule for rule in ALL_RULES}
OTHERS = {
    "cut_again": inspect.getdoc(cut_again),
    PLAN: """The program that is executed: with arithmetic that cannot overflow, in the blocks that were chosen.

A value made by `exp` is carried as a pair (x, t), meaning x * e^t. Products add exponents, reciprocals negate them, a
sum brings its terms to the largest exponent along what it sums. Sums with a large common offset are taken around a
pivot. Neighbouring elementwise operators become one expression.""",
}


def rule_json(name: str) -> dict[str, Any]:
    """A rule, or another rewrite of a derivation, by its name."""
    rule = RULES.get(name)
    words, before, after = _parsed((_document(rule) if rule is not None else OTHERS[name]) or "")
    return {
        "name": name,
        "paper": rule.paper if rule is not None else "-",
        "effect": rule.effect if rule is not None else "",
        "text": words,
        "before": before,
        "after": after,
        "reasons": dict(rule.reasons) if rule is not None else {},
    }


def _document(rule: Rule) -> str | None:
    return inspect.getdoc(sys.modules[rule.match.__module__])


def _parsed(text: str) -> tuple[list[str], list[str], list[str]]:
    """The paragraphs of a docstring, and of its first example the lines before and after."""
    paragraphs: list[list[str]] = [[]]
    examples: list[list[str]] = [[], []]
    side = 0
    for line in text.splitlines():
        if line.strip() == "=>":
            side += 1
        elif line.startswith("    "):
            if side < 2:
                examples[side].append(line[4:])
        elif line.strip():
            paragraphs[-1].append(line.strip())
        elif paragraphs[-1]:
            paragraphs.append([])
    if side == 0:  # no example of a rewrite
        examples = [[], []]
    return [" ".join(words) for words in paragraphs if words], _dedented(examples[0]), _dedented(examples[1])


def _dedented(lines: list[str]) -> list[str]:
    common = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[common:] for line in lines]
