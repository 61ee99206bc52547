"""Rows in groups that live columns of their own go with, as lists of positions: what a mask over an image leaves of all pairs.

Of every digit (see `ir.digits`), values that no live pair connects are apart: windows, rows of an image, points of one residue. Small
parts are put together until a group is full; a part that is larger, such as all of an axis under a sliding window, is cut into runs, and
each run goes with the columns that any of its rows reaches. Groups of positions are the products of the groups of digits.

    windows of 7 x 7, shifted by 3          parts 3, 7, 7, .. 4 of each axis; groups 7, 7, .. and 4 + 3
    a neighbourhood of 7 x 7                runs of 6 and 8; 6 x 8 rows go with 12 x 14 columns
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from einfuse.ir.digits import Digit

Ints = npt.NDArray[np.int64]
Ints32 = npt.NDArray[np.int32]
RUNS = (1, 2, 3, 4, 6, 7, 8, 12, 16, 24, 32, 48, 64)
"""Lengths of runs that are tried."""
TRIED = 4096
"""The most products of groups of digits that are compared."""
LISTED = 1 << 24
"""The most entries of a list."""
LOADED, CARRIED = 32, 16
"""What a group costs besides its pairs: each column as much as this many rows, each row as this many columns."""
VECTOR = 16
"""Columns come in multiples of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Test:
    """A live pair of a group has ``lo[row] <= at[column] < hi[row]``; ``at`` is -1 where there is no column."""

    lo: Ints32
    hi: Ints32
    at: Ints32


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """``rows[group, n]`` and ``columns[group, n]``: positions. A row may stand several times in a group, and is in one group only.

    Every pair that the digits allow is a row of a group and a column of that group that passes all ``tests``, once.
    """

    rows: Ints32
    columns: Ints32
    tests: tuple[Test, ...]

    @property
    def work(self) -> float:
        groups, rows = self.rows.shape
        return work(groups, rows, self.columns.shape[1])


def work(groups: int, rows: int, columns: int) -> float:
    """In pairs."""
    columns = -(-columns // VECTOR) * VECTOR
    return float(groups * (rows * columns + LOADED * columns + CARRIED * rows))


def grouped(digits: Sequence[Digit], size: tuple[int, int], most: int, limit: float = math.inf) -> Groups | None:
    """The groups of at most ``most`` rows with the least work, for ``size`` rows and columns.

    None where that is more than ``limit``, or the live columns of a row are no run, in whatever order parts may be laid.
    """
    parts = [_Parts.of(d) for d in digits]
    if any(p is None for p in parts):
        return None
    known = [p for p in parts if p is not None]
    choices = [p.choices(most) for p in known]
    if math.prod(map(len, choices)) > TRIED:
        return None
    shaped = [c for c in itertools.product(*choices) if math.prod(p.shape[1] for p in c) <= most]
    if not shaped:
        return None
    shapes = [tuple(math.prod(p.shape[n] for p in c) for n in range(3)) for c in shaped]
    works = [work(*shape) for shape in shapes]
    best = min(range(len(works)), key=works.__getitem__)
    if works[best] > limit or shapes[best][0] * max(shapes[best][1:]) > LISTED:
        return None
    return _product(digits, known, shaped[best], size)


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """The values of a digit in groups: the rows of each, and the columns that go with them."""

    groups: tuple[tuple[Ints, Ints], ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.groups), *(max(len(g[n]) for g in self.groups) for n in (0, 1))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """The parts of a digit's values that no live pair connects; ``at`` lays the columns so that those of a row, lo..hi, are a run."""

    digit: Digit
    rows: tuple[Ints, ...]
    part: Ints  # of every row
    part_of_column: Ints
    at: Ints
    lo: Ints
    hi: Ints

    @staticmethod
    def of(digit: Digit) -> _Parts | None:
        if digit.live is None:
            one, other = np.zeros(digit.rows, np.int64), np.zeros(digit.columns, np.int64)
            return _Parts(digit, (np.arange(digit.rows),), one, other, np.arange(digit.columns), one, one + digit.columns)
        live = digit.live
        part, column = _connected(live)
        order = np.lexsort((np.arange(digit.columns), column))
        at = np.empty_like(order)
        at[order] = np.arange(digit.columns)
        some = live.any(1)
        laid = live[:, order]
        lo = np.where(some, laid.argmax(1), 0)
        hi = np.where(some, digit.columns - laid[:, ::-1].argmax(1), 0)
        if ((hi - lo) != live.sum(1)).any():
            return None
        rows = tuple(np.flatnonzero(part == p) for p in np.unique(part))
        return _Parts(digit, rows, part, column, at, lo, hi)

    def choices(self, most: int) -> list[_Cut]:
        largest = max(map(len, self.rows))
        lengths = {n for n in RUNS if n < largest} | ({largest} if largest <= most else set())
        return [self.cut(n) for n in sorted(lengths)]

    def cut(self, length: int) -> _Cut:
        """Parts put together, or cut, to groups of this many rows."""
        whole = [r for r in self.rows if len(r) <= length]
        runs = [np.array_split(r, -(-len(r) // length)) for r in self.rows if len(r) > length]
        groups = [np.sort(np.concatenate(g)) for g in _filled(whole, length)] + [g for run in runs for g in run]
        return _Cut(tuple((g, self.columns(g)) for g in groups))

    def columns(self, rows: Ints) -> Ints:
        """The columns that any of these rows reaches."""
        if self.digit.live is None:
            return self.at  # all of them
        reached = (self.at >= self.lo[rows][:, None]) & (self.at < self.hi[rows][:, None])
        return np.flatnonzero(reached.any(0))

    def told(self, cut: _Cut) -> bool:
        """Whether every row of a group reaches all its columns."""
        return all((self.hi[rows] - self.lo[rows] == len(columns)).all() for rows, columns in cut.groups)

    @property
    def apart(self) -> bool:
        """Whether rows reach all columns of their part."""
        sizes = np.bincount(self.part_of_column, minlength=int(self.part.max(initial=0)) + 1)
        return bool((self.hi - self.lo == sizes[self.part]).all())


def _connected(live: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """The part of every row and column, by the least row of it; a column that no row reaches is a part of its own."""
    rows, columns = live.shape
    part = np.arange(rows)
    while True:
        column = np.where(live, part[:, None], rows).min(0, initial=rows)
        least = np.minimum(part, np.where(live, column[None], rows).min(1, initial=rows))
        least = least[least]
        if (least == part).all():
            return part, np.where(column < rows, column, rows + np.arange(columns))
        part = least


def _filled(parts: Sequence[Ints], room: int) -> list[list[Ints]]:
    """Parts put together, the largest first, each where it fits."""
    bins: list[list[Ints]] = []
    left: list[int] = []
    for p in sorted(parts, key=len, reverse=True):
        n = next((n for n, free in enumerate(left) if free >= len(p)), len(bins))
        if n == len(bins):
            bins.append([])
            left.append(room)
        bins[n].append(p)
        left[n] -= len(p)
    return bins


def _product(digits: Sequence[Digit], parts: Sequence[_Parts], cuts: Sequence[_Cut], size: tuple[int, int]) -> Groups:
    """The products of the groups of digits, less the positions that do not exist."""
    every = [tuple(zip(*combined, strict=True)) for combined in itertools.product(*(c.groups for c in reversed(cuts)))]
    weights = [d.weight for d in reversed(digits)]
    lists = [tuple(_positions(weights, of, n) for of, n in zip(g, size, strict=True)) for g in every]
    lists = [g for g in lists if len(g[0])]
    rows = _table([g[0] for g in lists], None)
    columns = _table([g[1] for g in lists], -1)
    tests = tuple(_tests(digits, parts, cuts, rows, columns))
    if not tests and (columns < 0).any():
        tests = (Test(np.zeros_like(rows), np.ones_like(rows), np.where(columns < 0, np.int32(-1), np.int32(0))),)
    return Groups(rows, np.maximum(columns, 0), tests)


def _positions(weights: Sequence[int], values: Sequence[Ints], size: int) -> Ints:
    out = np.zeros(1, np.int64)
    for w, v in zip(weights, values, strict=True):
        out = (out[:, None] + w * v[None]).reshape(-1)
    return np.sort(out[out < size])


def _table(lists: Sequence[Ints], missing: int | None) -> Ints32:
    """The lists as rows of one length: filled up with ``missing``, or with their last entry."""
    longest = max((len(x) for x in lists), default=0)
    out = np.zeros((len(lists), max(1, longest)), np.int32)
    for line, x in zip(out, lists, strict=True):
        line[: len(x)] = x
        line[len(x) :] = x[-1] if missing is None else missing
    return out


def _tests(digits: Sequence[Digit], parts: Sequence[_Parts], cuts: Sequence[_Cut], rows: Ints32, columns: Ints32) -> list[Test]:
    """What is left to be asked of the pairs of a group: one test for all digits whose parts are apart, one for each other."""
    left = [(d, p) for d, p, c in zip(digits, parts, cuts, strict=True) if not p.told(c)]
    whole = [(d, p) for d, p in left if p.apart]
    found: list[tuple[Ints, Ints, Ints]] = []
    if whole:
        number = sum((_of(d, rows, "rows", p.part) * _scale(whole, n) for n, (d, p) in enumerate(whole)), np.zeros(1, np.int64))
        at = sum(
            (_of(d, columns, "columns", p.part_of_column) * _scale(whole, n) for n, (d, p) in enumerate(whole)),
            np.zeros(1, np.int64),
        )
        found.append((number, number + 1, at))
    for d, p in (x for x in left if not x[1].apart):
        found.append((_of(d, rows, "rows", p.lo), _of(d, rows, "rows", p.hi), _of(d, columns, "columns", p.at)))
    return [
        Test(lo.astype(np.int32), hi.astype(np.int32), np.where(columns < 0, -1, at).astype(np.int32)) for lo, hi, at in found
    ]


def _of(d: Digit, positions: Ints32, side: Literal["rows", "columns"], table: Ints) -> Ints:
    """What a table of a digit's values says of positions."""
    radix = d.rows if side == "rows" else d.columns
    return np.asarray(table[np.maximum(positions, 0) // d.weight % radix])


def _scale(whole: Sequence[tuple[Digit, _Parts]], n: int) -> int:
    return math.prod(int(max(p.part.max(initial=0), p.part_of_column.max(initial=0))) + 1 for _, p in whole[:n])
