"""The variants that benchmarks/cpu.py times: our call, what `scaled_dot_product_attention` and `flex_attention` take to say the same."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

import einfuse

Call = Callable[[], Any]
"""One output, a tensor; what an attention returns depends on its spec."""
WINDOW, CAP, DOCUMENT, KEYS = 256, 50.0, 512, 16384
EVICTED = 128 << 20  # bytes that are read to leave nothing else in the caches


@dataclass(frozen=True, slots=True)
class Shape:
    """H query heads of width D over S tokens in one batch."""

    heads: int
    length: int
    width: int
    dtype: torch.dtype


@dataclass(slots=True)
class Case:
    """Calls by who answers them (all without gradients) and the pairs a head looks at.

    ``inputs`` are q, k, v; ``flex`` gives the options that say the same to `flex_attention`; ``trained`` calls our kernel and SDPA on
    given q, k, v, for gradients (where SDPA has the variant). ``between`` runs before every call and is not timed. ``yardsticks``
    are timed in the same turns: our own plain causal attention, a copy that moves as many bytes as q, k, v hold, a loop that reads them.
    """

    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    pairs: float
    calls: dict[str, Call] = field(default_factory=dict)
    flex: Callable[[], dict[str, Any]] | None = None
    trained: dict[str, Callable[..., Any]] = field(default_factory=dict)
    between: Callable[[], object] | None = None
    yardsticks: dict[str, Call] = field(default_factory=dict)


def _causal(b, h, i, j):  # type: ignore[no-untyped-def]  # torch traces it
    return j <= i


def made(name: str, shape: Shape) -> Case:
    """A variant at a shape. Raises KeyError for a name that is not in `VARIANTS`."""
    return VARIANTS[name](shape)


def _qkv(shape: Shape, queries: int = 0, keys: int = 0, kv_heads: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    q = torch.randn(1, shape.heads, queries or shape.length, shape.width, dtype=shape.dtype)
    k, v = (torch.randn(1, kv_heads or shape.heads, keys or shape.length, shape.width, dtype=shape.dtype) for _ in range(2))
    return q, k, v


def flex_calls(case: Case) -> dict[str, Call]:
    """`flex_attention` on the case, compiled and eager, if it can say it. Makes its block mask."""
    if case.flex is None:
        return {}
    from torch.nn.attention.flex_attention import flex_attention

    options = case.flex()
    fast = torch.compile(flex_attention, dynamic=False)
    return {
        "flex compiled": lambda: fast(*case.inputs, **options),
        "flex eager": lambda: flex_attention(*case.inputs, **options),
    }


def _blocks(mask: Callable[..., Any], length: int, keys: int = 0) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(mask, None, None, length, keys or length, device="cpu")


def full(shape: Shape) -> Case:
    q, k, v = _qkv(shape)
    ours, sdpa = einfuse.compile("full"), F.scaled_dot_product_attention
    case = Case((q, k, v), shape.length**2, {"einfuse": lambda: ours(q, k, v), "sdpa": lambda: sdpa(q, k, v)})
    case.trained = {"einfuse": ours, "sdpa": sdpa}
    case.flex = lambda: {"block_mask": _blocks(lambda b, h, i, j: j >= 0, shape.length)}
    return case


def causal(shape: Shape) -> Case:
    q, k, v = _qkv(shape)
    ours, sdpa = einfuse.compile("causal"), functools.partial(F.scaled_dot_product_attention, is_causal=True)
    case = Case((q, k, v), _triangle(shape), {"einfuse": lambda: ours(q, k, v), "sdpa": lambda: sdpa(q, k, v)})
    case.trained = {"einfuse": ours, "sdpa": sdpa}
    case.flex = lambda: {"block_mask": _blocks(_causal, shape.length)}
    return case


def window(shape: Shape) -> Case:
    q, k, v = _qkv(shape)
    ours = einfuse.compile("sliding_window")
    mask = lambda b, h, i, j: (j <= i) & (i - j < WINDOW)  # noqa: E731  # flex traces it
    live = _dense(mask, shape)
    calls: dict[str, Call] = {"einfuse": lambda: ours(q, k, v, window=WINDOW)}
    calls["sdpa"] = lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=live)
    return Case((q, k, v), live.sum().item(), calls, lambda: {"block_mask": _blocks(mask, shape.length)})


def alibi(shape: Shape) -> Case:
    q, k, v = _qkv(shape)
    slope = 2.0 ** -torch.arange(1, shape.heads + 1)
    ours = einfuse.compile("alibi")
    away = torch.arange(shape.length) - torch.arange(shape.length)[:, None]
    bias = (slope[:, None, None] * away).masked_fill(away > 0, -math.inf)[None].to(shape.dtype)
    calls: dict[str, Call] = {"einfuse": lambda: ours(q, k, v, slope=slope)}
    calls["sdpa"] = lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    tilt = lambda s, b, h, i, j: s + slope[h] * (j - i)  # noqa: E731
    case = Case((q, k, v), _triangle(shape), calls, yardsticks=_plain(q, k, v))
    case.flex = lambda: {"score_mod": tilt, "block_mask": _blocks(_causal, shape.length)}
    return case


def softcap(shape: Shape) -> Case:
    q, k, v = _qkv(shape)
    ours = einfuse.compile("softcap")
    case = Case((q, k, v), _triangle(shape), {"einfuse": lambda: ours(q, k, v, cap=CAP)}, yardsticks=_plain(q, k, v))
    case.flex = lambda: {
        "score_mod": lambda s, b, h, i, j: CAP * torch.tanh(s / CAP),
        "block_mask": _blocks(_causal, shape.length),
    }
    return case


def documents(shape: Shape) -> Case:
    q, k, v = _qkv(shape)
    doc = (torch.arange(shape.length) // DOCUMENT).int()
    ours = einfuse.compile("document")
    mask = lambda b, h, i, j: (doc[i] == doc[j]) & (j <= i)  # noqa: E731
    live = _dense(mask, shape)
    calls: dict[str, Call] = {"einfuse": lambda: ours(q, k, v, doc=doc[None])}
    calls["sdpa"] = lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=live)
    return Case((q, k, v), live.sum().item(), calls, lambda: {"block_mask": _blocks(mask, shape.length)})


def sigmoid(shape: Shape) -> Case:
    """Neither peer has another normaliser than softmax."""
    q, k, v = _qkv(shape)
    ours = einfuse.compile("sigmoid")
    return Case((q, k, v), _triangle(shape), {"einfuse": lambda: ours(q, k, v)}, yardsticks=_plain(q, k, v))


def grouped(shape: Shape) -> Case:
    """Four query heads a key head (8:2), causal."""
    q, k, v = _qkv(shape, kv_heads=max(1, shape.heads // 4))
    ours, sdpa = einfuse.compile("causal"), F.scaled_dot_product_attention
    calls: dict[str, Call] = {"einfuse": lambda: ours(q, k, v)}
    calls["sdpa"] = lambda: sdpa(q, k, v, is_causal=True, enable_gqa=True)
    case = Case((q, k, v), _triangle(shape), calls)
    case.flex = lambda: {"block_mask": _blocks(_causal, shape.length), "enable_gqa": True}
    return case


def decode(shape: Shape, kv_heads: int = 0) -> Case:
    """One query over 16k keys, whatever the length asked for, none of them in a cache."""
    q, k, v = _qkv(shape, 1, KEYS, kv_heads)
    ours = einfuse.compile("full")
    sdpa = functools.partial(F.scaled_dot_product_attention, enable_gqa=bool(kv_heads))
    other, target = torch.ones(EVICTED // 4), torch.empty_like(k)
    case = Case((q, k, v), KEYS, {"einfuse": lambda: ours(q, k, v), "sdpa": lambda: sdpa(q, k, v)})
    case.flex = lambda: {"enable_gqa": bool(kv_heads)}
    case.between = other.sum
    words = [x.view(torch.float32) for x in (k, v)]
    case.yardsticks = {"copy": lambda: target.copy_(k), "read": lambda: sum(x.sum() for x in words)}
    return case


def grouped_decode(shape: Shape) -> Case:
    """Four query heads a key head: keys and values are a quarter as many bytes."""
    return decode(shape, max(1, shape.heads // 4))


def _plain(*qkv: torch.Tensor) -> dict[str, Call]:
    causal = einfuse.compile("causal")
    return {"plain": lambda: causal(*qkv)}


def _triangle(shape: Shape) -> float:
    return shape.length * (shape.length + 1) / 2


def _dense(mask, shape: Shape) -> torch.Tensor:  # type: ignore[no-untyped-def]
    at = torch.arange(shape.length)
    live: torch.Tensor = mask(0, 0, at[:, None], at)
    return live


TRAINED = ("full", "causal")
"""The variants that `scaled_dot_product_attention` has without a dense mask: timed with gradients too."""
VARIANTS: dict[str, Callable[[Shape], Case]] = {
    "full": full,
    "causal": causal,
    "window": window,
    "alibi": alibi,
    "softcap": softcap,
    "documents": documents,
    "sigmoid": sigmoid,
    "gqa": grouped,
    "decode": decode,
    "gqa decode": grouped_decode,
}
