"""What captured tensors hold, as far as a trace depends on it; remembered while the tensor stays as it is."""

from __future__ import annotations

import weakref

import torch

_KNOWN: dict[int, tuple[weakref.ref[torch.Tensor], int, bool]] = {}


def minus_infinite(x: torch.Tensor) -> bool:
    """Does a captured float tensor hold a minus infinity? A device is asked once for every version of a tensor."""
    if x.device.type == "meta":
        return False
    if x.is_inference():
        return _look(x)
    known = _KNOWN.get(id(x))
    if known is None or known[0]() is not x or known[1] != x._version:
        key = id(x)
        known = weakref.ref(x, lambda _: _KNOWN.pop(key, None)), x._version, _look(x)
        _KNOWN[key] = known
    return known[2]


def _look(x: torch.Tensor) -> bool:
    return bool(torch.isneginf(_bare(x)).any())


def _bare(x: torch.Tensor) -> torch.Tensor:
    """Of what vmap maps over, all at once: a trace is one for all."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.detach()


class Contents:
    """A tensor that equals those with the same contents."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Contents):
            return NotImplemented
        a, b = _bare(self.tensor), _bare(other.tensor)
        if a is b or a.device.type == "meta" or (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()):
            return a.shape == b.shape
        return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())

    __hash__ = None  # type: ignore[assignment]  # contents change
