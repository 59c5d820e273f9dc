"""What keeps two kernels of a program apart: the rule that has the shape for them and the condition that fails, or the
way in which one needs what the other makes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from blockc.ir.block import Definition, Graph, Map, Path, Program, Reduce, Rename, graph_at, kernels
from blockc.ir.decisions import Refusal, Rule
from blockc.passes.rules import (
    extend_map,
    fuse_consecutive_maps,
    fuse_map_with_reduce,
    fuse_sibling_maps,
    interchange_maps,
    rematerialise,
)

MERGING: tuple[Rule, ...] = (fuse_consecutive_maps.RULE, fuse_map_with_reduce.RULE)  # what makes one map of two
REPEATING: tuple[Rule, ...] = (rematerialise.RULE, extend_map.RULE, interchange_maps.RULE)  # or makes a value again
ASKED = (*MERGING, fuse_sibling_maps.RULE, *REPEATING)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why two kernels are two: the reason of a rule's refusal, or, without a rule, what no rule has the shape for.

    `at` are the names that it is about, `between` the kernel that lies between the two, if there is one.
    """

    rule: str
    reason: str
    why: str
    at: tuple[str, ...]
    between: int | None = None


@dataclass(slots=True)
class Obstacles:
    """The kernels of one program, and what rules refuse for them; or the definitions of one of its graphs, each taken
    for a kernel."""

    program: Program
    path: Path = ()
    groups: tuple[Graph, ...] = field(init=False)
    home: dict[str, int] = field(init=False)  # the kernel that makes a name of the top graph
    sources: dict[str, Rename] = field(init=False)
    refusals: list[tuple[Rule, Refusal]] = field(init=False)

    def __post_init__(self) -> None:
        graph = graph_at(self.program, self.path)
        self.groups = tuple((definition,) for definition in graph) if self.path else kernels(self.program)
        self.home = {
            name: at for at, group in enumerate(self.groups) for definition in group for name in definition.defines
        }
        self.sources = {node.name: node for node in self.program.body if isinstance(node, Rename)}
        self.refusals = [
            (rule, found)
            for rule in ASKED
            for found in rule.match(self.program, self.path)
            if isinstance(found, Refusal)
        ]

    def of(self, first: int, second: int, names: Collection[str] = ()) -> tuple[Obstacle, ...]:
        """What keeps two kernels apart, the most specific first; never empty. What is about some names comes first."""
        way = self.way(first, second)
        if way is None:
            return tuple(self.of_siblings(first, second))
        found = tuple(self.of_link(way[0], way[1], names))
        if len(way) == 2:
            return found
        between = way[1]
        return tuple(
            Obstacle(one.rule, one.reason, f"kernel {{}} lies between: {one.why}", one.at, between) for one in found
        )

    def way(self, first: int, second: int) -> list[int] | None:
        """The kernels on the shortest way from one to another through what they store; None if there is none."""
        ways = [[first]]
        seen = {first}
        while ways:
            way = ways.pop(0)
            if way[-1] == second:
                return way
            for at in range(len(self.groups)):
                if at not in seen and self.links(way[-1], at):
                    seen.add(at)
                    ways.append([*way, at])
        return None

    def links(self, first: int, second: int) -> list[tuple[str, Definition]]:
        """The names of the first kernel that the second one uses, and by which definition."""
        return [
            (name, reader)
            for reader in self.groups[second]
            for name in sorted(reader.uses)
            if self.home.get(self.source(name)) == first
        ]

    def source(self, name: str) -> str:
        """What a name stands for, if it is another one for a stored value."""
        while name in self.sources:
            name = self.sources[name].source
        return name

    def of_link(self, first: int, second: int, names: Collection[str]) -> Iterator[Obstacle]:
        """What keeps a kernel apart from one that reads what it makes."""
        about = [(rule, one) for rule, one in self.refusals if self.about(one, first, second)]
        shapes = sorted(self.of_shape(first, second), key=lambda one: one.at[0] not in names)
        yield from (_refused(rule, one) for rule, one in about if rule in MERGING)
        for rule, one in about:
            if rule is fuse_sibling_maps.RULE:
                yield Obstacle(rule.name, one.reason, f"{one.why}: {shapes[0].why}", one.at)
        yield from shapes
        yield from (_refused(rule, one) for rule, one in about if rule in REPEATING)

    def about(self, refusal: Refusal, first: int, second: int) -> bool:
        """True if a refusal is about both kernels, or about what the first makes and the second needs."""
        places = [self.home.get(self.source(name)) for name in refusal.at]
        if len(places) > 1:
            return first in places and second in places
        return places == [first] and any(isinstance(reader, Map) for _, reader in self.links(first, second))

    def of_shape(self, first: int, second: int) -> Iterator[Obstacle]:
        """Where no rule has the shape: how the second kernel needs what the first one makes."""
        for name, reader in self.links(first, second):
            maker = next(node for node in self.groups[first] if self.source(name) in node.defines)
            reason, why = self.need(name, maker, reader)
            yield Obstacle("", reason, why, (self.source(name), reader.defines[0]))

    def need(self, name: str, maker: Definition, reader: Definition) -> tuple[str, str]:
        """How a definition needs the value of another one."""
        if name in self.sources:
            rename = self.sources[name]
            return "renamed", (
                f"`{rename.source}` is made over `{rename.old}` and read over `{rename.new}`, as another view of what "
                f"is stored: it has to be complete first"
            )
        if isinstance(maker, Map) and self.program.types[name].is_item:
            return "complete_after_loop", f"`{name}` is complete only after the last iteration over `{maker.dim}`"
        match reader:
            case Map() if reader.dim in self.program.chunks and isinstance(maker, Map) and maker.dim == reader.dim:
                base = self.program.chunks[reader.dim]
                return "combines_chunks", (
                    f"loops over `{base}` are cut into chunks, for more tasks: `{name}` has a part of the result from "
                    f"each, and a kernel of its own combines them"
                )
            case Map() if name in reader.captures:
                return "needs_all_of_it", f"every iteration over `{reader.dim}` needs all of `{name}`"
            case Reduce(names):
                return "reduced_on_its_own", f"`{names[0]}` is reduced from `{name}` when that is complete"
            case Map():
                return (
                    "not_joined",
                    f"a rule could join the maps of `{name}` and `{reader.defines[0]}`, but was not applied",
                )
            case _:
                return "no_map", f"`{reader.defines[0]}` stands in no map, and `{name}` has to be complete for it"

    def of_siblings(self, first: int, second: int) -> Iterator[Obstacle]:
        """What keeps kernels apart of which none needs the other."""
        for rule, one in self.refusals:
            if len(one.at) > 1 and self.about(one, first, second):
                yield _refused(rule, one)
        maps = [[node for node in self.groups[at] if isinstance(node, Map)] for at in (first, second)]
        for a, b in ((a, b) for a in maps[0] for b in maps[1]):
            common = sorted(
                {self.source(port.source) for port in a.ports} & {self.source(port.source) for port in b.ports}
            )
            at = (a.defines[0], b.defines[0])
            if not common:
                yield Obstacle("", "nothing_in_common", "no list is read block by block by both", at)
            elif a.dim != b.dim:
                why = f"both read `{common[0]}`, one by blocks of `{a.dim}` and the other of `{b.dim}`"
                yield Obstacle("", "different_dimensions", why, at)
            else:
                yield Obstacle("", "not_joined", f"both read `{common[0]}`, but no rule was applied", at)
        names = tuple(self.groups[at][0].defines[0] for at in (first, second))
        yield Obstacle("", "nothing_in_common", "neither reads what the other one makes", names)


def _refused(rule: Rule, refusal: Refusal) -> Obstacle:
    return Obstacle(rule.name, refusal.reason, refusal.why, refusal.at)
