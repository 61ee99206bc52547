"""Whether tensors are the very ones of an earlier call, with the values they had then."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Tensors by identity and version, without keeping them alive."""

    tensors: tuple[tuple[weakref.ref[torch.Tensor], int], ...]

    @staticmethod
    def of(tensors: Sequence[torch.Tensor]) -> Unchanged | None:
        """What recognises these; None where one counts no versions (an inference tensor): a change in place would go unseen."""
        if any(x.is_inference() for x in tensors):
            return None
        return Unchanged(tuple((weakref.ref(x), x._version) for x in tensors))

    def are(self, tensors: Sequence[torch.Tensor]) -> bool:
        same = zip(self.tensors, tensors, strict=True)
        return all(ref() is x and not x.is_inference() and version == x._version for (ref, version), x in same)
