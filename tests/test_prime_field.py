"""The prime field: the laws that it obeys, the identities that it rejects, and what it leaves undecided."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from blockc.ir.ops import OPERATORS
from blockc.ir.prime_field import FIELD, GENERATOR, MEANINGS, cast, elementwise, reduce
from blockc.ir.residues import NUMBER, P, Q, Verdict, compare, constant, encode, random_numbers

Array = NDArray[Any]
Sides = tuple[Array | float, Array | float]
SIZE = 60
INF = math.inf


def numbers(value: Array | float) -> Array:
    if isinstance(value, np.ndarray):
        return value
    return encode(np.asarray(value), "i32" if isinstance(value, int) else "f64")


def op(name: str) -> Callable[..., Array]:
    def apply(*operands: Array | float) -> Array:
        with np.errstate(all="ignore"):
            return elementwise(name, *map(numbers, operands))

    return apply


add, sub, mul, div, neg, recip = map(op, ("add", "sub", "mul", "div", "neg", "recip"))
exp, log, sqrt, rsqrt, power, sigmoid, tanh = map(op, ("exp", "log", "sqrt", "rsqrt", "pow", "sigmoid", "tanh"))
absolute, relu, maximum, minimum = map(op, ("abs", "relu", "maximum", "minimum"))
less, at_most, at_least, negation, where = map(op, ("lt", "le", "ge", "not", "where"))


def verdict(sides: Callable[..., Sides]) -> Verdict:
    """How the sides agree for random x, y and z."""
    generator = np.random.default_rng(7)
    left, right = sides(*(random_numbers((SIZE,), generator) for _ in "xyz"))
    return compare(*np.broadcast_arrays(numbers(left), numbers(right)))


LAWS: dict[str, Callable[..., Sides]] = {
    "sums commute": lambda x, y, z: (add(x, y), add(y, x)),
    "products distribute": lambda x, y, z: (mul(x, add(y, z)), add(mul(x, y), mul(x, z))),
    "difference": lambda x, y, z: (sub(x, y), add(x, mul(-1, y))),
    "quotient": lambda x, y, z: (div(x, y), mul(x, recip(y))),
    "reciprocal of a product": lambda x, y, z: (recip(mul(x, y)), mul(recip(x), recip(y))),
    "inverse": lambda x, y, z: (mul(x, recip(x)), 1),
    "exponential of a sum": lambda x, y, z: (exp(add(x, y)), mul(exp(x), exp(y))),
    "exponential of the opposite": lambda x, y, z: (exp(neg(x)), recip(exp(x))),
    "exponential of half": lambda x, y, z: (exp(mul(x, 0.5)), sqrt(exp(x))),
    "logarithm of an exponential": lambda x, y, z: (log(exp(x)), x),
    "exponential of a logarithm": lambda x, y, z: (exp(log(exp(x))), exp(x)),
    "logarithm of a product": lambda x, y, z: (log(mul(exp(x), y)), add(x, log(y))),
    "logarithm of a reciprocal": lambda x, y, z: (log(recip(x)), neg(log(x))),
    "powers by logarithms": lambda x, y, z: (exp(mul(3, log(exp(x)))), power(exp(x), 3.0)),
    "sigmoid": lambda x, y, z: (sigmoid(x), recip(add(1, exp(neg(x))))),
    "root of a product": lambda x, y, z: (mul(sqrt(x), sqrt(y)), sqrt(mul(x, y))),
    "square of a root": lambda x, y, z: (mul(sqrt(x), sqrt(x)), x),
    "root of a square": lambda x, y, z: (sqrt(mul(x, x)), absolute(x)),
    "reciprocal root": lambda x, y, z: (rsqrt(x), recip(sqrt(x))),
    "root of an exponential": lambda x, y, z: (sqrt(exp(mul(2, x))), exp(x)),
    "absolute value of the opposite": lambda x, y, z: (absolute(neg(x)), absolute(x)),
    "square": lambda x, y, z: (power(x, 2), mul(x, x)),
    "negative power": lambda x, y, z: (power(x, -1.5), recip(mul(x, sqrt(x)))),
    "relu": lambda x, y, z: (relu(x), maximum(x, 0)),
    "maxima associate and commute": lambda x, y, z: (maximum(x, maximum(y, z)), maximum(z, x, y)),
    "absorption": lambda x, y, z: (maximum(x, minimum(x, y)), x),
    "order is total": lambda x, y, z: (negation(less(x, y)), at_least(x, y)),
    "maximum by selection": lambda x, y, z: (where(at_most(x, y), y, x), maximum(x, y)),
    "exponential of minus infinity": lambda x, y, z: (exp(-INF), 0),
    "minus infinity absorbs": lambda x, y, z: (add(x, -INF), -INF),
    "minus infinity scaled": lambda x, y, z: (mul(0.25, exp(x), -INF), -INF),
    "minus infinity is least": lambda x, y, z: (maximum(-INF, x), x),
    "logarithm of zero": lambda x, y, z: (log(0), -INF),
    "zero divided by zero": lambda x, y, z: (div(0, 0), 0),
    "decimals": lambda x, y, z: (add(0.1, 0.2), 0.3),
    "a rounded third": lambda x, y, z: (mul(3, 1 / 3), 1),
    "functions are functions": lambda x, y, z: (tanh(add(x, y)), tanh(add(y, x))),
    "a function gives an exponent": lambda x, y, z: (exp(tanh(exp(x))), exp(tanh(recip(exp(neg(x)))))),
}
WRONG: dict[str, Callable[..., Sides]] = {
    "exponential of a sum": lambda x, y, z: (exp(add(x, y)), add(exp(x), exp(y))),
    "shift leaves a maximum": lambda x, y, z: (add(maximum(x, y), z), maximum(add(x, z), add(y, z))),
    "root of a sum": lambda x, y, z: (sqrt(add(x, y)), add(sqrt(x), sqrt(y))),
    "left out epsilon": lambda x, y, z: (mul(x, rsqrt(add(y, 1e-9))), mul(x, rsqrt(y))),
    "lost scale in an exponent": lambda x, y, z: (exp(mul(2, x)), exp(x)),
    "reciprocal of a sum": lambda x, y, z: (recip(add(x, y)), add(recip(x), recip(y))),
    "tanh is anything": lambda x, y, z: (tanh(x), x),
    "relu does something": lambda x, y, z: (relu(x), x),
    "order of operands": lambda x, y, z: (less(x, y), at_most(y, x)),
    "nearly a third": lambda x, y, z: (mul(x, 0.333333333), div(x, 3)),
    "sum of logarithms": lambda x, y, z: (log(mul(exp(x), exp(y))), mul(x, y)),
    "infinity is no number": lambda x, y, z: (exp(x), -INF),
}
UNDECIDED: dict[str, Callable[..., Sides]] = {
    "exponential of an exponential": lambda x, y, z: (exp(exp(x)), exp(exp(y))),
    "function of a logarithm": lambda x, y, z: (tanh(log(exp(x))), tanh(x)),
    "opposite infinities": lambda x, y, z: (add(-INF, INF), 0),
    "infinity times what may be negative": lambda x, y, z: (mul(x, -INF), -INF),
    "maximum of a logarithm": lambda x, y, z: (maximum(log(exp(x)), x), y),
    "rounded constant": lambda x, y, z: (mul(0.7071067811865476, 0.7071067811865476), 0.5),
}


@pytest.mark.parametrize("name", LAWS)
def test_law_holds(name: str) -> None:
    found = verdict(LAWS[name])
    assert found.equal > 0 and found.different == 0


@pytest.mark.parametrize("name", WRONG)
def test_wrong_identity_is_rejected(name: str) -> None:
    assert verdict(WRONG[name]).different > 0


@pytest.mark.parametrize("name", UNDECIDED)
def test_what_cannot_be_known_is_left_undecided(name: str) -> None:
    found = verdict(UNDECIDED[name])
    assert found.is_outside, found


def test_the_field_is_what_the_docstring_says() -> None:
    assert (P, Q) == (2147483579, 1073741789)
    assert pow(GENERATOR, Q, P) == 1 and pow(GENERATOR, 1, P) != 1  # Q is prime, so the order of 9 is Q
    for prime in (P, Q):
        assert all(prime % divisor for divisor in range(2, math.isqrt(prime) + 1))


def test_every_operator_has_a_meaning() -> None:
    assert MEANINGS.keys() == OPERATORS.keys()
    x = random_numbers((2, 3), np.random.default_rng(0))
    for name, operator in OPERATORS.items():
        with np.errstate(all="ignore"):
            result = elementwise(name, *[x] * (operator.arity or 3))
        assert result.dtype == NUMBER and result.shape == (2, 3), name


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne", "add", "sub", "mul", "maximum", "minimum"])
def test_integers_are_what_they_are(name: str) -> None:
    a, b = np.arange(-4, 5)[:, None], np.arange(-4, 5)[None, :]
    found = elementwise(name, encode(a, "i32"), encode(b, "i32"))
    expected = OPERATORS[name].meaning(a, b)
    assert compare(found, encode(expected, "bool" if expected.dtype == bool else "i32")).equal == 81


def test_truth_values_are_what_they_are() -> None:
    a, b = np.array([0, 0, 1, 1]) > 0, np.array([0, 1, 0, 1]) > 0
    for name in ("and", "or"):
        found = elementwise(name, encode(a, "bool"), encode(b, "bool"))
        assert compare(found, encode(OPERATORS[name].meaning(a, b), "bool")).equal == 4


def test_casts_of_integers() -> None:
    whole = np.array([-200, -1, 0, 1, 127, 128, 300])
    assert compare(cast(encode(whole, "i32"), "i8"), encode(whole.astype(np.int8), "i8")).equal == 7
    assert compare(cast(encode(whole, "i32"), "bool"), encode(whole != 0, "bool")).equal == 7
    x = random_numbers((SIZE,), np.random.default_rng(0))
    assert 8 < len(set(cast(x, "i32")["p"].tolist())) <= 16


def test_the_sign_of_a_constant() -> None:
    assert [constant(value)[3] for value in (-2.5, 0.0, 1e-6, -INF)] == [-1, 0, 1, -1]


@pytest.mark.parametrize("name", ["sum", "max", "min"])
def test_reductions_are_folds(name: str) -> None:
    x = random_numbers((3, 5, 4), np.random.default_rng(1))
    fold = {"sum": add, "max": maximum, "min": minimum}[name]
    assert compare(reduce(name, x, (1,)), fold(*(x[:, at] for at in range(5)))).equal == 12
    assert compare(reduce(name, x, (0, 2)), reduce(name, reduce(name, x, (2,)), (0,))).equal == 5
    identity = {"sum": 0, "max": -INF, "min": INF}[name]
    assert compare(reduce(name, x[:, :0], (1,)), np.broadcast_to(numbers(identity), (3, 4))).equal == 12
    masked = where(encode(np.arange(5)[:, None] < 2, "bool"), x, identity)
    assert compare(reduce(name, masked, (1,)), reduce(name, x[:, :2], (1,))).equal == 12


def test_infinities_in_sums() -> None:
    x = random_numbers((2, 3), np.random.default_rng(2))
    x[0, 1] = numbers(-INF)
    assert compare(reduce("sum", x, (1,))[:1], numbers(-INF).reshape(1)).equal == 1
    x[0, 2] = numbers(INF)
    assert compare(reduce("sum", x, (1,)), encode(np.zeros(2), "f64")) == Verdict(0, 1, 1)


def test_contractions_are_sums_of_products() -> None:
    a, b = (random_numbers(shape, np.random.default_rng(3)) for shape in ((2, 3), (3, 4)))
    with np.errstate(all="ignore"):
        found = FIELD.contract(a, [0, 1], b, [1, 2], [2, 0])
    for row in range(2):
        for column in range(4):
            total = add(*(mul(a[row, at], b[at, column]) for at in range(3)))
            assert compare(found[column, row].reshape(1), total.reshape(1)).equal == 1


def test_logarithms_of_many_numbers() -> None:
    x = random_numbers((700,), np.random.default_rng(5))
    assert compare(log(exp(x)), x).equal == 700
