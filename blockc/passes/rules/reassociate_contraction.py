"""Of two contractions, one of the other's result, the other one comes first: `(q k) v` becomes `q (k v)`.

The value between them then has the free dimensions of k and v in place of those of q and the contracted one. Where q no
longer changes in the loop, the loop does not need it at all: linear attention. Whether that is less work depends on
the sizes, so it makes a snapshot of its own.

    s: local f32(m, n) = contract[d](q, k)
    o: local f32(m, e) = contract[n](s, v)
  =>
    g: local f32(d, e) = contract[n](k, v)
    o: local f32(m, e) = contract[d](q, g)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from blockc.ir.block import (
    Apply,
    Definition,
    Fresh,
    Graph,
    Map,
    Operand,
    Output,
    Path,
    Program,
    graph_at,
    replace_graph,
)
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.ir.ops import OPERATORS
from blockc.passes.rules.common import Writer, applies, bound_inside, find, sites

REASONS = {
    "not_linear": "something else than a product stands between the two contractions",
    "made_by_a_loop": "the inner product is accumulated by a loop, so it is complete only behind it",
    "varies_along_the_sum": "both operands of the inner product change along the dimension that is summed next",
    "nothing_saved": "the value between the two contractions would keep all free dimensions that it has",
    "name_taken": "the dimension of the inner product is a free dimension of what it is multiplied with",
    "used_elsewhere": "the inner product is needed for something else too",
}

MOST_OPERANDS = 200  # that are looked at for a hidden product


@dataclass(frozen=True, slots=True)
class Chain:
    """sum over `outer.dims` of (kept * moved, contracted) * others; `kept` lacks these dimensions."""

    outer: Apply
    inner: Apply
    kept: str
    moved: str
    others: tuple[Operand, ...]


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    for site, graph in sites(program, path):
        for node in graph:
            if isinstance(node, Map):
                yield from (Match(site, output.names) for output in node.outputs if leaving(program, node, output))
            if isinstance(node, Apply) and node.op in ("contract", "sum"):
                found = None
                for found in chains(program, graph, node):
                    if isinstance(found, Chain):
                        break
                if isinstance(found, Chain) and _all_summed(program, found.inner.name):
                    yield Match(site, (node.name, found.inner.name))
                elif isinstance(found, Chain):
                    why = f"`{found.inner.name}` is read by more than sums of products"
                    yield Refusal("used_elsewhere", site, (node.name,), why)
                elif found is not None:
                    yield Refusal(found[0], site, (node.name,), found[1])


def leaving(program: Program, node: Map, output: Output) -> tuple[str, str] | None:
    """The operand of an accumulated contraction that comes from outside the loop, and the other one."""
    value = applies(program).get(output.values[0])
    if output.monoid != "add" or value is None or value.op != "contract":
        return None
    inside = bound_inside((node,))
    first, second = (str(arg) for arg in value.args)
    if (first in inside) == (second in inside):
        return None
    return (second, first) if first in inside else (first, second)


def chains(program: Program, graph: Graph, node: Apply) -> Iterator[Chain | tuple[str, str]]:
    """For each operand that holds a contraction: the chain, or why the two cannot change places."""
    table = applies(program)
    for position, arg in enumerate(node.args):
        factors, inner = inner_product(arg, table)
        if inner is not None:
            others = (*factors, *(other for at, other in enumerate(node.args) if at != position))
            yield _ordered(program, node, inner, others)
        elif (problem := _hidden(program, graph, node, arg)) is not None:
            yield problem


def inner_product(operand: Operand, table: Mapping[str, Apply]) -> tuple[tuple[Operand, ...], Apply | None]:
    """An operand as factors times a contraction, if it is that."""
    apply = table.get(operand) if isinstance(operand, str) else None
    if apply is None or apply.op not in ("contract", "mul"):
        return (), None
    if apply.op == "contract":
        return (), apply
    products = [arg for arg in apply.args if isinstance(arg, str) and arg in table and table[arg].op == "contract"]
    if len(products) != 1:
        return (), None
    return tuple(arg for arg in apply.args if arg != products[0]), table[products[0]]


def _hidden(program: Program, graph: Graph, node: Apply, operand: Operand) -> tuple[str, str] | None:
    """Why an operand that hides a contraction is no product."""
    table = applies(program)
    waiting, reader = [operand], {operand: ""}  # each operand with the operator that reads it
    for name in waiting:  # which grows
        apply = table.get(name) if isinstance(name, str) else None
        if apply is not None and apply.op == "contract" and set(node.dims).isdisjoint(apply.dims):
            path = [table[above].op for above in _readers(reader, name)]
            between = next((op for op in path if op != "mul"), "another product")
            return "not_linear", f"{between} stands between `{name}` and `{node.name}`"
        loop = next((other for other in graph if isinstance(other, Map) and name in other.defines), None)
        if loop is not None and _accumulates_product(table, loop, str(name)):
            return "made_by_a_loop", f"`{name}` is accumulated over `{loop.dim}`"
        if len(waiting) < MOST_OPERANDS:
            found = dict.fromkeys(arg for arg in _elementwise_operands(table, name) if arg not in reader)
            waiting += found
            reader.update((arg, str(name)) for arg in found)
    return None


def _readers(reader: Mapping[Operand, str], name: Operand) -> Iterator[str]:
    """The operators between an operand and the sum, innermost first."""
    while reader[name]:
        name = reader[name]
        yield str(name)


def _elementwise_operands(table: Mapping[str, Apply], name: Operand) -> tuple[Operand, ...]:
    apply = table.get(name) if isinstance(name, str) else None
    return apply.args if apply is not None and apply.op in OPERATORS else ()


def _accumulates_product(table: Mapping[str, Apply], loop: Map, name: str) -> bool:
    return any(
        output.monoid == "add" and value in table and table[value].op == "contract"
        for output in loop.outputs
        for bound, value in zip(output.names, output.values, strict=True)
        if bound == name
    )


def _ordered(program: Program, node: Apply, inner: Apply, others: tuple[Operand, ...]) -> Chain | tuple[str, str]:
    """The chain, if one operand of the inner product can wait."""
    summed = set(node.dims)
    axes = {name: set(program.types[name].axes) for name in map(str, inner.args)}
    rest = {axis for other in others if isinstance(other, str) for axis in program.types[other].axes}
    first, second = map(str, inner.args)
    if summed & set(inner.dims) or not (summed.isdisjoint(axes[first]) or summed.isdisjoint(axes[second])):
        return "varies_along_the_sum", f"`{first}` and `{second}` both have what `{node.name}` sums over"
    kept, moved = (first, second) if summed.isdisjoint(axes[first]) else (second, first)
    taken = rest & set(inner.dims)
    if taken:
        return "name_taken", f"`{min(taken)}` is summed in `{inner.name}` and free in what it is multiplied with"
    free = axes[kept] - axes[moved]
    if not free or free & rest:
        return "nothing_saved", f"`{kept}` has no dimension that would leave the value between"
    return Chain(node, inner, kept, moved, others)


def _all_summed(program: Program, name: str) -> bool:
    """True if all that reads an inner product sums it: then it is gone once all these sums have been rewritten."""
    for _, graph in sites(program, None):
        for node in graph:
            if isinstance(node, Map):
                if any(name in output.values for output in node.outputs):
                    return False
            elif name in node.uses and not _is_sum_of(program, graph, node, name):
                return False
    return True


def _is_sum_of(program: Program, graph: Graph, node: Definition, name: str) -> bool:
    if not isinstance(node, Apply):
        return False
    if node.op == "mul":
        return _all_summed(program, node.name)
    return node.op in ("contract", "sum") and any(isinstance(found, Chain) for found in chains(program, graph, node))


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    position = find(graph, match.at[0])
    node = graph[position]
    if isinstance(node, Map):
        changed = _behind_the_loop(program, node, match.at)
    else:
        assert isinstance(node, Apply)
        found = next(found for found in chains(program, graph, node) if isinstance(found, Chain))
        changed = _in_the_tile(program, found)
    return replace_graph(program, match.path, (*graph[:position], *changed, *graph[position + 1 :]))


def _in_the_tile(program: Program, found: Chain) -> Graph:
    node, write = found.outer, Writer(program)
    if found.others:
        axes = {axis for other in found.others if isinstance(other, str) for axis in program.types[other].axes}
        other = write.put(node, "mul", found.others)
        missing = tuple(dim for dim in node.dims if dim not in axes)
        other = write.put(node, "broadcast", (other,), missing) if missing else other
        waiting = write.put(node, "contract", (found.moved, other), node.dims)
    else:
        waiting = write.put(node, "sum", (found.moved,), node.dims)
    swapped = Apply(node.name, "contract", (found.kept, waiting), found.inner.dims, node.dtype, node.span)
    return (*write.out, swapped)


def _behind_the_loop(program: Program, node: Map, names: tuple[str, ...]) -> Graph:
    output = next(output for output in node.outputs if output.names == names)
    value = applies(program)[output.values[0]]
    operands = leaving(program, node, output)
    assert operands is not None
    kept, moved = operands
    total = Fresh(program)(names[0])
    outputs = tuple(Output((total,), (moved,), "add") if other is output else other for other in node.outputs)
    loop = Map(node.dim, node.ports, node.body, outputs, node.span)
    return (loop, Apply(names[0], "contract", (kept, total), value.dims, value.dtype, value.span))


RULE = Rule("reassociate_contraction", "-", "may change the amount of work", match, rewrite, REASONS)
