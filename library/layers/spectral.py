"""Mixers of images by transforms: Fourier, long convolutions, wavelets. No token meets another through a score; x: [B, H, W, C]."""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import table
from einfuse.library.layers.grids import convolve

PLACES = (1, 2)


class SpectralBlock(nn.Module):
    """x + MLP(norm(y)), y = the inverse of K times the Fourier transform of norm(x), K learned (SpectFormer, Patro et al., 2023: its first
    blocks; the later ones attend)."""

    def __init__(self, width: int, height: int, across: int, factor: int = 4) -> None:
        super().__init__()
        self.filter = table(height, across // 2 + 1, width, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mix = nn.Sequential(nn.Linear(width, factor * width), nn.GELU(), nn.Linear(factor * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = torch.fft.rfft2(self.norms[0](x), dim=PLACES, norm="ortho") * torch.view_as_complex(self.filter)
        y = torch.fft.irfft2(seen, s=x.shape[1:3], dim=PLACES, norm="ortho")
        return x + self.mix(self.norms[1](y))  # type: ignore[no-any-return]


class LongConvolution(nn.Module):
    """y = W(x1 * (h conv (x2 * v))), h a network of the place that decays (Hyena N-D, Zimerman and Wolf, 2023); images of ``side`` x ``side``.

    A place reads what is above and left of it; ``flipped``: below and right. The paper takes turns from layer to layer.
    """

    def __init__(self, width: int, side: int, hidden: int = 16, bands: int = 1, flipped: bool = False) -> None:
        super().__init__()
        self.side, self.flipped = side, flipped
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.short = nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width)
        sizes = (2 * (2 * bands + 1), hidden, hidden)
        self.stages = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.speed, self.last = nn.Parameter(torch.ones(hidden)), nn.Linear(hidden, width, bias=False)
        self.skip = nn.Parameter(torch.randn(width))
        self.register_buffer("decay", torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, width))
        self.register_buffer("places", _places(side, bands), persistent=False)

    def filter(self) -> torch.Tensor:
        """Weights of the offsets down and right, [side, side, C]."""
        y, decay = self.places, self.decay
        assert isinstance(y, torch.Tensor), "a buffer"
        assert isinstance(decay, torch.Tensor), "a buffer"
        for stage in self.stages:
            y = torch.sin(self.speed * stage(y))
        far = torch.linspace(0, 1, self.side, device=y.device, dtype=y.dtype)
        return self.last(y) * torch.exp(-(far[:, None, None] + far[None, :, None]) * decay)  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1:3] != (self.side, self.side):
            raise ValueError(f"images of {self.side} x {self.side} were expected, found {x.shape[1]} x {x.shape[2]}")
        x1, x2, v = convolve(self.short, self.project(x)).chunk(3, -1)
        u = (x2 * v).flip(PLACES) if self.flipped else x2 * v
        whole = (2 * self.side, 2 * self.side)
        seen = torch.fft.rfft2(u, s=whole, dim=PLACES) * torch.fft.rfft2(self.filter(), s=whole, dim=(0, 1))
        y = torch.fft.irfft2(seen, s=whole, dim=PLACES)[:, : self.side, : self.side] + u * self.skip
        return self.out(x1 * (y.flip(PLACES) if self.flipped else y))  # type: ignore[no-any-return]


def _places(side: int, bands: int) -> torch.Tensor:
    """The place from 0 to 1 and its waves, of both axes: [side, side, 2 (2 bands + 1)]."""
    turns = 2 * math.pi * torch.arange(side) / side
    angle = torch.linspace(1e-4, bands - 1, bands) * turns[:, None]
    axis = torch.cat([torch.linspace(0, 1, side)[:, None], angle.cos(), -angle.sin()], -1)
    return torch.cat([axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)], -1)


class SpectralPooling(nn.Module):
    """W2(y * ctx(y)), y two narrow convolutions of W1 x; ctx adds up parts of the channels whose low frequencies weigh lam and whose high
    ones 1 - lam (SPANet, Yun et al., ICCV 2023). Low: less than ``radius`` from the middle; on the circle a third, as in the authors' code.
    """

    def __init__(self, width: int, radius: float, balance: tuple[float, ...] = (0.7, 0.8, 0.9)) -> None:
        super().__init__()
        if width % len(balance):
            raise ValueError(f"{len(balance)} parts must divide the channels, found {width}")
        self.radius, self.balance = radius, balance
        self.project, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.local = nn.Sequential(
            nn.Conv2d(width, width, (1, 7), padding=(0, 3), groups=width),
            nn.Conv2d(width, width, (7, 1), padding=(3, 0), groups=width),
        )
        self.spread = nn.ModuleList(nn.Linear(width // len(balance), width) for _ in balance)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = convolve(self.local, self.project(x))
        height, across = x.shape[1:3]
        down, right = torch.fft.fftfreq(height) * height, torch.fft.fftfreq(across) * across
        far = torch.sqrt(down[:, None] ** 2 + right**2).to(x)[..., None]
        context = torch.zeros_like(y)
        for part, low, spread in zip(y.chunk(len(self.balance), -1), self.balance, self.spread, strict=True):
            weight = torch.where(far == self.radius, 1 / 3, torch.where(far < self.radius, low, 1 - low))
            kept = torch.fft.ifft2(torch.fft.fft2(part, dim=PLACES) * weight, dim=PLACES).real
            context = context + spread(kept)
        return self.out(y * context)  # type: ignore[no-any-return]


def _mirrored(half: tuple[float, ...]) -> tuple[float, ...]:
    return (*half, *half[-2::-1])


LOW = _mirrored((-0.0017578125, 0.0, 0.022265625, -0.046875, -0.0482421875, 0.296875, 0.55546875))
HIGH = _mirrored(
    (
        *(-7.062639508928571e-05, 0.0, 0.0013419015066964285, -0.0018833705357142855, -0.007156808035714285),
        *(0.023856026785714284, 0.05564313616071428, -0.05168805803571428, -0.29975760323660716, 0.5594308035714286),
    )
)
"""The filters `near_sym_b` of the first level of a dual-tree complex wavelet transform (Kingsbury, 1999)."""
LOW_BACK = tuple(w * (-1) ** (n + 1) for n, w in enumerate(HIGH))
HIGH_BACK = tuple(w * (-1) ** n for n, w in enumerate(LOW))


def filtered(x: torch.Tensor, weights: tuple[float, ...], axis: int) -> torch.Tensor:
    """The convolution along one axis, the image mirrored at its edges."""
    size, reach = x.shape[axis], len(weights) // 2
    at = torch.arange(-reach, size + reach, device=x.device) % (2 * size)
    windows = x.index_select(axis, torch.minimum(at, 2 * size - 1 - at)).unfold(axis, len(weights), 1)
    return windows @ torch.tensor(weights, device=x.device, dtype=x.dtype)


def wavelets(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One level of the dual-tree complex wavelet transform of [B, H, W, C], H and W even: what is low in both directions, of the same
    shape, and six complex bands of half the sides, [B, 6, H / 2, W / 2, C]."""
    low, high = filtered(x, LOW, 1), filtered(x, HIGH, 1)
    bands: dict[int, torch.Tensor] = {}
    pairs = {(0, 5): filtered(high, LOW, 2), (2, 3): filtered(low, HIGH, 2), (1, 4): filtered(high, HIGH, 2)}
    for (first, second), y in pairs.items():
        a, b, c, d = (y[:, n::2, m::2] / math.sqrt(2) for n in (0, 1) for m in (0, 1))
        bands[first], bands[second] = torch.complex(a - d, b + c), torch.complex(a + d, b - c)
    return filtered(low, LOW, 2), torch.stack([bands[n] for n in range(6)], 1)


def unwavelets(low: torch.Tensor, bands: torch.Tensor) -> torch.Tensor:
    """The inverse of `wavelets`."""

    def whole(first: int, second: int) -> torch.Tensor:
        z, w = bands[:, first] / math.sqrt(2), bands[:, second] / math.sqrt(2)
        rows = torch.stack([(z + w).real, (z + w).imag], 3), torch.stack([(z - w).imag, (w - z).real], 3)
        return torch.stack([r.flatten(2, 3) for r in rows], 2).flatten(1, 2)

    left = filtered(low, LOW_BACK, 1) + filtered(whole(0, 5), HIGH_BACK, 1)
    right = filtered(whole(2, 3), LOW_BACK, 1) + filtered(whole(1, 4), HIGH_BACK, 1)
    return filtered(left, LOW_BACK, 2) + filtered(right, HIGH_BACK, 2)


class ScatteringMixer(nn.Module):
    """The low band of a wavelet transform times a learned map, the high ones through two block-diagonal complex maps with a ReLU of both
    parts between them, and back (scattering vision transformer, Patro and Agneeswaran, NeurIPS 2023); H and W even."""

    def __init__(self, width: int, height: int, across: int, blocks: int = 4) -> None:
        super().__init__()
        if width % blocks:
            raise ValueError(f"the blocks must divide the channels, found {blocks} and {width}")
        each = width // blocks
        self.low = table(height, across, width)
        self.maps = nn.ParameterList(table(blocks, each, each, 2) for _ in range(2))
        self.shifts = nn.ParameterList(table(blocks, each, 2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, bands = wavelets(x)
        z = bands.unflatten(-1, self.maps[0].shape[:2])
        for n, (weight, shift) in enumerate(zip(self.maps, self.shifts, strict=True)):
            z = torch.einsum("...gd,gde->...ge", z, torch.view_as_complex(weight)) + torch.view_as_complex(shift)
            z = torch.complex(functional.relu(z.real), functional.relu(z.imag)) if n == 0 else z
        return unwavelets(low * self.low, z.flatten(-2))
