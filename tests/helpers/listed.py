"""The kernels of a spec that lists drive, and what they give beside the oracle with the same lists."""

from __future__ import annotations

import torch
from torch import Tensor

import einfuse
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import BackendName
from einfuse.runtime.graph import Kernel


def by_lists(spec: str, backend: BackendName | None = None) -> Attention:
    selection = einfuse.compile(spec, backend=backend).selection
    assert selection is not None
    assert selection.listed is not None
    return selection.listed


def compared(
    attention: Attention, x: dict[str, Tensor], dtype: torch.dtype = torch.float32, axes: tuple[int, int] = (1, 2)
) -> list[str]:
    """Values and gradients of the kernels, beside the oracle; two ``axes`` of the tensors lie the other way round. Gives the names of the
    kernels."""
    names = [t.name for t in attention.cascade.inputs]
    given = dict(zip(names, [x.get(n, x["sel"]) for n in names], strict=True))
    floats = [n for n in names if given[n].is_floating_point()]
    low = {n: y.to(dtype).transpose(*axes).contiguous().transpose(*axes) if n in floats else y for n, y in given.items()}
    exact = {n: y.double() if n in floats else y for n, y in low.items()}
    for n in floats:
        low[n].requires_grad_()
        exact[n].requires_grad_()
    found, truth = attention(**low), attention.reference(dtype=torch.float64, **exact)
    assert isinstance(found, Tensor)
    assert isinstance(truth, Tensor)
    up = torch.randn(truth.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)
    got = torch.autograd.grad(found, [low[n] for n in floats], up)
    want = torch.autograd.grad(truth, [exact[n] for n in floats], up.double())
    bound = 2e-5 if dtype == torch.float32 else 4e-2
    for a, b in zip((found, *got), (truth, *want), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=bound, atol=bound * max(1.0, b.abs().max().item()))
    return [x.label for _, g in attention.program.graphs.items() for x in g.nodes if isinstance(x, Kernel)]
