"""Cuts a cascade into kernels where a row of one rank must be complete before rows of another can start.

    m[j] = max[i] s[i, j]                                  stage 1, tile j: m, l
    l[j] = sum[i] exp(s[i, j] - m[j])             ->
    o[i, e] = sum[j] exp(s[i, j] - m[j]) / l[j] * v[j, e]  stage 2, tile i: o, with m and l as inputs

A program owns rows of one sequence rank and folds over others, so a reduction that keeps the rank i can read statistics of its own
row, and nothing that other rows have computed. Those reads are the cuts, and so are reads of a statement at other coordinates than
its own. Only statements with at most one sequence rank cross a cut: nothing of the size of all pairs is ever stored. What is
cheap to compute again (products, scores) is computed again in every stage that needs it; what is dear is where that is asked for.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import dear
from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.nodes import Einsum, Expr, Flat, Tensor
from einfuse.ir.passes import canonicalise
from einfuse.ir.rewrite import reading, used_ranks

Place = tuple[int, str | None]
"""The stage of a statement, and the sequence rank whose rows its programs own (None: one program does all)."""


def run(cascade: Flat, canonical: bool = False, rows_first: bool = False) -> tuple[Flat, ...]:
    """The stages in the order they run, each a cascade of its own; the cascade itself where one kernel can do it all.

    Ambient ranks that a stage does not depend on are not its own: a table for all batches is made once. ``canonical`` promises that the
    cascade is, and keeps the ambient ranks. ``rows_first``: what pairs read of rows and what is `dear` has a stage of its own.
    """
    c = cascade if canonical else canonicalise.run(cascade)
    places = _Places(c, dear.blocks(c) if rows_first else frozenset()).run()
    keys = sorted(set(places.values()), key=lambda k: (k[0], k[1] or ""))
    if len(keys) < 2:
        return (cascade,)
    made: dict[str, tuple[str, ...]] = {}
    out = []
    for n, key in enumerate(keys):
        out.append(_stage(c, places, key, f"{c.name}_{n + 1}", made, canonical))
        made |= dict.fromkeys(out[-1].outs, out[-1].over)
    return tuple(out)


class _Places:
    """Gives every statement that a stage must make its place. Scores and what else is pointwise over pairs have none."""

    def __init__(self, c: Flat, apart: frozenset[str]) -> None:
        self.c, self.apart = c, apart
        whole = {r.name for r in c.ranks if not r.is_sequence} | set(c.over)
        self.sequence = [r.name for r in c.ranks if r.name not in whole]
        self.einsums = {x.target: x for x in c.body}
        self.shifted = {name for x in self.einsums.values() for name in self._shifted(x)}
        self.places: dict[str, Place] = {}
        self.behind: dict[
            str, set[tuple[str, bool]]
        ] = {}  # what an unplaced statement reads of placed ones, and whether shifted

    def run(self) -> dict[str, Place]:
        for x in self.einsums.values():
            reads = self._placed_reads(x)
            rows = self._rows(x)
            made = bool(set(x.over) & set(self.sequence)) or x.target in {*self.c.outs, *self.shifted, *self.apart}
            if made or (reads and len(rows) == 1):
                tile = rows[0] if rows else None
                cuts = {n: (n, True) in reads or self.places[n][1] != tile for n, _ in reads}
                self._storable(x, [n for n in cuts if cuts[n]])
                level = max((self.places[n][0] + cut for n, cut in cuts.items()), default=0)
                self.places[x.target] = (level, tile)
            else:
                self.behind[x.target] = reads
        self._delay()
        return self.places

    def _delay(self) -> None:
        """Every statement as late as those that read it allow: fewer of them cross a cut."""
        latest: dict[str, int] = {}
        for x in reversed(self.einsums.values()):
            level, tile = self.places.get(x.target, (0, None))
            if x.target in self.places and x.target not in {*self.c.outs, *self.shifted, *self.apart}:
                level = max(level, latest.get(x.target, level))
                self.places[x.target] = (level, tile)
            if x.target in self.places:
                for n, away in self._placed_reads(x):
                    before = level - (away or self.places[n][1] != tile)
                    latest[n] = min(latest.get(n, before), before)

    def _storable(self, x: Einsum, crossing: list[str]) -> None:
        """Raises SpecError where something of the size of all pairs would cross the cut before ``x``."""
        for name in crossing:
            rows = self._rows(self.einsums[name])
            if len(rows) > 1:
                raise SpecError(
                    f"{x.target} reads {name}, which would have to be stored for all pairs of {' and '.join(rows)}",
                    x.loc,
                    "reduce one of the two ranks first, or compute it in an attention of its own",
                )

    def _rows(self, x: Einsum) -> list[str]:
        return [r for r in x.ranks if r in self.sequence]

    def _own(self, read: Expr) -> bool:
        return read.args == tuple(map(ex.index, self.einsums[read.name].ranks))

    def _loads(self, x: Einsum) -> list[Expr]:
        expressions = (x.map,) if x.mask is None else (x.map, x.mask)
        return [e for y in expressions for e in ex.walk(y) if e.op == "load" and e.name in self.einsums]

    def _shifted(self, x: Einsum) -> set[str]:
        return {e.name for e in self._loads(x) if not self._own(e) and len(self._rows(self.einsums[e.name])) <= 1}

    def _placed_reads(self, x: Einsum) -> set[tuple[str, bool]]:
        out: set[tuple[str, bool]] = set()
        for e in self._loads(x):
            away = not self._own(e) or e.name in self.apart
            out |= {(e.name, away)} if e.name in self.places else {(n, away or a) for n, a in self.behind.get(e.name, set())}
        return out


def _stage(c: Flat, places: dict[str, Place], key: Place, name: str, made: dict[str, tuple[str, ...]], whole: bool) -> Flat:
    """The statements of one place, with what earlier stages ``made`` (over these ambient ranks) as inputs."""
    mine = {n for n, place in places.items() if place == key}
    outside = set(c.outs).union(
        *(_needed(c, {n for n, p in places.items() if p == place}, mine) for place in places.values() if place != key)
    )
    outs = tuple(x.target for x in c.body if x.target in mine & outside)
    out = _with_used_ranks(reading(c, made, outs, name), whole or bool({*outs} & {*c.outs}))  # an output has all ambient axes
    return out if whole else _with_witnesses(out, c)


def _needed(c: Flat, wanted: set[str], mine: set[str]) -> set[str]:
    """What of ``mine`` the statements ``wanted`` read, through what has no place; with those of ``wanted`` themselves."""
    found = set(wanted)
    for x in reversed(c.body):
        if x.target in found and (x.target in wanted or x.target not in mine):
            found |= ex.reads(x.map) | ex.reads(x.mask)
    return found


def complete(part: Flat, c: Flat) -> Flat:
    """A part of ``c`` over all of its ambient ranks: with the ranks that it uses, and inputs that tell its sizes."""
    kept = _with_used_ranks(part, whole=True)
    sizes = _needed_sizes(kept, set(kept.inputs))
    names = {r.name for r in kept.ranks} | {r.name for r in c.ranks if r.extent is not None and r.size in sizes}
    return _with_witnesses(replace(kept, ranks=tuple(r for r in c.ranks if r.name in names)), c)


def _with_used_ranks(c: Flat, whole: bool) -> Flat:
    """With the ranks that statements have, and those that tell which axes of its inputs are features."""
    axes = {a for t in c.inputs for a in t.axes}
    used = used_ranks(c) | {r.name for r in c.ranks if r.kind == "feature" and ex.size(r.size) in axes}
    if whole:
        used |= set(c.over)
    return replace(c, over=tuple(r for r in c.over if r in used), ranks=tuple(r for r in c.ranks if r.name in used))


def _with_witnesses(stage: Flat, c: Flat) -> Flat:
    """With the inputs of ``c`` that the stage does not read but whose shapes alone tell a size it needs."""
    mine = set(stage.inputs)
    while missing := _needed_sizes(stage, mine) - _told(mine):
        best = next((t for t in c.inputs if t not in mine and _told({*mine, t}) & missing), None)
        if best is None:
            break  # the whole cascade does not know it either: the call says so
        mine.add(best)
    crossing = [t for t in stage.inputs if t not in c.inputs]
    return replace(stage, inputs=(*(t for t in c.inputs if t in mine), *crossing))


def _needed_sizes(stage: Flat, inputs: set[Tensor]) -> set[str]:
    """The names of sizes that ranks, axes and expressions mention."""
    used = [e for x in stage.body for e in (x.map, x.mask) if e is not None]
    used += [a for t in inputs for a in t.axes]
    made = [r.extent for r in stage.ranks if r.extent is not None and r.size not in _told(inputs)]
    return {r.size for r in stage.ranks if isinstance(r.size, str)}.union(*(ex.sizes(e) for e in (*used, *made)))


def _told(inputs: set[Tensor]) -> set[str]:
    """The sizes that shapes tell: axes of a bare size, and a divisor of one (``H // group`` tells group once H is known)."""
    axes = [a for t in inputs for a in t.axes]
    bare = {a.name for a in axes if a.op == "size"}
    return bare | {a.args[1].name for a in axes if a.op == "//" and a.args[1].op == "size" and ex.sizes(a.args[0]) <= bare}
