"""In which order the tiles of a point should run: the largest first, so that no thread or multiprocessor is left with one at the end."""

from __future__ import annotations

from einfuse.codegen.plan import KernelPlan, Op, Size, dependent


def largest_last(plan: KernelPlan) -> bool:
    """Whether later tiles have longer loops: what ends a loop follows the tile and what starts it does not, as under a causal mask.

    Where both follow it (a window) or neither does, tiles are as large as each other, and a mask that nothing satisfies leaves no loop
    at all; lists of tiles and unions of ranges are not looked into.
    """
    if plan.tile is None:
        return False
    bounds = {f"{plan.tile.rank}.lo", f"{plan.tile.rank}.hi"}

    def follows_tile(op: Op) -> bool:
        return isinstance(op, Size) and op.name in bounds

    grows = [
        0 < len(f.phases) <= 3 and f.phases[-1].hi.name in moving and f.phases[0].lo.name not in moving
        for f in plan.folds
        if not f.tabulated
        for moving in [dependent(f.bounds, follows_tile)]
    ]
    return bool(grows) and all(grows)
