"""What reads what in a plan: the names that a step reads, what depends on a value, and the plan without what nothing reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from einfuse.codegen.plan.nodes import Fold, KernelPlan, Op, Phase, Region, Store, reads


def read_in(region: Iterable[Op]) -> Iterator[str]:
    """The names that operations read."""
    return (v.name for op in region for v in reads(op))


def read_by(*steps: Region | Fold) -> set[str]:
    """The names that anything in the steps reads."""
    names: set[str] = set()
    for step in steps:
        match step:
            case tuple():
                names.update(read_in(step))
            case Fold(bounds=bounds, phases=phases):
                names.update(read_in(bounds))
                for p in phases:
                    names |= {*read_in(p.body), p.lo.name, p.hi.name, *(u.name for u in p.updates)}
    return names


def dependent(region: Iterable[Op], seed: Callable[[Op], bool]) -> set[str]:
    """The values of operations that ``seed`` names, and of all that read them."""
    found: set[str] = set()
    for op in region:
        if not isinstance(op, Store) and (seed(op) or any(v.name in found for v in reads(op))):
            found.add(op.out.name)
    return found


def live(region: Sequence[Op], wanted: Iterable[str]) -> Region:
    """The operations that a store, or one of the wanted values, needs."""
    needed, kept = set(wanted), []
    for op in reversed(region):
        if isinstance(op, Store) or op.out.name in needed:
            kept.append(op)
            needed |= {v.name for v in reads(op)}
    return tuple(reversed(kept))


def prune(plan: KernelPlan) -> KernelPlan:
    """The plan without operations that no store needs."""
    kept: list[Region | Fold] = []
    wanted: set[str] = set()
    for step in reversed(plan.steps):  # backwards: what a step defines is wanted if a later one reads it
        match step:
            case Fold():
                kept.append(_live_fold(step, wanted))
            case tuple():
                kept.append(live(step, wanted))
        wanted |= read_by(kept[-1])
    return replace(plan, steps=tuple(reversed(kept)))


def _live_fold(fold: Fold, after: set[str]) -> Fold:
    def phase(p: Phase) -> Phase:
        return replace(p, body=live(p.body, {u.name for u in p.updates}))

    phases = tuple(map(phase, fold.phases))
    inside = {n for p in phases for n in read_in(p.body)} | {v.name for p in phases for v in (p.lo, p.hi)}
    return replace(fold, phases=phases, bounds=live(fold.bounds, inside | after))
