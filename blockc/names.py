"""What the names of a file mean: the operators of the language, and every mistake that shows without knowing a type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import assert_never

from blockc import syntax
from blockc.errors import Problem
from blockc.ir.array_program import Span
from blockc.ir.dtypes import DTYPES
from blockc.recursion import cycles
from blockc.syntax import Identifier

_UNARY_FUNCTIONS = (
    "exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "relu", "gelu", "erf", "abs", "sin", "cos", "floor",
)  # fmt: skip
# Elementwise operators that are written as a call: their name in `ops.py`, the fewest and the most operands.
FUNCTIONS: dict[str, tuple[str, int, int | None]] = {
    **{name: (name, 1, 1) for name in _UNARY_FUNCTIONS},
    "where": ("where", 3, 3),
    "min": ("minimum", 2, None),
    "max": ("maximum", 2, None),
}
BINARY = {"+": "add", "-": "sub", "*": "mul", "/": "div", "**": "pow", "and": "and", "or": "or"} | {
    "<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"
}  # fmt: skip
UNARY = {"-": "neg", "not": "not"}
REDUCTIONS = {"sum": 1, "mean": 1, "max": 1, "min": 1, "dot": 2}
ABOUT_DIMENSION = ("index", "size")
BUILTINS = frozenset((*FUNCTIONS, *REDUCTIONS, *ABOUT_DIMENSION, *DTYPES))

Definitions = Mapping[str, syntax.Definition]

# Suggestions compare a misspelt name with every candidate, so their number is bounded.
_MAX_CANDIDATES = 500
_MAX_SUGGESTIONS = 100
_MAX_LISTED = 12


@dataclass(slots=True)
class Findings:
    """The problems found so far, and the places that are already known to be wrong and are not to be reported again.

    `programs` holds the names of the file's programs, which nothing may call.
    """

    problems: list[Problem] = field(default_factory=list)
    broken: set[Span] = field(default_factory=set)
    programs: frozenset[str] = frozenset()

    def suggest(self, name: str, candidates: Iterable[str]) -> str:
        """A hint with the candidate that `name` probably meant; nothing once there are more problems than are shown,
        because comparing names takes far longer than everything else here."""
        return suggest(name, candidates) if len(self.problems) < _MAX_SUGGESTIONS else ""

    def add(self, code: str, message: str, span: Span, hint: str = "") -> None:
        """Records a problem; the expression at `span` has no value from now on."""
        self.problems.append(Problem(code, message, span, hint))
        self.broken.add(span)


def check(file: syntax.File, definitions: Definitions) -> Findings:
    """The mistakes in the names of a file. `definitions` holds its own definitions and the prelude's."""
    findings = Findings(programs=frozenset(program.name.text for program in file.programs))
    _check_items(file, findings)
    _check_recursion(file, findings)
    for definition in file.definitions:
        _check_definition(definition, definitions, findings)
    for program in file.programs:
        _check_program(program, definitions, findings)
    return findings


def suggest(name: str, candidates: Iterable[str]) -> str:
    """A hint with the candidate that `name` probably meant, or nothing."""
    known = sorted(set(candidates))
    for candidate in known:
        if candidate.lower() == name.lower() and candidate != name:
            return f"did you mean `{candidate}`?"
    close = difflib.get_close_matches(name, known, 1, 0.6) if len(known) <= _MAX_CANDIDATES else []
    return f"did you mean `{close[0]}`?" if close else ""


def listing(names: Iterable[str]) -> str:
    """Names for a message: `a`, `b` and `c`, or the first ones of very many."""
    quoted = [f"`{name}`" for name in names]
    if len(quoted) > _MAX_LISTED:
        quoted[_MAX_LISTED - 1 :] = [f"{len(quoted) - _MAX_LISTED + 1} others"]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}" if quoted else "nothing"


def _check_items(file: syntax.File, findings: Findings) -> None:
    _check_unique("program", (program.name for program in file.programs), findings)
    _check_unique("definition", (definition.name for definition in file.definitions), findings)
    for definition in file.definitions:
        if definition.name.text in BUILTINS:
            message = f"`{definition.name.text}` is an operator of the language and cannot be defined"
            findings.add("E0117", message, definition.name.span, "choose another name")


def _check_unique(what: str, names: Iterable[Identifier], findings: Findings, code: str = "E0117") -> None:
    first: dict[str, Span] = {}
    for name in names:
        if name.text in first:
            hint = f"the first one is in line {first[name.text].line}"
            findings.add(code, f"there are two {what}s called `{name.text}`", name.span, hint)
        first.setdefault(name.text, name.span)
        if name.text in syntax.LITERALS:
            findings.add(
                "E0123", f"`{name.text}` is a number and cannot name anything", name.span, "choose another name"
            )


def _calls(definition: syntax.Definition) -> list[syntax.Call]:
    expressions = (expression for statement in definition.body for expression in syntax.postorder(statement.value))
    return [expression for expression in expressions if isinstance(expression, syntax.Call)]


def _check_recursion(file: syntax.File, findings: Findings) -> None:
    calls = {definition.name.text: _calls(definition) for definition in file.definitions}
    for cycle in cycles({name: tuple(dict.fromkeys(call.name.text for call in made)) for name, made in calls.items()}):
        route = " -> ".join(cycle if len(cycle) <= 8 else (*cycle[:4], "...", *cycle[-3:]))
        closing = [call.span for call in calls[cycle[-2]] if call.name.text == cycle[-1]]
        hint = "definitions are inlined: none may recurse"
        findings.add("E0116", f"`{cycle[-1]}` calls itself: {route}", closing[0], hint)
        findings.broken.update(closing)


def _check_definition(definition: syntax.Definition, definitions: Definitions, findings: Findings) -> None:
    _check_unique("dimension", definition.dims, findings, "E0104")
    _check_unique("parameter", definition.parameters, findings, "E0104")
    dims = {dim.text for dim in definition.dims}
    body = _Body({name.text: name.span for name in definition.parameters}, dims, definitions, findings)
    body.check(definition.body)
    for statement in definition.body:
        for name, place in _dim_names(statement):
            if name.text not in dims:
                hint = (
                    findings.suggest(name.text, dims)
                    or f"dimensions come in brackets: `def {definition.name.text}[{name.text}](...)`"
                )
                findings.add("E0105", f"unknown dimension `{name.text}`", name.span, hint)
                findings.broken.add(place)
    for statement in definition.body[:-1]:
        if isinstance(statement, syntax.Return):
            findings.add(
                "E0120", "`return` must be the last statement", statement.keyword, "what follows is never used"
            )
    if not definition.body or not isinstance(definition.body[-1], syntax.Return):
        hint = "end it with `return` and an expression"
        findings.add("E0120", f"`{definition.name.text}` returns nothing", definition.name.span, hint)


def _check_program(program: syntax.Program, definitions: Definitions, findings: Findings) -> None:
    _check_unique("input", (declaration.name for declaration in program.inputs), findings, "E0104")
    _check_unique("output", (declaration.name for declaration in program.outputs), findings, "E0104")
    inputs = {declaration.name.text: declaration.name.span for declaration in program.inputs}
    dims = {dim.name.text for declaration in (*program.inputs, *program.outputs) for dim in declaration.type.dims}
    body = _Body(dict(inputs), dims, definitions, findings)
    body.check(program.body)
    returns = [statement for statement in program.body if isinstance(statement, syntax.Return)]
    for statement in returns:
        hint = f"assign it: `{program.outputs[0].name.text} = ...`" if program.outputs else ""
        findings.add("E0120", "a program has no `return`", statement.keyword, hint)
    for name, span in inputs.items():
        if name not in body.used and name not in syntax.LITERALS:
            findings.add("E0114", f"input `{name}` is never used", span, "remove it from the program's inputs")
    if not program.outputs:
        findings.add(
            "E0115", f"program `{program.name.text}` has no output", program.name.span, "such as `-> Y: f32[m, n]`"
        )
    for output in program.outputs:
        name, span = output.name.text, output.name.span
        if name in inputs:
            findings.add("E0104", f"`{name}` is an input and an output", span, "give the output a name of its own")
        elif name not in body.values and not returns:
            hint = findings.suggest(name, body.values.keys() - inputs.keys()) or f"add a statement `{name} = ...`"
            findings.add("E0115", f"output `{name}` is never assigned", span, hint)


@dataclass(slots=True)
class _Body:
    """The names of one body: what has been assigned so far and where, and what has been read."""

    values: dict[str, Span]
    dims: set[str]
    definitions: Definitions
    findings: Findings
    used: set[str] = field(default_factory=set)

    def check(self, body: tuple[syntax.Statement, ...]) -> None:
        later = {
            statement.name.text: statement.name.span for statement in body if isinstance(statement, syntax.Assignment)
        }
        for statement in body:
            expressions = list(syntax.postorder(statement.value))
            for call in expressions:
                if isinstance(call, syntax.Call):
                    self._call(call)
            for reference in expressions:
                if isinstance(reference, syntax.Reference) and reference.span not in self.findings.broken:
                    self._reference(reference, later)
            if isinstance(statement, syntax.Assignment):
                self._assign(statement)

    def _assign(self, statement: syntax.Assignment) -> None:
        name = statement.name
        if name.text in self.values:
            hint = f"it already has a value from line {self.values[name.text].line}; choose another name"
            self.findings.add("E0104", f"`{name.text}` is assigned twice", name.span, hint)
        elif name.text in syntax.LITERALS:
            self.findings.add(
                "E0123", f"`{name.text}` is a number and cannot be assigned", name.span, "choose another name"
            )
        self.values.setdefault(name.text, name.span)
        if statement.type is not None and statement.type.dtype.text not in DTYPES:
            self.findings.add(*unknown_dtype(statement.type.dtype))

    def _reference(self, reference: syntax.Reference, later: dict[str, Span]) -> None:
        name = reference.name
        self.used.add(name)
        if name in self.values:
            return
        if name in later:
            hint = f"it gets its value in line {later[name].line}"
            self.findings.add("E0103", f"`{name}` is used before it is assigned", reference.span, hint)
        elif name in BUILTINS or name in self.definitions:
            self.findings.add(
                "E0103",
                f"`{name}` is an operator, not a value",
                reference.span,
                f"give it values: {usage(name, self.definitions)}",
            )
        else:
            self.findings.add("E0103", f"unknown name `{name}`", reference.span, self._hint(name, later))

    def _hint(self, name: str, later: dict[str, Span]) -> str:
        if name in self.dims:
            return f"it is a dimension: `size({name})` is its extent, `index({name})` the position along it"
        if name.lower() == "infinity":
            return "did you mean `inf`?"
        few = "assign it first, or make it an input"
        if 0 < len(self.values) <= 6:
            few = f"the names here are {listing(self.values)}"
        return self.findings.suggest(name, chain(self.values, later, syntax.LITERALS)) or few

    def _call(self, call: syntax.Call) -> None:
        problem = call_problem(call, self.definitions, self.findings)
        if problem is None:
            return
        if call.name.text in self.values and call.name.text not in BUILTINS:
            name = call.name.text
            self.findings.problems.append(
                Problem("E0102", f"`{name}` is a value, not an operator", call.name.span, "`*` multiplies")
            )
        else:
            self.findings.problems.append(problem)
        self.findings.broken.add(call.span)
        if problem.code == "E0102":
            # `sizes(d)`: what an unknown operator takes is unknown too, perhaps the name of a dimension.
            dims = (argument for argument in call.arguments if isinstance(argument, syntax.Reference))
            self.findings.broken.update(
                dim.span for dim in dims if dim.name in self.dims and dim.name not in self.values
            )


def unknown_dtype(dtype: Identifier) -> tuple[str, str, Span, str]:
    """The problem of a type that does not exist, as arguments for `Findings.add`."""
    aliases = {"float": "f32", "float64": "f64", "float32": "f32", "float16": "f16", "half": "f16", "bfloat16": "bf16"}
    aliases |= {"double": "f64", "int": "i32", "int32": "i32", "int8": "i8", "f8": "f8e4m3", "boolean": "bool"}
    aliases |= {"fp16": "f16", "fp32": "f32", "fp64": "f64", "bfloat": "bf16", "long": "i32", "char": "i8"}
    alias = aliases.get(dtype.text.lower())
    hint = f"did you mean `{alias}`?" if alias else suggest(dtype.text, DTYPES) or f"the types are {listing(DTYPES)}"
    return "E0106", f"unknown type `{dtype.text}`", dtype.span, hint


def usage(name: str, definitions: Definitions) -> str:
    """How an operator is called, such as `softmax[x](a)`."""
    if name in definitions:
        definition = definitions[name]
        dims = f"[{', '.join(dim.text for dim in definition.dims)}]" if definition.dims else ""
        return f"`{name}{dims}({', '.join(parameter.text for parameter in definition.parameters)})`"
    if name in FUNCTIONS and name in REDUCTIONS:
        return f"`{name}(a, b)` of two values, or `{name}[n](x)` along a dimension"
    if name in REDUCTIONS:
        return f"`{name}[n]({'a, b' if REDUCTIONS[name] == 2 else 'x'})`"
    if name in ABOUT_DIMENSION:
        return f"`{name}(n)`"
    return "`where(condition, a, b)`" if name == "where" else f"`{name}(x)`"


def call_problem(call: syntax.Call, definitions: Definitions, findings: Findings) -> Problem | None:
    """What is wrong with a call as such: an unknown operator, wrong brackets, a wrong number of values."""
    name, dims, count = call.name.text, len(call.dims), len(call.arguments)
    if name in definitions and name not in BUILTINS:
        definition = definitions[name]
        if dims != len(definition.dims):
            return _wrong_brackets(call, len(definition.dims), definitions)
        return _arity_problem(call, len(definition.parameters), len(definition.parameters), definitions)
    if name in ABOUT_DIMENSION:
        return None if dims == 1 else _wrong_brackets(call, 1, definitions)
    if name in REDUCTIONS and (dims or name not in FUNCTIONS):
        return _reduction_problem(call, definitions)
    if name in REDUCTIONS and count == 1:
        return _wrong_brackets(call, 1, definitions)
    if name in FUNCTIONS or name in DTYPES:
        if dims:
            return _wrong_brackets(call, 0, definitions)
        _, low, high = FUNCTIONS.get(name, (name, 1, 1))
        return _arity_problem(call, low, high, definitions)
    return Problem("E0102", f"unknown operator `{name}`", call.name.span, _operator_hint(name, definitions, findings))


def _operator_hint(name: str, definitions: Definitions, findings: Findings) -> str:
    if name in findings.programs:
        return f"`{name}` is a program, and only what `def` defines can be called"
    known = {"matmul": "`dot[d](a, b)` multiplies along d", "einsum": "`dot[d](a, b)` multiplies along d"}
    known |= {"transpose": "dimensions have names: nothing needs transposing", "power": "write `a ** b`"}
    known |= {
        "maximum": "write `max(a, b)`",
        "minimum": "write `min(a, b)`",
        "select": "write `where(condition, a, b)`",
    }
    known |= {
        "var": "variance is `mean[n]((x - mean[n](x)) ** 2)`",
        "len": "write `size(n)`",
        "arange": "write `index(n)`",
        "pow": "write `a ** b`",
        "ln": "write `log(x)`",
        "argmax": "positions of extremes cannot be computed",
    }
    return (
        known.get(name) or findings.suggest(name, chain(BUILTINS, definitions)) or f"define it: `def {name}(x) = ...`"
    )


def _reduction_problem(call: syntax.Call, definitions: Definitions) -> Problem | None:
    if not call.dims:
        return _wrong_brackets(call, 1, definitions)
    repeated = [dim for at, dim in enumerate(call.dims) if dim.text in {other.text for other in call.dims[:at]}]
    if repeated:
        return Problem("E0104", f"dimension `{repeated[0].text}` is named twice", repeated[0].span, "name it once")
    count = REDUCTIONS[call.name.text]
    return _arity_problem(call, count, count, definitions)


def _arity_problem(call: syntax.Call, low: int, high: int | None, definitions: Definitions) -> Problem | None:
    count = len(call.arguments)
    if low <= count and (high is None or count <= high):
        return None
    wanted = f"{low} or more values" if high is None else "1 value" if low == 1 else f"{low} values"
    name = call.name.text
    return Problem("E0107", f"`{name}` takes {wanted}, not {count}", call.name.span, usage(name, definitions))


def _wrong_brackets(call: syntax.Call, wanted: int, definitions: Definitions) -> Problem:
    name = call.name.text
    hint = usage(name, definitions)
    if not wanted:
        return Problem("E0108", f"`{name}` takes no dimensions in brackets", call.dims[0].span, hint)
    if not call.dims:
        return Problem("E0108", f"`{name}` needs its dimensions in brackets", call.name.span, hint)
    count = "1 dimension" if wanted == 1 else f"{wanted} dimensions"
    return Problem("E0108", f"`{name}` takes {count} in brackets, not {len(call.dims)}", call.dims[0].span, hint)


def _dim_names(statement: syntax.Statement) -> Iterable[tuple[Identifier, Span]]:
    """The dimensions that a statement names, each with the expression that needs it."""
    if isinstance(statement, syntax.Assignment) and statement.type is not None:
        yield from ((dim.name, statement.value.span) for dim in statement.type.dims)
    for expression in syntax.postorder(statement.value):
        match expression:
            case syntax.Call():
                yield from ((dim, expression.span) for dim in expression.dims)
            case syntax.Rename():
                yield from ((name, expression.span) for pair in expression.pairs for name in pair)
            case syntax.Literal() | syntax.Reference() | syntax.Unary() | syntax.Binary():
                pass
            case _:
                assert_never(expression)
