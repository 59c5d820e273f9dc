"""What fusion makes of the programs that it is for, and that neither spelling nor names decide it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import sympy
from oracle import NORMAL_RUN, derive, example, random_case, random_derivation
from rule_data import canonical
from spelling_table import derivation as derivation_of

from blockc.ir.block import Map, Program, Reduce, walk
from blockc.ir.decisions import Derivation
from blockc.ir.text import format_program
from blockc.language import parse
from blockc.passes.cost import buffered_lists, traffic, traffic_formula, work
from blockc.passes.fuse import Budget, fuse
from blockc.passes.lower import lower
from blockc.passes.measure import decreases
from blockc.passes.rules import RULES, SNAPSHOT_RULES

SNAPSHOT_STEPS = {rule.name for rule in SNAPSHOT_RULES}


def fused(source: str, whole: str, budget: Budget | None = None) -> Derivation:
    return fuse(lower(parse(source), frozenset(whole.split())), budget)


def internal_lists(program: Program) -> list[str]:
    return [name.split(".")[0] for name in buffered_lists(program)]


def launches(program: Program) -> int:
    return sum(isinstance(definition, Map | Reduce) for definition in program.body)


def summary(derivation: Derivation) -> list[tuple[int, int, str]]:
    """Of every snapshot the launches, the number of lists inside, and the traffic."""
    return [
        (launches(program), len(buffered_lists(program)), str(sympy.expand(traffic_formula(program))))
        for program in derivation.snapshots
    ]


# Structure: (example, whole dimensions, and for every snapshot: launches and the lists kept inside)
STRUCTURE = [
    ("attention", "d e", [(1, [])]),
    # The scores are kept; or a list of accumulators; or nothing, and the scores are repeated.
    ("attention", "d", [(1, ["P"]), (1, ["O"]), (1, [])]),
    ("cross_attention", "d e", [(1, [])]),
    ("grouped_heads", "d e", [(1, [])]),
    ("attention_lse", "d e", [(1, [])]),
    ("cross_entropy", "d", [(1, [])]),
    ("rmsnorm_swiglu", "d e", [(1, [])]),
    ("mlp", "d e", [(1, [])]),
    ("mlp", "", [(1, ["H"]), (1, ["Y"]), (1, [])]),
    # The statistic joins the projections last: their accumulators are a list too.
    # Without a list the rows are read again for every block of z. That comes last, though it is found first.
    ("rmsnorm_swiglu", "e", [(1, ["U", "G"]), (1, [])]),
    ("rmsnorm_swiglu", "", [(1, ["H"]), (1, ["Y"]), (1, ["U", "G", "Y"]), (1, [])]),
    ("matmul_epilogue", "", [(1, [])]),
]


@pytest.mark.parametrize(("name", "whole", "expected"), STRUCTURE)
def test_structure_of_snapshots(name: str, whole: str, expected: list[tuple[int, list[str]]]) -> None:
    derivation = fused(example(name), whole)
    assert [(launches(p), internal_lists(p)) for p in derivation.snapshots] == expected
    assert derivation.complete and derivation.stopped == ""


def work_of(program: Program) -> list[sympy.Expr]:
    """Operations and special functions at sizes and tiles that tell all products of sizes and block counts apart."""
    sizes = {dim.name: 2 ** (at + 3) for at, dim in enumerate(program.dims)}
    return list(work(program, sizes, {dim: size // 2 for dim, size in sizes.items()}))


@pytest.mark.parametrize(("name", "whole"), [("attention", "d"), ("mlp", ""), ("rmsnorm_swiglu", "")])
def test_extending_repeats_work_and_interchanging_does_not(name: str, whole: str) -> None:
    derivation = fused(example(name), whole)
    first, interchanged, *_, extended = (work_of(program) for program in derivation.snapshots)
    assert interchanged[0] <= first[0] < extended[0] and interchanged[1] <= first[1] <= extended[1]
    steps = [(step.snapshot, step.rule) for step in derivation.steps if step.rule in SNAPSHOT_STEPS]
    assert steps[0] == (1, "interchange_maps") and steps[-1] == (len(derivation.snapshots) - 1, "extend_map")


def test_a_list_that_interchanging_leaves_is_extended() -> None:
    source = spelt(ATTENTION, "P = softmax[n](dot[d](Q, K)); H = tanh(sum[n](V)); O = dot[n](P, tanh(V + H))")
    derivation = fused(source, "d")
    rules = [step.rule for step in derivation.steps if step.rule in SNAPSHOT_STEPS]
    assert rules[0] == "interchange_maps" and rules.count("extend_map") > 1 and derivation.complete
    assert internal_lists(derivation.snapshots[-1]) == []


def test_interchanging_does_not_go_back_and_forth() -> None:
    """Two softmaxes of one array along two dimensions, in which each could take the place of the other."""
    statements = "T = exp(X - logsumexp[b](X)); U = tanh(logsumexp[b](T)) * T + T; O = dot[m](softmax[m](X), U)"
    derivation = fused(spelt("program p(X: f32[h, m, b]) -> O: f32[h, b]", statements), "")
    assert derivation.complete and len(derivation.snapshots) <= 5
    for seed in (195, 726):
        assert len(random_derivation(seed).snapshots) <= 5


# What is interchanged, per example and whole dimensions, as text that the normal form leaves of it.
INTERCHANGED = """map m uses K.2, V.2 {
  Q.3: local f16(b, h, m, d) <- Q.2
  map n uses Q.3 {
    K.3: local f16(b, h, n, d) <- K.2
    V.5: slow f16[e](b, h, e, n) <- V.2
    S.7: local f32(b, h, m, n) = contract[d](Q.3, K.3)
    S.20: local f32(b, h, m, n) = mul(S.7, rsqrt(size(d)))
    P.6: local f32(b, h, m, n) = exp(S.20)
    P.14: local f32(b, h, m) = sum[n](P.6)
    map e uses P.6 {
      V.4: local f16(b, h, e, n) <- V.5
      O.16: local f32(b, h, m, e) = contract[n](P.6, V.4)
      => O.18: slow f32[e](b, h, m, e) = stack(O.16)
    }
    => P.12: local f32(b, h, m) = add(P.14)
    => O.19: slow f32[e](b, h, m, e) = add(O.18)
  }
"""


def test_interchanged_attention_goes_over_the_keys_once() -> None:
    text = format_program(fused(example("attention"), "d").snapshots[1])
    inner = "".join(f"{line.removeprefix('    ')}\n" for line in text.splitlines())
    assert INTERCHANGED in inner


# What is moved, as formulas in sizes and numbers of blocks (design, section 6), per snapshot and in elements for f32.
MOVED = [
    ("attention", "d e", ["2*(b*h*m*d + b*h*m*e + B_m*b*h*n*(d + e))"]),
    (
        "attention",
        "d",
        [
            # The scores are stored once and read in every block of e.
            "2*(b*h*m*d + b*h*m*e + B_m*b*h*n*(d + e)) + 4*b*h*m*n*(1 + B_e)",
            # Accumulators of f32 are stored in every block of n, loaded in all but the first, and read once more.
            "2*(b*h*m*d + b*h*m*e + B_m*b*h*n*(d + e)) + 4*b*h*m*e*(2*B_n - 1 + 1)",
            "2*(b*h*m*d + b*h*m*e + B_m*b*h*n*(B_e*d + e))",
        ],
    ),
    # The gain is a whole item of the only launch, loaded once. The table of the design leaves it out.
    ("rmsnorm_swiglu", "d e", ["2*(2*B_m*d*z + B_m*e*z + m*d + m*e + d)"]),
    ("cross_entropy", "d", ["2*m*d + 2*B_m*d*v + 4*m + 4*m"]),
    ("mlp", "d e", ["4*(m*d + B_m*d*z + B_m*z + B_m*z*e + e + m*e)"]),
]


@pytest.mark.parametrize(("name", "whole", "expected"), MOVED)
def test_traffic_of_snapshots(name: str, whole: str, expected: list[str]) -> None:
    derivation = fused(example(name), whole)
    for program, formula in zip(derivation.snapshots, expected, strict=True):
        symbols = {str(symbol): symbol for symbol in traffic_formula(program).free_symbols}
        assert sympy.expand(traffic_formula(program) - sympy.sympify(formula, locals=symbols)) == 0


def test_derivation_of_attention_names_the_rules_of_the_paper() -> None:
    derivation = fused(example("attention"), "d")
    numbers = {rule.name: rule.paper for rule in (*RULES, *SNAPSHOT_RULES)}
    assert {step.rule for step in derivation.steps} >= {
        "fuse_map_with_reduce",
        "fuse_consecutive_maps",
        "swap_scale_and_contraction",
        "distribute_reduction",
        "extend_map",
        "interchange_maps",
    }
    assert all(step.paper == numbers[step.rule] for step in derivation.steps)
    assert numbers["fuse_consecutive_maps"] == "1" and numbers["extend_map"] == "6"
    assert next(step.rule for step in derivation.steps if step.snapshot == 1) == "interchange_maps"
    assert next(step.rule for step in derivation.steps if step.snapshot == 2) == "extend_map"
    assert any(step.span is not None and step.span.line > 1 for step in derivation.steps)


ATTENTION = "program p(Q: f32[h, m, d], K: f32[h, n, d], V: f32[h, n, e]) -> O: f32[h, m, e]"
NORM = "program p(X: f32[m, d], W: f32[d, n], g: f32[d]) -> O: f32[m, n]"
FEED = "program p(X: f32[m, d], G: f32[d, z], U: f32[d, z], D: f32[z, e]) -> O: f32[m, e]"
SCORES = "S = dot[d](Q, K) / sqrt(size(d)); "

# Spellings of the same formula: the first is compared with all others, cut in several ways.
SPELLINGS = {
    "attention": (
        ATTENTION,
        ["d e", "d", ""],
        [
            SCORES + "P = softmax[n](S); O = dot[n](P, V)",
            "S = dot[d](K, Q) / sqrt(size(d)); P = softmax[n](S); O = dot[n](V, P)",
            "S = dot[d](Q, K) * (1 / sqrt(size(d))); P = softmax[n](S); O = dot[n](P, V)",
            "S = rsqrt(size(d)) * dot[d](Q, K); P = softmax[n](S); O = dot[n](P, V)",
            "S = dot[d](Q, K) * size(d) ** -0.5; P = softmax[n](S); O = dot[n](P, V)",
            "T = Q / sqrt(size(d)); P = softmax[n](dot[d](T, K)); O = dot[n](P, V)",
            "T = Q * size(d) ** -0.25; U = K * size(d) ** -0.25; P = softmax[n](dot[d](T, U)); O = dot[n](P, V)",
            "S = dot[d](Q, K); P = softmax[n](S / sqrt(size(d))); O = dot[n](P, V)",
            "S = sum[d](Q * K) / sqrt(size(d)); P = softmax[n](S); O = sum[n](P * V)",
            "S = sum[d](Q * K / sqrt(size(d))); P = softmax[n](S); O = sum[n](V * P)",
            SCORES + "E = exp(S); O = dot[n](E / sum[n](E), V)",
            SCORES + "E = exp(S); O = dot[n](E, V) / sum[n](E)",
            SCORES + "E = exp(S); R = 1 / sum[n](E); O = R * dot[n](V, E)",
            SCORES + "E = exp(S); R = 1 / sum[n](E); O = dot[n](V, E * R)",
            SCORES + "E = exp(S); O = dot[n](E, V / sum[n](E))",
            SCORES + "E = exp(S - max[n](S)); O = dot[n](E / sum[n](E), V)",
            SCORES + "M = -max[n](S); E = exp(M + S); O = dot[n](E, V) / sum[n](E)",
            SCORES + "E = exp(S) / exp(max[n](S)); O = dot[n](E / sum[n](E), V)",
            SCORES + "P = softmax[n](S - mean[n](S)); O = dot[n](P, V)",
            SCORES + "O = dot[n](exp(S - logsumexp[n](S)), V)",
            SCORES + "O = dot[n](exp(log_softmax[n](S)), V)",
            SCORES + "L = log(sum[n](exp(S))); O = dot[n](exp(S - L), V)",
            SCORES + "M = max[n](S); L = M + log(sum[n](exp(S - M))); O = dot[n](exp(S - L), V)",
            SCORES + "E = 1 / exp(-S); O = dot[n](E / sum[n](E), V)",
            SCORES + "A = S; P = softmax[n](A); B = P; O = dot[n](B, V)",
            "T = exp(dot[d](Q, K) / sqrt(size(d))); O = dot[n](T / sum[n](exp(dot[d](K, Q) / sqrt(size(d)))), V)",
        ],
    ),
    "masked attention": (
        ATTENTION,
        ["d e", "d"],
        [
            SCORES + "P = softmax[n](where(index(n) <= index(m), S, -inf)); O = dot[n](P, V)",
            SCORES + "P = softmax[n](S + where(index(n) <= index(m), 0, -inf)); O = dot[n](P, V)",
            SCORES + "P = softmax[n](where(index(n) > index(m), -inf, S)); O = dot[n](P, V)",
            SCORES + "E = where(index(n) <= index(m), exp(S), 0); O = dot[n](E / sum[n](E), V)",
            SCORES + "E = exp(S) * f32(index(n) <= index(m)); O = dot[n](E, V) / sum[n](E)",
            SCORES + "M = where(index(n) <= index(m), S, -inf); E = exp(M - max[n](M)); O = dot[n](E, V) / sum[n](E)",
        ],
    ),
    "norm and product": (
        NORM,
        ["n", "d", "d n", ""],
        [
            "N = rmsnorm[d](X, g, 0.001); O = dot[d](N, W)",
            "R = rsqrt(mean[d](X * X) + 0.001); O = dot[d](X * g, W) * R",
            "R = rsqrt(sum[d](X * X) / size(d) + 0.001); O = dot[d](X * R * g, W)",
            "R = sqrt(mean[d](X ** 2) + 0.001); O = dot[d](X / R * g, W)",
            "R = (mean[d](X ** 2) + 0.001) ** -0.5; O = dot[d](R * X * g, W)",
            "R = 1 / sqrt(dot[d](X, X) / size(d) + 0.001); O = dot[d](X * R * g, W)",
            "R = rsqrt(mean[d](X * X) + 0.001); O = dot[d](X * R, g * W)",
        ],
    ),
    "gated feed-forward": (
        FEED,
        ["d e", "d", ""],
        [
            "H = swiglu(dot[d](X, G), dot[d](X, U)); O = dot[z](H, D)",
            "A = dot[d](X, G); H = A * sigmoid(A) * dot[d](X, U); O = dot[z](H, D)",
            "A = dot[d](X, G); H = A / (1 + exp(-A)) * dot[d](X, U); O = dot[z](H, D)",
            "A = dot[d](X, G); H = dot[d](X, U) * (A * (1 / (exp(-A) + 1))); O = dot[z](D, H)",
            "A = dot[d](X, G); H = (A * dot[d](X, U)) * sigmoid(A); O = sum[z](H * D)",
        ],
    ),
}


def spelt(header: str, statements: str) -> str:
    return header + " {\n" + "".join(f"    {line}\n" for line in statements.split("; ")) + "}\n"


@pytest.mark.parametrize("formula", SPELLINGS)
def test_spelling_does_not_matter(formula: str) -> None:
    header, cuts, spellings = SPELLINGS[formula]
    for whole in cuts:
        expected = summary(fused(spelt(header, spellings[0]), whole))
        for spelling in spellings[1:]:
            assert summary(fused(spelt(header, spelling), whole)) == expected, (whole, spelling)


KEPT = {
    "program",
    "def",
    "return",
    "f16",
    "f32",
    "f64",
    "bf16",
    "f8e4m3",
    "f8e5m2",
    "i32",
    "i8",
    "bool",
    "inf",
    "and",
    "or",
    "not",
    "where",
    "dot",
    "sum",
    "mean",
    "max",
    "min",
    "index",
    "size",
    "softmax",
    "logsumexp",
    "layernorm",
    "rmsnorm",
    "swish",
    "swiglu",
    "gelu",
    "gelu_tanh",
    "softplus",
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "tanh",
    "sigmoid",
    "relu",
    "erf",
    "abs",
    "sin",
    "cos",
    "floor",
}


def renamed(source: str) -> tuple[str, dict[str, str]]:
    """The text with every program, dimension and variable under another name, in reversed alphabetical order."""
    text = re.sub(r"#.*", "", source)
    words = sorted(set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", text)) - KEPT)
    names = {word: f"q{len(words) - at:03d}" for at, word in enumerate(words)}
    return re.sub(r"(?<![\w.])[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), text), names


def structure(derivation: Derivation, names: dict[str, str]) -> list[object]:
    """Rules in order and all snapshots as text, with bound names numbered and the others renamed."""
    texts = [canonical(program) for program in derivation.snapshots]
    swapped = [re.sub(r"(?<![\w.])[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), text) for text in texts]
    return [[step.rule for step in derivation.steps], swapped, [refusal.reason for refusal in derivation.refusals]]


@pytest.mark.parametrize(("name", "whole"), [(name, whole) for name, whole, _ in STRUCTURE])
def test_names_do_not_matter_in_examples(name: str, whole: str) -> None:
    source, names = renamed(example(name))
    other = " ".join(names[dim] for dim in whole.split())
    assert structure(fused(source, other), {}) == structure(fused(example(name), whole), names)


def test_names_do_not_matter_in_random_programs() -> None:
    for seed in NORMAL_RUN[::2]:
        case = random_case(seed)
        source, names = renamed(case.source)
        other = fused(source, " ".join(names[dim] for dim in case.whole))
        assert structure(other, {}) == structure(random_derivation(seed), names), case.reproduction()


def test_fusing_a_fused_program_changes_nothing() -> None:
    for seed in range(24):
        last = random_derivation(seed).snapshots[-1]
        again = fuse(last)
        assert not again.steps and again.snapshots == (last,), seed


def test_the_hash_seed_does_not_matter() -> None:
    code = (
        "from oracle import example, random_derivation\n"
        "from blockc.ir.text import format_program\n"
        "from test_fuse import fused\n"
        "found = [fused(example('attention'), 'd'), fused(example('rmsnorm_swiglu'), '')]\n"
        "found += [random_derivation(seed) for seed in range(6)]\n"
        "for derivation in found:\n"
        "    print([(s.rule, s.at) for s in derivation.steps], derivation.refusals)\n"
        "    print(*map(format_program, derivation.snapshots))\n"
    )
    here = Path(__file__).parent
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": f"{here.parent}:{here}"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "77")
    ]
    assert len(set(runs)) == 1 and len(runs[0]) > 10_000


@pytest.mark.parametrize("steps", [0, 1, 5, 20])
def test_the_budget_of_steps_keeps_what_is_verified(steps: int) -> None:
    derivation = fused(example("attention"), "d e", Budget(steps=steps))
    assert not derivation.complete and derivation.stopped == f"{steps} steps were taken"
    assert len(derivation.steps) == steps
    assert derivation.snapshots[-1] == (derivation.steps[-1].after if steps else derivation.unfused)


def test_the_budget_of_snapshots_says_so() -> None:
    derivation = fused(example("rmsnorm_swiglu"), "", Budget(snapshots=1))
    assert len(derivation.snapshots) == 1 and derivation.stopped == "1 snapshots were taken"


def test_the_budget_of_time_says_so() -> None:
    derivation = fused(example("attention"), "d e", Budget(seconds=0.0))
    assert derivation.stopped == "0.0 s have passed" and derivation.snapshots == (derivation.unfused,)


def test_no_rule_is_tried_once_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    # A program of 10,000 operators went on for a minute: every rule was tried once more in each of its maps.
    tried: list[tuple[str, ...]] = []
    monkeypatch.setattr("blockc.passes.fuse.first_match", lambda _, path, rules: tried.append(path))
    chain = "; ".join(f"T{n} = tanh(T{n - 1} + X)" for n in range(1, 20))
    source = spelt("program p(X: f32[m, n]) -> O: f32[m, n]", f"T0 = X; {chain}; O = T19")
    assert not fused(source, "", Budget(seconds=0.0)).complete and not tried
    assert fused(source, "").complete and tried


def test_what_a_budget_leaves_is_correct() -> None:
    case = random_case(1)
    full = derive(case)
    for steps in range(len(full.steps)):
        part = fuse(lower(case.program, case.whole), Budget(steps=steps))
        assert part.steps == full.steps[:steps]


def test_steps_follow_one_another() -> None:
    for seed in NORMAL_RUN:
        derivation = random_derivation(seed)
        if any(refused.rule == "pivot" for refused in derivation.refusals):
            continue  # a snapshot was dropped, from which another went on
        programs = [derivation.unfused, *(step.after for step in derivation.steps)]
        for number, step in enumerate(derivation.steps):
            # A snapshot goes on from where the last step ended, or, with its first step, from one found before.
            first = number == 0 or step.snapshot != derivation.steps[number - 1].snapshot
            found = [snapshot for snapshot in derivation.snapshots if snapshot in programs[: number + 1]]
            assert step.before in [programs[number], *(found if first else ())], (seed, number)
        assert all(snapshot in programs for snapshot in derivation.snapshots)


def test_snapshots_without_a_list_come_last() -> None:
    derivations = [fused(example("rmsnorm_swiglu"), "e"), *map(random_derivation, NORMAL_RUN)]
    for derivation in derivations:
        lists = [bool(buffered_lists(snapshot)) for snapshot in derivation.snapshots]
        assert lists == sorted(lists, reverse=True)
    norm = derivations[0]
    assert norm.steps[0].snapshot == 1, "it is found first, and comes last"
    assert dict(enumerate(norm.snapshots)) == {step.snapshot: step.after for step in norm.steps}
    assert {refused.snapshot for refused in norm.refusals if refused.rule == "extend_map"} == {1}


def test_every_list_that_stays_inside_a_kernel_is_refused_by_name() -> None:
    kept = 0
    for seed in NORMAL_RUN:
        derivation = random_derivation(seed)
        last = derivation.snapshots[-1]
        top = {name for definition in last.body for name in definition.defines}
        refused = {name for refusal in derivation.refusals for name in refusal.at}
        inside = {
            output.names[0]
            for definition in walk(last.body)
            if isinstance(definition, Map)
            for output in definition.outputs
            if output.monoid is None and buffered(last, output.names[0])
        }
        assert inside - top <= refused, (seed, inside - top - refused)
        kept += len(inside - top)
    assert kept, "none to look at"


def joined(derivation: Derivation) -> Iterator[tuple[Program, Program]]:
    """The snapshot before and after a kernel was copied into those that need it, if there is one."""
    for step in derivation.steps:
        top = {name for definition in step.before.body for name in definition.defines}
        if step.rule == "extend_map" and top.issuperset(step.at):
            yield step.before, derivation.snapshots[step.snapshot]
            return


def test_joining_kernels_moves_no_more_bytes() -> None:
    norm = derivation_of("layernorm_matmul", "weights_centred", "m d n")
    pairs = [*joined(norm), *(pair for seed in NORMAL_RUN for pair in joined(random_derivation(seed)))]
    assert len(pairs) > 1
    for before, after in pairs:
        assert launches(after) < launches(before)
        sizes = {dim.name: 4096 + 97 * at for at, dim in enumerate(before.dims)}
        old, new = (sum(traffic(program, sizes, dict.fromkeys(sizes, 64)).values()) for program in (before, after))
        assert new <= 1.05 * old, format_program(before)


def buffered(program: Program, name: str) -> bool:
    """True for a list that is its own outermost list and not an output."""
    return name in buffered_lists(program)


def test_chains_and_fans_stay_inside_the_budget() -> None:
    chain = "; ".join(f"T{n} = tanh(T{n - 1} + X)" for n in range(1, 100))
    derivation = fused(spelt("program p(X: f32[m, n]) -> O: f32[m, n]", f"T0 = X; {chain}; O = T99"), "")
    assert derivation.complete and len(derivation.snapshots[-1].body) == 1
    fan = "; ".join(f"T{n} = sum[n](X * {n}.0)" for n in range(1, 40))
    total = " + ".join(f"T{n}" for n in range(1, 40))
    derivation = fused(spelt("program p(X: f32[m, n]) -> O: f32[m]", f"{fan}; O = {total}"), "")
    assert derivation.complete and len(derivation.snapshots[-1].body) == 1


def test_long_chains_of_steps_are_pairwise_decreasing() -> None:
    for step, later in pairwise(fused(example("grouped_heads"), "d e").steps):
        assert decreases(step.before, step.after) and step.after == later.before


def test_an_entropy_of_probabilities_that_are_stored_too_decreases_the_measure() -> None:
    source = """program p(X: f32[d, m]) -> (H: f32[m], P: f32[d, m]) {
    P = softmax[d](X)
    H = sum[d](P * log(P))
}
"""
    assert fuse(lower(parse(source), frozenset())).complete


def test_an_exponent_that_waits_for_two_loops_is_split_at_once() -> None:
    source = """program p(A: f32[b, n], X: f32[b, h]) -> O: f32[b] {
    T = dot[b](dot[n](A, A), dot[n](A, A)) - X
    E = exp(T - max[h](T))
    O = dot[h](E, E)
}
"""
    derivation = fuse(lower(parse(source), frozenset()))
    assert derivation.complete and [step.rule for step in derivation.steps].count("split_exponential") == 1
