"""Attention over whole images and between their parts: pooled keys, channels, class tokens, carriers; shapes at every class."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import Attending, BackendName, compiled, divided, merge, single, split, table
from einfuse.library.layers.grids import assemble, offsets, partition


class HiLoAttention(nn.Module):
    """High frequencies in small windows, low ones from pooled keys (HiLo, Pan et al., NeurIPS 2022); x: [B, H, W, C].

    ``low`` of the heads attend to the averages of side x side tokens, the others inside windows of side x side.
    """

    def __init__(self, width: int, heads: int, low: int, side: int = 2, *, backend: BackendName | None = None):
        super().__init__()
        if not 0 < low < heads:
            raise ValueError(f"there must be low and high heads, found {low} low of {heads}")
        self.side, self.low, self.high = side, low, heads - low
        each = divided(width, heads)
        self.low_query, self.low_key_value = nn.Linear(width, low * each), nn.Linear(width, 2 * low * each)
        self.high_project = nn.Linear(width, 3 * self.high * each)
        self.low_out, self.high_out = nn.Linear(low * each, low * each), nn.Linear(self.high * each, self.high * each)
        self.attention = compiled("full", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = partition(x, self.side)
        k, v = self.low_key_value(windows.mean(2)).chunk(2, -1)  # the mean of a window is average pooling
        q, k, v = (split(t, self.low) for t in (self.low_query(x.flatten(1, 2)), k, v))
        low = self.low_out(merge(single(self.attention(q, k, v)))).reshape(*x.shape[:3], -1)
        q, k, v = (split(t, self.high) for t in self.high_project(windows.flatten(0, 1)).chunk(3, -1))
        high = self.high_out(merge(single(self.attention(q, k, v)))).unflatten(0, windows.shape[:2])
        return torch.cat([assemble(high, x.shape[1], x.shape[2], self.side), low], -1)


class ConvProjectionAttention(nn.Module):
    """Queries by a depthwise convolution, keys and values by strided ones (CvT, Wu et al., ICCV 2021); x: [B, H, W, C]."""

    def __init__(self, width: int, heads: int, stride: int = 2, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        self.heads = heads
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, step, 1, groups=width, bias=False), nn.BatchNorm2d(width))
            for step in (1, stride, stride)
        )
        self.project = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.attention = compiled("full", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = x.movedim(-1, 1)
        tokens = [m(c(image).flatten(2).mT) for m, c in zip(self.project, self.convolutions, strict=True)]
        out = self.out(merge(single(self.attention(*(split(t, self.heads) for t in tokens)))))
        return out.reshape(x.shape)  # type: ignore[no-any-return]


class CrossBranchAttention(nn.Module):
    """The class token of one branch reads the patches of another (CrossViT, Chen et al., ICCV 2021).

    own: [B, 1, C], patches: [B, N, C] -> [B, 1, C]; the class token is among its own keys.
    """

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.attention = compiled("full", backend)

    def forward(self, own: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([own, patches], 1)
        q, k, v = (split(t, self.heads) for t in (self.query(own), self.key(tokens), self.value(tokens)))
        return self.out(merge(single(self.attention(q, k, v))))  # type: ignore[no-any-return]


class ClassQueryPooling(CrossBranchAttention):
    """One learned query reads all patches instead of an average (Touvron et al., 2021); patches: [B, N, C] -> [B, C]."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, backend=backend)
        self.token = table(1, 1, width)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # the query is the layer's own
        q = split(self.query(self.token), self.heads).expand(len(patches), -1, -1, -1)
        k, v = split(self.key(patches), self.heads), split(self.value(patches), self.heads)
        return self.out(merge(single(self.attention(q, k, v)))).squeeze(1)  # type: ignore[no-any-return]


class InnerOuterAttention(nn.Module):
    """Words inside patches attend, then patches (Transformer in Transformer, Han et al., NeurIPS 2021), without the feed-forward parts.

    words: [B, P, M, c], patches: [B, P + 1, C] with the class token first -> the same two.
    """

    def __init__(
        self, word_width: int, words: int, width: int, word_heads: int, heads: int, *, backend: BackendName | None = None
    ):
        super().__init__()
        self.word_norm, self.norm, self.fuse_norm = (
            nn.LayerNorm(word_width),
            nn.LayerNorm(width),
            nn.LayerNorm(word_width * words),
        )
        self.inner = Attending(word_width, word_heads, "full", backend=backend)
        self.outer = Attending(width, heads, "full", backend=backend)
        self.fuse = nn.Linear(word_width * words, width)

    def forward(self, words: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inner = self.inner(self.word_norm(words).flatten(0, 1)).reshape(words.shape)
        words = words + inner
        fused = self.fuse(self.fuse_norm(words.flatten(2)))
        patches = patches + functional.pad(fused, (0, 0, 1, 0))  # the class token has no words
        return words, patches + self.outer(self.norm(patches))


class CarrierTokenAttention(nn.Module):
    """Hierarchical attention (FasterViT, Hatamizadeh et al., ICLR 2024): a carrier for every window attends to all carriers, then its
    window attends together with it; x: [B, H, W, C], carriers: [B, windows, C] -> the same two, residuals included.

    The bias of a window is a small network of log-spaced offsets; carriers have none.
    """

    spaced: torch.Tensor

    def __init__(self, width: int, heads: int, side: int = 7, *, backend: BackendName | None = None):
        super().__init__()
        self.side = side
        self.carrier_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = Attending(width, heads, "full", backend=backend)
        self.within = Attending(width, heads, "head_bias", backend=backend)
        self.bias = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        scaled = 8 * offsets(side) / max(side - 1, 1)
        self.register_buffer("spaced", scaled.sign() * (scaled.abs() + 1).log2() / 3, persistent=False)

    def forward(self, x: torch.Tensor, carriers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        carriers = carriers + self.across(self.carrier_norm(carriers))
        windows = partition(x, self.side)
        if carriers.shape[1] != windows.shape[1]:
            raise ValueError(f"there are {windows.shape[1]} windows, found {carriers.shape[1]} carriers")
        tokens = torch.cat([carriers[:, :, None], windows], 2)
        tokens = tokens + self.within(self.norm(tokens).flatten(0, 1), bias=self._bias()).unflatten(0, windows.shape[:2])
        return assemble(tokens[:, :, 1:], x.shape[1], x.shape[2], self.side), tokens[:, :, 0]

    def _bias(self) -> torch.Tensor:
        """[H, 1 + side^2, 1 + side^2]."""
        made = 16 * torch.sigmoid(self.bias(self.spaced)).movedim(-1, 0)
        at = torch.arange(self.side**2, device=made.device)
        dy = at[:, None] // self.side - at[None] // self.side + self.side - 1
        dx = at[:, None] % self.side - at[None] % self.side + self.side - 1
        return functional.pad(made[:, dy, dx], (1, 0, 1, 0))


class ChannelAttention(nn.Module):
    """Channels of a group attend to each other over all positions (DaViT, Ding et al., ECCV 2022); x: [B, N, C].

    softmax(Q' K / sqrt(c)) V' with c channels a group, as the paper has it (the code exchanges q and v).
    """

    def __init__(self, width: int, groups: int, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, groups)
        self.groups = groups
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attention = compiled("channel", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (split(t, self.groups).mT for t in self.project(x).chunk(3, -1))
        return self.out(merge(single(self.attention(q, k, v)).mT))  # type: ignore[no-any-return]


class SparseChannelAttention(nn.Module):
    """relu(tau cos) between channels, without a normaliser, projections by 1 x 1 and depthwise 3 x 3 convolutions
    (DLGSANet, Li et al., ICCV 2023); x: [B, H, W, C]."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads))
        self.project = nn.Sequential(
            nn.Conv2d(width, 3 * width, 1), nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width)
        )
        self.out = nn.Conv2d(width, width, 1)
        self.attention = compiled("channel_relu", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            t.reshape(len(x), self.heads, t.shape[1] // self.heads, -1) for t in self.project(x.movedim(-1, 1)).chunk(3, 1)
        )
        attended = single(self.attention(q, k, v, tau=self.temperature)).flatten(1, 2)
        return self.out(attended.reshape(len(x), -1, *x.shape[1:3])).movedim(1, -1)  # type: ignore[no-any-return]


class SingleHeadAttention(nn.Module):
    """One head on the first channels only, narrow queries and keys (SHViT, Yun & Ro, CVPR 2024); x: [B, N, C]."""

    def __init__(self, width: int, part: int, key_width: int = 16, *, backend: BackendName | None = None):
        super().__init__()
        if not 0 < part <= width:
            raise ValueError(f"the head takes between 1 and {width} channels, found {part}")
        self.part, self.key_width = part, key_width
        self.norm = nn.GroupNorm(1, part)
        self.project = nn.Linear(part, 2 * key_width + part)
        self.out = nn.Linear(width, width)
        self.attention = compiled("full", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mine, rest = x[..., : self.part], x[..., self.part :]
        q, k, v = self.project(self.norm(mine.mT).mT).split([self.key_width, self.key_width, self.part], -1)
        attended = single(self.attention(q[:, None], k[:, None], v[:, None])).squeeze(1)
        return self.out(functional.relu(torch.cat([attended, rest], -1)))  # type: ignore[no-any-return]


class SharedReadAttention(nn.Module):
    """Latents read the tokens, compute among themselves, and are written back (RIN, Jabri et al., ICML 2023), attention parts only.

    x: [B, N, C], latents: [B, M, C] -> the same two, residuals included.
    """

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        self.read, self.write = (_Cross(width, heads, backend=backend) for _ in range(2))
        self.compute = Attending(width, heads, "full", backend=backend)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: torch.Tensor, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = latents + self.read(self.norms[0](latents), x)
        latents = latents + self.compute(self.norms[1](latents))
        return x + self.write(self.norms[2](x), latents), latents


class _Cross(CrossBranchAttention):
    """Queries of one set, keys and values of another."""

    def forward(self, own: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        q, k, v = (split(t, self.heads) for t in (self.query(own), self.key(patches), self.value(patches)))
        return self.out(merge(single(self.attention(q, k, v))))  # type: ignore[no-any-return]
