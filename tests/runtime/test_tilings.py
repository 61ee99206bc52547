"""Tiles of kernels that compute over pairs and features at once: chosen so that registers can hold them."""

from itertools import pairwise

import torch

import einfuse
from einfuse.codegen import KernelPlan
from einfuse.codegen.triton import holds
from einfuse.runtime.inside import Candidate

ADDITIVE = """
attention additive over b {
  rank i: query; rank j: key; rank d: feature
  in q[b, i, d]
  in k[b, j, d]
  in w[d]
  s = sum[d](w * tanh(q + k))
  o[i, d] = sum[j](softmax[j](s) * k)
  out o
}
"""


def ladder(spec: str) -> list[Candidate]:
    first = einfuse.compile(spec).candidates("triton", torch.bfloat16, False, {"D": 64}, "sm_90")[0]
    found = [first]
    while smaller := found[-1].smaller():
        found += smaller
    return found


def block(candidate: Candidate) -> int:
    assert isinstance(candidate.plan, KernelPlan)
    assert candidate.plan.tile is not None
    return candidate.plan.tile.block


def test_a_value_per_pair_and_feature_starts_at_a_tile_that_registers_hold() -> None:
    additive = ladder(ADDITIVE)
    assert all(isinstance(c.plan, KernelPlan) and holds(c.plan) for c in additive)
    assert block(additive[0]) < 64
    product = ladder(ADDITIVE.replace("w * tanh(q + k)", "w * q * k"))
    assert block(product[0]) == 64
    assert all(a.source != b.source for a, b in pairwise(product))
