"""Random valid programs as source text, biased towards what the fusion rules look at. `minimiser` shrinks failures.

Every value stays of order one in float64: contractions are scaled, arguments of `exp` are bounded, denominators are at
least a constant, and what jumps (comparisons, `floor`, casts to integers) looks at inputs and positions only. So a
program's outputs are finite and may be compared at 1e-10 of their largest value. Some of them are zero but for
rounding, such as x - mean(x) of one element: add 1e-13 for these.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from blockc.ir.array_program import ArrayProgram

_DIMS = ("b", "h", "m", "n", "d", "e")
_FLOATS = (*("f32",) * 6, "f16", "f16", "bf16", "f64", "f64", "f8e4m3", "f8e5m2")
_LIMIT = 20.0  # what an intermediate value may reach, roughly
_MAX_RANK = 4
_CHAINED = 0.08  # of the programs end with a product of a product
_ROOTED = 0.03  # of the programs end with a root of a product


@dataclass(frozen=True, slots=True)
class _Term:
    """An expression with its dimensions, a rough bound of its magnitude, and what may be done to it."""

    text: str
    dims: frozenset[str]
    bound: float
    kind: str = "float"  # "float", "int" or "bool"


@dataclass(slots=True)
class _Draft:
    """The program so far. `values` may be used by later statements; `axes` are declared inputs."""

    choice: random.Random
    dims: tuple[str, ...]
    fixed: dict[str, int]
    axes: dict[str, str] = field(default_factory=dict)
    inputs: list[_Term] = field(default_factory=list)
    values: list[_Term] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)

    def assign(self, term: _Term) -> _Term:
        """Gives the expression a name, scaled down if it might be large."""
        if term.kind == "float" and term.bound > _LIMIT:
            term = _Term(f"({term.text}) * {_LIMIT / 4 / term.bound:.4f}", term.dims, _LIMIT / 4)
        name = f"T{len(self.statements) + 1}"
        self.statements.append(f"{name} = {term.text}")
        value = _Term(name, term.dims, term.bound, term.kind)
        self.values.append(value)
        return value


def random_program(seed: int) -> str:
    """A random program of 3 to 15 statements over 2 to 5 dimensions; the same seed gives the same text."""
    choice = random.Random(seed)
    dims = tuple(sorted(choice.sample(_DIMS, choice.choice((2, 3, 3, 4, 4, 5))), key=_DIMS.index))
    fixed = {dim: choice.randint(1, 3) for dim in dims if choice.random() < 0.12}
    draft = _Draft(choice, dims, fixed)
    for _ in range(choice.randint(2, 5)):
        _declare(draft)
    wanted = choice.randint(3, 9)
    while len(draft.statements) < wanted:
        choice.choice(_MOTIFS)(draft)
    if len(dims) >= 3 and random.Random(f"chain {seed}").random() < _CHAINED:
        _chained(draft)
    if random.Random(f"root {seed}").random() < _ROOTED:
        _rooted(draft)
    return _written(draft, seed)


def random_sizes(seed: int, program: ArrayProgram) -> dict[str, int]:
    """A size for every dimension: 1 to 7, sometimes 0 where every value stays finite; fixed sizes and renames kept."""
    choice = random.Random(f"sizes {seed}")
    groups = _size_groups(program)
    solid = _needs_elements(program)
    fixed = {groups[dim.name]: dim.size for dim in program.dims if dim.size is not None}
    hollow = {group for group in groups.values() if not any(dim in solid for dim in groups if groups[dim] == group)}
    sizes = {}
    for group in sorted(set(groups.values())):
        empty = group in hollow and choice.random() < 0.08
        sizes[group] = 0 if empty else choice.randint(1, 7)
    sizes.update(fixed)
    return {dim: sizes[group] for dim, group in groups.items()}


def random_tiles(seed: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """A block size for every dimension: 1 to one more than its size, so that short last blocks occur."""
    choice = random.Random(f"tiles {seed}")
    return {dim: choice.randint(1, sizes[dim] + 1) for dim in sorted(sizes)}


def _size_groups(program: ArrayProgram) -> dict[str, str]:
    """For every dimension a representative of those that a rename gives the same size."""
    groups = {dim.name: dim.name for dim in program.dims}
    pairs = [(node.dims[0], node.dims[1]) for node in program.nodes if node.op == "rename"]
    for old, new in pairs:
        joined = {groups[old], groups[new]}
        groups = {dim: min(joined) if group in joined else group for dim, group in groups.items()}
    return groups


def _needs_elements(program: ArrayProgram) -> set[str]:
    """Dimensions that must not be empty: of maxima, of sizes, and of sums that something divides by."""
    nodes = {node.name: node for node in program.nodes}
    divisors = [
        arg
        for node in program.nodes
        for arg in (node.args[1:] if node.op == "div" else node.args)
        if node.op in ("div", "recip", "log", "sqrt", "rsqrt", "pow")
    ]
    reached = set()
    while divisors:
        name = divisors.pop()
        if name not in reached:
            reached.add(name)
            divisors.extend(nodes[name].args)
    solid = {dim for node in program.nodes if node.op in ("max", "min", "size") for dim in node.dims}
    solid |= {dim for name in reached if nodes[name].op in ("sum", "contract") for dim in nodes[name].dims}
    # A packed axis of size 0 does not tell the sizes of its dimensions.
    return solid | {dim for argument in program.inputs for axis in argument.axes if len(axis) > 1 for dim in axis}


def _declare(draft: _Draft) -> _Term:
    """A new float input over some of the dimensions."""
    choice = draft.choice
    dims = choice.sample(draft.dims, choice.randint(min(2, len(draft.dims)), min(3, len(draft.dims))))
    return _declare_over(draft, tuple(dims), choice.choice(_FLOATS), "float")


def _declare_over(draft: _Draft, dims: tuple[str, ...], dtype: str, kind: str) -> _Term:
    name = f"X{len(draft.inputs) + 1}"
    draft.axes[name] = f"{name}: {dtype}[{', '.join(_axes(draft, dims))}]"
    term = _Term(name, frozenset(dims), 8.0 if kind == "int" else 4.0, kind)
    draft.inputs.append(term)
    if kind == "float":
        draft.values.append(term)
    return term


def _axes(draft: _Draft, dims: tuple[str, ...]) -> list[str]:
    """The dimensions as axes; two neighbours are sometimes packed, with a fixed size so that both are known."""
    spelt = [f"{dim}={draft.fixed[dim]}" if dim in draft.fixed else dim for dim in dims]
    if len(dims) >= 2 and draft.choice.random() < 0.12:
        at = draft.choice.randrange(len(dims) - 1)
        draft.fixed.setdefault(dims[at], draft.choice.randint(1, 3))
        spelt[at] = f"{dims[at]}={draft.fixed[dims[at]]}"
        return [*spelt[:at], f"({spelt[at]}, {spelt[at + 1]})", *spelt[at + 2 :]]
    return spelt


def _pick(draft: _Draft, having: Iterable[str] = ()) -> _Term:
    """A value with these dimensions, mostly a recent one; a new input where there is none."""
    needed = frozenset(having)
    fitting = [value for value in draft.values if needed <= value.dims]
    if not fitting:
        return _declare_over(draft, tuple(sorted(needed)), draft.choice.choice(_FLOATS), "float")
    return fitting[-1] if draft.choice.random() < 0.5 else draft.choice.choice(fitting)


def _pick_wide(draft: _Draft) -> _Term:
    """A value with at least one dimension."""
    return _pick(draft, [draft.choice.choice(draft.dims)])


def _dim_of(draft: _Draft, term: _Term) -> str:
    return draft.choice.choice(sorted(term.dims))


def _contraction(draft: _Draft) -> None:
    """A scaled product of two values over a shared dimension, spelt as `dot` or as a sum of products."""
    choice = draft.choice
    left = _pick_wide(draft)
    shared = _dim_of(draft, left)
    right = _pick(draft, [shared])
    if len((left.dims | right.dims) - {shared}) > _MAX_RANK:
        right = (
            _declare_over(draft, (shared, choice.choice(draft.dims)), "f32", "float") if len(draft.dims) < 2 else left
        )
    if choice.random() < 0.3:
        right = _Term(f"({right.text} + {choice.choice((0.5, 1.5))})", right.dims, right.bound + 1.5)
    reduced = [shared]
    if choice.random() < 0.15:
        reduced = sorted({shared, _dim_of(draft, right)})
    names = ", ".join(reduced)
    spelt = choice.choice((f"dot[{names}]({left.text}, {right.text})", f"sum[{names}]({left.text} * {right.text})"))
    scale = choice.choice(
        (f"{spelt} / sqrt(size({shared}))", f"{spelt} * 0.25", f"{spelt} / (2.0 * sqrt(size({shared})))")
    )
    draft.assign(_Term(scale, (left.dims | right.dims) - set(reduced), left.bound * right.bound * len(reduced)))


def _softmax(draft: _Draft) -> None:
    """Probabilities along a dimension in many spellings, often masked; then perhaps their product with a value."""
    choice = draft.choice
    scores = _pick_wide(draft)
    along = _dim_of(draft, scores)
    logits = _bounded(draft, scores)
    others = sorted(scores.dims - {along})
    mask = choice.random()
    if mask < 0.25 and others:
        other = choice.choice(others)
        # The first position is visible from everywhere: no row is masked as a whole.
        condition = f"index({along}) <= index({other})"
        masked = choice.choice((f"where({condition}, {logits}, -inf)", f"{logits} + where({condition}, 0.0, -inf)"))
        logits = draft.assign(_Term(masked, scores.dims, 4.0)).text
        draft.values.pop()  # minus infinities are for exp only
    name = f"T{len(draft.statements) + 1}"
    match choice.randrange(5):
        case 0:
            text = f"softmax[{along}]({logits})"
        case 1:
            text = f"exp({logits}) / sum[{along}](exp({logits}))"
        case 2:
            text = f"exp({logits} - logsumexp[{along}]({logits}))"
        case 3:
            draft.statements.append(f"{name} = exp({logits} - max[{along}]({logits}))")
            text = f"{name} / sum[{along}]({name})"
        case _:
            draft.statements.append(f"{name} = exp({logits})")
            if choice.random() < 0.5:
                _weighted(draft, _Term(name, scores.dims, 1.0), along, f"sum[{along}]({name})")
                return
            text = f"{name} * (1 / sum[{along}]({name}))"
    weights = draft.assign(_Term(text, scores.dims, 1.0))
    if choice.random() < 0.6:
        _weighted(draft, weights, along, "")


def _weighted(draft: _Draft, weights: _Term, along: str, divisor: str) -> None:
    """The sum of a value with these weights, divided afterwards if they are not normalised yet."""
    value = _pick(draft, [along])
    if len(weights.dims | value.dims) > _MAX_RANK + 1:
        value = weights if not divisor else _declare_over(draft, (along,), "f32", "float")
    product = f"dot[{along}]({weights.text}, {value.text})"
    text = f"{product} / {divisor}" if divisor else product
    draft.assign(_Term(text, (weights.dims | value.dims) - {along}, value.bound))


def _bounded(draft: _Draft, term: _Term) -> str:
    """The value as an argument of exp."""
    if term.bound <= 5:
        return term.text
    return draft.choice.choice((f"tanh({term.text})", f"({term.text}) * {4 / term.bound:.3f}"))


def _normalised(draft: _Draft) -> None:
    """A value scaled and perhaps shifted by statistics of its rows; then perhaps a gain, a bias or a product."""
    choice = draft.choice
    value = _pick_wide(draft)
    along = _dim_of(draft, value)
    x = value.text
    mean = choice.choice((f"mean[{along}]({x})", f"sum[{along}]({x}) / size({along})"))
    match choice.randrange(5):
        case 0:
            text = f"{x} * rsqrt(mean[{along}]({x} * {x}) + 0.5)"
        case 1:
            centre = draft.assign(_Term(f"{x} - {mean}", value.dims, 2 * value.bound))
            text = f"{centre.text} / sqrt(mean[{along}]({centre.text} ** 2) + 0.5)"
        case 2:
            average = draft.assign(_Term(mean, value.dims - {along}, value.bound))
            variance = f"mean[{along}]({x} * {x}) - {average.text} * {average.text}"
            text = f"({x} - {average.text}) * rsqrt({variance} + 1.0)"
        case 3:
            text = f"{x} - {choice.choice(('max', 'min'))}[{along}]({x})"
        case _:
            text = f"layernorm[{along}]({x}, {_pick(draft, [along]).text if choice.random() < 0.4 else '1'}, 0, 0.5)"
            gained = draft.assign(_Term(f"tanh({text})", value.dims | _names_dims(draft, text), 1.0))
            _projected(draft, gained)
            return
    _projected(draft, draft.assign(_Term(text, value.dims, min(2 * value.bound, 4.0 + value.bound))))


def _words(text: str) -> set[str]:
    return set("".join(char if char.isalnum() else " " for char in text).split())


def _names_dims(draft: _Draft, text: str) -> frozenset[str]:
    """The dimensions of every value named in the text."""
    words = _words(text)
    return frozenset(dim for term in (*draft.values, *draft.inputs) if term.text in words for dim in term.dims)


def _projected(draft: _Draft, value: _Term) -> None:
    if draft.choice.random() < 0.5 and value.dims:
        along = _dim_of(draft, value)
        weight = _pick(draft, [along])
        if len((value.dims | weight.dims) - {along}) <= _MAX_RANK:
            text = f"dot[{along}]({value.text}, {weight.text}) / sqrt(size({along}))"
            draft.assign(_Term(text, (value.dims | weight.dims) - {along}, value.bound * weight.bound))


def _elementwise(draft: _Draft) -> None:
    """One to three values through elementwise operators."""
    choice = draft.choice
    a, b = _pick(draft), _pick(draft)
    if len(a.dims | b.dims) > _MAX_RANK:
        b = a
    both, x, y = a.dims | b.dims, a.text, b.text
    one = choice.choice(
        ("tanh", "sigmoid", "relu", "gelu", "erf", "abs", "sin", "cos", "swish", "gelu_tanh", "softplus", "-")
    )
    terms = (
        _Term(f"{one}({x})", a.dims, a.bound + 1),
        _Term(f"{one}({x}) * {y}", both, (a.bound + 1) * b.bound),
        _Term(f"{x} + {y}", both, a.bound + b.bound),
        _Term(f"{x} - 0.5 * {y}", both, a.bound + b.bound),
        _Term(f"{x} * {y} + {x}", both, a.bound * b.bound + a.bound),
        _Term(f"{x} / (1 + abs({y}))", both, a.bound),
        _Term(f"log(1 + {x} * {x})", a.dims, a.bound),
        _Term(f"sqrt({x} ** 2 + 1)", a.dims, a.bound + 1),
        _Term(f"({x} * {x} + 0.5) ** -0.5", a.dims, 1.5),
        _Term(f"{x} / (1 + exp(-{_bounded(draft, b)}))", both, a.bound),
        _Term(f"max({x}, {y}) + min({x}, 0.5)", both, 2 * a.bound + b.bound),
        _Term(f"swiglu({x}, {y})", both, a.bound * b.bound),
        _Term(f"{choice.choice(('f16', 'bf16', 'f32', 'f64'))}({x}) * 0.5", a.dims, a.bound),
        _Term(f"blend({x}, {y})", both, a.bound + b.bound),
    )
    draft.assign(choice.choice(terms))


def _statistic(draft: _Draft) -> None:
    """A reduction that is used beside the value it comes from, or alone."""
    choice = draft.choice
    value = _pick_wide(draft)
    along = _dim_of(draft, value)
    x = value.text
    op = choice.choice(("mean", "max", "min", "sum", "logsumexp"))
    argument = _bounded(draft, value) if op == "logsumexp" else f"{x} * 0.2" if op == "sum" else x
    spelt = f"{op}[{along}]({argument})"
    if choice.random() < 0.5:
        draft.assign(_Term(spelt, value.dims - {along}, value.bound + 2))
    else:
        draft.assign(_Term(f"tanh({spelt}) * {x} + {x}", value.dims, 2 * value.bound))


def _self_product(draft: _Draft) -> None:
    """One array read as queries and as keys, through a rename."""
    choice = draft.choice
    value = _pick_wide(draft)
    others = sorted(set(draft.dims) - value.dims)
    if not others or len(value.dims) < 2:
        _contraction(draft)
        return
    old, shared = choice.sample(sorted(value.dims), 2)
    new = choice.choice(others)
    if old in draft.fixed or new in draft.fixed:
        _contraction(draft)
        return
    renamed = f"{value.text}[{old} -> {new}]"
    text = f"dot[{shared}]({value.text}, {renamed}) / sqrt(size({shared}))"
    draft.assign(_Term(text, (value.dims | {new}) - {shared}, value.bound * value.bound))


def _chained(draft: _Draft) -> None:
    """A product of a product with nothing between that is not linear, and a quotient with its sum."""
    choice = draft.choice
    row, along, inner, *spare = choice.sample(draft.dims, len(draft.dims))
    queries = _declare_over(draft, (row, inner), "f32", "float")
    keys = _declare_over(draft, (along, inner), "f32", "float")
    weights = _declare_over(draft, (along, *spare[:1]), "f32", "float")
    keys_text = choice.choice((keys.text, f"exp(0.25 * {keys.text})", f"abs({keys.text})"))
    scores = draft.assign(_Term(f"dot[{inner}]({queries.text}, {keys_text}) * 0.25", frozenset((row, along)), 8.0))
    divisor = choice.choice(("2.0", f"(1.5 + abs(sum[{along}]({scores.text})))"))
    product = f"dot[{along}]({scores.text}, {weights.text})"
    draft.assign(_Term(f"{product} / {divisor}", (scores.dims | weights.dims) - {along}, 80.0))


def _rooted(draft: _Draft) -> None:
    """The root of a statistic times a value, both positive though no operator says so; added up."""
    value = _pick_wide(draft)
    along = _dim_of(draft, value)
    text = f"sum[{along}](sqrt((1.5 + sin(mean[{along}]({value.text}))) * (1.5 + sin({value.text})))) * 0.2"
    draft.assign(_Term(text, value.dims - {along}, value.bound + 2))


def _masked(draft: _Draft) -> None:
    """A value with zeros where positions, an input mask or integer labels say so."""
    choice = draft.choice
    value = _pick_wide(draft)
    dims = sorted(value.dims)
    one, other = choice.choice(dims), choice.choice(dims)
    label = next((term for term in draft.inputs if term.kind == "int" and term.dims <= value.dims), None)
    flag = next((term for term in draft.inputs if term.kind == "bool" and term.dims <= value.dims), None)
    window = f"index({one}) <= index({other}) and not index({one}) + 2 < index({other})"
    condition = choice.choice((f"index({one}) <= index({other})", window, f"index({one}) != 1", "label", "flag"))
    if condition == "label":
        label = label or _declare_over(draft, (one,), choice.choice(("i32", "i8")), "int")
        condition = choice.choice((f"{label.text} > 0", f"{label.text} + 2 * {label.text} >= 1 or {label.text} == -3"))
    elif condition == "flag":
        condition = (flag or _declare_over(draft, (one,), "bool", "bool")).text
    draft.assign(_Term(f"where({condition}, {value.text}, {choice.choice(('0', '0.5', 'sin(' + value.text + ')'))})",
                       value.dims, value.bound))  # fmt: skip


def _integers(draft: _Draft) -> None:
    """Integers and jumps of inputs, brought back to real values."""
    choice = draft.choice
    dim = choice.choice(draft.dims)
    labels = [term for term in draft.inputs if term.kind == "int"]
    label = choice.choice(labels) if labels else _declare_over(draft, (dim,), "i32", "int")
    along = _dim_of(draft, label)
    real = choice.choice([term for term in draft.inputs if term.kind == "float"])
    terms = (
        _Term(f"f32({label.text} * 2 - 1) * 0.1", label.dims, 2.0),
        _Term(f"f32(sum[{along}]({label.text})) / (8.0 * size({along}))", label.dims - {along}, 1.0),
        _Term(f"f32(max[{along}]({label.text} + index({along}))) * 0.1", label.dims - {along}, 2.0),
        _Term(f"f32(i32({real.text} * 3 + 0.3)) * 0.1 + {real.text}", real.dims, 6.0),
        _Term(f"f32(i8({real.text} * 3 - 0.3)) * 0.1", real.dims, 2.0),
        _Term(f"floor({real.text} * 2 + 0.3) * {real.text}", real.dims, 32.0),
        _Term(f"cos(index({dim}) * 0.7)", frozenset({dim}), 1.0),
        _Term(f"f32(bool({label.text})) + index({dim}) / (size({dim}) + 1)", label.dims | {dim}, 2.0),
        _Term(f"f32({real.text} > 0.1) - f32({real.text} < -0.2)", real.dims, 1.0),
    )
    draft.assign(choice.choice(terms))


def _scalar(draft: _Draft) -> None:
    """A value beside a scalar input."""
    scalar = next((term for term in draft.inputs if not term.dims), None) or _declare_over(draft, (), "f32", "float")
    value = _pick_wide(draft)
    draft.assign(_Term(f"{value.text} * tanh({scalar.text}) + {scalar.text}", value.dims, value.bound + 4))


def _difference(draft: _Draft) -> None:
    """The difference of two softmaxes of which one is shifted, times a value."""
    value = _pick_wide(draft)
    along = _dim_of(draft, value)
    logits = _bounded(draft, value)
    text = f"softmax[{along}]({logits}) - 0.5 * softmax[{along}](-({logits}))"
    _weighted(draft, draft.assign(_Term(text, value.dims, 1.0)), along, "")


def _function_of_weights(draft: _Draft) -> None:
    """The sum of a function of softmax weights, which splits where the weights are a quotient."""
    value = _pick_wide(draft)
    along = _dim_of(draft, value)
    weights = draft.assign(_Term(f"softmax[{along}]({_bounded(draft, value)})", value.dims, 1.0)).text
    function = draft.choice.choice((f"{weights} * log({weights})", f"sqrt({weights})", f"abs({weights} - 0.25)"))
    draft.assign(_Term(f"sum[{along}]({function})", value.dims - {along}, 8.0))


_MOTIFS: tuple[Callable[[_Draft], None], ...] = (
    _contraction, _contraction, _contraction, _softmax, _softmax, _softmax, _normalised, _normalised, _elementwise,
    _elementwise, _elementwise, _statistic, _self_product, _masked, _integers, _scalar, _difference,
    _function_of_weights,
)  # fmt: skip


def _written(draft: _Draft, seed: int) -> str:
    """The program as text: unused inputs left out, up to three outputs, one of them the last value."""
    choice = draft.choice
    assigned = [value for value in draft.values if value.text.startswith("T") and value.dims <= set(draft.dims)]
    read = _words(" ".join(statement.split(" = ", 1)[1] for statement in draft.statements))
    idle = [value for value in assigned[:-1] if value.text not in read]
    earlier = idle if idle and choice.random() < 0.8 else assigned[:-1]
    outputs = [assigned[-1], *choice.sample(earlier, min(len(earlier), choice.choice((0, 0, 1, 1, 2))))]
    declarations = [f"O{number}: {_output_type(draft, term)}" for number, term in enumerate(outputs, 1)]
    body = [*draft.statements, *(f"O{number} = {term.text}" for number, term in enumerate(outputs, 1))]
    used = _words(" ".join(body))
    inputs = [text for name, text in draft.axes.items() if name in used]
    for dim in sorted(set(draft.dims) & (used | _words(" ".join(declarations))) - _words(" ".join(inputs))):
        # Nothing else tells the size of this dimension.
        inputs.append(f"Y{dim}: f32[{dim}]")
        body[-1] += f" + 0.1 * tanh(sum[{dim}](Y{dim}))"
    lines = [] if "blend" not in used else ["def blend(a, b) = a - 0.25 * (a - b)", ""]
    results = declarations[0] if len(declarations) == 1 else f"({', '.join(declarations)})"
    lines.append(f"program fuzz_{seed}({', '.join(inputs)}) -> {results} {{")
    lines += [f"    {statement}" for statement in body]
    return "\n".join([*lines, "}", ""])


def _output_type(draft: _Draft, term: _Term) -> str:
    choice = draft.choice
    dims = list(term.dims)
    dims.sort()
    choice.shuffle(dims)
    dtype = choice.choice(("f32", "f32", "f32", "f64", "f16"))
    if len(dims) >= 2 and choice.random() < 0.15:
        return f"{dtype}[({dims[0]}, {dims[1]}){''.join(f', {dim}' for dim in dims[2:])}]"
    spare = sorted(set(draft.dims) - term.dims)
    if spare and choice.random() < 0.08:
        dims.append(choice.choice(spare))
    return f"{dtype}[{', '.join(dims)}]"
