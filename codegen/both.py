"""Two plans without loops over the same blocks as one: what both compute is computed once.

rows       qk = q . k ; p = exp(qk - m) ; dp = do . v ; ... ; dq = ds . k
columns    qk = q . k ; p = exp(qk - m) ; dp = do . v ; ... ; dk = ds . q ; dv = p . do
both       qk ; p ; dp ; ds ; dq ; dk ; dv          five products for seven
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from einfuse.codegen.plan import Block, Dot, KernelPlan, Map, Op, Region, Store, Value, computed, live, renamed, with_out
from einfuse.ir.rewrite import fresh


def both(first: KernelPlan, second: KernelPlan) -> KernelPlan | None:
    """The plan of two that are straight-line code (see `codegen.held`) over the same points and blocks; None for others."""
    regions = [p.straight for p in (first, second)]
    features = _joined(first.features, second.features)
    alike = (first.ambient, first.compute, first.narrow) == (second.ambient, second.compute, second.narrow)
    if features is None or not alike or any(r is None for r in regions):
        return None
    if {t.name for t in first.tensors if t.out} & {t.name for t in second.tensors}:
        return None
    writer = _Writer(tuple(b.rank for b in features))
    for region in regions:
        writer.region(region or ())
    held = {t.name for t in first.tensors}
    return replace(
        first,
        name=f"{first.name}_and_{second.name}",
        equations=f"{first.equations.rstrip()}\n{second.equations.rstrip()}",
        features=features,
        tensors=(*first.tensors, *(t for t in second.tensors if t.name not in held)),
        params=tuple(dict.fromkeys((*first.params, *second.params))),
        sizes=tuple(dict.fromkeys((*first.sizes, *second.sizes))),
        steps=(live(writer.ops, ()),),
    )


def _joined(first: tuple[Block, ...], second: tuple[Block, ...]) -> tuple[Block, ...] | None:
    """The blocks of both in the order of the first; None where they do not agree on one."""
    known = {b.rank: b for b in first}
    if any(known.get(b.rank, b) != b for b in second):
        return None
    return (*first, *(b for b in second if b.rank not in known))


@dataclass(slots=True)
class _Writer:
    """One region, in which no operation stands twice; ``order`` is that of the ranks of its values."""

    order: tuple[str, ...]
    ops: list[Op] = field(default_factory=list)
    made: dict[Op, int] = field(default_factory=dict)  # the places of operations, by what they compute
    taken: set[str] = field(default_factory=set)

    def region(self, region: Region) -> None:
        new: dict[str, Value] = {}
        for op in region:
            op = self.turned(renamed(op, new))
            if isinstance(op, Store):
                self.ops.append(op)
                continue
            key = computed(op)
            key = replace(key, named=False) if isinstance(key, Map) else key
            if key not in self.made:
                self.made[key] = len(self.ops)
                self.ops.append(with_out(op, replace(op.out, name=fresh(op.out.name, self.taken))))
            new[op.out.name] = self.known(self.made[key], op)

    def known(self, at: int, op: Op) -> Value:
        """The value of the operation that stands ``at`` this place; it is that of a statement where either is."""
        found = self.ops[at]
        assert not isinstance(found, Store), "stores give no value"
        if isinstance(found, Map) and isinstance(op, Map) and op.named:
            self.ops[at] = replace(found, named=True)
        return found.out

    def turned(self, op: Op) -> Op:
        """The operation with its ranks in order, and of a product the operand first whose own rank is."""
        if isinstance(op, Store):
            return op
        op = with_out(op, replace(op.out, dims=tuple(r for r in self.order if r in op.out.dims)))
        if isinstance(op, Dot) and op.where is None and self.own(op.b, op) < self.own(op.a, op):
            return replace(op, a=op.b, b=op.a)
        return op

    def own(self, operand: Value, op: Dot) -> int:
        return next((self.order.index(d) for d in operand.dims if d != op.rank), len(self.order))
