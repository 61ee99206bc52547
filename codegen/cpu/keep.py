"""Rows that several loops compute are computed once: the first loop keeps them, the others read them back.

    fold j { qk = q . k ; s = qk * c ; m = max(m, s) }                  fold j { qk = q . k ; s = qk * c ; keep s ; m = max(m, s) }
    fold j { qk = q . k ; s = qk * c ; n = n + (s > m) }       ->       fold j { s = kept ; n = n + (s > m) }
    fold j { qk = q . k ; s = qk * c ; o = o + (s > m) . v }            fold j { s = kept ; o = o + (s > m) . v }

A kept row has room for all keys and belongs to a thread: a tile of it stays in the cache of a core for thousands of keys, and to stream
it from memory still costs less than a product (over 131,072 keys top-k takes 2.3 times as long without). Only values behind a product are
worth it; what is kept is the last of them on which the loops agree. Where the rows would take more than `MOST` bytes of every thread, a
launch takes the kernel that computes them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from einfuse.codegen.plan import (
    Coordinate,
    Dot,
    Fold,
    Kept,
    KernelPlan,
    Load,
    Op,
    Phase,
    Region,
    Store,
    Value,
    operations,
    outside,
    reads,
)
from einfuse.ir.rewrite import fresh

Key = tuple[object, ...]
MOST = 64 << 20  # bytes of a thread


def too_long(plan: KernelPlan, sizes: Mapping[str, int]) -> bool:
    """Whether what `keep` keeps takes more than `MOST` for these sizes."""
    folds = plan.folds
    if plan.tile is None or len(folds) < 2:
        return False
    row = plan.tile.block * (8 if plan.compute == "f64" else 4)
    extent = {s.size: s.size if isinstance(s.size, int) else sizes[s.size] for s in folds}
    if row * sum(extent[s.size] for s in folds) <= MOST:  # a row for every loop: more than there can be of them, and soon said
        return False
    return row * sum(extent[k.size] for k in keep(plan).kept) > MOST


def keep(plan: KernelPlan) -> KernelPlan:
    """The plan with what its loops share kept by the first of them; unused operations are left for `prune`."""
    taken = {op.out.name for op in operations(plan) if not isinstance(op, Store)} | {t.name for t in plan.tensors}
    steps = list(plan.steps)
    kept: list[Kept] = []
    loops = {n: s for n, s in enumerate(steps) if isinstance(s, Fold) and s.phases}
    folds = list(loops)
    if plan.tile is None:
        return plan
    walks = {n: _walk(plan, n, f) for n, f in loops.items()}
    while folds:
        first, *rest = folds
        same = [n for n in rest if walks[n] == walks[first]]
        source = loops[first]
        shared = [(n, _agreed(source, loops[n], plan.tile.rank)) for n in same]
        if any(keys for _, keys in shared):
            every = list(dict.fromkeys(k for _, keys in shared for k in keys))
            named = {k: fresh("kept", taken) for k in every}
            kept += [Kept(t, plan.tile.rank, source.size) for t in named.values()]
            places = _Places(plan.tile.rank, source.rank, taken)
            steps[first] = loops[first] = places.writing(source, named)
            for n, keys in shared:
                steps[n] = loops[n] = places.reading(loops[n], {k: named[k] for k in keys})
        folds = [n for n in rest if n not in same]
    return replace(plan, steps=tuple(steps), kept=tuple(kept)) if kept else plan


def _walk(plan: KernelPlan, n: int, fold: Fold) -> Key:
    """What the blocks are that a fold, the step ``n``, visits, in order: equal for folds that visit the same."""
    keys = _keys([*outside(plan.steps[:n]), *fold.bounds], frozenset())
    bounds = tuple((keys.get(p.lo.name, p.lo.name), keys.get(p.hi.name, p.hi.name), p.label) for p in fold.phases)
    return (fold.rank, fold.step, fold.tabulated, fold.table_ranks, fold.tabulated or bounds)


def _keys(ops: Sequence[Op], moving: frozenset[str]) -> dict[str, Key]:
    """What every value is, whatever it is called; values that depend on ``moving`` ones have no key."""
    out: dict[str, Key] = {}
    lost = set(moving)
    for op in ops:
        if isinstance(op, Store):
            continue
        used = reads(op)
        if any(v.name in lost for v in used):
            lost.add(op.out.name)
            continue
        blank = replace(op, out=replace(op.out, name=""), **_without_operands(op))  # type: ignore[arg-type]  # fields by name
        out[op.out.name] = (blank, *(out.get(v.name, (v.name,)) for v in used))
    return out


def _without_operands(op: Op) -> dict[str, object]:
    """The fields of an operation that hold values, emptied: they are told apart by their keys."""
    nothing = Value("", (), "int")
    fields: dict[str, object] = {}
    for name in ("a", "b", "arg"):
        if hasattr(op, name):
            fields[name] = nothing
    for name in ("acc", "where"):
        if hasattr(op, name):
            fields[name] = None if getattr(op, name) is None else nothing
    for name in ("args", "index"):
        if hasattr(op, name):
            fields[name] = (nothing,) * len(getattr(op, name))
    return fields


def _agreed(first: Fold, other: Fold, tile: str) -> list[Key]:
    """The pair values behind a product that every phase of both folds computes, the last ones only."""
    bodies = [(p, _phase_keys(f, p)) for f in (first, other) for p in f.phases]
    common = set.intersection(*(set(keys.values()) for _, keys in bodies))
    last: list[Key] = []
    for phase, keys in bodies[len(first.phases) :]:
        defined = {op.out.name: op for op in phase.body if not isinstance(op, Store)}
        outside = {u.name for u in phase.updates}
        for op in phase.body:
            if isinstance(op, Store) or keys.get(op.out.name) not in common:
                outside |= {v.name for v in reads(op)}
        for name, key in keys.items():
            if name in outside and key in common and _worth(defined[name], defined, (tile, first.rank)):
                last.append(key)
    return list(dict.fromkeys(last))


def _phase_keys(fold: Fold, phase: Phase) -> dict[str, Key]:
    return _keys(phase.body, frozenset(s.value.name for s in fold.states))


def _worth(op: Op, defined: Mapping[str, Op], dims: tuple[str, ...]) -> bool:
    """A float for every pair, with a product (of more than this loop's states) behind it."""
    if isinstance(op, Store) or op.out.dims != dims or op.out.dtype != "float":
        return False
    return any(isinstance(x, Dot) for x in _behind(op, defined))


def _behind(op: Op, defined: Mapping[str, Op]) -> Iterator[Op]:
    yield op
    for v in reads(op):
        if v.name in defined:
            yield from _behind(defined[v.name], defined)


@dataclass(slots=True)
class _Places:
    """Folds with their kept values written or read, at the coordinates of tile and fold."""

    tile: str
    rank: str
    taken: set[str]

    def _index(self, body: Region) -> tuple[Region, tuple[Value, ...]]:
        made: list[Op] = []
        index = []
        for r in (self.tile, self.rank):
            found = next((op.out for op in body if isinstance(op, Coordinate) and op.rank == r), None)
            if found is None:
                found = Value(fresh(f"{r}_at", self.taken), (r,), "int")
                made.append(Coordinate(found, r))
            index.append(found)
        return tuple(made), tuple(index)

    def writing(self, fold: Fold, named: Mapping[Key, str]) -> Fold:
        def phase(p: Phase) -> Phase:
            made, index = self._index(p.body)
            keys = _phase_keys(fold, p)
            values = {
                keys[op.out.name]: op.out for op in p.body if not isinstance(op, Store) and keys.get(op.out.name) in named
            }
            return replace(p, body=(*made, *p.body, *(Store(t, index, values[k]) for k, t in named.items())))

        return replace(fold, phases=tuple(phase(p) for p in fold.phases))

    def reading(self, fold: Fold, named: Mapping[Key, str]) -> Fold:
        def phase(p: Phase) -> Phase:
            made, index = self._index(p.body)
            keys = _phase_keys(fold, p)
            here = [v for v in index if all(v is not op.out for op in made if not isinstance(op, Store))]
            moved = [op for op in p.body if isinstance(op, Coordinate) and op.out in here]
            body: list[Op] = [*made, *moved]
            for op in p.body:
                tensor = None if isinstance(op, Store) else named.get(keys.get(op.out.name, ()))
                if op not in moved:
                    body.append(op if tensor is None else Load(op.out, tensor, index))  # type: ignore[union-attr]  # no Store
            return replace(p, body=tuple(body))

        return replace(fold, phases=tuple(phase(p) for p in fold.phases))
