"""Layers at two granularities and layers beside convolutions, against formulas written from their papers."""

from __future__ import annotations

import math

import pytest
import torch
from agreement import agree, heads, joined
from narrowed import added, through
from torch import Tensor
from torch.nn import functional

from einfuse.library.layers import convolving, vision_coarse


def test_focal() -> None:
    """Window after window: the tokens and the summaries that it sees, one softmax over both."""
    side, reach, far, height, width = 2, 1, 1, 4, 8
    layer = vision_coarse.FocalAttention(8, 2, side, reach, far, backend="torch")

    def eager(x: Tensor) -> Tensor:
        q, k, v = (
            heads(m(x.reshape(2, -1, 8)), 2).reshape(2, 2, height, width, 4) for m in (layer.query, layer.key, layer.value)
        )
        cells = x.reshape(2, height // side, side, width // side, side, 8).transpose(2, 3).flatten(3, 4)
        pooled = (cells * layer.pool.weight[0, :, None]).sum(3) + layer.pool.bias
        ck, cv = (
            heads(m(pooled.flatten(1, 2)), 2).reshape(2, 2, height // side, width // side, 4) for m in (layer.key, layer.value)
        )
        out = torch.zeros_like(q)
        for a in range(height):
            for c in range(width):
                wy, wx = a // side, c // side
                ys = [y for y in range(wy * side - reach, (wy + 1) * side + reach) if 0 <= y < height]
                xs = [n for n in range(wx * side - reach, (wx + 1) * side + reach) if 0 <= n < width]
                ws = [(y, n) for y in range(wy - far, wy + far + 1) for n in range(wx - far, wx + far + 1)]
                ws = [(y, n) for y, n in ws if 0 <= y < height // side and 0 <= n < width // side]
                scores, values = [], []
                for y in ys:
                    for n in xs:
                        bias = layer.fine[:, y - a + side + reach - 1, n - c + side + reach - 1]
                        scores.append((q[:, :, a, c] * k[:, :, y, n]).sum(-1) / 2 + bias)
                        values.append(v[:, :, y, n])
                for y, n in ws:
                    scores.append((q[:, :, a, c] * ck[:, :, y, n]).sum(-1) / 2 + layer.coarse[:, y - wy + far, n - wx + far])
                    values.append(cv[:, :, y, n])
                p = torch.stack(scores, -1).softmax(-1)
                out[:, :, a, c] = torch.einsum("bhj,bhje->bhe", p, torch.stack(values, 2))
        return through(layer.out, joined(out.flatten(2, 3))).reshape(x.shape)

    agree(layer, eager, torch.randn(2, height, width, 8))


@pytest.mark.parametrize("linear", [False, True])
def test_tokens_to_token(linear: bool) -> None:
    layer = vision_coarse.TokensToToken(3, 4, 3, 2, linear, backend="torch")
    with torch.no_grad():
        layer.project.weight.mul_(0.3)  # features are exponentials of squares

    def eager(x: Tensor) -> Tensor:
        padded = functional.pad(x, (0, 0, 1, 1, 1, 1))
        rows = [padded[:, y : y + 3, n : n + 3].permute(0, 3, 1, 2).flatten(1) for y in range(0, 5, 2) for n in range(0, 7, 2)]
        q, k, v = layer.project(layer.norm(torch.stack(rows, 1))).chunk(3, -1)
        if linear:
            w = layer.features
            fq, fk = ((t @ w.T - t.square().sum(-1, keepdim=True) / 2).exp() / math.sqrt(2) for t in (q, k))
            y = fq @ (fk.mT @ v) / (fq @ fk.sum(1)[:, :, None] + 1e-8)
        else:
            y = (q @ k.mT / 2).softmax(-1) @ v
        y = v + layer.out(y)
        return added((y, through(layer.network, layer.after(y)))).reshape(2, 3, 4, 4)

    agree(layer, eager, torch.randn(2, 5, 7, 3), scale=0.1)
    if linear:
        torch.testing.assert_close(layer.features @ layer.features.T, 2 * torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_mixed_attention() -> None:
    layer = convolving.MixedAttention(8, 4, 3, backend="torch")
    pad = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])

    def eager(x: Tensor, pad: Tensor) -> Tensor:
        q, k, v = (heads(m(x), 2) for m in (layer.query, layer.key, layer.value))
        attended = (q @ k.mT / math.sqrt(2)).masked_fill(~pad[:, None, None], -torch.inf).softmax(-1) @ v
        padded = functional.pad(x, (0, 0, 1, 1))
        span = layer.span(sum(padded[:, t : t + 6] * layer.depthwise.weight[:, 0, t] for t in range(3)))
        kernels = layer.kernel(layer.query(x) * span).reshape(2, 6, 2, 3).softmax(-1)
        values = functional.pad(layer.convolved(x), (0, 0, 1, 1)).reshape(2, 8, 2, 2)
        local = sum(kernels[..., t, None] * values[:, t : t + 6] for t in range(3)).flatten(2)
        return through(layer.out, torch.cat([joined(attended), local], -1))

    agree(layer, eager, torch.randn(2, 6, 8), pad)
    with pytest.raises(ValueError, match="found 3 heads"):
        convolving.MixedAttention(9, 3)
