"""Whether a kernel walks queries and keys by lists (`ir.passes.walk`): by the work of both ways, at the sizes and numbers of a launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from einfuse.ir import Cascade, Expr, Flat
from einfuse.ir import expr as ex
from einfuse.ir.digits import related
from einfuse.ir.groups import CARRIED, LOADED, Groups, grouped
from einfuse.ir.passes import walk
from einfuse.ir.tiles import numeric
from einfuse.runtime import derived, tiles
from einfuse.runtime.binding import extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.launch import fold_tiles
from einfuse.runtime.recent import Recent

GAIN = 0.8
"""Lists are taken where their work is at most this share of that of tiles: they are loaded, and make another kernel."""
FEWEST = 128
"""Rows from which on they are thought of."""
REMEMBERED = 64
"""Choices of a program that are kept, with their lists."""
MOST_ROWS = 64
"""Rows of a group, and columns of one that is computed without a loop."""


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The cascade over groups, what it takes besides, and the work that it and tiles would be (in pairs, for one ambient point)."""

    made: walk.Walked
    said: tuple[Expr, ...]
    key: str
    tables: Mapping[str, torch.Tensor]
    sizes: Mapping[str, int]
    groups: Groups
    before: float
    pairs: int
    """All pairs of an ambient point, visited or not."""
    call: tuple[object, ...]
    """What the lists follow from: cascade, tiling, device, sizes and numbers."""

    @property
    def cascade(self) -> Flat:
        return self.made.cascade

    def __str__(self) -> str:
        groups, rows, columns = self.shape
        share = 100 * self.groups.work / self.before
        return f"walked by lists: {groups} groups of {rows} rows and {columns} columns, {share:.2g} % of the work of tiles"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, rows and columns of each."""
        return (*self.groups.rows.shape, self.groups.columns.shape[1])


@dataclass(slots=True)
class Walks:
    """The choices of one program, made once for each cascade, sizes, numbers and device. Fewer rows than ``fewest`` keep tiles."""

    strict: bool = False
    fewest: int = FEWEST
    pairs: dict[str, walk.Pair | None] = field(default_factory=dict)
    chosen: Recent[tuple[object, ...], Chosen | None] = field(default_factory=lambda: Recent(REMEMBERED))
    turned: Recent[tuple[object, ...], Chosen | None] = field(default_factory=lambda: Recent(REMEMBERED))

    def pair(self, cascade: Cascade) -> walk.Pair | None:
        """What lists could say of a cascade of the program."""
        if cascade.digest not in self.pairs:
            self.pairs[cascade.digest] = walk.pair(cascade)
        return self.pairs[cascade.digest]

    def choose(self, cascade: Cascade, given: Given, tiling: tuple[int, int]) -> Chosen | None:
        """The lists for a launch, None where tiles of ``tiling`` are as good."""
        pair = self.pair(cascade)
        if pair is None:
            return None
        key = (cascade.digest, tiling, given.device, *given.key)
        return self.chosen.made(key, lambda: self._chosen(pair, given, tiling, key))

    def over_columns(self, first: Chosen, rows: Cascade, columns: Cascade) -> Chosen | None:
        """The cascade ``columns``, whose own rows are the columns of ``rows``, over the lists of that one; None where one is listed twice."""
        mine, theirs = self.pair(rows), self.pair(columns)
        if mine is None or theirs is None:
            return None
        return self.turned.made((columns.digest, *first.call), lambda: _turned(first, mine, theirs))

    def _chosen(self, pair: walk.Pair, given: Given, tiling: tuple[int, int], call: tuple[object, ...]) -> Chosen | None:
        rows, columns = ((r, extent_of(pair.cascade, r, given.sizes)) for r in (pair.rows, pair.columns))
        if rows[1] < self.fewest or not columns[1]:
            return None
        found = related([numeric(c, given.sizes, given.numbers) for c in pair.conditions], rows, columns)
        if found is None:
            return None
        before = self._tiled(pair.cascade, given, tiling)
        groups = grouped(found.digits, (rows[1], columns[1]), MOST_ROWS, GAIN * before)
        if groups is None:
            return None
        said = tuple(pair.conditions[n] for n in found.said)
        wide = groups.columns.shape[1]
        made = walk.run(pair, said, groups.rows.shape[1], wide if wide <= MOST_ROWS else None, len(groups.tests))
        tables = {n: torch.from_numpy(x).to(given.device) for n, x in listed(made, groups).items()}
        more = {made.groups: len(groups.rows)} | ({made.columns: wide} if made.columns else {})
        return Chosen(made, said, made.cascade.digest, tables, more, groups, before, rows[1] * columns[1], call)

    def _tiled(self, cascade: Cascade, given: Given, tiling: tuple[int, int]) -> float:
        """The work of tiles: that of the costliest loop, in pairs."""
        bounded = tiles.loops(cascade, *tiling, self.strict)
        if bounded is not None:
            rows = extent_of(cascade, bounded.rank, given.sizes)
            return bounded.row({**given.sizes, **given.numbers}, rows) * rows / len(bounded.folds)
        scheduled = derived.scheduled(cascade, *tiling, self.strict)
        ((_, block),) = scheduled.tile
        work = [0.0]
        for fold in scheduled.folds:
            told = ex.conjunction(*(p for p in ex.conjuncts(fold.mask) if ex.reads(p) <= given.numbers.keys()))
            found = fold_tiles(
                scheduled, replace(fold, mask=told or ex.TRUE), given
            )  # tensors are described here, without values
            live = found.live_fraction * found.kind.shape[-2] * found.kind.shape[-1]
            work.append(live * fold.step * (block + LOADED + CARRIED * block / fold.step))
        return max(work)


def _turned(first: Chosen, rows: walk.Pair, columns: walk.Pair) -> Chosen | None:
    groups, sides = first.groups, (rows.rows, rows.columns)
    once = all(len(np.unique(x)) == x.size for x in (groups.rows, groups.columns))
    if not once or sides != (columns.columns, columns.rows) or not set(first.said) <= set(columns.conditions):
        return None
    wide = None if first.made.columns else groups.columns.shape[1]
    made = walk.run(columns, first.said, groups.rows.shape[1], wide, len(groups.tests), sides)
    same = replace(made, cascade=first.cascade) == first.made
    return replace(first, made=made, key=made.cascade.digest) if same else None


def listed(made: walk.Walked, groups: Groups) -> dict[str, np.ndarray]:
    """The lists and tests of groups under the names that a cascade gives them."""
    out = {made.rows_at: groups.rows, made.columns_at: groups.columns}
    for names, test in zip(made.tests, groups.tests, strict=True):
        out |= zip(names, (test.lo, test.hi, test.at), strict=True)
    return out
