"""A cache in pages: read where they lie, in any order, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from narrowed import only, three

import einfuse
from einfuse.runtime.backends import BackendName

B, H, HK, P, TABLE, D = 2, 4, 2, 8, 6, 32


def cache(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Keys and values in pages that lie in no order, the pages of each sequence, and how many tokens it has."""
    g = torch.Generator().manual_seed(0)
    k, v = (torch.randn(B * TABLE + 3, P, HK, D, generator=g, dtype=dtype) for _ in range(2))
    page = torch.randperm(B * TABLE + 3, generator=g)[: B * TABLE].view(B, TABLE).int()
    return k, v, page, torch.tensor([41, 19])


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, page: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Sequence by sequence, with its keys and values put together."""
    out = []
    for b, n in enumerate(length.tolist()):
        keys, values = (x[page[b].long()].flatten(0, 1)[:n].repeat_interleave(H // HK, 1).transpose(0, 1) for x in (k, v))
        s = q[b] @ keys.mT / math.sqrt(D)
        past = torch.arange(n) <= torch.arange(q.shape[2])[:, None] + n - q.shape[2]
        out.append(s.masked_fill(~past, -math.inf).softmax(-1) @ values)
    return torch.stack(out)


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("backend", ["torch", "cpu", pytest.param("triton", marks=pytest.mark.slow)])
def test_pages_are_read_where_they_lie(backend: BackendName, queries: int) -> None:
    attention = einfuse.compile("paged", backend=backend)
    q, (k, v, page, length) = torch.randn(B, H, queries, D), cache()
    torch.testing.assert_close(attention(q, k, v, page, length), dense(q, k, v, page, length), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradients_reach_the_pages() -> None:
    attention = einfuse.compile("paged", backend="cpu")
    k, v, page, length = cache()
    leaves = three(x.requires_grad_() for x in (torch.randn(B, H, 5, D), k, v))
    ours, theirs = (torch.autograd.grad(only(f(*leaves, page, length)).sin().sum(), leaves) for f in (attention, dense))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_rows_in_any_order_are_asked_for_before_they_are_read() -> None:
    text, full = (einfuse.compile(n).source("cpu").partition("einfuse_kernel(")[2] for n in ("paged", "full"))
    assert text.index(" ask(k_ + ") < text.index("load_along(k_") < text.index("k_tile_there = ")
    assert " ask(" not in full
