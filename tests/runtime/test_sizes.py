"""Ranks whose size is made of other sizes."""

from __future__ import annotations

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.ir.text import parse, show
from einfuse.runtime import binding


def test_a_size_is_made_of_others_and_of_parameters() -> None:
    text = """attention pooled(step: int = 4) over b {
      rank i: query; rank r: key = Nq // step; rank c: key = step
      in x[b, i]
      o[r] = sum[c](x[b, step * r + c])
      out o
    }"""
    cascade = einfuse.compile(text).cascade
    assert parse(show(cascade)) == cascade
    x = torch.randn(2, 13, dtype=torch.float64)
    assert binding.sizes(cascade, {"x": x}) == {"B": 2, "Nq": 13, "Nk": 3}
    torch.testing.assert_close(einfuse.compile(text, backend="torch")(x), x[:, :12].unflatten(1, (3, 4)).sum(-1))
    assert only(einfuse.compile(text, step=6).reference(x)).shape == (2, 2)


def test_a_size_that_does_not_fit_is_named() -> None:
    text = """attention halves over b {
      rank i: query; rank j: key = Nq - 3; rank d: feature
      in x[b, i, d]
      in y[b, j, d]
      o[i] = sum[j](sum[d](x * y))
      out o
    }"""
    attention = einfuse.compile(text)
    assert only(attention(torch.ones(1, 5, 2), torch.ones(1, 2, 2))).tolist() == [[4.0] * 5]
    with pytest.raises(ValueError, match=r"halves: the size of rank j is Nq - 3 = 2, and an argument has 4"):
        attention(torch.ones(1, 5, 2), torch.ones(1, 4, 2))
    with pytest.raises(ValueError, match=r"halves: the size of rank j is Nq - 3 = -1"):
        attention(torch.ones(1, 2, 2), torch.ones(1, 4, 2))
