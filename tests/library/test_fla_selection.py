"""Native sparse attention and MoBA beside the formulas of flash-linear-attention: the same values where the two definitions agree.

Those of native sparse attention do where summaries are the blocks themselves (its l = d = l'): the first block, the own one and the one before
are always chosen, summaries that end in the past give the scores, and a query that no summary ends before has nothing of them. Where they do
not: it averages over the heads of a group what we add up, which chooses alike; and a real weight of 1 ties with a forced block there, where
ours stands behind it. Those of MoBA do but for one block: that is the own one here, and all of causal attention there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from narrowed import only
from torch import Tensor

import einfuse

N, BLOCK, BEST, GROUPS, HEADS, WIDTH = 45, 8, 4, 2, 4, 8


@pytest.fixture(scope="module")
def naive():  # type: ignore[no-untyped-def]  # fla has no types
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that flash-attn is not there
        return pytest.importorskip("fla.ops.nsa.naive")


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q = torch.randn(2, GROUPS, HEADS, N, WIDTH)
    k, v = torch.randn(2, 2, GROUPS, N, WIDTH).unbind()
    return q, k, v


def means(x: Tensor) -> Tensor:
    return torch.stack([part.mean(-2) for part in x.split(BLOCK, -2)], -2)


def theirs(x: Tensor) -> Tensor:
    """[B, groups, N, D] or [B, groups, heads, N, D] as [B, N, groups * heads, D]."""
    return (x.flatten(1, 2) if x.ndim == 5 else x).transpose(1, 2).contiguous()


def sequences(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, keys: Tensor, causal: bool, softmax_scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of every sequence on its own, [N, H, D], and the log-sum-exp of its rows, [H, N]: what flash-attn gives, by the formula."""
    outs, sums = [], []
    for (a, b), (c, d) in zip(pairwise(rows.tolist()), pairwise(keys.tolist()), strict=True):
        s = torch.einsum("ihd,jhd->hij", q[a:b], k[c:d]) * (softmax_scale or q.shape[-1] ** -0.5)
        seen = torch.ones(s.shape[1:], dtype=torch.bool)
        s = s.masked_fill(~(seen.tril() if causal else seen), -torch.inf)
        outs.append(torch.einsum("hij,jhd->ihd", s.softmax(-1), v[c:d]))
        sums.append(s.logsumexp(-1))
    return torch.cat(outs), torch.cat(sums, -1)


@pytest.fixture
def parallel_moba(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Tensor]]:
    """fla's MoBA: its choice, its gathered queries and its merge, with the formula in place of flash-attn, which takes a GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of flash-attn, and of torch's index_reduce
        moba = pytest.importorskip("fla.ops.moba.parallel")

        def forward(
            cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int, dropout_p: float, **x: Any
        ) -> tuple[Tensor, Tensor, None, None]:
            return (*sequences(**x, rows=cu_seqlens_q, keys=cu_seqlens_k), None, None)

        def whole(
            q: Tensor, k: Tensor, v: Tensor, rows: Tensor, keys: Tensor, most: int, most_keys: int, causal: bool
        ) -> Tensor:
            return sequences(q, k, v, rows, keys, causal)[0]

        monkeypatch.setattr(moba, "_flash_attn_varlen_forward", forward)
        monkeypatch.setattr(moba, "flash_attn_varlen_func", whole)
        yield lambda q, k, v, best: moba.parallel_moba(q, k, v, torch.tensor([0, q.shape[1]]), q.shape[1], BLOCK, best)


def test_the_selected_branch(naive) -> None:  # type: ignore[no-untyped-def]
    q, k, v = drawn()
    chosen = naive.naive_nsa_topk(theirs(q), theirs(means(k)), BEST, BLOCK, WIDTH**-0.5)
    truth = naive.naive_nsa_selection(theirs(q), theirs(k), theirs(v), chosen, BLOCK)
    attention = einfuse.compile("nsa_selected", best=BEST, stride=BLOCK, span=BLOCK, block=BLOCK, near=2, backend="torch")
    whole = N // BLOCK * BLOCK  # a short block has no summary in the past
    found = attention(q, k, v, means(k)[:, :, : whole // BLOCK])
    assert isinstance(found, Tensor)
    torch.testing.assert_close(theirs(found), truth, rtol=1e-5, atol=1e-5)
    other = naive.naive_nsa_selection(theirs(q), theirs(k), theirs(v), chosen.clamp_max(3), BLOCK)
    assert not torch.allclose(truth, other), "the choice matters"


def test_the_compressed_branch(naive) -> None:  # type: ignore[no-untyped-def]
    q, k, v = drawn()
    truth, _ = naive.naive_nsa_compression(theirs(q), theirs(means(k)), theirs(means(v)), BLOCK, WIDTH**-0.5)
    sizes: dict[str, Any] = {"blocks": -(-N // BLOCK), "stride": BLOCK, "span": BLOCK, "block": BLOCK}
    found, _ = einfuse.compile("block_summaries", backend="torch", **sizes)(q, means(k), means(v))
    torch.testing.assert_close(theirs(found), truth, rtol=1e-5, atol=1e-5)


def test_moba(parallel_moba: Callable[..., Tensor]) -> None:
    q, k, v = (x[:1] for x in drawn())
    q = q[:, :, 0]
    for best in (2, BEST, 9):
        truth = parallel_moba(theirs(q), theirs(k), theirs(v), best)
        found = einfuse.compile("moba", best=best, block=BLOCK, backend="torch")(q, k, v)
        assert isinstance(found, Tensor)
        torch.testing.assert_close(theirs(found), truth, rtol=1e-5, atol=1e-5)


def test_one_block_of_moba_is_the_own_one(parallel_moba: Callable[..., Tensor]) -> None:
    """Trap 7 of test_selection_traps.py: with one block theirs is full attention."""
    q, k, v = (x[:1] for x in drawn())
    q = q[:, :, 0]
    own, past = torch.arange(N)[:, None], torch.arange(N)
    for seen, found in (
        (own >= past, parallel_moba(theirs(q), theirs(k), theirs(v), 1)),
        (
            (own >= past) & (own // BLOCK == past // BLOCK),
            theirs(only(einfuse.compile("moba", best=1, block=BLOCK, backend="torch")(q, k, v))),
        ),
    ):
        s = (q @ k.mT * WIDTH**-0.5).masked_fill(~seen, -torch.inf)
        torch.testing.assert_close(found, theirs(s.softmax(-1) @ v), rtol=1e-5, atol=1e-5)
