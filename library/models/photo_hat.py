"""A photograph made twice as large by windows and overlapping windows (HAT, CVPR 2023), beside bilinear interpolation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers import OverlappingAttention, SwinAttention, TransformerBlock
from einfuse.library.layers.common import BackendName
from einfuse.library.models import data
from einfuse.library.models.training import Task, command


class PhotoHat(nn.Module):
    """Small images [B, H, W, 3] -> twice as large, what bilinear interpolation lacks added."""

    def __init__(self, width: int, heads: int, side: int, backend: BackendName | None) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(
            TransformerBlock(width, SwinAttention(width, heads, side, backend=backend)),
            TransformerBlock(width, SwinAttention(width, heads, side, shift=side // 2, backend=backend)),
            TransformerBlock(width, OverlappingAttention(width, heads, side, side // 2, backend=backend)),
        )
        self.head = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, small: torch.Tensor) -> torch.Tensor:
        image = small.movedim(-1, 1)
        x = self.blocks(self.embed(image).movedim(1, -1))
        return (larger(image) + self.head(x.movedim(-1, 1))).movedim(1, -1)  # type: ignore[no-any-return]


def larger(image: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)


def build(tiny: bool = False, backend: BackendName | None = None) -> Task:
    photo = data.photograph()
    size, batch = (8, 2) if tiny else (24, 8)
    model = PhotoHat(8, 2, 4, backend) if tiny else PhotoHat(32, 4, 8, backend)

    def crops(generator: torch.Generator, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Large patches whose columns lie in low .. high, and small ones of averages."""
        y = torch.randint(photo.shape[0] - 2 * size, (batch,), generator=generator).tolist()
        x = torch.randint(low, high - 2 * size, (batch,), generator=generator).tolist()
        large = torch.stack([photo[a : a + 2 * size, c : c + 2 * size] for a, c in zip(y, x, strict=True)])
        return large, functional.avg_pool2d(large.movedim(-1, 1), 2).movedim(1, -1)

    def loss(generator: torch.Generator) -> torch.Tensor:
        large, small = crops(generator, 0, 480)
        return functional.l1_loss(model(small), large)

    def score() -> tuple[str, float]:
        large, small = crops(torch.Generator().manual_seed(1), 480, photo.shape[1])
        with torch.no_grad():
            return "dB", -10 * functional.mse_loss(model(small), large).log10().item()

    return Task("photo_hat", model, loss, score, 200)


if __name__ == "__main__":
    command(build)
