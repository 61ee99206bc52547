"""A layer beside a formula in plain torch: the output, and the gradient of the input and of every parameter, in double precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def agree(
    layer: nn.Module, eager: Callable[..., torch.Tensor], *inputs: torch.Tensor, scale: float = 0.4, tolerance: float = 1e-8
) -> None:
    """``eager(*inputs)`` uses the layer's parameters, which are made large: fresh tables are nearly zero, and would hide a fault."""
    layer.double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=scale)
    given = [x.double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    leaves = [x for x in given if x.requires_grad] + [p for p in layer.parameters() if p.requires_grad]
    found, expected = layer(*given), eager(*given)
    assert found.shape == expected.shape
    assert expected.abs().max() > 1e-3, "a formula of nothing agrees trivially"
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    direction = torch.randn(expected.shape, generator=generator, dtype=expected.dtype)
    ours = torch.autograd.grad(found, leaves, direction, allow_unused=True)
    theirs = torch.autograd.grad(expected, leaves, direction, allow_unused=True)
    for f, e in zip(ours, theirs, strict=True):
        zero = torch.zeros(())
        limit = 100 * tolerance * max(1.0, (zero if e is None else e).abs().max().item())
        torch.testing.assert_close(
            zero if f is None else f, zero.to(f or zero) if e is None else e, rtol=0, atol=limit, check_dtype=False
        )


def heads(x: torch.Tensor, n: int) -> torch.Tensor:
    """[..., N, C] -> [..., n, N, C / n]."""
    return x.reshape(*x.shape[:-1], n, -1).transpose(-3, -2)


def joined(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(-3, -2).reshape(*x.shape[:-3], x.shape[-2], -1)
