"""Pairs that are read away from their own coordinates: computed there, forward and backward."""

from __future__ import annotations

import pytest

import einfuse
from einfuse.runtime.backends import BackendName
from einfuse.runtime.verify import Shape

HEAD = """attention away(block: int = 4) over b, h {
  rank i: query; rank j: key; rank w: key = (Nk + block - 1) // block; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in c[b, h, w, d]
"""
BODIES = {
    "scores of blocks": "  a = sum[d](q * c) where w <= i\n  s = sum[d](q * k) + a[i, j // block]\n  o[i, e] = sum[j](softmax[j](s) * v)\n",
    "that are reduced as well": "  a = sum[d](q * c) where w <= i\n  m = max[w](a)\n  s = sum[d](q * k) + a[i, j // block] - m\n"
    "  o[i, e] = sum[j](softmax[j](s) * v)\n",
    "weights of blocks": "  a = sum[d](q * c)\n  u = softmax[w](a)\n  s = sum[d](q * k) * u[i, j // block] where j <= i\n"
    "  o[i, e] = sum[j](softmax[j](s) * v)\n",
    "in one softmax": "  a = sum[d](q * c) where w <= i\n  s = sum[d](q * k)\n  m = max(max[j](s), max[w](a))\n  u = exp(a - m)\n"
    "  l = sum[j](exp(s - m)) + sum[w](u)\n  r = exp(s - m) * u[i, j // block]\n  o[i, e] = sum[j](r * v) / l + 0 * sum[w](u)\n",
    "the key before": "  a = sum[d](q * k + c[b, h, j // block, d]) where j <= i\n  s = a + a[i, max(j - 1, 0)]\n"
    "  o[i, e] = sum[j](softmax[j](s) * v)\n",
    "twice": "  a = sum[d](q * c)\n  t = tanh(a)\n  s = sum[d](q * k) + t[i, j // block] * t[max(i - 1, 0), j // block]\n"
    "  o[i, e] = sum[j](softmax[j](s) * v)\n",
}
SHAPE = Shape(2, 2, 9, 13, (5, 3), 1)


def away(name: str) -> str:
    return HEAD + BODIES[name] + "  out o\n}"


@pytest.mark.parametrize(
    ("name", "backend"),
    [(n, b) for n in BODIES for b in ("torch", "loops")]
    + [pytest.param(n, ("cpu", "triton")[k % 2], marks=pytest.mark.slow) for k, n in enumerate(BODIES)],
)
def test_they_are_what_the_oracle_reads(name: str, backend: BackendName) -> None:
    certificate = einfuse.verify(einfuse.compile(away(name)), backends=[backend], dtypes=["float32"], shape=SHAPE, brief=True)
    assert certificate.rows
    assert certificate.ok, [r for r in certificate.rows if not r.ok]


def test_an_output_of_pairs_is_read_elsewhere_as_well() -> None:
    text = (
        HEAD
        + "  a = sum[d](q * c)\n  s = sum[d](q * k) + a[i, j // block]\n  o[i, e] = sum[j](softmax[j](s) * v)\n  out o, a\n}"
    )
    certificate = einfuse.verify(einfuse.compile(text), backends=["torch"], dtypes=["float32"], shape=SHAPE, brief=True)
    assert certificate.ok, [r for r in certificate.rows if not r.ok]
