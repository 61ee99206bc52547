"""Layers over whole images, graphs, series and several sources, beside their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from agreement import agree, heads, joined
from narrowed import through, weight
from torch import nn
from torch.nn import functional

from einfuse.library.layers import graph, series
from einfuse.library.layers import vision_global as vg
from einfuse.library.layers.common import Attending

Image = (2, 4, 4, 8)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


class Joint(nn.Module):
    """A layer with two results as one tensor."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.flatten() for x in self.layer(*inputs)])


def test_hilo() -> None:
    layer = vg.HiLoAttention(8, 4, low=3, side=2, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        pooled = functional.avg_pool2d(x.permute(0, 3, 1, 2), 2).flatten(2).mT
        k, v = layer.low_key_value(pooled).chunk(2, -1)
        q = layer.low_query(x.reshape(2, 16, 8))
        low = layer.low_out(joined(attend(heads(q, 3), heads(k, 3), heads(v, 3)))).reshape(2, 4, 4, 6)
        high = torch.zeros(2, 4, 4, 2, dtype=x.dtype)
        for y in (0, 2):
            for c in (0, 2):
                q, k, v = layer.high_project(x[:, y : y + 2, c : c + 2].reshape(2, 4, 8)).chunk(3, -1)
                high[:, y : y + 2, c : c + 2] = layer.high_out(attend(q, k, v)).reshape(2, 2, 2, 2)
        return torch.cat([high, low], -1)

    agree(layer, eager, torch.randn(Image))


def test_convolutional_projections() -> None:
    layer = vg.ConvProjectionAttention(8, 2, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        tokens = []
        for part, project, step in zip(layer.convolutions, layer.project, (1, 2, 2), strict=True):
            assert isinstance(part, nn.Sequential)
            convolution, norm = part
            y = functional.conv2d(x.permute(0, 3, 1, 2), weight(convolution), None, step, 1, groups=8)
            y = (
                y / math.sqrt(1 + 1e-5) * weight(norm)[:, None, None] + weight(norm, "bias")[:, None, None]
            )  # mean 0, variance 1
            tokens.append(heads(project(y.flatten(2).mT), 2))
        return through(layer.out, joined(attend(*tokens))).reshape(x.shape)

    agree(layer, eager, torch.randn(Image))


def test_cross_branch_and_class_query() -> None:
    layer = vg.CrossBranchAttention(8, 2, backend="torch")

    def eager(own: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        everything = torch.cat([own, patches], 1)
        q, k, v = heads(layer.query(own), 2), heads(layer.key(everything), 2), heads(layer.value(everything), 2)
        return through(layer.out, joined(attend(q, k, v)))

    agree(layer, eager, torch.randn(2, 1, 8), torch.randn(2, 7, 8))
    pool = vg.ClassQueryPooling(8, 2, backend="torch")

    def pooled(x: torch.Tensor) -> torch.Tensor:
        q = heads(pool.query(pool.token).expand(2, -1, -1), 2)
        return through(pool.out, joined(attend(q, heads(pool.key(x), 2), heads(pool.value(x), 2))))[:, 0]

    agree(pool, pooled, torch.randn(2, 7, 8))


def own(layer: Attending, x: torch.Tensor) -> torch.Tensor:
    return through(layer.out, joined(attend(*(heads(m(x), layer.heads) for m in (layer.query, layer.key, layer.value)))))


def test_transformer_in_transformer() -> None:
    layer = vg.InnerOuterAttention(4, 3, 8, 2, 2, backend="torch")

    def eager(words: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        words = torch.stack([w + own(layer.inner, layer.word_norm(w)) for w in words.unbind(1)], 1)
        fused = layer.fuse(layer.fuse_norm(words.reshape(2, 5, 12)))
        patches = torch.cat([patches[:, :1], patches[:, 1:] + fused], 1)
        return torch.cat([words.flatten(), (patches + own(layer.outer, layer.norm(patches))).flatten()])

    agree(Joint(layer), eager, torch.randn(2, 5, 3, 4), torch.randn(2, 6, 8))


def test_carrier_tokens() -> None:
    layer = vg.CarrierTokenAttention(8, 2, 2, backend="torch")

    def eager(x: torch.Tensor, carriers: torch.Tensor) -> torch.Tensor:
        carriers = carriers + own(layer.across, layer.carrier_norm(carriers))
        bias = torch.zeros(2, 5, 5, dtype=x.dtype)
        for i in range(4):
            for j in range(4):
                d = torch.tensor([i // 2 - j // 2, i % 2 - j % 2], dtype=x.dtype) * 8
                spaced = d.sign() * (d.abs() + 1).log2() / 3
                bias[:, 1 + i, 1 + j] = 16 * torch.sigmoid(layer.bias(spaced))
        image, after = torch.zeros_like(x), []
        for n in range(4):
            y, c = 2 * (n // 2), 2 * (n % 2)
            window = torch.cat([carriers[:, n, None], x[:, y : y + 2, c : c + 2].reshape(2, 4, 8)], 1)
            q, k, v = (heads(m(layer.norm(window)), 2) for m in (layer.within.query, layer.within.key, layer.within.value))
            window = window + layer.within.out(joined(torch.softmax(q @ k.mT / 2 + bias, -1) @ v))
            after.append(window[:, 0])
            image[:, y : y + 2, c : c + 2] = window[:, 1:].reshape(2, 2, 2, 8)
        return torch.cat([image.flatten(), torch.stack(after, 1).flatten()])

    agree(Joint(layer), eager, torch.randn(Image), torch.randn(2, 4, 8), scale=0.1, tolerance=1e-6)
    with pytest.raises(ValueError, match="there are 4 windows, found 3 carriers"):
        layer(torch.randn(Image).double(), torch.randn(2, 3, 8).double())


def test_channels() -> None:
    layer = vg.ChannelAttention(8, 2, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(t, 2) for t in layer.project(x).chunk(3, -1))
        a = torch.softmax(torch.einsum("bgnc,bgnd->bgcd", q, k) / 2, -1)
        return through(layer.out, joined(torch.einsum("bgcd,bgnd->bgnc", a, v)))

    agree(layer, eager, torch.randn(2, 9, 8))


def test_sparse_channels() -> None:
    layer = vg.SparseChannelAttention(8, 2, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.reshape(2, 2, 4, 16) for t in layer.project(x.permute(0, 3, 1, 2)).chunk(3, 1))
        s = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT * layer.temperature[:, None, None]
        return through(layer.out, (s.relu() @ v).reshape(2, 8, 4, 4)).permute(0, 2, 3, 1)

    agree(layer, eager, torch.randn(Image), tolerance=1e-5)  # the two normalisations differ in their epsilons


def test_single_head() -> None:
    layer = vg.SingleHeadAttention(8, 3, 4, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        part = x[..., :3]
        mean, deviation = part.mean((1, 2), keepdim=True), part.var((1, 2), correction=0, keepdim=True)
        part = (part - mean) / (deviation + 1e-5).sqrt() * layer.norm.weight + layer.norm.bias
        y = layer.project(part)
        return through(layer.out, torch.cat([attend(y[..., :4], y[..., 4:8], y[..., 8:]), x[..., 3:]], -1).relu())

    agree(layer, eager, torch.randn(2, 7, 8))


def test_read_compute_write() -> None:
    layer = vg.SharedReadAttention(8, 2, backend="torch")

    def cross(part: Any, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return through(part.out, joined(attend(heads(part.query(a), 2), heads(part.key(c), 2), heads(part.value(c), 2))))

    def eager(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        z = z + cross(layer.read, layer.norms[0](z), x)
        z = z + own(layer.compute, layer.norms[1](z))
        return torch.cat([(x + cross(layer.write, layer.norms[2](x), z)).flatten(), z.flatten()])

    agree(Joint(layer), eager, torch.randn(2, 9, 8), torch.randn(2, 3, 8))


# -- graphs --------------------------------------------------------------------------------------------------------------------------

ADJ = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(5)) > 0.6


def neighbours(b: int, i: int, loops: bool) -> list[int]:
    return [j for j in range(6) if ADJ[b, i, j] or (loops and i == j)]


def test_graph_attention() -> None:
    layer = graph.GraphAttention(8, 6, 2, backend="torch")

    def eager(x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
        v = heads(layer.value(x), 2)
        out = torch.zeros_like(v)
        for b in range(2):
            for h in range(2):
                for i in range(6):
                    js = neighbours(b, i, True)
                    both = torch.stack([torch.cat([v[b, h, i], v[b, h, j]]) for j in js])
                    s = functional.leaky_relu(both @ torch.cat([layer.left[h], layer.right[h]]), 0.2)
                    out[b, h, i] = torch.softmax(s, 0) @ v[b, h, js]
        return joined(out)

    agree(layer, eager, torch.randn(2, 6, 8), ADJ)


def test_graph_attention_v2() -> None:
    layer = graph.GraphAttentionV2(8, 6, 2, backend="torch")

    def eager(x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
        left, right = heads(layer.left(x), 2), heads(layer.right(x), 2)
        out = torch.zeros_like(right)
        for b in range(2):
            for h in range(2):
                for i in range(6):
                    js = neighbours(b, i, True)
                    s = functional.leaky_relu(left[b, h, i] + right[b, h, js], 0.2) @ layer.a[h]
                    out[b, h, i] = torch.softmax(s, 0) @ right[b, h, js]
        return joined(out)

    agree(layer, eager, torch.randn(2, 6, 8), ADJ)


class Given(nn.Module):
    """A graph layer whose integer or boolean inputs are fixed."""

    def __init__(self, layer: nn.Module, *fixed: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.fixed = layer, fixed

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return through(self.layer, *inputs, *self.fixed)


def test_edges_in_the_scores() -> None:
    layer = graph.EdgeGraphAttention(8, 3, 2, backend="torch")

    def eager(x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(m(x), 2) for m in (layer.query, layer.key, layer.value))
        edge = layer.edge(edges).reshape(2, 6, 6, 2, 4)
        s = torch.einsum("bhid,bhjd,bijhd->bhij", q, k, edge) / 2
        p = s.clamp(-5, 5).exp() * ADJ[:, None]
        return through(layer.out, joined(p @ v / (p.sum(-1, keepdim=True) + 1e-6)))

    agree(Given(layer, ADJ), eager, torch.randn(2, 6, 8), torch.randn(2, 6, 6, 3))


def test_relations_in_keys_and_values() -> None:
    layer = graph.RelationalGraphAttention(8, 2, 5, backend="torch")
    relation = torch.randint(0, 5, (2, 6, 6))

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(m(x), 2) for m in (layer.query, layer.key, layer.value))
        r = layer.vector[relation][:, None]  # [B, 1, N, N, D]
        s = torch.einsum("bhid,bhijd->bhij", q, k[:, :, None] + r) / 2
        p = s.clamp(-10, 10).exp() * (ADJ | torch.eye(6, dtype=torch.bool))[:, None]
        w = p / p.sum(-1, keepdim=True)
        return through(layer.out, joined(torch.einsum("bhij,bhijd->bhid", w, v[:, :, None] + r)))

    agree(Given(layer, relation, ADJ | torch.eye(6, dtype=torch.bool)), eager, torch.randn(2, 6, 8))


# -- series and sources --------------------------------------------------------------------------------------------------------------


def test_variates_are_tokens() -> None:
    layer = series.VariateAttention(12, 8, 2, backend="torch")
    agree(layer, lambda x: own(layer.attend, layer.embed(x.mT)), torch.randn(2, 12, 5))


def test_samples_of_a_batch() -> None:
    layer = series.BatchAttention(8, 2, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([own(layer, x[:, n][None])[0] for n in range(x.shape[1])], 1)

    agree(layer, eager, torch.randn(5, 3, 8))


@pytest.mark.parametrize("padded", [False, True])
def test_additive_scores(padded: bool) -> None:
    layer = series.AdditiveAttention(8, 6, 5, backend="torch")
    pad = torch.arange(7)[None] < torch.tensor([[7], [4]])

    def eager(q: torch.Tensor, states: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        s = torch.tanh(layer.query(q)[:, :, None] + layer.key(states)[:, None]) @ layer.a[0]
        s = s.masked_fill(~pad[:, None], -torch.inf) if padded else s
        return torch.softmax(s, -1) @ states

    agree(layer, eager, torch.randn(2, 3, 8), torch.randn(2, 7, 6), *([pad] if padded else []))


def test_several_sources() -> None:
    layer = series.MultiSourceAttention(8, 2, (6, 4), backend="torch")

    def eager(x: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        k = torch.cat([layer.keys[0](a), layer.keys[1](c)], 1)
        v = torch.cat([layer.values[0](a), layer.values[1](c)], 1)
        return through(layer.out, joined(attend(heads(layer.query(x), 2), heads(k, 2), heads(v, 2))))

    agree(layer, eager, torch.randn(2, 3, 8), torch.randn(2, 5, 6), torch.randn(2, 4, 4))
    with pytest.raises(ValueError, match="has 2 sources, found 1"):
        layer(torch.randn(2, 3, 8).double(), torch.randn(2, 5, 6).double())
