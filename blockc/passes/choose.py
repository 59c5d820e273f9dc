"""The choice of tiles and of a snapshot, by simple stated rules."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from blockc.ir.array_program import sizes as complete_sizes
from blockc.ir.block import REDUCTIONS, Apply, Map, Program, graph_at, walk
from blockc.ir.decisions import Derivation, Match, Rule
from blockc.ir.parallel import nested_maps
from blockc.ir.plan import Cost, Plan
from blockc.passes.bound_loops import bound_loops
from blockc.passes.cost import cost, idleness
from blockc.passes.pivot import pivot
from blockc.passes.rules import fuse_elementwise, peel_first_iteration
from blockc.passes.rules.common import enclosing, find
from blockc.passes.stabilize import stabilize

TILE = 512  # elements of a block: a NumPy call costs microseconds, so loops of few, large steps
LARGEST_TILE = 2**18  # elements: 1 MiB of f32, so that the tiles of one worker stay in a second-level cache
LARGEST_PASSING = 2**20  # elements of a tile that need not stay there
NATIVE = ("f32", "f64")  # types that products take as they are
MANY = 8  # blocks that may be computed at the same time: of so many, two may become one where tiles are small
ASSUMED = 512  # the size of a dimension that is not known yet
CLOSE = 1.01  # of predicted times: what differs by less than the prediction can tell


def choose_tiles(programs: tuple[Program, ...], sizes: Mapping[str, int], asked: Mapping[str, int]) -> dict[str, int]:
    """The block size of every dimension that is cut, chunks aside, for all snapshots of a program as they are emitted.

    1 along a batch dimension (one that every operand of every contraction with it has, and nothing reduces, in every
    snapshot), 512 along others; then, while a tile of a snapshot is too large, the outermost of its dimensions whose
    block is above 16 is halved, and after that the outermost above 1. Where all tiles are smaller, the innermost
    dimension is doubled that is not spread over tasks, or has 8 blocks or more, unless loops over it leave out blocks.
    A tile is too large with more than 2**18 elements, or 2**20 if it only passes through products (`passing_tiles`).
    `asked` overrides.
    """
    batch = set.intersection(*(batch_dimensions(program) - reduced_dimensions(program) for program in programs))
    tiles: dict[str, int] = {}
    for dim in programs[0].dims:
        if dim.name not in programs[0].whole and dim.name not in programs[0].chunks:
            usual = 1 if dim.name in batch else TILE
            tiles[dim.name] = asked.get(dim.name) or min(usual, power_of_two(sizes.get(dim.name, usual)))
    passing, others = (set().union(*shapes) for shapes in zip(*map(item_shapes, programs), strict=True))
    limits = {**dict.fromkeys(passing, LARGEST_PASSING), **dict.fromkeys(others, LARGEST_TILE)}

    def too_large(tiles: Mapping[str, int]) -> list[tuple[str, ...]]:
        return [axes for axes, limit in limits.items() if elements(axes, sizes, tiles) > limit]

    for floor in (16, 1):
        while True:
            large = {dim for axes in too_large(tiles) for dim in axes}
            shrinkable = [dim for dim in tiles if dim in large and tiles[dim] > floor and dim not in asked]
            if not shrinkable:
                break
            tiles[shrinkable[0]] //= 2
    maps = [node for program in programs for node in walk(program.body) if isinstance(node, Map)]
    fixed = batch.union(asked, (node.dim for node in maps if node.where is not None))
    loops = {node.dim for node in maps if node.is_loop}
    spread = set().union(*map(task_dimensions, programs)) - loops
    for name in [name for name in reversed(tiles) if name not in fixed]:
        while sizes.get(name, 0) > tiles[name] * (MANY - 1 if name in spread else 1):
            doubled = {**tiles, name: 2 * tiles[name]}
            if too_large(doubled):
                break
            tiles = doubled
    return tiles


def elements(axes: tuple[str, ...], sizes: Mapping[str, int], tiles: Mapping[str, int]) -> int:
    """The elements of a tile with these axes."""
    return math.prod(tiles.get(dim, sizes.get(dim, ASSUMED)) for dim in axes)


def item_shapes(program: Program) -> tuple[set[tuple[str, ...]], set[tuple[str, ...]]]:
    """The axes of every tile that the program holds: of those that only pass through products, and of the others."""
    names = [name for node in walk(program.body) for name in node.defines]
    names += [port.name for node in walk(program.body) if isinstance(node, Map) for port in node.ports]
    items = {name for name in names if program.types[name].is_item}
    passing = items & passing_tiles(program)
    return {program.types[name].axes for name in passing}, {program.types[name].axes for name in items - passing}


def passing_tiles(program: Program) -> set[str]:
    """The tiles that products read from memory as they are, or leave there, and nothing else has to do with.

    They need no room in a cache: a product goes through its operands and its result in blocks of its own.
    """
    nodes = list(walk(program.body))
    maps = [node for node in nodes if isinstance(node, Map)]
    outputs = [output for node in maps for output in node.outputs]
    products = [node for node in nodes if isinstance(node, Apply) and node.op == "contract"]
    others = [node for node in nodes if not isinstance(node, Map) and node not in products]
    read = {port.name for node in maps for port in node.ports if program.types[port.name].dtype in NATIVE}
    left = {name for node in products for name in node.defines} - {name for node in products for name in node.uses}
    kept = {name for output in outputs if output.monoid is not None for name in (*output.values, *output.starts)}
    return (read | left) - kept.union(*(node.uses for node in others))


def task_dimensions(program: Program) -> set[str]:
    """The dimensions whose blocks are spread over tasks."""
    maps = [node for node in program.body if isinstance(node, Map) and not node.is_loop]
    return {link.dim for node in maps for link in nested_maps(program, node)}


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`: tiles of many small sizes share a kernel."""
    return 1 << max(0, size - 1).bit_length()


def batch_dimensions(program: Program) -> set[str]:
    """The dimensions that all operands of all contractions in which they occur have."""
    contractions = [node for node in _applies(program) if node.op == "contract"]
    result: set[str] = set()
    mixed: set[str] = set()
    for node in contractions:
        axes = [set(program.types[arg].axes) if isinstance(arg, str) else set() for arg in node.args]
        shared = set.intersection(*axes) - set(node.dims)
        # A product of rows with themselves has no free dimension on either side: its rows are no batch.
        if all(held > shared | set(node.dims) or held - shared - set(node.dims) for held in axes):
            result |= shared
        if not any(held == set.union(*axes) for held in axes):  # else it is no matrix product but a weighted sum
            mixed |= set.union(*axes) - shared
    return result - mixed


def reduced_dimensions(program: Program) -> set[str]:
    """The dimensions along which a tile is reduced."""
    return {dim for node in _applies(program) if node.op in REDUCTIONS for dim in node.dims}


def _applies(program: Program) -> list[Apply]:
    return [node for node in walk(program.body) if isinstance(node, Apply)]


def choose(programs: tuple[Program, ...], sizes: Mapping[str, int], tiles: Mapping[str, int]) -> Plan:
    """The snapshot with the least predicted time, of those that are ready to emit."""
    chosen, costs = price(programs, sizes, tiles)
    return Plan(programs[chosen], chosen, dict(tiles), dict(sizes), costs, programs)


LONG = 3e-4  # seconds: a shorter run is left as it is
PAYS = 0.9  # of the time with idle units: what is left if all have something to do
FOR_THREADS = 2**17  # elements: with smaller tiles, Python's threads wait for one another
SMALLEST = 32  # elements of a block that may be halved


def time_with_idle_units(plan: Plan) -> float:
    """The predicted seconds, with what is lost where there are fewer tasks than units."""
    return plan.costs[plan.snapshot].seconds * idleness(plan.program, plan.sizes, plan.tiles)


def leaves_units_idle(plan: Plan) -> bool:
    """True for a plan that takes long, has tiles that are worth a thread, and would take less if more of it were
    computed at the same time."""
    seconds = plan.costs[plan.snapshot].seconds
    sizes = complete_sizes(plan.program, plan.sizes)
    blocks = {dim: min(sizes[dim], tile) for dim, tile in plan.tiles.items()}
    largest = max((elements(axes, sizes, blocks) for axes in set().union(*item_shapes(plan.program))), default=0)
    return largest >= FOR_THREADS and seconds > LONG and seconds < PAYS * time_with_idle_units(plan)


def parallel_dimensions(plan: Plan) -> tuple[str, ...]:
    """The dimensions of parallel maps whose blocks could be halved, outermost first."""
    maps = [node for node in plan.program.body if isinstance(node, Map) and not node.is_loop]
    dims = [link.dim for node in maps for link in nested_maps(plan.program, node)]
    return tuple(dim for dim in dict.fromkeys(dims) if dim not in plan.program.chunks and plan.tiles[dim] > SMALLEST)


def loop_dimensions(plan: Plan) -> tuple[str, ...]:
    """The dimensions of loops with several blocks, in program order."""
    loops = (node.dim for node in walk(plan.program.body) if isinstance(node, Map) and node.is_loop)
    sizes = complete_sizes(plan.program, plan.sizes)
    return tuple(dim for dim in dict.fromkeys(loops) if sizes[dim] > plan.tiles[dim])


def ready(derivation: Derivation) -> tuple[Program, ...]:
    """The snapshots as they would be emitted: made safe, composed, and their loops bounded."""
    return tuple(bound_loops(compose(safe(snapshot))) for snapshot in derivation.snapshots)


def safe(program: Program) -> Program:
    """The program with safe arithmetic: pivots where sums cancel, pairs where exponentials overflow."""
    pivoted = pivot(program)
    return stabilize(pivoted.program, pivoted.bounded)


def price(
    programs: tuple[Program, ...], sizes: Mapping[str, int], tiles: Mapping[str, int]
) -> tuple[int, tuple[Cost, ...]]:
    """Which of the snapshots has the least predicted time, and the costs of all.

    Of those less than 1 % above it, the one with the fewest kernels; of equal ones, the last.
    """
    costs = tuple(cost(program, sizes, tiles) for program in programs)
    least = min(found.seconds for found in costs)
    close = [index for index, found in enumerate(costs) if found.seconds <= least * CLOSE]
    return min(reversed(close), key=lambda index: (costs[index].kernels, costs[index].seconds)), costs


def compose(program: Program) -> Program:
    """The program with neighbouring elementwise operators composed (rule 9)."""
    for composed in in_rounds(fuse_elementwise.RULE, program):
        program = composed
    return program


def in_rounds(rule: Rule, program: Program) -> Iterator[Program]:
    """Every program on the way while a rule is applied wherever it matches, and again, until it matches nowhere."""
    while found := [place for place in rule.match(program, None) if isinstance(place, Match)]:
        touched: set[str] = set()
        for place in found:
            if touched.isdisjoint(place.at):  # another match of this round has changed neither of the two
                program = rule.rewrite(program, place)
                touched.update(place.at)
                yield program


FEW = 2  # blocks: the first of more is too small a part of the work for a second copy of the loop's text


def peel(plan: Plan) -> Plan:
    """The plan with the first iteration of loops of few blocks ahead of them (rule 7)."""
    rule, program = peel_first_iteration.RULE, plan.program
    for place in [found for found in rule.match(program, None) if isinstance(found, Match)]:
        graph = graph_at(program, place.path)
        loop = graph[find(graph, place.at[0])]
        assert isinstance(loop, Map)
        around = [node.dim for node in enclosing(program, place.path)]
        if 0 < most_blocks(plan, loop.dim, around) <= FEW:
            program = rule.rewrite(program, place)
    return replace(plan, program=program)


def most_blocks(plan: Plan, dim: str, around: Collection[str]) -> int:
    """The blocks that a map over a dimension goes through inside maps over others, in the longest chunk if one of them
    has chunks of it."""
    chunks = [plan.tiles[other] for other in around if plan.program.chunks.get(other) == dim]
    return -(-min([complete_sizes(plan.program, plan.sizes)[dim], *chunks]) // plan.tiles[dim])


def peeled_dimensions(program: Program) -> frozenset[str]:
    """The dimensions of loops whose first iteration is ahead of them."""
    return frozenset(node.dim for node in walk(program.body) if isinstance(node, Map) and node.part == "first")
