"""Fragments of programs in IR text, completed to programs: the examples of rules and the files under `data/rules`.

A fragment is a few definitions. What they use and do not bind becomes an input, what they bind and do not use becomes
an output, dimensions that no map runs over are whole. Lines before the definitions say what cannot be seen:

    given r: local f32(m)      the type of a name from outside (of a mapped list it is seen from the port)
    around b                   the fragment stands in a map over b; inputs with that axis, or all if nothing has it,
                               are mapped, results are stacked, or added up if they lack an axis of the fragment
    output E                   a name that is an output though the fragment uses it
    chunks n                   `n_chunk` are chunks of the blocks of n, in what follows the rewrite at least
    dims n e                   the order of the dimensions, where it is not that of appearance
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockc.ir.array_program import Argument, Dim, chunk_dim
from blockc.ir.block import (
    Definition,
    Graph,
    Input,
    Map,
    Output,
    Port,
    Program,
    Reduce,
    Rename,
    Result,
    Type,
    operand_names,
    walk,
)
from blockc.ir.text import format_program, parse_program

FOLDER = Path(__file__).parent / "data" / "rules"
TYPED = re.compile(r"([A-Za-z_][\w.]*): (?:slow|local) (\w+)((?:\[\w+\])*)\(([^)]*)\)")
PREAMBLE = ("given ", "around ", "output ", "dims ", "chunks ")


@dataclass(frozen=True)
class Example:
    """A rule's example: the fragment before, and what comes after or why the rule refuses."""

    name: str
    before: str
    after: str
    refusal: str


def read(path: Path) -> Example:
    """The example in a file: two parts with `---` between, the second a fragment or `refuse REASON`."""
    before, after = path.read_text().split("---\n")
    refusal = after.split()[1] if after.startswith("refuse ") else ""
    return Example(path.stem, before, "" if refusal else after, refusal)


def files(rule: str) -> list[Example]:
    """All examples of a rule."""
    return [read(path) for path in sorted((FOLDER / rule).glob("*.txt"))]


def refusals_in_data() -> set[tuple[str, str]]:
    """The rules and reasons that the files cover."""
    folders = sorted(path.name for path in FOLDER.iterdir())
    return {(rule, example.refusal) for rule in folders for example in files(rule) if example.refusal}


def from_docstring(docstring: str, preamble: str, shared: str) -> Example:
    """The example in the docstring of a rule's module: indented, `=>` alone on a line between before and after.

    `shared` are definitions that stand ahead of both.
    """
    before, after = docstring.split("\n  =>\n")
    parts = ["\n".join(line[4:] for line in part.splitlines() if line.startswith("    ")) for part in (before, after)]
    return Example("docstring", f"{preamble}{shared}{parts[0]}\n", f"{shared}{parts[1]}\n", "")


def split_preamble(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines before the definitions, by their first word, and the definitions."""
    said: dict[str, list[str]] = {word.strip(): [] for word in PREAMBLE}
    rest = []
    for line in text.splitlines():
        word = line.split(" ")[0]
        if word in said:
            said[word].append(line[len(word) + 1 :])
        else:
            rest.append(line)
    return said, "\n".join(rest)


def parse_graph(text: str) -> Graph:
    """The definitions of a fragment."""
    return parse_program("program fragment\n" + text).body


def annotated(text: str) -> dict[str, Type]:
    """The types that the text says."""
    found = {}
    for name, dtype, lists, axes in TYPED.findall(text):
        found[name] = Type(dtype, tuple(re.findall(r"\w+", lists)), tuple(re.findall(r"\w+", axes)))
    return found


def bound(graph: Graph) -> list[str]:
    """The names that a graph itself binds."""
    return [name for definition in graph for name in definition.defines]


def uses_in_order(definition: Definition) -> Iterator[str]:
    """The names that a definition uses from outside, in order of appearance."""
    match definition:
        case Map():
            yield from (port.source for port in definition.ports)
            inside = {port.name for port in definition.ports} | set(bound(definition.body))
            for inner in definition.body:
                yield from (name for name in uses_in_order(inner) if name not in inside)
        case Reduce():
            yield from definition.sources
        case Rename():
            yield definition.source
        case _:
            yield from operand_names(definition.args)


def free_names(graph: Graph) -> list[str]:
    """The names that a fragment uses and does not bind."""
    inside = set(bound(graph))
    return list(dict.fromkeys(name for node in graph for name in uses_in_order(node) if name not in inside))


def types_from_ports(graph: Graph, types: dict[str, Type]) -> None:
    """Add the types of lists that ports read: the element with one more list dimension."""
    for node in reversed(list(walk(graph))):
        if isinstance(node, Map):
            for port in node.ports:
                kind = types[port.name]
                types.setdefault(port.source, Type(kind.dtype, (*kind.lists, node.dim), kind.axes))


def complete(before: str, after: str) -> tuple[Program, Program]:
    """Both fragments as programs with the same inputs and outputs."""
    said, text = split_preamble(before)
    types = annotated(text + "\n" + "\n".join(said["given"]))
    first = parse_graph(text)
    second = parse_graph(after) if after else first
    types_from_ports(first, types)
    free = free_names(first)
    around = [dim for line in said["around"] for dim in line.split()]
    mapped = {node.dim for node in walk(first) if isinstance(node, Map)} | set(around)
    chunked = said["chunks"]
    axes = [axis for kind in types.values() for axis in kind.axes]
    fragment_axes = set(axes)
    names = dict.fromkeys([*" ".join(said["dims"]).split(), *around, *axes, *sorted(mapped)])
    dims = [name for name in names if name.removesuffix("_chunk") not in chunked or name in chunked]
    used = {name for node in first for name in node.uses}
    wanted = [name for name in bound(first) if name not in used or name in said["output"]]
    extra = [dim for dim in around if dim not in fragment_axes]
    inputs = []
    for name in free:
        own = (*extra, *(dim for dim in dims if dim in types[name].axes))
        inputs.append((name, types[name].dtype, own))
    programs = []
    for graph in (first, second):
        used = {node.dim for node in walk(graph) if isinstance(node, Map)}
        whole = frozenset(dims) - mapped
        programs.append(_program(_declared(dims, chunked, used), whole, inputs, graph, wanted, around))
    return programs[0], programs[1]


def _declared(dims: list[str], chunked: list[str], used: set[str]) -> tuple[Dim, ...]:
    """The dimensions, with chunks, where a map goes through them, ahead of what they are chunks of."""
    result: list[Dim] = []
    for dim in dims:
        if dim in chunked and f"{dim}_chunk" in used:
            result.append(chunk_dim(f"{dim}_chunk", dim))
        result.append(Dim(dim))
    return tuple(result)


def with_chunks(program: Program, tiles: dict[str, int]) -> dict[str, int]:
    """The tiles with chunks of two blocks."""
    return {**tiles, **{chunk: 2 * tiles[base] for chunk, base in program.chunks.items()}}


def _program(
    dims: tuple[Dim, ...],
    whole: frozenset[str],
    inputs: list[tuple[str, str, tuple[str, ...]]],
    graph: Graph,
    wanted: list[str],
    around: list[str],
) -> Program:
    """The program with the fragment inside maps over `around`."""
    values: dict[str, str] = {}  # how an input is called in the innermost graph
    ports: list[list[Port]] = [[] for _ in around]
    entries = []
    for name, dtype, own in inputs:
        current = f"{name}.in" if any(dim in own for dim in around) else name
        current = current.replace(".in", "_in")
        entries.append((current, dtype, own))
        levels = [level for level, dim in enumerate(around) if dim in own]
        for level in levels:
            inner = name if level == levels[-1] else f"{current}_{level}"
            ports[level].append(Port(inner, current))
            current = inner
        values[name] = current
    arguments = tuple(Argument(name, dtype, tuple((dim,) for dim in own)) for name, dtype, own in entries)
    sources = tuple(Input(name, name, own, dtype) for name, dtype, own in entries)
    body = graph
    results = list(wanted)
    empty = Program("fragment", dims, whole, arguments, sources, (), ())
    for level in reversed(range(len(around))):
        dim = around[level]
        bare = _nest(around[:level], ports[:level], Map(dim, tuple(ports[level]), body, ()))
        kinds = replace(empty, body=bare).types
        outputs = []
        for name in results:
            stacks = dim in kinds[name].axes or not _is_reduced(graph, name)
            outputs.append(Output((f"{name}_{level}",), (name,), None if stacks else "add"))
        body = (Map(dim, tuple(ports[level]), body, tuple(outputs)),)
        results = [f"{name}_{level}" for name in results]
    program = replace(empty, body=body)
    declared = []
    for name, result in zip(wanted, results, strict=True):
        kind = program.types[result]
        declared.append(Result(Argument(f"out_{name}", kind.dtype, tuple((axis,) for axis in kind.axes)), result))
    return replace(program, outputs=tuple(declared))


def _nest(around: list[str], ports: list[list[Port]], node: Map) -> Graph:
    for dim, own in zip(reversed(around), reversed(ports), strict=True):
        node = Map(dim, tuple(own), (node,), ())
    return (node,)


def _is_reduced(graph: Graph, name: str) -> bool:
    """True for the result of a tile operator: a part of a sum over the map around. Lists are stacked."""
    return any(name in node.defines and not isinstance(node, Map | Reduce) for node in graph)


def canonical(program: Program) -> str:
    """The program as text with the names that it binds numbered in order, and without the lists of what maps use."""
    names: dict[str, str] = {}

    def visit(graph: Graph) -> None:
        for node in graph:
            if isinstance(node, Map):
                names.update({port.name: f"v{len(names) + at}" for at, port in enumerate(node.ports)})
                visit(node.body)
            for name in node.defines:
                names[name] = f"v{len(names)}"

    visit(program.body)
    return re.sub(
        r"[A-Za-z_][\w.]*",
        lambda found: names.get(found[0], found[0]),
        re.sub(r" uses [^{]*", " ", format_program(program)),
    )


def random_inputs(program: Program, sizes: dict[str, int], seed: int) -> dict[str, NDArray[Any]]:
    """Positive random numbers, so that roots and logarithms exist."""
    draw = np.random.default_rng(seed)
    return {arg.name: draw.uniform(0.2, 1.5, [sizes[dim] for dim in arg.dims]) for arg in program.arguments}


def small_shapes(program: Program) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Sizes and tiles with 1 to 4 blocks along every dimension that is cut, the last one short."""
    cut = [dim.name for dim in program.dims if dim.name not in program.whole | program.chunks.keys()]
    for counts in product(range(1, 5), repeat=len(cut)):
        tiles = {dim: 2 + at % 2 for at, dim in enumerate(cut)}
        sizes = {dim.name: 2 for dim in program.dims if dim.name in program.whole}
        sizes |= {dim: count * tiles[dim] - 1 for dim, count in zip(cut, counts, strict=True)}
        yield sizes, tiles


def some_shapes(program: Program, most: int) -> list[tuple[dict[str, int], dict[str, int]]]:
    """All small shapes, or, where there are more than `most`, the first, the last and a seeded choice of the others."""
    every = list(small_shapes(program))
    if len(every) <= most:
        return every
    return [every[0], every[-1], *random.Random(program.name).sample(every[1:-1], most - 2)]
