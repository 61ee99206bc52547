"""Share prices, every share one token (iTransformer, ICLR 2024): six months from the two years before, hardly more than a random walk."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers import TransformerBlock, VariateAttention
from einfuse.library.layers.common import Attending, BackendName
from einfuse.library.models import data
from einfuse.library.models.parts import windows
from einfuse.library.models.training import Task, command

PAST, FUTURE = 24, 6


class StocksForecast(nn.Module):
    """Logarithms of prices [B, 24, V] -> of the six months after [B, 6, V], each series relative to its last value."""

    def __init__(self, width: int, heads: int, backend: BackendName | None) -> None:
        super().__init__()
        self.first = VariateAttention(PAST, width, heads, backend=backend)
        self.second = TransformerBlock(width, Attending(width, heads, "full", backend=backend))
        self.head = nn.Linear(width, FUTURE)
        nn.init.zeros_(self.head.weight)  # the forecast begins as "nothing changes"

    def forward(self, past: torch.Tensor) -> torch.Tensor:
        last = past[:, -1:]
        return last + self.head(self.second(self.first(past - last))).mT  # type: ignore[no-any-return]


def build(tiny: bool = False, backend: BackendName | None = None) -> Task:
    prices = data.stocks()
    cut = int(0.8 * len(prices))
    seen, unseen = prices[:cut], prices[cut - PAST :]
    model = StocksForecast(8 if tiny else 32, 2 if tiny else 4, backend)

    def error(rows: torch.Tensor) -> torch.Tensor:
        return functional.l1_loss(model(rows[:, :PAST]), rows[:, PAST:])

    def score() -> tuple[str, float]:
        with torch.no_grad():
            return "mean |log error|", error(unseen.unfold(0, PAST + FUTURE, 1).mT).item()

    def loss(generator: torch.Generator) -> torch.Tensor:
        return error(windows(seen, PAST + FUTURE - 1, 8 if tiny else 32, generator))

    return Task("stocks_itransformer", model, loss, score, 400, rate=1e-3)


if __name__ == "__main__":
    command(build)
