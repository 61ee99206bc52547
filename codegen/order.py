"""In which order the tiles of a point should run: the largest first, so that no thread or multiprocessor is left with one at the end."""

from __future__ import annotations

from einfuse.codegen.plan import Fold, KernelPlan, Region, Size, Store, reads


def largest_last(plan: KernelPlan) -> bool:
    """Whether later tiles have longer loops: what ends a loop follows the tile and what starts it does not, as under a causal mask.

    Where both follow it (a window) or neither does, tiles are as large as each other, and a mask that nothing satisfies leaves no loop
    at all; lists of tiles and unions of ranges are not looked into.
    """
    if plan.tile is None:
        return False
    bounds = {f"{plan.tile.rank}.lo", f"{plan.tile.rank}.hi"}
    grows = [
        0 < len(f.phases) <= 3 and f.phases[-1].hi.name in moving and f.phases[0].lo.name not in moving
        for f in plan.steps
        if isinstance(f, Fold) and not f.tabulated
        for moving in [_following(f.bounds, bounds)]
    ]
    return bool(grows) and all(grows)


def _following(region: Region, sizes: set[str]) -> set[str]:
    """The values of a region that depend on one of these sizes."""
    found: set[str] = set()
    for op in region:
        if not isinstance(op, Store) and (
            (isinstance(op, Size) and op.name in sizes) or any(v.name in found for v in reads(op))
        ):
            found.add(op.out.name)
    return found
