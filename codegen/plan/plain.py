"""The plan whose reductions all run: for back ends that print one text for all sizes (`Reduce.instead`)."""

from __future__ import annotations

from dataclasses import replace

from einfuse.codegen.plan.dataflow import prune
from einfuse.codegen.plan.nodes import Fold, KernelPlan, Reduce, Region


def plain(plan: KernelPlan) -> KernelPlan:
    """The plan without `Reduce.instead`, and without what was computed for it alone."""

    def region(ops: Region) -> Region:
        return tuple(replace(op, instead=None, enough=(0, 0)) if isinstance(op, Reduce) else op for op in ops)

    def step(s: Region | Fold) -> Region | Fold:
        if not isinstance(s, Fold):
            return region(s)
        return replace(s, phases=tuple(replace(p, body=region(p.body)) for p in s.phases))

    steps = tuple(map(step, plan.steps))
    return plan if steps == plan.steps else prune(replace(plan, steps=steps))
