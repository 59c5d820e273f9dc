"""Masks: numbers that are made of conditions and constants only. What they close is known to be nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from blockc.ir.block import Apply, Constant, Operand, Program, Size
from blockc.ir.dtypes import is_float

DEEPEST = 16  # definitions that are looked through
MADE_OF = frozenset({"add", "sub", "mul", "div", "neg", "recip", "cast", "broadcast"})  # operands that are masks

Choice = tuple[Operand, float, float]  # a condition, and the numbers where it holds and where not


def choice(
    operand: Operand, applies: Mapping[str, Apply], dtype: Callable[[Operand], str], deep: int = DEEPEST
) -> Choice | None:
    """The operand as a choice between two numbers: also as a multiple of one, and as one with a number added."""
    apply = applies.get(operand) if isinstance(operand, str) and deep else None
    if apply is None:
        return None
    match apply.op, apply.args:
        case "where", (condition, Constant(yes), Constant(no)):
            return condition, yes, no
        case "cast", (condition,) if is_float(apply.dtype) and dtype(condition) == "bool":
            return condition, 1, 0
        case ("add" | "mul") as op, (inner, Constant(number)):
            found = choice(inner, applies, dtype, deep - 1)
            if found is None:
                return None
            condition, yes, no = found
            return (condition, yes + number, no + number) if op == "add" else (condition, yes * number, no * number)
        case _:
            return None


def is_mask(program: Program, operand: Operand, deep: int = DEEPEST) -> bool:
    """True if a value is made of conditions and constants only, whichever loop makes it."""
    if not isinstance(operand, str):
        return isinstance(operand, Constant | Size)
    facts = program.facts
    if not deep or (operand not in facts.applies and operand not in facts.links):
        return False
    if operand not in facts.applies:
        return is_mask(program, facts.links[operand], deep - 1)
    apply = facts.applies[operand]
    if apply.op == "where":
        return all(is_mask(program, arg, deep - 1) for arg in apply.args[1:])
    return apply.op in MADE_OF and all(
        (isinstance(arg, str) and program.types[arg].dtype == "bool") or is_mask(program, arg, deep - 1)
        for arg in apply.args
    )
