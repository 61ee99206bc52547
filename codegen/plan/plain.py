"""The plan whose reductions all run: for back ends that print one text for all sizes (`Reduce.instead`)."""

from __future__ import annotations

from dataclasses import replace

from einfuse.codegen.plan.dataflow import prune
from einfuse.codegen.plan.nodes import KernelPlan, Reduce, Region


def plain(plan: KernelPlan) -> KernelPlan:
    """The plan without `Reduce.instead`, and without what was computed for it alone."""

    def region(ops: Region) -> Region:
        return tuple(replace(op, instead=None, enough=(0, 0)) if isinstance(op, Reduce) else op for op in ops)

    whole = plan.mapped(region, lambda f: f.mapped(region))
    return plan if whole.steps == plan.steps else prune(whole)
