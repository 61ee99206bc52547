"""Kernels for narrower vectors than this machine's: the same text, built for less, gives the same results."""

import os
import platform

import pytest
import torch
from narrowed import only

import einfuse

pytestmark = pytest.mark.optimised

NARROWER = {"avx2": "-mavx2 -mfma -mno-avx512f", "sse": "-mno-avx"}
SPEC = """
attention narrow_%s over b, h {
  rank i: query; rank j: key; rank d: feature; rank e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) / sqrt(D) where j <= i
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the options are those of x86")
@pytest.mark.parametrize(("vectors", "dtype"), [("avx2", torch.float32), ("avx2", torch.bfloat16), ("sse", torch.float32)])
def test_narrower_vectors(vectors: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXXFLAGS", f"{os.environ.get('CXXFLAGS', '')} {NARROWER[vectors]}")
    attn = einfuse.compile(SPEC % vectors, backend="cpu")
    q, k, v = (torch.randn(1, 2, 70, 24).to(dtype) for _ in range(3))
    error = (only(attn(q, k, v)).double() - only(attn.reference(q, k, v))).abs().max().item()
    assert error < (2e-6 if dtype == torch.float32 else 2e-2)
