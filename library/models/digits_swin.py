"""Handwritten digits by shifted windows of pixels and a class query (Swin, ICCV 2021)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers import ClassQueryPooling, SwinAttention, TransformerBlock
from einfuse.library.layers.common import BackendName
from einfuse.library.models import data
from einfuse.library.models.training import Task, command


class DigitsSwin(nn.Module):
    """Images [B, 8, 8] -> logits [B, 10]: windows of 4 x 4 pixels, shifted by 2 in every other block."""

    def __init__(self, width: int, heads: int, blocks: int, backend: BackendName | None) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.place = nn.Parameter(torch.randn(8, 8, width) * 0.02)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(width, SwinAttention(width, heads, 4, shift=2 * (n % 2), backend=backend))
                for n in range(blocks)
            )
        )
        self.pool, self.head = ClassQueryPooling(width, heads, backend=backend), nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.embed(images[..., None]) + self.place)
        return self.head(self.pool(x.flatten(1, 2)))  # type: ignore[no-any-return]


def classify(name: str, model: nn.Module, batch: int, steps: int) -> Task:
    """The task of reading digits, for any model of images [B, 8, 8]."""
    images, labels = data.digits()
    seen, unseen = data.split(len(images))

    def loss(generator: torch.Generator) -> torch.Tensor:
        at = seen[torch.randint(len(seen), (batch,), generator=generator)]
        return functional.cross_entropy(model(images[at]), labels[at])

    def score() -> tuple[str, float]:
        with torch.no_grad():
            return "accuracy", (model(images[unseen]).argmax(-1) == labels[unseen]).float().mean().item()

    return Task(name, model, loss, score, steps)


def build(tiny: bool = False, backend: BackendName | None = None) -> Task:
    model = DigitsSwin(8, 2, 2, backend) if tiny else DigitsSwin(32, 4, 4, backend)
    return classify("digits_swin", model, 8 if tiny else 64, 300)


if __name__ == "__main__":
    command(build)
