"""Masked bytes filled in by disentangled attention (DeBERTa, ICLR 2021), on the standard library's sources."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers import DisentangledAttention, TransformerBlock
from einfuse.library.layers.common import BackendName
from einfuse.library.models import data
from einfuse.library.models.parts import windows
from einfuse.library.models.training import Task, command

MASK = 256


class TextDeberta(nn.Module):
    """Bytes [B, N], 256 where hidden -> logits [B, N, 256]."""

    def __init__(self, width: int, heads: int, blocks: int, reach: int, backend: BackendName | None) -> None:
        super().__init__()
        self.embed = nn.Embedding(257, width)
        layers = (DisentangledAttention(width, heads, reach, backend=backend) for _ in range(blocks))
        self.blocks = nn.Sequential(*(TransformerBlock(width, layer) for layer in layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 256))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(tokens)))  # type: ignore[no-any-return]


def build(tiny: bool = False, backend: BackendName | None = None) -> Task:
    model = TextDeberta(16, 4, 1, 4, backend) if tiny else TextDeberta(96, 6, 3, 16, backend)
    length, batch = (16, 4) if tiny else (96, 16)
    text = data.source_code()
    seen, unseen = text[: -len(text) // 10], text[-len(text) // 10 :]

    def hidden(rows: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and truth of the hidden bytes, one in seven."""
        gone = torch.rand(rows.shape, generator=generator) < 1 / 7
        gone[:, 0] = True  # never none
        return model(rows.masked_fill(gone, MASK))[gone], rows[gone]

    def score() -> tuple[str, float]:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            logits, truth = hidden(windows(unseen, length, 4 * batch, generator), generator)
        return "accuracy", (logits.argmax(-1) == truth).float().mean().item()

    return Task(
        "text_deberta", model, lambda g: functional.cross_entropy(*hidden(windows(seen, length, batch, g), g)), score, 600
    )


if __name__ == "__main__":
    command(build)
