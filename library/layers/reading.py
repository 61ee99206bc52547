"""Reading with other scores than products, of layers, blocks, maps and stacks; shapes at every class."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import Attending, BackendName, compiled, single
from einfuse.library.layers.grids import convolve


class LayerAttention(nn.Module):
    """The feature maps of all layers attend to each other (HAN, Niu et al., ECCV 2020); maps: [B, L, H, W, C] -> the same.

    Scores are plain products of whole maps, and what is read is added with a learned weight that begins at 0.
    """

    def __init__(self, *, backend: BackendName | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.attention = compiled("tempered", backend)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        f = maps.flatten(2)[:, None]
        read = single(self.attention(f, f, f, temperature=f.shape[-1] ** -0.5))
        return maps + self.weight * read.reshape(maps.shape)


class PooledTokenGate(nn.Module):
    """Blocks of a signal attend, and each gates its samples (Rakotonirina, Self-Attention for Audio Super-Resolution, MLSP 2021).

    x: [B, T, C]: the largest value of every block of ``block`` samples, attention, times the block.
    """

    def __init__(self, width: int, heads: int, block: int = 8, *, backend: BackendName | None = None):
        super().__init__()
        self.block = block
        self.attend = Attending(width, heads, "full", backend=backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = self.attend(functional.max_pool1d(x.mT, self.block, self.block).mT)
        return x * gates.repeat_interleave(self.block, 1)  # type: ignore[no-any-return]


class NeighbourAdditiveAttention(nn.Module):
    """Additive attention over a map whose keys hold their eight neighbours (SAR, Li et al., AAAI 2019); state: [B, S], image: [B, H, W, C]
    -> [B, C]."""

    def __init__(self, state_width: int, width: int, hidden: int, *, backend: BackendName | None = None):
        super().__init__()
        self.state, self.around = nn.Linear(state_width, hidden), nn.Conv2d(width, hidden, 3, padding=1)
        self.a = nn.Parameter(torch.randn(1, hidden) * hidden**-0.5)
        self.attention = compiled("additive", backend)

    def forward(self, state: torch.Tensor, image: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
        given = {} if pad is None else {"pad": pad}
        keys, values = convolve(self.around, image).flatten(1, 2)[:, None], image.flatten(1, 2)[:, None]
        return single(self.attention(self.state(state)[:, None, None], keys, values, self.a, **given))[:, 0, 0]


class CoverageAttention(nn.Module):
    """Additive attention whose keys know how much was looked at before (CAN, Li et al., ECCV 2022).

    state: [B, S], image: [B, H, W, C], seen: [B, H, W], the sum of the maps so far -> (context [B, C], seen with the new map added).
    """

    def __init__(self, state_width: int, width: int, hidden: int, kernel: int = 11, *, backend: BackendName | None = None):
        super().__init__()
        self.state, self.feature = nn.Linear(state_width, hidden), nn.Conv2d(width, hidden, 1, bias=False)
        self.look = nn.Conv2d(1, hidden, kernel, padding=kernel // 2, bias=False)
        self.a = nn.Parameter(torch.randn(1, hidden) * hidden**-0.5)
        self.attention = compiled("additive_map", backend)

    def forward(
        self, state: torch.Tensor, image: torch.Tensor, seen: torch.Tensor, pad: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        given: dict[str, Any] = {} if pad is None else {"pad": pad}
        keys = convolve(self.feature, image) + convolve(self.look, seen[..., None])
        q, k, v = self.state(state)[:, None, None], keys.flatten(1, 2)[:, None], image.flatten(1, 2)[:, None]
        context, weights = self.attention(q, k, v, self.a, **given)
        return context[:, 0, 0], seen + weights[:, 0, 0].reshape(seen.shape)


class LowRankPooling(nn.Module):
    """``heads`` poolings of a text by one learned query (LAMA, Mehta et al., 2019); x: [B, N, C] -> [B, heads, C]."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        self.key, self.query = nn.Linear(width, heads, bias=False), nn.Linear(width, heads, bias=False)
        self.context = nn.Parameter(torch.randn(width) * width**-0.5)
        self.attention = compiled("low_rank_pooling", backend)

    def forward(self, x: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
        return single(self.attention(self.key(x), self.query(self.context), x, **({} if pad is None else {"pad": pad})))


class ConditionedPooling(nn.Module):
    """One additive pooling of a text whose words are changed by knowledge about them (Margatina et al., ACL 2019).

    x: [B, N, C], knowledge: [B, N, K] -> [B, C]; ``how``: gate, concat or affine.
    """

    def __init__(self, width: int, knowledge: int, how: str = "gate", *, backend: BackendName | None = None):
        super().__init__()
        if how not in ("gate", "concat", "affine"):
            raise ValueError(f"the words are changed by gate, concat or affine, found {how}")
        self.how = how
        self.change = nn.Linear(knowledge, {"gate": width, "concat": 0, "affine": 2 * width}[how]) if how != "concat" else None
        self.key = nn.Linear(width + (knowledge if how == "concat" else 0), width)
        self.a = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.attention = compiled("additive", backend)

    def forward(self, x: torch.Tensor, knowledge: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
        if self.change is None:
            words = torch.cat([x, knowledge], -1)
        elif self.how == "gate":
            words = self.change(knowledge).sigmoid() * x
        else:
            scale, shift = self.change(knowledge).chunk(2, -1)
            words = scale * x + shift
        q = torch.zeros(len(x), 1, 1, x.shape[-1], device=x.device, dtype=x.dtype)
        given = {} if pad is None else {"pad": pad}
        return single(self.attention(q, self.key(words)[:, None], x[:, None], self.a, **given))[:, 0, 0]


class StackAttention(nn.Module):
    """Every token pushes, pops, or leaves a stack, in proportion (DuSell & Chiang, ICLR 2024, superposition); x: [B, N, C] -> [B, N, C]."""

    def __init__(self, width: int, stack_width: int | None = None, depth: int = 16, *, backend: BackendName | None = None):
        super().__init__()
        held = stack_width or width
        self.action, self.value, self.out = nn.Linear(width, 3), nn.Linear(width, held), nn.Linear(held, width)
        self.attention = compiled("stack", backend, depth=depth)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(single(self.attention(self.action(x), self.value(x).sigmoid())))  # type: ignore[no-any-return]
