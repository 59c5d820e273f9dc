"""Masks: numbers that are made of conditions and constants only. What they close is known to be nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from blockc.ir.block import REDUCTIONS, Apply, Constant, Expression, Operand, Type
from blockc.ir.dtypes import is_float

DEEPEST = 16  # definitions that are looked through
MADE_OF = frozenset(  # operands that are masks
    {"add", "sub", "mul", "div", "neg", "recip", "cast", "broadcast", "maximum", "minimum", "abs", "pow"}
)

KEEPING_EXPONENTS = frozenset(  # of their operands
    {*REDUCTIONS, "add", "mul", "recip", "where", "maximum", "minimum", "sqrt", "rsqrt", "pow", "abs", "cast"}
    | {"broadcast"}
)

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


@dataclass(frozen=True, slots=True)
class Origins:
    """What values are made of: tile operators by name, what ports and outputs of loops stand for, and types."""

    applies: Mapping[str, Apply]
    links: Mapping[str, str]
    types: Mapping[str, Type]

    def made(self, name: str) -> Apply | None:
        """The operator that makes a value, whichever loop it is in; None for an input."""
        for _ in range(DEEPEST):
            if name in self.applies or name not in self.links:
                break
            name = self.links[name]
        return self.applies.get(name)


def is_mask(origins: Origins, operand: Operand, deep: int = DEEPEST) -> bool:
    """True if a value is made of conditions and constants only."""
    if isinstance(operand, Expression):
        return all(is_mask(origins, arg, deep - 1) for arg in operand.args)
    if not isinstance(operand, str):
        return True
    apply = origins.made(operand) if deep else None
    if apply is None:
        return False
    if apply.op == "where":
        return all(is_mask(origins, arg, deep - 1) for arg in apply.args[1:])
    return apply.op in MADE_OF and all(
        (isinstance(arg, str) and origins.types[arg].dtype == "bool") or is_mask(origins, arg, deep - 1)
        for arg in apply.args
    )


def has_exponent(origins: Origins, operand: Operand) -> bool:
    """True if a value is an exponential, or made of some by operators that keep their exponents."""
    pending, seen = [operand], set[Operand]()
    while pending:
        current = pending.pop()
        apply = origins.made(current) if isinstance(current, str) and current not in seen else None
        seen.add(current)
        if apply is not None and apply.op == "exp":
            return True
        if apply is not None and apply.op in KEEPING_EXPONENTS:
            pending.extend(apply.args)
    return False
