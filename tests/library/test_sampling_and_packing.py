"""Layers that sample, warp, pack and draw groups beside formulas that go place by place."""

from __future__ import annotations

import math

import pytest
import torch
from agreement import agree, heads, joined
from torch import Tensor, nn
from torch.nn import functional as F

from einfuse.library.layers import common, packing, sampling


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, scale: float | None = None) -> Tensor:
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (s if seen is None else s.masked_fill(~seen, -math.inf)).softmax(-1) @ v


def within(layer: common.Attending, x: Tensor, seen: Tensor | None = None) -> Tensor:
    q, k, v = (heads(m(x), layer.heads) for m in (layer.query, layer.key, layer.value))
    return layer.out(joined(attend(q, k, v, seen)))  # type: ignore[no-any-return]


def bilinear(image: Tensor, y: Tensor, x: Tensor, border: bool) -> Tensor:
    """One place of [H, W, C]: a hat over all pixels, whose outside is 0, or its border again."""
    height, width = image.shape[:2]
    if border:
        y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    rows = (1 - (torch.arange(height) - y).abs()).clamp(min=0)
    columns = (1 - (torch.arange(width) - x).abs()).clamp(min=0)
    return torch.einsum("y,x,yxc->c", rows, columns, image)


def test_regions_that_move_and_are_sampled() -> None:
    layer = sampling.RegionSampling(8, 2, 3, 5, backend="torch")
    corner = torch.rand(2, 4, 2) / 2
    regions = torch.cat([corner, corner + torch.rand(2, 4, 2) / 2], -1)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, image: Tensor) -> Tensor:
            return torch.cat(self.layer(x, regions.to(x), image), -1)

    def eager(x: Tensor, image: Tensor) -> Tensor:
        x = x + within(layer.attend, layer.norms[0](x))
        moves, token, rows = layer.move(layer.norms[1](x)), layer.norms[2](x), []
        offset, made = layer.offset(token).unflatten(-1, (5, 2)), layer.generate(token)
        for b in range(2):
            for n in range(4):
                x0, y0, x1, y1 = regions[b, n].double()
                dx, dy, dw, dh = moves[b, n]
                w, h = (x1 - x0) * dw.exp(), (y1 - y0) * dh.exp()
                cx, cy = (x0 + x1) / 2 + dx * (x1 - x0), (y0 + y1) / 2 + dy * (y1 - y0)
                o = (offset[b, n] - offset[b, n].mean(0)) / (3 * (offset[b, n].std(0) + 1e-5))
                at = [((cy + o[p, 1] * h) * 6 - 0.5, (cx + o[p, 0] * w) * 7 - 0.5) for p in range(5)]
                points = torch.stack([bilinear(image[b], y, z, True) for y, z in at])
                first = F.gelu(points @ made[b, n, :9].view(3, 3) + layer.m)
                second = F.gelu(made[b, n, 9:].view(5, 5) @ first + layer.s[:, None])
                region = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
                rows.append(torch.cat([x[b, n] + layer.out(second.flatten()), region]))
        return torch.stack(rows).view(2, 4, 12)

    agree(Both(), eager, torch.randn(2, 4, 8), torch.randn(2, 6, 7, 3), tolerance=1e-7)


@pytest.mark.parametrize("given", [False, True])
def test_windows_that_are_hard(given: bool) -> None:
    layer = sampling.ContentAwareMixer(4, 2, backend="torch")
    hard = torch.tensor([[True, False, True, True], [False, False, False, True]]) if given else None

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, condition: Tensor) -> Tensor:
            return self.layer(x, condition, hard)  # type: ignore[no-any-return]

    def eager(x: Tensor, condition: Tensor) -> Tensor:
        v = layer.value(x)
        inside = torch.tensor([-1.0, 1.0]).double().repeat(2)
        down, across = torch.meshgrid(inside, inside, indexing="ij")
        grid = torch.stack([down, across], -1).expand(2, -1, -1, -1)
        seen = layer.enter(torch.cat([v, condition, grid], -1))
        offset = 8 * layer.offset(seen).tanh()
        place = F.conv2d(seen.permute(0, 3, 1, 2), layer.place.weight, layer.place.bias, padding=1)[:, 0].sigmoid()
        out = torch.zeros_like(x)
        for b in range(2):
            warped = torch.stack(
                [bilinear(x[b], y + offset[b, y, z, 1], z + offset[b, y, z, 0], True) for y in range(4) for z in range(4)]
            )
            k = layer.key(x[b] + warped.view(4, 4, 4))
            windows = [(slice(y, y + 2), slice(z, z + 2)) for y in (0, 2) for z in (0, 2)]
            share = torch.stack([layer.judge(seen[b].mean(-1)[w].flatten())[0] for w in windows])
            live = set(share.argsort(descending=True)[:2].tolist()) if hard is None else set(hard[b].nonzero()[:, 0].tolist())
            for n, w in enumerate(windows):
                q, key, value = (t[w].flatten(0, 1) for t in (layer.query(x[b]), k, v[b]))
                easy = value * place[b][w].flatten()[:, None]
                out[b][w] = (attend(q, key, value, scale=1) if n in live else easy).view(2, 2, 4)
        local = layer.local(out.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return layer.out(F.gelu(local) * layer.channel(seen.mean((1, 2), True)).sigmoid() + out)  # type: ignore[no-any-return]

    agree(Given(), eager, torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 2), tolerance=1e-7)


def test_places_of_earlier_maps() -> None:
    layer = sampling.AcrossLayerAttention(4, 2, 2, backend="torch")

    def eager(x: Tensor, *maps: Tensor) -> Tensor:
        score, gate, offset = layer.score(x), layer.gate(x), layer.offset(x).unflatten(-1, (4, 2))
        assert ((gate > 0).any(-1) != (gate > 0).all(-1)).any()
        out = torch.zeros_like(x)
        for b in range(2):
            values = [layer.value(m[b]) for m in maps]
            for y in range(3):
                for z in range(4):
                    kept = [p for p in range(4) if gate[b, y, z, p] > 0]
                    if kept:
                        at = offset[b, y, z]
                        read = torch.stack([bilinear(values[p // 2], y + at[p, 0], z + at[p, 1], False) for p in kept])
                        out[b, y, z] = score[b, y, z, kept].softmax(0) @ read
        local = F.conv2d(out.permute(0, 3, 1, 2), layer.local.weight, None, padding=1, groups=4)
        return x + layer.norm(local).permute(0, 2, 3, 1)  # type: ignore[no-any-return]

    agree(layer, eager, *(torch.randn(2, 3, 4, 4) for _ in range(3)), tolerance=1e-7)
    with pytest.raises(ValueError, match="there must be 2 earlier maps, found 1"):
        layer(torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4))


def test_tokens_of_several_images_in_rows() -> None:
    layer = packing.SelectAndPack(8, 2, 4, backend="torch")

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, above: Tensor) -> Tensor:
            return torch.cat(self.layer(x, above), -1)

    def eager(x: Tensor, above: Tensor) -> Tensor:
        score = torch.maximum(layer.judge(x), above)
        chosen = [(b, n) for b in range(3) for n in range(7) if score[b, n] > 0]
        assert 4 < len(chosen) < 21
        out = x.clone()
        for r in range(0, len(chosen), 4):
            row = chosen[r : r + 4]
            tokens = torch.stack([score[at].sigmoid() * x[at] for at in row])
            image = torch.tensor([b for b, _ in row])
            for at, y in zip(row, within(layer, tokens, image[:, None] == image), strict=True):
                out[at] = y
        return torch.cat([out, score], -1)

    agree(Both(), eager, torch.randn(3, 7, 8), torch.randn(3, 7, 1))
    with torch.no_grad():
        layer.judge.weight.zero_()
        layer.judge.bias.fill_(-1)
    x = torch.randn(1, 3, 8).double()
    assert layer(x)[0].equal(x), "where no token is chosen, x comes back"


def test_groups_of_friends() -> None:
    """Edges as often as their chances say, groups by going through the edges one by one."""
    rare, near, seen = torch.rand(3, 60, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack([packing.social_edges(rare, near, seen, generator=generator) for _ in range(400)]).double()
    assert drawn.equal(drawn.mT)
    far = torch.tensor([[(abs(i - j) // 50 + 1) ** -2.0 for j in range(60)] for i in range(60)])
    far = (far - far.min()) / (far.max() - far.min())
    share = 0.2 * seen.outer(seen) + 0.3 * near.outer(near) + 0.2 * rare.outer(rare) + 0.3 * far
    torch.testing.assert_close(drawn.mean(0).tril(), (share * 0.07 / share.mean()).tril().double(), atol=0.07, rtol=0)
    edges = drawn[0] > 0
    left = {(i, j) for i, j in edges.nonzero().tolist() if i != j}
    for group in packing.social_groups(edges, 4, 6):
        counts = [sum(i == n for i, _ in left) for n in range(60)]
        centre = counts.index(max(counts))
        friends = sorted(j for i, j in left if i == centre)[:4]
        assert group.tolist() == [centre, *friends]
        left -= {(i, j) for i in group.tolist() for j in group.tolist()}


def test_groups_and_their_first_tokens() -> None:
    layer = packing.SocialAttention(8, 2, backend="torch")
    pad = torch.rand(2, 3, 5) < 0.7
    pad[:, :, 0] = True

    def eager(x: Tensor, pad: Tensor) -> Tensor:
        read = torch.stack(
            [torch.stack([x[b, g] + within(layer.within, x[b, g], pad[b, g]) for g in range(3)]) for b in range(2)]
        )
        first = torch.stack([layer.join(torch.cat([r[:, 0], within(layer.among, r[:, 0])], -1)) for r in read])
        return torch.cat([first[:, :, None], read[:, :, 1:]], 2)

    agree(layer, eager, torch.randn(2, 3, 5, 8), pad)
