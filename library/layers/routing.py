"""Attention that chooses heads and tokens, by gates, by what is attended to, or at random; x: [B, N, C] unless said."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from einfuse.library.layers.common import Attending, BackendName, compiled, divided, merge, single, split


class MixtureOfAttentionHeads(nn.Module):
    """Every token reads the ``best`` of ``heads`` attention experts (MoA, Zhang et al., EMNLP 2022); keys and values are shared by all.

    The gates are a softmax over all experts, over the detached sum of those kept.
    """

    def __init__(self, width: int, heads: int, best: int, head_width: int, *, backend: BackendName | None = None):
        super().__init__()
        self.heads = heads
        self.gate = nn.Linear(width, heads, bias=False)
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key, self.value = nn.Linear(width, head_width, bias=False), nn.Linear(width, head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self.attention = compiled("mixture_of_heads", backend, best=best)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = split(self.query(x), self.heads), self.key(x)[:, None], self.value(x)[:, None]
        return self.out(merge(single(self.attention(q, k, v, gate=self.gate(x).mT))))  # type: ignore[no-any-return]


class MixtureOfHeadAttention(Attending):
    """Shared heads, and for every token the ``best`` of the others (MoH, Jin et al., 2024).

    The first ``shared`` heads are weighed by their softmax times their number, the others by the softmax of the chosen ones times theirs,
    both times
    a softmax of two that says how the two kinds are mixed, times 2.
    """

    def __init__(self, width: int, heads: int, shared: int, best: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "mixture_of_heads", backend=backend, params={"best": best, "over_kept": False})
        if not 0 < shared < heads or not 0 < best <= heads - shared:
            raise ValueError(f"there must be shared heads and {best} others to choose, found {shared} of {heads}")
        self.shared, self.best = shared, best
        self.of_shared, self.of_routed = nn.Linear(width, shared, bias=False), nn.Linear(width, heads - shared, bias=False)
        self.of_kinds = nn.Linear(width, 2, bias=False)
        self.whole = compiled("full", backend)

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        q, k, v = self.project(x)
        n = self.shared
        kinds = 2 * self.of_kinds(x).softmax(-1)
        always = self.of_shared(x).softmax(-1) * n * kinds[..., :1]
        gate = self.of_routed(x).mT
        kept = gate.topk(self.best, 1).values.logsumexp(1, keepdim=True) - gate.logsumexp(1, keepdim=True)
        first = single(self.whole(q[:, :n], k[:, :n], v[:, :n])) * always.mT[..., None]
        others = single(self.attention(q[:, n:], k[:, n:], v[:, n:], gate=gate))
        others = others * (self.best * kinds[..., 1] * (-kept.squeeze(1)).exp())[:, None, :, None]
        return self.out(merge(torch.cat([first, others], 1)))  # type: ignore[no-any-return]


class MixtureOfAttentionExperts(nn.Module):
    """Every token reads all attention experts, by a softmax of its gates (BAM, Zhang et al., NeurIPS 2024); queries and output maps are the
    experts' own, keys and values too unless ``share``."""

    def __init__(self, width: int, experts: int, heads: int, share: bool = False, *, backend: BackendName | None = None):
        super().__init__()
        self.heads, self.experts = heads, experts
        self.gate = nn.Linear(width, experts, bias=False)
        sets = heads if share else experts * heads
        each = divided(width, heads)
        self.query, self.key = nn.Linear(width, experts * width, bias=False), nn.Linear(width, sets * each, bias=False)
        self.value, self.out = nn.Linear(width, sets * each, bias=False), nn.Linear(experts * width, width, bias=False)
        self.attention = compiled("causal", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (split(m(x), m.out_features * self.heads // x.shape[-1]) for m in (self.query, self.key, self.value))
        if k.shape[1] < q.shape[1]:
            k, v = (t.repeat(1, self.experts, 1, 1) for t in (k, v))
        gates = self.gate(x).softmax(-1).repeat_interleave(self.heads, -1).mT[..., None]
        return self.out(merge(single(self.attention(q, k, v)) * gates))  # type: ignore[no-any-return]


class _Drawn(Attending):
    """Something is left out in training, another thing at every call; nothing at evaluation."""

    def __init__(self, width: int, heads: int, spec: str, rate: float, *, backend: BackendName | None = None):
        super().__init__(width, heads, spec, backend=backend)
        self.rate = rate

    def forward(self, x: torch.Tensor, /, seed: int | None = None, **given: Any) -> torch.Tensor:
        rate = self.rate if self.training else 0.0
        drawn = int(torch.randint(0, 2**31, (1,))) if seed is None else seed
        return super().forward(x, rate=rate, seed=drawn, **given)


class TokenMaskingAttention(_Drawn):
    """In training a share of the queries see only themselves, or all but themselves (TLM, Wu et al., EMNLP 2023)."""

    def __init__(self, width: int, heads: int, rate: float = 0.1, *, backend: BackendName | None = None):
        super().__init__(width, heads, "token_masking", rate, backend=backend)


class RandomKeyAttention(_Drawn):
    """In training a share of the keys is left out for all queries (Hussain et al., Information Pathways, KDD 2023, unbiased)."""

    def __init__(self, width: int, heads: int, rate: float = 0.5, *, backend: BackendName | None = None):
        super().__init__(width, heads, "random_keys", rate, backend=backend)


class HeadDropoutAttention(_Drawn):
    """In training a share of the heads is zero (Sun et al., Alleviating the Inequality of Attention Heads, COLING 2022)."""

    def __init__(self, width: int, heads: int, rate: float = 0.1, *, backend: BackendName | None = None):
        super().__init__(width, heads, "head_dropout", rate, backend=backend)


Kept = Literal["class", "last"]


class TokenPruningAttention(Attending):
    """Attention after which the ``keep`` tokens stay that one row attends to most, the mean over heads.

    ``by="class"``: the first token's row (EViT, Liang et al., ICLR 2022); with ``fuse`` what is left is one more token, the sum by the same
    weights. ``by="last"``: the last token's, causal (FastV, Chen et al., ECCV 2024). The asking token always stays. -> (tokens, kept places).
    """

    def __init__(
        self, width: int, heads: int, keep: int, by: Kept = "class", fuse: bool = False, *, backend: BackendName | None = None
    ):
        super().__init__(width, heads, "one_row", backend=backend, params={"causal": by == "last"})
        self.keep, self.by, self.fuse = keep, by, fuse

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]  # fewer tokens, and which
        row = 0 if self.by == "class" else x.shape[1] - 1
        attended, weights = self.attention(*self.project(x), row=row)
        x = x + self.out(merge(attended))
        scores = weights.mean(1)
        places = scores.index_fill(1, torch.tensor([row], device=x.device), float("inf")).topk(self.keep + 1, 1).indices
        places = places.sort(1).values
        kept = x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
        if self.fuse:
            left = scores.scatter(1, places, 0.0)
            kept = torch.cat([kept, (left[..., None] * x).sum(1, keepdim=True)], 1)
        return kept, places
