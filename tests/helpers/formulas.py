"""A spec beside a formula in plain torch: outputs and all gradients of the oracle and of the lowered kernels, in double precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import einfuse
from einfuse.runtime.verify import Shape, example_inputs

X = dict[str, Tensor]
Formula = Callable[[X], Tensor | tuple[Tensor, ...]]
SHAPE = Shape(2, 2, 9, 9, (4, 5, 3), 1)


def drawn(name: str, shape: Shape = SHAPE, seed: int = 2, **params: Any) -> X:
    """Tensors for a spec, as `einfuse verify` draws them."""
    found = example_inputs(einfuse.compile(name, **params).cascade, torch.float64, seed, shape)
    return {n: t for n, t in found.items() if isinstance(t, Tensor)}


def check(name: str, formula: Formula, x: Mapping[str, Tensor], *, gradients: bool = True, **params: Any) -> None:
    """Raises AssertionError where the oracle, or the torch back end, is not the formula."""
    attention = einfuse.compile(name, backend="torch", **params)
    results = []
    for run in (formula, lambda x: attention.reference(**x), lambda x: attention(**x)):
        given = {n: t.detach().requires_grad_(gradients and t.is_floating_point()) for n, t in x.items()}
        out = run(given)
        outs = out if isinstance(out, tuple) else (out,)
        generator = torch.Generator().manual_seed(0)
        loss = sum((o * torch.randn(o.shape, generator=generator, dtype=torch.float64)).sum() for o in outs)
        leaves = [t for t in given.values() if t.requires_grad]
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True) if leaves else ()  # type: ignore[arg-type]  # a tensor
        results.append([*(o.detach() for o in outs), *grads])
    assert all(o.abs().max() > 1e-3 for o in results[0][: len(results[0])][:1]), "a formula of nothing agrees trivially"
    for truth, oracle, found in zip(*results, strict=True):
        assert truth.isfinite().all()
        torch.testing.assert_close(oracle, truth, rtol=1e-5, atol=1e-5, check_dtype=False)  # the epsilons of roots and norms
        torch.testing.assert_close(
            found, oracle, rtol=1e-6, atol=1e-6, check_dtype=False
        )  # numbers of the spec are float32 in kernels
