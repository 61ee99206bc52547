"""Attention over a whole image whose pattern is a formula of the two positions; x: [B, H, W, C] -> [B, H, W, C]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from einfuse.library.layers.common import Attending, BackendName, merge, single, table
from einfuse.library.layers.grids import convolve


class ImageAttention(Attending):
    """Attention over all tokens of an image, by a spec that knows the image's width."""

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        return super().forward(x.flatten(1, 2), **given).reshape(x.shape)

    def depthwise(self, convolution: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """A convolution of the values on the grid, to be added before the output map: [B, N, C]."""
        return convolve(convolution, self.value(x)).flatten(1, 2)


class CrossShapedAttention(Attending):
    """Horizontal stripes for half of the heads, vertical ones for the others (CSWin, Dong et al., CVPR 2022).

    A depthwise 3 x 3 convolution of the values inside each stripe is added (locally-enhanced positional encoding).
    """

    def __init__(self, width: int, heads: int, stripe: int = 7, *, backend: BackendName | None = None):
        super().__init__(width, heads, "cross_shaped", backend=backend, params={"stripe": stripe})
        if heads % 2:
            raise ValueError(f"the heads must be even in number, found {heads}")
        self.stripe = stripe
        half = width // 2
        self.enhance = nn.ModuleList(nn.Conv2d(half, half, 3, padding=1, groups=half) for _ in range(2))

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        height, width = x.shape[1:3]
        if height % self.stripe or width % self.stripe:
            raise ValueError(f"stripes of {self.stripe} must divide the image, found {height} x {width}")
        attended = merge(single(self.attention(*self.project(x.flatten(1, 2)), columns=width, **given))).reshape(x.shape)
        rows, columns = self.value(x).chunk(2, -1)
        local = torch.cat([self._local(rows, 0), self._local(columns.transpose(1, 2), 1).transpose(1, 2)], -1)
        return self.out(attended + local)  # type: ignore[no-any-return]

    def _local(self, x: torch.Tensor, which: int) -> torch.Tensor:
        stripes = x.reshape(-1, self.stripe, *x.shape[2:])
        return convolve(self.enhance[which], stripes).reshape(x.shape)


class NeighborhoodAttention(ImageAttention):
    """Every query attends to its kernel x kernel nearest keys, also at the border (NAT, Hassani et al., CVPR 2023)."""

    def __init__(self, width: int, heads: int, size: tuple[int, int], kernel: int = 7, *, backend: BackendName | None = None):
        if kernel % 2 == 0 or kernel > min(size):
            raise ValueError(f"the kernel must be odd and fit the image {size[0]} x {size[1]}, found {kernel}")
        sizes = {"kernel": kernel, "height": size[0], "width": size[1], "area": size[0] * size[1]}
        super().__init__(width, heads, "neighborhood", backend=backend, params=sizes)
        self.table = table(heads, 2 * kernel - 1, 2 * kernel - 1)

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"table": self.table}


class HaloAttention(ImageAttention):
    """Blocks of queries that see their block and a halo around it, with relative vectors (HaloNet, Vaswani et al., CVPR 2021).

    Keys outside the image do not exist (the paper leaves zeros there).
    """

    def __init__(self, width: int, heads: int, size: int, side: int = 8, reach: int = 3, *, backend: BackendName | None = None):
        span = 2 * (side + reach) - 1
        sizes = {"side": side, "reach": reach, "span": span, "width": size, "area": size * size}
        super().__init__(width, heads, "halo_relative", bias=False, backend=backend, params=sizes)
        self.row = table(heads, span, self.head_width, deviation=self.head_width**-0.5)
        self.column = table(heads, span, self.head_width, deviation=self.head_width**-0.5)

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"row": self.row, "column": self.column}


class CircleAttention(ImageAttention):
    """Every token sees a disc of ``radius`` around it (CLEAR, Liu et al., 2024); image tokens alone, without text."""

    def __init__(self, width: int, heads: int, radius: float = 8.0, *, backend: BackendName | None = None):
        super().__init__(width, heads, "circle", backend=backend)
        self.radius = radius

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        return super().forward(x, width=x.shape[2], radius=self.radius, **given)


class BlockCausalAttention(ImageAttention):
    """Blocks see themselves, the one above, the one left, the one above left (Inf-DiT, Yang et al., ECCV 2024)."""

    def __init__(self, width: int, heads: int, side: int = 8, *, backend: BackendName | None = None):
        super().__init__(width, heads, "block_causal", backend=backend)
        self.side = side

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        return super().forward(x, width=x.shape[2], side=self.side, **given)


class VolumeAttention(Attending):
    """Windows of a volume, local or dilated (D-Former, Wu et al., 2022); x: [B, Z, Y, X, C]."""

    def __init__(self, width: int, heads: int, box: int = 4, dilated: bool = False, *, backend: BackendName | None = None):
        super().__init__(width, heads, "volume_window", backend=backend, params={"dilated": dilated})
        self.box = box

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        out = super().forward(x.flatten(1, 3), box=self.box, height=x.shape[2], width=x.shape[3], **given)
        return out.reshape(x.shape)


class LookHereAttention(ImageAttention):
    """Heads that look up, right, down, left or everywhere, and see less with distance (LookHere, Fuller et al., NeurIPS 2024).

    The first ``directed`` heads take the four half-planes in turn with slopes 1/2, 1/4, ... for each round; the others are free, with
    slopes 1/4, 1/16, ... All are divided by ``fade``, which the paper raises with depth.
    """

    view: torch.Tensor
    slope: torch.Tensor

    def __init__(self, width: int, heads: int, directed: int, fade: float = 1.0, *, backend: BackendName | None = None):
        super().__init__(width, heads, "lookhere", backend=backend, params={"half": True})
        if not 0 <= directed <= heads:
            raise ValueError(f"there are {heads} heads, and {directed} of them cannot be directed")
        up_right_down_left = (4, 1, 3, 2)
        free = heads - directed
        slopes = [0.5 ** (n // 4 + 1) for n in range(directed)] + [0.25 ** (n + 1) for n in range(free)]
        self.register_buffer("view", torch.tensor([up_right_down_left[n % 4] for n in range(directed)] + [0] * free))
        self.register_buffer("slope", torch.tensor(slopes) / fade)

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"view": self.view, "slope": self.slope}

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        return super().forward(x, columns=x.shape[2], **given)


class ManhattanAttention(ImageAttention):
    """Weights that decay with the Manhattan distance, and a depthwise 5 x 5 of the values (RMT, Fan et al., CVPR 2024).

    ``scores`` puts the decay into the scores, as the authors' code does; the paper multiplies the weights after the normaliser.
    """

    rate: torch.Tensor

    def __init__(self, width: int, heads: int, scores: bool = False, *, backend: BackendName | None = None):
        super().__init__(width, heads, "rmt", backend=backend, params={"scores": scores})
        self.register_buffer("rate", torch.log1p(-torch.exp2(-2 - 4 * torch.arange(heads) / heads)))
        self.local = nn.Conv2d(width, width, 5, padding=2, groups=width)

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        q, k, v = self.project(x.flatten(1, 2))
        attended = merge(single(self.attention(q, k, v, rate=self.rate, width=x.shape[2], **given)))
        return self.out(attended + self.depthwise(self.local, x)).reshape(x.shape)  # type: ignore[no-any-return]


class HeadWindowAttention(Attending):
    """Another window size in every head, global ones among them (MW-MAE, 2024); x: [B, N, C] of a fixed length."""

    side: torch.Tensor

    def __init__(self, width: int, sides: Sequence[int], length: int, *, backend: BackendName | None = None):
        super().__init__(width, len(sides), "window_per_head", backend=backend)
        if any(length % s for s in sides):
            raise ValueError(f"every window must divide the length {length}, found {', '.join(map(str, sides))}")
        self.register_buffer("side", torch.tensor(sides))
        self.table = table(len(sides), 2 * length - 1)

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"side": self.side, "table": self.table}
