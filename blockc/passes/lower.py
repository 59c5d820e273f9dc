"""Lowering: an array program to the unfused block program.

An operator with free dimensions D and reduced dimensions R becomes maps over D around maps over R, each with a reduce,
around one tile operator. Every intermediate is a list in slow memory. One global order nests all maps (design,
section 4): a dimension that is free in an operator comes before the ones that it reduces.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from blockc.ir import block
from blockc.ir.array_program import ArrayProgram, Node
from blockc.ir.block import (
    REDUCTIONS,
    Apply,
    Constant,
    Definition,
    Expression,
    Graph,
    Input,
    Leaf,
    Map,
    Operand,
    Output,
    Port,
    Program,
    Reduce,
    Rename,
    Size,
    depth,
)
from blockc.ir.dtypes import is_float
from blockc.ir.graph import ranked_order
from blockc.ir.ops import OPERATORS
from blockc.passes.contractions import as_contractions, live, unused

DEEPEST = 16  # operators composed into one number; longer computations with sizes are operators like others
SMALL = 512  # elements: a dimension of at most this known size may start whole


def lower(program: ArrayProgram, whole: frozenset[str]) -> Program:
    """The unfused block program. `whole` names the dimensions that are kept in one block."""
    program = without_repeats(program)
    products = as_contractions(program)
    nodes, renamed = push_renames(products, frozenset(result.node for result in program.outputs))
    order = dimension_order(program, products)
    dims = tuple(program.dim(name) for name in order)
    stored = {argument.name: argument.dims for argument in program.inputs}
    inputs = tuple(_input(node, stored) for node in nodes if node.op == "input")
    builder = _Builder(whole, {dim: rank for rank, dim in enumerate(order)}, {node.name for node in nodes})
    body: list[Definition] = []
    for node in nodes:
        body.extend(builder.node(node))
    results = []
    for result in program.outputs:
        node = builder.nodes[renamed.get(result.node, result.node)]
        declared = result.argument
        made_here = node.op != "input" and node.name not in builder.leaves
        if made_here and set(declared.dims) == set(node.shape) and node.dtype == declared.dtype:
            results.append(block.Result(declared, node.name))
            continue
        name = builder.fresh(node.name)
        missing = tuple(dim for dim in declared.dims if dim not in node.shape)
        op = "broadcast" if missing or node.name in builder.leaves else "cast"
        body.extend(builder.node(Node(name, op, (node.name,), missing, declared.dims, declared.dtype, None, node.span)))
        results.append(block.Result(declared, name))
    return Program(program.name, dims, whole, program.inputs, inputs, tuple(body), tuple(results))


def _input(node: Node, stored: dict[str, tuple[str, ...]]) -> Input:
    (argument,) = node.args or (node.name,)
    renames = dict(zip(node.dims[::2], node.dims[1::2], strict=True))
    return Input(node.name, argument, tuple(renames.get(dim, dim) for dim in stored[argument]), node.dtype)


def whole_dimensions(program: ArrayProgram, sizes: dict[str, int], tiles: dict[str, int | None]) -> frozenset[str]:
    """The dimensions that start whole: those that `tiles` maps to None, and small ones that are no loop dimension.

    A loop dimension is free in every reduction over some dimension (the rows of a softmax, of a norm, of a product), so
    cutting it repeats nothing; all others (a head size, the width of one of several products) gain from being whole.
    They start so if their size is known and at most `SMALL`, or at most the tile that is asked for.
    """
    reductions = [node for node in as_contractions(program) if node.op in REDUCTIONS]
    loops: set[str] = set()
    for reduced in {dim for node in reductions for dim in node.dims}:
        loops |= set.intersection(*(set(node.shape) for node in reductions if reduced in node.dims))
    involved = {dim for node in reductions for dim in (*node.dims, *node.shape)}
    candidates = involved - loops
    return frozenset(
        dim.name
        for dim in program.dims
        if (dim.name in tiles and tiles[dim.name] is None)
        or (dim.name in candidates and dim.name in sizes and sizes[dim.name] <= (tiles.get(dim.name) or SMALL))
    )


def without_repeats(program: ArrayProgram) -> ArrayProgram:
    """The program with equal operators merged, so that a formula written twice is the same as one with a name."""
    first: dict[tuple[object, ...], str] = {}
    now: dict[str, str] = {}
    nodes = []
    for node in program.nodes:
        args = tuple(now[arg] for arg in node.args)
        commutes = node.op == "contract" or (node.op in OPERATORS and OPERATORS[node.op].commutative)
        operands = tuple(sorted(args)) if commutes else args
        own = node.name if node.op == "input" else ""
        now[node.name] = first.setdefault((own, node.op, operands, node.dims, node.dtype, repr(node.value)), node.name)
        if now[node.name] == node.name:
            nodes.append(replace(node, args=args))
    outputs = tuple(replace(result, node=now[result.node]) for result in program.outputs)
    return replace(program, nodes=tuple(nodes), outputs=outputs)


def dimension_order(program: ArrayProgram, nodes: tuple[Node, ...]) -> tuple[str, ...]:
    """All dimensions, outermost first: free before reduced; then by the number of operators in which a dimension is
    free, largest first; then by first appearance. A cycle is cut at the same rank."""
    operators = [node for node in nodes if node.op not in ("input", "constant", "size")]
    names = [dim.name for dim in program.dims]
    reductions = [node for node in operators if node.op in REDUCTIONS]
    before = [(free, bound) for node in reductions for free in node.shape for bound in node.dims]
    uses = {name: sum(name in node.shape for node in operators) for name in names}
    return ranked_order(names, before, lambda name: (-uses[name], names.index(name)))


def push_renames(nodes: tuple[Node, ...], outputs: frozenset[str]) -> tuple[tuple[Node, ...], dict[str, str]]:
    """The nodes with renames pushed to the inputs, which are then read as another view of the same array; and for each
    rename the node that took its place.

    An operator that others, or `outputs`, use under its old dimension too would be computed twice: there, unless it is
    elementwise, the rename stays, and the value is stored and read again.
    """
    pusher = _Pusher({node.name: node for node in nodes})
    for node in nodes:
        pusher.users.update({arg: pusher.users.get(arg, frozenset()) | {node.name} for arg in node.args})
    pusher.users.update({name: pusher.users.get(name, frozenset()) | {""} for name in outputs})  # "" is the caller
    for node in nodes:
        pusher.add(replace(node, args=tuple(pusher.now.get(arg, arg) for arg in node.args)))
    return live(tuple(pusher.result.values()), {pusher.now.get(name, name) for name in outputs}), pusher.now


@dataclass(slots=True)
class _Pusher:
    nodes: dict[str, Node]
    users: dict[str, frozenset[str]] = field(default_factory=dict)
    now: dict[str, str] = field(default_factory=dict)  # a rename to the node that replaced it
    result: dict[str, Node] = field(default_factory=dict)
    views: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def fresh(self, name: str) -> str:
        """An unused name with the same stem."""
        return unused(name, self.nodes.keys() | self.result.keys() | set(self.views.values()))

    def add(self, node: Node) -> None:
        if node.op != "rename":
            self.result[node.name] = node
            return
        old, new = node.dims
        same = {other.name for other in self.nodes.values() if other.op == "rename" and other.dims == node.dims}
        self.now[node.name] = self.renamed(node.args[0], old, new, same)

    def renamed(self, name: str, old: str, new: str, moved: set[str]) -> str:
        """The name of the value with `old` read as `new`, added to the result if it is not there yet."""
        node = self.result[name]
        if old not in node.shape:
            return name
        if (name, old, new) in self.views:
            return self.views[name, old, new]
        target = self.views[name, old, new] = self.fresh(name)
        shape = tuple(new if dim == old else dim for dim in node.shape)
        if node.op == "input":
            pairs = dict(zip(node.dims[::2], node.dims[1::2], strict=True))
            origin = next((first for first, last in pairs.items() if last == old), old)
            pairs[origin] = new
            view = tuple(dim for pair in pairs.items() for dim in pair)
            self.result[target] = replace(node, name=target, args=node.args or (name,), dims=view, shape=shape)
            return target
        private = self.users.get(name, frozenset()) <= moved
        if new in node.dims or not (private or node.op in OPERATORS or node.op in ("index", "cast")):
            self.result[target] = Node(target, "rename", (name,), (old, new), shape, node.dtype, None, node.span)
            return target
        below = moved | {name}
        args = tuple(self.renamed(arg, old, new, below) for arg in node.args)
        dims = tuple(new if dim == old else dim for dim in node.dims)
        self.result[target] = replace(node, name=target, args=args, dims=dims, shape=shape)
        return target


@dataclass(slots=True)
class _Builder:
    whole: frozenset[str]
    rank: dict[str, int]
    taken: set[str]
    nodes: dict[str, Node] = field(default_factory=dict)
    leaves: dict[str, Leaf] = field(default_factory=dict)
    latest: dict[str, int] = field(default_factory=dict)  # by stem, the number that was free last

    def fresh(self, name: str) -> str:
        """An unused name with the same stem."""
        stem = name.split(".")[0]
        chosen = unused(name, self.taken, self.latest.get(stem, 1))
        self.latest[stem] = int(chosen.rpartition(".")[2])
        self.taken.add(chosen)
        return chosen

    def node(self, node: Node) -> Graph:
        """The definitions of one operator in the top graph; none for inputs, constants and numbers."""
        self.nodes[node.name] = node
        if node.op == "input":
            return ()
        leaf = self.leaf(node)
        if leaf is not None:
            self.leaves[node.name] = leaf
            return ()
        if node.op == "rename":
            return (Rename(node.name, node.args[0], node.dims[0], node.dims[1], node.span),)
        free = self.cut(node.shape)
        reduced = self.cut(node.dims) if node.op in REDUCTIONS else ()
        lists = {arg: set(self.cut(self.nodes[arg].shape)) for arg in node.args if arg not in self.leaves}
        operands: dict[str, Operand] = {arg: self.leaves.get(arg, arg) for arg in node.args}
        return self.nest(node, free, reduced, operands, lists, node.name)

    def cut(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        """The dimensions that maps run over, outermost first."""
        return tuple(sorted((dim for dim in dims if dim not in self.whole), key=self.rank.__getitem__))

    def leaf(self, node: Node) -> Leaf | None:
        """The node as an expression of constants and sizes, if it is one."""
        if node.op == "constant":
            assert node.value is not None
            return Constant(node.value)
        if node.op == "size":
            return Size(node.dims[0])
        if node.op not in OPERATORS and node.op != "cast":
            return None
        args = tuple(self.leaves[arg] for arg in node.args if arg in self.leaves)
        if len(args) < len(node.args):
            return None
        if max(map(depth, args), default=0) >= DEEPEST:
            return None
        if node.op != "cast":
            return Expression(node.op, args)
        return args[0] if is_float(node.dtype) else None

    def nest(
        self,
        node: Node,
        free: tuple[str, ...],
        reduced: tuple[str, ...],
        operands: dict[str, Operand],
        lists: dict[str, set[str]],
        name: str,
    ) -> Graph:
        """Maps over `free`, then over `reduced`, around the tile operator, whose result is called `name` here."""
        if not free and not reduced:
            dims = node.dims if node.op not in OPERATORS else ()
            args = tuple(operands[arg] for arg in node.args)
            return (Apply(name, node.op, args, dims, node.dtype, node.span),)
        dim = (free or reduced)[0]
        inner = dict(operands)
        ports = []
        for arg in sorted(lists, key=node.args.index):
            if dim in lists[arg]:
                port = Port(self.fresh(arg), block.as_name(operands[arg]))
                inner[arg] = port.name
                ports.append(port)
        below = {arg: dims - {dim} for arg, dims in lists.items()}
        element = self.fresh(node.name)
        body = self.nest(node, free[1:], reduced if free else reduced[1:], inner, below, element)
        if free:
            return (Map(dim, tuple(ports), body, (Output((name,), (element,), None),), node.span),)
        stacked = self.fresh(node.name)
        mapped = Map(dim, tuple(ports), body, (Output((stacked,), (element,), None),), node.span)
        return (mapped, Reduce((name,), (stacked,), dim, REDUCTIONS[node.op], node.span))
