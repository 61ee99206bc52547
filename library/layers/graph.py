"""Attention along the edges of a graph; adj: [B, N, N] booleans, true where j is a neighbour of i; x: [B, N, C] -> [B, N, C]."""

from __future__ import annotations

import torch
from torch import nn

from einfuse.library.layers.common import Attending, BackendName, compiled, divided, merge, single, split


def _with_loops(adj: torch.Tensor) -> torch.Tensor:
    return adj | torch.eye(adj.shape[-1], dtype=torch.bool, device=adj.device)


class GraphAttention(nn.Module):
    """Additive scores of two scalars for every node (GAT, Velickovic et al., ICLR 2018); heads concatenated, the node among its neighbours."""

    def __init__(self, width: int, out_width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        self.heads, each = heads, divided(out_width, heads)
        self.value = nn.Linear(width, out_width, bias=False)
        self.left, self.right = nn.Parameter(torch.empty(heads, each)), nn.Parameter(torch.empty(heads, each))
        for p in (self.value.weight, self.left, self.right):
            nn.init.xavier_uniform_(p)
        self.attention = compiled("gat", backend)

    def forward(self, x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
        v = split(self.value(x), self.heads)
        left, right = (v * self.left[:, None]).sum(-1), (v * self.right[:, None]).sum(-1)
        return merge(single(self.attention(left, right, v, _with_loops(adj))))


class GraphAttentionV2(nn.Module):
    """Scores whose kink comes before the sum, so that the order of neighbours depends on the query (GATv2, Brody et al., ICLR 2022)."""

    def __init__(self, width: int, out_width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        self.heads, each = heads, divided(out_width, heads)
        self.left, self.right = nn.Linear(width, out_width, bias=False), nn.Linear(width, out_width, bias=False)
        self.a = nn.Parameter(torch.empty(heads, each))
        for p in (self.left.weight, self.right.weight, self.a):
            nn.init.xavier_uniform_(p)
        self.attention = compiled("gatv2", backend)

    def forward(self, x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
        left, right = split(self.left(x), self.heads), split(self.right(x), self.heads)
        return merge(single(self.attention(left, right, self.a, _with_loops(adj))))


class EdgeGraphAttention(Attending):
    """Products of query, key and edge, clamped (Dwivedi & Bresson, 2021); edges: [B, N, N, Ce]. The edge stream is not given out."""

    def __init__(self, width: int, edge_width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "graph_transformer", bias=False, backend=backend)
        self.edge = nn.Linear(edge_width, width, bias=False)

    def forward(self, x: torch.Tensor, edges: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # a graph
        edge = self.edge(edges).unflatten(-1, (self.heads, -1)).movedim(3, 1)
        return super().forward(x, edge=edge, adj=adj)


class RelationalGraphAttention(Attending):
    """A vector for the relation of every pair, in key and value (RGAT; Graphix-T5, Li et al., AAAI 2023); relation: [B, N, N] ints."""

    def __init__(self, width: int, heads: int, relations: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "relation", backend=backend)
        self.vector = nn.Parameter(torch.randn(relations, self.head_width) * self.head_width**-0.5)

    def forward(self, x: torch.Tensor, relation: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # a graph
        return super().forward(x, rel=relation, vector=self.vector, adj=adj)
