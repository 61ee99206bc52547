"""Who holds which positions of a sequence."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from einfuse.distributed.routes import Rows


@dataclass(frozen=True, eq=False)
class Layout:
    """Rows of every device along the axes of a mesh, by the name of the axis."""

    held: dict[str, tuple[Rows, ...]]

    def rows(self, axis: str, total: int) -> Sequence[Rows]:
        """The rows along an axis. Raises ValueError for a sequence of another length."""
        found = self.held[axis]
        if sum(map(len, found)) != total:
            raise ValueError(f"the layout is one of {sum(map(len, found))} positions, found {total}")
        return found


def contiguous(counts: Sequence[int]) -> tuple[Rows, ...]:
    """So many rows each, one after the other."""
    ends = torch.tensor([0, *counts]).cumsum(0).tolist()
    return tuple(torch.arange(a, b) for a, b in itertools.pairwise(ends))
