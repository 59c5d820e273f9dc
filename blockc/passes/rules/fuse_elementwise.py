"""Rule 9: an elementwise operator whose only reader is another one in the same graph becomes part of it.

For emission, after everything else: earlier it would hide factors from rules 4 and 5.

    d: local f32(m, n) = sub(s, t)
    e: local f32(m, n) = exp(d)
  =>
    e: local f32(m, n) = exp(sub(s, t))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from blockc.ir.block import (
    Apply,
    Expression,
    Map,
    Path,
    Program,
    depth,
    graph_at,
    operand_names,
    replace_graph,
    substitute,
    walk,
)
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.ir.ops import OPERATORS
from blockc.passes.rules.common import find, sites

DEEPEST = 6  # operators composed into one another: what a reader of the kernel can follow

REASONS = {
    "too_deep": "the composed expression would be deeper than a reader can follow",
    "several_readers": "more than one operator reads the value, which would be computed for each",
    "other_graph": "the reader stands in another graph, where the value would be computed once per iteration",
}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    readers = read_counts(program)
    for site, graph in sites(program, path):
        here = {name: node for node in graph if isinstance(node, Apply) for name in node.uses}
        captured = frozenset[str]().union(*[node.captures for node in graph if isinstance(node, Map)])
        for node in graph:
            if not isinstance(node, Apply) or node.op not in OPERATORS:
                continue
            reader = here.get(node.name)
            if readers[node.name] > 1:
                yield Refusal("several_readers", site, (node.name,), f"`{node.name}` has {readers[node.name]} readers")
            elif reader is not None and reader.op in OPERATORS:
                deep = sum(depth(Expression(apply.op, apply.args)) for apply in (node, reader))
                at = (node.name, reader.name)
                why = f"`{node.name}` and `{reader.name}` would be {deep} operators deep"
                yield Match(site, at) if deep <= DEEPEST else Refusal("too_deep", site, at, why)
            elif reader is None and node.name in captured:
                yield Refusal("other_graph", site, (node.name,), f"`{node.name}` is computed once, outside the loop")


def read_counts(program: Program) -> Counter[str]:
    """How often each name is read, anywhere."""
    reads = [result.value for result in program.outputs]
    for definition in walk(program.body):
        if isinstance(definition, Map):
            reads += [port.source for port in definition.ports]
            reads += [value for output in definition.outputs for value in output.values]
        elif isinstance(definition, Apply):
            reads += operand_names(definition.args)
        else:
            reads += definition.uses
    return Counter(reads)


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    inner = graph[find(graph, match.at[0])]
    assert isinstance(inner, Apply)
    composed = {inner.name: Expression(inner.op, inner.args)}
    changed = tuple(substitute(node, composed) for node in graph if node is not inner)
    return replace_graph(program, match.path, changed)


RULE = Rule("fuse_elementwise", "9", "never more slow traffic", match, rewrite, REASONS)
