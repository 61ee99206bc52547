"""Cultivars of wines from their neighbours in a graph of measurements, most labels unknown (GATv2, ICLR 2022)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers import GraphAttention, GraphAttentionV2
from einfuse.library.layers.common import BackendName
from einfuse.library.models import data
from einfuse.library.models.training import Task, command


class WineGraph(nn.Module):
    """Nodes [B, N, 13] and their edges -> logits [B, N, 3]: a layer of GATv2, one of GAT."""

    def __init__(self, width: int, heads: int, backend: BackendName | None) -> None:
        super().__init__()
        self.first = GraphAttentionV2(13, width, heads, backend=backend)
        self.second = GraphAttention(width, width, heads, backend=backend)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
        x = functional.elu(self.first(x, adj))
        return self.head(functional.elu(self.second(x, adj)))  # type: ignore[no-any-return]


def build(tiny: bool = False, backend: BackendName | None = None) -> Task:
    x, labels = data.wine()
    near = torch.cdist(x, x).topk(6, largest=False).indices
    adj = torch.zeros(len(x), len(x), dtype=torch.bool).scatter_(1, near, True)
    adj |= adj.mT.clone()
    known, unknown = data.split(len(x), 0.15)
    model = WineGraph(8 if tiny else 32, 2 if tiny else 4, backend)

    def loss(generator: torch.Generator) -> torch.Tensor:
        kept = adj & (torch.rand(adj.shape, generator=generator) > 0.2)  # edges are dropped in training
        return functional.cross_entropy(model(x[None], kept[None])[0, known], labels[known])

    def score() -> tuple[str, float]:
        with torch.no_grad():
            return "accuracy", (model(x[None], adj[None])[0, unknown].argmax(-1) == labels[unknown]).float().mean().item()

    return Task("wine_gat", model, loss, score, 200, rate=5e-3)


if __name__ == "__main__":
    command(build)
