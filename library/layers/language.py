"""Self-attention of language models: positions, spans, shared and mixed values; x: [B, N, C] -> [B, N, C] unless said otherwise."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import Attending, BackendName, compiled, divided, merge, single, split, table


class RotaryAttention(Attending):
    """Causal attention with rotary positions and shared keys (Llama 2, Touvron et al., 2023); ``kv_heads=1`` is multi-query
    attention (Shazeer, 2019)."""

    def __init__(
        self, width: int, heads: int, kv_heads: int | None = None, base: float = 10000.0, *, backend: BackendName | None = None
    ):
        super().__init__(width, heads, "rope", kv_heads=kv_heads, bias=False, backend=backend, params={"base": base})


def alibi_slopes(heads: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The biases of ALiBi, [heads]: the geometric series of the paper, which gives it for powers of two of heads."""
    return torch.exp2(-8.0 * torch.arange(1, heads + 1, dtype=dtype) / heads)


class AlibiAttention(Attending):
    """Causal attention with a linear bias (ALiBi, Press et al., ICLR 2022)."""

    slope: torch.Tensor

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "alibi", backend=backend)
        self.register_buffer("slope", alibi_slopes(heads))

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"slope": self.slope}


class BertAttention(Attending):
    """Bidirectional attention over a padded batch (BERT, Devlin et al., NAACL 2019); ``pad``: [B, N], true where a token is real."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "padding", backend=backend)

    def forward(self, x: torch.Tensor, /, pad: torch.Tensor | None = None, **given: Any) -> torch.Tensor:
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if pad is None else pad
        return super().forward(x, pad=real, **given)


class T5Attention(Attending):
    """Unscaled scores with a bias by logarithmic buckets of the offset (T5, Raffel et al., JMLR 2020)."""

    def __init__(self, width: int, heads: int, bidirectional: bool = True, *, backend: BackendName | None = None):
        super().__init__(width, heads, "t5_bias", bias=False, backend=backend, params={"bidirectional": bidirectional})
        self.table = nn.Parameter(torch.randn(heads, 32) * width**-0.5)
        nn.init.normal_(self.query.weight, std=(width * self.head_width) ** -0.5)
        for m in (self.key, self.value, self.out):
            nn.init.normal_(m.weight, std=width**-0.5)

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"table": self.table}


class DisentangledAttention(Attending):
    """Content and position attend to each other (DeBERTa, He et al., ICLR 2021), positions by the content's projections."""

    def __init__(self, width: int, heads: int, reach: int = 512, *, backend: BackendName | None = None):
        super().__init__(width, heads, "deberta", backend=backend, params={"reach": reach})
        self.relative = table(2 * reach, width)

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"pq": split(self.query(self.relative), self.heads), "pk": split(self.key(self.relative), self.heads)}


class RelativeAttention(Attending):
    """Learned vectors for clipped offsets, in the keys and in the values (Shaw et al., NAACL 2018)."""

    def __init__(self, width: int, heads: int, reach: int = 16, *, backend: BackendName | None = None):
        super().__init__(width, heads, "shaw", backend=backend, params={"reach": reach})
        self.keys, self.values = (nn.Parameter(torch.empty(2 * reach + 1, self.head_width)) for _ in range(2))
        nn.init.xavier_uniform_(self.keys)
        nn.init.xavier_uniform_(self.values)

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"a": self.keys, "c": self.values}


class UrpeAttention(Attending):
    """A bias before and a weight after the softmax for every offset (URPE, Luo et al., NeurIPS 2022), for at most ``longest`` tokens."""

    def __init__(self, width: int, heads: int, longest: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "urpe", backend=backend)
        self.longest = longest
        self.bias, self.weight = (
            nn.Parameter(torch.zeros(heads, 2 * longest - 1)),
            nn.Parameter(torch.ones(heads, 2 * longest - 1)),
        )

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        length = x.shape[1]
        if length > self.longest:
            raise ValueError(f"the tables know {self.longest} tokens, found {length}")
        near = slice(self.longest - length, self.longest + length - 1)
        return {"bias": self.bias[:, near], "c": self.weight[:, near]}


class CollinearAttention(Attending):
    """Queries and keys on one line before the rotation, causal (CoCA, Zhu et al., 2024): the key of a pair is q_i t_j, t >= 0."""

    def __init__(self, width: int, heads: int, base: float = 10000.0, *, backend: BackendName | None = None):
        super().__init__(width, heads, "coca", bias=False, backend=backend, params={"base": base})
        if self.head_width % 2:
            raise ValueError(f"rotations need an even head width, found {self.head_width}")
        self.key = nn.Linear(width, width // 2, bias=False)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q = split(self.query(x), self.heads)
        q = q.reshape(*q.shape[:-1], 2, -1)
        return q, functional.relu(split(self.key(x), self.heads)), split(self.value(x), self.heads)


class HeadSpanAttention(Attending):
    """A causal span for every head, chosen beforehand, and sink tokens (MoA, Fu et al., 2024): span = alpha + beta n."""

    def __init__(
        self,
        width: int,
        alpha: Sequence[int],
        beta: Sequence[float],
        sinks: int = 4,
        *,
        backend: BackendName | None = None,
    ):
        if len(alpha) != len(beta):
            raise ValueError(f"alpha and beta need one entry a head, found {len(alpha)} and {len(beta)}")
        super().__init__(width, len(alpha), "head_spans", backend=backend)
        self.alpha, self.beta, self.sinks = tuple(alpha), tuple(beta), sinks

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        spans = [a + int(b * x.shape[1]) for a, b in zip(self.alpha, self.beta, strict=True)]
        return {"span": torch.tensor(spans, device=x.device), "sinks": self.sinks}


class ValueResidualAttention(Attending):
    """Causal attention that mixes in the values of the first layer (ResFormer, Zhou et al., 2024), or takes them alone (SVFormer).

    forward(x, first) -> (out, values): the first layer is called without ``first``, the others with the values that it gave out.
    """

    def __init__(self, width: int, heads: int, shared: bool = False, *, backend: BackendName | None = None):
        super().__init__(width, heads, "causal", backend=backend)
        self.shared = shared

    def forward(  # type: ignore[override]  # the values travel beside the tokens
        self, x: torch.Tensor, first: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = self.project(x)
        if first is not None:
            v = first if self.shared else 0.5 * (first + v)
        return self.out(merge(single(self.attention(q, k, v)))), v


class CrossLayerAttention(nn.Module):
    """Causal attention of which several layers share keys and values (CLA, Brandon et al., NeurIPS 2024; the second half of YOCO, Sun et al.,
    NeurIPS 2024).

    forward(x) makes keys and values, forward(x, kv) reads those of an earlier layer: both -> (out, kv). A layer that ``makes`` none has no
    projections for them. ``window``: of tokens that are seen, as in YOCO's first half.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        *,
        makes: bool = True,
        window: int | None = None,
        backend: BackendName | None = None,
    ):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        narrow = divided(width, heads) * self.kv_heads
        divided(heads, self.kv_heads)
        self.query, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key, self.value = (nn.Linear(width, narrow, bias=False) if makes else None for _ in range(2))
        self.attention = compiled("sliding_window", backend, window=window) if window else compiled("causal", backend)

    def forward(
        self, x: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        if kv is None:
            if self.key is None or self.value is None:
                raise ValueError("a layer that makes no keys and values has to be given those of an earlier one, found none")
            kv = split(self.key(x), self.kv_heads), split(self.value(x), self.kv_heads)
        return self.out(merge(single(self.attention(split(self.query(x), self.heads), *kv)))), kv


class MixedSpanAttention(nn.Module):
    """Causal attention layers, few of which see everything (MASFormer, Zhang et al., 2023): the others see ``span`` tokens.

    Residuals and norms before every attention included, feed-forward parts not.
    """

    def __init__(
        self, width: int, heads: int, layers: int, full: Collection[int], span: int, *, backend: BackendName | None = None
    ):
        super().__init__()
        if not all(0 <= n < layers for n in full):
            raise ValueError(f"there are layers 0 to {layers - 1}, found {sorted(full)}")
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        near = {"window": span}
        self.layers = nn.ModuleList(
            Attending(width, heads, "causal", backend=backend)
            if n in full
            else Attending(width, heads, "sliding_window", backend=backend, params=near)
            for n in range(layers)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return x


class SkimAttention(nn.Module):
    """One map from the layout alone, used for the values of every layer (Skim-Attention, Nguyen et al., EMNLP 2021).

    layout: [B, N, L], layers of values [B, N, C] -> their attended [B, N, C].
    """

    def __init__(self, layout_width: int, width: int, heads: int, layers: int, *, backend: BackendName | None = None):
        super().__init__()
        divided(width, heads)
        divided(layout_width, heads)
        self.heads = heads
        self.query, self.key = nn.Linear(layout_width, layout_width), nn.Linear(layout_width, layout_width)
        self.values = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.attention = compiled("shared_map", backend)

    def forward(self, layout: torch.Tensor, x: torch.Tensor, layer: int) -> torch.Tensor:
        q, k = split(self.query(layout), self.heads), split(self.key(layout), self.heads)
        return merge(single(self.attention(q, k, split(self.values[layer](x), self.heads))))


class EfficientAttention(nn.Module):
    """One head with two maps: softmax(x W x' / sqrt(D)) x (Hosseini & Hosseini, 2024), then the output map."""

    def __init__(self, width: int, *, backend: BackendName | None = None):
        super().__init__()
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.attention = compiled("full", backend)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = single(self.attention(self.query(x)[:, None], x[:, None], self.values(x)[:, None]))
        return self.out(out.squeeze(1))  # type: ignore[no-any-return]


class SuperAttention(EfficientAttention):
    """`EfficientAttention` whose values are mixed along a fixed length by a learned matrix (Hosseini & Hosseini, 2024)."""

    def __init__(self, width: int, length: int, *, backend: BackendName | None = None):
        super().__init__(width, backend=backend)
        self.mix = nn.Linear(length, length)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(x.mT).mT  # type: ignore[no-any-return]
