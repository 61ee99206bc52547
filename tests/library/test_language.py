"""Layers of language models, beside their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from agreement import agree, heads, joined
from narrowed import through
from torch.nn import functional

from einfuse.library.layers import language
from einfuse.library.layers.common import Attending

N = 9
X = (2, N, 8)
AT = torch.arange(N)
OFFSET = AT[None] - AT[:, None]  # j - i
CAUSAL = OFFSET <= 0


def softmax(s: torch.Tensor, visible: torch.Tensor = CAUSAL) -> torch.Tensor:
    return torch.softmax(s.masked_fill(~visible, -torch.inf), -1)


def qkv(layer: Attending, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q = heads(layer.query(x), layer.heads)
    k, v = (heads(m(x), layer.kv_heads).repeat_interleave(layer.heads // layer.kv_heads, 1) for m in (layer.key, layer.value))
    return q, k, v


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_rotary_with_shared_keys(kv_heads: int) -> None:
    layer = language.RotaryAttention(16, 4, kv_heads, backend="torch")

    def turned(x: torch.Tensor) -> torch.Tensor:
        """Head width 4: features 0, 2 turn by 1 a position, features 1, 3 by 1 / 100."""
        angle = AT[:, None].double() * torch.tensor([1.0, 0.01], dtype=torch.float64)
        a, c = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - c * angle.sin(), c * angle.cos() + a * angle.sin()], -1)

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv(layer, x)
        return through(layer.out, joined(softmax(turned(q) @ turned(k).mT / 2) @ v))

    agree(layer, eager, torch.randn(2, N, 16))


def test_alibi() -> None:
    layer = language.AlibiAttention(8, 2, backend="torch")
    slopes = torch.tensor([2.0**-4, 2.0**-8])[:, None, None]

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv(layer, x)
        return through(layer.out, joined(softmax(q @ k.mT / 2 + slopes * OFFSET) @ v))

    agree(layer, eager, torch.randn(X))


def test_bert() -> None:
    layer = language.BertAttention(8, 2, backend="torch")
    pad = torch.arange(N)[None] < torch.tensor([[9], [4]])

    def eager(x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv(layer, x)
        return through(layer.out, joined(softmax(q @ k.mT / 2, real[:, None, None]) @ v))

    agree(layer, eager, torch.randn(X), pad)
    x = torch.randn(X, dtype=torch.float64)
    torch.testing.assert_close(layer(x), eager(x, torch.ones_like(pad)))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5(bidirectional: bool) -> None:
    layer = language.T5Attention(8, 2, bidirectional, backend="torch")
    length = 40

    def bucket(offset: int) -> int:
        count = 16 if bidirectional else 32
        past = 16 if bidirectional and offset > 0 else 0
        n = abs(offset) if bidirectional else max(-offset, 0)
        half = count // 2
        far = half + int(math.log(max(n, 1) / half) / math.log(128 / half) * (count - half)) if n >= half else n
        return past + min(far, count - 1)

    buckets = torch.tensor([[bucket(j - i) for j in range(length)] for i in range(length)])
    visible = torch.ones(length, length, dtype=torch.bool) if bidirectional else torch.ones(length, length).tril().bool()

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv(layer, x)
        return through(layer.out, joined(softmax(q @ k.mT + layer.table[:, buckets], visible) @ v))

    agree(layer, eager, torch.randn(1, length, 8))


def test_deberta() -> None:
    layer = language.DisentangledAttention(8, 2, 3, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv(layer, x)
        pq, pk = heads(layer.query(layer.relative), 2), heads(layer.key(layer.relative), 2)
        delta = (-OFFSET).clamp(-3, 2) + 3  # of i from j
        c2p = torch.stack([(q[:, :, i, None] * pk[:, delta[i]]).sum(-1) for i in range(N)], 2)
        p2c = torch.stack([(k[:, :, j, None] * pq[:, delta[j]]).sum(-1) for j in range(N)], 3)
        s = (q @ k.mT + c2p + p2c) / math.sqrt(12)
        return through(layer.out, joined(torch.softmax(s, -1) @ v))

    agree(layer, eager, torch.randn(X))


def test_relative_keys_and_values() -> None:
    layer = language.RelativeAttention(8, 2, 2, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv(layer, x)
        near = OFFSET.clamp(-2, 2) + 2
        w = torch.softmax((q @ k.mT + torch.einsum("bhid,ijd->bhij", q, layer.keys[near])) / 2, -1)
        return through(layer.out, joined(w @ v + torch.einsum("bhij,ije->bhie", w, layer.values[near])))

    agree(layer, eager, torch.randn(X))


def test_urpe_on_a_part_of_its_tables() -> None:
    layer = language.UrpeAttention(8, 2, 12, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv(layer, x)
        w = torch.softmax(q @ k.mT / 2 + layer.bias[:, OFFSET + 11], -1) * layer.weight[:, OFFSET + 11]
        return through(layer.out, joined(w @ v))

    agree(layer, eager, torch.randn(X))
    with pytest.raises(ValueError, match="know 12 tokens, found 13"):
        layer(torch.randn(1, 13, 8).double())


def test_coca() -> None:
    """With the key of every pair written out: R_i q_i . R_j (q_i t_j), as complex numbers."""
    layer = language.CollinearAttention(8, 2, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, v = heads(layer.query(x), 2), heads(layer.value(x), 2)
        t = heads(functional.relu(layer.key(x)), 2)  # [B, H, N, P]
        pairs = torch.complex(*q.chunk(2, -1))  # [B, H, N, P]
        turn = torch.polar(torch.ones(N, 2).double(), AT[:, None] * torch.tensor([1.0, 0.01], dtype=torch.float64))
        left = (pairs * turn)[:, :, :, None]
        right = pairs[:, :, :, None] * t[:, :, None] * turn[None, None, None]
        s = (left * right.conj()).real.sum(-1) / 2
        return through(layer.out, joined(softmax(s) @ v))

    agree(layer, eager, torch.randn(X))


def test_a_span_for_every_head() -> None:
    layer = language.HeadSpanAttention(8, (2, 1), (0.0, 0.4), 1, backend="torch")
    spans = torch.tensor([2, 1 + 3])[:, None, None]
    visible = CAUSAL & ((-OFFSET < spans) | (AT < 1))

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv(layer, x)
        return through(layer.out, joined(softmax(q @ k.mT / 2, visible) @ v))

    agree(layer, eager, torch.randn(X))


@pytest.mark.parametrize("shared", [False, True])
def test_value_residual(shared: bool) -> None:
    layer = language.ValueResidualAttention(8, 2, shared, backend="torch")

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, first = self.layer(x)
            out: torch.Tensor = self.layer(y, first)[0]
            return out

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, first = qkv(layer, x)
        y = layer.out(joined(softmax(q @ k.mT / 2) @ first))
        q, k, v = qkv(layer, y)
        return through(layer.out, joined(softmax(q @ k.mT / 2) @ (first if shared else (first + v) / 2)))

    agree(Twice(), eager, torch.randn(X))


def test_keys_and_values_of_an_earlier_layer() -> None:
    """Two layers as in CLA; the first one under a window as in YOCO, two heads of queries to one of keys."""
    first, second = (
        language.CrossLayerAttention(8, 2, 1, makes=m, window=w, backend="torch") for m, w in ((True, 3), (False, None))
    )

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, kv = self.first(x)
            return x + self.second(x + y, kv)[0]  # type: ignore[no-any-return]

    def eager(x: torch.Tensor) -> torch.Tensor:
        assert first.key is not None
        assert first.value is not None
        k, v = first.key(x)[:, None], first.value(x)[:, None]
        near = torch.ones(X[1], X[1], dtype=torch.bool).tril().triu(-2)
        s = (heads(first.query(x), 2) @ k.mT / 2).masked_fill(~near, -math.inf)
        y = x + first.out(joined(s.softmax(-1) @ v))
        return x + through(second.out, joined(softmax(heads(second.query(y), 2) @ k.mT / 2) @ v))

    agree(Both(), eager, torch.randn(X))
    with pytest.raises(ValueError, match="has to be given those of an earlier one, found none"):
        second(torch.randn(X))


def test_mixed_spans() -> None:
    layer = language.MixedSpanAttention(8, 2, 3, {1}, 2, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        for n, (norm, part) in enumerate(zip(layer.norms, layer.layers, strict=True)):
            assert isinstance(part, Attending)
            q, k, v = qkv(part, norm(x))
            x = x + part.out(joined(softmax(q @ k.mT / 2, CAUSAL if n == 1 else CAUSAL & (OFFSET > -2)) @ v))
        return x

    agree(layer, eager, torch.randn(X))
    with pytest.raises(ValueError, match=r"layers 0 to 2, found \[3\]"):
        language.MixedSpanAttention(8, 2, 3, {3}, 2)


def test_skim() -> None:
    layer = language.SkimAttention(4, 8, 2, 2, backend="torch")

    def eager(layout: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        q, k = heads(layer.query(layout), 2), heads(layer.key(layout), 2)
        return joined(torch.softmax(q @ k.mT / math.sqrt(2), -1) @ heads(layer.values[1](x), 2))

    class Second(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, layout: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return through(self.layer, layout, x, 1)

    agree(Second(), eager, torch.randn(2, N, 4), torch.randn(X))


def test_efficient_and_super() -> None:
    plain = language.EfficientAttention(8, backend="torch")
    agree(plain, lambda x: plain.out(torch.softmax(plain.query(x) @ x.mT / math.sqrt(8), -1) @ x), torch.randn(X))
    mixed = language.SuperAttention(8, N, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        v = torch.einsum("lm,bmc->blc", mixed.mix.weight, x) + mixed.mix.bias[:, None]
        return through(mixed.out, torch.softmax(mixed.query(x) @ x.mT / math.sqrt(8), -1) @ v)

    agree(mixed, eager, torch.randn(X))
