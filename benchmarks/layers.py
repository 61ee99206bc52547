"""A step of training ten layers of the library, beside the same layers with their attention in plain torch.

    python benchmarks/layers.py [--threads 1] [--batch 8] [--length 128] [--width 64] [--repeats 40] [--only sink]

Forward, a loss and backward. The two share projections and weights; what is exchanged is the attention between them, written as one would in
torch: `scaled_dot_product_attention` where it can say the scores, tables that no parameter changes made once. Milliseconds of processor time,
medians, in turns. Exit code 1 where a result or a gradient is not the peer's.
"""

from __future__ import annotations

import copy
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import harness
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from einfuse.library import layers

WRONG = 1e-3
"""The largest `difference` to the peer's that rounding explains."""
kept = functools.lru_cache(maxsize=None)


@kept
def offsets(n: int) -> Tensor:
    """j - i of every pair."""
    at = torch.arange(n)
    return at - at[:, None]


@kept
def hidden(n: int) -> Tensor:
    """What a causal mask hides."""
    return offsets(n) > 0


def weighted(scores: Tensor, v: Tensor) -> Tensor:
    return scores.softmax(-1) @ v


@kept
def angles(n: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions."""
    rate = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(n)[:, None] * torch.cat([rate, rate])
    return angle.cos(), angle.sin()


def rope(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    cos, sin = angles(*q.shape[-2:])

    def turned(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    return F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)


@kept
def biases(n: int, slope: tuple[float, ...]) -> Tensor:
    """What ALiBi adds to the scores of every head."""
    return (torch.tensor(slope)[:, None, None] * offsets(n)).masked_fill(hidden(n), -torch.inf)


def alibi(q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, biases(q.shape[-2], tuple(slope.tolist())))


def padding(q: Tensor, k: Tensor, v: Tensor, pad: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, pad[:, None, None])


@kept
def buckets(n: int) -> Tensor:
    """The buckets of T5, which sees both sides."""
    far, half, whole = offsets(n).abs(), 8, 16
    logs = half + (torch.log(far.clamp(min=1) / half) / math.log(128 / half) * (whole - half) + 1e-4).floor().long()
    return torch.where(far < half, far, logs.clamp(max=whole - 1)) + 16 * (offsets(n) > 0)


def t5(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, table[:, buckets(q.shape[-2])], scale=1.0)


def shaw(q: Tensor, k: Tensor, v: Tensor, a: Tensor, c: Tensor) -> Tensor:
    reach = a.shape[0] // 2
    at = offsets(q.shape[-2]).clamp(-reach, reach) + reach
    scores = q @ k.mT + torch.einsum("bhid,ijd->bhij", q, a[at])
    p = (scores * q.shape[-1] ** -0.5).softmax(-1)
    out: Tensor = p @ v + torch.einsum("bhij,ije->bhie", p, c[at])
    return out


def deberta(q: Tensor, k: Tensor, v: Tensor, pq: Tensor, pk: Tensor) -> Tensor:
    reach, n = pk.shape[-2] // 2, q.shape[-2]
    at = ((-offsets(n)).clamp(-reach, reach - 1) + reach).expand(*q.shape[:2], n, n)  # of i - j, and of j - i where turned
    scores = q @ k.mT + (q @ pk.mT).gather(-1, at) + (k @ pq.mT).gather(-1, at).mT
    return weighted(scores * (3 * q.shape[-1]) ** -0.5, v)


def sigmoid(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n = q.shape[-2]
    scores: Tensor = q @ k.mT * q.shape[-1] ** -0.5 - math.log(n)
    return scores.sigmoid().masked_fill(hidden(n), 0) @ v


def sink(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
    n = q.shape[-2]
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden(n), -torch.inf)
    more = sink[:, None, None].expand(q.shape[0], -1, n, 1)
    return torch.cat([scores, more], -1).softmax(-1)[..., :-1] @ v


def retention(q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> tuple[Tensor, None]:
    n = q.shape[-2]
    decay = (slope[:, None, None] * offsets(n)).masked_fill(hidden(n), -torch.inf).exp()
    return q @ k.mT * q.shape[-1] ** -0.5 * decay @ v, None


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, None]:
    """Token by token, as the paper says it."""
    k, strength = F.normalize(k, dim=-1), beta.sigmoid()[..., None]
    state, rows = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]), []
    for t in range(q.shape[-2]):
        at = (slice(None), slice(None), slice(t, t + 1))
        state = state + k[at].mT @ (strength[at] * (v[at] - k[at] @ state))
        rows.append(q[at] @ state)
    return torch.cat(rows, -2) * q.shape[-1] ** -0.5, None


LAYERS: dict[str, tuple[Callable[..., nn.Module], Callable[..., Any]]] = {
    "rotary": (layers.RotaryAttention, rope),
    "alibi": (layers.AlibiAttention, alibi),
    "bert": (layers.BertAttention, padding),
    "t5": (layers.T5Attention, t5),
    "relative": (layers.RelativeAttention, shaw),
    "disentangled": (functools.partial(layers.DisentangledAttention, reach=64), deberta),
    "sigmoid": (layers.SigmoidAttention, sigmoid),
    "sink": (layers.SinkAttention, sink),
    "lightning": (layers.LightningAttention, retention),
    "delta": (layers.DeltaNetAttention, delta),
}
"""Layers, and their attention in plain torch."""


def twins(name: str, width: int, heads: int) -> tuple[nn.Module, nn.Module]:
    """A layer, and the same with its attention in plain torch."""
    make, plain = LAYERS[name]
    ours = make(width, heads)
    peer = copy.deepcopy(ours)
    peer.attention = plain  # type: ignore[assignment]  # a function in the place of a module
    return ours, peer


def step(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The result and all gradients."""
    layer.zero_grad()
    x.grad = None
    out = layer(x)
    out.square().mean().backward()
    return [out.detach(), *(p.grad for p in (x, *layer.parameters()) if p.grad is not None)]


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest one of a result over its largest value, of gradients over the largest of them all: some are 0 but for rounding."""
    result, *gradients = [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
    scale, *scales = [float(b.abs().max()) for b in theirs]
    return max(result / scale, max(gradients) / max(scales))


def main(argv: list[str] | None = None) -> int:
    made = harness.options(__doc__, repeats=40, threads=1, only=LAYERS, json=True, batch=8, length=128, width=64, heads=4)
    args = harness.parsed(made, argv)
    table = harness.Table("layer:14", "plain torch, ms:.2f", "ours, ms:.2f", "of it:.2f", "off by:.0e")
    wrong = 0
    for name in args.only:
        torch.manual_seed(0)
        ours, peer = twins(name, args.width, args.heads)
        x = torch.randn(args.batch, args.length, args.width, requires_grad=True)
        off = difference(step(ours, x), step(peer, x))
        row = {"plain": functools.partial(step, peer, x), "ours": functools.partial(step, ours, x)}
        times = harness.medians(row, args.repeats, skipped=5)
        table.row(name, times["plain"], times["ours"], times["ours"] / times["plain"], off)
        wrong += not off <= WRONG
    harness.write(args.json, {"rows": table.rows})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
