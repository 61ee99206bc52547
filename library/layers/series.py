"""Attention along other axes than time, and between sequences: variates, samples of a batch, sources; shapes at every class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from einfuse.library.layers.common import Attending, BackendName, compiled, divided, merge, single, split


class VariateAttention(nn.Module):
    """Every variate is a token (iTransformer, Liu et al., ICLR 2024): series: [B, T, V] -> [B, V, C]."""

    def __init__(self, length: int, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        self.embed = nn.Linear(length, width)
        self.attend = Attending(width, heads, "full", backend=backend)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        return self.attend(self.embed(series.mT))  # type: ignore[no-any-return]


class BatchAttention(Attending):
    """The samples of a batch attend to each other, position by position, in training only (BatchFormer, Hou et al., CVPR 2022); [B, N, C]."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "full", backend=backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # no further inputs
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


class AdditiveAttention(nn.Module):
    """a . tanh(W q + U k) instead of products (Bahdanau et al., ICLR 2015); queries [B, M, C], states [B, N, S] -> [B, M, S]."""

    def __init__(self, width: int, state_width: int, hidden: int, *, backend: BackendName | None = None):
        super().__init__()
        self.query, self.key = nn.Linear(width, hidden, bias=False), nn.Linear(state_width, hidden)
        self.a = nn.Parameter(torch.randn(1, hidden) * hidden**-0.5)
        self.attention = compiled("additive", backend)

    def forward(self, queries: torch.Tensor, states: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
        given = {} if pad is None else {"pad": pad}
        return single(
            self.attention(self.query(queries)[:, None], self.key(states)[:, None], states[:, None], self.a, **given)
        ).squeeze(1)


class MultiSourceAttention(nn.Module):
    """One softmax over the states of all sources, with maps of their own (flat combination, Libovicky & Helcl, ACL 2017).

    x: [B, M, C], sources of [B, N_s, C_s] -> [B, M, C].
    """

    def __init__(self, width: int, heads: int, sources: Sequence[int], *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        self.heads = heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.keys = nn.ModuleList(nn.Linear(n, width) for n in sources)
        self.values = nn.ModuleList(nn.Linear(n, width) for n in sources)
        self.attention = compiled("full", backend)

    def forward(self, x: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        if len(sources) != len(self.keys):
            raise ValueError(f"the layer has {len(self.keys)} sources, found {len(sources)}")
        k = torch.cat([m(s) for m, s in zip(self.keys, sources, strict=True)], 1)
        v = torch.cat([m(s) for m, s in zip(self.values, sources, strict=True)], 1)
        q, k, v = (split(t, self.heads) for t in (self.query(x), k, v))
        return self.out(merge(single(self.attention(q, k, v))))  # type: ignore[no-any-return]
