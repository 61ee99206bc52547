"""The outputs after every key by the parallel prefix scan: row by row those of `Attention.step`, and of one call on so many keys."""

from __future__ import annotations

import pytest
import torch
from narrowed import only

import einfuse


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "sigmoid", "alibi"])
def test_rows_are_calls_on_so_many_keys(name: str) -> None:
    a = einfuse.compile(name, backend="torch")
    generator = torch.Generator().manual_seed(0)
    n = 11
    q, k, v = (torch.randn(2, 3, m, 4, generator=generator, dtype=torch.float64) for m in (2, n, n))
    more = {"slope": torch.rand(3, dtype=torch.float64)} if name == "alibi" else {}
    found = only(a.prefix(q, k, v, **more))
    assert found.shape == (2, 3, n, 2, 4)
    for m in range(1, n + 1):
        row = a.finalise(a.state(q, k, v, keys=(0, m), **more))
        torch.testing.assert_close(found[:, :, m - 1], row, rtol=1e-12, atol=1e-12)


def test_rows_are_the_steps_and_have_gradients() -> None:
    a = einfuse.compile("full", backend="torch")
    q, k, v = (torch.randn(1, 2, m, 3, dtype=torch.float64, requires_grad=True) for m in (1, 6, 6))
    rows = only(a.prefix(q, k, v))
    state, steps = None, []
    for n in range(6):
        out, state = a.step(state, q, k[:, :, n : n + 1], v[:, :, n : n + 1])
        steps.append(only(out))
    other = torch.stack(steps, 2)
    torch.testing.assert_close(rows, other, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(rows)
    for x, y in zip(*(torch.autograd.grad((r * weight).sum(), (q, k, v)) for r in (rows, other)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def test_two_passes_have_no_prefix() -> None:
    text = """attention f over b { rank i: query; rank j: key; rank d: feature in q[b, i, d] in k[b, j, d]
      s = sum[d](q * k)
      o = sum[j](tanh(s - max[j](s)))
      out o }"""
    q = torch.randn(1, 3, 4)
    with pytest.raises(einfuse.SpecError, match="cannot be split"):
        einfuse.compile(text).prefix(q, q)
