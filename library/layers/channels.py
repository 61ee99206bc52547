"""Attention between channels, in rectangles, and what restoration networks make of both; x: [B, H, W, C] -> [B, H, W, C]."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from einfuse.library.layers.common import BackendName, compiled, divided, merge, single, split
from einfuse.library.layers.grids import convolve, offsets


class CosineChannelAttention(nn.Module):
    """Channels attend by their cosine over all places (Restormer, Zamir et al., CVPR 2022), one temperature a head.

    Queries come from ``other`` where it is given: the high-frequency branch of CRAFT (Li et al., ICCV 2023).
    """

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads))
        self.query, self.key, self.value = (self._projection(width) for _ in range(3))
        self.out = nn.Conv2d(width, width, 1, bias=False)
        self.attention = compiled("channel_cosine", backend)

    @staticmethod
    def _projection(width: int) -> nn.Module:
        depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        return nn.Sequential(nn.Conv2d(width, width, 1, bias=False), depthwise)

    def inputs(self) -> dict[str, torch.Tensor]:
        return {"tau": self.temperature}

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        asking = x if other is None else other
        pairs = ((self.query, asking), (self.key, x), (self.value, x))
        q, k, v = (split(convolve(m, t).flatten(1, 2), self.heads).mT for m, t in pairs)
        attended = single(self.attention(q, k, v, **self.inputs())).flatten(1, 2).mT
        return convolve(self.out, attended.reshape(x.shape))


class TopKChannelAttention(CosineChannelAttention):
    """Four maps of the half, two thirds, three quarters and four fifths largest scores, mixed (DRSformer, Chen et al., CVPR 2023)."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, backend=backend)
        c = width // heads
        kept = {"half": c // 2, "thirds": c * 2 // 3, "quarters": c * 3 // 4, "fifths": c * 4 // 5}
        if not all(kept.values()):
            raise ValueError(f"a head needs at least 2 channels, found {c}")
        self.mix = nn.Parameter(torch.full((4,), 0.2))
        self.attention = compiled("channel_topk", backend, **kept)

    def inputs(self) -> dict[str, torch.Tensor]:
        return {"tau": self.temperature, "mix": self.mix}


class RectangleAttention(nn.Module):
    """Half of the heads in windows of down x across tokens, half in across x down, with a network of the offset as bias and a depthwise
    convolution of the values (CRAFT, Li et al., ICCV 2023; the spatial attention of DAT, Chen et al., ICCV 2023).

    ``shifted`` moves the windows by half their sides, within the image.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        down: int = 8,
        across: int = 32,
        shifted: bool = False,
        *,
        backend: BackendName | None = None,
    ):
        super().__init__()
        divided(width, heads)
        if heads % 2:
            raise ValueError(f"the heads must be even in number, found {heads}")
        self.heads, self.sides, self.shifted = heads, (down, across), shifted
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.local: nn.Module = nn.Conv2d(width, width, 3, padding=1, groups=width)
        hidden = max(width // 16, 1)
        stages = [nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, n)) for n in (hidden, hidden, heads)]
        self.bias = nn.Sequential(nn.Linear(2, hidden), *stages)
        self.register_buffer("offsets", offsets(max(down, across)), persistent=False)
        self.attention = compiled("rectangles", backend, down=down, across=across, reach=max(down, across))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attended values, each [B, H, W, C]."""
        height, width = v.shape[1:3]
        if any(n % side for n in (height, width) for side in self.sides):
            raise ValueError(f"the sides {self.sides} must divide the image, found {height} x {width}")
        moved = {"dy": self.sides[0] // 2, "dx": self.sides[1] // 2} if self.shifted else {}
        tokens = (split(t.flatten(1, 2), self.heads) for t in (q, k, v))
        table = self.bias(self.offsets).movedim(-1, 0)
        return merge(single(self.attention(*tokens, table=table, height=height, width=width, **moved))).reshape(v.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        return self.out(self.attend(q, k, v) + convolve(self.local, v))  # type: ignore[no-any-return]


class DualAggregation(RectangleAttention):
    """Attention and a convolution of its values, each gated by a map of the other (DAT, Chen et al., ICCV 2023).

    In rectangles the attended values are gated a channel each and the convolved ones a place each; with ``channels`` the attention is one
    between channels, and the gates change places.
    """

    def __init__(
        self, width: int, heads: int, *sides: int, channels: bool = False, backend: BackendName | None = None, **more: Any
    ):
        super().__init__(width, heads, *sides, backend=backend, **more)  # type: ignore[arg-type]  # two sides
        self.channels = channels
        self.local = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), nn.GELU())
        small = max(width // 16, 1)
        self.of_places = nn.Sequential(nn.Conv2d(width, small, 1), nn.BatchNorm2d(small), nn.GELU(), nn.Conv2d(small, 1, 1))
        small = max(width // 8, 1)
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, small, 1))
        self.of_channels = nn.Sequential(*pooled, nn.BatchNorm2d(small), nn.GELU(), nn.Conv2d(small, width, 1))
        if channels:
            del self.bias
            self.temperature = nn.Parameter(torch.ones(heads))
            self.attention = compiled("channel_cosine", backend)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if not self.channels:
            return super().attend(q, k, v)
        columns = (split(t.flatten(1, 2), self.heads).mT for t in (q, k, v))
        return merge(single(self.attention(*columns, tau=self.temperature)).mT).reshape(v.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        attended, local = self.attend(q, k, v), convolve(self.local, v)
        first, second = (self.of_places, self.of_channels) if self.channels else (self.of_channels, self.of_places)
        gates = convolve(first, local).sigmoid(), convolve(second, attended).sigmoid()
        return self.out(attended * gates[0] + local * gates[1])  # type: ignore[no-any-return]
