"""One feature rank of a scan shared out over programs: each holds some of its columns, and nothing else changes.

A value is *whole* (the same in every program), a *slice* (it has the rank), or *partial*: the true value is the sum over the programs.
Sums over the rank make partial values; what is linear in those stays partial, and a partial output goes to a buffer of its own with
one more axis, which is summed afterwards. Where a partial value meets anything that is not linear in it the rank cannot be shared.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from einfuse.codegen import plan as kp
from einfuse.codegen.plan import Value
from einfuse.codegen.plan.scan import Op, Partial, Prefix, Relabel, ScanPlan, Solve, fresh_names
from einfuse.ir.rewrite import fresh

Kind = Literal["whole", "slice", "partial"]


def share(plan: ScanPlan, rank: str, width: int) -> ScanPlan | None:
    """The plan with ``width`` columns of the feature ``rank`` a program; None where an update or an output is not linear in its sums."""
    try:
        return _Sharing(plan, rank).run(width)
    except _NotLinearError:
        return None


def shareable(plan: ScanPlan) -> str | None:
    """The feature rank whose columns can best be shared: that of the most states, with the fewest partial outputs."""
    found = [(f.rank, share(plan, f.rank, 1)) for f in plan.features]
    able = [(r, p) for r, p in found if p is not None]
    held = {r: sum(r in s.value.dims for s in plan.states) for r, _ in able}
    return min(able, key=lambda x: (-held[x[0]], len(x[1].partial), -plan.order.index(x[0])))[0] if able else None


class _NotLinearError(Exception):
    """A partial value is used as only a whole one can be."""


@dataclass(slots=True)
class _Sharing:
    plan: ScanPlan
    rank: str
    kinds: dict[str, Kind] = field(default_factory=dict)
    partial: list[str] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    firsts: dict[str, Value] = field(default_factory=dict)

    def run(self, width: int) -> ScanPlan:
        plan = self.plan
        summed: set[str] = set()
        while True:  # a state is partial where its update is: found by trying, at most once a state
            made = self._tried(width, summed)
            more = {s.value.name for s in plan.states if self.kinds[s.update.name] == "partial"} - summed
            if not more:
                return made
            summed |= more

    def _tried(self, width: int, summed: set[str]) -> ScanPlan:
        plan = self.plan
        self.kinds, self.partial, self.names, self.firsts = {}, [], fresh_names(plan), {}
        before = self._region(plan.before)
        self.firsts = {}
        states = []
        for s in plan.states:
            kind: Kind = "partial" if s.value.name in summed else "slice" if self.rank in s.value.dims else "whole"
            self.kinds[s.value.name] = kind
            if kind == "partial":
                self.ops = list(before)
                s = replace(s, init=self._once(s.init))
                before = tuple(self.ops)
                self.firsts = {}
            states.append(s)
        body = self._region(plan.body)
        final = []
        self.ops = list(body)
        for s in states:
            kind = self.kinds[s.value.name]
            if kind == "partial" and self.kinds[s.update.name] == "whole":
                s = replace(s, update=self._once(s.update))
            if kind != "partial" and self.kinds[s.update.name] == "slice" and kind == "whole":
                raise _NotLinearError
            final.append(s)
        body = tuple(self.ops)
        self.firsts = {}
        after = self._region(plan.after)
        features = tuple(replace(f, block=width) if f.rank == self.rank else f for f in plan.features)
        axes = {p.tensor: p.axes for p in plan.partial}
        axes |= {n: ("part", *axes.get(n, ())) for n in self.partial}
        partial = tuple(Partial(n, a) for n, a in axes.items())
        tensors = tuple(
            replace(t, axes=t.axes + 1, storage=plan.compute) if t.name in self.partial else t for t in plan.tensors
        )
        return replace(plan, before=before, body=body, after=after, states=tuple(final), features=features, tensors=tensors,
                       partial=partial, shared=self.rank)  # fmt: skip

    # -- operations --------------------------------------------------------------------------------------------------------------

    def _region(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        self.ops = []
        for op in ops:
            if isinstance(op, kp.Store):
                self._store(op)
            else:
                made, kind = self._operation(op)
                self.kinds[op.out.name] = kind
                self.ops.append(made)
        return tuple(self.ops)

    def _store(self, op: kp.Store) -> None:
        if self.kinds[op.value.name] == "partial":
            if op.tensor not in self.partial:
                self.partial.append(op.tensor)
            op = replace(op, index=(self._part(), *op.index))
        self.ops.append(op)

    def _operation(self, op: Op) -> tuple[Op, Kind]:
        match op:
            case kp.Coordinate(rank=rank):
                return op, "slice" if rank == self.rank else "whole"
            case kp.Load(index=index):
                if any(self.kinds[v.name] == "partial" for v in index):
                    raise _NotLinearError
                return op, "slice" if self.rank in op.out.dims else "whole"
            case kp.Map():
                return self._map(op)
            case kp.Reduce(reducer=reducer, arg=arg, rank=rank):
                kind = self.kinds[arg.name]
                if not reducer.sums and (kind == "partial" or rank == self.rank):
                    raise _NotLinearError
                return op, "partial" if rank == self.rank else kind
            case kp.Dot(a=a, b=b, rank=rank):
                return op, "partial" if rank == self.rank else self._product([self.kinds[a.name], self.kinds[b.name]])
            case Solve(matrix=matrix, known=known):
                if self.kinds[matrix.name] != "whole":
                    raise _NotLinearError
                return op, self.kinds[known.name]
            case Relabel(arg=arg) | Prefix(arg=arg):
                return op, self.kinds[arg.name]
        return op, "whole"

    def _product(self, kinds: list[Kind]) -> Kind:
        if "partial" in kinds:
            if sorted(kinds) != sorted(["partial", *["whole"] * (len(kinds) - 1)]):
                raise _NotLinearError
            return "partial"
        return "slice" if "slice" in kinds else "whole"

    def _map(self, op: kp.Map) -> tuple[Op, Kind]:
        kinds = [self.kinds[a.name] for a in op.args]
        if "partial" not in kinds:
            return op, "slice" if "slice" in kinds else "whole"
        if op.fn in ("+", "-") or (op.fn == "select" and kinds[0] == "whole"):
            head = op.args[:1] if op.fn == "select" else ()
            rest = op.args[len(head) :]
            if "slice" in kinds:
                raise _NotLinearError
            return replace(op, args=(*head, *map(self._once, rest))), "partial"
        if op.fn in ("neg", "copy") or op.fn == "*" or (op.fn == "/" and kinds[1] == "whole"):
            return op, self._product(kinds)
        raise _NotLinearError

    # -- the first program's share -----------------------------------------------------------------------------------------------

    def _part(self) -> Value:
        """The number of the program along the shared rank."""
        if "part" not in self.firsts:
            self.firsts["part"] = Value(fresh("part_at", self.names), (), "int")
            self.ops.append(kp.Coordinate(self.firsts["part"], "<part>"))
        return self.firsts["part"]

    def _once(self, v: Value) -> Value:
        """A whole value as a partial one: itself in the first program, 0 in the others."""
        if self.kinds[v.name] == "partial" or self._zero(v):
            return v
        part = self._part()
        if "first" not in self.firsts:
            zero, first = Value(fresh("part_zero", self.names), (), "int"), Value(fresh("part_first", self.names), (), "bool")
            nothing = Value(fresh("part_nothing", self.names), (), "float")
            self.ops += [kp.Const(zero, 0), kp.Map(first, "==", (part, zero)), kp.Const(nothing, 0.0)]
            self.firsts |= {"first": first, "nothing": nothing}
        out = Value(fresh(f"{v.name}_once", self.names), v.dims, "float")
        self.ops.append(kp.Map(out, "select", (self.firsts["first"], v, self.firsts["nothing"])))
        self.kinds[out.name] = "partial"
        return out

    def _zero(self, v: Value) -> bool:
        every = (*self.plan.before, *self.plan.body, *self.plan.after)
        found = next((op for op in every if isinstance(op, kp.Const) and op.out.name == v.name), None)
        return found is not None and found.value == 0
