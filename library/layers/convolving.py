"""Attention beside convolutions whose kernels depend on the token; x: [B, N, C] -> [B, N, C]."""

from __future__ import annotations

import torch
from torch import nn

from einfuse.library.layers.common import BackendName, compiled, divided, merge, single, split


class MixedAttention(nn.Module):
    """Half of the width attends, half is convolved with a kernel for every token and head (ConvBERT, Jiang et al., NeurIPS 2020).

    The kernels of ``reach`` weights come from the query and from a separable convolution of the tokens (a span), one softmax each.
    ``pad``: [B, N], true where a token is real; the others are not attended to.
    """

    def __init__(self, width: int, heads: int, reach: int = 9, *, backend: BackendName | None = None):
        super().__init__()
        if heads % 2 or reach % 2 == 0:
            raise ValueError(f"the heads must be even in number and the reach odd, found {heads} heads and a reach of {reach}")
        self.heads, half = heads // 2, divided(width, heads) * heads // 2
        self.query, self.key, self.value = (nn.Linear(width, half) for _ in range(3))
        self.depthwise = nn.Conv1d(width, width, reach, padding=reach // 2, groups=width, bias=False)
        self.span = nn.Linear(width, half)
        self.kernel, self.convolved = nn.Linear(half, self.heads * reach), nn.Linear(width, half)
        self.out = nn.Linear(width, width)
        self.attention, self.convolution = compiled("padding", backend), compiled("dynamic_convolution", backend)

    def forward(self, x: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if pad is None else pad
        query = self.query(x)
        q, k, v = (split(t, self.heads) for t in (query, self.key(x), self.value(x)))
        attended = merge(single(self.attention(q, k, v, pad=real)))
        span = self.span(self.depthwise(x.mT).mT)
        kernels = split(self.kernel(query * span), self.heads)
        local = merge(single(self.convolution(kernels, split(self.convolved(x), self.heads))))
        return self.out(torch.cat([attended, local], -1))  # type: ignore[no-any-return]
