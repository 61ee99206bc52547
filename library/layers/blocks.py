"""Whole blocks by the names that papers give them: an attention layer and a feed-forward network, each after a norm and added to its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from einfuse.library.layers.common import BackendName
from einfuse.library.layers.language import RotaryAttention
from einfuse.library.layers.vision_windows import MaxViTAttention, SwinAttention


class TransformerBlock(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x), around any layer of this library; x: [..., C]."""

    def __init__(self, width: int, attention: nn.Module, factor: int = 2) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), attention
        self.after = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, factor * width), nn.GELU(), nn.Linear(factor * width, width)
        )

    def forward(self, x: torch.Tensor, *given: Any) -> torch.Tensor:
        x = x + self.attention(self.norm(x), *given)
        return x + self.after(x)  # type: ignore[no-any-return]


class SwinBlock(TransformerBlock):
    """A block of the Swin transformer (Liu et al., ICCV 2021); x: [B, H, W, C]. Every second one has ``shift = side // 2``."""

    def __init__(self, width: int, heads: int, side: int = 7, shift: int = 0, *, backend: BackendName | None = None):
        super().__init__(width, SwinAttention(width, heads, side, shift, backend=backend), factor=4)


class MaxViTBlock(nn.Module):
    """Windows, then a grid of tokens spread over the image, a feed-forward network after each (MaxViT, Tu et al., ECCV 2022), without the
    convolution in front; x: [B, H, W, C] with H = W."""

    def __init__(self, width: int, heads: int, side: int = 7, *, backend: BackendName | None = None):
        super().__init__()
        layers = (MaxViTAttention(width, heads, side, grid, backend=backend) for grid in (False, True))
        self.block, self.grid = (TransformerBlock(width, layer, factor=4) for layer in layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.grid(self.block(x))  # type: ignore[no-any-return]


class LlamaBlock(nn.Module):
    """A block of a Llama-style decoder (Touvron et al., 2023): root-mean-square norms, causal attention with rotary positions and shared
    keys, a gated feed-forward network; x: [B, N, C]."""

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        hidden: int | None = None,
        *,
        backend: BackendName | None = None,
    ):
        super().__init__()
        hidden = hidden or 8 * width // 3
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-5) for _ in range(2))
        self.attention = RotaryAttention(width, heads, kv_heads=kv_heads, backend=backend)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norms[0](x))
        y = self.norms[1](x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))  # type: ignore[no-any-return]
