"""Slices along held ranks: the same results in blocks of two ranks, whose sums of products are matrix products."""

from __future__ import annotations

import pytest
import torch

import einfuse
from einfuse.codegen.plan import Dot, KernelPlan, Store, operations, read, show
from einfuse.codegen.plan.interpret import interpret
from einfuse.codegen.plan.verify import verify
from einfuse.codegen.triton.slices import MOST, sliced

INDEXER = """
attention indexer over b {
  rank a: head = A; rank i: query; rank j: key; rank d, c: feature
  in q[b, a, i, c]; in k[b, j, c]; in w[b, a, i]; in v[b, j, d]
  x = sum[a](w * relu(sum[c](q * k))) where j <= i
  o[i, d] = sum[j](softmax[j](x) * v)
  out o
}
"""
HEADS = """
attention heads over b {
  rank h: head; rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]; in k[b, j, d]; in v[b, j, e]
  s = sum[d](q * k) / sqrt(D) where j <= i
  o[h, i, e] = sum[j](softmax[j](s) * v)
  most[i] = max[j](sum[h](s))
  out o, most
}
"""
SHARES = """
attention shares over b {
  rank g: head = G; rank i: query; rank j: key; rank w: feature = 5; rank d: feature
  in q[b, g, i, d]; in k[b, j, d]
  s = sum[d](q * k) / sqrt(D) where j <= i
  o[i, w] = sum[g, j](softmax[j](s) * max(0, j - 3 * w))
  out o
}
"""
ROUTED = """
attention routed over b {
  rank h: head; rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]; in k[b, j, d]; in v[b, j, e]; in gate[b, h, i]
  s = sum[d](q * k) / sqrt(D) where gate > 0
  o[i, e] = sum[h, j](softmax[j](s) * v)
  out o
}
"""
SHAPES = {
    "routed": (ROUTED, {"q": (2, 3, 37, 16), "k": (2, 37, 16), "v": (2, 37, 8), "gate": (2, 3, 37)}),
    "indexer": (INDEXER, {"q": (2, 3, 37, 16), "k": (2, 37, 16), "w": (2, 3, 37), "v": (2, 37, 8)}),
    "heads": (HEADS, {"q": (2, 3, 37, 16), "k": (2, 37, 16), "v": (2, 37, 8)}),
    "shares": (SHARES, {"q": (2, 3, 37, 16), "k": (2, 37, 16)}),
}


def wide(plan: KernelPlan) -> list[str]:
    return [op.out.name for op in operations(plan) if not isinstance(op, Store) and len(op.out.dims) > 2]


def plans(text: str, **sizes: int) -> list[KernelPlan]:
    found = einfuse.compile(text).candidates("triton", torch.float32, False, {"D": 16, "E": 8, "C": 16, **sizes})
    return [c.plan for c in found if isinstance(c.plan, KernelPlan)]


@pytest.mark.parametrize("name", SHAPES)
def test_results_and_gradients_are_those_of_the_oracle(name: str) -> None:
    text, shapes = SHAPES[name]
    torch.manual_seed(0)
    exact = {n: torch.randn(s, dtype=torch.float64).requires_grad_(n != "gate") for n, s in shapes.items()}
    low = {n: x.detach().float().requires_grad_(x.requires_grad) for n, x in exact.items()}
    attention = einfuse.compile(text, backend="triton")
    found, truth = attention(**low), attention.reference(dtype=torch.float64, **exact)
    found, truth = (x if isinstance(x, tuple) else (x,) for x in (found, truth))
    ups = [torch.randn_like(x) for x in truth]
    got = torch.autograd.grad(found, [x for x in low.values() if x.requires_grad], [u.float() for u in ups])
    want = torch.autograd.grad(truth, [x for x in exact.values() if x.requires_grad], ups)
    for a, b in zip((*found, *got), (*truth, *want), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_have_two_ranks_and_meet_in_products(name: str) -> None:
    every = plans(SHAPES[name][0], A=3, H=3, G=3)
    assert any(wide(p) for p in every)
    for p in every:
        made = sliced(p)
        verify(made)
        assert read(show(made)) == made
        assert not wide(made)
        if wide(p):
            assert sum(isinstance(op, Dot) for op in operations(made)) >= 3, "one for each head"


def test_slices_mean_the_same() -> None:
    (plan,) = plans(SHAPES["heads"][0], H=3)
    sizes = {"B": 1, "H": 3, "Nq": 9, "Nk": 9, "D": 16, "E": 8}
    g = torch.Generator().manual_seed(0)
    given = {
        n: torch.randn(s, dtype=torch.float64, generator=g)
        for n, s in (("q", (1, 3, 9, 16)), ("k", (1, 9, 16)), ("v", (1, 9, 8)))
    }
    found = []
    for p in (plan, sliced(plan)):
        outs = {"o": torch.full((1, 3, 9, 8), torch.nan), "most": torch.full((1, 9), torch.nan)}
        outs = {n: x.double() for n, x in outs.items()}
        interpret(p, {**given, **outs}, {}, sizes)
        found.append(outs)
    for n in found[0]:
        torch.testing.assert_close(found[1][n], found[0][n], rtol=1e-9, atol=1e-12)


def test_a_plan_without_such_blocks_is_left_alone() -> None:
    (plan,) = plans("causal")
    assert sliced(plan) is plan


def test_ranks_of_many_coordinates_are_no_text() -> None:
    (plan,) = plans(SHAPES["heads"][0], H=MOST + 1)
    assert sliced(plan) is plan
