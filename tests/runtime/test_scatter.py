"""Gradients added up at computed places: rows at a time, and the same bits however many threads there are."""

from __future__ import annotations

import pytest
import torch

import einfuse
from einfuse.ir import expr as ex
from einfuse.ir.passes.backward import Gradient
from einfuse.runtime.given import Given
from einfuse.runtime.scatter import accumulate

GATHERED = """attention gathered over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, m, d]
  in v[b, h, m, e]
  in at[b, j]: int
  s = sum[d](q * k[b, h, at[b, j], d]) / sqrt(D)
  o[i, e] = sum[j](softmax[j](s) * v[b, h, at[b, j], e])
  out o
}"""
TABLE = """attention table over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in bias[h, W]
  in bucket[i, j]: int
  s = sum[d](q * k) / sqrt(D) + bias[h, bucket]
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""


def inputs(text: str, n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = {name: torch.randn(2, 3, n, 16, generator=g).requires_grad_() for name in "qkv"}
    if text is GATHERED:
        return x | {"at": torch.randint(0, 9, (2, n + 5), generator=g)}
    return x | {"bias": torch.randn(3, 7, generator=g).requires_grad_(), "bucket": torch.randint(0, 7, (n, n), generator=g)}


def gradients(attention: einfuse.Attention, x: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    out = attention(**x)
    assert isinstance(out, torch.Tensor)
    return torch.autograd.grad(out, [t for t in x.values() if t.requires_grad], out.detach().sin())


@pytest.mark.parametrize("text", [GATHERED, TABLE], ids=["rows", "table"])
def test_values(text: str) -> None:
    attention, x = einfuse.compile(text, backend="torch"), inputs(text, 21)
    held = [t for t in x.values() if t.requires_grad]
    out = attention.reference(**x, dtype=torch.float64)
    assert isinstance(out, torch.Tensor)
    truth = torch.autograd.grad(out, held, out.detach().sin())
    for found, wanted in zip(gradients(attention, x), truth, strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ranks", [("b", "h", "j"), ("b", "h", "j", "d")], ids=["elements", "rows"])
def test_threads_do_not_change_a_bit(ranks: tuple[str, ...]) -> None:
    """Many threads add to few places: torch's own `index_put` gives other bits in every call."""
    index = (ex.index("b"), ex.index("h"), ex.load("at", ex.index("b"), ex.index("j")), *map(ex.index, ranks[3:]))
    cascade = einfuse.compile(GATHERED).cascade
    sizes = {"B": 2, "H": 3, "Nq": 1, "Nk": 40_000, "m": 9, "D": 8, "E": 8}
    value = torch.randn([2, 3, 40_000, 8][: len(ranks)])
    tensors = {"k": torch.empty([2, 3, 9, 8][: len(ranks)]), "at": torch.randint(0, 9, (2, 40_000))}
    threads, found = torch.get_num_threads(), []
    try:
        torch.set_num_threads(4)
        for _ in range(6):
            total: dict[str, torch.Tensor] = {}
            accumulate(total, cascade, Gradient("k", index, "d_k", ranks), value, Given(tensors, {}, sizes))
            found.append(total["k"])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], again) for again in found[1:])
