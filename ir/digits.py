"""Positions as numbers in mixed radix, and conditions on pairs of positions as conditions on pairs of digits.

    i // 56 // 7 == j // 56 // 7 and i % 56 // 7 == j % 56 // 7        rows and columns of an image in windows of 7 x 7

    weights 1, 7, 56, 392:  i = y1 * 392 + y0 * 56 + x1 * 7 + x0       the condition: y1 equal, x1 equal

The divisors of a condition say what the digits are. A condition that mentions several digits joins them to one; one that mentions all
of them is left out, and says nothing here. What is found is exact: each digit's table is the condition itself at every pair of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Expr
from einfuse.ir.tiles import PARTIAL, at_points

Bools = npt.NDArray[np.bool_]
MOST = 1024
"""The most values of a digit that a condition may relate."""


@dataclass(frozen=True, slots=True, eq=False)
class Digit:
    """``position // weight % radix`` of rows and of columns. ``live[row digit, column digit]``: may such a pair hold; None for all."""

    weight: int
    rows: int
    columns: int
    live: Bools | None

    def turned(self) -> Digit:
        """With rows and columns exchanged."""
        return Digit(self.weight, self.columns, self.rows, None if self.live is None else self.live.T)


@dataclass(frozen=True, slots=True)
class Related:
    """The digits, least first, and the places of the conditions that their tables hold all of."""

    digits: tuple[Digit, ...]
    said: tuple[int, ...]


def related(conditions: Sequence[Expr], rows: tuple[str, int], columns: tuple[str, int]) -> Related | None:
    """The digits that these conditions (all of numbers, see `tiles.numeric`) relate one by one; None where there are not several.

    ``rows`` and ``columns`` are two ranks and their sizes.
    """
    most = max(rows[1], columns[1])
    weights = _chain({w for e in conditions for r in (rows, columns) for w in _weights(e, r[0])}, most)
    while len(weights) > 1:
        splits = [_Digits(rows, weights), _Digits(columns, weights)]
        used = [set().union(*(s.used(e) for s in splits)) for e in conditions]
        wide = [u for u in used if 1 < len(u) < len(weights)]
        if not wide:
            return _tables(conditions, used, splits)
        joined = {n for u in wide for n in range(min(u) + 1, max(u) + 1)}
        weights = [w for n, w in enumerate(weights) if n not in joined]
    return None


def _tables(conditions: Sequence[Expr], used: Sequence[set[int]], splits: Sequence[_Digits]) -> Related | None:
    rows, columns = splits
    tables: dict[int, Bools] = {}
    said: list[int] = []
    for n, (e, where) in enumerate(zip(conditions, used, strict=True)):
        if len(where) != 1:
            continue
        (k,) = where
        if max(rows.radix(k), columns.radix(k)) > MOST:
            return None
        at = {rows.name(k): np.arange(rows.radix(k))[:, None], columns.name(k): np.arange(columns.radix(k))[None]}
        kind = np.broadcast_to(at_points(columns(rows(e)), at, {}, {}, {}), (rows.radix(k), columns.radix(k)))
        if (kind == PARTIAL).any():
            continue
        tables[k] = kind != 0 if k not in tables else tables[k] & (kind != 0)
        said.append(n)
    digits = tuple(Digit(w, rows.radix(k), columns.radix(k), tables.get(k)) for k, w in enumerate(rows.weights))
    return Related(digits, tuple(said)) if tables else None


def _chain(weights: set[int], most: int) -> list[int]:
    """1 and those of the weights that divide one another."""
    out = [1]
    for w in sorted(weights):
        if w < most and w > out[-1] and w % out[-1] == 0:
            out.append(w)
    return out


def _weights(e: Expr, rank: str) -> set[int]:
    """The weights of the digits that quotients and remainders of a rank's coordinate cut it into."""
    return {_weight(x.args[0], rank) * _divisor(x) for x in ex.walk(e) if _divisor(x) and _weight(x.args[0], rank)}


def _weight(e: Expr, rank: str) -> int:
    """The weight of the least digit of what is made of a coordinate by quotients and remainders alone; 0 for anything else."""
    if e.op == "index":
        return int(e.name == rank)
    if not _divisor(e):
        return 0
    return _weight(e.args[0], rank) * (_divisor(e) if e.op == "//" else 1)


def _divisor(e: Expr) -> int:
    """The positive constant that a quotient or remainder divides by, else 0."""
    w = e.args[1].value if e.op in ("//", "%") else 0
    return w if isinstance(w, int) and w > 0 else 0


@dataclass(frozen=True, slots=True)
class _Digits:
    """The digits of one rank's coordinate."""

    rank: tuple[str, int]
    weights: Sequence[int]

    def name(self, k: int) -> str:
        return f"{self.rank[0]}.{k}"

    def radix(self, k: int) -> int:
        end = self.weights[k + 1] if k + 1 < len(self.weights) else max(1, self.rank[1])
        return -(-end // self.weights[k])

    def used(self, e: Expr) -> set[int]:
        """The digits that an expression depends on."""
        span = self.span(e)
        return set(range(*span)) if span is not None else set().union(*map(self.used, e.args))

    def __call__(self, e: Expr) -> Expr:
        """The expression in single digits."""
        span = self.span(e)
        if span is not None and span[1] - span[0] == 1:
            return ex.index(self.name(span[0]))
        return ex.call(e.op, *map(self, e.args)) if e.args and e.op not in ex.LEAVES else e

    def span(self, e: Expr) -> tuple[int, int] | None:
        """From which digit on and up to which one an expression is the coordinate's; None where it is nothing of the kind."""
        if e.op == "index":
            return (0, len(self.weights)) if e.name == self.rank[0] else None
        inner = self.span(e.args[0]) if _divisor(e) else None
        if inner is None:
            return None
        low, high = inner
        cut = self.weights[low] * _divisor(e)
        if e.op == "%" and high == len(self.weights) and cut >= self.rank[1]:
            return inner
        if cut not in self.weights[low + 1 : high]:
            return inner if e.op == "//" and cut == self.weights[low] else None
        at = list(self.weights).index(cut)
        return (at, high) if e.op == "//" else (low, at)
