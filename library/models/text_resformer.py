"""A language model of bytes whose layers mix in the first layer's values (ResFormer, 2024), on the standard library's sources."""

from __future__ import annotations

import torch
from torch import nn

from einfuse.library.layers import ValueResidualAttention
from einfuse.library.layers.common import BackendName
from einfuse.library.models.text_llama import predict
from einfuse.library.models.training import Task, command


class TextResFormer(nn.Module):
    """Bytes [B, N] -> logits of the next byte [B, N, 256], for at most ``longest`` bytes."""

    def __init__(self, width: int, heads: int, blocks: int, longest: int, backend: BackendName | None) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(256, width), nn.Parameter(torch.randn(longest, width) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.layers = nn.ModuleList(ValueResidualAttention(width, heads, backend=backend) for _ in range(blocks))
        self.after = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(blocks)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 256))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, first = self.embed(tokens) + self.place[: tokens.shape[1]], None
        for norm, layer, after in zip(self.norms, self.layers, self.after, strict=True):
            y, values = layer(norm(x), first)
            first = values if first is None else first
            x = x + y
            x = x + after(x)
        return self.head(x)  # type: ignore[no-any-return]


def build(tiny: bool = False, backend: BackendName | None = None) -> Task:
    length = 16 if tiny else 128
    model = TextResFormer(16, 4, 2, length, backend) if tiny else TextResFormer(96, 6, 3, length, backend)
    return predict("text_resformer", model, length, 2 if tiny else 8, 600)


if __name__ == "__main__":
    command(build)
