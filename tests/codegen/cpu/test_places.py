"""Tables read at computed places, a vector of them at a time: places that are alike, neighbours, or anything else."""

import pytest
import torch

import einfuse

SPEC = """
attention placed over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in at[i, j]: int
  in shown[b, R]: bool
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in table[h, R]
  s = sum[d](q * k) + table[h, at[i, j]] where shown[b, at[i, j]]
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""
ENTRIES = 73
PLACES = {
    "alike": lambda i, j: i // 8 + 0 * j,
    "neighbours": lambda i, j: j - i + 36,
    "clipped": lambda i, j: (j - i).clamp(-5, 5) + 5,
    "descending": lambda i, j: i - j + 36,
    "scattered": lambda i, j: (7 * i + 5 * j) % ENTRIES,
}


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("places", PLACES)
def test_places(places: str, strided: bool) -> None:
    n = 37  # two vectors and a part of one
    at = PLACES[places](torch.arange(n)[:, None], torch.arange(n))
    q, k, v = torch.randn(3, 2, 2, n, 8)
    table = torch.randn(ENTRIES, 2).mT if strided else torch.randn(2, ENTRIES)
    shown = torch.rand(2, ENTRIES) < 0.8
    attn = einfuse.compile(SPEC, backend="cpu")
    assert attn(at, shown, q, k, v, table).sub(attn.reference(at, shown, q, k, v, table)).abs().max() < 2e-6
