"""What several models share."""

from __future__ import annotations

import torch


def windows(data: torch.Tensor, length: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` stretches of ``length`` + 1 entries at random places, [count, length + 1, ...]."""
    at = torch.randint(len(data) - length, (count,), generator=generator)
    return data[at[:, None] + torch.arange(length + 1)]
