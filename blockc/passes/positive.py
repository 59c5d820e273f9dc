"""Which values are never negative, whatever the inputs: exponentials, squares, and what is made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from blockc.ir.block import REDUCTIONS, Apply, Constant, Expression, Operand, Program, Size

DEEPEST = 64  # definitions that are looked through
ALWAYS = frozenset({"exp", "sigmoid", "abs", "sqrt", "rsqrt"})  # of any argument for which they are defined
KEEPING = frozenset({*REDUCTIONS, "add", "recip", "minimum", "broadcast", "cast", "pow", "floor"})  # of such arguments


def is_positive(program: Program, operand: Operand) -> bool:
    """True if a value is shown to be zero, positive, or not a number."""
    return _Signs(program.facts.applies, program.facts.links, {}).positive(operand, DEEPEST)


class _Signs:
    """What has been found for each operand."""

    def __init__(self, applies: Mapping[str, Apply], links: Mapping[str, str], known: dict[Operand, bool]) -> None:
        self.applies, self.links, self.known = applies, links, known

    def positive(self, operand: Operand, depth: int) -> bool:
        if operand not in self.known:
            self.known[operand] = False  # of what is made of itself nothing is shown
            self.known[operand] = depth > 0 and self.shown(operand, depth - 1)
        return self.known[operand]

    def shown(self, operand: Operand, depth: int) -> bool:
        match operand:
            case Constant(value):
                return value >= 0
            case Size():
                return True
            case Expression(op, args):
                return self.result(op, args, depth)
        if operand in self.applies:
            return self.result(self.applies[operand].op, self.applies[operand].args, depth)
        return operand in self.links and self.positive(self.links[operand], depth)

    def result(self, op: str, args: tuple[Operand, ...], depth: int) -> bool:
        """True for an operator of these operands."""
        match op:
            case "mul" | "contract":
                args = tuple(arg for arg, count in Counter(args).items() if count % 2)  # a square is positive
                return all(self.positive(arg, depth) for arg in args)
            case "maximum":
                return any(self.positive(arg, depth) for arg in args)
            case "where":
                return all(self.positive(arg, depth) for arg in args[1:])
            case _:
                return op in ALWAYS or (op in KEEPING and all(self.positive(arg, depth) for arg in args))
