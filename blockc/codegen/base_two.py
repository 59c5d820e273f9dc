"""A rewrite before emission: powers of two instead of e, where the factor log2(e) costs nothing.

    S: local f32(m, n) = contract[d](Q, K)                      S.1: local f32(m, n) = contract[d](Q, K)
                                                                S: local f32(m, n) = mul(S.1, 1.4426950408889634)
    T: local f32(m) = max[n](S)                            =>   T: local f32(m) = max[n](S)
    P: local f32(m, n) = exp(sub(S, finite(T)))                 P: local f32(m, n) = exp2(sub(S, finite(T)))
    L: local f32(m) = sum[n](P)                                 L: local f32(m) = sum[n](P)
    => U: local f32(m), M: local f32(m) =                       => U: local f32(m), M: local f32(m) =
       exponent_add(T, L)                                          exponent2_add(T, L)

The pair counts in powers of two as well; its exponent is multiplied by log(2) behind the loop if it is read there. S
has to be a contraction of something that does not change in the loop, to which `scale_folding` moves the factor, or a
multiple of one by a number, or a choice between such and an infinity. Other numbers stay exact: an input near the
largest number must not overflow, nor one that is far from zero be rounded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from blockc.codegen.exponents import may_run, read_as_numbers
from blockc.ir.block import (
    Apply,
    Constant,
    Definition,
    Expression,
    Fresh,
    Graph,
    Map,
    Operand,
    Output,
    Program,
    operand_names,
    with_body,
)
from blockc.ir.dtypes import is_float

_FACTOR = Constant(math.log2(math.e))
_BACK = Constant(math.log(2))


@cache
def is_faster() -> bool:
    """True if NumPy has vector instructions for powers of two on this computer: then they take half the time."""
    found = np.lib.introspect.opt_func_info(func_name="^exp2$").get("exp2", {})
    targets = [entry["current"] for entry in found.values()]
    return bool(targets) and not any(target.startswith("baseline") for target in targets)


def in_base_two(program: Program) -> Program:
    """The program with such exponentials as powers of two."""
    read = read_as_numbers(program.body) | {result.value for result in program.outputs}
    return with_body(program, _graph(program.body, Fresh(program), read))


def _graph(graph: Graph, fresh: Fresh, read: Container[str]) -> Graph:
    graph = tuple(replace(d, body=_graph(d.body, fresh, read)) if isinstance(d, Map) else d for d in graph)
    free = _free(graph, fresh)
    result: list[Definition] = []
    for definition in graph:
        behind: list[Definition] = []
        if not isinstance(definition, Map):
            result.append(definition)
            continue
        for number, output in enumerate(definition.outputs):
            body = _in_base_two(definition, output, fresh) if output.names[0] in free else None
            if body is None:
                continue
            names = output.names
            if names[0] in read and definition.part != "first":
                names = (fresh(names[0]), *names[1:])
                dtype = next(d.dtype for d in body if isinstance(d, Apply) and d.name == output.values[0])
                behind.append(Apply(output.names[0], "mul", (names[0], _BACK), (), dtype))
            outputs = list(definition.outputs)
            outputs[number] = replace(output, names=names, monoid="exponent2_add")
            definition = replace(definition, body=body, outputs=tuple(outputs))
        result += [definition, *behind]
    return tuple(result)


def _free(graph: Graph, fresh: Fresh) -> set[str]:
    """The exponents of pairs that may be in powers of two: of both parts of a loop, or of none."""
    pairs = [
        (loop, output)
        for loop in graph
        if isinstance(loop, Map)
        for output in loop.outputs
        if output.monoid == "exponent_add"
    ]
    free = {output.names[0] for loop, output in pairs if _in_base_two(loop, output, fresh) is not None}
    for _, output in pairs:
        if output.starts and not {output.names[0], output.starts[0]} <= free:
            free -= {output.names[0], output.starts[0]}
    return free


def _in_base_two(loop: Map, output: Output, fresh: Fresh) -> Graph | None:
    """The body of a loop with a pair in powers of two; None where that is not free."""
    exponent = output.values[0]
    applies = {d.name: d for d in loop.body if isinstance(d, Apply)}
    if not may_run(loop.body, output, loop.outputs) or applies[exponent].op != "max":
        return None
    (source,) = applies[exponent].args
    if not isinstance(source, str) or source not in applies or not is_float(applies[source].dtype):
        return None
    shifted = [Expression("sub", (source, shift)) for shift in (exponent, Expression("finite", (exponent,)))]
    powers = {Expression("exp", (operand,)): Expression("exp2", (operand,)) for operand in shifted}
    uses = Counter(name for definition in loop.body for name in _uses(definition))
    uses.update(value for other in loop.outputs for value in other.values)
    found = sum(_count(Expression(node.op, node.args), powers) for node in applies.values())
    if uses[source] != 1 + found or uses[exponent] != 1 + found:
        return None
    changing = {port.name for port in loop.ports} | {name for definition in loop.body for name in definition.defines}
    products = (node for node in applies.values() if node.op == "contract")
    free = {
        node.name
        for node in products
        if (uses[node.name] == 1 or node.name == source) and not changing.issuperset(operand_names(node.args))
    }
    body: list[Definition] = []
    for definition in loop.body:
        if isinstance(definition, Apply) and definition.name == source:
            multiple = _multiple(definition, free, fresh)
            if multiple is None:
                return None
            body.extend(multiple)
        elif isinstance(definition, Apply):
            changed = _replaced(Expression(definition.op, definition.args), powers)
            body.append(replace(definition, op=changed.op, args=changed.args))
        else:
            body.append(definition)
    return tuple(body)


def _uses(definition: Definition) -> Iterable[str]:
    return operand_names(definition.args) if isinstance(definition, Apply) else definition.uses


def _count(operand: Operand, wanted: Container[Operand]) -> int:
    """How often an operand has one of these in it."""
    inside = sum(_count(arg, wanted) for arg in operand.args) if isinstance(operand, Expression) else 0
    return inside + (operand in wanted)


def _replaced(operand: Expression, mapping: Mapping[Expression, Expression]) -> Expression:
    if operand in mapping:
        return mapping[operand]
    args = (_replaced(arg, mapping) if isinstance(arg, Expression) else arg for arg in operand.args)
    return Expression(operand.op, tuple(args))


def _multiple(apply: Apply, free: Container[str], fresh: Fresh) -> tuple[Apply, ...] | None:
    """Definitions that make the value times log2(e) at no cost."""
    if apply.op == "contract" and apply.name in free:
        product = replace(apply, name=fresh(apply.name))
        return product, Apply(apply.name, "mul", (product.name, _FACTOR), (), apply.dtype, apply.span)
    scaled = _scaled(Expression(apply.op, apply.args), free) if not apply.dims else None
    return (replace(apply, op=scaled.op, args=scaled.args),) if isinstance(scaled, Expression) else None


def _scaled(operand: Operand, free: Container[str]) -> Operand | None:
    """The operand times log2(e); None if that takes more than the operand."""
    match operand:
        case Constant(value) if math.isinf(value) or value == 0:
            return operand
        case str() if operand in free:
            return Expression("mul", (operand, _FACTOR))
        case Expression("mul", args):
            names = tuple(arg for arg in args if any(operand_names((arg,))))
            numbers = tuple(arg for arg in args if arg not in names)
            scaled = Expression("mul", (*names, Expression("mul", (*numbers, _FACTOR))))
            return scaled if numbers and len(names) == 1 and names[0] in free else None
        case Expression("where", (condition, first, second)):
            one, other = _scaled(first, free), _scaled(second, free)
            return None if one is None or other is None else Expression("where", (condition, one, other))
        case _:
            return None
