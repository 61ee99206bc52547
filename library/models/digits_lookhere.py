"""Handwritten digits by heads that look in directions, without position embeddings (LookHere, NeurIPS 2024)."""

from __future__ import annotations

import torch
from torch import nn

from einfuse.library.layers import LookHereAttention, TransformerBlock
from einfuse.library.layers.common import BackendName
from einfuse.library.models.digits_swin import classify
from einfuse.library.models.training import Task, command


class DigitsLookHere(nn.Module):
    """Images [B, 8, 8] -> logits [B, 10]; the slopes fade with depth."""

    def __init__(self, width: int, heads: int, blocks: int, backend: BackendName | None) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)
        layers = (LookHereAttention(width, heads, heads - 1, fade=1 + n / blocks, backend=backend) for n in range(blocks))
        self.blocks = nn.Sequential(*(TransformerBlock(width, layer) for layer in layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(images[..., None])).mean((1, 2)))  # type: ignore[no-any-return]


def build(tiny: bool = False, backend: BackendName | None = None) -> Task:
    model = DigitsLookHere(10, 5, 1, backend) if tiny else DigitsLookHere(40, 5, 4, backend)
    return classify("digits_lookhere", model, 8 if tiny else 64, 400)


if __name__ == "__main__":
    command(build)
