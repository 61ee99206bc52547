"""Facts about captured tensors that a trace depends on, remembered while the tensor stays as it is."""

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
    while torch._C._functorch.is_functorch_wrapped_tensor(x):  # of what vmap maps over, all at once: the trace is one for all
        x = torch._C._functorch.get_unwrapped(x)
    return bool(torch.isneginf(x.detach()).any())
