"""Interval arithmetic on int64, many intervals at a time.

The ends of an `Interval` are numpy arrays that broadcast against each other, so one evaluation treats every tile of an
iteration space at once. Every operation is sound: its result holds the operation's value for all values in its operands.
Intervals carry a bound on their magnitude as a Python int; what might leave int64 is unknown (None), like what no rule covers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
LIMIT = 1 << 62
"""Magnitudes from here on are unknown: sums of two below it cannot overflow int64."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Every integer from ``lo`` to ``hi``, element by element; no magnitude exceeds ``bound``."""

    lo: Ints
    hi: Ints
    bound: int

    @property
    def exact(self) -> bool:
        """Is it one value everywhere?"""
        return self.lo is self.hi


def interval(lo: Any, hi: Any = None) -> Interval:
    """The interval between two arrays (or numbers), or an exact value."""
    low = np.asarray(lo, np.int64)
    high = low if hi is None else np.asarray(hi, np.int64)
    bound = max((abs(int(f(x))) for x in (low, high) for f in (np.min, np.max)), default=0) if low.size and high.size else 0
    return Interval(low, high, bound)


def by_shape(parts: Sequence[tuple[Ints, int]], const: int) -> list[Ints]:
    """The weighted arrays, those of one shape added up so that no sum is larger than it must be; the constant in the first."""
    groups: dict[tuple[int, ...], Ints] = {}
    for x, c in parts:
        scaled = x if c == 1 else x * np.int64(c)
        groups[x.shape] = groups[x.shape] + scaled if x.shape in groups else scaled
    arrays = sorted(groups.values(), key=lambda x: x.size)
    return [arrays[0] + np.int64(const), *arrays[1:]] if arrays else [np.asarray(const, np.int64)]


def weighted_sum(terms: Sequence[tuple[Interval, int]], const: int) -> tuple[Ints, Ints]:
    low, *more = by_shape([(x.lo if c > 0 else x.hi, c) for x, c in terms], const)
    for x in more:
        low = low + x
    if all(x.exact for x, _ in terms):
        return low, low
    high, *more = by_shape([(x.hi if c > 0 else x.lo, c) for x, c in terms], const)
    for x in more:
        high = high + x
    return low, high


def _corners(op: Callable[[Ints, Ints], Ints], a: Interval, b: Interval, bound: int) -> Interval | None:
    """Of an operation monotone in each operand: the extremes are at the corners."""
    if bound >= LIMIT:
        return None
    if a.exact and b.exact:
        value = op(a.lo, b.lo)
        return Interval(value, value, bound)
    values = [op(x, y) for x in ((a.lo,) if a.exact else (a.lo, a.hi)) for y in ((b.lo,) if b.exact else (b.lo, b.hi))]
    lo, hi = values[0], values[0]
    for v in values[1:]:
        lo, hi = np.minimum(lo, v), np.maximum(hi, v)
    return Interval(lo, hi, bound)


def _times(a: Interval, b: Interval) -> Interval | None:
    return _corners(np.multiply, a, b, a.bound * b.bound)


def _floor(a: Interval, w: Interval) -> Interval | None:
    return _corners(np.floor_divide, a, w, a.bound) if (w.lo > 0).all() else None


def _remainder(a: Interval, w: Interval) -> Interval | None:
    if not (w.lo > 0).all():
        return None
    if w.exact:
        same = a.lo // w.lo == a.hi // w.lo
        lo, hi = np.where(same, a.lo % w.lo, 0), np.where(same, a.hi % w.lo, w.lo - 1)
        return Interval(lo, lo if a.exact else hi, w.bound)
    return Interval(np.zeros_like(w.lo), np.where(a.lo >= 0, np.minimum(a.hi, w.hi - 1), w.hi - 1), w.bound)


def _absolute(a: Interval) -> Interval:
    low, high = np.abs(a.lo), np.abs(a.hi)
    if a.exact:
        return Interval(low, low, a.bound)
    return Interval(np.where((a.lo <= 0) & (a.hi >= 0), 0, np.minimum(low, high)), np.maximum(low, high), a.bound)


def square(a: Interval) -> Interval | None:
    """Of a product with itself, whose factors are never of two signs."""
    size = _absolute(a)
    return _times(size, size)


def _extreme(op: Callable[[Ints, Ints], Ints], a: Interval, b: Interval) -> Interval:
    lo = op(a.lo, b.lo)
    return Interval(lo, lo if a.exact and b.exact else op(a.hi, b.hi), max(a.bound, b.bound))


TRANSFER: dict[str, Callable[..., Interval | None]] = {
    "*": _times,
    "//": _floor,
    "%": _remainder,
    "abs": _absolute,
    "min": lambda a, b: _extreme(np.minimum, a, b),
    "max": lambda a, b: _extreme(np.maximum, a, b),
}
