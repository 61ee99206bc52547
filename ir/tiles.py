"""Which tiles of a masked iteration space hold no point, some points or all points: found from the mask's text, not its values.

Nothing here grows with the number of points: the work and the memory are those of the tiles (and of the tables the mask reads).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from einfuse.ir import expr as ex
from einfuse.ir.boxes import Bools, Box, possible
from einfuse.ir.implications import consequences, solvable
from einfuse.ir.intervals import Interval, interval
from einfuse.ir.nodes import DType, Expr, Scalar
from einfuse.ir.predicates import Predicate, clauses, predicate
from einfuse.ir.tables import Table

EMPTY, PARTIAL, FULL = 0, 1, 2
CHUNK = 1 << 19
"""The most tiles that are analysed at once."""

Ints32 = npt.NDArray[np.int32]
Axis = tuple[str, int | str, int]
"""A rank, its size (a number or the name of a size), and its tile."""


@dataclass(frozen=True, slots=True, eq=False)
class TileMap:
    """``kind[ambient..., row tile, column tile]``: 0 EMPTY, 1 PARTIAL, 2 FULL.

    EMPTY and FULL are certain; PARTIAL says that both kinds of points may be there. ``ranks`` are the ambient ranks that the
    mask depends on, in the order of the axes. The last column tile is never FULL where it reaches beyond the rank.
    """

    kind: npt.NDArray[np.int8]
    ranks: tuple[str, ...] = ()

    @property
    def live_fraction(self) -> float:
        """The share of tiles that have to be visited (0 of none)."""
        return float(np.count_nonzero(self.kind)) / self.kind.size if self.kind.size else 0.0

    def sparsity(self) -> float:
        """The share of tiles that are skipped."""
        return 1.0 - self.live_fraction

    def csr(self, ranks: tuple[str, ...] | None = None) -> tuple[Ints32, Ints32]:
        """The lists of tiles to visit: ``count[row, phase]`` and ``block[row, phase, n]``; phase 0 is FULL, phase 1 PARTIAL.

        A row is a point of ``ranks`` (this map's own, in any order), flattened, and a row tile. Tiles stand in ascending order;
        places beyond the count hold 0.
        """
        kind = self.kind if ranks is None else self._over(ranks)
        kind = kind.reshape(math.prod(kind.shape[:-1]), kind.shape[-1])  # there may be no columns
        count = np.stack([(kind == k).sum(1, dtype=np.int32) for k in (FULL, PARTIAL)], 1)
        block = np.zeros((len(kind), 2, max(1, int(count.max(initial=0)))), np.int32)
        for phase, k in enumerate((FULL, PARTIAL)):
            row, column = np.nonzero(kind == k)
            start = np.cumsum(count[:, phase]) - count[:, phase]
            block[row, phase, np.arange(len(row)) - start[row]] = column
        return count, block

    def _over(self, ranks: tuple[str, ...]) -> npt.NDArray[np.int8]:
        assert set(ranks) == set(self.ranks), f"the mask depends on {self.ranks}, not on {ranks}"
        return self.kind.transpose(*(self.ranks.index(r) for r in ranks), -2, -1)


def combined(maps: Sequence[TileMap], ambient: Mapping[str, int]) -> TileMap:
    """One map for several masks over the same tiles: where they do not agree on a tile, it is PARTIAL. ``ambient`` holds all their ranks."""
    out: npt.NDArray[np.int8] | None = None
    for m in maps:
        kind = m.kind.transpose(*(m.ranks.index(r) for r in ambient if r in m.ranks), -2, -1)
        kind = kind.reshape(*(n if r in m.ranks else 1 for r, n in ambient.items()), *kind.shape[-2:])
        kind = np.broadcast_to(kind, (*ambient.values(), *kind.shape[-2:]))
        out = kind if out is None else np.where(out == kind, kind, np.int8(PARTIAL))
    assert out is not None, "a table is made of a mask"
    return TileMap(out, tuple(ambient))


def classify(
    mask: Expr | None,
    rows: Axis,
    columns: Axis,
    sizes: Mapping[str, int],
    params: Mapping[str, Scalar],
    tables: Mapping[str, npt.NDArray[np.generic]],
    ambient: Mapping[str, int],
) -> TileMap:
    """The tiles of ``rows`` x ``columns`` under ``mask``, for every point of the ambient ranks that it reads.

    Sizes and host numbers are those of one launch. What the mask reads that is not in ``tables`` (or holds floats) is unknown.
    """
    (n, block), (m, step) = ((sizes[s] if isinstance(s, str) else s, t) for _, s, t in (rows, columns))
    ranks = tuple(r for r in ambient if r in ex.indices(mask))
    shape = (*(ambient[r] for r in ranks), -(-n // block), -(-m // step))
    kind = np.full(shape, FULL, np.int8)
    if mask is not None and kind.size:
        fixed = numeric(mask, sizes, params)
        flat = kind.reshape(-1, *shape[-2:])
        analysis = _Analysis(fixed, tables)
        points = [np.asarray(x).reshape(-1) for x in np.indices(shape[:-2])]
        tiles = {rows[0]: _spans(n, block), columns[0]: _spans(m, step)}
        for a, r in _chunks(*flat.shape):
            here = {name: interval(x[a, None, None]) for name, x in zip(ranks, points, strict=True)}
            first, last = tiles[rows[0]]
            here[rows[0]] = interval(first[None, r, None], last[None, r, None])
            first, last = tiles[columns[0]]
            here[columns[0]] = interval(first[None, None], last[None, None])
            flat[a, r] = analysis.kinds(here)
    if m % step:
        kind[..., -1:] = np.minimum(kind[..., -1:], PARTIAL)
    return TileMap(kind, ranks)


def at_points(
    mask: Expr,
    points: Mapping[str, npt.NDArray[np.int64]],
    sizes: Mapping[str, int],
    params: Mapping[str, Scalar],
    tables: Mapping[str, npt.NDArray[np.generic]],
) -> npt.NDArray[np.int8]:
    """What is known of a mask at single points, arrays of coordinates by rank: FULL where it holds, EMPTY where not, PARTIAL: not known."""
    found = _Analysis(numeric(mask, sizes, params), tables).kinds({r: interval(x) for r, x in points.items()})
    return np.broadcast_to(found, np.broadcast_shapes(*(x.shape for x in points.values())))


def _spans(n: int, tile: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first and the last coordinate of every tile."""
    first = np.arange(0, n, tile, dtype=np.int64)
    return first, np.minimum(first + tile, n) - 1


def _chunks(points: int, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Runs of ambient points and of row tiles of at most `CHUNK` tiles each."""
    height = max(1, min(rows, CHUNK // columns))
    depth = max(1, CHUNK // (columns * height)) if height == rows else 1
    for a in range(0, points, depth):
        for r in range(0, rows, height):
            yield slice(a, a + depth), slice(r, r + height)


def numeric(mask: Expr, sizes: Mapping[str, int], params: Mapping[str, Scalar]) -> Expr:
    """The mask with the numbers of a launch in place of sizes and host numbers."""

    def value(e: Expr) -> Expr | None:
        if e.op == "size" and e.name in sizes:
            return ex.const(int(sizes[e.name]))
        if e.op == "load" and not e.args and e.name in params:
            return ex.const(_scalar(params[e.name]))
        return None

    return ex.substitute(mask, value)


def _scalar(x: Scalar) -> Scalar:
    """A host number as a Python one, for it may come from numpy."""
    return bool(x) if isinstance(x, bool | np.bool_) else int(x) if isinstance(x, int | np.integer) else float(x)


class _Analysis:
    """A mask and its negation, opened into clauses once for every chunk of tiles, with the tables of one launch."""

    def __init__(self, mask: Expr, tables: Mapping[str, npt.NDArray[np.generic]]) -> None:
        read = {name: tables[name] for name in ex.reads(mask) if name in tables}
        kinds = {name: _KINDS[x.dtype.kind] for name, x in read.items() if x.dtype.kind in _KINDS}
        self.types = _types(kinds)
        self.tables = {name: Table(np.asarray(tables[name])) for name in kinds}
        self.yes, self.no = _conditions(mask, tuple(sorted(kinds.items())))

    def kinds(self, coordinates: Mapping[str, Interval]) -> npt.NDArray[np.int8]:
        box = Box(coordinates, self.tables, self.types)
        alive, dead = self.yes.possible(box), self.no.possible(box)
        return np.where(dead, np.where(alive, np.int8(PARTIAL), np.int8(EMPTY)), np.int8(FULL))


_KINDS: dict[str, DType] = {"b": "bool", "i": "int", "u": "int"}


def _types(kinds: Mapping[str, DType]) -> Callable[[str], DType]:
    return lambda name: kinds.get(name, "float")


@functools.lru_cache(maxsize=256)
def _conditions(mask: Expr, kinds: tuple[tuple[str, DType], ...]) -> tuple[_Condition, _Condition]:
    """The mask and its negation; the same for every launch with the same numbers."""
    types = _types(dict(kinds))
    return _Condition(predicate(mask, types)), _Condition(predicate(mask, types, True))


class _Condition:
    """A predicate as unions of forms that are all at least 0, where its clauses are few enough."""

    def __init__(self, p: Predicate) -> None:
        self.predicate = p
        opened = clauses(p)
        self.unions = None if opened is None else [consequences(c) for c in opened if solvable(c)]

    def possible(self, box: Box) -> Bools:
        if self.unions is None:
            return possible(self.predicate, box)
        out = np.asarray(False)
        for forms in self.unions:
            may = np.asarray(True)
            for form in forms:
                may = may & box.reaches_zero(form)
                if not may.any():
                    break
            out = out | may
        return out
