"""What a test knows of a type and a checker does not, asserted: outputs, stages of cascades, modules of torch."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import nn

from einfuse.ir import Cascade, Flat
from einfuse.ir.nodes import Scan


def only(out: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The output of an attention that has one."""
    assert isinstance(out, torch.Tensor)
    return out


def flat(c: Cascade) -> Flat:
    """A cascade that has no fold: as built, and until it is fused."""
    assert isinstance(c, Flat)
    return c


def scan(c: Cascade) -> Scan:
    """A cascade of one fold whose points come in order."""
    assert isinstance(c, Scan)
    return c


def gradient(x: torch.Tensor) -> torch.Tensor:
    """What a backward left at a leaf."""
    assert x.grad is not None
    return x.grad


def three(x: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three tensors, to be given as so many arguments."""
    q, k, v = x
    return q, k, v


def added(x: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of some tensors, of which there is one at least."""
    return functools.reduce(torch.add, x)


def weight(module: nn.Module | torch.Tensor, name: str = "weight") -> torch.Tensor:
    """A tensor of a module, of which its class says nothing."""
    found = getattr(module, name)
    assert isinstance(found, torch.Tensor)
    return found


def through(module: nn.Module | torch.Tensor, *inputs: object) -> torch.Tensor:
    """What a module makes of its inputs: a tensor, of which a call of a module says nothing."""
    assert isinstance(module, nn.Module)
    out = module(*inputs)
    assert isinstance(out, torch.Tensor)
    return out
