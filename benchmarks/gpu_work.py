"""What `gpu.py` measures: programs with their sizes, the same in torch as one formula, and what else computes it.

A formula takes the inputs by name and the positions of the queries, and returns the outputs in declared order. In
float64, on some rows, it is what results are compared with; compiled by torch, it is a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from blockc import driver
from blockc.data import array_shape
from blockc.ir.array_program import ArrayProgram
from blockc.ir.dtypes import DTYPES, NUMPY_NAMES, is_float

HERE = Path(__file__).parent
EXAMPLES, PROGRAMS = HERE.parent / "examples", HERE / "programs"

Tensors = Mapping[str, torch.Tensor]
Formula = Callable[[Tensors, torch.Tensor], tuple[torch.Tensor, ...]]
DOCUMENTS = 8  # that are packed into a sequence
ROWS = 64  # of a result that are compared


@dataclass(frozen=True)
class Work:
    """A row of the table. `flops` are the operations of its products, without what a mask hides; `against` the other
    candidates, by name; `quick` rows are part of a quick run."""

    group: str
    program_name: str
    sizes: Mapping[str, int]
    flops: int
    against: tuple[str, ...]
    dtype: str = "bf16"
    quick: bool = False
    file: Path = field(default=EXAMPLES)

    @property
    def name(self) -> str:
        """What stands in the table."""
        return f"{self.program_name} {' '.join(f'{dim}={size}' for dim, size in self.sizes.items())}"

    @cached_property
    def program(self) -> ArrayProgram:
        """The program, in the type of the row."""
        return driver.load_program(self.file, self.program_name, self.dtype)

    @property
    def bytes(self) -> int:
        """What has to be moved: inputs once, outputs once."""
        arguments = [*self.program.inputs, *(result.argument for result in self.program.outputs)]
        return sum(math.prod(array_shape(a, self.sizes)) * DTYPES[a.dtype].size for a in arguments)


# --- the same in torch ------------------------------------------------------------------------------------------------


def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Products of queries and keys, scaled."""
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def keys(t: Tensors) -> torch.Tensor:
    """The positions of the keys."""
    return torch.arange(t["K"].shape[-2], device=t["K"].device)


def weighted(s: torch.Tensor, seen: torch.Tensor | None, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Softmax of what is seen, times values."""
    masked = s if seen is None else s.masked_fill(~seen, -math.inf)
    return (torch.softmax(masked, -1) @ v,)


def attention(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return weighted(scores(t["Q"], t["K"]), None, t["V"])


def causal(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return weighted(scores(t["Q"], t["K"]), keys(t) <= rows[:, None], t["V"])


def grouped_heads(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return weighted(scores(t["Q"], t["K"][:, :, None]), keys(t) <= rows[:, None], t["V"][:, :, None])


def sliding_window(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    distance = rows[:, None] - keys(t)
    return weighted(scores(t["Q"], t["K"]), (distance >= 0) & (distance < 128), t["V"])


def alibi(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    bias = t["slope"][:, None, None] * (keys(t) - rows[:, None])
    return weighted(scores(t["Q"], t["K"]) + bias, keys(t) <= rows[:, None], t["V"])


def softcap(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return weighted(50 * torch.tanh(scores(t["Q"], t["K"]) / 50), keys(t) <= rows[:, None], t["V"])


def packed_documents(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    same = t["query_document"][:, None] == t["key_document"]
    seen = (keys(t) <= rows[:, None]) & (same | (keys(t) == 0))
    return weighted(scores(t["Q"], t["K"]), seen, t["V"])


def biased_softcap(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return weighted(50 * torch.tanh((scores(t["Q"], t["K"]) + t["bias"]) / 50), None, t["V"])


def triangle(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (torch.sigmoid(t["gate"]) * weighted(scores(t["Q"], t["K"]) + t["pair_bias"], None, t["V"])[0],)


def differential(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    first, second = (torch.softmax(scores(t[f"Q{at}"], t[f"K{at}"]), -1) for at in (1, 2))
    return ((first - t["lambda"][:, None, None] * second) @ t["V"],)


def sigmoid(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (torch.sigmoid(scores(t["Q"], t["K"]) - math.log(t["K"].shape[-2])) @ t["V"],)


def cosine(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (t["Q"], t["K"]))
    return weighted(t["scale"][:, None, None] * (q @ k.transpose(-1, -2)), None, t["V"])


def linear_attention(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    q, k = (torch.where(x > 0, x + 1, torch.exp(torch.clamp(x, max=0))) for x in (t["Q"], t["K"]))
    return (q @ (k.transpose(-1, -2) @ t["V"]) / (q @ k.sum(-2)[..., None]),)


def entropy(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    s = scores(t["Q"], t["K"])
    return (-(torch.softmax(s, -1) * torch.log_softmax(s, -1)).sum(-1),)


def with_lse(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    s = scores(t["Q"], t["K"])
    return (*weighted(s, None, t["V"]), torch.logsumexp(s, -1))


def decode(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return weighted(scores(t["Q"], t["K"]), None, t["V"])


def layernorm_matmul(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (torch.nn.functional.layer_norm(t["X"], t["gain"].shape, t["gain"], t["bias"], 1e-5) @ t["W"],)


def rmsnorm(t: Tensors) -> torch.Tensor:
    return torch.nn.functional.rms_norm(t["X"], t["gain"].shape, t["gain"], 1e-6)


def rmsnorm_linear(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (rmsnorm(t) @ t["W"],)


def rmsnorm_qkv(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    normal = rmsnorm(t)
    return normal @ t["Wq"], normal @ t["Wk"], normal @ t["Wv"]


def rmsnorm_swiglu(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    normal = rmsnorm(t)
    return ((torch.nn.functional.silu(normal @ t["Wg"]) * (normal @ t["Wu"])) @ t["Wd"],)


def matmul_gelu(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (torch.nn.functional.gelu(t["X"] @ t["W"] + t["bias"]) + t["residual"],)


def matmul_relu(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (torch.relu(t["X"] @ t["W"] + t["bias"]) + t["residual"],)


def mlp(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (torch.relu(t["X"] @ t["W1"] + t["b1"]) @ t["W2"] + t["b2"],)


def cross_entropy(t: Tensors, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    logits = t["X"] @ t["W"]
    return (torch.logsumexp(logits, -1) - logits.gather(-1, t["T"].long()[:, None])[:, 0],)


FORMULAS: Mapping[str, Formula] = {
    "attention": attention,
    "causal_attention": causal,
    "sliding_window_attention": sliding_window,
    "alibi": alibi,
    "softcap": softcap,
    "packed_documents": packed_documents,
    "grouped_heads": grouped_heads,
    "decode": decode,
    "layernorm_matmul": layernorm_matmul,
    "rmsnorm_linear": rmsnorm_linear,
    "rmsnorm_swiglu": rmsnorm_swiglu,
    "rmsnorm_qkv": rmsnorm_qkv,
    "matmul_gelu": matmul_gelu,
    "matmul_relu": matmul_relu,
    "mlp": mlp,
    "cross_entropy": cross_entropy,
    "cross_attention": attention,
    "attention_entropy": entropy,
    "attention_lse": with_lse,
    "cosine_attention": cosine,
    "differential_attention": differential,
    "linear_attention": linear_attention,
    "sigmoid_attention": sigmoid,
    "softcap_attention": biased_softcap,
    "triangle_attention": triangle,
}


# --- data -------------------------------------------------------------------------------------------------------------


def tensors_of(work: Work, device: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs: weights are scaled so that products with them are not, documents lie one behind the other."""
    generator = torch.Generator(device).manual_seed(seed)
    result = {}
    for argument in work.program.inputs:
        shape = array_shape(argument, work.sizes)
        dtype = getattr(torch, NUMPY_NAMES[argument.dtype])
        if not is_float(argument.dtype):
            if "document" in argument.name:
                values = torch.arange(shape[0], device=device) * DOCUMENTS // max(1, shape[0])
            else:
                values = torch.randint(0, work.sizes["v"], shape, generator=generator, device=device)
            result[argument.name] = values.to(dtype)
            continue
        scale = 1 / math.sqrt(shape[0]) if argument.name.startswith("W") else 1.0
        numbers = torch.randn(shape, generator=generator, device=device) * scale
        result[argument.name] = numbers.abs().to(dtype) if argument.name == "slope" else numbers.to(dtype)
    return result


SAMPLED = {"b": 1, "h": 1, "kv": 1}  # of batches and heads, the first; of rows some


def positions(work: Work, device: str) -> dict[str, torch.Tensor]:
    """The positions along some dimensions at which results are compared: spread rows with the first and the last."""
    chosen = {dim: torch.arange(min(count, work.sizes[dim])) for dim, count in SAMPLED.items() if dim in work.sizes}
    if "m" in work.sizes:
        size = work.sizes["m"]
        chosen["m"] = torch.unique(torch.linspace(0, size - 1, min(size, ROWS)).round().long())
    return {dim: at.to(device) for dim, at in chosen.items()}


def taken(tensor: torch.Tensor, axes: tuple[tuple[str, ...], ...], at: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The elements of a tensor at some positions."""
    for position, axis in enumerate(axes):
        if axis[0] in at:
            tensor = tensor.index_select(position, at[axis[0]])
    return tensor


def difference(work: Work, tensors: Tensors, results: tuple[torch.Tensor, ...]) -> float:
    """The largest relative error, in the norm, of all outputs against the formula in float64, on some rows."""
    at = positions(work, next(iter(tensors.values())).device.type)
    rows = at.get("m", torch.zeros(1, dtype=torch.long))
    some = {argument.name: taken(tensors[argument.name], argument.axes, at) for argument in work.program.inputs}
    exact = {name: value.double() if value.is_floating_point() else value for name, value in some.items()}
    worst = 0.0
    expected = FORMULAS[work.program_name](exact, rows)
    for output, result, wanted in zip(work.program.outputs, results, expected, strict=True):
        found = taken(result, output.argument.axes, at).double()
        assert found.shape == wanted.shape, f"{work.name}: {tuple(found.shape)}, not {tuple(wanted.shape)}"
        error = float((found - wanted).norm() / wanted.norm())
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


# --- the rows ---------------------------------------------------------------------------------------------------------

TOKENS = 16384
PLAIN = ("cuDNN", "FA2", "Flex")
VARIANT = ("Flex", "compile")


def works() -> Iterator[Work]:
    """All rows, the most telling ones first: what does not fit the time is left out from the end."""
    yield from plain_attention((4096, 16384))
    yield from variants()
    yield from decoding()
    yield from norms()
    yield from plain_attention((1024, 2048, 8192))
    yield from examples()


def plain_attention(lengths: tuple[int, ...]) -> Iterator[Work]:
    """Attention of 16,384 tokens and 2,048 features in heads of 64 or 128."""
    for width in (128, 64):
        for name in ("attention", "causal_attention"):
            for length in lengths:
                heads = 2048 // width
                sizes = {"b": TOKENS // length, "h": heads, "m": length, "n": length, "d": width, "e": width}
                pairs = length * length if name == "attention" else length * (length + 1) // 2
                flops = 4 * sizes["b"] * heads * pairs * width
                quick = length == 4096 and (name == "attention" or width == 128)
                yield Work("attention", name, sizes, flops, PLAIN, quick=quick, file=EXAMPLES / f"{name}.blk")


def variants() -> Iterator[Work]:
    """What scaled_dot_product_attention has no words for."""
    length, heads, width = 8192, 16, 128
    sizes = {"b": 2, "h": heads, "m": length, "n": length, "d": width, "e": width}
    causal_pairs = length * (length + 1) // 2
    window, documents = window_pairs(length), document_pairs(length)
    of_pairs = 4 * heads * width
    file = EXAMPLES / "sliding_window_attention.blk"
    yield Work("variant", "sliding_window_attention", sizes, 2 * of_pairs * window, VARIANT, quick=True, file=file)
    for name in ("alibi", "softcap"):
        yield Work("variant", name, sizes, 2 * of_pairs * causal_pairs, VARIANT, file=PROGRAMS / f"{name}.blk")
    packed = {dim: size for dim, size in sizes.items() if dim != "b"}
    file = EXAMPLES / "packed_documents.blk"
    yield Work("variant", "packed_documents", packed, of_pairs * documents, VARIANT, file=file)


def window_pairs(length: int) -> int:
    """The pairs of positions that see each other in a causal window of 128."""
    return sum(min(at + 1, 128) for at in range(length))


def document_pairs(length: int) -> int:
    """Those of packed documents, where all see the first position too."""
    each = length // DOCUMENTS
    return DOCUMENTS * each * (each + 1) // 2 + length - each


def decoding() -> Iterator[Work]:
    """One query for each of eight heads that share keys and values."""
    for batch, length in ((16, 8192), (1, 65536)):
        sizes = {"b": batch, "kv": 8, "g": 8, "n": length, "d": 128, "e": 128}
        flops = 4 * batch * 64 * length * 128
        file = PROGRAMS / "decode.blk"
        yield Work("decode", "decode", sizes, flops, ("FA2", "Flex", "compile"), quick=batch == 16, file=file)


def norms() -> Iterator[Work]:
    """Norms and products, small and large, for few rows and for many."""
    file = EXAMPLES / "layernorm_matmul.blk"
    for m, d, n in ((16384, 1024, 1024), (8192, 4096, 4096)):
        yield Work("norm", "layernorm_matmul", {"m": m, "d": d, "n": n}, 2 * m * d * n, ("autotune",), file=file)
    file = PROGRAMS / "rmsnorm_linear.blk"
    for m, d, n in ((1, 4096, 4096), (16, 4096, 4096), (8192, 4096, 4096)):
        flops = 2 * m * d * n
        sizes = {"m": m, "d": d, "n": n}
        yield Work("norm", "rmsnorm_linear", sizes, flops, ("autotune",), quick=m == 16, file=file)
    file = EXAMPLES / "rmsnorm_swiglu.blk"
    for m, d, z in ((16, 4096, 14336), (8192, 4096, 14336), (16384, 256, 1024)):
        sizes = {"m": m, "d": d, "z": z, "e": d}
        yield Work("norm", "rmsnorm_swiglu", sizes, 6 * m * d * z, ("autotune",), file=file)


OTHERS = {  # examples that have no row above, with the products of all pairs or elements
    "grouped_heads": {"b": 2, "kv": 8, "g": 4, "m": 4096, "n": 4096, "d": 128, "e": 128},
    "softcap_attention": {"b": 4, "h": 16, "m": 4096, "n": 4096, "d": 128, "e": 128},
    "triangle_attention": {"b": 256, "h": 4, "m": 256, "n": 256, "d": 32, "e": 32},
    "differential_attention": {"b": 4, "h": 16, "m": 4096, "n": 4096, "d": 64, "e": 128},
    "sigmoid_attention": {"b": 4, "h": 16, "m": 4096, "n": 4096, "d": 128, "e": 128},
    "cosine_attention": {"b": 4, "h": 16, "m": 4096, "n": 4096, "d": 64, "e": 64},
    "cross_attention": {"b": 4, "h": 16, "m": 4096, "n": 4096, "d": 64, "e": 128},
    "attention_lse": {"b": 4, "h": 16, "m": 4096, "n": 4096, "d": 128, "e": 128},
    "attention_entropy": {"b": 4, "h": 16, "m": 4096, "n": 4096, "d": 128},
    "linear_attention": {"b": 4, "h": 16, "m": 4096, "n": 4096, "d": 64, "e": 64},
    "rmsnorm_qkv": {"m": 8192, "d": 4096, "e": 4096, "k": 1024, "v": 1024},
    "cross_entropy": {"m": 8192, "d": 2048, "v": 32768},
    "matmul_gelu": {"m": 8192, "k": 4096, "n": 4096},
    "matmul_relu": {"m": 8192, "k": 4096, "n": 4096},
    "mlp": {"m": 8192, "d": 1024, "z": 4096, "e": 1024},
}
IN_FILE = {"matmul_gelu": "matmul_epilogue", "matmul_relu": "matmul_epilogue"}


def products(name: str, s: Mapping[str, int]) -> int:
    """The operations of all products of one of `OTHERS`."""
    match name:
        case "rmsnorm_qkv":
            return 2 * s["m"] * s["d"] * (s["e"] + s["k"] + s["v"])
        case "cross_entropy":
            return 2 * s["m"] * s["d"] * s["v"]
        case "matmul_gelu" | "matmul_relu":
            return 2 * s["m"] * s["k"] * s["n"]
        case "mlp":
            return 2 * s["m"] * s["z"] * (s["d"] + s["e"])
        case "linear_attention":  # keys and values first
            return 4 * s["b"] * s["h"] * s["n"] * s["d"] * s["e"]
        case "grouped_heads":
            return 2 * s["b"] * s["kv"] * s["g"] * (s["m"] * (s["m"] + 1) // 2) * (s["d"] + s["e"])
        case "differential_attention":
            return 2 * s["b"] * s["h"] * s["m"] * s["n"] * (2 * s["d"] + s["e"])
        case _:
            return 2 * s["b"] * s["h"] * s["m"] * s["n"] * (s["d"] + s.get("e", 0))


def examples() -> Iterator[Work]:
    """The examples that are in no other row, beside their formula compiled by torch."""
    for name, sizes in OTHERS.items():
        file = EXAMPLES / f"{IN_FILE.get(name, name)}.blk"
        yield Work("example", name, sizes, products(name, sizes), ("compile",), file=file)


# --- the other candidates ---------------------------------------------------------------------------------------------

Call = Callable[[], Any]


def other(work: Work, name: str, tensors: Tensors) -> Call:
    """A call of another candidate: it returns the outputs in order."""
    rows = torch.arange(work.sizes.get("m", 1), device=next(iter(tensors.values())).device)
    formula = FORMULAS[work.program_name]
    match name:
        case "compile":
            compiled = torch.compile(formula, dynamic=False)
            return lambda: compiled(tensors, rows)
        case "autotune":
            tuned = torch.compile(formula, dynamic=False, mode="max-autotune-no-cudagraphs")
            return lambda: tuned(tensors, rows)
        case "cuDNN" | "FA2":
            return library_attention(work, name, tensors)
        case "Flex":
            return flex(work, tensors)
        case _:
            raise ValueError(name)


def heads_of(work: Work, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values with the axes batch, head, position and feature."""
    q, k, v = tensors["Q"], tensors["K"], tensors["V"]
    if work.group == "decode":
        return q.flatten(1, 2)[:, :, None], k, v  # one query for each head of a group
    return (q, k, v) if q.dim() == 4 else (q[None], k[None], v[None])


def library_attention(work: Work, name: str, tensors: Tensors) -> Call:
    """torch's own attention, by cuDNN or FlashAttention 2, and nothing else."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = SDPBackend.CUDNN_ATTENTION if name == "cuDNN" else SDPBackend.FLASH_ATTENTION
    q, k, v = heads_of(work, tensors)
    is_causal, grouped = work.program_name == "causal_attention", work.group == "decode"

    def call() -> tuple[torch.Tensor, ...]:
        with sdpa_kernel(backend):
            found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=grouped)
        return (found.view(tensors["Q"].shape) if grouped else found,)

    return call


def flex(work: Work, tensors: Tensors) -> Call:
    """torch's FlexAttention, with blocks left out that a mask hides."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = heads_of(work, tensors)
    grouped = work.group == "decode"
    mask, score = flex_parts(work.program_name, tensors)
    block_mask = None
    if mask is not None:
        block_mask = create_block_mask(mask, None, None, q.shape[-2], k.shape[-2], device=str(q.device))
    compiled: Callable[..., torch.Tensor] = torch.compile(flex_attention, dynamic=False)
    shape = (*tensors["Q"].shape[:-1], v.shape[-1])
    return lambda: (compiled(q, k, v, score_mod=score, block_mask=block_mask, enable_gqa=grouped).view(shape),)


def flex_parts(name: str, tensors: Tensors) -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]:
    """What FlexAttention takes for a variant: which pairs are seen, and what becomes of a score."""

    def before(b: Any, h: Any, q: Any, k: Any) -> Any:
        return k <= q

    def near(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q - k >= 0) & (q - k < 128)

    def document(b: Any, h: Any, q: Any, k: Any) -> Any:
        same = tensors["query_document"][q] == tensors["key_document"][k]
        return (k <= q) & (same | (k == 0))

    def sloped(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return score + tensors["slope"][h] * (k - q)

    def capped(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return 50 * torch.tanh(score / 50)

    match name:
        case "causal_attention":
            return before, None
        case "sliding_window_attention":
            return near, None
        case "packed_documents":
            return document, None
        case "alibi":
            return before, sloped
        case "softcap":
            return before, capped
        case _:
            return None, None
