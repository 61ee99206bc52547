"""Rewrites of a plan before it is printed: slices (`slices`), exponentials of differences, loads of what exists, sums of products by
rows, those of `algebra`, removal of what nothing reads, and products that fp16 would not hold (`overflow`).

    before   x = s - m ; p = exp(x)                     s[i, j], m[i]
    after    p = exp_difference(s, m)                   printed  exp2(s * log2e - (m * log2e))

See `codegen.exponentials`; where s is itself c * y with a scalar c, ``exp_difference(y, m, c)`` is printed exp2(y * (c * log2e) - ...).

    before   t = x * y ; r = sum[e] t                   the sums that `codegen.rows` names, which ``tl.sum`` adds up in another order
    after    r = dot[e](x, y)                           where matrix products are exact (fp32)

    before   v = load ; o = dot[j](p, v) where alive
    after    v = load where alive ; o = dot[j](p, v)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from einfuse.codegen.exponentials import difference
from einfuse.codegen.plan import (
    Dot,
    KernelPlan,
    Load,
    Map,
    Op,
    PlanPass,
    Reduce,
    Region,
    Store,
    Value,
    live,
    operations,
    prune,
    reads,
)
from einfuse.codegen.rows import row_products
from einfuse.codegen.triton.algebra import EXP_DIFFERENCE as EXP_DIFFERENCE
from einfuse.codegen.triton.algebra import lighten
from einfuse.codegen.triton.overflow import widen
from einfuse.codegen.triton.slices import sliced


def exp_differences(plan: KernelPlan) -> KernelPlan:
    """The plan with exponentials of differences as one operation each."""
    return _everywhere(plan, _exponentials)


def existing_loads(plan: KernelPlan) -> KernelPlan:
    """The plan that loads right operands of products where they exist: the rest of a region needs no other points of them either."""
    return _everywhere(plan, _guarded)


def _everywhere(plan: KernelPlan, rewritten: Callable[[Region], Region]) -> KernelPlan:
    return plan.mapped(rewritten, lambda f: f.mapped(rewritten))


def _exponentials(region: Region) -> Region:
    made = {op.out.name: op for op in region if isinstance(op, Map)}

    def rewritten(op: Op) -> Op:
        found = difference(op, made)
        if found is None or not isinstance(op, Map):
            return op
        return Map(op.out, EXP_DIFFERENCE, tuple(v for v in found if v is not None))

    return tuple(map(rewritten, region))


def _guarded(region: Region) -> Region:
    loads = {op.out.name: op for op in region if isinstance(op, Load)}
    conditions: dict[str, set[Value | None]] = {}
    for op in region:
        if isinstance(op, Dot) and op.b.name in loads and op.rank == op.b.dims[0]:
            conditions.setdefault(op.b.name, set()).add(op.where)
    alike = {n: w for n, (w, *others) in conditions.items() if w is not None and not others and loads[n].where in (None, w)}
    first = tuple(op for op in live(region, [w.name for w in alike.values()]) if not isinstance(op, Store))
    alike = {n: w for n, w in alike.items() if loads[n] not in first}  # no condition is made of what it guards
    return (*first, *(_existing(op, alike) for op in region if op not in first)) if alike else region


def _existing(op: Op, conditions: Mapping[str, Value]) -> Op:
    if isinstance(op, Load) and op.out.name in conditions:
        return replace(op, where=conditions[op.out.name])
    if isinstance(op, Dot) and op.where and conditions.get(op.b.name) == op.where:
        return replace(op, where=None)
    return op


def row_sums(plan: KernelPlan) -> KernelPlan:
    """The plan with sums of products by rows as matrix products, where these are exact."""
    sums = row_products(plan) if plan.narrow == "f32" else {}

    def rewritten(op: Op) -> Op:
        if not isinstance(op, Reduce) or op.out.name not in sums:
            return op
        return Dot(op.out, *sums[op.out.name], op.rank, narrow=False)

    return plan.mapped(lambda region: tuple(map(rewritten, region)), lambda f: f)


PASSES = (
    PlanPass("slice", sliced),
    PlanPass("exp_differences", exp_differences),
    PlanPass("existing_loads", existing_loads),
    PlanPass("row_sums", row_sums),
    PlanPass("lighten", lighten),
    PlanPass("prune", prune),
    PlanPass("widen", widen),
)
"""What becomes of a plan before it is printed."""


def computed_with(plan: KernelPlan) -> set[str]:
    """The values that anything but a matrix product in the storage dtype reads: a load of such a value is converted."""
    names: set[str] = set()
    for op in operations(plan):
        for v in reads(op):
            if not (isinstance(op, Dot) and op.narrow and v is not op.acc):
                names.add(v.name)
    return names | {u.name for f in plan.folds for p in f.phases for u in p.updates}
