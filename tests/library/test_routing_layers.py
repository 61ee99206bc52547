"""Layers that choose heads, regions, blocks, points and tokens, or draw them, beside their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from agreement import agree, heads, joined
from narrowed import three, through
from torch import Tensor, nn
from torch.nn import functional as F

from einfuse.ir.functions import hashed
from einfuse.library.layers import choosing, common, routing


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    s = q @ k.mT / math.sqrt(q.shape[-1])
    return (s if seen is None else s.masked_fill(~seen, -math.inf)).softmax(-1) @ v


def projected(layer: common.Attending, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return three(heads(m(x), layer.heads) for m in (layer.query, layer.key, layer.value))


def test_mixture_of_attention_heads() -> None:
    layer = routing.MixtureOfAttentionHeads(8, 4, 2, 6, backend="torch")

    def eager(x: Tensor) -> Tensor:
        p = layer.gate(x).softmax(-1)
        value, at = p.topk(2, -1)
        out = torch.zeros_like(x)
        for n in range(4):
            part = slice(6 * n, 6 * n + 6)
            read = attend(x @ layer.query.weight[part].mT, layer.key(x), layer.value(x)) @ layer.out.weight[:, part].mT
            out = out + ((at == n) * value / value.sum(-1, keepdim=True).detach()).sum(-1, keepdim=True) * read
        return out

    agree(layer, eager, torch.randn(2, 9, 8))


def test_mixture_of_head_attention() -> None:
    layer = routing.MixtureOfHeadAttention(16, 4, 1, 2, backend="torch")

    def eager(x: Tensor) -> Tensor:
        always, chosen = 2 * layer.of_kinds(x).softmax(-1)[..., :1], 2 * layer.of_kinds(x).softmax(-1)[..., 1:]
        routed = layer.of_routed(x)
        kept = routed.topk(2, -1).indices
        share = torch.full_like(routed, -math.inf).scatter(-1, kept, routed.gather(-1, kept)).softmax(-1) * 2
        gates = torch.cat([always * layer.of_shared(x).softmax(-1), chosen * share], -1)
        return through(layer.out, joined(gates.mT[..., None] * attend(*projected(layer, x))))

    agree(layer, eager, torch.randn(2, 9, 16))
    with pytest.raises(ValueError, match="shared heads and 4 others to choose, found 1 of 4"):
        routing.MixtureOfHeadAttention(16, 4, 1, 4)


@pytest.mark.parametrize("share", [False, True])
def test_mixture_of_attention_experts(share: bool) -> None:
    layer = routing.MixtureOfAttentionExperts(8, 3, 2, share, backend="torch")

    def eager(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for n in range(3):
            part, held = slice(8 * n, 8 * n + 8), slice(0, 8) if share else slice(8 * n, 8 * n + 8)
            rows = ((layer.query, part), (layer.key, held), (layer.value, held))
            q, k, v = (heads(x @ m.weight[s].mT, 2) for m, s in rows)
            expert = joined(attend(q, k, v, torch.ones(7, 7).tril().bool())) @ layer.out.weight[:, part].mT
            out = out + layer.gate(x).softmax(-1)[..., n : n + 1] * expert
        return out

    agree(layer, eager, torch.randn(2, 7, 8))


def test_routed_regions() -> None:
    layer = choosing.RoutedRegionAttention(8, 2, 3, 2, backend="torch")

    def eager(x: Tensor) -> Tensor:
        q, k, v = (m(x) for m in (layer.query, layer.key, layer.value))
        out = layer.local(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).clone()
        cells = [(slice(y, y + 2), slice(c, c + 2)) for y in (0, 2, 4) for c in (0, 2, 4)]
        for b in range(2):
            means = [torch.stack([t[b][cell].mean((0, 1)) for cell in cells]) for t in (q, k)]
            best = (means[0] @ means[1].mT).topk(2, -1).indices.tolist()
            for cell, chosen in zip(cells, best, strict=True):
                held = [torch.cat([t[b][cells[n]].reshape(4, 8) for n in chosen]) for t in (k, v)]
                s = heads(q[b][cell].reshape(4, 8), 2) @ heads(held[0], 2).mT / math.sqrt(8)
                out[b][cell] = out[b][cell] + joined((s.softmax(-1) @ heads(held[1], 2))[None])[0].reshape(2, 2, 8)
        return through(layer.out, out)

    agree(layer, eager, torch.randn(2, 6, 6, 8))


def test_native_sparse() -> None:
    layer = choosing.NativeSparseAttention(16, 4, 2, span=4, stride=2, block=4, best=3, window=5, backend="torch")

    def eager(x: Tensor) -> Tensor:
        n = x.shape[1]
        q = heads(layer.query(x), 4)
        k, v, k2, v2, k3, v3 = (heads(t, 2).repeat_interleave(2, 1) for t in layer.key_value(x).chunk(6, -1))
        starts = range(0, n - 3, 2)
        ck, cv = (
            torch.stack([layer.summarise[w]((t[:, :, s : s + 4] + layer.place[w]).flatten(-2)) for s in starts], 2)
            for w, t in ((0, k), (1, v))
        )
        row = torch.arange(n)[:, None]
        past = torch.tensor([s + 3 for s in starts])[None] <= row
        p = torch.where(past, (q @ ck.mT / 2).masked_fill(~past, -1e30).softmax(-1), 0)
        gates = layer.gate(x).sigmoid().reshape(2, n, 3, 4).permute(2, 0, 3, 1)[..., None]
        near = torch.ones(n, n).tril().triu(-4).bool()
        out = gates[0] * (p @ cv) + gates[2] * attend(q, k3, v3, near)
        score = torch.zeros(2, 2, n, -(-n // 4), dtype=x.dtype)
        for at, s in enumerate(starts):
            for half in (s, s + 2):
                score[..., half // 4] += p[..., at].detach().reshape(2, 2, 2, n).sum(2)
        seen = torch.zeros(2, 2, n, n, dtype=torch.bool)
        for i in range(n):
            past_blocks = list(range(i // 4 + 1))
            forced = {w for w in past_blocks if w == 0 or i // 4 - w < 2}
            for b in range(2):
                for h in range(2):
                    order = sorted(past_blocks, key=lambda w, b=b, h=h, i=i, f=forced: (w not in f, -score[b, h, i, w].item()))  # type: ignore[misc]
                    for w in order[: max(3, len(forced))]:
                        seen[b, h, i, 4 * w : min(4 * w + 4, i + 1)] = True
        return through(layer.out, joined(out + gates[1] * attend(q, k2, v2, seen.repeat_interleave(2, 1))))

    agree(layer, eager, torch.randn(2, 18, 16))
    with pytest.raises(ValueError, match="at least 4 tokens, found 3"):
        layer(torch.randn(1, 3, 16).double())


def test_deformable() -> None:
    layer = choosing.DeformableAttention(8, 2, levels=2, points=3, backend="torch")

    def eager(queries: Tensor, references: Tensor, *maps: Tensor) -> Tensor:
        p = layer.score(queries).reshape(2, 5, 2, 6).softmax(-1).reshape(2, 5, 2, 2, 3)
        offset = layer.offset(queries).reshape(2, 5, 2, 2, 3, 2)
        out = torch.zeros(2, 5, 8, dtype=queries.dtype)
        for n, image in enumerate(maps):
            rows, columns = image.shape[1:3]
            place = references[:, :, None, None] + offset[:, :, :, n] / torch.tensor([columns, rows])
            value = layer.value(image).permute(0, 3, 1, 2)
            for h in range(2):
                part = slice(4 * h, 4 * h + 4)
                read = F.grid_sample(value[:, part], 2 * place[:, :, h] - 1, align_corners=False)  # [2, 4, 5, 3]
                out[..., part] = out[..., part] + (read * p[:, None, :, h, n]).sum(-1).mT
        return through(layer.out, out)

    maps = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 3, 8)
    agree(layer, eager, torch.randn(2, 5, 8), torch.rand(2, 5, 2), *maps, scale=0.2)


def test_shifted_groups() -> None:
    layer = choosing.ShiftedGroupAttention(8, 2, 4, sinks=1, backend="torch")

    def eager(x: Tensor) -> Tensor:
        i, j = torch.arange(10)[:, None], torch.arange(10)[None]
        seen = torch.stack([(j <= i) & ((j < 1) | ((i + m) // 4 == (j + m) // 4)) for m in (0, 2)])
        return through(layer.out, joined(attend(*projected(layer, x), seen)))

    agree(layer, eager, torch.randn(2, 10, 8))


def drawn(*counters: int) -> float:
    bits = counters[0]
    for c in counters[1:]:
        bits = hashed(bits, c)
    return (bits >> 7) * 2.0**-24


DRAWN: dict[type, Callable[[int, int, int, int], bool]] = {
    routing.TokenMaskingAttention: lambda b, h, i, j: (r := drawn(7, b, i)) >= 0.6 or (i == j if r < 0.3 else i != j),
    routing.RandomKeyAttention: lambda b, h, i, j: drawn(7, b, j) >= 0.6,
}


@pytest.mark.parametrize("kind", DRAWN)
def test_what_is_drawn_in_training(kind: type[routing.TokenMaskingAttention | routing.RandomKeyAttention]) -> None:
    layer = kind(8, 2, 0.6, backend="torch").double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    seen = torch.tensor([[[[DRAWN[kind](b, h, i, j) for j in range(9)] for i in range(9)] for h in range(2)] for b in range(2)])
    assert not seen.all()
    torch.testing.assert_close(layer(x, seed=7), layer.out(joined(attend(*projected(layer, x), seen))))
    agree(layer, lambda x: layer.out(joined(attend(*projected(layer, x)))), x)  # at evaluation


def test_heads_left_out() -> None:
    layer = routing.HeadDropoutAttention(8, 4, 0.5, backend="torch").double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    kept = torch.tensor([[drawn(3, b, h) >= 0.5 for h in range(4)] for b in range(3)])
    assert 0 < kept.sum() < 12
    truth = layer.out(joined(attend(*projected(layer, x)) * kept[..., None, None]))
    torch.testing.assert_close(layer(x, seed=3), truth)


def test_video_heads() -> None:
    layer = choosing.VideoHeadsAttention(8, 2, pixels=4, frames=0, places=0, text=2, backend="torch")
    layer.double()
    i, j = torch.arange(14)[:, None], torch.arange(14)[None]
    text = (i >= 12) | (j >= 12)
    spatial, temporal = text | (i // 4 == j // 4), text | (i % 4 == j % 4)

    def eager(x: Tensor) -> Tensor:
        return through(layer.out, joined(attend(*projected(layer, x), torch.stack([spatial, temporal]))))

    layer.forward = lambda x, run=layer.forward: run(x, torch.tensor([[False, True]]).expand(2, -1))  # type: ignore[assignment, method-assign, misc]
    agree(layer, eager, torch.randn(2, 14, 8))
    q, k, v = (torch.randn(1, 2, 14, 4, dtype=torch.float64) for _ in range(3))
    q[:, 0] = k[:, 0] = 9 * torch.eye(4).double()[(torch.arange(14) // 4).clamp(max=3)]  # this head looks at its frame
    q[:, 1] = k[:, 1] = 9 * torch.eye(4).double()[torch.arange(14) % 4]  # and this one at its place
    assert layer.choose(q, k, v).tolist() == [[False, True]]


def tokens(layer: common.Attending, x: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    q, k, v = projected(layer, x)
    s = q @ k.mT / math.sqrt(q.shape[-1])
    p = (s if seen is None else s.masked_fill(~seen, -math.inf)).softmax(-1)
    return x + layer.out(joined(p @ v)), p


class First(nn.Module):
    """The first result of a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        out = self.layer(*inputs)[0]
        assert isinstance(out, Tensor)
        return out


def test_tokens_that_the_class_attends_to() -> None:
    layer = routing.TokenPruningAttention(8, 2, 4, fuse=True, backend="torch")

    def eager(x: Tensor) -> Tensor:
        y, p = tokens(layer, x)
        weight = p[:, :, 0].mean(1)
        out = []
        for b in range(2):
            kept = sorted(weight[b, 1:].topk(4).indices.add(1).tolist())
            left = [n for n in range(1, 9) if n not in kept]
            out.append(torch.cat([y[b, [0, *kept]], (weight[b, left, None] * y[b, left]).sum(0, keepdim=True)]))
        return torch.stack(out)

    agree(First(layer), eager, torch.randn(2, 9, 8))


def test_tokens_that_the_last_attends_to() -> None:
    layer = routing.TokenPruningAttention(8, 2, 3, by="last", backend="torch")

    def eager(x: Tensor) -> Tensor:
        y, p = tokens(layer, x, torch.ones(9, 9).tril().bool())
        kept = [sorted(w[:8].topk(3).indices.tolist()) for w in p[:, :, 8].mean(1)]
        return torch.stack([y[b, [*kept[b], 8]] for b in range(2)])

    agree(First(layer), eager, torch.randn(2, 9, 8))
