"""Rewrites of a plan before it is printed: exponentials of differences, sums of products by rows, those of `algebra`, and removal of what
nothing reads.

    before   x = s - m ; p = exp(x)                     s[i, j], m[i]
    after    p = exp_difference(s, m)                   printed  exp2(s * log2e - (m * log2e))

See `codegen.exponentials`; where s is itself c * y with a scalar c, ``exp_difference(y, m, c)`` is printed exp2(y * (c * log2e) - ...).

    before   t = x * y ; r = sum[e] t                   the sums that `codegen.rows` names, which ``tl.sum`` adds up in another order
    after    r = dot[e](x, y)                           where matrix products are exact (fp32)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from einfuse.codegen.exponentials import difference
from einfuse.codegen.plan import Dot, Fold, KernelPlan, Map, Op, Phase, Reduce, Region, Value, live, reads
from einfuse.codegen.rows import row_products
from einfuse.codegen.triton.algebra import EXP_DIFFERENCE as EXP_DIFFERENCE
from einfuse.codegen.triton.algebra import lighten


def simplify(plan: KernelPlan) -> KernelPlan:
    sums = row_products(plan) if plan.narrow == "f32" else {}
    steps = tuple(_fold(s) if isinstance(s, Fold) else _row_products(_exponentials(s), sums) for s in plan.steps)
    steps = lighten(replace(plan, steps=steps)).steps
    kept: list[Region | Fold] = []
    wanted: set[str] = set()
    for step in reversed(steps):  # backwards: what a step defines is wanted if a later one reads it
        step = _live_fold(step, wanted) if isinstance(step, Fold) else live(step, wanted)
        wanted |= read_by(step)
        kept.append(step)
    return replace(plan, steps=tuple(reversed(kept)))


def _fold(fold: Fold) -> Fold:
    return replace(fold, phases=tuple(replace(p, body=_exponentials(p.body)) for p in fold.phases))


def _exponentials(region: Region) -> Region:
    made = {op.out.name: op for op in region if isinstance(op, Map)}

    def rewritten(op: Op) -> Op:
        found = difference(op, made)
        if found is None or not isinstance(op, Map):
            return op
        return Map(op.out, EXP_DIFFERENCE, tuple(v for v in found if v is not None))

    return tuple(map(rewritten, region))


def _row_products(region: Region, factors: Mapping[str, tuple[Value, Value]]) -> Region:
    def rewritten(op: Op) -> Op:
        if not isinstance(op, Reduce) or op.out.name not in factors:
            return op
        return Dot(op.out, *factors[op.out.name], op.rank, narrow=False)

    return tuple(map(rewritten, region))


def _live_fold(fold: Fold, after: set[str]) -> Fold:
    def phase(p: Phase) -> Phase:
        return replace(p, body=live(p.body, {u.name for u in p.updates}))

    phases = tuple(map(phase, fold.phases))
    inside = {n for p in phases for n in _read_in(p.body)} | {v.name for p in phases for v in (p.lo, p.hi)}
    return replace(fold, phases=phases, bounds=live(fold.bounds, inside | after))


def _read_in(region: Region) -> Iterator[str]:
    return (v.name for op in region for v in reads(op))


def read_by(*steps: Region | Fold) -> set[str]:
    """The names that anything in the steps reads."""
    names: set[str] = set()
    for step in steps:
        if not isinstance(step, Fold):
            names.update(_read_in(step))
            continue
        names.update(_read_in(step.bounds))
        for p in step.phases:
            names |= {*_read_in(p.body), p.lo.name, p.hi.name, *(u.name for u in p.updates)}
    return names


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
