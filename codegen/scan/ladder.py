"""The kernels of a scan on a GPU, each climbing down until its values stay in registers: more warps, then divided, then fewer columns."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

from einfuse.codegen import plan as kp
from einfuse.codegen.plan.scan import Relabel, ScanPlan, reads
from einfuse.codegen.scan.columns import share, shareable
from einfuse.codegen.scan.cut import cut
from einfuse.codegen.scan.divide import divide, hoist_decays
from einfuse.codegen.scan.triton import emit
from einfuse.codegen.scan.triton.layout import Layout
from einfuse.codegen.targets import TARGETS, Target
from einfuse.codegen.triton.layout import MATRIX

MOST = 330
"""Values a thread that nothing is compiled for: of all kernels of the library the least that spilled held 258, and none of more fitted."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One kernel: the whole plan, what is left of it in each program, its text and launch options."""

    whole: ScanPlan
    target: Target
    place: int = 0
    plan: ScanPlan = field(init=False)
    options: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        plan, warps = tiles(self.whole, self.target)[self.place]
        object.__setattr__(self, "plan", plan)
        object.__setattr__(self, "options", {"num_warps": warps, "num_stages": 1})

    @property
    def source(self) -> str:
        return emit(self.plan, self.options["num_warps"])

    def smaller(self) -> tuple[Rung, ...]:
        """The kernels to try instead; none where there are no smaller ones."""
        if self.place + 1 < len(tiles(self.whole, self.target)):
            return (Rung(self.whole, self.target, self.place + 1),)
        return _divided(self.whole, self.target)


def kernels(plan: ScanPlan, target: Target) -> tuple[Rung, ...]:
    """The kernels of a scan in the order they run, each at the first tile that is worth trying."""
    return tuple(r for p in cut(plan) for q in hoist_decays(p) for r in _tried(q, target))


def _tried(plan: ScanPlan, target: Target) -> tuple[Rung, ...]:
    """The kernel, or those it is divided into where it is hopeless as a whole."""
    found = tiles(plan, target)
    place = next((n for n, (p, warps) in enumerate(found) if pressure(p) <= MOST * TARGETS[target].lanes * warps), None)
    if place is None:
        return _divided(plan, target) or (Rung(plan, target, len(found) - 1),)
    return (Rung(plan, target, place),)


def _divided(plan: ScanPlan, target: Target) -> tuple[Rung, ...]:
    parts = divide(plan)
    return tuple(r for p in parts for r in _tried(p, target)) if len(parts) > 1 else ()


@functools.lru_cache(256)
def tiles(plan: ScanPlan, target: Target) -> tuple[tuple[ScanPlan, int], ...]:
    """Plans and warps, the best first; columns are shared out where nothing else is left."""
    many = 4 if TARGETS[target].amd else 8
    found = [(plan, many)] if plan.narrow in ("f32", "f64") else [(plan, 4), (plan, many)]
    rank = shareable(plan) if len(divide(plan)) == 1 else None
    if rank is not None:
        size = next(f.size for f in plan.features if f.rank == rank)
        assert isinstance(size, int), "sizes of features are known"
        shared = [share(plan, rank, n) for n in (2 * MATRIX, MATRIX) if n < size]
        found += [(p, many) for p in shared if p is not None]
    return tuple(dict.fromkeys(found))


def pressure(plan: ScanPlan) -> int:
    """The most elements of blocks that are alive at one time."""
    widths = {r: Layout(plan).width(r) for r in plan.order}
    last: dict[str, int] = {}
    names: dict[str, str] = {}
    for n, op in enumerate(plan.body):
        if isinstance(op, Relabel):
            names[op.out.name] = names.get(op.arg.name, op.arg.name)
        for v in reads(op):
            last[names.get(v.name, v.name)] = n
    last |= dict.fromkeys((s.update.name for s in plan.states), len(plan.body))
    alive = {s.value.name: math.prod(widths[r] for r in s.value.dims) for s in plan.states}
    most = sum(alive.values())
    for n, op in enumerate(plan.body):
        if not isinstance(op, kp.Store | Relabel) and op.out.dims:
            alive[op.out.name] = math.prod(widths[r] for r in op.out.dims)
        most = max(most, sum(alive.values()))
        alive = {x: size for x, size in alive.items() if last.get(x, -1) > n}
    return most
