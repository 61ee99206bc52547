"""What captured tensors hold, as far as a trace depends on it; remembered while the tensor stays as it is."""

from __future__ import annotations

import torch
from torch.utils.weak import WeakIdKeyDictionary

from einfuse.runtime.recent import Recent
from einfuse.runtime.unchanged import holder, place

_KNOWN = WeakIdKeyDictionary()  # of the tensors that hold memory: by place of a view in it, what was found


def minus_infinite(x: torch.Tensor) -> bool:
    """Does a captured float tensor hold a minus infinity? A device is asked once for every version of a tensor."""
    if x.device.type == "meta":
        return False
    x = _bare(x)
    if x.is_inference():
        return _look(x)
    known: Recent[tuple[object, ...], bool] = _KNOWN.setdefault(holder(x), Recent(8))
    return known.made(place(x), lambda: _look(x))


def _look(x: torch.Tensor) -> bool:
    return bool(torch.isneginf(x.detach()).any())


def _bare(x: torch.Tensor) -> torch.Tensor:
    """Of what vmap maps over, all at once: a trace is one for all."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


class Contents:
    """A tensor that equals those with the same contents."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Contents):
            return NotImplemented
        a, b = _bare(self.tensor).detach(), _bare(other.tensor).detach()
        if a is b or a.device.type == "meta" or (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()):
            return a.shape == b.shape
        return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())

    __hash__ = None  # type: ignore[assignment]  # contents change
