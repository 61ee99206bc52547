"""The kernels of a scan where threads run it: one kernel, whose threads take a point of the ambient ranks each, or several for a team.

Where there are fewer points than threads the scan is cut (see `cut`): all blocks are shared out for what does not wait, and the columns
of the states for what does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from einfuse.codegen.plan.scan import ScanPlan
from einfuse.codegen.scan.columns import share, shareable
from einfuse.codegen.scan.cut import cut
from einfuse.codegen.scan.divide import divide

LANES = 16
"""The least columns a thread takes: a vector of fp32."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A kernel that nothing is done about."""

    plan: ScanPlan
    source: str
    options: dict[str, int] = field(default_factory=dict)

    def smaller(self) -> tuple[Whole, ...]:
        return ()


def kernels(plan: ScanPlan, crew: int) -> tuple[Whole, ...]:
    """The kernels for ``crew`` threads a point of the ambient ranks."""
    from einfuse.codegen.scan.cpu import emit

    if crew < 2:
        return (Whole(plan, emit(plan)),)
    parts = [q for p in cut(plan) for q in (divide(p) if p.states else (p,))]
    return tuple(Whole(p, emit(p)) for p in (_shared(p, crew) for p in parts))


def _shared(plan: ScanPlan, crew: int) -> ScanPlan:
    """With the columns of its states shared out."""
    rank = shareable(plan) if plan.states else None
    if rank is None:
        return plan
    size = next(f.size for f in plan.features if f.rank == rank)
    assert isinstance(size, int), "sizes of features are known"
    width = -(-size // crew // LANES) * LANES
    return (share(plan, rank, width) or plan) if width < size else plan
