"""Laws that hold of attention whatever the kernel: they need no oracle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import einfuse
from einfuse.runtime.backends import BackendName

pytestmark = pytest.mark.slow

B, H, N, D = 2, 4, 45, 16


def qkv(heads: int = H, keys: int = N, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [
        torch.randn(B, H, N, D, dtype=dtype),
        torch.randn(B, heads, keys, D, dtype=dtype),
        torch.randn(B, heads, keys, D, dtype=dtype),
    ]


def run(name: str, *args: torch.Tensor, **kwargs: torch.Tensor | int | float) -> torch.Tensor:
    out = einfuse.compile(name)(*args, **kwargs)
    assert isinstance(out, torch.Tensor)
    return out


@pytest.mark.parametrize("name", ["full", "tanh", "sigmoid"])
def test_keys_may_be_permuted(name: str) -> None:
    q, k, v = qkv()
    if name == "sigmoid":  # causal: permute only what the last query sees, and look at it alone
        order = torch.randperm(N)
        a, b = run(name, q, k, v), run(name, q, k[:, :, order], v[:, :, order])
        torch.testing.assert_close(a[:, :, -1], b[:, :, -1])
        return
    order = torch.randperm(N)
    torch.testing.assert_close(run(name, q, k, v), run(name, q, k[:, :, order], v[:, :, order]))


@pytest.mark.parametrize("name", ["full", "causal", "softcap", "sigmoid"])
def test_grouped_keys_are_repeated_keys(name: str) -> None:
    q, k, v = qkv(heads=2)
    repeated = [x.repeat_interleave(2, 1) for x in (k, v)]
    torch.testing.assert_close(run(name, q, k, v), run(name, q, *repeated))


def test_full_and_causal_are_torchs() -> None:
    q, k, v = qkv()
    torch.testing.assert_close(run("full", q, k, v), F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(run("causal", q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_softmax_ignores_a_shift_of_the_row() -> None:
    q, k, v = qkv()
    bias = torch.randn(B, H, N, N)
    shift = 30 * torch.randn(B, H, N, 1)
    torch.testing.assert_close(run("bias", q, k, v, bias=bias), run("bias", q, k, v, bias=bias + shift), rtol=1e-4, atol=1e-4)


def test_packed_documents_are_separate_calls() -> None:
    q, k, v = qkv()
    lengths = [7, 20, 18]
    doc = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(B, N)
    packed = run("document", q, k, v, doc=doc)
    parts = [run("causal", *(x[:, :, s : s + n] for x in (q, k, v))) for s, n in zip((0, 7, 27), lengths, strict=True)]
    torch.testing.assert_close(packed, torch.cat(parts, 2))


def test_a_decoding_step_is_a_row_of_the_prefill() -> None:
    q, k, v = qkv()
    whole = run("gqa", q, k, v)
    for at in (0, 17, N - 1):
        step = run("gqa", q[:, :, at : at + 1], k[:, :, : at + 1], v[:, :, : at + 1])
        torch.testing.assert_close(step, whole[:, :, at : at + 1])


def test_a_window_as_wide_as_the_sequence_is_causal() -> None:
    q, k, v = qkv()
    torch.testing.assert_close(run("sliding_window", q, k, v, window=N), run("causal", q, k, v))
    torch.testing.assert_close(run("streaming", q, k, v, window=N, sinks=0), run("causal", q, k, v))
    torch.testing.assert_close(run("chunked", q, k, v, width=N), run("causal", q, k, v))
    torch.testing.assert_close(run("local", q, k, v, reach=N), run("full", q, k, v))


def test_padding_with_nothing_padded_is_full_and_cross_without_a_mask_too() -> None:
    q, k, v = qkv()
    full = run("full", q, k, v)
    torch.testing.assert_close(run("padding", q, k, v, pad=torch.ones(B, N, dtype=torch.bool)), full)
    torch.testing.assert_close(run("cross", q, k, v), full)
    pad = torch.rand(B, N) > 0.5
    torch.testing.assert_close(run("cross", q, k, v, pad=pad), run("padding", q, k, v, pad=pad))


def test_rows_without_keys_give_zero_and_no_nan() -> None:
    q, k, v = (x.requires_grad_() for x in qkv())
    out = run("padding", q, k, v, pad=torch.zeros(B, N, dtype=torch.bool))
    assert not out.any()
    for g in torch.autograd.grad(out.sum(), [q, k, v]):
        assert not g.any()


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_weight_that_is_one_whatever_the_score_has_no_gradient(backend: BackendName) -> None:
    q, k, v = (x.requires_grad_() for x in qkv())
    out = einfuse.compile("causal").with_backend(backend)(q, k, v)
    assert isinstance(out, torch.Tensor)
    (dq,) = torch.autograd.grad(out, q, torch.randn_like(out))
    assert dq[:, :, 0].abs().max() == 0  # the row sums that cancel are added up in one order
    assert dq[:, :, 1:].abs().amin(-1).max() > 0


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_score_minus_the_least_one_is_exactly_zero(backend: BackendName) -> None:
    """One key: its weight is tanh 0, and whatever rounds s on the way to the minimum must round it on the way to the weight."""
    text = """attention above_least over b, h {
      rank i: query; rank j: key; rank d, e: feature
      in q[b, h, i, d]
      in k[b, h, j, d]
      in v[b, h, j, e]
      s = sum[d](q * k) / sqrt(3 * D) where j <= i
      o[i, e] = sum[j](tanh(1000 * (s - min[j](s))) * v)
      out o
    }"""
    q, k, v = (x.requires_grad_() for x in qkv())
    out = einfuse.compile(text, form="quadratic").with_backend(backend)(q, k, v)
    assert isinstance(out, torch.Tensor)
    assert not out[:, :, 0].any()
    only_first = torch.zeros_like(out)
    only_first[:, :, 0] = 1
    assert not any(g.any() for g in torch.autograd.grad(out, [q, k, v], only_first))


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_large_scores_stay_finite(scale: float) -> None:
    q, k, v = qkv()
    q = (q * scale).requires_grad_()
    out = run("causal", q, k, v)
    assert torch.isfinite(out).all()
    assert torch.isfinite(torch.autograd.grad(out.sum(), q)[0]).all()
