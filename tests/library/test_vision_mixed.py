"""Attention in images mixed with other ways to look, beside its formulas."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from agreement import agree, heads, joined
from narrowed import through
from torch import Tensor
from torch.nn import functional as F

from einfuse.library.layers import common
from einfuse.library.layers import vision_mixed as vm

Image = (2, 4, 4, 8)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return joined(torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + bias, -1) @ v)


def own(layer: common.Attending, x: Tensor) -> Tensor:
    return through(layer.out, attend(*(heads(m(x), layer.heads) for m in (layer.query, layer.key, layer.value))))


def first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def test_relative_grid() -> None:
    layer = vm.RelativeGridAttention(8, 2, (4, 3), backend="torch")

    def eager(x: Tensor) -> Tensor:
        bias = torch.stack([layer.table[:, i // 3 - j // 3 + 3, i % 3 - j % 3 + 2] for i in range(12) for j in range(12)], 1)
        tokens = x.reshape(2, 12, 8)
        q, k, v = (heads(m(tokens), 2) for m in (layer.query, layer.key, layer.value))
        return through(layer.out, attend(q, k, v, bias.reshape(2, 12, 12))).reshape(x.shape)

    agree(layer, eager, torch.randn(2, 4, 3, 8))


def test_convolved_values() -> None:
    layer = vm.ConvolvedValueAttention(8, 2, backend="torch")
    layer.forward = functools.partial(layer.forward, size=(4, 4))  # type: ignore[method-assign]  # as the model calls it

    def eager(x: Tensor) -> Tensor:
        q, k, v = (heads(m(x), 2) for m in (layer.query, layer.key, layer.value))
        local = layer.local(layer.value(x)[:, 1:].mT.reshape(2, 8, 4, 4)).flatten(2).mT
        return through(layer.out, attend(q, k, v) + torch.cat([torch.zeros_like(local[:, :1]), local], 1))

    agree(layer, eager, torch.randn(2, 17, 8))
    grid = torch.zeros(1, 8, 3, 5, dtype=torch.float64)
    for y in range(3):
        for x in range(5):
            for c in range(2):
                grid[0, [c, 2 + c], y, x] = torch.tensor(
                    [f((y + 1) / 100**c) for f in (math.sin, math.cos)], dtype=torch.float64
                )
                grid[0, [4 + c, 6 + c], y, x] = torch.tensor(
                    [f((x + 1) / 100**c) for f in (math.sin, math.cos)], dtype=torch.float64
                )
    torch.testing.assert_close(layer.positions(3, 5), (grid + layer.smooth(grid)).flatten(2).mT)


def test_inception() -> None:
    layer = vm.InceptionMixer(8, 4, 2, backend="torch")

    def eager(x: Tensor) -> Tensor:
        image = first(x)
        coarse = F.avg_pool2d(image[:, :4], 2)
        low = F.interpolate(own(layer.attend, coarse.flatten(2).mT).mT.reshape(coarse.shape), scale_factor=2, mode="nearest")
        pooled = first(layer.pooled(last(F.max_pool2d(image[:, 4:6], 3, 1, 1))))
        convolved = layer.convolved(first(layer.enter(x[..., 6:])))
        mixed = torch.cat([pooled, convolved, low], 1)
        return through(layer.out, last(mixed + layer.fuse(mixed)))

    agree(layer, eager, torch.randn(Image))


def test_upsampling_windows() -> None:
    layer = vm.UpsamplingWindowAttention(6, 8, 2, side=2, backend="torch")

    def eager(coarse: Tensor, fine: Tensor) -> Tensor:
        out = last(F.interpolate(first(layer.shortcut(coarse)), scale_factor=2, mode="bilinear", align_corners=False)).clone()
        for y in (0, 2):
            for x in (0, 2):
                low = coarse[:, y : y + 2, x : x + 2].reshape(2, 4, 6)
                rows, columns = slice(2 * y, 2 * y + 4), slice(2 * x, 2 * x + 4)
                q = heads(layer.query(fine[:, rows, columns].reshape(2, 16, 8)), 2)
                read = layer.out(attend(q, heads(layer.key(low), 2), heads(layer.value(low), 2)))
                out[:, rows, columns] = out[:, rows, columns] + read.reshape(2, 4, 4, 8)
        return out

    agree(layer, eager, torch.randn(2, 4, 4, 6), torch.randn(2, 8, 8, 8))


def test_shift_equivariance() -> None:
    layer = vm.ShiftEquivariantAttention(8, 2, side=2, backend="torch")

    def eager(x: Tensor) -> Tensor:
        out = []
        for image in x:
            norms = {(p, q): image[p::2, q::2].detach().norm() for p in range(2) for q in range(2)}
            p, q = max(norms, key=lambda at: norms[at].item())
            rolled = image.roll((-p, -q), (0, 1))
            cells = [
                [own(layer.attend, rolled[y : y + 2, c : c + 2].reshape(1, 4, 8)).reshape(2, 2, 8) for c in (0, 2)]
                for y in (0, 2)
            ]
            out.append(torch.cat([torch.cat(row, 1) for row in cells]).roll((p, q), (0, 1)))
        return torch.stack(out)

    x = torch.randn(Image)
    agree(layer, eager, x)
    moved = layer(x.double().roll((1, 3), (1, 2)))
    torch.testing.assert_close(moved, layer(x.double()).roll((1, 3), (1, 2)))


def test_jittered_windows() -> None:
    layer = vm.JitteredWindowAttention(8, 2, backend="torch")
    layer.forward = functools.partial(layer.forward, shift=(1, 1))  # type: ignore[method-assign]  # as in training

    def eager(x: Tensor) -> Tensor:
        rolled = x.roll((-1, -1), (1, 2))
        cells = [
            [own(layer, rolled[:, y : y + 2, c : c + 2].reshape(2, 4, 8)).reshape(2, 2, 2, 8) for c in (0, 2)] for y in (0, 2)
        ]
        return torch.cat([torch.cat(row, 2) for row in cells], 1).roll((1, 1), (1, 2))

    agree(layer, eager, torch.randn(Image))
    assert vm.JitteredWindowAttention(8, 2, backend="torch")(torch.randn(Image)).shape == Image
    with pytest.raises(ValueError, match="even sides, found 3 x 4"):
        vm.JitteredWindowAttention(8, 2)(torch.randn(1, 3, 4, 8))


def test_scales_of_a_place() -> None:
    layer = vm.ScalePatchAttention(8, 2, backend="torch")

    def eager(x: Tensor) -> Tensor:
        asked = []
        for place in x.unbind(1):
            tokens = torch.cat([layer.token[0].expand(2, -1, -1), place], 1)
            asked.append((tokens + own(layer.local, layer.norms[0](tokens)))[:, 0])
        places = torch.stack(asked, 1)
        return places + own(layer.across, layer.norms[1](places))

    agree(layer, eager, torch.randn(2, 5, 3, 8))


def test_groups_across_views() -> None:
    layer = vm.GroupedViewAttention(8, 2, interval=2, backend="torch")

    def eager(x: Tensor) -> Tensor:
        q, k, v = layer.project(x).chunk(3, -1)
        out = torch.stack([last(layer.local(first(view))) for view in v.unbind(1)], 1)
        for y in range(2):
            for c in range(2):
                group = [heads(t[:, :, y::2, c::2].reshape(2, -1, 8), 2) for t in (q, k, v)]
                out[:, :, y::2, c::2] = out[:, :, y::2, c::2] + attend(*group).reshape(2, 3, 2, 2, 8)
        return through(layer.out, out)

    agree(layer, eager, torch.randn(2, 3, 4, 4, 8))


def test_merging_by_scores() -> None:
    layer = vm.MergingByScores(8, 2, backend="torch")

    def eager(queries: Tensor, x: Tensor) -> Tensor:
        q, k, v = heads(layer.query(queries), 2), heads(layer.key(x), 2), heads(layer.value(x), 2)
        return through(layer.out, attend(q, k, v, layer.score(x).mT[:, None]))

    agree(layer, eager, torch.randn(2, 3, 8), torch.randn(2, 9, 8))


def test_adaptive_positions() -> None:
    layer = vm.AdaptivePositionAttention(8, 2, backend="torch")

    def place(n: int) -> Tensor:
        return torch.tensor(
            [[(math.cos if c % 2 else math.sin)(t / 10000 ** ((c - c % 2) / 8)) for c in range(8)] for t in range(n)]
        )

    def eager(x: Tensor) -> Tensor:
        alpha, beta = layer.mix(x.mean((1, 2))).chunk(2, -1)
        tokens = []
        for y in range(4):
            for c in range(3):
                tokens.append(x[:, y, c] + alpha * place(4)[y].to(x) + beta * place(3)[c].to(x))
        return own(layer, torch.stack(tokens, 1)).reshape(x.shape)

    agree(layer, eager, torch.randn(2, 4, 3, 8), tolerance=1e-6)  # sinusoids in single precision
