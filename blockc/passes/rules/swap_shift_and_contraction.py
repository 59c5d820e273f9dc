"""Rule 5: a sum under a contraction is opened where one of its terms is known only after another loop.

Each group of terms with the same factors becomes a contraction of its own, and the factors leave it. The loop that
computes the term and this one are no longer kept apart: the mean that is subtracted before a product is applied behind
it, to the sum of the weights. Two different factors of one sum (the sums of two softmaxes) leave in the same way.

One condition is a choice, without which the rule is right too: with `needed_elsewhere` the loops would stay apart, or
the opened sums would have no pivot, and they cancel more than the sum that was written.

    map n {
      p: local f32(m, n) <- X
      q: local f32(m) = sum[n](p)
      => c: local f32(m) = add(q)
    }
    map n {
      x: local f32(m, n) <- X
      w: local f32(n, e) <- W
      y: local f32(m, n) = add(x, c)
      o: local f32(m, e) = contract[n](y, w)
      => O: local f32(m, e) = add(o)
    }
  =>
    map n {
      p: local f32(m, n) <- X
      q: local f32(m) = sum[n](p)
      => c: local f32(m) = add(q)
    }
    map n {
      x: local f32(m, n) <- X
      w: local f32(n, e) <- W
      o.1: local f32(m, e) = contract[n](x, w)
      o.2: local f32(e) = sum[n](w)
      o.3: local f32(m, e) = mul(c, o.2)
      o: local f32(m, e) = add(o.1, o.3)
      => O: local f32(m, e) = add(o)
    }
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from blockc.ir.block import REDUCTIONS, Apply, Operand, Path, Program, graph_at, operand_names, replace_graph
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.passes.linear import MOST_TERMS, Opening, linear_in, reaches
from blockc.passes.rules.common import (
    Blocking,
    Term,
    Writer,
    applies,
    contraction,
    enclosing,
    find,
    sites,
    without_pivot,
)

REASONS = {
    "does_not_block": "the term is not computed by a reduction over a dimension of this loop, so opening gains nothing",
    "not_linear": "the outside term is below an operator that is not linear, which no sum leaves",
    "needed_elsewhere": "the loop needs the outside term for something else, or the opened sums would have no pivot",
    "too_many_terms": "the opened sum would have too many terms",
}


@dataclass(frozen=True, slots=True)
class _Site:
    """What is asked of the contractions in one graph."""

    program: Program
    table: Mapping[str, Apply]
    blocks: Blocking

    def opening(self, node: Apply) -> Opening:
        """How the operands of a contraction are opened: what lacks its dimensions can leave."""
        dims = set(node.dims)
        types = self.program.types

        def lacks(operand: Operand) -> bool:
            return not isinstance(operand, str) or dims.isdisjoint(types[operand].axes)

        return Opening(lacks, lambda operand: lacks(operand) and self.blocks(operand), self.table)

    def answer(self, node: Apply) -> tuple[str, str] | None:
        """Empty texts if the rule applies to a contraction, a reason and an explanation if it refuses, None if there is
        no sum with a term that could leave."""
        opening = self.opening(node)
        terms = contraction(opening, node)
        if terms is None:
            return "too_many_terms", f"the operands of `{node.name}` would become more than {MOST_TERMS} terms"
        if len(terms) > 1:
            # What all terms have leaves as one scale, opened or not.
            common = set.intersection(*(set(scales) for scales, _ in terms))
            leaving = [scale for scales, _ in terms for scale in scales if scale not in common]
            needed = next(filter(None, map(self.blocks.needed_elsewhere, leaving)), "")
            why = f"`{needed}` needs what would leave `{node.name}`, and is no sum that it could leave too"
            why = why if needed else self.without_pivot(node, terms)
            return ("needed_elsewhere", why) if why else ("", "")
        for arg in node.args:
            hidden = self.below_a_function(arg, opening.blocking)
            if hidden is not None:
                why = f"`{hidden.name}` is `{hidden.op}` of a value that another loop over the same dimension computes"
                return "not_linear", why
        for arg in node.args:
            apply = self.table.get(arg) if isinstance(arg, str) else None
            if apply is not None and apply.op == "add":
                for term in apply.args:
                    if isinstance(term, str) and reaches(term, opening.invariant, self.table):
                        return "does_not_block", f"`{term}` depends on no other loop over the same dimension"
        return None

    def without_pivot(self, node: Apply, terms: tuple[Term, ...]) -> str:
        """Why the opened sums could not have a pivot, as far as the operands tell; "" if they may have one."""
        leaving = {scale for scales, _ in terms for scale in scales if self.blocks(scale)}
        if without_pivot(terms, leaving.__contains__, self.table):
            return f"the sums that `{node.name}` would be made of nearly cancel"
        waiting = {loop.dim for scale in leaving for loop in self.blocks.kept_apart(scale)}
        loops = [loop.dim for loop in self.blocks.maps if loop.dim in waiting.union(node.dims)]
        return f"`{node.name}` is summed by the loops over {' and '.join(loops)}" if len(loops) > 1 else ""

    def below_a_function(self, operand: Operand, wanted: Callable[[Operand], bool]) -> Apply | None:
        """The operator that is not linear and hides a wanted value from the contraction, if there is one."""
        waiting: list[tuple[Operand, Apply | None]] = [(operand, None)]
        seen = set[Operand]()
        while waiting:
            current, hiding = waiting.pop()
            if hiding is not None and wanted(current):
                return hiding
            apply = self.table.get(current) if isinstance(current, str) and current not in seen else None
            seen.add(current)
            if apply is not None and apply.op not in REDUCTIONS:
                linear = linear_in(apply)
                waiting.extend((arg, hiding if arg in linear else hiding or apply) for arg in operand_names(apply.args))
        return None


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    table = applies(program)
    for site, graph in sites(program, path):
        candidates = [node for node in graph if isinstance(node, Apply) and node.op in ("contract", "sum")]
        if not site or not candidates:
            continue
        here = _Site(program, table, Blocking.of(enclosing(program, site), program))
        for node in candidates:
            answer = here.answer(node)
            if answer == ("", ""):
                yield Match(site, (node.name,))
            elif answer is not None:
                yield Refusal(answer[0], site, (node.name,), answer[1])


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    position = find(graph, match.at[0])
    node = graph[position]
    assert isinstance(node, Apply)
    blocks = Blocking.of(enclosing(program, match.path), program)
    terms = contraction(_Site(program, applies(program), blocks).opening(node), node)
    assert terms is not None
    write = Writer(program)
    products = tuple(write.scaled(node, scales, write.contraction(node, rests), rests) for scales, rests in terms)
    total = Apply(node.name, "add", products, (), node.dtype, node.span)
    return replace_graph(program, match.path, (*graph[:position], *write.out, total, *graph[position + 1 :]))


RULE = Rule("swap_shift_and_contraction", "5", "never more slow traffic", match, rewrite, REASONS)
