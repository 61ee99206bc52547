"""flash-attn's functions beside the formulas of its documentation, and those of specs."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from narrowed import three
from torch import Tensor

from einfuse.integrations import flash_attn
from einfuse.runtime import backends

H, HK, D, P = 4, 2, 8, 4

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (3, 1)},
    "all": {"causal": True, "window_size": (5, -1), "softcap": 2.0, "softmax_scale": 0.3, "alibi_slopes": torch.rand(H)},
}


@pytest.fixture(autouse=True)
def _torch_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference back end computes the same, and needs no compiler for a dozen kernels."""
    from einfuse.runtime import ops, prepared

    def choose(device: torch.device, wanted: Any = None) -> Any:
        return backends.BACKENDS[wanted or "torch"]

    for module in (backends, ops, prepared):
        monkeypatch.setattr(module, "choose", choose)


def formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    softmax_scale: float | None = None,
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    """One sequence, [N, heads, D], by the words of flash-attn's documentation."""
    k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = torch.einsum("ihd,jhd->hij", q.double(), k) * (softmax_scale or 1 / math.sqrt(q.shape[-1]))
    s = softcap * torch.tanh(s / softcap) if softcap else s
    i, j = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0], torch.arange(k.shape[0])
    if alibi_slopes is not None:
        s = s - alibi_slopes[:, None, None] * (i - j).abs()
    left, right = window_size[0], 0 if causal else window_size[1]
    seen = (j >= i - left if left >= 0 else j >= 0) & (j <= i + right if right >= 0 else j >= 0)
    p = s.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hij,jhd->ihd", p, v).to(q.dtype)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_queries_and_keys_of_a_batch(options: str) -> None:
    torch.manual_seed(0)
    for rows, keys in ((5, 9), (7, 4)):  # of more queries than keys the first ones may see none
        q, k, v = torch.randn(2, rows, H, D), torch.randn(2, keys, HK, D), torch.randn(2, keys, HK, D)
        out = flash_attn.flash_attn_func(q, k, v, **OPTIONS[options])
        close(out, torch.stack([formula(*x, **OPTIONS[options]) for x in zip(q, k, v, strict=True)]))


def test_gradients_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, n, h, D, requires_grad=True) for n, h in ((5, H), (9, HK), (9, HK)))
    ours = torch.autograd.grad(flash_attn.flash_attn_func(q, k, v, causal=True).sin().sum(), (q, k, v))
    theirs = torch.autograd.grad(formula(q[0], k[0], v[0], causal=True).sin().sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)


LENGTHS, ROWS = (11, 5, 7), (4, 1, 3)


def pages(keys: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens in pages that are in no order, and the pages of each sequence."""
    table = torch.tensor([[5, 1, 7], [0, 8, 2], [3, 6, 4]], dtype=torch.int32)
    held = torch.full((9, P, HK, D), 9.0)
    for b, x in enumerate(keys):
        for t in range(len(x)):
            held[table[b, t // P], t % P] = x[t]
    return held, table


@pytest.mark.parametrize("options", OPTIONS)
def test_sequences_in_a_row_and_in_pages(options: str) -> None:
    torch.manual_seed(0)
    q = [torch.randn(n, H, D) for n in ROWS]
    k, v = ([torch.randn(n, HK, D) for n in LENGTHS] for _ in range(2))
    at, ends = (torch.tensor([0, *x]).cumsum(0).int() for x in (ROWS, LENGTHS))
    truth = torch.cat([formula(*x, **OPTIONS[options]) for x in zip(q, k, v, strict=True)])
    run, rows = flash_attn.flash_attn_varlen_func, torch.cat(q)
    close(run(rows, torch.cat(k), torch.cat(v), at, ends, 4, 11, **OPTIONS[options]), truth)
    (held, table), (values, _) = pages(k), pages(v)
    close(run(rows, held, values, at, ends, 4, 11, block_table=table, **OPTIONS[options]), truth)


@pytest.mark.parametrize("paged", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_new_tokens_go_into_the_cache(options: str, paged: bool) -> None:
    torch.manual_seed(0)
    rows = 2
    q = torch.randn(3, rows, H, D)
    k, v = ([torch.randn(n, HK, D) for n in LENGTHS] for _ in range(2))
    old, new = ([x[:-rows] for x in y] for y in (k, v)), [torch.stack([x[-rows:] for x in y]) for y in (k, v)]
    more: dict[str, Any] = {}
    if paged:
        (held, table), (values, _) = (pages(x) for x in old)
        more["block_table"] = table
    else:
        held, values = (
            torch.stack([torch.nn.functional.pad(y, (0, 0, 0, 0, 0, 12 - len(y))) for y in x])[[2, 0, 1]] for x in old
        )
        more["cache_batch_idx"] = torch.tensor([1, 2, 0])
    length = torch.tensor(LENGTHS, dtype=torch.int32) - rows
    run = flash_attn.flash_attn_with_kvcache
    out = run(q, held, values, new[0], new[1], cache_seqlens=length, **more, **OPTIONS[options])
    truth = torch.stack([formula(*x, **OPTIONS[options]) for x in zip(q, k, v, strict=True)])
    close(out, truth)
    close(run(q, held, values, cache_seqlens=length + rows, **more, **OPTIONS[options]), truth)


def test_no_cache_outlives_its_calls() -> None:
    held = torch.zeros(2, 4, HK, D)
    seen = weakref.ref(held)
    flash_attn.flash_attn_with_kvcache(torch.randn(2, 1, H, D), held, torch.zeros_like(held))
    del held
    gc.collect()
    assert seen() is None


def test_a_spec_has_the_same_functions() -> None:
    torch.manual_seed(0)
    mine = flash_attn.of("sliding_window", causal=True)
    q, k, v = torch.randn(2, 9, H, D), torch.randn(2, 9, HK, D), torch.randn(2, 9, HK, D)
    truth = torch.stack([formula(*x, causal=True, window_size=(2, -1)) for x in zip(q, k, v, strict=True)])
    close(mine.flash_attn_func(q, k, v, causal=True, window=3), truth)
    at = torch.tensor([0, 9, 18])
    flat = three(x.flatten(0, 1) for x in (q, k, v))
    close(mine.flash_attn_varlen_func(*flat, at, at, causal=True, window=3), truth.flatten(0, 1))
    close(mine.flash_attn_with_kvcache(q[:, -2:], k, v, causal=True, window=3), truth[:, -2:])


def test_what_cannot_be_is_one_clear_error() -> None:
    q = torch.randn(1, 4, H, D)
    with pytest.raises(ValueError, match=r"flash_attn_func: dropout_p is not supported by einfuse's kernels; found 0\.1"):
        flash_attn.flash_attn_func(q, q, q, 0.1)
    with pytest.raises(
        ValueError, match="flash_attn_with_kvcache: rotary_cos is not supported by einfuse's kernels; found a tensor"
    ):
        flash_attn.flash_attn_with_kvcache(q, q, q, rotary_cos=q)
    with pytest.raises(TypeError, match="flash_attn has no argument bias"):
        flash_attn.flash_attn_func(q, q, q, bias=q)
    with pytest.raises(
        ValueError, match=r"alibi says itself what causal would; found causal=True \(flash_attn.of\(.., causal=..\)"
    ):
        flash_attn.of("alibi").flash_attn_func(q, q, q, causal=True, slope=torch.rand(H))
    with pytest.raises(TypeError, match="dropout is no option of flash-attn's functions"):
        flash_attn.of("alibi", dropout=0)
