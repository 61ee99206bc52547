"""Blocks that several models are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Block(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x)."""

    def __init__(self, width: int, attention: nn.Module, factor: int = 2) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), attention
        self.after = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, factor * width), nn.GELU(), nn.Linear(factor * width, width)
        )

    def forward(self, x: torch.Tensor, *given: Any) -> torch.Tensor:
        x = x + self.attention(self.norm(x), *given)
        return x + self.after(x)  # type: ignore[no-any-return]


def windows(data: torch.Tensor, length: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` stretches of ``length`` + 1 entries at random places, [count, length + 1, ...]."""
    at = torch.randint(len(data) - length, (count,), generator=generator)
    return data[at[:, None] + torch.arange(length + 1)]
