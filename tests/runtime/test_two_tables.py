"""Two reductions over the same keys, each under a table of its own: loops of one kernel share the lists of tiles they visit."""

from __future__ import annotations

import pytest
import torch

import einfuse

SPEC = """attention f over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in x[b, N]: int
  in y[N]: int
  s = sum[d](q * k)
  top = max[j](s where x[b, i] == x[b, j])
  o[i, e] = sum[j]((s - top) ^ 2 * v where y[i] == y[j])
  out o
}"""


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fine", ["x", "y"])
def test_each_loop_sees_its_own_points(backend: str, fine: str) -> None:
    torch.manual_seed(0)
    n = 700
    q, k, v = (torch.randn(2, 2, n, 8, dtype=torch.float64) for _ in range(3))
    coarse = torch.zeros(n, dtype=torch.long)
    split = torch.arange(n) // 300
    x = torch.stack([split, coarse]) if fine == "x" else torch.stack([coarse, coarse])
    y = split if fine == "y" else coarse
    attn = einfuse.compile(SPEC, backend=backend)  # type: ignore[arg-type]
    out, truth = attn(q, k, v, x=x, y=y), attn.reference(q, k, v, x=x, y=y)
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(out, truth, rtol=1e-9, atol=1e-9)
