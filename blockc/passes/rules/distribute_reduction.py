"""Rules 4 and 5 for loops: a factor from outside a map leaves an accumulated sum and is applied once, behind it.

The loop no longer needs the factor, which may come from an earlier loop over the same dimension. A sum of several
groups with different factors becomes one accumulated sum for each group, if a factor comes from such a loop.

One condition is a choice, without which the rule is right too: with `needed_elsewhere` the loops would stay apart, and
the opened sums cancel more than the sum that was written.

    map n {
      x: local f32(m, n) <- X
      s: local f32(m) = sum[n](x)
      t: local f32(m) = mul(s, r)
      => T: local f32(m) = add(t)
    }
  =>
    map n {
      x: local f32(m, n) <- X
      s: local f32(m) = sum[n](x)
      => T.1: local f32(m) = add(s)
    }
    T: local f32(m) = mul(r, T.1)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from blockc.ir.block import (
    Apply,
    Map,
    Operand,
    Output,
    Path,
    Program,
    Size,
    graph_at,
    replace_graph,
    walk,
)
from blockc.ir.decisions import Match, Refusal, Rule
from blockc.passes.linear import MOST_TERMS, ONE, Group, Opening, factor_out, reaches
from blockc.passes.rules.common import (
    Blocking,
    Writer,
    applies,
    bound_inside,
    enclosing,
    find,
    sites,
)

REASONS = {
    "not_additive": "the values are combined by another operation than addition, which scales do not distribute over",
    "scale_changes_in_the_loop": "the factor is computed from the block of the iteration",
    "nothing_left": "the whole value comes from outside the map",
    "does_not_block": "no term from outside is computed by a reduction in another loop over a dimension of this one",
    "needed_elsewhere": "the loop needs the outside term for something else too, so opening the sum would not free it",
    "too_many_terms": "the opened sum would have too many terms",
}


def match(program: Program, path: Path | None = None) -> Iterator[Match | Refusal]:
    for site, graph in sites(program, path):
        for node in graph:
            if not isinstance(node, Map) or not node.is_loop:
                continue
            loop = _Loop.of(program, site, node)
            for output in node.outputs:
                problem = loop.problem(output)
                if problem == ("", ""):
                    yield Match(site, output.names)
                elif problem is not None:
                    yield Refusal(problem[0], site, output.names, problem[1])


@dataclass(frozen=True, slots=True)
class _Loop:
    """A map and how its accumulated values are opened: what comes from outside can leave."""

    node: Map
    opening: Opening
    blocks: Blocking

    @staticmethod
    def of(program: Program, site: Path, node: Map) -> _Loop:
        inside = bound_inside((node,))
        blocks = Blocking.of((*enclosing(program, site), node), program)

        def outside(operand: Operand) -> bool:
            return not isinstance(operand, str) or operand not in inside

        opening = Opening(outside, lambda operand: outside(operand) and blocks(operand), applies(program))
        return _Loop(node, opening, blocks)

    def problem(self, output: Output) -> tuple[str, str] | None:
        """Empty texts if the rule applies to an output, a reason and an explanation if it refuses, None if nothing
        could leave."""
        if output.monoid is None or len(output.values) != 1:
            return None
        (value,) = output.values
        groups = self.opening.groups(value)
        if groups is None:
            return "too_many_terms", f"`{value}` would become more than {MOST_TERMS} terms"
        if any(group.rest is None for group in groups):
            return "nothing_left", f"a term of `{value}` does not change in the loop"
        scales = [scale for group in groups for scale in group.scales]
        if not scales and not extent(groups[0], self.node, self.opening.applies):
            return self.without_scales(value)
        if output.monoid != "add":
            return "not_additive", f"`{scales[0]}` cannot leave a reduction by {output.monoid}"
        needed = next(filter(None, map(self.blocks.needed_elsewhere, scales)), "") if len(groups) > 1 else ""
        why = f"`{needed}` needs what would leave `{value}`, and is no sum that it could leave too"
        return ("needed_elsewhere", why) if needed else ("", "")

    def without_scales(self, value: str) -> tuple[str, str] | None:
        """Why nothing leaves a value, if it looks as if something could."""
        apply = self.opening.applies.get(value)
        if apply is not None and apply.op == "mul":
            why = f"all factors of `{value}` change from block to block of `{self.node.dim}`"
            return "scale_changes_in_the_loop", why
        if apply is not None and apply.op == "add" and reaches(value, self.opening.invariant, self.opening.applies):
            return (
                "does_not_block",
                f"no outside term of `{value}` depends on another loop over a dimension of this one",
            )
        return None


def extent(group: Group, node: Map, table: Mapping[str, Apply]) -> Apply | None:
    """The sum of ones over a tile that the group is, if the loop runs over one of its dimensions."""
    total = table.get(group.rest) if isinstance(group.rest, str) else None
    if total is None or total.op != "sum" or node.dim not in total.dims:
        return None
    ones = table.get(total.args[0]) if isinstance(total.args[0], str) else None
    return total if ones is not None and (ones.op, ones.args) == ("broadcast", (ONE,)) else None


def opens_sum(program: Program, name: str) -> bool:
    """True if the accumulated value of this name is a sum without a scale that all its terms have."""
    maps = (node for node in walk(program.body) if isinstance(node, Map))
    node, output = next((node, output) for node in maps for output in node.outputs if name in output.names)
    inside = bound_inside((node,))
    table = applies(program)
    scales, _ = factor_out(output.values[0], lambda value: not isinstance(value, str) or value not in inside, table)
    apply = table.get(output.values[0])
    return apply is not None and apply.op != "mul" and not scales


def rewrite(program: Program, match: Match) -> Program:
    graph = graph_at(program, match.path)
    position = find(graph, match.at[0])
    node = graph[position]
    assert isinstance(node, Map)
    output = next(output for output in node.outputs if output.names == match.at)
    opening = _Loop.of(program, match.path, node).opening
    groups = opening.groups(output.values[0])
    assert groups is not None
    split = _Split(node, applies(program)[output.values[0]], opening, Writer(program), Writer(program))
    split.after.fresh = split.inside.fresh
    if len(groups) > 1:
        op, operands = "add", tuple(split.term(group, output.names[0]) for group in groups)
    else:
        op, operands = "mul", split.factors(groups[0], output.names[0])
    total = Apply(output.names[0], op, operands, (), program.types[output.names[0]].dtype, split.like.span)
    outputs = tuple(new for other in node.outputs for new in (split.outputs if other is output else (other,)))
    loop = Map(node.dim, node.ports, (*node.body, *split.inside.out), outputs, node.span)
    changed = (*graph[:position], loop, *split.after.out, total, *graph[position + 1 :])
    return replace_graph(program, match.path, changed)


@dataclass(slots=True)
class _Split:
    """One accumulated sum on its way to several."""

    node: Map
    like: Apply
    opening: Opening
    inside: Writer
    after: Writer
    outputs: list[Output] = field(default_factory=list)

    def factors(self, group: Group, name: str) -> tuple[Operand, ...]:
        """The factors of what a group adds up to, behind the loop."""
        scales = tuple(self.after.named(self.like, scale) for scale in group.scales)
        return *scales, *self.total(group, name)

    def term(self, group: Group, name: str) -> Operand:
        """What a group adds up to, behind the loop."""
        *scales, total = self.factors(group, name)
        return self.after.scaled(self.like, tuple(scales), total, () if group.rest is None else (group.rest,))

    def total(self, group: Group, name: str) -> tuple[Operand, ...]:
        """The factors of the accumulated rest: a sum of ones over the blocks of a dimension is its size."""
        assert group.rest is not None
        ones = extent(group, self.node, self.opening.applies)
        if ones is None:
            total = self.inside.fresh(name)
            self.outputs.append(Output((total,), (str(self.inside.named(self.like, group.rest)),), "add"))
            return (total,)
        left = tuple(dim for dim in ones.dims if dim != self.node.dim)
        if not left:
            return (Size(self.node.dim),)
        spread = self.after.put(self.like, "broadcast", (ONE,), left)
        return Size(self.node.dim), self.after.put(self.like, "sum", (spread,), left)


RULE = Rule("distribute_reduction", "4, 5", "never more traffic of lists", match, rewrite, REASONS)
