"""Rewrites of a plan before it is printed: exponentials of differences, sums of products by rows, those of `algebra`, and removal of what
nothing reads.

    before   x = s - m ; p = exp(x)                     s[i, j], m[i]
    after    p = exp_difference(s, m)                   printed  exp2(s * log2e - (m * log2e))

See `codegen.exponentials`; where s is itself c * y with a scalar c, ``exp_difference(y, m, c)`` is printed exp2(y * (c * log2e) - ...).

    before   t = x * y ; r = sum[e] t                   the sums that `codegen.rows` names, which ``tl.sum`` adds up in another order
    after    r = dot[e](x, y)                           where matrix products are exact (fp32)
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.codegen.exponentials import difference
from einfuse.codegen.plan import Dot, Fold, KernelPlan, Map, Op, PlanPass, Reduce, Region, prune, reads
from einfuse.codegen.rows import row_products
from einfuse.codegen.triton.algebra import EXP_DIFFERENCE as EXP_DIFFERENCE
from einfuse.codegen.triton.algebra import lighten


def exp_differences(plan: KernelPlan) -> KernelPlan:
    """The plan with exponentials of differences as one operation each."""

    def fold(step: Fold) -> Fold:
        return replace(step, phases=tuple(replace(p, body=_exponentials(p.body)) for p in step.phases))

    return replace(plan, steps=tuple(fold(s) if isinstance(s, Fold) else _exponentials(s) for s in plan.steps))


def _exponentials(region: Region) -> Region:
    made = {op.out.name: op for op in region if isinstance(op, Map)}

    def rewritten(op: Op) -> Op:
        found = difference(op, made)
        if found is None or not isinstance(op, Map):
            return op
        return Map(op.out, EXP_DIFFERENCE, tuple(v for v in found if v is not None))

    return tuple(map(rewritten, region))


def row_sums(plan: KernelPlan) -> KernelPlan:
    """The plan with sums of products by rows as matrix products, where these are exact."""
    sums = row_products(plan) if plan.narrow == "f32" else {}

    def rewritten(op: Op) -> Op:
        if not isinstance(op, Reduce) or op.out.name not in sums:
            return op
        return Dot(op.out, *sums[op.out.name], op.rank, narrow=False)

    return replace(plan, steps=tuple(s if isinstance(s, Fold) else tuple(map(rewritten, s)) for s in plan.steps))


PASSES = (
    PlanPass("exp_differences", exp_differences),
    PlanPass("row_sums", row_sums),
    PlanPass("lighten", lighten),
    PlanPass("prune", prune),
)
"""What becomes of a plan before it is printed."""


def computed_with(plan: KernelPlan) -> set[str]:
    """The values that anything but a matrix product in the storage dtype reads: a load of such a value is converted."""
    names: set[str] = set()

    def visit(region: Region) -> None:
        for op in region:
            for v in reads(op):
                if not (isinstance(op, Dot) and op.narrow and v is not op.acc):
                    names.add(v.name)

    for step in plan.steps:
        if isinstance(step, Fold):
            visit(step.bounds)
            for p in step.phases:
                visit(p.body)
                names.update(u.name for u in p.updates)
        else:
            visit(step)
    return names
