"""Memory for what kernels write: `empty` is `torch.empty`, with large pages where the block is large and on a CPU of Linux.

A C library maps blocks of more than 32 MB anew for every call, and the system clears each page when it is first written to. At 4 kB a page that
took 1.5 us of a kernel's time for every 16 tokens of 64 fp32 features; with pages of 2 MB it is a fifth of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import mmap
import os
from collections.abc import Callable, Sequence

import torch

LARGE = 2**24
"""Bytes from which on pages are asked for: below, memory is mostly what an earlier call gave back."""
HUGE = 2**21
"""Bytes of a large page."""
POISON = bool(os.environ.get("EINFUSE_POISON"))
"""Whether new memory is filled with NaN (of integers: the least one), so that what no kernel wrote is seen. The tests set the variable."""


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device, strides: Sequence[int] | None = None) -> torch.Tensor:
    """An uninitialised tensor, contiguous without ``strides``. That pages are large is a wish, which a system may not grant."""
    if strides is None:
        out = torch.empty(shape, dtype=dtype, device=device)
    else:
        out = torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device=device)
    size = out.numel() * out.itemsize  # nbytes fails where sizes are symbols
    if size >= LARGE and _real(out) and (advise := _madvise()) is not None:
        first = -(-out.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (out.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        advise(first, last - first, mmap.MADV_HUGEPAGE)
    return _poisoned(out) if POISON else out


def lasting(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros that stays, read in no order: on a CPU of Linux in large pages from the size of one on, so that finding the next row
    is no walk through the system's tables."""
    size = math.prod(shape) * dtype.itemsize
    if size < HUGE or device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype, device=device)
    block = mmap.mmap(-1, -(-size // HUGE) * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without them
        block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=dtype, count=size // dtype.itemsize).view(tuple(shape))


def small(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """The same below `LARGE` and on a CPU, where nothing looks on: past torch's dispatcher, in a third of the time."""
    out: torch.Tensor = _EMPTY(shape, strides, dtype)
    return _poisoned(out) if POISON else out


def _usual(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device="cpu")


_EMPTY = getattr(getattr(getattr(torch._C, "_dynamo", None), "guards", None), "_empty_strided_cpu", _usual)
"""torch's own kernels call it; no version promises that it is there."""


def _poisoned(x: torch.Tensor) -> torch.Tensor:
    if x.dtype is not torch.bool:
        x.fill_(torch.nan if x.is_floating_point() else torch.iinfo(x.dtype).min)
    return x


def _real(x: torch.Tensor) -> bool:
    """Whether it has memory of the host; a fake one, of a graph that is being captured, has none."""
    return type(x) is torch.Tensor and x.device.type == "cpu"


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's ``madvise``; None where it has none, or no large pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    found = ctypes.CDLL(None).madvise
    found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return found
