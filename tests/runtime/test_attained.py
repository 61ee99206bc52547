"""Which points share the gradient of a maximum: those that a kernel cannot tell from it, and no others."""

from __future__ import annotations

import math

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.dsl import compile_text
from einfuse.ir import Flat, interpret
from einfuse.ir.attained import shared
from einfuse.runtime.backends import BackendName
from einfuse.runtime.bound import Trial
from einfuse.runtime.verify import Shape, example_inputs, example_sizes

TEXT = """attention highest over b, h {
  rank i: query; rank j: key; rank d: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  s = sum[d](q * k)
  o[i] = max[j](VALUE)
  out o
}"""
VALUES = {
    # the value of a key's score, three scores, and the slopes of the maximum along them; tanh(6.1) is within 2.3e-6 of tanh(6)
    "plain": ("s", (5.0, 5.1, 5.0), (0, 1, 0)),
    "equal": ("s / 7", (5.0, 5.0, 3.0), (1 / 14, 1 / 14, 0)),
    "hardly apart": ("0.5 * s", (5.0, 5.0 + 1e-6, 3.0), (0.25, 0.25, 0)),
    "far below one": ("0.001 * s", (1.0, 1.001, 0.5), (0, 0.001, 0)),
    "saturated": ("tanh(s)", (6.0, 6.1, 5.5), (0, 1 - math.tanh(6.1) ** 2, 0)),
    "saturated and equal": (
        "sigmoid(s) + 1",
        (9.0, 1.0, 9.0),
        (0.5 / (2 + 2 * math.cosh(9.0)), 0, 0.5 / (2 + 2 * math.cosh(9.0))),
    ),
    "with a point at minus infinity": ("log(max(s, 0))", (-1.0, 4.0, 3.0), (0, 0.25, 0)),
    "cancelled": ("s + 1000", (-1000.0, -1001.0, -1002.0), (1, 0, 0)),
}


@pytest.mark.parametrize(
    "backend", ["torch", "loops", pytest.param("cpu", marks=pytest.mark.slow), pytest.param("triton", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("value", "scores", "slopes"), VALUES.values(), ids=VALUES)
def test_gradients_of_points_near_a_maximum(
    value: str, scores: tuple[float, ...], slopes: tuple[float, ...], backend: BackendName
) -> None:
    attention = einfuse.compile(TEXT.replace("VALUE", value), backend=backend)
    q = torch.zeros(1, 1, 1, 8)
    q[..., 0] = 1
    k = torch.zeros(1, 1, 3, 8)
    k[..., 0] = torch.tensor(scores)
    k.requires_grad_()
    only(attention(q, k)).sum().backward()
    assert k.grad is not None
    torch.testing.assert_close(
        k.grad[0, 0, :, 0], torch.tensor(slopes, dtype=torch.float32), rtol=2e-2 if "tanh" in value else 1e-3, atol=1e-9
    )


def test_the_lowest_of_saturated_values() -> None:
    """The same of a minimum, beside an infinite value."""
    attention = einfuse.compile(TEXT.replace("max[j](VALUE)", "min[j](tanh(s) / max(sign(7 - s), 0))"), backend="loops")
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([-6.0, -6.1, 8.0]).view(1, 1, 3, 1).requires_grad_()
    only(attention(q, k)).sum().backward()
    assert k.grad is not None
    torch.testing.assert_close(k.grad.flatten(), torch.tensor([0, 1 - math.tanh(6.1) ** 2, 0]), rtol=2e-2, atol=1e-9)


NUDGED = """attention nudged over b, h {
  rank i: query; rank j: key; rank w: key = (Nk + 2) // 3; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  in mark[b, h // group, w, d]
  a[i, w] = tanh(sum[d](q * mark)) where 3 * w <= i
  near[i] = max(max[w](a), 0)
  s = sum[d](q * k) / sqrt(D) + a[i, j // 3] - near where j <= i and (i - j < 5 or j < 2)
  o[i, e] = sum[j](softmax1[j](s) * v)
  out o, near
}"""


def test_a_maximum_of_saturated_values_is_verified() -> None:
    """At these inputs two values of tanh lie within 4e-6 of a row's largest; eager fp32 tells them apart."""
    found = einfuse.verify(einfuse.compile(NUDGED), backends=["loops"], dtypes=["float32"])
    assert [r for r in found.rows if not r.ok] == []


def flat(text: str) -> Flat:
    cascade = compile_text(text)
    assert isinstance(cascade, Flat)
    return cascade


def test_sharing_changes_no_value() -> None:
    cascade = flat(NUDGED)
    x, sizes = example_inputs(cascade, torch.float64, 3, Shape()), example_sizes(cascade, Shape())
    for name, value in interpret(cascade, x, sizes).items():
        assert torch.equal(interpret(shared(cascade), x, sizes)[name], value)


def test_a_bound_knows_that_kernels_share() -> None:
    """Of two keys that no kernel can tell apart, the oracle takes one and a kernel may take both."""
    cascade = flat(TEXT.replace("VALUE", "s"))
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([5.0, 5.0 + 5e-6, 3.0]).view(1, 1, 3, 1)
    assert k[0, 0, 0] < k[0, 0, 1]
    trial = Trial(cascade, {"q": q, "k": k}, torch.float32)
    assert trial.truth["d k"].count_nonzero() == 1
    halves = trial.directions([trial.truth["out 0"]])[0].view(1, 1, 1, 1) * torch.tensor([0.5, 0.5, 0.0]).view(1, 1, 3, 1)
    assert trial.compared("d k", halves).ok
    apart = Trial(cascade, {"q": q, "k": torch.tensor([5.0, 5.001, 3.0]).view(1, 1, 3, 1)}, torch.float32)
    assert not apart.compared("d k", halves).ok
