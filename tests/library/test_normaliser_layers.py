"""Layers with other normalisers than softmax, beside their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from agreement import agree, heads, joined
from narrowed import through
from torch import nn
from torch.nn import functional

from einfuse.library.layers import normalisers as n
from einfuse.library.layers.common import Attending

X = (2, 7, 8)
TRIANGLE = torch.ones(7, 7, dtype=torch.bool).tril()


def qkv(layer: Attending, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (heads(m(x), 2) for m in (layer.query, layer.key, layer.value))
    return q, k, v


def cosine(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT


def weighted(layer: Attending, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return through(layer.out, joined(weights @ heads(layer.value(x), 2)))


def scores(layer: Attending, x: torch.Tensor) -> torch.Tensor:
    q, k, _ = qkv(layer, x)
    return q @ k.mT / 2


def sigmoid(layer: Attending, x: torch.Tensor) -> torch.Tensor:
    return weighted(layer, x, torch.sigmoid(scores(layer, x) - math.log(7)) * TRIANGLE)


def relu_squared(layer: Attending, x: torch.Tensor) -> torch.Tensor:
    return weighted(layer, x, scores(layer, x).relu().square() * TRIANGLE / torch.arange(1, 8)[:, None])


def quiet(layer: Attending, x: torch.Tensor) -> torch.Tensor:
    p = scores(layer, x).exp() * TRIANGLE
    return weighted(layer, x, p / (1 + p.sum(-1, keepdim=True)))


def sink(layer: n.SinkAttention, x: torch.Tensor) -> torch.Tensor:
    p = scores(layer, x).exp() * TRIANGLE
    return weighted(layer, x, p / (layer.sink.exp()[:, None, None] + p.sum(-1, keepdim=True)))


def cog(layer: Attending, x: torch.Tensor) -> torch.Tensor:
    s = scores(layer, x)
    p = s.abs().exp() * TRIANGLE
    return weighted(layer, x, s.sign() * p / p.sum(-1, keepdim=True))


def nap(layer: n.NormalizedAttentionPooling, x: torch.Tensor) -> torch.Tensor:
    s = scores(layer, x) * 2  # no 1 / sqrt(D)
    z = (s - s.mean(-1, keepdim=True)) / (s.var(-1, correction=0, keepdim=True) + 1e-8).sqrt()
    return weighted(layer, x, layer.gain[:, None, None] * z + layer.shift[:, None, None])


def softplus(layer: Attending, x: torch.Tensor) -> torch.Tensor:
    q, k, _ = qkv(layer, x)
    rows = torch.arange(1, 8, dtype=x.dtype)[:, None]
    a = functional.softplus(math.log(4) * rows.log() * cosine(q, k)) * TRIANGLE
    a = a / a.sum(-1, keepdim=True)
    w = (rows * a - (rows > 3).to(x)).relu() ** 3
    return weighted(layer, x, w / (w.sum(-1, keepdim=True) + 1e-6))


def power(layer: Attending, x: torch.Tensor) -> torch.Tensor:
    p = scores(layer, x) ** 4 * TRIANGLE
    return weighted(layer, x, p / p.sum(-1, keepdim=True))


def shaped(layer: n.ShapedAttention, x: torch.Tensor) -> torch.Tensor:
    q, k, _ = qkv(layer, x)
    p = torch.softmax((q @ k.mT / (0.25 * 8)).masked_fill(~TRIANGLE, -torch.inf), -1)
    a, b, c = (t[:, None, None] for t in (layer.alpha, layer.beta, layer.gamma))
    return weighted(layer, x, a * torch.eye(7) + b * p - c * TRIANGLE / torch.arange(1, 8)[:, None])


def taylor(layer: n.TaylorShiftAttention, x: torch.Tensor) -> torch.Tensor:
    q, k, _ = qkv(layer, x)
    z = layer.temperature[:, None, None] * cosine(q, k)
    p = 1 + z + z**2 / 2
    return weighted(layer, x, p / p.sum(-1, keepdim=True))


def prefix(layer: n.InfinitePrefixAttention, x: torch.Tensor) -> torch.Tensor:
    q, _, v = qkv(layer, x)
    p = scores(layer, x).exp() * TRIANGLE
    phi = functional.elu(q / 4**0.25) + 1
    over, under = p @ v + phi @ layer.prefix, p.sum(-1, keepdim=True) + phi @ layer.weight.abs()[..., None]
    return through(layer.out, joined(over / under))


def length_scaled(layer: n.LengthScaledAttention, x: torch.Tensor) -> torch.Tensor:
    q, k, _ = qkv(layer, x)
    return weighted(layer, x, torch.softmax(math.sqrt(math.log(7) / math.log(5) / 4) * (q @ k.mT), -1))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., torch.Tensor], float]] = {
    "sigmoid": (lambda: n.SigmoidAttention(8, 2, backend="torch"), sigmoid, 1e-8),
    "relu_squared": (lambda: n.ReluSquaredAttention(8, 2, backend="torch"), relu_squared, 1e-8),
    "quiet": (lambda: n.QuietAttention(8, 2, backend="torch"), quiet, 1e-8),
    "sink": (lambda: n.SinkAttention(8, 2, backend="torch"), sink, 1e-8),
    "cog": (lambda: n.CogAttention(8, 2, backend="torch"), cog, 1e-8),
    "nap": (lambda: n.NormalizedAttentionPooling(8, 2, backend="torch"), nap, 1e-8),
    # the language's l2_normalise has an epsilon under the root, torch's a floor
    "softplus": (lambda: n.SoftplusAttention(8, 2, backend="torch"), softplus, 3e-4),
    "power": (lambda: n.PowerSoftmaxAttention(8, 2, backend="torch"), power, 1e-8),
    "shaped": (lambda: n.ShapedAttention(8, 2, 0.25, backend="torch"), shaped, 1e-8),
    "taylor": (lambda: n.TaylorShiftAttention(8, 2, backend="torch"), taylor, 1e-5),
    "prefix": (lambda: n.InfinitePrefixAttention(8, 2, backend="torch"), prefix, 1e-8),
    "length_scaled": (lambda: n.LengthScaledAttention(8, 2, trained=5, backend="torch"), length_scaled, 1e-8),
}


@pytest.mark.parametrize("name", CASES)
def test_a_normaliser_is_its_formula(name: str) -> None:
    make, formula, tolerance = CASES[name]
    layer = make()
    agree(layer, lambda x: formula(layer, x), torch.randn(X), tolerance=tolerance)


def test_pattention() -> None:
    layer = n.Pattention(8, 6, 5, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        s = x @ layer.key.T
        return functional.gelu(math.sqrt(5) * s / s.norm(dim=-1, keepdim=True)) @ layer.value

    agree(layer, eager, torch.randn(X))
    with pytest.raises(ValueError, match="even and positive, found 3"):
        n.PowerSoftmaxAttention(8, 2, power=3)
