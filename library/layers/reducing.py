"""Fewer, shared and rearranged tokens: merging, pooling, slices, hierarchies; x: [B, N, C] unless said otherwise."""

from __future__ import annotations

import torch
from torch import nn

from einfuse.library.layers.common import Attending, BackendName, compiled, merge, single, table
from einfuse.library.layers.references import CrossAttention


class MergingAttention(Attending):
    """Attention whose keys stand for several tokens, after which the most alike tokens are merged (ToMe, Bolya et al., ICLR 2023; MCTF, Lee
    et al.,
    CVPR 2024, whose score of a pair is the cosine's power, times what both lack of information, times what both lack of size).

    x: [B, N, C], size: [B, N] -> (tokens [B, N - merge, C], their sizes). ``criteria``: the exponents of likeness, information and size.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        merge: int,
        criteria: tuple[float, float, float] = (1.0, 0.0, 0.0),
        *,
        backend: BackendName | None = None,
    ):
        super().__init__(width, heads, "sized_keys", backend=backend)
        self.merge, self.criteria = merge, criteria

    def forward(self, x: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        q, k, v = self.project(x)
        attended, received = self.attention(q, k, v, log_size=size.log())
        x = x + self.out(merge(attended))
        lack = 1 / (received.mean(1) * received.shape[-1]).clamp(min=1e-6)
        return self.merged(x, k.mean(1), size, lack / lack.amax(-1, keepdim=True))

    def merged(
        self, x: torch.Tensor, metric: torch.Tensor, size: torch.Tensor, lack: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Every second token looks for its best partner among the others; the best ``merge`` pairs become one, weighed by size."""
        unit = metric / metric.norm(dim=-1, keepdim=True)
        alike, of_lack, of_size = self.criteria
        small = size.amin(-1, keepdim=True) / size
        score = ((1 + unit[:, ::2] @ unit[:, 1::2].mT) / 2) ** alike
        for weight, power in ((lack, of_lack), (small, of_size)):
            score = score * (weight[:, ::2, None] * weight[:, None, 1::2]) ** power
        best, partner = score.max(-1)
        order = best.argsort(-1, descending=True)
        gone, stay = order[:, : self.merge], order[:, self.merge :].sort(-1).values
        weighted = torch.cat([x * size[..., None], size[..., None]], -1)
        even, odd = weighted[:, ::2], weighted[:, 1::2]
        wide = weighted.shape[-1]
        target = partner.gather(1, gone)[..., None].expand(-1, -1, wide)
        odd = odd.scatter_add(1, target, even.gather(1, gone[..., None].expand(-1, -1, wide)))
        out = torch.cat([even.gather(1, stay[..., None].expand(-1, -1, wide)), odd], 1)
        return out[..., :-1] / out[..., -1:], out[..., -1]


class TokenPooling(Attending):
    """Attention, then as many tokens as asked: the centres of K-means clusters, every token weighed by the attention it received (Marin et al.,
    Token Pooling, WACV 2023). -> [B, keep, C]."""

    def __init__(self, width: int, heads: int, keep: int, steps: int = 5, *, backend: BackendName | None = None):
        super().__init__(width, heads, "sized_keys", backend=backend)
        self.keep, self.steps = keep, steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # fewer tokens
        attended, received = self.attention(*self.project(x), log_size=x.new_zeros(x.shape[:2]))
        x = x + self.out(merge(attended))
        weight = received.mean(1).detach()
        centres = x.detach().gather(1, weight.topk(self.keep, 1).indices[..., None].expand(-1, -1, x.shape[-1]))
        for _ in range(self.steps):
            near = torch.nn.functional.one_hot(torch.cdist(x.detach(), centres).argmin(-1), self.keep).to(x) * weight[..., None]
            share = near / near.sum(1, keepdim=True).clamp(min=1e-9)
            centres = torch.where(near.sum(1)[..., None] > 0, share.mT @ x.detach(), centres)
        return torch.where(near.sum(1)[..., None] > 0, share.mT @ x, centres)


class SummaryTokenPooling(nn.Module):
    """A learned token in front of the others, and what becomes of it (Selfie, Trinh et al., 2019); x: [B, N, C] -> [B, C]."""

    def __init__(self, width: int, heads: int, depth: int = 1, *, backend: BackendName | None = None):
        super().__init__()
        self.token = table(1, 1, width)
        self.layers = nn.ModuleList(Attending(width, heads, "full", backend=backend) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for layer in self.layers:
            x = x + layer(x)
        return x[:, 0]


class SlicedRecursiveAttention(Attending):
    """Attention in contiguous slices, applied again with the same weights to tokens in another order, each time undone (SReT, Shen et al.,
    ECCV 2022).

    Branches are scaled by learned numbers. ``orders``: the order of the tokens for each pass after the first, drawn where not given.
    """

    def __init__(self, width: int, heads: int, slices: int = 4, passes: int = 2, *, backend: BackendName | None = None):
        super().__init__(width, heads, "full", backend=backend)
        self.slices = slices
        self.scale = nn.Parameter(torch.ones(passes, 2))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, orders: tuple[torch.Tensor, ...] | None = None) -> torch.Tensor:  # type: ignore[override]
        length = x.shape[1]
        if length % self.slices:
            raise ValueError(f"the slices must divide the tokens, found {length} and {self.slices}")
        for n, (keep, add) in enumerate(self.scale):
            order = None if n == 0 else (orders[n - 1] if orders else torch.randperm(length, device=x.device))
            tokens = x if order is None else x[:, order]
            groups = self.norm(tokens).reshape(-1, length // self.slices, x.shape[-1])
            tokens = keep * tokens + add * super().forward(groups).reshape(x.shape)
            x = tokens if order is None else tokens[:, order.argsort()]
        return x


class RollingTokenAttention(Attending):
    """The first tokens of every frame come from the frame before, cyclically, then the frames attend each (All in One, Wang et al., CVPR 2023).

    x: [B, T, N, C].
    """

    def __init__(self, width: int, heads: int, rolled: int, *, backend: BackendName | None = None):
        super().__init__(width, heads, "full", backend=backend)
        self.rolled = rolled

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # no further inputs
        mixed = torch.cat([x[:, :, : self.rolled].roll(1, 1), x[:, :, self.rolled :]], 2)
        return super().forward(mixed.flatten(0, 1)).reshape(x.shape)


class InterleavedAttention(nn.Module):
    """Groups attend inside, their latents read them, compute across all groups, and are read back (FIT, Chen & Li, 2023), attention parts only.

    x: [B, T, N, C], latents: [B, T, M, C] -> the same two. Causal: inside groups, among the latents of earlier groups and their own, and
    the tokens
    of a group read the latents of the group before, the first group's none.
    """

    def __init__(self, width: int, heads: int, causal: bool = False, *, backend: BackendName | None = None):
        super().__init__()
        self.causal = causal
        self.local = Attending(width, heads, "causal" if causal else "full", backend=backend)
        self.across = Attending(width, heads, "graph" if causal else "full", backend=backend)
        self.read, self.write = (CrossAttention(width, heads, backend=backend) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))

    def forward(self, x: torch.Tensor, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        groups, held = x.flatten(0, 1), latents.flatten(0, 1)
        groups = groups + self.local(self.norms[0](groups))
        held = held + self.read(self.norms[1](held), groups)
        every = held.reshape(len(x), -1, x.shape[-1])
        every = every + self.across(self.norms[2](every), **self._seen(latents))
        read = every.reshape(latents.shape)
        if self.causal:
            read = torch.cat([torch.zeros_like(read[:, :1]), read[:, :-1]], 1)
        back = self.write(self.norms[3](groups), read.flatten(0, 1)).reshape(x.shape)
        if self.causal:
            back = torch.cat([torch.zeros_like(back[:, :1]), back[:, 1:]], 1)
        return groups.reshape(x.shape) + back, every.reshape(latents.shape)

    def _seen(self, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        if not self.causal:
            return {}
        group = torch.arange(latents.shape[1], device=latents.device).repeat_interleave(latents.shape[2])
        return {"adjacent": (group[None] <= group[:, None]).expand(len(latents), -1, -1)}


class DiverseAttention(Attending):
    """Attention on tokens averaged at several dilations, and a loss where rows attend alike (Guo et al., Robustifying Token Attention, ICCV
    2023).

    x: [B, H, W, C] -> (the same, the loss, a number).
    """

    def __init__(self, width: int, heads: int, dilations: int = 4, *, backend: BackendName | None = None):
        super().__init__(width, heads, "diversity", backend=backend)
        self.dilations = dilations
        self.mix = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, dilations + 1, 1))

    def averaged(self, x: torch.Tensor) -> torch.Tensor:
        """Every token as a mixture of itself and of means of 3 x 3 tokens, 1, 2, ... apart."""
        image = x.movedim(-1, 1)
        shares = self.mix(image).softmax(1)
        kernel = torch.ones(1, 1, 3, 3, device=x.device, dtype=x.dtype) / 9
        planes = image.flatten(0, 1)[:, None]
        means = [torch.nn.functional.conv2d(planes, kernel, padding=n, dilation=n) for n in range(1, self.dilations + 1)]
        every = torch.stack([image, *(m[:, 0].reshape(image.shape) for m in means)], 1)
        return (shares[:, :, None] * every).sum(1).movedim(1, -1)  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]  # the loss beside the result
        attended, alike = self.attention(*self.project(self.averaged(x).flatten(1, 2)))
        return self.out(merge(attended)).reshape(x.shape), alike.mean()


class UniformMixing(nn.Module):
    """Half of every token, half of the mean of all (Hyeon-Woo et al., Scratching Visual Transformer's Back, ICCV 2023); no parameters."""

    def __init__(self, *, backend: BackendName | None = None):
        super().__init__()
        self.attention = compiled("uniform", backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return single(self.attention(x))
