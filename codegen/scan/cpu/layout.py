"""How blocks lie in buffers: rows padded to whole vectors, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from einfuse.codegen.plan import Value
from einfuse.codegen.plan.scan import ScanPlan
from einfuse.codegen.scan.cpu.forms import identifier

LANES = 16
"""Numbers of a vector, at most."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The extents of a plan's ranks, in numbers and as text."""

    plan: ScanPlan

    def width(self, rank: str) -> int:
        """How many coordinates a buffer has room for."""
        if rank in self.plan.moving:
            return self.plan.step
        return next(f.block for f in self.plan.features if f.rank == rank)

    def bound(self, rank: str) -> str:
        """How many coordinates there are: fewer than the width in a short last block and in the last share."""
        if rank == self.plan.shared and self.plan.parts > 1:
            return "columns"
        return "n" if rank in self.plan.moving else f"{self.width(rank)}"

    def row(self, rank: str) -> int:
        """Numbers from one row along ``rank`` to the next."""
        return padded(self.width(rank))

    def strides(self, dims: tuple[str, ...]) -> dict[str, int]:
        """Numbers from a coordinate to the next, the last rank first."""
        out, step = {}, 1
        for n, r in enumerate(reversed(dims)):
            out[r] = step
            step *= self.row(r) if n == 0 else self.width(r)
        return out

    def volume(self, v: Value) -> int:
        """Numbers that the buffer of a value holds."""
        out = 1
        for n, r in enumerate(reversed(v.dims)):
            out *= self.row(r) if n == 0 else self.width(r)
        return padded(out)


def padded(n: int) -> int:
    return -(-n // LANES) * LANES


def extent(size: int | str) -> str:
    """A size: a number, or one that is known at launch."""
    return f"{size}L" if isinstance(size, int) else f"size_{identifier(size)}"
