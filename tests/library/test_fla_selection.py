"""Native sparse attention beside the plain formulas of flash-linear-attention: the same values where the two definitions agree.

They agree where summaries are the blocks themselves (its l = d = l'): the first block, the own one and the one before are always among those
chosen, summaries that end in the past give the scores, and a query that no summary ends before has nothing of them. Where they do not:
it averages over the heads of a group what we add up, which chooses alike; and a real weight of 1 ties with a forced block there, where ours
stands behind it.
"""

from __future__ import annotations

import warnings

import pytest
import torch
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
    sizes = {"blocks": -(-N // BLOCK), "stride": BLOCK, "span": BLOCK, "block": BLOCK}
    found, _ = einfuse.compile("block_summaries", backend="torch", **sizes)(q, means(k), means(v))
    torch.testing.assert_close(theirs(found), truth, rtol=1e-5, atol=1e-5)
