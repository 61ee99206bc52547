"""Whether a call may go past torch's dispatcher: nothing looks on, and its tensors are memory and nothing else."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad, profiler

STRIDED = torch.strided
PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_USUAL = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
_QUIET = frozenset({_USUAL.raw_repr(), _USUAL.add(torch._C.DispatchKey.ADInplaceOrView).raw_repr()})  # inference mode, and else


def plain(x: object) -> bool:
    """Whether it is a tensor that lies in memory as its strides say, and nothing else."""
    return type(x) in PLAIN and not (x.is_nested or x.is_neg() or x.is_meta) and x.layout is STRIDED  # type: ignore[attr-defined]  # a tensor


def watched() -> bool:
    """Whether anything looks on between torch's operators and their kernels: modes, transforms, tracers, autocast, profilers."""
    return (
        torch._C._dispatch_tls_local_include_set().raw_repr() not in _QUIET
        or torch._C._len_torch_function_stack() > 0
        or forward_ad._current_level >= 0
        or profiler._is_profiler_enabled
        or torch._C._is_any_autocast_enabled()
    )
