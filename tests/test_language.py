"""What programs mean: the array programs that texts become, their dimensions and types, and the examples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blockc
from blockc.errors import BlockcError, LimitError, UsageError
from blockc.ir.array_program import ArrayProgram, Dim, Node, sizes, text
from blockc.ir.ops import OPERATORS
from blockc.language import parse, prelude, program_names

Array = Any  # a NumPy array: the tests compute with it freely

EXAMPLES = sorted(Path(__file__).parent.parent.glob("examples/*.blk"))
HEAD = "program f(X: f32[m, n], Z: f32[n], T: i32[m], B: bool[m], D: f64[m], H: f16[m, n]) -> Y: f32[m, n] { "
USE_ALL = "U = X + Z + T + where(B, 1, 0) + D + H; "


def checked(statements: str, head: str = HEAD + USE_ALL) -> ArrayProgram:
    return parse(f"{head}{statements} }}")


def node(program: ArrayProgram, name: str) -> Node:
    return next(node for node in program.nodes if node.name == name)


def body(program: ArrayProgram) -> list[str]:
    """The lines of the text form that are neither dimensions nor inputs nor outputs."""
    lines = [line.strip() for line in text(program).splitlines()[1:]]
    return [line for line in lines if not line.startswith(("dim ", "output ")) and not line.endswith("= input")]


def spelled(program: ArrayProgram, name: str) -> str:
    """A node's whole expression in prefix form: what the parser understood."""
    at = node(program, name)
    if at.op == "input":
        return at.name
    if at.op == "constant":
        return repr(at.value)
    marks = f"[{','.join(at.dims)}]" if at.dims else ""
    return f"{at.op}{marks}({' '.join(spelled(program, operand) for operand in at.args)})"


def test_attention_becomes_this_array_program() -> None:
    program = parse(Path(EXAMPLES[0].parent, "attention.blk").read_text(encoding="utf-8"))
    assert text(program) == (
        "array program attention\n"
        "  dim b\n  dim h\n  dim m\n  dim d\n  dim n\n  dim e\n"
        "  Q: f16[b, h, m, d] = input\n"
        "  K: f16[b, h, d, n] = input\n"
        "  V: f16[b, h, n, e] = input\n"
        "  S.1: f32[b, h, m, n] = contract[d](Q, K)\n"
        "  S.2: i32[] = size[d]()\n"
        "  S.3: f32[] = sqrt(S.2)\n"
        "  S: f32[b, h, m, n] = div(S.1, S.3)\n"
        "  P.1: f32[b, h, m, n] = exp(S)\n"
        "  P.2: f32[b, h, m, n] = exp(S)\n"
        "  P.3: f32[b, h, m] = sum[n](P.2)\n"
        "  P: f32[b, h, m, n] = div(P.1, P.3)\n"
        "  O: f32[b, h, m, e] = contract[n](P, V)\n"
        "  output O: f16[b, h, m, e] = O\n"
    )
    assert program.inputs[1].axes == (("b",), ("h",), ("n",), ("d",))


@pytest.mark.parametrize(
    ("expression", "meaning"),
    [
        ("a + b * c", "add(a mul(b c))"),
        ("a * b + c", "add(mul(a b) c)"),
        ("a - b - c", "sub(sub(a b) c)"),
        ("a / b / c", "div(div(a b) c)"),
        ("a - b + c", "add(sub(a b) c)"),
        ("a / b * c", "mul(div(a b) c)"),
        ("a - (b - c)", "sub(a sub(b c))"),
        ("a ** b ** c", "pow(a pow(b c))"),
        ("-a ** b", "neg(pow(a b))"),
        ("a ** -b", "pow(a neg(b))"),
        ("a * -b", "mul(a neg(b))"),
        ("-a * b", "mul(neg(a) b)"),
        ("--a", "neg(neg(a))"),
        ("-2 ** a", "neg(pow(2 a))"),
        ("(-2) ** a", "pow(-2 a)"),
        ("a * b ** c", "mul(a pow(b c))"),
        ("a+-1", "add(a -1)"),
        ("where(a + b < c * a, a, b)", "where(lt(add(a b) mul(c a)) a b)"),
        ("where(a < b and b < c or not c < a, a, b)", "where(or(and(lt(a b) lt(b c)) not(lt(c a))) a b)"),
        ("where(a < b or b < c and c < a, a, b)", "where(or(lt(a b) and(lt(b c) lt(c a))) a b)"),
        ("where(not a < b and b < c, a, b)", "where(and(not(lt(a b)) lt(b c)) a b)"),
        ("where(not not a == b, a, b)", "where(not(not(eq(a b))) a b)"),
        ("where(a <= b, a, where(a >= b, b, c))", "where(le(a b) a where(ge(a b) b c))"),
        ("where(a != b, c, a)", "where(ne(a b) c a)"),
        ("max(a, b, c) - min(a, b)", "sub(maximum(a b c) minimum(a b))"),
        ("sum[m](a)[]", None),
        ("(a + b)[m -> k] * sum[m](c)", "mul(rename[m,k](add(a b)) sum[m](c))"),
        ("exp(a)[m -> k]", "rename[m,k](exp(a))"),
        ("a[m -> k][k -> j]", "rename[k,j](rename[m,k](a))"),
        ("a[m -> k, k -> j]", "rename[k,j](rename[m,k](a))"),
        ("-a[m -> k]", "neg(rename[m,k](a))"),
        ("a[m -> k] ** b", "pow(rename[m,k](a) b)"),
    ],
)  # fmt: skip
def test_precedence_is_pythons(expression: str, meaning: str | None) -> None:
    source = f"program f(a: f32[m], b: f32[m], c: f32[m]) -> Y: f32[m, k, j] {{ U = a + b + c; Y = {expression} }}"
    source = source.replace("m, k, j", "m, k=3, j=3")
    if meaning is None:
        with pytest.raises(BlockcError):
            parse(source)
    else:
        assert spelled(parse(source), "Y") == meaning


@pytest.mark.parametrize(
    ("expression", "shape", "dtype"),
    [
        ("X + Z", "mn", "f32"),
        ("Z + T", "mn", "f32"),
        ("T + T", "m", "i32"),
        ("T / T", "m", "f32"),
        ("T ** 2", "m", "f32"),
        ("H + H", "mn", "f32"),
        ("H", "mn", "f16"),
        ("H + D", "mn", "f64"),
        ("exp(H)", "mn", "f32"),
        ("exp(T)", "m", "f32"),
        ("abs(T)", "m", "i32"),
        ("exp(D)", "m", "f64"),
        ("floor(D)", "m", "f64"),
        ("-T", "m", "i32"),
        ("relu(T)", "m", "i32"),
        ("X < Z", "mn", "bool"),
        ("B and not B", "m", "bool"),
        ("B * X", "mn", "f32"),
        ("where(B, X, 0)", "mn", "f32"),
        ("where(B, 1, 0)", "m", "i32"),
        ("where(B, B, true)", "m", "bool"),
        ("where(B, D, H)", "mn", "f64"),
        ("max(T, 0, 1)", "m", "i32"),
        ("min(X, Z)", "mn", "f32"),
        ("sum[n](X)", "m", "f32"),
        ("sum[m, n](X)", "", "f32"),
        ("sum[n](H)", "m", "f32"),
        ("sum[m](T)", "", "i32"),
        ("sum[m](B)", "", "i32"),
        ("sum[m](D)", "", "f64"),
        ("sum[n](T)", "m", "i32"),
        ("mean[n](H)", "m", "f32"),
        ("mean[m](T)", "", "f32"),
        ("mean[m, n](X)", "", "f32"),
        ("max[n](H)", "m", "f16"),
        ("min[m](T)", "", "i32"),
        ("dot[n](X, Z)", "m", "f32"),
        ("dot[n](X, T)", "m", "f32"),
        ("dot[m](T, T)", "", "i32"),
        ("dot[m](T, H)", "n", "f32"),
        ("dot[m, n](X, H)", "", "f32"),
        ("dot[m](D, H)", "n", "f64"),
        ("index(n)", "n", "i32"),
        ("size(n)", "", "i32"),
        ("index(n) <= index(m)", "mn", "bool"),
        ("f16(X)", "mn", "f16"),
        ("i32(X)", "mn", "i32"),
        ("bool(T)", "m", "bool"),
        ("f8e4m3(X)", "mn", "f8e4m3"),
        ("Z[n -> m]", "m", "f32"),
        ("1", "", "i32"),
        ("1.0", "", "f32"),
        ("1e3", "", "f32"),
        ("-inf", "", "f32"),
        ("true", "", "bool"),
        ("softmax[n](H)", "mn", "f32"),
        ("logsumexp[n](X)", "m", "f32"),
        ("layernorm[n](X, Z, 0, 1e-5)", "mn", "f32"),
    ],
)
def test_dimensions_and_types(expression: str, shape: str, dtype: str) -> None:
    program = checked(f"V = {expression}; Y = X * sum[m, n](f32(where(true, 1, 0)))")
    at = node(program, "V") if "V" in {node.name for node in program.nodes} else node(program, expression)
    assert ("".join(at.shape), at.dtype) == (shape, dtype)


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("7", 7), ("-7", -7), ("2.5", 2.5), (".5", 0.5), ("5.", 5.0), ("1e-3", 1e-3), ("2E+2", 200.0), ("- 3", -3),
        ("-2147483648", -(2**31)), ("2147483647", 2**31 - 1), ("inf", math.inf), ("-inf", -math.inf), ("true", True),
        ("false", False), ("-(2.0)", -2.0), ("0.1", 0.1),
    ],
)  # fmt: skip
def test_literals(literal: str, value: float) -> None:
    at = node(checked(f"V = {literal}; Y = X"), "V")
    assert at.op == "constant"
    assert (at.value, type(at.value)) == (value, type(value))


def test_nan_is_a_literal() -> None:
    value = node(checked("V = nan; Y = X"), "V").value
    assert isinstance(value, float)
    assert math.isnan(value)


def test_every_elementwise_operator_can_be_written() -> None:
    internal = {"recip", "finite"}
    calls = ["exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "relu", "gelu", "erf", "abs", "sin", "cos", "floor"]
    infix = [
        "X + 1",
        "X - 1",
        "X * 2",
        "X / 2",
        "X ** 2",
        "-X",
        "X < 1",
        "X <= 1",
        "X > 1",
        "X >= 1",
        "X == 1",
        "X != 1",
    ]
    rest = ["B and B", "B or B", "not B", "where(B, X, 0)", "min(X, 0)", "max(X, 0)"]
    expressions = [*(f"{name}(X)" for name in calls), *infix, *rest]
    program = checked(
        "; ".join(f"V{number} = {expression}" for number, expression in enumerate(expressions)) + "; Y = X"
    )
    assert {at.op for at in program.nodes} & OPERATORS.keys() == OPERATORS.keys() - internal


@pytest.mark.parametrize("name", ["recip", "finite", "minimum", "contract", "rename"])
def test_internal_operators_are_no_names_of_the_language(name: str) -> None:
    with pytest.raises(BlockcError, match=f"unknown operator `{name}`"):
        checked(f"Y = {name}(X)")


# Names of nodes, and statements


def test_parts_are_numbered_after_the_statement_that_needs_them() -> None:
    program = checked("S = exp(X + 1) * 2; Y = S", "program f(X: f32[m]) -> Y: f32[m] { ")
    assert body(program) == [
        "S.1: i32[] = constant(1)",
        "S.2: f32[m] = add(X, S.1)",
        "S.3: f32[m] = exp(S.2)",
        "S.4: i32[] = constant(2)",
        "S: f32[m] = mul(S.3, S.4)",
    ]
    assert program.outputs[0].node == "S"


def test_mean_is_a_sum_divided_by_the_sizes() -> None:
    program = checked("Y = mean[m, n](X)", "program f(X: f32[m, n]) -> Y: f32[] { ")
    assert body(program) == [
        "Y.1: f32[] = sum[m, n](X)",
        "Y.2: i32[] = size[m]()",
        "Y.3: i32[] = size[n]()",
        "Y.4: i32[] = mul(Y.2, Y.3)",
        "Y: f32[] = div(Y.1, Y.4)",
    ]


@pytest.mark.parametrize(
    ("statements", "lines"),
    [
        ("S: f16[m] = X + X; Y = S", ["S: f16[m] = add(X, X)"]),
        ("S: f32[m] = X; Y = S", []),
        ("S: f16[m] = X; Y = S", ["S: f16[m] = cast(X)"]),
        ("S: f16[] = 2.0; Y = X * S", ["S.1: f32[] = constant(2.0)", "S: f16[] = cast(S.1)", "Y: f32[m] = mul(X, S)"]),
        (
            "S: f32[m] = index(m); Y = X + S",
            ["S.1: i32[m] = index[m]()", "S: f32[m] = cast(S.1)", "Y: f32[m] = add(X, S)"],
        ),
        ("Y: f16[m] = exp(X)", ["Y: f16[m] = exp(X)"]),
    ],
)
def test_declared_types_of_statements(statements: str, lines: list[str]) -> None:
    assert body(checked(statements, "program f(X: f32[m]) -> Y: f32[m] { ")) == lines


def test_spans_point_at_the_source() -> None:
    program = parse("program f(X: f32[m]) -> Y: f32[m] {\n    S = softmax[m](X)\n    Y = S +\t1\n}\n")
    spans = {at.name: at.span for at in program.nodes}
    placed = {name: (span.line, span.column, span.end_column) for name, span in spans.items() if span is not None}
    assert placed == {
        "X": (1, 11, 12), "S": (2, 9, 22), "S.1": (2, 9, 22), "S.2": (2, 9, 22), "S.3": (2, 9, 22),
        "Y": (3, 9, 14), "Y.1": (3, 13, 14),
    }  # fmt: skip


@pytest.mark.parametrize(
    "source",
    [
        "program f(X: f32[m]) -> Y: f32[m] { S = X * (2 + 1); Y = S }",
        "program f(X: f32[m]) -> Y: f32[m] {\n  S = X * (2 + 1)\n  Y = S\n}",
        "program f(X: f32[m]) -> Y: f32[m] {\r\n\tS = X * (2 + 1)\r\n\tY = S\r\n}\r\n",
        "program f(X: f32[m]) -> Y: f32[m] {\r  S = X * (2 + 1)\r  Y = S\r}",
        "\ufeff# a\n\nprogram f(X: f32[m]) -> Y: f32[m] { # }\n\n; ;S = X * (2 + 1);; # S = 1\n\nY = S;\n\n}\n",
        "program f(\n  X: f32[\n m,\n ],\n)\n-> Y: f32[m]\n{\n S = X * (2\n +\n 1)\n Y = S }",
        "program f(X:f32[m])->Y:f32[m]{S=X*(2+1)\nY=S}",
        "program f(X: f32[m]) -> (Y: f32[m]) { S = X * (2 + 1)\nY = S }",
    ],
)
def test_layout_does_not_change_the_program(source: str) -> None:
    expected = [
        "S.1: i32[] = constant(2)",
        "S.2: i32[] = constant(1)",
        "S.3: i32[] = add(S.1, S.2)",
        "S: f32[m] = mul(X, S.3)",
    ]
    assert body(parse(source)) == expected


# Dimensions


def dims(source: str) -> tuple[Dim, ...]:
    return parse(source).dims


def test_dimensions_are_in_order_of_first_appearance() -> None:
    source = (
        "program f(X: f32[m, (h=2, d)], Z: f32[k]) -> Y: f32[e=3, m] { Y = sum[h, d, j](X * sum[k](Z) + X[m -> j]) }"
    )
    assert [dim.name for dim in dims(source)] == ["m", "h", "d", "k", "e", "j"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("program f(X: f32[m]) -> Y: f32[m, n] { Y = X * X[m -> n] }", [Dim("m"), Dim("n", None, "m")]),
        ("program f(X: f32[m=4]) -> Y: f32[m, n] { Y = X * X[m -> n] }", [Dim("m", 4), Dim("n", None, "m")]),
        ("program f(X: f32[m], Z: f32[n]) -> Y: f32[m, n] { Y = X * X[m -> n] * Z }", [Dim("m"), Dim("n")]),
        ("program f(X: f32[m]) -> Y: f32[m, n=4] { Y = X * X[m -> n] }", [Dim("m"), Dim("n", 4)]),
        (
            "program f(X: f32[n]) -> Y: f32[n, m] { Y = X * index(m) + index(m)[m -> n] }",
            [Dim("n"), Dim("m", None, "n")],
        ),
        ("program f(X: f32[m, d=64]) -> Y: f32[m] { Y = sum[d](X) }", [Dim("m"), Dim("d", 64)]),
        ("program f(X: f32[d=64], Z: f32[d]) -> Y: f32[d=64] { Y = X + Z }", [Dim("d", 64)]),
        ("program f(X: f32[(h=8, d)]) -> Y: f32[h, d] { Y = X }", [Dim("h", 8), Dim("d")]),
        ("program f(X: f32[(h, d)], Z: f32[d]) -> Y: f32[h] { Y = sum[d](X + Z) }", [Dim("h"), Dim("d")]),
        ("program f(X: f32[m]) -> Y: f32[m] { S: f32[m=4] = X; Y = S }", [Dim("m", 4)]),
        ("program f() -> Y: i32[n=5] { Y = index(n) }", [Dim("n", 5)]),
        ("program f(X: f32[m=0]) -> Y: f32[m] { Y = X }", [Dim("m", 0)]),
        (
            "def both[a, b](x) = x * x[a -> b]\nprogram f(X: f32[m]) -> Y: f32[m] { Y = sum[k](both[m, k](X)) }",
            [Dim("m"), Dim("k", None, "m")],
        ),
    ],
)
def test_sizes_of_dimensions(source: str, expected: list[Dim]) -> None:
    assert list(dims(source)) == expected


def test_a_chain_of_renames_determines_all_sizes() -> None:
    program = parse("program f(X: f32[a=7]) -> Y: f32[d] { Y = X[a -> b][b -> c][c -> d] }")
    assert sizes(program, {}) == {"a": 7, "b": 7, "c": 7, "d": 7}


def test_sizes_conflict_through_a_chain_of_renames() -> None:
    with pytest.raises(BlockcError, match="`b` of size 7 is renamed to `c` of size 8"):
        parse("program f(X: f32[a=7]) -> Y: f32[c=8] { Y = X[a -> b][b -> c] }")


def test_an_output_may_be_broadcast() -> None:
    program = parse("program f(X: f32[m], Z: f32[n]) -> (Y: f16[n, m], W: f32[m]) { Y = X; W = Y * sum[n](Z) }")
    assert [(result.argument.dims, result.node) for result in program.outputs] == [(("n", "m"), "X"), (("m",), "W")]


# Definitions


def test_definitions_are_hygienic() -> None:
    source = """
        def f(a) { S = a + 1; X = S * 2; return X }
        program p(X: f32[m], S: f32[m]) -> Y: f32[m] { Y = f(S) + X }
    """
    assert spelled(parse(source), "Y") == "add(mul(add(S 1) 2) X)"


def test_dimensions_of_definitions_are_the_callers() -> None:
    source = "def f[n, m](a) = sum[n](a) * size(m)\nprogram p(X: f32[m, n]) -> Y: f32[n] { Y = f[m, n](X) }"
    assert spelled(parse(source), "Y") == "mul(sum[m](X) size[n]())"


def test_arguments_are_evaluated_once() -> None:
    source = "def f(a) = a * a\nprogram p(X: f32[m]) -> Y: f32[m] { Y = f(exp(X)) }"
    assert body(parse(source)) == ["Y.1: f32[m] = exp(X)", "Y: f32[m] = mul(Y.1, Y.1)"]


def test_definitions_may_come_in_any_order_and_call_one_another() -> None:
    source = "program p(X: f32[m]) -> Y: f32[m] { Y = f(X) }\ndef f(a) = g(a) + 1\ndef g(a) = swish(a)\n"
    assert spelled(parse(source), "Y") == "add(mul(X sigmoid(X)) 1)"


def test_a_definition_of_the_file_replaces_the_preludes_only_for_the_file() -> None:
    source = "def swish(a) = tanh(a)\nprogram p(X: f32[m]) -> Y: f32[m] { Y = swish(X) + swiglu(X, X) }"
    assert spelled(parse(source), "Y") == "add(tanh(X) mul(mul(X sigmoid(X)) X))"


def test_a_definition_may_rename_to_a_dimension_that_its_caller_names_first() -> None:
    source = """
        def scores[d, m, n](x) = dot[d](x, x[m -> n])
        program p(X: f32[m, d]) -> Y: f32[m] { Y = max[k](scores[d, m, k](X)) }
    """
    assert spelled(parse(source), "Y") == "max[k](contract[d](X rename[m,k](X)))"


def test_sum_of_a_product_stays_as_it_was_written() -> None:
    assert spelled(checked("Y = X * sum[n](X * Z)"), "Y") == "mul(X sum[n](mul(X Z)))"


# Choosing a program, and its types


TWO = "program f(X: f16[m]) -> Y: f16[m] { Y = X }\nprogram g(X: f32[m]) -> Y: f32[m] { Y = f16(X) + i32(X) }\n"


def test_programs_are_chosen_by_name() -> None:
    assert program_names(TWO) == ("f", "g")
    assert parse(TWO, program="g").name == "g"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "several programs"),
        ({"program": "h"}, "no program `h`"),
        ({"program": "f", "dtype": "i32"}, "`i32`"),
        ({"program": "f", "dtype": "float"}, "`float`"),
    ],
)
def test_unfitting_options_are_usage_errors(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(TWO, **options)
    assert caught.value.exit_code == 2


def test_mistakes_of_the_file_come_before_mistakes_of_usage() -> None:
    with pytest.raises(BlockcError, match="E0102") as caught:
        parse(TWO + "program h(X: f32[m]) -> Y: f32[m] { Y = nothing(X) }")
    assert caught.value.exit_code == 1


def test_dtype_replaces_float_types_only() -> None:
    source = """
        program p(X: f16[m], T: i32[m], B: bool[m]) -> Y: bf16[m] {
            S: f8e4m3[m] = X + T
            Y = where(B, f16(S), i32(S))
        }
    """
    program = parse(source, dtype="f64")
    assert [argument.dtype for argument in program.inputs] == ["f64", "i32", "bool"]
    assert program.outputs[0].argument.dtype == "f64"
    assert [(at.name, at.dtype) for at in program.nodes[3:]] == [
        ("S", "f64"), ("Y.1", "f64"), ("Y.2", "i32"), ("Y", "f64"),
    ]  # fmt: skip


def test_a_program_keeps_its_source_and_file_name() -> None:
    program = parse("\ufeffprogram f(X: f32[m]) -> Y: f32[m] { Y = X }\r\n", "some.blk")
    assert (program.source, program.filename) == ("program f(X: f32[m]) -> Y: f32[m] { Y = X }\n", "some.blk")


# Examples and prelude


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_well_formed(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    for name in program_names(source, path.name):
        program = parse(source, path.name, program=name)
        names = [at.name for at in program.nodes]
        assert len(set(names)) == len(names)
        for position, at in enumerate(program.nodes):
            assert set(at.args) <= set(names[:position])
            order = [dim.name for dim in program.dims if dim.name in at.shape]
            assert list(at.shape) == order
        assert all(result.node in names for result in program.outputs)


def test_the_promised_examples_are_there() -> None:
    names = "attention cross_attention grouped_heads attention_lse linear_attention"
    names += " matmul_epilogue mlp rmsnorm_swiglu cross_entropy"
    names += " causal_attention sliding_window_attention softcap_attention sigmoid_attention differential_attention"
    names += " triangle_attention layernorm_matmul rmsnorm_qkv cosine_attention attention_entropy"
    assert {path.stem for path in EXAMPLES} >= set(names.split())


@pytest.mark.parametrize("name", sorted(prelude()))
def test_every_definition_of_the_prelude_can_be_called(name: str) -> None:
    definition = prelude()[name]
    bracketed = "[n]" if definition.dims else ""
    values = ", ".join(["X"] * len(definition.parameters))
    program = parse(f"program p(X: f32[m, n]) -> Y: f32[m, n] {{ Y = {name}{bracketed}({values}) }}")
    assert node(program, "Y").dtype == "f32"


def _mean(x: Array) -> Array:
    return x.mean(1, keepdims=True)


def _softmax(x: Array) -> Array:
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("softmax[n](X)", _softmax),
        ("log_softmax[n](X)", lambda x: np.log(_softmax(x))),
        ("logsumexp[n](X)", lambda x: np.broadcast_to(np.log(np.exp(x).sum(1, keepdims=True)), x.shape)),
        ("layernorm[n](X, 2, 3, 0.1)", lambda x: (x - _mean(x)) / np.sqrt(_mean((x - _mean(x)) ** 2) + 0.1) * 2 + 3),
        ("rmsnorm[n](X, 2, 0.1)", lambda x: x / np.sqrt(_mean(x**2) + 0.1) * 2),
        ("swish(X)", lambda x: x * _sigmoid(x)),
        ("silu(X)", lambda x: x * _sigmoid(x)),
        ("swish_beta(X, 2)", lambda x: x * _sigmoid(2 * x)),
        ("gelu_sigmoid(X)", lambda x: x * _sigmoid(1.702 * x)),
        ("gelu_tanh(X)", lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("glu(X, 2)", lambda x: _sigmoid(x) * 2),
        ("swiglu(X, 2)", lambda x: x * _sigmoid(x) * 2),
        ("geglu(X, 2) - 2 * gelu(X)", lambda x: 0 * x),
        ("reglu(X, 2)", lambda x: 2 * np.maximum(x, 0)),
        ("softplus(X)", lambda x: np.log1p(np.exp(x))),
        ("mish(X)", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    ],
)
def test_the_prelude_means_what_its_names_say(expression: str, expected: Callable[[Array], Array]) -> None:
    x = np.linspace(-3, 3, 12).reshape(3, 4)
    source = f"program p(X: f64[m, n]) -> Y: f64[m, n] {{ Y = {expression} }}"
    np.testing.assert_allclose(blockc.reference(source, X=x), expected(x), rtol=1e-9, atol=1e-12)


# Limits


def chain(links: int) -> str:
    return "program f(X: f32[m]) -> Y: f32[m] { Y = X" + " + X" * links + " }"


def nested(opening: str, closing: str, depth: int) -> str:
    return f"program f(X: f32[m]) -> Y: f32[m] {{ Y = {opening * depth}X{closing * depth} }}"


def calls(depth: int) -> str:
    definitions = [f"def g{number}(a) = g{number - 1}(a)" for number in range(1, depth)]
    return "\n".join(["def g0(a) = a", *definitions, f"program f(X: f32[m]) -> Y: f32[m] {{ Y = g{depth - 1}(X) }}"])


def rank(count: int) -> str:
    letters = ", ".join("abcdeghij"[:count])
    return f"program f(X: f32[{letters}]) -> Y: f32[{letters}] {{ Y = X }}"


def product_of_rank(count: int) -> str:
    letters = "abcdeghij"[:count]
    inputs = f"X: f32[{', '.join(letters[:4])}], Z: f32[{', '.join(letters[4:])}]"
    return f"program f({inputs}) -> Y: f32[] {{ Y = sum[{', '.join(letters)}](X * Z) }}"


def padded(size: int) -> str:
    program = "program f(X: f32[m]) -> Y: f32[m] { Y = X }#"
    return program + "\u00e9" * ((size - len(program)) // 2) + "." * ((size - len(program)) % 2)


LIMITS = {
    "nodes": (chain(9_999), chain(10_000), "more than 10,000 operators"),
    "parentheses": (nested("(", ")", 64), nested("(", ")", 65), "brackets nest more than 64"),
    "calls in calls": (nested("exp(", ")", 64), nested("exp(", ")", 65), "nest more than 64"),
    "signs": (nested("-", "", 64), nested("-", "", 65), "operators nest more than 64"),
    "powers": (nested("2 ** ", "", 64), nested("2 ** ", "", 65), "operators nest more than 64"),
    "definitions": (calls(64), calls(65), "definitions call each other more than 64"),
    "rank of an input": (rank(8), rank(9), "at most 8 dimensions"),
    "rank of a value": (product_of_rank(8), product_of_rank(9), "at most 8 dimensions"),
    "size": (
        f"program f(X: f32[m={2**40}]) -> Y: f32[m] {{ Y = X }}",
        f"program f(X: f32[m={2**40 + 1}]) -> Y: f32[m] {{ Y = X }}",
        "at most 2\\^40",
    ),
    "bytes": (padded(2**20), padded(2**20 + 1), "larger than 1 MiB"),
    "words": (
        "program f(X: f32[m]) -> Y: f32[m] { Y = X }" + " ;" * 249_978,
        "program f(X: f32[m]) -> Y: f32[m] { Y = X }" + " ;" * 249_979,
        "more than 250,000 words",
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_exactly_at_a_limit_a_program_is_accepted(limit: str) -> None:
    parse(LIMITS[limit][0])


@pytest.mark.parametrize("limit", LIMITS)
def test_one_over_a_limit_is_an_error_of_its_own(limit: str) -> None:
    with pytest.raises(LimitError, match=LIMITS[limit][2]) as caught:
        parse(LIMITS[limit][1], "big.blk")
    assert caught.value.exit_code == 3
    assert "big.blk:1:" in str(caught.value) or limit == "definitions"


@pytest.mark.parametrize("body", ["g{0}(a) + g{0}(a)", "g{0}(g{0}(a))"])
def test_definitions_that_double_hit_the_limit_quickly(body: str) -> None:
    definitions = [f"def g{number}(a) = {body.format(number - 1)}" for number in range(1, 60)]
    source = "\n".join(["def g0(a) = a", *definitions, "program f(X: f32[m]) -> Y: f32[m] { Y = g59(X) }"])
    with pytest.raises(LimitError, match="more than 10,000 operators"):
        parse(source)


def test_many_long_chains_need_no_recursion() -> None:
    operators = itertools.islice(itertools.cycle(["+", "-", "*", "/"]), 9_000)
    program = parse(
        "program f(X: f32[m]) -> Y: f32[m] { Y = X " + " ".join(f"{operator} X" for operator in operators) + " }"
    )
    assert len(program.nodes) == 9_001
