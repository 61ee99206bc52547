"""Tokens that are dropped, wait, or are merged into others by what attention gives them; x: [B, N, C], the first token the class token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from einfuse.library.layers.common import Attending, BackendName, compiled, divided, merge, single, split
from einfuse.library.layers.references import CrossAttention


def _taken(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """The tokens x [B, N, C] at [B, n]."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


class TextGuidedSummary(CrossAttention):
    """Patches that the text finds important, and one token for all others, read all patches (BUS, Jiang et al., ICCV 2023; a reading, for
    no code is public: scores by a network of patch and text, the others weighed by a softmax of theirs). x: [B, P, C], text: [B, C] ->
    [B, keep + 1, C].
    """

    def __init__(self, width: int, heads: int, keep: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, backend=backend)
        self.keep = keep
        self.score = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # a vector of text
        score = self.score(torch.cat([x, text[:, None].expand_as(x)], -1)).squeeze(-1)
        kept = score.topk(self.keep, -1).indices
        rest = score.scatter(1, kept, float("-inf")).softmax(-1)
        summary = (rest[..., None] * x).sum(1, keepdim=True)
        return super().forward(torch.cat([_taken(x, kept), summary], 1), x)


class PolicyDropping(Attending):
    """A class token judges the others, and those of at most half a mark are gone from here on, as rows and as keys (IA-RED^2, Pan et al.,
    NeurIPS 2021); the policy is trained by reinforcement: in training its choices are drawn. x, keep [B, N] -> (tokens, keep, marks).
    """

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "padding", backend=backend)
        self.judge, self.judged = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, keep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        z = F.layer_norm(x * keep[..., None], x.shape[-1:])
        q, k = split(self.judge(z[:, :1]), self.heads), split(self.judged(z), self.heads)
        mark = (q @ k.mT * self.head_width**-0.5).sigmoid().squeeze(-2).mean(1) * keep
        chosen = torch.bernoulli(mark) * keep if self.training else (mark > 0.5).to(x)
        chosen = torch.cat([torch.ones_like(chosen[:, :1]), chosen[:, 1:]], 1)
        x = x * chosen[..., None]
        attended = single(self.attention(*self.project(x), pad=chosen > 0))
        return self.out(merge(attended)) * chosen[..., None], chosen, mark


class SkippingTokens(nn.Module):
    """The class token and the ``keep`` others that it attends to most go through ``inner``, any module of tokens; the others return
    unchanged at their places (SkipViT, Ataiefard et al., 2024). weights: [B, H, N], the class token's row of the layer before, as the
    spec `one_row` gives it.
    """

    def __init__(self, inner: Callable[[torch.Tensor], torch.Tensor], keep: int):
        super().__init__()
        self.inner, self.keep = inner, keep

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        at = weights[..., 1:].mean(1).topk(self.keep, -1).indices.sort(-1).values + 1
        at = torch.cat([torch.zeros_like(at[:, :1]), at], 1)
        return x.scatter(1, at[..., None].expand(-1, -1, x.shape[-1]), self.inner(_taken(x, at)))


class ImportanceMerging(Attending):
    """Attention, then every token that the class token finds unimportant joins the kept one it is most alike, weighed by importance
    (multi-scale token mergence, Bian et al., 2023; a reading: no code is public). -> [B, keep + 1, C].
    """

    def __init__(self, width: int, heads: int, keep: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "one_row", backend=backend)
        self.keep = keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # fewer tokens
        attended, weights = self.attention(*self.project(x))
        x = x + self.out(merge(attended))
        mark, tokens = weights[..., 1:].mean(1), x[:, 1:]
        at = mark.topk(self.keep, -1).indices
        kept, own = _taken(tokens, at), mark.gather(1, at)[..., None]
        to = (F.normalize(tokens, dim=-1) @ F.normalize(kept, dim=-1).mT).argmax(-1)
        share = F.one_hot(to, self.keep) * mark.scatter(1, at, 0.0)[..., None]
        merged = (own * kept + share.mT @ tokens) / (own + share.sum(1)[..., None])
        return torch.cat([x[:, :1], merged], 1)


class RoutedHeads(Attending):
    """Heads that tell the edited image most from the source grow: times 1 + gain sigmoid(t - middle), t the distance of what a head gives
    for both, on a scale from 0 to 1 (HeadRouter, Xu et al., 2024; it acts on the outputs of heads). x: [2, N, C], source and edit."""

    def __init__(self, width: int, heads: int, gain: float = 0.2, middle: float = 0.5, *, backend: BackendName | None = None):
        super().__init__(width, heads, "full", backend=backend)
        self.gain, self.middle = gain, middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        source, edit = single(self.attention(*self.project(x)))
        alike = F.cosine_similarity(source.flatten(1), edit.flatten(1), -1)
        away = (alike.max() - alike) / (alike.max() - alike.min()).clamp(min=1e-6)
        grown = edit * (1 + self.gain * torch.sigmoid(away - self.middle))[:, None, None]
        return self.out(merge(torch.stack([source, grown])))  # type: ignore[no-any-return]


class ReorderedPositions(Attending):
    """Heads of two minds about the order: the first ``reordered`` ones know the places of the tokens in the order of the other language,
    the rest their own (HeadXL, cross-lingual positions, Ding et al., ACL 2020). x: [B, N, C] without positions, places: [B, N]."""

    def __init__(self, width: int, heads: int, reordered: int, length: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "full", backend=backend)
        self.reordered = reordered
        self.position = nn.Embedding(length, width)

    def forward(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        both = self.project(x + self.position(places)), self.project(x + self.position.weight[: x.shape[1]])
        n = self.reordered
        q, k, v = (torch.cat([a[:, :n], b[:, n:]], 1) for a, b in zip(*both, strict=True))
        return self.out(merge(single(self.attention(q, k, v))))  # type: ignore[no-any-return]


class AllToKeyAttention(nn.Module):
    """A content reads a style by regions (StyA2K, Zhu et al., ICCV 2023): the keys of all regions, each a mean that its tokens refine, and
    the tokens of the one region that is nearest. content: [B, N, C], style: [B, M, C], regions of ``area`` tokens one after the other;
    no scale.
    """

    def __init__(self, width: int, heads: int, area: int, *, backend: BackendName | None = None):
        super().__init__()
        self.heads, self.area, self.each = heads, area, divided(width, heads)
        self.far_q, self.far_k, self.far_v = (nn.Linear(width, width) for _ in range(3))
        self.near_q, self.near_k, self.near_v = (nn.Linear(width, width) for _ in range(3))
        self.far_out, self.near_out = nn.Linear(width, width), nn.Linear(width, width)
        self.alpha, self.beta = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        self.far, self.near = compiled("cross", backend), compiled("nearest_region", backend, area=area)

    def forward(self, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        k, v = (split(m(style), self.heads).unflatten(2, (-1, self.area)) for m in (self.far_k, self.far_v))
        mean, value = k.mean(3), v.mean(3)
        weight = torch.sigmoid(self.beta + self.alpha * (mean[..., None, :] * k).sum(-1))[..., None]
        keys, values = (((weight * t).sum(3) + m) / (self.area + 1) for t, m in ((k, mean), (v, value)))
        far = single(self.far(split(self.far_q(content), self.heads) * self.each**0.5, keys, values))
        near = single(
            self.near(
                split(self.near_q(content), self.heads), *(split(m(style), self.heads) for m in (self.near_k, self.near_v))
            )
        )
        return self.far_out(merge(far)) + self.near_out(merge(near)) + content  # type: ignore[no-any-return]


class GatedTokenMixer(nn.Module):
    """A linear map of every token times what a network across tokens and one across channels make of all (NiNformer, Abdullah et al.,
    2024); the norm before the mixer and the one before the feed-forward network are one module, as in the authors' code. x: [B, N, C] ->
    [B, N, C]."""

    def __init__(self, width: int, tokens: int, hidden: int, *, backend: BackendName | None = None):
        super().__init__()
        self.norm, self.across, self.within = (nn.LayerNorm(width) for _ in range(3))
        self.up, self.down = nn.Linear(tokens, hidden), nn.Linear(hidden, tokens)
        self.channels, self.feed = (
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(2)
        )
        self.gate = nn.Linear(width, width)
        self.mixer = compiled("token_mlp", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        mixed = y + single(self.mixer(self.across(y), self.up.weight, self.up.bias, self.down.weight, self.down.bias))
        mixed = mixed + self.channels(self.within(mixed))
        x = x + self.gate(y) * mixed
        return x + self.feed(self.norm(x))  # type: ignore[no-any-return]
