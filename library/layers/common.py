"""What the layers share: projections with heads, and the attention of a spec between them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

import einfuse

BackendName = Literal["cpu", "triton", "torch"]


def compiled(spec: str, backend: BackendName | None = None, **params: Any) -> einfuse.Attention:
    """A spec of the library with its parameters set."""
    return einfuse.compile(spec, backend=backend, **params)


@functools.lru_cache(maxsize=64)
def sized(spec: str, backend: BackendName | None = None, **params: Any) -> einfuse.Attention:
    """`compiled` for parameters that follow the input, as sizes of ranks do: made once for each."""
    return compiled(spec, backend, **params)


def single(out: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The output of a spec that has one."""
    assert isinstance(out, torch.Tensor), "the spec has one output"
    return out


def split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[..., N, H * D] -> [..., H, N, D], a view."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(-3, -2)


def merge(x: torch.Tensor) -> torch.Tensor:
    """[..., H, N, D] -> [..., N, H * D]."""
    return x.transpose(-3, -2).flatten(-2)


def table(*shape: int, deviation: float = 0.02) -> nn.Parameter:
    """A learned table, truncated normal as vision transformers begin."""
    made = nn.Parameter(torch.empty(shape))
    nn.init.trunc_normal_(made, std=deviation)
    return made


def divided(width: int, heads: int) -> int:
    """The width of one head. Raises ValueError where the heads do not divide the width."""
    if heads < 1 or width % heads:
        raise ValueError(f"the width must be a multiple of the heads, found {width} and {heads}")
    return width // heads


class Attending(nn.Module):
    """Queries, keys and values of the same tokens by one linear map each, a spec, an output map; x: [..., N, C] -> [..., N, C].

    A subclass names its spec and gives the spec's further inputs by `inputs`. ``kv_heads`` shares keys and values among groups of heads.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        spec: str,
        *,
        kv_heads: int | None = None,
        bias: bool = True,
        backend: BackendName | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads or heads, divided(width, heads)
        divided(heads, self.kv_heads)
        self.query = nn.Linear(width, width, bias)
        self.key = nn.Linear(width, self.kv_heads * self.head_width, bias)
        self.value = nn.Linear(width, self.kv_heads * self.head_width, bias)
        self.out = nn.Linear(width, width, bias)
        self.attention = compiled(spec, backend, **(params or {}))

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v with the heads in front of the tokens."""
        return split(self.query(x), self.heads), split(self.key(x), self.kv_heads), split(self.value(x), self.kv_heads)

    def inputs(self, x: torch.Tensor) -> dict[str, Any]:
        """What the spec takes besides q, k and v."""
        return {}

    def forward(self, x: torch.Tensor, /, **given: Any) -> torch.Tensor:
        attended = single(self.attention(*self.project(x), **self.inputs(x), **given))
        return self.out(merge(attended))  # type: ignore[no-any-return]
