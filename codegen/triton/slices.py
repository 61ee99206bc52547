"""`sliced`: blocks of three ranks, of which one is held, as so many blocks of two: the held rank one coordinate after the other.

    s[i, j, a] = sum[c] q[i, a, c] * k[j, c]          s_0[i, j] = dot[c](q_0[i, c], k[j, c]) ; s_1[i, j] = dot[c](q_1[i, c], k[j, c]) ; ..
    x[i, j]    = sum[a] w[i, a] * max(s, 0)      ->   x[i, j]   = w_0[i] * max(s_0, 0) + w_1[i] * max(s_1, 0) + ..

Heads that are added up for every pair (indexers, groups that choose together) are such a rank. A block of three ranks is more than registers
hold, and no matrix unit takes it; blocks of two are matrix products.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from einfuse.codegen.plan import (
    Const,
    Coordinate,
    Dot,
    Fold,
    KernelPlan,
    Load,
    Map,
    Op,
    Phase,
    Reduce,
    Region,
    State,
    Store,
    Value,
    operations,
    prune,
    reads,
    renamed,
    with_out,
)
from einfuse.ir import DType
from einfuse.ir.rewrite import fresh

MOST = 32
"""Coordinates of a rank that is sliced: every one of them is text."""


def sliced(plan: KernelPlan) -> KernelPlan:
    """The plan without blocks of three ranks, where slices along held ranks do; the plan itself where they do not, or there are none."""
    made, left = plan, _wide(plan)
    while left:
        tried = (prune(_Slicer(made, r, n).plan_of_slices()) for r, n in _held(made))
        better = next((x for x in tried if _wide(x) < left), None)
        if better is None:
            return plan
        made, left = better, _wide(better)
    return made


def _wide(plan: KernelPlan) -> int:
    """The number of blocks of more than two ranks."""
    return sum(len(v.dims) > 2 for v in _values(operations(plan)))


def _held(plan: KernelPlan) -> Iterator[tuple[str, int]]:
    """The ranks that could be sliced, and their sizes: those that a block of three ranks has."""
    found = {r for v in _values(operations(plan)) if len(v.dims) > 2 for r in v.dims}
    for f in plan.features:
        if f.rank in found and isinstance(f.size, int) and 2 <= f.size <= MOST and _separate(plan, f.rank):
            yield f.rank, f.size


def _values(ops: Iterable[Op]) -> list[Value]:
    return [op.out for op in ops if not isinstance(op, Store)]


def _separate(plan: KernelPlan, rank: str) -> bool:
    """Whether the coordinates of a rank meet in nothing but plain reductions over it."""
    for op in operations(plan):
        if isinstance(op, Dot) and rank in (*op.a.dims, *op.b.dims):
            return False
        if isinstance(op, Reduce) and rank in op.arg.dims and (op.instead is not None or op.at is not None):
            return False
    return True


@dataclass(slots=True)
class _Slicer:
    """Writes a plan anew. ``slices`` gives those of values that span the rank, ``later`` loads that stand where they are first read: to hold
    all of them along a loop takes more registers than there are."""

    plan: KernelPlan
    rank: str
    size: int
    slices: dict[str, tuple[Value, ...]] = field(default_factory=dict)
    later: dict[str, Load] = field(default_factory=dict)
    made: dict[str, Op] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def plan_of_slices(self) -> KernelPlan:
        self.taken = {v.name for v in _values(operations(self.plan))} | {
            s.value.name for f in self.plan.folds for s in f.states
        }
        steps = tuple(self.fold(s) if isinstance(s, Fold) else self.region(s, outside=True) for s in self.plan.steps)
        return replace(self.plan, features=tuple(f for f in self.plan.features if f.rank != self.rank), steps=steps)

    # -- steps -------------------------------------------------------------------------------------------------------------------

    def fold(self, f: Fold) -> Fold:
        states = tuple(State(v, s.init) for s in f.states for v in self.split(s.value))
        bounds = self.region(f.bounds)
        return replace(f, states=states, bounds=bounds, phases=tuple(map(self.phase, f.phases)))

    def phase(self, p: Phase) -> Phase:
        known = dict(self.slices), dict(self.later), dict(self.made)
        body = self.region(p.body)
        updates = tuple(x for u in p.updates for x in (self.slices.get(u.name) or self.spread(u, p)))
        self.slices, self.later, self.made = known
        return replace(p, body=body, updates=updates)

    def spread(self, u: Value, p: Phase) -> tuple[Value, ...]:
        """An update that does not span the rank, for every slice of a state that does."""
        fold = next(f for f in self.plan.folds if p in f.phases)
        state = fold.states[p.updates.index(u)].value
        return (u,) * (self.size if self.rank in state.dims else 1)

    def region(self, region: Region, outside: bool = False) -> Region:
        self.ops = []
        for op in region:
            if outside and isinstance(op, Load) and self.rank in op.out.dims and len(op.out.dims) > 2:
                self.later[op.out.name] = op
            else:
                self.write(op)
        return tuple(self.ops)

    # -- operations ----------------------------------------------------------------------------------------------------------------

    def write(self, op: Op) -> None:
        for v in reads(op):
            if v.name in self.later:
                self.write(self.later.pop(v.name))
        if isinstance(op, Coordinate) and op.rank == self.rank:
            for n, v in enumerate(self.split(op.out)):
                self.add(Const(v, n))
        elif isinstance(op, Reduce) and op.rank == self.rank:
            self.reduced(op)
        elif isinstance(op, Store):
            every = any(v.name in self.slices for v in reads(op))
            for n in range(self.size if every else 1):
                self.ops.append(renamed(op, self.at(op, n)))
        elif self.rank in op.out.dims:
            for n, v in enumerate(self.split(op.out)):
                self.add(with_out(renamed(op, self.at(op, n)), v))
        else:
            self.add(op)

    def add(self, op: Op) -> None:
        self.append(self.product(op))

    def split(self, v: Value) -> tuple[Value, ...]:
        """The slices of a value; the value itself where it has none."""
        if self.rank not in v.dims:
            return (v,)
        dims = tuple(r for r in v.dims if r != self.rank)
        self.slices[v.name] = tuple(Value(fresh(f"{v.name}_{n}", self.taken), dims, v.dtype) for n in range(self.size))
        return self.slices[v.name]

    def at(self, op: Op, n: int) -> Mapping[str, Value]:
        """What an operation reads, at a coordinate of the rank."""
        return {v.name: self.slices[v.name][n] if v.name in self.slices else v for v in reads(op)}

    def reduced(self, op: Reduce) -> None:
        """A reduction over the rank, slice by slice."""
        first, *rest = self.slices[op.arg.name]
        for n, v in enumerate(rest, 2):
            out = op.out if n == self.size else replace(op.out, name=fresh(f"{op.out.name}_of_{n}", self.taken))
            self.add(Map(out, op.reducer.combine, (first, v)))
            first = out

    def product(self, op: Op) -> Op:
        """A sum of products of two blocks as a matrix product. What comes before it is written here."""
        if (
            not isinstance(op, Reduce)
            or not op.reducer.sums
            or op.at is not None
            or op.arg.dtype != "float"
            or len(op.out.dims) != 2
        ):
            return op
        parts, masks = self.factors(op.arg)
        first, second = ({r, op.rank} for r in op.out.dims)
        left = [v for v in parts if {*v.dims} <= first]
        right = [v for v in parts if v not in left]
        whole = all({r for v in side for r in v.dims} == ranks for side, ranks in ((left, first), (right, second)))
        if not whole or not all({*v.dims} <= second for v in right) or not all({*m.dims} <= first for m in masks):
            return op
        a, b = self.multiplied(left), self.multiplied(right)
        if not masks:
            return Dot(op.out, a, b, op.rank)
        live = functools.reduce(lambda x, y: self.map("and", "bool", x, y), masks)
        zero = Value(fresh("zero", self.taken), (), "float")
        self.append(Const(zero, 0.0))
        return Dot(
            op.out, self.map("select", "float", live, a, zero), b, op.rank, where=self.alive(live, op.rank, op.out.dims[0])
        )

    def alive(self, live: Value, rank: str, rows: str) -> Value | None:
        """Which points of a rank exist for any row; None where a condition does not tell them apart."""
        if rank not in live.dims:
            return None
        if rows not in live.dims:
            return live
        out = Value(fresh("alive", self.taken), (rank,), "bool")
        self.append(Reduce(out, "any", live, rows))
        return out

    def factors(self, v: Value) -> tuple[list[Value], list[Value]]:
        """What a block is the product of, and the conditions under which it is no 0."""
        match self.made.get(v.name):
            case Const(value=1.0):
                return [], []
            case Map(fn="*", args=(x, y)):
                (a, m), (b, n) = self.factors(x), self.factors(y)
                return a + b, [*m, *(c for c in n if c not in m)]
            case Map(fn="select", args=(m, x, z)) if self.is_zero(z):
                parts, masks = self.factors(x)
                return parts, [*masks, *([] if m in masks else [m])]
        return [v], []

    def is_zero(self, v: Value) -> bool:
        op = self.made.get(v.name)
        return isinstance(op, Const) and op.value == 0

    def multiplied(self, parts: list[Value]) -> Value:
        return functools.reduce(lambda x, y: self.map("*", "float", x, y), parts)

    def map(self, fn: str, dtype: DType, *args: Value) -> Value:
        dims = tuple(r for r in self.plan.order if any(r in v.dims for v in args))
        out = Value(fresh("t", self.taken), dims, dtype)
        self.append(Map(out, fn, args))
        return out

    def append(self, op: Op) -> None:
        assert not isinstance(op, Store), "stores give no value"
        self.ops.append(op)
        self.made[op.out.name] = op
