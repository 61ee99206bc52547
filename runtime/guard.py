"""`Guard`: what is looked at before a call, integers (`runtime.integers`) and reads (`runtime.ranges`), again only where what decides has
changed.

    k[page[b, j // P], ...] where j <= i + length[b] - Nq        page is looked at once; length may change in every step of decoding

First the index alone: where it stays inside at every point, whatever says which points are live has no say. Else the live points. Integers
that fit for all sizes, numbers and entries up to the next power of two fit for the call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from einfuse.ir import Cascade, Expr
from einfuse.ir import expr as ex
from einfuse.runtime import integers, ranges
from einfuse.runtime.given import Given
from einfuse.runtime.recent import Recent
from einfuse.runtime.unchanged import Unchanged

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """What decides whether a condition holds at any point: tables by their values, sizes and host numbers."""

    tables: tuple[str, ...]
    asked: tuple[str, ...]

    @staticmethod
    def by(cascade: Cascade, e: Expr) -> Decided:
        """What decides about a condition over the ranks of a cascade."""
        tensors = {t.name for t in cascade.inputs if not t.param}
        read = ex.reads(e)
        extents = (cascade.rank(r).size for r in ex.indices(e))
        asked = {n for n in (*read, *ex.sizes(e), *extents) if isinstance(n, str)} - tensors
        return Decided(tuple(sorted(read & tensors)), tuple(sorted(asked)))

    def key(self, given: Given) -> Key:
        """The sizes and numbers of a call."""
        return tuple([given.sizes[n] if n in given.sizes else given.numbers[n] for n in self.asked])

    def of(self, given: Given, whole: Callable[[], Given] | None) -> Given:
        """The call with all of the tables: ``given``, or ``whole`` where it only describes one of them."""
        return whole() if whole is not None and any(given.tensors[n].is_meta for n in self.tables) else given

    def held(self, given: Given) -> Sequence[torch.Tensor] | None:
        """The tables of a call; None where one is not on the host: looking would stall the device, and kernels clamp."""
        found = [given.tensors[n] for n in self.tables]
        return found if all(x.is_cpu for x in found) else None


@dataclass(frozen=True, slots=True)
class Watched:
    """A suspect of a cascade, by its number, and what decides about its live points."""

    number: int
    suspect: ranges.Suspect
    live: Decided


@dataclass(eq=False)
class Guard:
    """The looks at the calls of one cascade, and what was seen. What to look at is found for the first call: many a cascade has none."""

    cascade: Cascade
    fit: Recent[Key, bool] = field(default_factory=Recent)
    """Whether integers fit, by powers of two."""
    indices: Recent[Key, tuple[Unchanged, tuple[Watched, ...]]] = field(default_factory=Recent)
    """The suspects of a group whose index leaves its axis at some point, live or not."""
    points: Recent[Key, Unchanged] = field(default_factory=Recent)
    """What was looked at of live points."""

    @functools.cached_property
    def counted(self) -> integers.Counted:
        """The tables whose values have to fit."""
        return integers.counted(self.cascade)

    @functools.cached_property
    def groups(self) -> Mapping[Decided, tuple[Watched, ...]]:
        """The suspects whose indices the same things decide about."""
        groups: dict[Decided, tuple[Watched, ...]] = {}
        for n, x in enumerate(ranges.suspects(self.cascade)):
            decided = Decided.by(self.cascade, x.anywhere)
            watched = Watched(n, x, Decided.by(self.cascade, x.outside))
            groups[decided] = (*groups.get(decided, ()), watched)
        return groups

    @functools.cached_property
    def extents(self) -> tuple[str, ...]:
        """The sizes of ranks: where one is 0, nothing is read."""
        return tuple({r.size for r in self.cascade.ranks if isinstance(r.size, str)})

    @property
    def looks(self) -> bool:
        """Whether calls depend on what tables hold."""
        return bool(self.counted.tables) or any(x.tables for x in self.groups)

    def __call__(self, given: Given, whole: Callable[[], Given] | None = None) -> None:
        """Raises ValueError where an integer would leave 32 bits, or a read its tensor.

        ``whole`` gives the call with the tables that ``given`` only describes (on the device meta): it is asked where they decide.
        """
        self._integers(given)
        if not self.groups or not all(map(given.sizes.__getitem__, self.extents)):
            return
        for place, (decided, suspects) in enumerate(self.groups.items()):
            call = decided.of(given, whole)
            tables = decided.held(call)
            if tables is None:
                continue
            key = (place, *decided.key(call))
            seen = self.indices.get(key)
            left = seen[1] if seen is not None and seen[0].are(tables) else None
            if left is None:
                left = tuple(x for x in suspects if not ranges.inside(self.cascade, x.suspect, call))
                now = Unchanged.of(tables)
                if now is not None:
                    self.indices[key] = now, left
            for x in left:
                self._look(x, x.live.of(given, whole))

    def _integers(self, given: Given) -> None:
        found = integers.ranges(self.cascade, self.counted.looked_at(given)) if self.counted.tables else {}
        if found is None:
            return

        def fit() -> bool:
            return integers.fits(self.cascade, integers.Known.of(given, found, integers.rounded))

        if not self.fit.made(integers.bits(given, found), fit):
            integers.check(self.cascade, integers.Known.of(given, found))

    def _look(self, watched: Watched, given: Given) -> None:
        """Raises where a live point reads outside."""
        tables = watched.live.held(given)
        if tables is None:
            return
        key = (watched.number, *watched.live.key(given))
        seen = self.points.get(key)
        if seen is None or not seen.are(tables):
            ranges.check(self.cascade, watched.suspect, given)
            now = Unchanged.of(tables)
            if now is not None:
                self.points[key] = now
