"""What torch offers for a variant: the same attention by scaled_dot_product_attention or flex_attention, where it can be said there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

Inputs = Mapping[str, Any]
Run = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Variant:
    """A spec of the library in flex_attention's terms, its extra arguments, and the kind of plain attention it is ("" if neither)."""

    name: str
    score: Callable[[Inputs], Callable[..., Any]] | None = None
    mask: Callable[[Inputs], Callable[..., Any]] | None = None
    plain: str = ""


def _alibi(x: Inputs) -> Callable[..., Any]:
    slope = x["slope"]
    return lambda s, b, h, i, j: s + slope[h] * (j - i)


def _capped(x: Inputs) -> Callable[..., Any]:
    return lambda s, b, h, i, j: 50.0 * torch.tanh(s / 50.0)


def _biased(x: Inputs) -> Callable[..., Any]:
    bias = x["bias"]
    return lambda s, b, h, i, j: s + bias[h, i, j]


def _causal(x: Inputs) -> Callable[..., Any]:
    return lambda b, h, i, j: j <= i


def _window(x: Inputs) -> Callable[..., Any]:
    return lambda b, h, i, j: (j <= i) & (i - j < 256)


def _document(x: Inputs) -> Callable[..., Any]:
    doc = x["doc"]
    return lambda b, h, i, j: (doc[b, i] == doc[b, j]) & (j <= i)


def _prefix(x: Inputs) -> Callable[..., Any]:
    prefix = x["prefix"]
    return lambda b, h, i, j: (j <= i) | (j < prefix[b])


VARIANTS = (
    Variant("causal", mask=_causal, plain="causal"),
    Variant("full", plain="full"),
    Variant("alibi", score=_alibi, mask=_causal),
    Variant("sliding_window", mask=_window),
    Variant("alibi_window", score=_alibi, mask=_window),
    Variant("softcap", score=_capped, mask=_causal),
    Variant("document", mask=_document),
    Variant("prefix", mask=_prefix),
    Variant("head_bias", score=_biased),
)


def inputs(variant: Variant, b: int, h: int, n: int, d: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of the spec by name: the tensors a peer is given too."""
    made: dict[str, Any] = {name: torch.randn(b, h, n, d, device=device).to(dtype) for name in ("q", "k", "v")}
    made = {name: x.requires_grad_() for name, x in made.items()}
    if variant.score is _alibi:
        made["slope"] = 2.0 ** (-8.0 * torch.arange(1, h + 1, device=device) / h)
    if variant.score is _biased:
        made["bias"] = torch.randn(h, n, n, device=device).to(dtype)
    if variant.mask is _document:
        made["doc"] = (torch.arange(n, device=device) * 8 // n).expand(b, n).contiguous()
    if variant.mask is _prefix:
        made["prefix"] = torch.full((b,), n // 4, device=device)
    return made


def peers(variant: Variant, x: Inputs, compiled: bool = True) -> dict[str, Run]:
    """By name, everything in torch that computes this variant on these arguments."""
    q, k, v = x["q"], x["k"], x["v"]
    found: dict[str, Run] = {}
    if variant.plain:
        causal = variant.plain == "causal"
        half = (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION))
        for name, backend in half if q.dtype.itemsize == 2 else (("efficient", SDPBackend.EFFICIENT_ATTENTION),):
            found[f"sdpa {name}"] = _sdpa(q, k, v, causal, backend)
    mask = None
    if variant.mask is not None:
        b, _, n, _ = q.shape
        mask = create_block_mask(variant.mask(x), b if "doc" in x or "prefix" in x else None, None, n, n, device=str(q.device))
    score = variant.score(x) if variant.score is not None else None
    run = torch.compile(flex_attention) if compiled else flex_attention
    found["flex_attention"] = lambda: run(q, k, v, score_mod=score, block_mask=mask)
    return found


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, backend: SDPBackend, grouped: bool = False) -> Run:
    def run() -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)

    return run


def decoders(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, Run]:
    """What torch has for a query on many keys, heads of which may be shared."""
    grouped = q.shape[1] != k.shape[1]
    run = torch.compile(flex_attention)
    return {
        "sdpa flash": _sdpa(q, k, v, False, SDPBackend.FLASH_ATTENTION, grouped),
        "flex_attention": lambda: run(q, k, v, enable_gqa=grouped),
    }


def scanned(name: str, b: int, h: int, n: int, d: int) -> dict[str, torch.Tensor]:
    """Arguments of a recurrence of the library on the device in bf16, laid out as flash-linear-attention has them: [batch, token, head,
    feature]."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("q", "k", "v"), (b, n, h, d))
    more: dict[str, dict[str, tuple[int, ...]]] = {
        "gla": {"g": (b, n, h, d)},
        "delta": {"beta": (b, n, h)},
        "gated_delta": {"g": (b, n, h), "beta": (b, n, h)},
    }
    shapes |= more.get(name, {})
    made = {x: torch.randn(s, device="cuda", dtype=torch.bfloat16).requires_grad_() for x, s in shapes.items()}
    return made | ({"slope": 2.0 ** (-5.0 - torch.arange(h, device="cuda"))} if name == "retention" else {})


def turned(x: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors as views [batch, head, token, feature]."""
    return {n: t.transpose(1, 2) if t.dim() > 1 else t for n, t in x.items()}


def has_fla() -> bool:
    """Whether flash-linear-attention is installed."""
    return importlib.util.find_spec("fla") is not None


def fla(name: str, x: Mapping[str, torch.Tensor]) -> Run:
    """The same recurrence by flash-linear-attention's chunked kernels, the gates' functions included."""
    q, k, v = (x[n] for n in "qkv")
    if name == "retention":
        from fla.ops.simple_gla import chunk_simple_gla

        return lambda: chunk_simple_gla(q, k, v, g_gamma=-x["slope"])[0]
    if name == "gla":
        from fla.ops.gla import chunk_gla

        return lambda: chunk_gla(q, k, v, F.logsigmoid(x["g"]) / 16)[0]
    scale = q.shape[-1] ** -0.5
    if name == "delta":
        from fla.ops.delta_rule import chunk_delta_rule

        return lambda: chunk_delta_rule(q, F.normalize(k, dim=-1), v, x["beta"].sigmoid(), scale=scale)[0]
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return lambda: chunk_gated_delta_rule(
        q, F.normalize(k, dim=-1), v, F.logsigmoid(x["g"].float()), x["beta"].sigmoid(), scale=scale
    )[0]


def live_pairs(variant: Variant, x: Inputs) -> int:
    """The (query, key) pairs of all heads that the mask leaves."""
    b, h, n, _ = map(int, x["q"].shape)
    if variant.mask is None:
        return b * h * n * n
    at = torch.arange(n, device=x["q"].device)
    keep = variant.mask(x)
    return h * sum(int(keep(batch, 0, at[:, None], at[None, :]).sum()) for batch in range(b))
