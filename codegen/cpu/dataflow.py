"""What an operation reads and where it runs, and the removal of what nothing reads."""

from __future__ import annotations

from dataclasses import replace

from einfuse.codegen.plan import Fold, KernelPlan, Op, Reduce, Region, Store, live, reads


def domain(op: Op, order: tuple[str, ...]) -> tuple[str, ...]:
    """The ranks an operation runs over: those of what it writes, and the reduced one."""
    if isinstance(op, Store):
        spanned = {d for v in (*op.index, op.value) for d in v.dims}
    elif isinstance(op, Reduce):
        spanned = set(op.arg.dims)
    else:
        spanned = set(op.out.dims)
    return tuple(r for r in order if r in spanned)


def fold_reads(fold: Fold) -> set[str]:
    """The names that a fold reads anywhere."""
    names = {v.name for op in fold.bounds for v in reads(op)}
    for p in fold.phases:
        names |= {v.name for op in p.body for v in reads(op)} | {u.name for u in p.updates} | {p.lo.name, p.hi.name}
    return names


def prune(plan: KernelPlan) -> KernelPlan:
    """The plan without operations that no store needs."""
    wanted: set[str] = set()
    steps: list[Region | Fold] = []
    for step in reversed(plan.steps):
        if isinstance(step, Fold):
            phases = tuple(replace(p, body=live(p.body, {u.name for u in p.updates})) for p in step.phases)
            step = replace(step, phases=phases)
            step = replace(step, bounds=live(step.bounds, wanted | fold_reads(step)))
            wanted |= fold_reads(step)
        else:
            step = live(step, wanted)
            wanted |= {v.name for op in step for v in reads(op)}
        steps.append(step)
    return replace(plan, steps=tuple(reversed(steps)))
