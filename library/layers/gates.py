"""Gates of convolutional networks that are called attention: channels and places weighed by what the whole map holds; x: [B, H, W, C]."""

from __future__ import annotations

import torch
from torch import nn

from einfuse.library.layers.common import BackendName, compiled, single
from einfuse.library.layers.grids import convolve


class SqueezeGate(nn.Module):
    """Channels gated by a network of their means (Squeeze-and-Excitation, Hu et al., CVPR 2018), or of means and largest values, each
    through the
    same network (CBAM's channel part, Woo et al., ECCV 2018)."""

    def __init__(self, width: int, reduction: int = 16, largest: bool = False, *, backend: BackendName | None = None):
        super().__init__()
        hidden = max(width // reduction, 1)
        self.down, self.up = nn.Parameter(torch.empty(hidden, width)), nn.Parameter(torch.empty(hidden, width))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        nn.init.uniform_(self.up, -(hidden**-0.5), hidden**-0.5)
        self.attention = compiled("channel_gate", backend, largest=largest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return single(self.attention(x.flatten(1, 2), self.down, self.up)).reshape(x.shape)


class _PlaceGate(nn.Module):
    """Every place gated by a 7 x 7 convolution of the largest and the mean over the last axis."""

    def __init__(self, norm: bool):
        super().__init__()
        self.look = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        summary = torch.stack([x.amax(-1), x.mean(-1)], 1)
        return x * self.norm(self.look(summary)).sigmoid().movedim(1, -1)  # type: ignore[no-any-return]


class ConvolutionalBlockAttention(nn.Module):
    """Channels first, then places (CBAM, Woo et al., ECCV 2018); ``balanced``: both gates of the input itself, the channels' from the mean
    alone (BAM, Wang et al., 2021)."""

    def __init__(self, width: int, reduction: int = 16, balanced: bool = False, *, backend: BackendName | None = None):
        super().__init__()
        self.balanced = balanced
        self.channels = SqueezeGate(width, reduction, largest=not balanced, backend=backend)
        self.places = nn.Conv2d(1, 1, 7, padding=3) if balanced else _PlaceGate(norm=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.balanced:
            return self.channels(x) * convolve(self.places, x.amax(-1, keepdim=True)).sigmoid()  # type: ignore[no-any-return]
        return self.places(self.channels(x))  # type: ignore[no-any-return]


class TripletAttention(nn.Module):
    """Place gates over height and width, channels and width, height and channels, averaged (Misra et al., WACV 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(_PlaceGate(norm=True) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = [gate(x.transpose(axis, 3)).transpose(axis, 3) for gate, axis in zip(self.gates, (3, 1, 2), strict=True)]
        return torch.stack(turned).mean(0)


class PixelAttention(nn.Module):
    """Every channel of every place gated by the place alone (PAN, Zhao et al., ECCVW 2020)."""

    def __init__(self, width: int, *, backend: BackendName | None = None):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(width, width)), nn.Parameter(torch.zeros(width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.attention = compiled("place_gate", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return single(self.attention(x.flatten(1, 2), self.weight, self.bias)).reshape(x.shape)


class SplitAttention(nn.Module):
    """A softmax over the splits of a feature map for every channel (ResNeSt, Zhang et al., CVPRW 2022); x: [B, S, H, W, C] -> [B, H, W, C]."""

    def __init__(self, width: int, splits: int = 2, reduction: int = 4, *, backend: BackendName | None = None):
        super().__init__()
        hidden = max(width // reduction, 1)
        self.down = nn.Parameter(torch.empty(hidden, width))
        self.up = nn.Parameter(torch.empty(splits, hidden, width))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        nn.init.uniform_(self.up, -(hidden**-0.5), hidden**-0.5)
        self.attention = compiled("split_gate", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = single(self.attention(x.flatten(2, 3), self.down, self.up))
        return mixed.reshape(x.shape[0], *x.shape[2:])


class SubspaceAttention(nn.Module):
    """A softmax over all places for every group of channels (ULSAM, Saini et al., WACV 2020)."""

    def __init__(self, width: int, groups: int = 4, *, backend: BackendName | None = None):
        super().__init__()
        if width % groups:
            raise ValueError(f"the groups must divide the channels, found {width} and {groups}")
        self.groups = groups
        each = width // groups
        self.look = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(each, each, 1, groups=each, bias=False), nn.BatchNorm2d(each), nn.ReLU(), nn.MaxPool2d(3, 1, 1)),
                *(nn.Conv2d(each, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU()),
            )
            for _ in range(groups)
        )
        self.attention = compiled("map_gate", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.chunk(self.groups, -1)
        scores = torch.stack([convolve(m, p).flatten(1) for m, p in zip(self.look, parts, strict=True)], 1)
        groups = x.flatten(1, 2).unflatten(-1, (self.groups, -1)).transpose(1, 2)
        return single(self.attention(groups, scores)).transpose(1, 2).reshape(x.shape)


class GlobalContext(nn.Module):
    """Several contexts of a whole map, through a narrow network, added everywhere (MASTER, Lu et al., 2021; after GCNet, Cao et al., 2019)."""

    def __init__(self, width: int, aspects: int = 8, reduction: int = 16, *, backend: BackendName | None = None):
        super().__init__()
        if width % aspects:
            raise ValueError(f"the aspects must divide the channels, found {width} and {aspects}")
        self.aspects, hidden = aspects, max(width // reduction, 1)
        self.score = nn.Parameter(torch.randn(aspects, width // aspects) * 0.02)
        self.change = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.attention = compiled("context_pool", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        aspects = x.flatten(1, 2).unflatten(-1, (self.aspects, -1)).transpose(1, 2)
        context = single(self.attention(aspects, self.score)).flatten(1)
        return x + self.change(context)[:, None, None]  # type: ignore[no-any-return]


class BranchMix(nn.Module):
    """A gated branch and a plain one, mixed by a softmax of what the map holds (A2N, Chen et al., 2021)."""

    def __init__(self, width: int, reduction: int = 4, *, backend: BackendName | None = None):
        super().__init__()
        hidden = max(width // reduction, 1)
        self.gate, self.plain = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        self.attention = compiled("scale_gate", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = torch.stack([x * convolve(self.gate, x).sigmoid(), convolve(self.plain, x)], 1).flatten(2, 3)
        scores = self.mix(x.mean((1, 2)))[..., None].expand(-1, -1, branches.shape[2])
        return single(self.attention(branches, scores)).reshape(x.shape)


class ScaleAttention(nn.Module):
    """Maps of several scales of one size, gated each and weighed by a softmax over the scales at every place (Medusa, Spencer et al., WACV
    2022).

    x: [B, S, H, W, C] -> [B, H, W, C].
    """

    def __init__(self, width: int, scales: int, *, backend: BackendName | None = None):
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(scales))
        self.scores = nn.ModuleList(nn.Conv2d(width, 1, 3, padding=1) for _ in range(scales))
        self.attention = compiled("scale_gate", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = x.unbind(1)
        gated = torch.stack([m * convolve(g, m).sigmoid() for g, m in zip(self.gates, maps, strict=True)], 1)
        scores = torch.stack([convolve(s, m).flatten(1) for s, m in zip(self.scores, maps, strict=True)], 1)
        return single(self.attention(gated.flatten(2, 3), scores)).reshape(maps[0].shape)
