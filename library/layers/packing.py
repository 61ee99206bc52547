"""Tokens chosen from all images or all of a document and brought together before they attend; x: [B, N, C] unless said."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import Attending, BackendName


class SelectAndPack(Attending):
    """Tokens of positive score, gated by it, are packed into rows of ``row`` and attend to those of their image there; the others pass by
    (Context-Aware Token Selection and Packing, Zhang et al., 2024).

    forward(x, above) -> (out, scores), both scores [B, N, 1]; ``above`` are those of the stage before, brought to this one's tokens. Training
    draws the choice by Gumbel noise and learns the scores of boxes: here scores alone choose.
    """

    def __init__(self, width: int, heads: int, row: int = 49, *, backend: BackendName | None = None):
        super().__init__(width, heads, "document", backend=backend, params={"causal": False})
        self.row, self.judge = row, nn.Linear(width, 1)

    def forward(  # type: ignore[override]  # scores travel beside the tokens
        self, x: torch.Tensor, above: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        score = self.judge(x)
        score = score if above is None else torch.maximum(score, above)
        keep = score.squeeze(-1) > 0
        chosen, image = (score.sigmoid() * x)[keep], keep.nonzero()[:, 0]
        if not len(chosen):
            return x, score
        pad = -len(chosen) % self.row
        rows = functional.pad(chosen, (0, 0, 0, pad)).unflatten(0, (-1, self.row))
        doc = functional.pad(image, (0, pad), value=-1).unflatten(0, (-1, self.row))
        out = super().forward(rows, doc=doc.int()).flatten(0, 1)
        return x.index_put((keep,), out[: len(chosen)]), score


def social_edges(
    rare: torch.Tensor, near: torch.Tensor, seen: torch.Tensor, density: float = 0.07, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Edges between the tokens of a document, drawn once for each pair (Socialformer, Zhou et al., CIKM 2022), [N, N] of bool.

    Their chances are 0.2 of the product of two words' ``rare`` (tf-idf), 0.3 of that of ``near`` (how near terms of the query are), 0.2 of
    that of ``seen`` (attention of the class token), each [N] from 0 to 1, and 0.3 of how close the two are; ``density`` is their mean.
    """
    place = torch.arange(len(rare), device=rare.device)
    close = ((place[:, None] - place).abs() // 50 + 1.0) ** -2
    close = (close - close.min()) / (close.max() - close.min()).clamp(min=1e-12)
    chance = 0.2 * seen[:, None] * seen + 0.3 * near[:, None] * near + 0.2 * rare[:, None] * rare + 0.3 * close
    chance = chance * density * chance.numel() / chance.sum()
    drawn = (torch.rand(chance.shape, generator=generator, device=rare.device) <= chance).tril()
    return drawn | drawn.T


def social_groups(edges: torch.Tensor, count: int = 8, size: int = 128) -> list[torch.Tensor]:
    """At most ``count`` groups of at most ``size - 1`` tokens: one of most edges and its friends, whose edges to each other are then gone."""
    left = edges.clone().fill_diagonal_(False)
    groups: list[torch.Tensor] = []
    while len(groups) < count and left.any():
        centre = left.sum(1).argmax()
        groups.append(torch.cat([centre[None], left[centre].nonzero()[: size - 2, 0]]))
        left[groups[-1][:, None], groups[-1]] = False
    return groups


class SocialAttention(nn.Module):
    """Tokens attend in their group, then the first ones of all groups among themselves, and a network joins both (Socialformer, Zhou et al.,
    CIKM 2022), without the feed-forward part and norms.

    x: [B, G, S, C], pad: [B, G, S], true where there is a token -> [B, G, S, C].
    """

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        self.within = Attending(width, heads, "padding", backend=backend)
        self.among = Attending(width, heads, "full", backend=backend)
        self.join = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        x = x + self.within(x.flatten(0, 1), pad=pad.flatten(0, 1)).reshape(x.shape)
        first = x[:, :, 0]
        joined = self.join(torch.cat([first, self.among(first)], -1))
        return torch.cat([joined[:, :, None], x[:, :, 1:]], 2)
