"""Two streams that read each other: encoder and decoder, two resolutions, two networks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import BackendName, compiled, divided, merge, single, split
from einfuse.library.layers.references import CrossAttention
from einfuse.library.layers.vision_global import CrossBranchAttention


class CrossContextSkip(nn.Module):
    """A skip connection whose two sides read each other by their means, each of which then stands for the first token (Attention Swin U-Net,
    Aghdam et al., 2022); decoder, encoder: [B, N, C] -> [B, N, C]."""

    def __init__(self, width: int, heads: int, depth: int = 2, *, backend: BackendName | None = None):
        super().__init__()
        self.layers = nn.ModuleList(CrossBranchAttention(width, heads, backend=backend) for _ in range(2 * depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.out = nn.Linear(2 * width, width)

    def forward(self, decoder: torch.Tensor, encoder: torch.Tensor) -> torch.Tensor:
        means = [decoder.mean(1, True), encoder.mean(1, True)]
        patches = [decoder[:, 1:], encoder[:, 1:]]
        for n, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            side = n % 2
            means[side] = means[side] + layer(norm(means[side]), patches[1 - side])
        sides = [torch.cat([m, p], 1) for m, p in zip(means, patches, strict=True)]
        return self.out(torch.cat(sides, -1))  # type: ignore[no-any-return]


class PropagatedAttention(nn.Module):
    """Attention to whose weights those of another block are added after the softmax (Attention Swin U-Net's paper, Aghdam et al., 2022; the
    authors' code computes them and drops them): forward(x, weights) -> (out, its own weights [B, heads, N, N])."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.attention = compiled("propagated_weights", backend)

    def forward(self, x: torch.Tensor, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = (split(m(x), self.heads) for m in (self.query, self.key, self.value))
        given = {} if weights is None else {"a": weights}
        out, own = self.attention(q, k, v, **given)
        return self.out(merge(out)), own


class HighResolutionReading(nn.Module):
    """Tokens read those before them and some of a finer image in one softmax, the latter by projections of their own (FlexAttention for
    vision-language models, Li et al., ECCV 2024).

    x: [B, M, C] ask, tokens: [B, N, C], fine: [B, side * side, c], seen: [B, side * side] -> [B, M, C].
    """

    def __init__(self, width: int, heads: int, fine_width: int, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.fine_key, self.fine_value = (nn.Linear(fine_width, width, bias=False) for _ in range(2))
        self.attention = compiled("two_sources", backend)

    @staticmethod
    @torch.no_grad()
    def choose(weights: torch.Tensor, side: int, threshold: int = 64, cells: int = 9) -> torch.Tensor:
        """Which tokens of the finer image are seen, [B, side * side], from the last query's weights on the coarse one, [B, heads, n * n].

        The weights of all heads, brought to 0..255, pass a threshold; the cells of a coarser grid that have such a token are seen whole.
        """
        of_all = weights.sum(1)
        least, most = of_all.amin(-1, True), of_all.amax(-1, True)
        bright = (of_all - least) / (most - least).clamp(min=1e-12) * 255 > threshold
        coarse = int(bright.shape[-1] ** 0.5)
        grid = functional.adaptive_max_pool2d(bright.float().unflatten(-1, (1, coarse, coarse)), cells)
        seen: torch.Tensor = functional.interpolate(grid, size=side, mode="nearest").flatten(1) > 0
        return seen

    def forward(self, x: torch.Tensor, tokens: torch.Tensor, fine: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        pairs = ((self.query, x), (self.key, tokens), (self.value, tokens), (self.fine_key, fine), (self.fine_value, fine))
        q, k, v, key, value = (split(m(t), self.heads) for m, t in pairs)
        return self.out(merge(single(self.attention(q, k, v, key, value, seen=seen))))  # type: ignore[no-any-return]


class TwoNetworkAttention(nn.Module):
    """Landmarks of a face read the image of their frame and the image the landmarks, and the means of both over their points and all frames
    are joined (a reading of GAIN, Chang et al., CVPRW 2023, whose code is not public).

    landmarks: [B, T, P, C], image: [B, T, N, C] -> [B, 2 C].
    """

    def __init__(self, width: int, heads: int = 1, *, backend: BackendName | None = None):
        super().__init__()
        self.of_landmarks, self.of_image = (CrossAttention(width, heads, backend=backend) for _ in range(2))

    def forward(self, landmarks: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        points, places = landmarks.flatten(0, 1), image.flatten(0, 1)
        read, seen = points + self.of_landmarks(points, places), places + self.of_image(places, points)
        return torch.cat([read.mean(1), seen.mean(1)], -1).reshape(*landmarks.shape[:2], -1).mean(1)
