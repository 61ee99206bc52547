"""Convolutions, networks and gates that stand where attention does: most meet no token through a score, and are torch's; x: [B, H, W, C]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from einfuse.library.layers.common import BackendName, compiled, single
from einfuse.library.layers.grids import convolve


class FocalModulation(nn.Module):
    """W(q * h(m)), m the sum over levels of gated contexts: depthwise convolutions one upon the other, and the mean of the last (Yang et
    al., NeurIPS 2022). The kernel of level l has a side of ``side`` + 2 l; ``averaged``: m by the number of contexts."""

    def __init__(self, width: int, levels: int = 2, side: int = 3, averaged: bool = False) -> None:
        super().__init__()
        self.levels, self.averaged = levels, averaged
        self.project, self.out = nn.Linear(width, 2 * width + levels + 1), nn.Linear(width, width)
        sides = [side + 2 * n for n in range(levels)]
        self.contexts = nn.ModuleList(nn.Conv2d(width, width, s, padding=s // 2, groups=width, bias=False) for s in sides)
        self.modulator = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = x.shape[-1]
        q, z, gates = self.project(x).split([width, width, self.levels + 1], -1)
        total = torch.zeros_like(q)
        for level, context in enumerate(self.contexts):
            z = functional.gelu(convolve(context, z))
            total = total + z * gates[..., level : level + 1]
        total = total + functional.gelu(z.mean((1, 2), keepdim=True)) * gates[..., self.levels :]
        return self.out(q * self.modulator(total / (self.levels + 1) if self.averaged else total))  # type: ignore[no-any-return]


class GatedConvolution(nn.Module):
    """x + W2(GELU(g) * [i | 7 x 7 depthwise of c]), g, i, c = W1 norm(x) (MambaOut, Yu and Wang, CVPR 2025); ``convolved`` channels are c."""

    def __init__(self, width: int, hidden: int | None = None, convolved: int | None = None) -> None:
        super().__init__()
        hidden, convolved = hidden or 8 * width // 3, convolved or width
        if convolved > hidden:
            raise ValueError(f"no more channels than hidden ones can be convolved, found {convolved} and {hidden}")
        self.parts = (hidden, hidden - convolved, convolved)
        self.norm, self.project, self.out = (
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 2 * hidden),
            nn.Linear(hidden, width),
        )
        self.local = nn.Conv2d(convolved, convolved, 7, padding=3, groups=convolved)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, kept, moved = self.project(self.norm(x)).split(self.parts, -1)
        mixed = torch.cat([kept, convolve(self.local, moved)], -1)
        return x + self.out(functional.gelu(gate) * mixed)  # type: ignore[no-any-return]


class ConvolutionalModulation(nn.Module):
    """x + scale * W(depthwise(GELU(Wa y)) * Wv y), y = norm(x): the mixer of ConvFormer (Wu et al., 2024), without its feed-forward part."""

    def __init__(self, width: int, side: int = 9, scale: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.look, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.local = nn.Conv2d(width, width, side, padding=side // 2, groups=width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        mixed = convolve(self.local, functional.gelu(self.look(y))) * self.value(y)
        return x + self.scale * self.out(mixed)  # type: ignore[no-any-return]


class DeformableGate(nn.Module):
    """x * sigmoid(norm(deformed(y))), y a separable convolution to ``ratio`` of the channels, its instance norm and a GELU, deformed a 3 x 3
    convolution that reads where y says (DAS, Salajegheh et al., 2023). The norm is over channels, which the paper leaves open."""

    def __init__(self, width: int, ratio: float = 0.2) -> None:
        super().__init__()
        hidden = max(round(ratio * width), 1)
        self.narrow = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, hidden, 1))
        self.offset = nn.Conv2d(hidden, 18, 3, padding=1)
        self.weight = nn.Parameter(torch.empty(width, hidden, 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.gelu(functional.instance_norm(self.narrow(x.movedim(-1, 1))))
        return x * self.norm(self.deformed(y)).sigmoid()  # type: ignore[no-any-return]

    def deformed(self, y: torch.Tensor) -> torch.Tensor:
        """[B, h, H, W] -> [B, H, W, C]: nine bilinear reads a place, zero outside the map; offsets are nine of (down, right)."""
        height, across = y.shape[2:]
        moved = self.offset(y).unflatten(1, (9, 2)).permute(0, 1, 3, 4, 2)
        rows, columns = (torch.arange(n, device=y.device, dtype=y.dtype) for n in (height, across))
        home = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
        tap = torch.stack(torch.meshgrid(*[torch.arange(-1, 2).to(y)] * 2, indexing="ij"), -1).reshape(9, 1, 1, 2)
        size = torch.tensor([height, across], device=y.device, dtype=y.dtype)
        at = (2 * (home + tap + moved) + 1) / size - 1
        read = [functional.grid_sample(y, at[:, n].flip(-1), align_corners=False) for n in range(9)]
        return torch.einsum("bkdhw,cdk->bhwc", torch.stack(read, 1), self.weight.flatten(2))


class _Residual(nn.Module):
    """x + three convolutions, each after a batch norm and a ReLU; [B, C, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow, stages = max(width // 4, 1), []
        for a, b, side in ((width, narrow, 1), (narrow, narrow, 3), (narrow, width, 1)):
            stages += [nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, side, padding=side // 2, bias=False)]
        self.change = nn.Sequential(*stages)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.change(x)  # type: ignore[no-any-return]


class ResidualMask(nn.Module):
    """(1 + sigmoid(mask)) * trunk, the mask an hourglass: residual units between poolings, and back up with skips (residual attention
    network, Wang et al., CVPR 2017)."""

    def __init__(self, width: int, levels: int = 2) -> None:
        super().__init__()
        self.trunk = nn.Sequential(_Residual(width), _Residual(width))
        self.down, self.skips, self.up = (nn.ModuleList(_Residual(width) for _ in range(levels)) for _ in range(3))
        self.middle = _Residual(width)
        stages = [(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1, bias=False)) for _ in range(2)]
        self.gate = nn.Sequential(*(m for stage in stages for m in stage))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.movedim(-1, 1)
        y, kept = functional.max_pool2d(x, 3, 2, 1), []
        for unit, skip in zip(self.down, self.skips, strict=True):
            y = unit(y)
            kept.append(skip(y))
            y = functional.max_pool2d(y, 3, 2, 1)
        y = self.middle(y)
        for unit, skipped in zip(self.up, reversed(kept), strict=True):
            y = unit(_resized(y, skipped, aligned=True) + skipped)
        mask = self.gate(_resized(y, x, aligned=True)).sigmoid()
        return ((1 + mask) * self.trunk(x)).movedim(1, -1)  # type: ignore[no-any-return]


def _resized(x: torch.Tensor, like: torch.Tensor, aligned: bool) -> torch.Tensor:
    """[B, C, h, w] at the height and width of another map, bilinear."""
    return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=aligned)


class PyramidGate(nn.Module):
    """One map of the whole image, resized into the gate of the features of every scale (MEDUSA, Aboutalebi et al., 2021).

    image: [B, H, W, C], maps: [B, h, w, c] of each scale. A reading: no code is public, and the paper leaves open what joins the map with
    the features (here they stand side by side) and how wide a gate is (here one channel).
    """

    def __init__(self, width: int, widths: Sequence[int], hidden: int = 8) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(width, hidden, 3, stride=2, padding=1), nn.ReLU())
        self.decode = nn.Conv2d(hidden, 1, 3, padding=1)
        self.gates = nn.ModuleList(nn.Conv2d(c + 1, 1, 3, padding=1) for c in widths)

    def forward(self, image: torch.Tensor, *maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = image.movedim(-1, 1)
        shared = self.decode(_resized(self.encode(first), first, aligned=False))
        gated = []
        for x, gate in zip(maps, self.gates, strict=True):
            y = x.movedim(-1, 1)
            gated.append((y * gate(torch.cat([y, _resized(shared, y, aligned=False)], 1)).sigmoid()).movedim(1, -1))
        return tuple(gated)


class GatedUnits(nn.Module):
    """x + W3(norm GELU(W1 y) * norm W2 y), y = outer(x), then x + a network of outer(x): both norms are used twice, and no token meets
    another (Activator, Abdullah and Tuncer, 2024); x: [..., C]."""

    def __init__(self, width: int, hidden: int | None = None, factor: int = 4) -> None:
        super().__init__()
        hidden = hidden or width
        self.outer, self.inner = nn.LayerNorm(width), nn.LayerNorm(hidden)
        self.gate, self.value, self.out = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.after = nn.Sequential(nn.Linear(width, factor * width), nn.GELU(), nn.Linear(factor * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.outer(x)
        x = x + self.out(self.inner(functional.gelu(self.gate(y))) * self.inner(self.value(y)))
        return x + self.after(self.outer(x))  # type: ignore[no-any-return]


class PatchMixer(nn.Module):
    """Networks across channels, patches and features in turn, each with a norm and a gate t softmax(W t), before the network for channels
    and after it for the others (TSMixer, Ekambaram et al., KDD 2023); series: [B, channels, patches, C]."""

    def __init__(self, channels: int, patches: int, width: int, factor: int = 2) -> None:
        super().__init__()
        sizes = (channels, patches, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in sizes)
        self.mixers = nn.ModuleList(nn.Sequential(nn.Linear(n, factor * n), nn.GELU(), nn.Linear(factor * n, n)) for n in sizes)
        self.gates = nn.ModuleList(nn.Linear(n, n) for n in sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for n, (norm, mixer, gate) in enumerate(zip(self.norms, self.mixers, self.gates, strict=True)):
            y = norm(x).transpose(n + 1, 3)
            y = y * gate(y).softmax(-1) if n == 0 else y
            y = mixer(y)
            y = y if n == 0 else y * gate(y).softmax(-1)
            x = x + y.transpose(n + 1, 3)
        return x


class PervasiveAttention(nn.Module):
    """A dense network of convolutions over all pairs of target and source, no later target seen, then attention over the source, or the
    largest value (Elbayad et al., CoNLL 2018); target [B, T, C], shifted by one, source [B, S, c] -> [B, T, C + c + depth growth]."""

    def __init__(
        self,
        width: int,
        source_width: int,
        depth: int = 2,
        growth: int = 8,
        side: int = 3,
        largest: bool = False,
        *,
        backend: BackendName | None = None,
    ) -> None:
        super().__init__()
        self.side, self.largest = side, largest
        first = width + source_width
        self.narrow, self.look = nn.ModuleList(), nn.ModuleList()
        for n in range(depth):
            wide = first + n * growth
            before = (nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, 4 * growth, 1), nn.BatchNorm2d(4 * growth), nn.ReLU())
            self.narrow.append(nn.Sequential(*before))
            self.look.append(nn.Conv2d(4 * growth, growth, (side // 2 + 1, side), padding=(0, side // 2)))
        wide = first + depth * growth
        if not largest:
            # a bias would move all scores of a target alike, and leave its softmax as it is
            self.hidden, self.score = nn.Linear(wide, wide, bias=False), nn.Linear(wide, 1, bias=False)
            self.attention = compiled("context_pool", backend)

    def forward(self, target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        pairs = (len(target), target.shape[1], source.shape[1])
        both = target[:, :, None].expand(*pairs, -1), source[:, None].expand(*pairs, -1)
        x = torch.cat(both, -1).movedim(-1, 1)
        for narrow, look in zip(self.narrow, self.look, strict=True):
            earlier = functional.pad(narrow(x), (0, 0, self.side // 2, 0))
            x = torch.cat([x, look(earlier)], 1)
        x = x.movedim(1, -1)
        if self.largest:
            return x.amax(2)
        weight = self.score.weight @ self.hidden.weight * x.shape[-1] ** 0.5
        return single(self.attention(x.flatten(0, 1)[:, None], weight)).reshape(*pairs[:2], -1)
