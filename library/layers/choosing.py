"""Attention in places that are chosen: regions, blocks, sampled points, patterns of a head; x: [B, N, C] unless said."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from einfuse.library.layers.common import Attending, BackendName, compiled, divided, merge, single, sized, split
from einfuse.library.layers.grids import partition
from einfuse.library.layers.vision_masks import ImageAttention


class RoutedRegionAttention(ImageAttention):
    """A query sees the ``best`` regions of the image for its own region (BiFormer, Zhu et al., CVPR 2023); x: [B, H, W, C], H and W multiples
    of ``regions``. A depthwise 5 x 5 convolution of the values is added; the scale is that of the full width, as in the authors' code."""

    def __init__(self, width: int, heads: int, regions: int = 7, best: int = 4, *, backend: BackendName | None = None):
        super().__init__(width, heads, "routed_regions", backend=backend, params={"best": best, "regions": regions**2})
        self.regions, self.scale = regions, width**-0.5
        self.local = nn.Conv2d(width, width, 5, padding=2, groups=width)

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        height, width = x.shape[1:3]
        if height != width or height % self.regions:
            raise ValueError(f"the image must be square, a multiple of the regions, found {height} x {width}, {self.regions}")
        side = width // self.regions
        means = {name: partition(m(x), side).mean(2) for name, m in (("mq", self.query), ("mk", self.key))}
        sizes = {"width": width, "side": side, "scale": self.scale}
        attended = merge(single(self.attention(*self.project(x.flatten(1, 2)), **means, **sizes, **given)))
        return self.out((attended + self.depthwise(self.local, x)).reshape(x.shape))  # type: ignore[no-any-return]


class NativeSparseAttention(nn.Module):
    """Three branches with a gate each: compressed blocks, the best blocks, and a window (NSA, Yuan et al., ACL 2025), causal.

    Heads come in ``kv_heads`` groups, which choose their blocks together; every branch has keys and values of its own. The summaries are a
    network of ``span`` tokens and their places in the block, every ``stride`` tokens.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        *,
        span: int = 32,
        stride: int = 16,
        block: int = 64,
        best: int = 16,
        window: int = 512,
        backend: BackendName | None = None,
    ):
        super().__init__()
        if block % stride or span % stride:
            raise ValueError(f"the stride must divide span and block, found {stride}, {span} and {block}")
        each = divided(width, heads)
        divided(heads, kv_heads)
        self.heads, self.kv_heads, self.span, self.stride, self.block = heads, kv_heads, span, stride, block
        self.query, self.key_value = nn.Linear(width, width, bias=False), nn.Linear(width, 6 * kv_heads * each, bias=False)
        self.place = nn.Parameter(torch.zeros(2, span, each))
        self.summarise = nn.ModuleList(
            nn.Sequential(nn.Linear(span * each, 2 * each), nn.GELU(), nn.Linear(2 * each, each)) for _ in range(2)
        )
        self.gate, self.out = nn.Linear(width, 3 * heads), nn.Linear(width, width, bias=False)
        self.backend = backend
        self.compressed = compiled("past_summaries", backend, stride=stride, span=span)
        self.chosen = compiled("chosen_blocks", backend, best=best, block=block)
        self.window = compiled("sliding_window", backend, window=window)

    def summary(self, x: torch.Tensor, which: int) -> torch.Tensor:
        """Keys or values [B, H, N, D] as one for every stretch of ``span`` tokens."""
        stretches = x.unfold(2, self.span, self.stride).mT + self.place[which]
        return self.summarise[which](stretches.flatten(-2))  # type: ignore[no-any-return]

    @torch.no_grad()
    def given(self, q: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """How much the queries of a group give to every block, by the summaries of its keys: [B, groups, N, blocks]."""
        sizes = {"blocks": -(-q.shape[2] // self.block), "stride": self.stride, "span": self.span, "block": self.block}
        summarised = sized("block_summaries", self.backend, **sizes)
        # Values of one feature: nobody asks for their sums.
        _, given = summarised(q.unflatten(1, (self.kv_heads, -1)), keys, keys[..., :1])
        return given

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        if length < self.span:
            raise ValueError(f"there must be at least {self.span} tokens, found {length}")
        q = split(self.query(x), self.heads)
        k, v, k2, v2, k3, v3 = (split(t, self.kv_heads) for t in self.key_value(x).chunk(6, -1))
        keys, values = self.summary(k, 0), self.summary(v, 1)
        compressed = single(self.compressed(q, keys, values))
        chosen = single(self.chosen(q, k2, v2, given=self.given(q, keys)))
        near = single(self.window(q, k3, v3))
        gates = self.gate(x).sigmoid().unflatten(-1, (3, self.heads)).permute(2, 0, 3, 1)[..., None]
        return self.out(merge(gates[0] * compressed + gates[1] * chosen + gates[2] * near))  # type: ignore[no-any-return]


class DeformableAttention(nn.Module):
    """Queries read a few points of every map, at places that they predict (Deformable DETR, Zhu et al., ICLR 2021).

    queries: [B, M, C], references: [B, M, 2] as (x, y) from 0 to 1, maps: a sequence of [B, H_l, W_l, C] -> [B, M, C].
    """

    def __init__(self, width: int, heads: int, levels: int = 4, points: int = 4, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        self.heads, self.levels, self.points = heads, levels, points
        self.offset, self.score = nn.Linear(width, heads * levels * points * 2), nn.Linear(width, heads * levels * points)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.attention = compiled("deformable", backend)
        nn.init.zeros_(self.offset.weight)
        angle = torch.arange(heads) * (2 * torch.pi / heads)
        ways = torch.stack([angle.cos(), angle.sin()], -1)
        ways = (ways / ways.abs().amax(-1, keepdim=True))[:, None, None] * torch.arange(1, points + 1)[:, None]
        with torch.no_grad():
            self.offset.bias.copy_(ways.expand(-1, levels, -1, -1).flatten())

    def forward(self, queries: torch.Tensor, references: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
        if len(maps) != self.levels:
            raise ValueError(f"there must be {self.levels} maps, found {len(maps)}")
        sizes = torch.tensor([m.shape[1:3] for m in maps], device=queries.device)
        start = sizes.prod(-1).cumsum(0) - sizes.prod(-1)
        v = split(self.value(torch.cat([m.flatten(1, 2) for m in maps], 1)), self.heads)
        shape = (self.heads, self.levels, self.points)
        offset = self.offset(queries).unflatten(-1, (*shape, 2))
        extent = sizes.flip(-1).to(queries.dtype)[:, None]  # (x, y) of every level
        places = (references[:, :, None, None, None] * extent + offset - 0.5).permute(5, 0, 2, 1, 3, 4).flatten(-2)
        scores = self.score(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        tables = {"start": start.int(), "rows": sizes[:, 0].int(), "columns": sizes[:, 1].int()}
        return self.out(merge(single(self.attention(v, places[1], places[0], scores, **tables))))  # type: ignore[no-any-return]


class ShiftedGroupAttention(Attending):
    """Causal in groups of ``width_of_group`` tokens, moved by half a group for half of the heads, with ``sinks`` first keys that all see
    (LongLoRA,
    Chen et al., ICLR 2024; SinkLoRA, Zhang, 2024)."""

    def __init__(self, width: int, heads: int, group: int = 2048, sinks: int = 0, *, backend: BackendName | None = None):
        super().__init__(width, heads, "shifted_groups", backend=backend, params={"width": group, "sinks": sinks})


class VideoHeadsAttention(Attending):
    """Every head looks through frames or through places, whichever is closer to full attention on some rows (Sparse VideoGen, Xi et al.,
    ICML 2025).

    x: [B, F * P + T, C], F frames of ``pixels`` tokens, then T of text.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        pixels: int,
        frames: int,
        places: int,
        text: int = 0,
        *,
        backend: BackendName | None = None,
    ):
        patterns = {"pixels": pixels, "frames": frames, "places": places, "text": text}
        super().__init__(width, heads, "video_heads", backend=backend, params=patterns)
        self.full = compiled("full", backend)
        self.pixels, self.frames, self.places, self.text = pixels, frames, places, text

    @torch.no_grad()
    def choose(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: int = 32) -> torch.Tensor:
        """Which heads are temporal, [B, H], from the mean squared errors on ``rows`` rows."""
        i = torch.randint(0, q.shape[2] - self.text, (min(rows, q.shape[2]),), device=q.device).sort().values
        j = torch.arange(k.shape[2], device=q.device)
        s = q[:, :, i] @ k.mT * q.shape[-1] ** -0.5
        truth, late = s.softmax(-1) @ v, j >= k.shape[2] - self.text
        errors = []
        for way, reach in (("spatial", self.frames), ("temporal", self.places)):
            at, to = (t // self.pixels if way == "spatial" else t % self.pixels for t in (i, j))
            seen = ((at[:, None] - to).abs() <= reach) | late
            errors.append(((s.masked_fill(~seen, float("-inf")).softmax(-1) @ v - truth) ** 2).mean((-2, -1)))
        return errors[1] < errors[0]  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor, /, temporal: torch.Tensor | None = None, **given: Any) -> torch.Tensor:
        q, k, v = self.project(x)
        temporal = self.choose(q, k, v) if temporal is None else temporal
        return self.out(merge(single(self.attention(q, k, v, temporal=temporal, **given))))  # type: ignore[no-any-return]
