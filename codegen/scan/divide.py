"""Smaller kernels in place of a large one: values that took products to make are written down, and read by those that follow.

From a kernel without states its triangular systems are taken out, then the rows that products make of what it reads (learned features),
then half of its outputs, then the sums over pairs and the products that others follow. A kernel that carries states has what does not
depend on them made before it, for all blocks at once. Each of them holds less at a time; what is not handed over is computed again.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.codegen import plan as kp
from einfuse.codegen.plan.scan import Op, Prefix, Region, Relabel, ScanPlan, Solve, needed, reads
from einfuse.codegen.scan.handing import Handing


def divide(plan: ScanPlan) -> tuple[ScanPlan, ...]:
    """The kernels that together do what the kernel of ``plan`` does, in order; the plan itself where nothing can be taken out."""
    if plan.step == 1 or plan.count is None:
        return (plan,)
    if plan.states:
        return hoist(plan)
    stores = [op for op in plan.body if isinstance(op, kp.Store)]
    heavy, given = _behind_products(plan), {op.value.name for op in stores}
    systems: list[Op] = [op for op in plan.body if isinstance(op, Solve) and op.out.name not in given]
    if systems:
        return _divided(plan, [[op] for op in systems], [stores])
    features: list[Op] = [
        op for op in plan.body if isinstance(op, kp.Dot) and _is_row(plan, op) and op.out.name not in heavy | given
    ]
    if features:
        return _divided(plan, [features], [stores])
    if len(stores) > 1:
        return _divided(plan, [], [stores[: len(stores) // 2], stores[len(stores) // 2 :]])
    inside = [op for op in plan.body if not isinstance(op, kp.Store) and op.out.name in heavy - given]
    numbers: list[Op] = [op for op in inside if isinstance(op, kp.Reduce) and op.out.dims]
    rows: list[Op] = [op for op in inside if isinstance(op, kp.Dot) and _is_row(plan, op)]
    found = rows or numbers
    return _divided(plan, [found], [stores]) if found else (plan,)


def hoist(plan: ScanPlan) -> tuple[ScanPlan, ...]:
    """What does not depend on the states and takes products to make, for all blocks at once; then the kernel that carries the states."""
    depends = _dependent(plan)
    heavy = _behind_products(plan) | {op.out.name for op in plan.body if isinstance(op, kp.Dot | Solve)}
    later = {v.name for op in plan.body for v in reads(op) if isinstance(op, kp.Store) or op.out.name in depends}
    later |= {s.update.name for s in plan.states}
    return _ahead(plan, [op for op in plan.body if not isinstance(op, kp.Store) and op.out.name in (later & heavy) - depends])


def hoist_decays(plan: ScanPlan) -> tuple[ScanPlan, ...]:
    """What does not depend on the states, for all blocks at once, where decays of features are added up for it; then the kernel that
    carries the states. Sums over the points stay with it, for they are as large as states."""
    depends = _dependent(plan)
    made = {op.out.name: op for op in plan.body if not isinstance(op, kp.Store) and op.out.name not in depends}
    if (
        plan.count is None
        or not plan.states
        or not any(isinstance(op, Prefix) and len(op.out.dims) > 1 for op in made.values())
    ):
        return (plan,)
    early: dict[str, Op] = {}
    asked = [v.name for op in plan.body if not isinstance(op, kp.Store) and op.out.name in depends for v in reads(op)]
    while asked:
        op = made.get(asked.pop())
        if op is None or isinstance(op, kp.Load) or not op.out.dims:
            continue
        if isinstance(op, Relabel) or (isinstance(op, kp.Dot) and not {*op.out.dims} & {*plan.moving}):
            asked += [v.name for v in reads(op)]
        elif op.out.dtype == "float":
            early[op.out.name] = op
    return _ahead(plan, list(early.values()))


def _dependent(plan: ScanPlan) -> set[str]:
    """The states, and the values that depend on them."""
    depends = {s.value.name for s in plan.states}
    for op in plan.body:
        if not isinstance(op, kp.Store) and any(v.name in depends for v in reads(op)):
            depends.add(op.out.name)
    return depends


def _ahead(plan: ScanPlan, early: list[Op]) -> tuple[ScanPlan, ...]:
    """The kernel that makes some values, then the one that reads them; the plan itself where there are none."""
    if not early:
        return (plan,)
    work = Handing(plan)
    made: Region = ()
    body = plan.body
    for op in early:
        assert not isinstance(op, kp.Store), "they are values"
        write, read = work.handed(op.out)
        made = (*made, *needed(tuple(x for x in plan.body if not isinstance(x, kp.Store)), {op.out.name}), *write)
        body = tuple(dict.fromkeys(y for x in body for y in (read if x is op else (x,))))
    body = needed(body, {s.update.name for s in plan.states})
    before = work.part(replace(plan, name=f"{plan.name}_before", states=(), partial=()), made)
    return before, work.part(replace(plan, name=f"{plan.name}_on"), body, plan.after)


def _divided(plan: ScanPlan, cuts: list[list[Op]], outs: list[list[kp.Store]]) -> tuple[ScanPlan, ...]:
    """A kernel for each group of values that are handed over, in order, then one for each group of outputs."""
    body: Region = tuple(op for op in plan.body if not isinstance(op, kp.Store))
    work, bodies = Handing(plan), list[Region]()
    for group in cuts:
        handed = {op: work.handed(op.out) for op in group if not isinstance(op, kp.Store)}
        bodies.append((*needed(body, {op.out.name for op in handed}), *(x for write, _ in handed.values() for x in write)))
        body = tuple(dict.fromkeys(y for x in body for y in (handed[x][1] if x in handed else (x,))))
    bodies += [needed((*body, *group), set()) for group in outs]
    return tuple(work.part(replace(plan, name=f"{plan.name}_{n + 1}"), b) for n, b in enumerate(bodies))


def _is_row(plan: ScanPlan, op: kp.Dot) -> bool:
    """Does it leave a row of features at each point?"""
    return len(op.out.dims) == 2 and sum(r in plan.moving for r in op.out.dims) == 1


def _behind_products(plan: ScanPlan) -> set[str]:
    """The values that depend on a matrix product or a triangular system."""
    out: set[str] = set()
    made = {op.out.name for op in plan.body if isinstance(op, kp.Dot | Solve)}
    for op in plan.body:
        if not isinstance(op, kp.Store) and any(v.name in out | made for v in reads(op)):
            out.add(op.out.name)
    return out
