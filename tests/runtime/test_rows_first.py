"""What is dear of rows alone (rotations, norms) is computed before pairs are walked: on GPUs in 16 bits, where several tiles would do it."""

from __future__ import annotations

import pytest
import torch
from narrowed import flat, only

import einfuse
from einfuse.ir import dear
from einfuse.ir.passes import canonicalise
from einfuse.runtime import binding
from einfuse.runtime.backends import TritonBackend
from einfuse.runtime.inside import launched

HEAD = """attention made over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
"""
TAIL = """
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""


def blocks(body: str) -> set[str]:
    return set(dear.blocks(canonicalise.run(flat(einfuse.compile(HEAD + body + TAIL).cascade))))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("kr = k * cos(float(j))\n s = sum[d](q * kr) where j <= i", {"kr"}),
        ("n = sqrt(sum[d](k * k))\n kn = k / n\n s = sum[d](q * kn) where j <= i", {"kn"}),
        ("kr = 2 * k\n s = sum[d](q * kr)", set()),  # cheap
        ("kr = k * cos(float(j))\n s = sum[d](abs(q - kr))", set()),  # no product of matrices: 16 bits would show
        ("kr = k * cos(float(j))\n s = sum[d](q * kr) + sum[d](abs(q - kr))", set()),
        ("n = sqrt(sum[d](k * k))\n s = sum[d](q * k) / n", set()),  # one number a row: `row_values`
    ],
)
def test_sides_of_products_that_take_dear_functions_are_found(body: str, expected: set[str]) -> None:
    assert blocks(body) == expected


def kernels(rows: int, dtype: torch.dtype, backward: bool = False) -> list[str]:
    attention = einfuse.compile("rope")
    shapes = {"q": (1, 2, rows, 64), "k": (1, 2, 512, 64), "v": (1, 2, 512, 64)}
    tensors, numbers = binding.arguments(
        attention.cascade, (), {n: torch.empty(s, dtype=dtype, device="meta") for n, s in shapes.items()}
    )
    backend = TritonBackend(target="sm_90", processors=4)
    return [x.kernel.plan.name for x in launched(attention, tensors, numbers, backward, backend)]


def test_rows_come_first_where_several_tiles_would_compute_them() -> None:
    assert kernels(512, torch.bfloat16) == ["rope_1", "rope_2", "rope_3"]
    assert kernels(64, torch.bfloat16) == ["rope"]
    assert kernels(512, torch.float32) == ["rope"]
    training = kernels(512, torch.bfloat16, backward=True)
    assert training[:3] == ["rope_1", "rope_2", "rope_3"]
    assert {"rope_3_rows", "rope_3_columns_j", "rope_2_rows", "rope_1_rows"} <= set(training)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rope", "cosine"])
@pytest.mark.parametrize("rows", [40, 150])
def test_both_ways_are_right(name: str, rows: int) -> None:
    torch.manual_seed(0)
    attention = einfuse.compile(name, backend="triton")
    leaves = [torch.randn(1, 2, n, 16, dtype=torch.bfloat16) for n in (rows, 150, 150)]
    more = {"tau": torch.tensor([1.0, 3.0])} if name == "cosine" else {}
    expected = only(attention.reference(*leaves, **more, dtype=torch.float64)).double()
    torch.testing.assert_close(
        only(attention(*leaves, **more)).double(), expected, rtol=2e-2, atol=2e-2
    )  # no gradient is recorded
    leaves = [x.requires_grad_() for x in leaves]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    found, truth = only(attention(*leaves, **more)), attention.reference(*wide, **more, dtype=torch.float64)
    along = torch.randn_like(found)
    for x, y in zip(torch.autograd.grad(found, leaves, along), torch.autograd.grad(truth, wide, along.double()), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=5e-2, atol=5e-2)
