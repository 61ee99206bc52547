"""How wide blocks are: powers of two, features no narrower than a matrix product takes."""

from __future__ import annotations

from dataclasses import dataclass

from einfuse.codegen.plan.scan import ScanPlan
from einfuse.codegen.triton.layout import MATRIX, power_of_two


@dataclass(frozen=True, slots=True)
class Layout:
    """The extents of a plan's ranks."""

    plan: ScanPlan

    def width(self, rank: str) -> int:
        """The padded extent of a rank."""
        if rank in self.plan.moving:
            return power_of_two(self.plan.step)
        return max(power_of_two(next(f.block for f in self.plan.features if f.rank == rank)), MATRIX)

    def padded(self, rank: str) -> bool:
        """May a block hold coordinates that do not exist?"""
        if rank in self.plan.moving:
            return True
        f = next(f for f in self.plan.features if f.rank == rank)
        assert isinstance(f.size, int), "sizes of features are known"
        return f.size % f.block != 0 or f.block != self.width(rank)
