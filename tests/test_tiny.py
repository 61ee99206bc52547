"""The whole compiler in two seconds: if this fails, look here first."""

from __future__ import annotations

import pytest
import torch

import einfuse

SPEC = """
attention tiny over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) / sqrt(D) where j <= i
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""


def test_text_to_cascade_to_one_pass() -> None:
    attention = einfuse.compile(SPEC)
    (over_keys,) = attention.passes()
    assert (over_keys.rank, over_keys.before, over_keys.after) == ("j", 3, 1)
    assert "fold j where j <= i" in attention.ir(after="online_fuse")


def test_the_oracle_agrees_with_torch() -> None:
    q, k, v = torch.randn(3, 1, 2, 7, 4, dtype=torch.float64)
    found = einfuse.compile(SPEC).reference(q, k, v)
    torch.testing.assert_close(found, torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_every_back_end_has_text() -> None:
    attention = einfuse.compile(SPEC)
    assert "@triton.jit" in attention.source("triton", torch.bfloat16)
    assert "#include" in attention.source("cpu")


def test_a_fault_has_a_place_and_a_hint() -> None:
    with pytest.raises(einfuse.SpecError, match="softmix") as caught:
        einfuse.compile(SPEC.replace("softmax", "softmix"))
    assert (caught.value.line, caught.value.column) == (8, 20)
    assert "softmax" in caught.value.hint
