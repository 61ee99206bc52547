"""Whole blocks beside their formulas."""

from __future__ import annotations

import math

import torch
from agreement import agree, heads, joined
from narrowed import through, weight
from torch import Tensor, nn
from torch.nn import functional as F

from einfuse.library.layers import blocks
from einfuse.library.layers.vision_windows import MaxViTAttention, SwinAttention


def feed(block: blocks.TransformerBlock, x: Tensor) -> Tensor:
    norm, up, _, down = block.after
    return x + through(down, F.gelu(up(F.layer_norm(x, x.shape[-1:], weight(norm), weight(norm, "bias")))))


def cells(side: int, image: int, grid: bool) -> list[tuple[Tensor, Tensor]]:
    """Rows and columns of the tokens of every window, or of every grid."""
    step = image // side if grid else 1
    found = []
    for y in range(image // side):
        for x in range(image // side):
            rows = torch.arange(side) * step + (y if grid else y * side)
            columns = torch.arange(side) * step + (x if grid else x * side)
            found.append((rows.repeat_interleave(side), columns.repeat(side)))
    return found


def windows(layer: nn.Module, x: Tensor, grid: bool = False) -> Tensor:
    assert isinstance(layer, SwinAttention | MaxViTAttention)
    out = torch.zeros_like(x)
    side, at = layer.side, torch.arange(layer.side**2)
    dy, dx = (at[:, None] // side - at // side + side - 1), (at[:, None] % side - at % side + side - 1)
    for rows, columns in cells(side, x.shape[1], grid):
        q, k, v = (heads(m(x[:, rows, columns]), layer.heads) for m in (layer.query, layer.key, layer.value))
        weights = (q @ k.mT / math.sqrt(q.shape[-1]) + layer.table[:, dy, dx]).softmax(-1)
        out[:, rows, columns] = layer.out(joined(weights @ v))
    return out


def test_swin_and_maxvit_blocks() -> None:
    block = blocks.SwinBlock(8, 2, 2, backend="torch")
    agree(block, lambda x: feed(block, x + windows(block.attention, block.norm(x))), torch.randn(2, 4, 4, 8))
    both = blocks.MaxViTBlock(8, 2, 2, backend="torch")

    def eager(x: Tensor) -> Tensor:
        for part, grid in ((both.block, False), (both.grid, True)):
            x = feed(part, x + windows(part.attention, part.norm(x), grid))
        return x

    agree(both, eager, torch.randn(2, 6, 6, 8))
    assert blocks.SwinBlock(8, 2, 2, shift=1).attention.shift == 1


def test_llama_block() -> None:
    block = blocks.LlamaBlock(16, 4, kv_heads=2, backend="torch")

    def turned(x: Tensor) -> Tensor:
        width = x.shape[-1]
        angle = torch.arange(x.shape[-2])[:, None] * 10000.0 ** (-2 * torch.arange(width // 2) / width)
        c, s = angle.cos().repeat(1, 2).to(x), angle.sin().repeat(1, 2).to(x)
        first, second = x.chunk(2, -1)
        return x * c + torch.cat([-second, first], -1) * s

    def norm(x: Tensor, n: int) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight(block.norms[n])

    def eager(x: Tensor) -> Tensor:
        y, layer = norm(x, 0), block.attention
        q, k, v = heads(layer.query(y), 4), heads(layer.key(y), 2), heads(layer.value(y), 2)
        k, v = (t.repeat_interleave(2, 1) for t in (turned(k), v))
        s = (turned(q) @ k.mT / 2).masked_fill(~torch.ones(7, 7).tril().bool(), -math.inf)
        x = x + layer.out(joined(s.softmax(-1) @ v))
        y = norm(x, 1)
        return x + (F.silu(y @ block.gate.weight.mT) * (y @ block.up.weight.mT)) @ block.down.weight.mT

    agree(block, eager, torch.randn(2, 7, 16), tolerance=1e-5)  # angles in single precision
