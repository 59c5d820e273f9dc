"""Consecutive parts of an array program, each a program of its own: what a large program is cut into.

A cut is a place in the order of operators. What an operator before it computes and one behind it uses is an output of
the part before and an input of the parts behind. Constants, sizes and positions are part of every part that uses them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from blockc.ir.array_program import Argument, ArrayProgram, Dim, Node, Result
from blockc.ir.dtypes import DTYPES

FREE = frozenset({"input", "constant", "size", "index"})  # operators that no part has to be given the result of
ALIASES = frozenset({"rename"})  # other names of what is stored: no cut separates them from what they name
OWN: Mapping[str, str] = {}


def operators(program: ArrayProgram) -> tuple[Node, ...]:
    """The operators that belong to one part each, in order."""
    free: set[str] = set()
    for node in program.nodes:
        if node.op in FREE or (node.args and free.issuperset(node.args) and not node.shape):
            free.add(node.name)  # numbers that are made of numbers are as cheap as they are
    return tuple(node for node in program.nodes if node.name not in free)


def cuts(program: ArrayProgram, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The places to cut at: before operator `place`, from 0 to their number.

    Where less has to be kept than at the places beside, and at both ends of products, but not between two that have the
    same dimensions: these go well together.
    """
    nodes = operators(program)
    kept = [_kept(program, nodes, at, sizes) for at in range(len(nodes) + 1)]
    unbounded = exponentials(program)
    found = {0, len(nodes)}
    for at in range(1, len(nodes)):
        if nodes[at].op in ALIASES:
            continue  # it goes with what reads it, or with what it names
        if any(node.name in unbounded for node in _live(program, nodes, at)):
            continue  # it would be stored as a plain number, which could overflow
        lower = kept[at] <= min(kept[at - 1], kept[at + 1]) and kept[at] < max(kept[at - 1], kept[at + 1])
        sides = {(node.op, node.shape) for node in nodes[at - 1 : at + 1]}
        product = len(sides) > 1 and "contract" in {op for op, _ in sides}
        if lower or product:
            found.add(at)
    return tuple(sorted(found))


def _kept(program: ArrayProgram, nodes: tuple[Node, ...], at: int, sizes: Mapping[str, int]) -> int:
    """The bytes of what is computed before a place and needed behind it."""
    values = _live(program, nodes, at)
    return sum(math.prod(sizes[dim] for dim in node.shape) * DTYPES[node.dtype].size for node in values)


def _live(program: ArrayProgram, nodes: tuple[Node, ...], at: int) -> list[Node]:
    """What is computed before a place and needed behind it."""
    needed = {name for node in nodes[at:] for name in node.args} | {result.node for result in program.outputs}
    return [node for node in nodes[:at] if node.name in needed]


def exponentials(program: ArrayProgram) -> frozenset[str]:
    """The values that are still exponentials, possibly of large numbers. Kernels carry them as pairs, which is not
    possible from part to part.

    What brings them back is a logarithm, or a division by the same exponentials, or by a sum or maximum of them: the
    quotient is at most 1. A quotient the other way round, or by a minimum, has no bound.
    """
    numbers: dict[object, int] = {}
    origin: dict[str, int] = {}  # a number for each value: equal operators on equal values have the same
    powers: dict[str, _Powers] = {}
    for node in program.nodes:
        own = node.name if node.op == "input" else repr(node.value)
        made = (node.op, own, tuple(origin[arg] for arg in node.args), node.dims, node.dtype)
        origin[node.name] = numbers.setdefault(made, len(numbers))
        powers[node.name] = _powers(node, [powers[arg] for arg in node.args], origin)
    return frozenset(name for name, found in powers.items() if found)


# Of which exponentials a value is a product, by the number of the exponent (or, for what does not cancel, of the value
# itself): to which power, and the dimensions that the factor has.
_Powers = dict[int, tuple[int, frozenset[str]]]


def _powers(node: Node, parts: list[_Powers], origin: Mapping[str, int]) -> _Powers:
    """The exponentials of a result by those of its operands."""
    itself: _Powers = {-1 - origin[node.name]: (1, frozenset(node.shape))}
    match node.op:
        case "exp":
            return {origin[node.args[0]]: (1, frozenset(node.shape))}
        case "mul" | "contract":
            return _product(parts, itself)
        case "div":
            inverse = {key: (-count, dims) for key, (count, dims) in parts[1].items()}
            return _product([parts[0], inverse], itself)
        case "sum" | "max":
            return {key: (count, dims.difference(node.dims)) for key, (count, dims) in parts[0].items()}
        case "rename" | "cast":
            return itself if parts[0] and node.op == "rename" else parts[0]
        case "log" | "tanh" | "sigmoid" | "erf" | "lt" | "le" | "gt" | "ge" | "eq" | "ne":
            return {}
        case "where":
            chosen = [part for part in parts[1:] if part]
            return chosen[0] if chosen and all(part == chosen[0] for part in chosen) else itself if chosen else {}
        case _:  # whatever else is made of exponentials
            return itself if any(parts) else {}


def _product(parts: list[_Powers], itself: _Powers) -> _Powers:
    """The exponentials of a product: equal ones cancel if what is divided by has no dimension of its own."""
    result: _Powers = {}
    for part in parts:
        for key, (count, dims) in part.items():
            before, other = result.get(key, (0, dims))
            above, below = (dims, other) if count > 0 else (other, dims)
            if before * count < 0 and not below <= above:
                return itself
            result[key] = before + count, above if before * count < 0 else dims | other
    return {key: (count, dims) for key, (count, dims) in result.items() if count}


def exact(program: ArrayProgram) -> frozenset[str]:
    """The values that outputs of 32 bits or more are made of, and the names of these outputs."""
    results = [result for result in program.outputs if DTYPES[result.argument.dtype].size >= 4]
    args = {node.name: node.args for node in program.nodes}
    waiting, found = [result.node for result in results], {result.argument.name for result in results}
    while waiting:
        name = waiting.pop()
        waiting.extend(arg for arg in args[name] if arg not in found)
        found.add(name)
    return frozenset(found)


def rounded(program: ArrayProgram) -> dict[str, str]:
    """The values that all who read them round, with the type that they round to: operands of products of matrices with
    arguments in bf16, which has the range of f32. Stored in that type, they give the same results."""
    wide, nodes = exact(program), {node.name: node for node in program.nodes}
    readers: dict[str, list[Node]] = {}
    for node in program.nodes:
        for arg in dict.fromkeys(node.args):
            readers.setdefault(arg, []).append(node)
    outputs = {result.node for result in program.outputs}
    found = {}
    for name, reading in readers.items():
        node = nodes[name]
        inner = node.dtype == "f32" and node.op not in FREE and name not in wide and name not in outputs
        if inner and all(_multiplies(node, reader, nodes) for reader in reading):
            found[name] = "bf16"
    return found


def _multiplies(node: Node, reader: Node, nodes: Mapping[str, Node]) -> bool:
    """True for a product of a value and an argument in bf16, each with dimensions of its own."""
    if reader.op != "contract" or reader.args.count(node.name) != 1:
        return False
    (other,) = (nodes[arg] for arg in reader.args if arg != node.name)
    stored = other
    while stored.op in ALIASES:
        stored = nodes[stored.args[0]]
    mine, others = set(node.shape), set(other.shape)
    return stored.op == "input" and stored.dtype == "bf16" and not (mine <= others or others <= mine)


def segment(
    program: ArrayProgram, start: int, end: int, sizes: Mapping[str, int], types: Mapping[str, str] = OWN
) -> ArrayProgram:
    """The part of a program from one place to another, as a program for these sizes, as far as they are given. Values
    that come from other parts are inputs. `types` are those that values have between parts, if not their own."""
    nodes = operators(program)
    inside = {node.name for node in nodes[start:end]}
    every = {node.name: node for node in program.nodes}
    belongs = {node.name for node in nodes}
    wanted: dict[str, None] = {}

    def want(name: str) -> None:
        """Note a value, after those that it is made of, as far as they are part of this."""
        if name in wanted:
            return
        if name in inside or name not in belongs:
            for arg in every[name].args:
                want(arg)
        wanted[name] = None

    for node in nodes[start:end]:
        want(node.name)
    later = {name for node in nodes[end:] for name in node.args}
    last = end == len(nodes)
    given = [result for result in program.outputs if result.node in inside or (last and result.node not in belongs)]
    for result in given:
        want(result.node)
    inputs = {argument.name: argument for argument in program.inputs}
    arguments: list[Argument] = []
    kept: list[Node] = []
    for name in wanted:
        node = every[name]
        if node.op == "input":
            arguments.append(inputs[name])
            kept.append(node)
        elif name in inside or name not in belongs:
            kept.append(node)
        else:
            arguments.append(_argument(node, types))
            kept.append(Node(name, "input", (), (), node.shape, arguments[-1].dtype, None, node.span))
    passed = [Result(_argument(node, types), node.name) for node in nodes[start:end] if node.name in later]
    outputs = (*passed, *given)
    used = {dim for node in kept for dim in (*node.shape, *node.dims)}
    used |= {dim for argument in (*arguments, *(result.argument for result in outputs)) for dim in argument.dims}
    dims = tuple(_dim(dim, used, sizes) for dim in program.dims if dim.name in used)
    name = f"{program.name}_{start}_{end}"
    return ArrayProgram(name, dims, tuple(arguments), tuple(kept), outputs, program.source, program.filename)


def _argument(node: Node, types: Mapping[str, str]) -> Argument:
    return Argument(node.name, types.get(node.name, node.dtype), tuple((dim,) for dim in node.shape))


def _dim(dim: Dim, used: set[str], sizes: Mapping[str, int]) -> Dim:
    """A dimension of a part, with its size, which no input of the part may tell. The one that it was renamed from may
    not be in it."""
    return replace(dim, size=sizes.get(dim.name), same_as=dim.same_as if dim.same_as in used else None)
