"""Products of fp16 whose operands fp16 does not hold: hazard 20, which an interpreter shows."""

from __future__ import annotations

import pytest
import torch

import einfuse
from einfuse.codegen.plan import Dot, KernelPlan, operations
from einfuse.codegen.plan.passes import finished
from einfuse.codegen.triton.simplify import PASSES

WEIGHTS = {
    "squares": "relu(s) ^ 2",
    "a polynomial": "1 + s + s * s / 2",
    "exponentials": "exp(s / 8)",
    "a quotient": "s / (0.0001 + abs(s - 1))",
}
SPEC = """attention weighted over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]; in k[b, h, j, d]; in v[b, h, j, e]
  s = sum[d](q * k) where j <= i
  w = WEIGHT
  o[i, e] = sum[j](w * v)
  out o
}"""


def wide(source: str, dtype: torch.dtype = torch.float16) -> set[str]:
    """The operands of products that are not rounded to the dtype, in all kernels of a spec."""
    plans = [c.plan for c in einfuse.compile(source).candidates("triton", dtype, True, {}, "sm_90")]
    ops = [op for p in plans if isinstance(p, KernelPlan) for op in operations(finished(p, PASSES))]
    return {op.a.name for op in ops if isinstance(op, Dot) and not op.narrow}


@pytest.mark.slow
@pytest.mark.parametrize("weight", WEIGHTS)
def test_hazard_20_weights_beyond_65504_are_not_infinite(weight: str) -> None:
    """Scores of some hundreds, values that bring the outputs back: finite wherever the result is, and as exact as fp16 is."""
    attention = einfuse.compile(SPEC.replace("WEIGHT", WEIGHTS[weight]), backend="triton")
    scales = (3.0, 3.0, 1e-4) if weight == "exponentials" else (12.0, 12.0, 1e-3)
    given = [(torch.randn(1, 1, 20, 16) * x).half().requires_grad_() for x in scales]
    exact = [x.detach().double().requires_grad_() for x in given]
    found, truth = attention(*given), attention.reference(*exact)
    assert isinstance(found, torch.Tensor)
    assert isinstance(truth, torch.Tensor)
    up = torch.randn(truth.shape) * 1e-3
    gradients = torch.autograd.grad(found, given, up.half())
    expected = torch.autograd.grad(truth, exact, up.half().double())
    for a, b in zip((found, *gradients), (truth, *expected), strict=True):
        assert b.abs().max() < 65504
        torch.testing.assert_close(a.double(), b, rtol=0, atol=4e-3 * b.abs().max().item())


@pytest.mark.parametrize("weight", WEIGHTS)
def test_such_products_are_wide_in_fp16_alone(weight: str) -> None:
    assert wide(SPEC.replace("WEIGHT", WEIGHTS[weight]))
    assert not wide(SPEC.replace("WEIGHT", WEIGHTS[weight]), torch.bfloat16)


@pytest.mark.parametrize("name", ["causal", "alibi", "sigmoid", "softcap", "sink", "rope", "talking_heads", "linear"])
def test_bounded_weights_stay_narrow(name: str) -> None:
    """What has a maximum subtracted or is bounded by itself takes the faster product."""
    assert not wide(name)


@pytest.mark.parametrize(
    ("target", "precision"), [("sm_80", "tf32"), ("sm_90", "tf32"), ("gfx942", "ieee"), ("gfx950", "ieee")]
)
def test_they_are_products_of_what_the_target_has(target: str, precision: str) -> None:
    (c,) = einfuse.compile("relu2").candidates("triton", torch.float16, False, {}, target)  # type: ignore[arg-type]  # a name of the table
    assert f'input_precision="{precision}"' in c.source
    assert ("_tf32(" in c.source) == (precision == "tf32")
