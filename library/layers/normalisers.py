"""Self-attention whose rows are normalised in another way than by a softmax; x: [B, N, C] -> [B, N, C]."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from einfuse.library.layers.common import Attending, BackendName, compiled, single


class SigmoidAttention(Attending):
    """sigmoid(q . k / sqrt(D) - log n), causal (Ramapuram et al., ICLR 2025)."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "sigmoid", backend=backend)


class ReluSquaredAttention(Attending):
    """Squared ReLU over the number of visible keys, causal (Hua et al., ICML 2022)."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "relu2", backend=backend)


class QuietAttention(Attending):
    """Softmax with one more in the denominator, causal (Miller, 2023)."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "softmax1", backend=backend)


class SinkAttention(Attending):
    """Softmax with a learned logit for every head that has no value, causal (gpt-oss, 2025)."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "sink", backend=backend)
        self.sink = nn.Parameter(torch.zeros(heads))

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"sink": self.sink}


class CogAttention(Attending):
    """Weights with the sign of their score, causal (Cog attention, Lv et al., 2024)."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "cog", backend=backend)


class NormalizedAttentionPooling(Attending):
    """Scores standardised over the keys instead of a softmax, then a layer norm (NAP, Richter & Wattenhofer, 2020)."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "nap", backend=backend)
        self.gain, self.shift = nn.Parameter(torch.ones(heads)), nn.Parameter(torch.zeros(heads))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))  # type: ignore[assignment]  # the norm is the paper's

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"gain": self.gain, "shift": self.shift}


class SoftplusAttention(Attending):
    """Softplus of length-scaled cosines, re-weighted by a power above the average, causal (LSSAR, Gao et al., 2025)."""

    def __init__(self, width: int, heads: int, power: float = 3.0, *, backend: BackendName | None = None):
        super().__init__(width, heads, "lssar", backend=backend, params={"power": power})


class PowerSoftmaxAttention(Attending):
    """Even powers of the scores over their sum, causal (Power-Softmax, Zimerman et al., 2024)."""

    def __init__(self, width: int, heads: int, power: int = 4, *, backend: BackendName | None = None):
        if power % 2 or power < 2:
            raise ValueError(f"the power must be even and positive, found {power}")
        super().__init__(width, heads, "power", backend=backend, params={"exponent": power})


class ShapedAttention(Attending):
    """Identity plus softmax minus the uniform average (Noci et al., NeurIPS 2023), with gains for every head that begin at one."""

    scale: torch.Tensor

    def __init__(
        self, width: int, heads: int, temperature: float = 1.0, causal: bool = True, *, backend: BackendName | None = None
    ):
        super().__init__(width, heads, "shaped", backend=backend, params={"causal": causal})
        self.alpha, self.beta, self.gamma = (nn.Parameter(torch.ones(heads)) for _ in range(3))
        self.register_buffer(
            "scale", torch.full((heads,), 1 / (temperature * width))
        )  # tau = tau0 sqrt(n n_k): both widths are C

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma, "scale": self.scale}


class TaylorShiftAttention(Attending):
    """The second-order Taylor polynomial of the exponential on scaled cosines (TaylorShift, Nauen et al., 2024), direct form."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "taylor_shift", backend=backend)
        self.temperature = nn.Parameter(torch.ones(heads))

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"tau": self.temperature}


class InfinitePrefixAttention(Attending):
    """Causal softmax with a learned prefix of unbounded length in numerator and denominator (Liang et al., 2024)."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "infinite_prefix", backend=backend)
        self.prefix = nn.Parameter(torch.zeros(heads, self.head_width, self.head_width))
        self.weight = nn.Parameter(torch.zeros(heads, self.head_width))

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"z": self.prefix, "kappa": self.weight}


class LengthScaledAttention(Attending):
    """A temperature that keeps the entropy when the number of tokens is not that of training (Jin et al., NeurIPS 2023)."""

    def __init__(self, width: int, heads: int, trained: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "length_scaled", backend=backend)
        self.trained = trained

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        return {"trained": float(self.trained)}


class Pattention(nn.Module):
    """A linear map as attention to learned key-value tokens (TokenFormer, Wang et al., 2024); x: [B, N, C] -> [B, N, E].

    Tokens that are added later with zero keys and values change nothing but the factor sqrt(n).
    """

    def __init__(self, width: int, out_width: int, tokens: int, *, backend: BackendName | None = None):
        super().__init__()
        self.key, self.value = nn.Parameter(torch.empty(tokens, width)), nn.Parameter(torch.empty(tokens, out_width))
        nn.init.normal_(self.key, std=0.02)
        nn.init.normal_(self.value, std=0.02)
        self.attention = compiled("pattention", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return single(self.attention(x, self.key, self.value))
