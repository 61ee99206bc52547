"""Range minima and maxima of tables that a mask reads."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from einfuse.ir.intervals import LIMIT, Interval, interval


class Table:
    """A table of integers or truth values that can be asked for its least and greatest entry in boxes of indices.

    Along one axis by a sparse table: level ``n`` holds the extremes of ``2 ** n`` neighbours, made when first asked for. An
    index beyond the table counts as its nearest entry.
    """

    def __init__(self, low: npt.NDArray[Any], high: npt.NDArray[Any] | None = None) -> None:
        self.low, self.high = low, low if high is None else high
        self.windows: dict[tuple[tuple[int, int], ...], Table] = {}
        self.levels: dict[int, list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]] = {}
        self.reduced: dict[tuple[int, bytes, bytes], Table] = {}

    @functools.cached_property
    def bound(self) -> int:
        """The largest magnitude of an entry."""
        return max(abs(int(self.low.min())), abs(int(self.high.max()))) if self.low.size else 0

    def query(self, index: Sequence[Interval]) -> Interval | None:
        """The extremes over a box of indices, one interval for each axis; None where the table is empty."""
        if not self.low.size or not all(x.lo.size for x in index):
            return None
        index = [self._inside(x, n) for x, n in zip(index, self.low.shape, strict=True)]
        spans = tuple((int(x.lo.min()), int(x.hi.max()) + 1) for x in index)
        if 2 * math.prod(b - a for a, b in spans) > self.low.size:
            return self._extremes(index)
        if spans not in self.windows:  # what is not asked for is not looked at
            part = tuple(slice(a, b) for a, b in spans)
            self.windows[spans] = Table(self.low[part], None if self.low is self.high else self.high[part])
        return self.windows[spans]._extremes([_moved(x, a) for x, (a, _) in zip(index, spans, strict=True)])

    def _extremes(self, index: Sequence[Interval]) -> Interval | None:
        if self.bound >= LIMIT:
            return None
        wide = [n for n, x in enumerate(index) if not x.exact]
        if not wide:
            at = tuple(x.lo for x in index)
            low = np.asarray(self.low[at], np.int64)
            return Interval(low, low if self.low is self.high else np.asarray(self.high[at], np.int64), self.bound)
        if len(wide) == 1:
            return self._along(wide[0], index)
        for axis in reversed(wide):
            x = index[axis]
            long = [n for n, s in enumerate(np.broadcast_shapes(x.lo.shape, x.hi.shape)) if s > 1]
            if len(long) <= 1:  # it depends on one axis of the box: reduce the table along it for each position there
                place = np.arange(max(x.lo.size, x.hi.size)).reshape(np.broadcast_shapes(x.lo.shape, x.hi.shape))
                narrowed = [interval(place) if n == axis else y for n, y in enumerate(index)]
                return self._reduce(axis, x)._extremes(narrowed)
        return interval(int(self.low.min()), int(self.high.max()))

    @staticmethod
    def _inside(x: Interval, n: int) -> Interval:
        lo = np.clip(x.lo, 0, n - 1)
        return Interval(lo, lo if x.exact else np.clip(x.hi, 0, n - 1), n)

    def _level(self, axis: int, n: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        levels = self.levels.setdefault(axis, [(self.low, self.high)])
        while len(levels) <= n:
            w = 1 << (len(levels) - 1)
            low, high = levels[-1]
            size = low.shape[axis]
            left, right = np.arange(size - w), np.arange(w, size)
            levels.append(
                (
                    np.minimum(low.take(left, axis), low.take(right, axis)),
                    np.maximum(high.take(left, axis), high.take(right, axis)),
                )
            )
        return levels[n]

    def _along(self, axis: int, index: Sequence[Interval]) -> Interval:
        """The extremes where only the index of ``axis`` is an interval."""
        first, last, *others = np.broadcast_arrays(index[axis].lo, index[axis].hi, *(x.lo for x in index))
        if not first.any() and (last == self.low.shape[axis] - 1).all():  # all of it, for which no levels are needed
            others[axis] = np.zeros_like(first)
            place = tuple(others)
            low, high = self.low.min(axis, keepdims=True)[place], self.high.max(axis, keepdims=True)[place]
            return Interval(np.asarray(low, np.int64), np.asarray(high, np.int64), self.bound)
        level = np.frexp(last - first + 1)[1] - 1
        lo, hi = np.empty(first.shape, np.int64), np.empty(first.shape, np.int64)
        for n in np.unique(level):
            here = level == n
            low, high = self._level(axis, int(n))
            at = [x[here] for x in others]
            left, right = list(at), list(at)
            left[axis], right[axis] = first[here], last[here] - (1 << int(n)) + 1
            lo[here] = np.minimum(low[tuple(left)], low[tuple(right)])
            hi[here] = np.maximum(high[tuple(left)], high[tuple(right)])
        return Interval(lo, hi, self.bound)

    def _reduce(self, axis: int, x: Interval) -> Table:
        """The table with ``axis`` replaced by the positions of an interval that varies along one axis of the box."""
        first, last = (a.reshape(-1) for a in np.broadcast_arrays(x.lo, x.hi))
        key = (axis, first.tobytes(), last.tobytes())
        if key not in self.reduced:
            parts = []
            for a, b in zip(first, last, strict=True):
                window = (slice(None),) * axis + (slice(int(a), int(b) + 1),)
                parts.append((self.low[window].min(axis), self.high[window].max(axis)))
            low, high = (np.stack([p[n] for p in parts], axis) for n in (0, 1))
            self.reduced[key] = Table(low, high)
        return self.reduced[key]


def _moved(x: Interval, by: int) -> Interval:
    """The interval of indices counted from ``by``."""
    lo = x.lo - by
    return Interval(lo, lo if x.exact else x.hi - by, x.bound)
