"""Attention that reads another sequence beside or instead of the own one: references, memories, conditions, the other image."""

from __future__ import annotations

import torch
from torch import nn

from einfuse.library.layers.common import Attending, BackendName, compiled, divided, merge, single, sized, split


class CrossAttention(nn.Module):
    """Queries of one sequence, keys and values of another (Vaswani et al., NeurIPS 2017); x: [B, N, C], other: [B, M, S] -> [B, N, C].

    TransRef (Liao et al., 2023) reads the patches of a reference image so. ``pad``: [B, M], true where a key is real.
    """

    def __init__(
        self, width: int, heads: int, other_width: int | None = None, *, bias: bool = True, backend: BackendName | None = None
    ):
        super().__init__()
        divided(width, heads)
        self.heads = heads
        self.query, self.out = nn.Linear(width, width, bias), nn.Linear(width, width, bias)
        self.key, self.value = (nn.Linear(other_width or width, width, bias) for _ in range(2))
        self.attention = compiled("cross", backend)

    def forward(self, x: torch.Tensor, other: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = (split(m(t), self.heads) for m, t in ((self.query, x), (self.key, other), (self.value, other)))
        return self.out(merge(single(self.attention(q, k, v, **({} if pad is None else {"pad": pad})))))  # type: ignore[no-any-return]


class MaskedCrossAttention(CrossAttention):
    """Queries see the places of their own predicted masks, all of them where a mask is empty (OneFormer, Jain et al., CVPR 2023).

    mask: [B, N, M], the logits of the layer before; a place is seen where its probability is at least one half.
    """

    def __init__(self, width: int, heads: int, other_width: int | None = None, *, backend: BackendName | None = None):
        super().__init__(width, heads, other_width, backend=backend)
        self.attention = compiled("live_or_all", backend)

    def forward(self, x: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        q, k, v = (split(m(t), self.heads) for m, t in ((self.query, x), (self.key, other), (self.value, other)))
        return self.out(merge(single(self.attention(q, k, v, live=mask.detach() >= 0))))  # type: ignore[no-any-return]


class OtsuCrossAttention(CrossAttention):
    """Cross-attention to a reference, of which only what an attention map marks is seen (ViCo, Hao et al., 2023).

    marks: [B, M], the map; keys above its Otsu threshold over 256 bins are seen.
    """

    def forward(self, x: torch.Tensor, other: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, other, pad=marks >= torch.stack([otsu(m) for m in marks.detach()])[:, None])


def otsu(x: torch.Tensor, bins: int = 256) -> torch.Tensor:
    """The smallest value of the upper of two classes that divide the values with the largest variance
    between them (Otsu, 1979), up to the width of a bin."""
    low, high = x.min(), x.max()
    count = torch.histc(x.float(), bins, low.item(), high.item()) if high > low else torch.ones(bins, device=x.device)
    centre = low + (torch.arange(bins, device=x.device) + 0.5) * (high - low) / bins
    below = count.cumsum(0)
    above, mass = below[-1] - below, (count * centre).cumsum(0)
    between = below * above * (mass / below.clamp(min=1) - (mass[-1] - mass) / above.clamp(min=1)) ** 2
    return low + (between.argmax() + 1) * (high - low) / bins


class MemoryAttention(nn.Module):
    """Self-attention, then cross-attention to the last ``length`` frames in memory, which know their age (SAM 2, Ravi et al., 2024; SAM2Act,
    Fang et al., 2025). x: [B, N, C], `remember` adds a frame -> [B, N, C]."""

    def __init__(self, width: int, heads: int, length: int = 6, *, backend: BackendName | None = None):
        super().__init__()
        self.own, self.past = Attending(width, heads, "full", backend=backend), CrossAttention(width, heads, backend=backend)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.age = nn.Parameter(torch.zeros(length, width))
        self.frames: list[torch.Tensor] = []

    def remember(self, frame: torch.Tensor) -> None:
        """Puts tokens [B, M, C] in front; the oldest frame is forgotten."""
        self.frames = [frame, *self.frames][: len(self.age)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.own(self.norms[0](x))
        if not self.frames:
            return x
        memory = torch.cat([frame + age for frame, age in zip(self.frames, self.age, strict=False)], 1)
        return x + self.past(self.norms[1](x), memory)  # type: ignore[no-any-return]


class ReferenceBranchAttention(Attending):
    """Self-attention plus ``weight`` times a cross-attention to a reference with projections of its own (FreeEdit, He et al., 2024;
    decoupled as in
    IP-Adapter, Ye et al., 2023). x: [B, N, C], reference: [B, M, S]."""

    def __init__(
        self,
        width: int,
        heads: int,
        reference_width: int | None = None,
        weight: float = 1.0,
        *,
        backend: BackendName | None = None,
    ):
        super().__init__(width, heads, "reference_branch", backend=backend, params={"weight": weight})
        other = reference_width or width
        self.asking, self.holding, self.giving = nn.Linear(width, width), nn.Linear(other, width), nn.Linear(other, width)

    def forward(self, x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        pairs = {"query": (self.asking, x), "key": (self.holding, reference), "value": (self.giving, reference)}
        return super().forward(x, **{name: split(m(t), self.heads) for name, (m, t) in pairs.items()})


class SummedCrossAttention(nn.Module):
    """Cross-attentions to several conditions, with one projection of the queries, added (GlyphDraw2, Ma et al., 2024: text, layout, glyphs)."""

    def __init__(self, width: int, heads: int, *other_widths: int, backend: BackendName | None = None):
        super().__init__()
        self.each = nn.ModuleList(CrossAttention(width, heads, n, backend=backend) for n in other_widths)
        for one in self.each[1:]:
            one.query, one.out = self.each[0].query, self.each[0].out

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        parts = [one(x, other) for one, other in zip(self.each, others, strict=True)]
        return torch.stack(parts).sum(0)


class ParallelAttention(nn.Module):
    """Self- and cross-attention of two images at once, from shared projections, joined by a network (ParaFormer, Lu et al., AAAI 2023).

    x: [B, N, C], other: [B, M, C] -> [B, N, C]. `wave` makes features of amplitudes and phases.
    """

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.join = nn.Sequential(nn.Linear(3 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.attention = compiled("self_and_cross", backend)

    @staticmethod
    def wave(amplitude: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
        """[..., C], [..., C] -> [..., 2 C]: amplitude (cos phase, sin phase)."""
        return torch.cat([amplitude * phase.cos(), amplitude * phase.sin()], -1)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        q, k, v = (split(t, self.heads) for t in self.project(x).chunk(3, -1))
        _, key, value = (split(t, self.heads) for t in self.project(other).chunk(3, -1))
        own, across = self.attention(q, k, v, key=key, value=value)
        return x + self.join(torch.cat([x, merge(own), merge(across)], -1))  # type: ignore[no-any-return]


class FeatureCostAttention(nn.Module):
    """Features and matching costs aggregated by one map made of both (UFC, Hong et al., CVPR 2024).

    x: [B, N, C], cost: [B, N, M] -> the same two, residuals included.
    """

    def __init__(self, width: int, cost_width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        divided(cost_width, heads)
        self.heads = heads
        self.query, self.key = (nn.Linear(width + cost_width, width) for _ in range(2))
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.cost_value, self.cost_out = nn.Linear(cost_width, cost_width), nn.Linear(cost_width, cost_width)
        self.attention = compiled("two_values", backend)

    def forward(self, x: torch.Tensor, cost: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.cat([x, cost], -1)
        pairs = ((self.query, both), (self.key, both), (self.value, x), (self.cost_value, cost))
        features, costs = self.attention(*(split(m(t), self.heads) for m, t in pairs))
        return x + self.out(merge(features)), cost + self.cost_out(merge(costs))


class KnittingAttention(nn.Module):
    """Every row of an image reads the condition, then every column (HelloMeme, Zhang et al., 2024); x: [B, H, W, C], other: [B, M, S].

    The tokens of a row attend to themselves and the condition together; residuals included.
    """

    def __init__(self, width: int, heads: int, other_width: int | None = None, *, backend: BackendName | None = None):
        super().__init__()
        self.enter = nn.Linear(other_width or width, width)
        self.rows, self.columns = (CrossAttention(width, heads, backend=backend) for _ in range(2))

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        condition = self.enter(other)
        for attend in (self.rows, self.columns):
            lines = x.flatten(0, 1)
            keys = torch.cat([lines, condition.repeat_interleave(x.shape[1], 0)], 1)
            x = (x + attend(lines, keys).reshape(x.shape)).transpose(1, 2)
        return x


class LongShortAttention(nn.Module):
    """Attention to all of a memory, plus attention to a window of the frame before (AdaM, Lin et al., CVPR 2023; after AOT, Yang et al.,
    NeurIPS 2021).

    x, before: [B, H, W, C], memory: [B, M, C] -> [B, H, W, C].
    """

    def __init__(self, width: int, heads: int, kernel: int = 7, *, backend: BackendName | None = None):
        super().__init__()
        self.long = CrossAttention(width, heads, backend=backend)
        self.heads, self.kernel = heads, kernel
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.table = nn.Parameter(torch.zeros(heads, 2 * kernel - 1, 2 * kernel - 1))
        self.near, self.backend = "neighborhood", backend

    def forward(self, x: torch.Tensor, before: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        attention = sized(self.near, self.backend, kernel=self.kernel, height=height, width=width, area=height * width)
        pairs = ((self.query, x), (self.key, before), (self.value, before))
        q, k, v = (split(m(t.flatten(1, 2)), self.heads) for m, t in pairs)
        short = self.out(merge(single(attention(q, k, v, table=self.table))))
        return (self.long(x.flatten(1, 2), memory) + short).reshape(x.shape)  # type: ignore[no-any-return]
