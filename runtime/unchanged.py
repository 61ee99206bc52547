"""Whether tensors are those of an earlier call, with the values they had then: the very ones, or the same views of the very ones.

What takes few bytes on the host is known by its values alone: layers that make a mask each make the same one. Of others torch counts how
often it wrote them. What numpy writes, or a user through ``.data``, it does not count: small tensors on the host are known by a checksum
as well; of others the user says so (``torch.autograd.graph.increment_version``).
"""

from __future__ import annotations

import ctypes
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from einfuse.runtime.capture import capturing

FEW = 1 << 14
"""The most bytes that are kept and compared: as fast as a checksum."""
SMALL = 1 << 19
"""The most bytes whose checksum is taken at a call: 0.2 ms at most, less than the attention that reads them takes."""
Seen = tuple[weakref.ref[torch.Tensor] | None, tuple[object, ...]]
"""The tensor that holds the memory, and what else the values follow from: where a view lies in it, and how often it was written. Or no tensor,
and the values."""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Tensors by identity and version, without keeping them alive. A view (``doc[None]``) is known by the tensor it is a view of."""

    tensors: tuple[Seen, ...]

    @staticmethod
    def of(tensors: Sequence[torch.Tensor]) -> Unchanged | None:
        """What recognises these; None where a change in place would go unseen: one counts no versions (a large inference tensor), or a CUDA
        graph is captured, whose replays call nobody.
        """
        if capturing():
            return None
        seen = tuple([(None, few) if (few := values(x)) else (weakref.ref(holder(x)), place(x)) for x in tensors])
        return Unchanged(seen) if all(ref is None or told(where) for ref, where in seen) else None

    def are(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are the same tensors, or the same views, with the same values; of a capture nobody knows."""
        if capturing():
            return False
        same = zip(self.tensors, tensors, strict=True)
        return all(seen == values(x) if ref is None else ref() is holder(x) and seen == place(x) for (ref, seen), x in same)


def values(x: torch.Tensor) -> tuple[object, ...] | None:
    """The bytes of a tensor that takes few, on the host, and what they mean; None of another."""
    if not x.is_cpu or not 0 < x.nbytes <= FEW:
        return None
    held = x if x.is_contiguous() else x.detach().contiguous()
    return bytes(memoryview(_Bytes.from_address(held.data_ptr()))[: held.nbytes]), x.shape, x.dtype, x.is_neg()


def holder(x: torch.Tensor) -> torch.Tensor:
    """The tensor that a view is a view of, or the tensor itself."""
    base: torch.Tensor | None = x._base  # of a view of a view: the first one
    return x if base is None else base


def place(x: torch.Tensor) -> tuple[object, ...]:
    """What the values follow from beside the tensor that holds them."""
    version = None if x.is_inference() else x._version
    return version, _checksum(x), x.data_ptr(), x.shape, x.stride(), x.dtype, x.is_neg()


def told(place: tuple[object, ...]) -> bool:
    """Whether a change in place would show in `place`: torch counts what it writes there, or there is a checksum."""
    return place[:2] != (None, None)


def _checksum(x: torch.Tensor) -> int | None:
    """Of all bytes of a small tensor on the host (of its whole storage where that holds no more); None for another."""
    if not x.is_cpu:
        return None
    start, size = x.data_ptr(), x.nbytes
    if not x.is_contiguous():
        whole = x.untyped_storage()
        if size >= whole.nbytes():
            start, size = whole.data_ptr(), whole.nbytes()
        elif size <= SMALL:
            x = x.detach().contiguous()
            start = x.data_ptr()
    return zlib.crc32(memoryview(_Bytes.from_address(start))[:size]) if 0 < size <= SMALL else None


_Bytes = ctypes.c_char * SMALL
"""One type for tensors of all sizes: ctypes takes longer to make one than to look through a mask. Only so much is read as there is."""
