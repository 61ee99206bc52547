"""Layers on recurrences, beside the papers' formulas over all pairs of tokens, and beside themselves token by token."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from agreement import agree, heads, joined
from narrowed import added, through, weight
from torch import Tensor
from torch.nn import functional

from einfuse.library.layers import recurrent as r

N, HEADS, D = 7, 2, 4
X = (2, N, HEADS * D)
FAR = torch.arange(N)[:, None] - torch.arange(N)[None]
BELOW = FAR >= 0


def qkv(layer: r.RetentionAttention | r.LightningAttention, x: Tensor) -> list[Tensor]:
    return [heads(m(x), HEADS) for m in (layer.query, layer.key, layer.value)]


def retention(layer: r.RetentionAttention, x: Tensor) -> Tensor:
    """With complex numbers: the pair (d, d + D/2) is turned by n / 10000^(2d/D)."""
    q, k, v = qkv(layer, x)
    angle = torch.arange(N, dtype=torch.float64)[:, None] * 10000 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    turn = torch.polar(torch.ones_like(angle), angle)
    q, k = (torch.complex(*t.chunk(2, -1)) * turn for t in (q, k))
    gamma = 1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=torch.float64))
    decay = gamma[:, None, None] ** FAR.clamp(min=0) * BELOW
    out = ((q @ k.mH).real / math.sqrt(D) * decay) @ v
    out = (out - out.mean(-1, keepdim=True)) / (out.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    return through(layer.out, functional.silu(layer.gate(x)) * joined(out))


def lightning(layer: r.LightningAttention, x: Tensor) -> Tensor:
    q, k, v = qkv(layer, x)
    slope = torch.tensor([4.0, 8.0], dtype=torch.float64) * (1 - 0.25)
    decay = (-slope[:, None, None] * FAR.clamp(min=0)).exp() * BELOW
    out = joined((functional.silu(q) @ functional.silu(k).mT * decay) @ v)
    out = out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return through(layer.out, out * layer.gate(x))


def delta(layer: r.DeltaNetAttention, x: Tensor) -> Tensor:
    """The state is overwritten, token after token."""
    mixed = []
    for m, c in zip((layer.query, layer.key, layer.value), layer.convolutions, strict=True):
        y = functional.pad(m(x), (0, 0, 2, 0))
        mixed.append(heads(functional.silu(added(y[:, t : t + N] * weight(c)[:, 0, t] for t in range(3))), HEADS))
    q, k, v = mixed
    q = q / q.norm(dim=-1, keepdim=True)
    k = k / (k.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    strength = torch.sigmoid(layer.strength(x)).mT
    state, rows = torch.zeros(2, HEADS, D, D, dtype=x.dtype), []
    for t in range(N):
        old = torch.einsum("bhd,bhde->bhe", k[:, :, t], state)
        new = strength[:, :, t, None] * (v[:, :, t] - old)
        state = state + k[:, :, t, :, None] * new[:, :, None]
        rows.append(torch.einsum("bhd,bhde->bhe", q[:, :, t], state))
    out = torch.stack(rows, 2)
    return through(layer.out, joined(out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm))


def aaren(layer: r.AarenAttention, x: Tensor) -> Tensor:
    q, k, v = heads(layer.query(layer.token).expand(2, 1, -1), HEADS), heads(layer.key(x), HEADS), heads(layer.value(x), HEADS)
    s = (q @ k.mT / math.sqrt(D)).expand(-1, -1, N, -1).masked_fill(~BELOW, -torch.inf)
    return through(layer.out, joined(s.softmax(-1) @ v))


Layer = r.RetentionAttention | r.LightningAttention | r.DeltaNetAttention | r.AarenAttention
CASES: dict[str, tuple[Callable[[], Layer], Callable[..., Tensor]]] = {
    "retention": (lambda: r.RetentionAttention(8, HEADS, backend="torch"), retention),
    "lightning": (lambda: r.LightningAttention(8, HEADS, 0.25, backend="torch"), lightning),
    "delta": (lambda: r.DeltaNetAttention(8, HEADS, 3, backend="torch"), delta),
    "aaren": (lambda: r.AarenAttention(8, HEADS, backend="torch"), aaren),
}


@pytest.mark.parametrize("name", CASES)
def test_a_recurrence_is_its_formula(name: str) -> None:
    make, formula = CASES[name]
    layer = make()
    agree(layer, lambda x: formula(layer, x), torch.randn(X), tolerance=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_whole(name: str) -> None:
    """In pieces of three, one, one and two tokens."""
    layer = CASES[name][0]().double()
    x = torch.randn(X, dtype=torch.float64)
    whole = layer(x)
    state, rows = None, []
    for piece in x.split([3, 1, 1, 2], 1):
        out, state = layer.step(state, piece)
        rows.append(out)
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer(x[:, :4]), whole[:, :4], rtol=1e-9, atol=1e-9)


def test_a_depth_outside_the_network_is_refused() -> None:
    with pytest.raises(ValueError, match="the depth must be from 0 to 1, found 2"):
        r.LightningAttention(8, 2, 2)
