"""What the numeric oracle tests: programs with sizes and tiles, and the special rows that random data does not find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockc.driver import default_sizes
from blockc.ir.array_program import ArrayProgram
from blockc.language import parse, program_names

Array = NDArray[Any]

EXAMPLES = Path(__file__).parent.parent / "examples"
TILES = {"b": 1, "h": 1, "kv": 1, "g": 1, "m": 64, "n": 8, "v": 16, "z": 16, "k": 16, "d": 8, "e": 8}


@dataclass(frozen=True)
class Subject:
    """A program with everything that decides what becomes of it. Sizes and tiles are in elements.

    `cuts`: for each way to compile it, the dimensions that may not be kept whole.
    """

    source: str
    program: str
    dtype: str | None
    sizes: tuple[tuple[str, int], ...]
    tiles: tuple[tuple[str, int], ...]
    cuts: tuple[str, ...] = ("", "n v z", "m n v z k d e")

    @property
    def array_program(self) -> ArrayProgram:
        """The checked program."""
        return checked(self.source, self.program, self.dtype)


@cache
def checked(source: str, name: str, dtype: str | None) -> ArrayProgram:
    """A program of a text, checked."""
    return parse(source, "<subject>", name, dtype)


def subject(
    source: str, sizes: Mapping[str, int], tiles: Mapping[str, int] = TILES, program: str = "", dtype: str | None = None
) -> Subject:
    """A subject with the sizes that are not given chosen as the compiler would."""
    name = program or program_names(source, "<subject>")[0]
    parsed = checked(source, name, dtype)
    known = {dim.name for dim in parsed.dims}
    free = {dim.name for dim in parsed.dims if dim.size is None}
    chosen = default_sizes(parsed, {dim: size for dim, size in sizes.items() if dim in free})
    cut = {dim: tile for dim, tile in tiles.items() if dim in known}
    return Subject(source, name, dtype, tuple(chosen.items()), tuple(cut.items()))


@cache
def examples(dtype: str) -> Mapping[str, Subject]:
    """Every example program at ragged sizes, with outputs of 1,000 elements or more."""
    small = {"b": 1, "h": 2, "kv": 2, "g": 2, "n": 27, "v": 17, "z": 45, "k": 40, "d": 24, "e": 16}
    found = {}
    for path in sorted(EXAMPLES.glob("*.blk")):
        text = path.read_text()
        for name in program_names(text, str(path)):
            program = checked(text, name, None)
            rows = 37 if any(dim.name in ("b", "kv") for dim in program.dims) else 67
            rows = 1009 if all(len(result.argument.dims) == 1 for result in program.outputs) else rows
            tiles = {**TILES, "m": 16, "n": 16, "e": 64}
            chosen = subject(text, {**small, "m": rows}, tiles, name, dtype)
            # Loops do not depend on types, so the other types take the extremes only, or one of them.
            cuts = {"f32": chosen.cuts, "f16": (chosen.cuts[0], chosen.cuts[-1])}.get(dtype, chosen.cuts[-1:])
            found[name] = replace(chosen, cuts=cuts)
    return found


# Programs over a row of numbers S, and others that the examples do not cover.
_ROW, _PAIR = "program p(S: f32[m, n]) -> ", "program p(S: f32[m, n], V: f32[n, e]) -> "
_WEIGHTED = "program p(S: f32[m, n], W: f32[m, n], V: f32[n, e]) -> O: f32[m, e] "
_MASKED = "program p(S: f32[m, n], M: bool[m, n], V: f32[n, e]) -> O: f32[m, e] "
SOFTMAX_LIKE = {
    "softmax": _ROW + "O: f32[m, n] { O = softmax[n](S) }",
    "softmax by hand": _ROW + "O: f32[m, n] { E = exp(S - max[n](S)); O = E / sum[n](E) }",
    "log-softmax": _ROW + "O: f32[m, n] { O = log_softmax[n](S) }",
    "exp of log-softmax": _ROW + "O: f32[m, n] { O = exp(log_softmax[n](S)) }",
    "log-sum-exp": _ROW + "O: f32[m] { O = logsumexp[n](S) }",
    "log-sum-exp by hand": _ROW + "O: f32[m] { M = max[n](S); O = M + log(sum[n](exp(S - M))) }",
    "log of the mean": _ROW + "O: f32[m] { O = log(mean[n](exp(S))) }",
    "largest probability": _ROW + "O: f32[m] { O = max[n](softmax[n](S)) }",
    "sum of squares": _ROW + "O: f32[m] { P = softmax[n](S); O = sum[n](P * P) }",
    "at least nothing": _ROW + "O: f32[m, n] { E = exp(S); O = E / max(sum[n](E), 0.0) }",
    "maximum subtracted, at least nothing": _ROW
    + "O: f32[m, n] { E = exp(S - max[n](S)); O = E / max(sum[n](E), 0.0) }",
    "numerator is an output": _ROW + "(E: f32[m, n], O: f32[m, n]) { E = exp(S - max[n](S)); O = E / sum[n](E) }",
    "attention": _PAIR + "O: f32[m, e] { O = dot[n](softmax[n](S), V) }",
    "maximum subtracted": _PAIR + "O: f32[m, e] { E = exp(S - max[n](S)); O = dot[n](E / sum[n](E), V) }",
    "log-sum-exp subtracted": _PAIR + "O: f32[m, e] { O = dot[n](exp(S - logsumexp[n](S)), V) }",
    "divided after": _PAIR + "O: f32[m, e] { E = exp(S); O = dot[n](E, V) / sum[n](E) }",
    "scaled": _PAIR + "O: f32[m, e] { O = dot[n](softmax[n](S / sqrt(size(n))), V) }",
    "softcap": _PAIR + "O: f32[m, e] { O = dot[n](softmax[n](30 * tanh(S / 30)), V) }",
    "difference of two": _PAIR + "O: f32[m, e] { O = dot[n](softmax[n](S) - 0.5 * softmax[n](-S), V) }",
    "two outputs": _PAIR + "(O: f32[m, e], L: f32[m]) { L = logsumexp[n](S); O = dot[n](exp(S - L), V) }",
    "masked by where": _MASKED + "{ O = dot[n](softmax[n](where(M, S, -inf)), V) }",
    "masked after exp": _MASKED + "{ E = where(M, exp(S), 0); O = dot[n](E, V) / sum[n](E) }",
    "masked by multiplying": _MASKED + "{ E = exp(S) * f32(M); O = dot[n](E, V) / sum[n](E) }",
    "masked where not": _MASKED + "{ E = exp(S) * (1 - f32(M)); O = dot[n](E, V) / sum[n](E) }",
    "masked, mask contracted": _MASKED + "{ E = exp(S); K = f32(M); O = dot[n](E * K, V) / dot[n](E, K) }",
    "masked, product": _MASKED + "{ E = exp(S); O = sum[n](where(M, E * V, 0)) / sum[n](where(M, E, 0)) }",
    "masked values": _MASKED + "{ E = exp(S); O = sum[n](E * where(M, V, 0)) / sum[n](where(M, E, 0)) }",
    "masked, logarithm": _MASKED + "{ O = dot[n](softmax[n](log(where(M, exp(S), 0))), V) }",
    "masked again": _MASKED + "{ P = softmax[n](S) * f32(M); O = dot[n](P, V) / sum[n](P) }",
    "weighted": _WEIGHTED + "{ E = exp(S) * W * W; O = dot[n](E, V) / sum[n](E) }",
    "weighted, some nothing": _WEIGHTED + "{ E = exp(S) * relu(W); O = dot[n](E, V) / sum[n](E) }",
    "weights contracted": _WEIGHTED + "{ E = exp(S); K = relu(W); O = dot[n](E * K, V) / dot[n](E, K) }",
    "masked by adding": _MASKED + "{ O = dot[n](softmax[n](S + where(M, 0, -inf)), V) }",
    "causal": _PAIR + "O: f32[m, e] { O = dot[n](softmax[n](where(index(n) <= index(m), S, -inf)), V) }",
}
OTHERS = {
    "cross-entropy of two": "program p(S: f32[m, n], T: f32[m, n]) -> O: f32[m] "
    "{ O = -sum[n](softmax[n](T) * log_softmax[n](S)) }",
    "entropy by log-sum-exp": _ROW + "O: f32[m] { O = logsumexp[n](S) - sum[n](softmax[n](S) * S) }",
    "entropy": _ROW + "O: f32[m] { P = softmax[n](S); O = -sum[n](P * log(P)) }",
    "divergence": "program p(S: f32[m, n], T: f32[m, n]) -> O: f32[m] "
    "{ P = softmax[n](S); O = sum[n](P * (log(P) - log_softmax[n](T))) }",
    "divergence by quotient": "program p(S: f32[m, n], T: f32[m, n]) -> O: f32[m] "
    "{ P = softmax[n](S); O = sum[n](P * log(P / softmax[n](T))) }",
    "rmsnorm": "program p(X: f32[m, n], g: f32[n]) -> O: f32[m, n] { O = rmsnorm[n](X, g, 1e-6) }",
    "rmsnorm, product": "program p(X: f32[m, n], g: f32[n], W: f32[n, e]) -> O: f32[m, e] "
    "{ O = dot[n](rmsnorm[n](X, g, 1e-6), W) }",
    "swiglu": "program p(G: f32[m, n], U: f32[m, n]) -> O: f32[m, n] { O = swiglu(G, U) }",
    "swiglu, product": "program p(G: f32[m, n], U: f32[m, n], W: f32[n, e]) -> O: f32[m, e] "
    "{ O = dot[n](swiglu(G, U), W) }",
    "swish by hand": "program p(G: f32[m, n], U: f32[m, n], W: f32[n, e]) -> O: f32[m, e] "
    "{ O = dot[n](G / (1 + exp(-G)) * U, W) }",
    "swish by exponentials": "program p(G: f32[m, n], U: f32[m, n], W: f32[n, e]) -> O: f32[m, e] "
    "{ O = dot[n](U * G * exp(G) / (1 + exp(G)), W) }",
    "swish by half exponentials": "program p(G: f32[m, n], U: f32[m, n], W: f32[n, e]) -> O: f32[m, e] "
    "{ p = exp(G / 2); O = dot[n](G * (p / (p + exp(-G / 2))) * U, W) }",
    "swish negated": "program p(G: f32[m, n], U: f32[m, n], W: f32[n, e]) -> O: f32[m, e] "
    "{ O = dot[n](-G / (-1 - exp(-G)) * U, W) }",
    "tanh": "program p(G: f32[m, n], W: f32[n, e]) -> O: f32[m, e] { O = dot[n](tanh(G), W) }",
    "cosine attention": "program p(Q: f32[m, d], K: f32[n, d], V: f32[n, e]) -> O: f32[m, e] { "
    "q = Q * rsqrt(sum[d](Q * Q) + 1e-12); k = K * rsqrt(sum[d](K * K) + 1e-12)\n"
    "O = dot[n](softmax[n](10 * dot[d](q, k)), V) }",
    "sigmoid attention": "program p(Q: f32[m, d], K: f32[n, d], V: f32[n, e]) -> O: f32[m, e] "
    "{ O = dot[n](sigmoid(dot[d](Q, K) / sqrt(size(d))), V) }",
}
# Programs whose numbers must also hold where the mean of a row is large against its standard deviation.
CENTRED = {
    "variance": _ROW + "O: f32[m] { c = S - mean[n](S); O = mean[n](c * c) }",
    "layernorm": "program p(X: f32[m, n], g: f32[n], b: f32[n]) -> O: f32[m, n] { O = layernorm[n](X, g, b, 1e-6) }",
    "rmsnorm": OTHERS["rmsnorm"],
    "layernorm, product": "program p(X: f32[m, n], g: f32[n], b: f32[n], W: f32[n, e]) -> O: f32[m, e] "
    "{ O = dot[n](layernorm[n](X, g, b, 1e-6), W) }",
    "variance of squares": _ROW + "O: f32[m] { a = mean[n](S); O = mean[n](S * S) - a * a }",
}


def ordinary(programs: Mapping[str, str]) -> dict[str, Subject]:
    """Subjects at ragged sizes, with outputs of 1,000 elements or more."""
    return {name: ordinary_subject(text) for name, text in programs.items()}


@cache
def ordinary_subject(text: str) -> Subject:
    """One of them."""
    row = "O: f32[m] " in text
    return subject(text, {"m": 1009, "n": 9, "d": 4} if row else {"m": 67, "n": 19, "e": 16, "d": 24})


# Special rows

LENGTH = 37  # in tiles of 8: four whole ones and a short one
INF, NAN, LARGEST = np.inf, np.nan, float(np.finfo(np.float32).max)


def _with(row: Array, **at: float) -> Array:
    """The row with numbers at places: `_with(row, at3=NAN)`."""
    changed = row.copy()
    for place, number in at.items():
        changed[int(place.removeprefix("at"))] = number
    return changed


def _everywhere(row: Array, number: float) -> list[Array]:
    """The row with the number in turn at the ends of tiles, inside one, and in the last, short one."""
    return [_with(row, **{f"at{place}": number}) for place in (0, 7, 8, 20, LENGTH - 1)]


_BASE = np.random.default_rng(0).standard_normal(LENGTH)
_EMPTY = np.full(LENGTH, -INF)
# Each a few rows: where the special number stands matters, since a row is read in tiles.
ROWS = {
    "all -inf": [_EMPTY],
    "all -1e30": [np.full(LENGTH, -1e30)],
    "all NaN": [np.full(LENGTH, NAN)],
    "NaN among -inf": _everywhere(_EMPTY, NAN),
    "one NaN": _everywhere(_BASE, NAN),
    "one +inf": _everywhere(_BASE, INF),
    "both infs": [row for at in (3, 8, 36) for row in _everywhere(_with(_BASE, **{f"at{at}": -INF}), INF)],
    "all +inf": [np.full(LENGTH, INF)],
    "zeros": [np.zeros(LENGTH), -np.zeros(LENGTH)],
    "denormals": [_BASE * 1e-40, np.full(LENGTH, 1e-45)],
    "the largest finite": [np.full(LENGTH, LARGEST), *_everywhere(_BASE, LARGEST), -_with(_BASE, at20=LARGEST)],
    "one finite, rest -inf": _everywhere(_EMPTY, 1.5),
}
# Here already the reference, in float64, cannot tell a number from itself plus the logarithm of a count.
COARSE = ("all -1e30", "the largest finite")
# Twice an exponent is beyond f32, and the sums of squares of blocks are kept with twice their exponent.
BEYOND = {("sum of squares", "the largest finite")}
