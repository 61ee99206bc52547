"""Selective scans along paths through an image; images: [B, H, W, C]."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import BackendName, compiled
from einfuse.library.layers.gates import SqueezeGate
from einfuse.library.layers.grids import convolve
from einfuse.library.layers.vision_windows import SwinAttention


class SelectiveScan(nn.Module):
    """The selective scan of Mamba (Gu and Dao, COLM 2024), with steps, input and output vectors that other tokens may say; x: [B, N, C]."""

    def __init__(self, width: int, state: int, source: int, rank: int | None = None, *, backend: BackendName | None = None):
        super().__init__()
        narrow = nn.Linear(source, rank, bias=False) if rank else nn.Identity()
        self.step = nn.Sequential(narrow, nn.Linear(rank or source, width))
        self.enter, self.read = nn.Linear(source, state, bias=False), nn.Linear(source, state, bias=False)
        self.log_a = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(width, 1))
        self.skip = nn.Parameter(torch.ones(width))
        self.attention = compiled("mamba", backend)

    def forward(self, x: torch.Tensor, source: torch.Tensor, reader: torch.Tensor) -> torch.Tensor:
        """``source`` says steps and input vectors, ``reader`` output vectors; all [B, N, ...]."""
        return self.attention(x, self.step(source), self.log_a, self.enter(source), self.read(reader), self.skip)[0]


def _along(paths: list[torch.Tensor], scans: nn.ModuleList, *given: torch.Tensor) -> torch.Tensor:
    """The sum of the scans, each along its own path through the tokens of ``given``."""
    out = torch.zeros_like(given[0])
    for path, scan in zip(paths, scans, strict=True):
        out = out.index_add(1, path, scan(*(t[:, path] for t in given)))
    return out


def straight(height: int, width: int, device: torch.device | None = None) -> list[torch.Tensor]:
    """Rows, columns, and both backwards."""
    places = torch.arange(height * width, device=device).view(height, width)
    ways = [places.flatten(), places.T.flatten()]
    return [*ways, *(w.flip(0) for w in ways)]


def serpentine(height: int, width: int, device: torch.device | None = None) -> list[torch.Tensor]:
    """Rows from the top and from the bottom, columns from the left and from the right that start below; every other one runs back."""
    places = torch.arange(height * width, device=device).view(height, width)
    below = places.flip(0)
    ways = []
    for lines in (places, below, below.T, below.flip(1).T):
        back = torch.arange(len(lines), device=device)[:, None] % 2 == 1
        ways.append(torch.where(back, lines.flip(1), lines).flatten())
    return ways


class QueryStateSpace(nn.Module):
    """Frames of a burst scanned with steps and input vectors of the base frame (QMambaBSR, Di et al., 2024), in four directions, then a gate
    of channels; base: [B, H, W, C], frames: [B, F, H, W, C] -> [B, H, W, C].

    A reading in that output vectors come from the frames: the paper's text does not say.
    """

    def __init__(self, width: int, frames: int, state: int = 16, *, backend: BackendName | None = None):
        super().__init__()
        every = frames * width
        self.join = nn.Sequential(nn.Linear(width + every, width), nn.GELU(), nn.Linear(width, width))
        self.enter = nn.Linear(every, width)
        self.scans = nn.ModuleList(SelectiveScan(width, state, width, backend=backend) for _ in range(4))
        self.gate = SqueezeGate(width, 4, backend=backend)

    def forward(self, base: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        seen = frames.movedim(1, 3).flatten(3)
        query = base + self.join(torch.cat([base, seen], -1))
        x = self.enter(seen).flatten(1, 2)
        paths = straight(base.shape[1], base.shape[2], base.device)
        return self.gate(_along(paths, self.scans, x, query.flatten(1, 2), x).reshape(base.shape))  # type: ignore[no-any-return]


class SerpentineScan(nn.Module):
    """Four selective scans along serpentines, with a state of one number a channel, summed and gated (LaMamba-Diff, Fu et al., 2024)."""

    def __init__(self, width: int, state: int = 1, ratio: int = 2, *, backend: BackendName | None = None):
        super().__init__()
        inner = ratio * width
        self.enter, self.out = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.local, self.norm = nn.Conv2d(inner, inner, 3, padding=1, groups=inner), nn.LayerNorm(inner)
        rank = -(-width // 16)
        self.scans = nn.ModuleList(SelectiveScan(inner, state, inner, rank, backend=backend) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, gate = self.enter(x).chunk(2, -1)
        u = functional.silu(convolve(self.local, u)).flatten(1, 2)
        scanned = _along(serpentine(x.shape[1], x.shape[2], x.device), self.scans, u, u, u)
        return self.out(self.norm(scanned).reshape(gate.shape) * functional.silu(gate))  # type: ignore[no-any-return]


class LaMambaBlock(nn.Module):
    """A serpentine scan, (shifted) windows and a network, each with shift, scale and gate of a condition (LaMamba-Diff, Fu et al., 2024);
    x: [B, H, W, C], condition: [B, C]."""

    def __init__(
        self, width: int, heads: int, side: int = 8, shift: int = 0, ratio: int = 4, *, backend: BackendName | None = None
    ):
        super().__init__()
        network = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(approximate="tanh"), nn.Linear(ratio * width, width))
        scan, windows = SerpentineScan(width, backend=backend), SwinAttention(width, heads, side, shift, backend=backend)
        self.parts = nn.ModuleList([scan, windows, network])
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, 9 * width))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        vectors = self.condition(condition)[:, None, None].chunk(9, -1)
        for n, part in enumerate(self.parts):
            shift, scale, gate = vectors[3 * n : 3 * n + 3]
            x = x + gate * part(functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        return x
