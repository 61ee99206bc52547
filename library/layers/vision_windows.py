"""Attention inside windows of an image; x: [B, H, W, C] -> [B, H, W, C] unless said otherwise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import Attending, BackendName, compiled, divided, merge, single, split, table
from einfuse.library.layers.grids import assemble, offsets, partition


class SwinAttention(Attending):
    """(Shifted) window attention with a learned bias for every offset (Swin, Liu et al., ICCV 2021)."""

    def __init__(
        self, width: int, heads: int, side: int = 7, shift: int = 0, *, backend: BackendName | None = None, **more: Any
    ):
        if not 0 <= shift < side:
            raise ValueError(f"the shift must be at least 0 and less than the side {side}, found {shift}")
        spec = more.pop("spec", "swin_window")
        super().__init__(width, heads, spec, backend=backend, params={"side": side, "area": side * side, "shifted": shift > 0})
        self.side, self.shift = side, shift
        self.table = table(heads, 2 * side - 1, 2 * side - 1)

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"table": self.table}

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        height, width = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            given |= {"down": height // self.side, "across": width // self.side, "shift": self.shift}
        x = assemble(super().forward(partition(x, self.side), **given), height, width, self.side)
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x


class SwinV2Attention(SwinAttention):
    """Scaled cosine attention with a bias made of log-spaced offsets (Swin V2, Liu et al., CVPR 2022)."""

    def __init__(self, width: int, heads: int, side: int = 8, shift: int = 0, *, backend: BackendName | None = None):
        super().__init__(width, heads, side, shift, backend=backend, spec="swin_v2")
        del self.table
        self.key = nn.Linear(width, width, bias=False)  # a bias of the keys would move all scores of a row
        self.log_scale = nn.Parameter(torch.full((heads,), math.log(10.0)))
        self.bias = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        scaled = 8 * offsets(side) / max(side - 1, 1)
        self.register_buffer("spaced", scaled.sign() * (scaled.abs() + 1).log2() / 3, persistent=False)

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        bias = 16 * torch.sigmoid(self.bias(self.spaced))
        return {"table": bias.movedim(-1, 0), "tau": self.log_scale.clamp(max=math.log(100.0)).exp()}


class CrossFormerAttention(Attending):
    """Short- or long-distance attention with a dynamic position bias (CrossFormer, Wang et al., ICLR 2022).

    Groups of ``side`` x ``side`` tokens, adjacent (``interval`` 1) or ``interval`` apart; the bias is a small network of the offset.
    """

    def __init__(self, width: int, heads: int, side: int = 7, interval: int = 1, *, backend: BackendName | None = None):
        super().__init__(width, heads, "swin_window", backend=backend, params={"side": side, "area": side * side})
        self.side, self.interval = side, interval
        hidden = max(width // 16, 1)
        stages = [nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, n)) for n in (hidden, hidden, heads)]
        self.bias = nn.Sequential(nn.Linear(2, hidden), *stages)
        self.register_buffer("offsets", offsets(side), persistent=False)

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"table": self.bias(self.offsets).movedim(-1, 0)}

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        groups = partition(x, self.side, self.interval)
        return assemble(super().forward(groups, **given), x.shape[1], x.shape[2], self.side, self.interval)


class MaxViTAttention(Attending):
    """Block or grid attention (MaxViT, Tu et al., ECCV 2022): windows of side x side, or side x side tokens spread over the whole image."""

    def __init__(self, width: int, heads: int, side: int = 7, grid: bool = False, *, backend: BackendName | None = None):
        super().__init__(width, heads, "swin_window", backend=backend, params={"side": side, "area": side * side})
        self.side, self.grid = side, grid
        self.table = table(heads, 2 * side - 1, 2 * side - 1)

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"table": self.table}

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        height, width = x.shape[1:3]
        if self.grid and height != width:
            raise ValueError(f"a grid needs a square image, found {height} x {width}")
        interval = height // self.side if self.grid else 1
        groups = partition(x, self.side, interval)
        return assemble(super().forward(groups, **given), height, width, self.side, interval)


class NestedAttention(Attending):
    """Attention inside blocks that do not overlap, positions in the tokens (NesT, Zhang et al., AAAI 2022)."""

    def __init__(self, width: int, heads: int, side: int = 14, *, backend: BackendName | None = None):
        super().__init__(width, heads, "full", backend=backend)
        self.side = side

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        groups = partition(x, self.side)
        out = super().forward(groups.flatten(0, 1), **given).reshape(groups.shape)
        return assemble(out, x.shape[1], x.shape[2], self.side)


class CosetAttention(Attending):
    """Attention of downsampled tokens (U-DiT, Tian et al., NeurIPS 2024): the four cosets of stride 2 attend apart, with 2-D rotations.

    A depthwise 5 x 5 convolution with a shortcut comes first, so that no coset is blind to the others.
    """

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "rope_2d", backend=backend)
        if self.head_width % 4:
            raise ValueError(f"2-D rotations need a head width that is a multiple of 4, found {self.head_width}")
        self.mix = nn.Conv2d(width, width, 5, padding=2, groups=width)

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        x = x + self.mix(x.movedim(-1, 1)).movedim(1, -1)
        batch, height, width, channels = x.shape
        if height % 2 or width % 2:
            raise ValueError(f"the image must have even sides, found {height} x {width}")
        cosets = x.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 2, 4, 1, 3, 5)
        tokens = cosets.reshape(batch * 4, -1, channels)
        y, z = (p.expand(height // 2, width // 2).reshape(1, -1) for p in _positions(height // 2, width // 2, x.device))
        place = {
            "y": y.expand(len(tokens), -1),
            "x": z.expand(len(tokens), -1),
            "pack": torch.zeros_like(y).expand(len(tokens), -1),
        }
        out = super().forward(tokens, **place, **given).reshape(batch, 2, 2, height // 2, width // 2, channels)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def _positions(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(height, device=device)[:, None], torch.arange(width, device=device)[None]


class PermutedWindowAttention(nn.Module):
    """Permuted self-attention (SRFormer, Zhou et al., ICCV 2023): keys and values of a quarter of the width, 2 x 2 of them made one token."""

    def __init__(self, width: int, heads: int, side: int = 8, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        if width % 4 or side % 2:
            raise ValueError(f"the width must be a multiple of 4 and the side even, found {width} and {side}")
        self.heads, self.side = heads, side
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, width // 2)
        self.out = nn.Linear(width, width)
        self.table = table(heads, side - 1, side - 1)
        self.attention = compiled("permuted_window", backend, side=side, area=side**2, cells=side**2 // 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = partition(x, self.side)
        half = self.side // 2
        cells = self.key_value(windows).unflatten(-1, (2, -1)).unflatten(2, (half, 2, half, 2))
        k, v = cells.permute(6, 0, 1, 2, 4, 3, 5, 7).flatten(5).flatten(3, 4)  # [2, B, windows, cells, C]
        q, k, v = (split(t, self.heads) for t in (self.query(windows), k, v))
        out = self.out(merge(single(self.attention(q, k, v, table=self.table))))
        return assemble(out, x.shape[1], x.shape[2], self.side)


class OverlappingAttention(nn.Module):
    """Overlapping cross-attention (HAT, Chen et al., CVPR 2023): keys of a window that is larger by ``reach`` on every side, zero outside."""

    def __init__(self, width: int, heads: int, side: int = 8, reach: int = 2, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        self.heads, self.side, self.reach, self.wide = heads, side, reach, side + 2 * reach
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.table = table(heads, side + self.wide - 1, side + self.wide - 1)
        sizes = {"side": side, "area": side**2, "wide": self.wide, "halo": self.wide**2}
        self.attention = compiled("overlapping_window", backend, **sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        q = partition(q, self.side)
        q, k, v = (split(t, self.heads) for t in (q, self._around(k), self._around(v)))
        out = self.out(merge(single(self.attention(q, k, v, table=self.table))))
        return assemble(out, x.shape[1], x.shape[2], self.side)

    def _around(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, W, C] -> [B, windows, wide * wide, C]."""
        columns = functional.unfold(x.movedim(-1, 1), self.wide, padding=self.reach, stride=self.side)
        return columns.reshape(len(x), x.shape[-1], self.wide**2, -1).permute(0, 3, 2, 1)
