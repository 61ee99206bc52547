"""Attention in images mixed with other ways to look: pooled halves, coarse grids, shifts, views and scales; x: [B, H, W, C] unless said."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import Attending, BackendName, compiled, divided, merge, single, split, table
from einfuse.library.layers.grids import assemble, convolve, partition
from einfuse.library.layers.vision_masks import ImageAttention


class RelativeGridAttention(ImageAttention):
    """Attention over a whole image with one learned score for every offset (CoAtNet, Dai et al., NeurIPS 2021)."""

    def __init__(self, width: int, heads: int, size: tuple[int, int], *, backend: BackendName | None = None):
        super().__init__(width, heads, "relative_grid", backend=backend, params={"height": size[0], "width": size[1]})
        self.table = table(heads, 2 * size[0] - 1, 2 * size[1] - 1)

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"table": self.table}


class ConvolvedValueAttention(Attending):
    """Attention, and a depthwise convolution of the values of an image (ResFormer, Tian et al., CVPR 2023); x: [B, 1 + H * W, C].

    The class token comes first and is not convolved. `positions` makes the smoothed sinusoids that are added to tokens of any resolution.
    """

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "full", backend=backend)
        if width % 4:
            raise ValueError(f"sinusoids of two axes need a width that is a multiple of 4, found {width}")
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.smooth = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def positions(self, height: int, width: int) -> torch.Tensor:
        """[1, height * width, C]."""
        quarter = self.query.in_features // 4
        rate = 10000.0 ** (-torch.arange(quarter, device=self.query.weight.device, dtype=self.query.weight.dtype) / quarter)
        y, x = (torch.arange(1, n + 1, device=rate.device)[:, None] * rate for n in (height, width))
        rows, columns = (torch.cat([t.sin(), t.cos()], -1) for t in (y, x))
        grid = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], -1)[None]
        return (grid + convolve(self.smooth, grid)).flatten(1, 2)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:  # type: ignore[override]  # the image's sides
        attended = merge(single(self.attention(*self.project(x))))
        image = self.value(x)[:, 1:].reshape(len(x), *size, -1)
        local = functional.pad(convolve(self.local, image).flatten(1, 2), (0, 0, 1, 0))
        return self.out(attended + local)  # type: ignore[no-any-return]


class InceptionMixer(nn.Module):
    """Low frequencies by attention of pooled tokens, high ones by pooling and convolving (iFormer, Si et al., NeurIPS 2022).

    The first ``low`` channels are averaged over side x side tokens, attend, and are enlarged; of the others one half takes the largest of
    3 x 3 tokens, the other a depthwise convolution.
    """

    def __init__(self, width: int, low: int, heads: int, side: int = 2, *, backend: BackendName | None = None):
        super().__init__()
        if not 0 < low < width or (width - low) % 2:
            raise ValueError(f"the low channels must leave an even number of the {width}, found {low}")
        self.low, self.side, high = low, side, (width - low) // 2
        self.attend = Attending(low, heads, "full", backend=backend)
        self.pooled = nn.Linear(high, high)
        self.enter, self.convolved = nn.Linear(high, high), nn.Conv2d(high, high, 3, padding=1, groups=high)
        self.fuse, self.out = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        low, first, second = x.split([self.low, self.pooled.in_features, self.pooled.in_features], -1)
        cells = partition(low, self.side).mean(2)
        coarse = self.attend(cells).reshape(len(x), height // self.side, width // self.side, -1)
        low = coarse.repeat_interleave(self.side, 1).repeat_interleave(self.side, 2)
        first = self.pooled(functional.max_pool2d(first.movedim(-1, 1), 3, 1, 1).movedim(1, -1))
        second = convolve(self.convolved, self.enter(second))
        mixed = torch.cat([first, second, low], -1)
        return self.out(mixed + convolve(self.fuse, mixed))  # type: ignore[no-any-return]


class UpsamplingWindowAttention(nn.Module):
    """A decoder that enlarges by attention (Li et al., More than Encoder, 2021): queries of fine features in windows of 2 side x 2 side, keys
    and values of coarse ones in side x side, and the coarse features enlarged bilinearly beside it.

    coarse: [B, H, W, S], fine: [B, 2 H, 2 W, C] -> [B, 2 H, 2 W, C].
    """

    def __init__(self, coarse_width: int, width: int, heads: int, side: int = 4, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        self.heads, self.side = heads, side
        self.query, self.key, self.value = (
            nn.Linear(width, width),
            nn.Linear(coarse_width, width),
            nn.Linear(coarse_width, width),
        )
        self.out, self.shortcut = nn.Linear(width, width), nn.Linear(coarse_width, width)
        self.attention = compiled("full", backend)

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        asking, held = partition(fine, 2 * self.side), partition(coarse, self.side)
        pairs = ((self.query, asking), (self.key, held), (self.value, held))
        q, k, v = (split(m(t).flatten(0, 1), self.heads) for m, t in pairs)
        out = self.out(merge(single(self.attention(q, k, v)))).unflatten(0, asking.shape[:2])
        larger = functional.interpolate(self.shortcut(coarse).movedim(-1, 1), scale_factor=2, mode="bilinear").movedim(1, -1)
        return assemble(out, fine.shape[1], fine.shape[2], 2 * self.side) + larger


class ShiftEquivariantAttention(nn.Module):
    """Window attention after the image is rolled to the polyphase of the largest norm, and back (Rojas-Gomez et al., Making Vision
    Transformers Truly
    Shift-Equivariant; Ding et al., Reviving Shift Equivariance in Vision Transformers, 2023).

    A circular shift of the image shifts the result.
    """

    def __init__(self, width: int, heads: int, side: int = 7, *, backend: BackendName | None = None):
        super().__init__()
        self.side = side
        self.attend = Attending(width, heads, "full", backend=backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        windows = partition(x, self.side)  # token (p, q) of every window is the polyphase (p, q)
        best = windows.detach().square().sum((1, 3)).argmax(1).tolist()
        moved = [(-(p // self.side), -(p % self.side)) for p in best]
        rolled = torch.stack([image.roll(by, (0, 1)) for image, by in zip(x, moved, strict=True)])
        windows = partition(rolled, self.side)
        out = assemble(self.attend(windows.flatten(0, 1)).reshape(windows.shape), height, width, self.side)
        return torch.stack([image.roll((-y, -z), (0, 1)) for image, (y, z) in zip(out, moved, strict=True)])


class JitteredWindowAttention(Attending):
    """Windows of half the image's sides, rolled by an offset drawn for every step (HiDiffusion, Zhang et al., ECCV 2024).

    ``shift``: (down, across); drawn from four multiples of a quarter of the window where it is not given.
    """

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "full", backend=backend)

    def forward(self, x: torch.Tensor, shift: tuple[int, int] | None = None) -> torch.Tensor:  # type: ignore[override]
        batch, height, width, channels = x.shape
        if height % 2 or width % 2:
            raise ValueError(f"the image must have even sides, found {height} x {width}")
        quarters = torch.randint(0, 4, (1,)).item()
        down, across = shift or (int(quarters) * height // 8, int(quarters) * width // 8)
        halves = x.roll((-down, -across), (1, 2)).reshape(batch, 2, height // 2, 2, width // 2, channels).transpose(2, 3)
        out = super().forward(halves.reshape(4 * batch, -1, channels)).reshape(halves.shape).transpose(2, 3)
        return out.reshape(x.shape).roll((down, across), (1, 2))


class ScalePatchAttention(nn.Module):
    """Scales of one place attend, with a learned token among them, then these tokens across places (DuoFormer, Tang et al., 2024).

    x: [B, P, S, C], S tokens of all scales for each of P places -> [B, P, C].
    """

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        self.token = table(1, 1, 1, width)
        self.local = Attending(width, heads, "full", backend=backend)
        self.across = Attending(width, heads, "full", backend=backend)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([self.token.expand(*x.shape[:2], -1, -1), x], 2)
        tokens = tokens + self.local(self.norms[0](tokens).flatten(0, 1)).reshape(tokens.shape)
        places = tokens[:, :, 0]
        return places + self.across(self.norms[1](places))  # type: ignore[no-any-return]


class GroupedViewAttention(nn.Module):
    """Tokens an ``interval`` apart, of all views together, attend (LRGT, Yang et al., ICCV 2023), and the values are convolved view by view.

    x: [B, V, H, W, C] -> the same.
    """

    def __init__(self, width: int, heads: int, interval: int = 2, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        self.heads, self.interval = heads, interval
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.attention = compiled("full", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, views, height, width, channels = x.shape
        s = self.interval
        if height % s or width % s:
            raise ValueError(f"the interval {s} must divide the image, found {height} x {width}")
        projected = self.project(x)
        cells = projected.reshape(batch, views, height // s, s, width // s, s, 3 * channels).permute(0, 3, 5, 1, 2, 4, 6)
        q, k, v = (split(t, self.heads) for t in cells.reshape(batch * s * s, -1, 3 * channels).chunk(3, -1))
        attended = merge(single(self.attention(q, k, v))).reshape(batch, s, s, views, height // s, width // s, channels)
        attended = attended.permute(0, 3, 4, 1, 5, 2, 6).reshape(x.shape)
        local = convolve(self.local, projected.chunk(3, -1)[2].flatten(0, 1)).reshape(x.shape)
        return self.out(attended + local)  # type: ignore[no-any-return]


class MergingByScores(nn.Module):
    """Fewer tokens read all tokens, each key with a score of its own (the token merge of TCFormer, Zeng et al., CVPR 2022, and of LRGT).

    queries: [B, M, C], x: [B, N, C] -> [B, M, C]; how the queries were clustered is the caller's.
    """

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.score = nn.Linear(width, 1)
        self.attention = compiled("key_bias", backend)

    def forward(self, queries: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (split(t, self.heads) for t in (self.query(queries), self.key(x), self.value(x)))
        return self.out(merge(single(self.attention(q, k, v, bias=self.score(x).squeeze(-1)))))  # type: ignore[no-any-return]


class AdaptivePositionAttention(Attending):
    """Sinusoids of two axes in a proportion that the image sets, before attention over all of it (SATRN, Lee et al., CVPRW 2020)."""

    def __init__(self, width: int, heads: int, hidden: int | None = None, *, backend: BackendName | None = None):
        super().__init__(width, heads, "full", backend=backend)
        hidden = hidden or width // 2
        self.mix = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2 * width), nn.Sigmoid())

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        of_rows, of_columns = self.mix(x.mean((1, 2)))[:, None, None].chunk(2, -1)
        rows, columns = (_sinusoids(n, x) for n in x.shape[1:3])
        placed = x + of_rows * rows[:, None] + of_columns * columns[None]
        return super().forward(placed.flatten(1, 2), **given).reshape(x.shape)


def _sinusoids(length: int, like: torch.Tensor) -> torch.Tensor:
    """[length, C]: sines of the even channels, cosines of the odd ones."""
    width = like.shape[-1]
    rate = 10000.0 ** (-(torch.arange(width, device=like.device, dtype=like.dtype) // 2 * 2) / width)
    angle = torch.arange(length, device=like.device, dtype=like.dtype)[:, None] * rate
    return torch.where(torch.arange(width, device=like.device) % 2 == 0, angle.sin(), angle.cos())
