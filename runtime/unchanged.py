"""Whether tensors are those of an earlier call, with the values they had then: the very ones, or the same views of the very ones."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Seen = tuple[weakref.ref[torch.Tensor], tuple[object, ...]]
"""The tensor that holds the memory, and what else the values follow from: where a view lies in it, and how often it was written."""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Tensors by identity and version, without keeping them alive. A view (``doc[None]``) is known by the tensor it is a view of."""

    tensors: tuple[Seen, ...]

    @staticmethod
    def of(tensors: Sequence[torch.Tensor]) -> Unchanged | None:
        """What recognises these; None where one counts no versions (an inference tensor): a change in place would go unseen."""
        if any(x.is_inference() for x in tensors):
            return None
        return Unchanged(tuple((weakref.ref(_holder(x)), _place(x)) for x in tensors))

    def are(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are the same tensors, or the same views, with the same values."""
        same = zip(self.tensors, tensors, strict=True)
        return all(ref() is _holder(x) and not x.is_inference() and place == _place(x) for (ref, place), x in same)


def _holder(x: torch.Tensor) -> torch.Tensor:
    base: torch.Tensor | None = x._base  # of a view of a view: the first one
    return x if base is None else base


def _place(x: torch.Tensor) -> tuple[object, ...]:
    return x._version, x.data_ptr(), x.shape, x.stride(), x.dtype, x.is_neg()
