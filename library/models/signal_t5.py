"""The next samples of a brain's signal, an audio-like sequence, by causal attention with bucketed offsets (T5, JMLR 2020)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers import T5Attention, TransformerBlock
from einfuse.library.layers.common import BackendName
from einfuse.library.models import data
from einfuse.library.models.parts import windows
from einfuse.library.models.training import Task, command


class SignalForecast(nn.Module):
    """Samples [B, N, 4] -> the next sample at every point [B, N, 4], as a change."""

    def __init__(self, width: int, heads: int, blocks: int, backend: BackendName | None) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        layers = (T5Attention(width, heads, bidirectional=False, backend=backend) for _ in range(blocks))
        self.blocks = nn.Sequential(*(TransformerBlock(width, layer) for layer in layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.head(self.blocks(self.embed(x)))  # type: ignore[no-any-return]


def build(tiny: bool = False, backend: BackendName | None = None) -> Task:
    signal = data.electroencephalogram()
    seen, unseen = signal[:640], signal[640:]
    model = SignalForecast(8, 2, 1, backend) if tiny else SignalForecast(32, 4, 2, backend)
    length = 16 if tiny else 64

    def error(rows: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(model(rows[:, :-1]), rows[:, 1:])

    def score() -> tuple[str, float]:
        with torch.no_grad():
            return "mean squared error", error(unseen.unfold(0, length + 1, 8).mT).item()

    return Task("signal_t5", model, lambda g: error(windows(seen, length, 4 if tiny else 16, g)), score, 300, rate=1e-3)


if __name__ == "__main__":
    command(build)
