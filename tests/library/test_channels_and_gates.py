"""Layers between channels, in rectangles, and gates, beside their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from agreement import agree, heads, joined
from narrowed import added, through
from torch import Tensor, nn
from torch.nn import functional as F

from einfuse.library.layers import channels, gates

Image = (2, 4, 8, 8)


def first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def between(q: Tensor, k: Tensor, v: Tensor, weights: Callable[[Tensor], Tensor], tau: Tensor) -> Tensor:
    """Attention between channels; each [B, C, H, W]."""
    q, k, v = (t.flatten(2).unflatten(1, (2, -1)) for t in (q, k, v))
    s = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * tau[:, None, None]
    return (weights(s) @ v).flatten(1, 2)


def test_channels_by_their_cosine() -> None:
    layer = channels.CosineChannelAttention(8, 2, backend="torch")

    def eager(x: Tensor, other: Tensor) -> Tensor:
        q, k, v = layer.query(first(other)), layer.key(first(x)), layer.value(first(x))
        return last(layer.out(between(q, k, v, lambda s: s.softmax(-1), layer.temperature).reshape(2, 8, 4, 8)))

    agree(layer, eager, torch.randn(Image), torch.randn(Image), tolerance=1e-5)  # epsilons of the two normalisations
    assert layer(torch.randn(Image).double()).shape == Image


def test_channels_with_the_largest_scores() -> None:
    layer = channels.TopKChannelAttention(12, 2, backend="torch")

    def sparse(s: Tensor) -> Tensor:
        out = torch.zeros_like(s)
        for weight, k in zip(layer.mix, (3, 4, 4, 4), strict=True):
            at = s.topk(k, -1).indices
            out = out + weight * torch.full_like(s, -math.inf).scatter(-1, at, s.gather(-1, at)).softmax(-1)
        return out

    def eager(x: Tensor) -> Tensor:
        q, k, v = layer.query(first(x)), layer.key(first(x)), layer.value(first(x))
        return last(layer.out(between(q, k, v, sparse, layer.temperature).reshape(2, 12, 4, 4)))

    agree(layer, eager, torch.randn(2, 4, 4, 12), tolerance=1e-5)


def rectangles(layer: channels.RectangleAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Window by window, of each half of the heads, on the rolled image; what the roll brings together stays apart."""
    out = torch.zeros_like(v)
    half = v.shape[-1] // 2
    for n, (down, across) in enumerate((layer.sides, layer.sides[::-1])):
        part = slice(n * half, (n + 1) * half)
        dy, dx = (down // 2, across // 2) if layer.shifted else (0, 0)
        height, width = v.shape[1:3]
        place = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1)
        home = place.roll((-dy, -dx), (0, 1))
        wraps = (home < torch.tensor([dy, dx])).roll((0, 0), (0, 1)).long() if layer.shifted else torch.zeros_like(home)
        for y in range(0, height, down):
            for c in range(0, width, across):
                at = home[y : y + down, c : c + across].reshape(-1, 2)
                area = wraps[y : y + down, c : c + across].reshape(-1, 2)
                rows, columns = at.unbind(-1)
                qs, ks, vs = (heads(t[:, rows, columns, part], layer.heads // 2) for t in (q, k, v))
                bias = layer.bias((at[:, None] - at[None]).to(q.dtype)).permute(2, 0, 1)
                bias = bias[n * layer.heads // 2 : (n + 1) * layer.heads // 2]
                same = (area[:, None] == area[None]).all(-1)
                s = (qs @ ks.mT / math.sqrt(qs.shape[-1]) + bias).masked_fill(~same, -math.inf)
                out[:, rows, columns, part] = joined(s.softmax(-1) @ vs)
    return out


@pytest.mark.parametrize("shifted", [False, True])
def test_rectangles(shifted: bool) -> None:
    layer = channels.RectangleAttention(8, 2, 2, 4, shifted, backend="torch")

    def eager(x: Tensor) -> Tensor:
        q, k, v = layer.project(x).chunk(3, -1)
        return through(layer.out, rectangles(layer, q, k, v) + last(layer.local(first(v))))

    agree(layer, eager, torch.randn(Image))


@pytest.mark.parametrize("between_channels", [False, True])
def test_dual_aggregation(between_channels: bool) -> None:
    layer = channels.DualAggregation(8, 2, 2, 4, channels=between_channels, backend="torch")

    def eager(x: Tensor) -> Tensor:
        q, k, v = layer.project(x).chunk(3, -1)
        local = layer.local(first(v))
        if between_channels:
            attended = between(first(q), first(k), first(v), lambda s: s.softmax(-1), layer.temperature).reshape(2, 8, 4, 8)
            a, b = attended * layer.of_places(local).sigmoid(), local * layer.of_channels(attended).sigmoid()
        else:
            attended = first(rectangles(layer, q, k, v))
            a, b = attended * layer.of_channels(local).sigmoid(), local * layer.of_places(attended).sigmoid()
        return through(layer.out, last(a + b))

    agree(layer, eager, torch.randn(Image), tolerance=1e-5)


def squeezed(gate: gates.SqueezeGate, x: Tensor, largest: bool) -> Tensor:
    pools = [x.mean((1, 2)), *([x.amax((1, 2))] if largest else [])]
    total = sum((p @ gate.down.mT).relu() @ gate.up for p in pools)
    assert isinstance(total, Tensor)
    return x * total.sigmoid()[:, None, None]


def looked(gate: gates._PlaceGate, x: Tensor) -> Tensor:
    summary = torch.cat([x.amax(-1, keepdim=True), x.mean(-1, keepdim=True)], -1)
    return x * last(gate.norm(gate.look(first(summary)))).sigmoid()


def test_channel_and_place_gates() -> None:
    squeeze = gates.SqueezeGate(8, 4, backend="torch")
    agree(squeeze, lambda x: squeezed(squeeze, x, False), torch.randn(Image))
    cbam = gates.ConvolutionalBlockAttention(8, 4, backend="torch")
    agree(cbam, lambda x: looked(cbam.places, squeezed(cbam.channels, x, True)), torch.randn(Image))  # type: ignore[arg-type]
    bam = gates.ConvolutionalBlockAttention(8, 4, balanced=True, backend="torch")

    def balanced(x: Tensor) -> Tensor:
        return squeezed(bam.channels, x, False) * last(bam.places(first(x.amax(-1, keepdim=True)))).sigmoid()

    agree(bam, balanced, torch.randn(Image))
    pixel = gates.PixelAttention(8, backend="torch")
    agree(pixel, lambda x: x * (x @ pixel.weight + pixel.bias).sigmoid(), torch.randn(Image))


def test_triplet() -> None:
    layer = gates.TripletAttention()

    def eager(x: Tensor) -> Tensor:
        orders = ((0, 1, 2, 3), (0, 3, 2, 1), (0, 1, 3, 2))
        return added(looked(g, x.permute(o)).permute(o) for g, o in zip(layer.gates, orders, strict=True)) / 3  # type: ignore[arg-type]

    agree(layer, eager, torch.randn(Image))


def test_splits() -> None:
    layer = gates.SplitAttention(8, 3, backend="torch")

    def eager(x: Tensor) -> Tensor:
        hidden = (x.sum(1).mean((1, 2)) @ layer.down.mT).relu()
        share = torch.stack([hidden @ up for up in layer.up], 1).softmax(1)
        return (share[:, :, None, None] * x).sum(1)

    agree(layer, eager, torch.randn(2, 3, 4, 4, 8))


def test_subspaces_and_contexts() -> None:
    layer = gates.SubspaceAttention(8, 2, backend="torch")

    def eager(x: Tensor) -> Tensor:
        pairs = zip(layer.look, x.chunk(2, -1), strict=True)
        parts = [p * (1 + last(m(first(p)).flatten(2).softmax(-1).reshape(2, 1, 4, 8))) for m, p in pairs]
        return torch.cat(parts, -1)

    agree(layer, eager, torch.randn(Image))
    context = gates.GlobalContext(8, 2, 2, backend="torch")

    def pooled(x: Tensor) -> Tensor:
        aspects = []
        for part, w in zip(x.flatten(1, 2).chunk(2, -1), context.score, strict=True):
            aspects.append(((part @ w / 2).softmax(1)[..., None] * part).sum(1))
        return x + through(context.change, torch.cat(aspects, -1))[:, None, None]

    agree(context, pooled, torch.randn(Image))


def test_mixtures_of_maps() -> None:
    mix = gates.BranchMix(8, backend="torch")

    def eager(x: Tensor) -> Tensor:
        share = through(mix.mix, x.mean((1, 2))).softmax(-1)[:, :, None, None, None]
        return share[:, 0] * x * last(through(mix.gate, first(x))).sigmoid() + share[:, 1] * last(through(mix.plain, first(x)))

    agree(mix, eager, torch.randn(Image))
    scales = gates.ScaleAttention(8, 3, backend="torch")

    def weighed(x: Tensor) -> Tensor:
        maps = [first(m) for m in x.unbind(1)]
        share = torch.stack([s(m) for s, m in zip(scales.scores, maps, strict=True)], 1).softmax(1)
        gated = torch.stack([m * g(m).sigmoid() for g, m in zip(scales.gates, maps, strict=True)], 1)
        return last((share * gated).sum(1))

    agree(scales, weighed, torch.randn(2, 3, 4, 4, 8))


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="a head needs at least 2 channels, found 1"):
        channels.TopKChannelAttention(2, 2)
    with pytest.raises(ValueError, match="the heads must be even in number, found 3"):
        channels.RectangleAttention(9, 3)
    with pytest.raises(ValueError, match=r"the sides \(2, 4\) must divide the image, found 6 x 8"):
        channels.RectangleAttention(8, 2, 2, 4, backend="torch")(torch.randn(1, 6, 8, 8))
    for made in (gates.SubspaceAttention, gates.GlobalContext):
        with pytest.raises(ValueError, match="must divide the channels, found 9 and 2"):
            made(9, 2)
    assert isinstance(gates.TripletAttention().gates, nn.ModuleList)
