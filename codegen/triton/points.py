"""Several points a program: where a point is one block, a program takes a run of points, and what they share is computed once.

program of h and a run of (b, w):   bias = ...          once
                                    for point in run:   b, w = ... ; s = q . k + bias ; ...      the next point's blocks are loaded ahead
"""

from __future__ import annotations

from dataclasses import dataclass

from einfuse.codegen.plan import Block, KernelPlan, Op, Region
from einfuse.codegen.steady import Steady, steady

MOST = 8
"""Points a program takes at most: by then what is shared costs little."""
BUSY = 2048
"""Programs that a GPU is not left with fewer than, if there are as many points."""


@dataclass(frozen=True, slots=True)
class Points:
    """How the ambient points of a plan without loops are shared out: ``run`` ranks are walked by a program, ``fixed`` ones are its own."""

    fixed: tuple[Block, ...]
    run: tuple[Block, ...]
    known: Steady

    def split(self, region: Region) -> tuple[Region, Region]:
        """What a program computes once, and what it computes for every point of its run."""
        mine = {b.rank for b in self.run}

        def moves(op: Op) -> bool:
            return bool(self.known.of(op) & mine)

        return tuple(op for op in region if not moves(op)), tuple(op for op in region if moves(op))


def points(plan: KernelPlan) -> Points | None:
    """The runs of a plan; None for one with a tile or a loop of its own, or without points."""
    known = steady(plan)
    if known is None or not plan.ambient or len(plan.steps) != 1:
        return None
    most = max(known.cost.values())
    fixed = tuple(b for b in plan.ambient if most and known.cost[b.rank] > most / 2)
    run = tuple(b for b in plan.ambient if b not in fixed)
    return Points(fixed, run, known) if run else Points((), plan.ambient, known)
