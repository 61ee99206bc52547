"""What a loop body computes from its folded rank and ambient ranks alone: packed once per block and shared by all tiles.

before   fold j { k = load(...) ; kn = k * rsqrt(sum[d](k * k)) ; s = q . kn ; ... }          for every tile
after    pack j { k ; kn, transposed }  when a block is first needed;  fold j { s = q . kn ; ... }
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from einfuse.codegen.cpu.forms import Form
from einfuse.codegen.plan import (
    Const,
    Coordinate,
    Dot,
    KernelPlan,
    Load,
    Op,
    Param,
    Reduce,
    Region,
    Size,
    Store,
    Value,
    computed,
    reads,
    renamed,
    with_out,
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a value depends on: ``free`` of tile, states and the place of a block; the ambient ranks it changes with."""

    free: bool = True
    ambient: frozenset[str] = frozenset()


@dataclass(slots=True)
class Dependence:
    """The facts of every value seen so far."""

    plan: KernelPlan
    facts: dict[str, Facts] = field(default_factory=dict)

    def learn(self, region: Region, fold: str | None = None) -> None:
        for op in region:
            if not isinstance(op, Store):
                self.facts[op.out.name] = self._of(op, fold)

    def bind(self, v: Value) -> None:
        """A state: it changes from block to block and from tile to tile."""
        self.facts[v.name] = Facts(False)

    def _of(self, op: Op, fold: str | None) -> Facts:
        tile = self.plan.tile.rank if self.plan.tile else None
        match op:
            case Const() | Param():
                return Facts()
            case Size(name=name):
                return Facts("." not in name)
            case Coordinate(rank=rank):
                here = frozenset([rank]) if any(b.rank == rank for b in self.plan.ambient) else frozenset[str]()
                return Facts(rank != tile, here)
            case Load(tensor=tensor) if any(t.name == tensor and t.out for t in self.plan.tensors):
                return Facts(False)  # an earlier tile wrote it
        known = [self.facts[v.name] for v in reads(op)]
        mixes = isinstance(op, Reduce | Dot) and op.rank == fold
        return Facts(all(f.free for f in known) and not mixes, frozenset().union(*(f.ambient for f in known)))


@dataclass(slots=True)
class Packing:
    """The shared computation of one fold, collected from its phases: equal values of two phases are one."""

    rank: str
    ops: list[Op] = field(default_factory=list)
    known: dict[Op, Value] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    forms: dict[tuple[str, Form], Value] = field(default_factory=dict)  # the packed values in the layouts that are read
    outer: dict[str, Value] = field(default_factory=dict)  # what it reads from outside the loop

    def want(self, v: Value, uses: Iterable[Form]) -> None:
        """A packed value is read in these forms."""
        for form in sorted(uses):
            self.forms[v.name, form] = v

    def of(self, name: str) -> set[Form]:
        """The forms in which a packed value is read."""
        return {form for v, form in self.forms if v == name}

    def add(self, v: Value, body: Mapping[str, Op]) -> Value:
        """The packed counterpart of a body's value."""
        op = body.get(v.name)
        if op is None:
            self.outer[v.name] = v
            return v
        here = renamed(op, {a.name: self.add(a, body) for a in reads(op)})
        key = computed(here)
        if key not in self.known:
            name = v.name
            while name in self.names:
                name += "_"
            self.names.add(name)
            self.known[key] = Value(name, v.dims, v.dtype)
            self.ops.append(with_out(here, self.known[key]))
        return self.known[key]


def shared(op: Op, facts: Mapping[str, Facts], rank: str) -> bool:
    """Whether an operation of a body over ``rank`` belongs to what is packed: a truth value is computed as fast as it is read."""
    return not isinstance(op, Store) and rank in op.out.dims and op.out.dtype != "bool" and facts[op.out.name].free
