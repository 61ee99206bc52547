"""Images at two granularities, and from one to the next: focal attention, tokens made of tokens; shapes at every class."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import Attending, BackendName, compiled, merge, single, split, table
from einfuse.library.layers.grids import partition


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
