"""Sums of what stands at a computed place, as additions at these places: `by_place` makes one of every sum that a selection by place hides.

before   here[i, j, e] = e == at[i, j] ; t = select(here, x[i, j], 0) ; o[i, e] = sum[j](t)          a value for every pair and place
after    o[i, e] = sum[j](x[i, j]) at at[i, j]                                                         one addition for every pair

Factors and conditions without the rank of the places, as those that say which columns exist, go with what is added.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from einfuse.codegen.plan import Const, Coordinate, KernelPlan, Map, Op, Reduce, Region, Store, Value, operations
from einfuse.ir.rewrite import fresh


def by_place(plan: KernelPlan) -> KernelPlan:
    """The plan with such sums; itself where it has none."""
    if not any(isinstance(op, Reduce) and op.reducer.sums and len(op.arg.dims) > 2 for op in operations(plan)):
        return plan
    taken = {op.out.name for op in operations(plan) if not isinstance(op, Store)}
    known = {op.out.name: op for op in plan.outer if isinstance(op, Const | Coordinate)}

    def region(region: Region) -> Region:
        return _Region(plan, taken, {**known}).rewritten(region)

    return plan.mapped(region, lambda f: f.mapped(region))


@dataclass(slots=True)
class _Region:
    """``made`` are the operations so far by what they give, ``ops`` those of the new region."""

    plan: KernelPlan
    taken: set[str]
    made: dict[str, Op]
    ops: list[Op] = field(default_factory=list)

    def rewritten(self, region: Region) -> Region:
        for op in region:
            if not isinstance(op, Store):
                self.made[op.out.name] = op
            self.ops.append(self.placed(op) if isinstance(op, Reduce) and op.reducer.sums and len(op.arg.dims) == 3 else op)
        return tuple(self.ops)

    def placed(self, op: Reduce) -> Reduce:
        """The sum as additions at places, behind what makes the numbers that are added; itself where it is no such sum."""
        for rank in (b.rank for b in self.plan.features if b.rank in op.out.dims):
            found = self.number(op.arg, rank)
            if found is not None:
                pair = tuple(d for d in op.arg.dims if d != rank)
                x, at = (v if v.dims == pair else self.map("copy", (v,), pair) for v in found)
                return replace(op, arg=x, at=at)
        return op

    def number(self, v: Value, rank: str) -> tuple[Value, Value] | None:
        """Of a value that is a number at one place of the rank and 0 elsewhere, that number and the place; None of any other."""
        match self.made.get(v.name):
            case Map(fn="select", args=(when, x, other)) if self.is_zero(other):
                here = self.made.get(when.name)
                ends = here.args if isinstance(here, Map) and here.fn == "==" else ()
                for e, at in (ends, ends[::-1]) if ends else ():
                    if self.made.get(e.name) == Coordinate(e, rank) and rank not in (*at.dims, *x.dims):
                        return x, at
                found = self.number(x, rank) if rank not in when.dims else None
                return found and (self.map("select", (when, found[0], other)), found[1])
            case Map(fn="float", args=(x,)):
                found = self.number(x, rank)
                return found and (self.map("float", (found[0],)), found[1])
            case Map(fn="*", args=(a, b)):
                for factor, y in ((a, b), (b, a)):
                    found = self.number(y, rank) if rank not in factor.dims else None
                    if found:
                        return self.map("*", (factor, found[0])), found[1]
        return None

    def is_zero(self, v: Value) -> bool:
        op = self.made.get(v.name)
        return isinstance(op, Const) and op.value == 0

    def map(self, fn: str, args: tuple[Value, ...], dims: tuple[str, ...] = ()) -> Value:
        """A new operation, over the ranks of its operands where no others are given."""
        spanned = {*dims}.union(*(a.dims for a in args))
        dtype = "float" if fn == "float" else args[-1].dtype
        out = Value(fresh("placed", self.taken), tuple(r for r in self.plan.order if r in spanned), dtype)
        self.ops.append(Map(out, fn, args))
        return out
