"""Attention and mixing at places of a map that tokens predict; images: [B, H, W, C]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import Attending, BackendName, compiled, merge, single
from einfuse.library.layers.grids import assemble, convolve, partition


class RegionSampling(nn.Module):
    """A few latent tokens, each with a region of the image: they attend, move their regions, and mix what they sample there (SparseFormer,
    Gao et al., ICLR 2024), without the feed-forward part and the authors' cut of the gradients of places.

    x: [B, N, C], regions: [B, N, 4] as (x0, y0, x1, y1) from 0 to 1, image: [B, H, W, c] -> the first two again.
    """

    def __init__(self, width: int, heads: int, image_width: int, points: int = 36, *, backend: BackendName | None = None):
        super().__init__()
        self.points, self.image_width = points, image_width
        self.attend = Attending(width, heads, "full", backend=backend)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.move, self.offset = nn.Linear(width, 4), nn.Linear(width, 2 * points)
        self.generate = nn.Sequential(nn.Linear(width, width // 4), nn.Linear(width // 4, image_width**2 + points**2))
        self.m, self.s = nn.Parameter(torch.zeros(image_width)), nn.Parameter(torch.zeros(points))
        self.out = nn.Linear(points * image_width, width)
        self.mix = compiled("adaptive_mixing", backend)

    def forward(self, x: torch.Tensor, regions: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        attend, moving, mixing = self.norms
        x = x + self.attend(attend(x))
        regions = _moved(regions, self.move(moving(x)))
        token = mixing(x)
        sampled = self.sample(token, regions, image)
        channels, points = self.generate(token).split([self.image_width**2, self.points**2], -1)
        square = channels.unflatten(-1, (self.image_width, -1)), points.unflatten(-1, (self.points, -1))
        return x + self.out(single(self.mix(sampled, *square, self.m, self.s)).flatten(-2)), regions

    def sample(self, token: torch.Tensor, regions: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """What the image has at the points of every token, [B, N, P, c]; offsets of three deviations reach the edge of the region."""
        offset = self.offset(token).unflatten(-1, (-1, 2))
        offset = (offset - offset.mean(-2, True)) / (3 * (offset.std(-2, keepdim=True) + 1e-5))
        low, high = regions[..., None, :2], regions[..., None, 2:]
        at = (low + high) / 2 + offset * (high - low)
        found = functional.grid_sample(image.movedim(-1, 1), 2 * at - 1, padding_mode="border", align_corners=False)
        return found.movedim(1, -1)


def _moved(regions: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Regions whose centres moved by parts of their sides, and whose sides grew by factors exp(by)."""
    side = (regions[..., 2:] - regions[..., :2]).abs()
    centre = (regions[..., 2:] + regions[..., :2]) / 2 + by[..., :2] * side
    half = side * by[..., 2:].exp() / 2
    return torch.cat([centre - half, centre + half], -1)


class _Prediction(NamedTuple):
    offset: torch.Tensor  # [B, H, W, 2], in pixels
    hard: torch.Tensor  # [B, windows], the probability
    channels: torch.Tensor  # [B, 1, 1, C]
    places: torch.Tensor  # [B, H, W, 1]


class ContentAwareMixer(nn.Module):
    """Windows that need it attend to keys warped by predicted offsets, the others are gated, and all are convolved (CAMixerSR, Wang et al.,
    CVPR 2024).

    x: [B, H, W, C], condition: [B, H, W, 2], what the authors' model predicts of the whole image once. Hard are the ``ratio`` of the windows
    that are most probably so, or those of ``hard``, [B, windows]: training draws them by Gumbel noise.
    """

    def __init__(self, width: int, side: int = 8, ratio: float = 0.5, *, backend: BackendName | None = None):
        super().__init__()
        self.side, self.ratio = side, ratio
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        near = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.local = nn.Sequential(near, nn.Conv2d(width, width, 3, padding=2, dilation=2, groups=width))
        hidden, leak = (width + 4) // 4, nn.LeakyReLU(0.1)
        self.enter = nn.Sequential(nn.Linear(width + 4, hidden), nn.LayerNorm(hidden, 1e-6), leak)
        self.offset = nn.Sequential(nn.Linear(hidden, max(hidden // 2, 1)), leak, nn.Linear(max(hidden // 2, 1), 2))
        self.judge = nn.Sequential(nn.Linear(side**2, side), leak, nn.Linear(side, 2), nn.Softmax(-1))
        self.channel, self.place = nn.Linear(hidden, width), nn.Conv2d(hidden, 1, 3, padding=1)
        self.attention = compiled("hard_windows", backend)

    def predict(self, v: torch.Tensor, condition: torch.Tensor) -> _Prediction:
        height, width = v.shape[1:3]
        line = torch.linspace(-1, 1, self.side, dtype=v.dtype, device=v.device)
        within = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).repeat(height // self.side, width // self.side, 1)
        seen = self.enter(torch.cat([v, condition, within.expand(len(v), -1, -1, -1)], -1))
        hard = self.judge(partition(seen.mean(-1, True), self.side).squeeze(-1))[..., 0]
        channels = self.channel(seen.mean((1, 2), True)).sigmoid()
        return _Prediction(8 * self.offset(seen).tanh(), hard, channels, convolve(self.place, seen).sigmoid())

    def forward(self, x: torch.Tensor, condition: torch.Tensor, hard: torch.Tensor | None = None) -> torch.Tensor:
        batch, height, width, _ = x.shape
        v = self.value(x)
        found = self.predict(v, condition)
        if hard is None:
            best = found.hard.topk(int(found.hard.shape[1] * self.ratio), 1).indices
            hard = torch.zeros_like(found.hard, dtype=torch.bool).scatter(1, best, True)
        warped = x + _warped(x, found.offset)
        windows = (partition(t, self.side).flatten(0, 1) for t in (self.query(x), self.key(warped), v))
        gate = partition(found.places, self.side).flatten(0, 1).squeeze(-1)
        out = single(self.attention(*(t[:, None] for t in windows), gate=gate, hard=hard.flatten())).squeeze(1)
        mixed = assemble(out.unflatten(0, (batch, -1)), height, width, self.side)
        return self.out(functional.gelu(convolve(self.local, mixed)) * found.channels + mixed)  # type: ignore[no-any-return]


def _warped(x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """``x`` read bilinearly at every place moved by its (x, y) offset in pixels; places outside are those of the border."""
    size = torch.tensor([x.shape[2], x.shape[1]], dtype=x.dtype, device=x.device)
    down, across = (torch.arange(n, dtype=x.dtype, device=x.device) for n in x.shape[1:3])
    own = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)
    at = 2 * (own + offset) / (size - 1).clamp(min=1) - 1
    return functional.grid_sample(x.movedim(-1, 1), at, padding_mode="border", align_corners=True).movedim(1, -1)


class AcrossLayerAttention(nn.Module):
    """A place reads ``keys`` predicted places of every earlier map, some of which a gate leaves out (ACLA, Wang et al., 2022).

    x and the maps: [B, H, W, C] -> [B, H, W, C]. In training the gate is drawn with Gumbel noise. This is the paper's form: in the authors'
    code a key that is left out keeps the weight of a score of 0.
    """

    def __init__(self, width: int, layers: int, keys: int = 4, *, backend: BackendName | None = None):
        super().__init__()
        self.layers, self.keys = layers, keys
        points = layers * keys
        self.score, self.gate, self.offset = nn.Linear(width, points), nn.Linear(width, points), nn.Linear(width, 2 * points)
        self.value = nn.Linear(width, width)
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.attention = compiled("deformable", backend)

    def forward(self, x: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
        if len(maps) != self.layers:
            raise ValueError(f"there must be {self.layers} earlier maps, found {len(maps)}")
        height, width = x.shape[1:3]
        gate = self.gate(x)
        if self.training:
            share = torch.rand_like(gate).clamp(1e-6, 1 - 1e-6)
            gate = gate + share.logit()  # the difference of two Gumbel draws
        offset = self.offset(x).unflatten(-1, (-1, 2))  # (down, across)
        down, across = (torch.arange(n, dtype=x.dtype, device=x.device) for n in (height, width))
        y, z = offset[..., 0] + down[:, None, None], offset[..., 1] + across[:, None]
        v = torch.cat([self.value(m).flatten(1, 2) for m in maps], 1)[:, None]
        points = [t.flatten(1, 2)[:, None] for t in (y, z, self.score(x), gate > 0)]
        out = single(self.attention(v, *points[:3], keep=points[3], **_tables(self.layers, height, width, x.device)))
        return x + convolve(nn.Sequential(self.local, self.norm), merge(out).unflatten(1, (height, width)))


def _tables(layers: int, height: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Where maps of one size start, and their sides, for `deformable`."""
    starts: Sequence[int] = [n * height * width for n in range(layers)]
    rows: dict[str, Sequence[int]] = {"start": starts, "rows": [height] * layers, "columns": [width] * layers}
    return {name: torch.tensor(row, dtype=torch.int32, device=device) for name, row in rows.items()}
