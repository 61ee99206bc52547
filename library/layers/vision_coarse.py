"""Images at two granularities, and from one to the next: focal attention, tokens made of tokens; shapes at every class."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import Attending, BackendName, compiled, divided, merge, single, split, table
from einfuse.library.layers.grids import convolve, partition
from einfuse.library.layers.references import CrossAttention


class FocalAttention(Attending):
    """Windows see the tokens around them and, farther away, one summary of every window (Focal, Yang et al., NeurIPS 2021);
    x: [B, H, W, C] -> [B, H, W, C].

    Two levels: tokens within ``reach`` of a window of side x side, summaries of the windows at most ``far`` windows away. A summary is a
    learned sum of a window's tokens, with the same maps for keys and values. What would lie outside the image does not exist.
    """

    def __init__(
        self, width: int, heads: int, side: int = 7, reach: int = 3, far: int = 3, *, backend: BackendName | None = None
    ):
        super().__init__(width, heads, "focal", backend=backend, params={"side": side, "reach": reach, "far": far})
        self.side = side
        self.pool = nn.Linear(side * side, 1)
        nn.init.constant_(self.pool.weight, 1 / side**2)
        nn.init.zeros_(self.pool.bias)
        span = 2 * (side + reach) - 1
        self.fine, self.coarse = table(heads, span, span), table(heads, 2 * far + 1, 2 * far + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # an image, and nothing else is given
        summaries = self.pool(partition(x, self.side).mT)[..., 0]
        _, k, v = self.project(summaries)
        tables = {"ck": k, "cv": v, "fine": self.fine, "coarse": self.coarse, "width": x.shape[2]}
        return super().forward(x.flatten(1, 2), **tables).reshape(x.shape)


class TokensToToken(nn.Module):
    """Patches that overlap become tokens (T2T-ViT, Yuan et al., ICCV 2021): unfolded, then one narrow head of attention and a small network;
    x: [B, H, W, C] -> [B, H / stride, W / stride, narrow], rounded up.

    The attention's residual is its value. ``linear`` takes positive random features instead of a softmax, half as many as the width: a
    fixed projection, in time linear in the number of tokens.
    """

    features: torch.Tensor

    def __init__(
        self,
        width: int,
        narrow: int = 64,
        kernel: int = 3,
        stride: int = 2,
        linear: bool = False,
        *,
        backend: BackendName | None = None,
    ):
        super().__init__()
        self.kernel, self.stride, self.linear = kernel, stride, linear
        patch = width * kernel * kernel
        self.norm, self.after = nn.LayerNorm(patch), nn.LayerNorm(narrow)
        self.project, self.out = nn.Linear(patch, 3 * narrow), nn.Linear(narrow, narrow)
        self.network = nn.Sequential(nn.Linear(narrow, narrow), nn.GELU(), nn.Linear(narrow, narrow))
        self.attention = compiled("performer_both" if linear else "full", backend)
        if linear:
            count = max(narrow // 2, 1)
            self.register_buffer("features", nn.init.orthogonal_(torch.empty(count, narrow)) * count**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = functional.unfold(x.movedim(-1, 1), self.kernel, padding=self.kernel // 2, stride=self.stride).mT
        q, k, v = (split(t, 1) for t in self.project(self.norm(patches)).chunk(3, -1))
        attended = single(self.attention(q, k, v, w=self.features) if self.linear else self.attention(q, k, v))
        tokens = v[:, 0] + self.out(merge(attended))
        tokens = tokens + self.network(self.after(tokens))
        return tokens.unflatten(1, (-(-x.shape[1] // self.stride), -1))  # type: ignore[no-any-return]


class FrequencyMixer(nn.Module):
    """The first ``high`` channels are convolved, the others attend to keys and values pooled by ``pool``, and one map joins both (a reading of
    FMViT, Tan et al., 2023, whose code is not public); x: [B, H, W, C]."""

    def __init__(self, width: int, high: int, heads: int, pool: int = 2, *, backend: BackendName | None = None):
        super().__init__()
        if not 0 < high < width:
            raise ValueError(f"some of the {width} channels must be convolved and some attend, found {high} convolved")
        self.high, self.pool = high, pool
        self.convolved = nn.Conv2d(high, high, 3, padding=1, groups=high)
        self.attend = CrossAttention(width - high, heads, backend=backend)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fast, slow = x.split([self.high, x.shape[-1] - self.high], -1)
        pooled = functional.avg_pool2d(slow.movedim(-1, 1), self.pool).flatten(2).mT
        attended = self.attend(slow.flatten(1, 2), pooled).reshape(slow.shape)
        return self.out(torch.cat([convolve(self.convolved, fast), attended], -1))  # type: ignore[no-any-return]


class _SlotMeans(nn.Module):
    """All queries read side x side slots, each the mean over all windows of what stands at its place in a window of ``dilation``."""

    def __init__(self, width: int, heads: int, side: int, dilation: int, *, backend: BackendName | None = None):
        super().__init__()
        narrow = divided(width, heads)
        self.heads, self.side, self.dilation = heads, side, dilation
        self.enter = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1))
        self.slot, self.key, self.value = (nn.Linear(narrow, narrow) for _ in range(3))
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.attention = compiled("cross", backend)

    def forward(self, queries: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        span = self.dilation * (self.side - 1) + 1
        image = self.enter(x.movedim(-1, 1))
        image = functional.pad(image, (0, -image.shape[3] % span, 0, -image.shape[2] % span), mode="reflect")
        means = functional.unfold(image, self.side, self.dilation, 0, span).mean(-1)
        slots = self.slot(means.reshape(len(x), self.heads, -1, self.side**2).mT)
        v = self.value(slots)
        v = v + split(convolve(self.local, merge(v).unflatten(1, (self.side, -1))).flatten(1, 2), self.heads)
        return merge(single(self.attention(split(queries, self.heads), self.key(slots), v)))


class FactorisedWindowAttention(nn.Module):
    """Queries read the means of equal slots of all windows, near and dilated by ``reduction``, and one head the reduced image (FaViT, Qin et
    al., 2023): two, seven and seven sixteenths of the channels; x: [B, H, W, C].

    This is the paper's form: the authors' code averages neighbouring channels of a window in place of windows.
    """

    def __init__(self, width: int, heads: int, side: int = 7, reduction: int = 2, *, backend: BackendName | None = None):
        super().__init__()
        part = divided(width, 16)
        self.widths = [2 * part, 7 * part, 7 * part]
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.reduce, self.norm = nn.Conv2d(width, width, reduction, reduction), nn.LayerNorm(width)
        self.key, self.value = (nn.Linear(width, 2 * part) for _ in range(2))
        self.slots = nn.ModuleList(_SlotMeans(7 * part, heads, side, d, backend=backend) for d in (1, reduction))
        self.attention = compiled("full", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole, *queries = self.query(x).flatten(1, 2).split(self.widths, -1)
        parts = x.split(self.widths, -1)[1:]
        reduced = self.norm(convolve(self.reduce, x).flatten(1, 2))
        read = merge(single(self.attention(*(t[:, None] for t in (whole, self.key(reduced), self.value(reduced))))))
        near = [slots(q, p) for slots, q, p in zip(self.slots, queries, parts, strict=True)]
        return self.out(torch.cat([read, *near], -1)).reshape(x.shape)  # type: ignore[no-any-return]
