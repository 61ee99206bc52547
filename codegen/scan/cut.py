"""A scan cut in two: one kernel carries the states from block to block, another does all the rest, every block on its own.

    carry   b, h            runs the blocks in order: only what the states need for their next values; writes them down at each start
    rest    b, h, n         any block at any time: reads the states it starts from

Carrying is a small part of the work and the only one that has to wait. What a triangular system gave is written down too; everything
else that both need is computed twice. A state that only adds up (the gradient of what does not vary along the scan) is no state any
more: each block writes its own summand, and the summands are added afterwards.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.codegen import plan as kp
from einfuse.codegen.plan import Value
from einfuse.codegen.plan.scan import Op, Partial, Region, ScanPlan, Solve, State, needed, reads
from einfuse.codegen.scan.handing import Handing
from einfuse.ir.rewrite import fresh


def cut(plan: ScanPlan) -> tuple[ScanPlan, ...]:
    """``carry`` and ``rest``, or the plan itself where it goes point by point, or has nothing to do but carry."""
    return _Cut(plan).run() if plan.step > 1 and plan.states else (plan,)


class _Cut:
    def __init__(self, plan: ScanPlan) -> None:
        self.plan = replace(plan, count=plan.count or "<block>")
        self.work = Handing(self.plan)
        self.ops = {op.out.name: op for op in (*plan.before, *plan.body, *plan.after) if not isinstance(op, kp.Store)}
        self.sums = [s for s in plan.states if self._adds_up(s)]
        self.carried = [s for s in plan.states if s not in self.sums]
        self.starts = {op.value.name: op for op in plan.body if isinstance(op, kp.Store) and self._is_start(op)}

    def run(self) -> tuple[ScanPlan, ...]:
        plan = self.plan
        stores = [op for op in plan.body if isinstance(op, kp.Store) and op not in self.starts.values()]
        if not stores and not self.sums:
            return (plan,)
        body = tuple(op for op in plan.body if not isinstance(op, kp.Store) or op in self.starts.values())
        carry = needed(body, {s.update.name for s in self.carried})
        depends = {s.value.name for s in self.carried}
        for op in plan.body:
            if not isinstance(op, kp.Store) and any(v.name in depends for v in reads(op)):
                depends.add(op.out.name)
        links = {op.out.name for op in carry if isinstance(op, Solve) and op.out.name in depends}
        rest = self._rest(stores, links)
        used = {v.name for op in rest for v in reads(op)}
        kept = [s.value for s in self.carried] + [
            op.out for op in carry if not isinstance(op, kp.Store) and op.out.name in links
        ]
        loads: Region = ()
        for v in kept:
            if v.name in used:
                write, read = self._handed(v)
                loads, carry = (*loads, *read), (*carry, *write)
        return self._parts(carry, (*loads, *rest))

    def _parts(self, carry: Region, rest: Region) -> tuple[ScanPlan, ...]:
        plan, sums = self.plan, {s.value.name for s in self.sums}
        ends = [op for op in plan.after if isinstance(op, kp.Store) and op.value.name in sums]
        partial = tuple(Partial(op.tensor, ("block",)) for op in ends)
        grown = {op.tensor for op in ends}
        tensors = tuple(replace(t, axes=t.axes + (t.name in grown)) for t in plan.tensors)
        own = replace(plan, name=f"{plan.name}_rest", states=(), partial=partial, tensors=tensors)
        parallel = self.work.part(own, rest)
        if not self.carried:
            return (parallel,)
        after = needed(tuple(op for op in plan.after if op not in ends), set())
        return self.work.part(replace(plan, name=f"{plan.name}_carry", states=tuple(self.carried)), carry, after), parallel

    def _adds_up(self, s: State) -> bool:
        """Is the state nothing but a sum over the blocks, from 0?"""
        op, init = self.ops.get(s.update.name), self.ops.get(s.init.name)
        readers = [x for x in self.plan.body if any(v.name == s.value.name for v in reads(x))]
        start = isinstance(init, kp.Const) and init.value == 0
        return start and isinstance(op, kp.Map) and op.fn == "+" and op.args.count(s.value) == 1 and readers == [op]

    def _is_start(self, op: kp.Store) -> bool:
        """Does it write a state down at the start of each block?"""
        held = any(op.value.name == s.value.name for s in self.plan.states)
        at = [self.ops[v.name] for v in op.index]
        return held and any(isinstance(x, kp.Coordinate) and x.rank == self.plan.count for x in at)

    def _rest(self, stores: list[kp.Store], links: set[str]) -> Region:
        """What the outputs need, down to the states at the start of a block and to what is handed over."""
        body: list[Op] = [op for op in self.plan.body if not isinstance(op, kp.Store) or op in stores]
        for s in self.sums:
            update = self.ops[s.update.name]
            assert isinstance(update, kp.Map), "it is a sum"
            (value,) = (a for a in update.args if a != s.value)
            body += self._summand(s, value)
        return needed(tuple(op for op in body if isinstance(op, kp.Store) or op.out.name not in links), set())

    def _summand(self, s: State, value: Value) -> list[Op]:
        """The block's share of a sum, at its place in a buffer with an axis for the blocks."""
        out: list[Op] = []
        for op in self.plan.after:
            if isinstance(op, kp.Store) and op.value == s.value:
                block = Value(fresh("block_at", self.work.names), (), "int")
                assert self.plan.count is not None, "its blocks have numbers"
                out += [x for x in needed(self.plan.after, {v.name for v in op.index}) if not isinstance(x, kp.Store)]
                out += [kp.Coordinate(block, self.plan.count), replace(op, index=(block, *op.index), value=value)]
        return out

    def _handed(self, v: Value) -> tuple[Region, Region]:
        """As `Handing.handed`; a state that is written down anyway is read from there."""
        if v.name not in self.starts:
            return self.work.handed(v)
        given = self.starts[v.name]
        held = {op.out.name: op for op in self.plan.body if isinstance(op, kp.Coordinate)}
        at = tuple(held[x.name] for x in given.index if x.name in held)
        return (), (*at, kp.Load(v, given.tensor, given.index))
