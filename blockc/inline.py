"""Syntax tree to array program: definitions inlined, every value with its dimensions and type.

A value that could not be made is `None`; whatever uses it is `None` as well, so that one mistake is reported once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from blockc import operators, syntax
from blockc.dimensions import Dimensions
from blockc.errors import Problem
from blockc.ir.array_program import Argument, ArrayProgram, Node, Result, Span
from blockc.ir.dtypes import DTYPES, is_float
from blockc.names import (
    ABOUT_DIMENSION,
    BINARY,
    BUILTINS,
    FUNCTIONS,
    REDUCTIONS,
    UNARY,
    Definitions,
    Findings,
    listing,
    unknown_dtype,
)
from blockc.operators import Value

MAX_NODES = 10_000
MAX_RANK = 8
MAX_CALL_DEPTH = 64
# Definitions may call each other without making a node; this bounds the work that such calls can cause.
MAX_INLINED_STEPS = 100_000


class LimitReached(Exception):
    """A program that is too large; the problem says how."""

    def __init__(self, code: str, message: str, span: Span | None, hint: str) -> None:
        super().__init__(message)
        self.problem = Problem(code, message, span, hint)


@dataclass(frozen=True, slots=True)
class Library:
    """The definitions that a file can call: its own, which may hide the prelude's, and the prelude's."""

    own: Definitions
    prelude: Definitions

    def find(self, name: str, scope: Scope) -> tuple[syntax.Definition | None, bool]:
        """The definition that `name` means there, and whether it is the prelude's. The prelude never sees a user's."""
        if name in self.own and not scope.in_prelude:
            return self.own[name], False
        return self.prelude.get(name), True


@dataclass(frozen=True, slots=True)
class Scope:
    """What names mean within one body. In a program's own body `dims` is None: dimensions mean themselves."""

    values: dict[str, Value | None]
    dims: Mapping[str, str] | None = None
    in_prelude: bool = False
    depth: int = 0
    call: Span | None = None  # the call in the program's body that led here
    route: str = ""

    def dim(self, name: str) -> str:
        """The program's name for a dimension that is called `name` here."""
        return name if self.dims is None else self.dims[name]


@dataclass(frozen=True, slots=True)
class Draft:
    """A node before it has a name: operands are positions in the list of drafts, the shape is a set."""

    op: str
    args: tuple[int, ...]
    dims: tuple[str, ...]
    shape: frozenset[str]
    dtype: str
    value: float | int | bool | None
    span: Span


def array_program(
    program: syntax.Program, library: Library, findings: Findings, dtype: str | None, source: str, filename: str
) -> ArrayProgram | None:
    """The checked program, or None if `findings` has its problems. `dtype` replaces every float type."""
    inliner = _Inliner(library, findings, dtype)
    before = len(findings.problems)
    inputs = tuple(inliner.argument(declaration) for declaration in program.inputs)
    outputs = tuple(inliner.argument(declaration) for declaration in program.outputs)
    inliner.declare(program)
    scope = Scope({})
    for declaration, argument in zip(program.inputs, inputs, strict=True):
        known = argument is not None and argument.name not in scope.values
        value = inliner.input(argument) if argument is not None and known else None
        scope.values.setdefault(declaration.name.text, value)
    for statement in program.body:
        inliner.statement(statement, scope)
    results = tuple(inliner.result(argument, scope) for argument in outputs)
    dims, problems = inliner.dimensions.resolve()
    if len(findings.problems) > before or findings.broken:
        # A statement that failed may be the one that would have determined a size.
        return None
    if problems:
        findings.problems.extend(problems)
        return None
    arguments = tuple(argument for argument in inputs if argument is not None)
    kept = tuple(result for result in results if result is not None)
    order = {dim.name: at for at, dim in enumerate(dims)}
    nodes = inliner.nodes(order)
    return ArrayProgram(program.name.text, dims, arguments, nodes, kept, source, filename)


@dataclass(slots=True)
class _Inliner:
    library: Library
    findings: Findings
    dtype: str | None
    dimensions: Dimensions = field(default_factory=Dimensions)
    drafts: list[Draft] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    steps: int = 0

    # Declarations

    def float_type(self, name: str) -> str:
        return self.dtype if self.dtype is not None and is_float(name) else name

    def argument(self, declaration: syntax.Declaration) -> Argument | None:
        declared = declaration.type
        if declared.dtype.text not in DTYPES:
            self.findings.add(*unknown_dtype(declared.dtype))
            return None
        if not self._distinct(declared):
            return None
        axes = tuple(tuple(dim.name.text for dim in axis) for axis in declared.axes)
        self._check_rank(len(declared.dims), declared.span)
        dtype = self.float_type(declared.dtype.text)
        return Argument(declaration.name.text, dtype, axes, declaration.name.span)

    def _distinct(self, declared: syntax.Type) -> bool:
        seen: set[str] = set()
        for dim in declared.dims:
            if dim.name.text in seen:
                hint = "every axis needs a name of its own; `X[m -> n]` renames"
                self.findings.add(
                    "E0122", f"dimension `{dim.name.text}` appears twice in this type", dim.name.span, hint
                )
                return False
            seen.add(dim.name.text)
        return True

    def declare(self, program: syntax.Program) -> None:
        """Collects the dimensions of the program's inputs and outputs and their fixed sizes."""
        for declaration in (*program.inputs, *program.outputs):
            self._declare_sizes(declaration.type, None)
        for declaration in program.inputs:
            for axis in declaration.type.axes:
                names = tuple(dim.name.text for dim in axis)
                self.dimensions.input_axes.append((names, declaration.type.span))

    def _declare_sizes(self, declared: syntax.Type, scope: Scope | None) -> None:
        for dim in declared.dims:
            name = dim.name.text if scope is None else scope.dim(dim.name.text)
            self.dimensions.add(name, dim.name.span if scope is None else scope.call or dim.name.span)
            if dim.size is not None:
                problem = self.dimensions.fix(name, dim.size, self._at(dim.name.span, scope))
                if problem is not None:
                    self.findings.problems.append(problem)

    def _at(self, span: Span, scope: Scope | None) -> Span:
        return scope.call if scope is not None and scope.call is not None else span

    def input(self, argument: Argument) -> Value:
        value = self.emit(operators.Made("input", (), (), frozenset(argument.dims), argument.dtype), argument.span)
        self.names[value.node] = argument.name
        return value

    def result(self, argument: Argument | None, scope: Scope) -> Result | None:
        value = scope.values.get(argument.name) if argument is not None else None
        if argument is None or value is None or value.node not in self.names:
            return None
        if problem := operators.output_problem(argument, value, self.in_order):
            self.findings.problems.append(problem)
        return Result(argument, self.names[value.node])

    # Statements

    def statement(self, statement: syntax.Statement, scope: Scope) -> None:
        """Evaluates one statement of the program's own body and names the nodes that it made."""
        if isinstance(statement, syntax.Return):
            return
        first = len(self.drafts)
        name = statement.name.text
        value = self.assigned(statement, scope)
        result = value.node if value is not None and value.node >= first else None
        parts = (node for node in range(first, len(self.drafts)) if node != result)
        self.names.update({node: f"{name}.{number}" for number, node in enumerate(parts, 1)})
        if result is not None:
            self.names[result] = name
        scope.values.setdefault(name, value)

    def assigned(self, statement: syntax.Assignment, scope: Scope) -> Value | None:
        """The value that a statement assigns, with its declared type if it has one."""
        first = len(self.drafts)
        value = self.evaluate(statement.value, scope)
        declared = statement.type
        if declared is None:
            return value
        if declared.dtype.text not in DTYPES or not self._distinct(declared):
            return None
        if value is None and scope.dims is not None:
            return None  # perhaps because the type names a dimension that the definition does not have
        self._declare_sizes(declared, scope)
        if value is None:
            return None
        dtype = self.float_type(declared.dtype.text)
        dims = frozenset(scope.dim(dim.name.text) for dim in declared.dims)
        problem = operators.declaration_problem(statement, value, dims, dtype, self.in_order)
        if problem is not None:
            self.report(problem, scope)
            return None
        if dtype == value.dtype:
            return value
        if value.node >= first and is_float(value.dtype) and self.drafts[value.node].op != "constant":
            # The type says how the operator's result is stored; an operator on its own would only hide that.
            self.drafts[value.node] = replace(self.drafts[value.node], dtype=dtype)
            return replace(value, dtype=dtype)
        return self.emit(
            operators.Made("cast", (value,), (), value.shape, dtype), self._at(statement.value.span, scope)
        )

    # Expressions

    def evaluate(self, root: syntax.Expression, scope: Scope) -> Value | None:
        """The value of an expression. A loop over its parts, so that long chains need no recursion."""
        values: list[Value | None] = []
        for expression in syntax.postorder(root):
            count = len(syntax.operands(expression))
            arguments = values[len(values) - count :]
            del values[len(values) - count :]
            self._count_step(scope)
            values.append(self.apply(expression, arguments, scope))
        return values[0]

    def _count_step(self, scope: Scope) -> None:
        if scope.call is not None:
            self.steps += 1
            if self.steps > MAX_INLINED_STEPS:
                self._too_many_nodes(scope.call)

    def apply(self, expression: syntax.Expression, arguments: list[Value | None], scope: Scope) -> Value | None:
        if not scope.in_prelude and expression.span in self.findings.broken:
            return None
        if isinstance(expression, syntax.Reference):
            return scope.values.get(expression.name)
        known = [argument for argument in arguments if argument is not None]
        if len(known) < len(arguments):
            return None
        match expression:
            case syntax.Literal():
                return self.make(operators.constant(expression), expression, scope)
            case syntax.Unary():
                return self.make(
                    operators.elementwise(UNARY[expression.operator.text], expression, known), expression, scope
                )
            case syntax.Binary():
                return self.make(
                    operators.elementwise(BINARY[expression.operator.text], expression, known), expression, scope
                )
            case syntax.Rename():
                return self.rename(expression, known[0], scope)
            case syntax.Call():
                return self.call(expression, known, scope)
            case _:
                assert_never(expression)

    def rename(self, expression: syntax.Rename, value: Value, scope: Scope) -> Value | None:
        for old, new in expression.pairs:
            names = scope.dim(old.text), scope.dim(new.text)
            made = operators.rename(value, names, old, new, self.in_order)
            renamed = self.make(made, expression, scope)
            if renamed is None:
                return None
            self.dimensions.add(names[1], self._at(new.span, scope))
            self.dimensions.renames.append(names)
            value = renamed
        return value

    def call(self, call: syntax.Call, arguments: list[Value], scope: Scope) -> Value | None:
        name = call.name.text
        definition, in_prelude = self.library.find(name, scope) if name not in BUILTINS else (None, False)
        if definition is not None:
            return self.inline(definition, call, arguments, replace(scope, in_prelude=in_prelude))
        dims = tuple(scope.dim(dim.text) for dim in call.dims)
        if not self._known_dims(call, dims, scope):
            return None
        if name in ABOUT_DIMENSION:
            shape = frozenset(dims) if name == "index" else frozenset[str]()
            return self.make(operators.Made(name, (), dims, shape, "i32"), call, scope)
        if name in DTYPES:
            return self.make(operators.cast(arguments[0], self.float_type(name)), call, scope)
        if name == "mean" and dims:
            return self.mean(call, arguments[0], dims, scope)
        if name in REDUCTIONS and dims:
            return self.make(operators.reduction(call, arguments, dims, self.in_order), call, scope)
        return self.make(operators.elementwise(FUNCTIONS[name][0], call, arguments), call, scope)

    def _known_dims(self, call: syntax.Call, dims: tuple[str, ...], scope: Scope) -> bool:
        unknown = [(name, dim) for name, dim in zip(call.dims, dims, strict=True) if dim not in self.dimensions.first]
        for name, dim in unknown:
            known = self.dimensions.first
            hint = self.findings.suggest(dim, known) or f"the dimensions are {listing(known)}"
            self.report(Problem("E0105", f"unknown dimension `{dim}`", name.span, hint), scope)
        return not unknown

    def mean(self, call: syntax.Call, value: Value, dims: tuple[str, ...], scope: Scope) -> Value | None:
        """The mean is no operator of its own: a sum divided by the sizes."""
        total = self.make(operators.reduction(call, [value], dims, self.in_order), call, scope)
        if total is None:
            return None
        count: Value | None = None
        for dim in dims:
            size = self.emit(operators.Made("size", (), (dim,), frozenset(), "i32"), self._at(call.span, scope))
            product = operators.Made("mul", (count, size), (), frozenset(), "i32") if count else None
            count = size if product is None else self.emit(product, self._at(call.span, scope))
        return self.make(operators.elementwise("div", call, [total, count] if count else [total]), call, scope)

    def inline(
        self, definition: syntax.Definition, call: syntax.Call, arguments: list[Value], scope: Scope
    ) -> Value | None:
        """The value of a definition's body, in a scope that holds nothing but its parameters and dimensions."""
        place = scope.call or call.span
        if scope.depth >= MAX_CALL_DEPTH:
            hint = "call fewer definitions from one another"
            raise LimitReached("E0192", f"definitions call each other more than {MAX_CALL_DEPTH} deep", place, hint)
        dims = dict(zip((dim.text for dim in definition.dims), (scope.dim(dim.text) for dim in call.dims), strict=True))
        repeated = [name for name in call.dims if list(dims.values()).count(scope.dim(name.text)) > 1]
        if repeated:
            message = f"dimension `{scope.dim(repeated[-1].text)}` is named twice"
            self.report(Problem("E0104", message, repeated[-1].span, "a definition's dimensions must differ"), scope)
            return None
        values: dict[str, Value | None] = dict(
            zip((name.text for name in definition.parameters), arguments, strict=True)
        )
        line = "" if scope.in_prelude else f" (line {definition.name.span.line})"
        route = scope.route or f"in `{definition.name.text}`{line}: "
        inner = Scope(values, dims, scope.in_prelude, scope.depth + 1, place, route)
        for statement in definition.body:
            if isinstance(statement, syntax.Return):
                return self.evaluate(statement.value, inner)
            inner.values.setdefault(statement.name.text, self.assigned(statement, inner))
        return None

    # Nodes

    def make(self, made: operators.Made | Problem, expression: syntax.Expression, scope: Scope) -> Value | None:
        """Emits what an operator function decided on, or reports its problem."""
        if not isinstance(made, Problem):
            made = operators.in_range(made, [self.drafts[operand.node].value for operand in made.args], expression)
        if isinstance(made, Problem):
            self.report(made, scope)
            return None
        return self.emit(made, self._at(expression.span, scope))

    def emit(self, made: operators.Made, span: Span | None) -> Value:
        place = span or Span(1, 1, 1, 2)
        if len(self.drafts) >= MAX_NODES:
            self._too_many_nodes(place)
        self._check_rank(len(made.shape), place)
        args = tuple(operand.node for operand in made.args)
        self.drafts.append(Draft(made.op, args, made.dims, made.shape, made.dtype, made.value, place))
        return Value(len(self.drafts) - 1, made.shape, made.dtype)

    def _too_many_nodes(self, span: Span) -> None:
        hint = "definitions count every time they are used"
        raise LimitReached("E0193", f"the program has more than {MAX_NODES:,} operators", span, hint)

    def _check_rank(self, rank: int, span: Span) -> None:
        if rank > MAX_RANK:
            message = f"a value may have at most {MAX_RANK} dimensions, and this one has {rank}"
            raise LimitReached("E0195", message, span, "reduce or pack some of them first")

    def report(self, problem: Problem, scope: Scope) -> None:
        """Records a problem; one inside a definition is shown at the call in the program that led there."""
        if scope.call is not None:
            problem = Problem(problem.code, scope.route + problem.message, scope.call, problem.hint)
        self.findings.problems.append(problem)

    def in_order(self, shape: frozenset[str]) -> tuple[str, ...]:
        """Dimensions in the order of their first appearance."""
        return tuple(name for name in self.dimensions.first if name in shape)

    def nodes(self, order: Mapping[str, int]) -> tuple[Node, ...]:
        """The finished nodes: names for positions, ordered shapes."""
        return tuple(
            Node(
                self.names[at],
                draft.op,
                tuple(self.names[operand] for operand in draft.args),
                draft.dims,
                tuple(sorted(draft.shape, key=order.__getitem__)),
                draft.dtype,
                draft.value,
                draft.span,
            )
            for at, draft in enumerate(self.drafts)
        )
