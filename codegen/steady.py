"""Which values of a straight-line plan stay the same from one ambient point to the next: computed once, while the others follow.

ambient b, h:   bias[i, j] = table[h, ...]      the same for every b, so points of one h run one after the other
                s[i, j] = q . k + bias          of b and h
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from einfuse.codegen.cost import operation, weighted
from einfuse.codegen.plan import Coordinate, KernelPlan, Load, Op, Region, Store, reads

LITTLE = 1 / 64
"""Work of this share of all, and less, is not worth an order: points that lie together run one after the other."""


@dataclass(frozen=True, slots=True)
class Steady:
    """The ambient ranks that each value follows, and by rank the work that its steps make anew and those of others do not (0 for little)."""

    follows: Mapping[str, frozenset[str]]
    cost: Mapping[str, float]

    @property
    def order(self) -> tuple[str, ...]:
        """The ranks, to run from the slowest to the fastest."""
        return tuple(sorted(self.cost, key=lambda r: -self.cost[r]))

    def of(self, op: Op) -> frozenset[str]:
        """The ambient ranks an operation follows; a store follows all."""
        return frozenset(self.cost) if isinstance(op, Store) else self.follows[op.out.name]


def steady(plan: KernelPlan) -> Steady | None:
    """What follows what in a plan without tile and folds, whose points may run in any order; None for another."""
    if plan.straight is None or any(b.turns for b in plan.ambient):
        return None
    return _Analysis(plan, {b.rank: b.block for b in plan.features}).found(plan.straight)


@dataclass(slots=True)
class _Analysis:
    plan: KernelPlan
    blocks: Mapping[str, int]
    follows: dict[str, frozenset[str]] = field(default_factory=dict)

    def found(self, region: Region) -> Steady:
        ambient = [b.rank for b in self.plan.ambient]
        cost = dict.fromkeys(ambient, 0.0) | self.region(region, frozenset(ambient))
        every = sum(weighted(operation(op, self.blocks)) for op in region)
        return Steady(self.follows, {r: c if c > every * LITTLE else 0.0 for r, c in cost.items()})

    def region(self, region: Region, every: frozenset[str]) -> dict[str, float]:
        """Learns a region; gives what a step along each rank makes anew, of what does not follow all of them anyway."""
        cost = dict.fromkeys(every, 0.0)
        written = {t.name for t in self.plan.tensors if t.out}
        for op in region:
            if isinstance(op, Store):
                continue
            own = {op.rank} & every if isinstance(op, Coordinate) else every if _read_back(op, written) else frozenset[str]()
            found = frozenset(own).union(*(self.follows[v.name] for v in reads(op)))
            self.follows[op.out.name] = found
            if found != every:
                for rank in found:
                    cost[rank] += weighted(operation(op, self.blocks))
        return cost


def _read_back(op: Op, written: set[str]) -> bool:
    return isinstance(op, Load) and op.tensor in written
