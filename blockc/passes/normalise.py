"""The normal form of every body, restored after each rule (design, section 5). Not a rule itself: it adds no step.

Each definition is rebuilt by smart constructors, innermost operands first, so that equal formulas become equal
operators: sums and products are flat, quotients and differences are gone, constants are folded, inverse factors and
opposite terms cancel, logarithms and exponentials undo each other. Equal operators are merged, also with an enclosing
body; operators that depend on outside values only move out (never to the top graph, where they would be a kernel);
what nothing uses is removed. Factors with dimensions stay where they are: moving them is the work of the rules.
"""

from __future__ import annotations

import math
import operator
from collections import ChainMap
from dataclasses import dataclass, field, replace
from itertools import chain

from blockc.ir.block import (
    DEFINES,
    USES,
    Apply,
    Constant,
    Definition,
    Expression,
    Fresh,
    Graph,
    Map,
    Operand,
    Output,
    Port,
    Program,
    Reduce,
    Rename,
    Size,
    Type,
    apply_axes,
    depth,
    substitute,
    with_body,
)
from blockc.ir.dtypes import is_float
from blockc.ir.ops import OPERATORS, result_dtype
from blockc.passes import exponentials
from blockc.passes.leaves import MINUS_ONE, ONE, as_leaf, fold, folded, number_product
from blockc.passes.linear import LONGEST
from blockc.passes.masks import Origins
from blockc.passes.prune import prune
from blockc.passes.remembered import Body, Memory

DEEPEST = 16  # operators composed into one number
LONG = 16  # definitions of a body that is worth remembering as a whole
FLATTENED = frozenset({"add", "mul", "maximum", "minimum", "and", "or"})


def normalise(program: Program, memory: Memory | None = None) -> Program:
    """The program in normal form; the same program if it is in normal form already. With a memory, the program is one
    that nobody else needs."""
    given = program if memory is not None else None
    memory = memory or Memory()
    pruned = False
    while True:
        normaliser = _Normaliser(program, memory)
        built = normaliser.run()
        if built.body == program.body and built.outputs == program.outputs:
            break
        program, pruned = prune(built, memory), True
    if not pruned and (kept := prune(program, memory)).body != program.body:
        program = kept
    if given is not None:
        program.take_over(given)
    memory.note(program.body, program.facts.applies, normaliser.grown)
    memory.bodies.update(normaliser.bodies)
    return program


@dataclass(slots=True)
class _Scope:
    """One graph under construction: its definitions so far, and the name of each operator in it."""

    out: list[Definition] = field(default_factory=list)
    known: dict[tuple[object, ...], str] = field(default_factory=dict)


@dataclass(slots=True)
class _Normaliser:
    program: Program
    memory: Memory
    fresh: Fresh = field(init=False)
    types: ChainMap[str, Type] = field(init=False)
    scopes: list[_Scope] = field(default_factory=list)
    mapped: list[str] = field(default_factory=list)  # the dimension of the map around each scope but the first
    level: dict[str, int] = field(default_factory=dict)  # the scope that binds a name
    position: dict[str, int] = field(default_factory=dict)  # names in order of definition, for a canonical order
    applies: dict[str, Apply] = field(default_factory=dict)
    now: dict[str, Operand] = field(default_factory=dict)  # what stands for a name that has been replaced
    bodies: dict[int, Body] = field(default_factory=dict)  # those that turned out to be in normal form
    grown: dict[int, int] = field(default_factory=dict)  # how much of bodies was remembered, by first definitions
    origins: Origins = field(init=False)

    def __post_init__(self) -> None:
        facts = self.program.facts
        self.fresh = Fresh(self.program)
        self.types = ChainMap({}, facts.types)
        self.origins = Origins(ChainMap(self.applies, facts.applies), facts.links, self.types)

    def run(self) -> Program:
        self.scopes.append(_Scope())
        self.bind_all([entry.name for entry in self.program.inputs])
        self.fill(self.program.body)
        outputs = []
        for result in self.program.outputs:
            outputs.append(replace(result, value=self.name_for(self.now.get(result.value, result.value), result.value)))
        return with_body(self.program, tuple(self.scopes.pop().out), tuple(outputs))

    def bind(self, name: str) -> None:
        self.level[name] = len(self.scopes) - 1
        self.position.setdefault(name, len(self.position))

    def bind_all(self, names: list[str]) -> None:
        """Bind names that are new."""
        self.level.update(dict.fromkeys(names, len(self.scopes) - 1))
        self.position.update(zip(names, range(len(self.position), len(self.position) + len(names)), strict=True))

    # Definitions

    def fill(self, graph: Graph) -> None:
        """Rebuild the definitions of a graph in the current scope. Remembered maps only find their places."""
        remembered, now, out = self.memory.maps, self.now, self.scopes[-1].out
        done = 0
        others = [at for at, node in enumerate(graph) if type(node) is not Map or id(node) not in remembered]
        for at in (*others, len(graph)):
            settled = graph[done:at]
            if now and not all(map(now.keys().isdisjoint, map(USES, settled))):
                for node in settled:
                    self.refit(node)
            elif settled:
                self.bind_all([*chain.from_iterable(map(DEFINES, settled))])
                out.extend(settled)
            if at < len(graph):
                self.refit(graph[at])
            done = at + 1

    def refit(self, definition: Definition) -> None:
        """Rebuild a definition, as far as that is needed."""
        if isinstance(definition, Apply):
            self.refill(definition)
            return
        moved: Definition | None = definition
        if id(definition) not in self.memory.maps or not definition.uses.isdisjoint(self.now):
            moved = self.rebuilt(definition)
        if moved is not None:
            for name in moved.defines:
                self.bind(name)
            self.scopes[-1].out.append(moved)

    def resume(self, body: Graph) -> int:
        """Take over the beginning of a body that is remembered, in the current scope: how many definitions that is."""
        found = self.memory.bodies.get(id(body[0])) if body else None
        if found is None or len(found.graph) > len(body) or not all(map(operator.is_, found.graph, body)):
            return 0
        places = [self.position.get(name, -1) for name, _, _ in found.outside]
        same = found.mapped == tuple(self.mapped) and places == sorted(places) and -1 not in places[:1]
        if not same or any(
            name in self.now or self.level[name] != level or self.applies.get(name) is not apply
            for name, level, apply in found.outside
        ):
            return 0
        if not all(scope.known.keys().isdisjoint(found.known) for scope in self.scopes[:-1]):
            return 0
        scope = self.scopes[-1]
        scope.known.update(found.known)
        scope.out.extend(found.graph)
        self.applies.update((node.name, node) for node in found.graph if isinstance(node, Apply))
        self.bind_all([*chain.from_iterable(map(DEFINES, found.graph))])
        self.grown[id(body[0])] = len(found.graph)
        return len(found.graph)

    def remember(self, node: Map, scope: _Scope) -> None:
        """Note that a map is in normal form here, if it is long enough for that to help."""
        if len(node.body) >= LONG:
            outside = sorted(node.captures.union(port.name for port in node.ports), key=self.position.__getitem__)
            context = tuple((name, self.level[name], self.applies.get(name)) for name in outside)
            self.bodies[id(node.body[0])] = Body(node.body, scope.known, tuple(self.mapped), context)

    def refill(self, apply: Apply) -> None:
        """Rebuild an operator; one that is in normal form, of operands that have not changed, only finds its place."""
        settled = apply.uses.isdisjoint(self.now) and self.memory.settled(apply, self.applies)
        if settled and apply.args == self.in_order(apply.op, apply.args):
            key = (apply.op, apply.args, apply.dims, apply.dtype)
            result: Operand = self.known(key) or self.place(apply, key)
        else:
            args = tuple(self.through(arg) for arg in apply.args)
            result = self.build(apply.op, args, apply.dims, apply.dtype, apply)
        if result != apply.name:
            self.now[apply.name] = result

    def rebuilt(self, definition: Map | Reduce | Rename) -> Definition | None:
        """A definition that is no operator in normal form; None for a reduce that stands there already."""
        moved = definition if definition.uses.isdisjoint(self.now) else self.materialised(definition)
        if isinstance(moved, Map) and id(moved) not in self.memory.maps:
            return self.map(moved)
        return None if isinstance(moved, Reduce) and self.merge_reduce(moved) else moved

    def materialised(self, definition: Map | Reduce | Rename) -> Definition:
        """The definition with replaced names; a leaf that is stacked in a map stays a definition."""
        mapping = {name: self.now[name] for name in definition.uses if name in self.now}
        if isinstance(definition, Map):
            for name in {value for output in definition.outputs for value in output.values} & mapping.keys():
                mapping[name] = self.name_for(mapping[name], name)
        return substitute(definition, mapping)

    def name_for(self, operand: Operand, stem: str) -> str:
        """A name for an operand, in the current scope."""
        if isinstance(operand, str):
            return operand
        key = ("broadcast", (operand,), (), self.types[stem].dtype)
        return self.place(Apply(self.fresh(stem), "broadcast", (operand,), (), self.types[stem].dtype), key)

    def merge_reduce(self, node: Reduce) -> bool:
        key = ("reduce", node.sources, (node.dim,), node.monoid)
        first = self.scopes[-1].known.setdefault(key, node.names[0])
        if first == node.names[0]:
            return False
        other = next(d for d in self.scopes[-1].out if isinstance(d, Reduce) and d.names[0] == first)
        self.now.update(zip(node.names, other.names, strict=True))
        return True

    def map(self, node: Map) -> Map:
        ports: dict[str, Port] = {}
        self.scopes.append(_Scope())
        self.mapped.append(node.dim)
        for port in node.ports:
            first = ports.setdefault(port.source, port)
            if first is not port:
                self.now[port.name] = first.name
            self.bind(port.name)
        self.fill(node.body[self.resume(node.body) :])
        outputs = self.outputs(node)
        body = tuple(self.scopes[-1].out)
        same = len(body) == len(node.body) and all(map(operator.is_, body, node.body))
        if same and len(ports) == len(node.ports):
            self.remember(node, self.scopes[-1])
        self.scopes.pop()
        self.mapped.pop()
        if same and len(ports) == len(node.ports) and outputs == node.outputs:
            return node
        return Map(node.dim, tuple(ports.values()), body, outputs, node.span)

    def outputs(self, node: Map) -> tuple[Output, ...]:
        """The outputs with their values replaced; of equal ones the first stays and stands for the others."""
        result: dict[tuple[object, ...], Output] = {}
        for output in node.outputs:
            values = tuple(self.name_for(self.now.get(value, value), value) for value in output.values)
            first = result.setdefault((values, output.monoid), Output(output.names, values, output.monoid))
            if first.names != output.names:
                self.now.update(zip(output.names, first.names, strict=True))
        return tuple(result.values())

    # Operators

    def through(self, operand: Operand) -> Operand:
        """What stands for an operand now, seen through casts between floating types: their meaning is the identity."""
        while isinstance(operand, str):
            if operand in self.now:
                operand = self.now[operand]
                continue
            apply = self.applies.get(operand)
            if apply is None or apply.op != "cast" or not isinstance(apply.args[0], str):
                return operand
            if not (is_float(apply.dtype) and is_float(self.types[apply.args[0]].dtype)):
                return operand
            operand = apply.args[0]
        return folded(operand)

    def make(self, op: str, *args: Operand) -> Operand:
        """The normal form of an elementwise operator."""
        return self.build(op, args, (), result_dtype(op, tuple(self.dtype(arg) for arg in args)), None)

    def dtype(self, operand: Operand) -> str:
        """The type of an operand; numbers are i32, f32 or bool, and give way to f64."""
        match operand:
            case str():
                return self.types[operand].dtype
            case Constant(value):
                return "bool" if isinstance(value, bool) else "i32" if isinstance(value, int) else "f32"
            case Expression(op, args):
                return result_dtype(op, tuple(self.dtype(arg) for arg in args))
            case _:
                return "i32"

    def build(
        self, op: str, args: tuple[Operand, ...], dims: tuple[str, ...], dtype: str, old: Apply | None
    ) -> Operand:
        """The normal form of an operator: a leaf, the name of a value that exists, or that of a new definition."""
        simpler = self.simplify(op, args, dims, dtype)
        if simpler is not None:
            return simpler
        args = self.in_order(op, args)
        key = (op, args, dims, dtype)
        first = self.known(key)
        if first is not None:
            return first
        if old is not None:
            same = (old.op, old.args, old.dims, old.dtype) == key
            return self.place(old if same else Apply(old.name, op, args, dims, dtype, old.span), key)
        stem = next((arg for arg in args if isinstance(arg, str)), "c")
        return self.place(Apply(self.fresh(stem), op, args, dims, dtype), key)

    def known(self, key: tuple[object, ...]) -> str | None:
        """The operator in this graph or one around it that is the same."""
        for scope in reversed(self.scopes):
            if (name := scope.known.get(key)) is not None:
                return name
        return None

    def in_order(self, op: str, args: tuple[Operand, ...]) -> tuple[Operand, ...]:
        """The operands in canonical order, if the operator does not care."""
        return tuple(sorted(args, key=self.sort_key)) if op in FLATTENED or op == "contract" else args

    def sort_key(self, operand: Operand) -> tuple[int, int, str]:
        return (0, self.position[operand], "") if isinstance(operand, str) else (1, 0, self.leaf_key(operand))

    def leaf_key(self, operand: Operand) -> str:
        """A text by which numbers are ordered: without names, which must not matter."""
        match operand:
            case Size(dim):
                return f"size {self.program.rank[dim]:06d}"
            case Expression(op, args):
                return f"{op}({','.join(self.leaf_key(arg) for arg in args)})"
            case _:
                return repr(operand)

    def place(self, apply: Apply, key: tuple[object, ...]) -> str:
        """Define the operator in the outermost graph where its operands are known, but not in the top graph."""
        levels = [min(1, len(self.scopes) - 1), *[self.level[name] for name in apply.uses]]
        if apply.op in ("index", "broadcast"):
            levels += [self.mapped.index(dim) + 1 for dim in apply.dims if dim in self.mapped]
        level = max(levels)
        scope = self.scopes[level]
        scope.out.append(apply)
        scope.known[key] = apply.name
        self.applies[apply.name] = apply
        self.level[apply.name] = level
        self.position.setdefault(apply.name, len(self.position))
        if apply.name not in self.types:
            self.types[apply.name] = Type(apply.dtype, (), apply_axes(self.program, apply, self.types))
        return apply.name

    def definition(self, operand: Operand, op: str) -> Apply | None:
        """The definition of an operand, if it is this operator."""
        apply = self.applies.get(operand) if isinstance(operand, str) else None
        return apply if apply is not None and apply.op == op else None

    def flat(self, op: str, args: tuple[Operand, ...]) -> list[Operand]:
        """The operands with those taken apart that are the same operator in the same graph, and not too long."""
        result: list[Operand] = []
        current = len(self.scopes) - 1
        for arg in args:
            inner = self.definition(arg, op)
            if inner is not None and self.level[inner.name] == current and len(inner.args) < LONGEST:
                result.extend(inner.args)
            else:
                result.append(arg)
        return result

    def simplify(self, op: str, args: tuple[Operand, ...], dims: tuple[str, ...], dtype: str) -> Operand | None:
        """A simpler operand for the operator, or None if it is in normal form (up to the order of operands)."""
        if op in OPERATORS and not any(isinstance(arg, str) for arg in args):
            number = fold(op, tuple(map(as_leaf, args)))
            return number if depth(number) <= DEEPEST else None
        match op, args:
            case "add", _:
                return self.add(args)
            case "mul", _:
                return self.mul(args)
            case "sub", (x, y):
                return self.make("add", x, self.make("mul", MINUS_ONE, y))
            case "neg", (x,):
                return self.make("mul", MINUS_ONE, x)
            case "div", (x, y):
                return self.make("mul", x, self.make("recip", y))
            case "relu", (x,):
                return self.make("maximum", x, Constant(0))
            case "pow", (x, Constant(value)):
                return self.power(x, value)
            case "recip", (x,):
                return self.recip(x)
            case "exp", (x,):
                return self.exp(x)
            case "log", (x,):
                return self.log(x)
            case "sqrt" | "rsqrt", _:
                return None
            case "contract", _ if (factors := exponentials.contract(self, args)) is not None:
                return self.make("mul", self.build("sum", tuple(factors[:1]), dims, dtype, None), *factors[1:])
            case "where", (condition, yes, no):
                return exponentials.choose(self, condition, yes, no)
            case (("maximum" | "minimum" | "and" | "or"), _):
                flat = tuple(dict.fromkeys(self.flat(op, args)))
                if len(flat) == 1:
                    return flat[0]
                return None if flat == args else self.make(op, *flat)
            case "cast", (str() as name,) if self.types[name].dtype == dtype:
                return name
            case "broadcast", (str() as name,) if self.types[name].dtype == dtype:
                return name if set(dims) <= set(self.types[name].axes) else None
            case _:
                return None

    def axes(self, operands: list[Operand] | tuple[Operand, ...]) -> set[str]:
        return {axis for operand in operands if isinstance(operand, str) for axis in self.types[operand].axes}

    def keep_axes(self, result: Operand, before: tuple[Operand, ...]) -> Operand:
        """The result, broadcast to the axes that cancelled operands had."""
        lost = self.program.ordered(self.axes(before) - self.axes((result,)))
        if not lost:
            return result
        dtype = result_dtype("add", tuple(self.dtype(arg) for arg in before))
        return self.build("broadcast", (result,), lost, dtype, None)

    def coefficient(self, operand: Operand) -> tuple[float, tuple[Operand, ...]]:
        """A term as a number times other factors."""
        product = self.definition(operand, "mul")
        if product is None:
            return 1, (operand,)
        numbers = [arg.value for arg in product.args if isinstance(arg, Constant)]
        return math.prod(numbers), tuple(arg for arg in product.args if not isinstance(arg, Constant))

    def add(self, args: tuple[Operand, ...]) -> Operand | None:
        """A sum: constants added up, like terms together."""
        number: float = 0
        terms: dict[tuple[Operand, ...], tuple[float, Operand | None]] = {}
        for arg in self.flat("add", args):
            if isinstance(arg, Constant):
                number += arg.value
                continue
            count, factors = self.coefficient(arg)
            earlier = terms.get(factors)
            terms[factors] = (count, arg) if earlier is None else (earlier[0] + count, None)
        kept: list[Operand] = []
        for factors, (count, original) in terms.items():
            if original is not None:
                kept.append(original)
            elif count != 0:
                kept.append(self.make("mul", Constant(count), *factors))
        if number != 0 or not kept:
            kept.append(Constant(number))
        if len(kept) > 1 and sorted(map(repr, kept)) == sorted(map(repr, args)):
            return None
        result = kept[0] if len(kept) == 1 else self.make("add", *kept)
        return self.keep_axes(result, args)

    def mul(self, args: tuple[Operand, ...]) -> Operand | None:
        """A product: constants multiplied, inverse factors cancelled."""
        flat = self.flat("mul", args)
        numbers = number_product(arg for arg in flat if not isinstance(arg, str))
        factors: list[Operand] = []
        for arg in flat:
            if not isinstance(arg, str):
                continue
            if (inverse := self.inverse_among(arg, factors)) is not None:
                factors.remove(inverse)
            else:
                factors.append(arg)
        if isinstance(numbers, Expression) and numbers.op == "mul":
            factors.extend(numbers.args)
        elif numbers != ONE or not factors:
            factors.append(numbers)
        if (fewer := exponentials.multiply(self, factors)) is not None:
            return self.keep_axes(fewer[0] if len(fewer) == 1 else self.make("mul", *fewer), args)
        if len(factors) > 1 and sorted(map(repr, factors)) == sorted(map(repr, args)):
            return None
        result = factors[0] if len(factors) == 1 else self.make("mul", *factors)
        return self.keep_axes(result, args)

    def inverse_among(self, factor: Operand, others: list[Operand]) -> Operand | None:
        """An exponential among the others whose product with this one is 1.

        x * recip(x) stays for other x: a sum of exponentials is zero on a masked row, where the quotient is 0.
        """
        exponential = self.definition(factor, "exp")
        if exponential is None:
            return None
        count, terms = self.coefficient(exponential.args[0])
        for other in others:
            against = self.definition(other, "exp")
            if against is not None and self.coefficient(against.args[0]) == (-count, terms):
                return other
        return None

    def power(self, x: Operand, exponent: float) -> Operand | None:
        match exponent:
            case 1:
                return x
            case 2 | 3:
                return self.make("mul", *(x,) * int(exponent))
            case 0.5:
                return self.make("sqrt", x)
            case -0.5:
                return self.make("rsqrt", x)
            case -1 | -2:
                return self.make("recip", self.make("pow", x, Constant(-exponent)))
            case _:
                return None

    def recip(self, x: Operand) -> Operand | None:
        apply = self.applies.get(x) if isinstance(x, str) else None
        if apply is None:
            return None
        match apply.op, apply.args:
            case "mul", factors:
                return self.make("mul", *exponentials.inverse(self, factors))
            case "recip", (inner,):
                return inner
            case "sqrt", (inner,):
                return self.make("rsqrt", inner)
            case "rsqrt", (inner,):
                return self.make("sqrt", inner)
            case "exp", (inner,):
                return self.make("exp", self.make("mul", MINUS_ONE, inner))
            case "add", (str() as term, Constant(1)) if (exponential := self.definition(term, "exp")) is not None:
                return self.make("sigmoid", self.make("mul", MINUS_ONE, exponential.args[0]))
            case "add", terms if (positive := exponentials.negated(self, terms)) is not None:
                return self.make("mul", MINUS_ONE, self.make("recip", positive))
            case _:
                return None

    def exp(self, x: Operand) -> Operand | None:
        logarithm = self.definition(x, "log")
        if logarithm is not None:
            return logarithm.args[0]
        count, factors = self.coefficient(x)
        negated = self.definition(factors[0], "log") if count == -1 and len(factors) == 1 else None
        return self.make("recip", negated.args[0]) if negated is not None else None

    def log(self, x: Operand) -> Operand | None:
        exponential = self.definition(x, "exp")
        if exponential is not None:
            return exponential.args[0]
        inverse = self.definition(x, "recip")
        if inverse is not None:
            return self.make("mul", MINUS_ONE, self.make("log", inverse.args[0]))
        product = self.definition(x, "mul")
        factors = product.args if product is not None else ()
        apart = [factor for factor in factors if self.definition(factor, "exp")]  # others might be negative
        if not apart:
            return None
        rest = [factor for factor in factors if factor not in apart]
        terms = [self.make("log", factor) for factor in apart]
        if rest:
            terms.append(self.make("log", rest[0] if len(rest) == 1 else self.make("mul", *rest)))
        return terms[0] if len(terms) == 1 else self.make("add", *terms)
