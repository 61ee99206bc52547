"""Decoders of the Llama kind, with the names that `transformers` gives their parts: its state dicts load as they are.

    x + attention(norm x), then x + network(norm x)

Norms stand before a part, behind it, or on both sides; queries and keys may be normalised, scores capped. What a layer attends to is its spec.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import BackendName, merge, single, sized, split


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary positions: the base, and how angles are slowed down: all of them, or by wavelength as in Llama 3.1."""

    base: float = 10000.0
    factor: float = 1.0
    by_wavelength: bool = False

    def speeds(self, width: int) -> torch.Tensor:
        """By how much features turn from one position to the next, [width / 2]."""
        speed = self.base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        if not self.by_wavelength:
            return speed / self.factor
        turns = 8192 * speed / (2 * math.pi)  # within the length of the first training
        kept = ((turns - 1) / 3).clamp(0, 1)
        return kept * speed + (1 - kept) * speed / self.factor


@dataclass(frozen=True, slots=True)
class Layer:
    """The spec of a layer's attention, its parameters, and its rotation (None: no rotary positions)."""

    spec: str
    params: tuple[tuple[str, Any], ...] = ()
    rotation: Rotation | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """Everything that a `Decoder` is made of beside what its layers attend to; ``pattern`` repeats from the first layer to the last."""

    width: int
    depth: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    head_width: int = 0  # width / heads unless given
    tied: bool = False  # the head is the embedding
    bias: bool = False  # of queries, keys and values
    normed: Literal["", "head", "whole"] = ""  # queries and keys, by heads or across them
    norms: Literal["before", "behind", "both"] = "before"
    gemma: bool = False  # norms by 1 + weight, embeddings times sqrt(width), GELU in place of SiLU
    scale: float = 0.0  # what scores are divided by the root of; the width of a head unless given
    cap: float = 0.0  # of the logits
    epsilon: float = 1e-6

    def per_head(self) -> int:
        return self.head_width or self.width // self.heads

    def small(self) -> Shape:
        """The same kind, narrow and two layers deep."""
        shared = min(self.heads // self.kv_heads, 2)
        return replace(
            self,
            width=24 if self.head_width else 32 * shared,
            depth=2,
            heads=2 * shared,
            kv_heads=2,
            hidden=48,
            vocabulary=256,
            head_width=16 if self.head_width else 0,
            scale=24.0 if self.scale else 0.0,
        )


class Norm(nn.Module):
    """By the root of the mean square, times a weight, or one more than it."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        self.more, self.epsilon = int(shape.gemma), shape.epsilon
        self.weight = nn.Parameter(torch.full((width,), 1.0 - self.more))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.weight + self.more, self.epsilon)


class Attention(nn.Module):
    def __init__(self, shape: Shape, layer: Layer, backend: BackendName | None) -> None:
        super().__init__()
        self.shape, self.layer, self.backend = shape, layer, backend
        wide, narrow = shape.heads * shape.per_head(), shape.kv_heads * shape.per_head()
        self.q_proj = nn.Linear(shape.width, wide, shape.bias)
        self.k_proj, self.v_proj = (nn.Linear(shape.width, narrow, shape.bias) for _ in range(2))
        self.o_proj = nn.Linear(wide, shape.width, False)
        if shape.normed:
            widths = (shape.per_head(),) * 2 if shape.normed == "head" else (wide, narrow)
            self.q_norm, self.k_norm = (Norm(w, shape) for w in widths)
        if "sink" in layer.spec:
            self.sinks = nn.Parameter(torch.zeros(shape.heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape, q, k = self.shape, self.q_proj(x), self.k_proj(x)
        if shape.normed == "whole":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = split(q, shape.heads), split(k, shape.kv_heads), split(self.v_proj(x), shape.kv_heads)
        if shape.normed == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.layer.rotation is not None:
            angle = torch.arange(x.shape[1], device=x.device)[:, None] * self.layer.rotation.speeds(shape.per_head()).to(
                x.device
            )
            q, k = _turned(q, angle), _turned(k, angle)
        if shape.scale:
            q = q * (shape.per_head() / shape.scale) ** 0.5
        given = {"sink": self.sinks} if "sink" in self.layer.spec else {}
        attention = sized(self.layer.spec, self.backend, **dict(self.layer.params))
        return self.o_proj(merge(single(attention(q, k, v, **given))))  # type: ignore[no-any-return]


def _turned(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Features n and n + width / 2 turn together."""
    a, b = x.chunk(2, -1)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Network(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(shape.width, shape.hidden, False) for _ in range(2))
        self.down_proj = nn.Linear(shape.hidden, shape.width, False)
        self.act: Callable[[torch.Tensor], torch.Tensor] = nn.GELU(approximate="tanh") if shape.gemma else nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, shape: Shape, layer: Layer, backend: BackendName | None) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(shape, layer, backend), Network(shape)
        before, behind = shape.norms != "behind", shape.norms != "before"
        same: Callable[[], nn.Module] = nn.Identity
        self.input_layernorm = Norm(shape.width, shape) if before else same()
        self.post_attention_layernorm = Norm(
            shape.width, shape
        )  # of the network where norms stand before, else behind attention
        self.pre_feedforward_layernorm = Norm(shape.width, shape) if shape.norms == "both" else same()
        self.post_feedforward_layernorm = Norm(shape.width, shape) if behind else same()
        self.behind = behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.self_attn(self.input_layernorm(x))
        if self.behind:
            x = x + self.post_attention_layernorm(y)
            return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))  # type: ignore[no-any-return]
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Body(nn.Module):
    def __init__(self, shape: Shape, pattern: tuple[Layer, ...], backend: BackendName | None) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Block(shape, pattern[n % len(pattern)], backend) for n in range(shape.depth))
        self.norm = Norm(shape.width, shape)
        self.scale = shape.width**0.5 if shape.gemma else 1.0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens) * self.scale
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Tokens [B, N] -> logits of the next one [B, N, vocabulary]."""

    def __init__(self, shape: Shape, pattern: tuple[Layer, ...], *, backend: BackendName | None = None) -> None:
        super().__init__()
        self.model, self.cap = Body(shape, pattern, backend), shape.cap
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, False)
        if shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = self.lm_head(self.model(tokens))
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits
