"""What kernels of one scan hand to each other: values written down by one and read by the next, and the arguments that are left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from einfuse.codegen import plan as kp
from einfuse.codegen.plan import Value
from einfuse.codegen.plan.scan import Op, Region, ScanPlan, Scratch, fresh_names, needed, reads
from einfuse.ir.rewrite import fresh


@dataclass(slots=True)
class Handing:
    """Cuts parts out of ``plan``, whose values keep their names; ``scratch`` are the tensors between the parts."""

    plan: ScanPlan
    scratch: list[Scratch] = field(default_factory=list)
    names: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = fresh_names(self.plan)

    def handed(self, v: Value) -> tuple[Region, Region]:
        """The operations that write a value down, and those that read it again under its own name."""
        plan = self.plan
        moving = [r for r in plan.order if r in v.dims and r in plan.moving]
        assert plan.count is not None, "its blocks have numbers"
        ranks = (*(b.rank for b in plan.ambient), *(() if moving else (plan.count,)), *v.dims)
        index = [Value(fresh(f"{v.name}_at", self.names), (r,) if r in v.dims else (), "int") for r in ranks]
        at: list[Op] = [kp.Coordinate(x, r) for x, r in zip(index, ranks, strict=True)]
        for r in moving[1:]:  # the other point of a pair, by its place in the block
            n = ranks.index(r)
            ops = self._place(index[n])
            at += ops
            index[n] = ops[-1].out
        name = fresh(f"{v.name}_handed", self.names)
        self.scratch.append(Scratch(name, tuple(f"<{r}>" if r in moving[1:] else r for r in ranks)))
        return (*at, kp.Store(name, tuple(index), v)), (*at, kp.Load(v, name, tuple(index)))

    def _place(self, at: Value) -> list[kp.Const | kp.Coordinate | kp.Map]:
        """From coordinates along the scan to places in the block."""
        block, step, first, place = (
            Value(fresh(f"{at.name}_{what}", self.names), at.dims if what == "place" else (), "int")
            for what in ("block", "step", "first", "place")
        )
        assert self.plan.count is not None, "its blocks have numbers"
        multiplied = kp.Map(first, "*", (block, step))
        return [
            kp.Coordinate(block, self.plan.count),
            kp.Const(step, self.plan.step),
            multiplied,
            kp.Map(place, "-", (at, first)),
        ]

    def part(self, plan: ScanPlan, body: Iterable[Op], after: Region = ()) -> ScanPlan:
        """``plan`` with these operations, the ones before its blocks that they need, and the arguments that all of them use."""
        body = tuple(dict.fromkeys(body))
        wanted = {n for s in plan.states for n in (s.init.name, s.update.name)}
        wanted |= {v.name for op in (*body, *after) for v in reads(op)}
        before = needed(tuple(op for op in plan.before if not isinstance(op, kp.Store)), wanted)
        every = (*before, *body, *after)
        outs = {op.tensor for op in every if isinstance(op, kp.Store)}
        ins = {op.tensor for op in every if isinstance(op, kp.Load)}
        used = ins | outs
        partial = tuple(p for p in plan.partial if p.tensor in outs)
        tensors = [replace(t, out=t.name in outs) for t in plan.tensors if t.name in used]
        tensors += [kp.Arg(s.name, len(s.ranks), plan.compute, out=s.name in outs) for s in self.scratch if s.name in used]
        params = {op.name for op in every if isinstance(op, kp.Param)}
        extents = (plan.size, *(b.size for b in plan.ambient))
        sizes = {op.name for op in every if isinstance(op, kp.Size)} | {n for n in extents if isinstance(n, str)}
        return replace(
            plan,
            before=before,
            body=body,
            after=after,
            partial=partial,
            tensors=tuple({t.name: t for t in tensors}.values()),
            params=tuple(p for p in plan.params if p[0] in params),
            sizes=tuple(n for n in plan.sizes if n in sizes),
            scratch=tuple(s for s in (*plan.scratch, *self.scratch) if s.name in outs),
        )
