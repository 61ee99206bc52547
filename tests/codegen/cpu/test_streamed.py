"""Few rows read keys and values where they lie, a stride apart or at places that were computed: the same numbers as the oracle's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from narrowed import only

import einfuse

CHOSEN = """attention chosen over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in at[b, j]: int
  in k[b, h, M, d]
  in v[b, h, j, e]
  s = sum[d](q * k[b, h, at[b, j], d]) / sqrt(D) + (j - i) // 4 / 9 - (j - i) % 8 / 9 where j <= i + 60
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""


def pages(rows: int) -> dict[str, Any]:
    """Pages in no order; a sequence ends within a block, the other one before the last block."""
    page = torch.randperm(40)[:36].view(2, 18)
    k, v = torch.randn(2, 40, 8, 2, 32)
    return {"q": torch.randn(2, 4, rows, 32), "k": k, "v": v, "page": page, "length": torch.tensor([143, 50])}


def chosen(rows: int) -> dict[str, Any]:
    """Keys that a list names, beside values a stride apart; numbers below 0 are divided by powers of two."""
    at = torch.randint(200, (2, 100))
    return {"q": torch.randn(2, 4, rows, 32), "at": at, "k": torch.randn(2, 4, 200, 32), "v": torch.randn(2, 4, 100, 32)}


CASES = {"paged": ("paged", pages), "chosen": (CHOSEN, chosen)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_rows_at_computed_places_are_read_where_they_lie(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    spec, given = CASES[name]
    attn = einfuse.compile(spec, backend="cpu")
    text = attn.source("cpu", dtype, D=32, E=32)
    assert "= listed(k_" in text
    assert name == "paged" or ({*re.findall(r"\w >> \d|\w & 7", text.partition("einfuse_kernel(")[2])})
    assert ("= listed(v_" if name == "paged" else "= even(v_") in text
    for rows in (1, 5, 40):  # 40: copies are made
        tensors = {n: x.to(dtype) if x.is_floating_point() else x for n, x in given(rows).items()}
        error = (only(attn(**tensors)).double() - only(attn.reference(**tensors))).abs().max().item()
        assert error < (2e-6 if dtype == torch.float32 else 2e-2)
