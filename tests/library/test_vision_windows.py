"""Layers that attend in windows, beside loops over windows and pairs written from the papers."""

from __future__ import annotations

import math

import pytest
import torch
from agreement import agree, heads, joined
from narrowed import through
from torch.nn import functional

from einfuse.library.layers import vision_windows as vw
from einfuse.library.layers.common import Attending

X = (2, 8, 8, 8)  # B, H, W, C


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | float = 0.0) -> torch.Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + bias, -1) @ v


def groups(height: int, width: int, side: int, interval: int = 1) -> list[list[tuple[int, int]]]:
    """The pixels of every group, by looking at every pixel: same region, same phase."""
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for y in range(height):
        for x in range(width):
            step = side * interval
            phase = (y % interval, x % interval) if interval > 1 else (0, 0)
            found.setdefault((y // step, x // step, *phase), []).append((y, x))
    return list(found.values())


def by_groups(layer: Attending, x: torch.Tensor, parts: list[list[tuple[int, int]]], bias: torch.Tensor) -> torch.Tensor:
    """bias: [H, 2 side - 1, 2 side - 1], indexed by the offset in steps between the query and the key."""
    n = layer.heads
    q, k, v = (heads(m(x.reshape(2, -1, 8)), n) for m in (layer.query, layer.key, layer.value))
    side = (bias.shape[-1] + 1) // 2
    out = torch.zeros_like(q)
    for part in parts:
        flat = [y * x.shape[2] + c for y, c in part]
        place = torch.arange(len(part))
        dy = place[:, None] // side - place[None] // side + side - 1
        dx = place[:, None] % side - place[None] % side + side - 1
        out[:, :, flat] = attend(q[:, :, flat], k[:, :, flat], v[:, :, flat], bias[:, dy, dx])
    return through(layer.out, joined(out)).reshape(x.shape)


def test_swin() -> None:
    layer = vw.SwinAttention(8, 2, 4, backend="torch")
    agree(layer, lambda x: by_groups(layer, x, groups(8, 8, 4), layer.table), torch.randn(X))


def test_swin_shifted() -> None:
    """Written in the coordinates of the unrolled image: a window of the rolled one is cut where the image's border runs through it."""
    layer = vw.SwinAttention(8, 2, 4, shift=2, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(m(x.reshape(2, 64, 8)), 2) for m in (layer.query, layer.key, layer.value))
        at = torch.arange(64)
        rolled = torch.stack([(at // 8 - 2) % 8, (at % 8 - 2) % 8], -1)
        window = rolled // 4
        wrapped = torch.stack([at // 8 < 2, at % 8 < 2], -1)
        same = (window[:, None] == window[None]).all(-1) & (wrapped[:, None] == wrapped[None]).all(-1)
        d = (rolled[:, None] % 4 - rolled[None] % 4) + 3
        bias = layer.table[:, d[..., 0], d[..., 1]].masked_fill(~same, -torch.inf)
        return through(layer.out, joined(attend(q, k, v, bias))).reshape(x.shape)

    agree(layer, eager, torch.randn(X))


def test_swin_v2() -> None:
    layer = vw.SwinV2Attention(8, 2, 4, shift=1, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        x = x.roll((-1, -1), (1, 2))
        q, k, v = (heads(m(x.reshape(2, 64, 8)), 2) for m in (layer.query, layer.key, layer.value))
        at = torch.arange(64)
        place = torch.stack([at // 8, at % 8], -1)
        zone = (place >= 4).long() + (place >= 7).long()
        same = (place[:, None] // 4 == place[None] // 4).all(-1) & (zone[:, None] == zone[None]).all(-1)
        d = (place[:, None] % 4 - place[None] % 4).double() * 8 / 3
        spaced = torch.sign(d) * torch.log2(d.abs() + 1) / math.log2(8)
        bias = (16 * torch.sigmoid(layer.bias(spaced))).permute(2, 0, 1)
        tau = layer.log_scale.clamp(max=math.log(100)).exp()[:, None, None]
        s = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT * tau + bias
        out = layer.out(joined(torch.softmax(s.masked_fill(~same, -torch.inf), -1) @ v)).reshape(x.shape)
        rolled: torch.Tensor = out.roll((1, 1), (1, 2))
        return rolled

    agree(layer, eager, torch.randn(X), scale=0.05, tolerance=2e-5)  # the epsilons of the two normalisations differ


@pytest.mark.parametrize("interval", [1, 2])
def test_crossformer_short_and_long_distance(interval: int) -> None:
    layer = vw.CrossFormerAttention(8, 2, 4, interval, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        reach = torch.arange(-3.0, 4.0, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(reach, reach, indexing="ij"), -1)
        return by_groups(layer, x, groups(8, 8, 4, interval), layer.bias(grid).permute(2, 0, 1))

    agree(layer, eager, torch.randn(X))


def test_maxvit_block_and_grid() -> None:
    block = vw.MaxViTAttention(8, 2, 4, backend="torch")
    agree(block, lambda x: by_groups(block, x, groups(8, 8, 4), block.table), torch.randn(X))
    grid = vw.MaxViTAttention(8, 2, 4, grid=True, backend="torch")
    spread = [[(2 * y + a, 2 * x + c) for y in range(4) for x in range(4)] for a in range(2) for c in range(2)]
    agree(grid, lambda x: by_groups(grid, x, spread, grid.table), torch.randn(X))


def test_nested_blocks() -> None:
    layer = vw.NestedAttention(8, 2, 4, backend="torch")
    agree(layer, lambda x: by_groups(layer, x, groups(8, 8, 4), torch.zeros(2, 7, 7)), torch.randn(X))


def test_cosets() -> None:
    layer = vw.CosetAttention(8, 2, backend="torch")

    def rotated(x: torch.Tensor) -> torch.Tensor:
        """Head width 4: one pair turns with y, one with x; 16 tokens of a 4 x 4 grid."""
        at = torch.arange(16, dtype=x.dtype)
        parts = []
        for n, angle in enumerate((at // 4, at % 4)):
            z = torch.view_as_complex(x[..., 2 * n : 2 * n + 2].contiguous()) * torch.polar(torch.ones_like(angle), angle)
            parts.append(torch.view_as_real(z))
        return torch.cat(parts, -1)

    def eager(x: torch.Tensor) -> torch.Tensor:
        x = x + layer.mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out = torch.zeros_like(x)
        for a in range(2):
            for c in range(2):
                part = x[:, a::2, c::2].reshape(2, 16, 8)
                q, k, v = (heads(m(part), 2) for m in (layer.query, layer.key, layer.value))
                out[:, a::2, c::2] = layer.out(joined(attend(rotated(q), rotated(k), v))).reshape(2, 4, 4, 8)
        return out

    agree(layer, eager, torch.randn(X))


def test_permuted_windows() -> None:
    layer = vw.PermutedWindowAttention(8, 2, 4, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        k, v = layer.key_value(x).chunk(2, -1)
        for y in range(0, 8, 4):
            for c in range(0, 8, 4):
                q = heads(layer.query(x[:, y : y + 4, c : c + 4]).reshape(2, 16, 8), 2)
                cells: list[torch.Tensor] = []
                for t in (k, v):
                    t = t[:, y : y + 4, c : c + 4]
                    parts = [t[:, a::2, e::2] for a in range(2) for e in range(2)]
                    cells.append(heads(torch.cat(parts, -1).reshape(2, 4, 8), 2))
                i, j = torch.arange(16)[:, None], torch.arange(4)[None]
                bias = layer.table[:, i // 4 // 2 - j // 2 + 1, i % 4 // 2 - j % 2 + 1]
                out[:, y : y + 4, c : c + 4] = joined(attend(q, cells[0], cells[1], bias)).reshape(2, 4, 4, 8)
        return through(layer.out, out)

    agree(layer, eager, torch.randn(X))


def test_overlapping_windows() -> None:
    layer = vw.OverlappingAttention(8, 2, 4, 1, backend="torch")

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, v = layer.project(x).chunk(3, -1)
        k, v = (functional.pad(t, (0, 0, 1, 1, 1, 1)) for t in (k, v))
        out = torch.zeros_like(x)
        i, j = torch.arange(16)[:, None], torch.arange(36)[None]
        bias = layer.table[:, i // 4 - j // 6 + 5, i % 4 - j % 6 + 5]
        for y in range(0, 8, 4):
            for c in range(0, 8, 4):
                qw = heads(q[:, y : y + 4, c : c + 4].reshape(2, 16, 8), 2)
                kw, vw_ = (heads(t[:, y : y + 6, c : c + 6].reshape(2, 36, 8), 2) for t in (k, v))
                out[:, y : y + 4, c : c + 4] = joined(attend(qw, kw, vw_, bias)).reshape(2, 4, 4, 8)
        return through(layer.out, out)

    agree(layer, eager, torch.randn(X))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="4 must divide the height and the width of the image, found 6 and 8"):
        vw.SwinAttention(8, 2, 4, backend="torch")(torch.randn(1, 6, 8, 8))
    with pytest.raises(ValueError, match="multiple of the heads, found 8 and 3"):
        vw.SwinAttention(8, 3, 4)
    with pytest.raises(ValueError, match="less than the side 4, found 4"):
        vw.SwinAttention(8, 2, 4, shift=4)
