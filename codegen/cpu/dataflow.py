"""What an operation reads and where it runs, the same operation on other values, and the removal of what nothing reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from einfuse.codegen.plan import (
    Const,
    Coordinate,
    Dot,
    Fold,
    KernelPlan,
    Load,
    Map,
    Op,
    Param,
    Reduce,
    Region,
    Size,
    Store,
    Value,
    reads,
)


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
            phases = tuple(replace(p, body=_live(p.body, {u.name for u in p.updates})) for p in step.phases)
            step = replace(step, phases=phases)
            step = replace(step, bounds=_live(step.bounds, wanted | fold_reads(step)))
            wanted |= fold_reads(step)
        else:
            step = _live(step, wanted)
            wanted |= {v.name for op in step for v in reads(op)}
        steps.append(step)
    return replace(plan, steps=tuple(reversed(steps)))


def _live(region: Region, wanted: set[str]) -> Region:
    needed, kept = set(wanted), []
    for op in reversed(region):
        if isinstance(op, Store) or op.out.name in needed:
            kept.append(op)
            needed |= {v.name for v in reads(op)}
    return tuple(reversed(kept))


def with_out(op: Op, out: Value) -> Op:
    """The operation as one that defines ``out``."""
    match op:
        case Const() | Coordinate() | Size() | Param() | Load() | Map() | Reduce() | Dot():
            return replace(op, out=out)
    raise AssertionError("stores give no value")


def renamed(op: Op, new: Mapping[str, Value]) -> Op:
    """The operation on the values that ``new`` gives for those it reads."""
    match op:
        case Load(index=index, where=where):
            return replace(op, index=tuple(new[v.name] for v in index), where=new[where.name] if where else None)
        case Map(args=args):
            return replace(op, args=tuple(new[v.name] for v in args))
        case Reduce(arg=arg):
            return replace(op, arg=new[arg.name])
        case Dot(a=a, b=b, acc=acc):
            return replace(op, a=new[a.name], b=new[b.name], acc=new[acc.name] if acc else None)
    return op
