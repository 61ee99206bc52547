"""Gradients where an output is itself a maximum: the point that has it is told by comparing with what was not rounded."""

import pytest
import torch

import einfuse
from einfuse.runtime.backends import BackendName
from einfuse.runtime.verify import Shape

TEXT = """attention widest over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) / sqrt(D)
  o[i, e] = max[j](s + v)
  top[i] = EXTREME[j](s)
  p = exp(s - top) / 8
  r[i, e] = sum[j](p * v)
  out o, top, r
}"""


@pytest.mark.parametrize("extreme", ["max", "min"])
@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=pytest.mark.slow)])
def test_gradients_of_rounded_extremes(extreme: str, backend: BackendName) -> None:
    attention = einfuse.compile(TEXT.replace("EXTREME", extreme).replace("widest", f"widest_{extreme}"), backend=backend)
    shape = Shape(batch=1, heads=2, queries=9, keys=13, widths=(8, 8), group=1)
    found = einfuse.verify(attention, backends=[backend], dtypes=["bfloat16", "float32"], shape=shape)
    assert {r.what for r in found.rows} >= {"d q", "d k", "d v"}
    assert [r for r in found.rows if not r.ok] == []


def test_outputs_keep_their_names_and_types() -> None:
    attention = einfuse.compile(TEXT.replace("EXTREME", "max"), backend="torch")
    x = [torch.randn(1, 2, 7, 8, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
    outs = attention(*x)
    assert [o.dtype for o in outs] == [o.dtype for o in attention(*(t.detach() for t in x))]
    for o, exact in zip(outs, attention.reference(*(t.detach() for t in x)), strict=True):
        torch.testing.assert_close(o.double(), exact, rtol=2e-2, atol=2e-2)
