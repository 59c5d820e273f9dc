"""Which exponents of a loop may be replaced by those so far, and which of them are read at all.

A pair (x, t) stands for x * e^t. If every payload x of an accumulated pair depends on t only through exp(s - t), then
computing the body with any other t gives another pair for the same number, so the exponent so far can be used at once
and nothing of the new block needs rescaling (the online softmax).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import assert_never

from blockc.ir.block import Apply, Constant, Expression, Graph, Map, Operand, Output, Reduce, Rename, Size, walk


def read_as_numbers(graph: Graph) -> set[str]:
    """The names of a graph that are read for more than whether they are infinite."""
    found: set[str] = set()
    for definition in walk(graph):
        match definition:
            case Apply(_, op, args):
                found.update(_numbers(op, args))
            case Map():
                found.update(port.source for port in definition.ports)
                found.update(value for output in definition.outputs for value in output.values)
            case _:
                found |= definition.uses
    for definition in walk(graph):
        for output in definition.outputs if isinstance(definition, Map) else ():
            pairs = zip(output.names, output.starts or output.names, strict=True)
            found.update(start for name, start in pairs if name in found)
    return found


def _numbers(op: str, args: tuple[Operand, ...]) -> Iterator[str]:
    if op in ("eq", "ne") and any(isinstance(arg, Constant) and math.isinf(arg.value) for arg in args):
        args = tuple(arg for arg in args if not isinstance(arg, str))
    for arg in args:
        if isinstance(arg, Expression):
            yield from _numbers(arg.op, arg.args)
        elif isinstance(arg, str):
            yield arg


class Dependence(Enum):
    """How a value depends on an exponent t."""

    NONE = "none"
    EXPONENT = "exponent"  # t itself, or 0 where it is minus infinity
    SHIFTED = "shifted"  # s - t
    ALIGNED = "aligned"  # linear in exp(s - t)
    OTHER = "other"


_NONE, _EXPONENT, _SHIFTED, _ALIGNED, _OTHER = Dependence


def may_run(body: Graph, output: Output, outputs: tuple[Output, ...]) -> bool:
    """True if the exponent of `output`, accumulated as a pair, may be replaced by its running maximum in `body`.

    Then its definition is a tile operator of the body, all payloads are aligned with it, and no other output of the
    map depends on it.
    """
    exponent, *payloads = output.values
    if not any(isinstance(definition, Apply) and definition.name == exponent for definition in body):
        return False
    found: dict[str, Dependence] = {}
    _classify(body, exponent, found)
    others = {value for other in outputs if other is not output for value in other.values}
    aligned = all(found.get(payload, _NONE) is _ALIGNED for payload in payloads)
    return aligned and all(found.get(value, _NONE) is _NONE for value in others)


def _classify(graph: Graph, exponent: str, found: dict[str, Dependence]) -> None:
    for definition in graph:
        match definition:
            case Apply(name, op, args):
                found[name] = _EXPONENT if name == exponent else _apply(op, args, found)
            case Map(_, ports, body, outputs):
                found.update((port.name, found.get(port.source, _NONE)) for port in ports)
                _classify(body, exponent, found)
                for output in outputs:
                    _accumulate(output.names, output.values, output.monoid, found)
            case Reduce(names, sources, _, monoid):
                _accumulate(names, sources, monoid, found)
            case Rename(name, source):
                found[name] = found.get(source, _NONE)
            case _:
                assert_never(definition)


def _accumulate(
    names: tuple[str, ...], values: tuple[str, ...], monoid: str | None, found: dict[str, Dependence]
) -> None:
    kinds = [found.get(value, _NONE) for value in values]
    for name, kind in zip(names, kinds, strict=True):
        linear = monoid is None or (monoid == "add" and kind is _ALIGNED)
        found[name] = kind if linear else _OTHER if any(other is not _NONE for other in kinds) else _NONE


def _operand(operand: Operand, found: Mapping[str, Dependence]) -> Dependence:
    match operand:
        case str():
            return found.get(operand, _NONE)
        case Expression(op, args):
            return _apply(op, args, found)
        case Constant() | Size():
            return _NONE
        case _:
            assert_never(operand)


def _is_aligned(kind: Dependence, operand: Operand) -> bool:
    return kind is _ALIGNED or operand in (Constant(0), Constant(0.0))


def _apply(op: str, args: tuple[Operand, ...], found: Mapping[str, Dependence]) -> Dependence:
    kinds = [_operand(arg, found) for arg in args]
    dependent = [kind for kind in kinds if kind is not _NONE]
    if not dependent:
        return _NONE
    match op:
        case "finite" if dependent == [_EXPONENT]:
            return _EXPONENT
        case "sub" if kinds == [_NONE, _EXPONENT]:
            return _SHIFTED
        case "exp" if dependent == [_SHIFTED]:
            return _ALIGNED
        case "mul" | "contract" | "sum" | "broadcast" | "neg" | "cast" if dependent == [_ALIGNED]:
            return _ALIGNED
        case "div" if kinds == [_ALIGNED, _NONE]:
            return _ALIGNED
        case "add" | "sub" if dependent == [_ALIGNED] * len(args):
            return _ALIGNED
        case "where" if kinds[0] is _NONE and all(map(_is_aligned, kinds[1:], args[1:])):
            return _ALIGNED
        case _:
            return _OTHER
