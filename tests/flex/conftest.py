"""The reference of these tests: the user's functions at every point, by torch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Reference = Callable[..., tuple[Tensor, Tensor]]


def points(fn: Callable[..., Any], shape: tuple[int, ...], *first: Tensor) -> Tensor:
    """``fn`` at every point of ``[B, H, Q, K]``, as torch's own eager flex_attention calls it."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    score = (0,) * len(first)
    for dims in ((None, None, None, 0), (None, None, 0, None), (None, 0, None, None), (0, None, None, None)):
        fn = torch.vmap(fn, in_dims=score + dims)
    with TransformGetItemToIndex():
        out: Tensor = fn(*first, *(torch.arange(n) for n in shape))
    return out


@pytest.fixture
def dense() -> Reference:
    """Attention by the whole matrix: output and log-sum-exp; rows without a key give 0 and -inf."""

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        score_mod: Callable[..., Any] | None = None,
        mask_mod: Callable[..., Any] | None = None,
        scale: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        group = q.shape[1] // k.shape[1]
        k, v = (x.expand(q.shape[0], *x.shape[1:]).repeat_interleave(group, 1) for x in (k, v))
        s = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        shape = tuple(s.shape)
        if score_mod is not None:
            s = points(score_mod, shape, s)
        if mask_mod is not None:
            s = torch.where(points(mask_mod, shape), s, -torch.inf)
        dead = (s == -torch.inf).all(-1, keepdim=True)
        p = torch.softmax(s.masked_fill(dead, 0.0), -1).masked_fill(dead, 0.0)
        lse = torch.logsumexp(s.masked_fill(dead, 0.0), -1).masked_fill(dead[..., 0], -torch.inf)
        return p @ v, lse

    return run


@pytest.fixture
def qkv() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Makes query, key and value that want gradients."""

    def make(
        batch: int = 2, heads: int = 2, rows: int = 48, columns: int | None = None, width: int = 8, shared: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(rows)
        columns = rows if columns is None else columns
        q = torch.randn(batch, heads, rows, width)
        k, v = (torch.randn(batch, shared or heads, columns, width) for _ in range(2))
        return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()

    return make
