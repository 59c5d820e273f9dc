"""A rewrite before emission: a product with a number moves from a contraction's result to its smaller operand.

    S: local f32(m, n) = contract[d](Q, K)          =>   Q.1: local f32(m, d) = mul(Q, 0.125)       ahead of the loop
    T: local f32(m, n) = mul(S, 0.125)                   T: local f32(m, n) = contract[d](Q.1, K)

Only where the operand does not change in the loop, so that it is scaled once, for both parts of a loop, and each
iteration saves a pass over the result. Not where the contracted dimension is empty: a sum of nothing is 0, and 0 times
a number such as 1/0 is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import replace

from blockc.ir.block import (
    Apply,
    Definition,
    Expression,
    Fresh,
    Graph,
    Map,
    Operand,
    Program,
    operand_names,
    with_body,
)
from blockc.ir.dtypes import is_float

Scaled = dict[tuple[Operand, ...], Apply]  # the products that stand ahead of loops, by their operands


def fold_scales(program: Program, empty: frozenset[str]) -> Program:
    """The program with such scales moved out of loops. `empty` are the dimensions without elements."""
    return with_body(program, _graph(program.body, Fresh(program), empty))


def _graph(graph: Graph, fresh: Fresh, empty: frozenset[str]) -> Graph:
    result: list[Definition] = []
    made: Scaled = {}
    for definition in graph:
        if not isinstance(definition, Map):
            result.append(definition)
            continue
        inner = replace(definition, body=_graph(definition.body, fresh, empty))
        # A parallel map stays alone in its body, so that its blocks are tasks.
        result.extend(_out_of_loop(inner, fresh, empty, made) if inner.is_loop else (inner,))
    return tuple(result)


def _out_of_loop(loop: Map, fresh: Fresh, empty: frozenset[str], made: Scaled) -> Iterator[Definition]:
    """The loop with what was moved ahead of it, unless it is `made` already."""
    uses = Counter(name for definition in loop.body for name in definition.uses)
    uses.update(value for output in loop.outputs for value in output.values)
    changing = {port.name for port in loop.ports} | {name for definition in loop.body for name in definition.defines}
    products = [node for node in loop.body if isinstance(node, Apply) and node.op == "contract"]
    contractions = {node.name: node for node in products if uses[node.name] == 1 and empty.isdisjoint(node.dims)}
    gone: set[str] = set()
    body: list[Definition] = []
    for definition in loop.body:
        if not isinstance(definition, Apply):
            body.append(definition)
            continue
        result = definition
        for multiple in _multiples(definition, contractions):
            (contraction,) = (contractions[arg] for arg in multiple.args if isinstance(arg, str))
            operand = next((arg for arg in contraction.args if isinstance(arg, str) and arg not in changing), None)
            if operand is None or contraction.dtype != definition.dtype:
                continue
            gone.add(contraction.name)
            numbers = tuple(arg for arg in multiple.args if arg != contraction.name)
            scaled = made.get((operand, *numbers))
            if scaled is None or scaled.dtype != contraction.dtype:
                scaled = Apply(fresh(operand), "mul", (operand, *numbers), (), contraction.dtype, definition.span)
                made[scaled.args] = scaled
                yield scaled
            other = contraction.args[1 - contraction.args.index(operand)]
            product = replace(contraction, name=fresh(contraction.name), args=(scaled.name, other))
            if multiple == _expression(definition):
                result = replace(product, name=definition.name)
            else:
                body.append(product)
                args = tuple(_replaced(arg, multiple, product.name) for arg in result.args)
                result = replace(result, args=args)
        body.append(result)
    kept = (definition for definition in body if gone.isdisjoint(definition.defines))
    yield replace(loop, body=tuple(kept))


def _multiples(apply: Apply, contractions: Container[str]) -> list[Expression]:
    """The product of one of the contractions with numbers that an elementwise operator is, or that it chooses."""
    if apply.dims or not is_float(apply.dtype):
        return []
    found: list[Expression] = []
    left = [_expression(apply)]
    while left:
        operand = left.pop()
        names = tuple(operand_names(operand.args))
        if operand.op == "mul" and len(names) == 1 and names[0] in operand.args and names[0] in contractions:
            found.append(operand)
        if operand.op == "where":  # elsewhere the rounding of the scaled operand would be read
            left += [arg for arg in operand.args[1:] if isinstance(arg, Expression)]
    return found


def _expression(apply: Apply) -> Expression:
    return Expression(apply.op, apply.args)


def _replaced(operand: Operand, old: Expression, new: str) -> Operand:
    if operand == old:
        return new
    if not isinstance(operand, Expression):
        return operand
    return Expression(operand.op, tuple(_replaced(arg, old, new) for arg in operand.args))
