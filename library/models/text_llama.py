"""A language model of bytes with rotary positions and shared keys (Llama 2, 2023), on the standard library's sources."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers import RotaryAttention
from einfuse.library.layers.common import BackendName
from einfuse.library.models import data
from einfuse.library.models.parts import windows
from einfuse.library.models.training import Task, command


class GatedBlock(nn.Module):
    """Root-mean-square norms, attention, and a gated feed-forward part."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention, self.after = nn.RMSNorm(width), attention, nn.RMSNorm(width)
        self.gate, self.up, self.down = (
            nn.Linear(a, c, bias=False) for a, c in ((width, 2 * width),) * 2 + ((2 * width, width),)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm(x))
        y = self.after(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))  # type: ignore[no-any-return]


class TextLlama(nn.Module):
    """Bytes [B, N] -> logits of the next byte [B, N, 256]."""

    def __init__(self, width: int, heads: int, kv_heads: int, blocks: int, backend: BackendName | None) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        layers = (RotaryAttention(width, heads, kv_heads, backend=backend) for _ in range(blocks))
        self.blocks = nn.Sequential(*(GatedBlock(width, layer) for layer in layers))
        self.head = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 256, bias=False))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(tokens)))  # type: ignore[no-any-return]


def predict(name: str, model: nn.Module, length: int, batch: int, steps: int) -> Task:
    """The task of predicting the next byte, for any causal model."""
    text = data.source_code()
    seen, unseen = text[: -len(text) // 10], text[-len(text) // 10 :]

    def nats(rows: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    def score() -> tuple[str, float]:
        with torch.no_grad():
            rows = windows(unseen, length, 4 * batch, torch.Generator().manual_seed(1))
            return "bits a byte", nats(rows).item() / 0.6931471805599453

    return Task(name, model, lambda g: nats(windows(seen, length, batch, g)), score, steps)


def build(tiny: bool = False, backend: BackendName | None = None) -> Task:
    model = TextLlama(16, 4, 2, 1, backend) if tiny else TextLlama(96, 6, 2, 3, backend)
    return predict("text_llama", model, 16 if tiny else 128, 2 if tiny else 8, 600)


if __name__ == "__main__":
    command(build)
