"""Rows that go through their own lists, heads with one list as one tile, beside the oracle with the same lists: values and gradients."""

from __future__ import annotations

import pytest
import torch
from listed import by_lists, compared
from torch import Tensor

from einfuse.runtime.backends import BackendName
from einfuse.runtime.own_lists import FEWEST

BLOCKS = """
attention blocks over b, h {
  rank g: head = G; rank i: query; rank j: key; rank n: feature = S; rank d, e: feature
  in q[b, h, g, i, d]; in k[b, h, j, d]; in v[b, h, j, e]; in sel[b, h, i, n]: int
  s = sum[d](q * k) / sqrt(D) where j <= i and j // 16 in sel[b, h, i]
  o[g, i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""
FORMS = {
    "causal": BLOCKS,
    "whole": BLOCKS.replace("j <= i and ", ""),
    "window": BLOCKS.replace("j <= i and", "0 <= i - j < 40 and"),
    "slopes": BLOCKS.replace("; in sel[", "; in slope[h, g]; in sel[").replace(
        "/ sqrt(D)", "/ sqrt(D) - slope[h, g] * (i - j)"
    ),
    "after": BLOCKS.replace("j <= i and", "j <= i - g and"),
    "sigmoid": BLOCKS.replace("softmax[j](s)", "sigmoid(s)"),
    "normed": BLOCKS.replace("sum[d](q * k)", "sum[d](l2_normalise[d](q) * l2_normalise[d](k))"),
    "queries": BLOCKS.replace("sel[b, h, i]", "sel[b, h, i // 8]").replace("sel[b, h, i, n]", "sel[b, h, X, n]"),
}
WIDTH = 16
FEATURES_APART = (-2, -1)


def drawn(seed: int, n: int, slots: int = 3, heads: int = FEWEST, rows: int | None = None) -> dict[str, Tensor]:
    """Lists with entries that stand twice, that are none, and of rows that read nothing at all."""
    g = torch.Generator().manual_seed(seed)
    sel = torch.randint(-1, -(-n // WIDTH) + 1, (1, 2, rows or n, slots), generator=g)
    sel[:, :, 5] = -1
    shapes = {"q": (1, 2, heads, n, 8), "k": (1, 2, n, 8), "v": (1, 2, n, 5), "slope": (2, heads)}
    return {x: torch.randn(s, generator=g, dtype=torch.float64) for x, s in shapes.items()} | {"sel": sel}


@pytest.mark.parametrize("n", [160, 151])
@pytest.mark.parametrize("form", FORMS)
def test_heads_with_one_list_are_the_oracle(form: str, n: int) -> None:
    """Blocks that are all whole, and a last one that is short."""
    x = drawn(n, n, rows=-(-n // 8) if form == "queries" else None)
    ran = compared(by_lists(FORMS[form], "torch"), x, axes=FEATURES_APART)
    assert sum(y.endswith("_own") for y in ran) >= 2, "the outputs and the gradients of rows"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["causal", "window", "after"])
def test_on_a_gpu_as_well(form: str, dtype: torch.dtype) -> None:
    ran = compared(by_lists(FORMS[form], "triton"), drawn(4, 90, heads=FEWEST + 3), dtype, axes=FEATURES_APART)
    assert any(y.endswith("_own") for y in ran)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_lists_of_single_tokens(backend: BackendName) -> None:
    """Gradients of rows go through the lists, those of columns by a table: a column for each product would be none."""
    text = BLOCKS.replace("j // 16 in", "j in").replace("attention blocks", f"attention tokens_{backend}")
    x = drawn(7, 160)
    g = torch.Generator().manual_seed(1)
    x["sel"] = torch.randint(-1, 170, (1, 2, 160, 20), generator=g)
    x["sel"][:, :, 5] = -1
    ran = compared(by_lists(text, backend), x, axes=FEATURES_APART)
    assert sum(y.endswith("_own") for y in ran) == 2
    assert any(y.endswith("columns_j") for y in ran)


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.slow)])
def test_heads_of_a_group_share_its_list(backend: BackendName) -> None:
    text = BLOCKS.replace("rank g: head = G; ", "").replace("b, h, g, i", "b, h, i").replace("[g, i, e]", "[i, e]")
    for read in ("k[b, h", "v[b, h", "sel[b, h"):
        text = text.replace(read, f"{read} // group")
    x = drawn(8, 120)
    x["q"] = x["q"].flatten(1, 2)
    ran = compared(by_lists(text.replace("attention blocks", f"attention groups_{backend}"), backend), x, axes=FEATURES_APART)
    assert sum(y.endswith("_own") for y in ran) >= 2


def test_few_heads_are_no_tile() -> None:
    text = FORMS["causal"].replace("attention blocks", "attention few")
    ran = compared(by_lists(text, "torch"), drawn(5, 160, heads=FEWEST - 1), axes=FEATURES_APART)
    assert not any(y.endswith("_own") for y in ran)
