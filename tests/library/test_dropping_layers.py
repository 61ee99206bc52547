"""Layers that drop, merge and gate tokens beside their formulas."""

from __future__ import annotations

import math

import torch
from agreement import agree, heads, joined
from narrowed import added, three, through
from torch import Tensor, nn
from torch.nn import functional as F

from einfuse.library.layers import common, dropping


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    s = q @ k.mT / math.sqrt(q.shape[-1])
    return (s if seen is None else s.masked_fill(~seen, -math.inf)).softmax(-1) @ v


def projected(layer: common.Attending, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return three(heads(m(x), layer.heads) for m in (layer.query, layer.key, layer.value))


def test_a_summary_that_a_text_guides() -> None:
    layer = dropping.TextGuidedSummary(8, 2, 3, backend="torch")

    def eager(x: Tensor, text: Tensor) -> Tensor:
        rows = []
        for patches, t in zip(x, text, strict=True):
            a = torch.stack([layer.score(torch.cat([p, t]))[0] for p in patches])
            order = a.argsort(descending=True).tolist()
            rest = order[3:]
            rows.append(torch.stack([*(patches[n] for n in order[:3]), (a[rest].softmax(0)[:, None] * patches[rest]).sum(0)]))
        q, k, v = (heads(m(y), 2) for m, y in ((layer.query, torch.stack(rows)), (layer.key, x), (layer.value, x)))
        return through(layer.out, joined(attend(q, k, v)))

    agree(layer, eager, torch.randn(2, 9, 8), torch.randn(2, 8))


def test_a_policy_drops_tokens() -> None:
    layer = dropping.PolicyDropping(8, 2, backend="torch")
    keep = torch.ones(2, 9)
    keep[:, 4] = 0

    class Out(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            out, chosen, mark = layer(x, keep.to(x))
            assert 0 < chosen[:, 1:].sum() < 2 * 8
            assert not chosen[:, 4].any()
            return added((out, mark[..., None]))

    def eager(x: Tensor) -> Tensor:
        z = F.layer_norm(x * keep[..., None], (8,))
        p = (heads(layer.judge(z[:, :1]), 2) @ heads(layer.judged(z), 2).mT / 2).sigmoid()[:, :, 0].mean(1) * keep
        live = (p > 0.5) | (torch.arange(9) == 0)
        x = x * live[..., None]
        seen = live[:, :, None] & live[:, None]
        attended = attend(*projected(layer, x), seen[:, None] | ~live[:, None, :, None])
        return through(layer.out, joined(attended)) * live[..., None] + p[..., None]

    agree(Out(), eager, torch.randn(2, 9, 8))


def test_tokens_that_wait() -> None:
    layer = dropping.SkippingTokens(nn.Linear(8, 8), 3)
    weights = torch.rand(2, 2, 9)

    def eager(x: Tensor) -> Tensor:
        out = x.clone()
        for b in range(2):
            order = weights[b].mean(0)[1:].argsort(descending=True)[:3] + 1
            for n in (0, *order.tolist()):
                out[b, n] = layer.inner(x[b, n])
        return out

    class Out(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return layer(x, weights)  # type: ignore[no-any-return]

    agree(Out(), eager, torch.randn(2, 9, 8))


def test_tokens_that_are_merged_by_importance() -> None:
    layer = dropping.ImportanceMerging(8, 2, 3, backend="torch")

    def eager(x: Tensor) -> Tensor:
        q, k, v = projected(layer, x)
        mark = (q @ k.mT / 2).softmax(-1)[:, :, 0, 1:].mean(1)
        x = x + layer.out(joined(attend(q, k, v)))
        rows = []
        for tokens, m in zip(x, mark, strict=True):
            order = m.argsort(descending=True).tolist()
            groups = {n: [n] for n in order[:3]}
            for n in order[3:]:
                groups[max(order[:3], key=lambda c: F.cosine_similarity(tokens[1 + n], tokens[1 + c], 0).item())].append(n)
            merged = [sum(m[n] * tokens[1 + n] for n in g) / sum(m[n] for n in g) for g in groups.values()]
            rows.append(torch.stack([tokens[0], *merged]))
        return torch.stack(rows)

    agree(layer, eager, torch.randn(2, 9, 8))


def test_heads_that_are_routed() -> None:
    layer = dropping.RoutedHeads(8, 4, backend="torch")

    def eager(x: Tensor) -> Tensor:
        source, edit = attend(*projected(layer, x))
        alike = torch.stack([F.cosine_similarity(source[h].flatten(), edit[h].flatten(), 0) for h in range(4)])
        t = (alike.max() - alike) / (alike.max() - alike.min())
        return through(layer.out, joined(torch.stack([source, edit * (1 + 0.2 * (t - 0.5).sigmoid())[:, None, None]])))

    agree(layer, eager, torch.randn(2, 9, 8))


def test_heads_that_know_another_order() -> None:
    layer = dropping.ReorderedPositions(8, 4, 1, 12, backend="torch")
    places = torch.stack([torch.randperm(9) for _ in range(2)])

    def eager(x: Tensor, places: Tensor) -> Tensor:
        own, other = x + layer.position.weight[:9], x + layer.position.weight[places]
        parts = [attend(*(t[:, h] for t in projected(layer, other if h < 1 else own))) for h in range(4)]
        return through(layer.out, torch.cat(parts, -1))

    agree(layer, eager, torch.randn(2, 9, 8), places)


def test_all_to_key() -> None:
    layer = dropping.AllToKeyAttention(8, 2, 3, backend="torch")

    def eager(content: Tensor, style: Tensor) -> Tensor:
        q, k, v = (heads(m(t), 2) for m, t in ((layer.far_q, content), (layer.far_k, style), (layer.far_v, style)))
        keys, values = [], []
        for n in range(0, style.shape[1], 3):
            mean = k[:, :, n : n + 3].mean(2)
            s = torch.sigmoid(layer.beta + layer.alpha * (k[:, :, n : n + 3] @ mean[..., None]))
            keys.append(((s * k[:, :, n : n + 3]).sum(2) + mean) / 4)
            values.append(((s * v[:, :, n : n + 3]).sum(2) + v[:, :, n : n + 3].mean(2)) / 4)
        far = (q @ torch.stack(keys, 2).mT).softmax(-1) @ torch.stack(values, 2)
        q, k, v = (
            heads(m(t), 2).unflatten(2, (-1, 3))
            for m, t in ((layer.near_q, content), (layer.near_k, style), (layer.near_v, style))
        )
        at = torch.einsum("bhxrc,bhzrc->bhxz", q, k).argmax(-1)
        pick = torch.arange(2)[:, None, None], torch.arange(2)[:, None], at
        near = ((q @ k[pick].mT).softmax(-1) @ v[pick]).flatten(2, 3)
        return through(layer.far_out, joined(far)) + through(layer.near_out, joined(near)) + content

    agree(layer, eager, torch.randn(2, 9, 8), torch.randn(2, 12, 8), tolerance=1e-6)


def test_a_gated_mixer_of_tokens() -> None:
    layer = dropping.GatedTokenMixer(8, 9, 5, backend="torch")

    def eager(x: Tensor) -> Tensor:
        y = layer.norm(x)
        m = y + layer.down(F.gelu(layer.up(layer.across(y).mT))).mT
        m = m + layer.channels(layer.within(m))
        x = x + layer.gate(y) * m
        return x + through(layer.feed, layer.norm(x))

    agree(layer, eager, torch.randn(2, 9, 8), tolerance=1e-6)
