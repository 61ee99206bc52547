"""Self-attention that can run token by token with a state of constant size; x: [B, N, C] -> [B, N, C], causal.

``layer.step(state, x)`` takes the next tokens [B, n, C], n >= 1, and the state of the step before (None at first), and gives their outputs
and the state after them: row by row the same as one call for all tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import BackendName, compiled, divided, merge, single, split

State = Any
"""What a step hands to the next one; its parts are tensors, and not to be looked into."""


class Recurrent(nn.Module):
    """Projections with heads around a recurrence. A subclass gives `attend`, which serves a whole call and a step alike."""

    def __init__(self, width: int, heads: int, spec: str, *, backend: BackendName | None = None) -> None:
        super().__init__()
        self.heads, self.head_width = heads, divided(width, heads)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.attention = compiled(spec, backend)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v with the heads in front of the tokens."""
        return split(self.query(x), self.heads), split(self.key(x), self.heads), split(self.value(x), self.heads)

    def attend(self, x: torch.Tensor, state: State, keep: bool) -> tuple[torch.Tensor, State]:
        raise NotImplementedError

    def run(self, keep: bool, state: State, *args: torch.Tensor) -> tuple[torch.Tensor, State]:
        """The first output of the spec, and the states after it where they are asked for."""
        out, state = self.attention.step(state, *args) if keep else (self.attention(*args), None)
        return (out if isinstance(out, torch.Tensor) else out[0]), state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attend(x, None, False)[0]

    def step(self, state: State, x: torch.Tensor) -> tuple[torch.Tensor, State]:
        """The outputs for the next tokens and the state after them."""
        return self.attend(x, state, True)


class RetentionAttention(Recurrent):
    """Multi-scale retention (RetNet, Sun et al., 2023): turned queries and keys, decays 1 - 2^(-5 - h), every head normalised, a gate."""

    slope: torch.Tensor

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "retnet", backend=backend)
        self.gate = nn.Linear(width, width, bias=False)
        self.register_buffer("slope", -torch.log1p(-torch.exp2(-5.0 - torch.arange(heads))))

    def attend(self, x: torch.Tensor, state: State, keep: bool) -> tuple[torch.Tensor, State]:
        seen, states = state or (0, None)
        place = torch.arange(seen, seen + x.shape[1], device=x.device)
        out, states = self.run(keep, states, *self.project(x), self.slope.to(x), place)
        out = functional.layer_norm(out, out.shape[-1:])  # a group norm of the heads, token by token, without parameters
        return self.out(functional.silu(self.gate(x)) * merge(out)), (seen + x.shape[1], states)


class LightningAttention(Recurrent):
    """Linear attention with a decay and no denominator (TransNormerLLM, Qin et al., 2024): queries and keys through silu, the result over
    its root mean square, a gate. ``depth`` is the layer's place among all layers, from 0 (the first) to 1: later layers forget less.
    """

    slope: torch.Tensor

    def __init__(self, width: int, heads: int, depth: float = 0.0, *, backend: BackendName | None = None):
        super().__init__(width, heads, "retention", backend=backend)
        if not 0 <= depth <= 1:
            raise ValueError(f"the depth must be from 0 to 1, found {depth}")
        self.gate = nn.Linear(width, width, bias=False)
        self.register_buffer("slope", torch.arange(1, heads + 1) * (8.0 / heads) * (1 - depth))

    def attend(self, x: torch.Tensor, state: State, keep: bool) -> tuple[torch.Tensor, State]:
        q, k, v = self.project(x)
        out, state = self.run(keep, state, functional.silu(q), functional.silu(k), v, self.slope.to(x))
        out = merge(out) * self.head_width**0.5  # the paper has no scale
        out = functional.rms_norm(out, out.shape[-1:], eps=1e-6)
        return self.out(out * self.gate(x)), state


class DeltaNetAttention(Recurrent):
    """The delta rule on short convolutions (DeltaNet, Yang et al., NeurIPS 2024): queries and keys of length one, every head's result over
    its root mean square. The convolutions look ``reach`` tokens back, themselves included.
    """

    def __init__(self, width: int, heads: int, reach: int = 4, *, backend: BackendName | None = None):
        super().__init__(width, heads, "delta", backend=backend)
        self.reach = reach
        self.strength = nn.Linear(width, heads, bias=False)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, reach, groups=width, bias=False) for _ in range(3))
        self.norm = nn.Parameter(torch.ones(self.head_width))

    def attend(self, x: torch.Tensor, state: State, keep: bool) -> tuple[torch.Tensor, State]:
        before, states = state or (x.new_zeros(x.shape[0], self.reach - 1, 3 * x.shape[2]), None)
        projected = torch.cat([before, torch.cat([m(x) for m in (self.query, self.key, self.value)], -1)], 1)
        mixed = [c(t.mT).mT for c, t in zip(self.convolutions, projected.chunk(3, -1), strict=True)]
        q, k, v = (split(functional.silu(t), self.heads) for t in mixed)
        q = (
            functional.normalize(q, dim=-1) * self.head_width**0.5
        )  # the spec normalises the keys, and has 1 / sqrt(D), the paper not
        out, states = self.run(keep, states, q, k, v, self.strength(x).mT)
        out = functional.rms_norm(out, out.shape[-1:], self.norm, eps=1e-5)
        return self.out(merge(out)), (projected[:, projected.shape[1] - self.reach + 1 :], states)


class AarenAttention(nn.Module):
    """Attention as a recurrence (Aaren, Feng et al., 2024): one learned query for all positions, each of which sees what came before."""

    def __init__(self, width: int, heads: int, *, backend: BackendName | None = None):
        super().__init__()
        self.heads = heads
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        divided(width, heads)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.attention, self.one = compiled("prefix_query", backend), compiled("full", backend)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q: [H, D], the same for all; k, v with the heads in front of the tokens."""
        return (
            self.query(self.token).unflatten(0, (self.heads, -1)),
            split(self.key(x), self.heads),
            split(self.value(x), self.heads),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(merge(single(self.attention(*self.project(x)))))  # type: ignore[no-any-return]

    def step(self, state: State, x: torch.Tensor) -> tuple[torch.Tensor, State]:
        """The outputs for the next tokens and the state after them: what is new is merged with what was."""
        q, k, v = self.project(x)
        whole = q[None, :, None].expand(x.shape[0], -1, -1, -1)
        rows = []
        for t in range(x.shape[1]):
            row, state = self.one.step(state, whole, k[:, :, t : t + 1], v[:, :, t : t + 1])
            rows.append(single(row))
        return self.out(merge(torch.cat(rows, 2))), state
