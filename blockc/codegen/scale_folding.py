"""A rewrite before emission: a product with a number moves from a contraction's result to its smaller operand.

    S: local f32(m, n) = contract[d](Q, K)          =>   Q.1: local f32(m, d) = mul(Q, 0.125)       ahead of the loop
    T: local f32(m, n) = mul(S, 0.125)                   T: local f32(m, n) = contract[d](Q.1, K)

Only where the operand does not change in the loop, so that it is scaled once, for both parts of a loop, and each
iteration saves a pass over the result. Not where the contracted dimension is empty: a sum of nothing is 0, and 0 times
a number such as 1/0 is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace

from blockc.ir.block import (
    Apply,
    Definition,
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
        scaled = _scaled(definition, contractions, changing, fresh, made) if isinstance(definition, Apply) else None
        if scaled is None:
            body.append(definition)
            continue
        operand, product, folded = scaled
        gone.add(folded)
        if made.get(operand.args) is not operand:
            made[operand.args] = operand
            yield operand
        body.append(product)
    kept = tuple(definition for definition in body if gone.isdisjoint(definition.defines))
    yield replace(loop, body=kept)


def _scaled(
    apply: Apply, contractions: Mapping[str, Apply], changing: Container[str], fresh: Fresh, made: Scaled
) -> tuple[Apply, Apply, str] | None:
    """For a contraction's multiple by numbers: the scaled operand, the contraction of it, the name no longer needed."""
    names = [arg for arg in apply.args if isinstance(arg, str)]
    numbers = tuple(arg for arg in apply.args if not isinstance(arg, str))
    contraction = contractions.get(names[0]) if len(names) == 1 else None
    if apply.op != "mul" or contraction is None or not numbers or any(operand_names(numbers)):
        return None
    if contraction.dtype != apply.dtype or not is_float(apply.dtype):
        return None
    for operand in contraction.args:
        if isinstance(operand, str) and operand not in changing:
            scaled = made.get((operand, *numbers))
            if scaled is None or scaled.dtype != apply.dtype:
                scaled = Apply(fresh(operand), "mul", (operand, *numbers), (), apply.dtype, apply.span)
            args = tuple(scaled.name if arg == operand else arg for arg in contraction.args)
            product = Apply(apply.name, "contract", args, contraction.dims, apply.dtype, apply.span)
            return scaled, product, contraction.name
    return None
