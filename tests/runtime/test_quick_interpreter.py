"""The interpreter that tests run Triton kernels in, against the one that Triton ships: equal to the bit."""

from __future__ import annotations

import pytest
import torch

import einfuse
from einfuse.runtime.verify import Shape, example_inputs

pytest.importorskip("triton")
import quick_interpreter


@pytest.mark.parametrize(("spec", "dtype"), [("alibi_window", torch.bfloat16), ("gated_delta", torch.float32)])
def test_it_changes_no_bit(spec: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def results() -> list[torch.Tensor]:
        made = attention(**inputs)
        outs = made if isinstance(made, tuple) else (made,)
        return [*outs, *torch.autograd.grad(torch.stack([x.float().square().sum() for x in outs]).sum(), asked)]

    attention = einfuse.compile(spec, backend="triton")
    inputs = example_inputs(attention.cascade, dtype, 0, Shape(1, 2, 19, 19, (8, 8), 1))
    asked = [x.requires_grad_() for x in inputs.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    quick = results()
    for owner, name, theirs in quick_interpreter.THEIRS:
        monkeypatch.setattr(owner, name, theirs)
    assert all(torch.equal(a, b) for a, b in zip(quick, results(), strict=True))
