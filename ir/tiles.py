"""Which tiles of a masked iteration space hold no point, some points, or all points: found from the mask's text, not its values.

Nothing here grows with the number of points: the work and the memory are those of the tiles (and of the tables the mask reads).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from einfuse.ir import expr as ex
from einfuse.ir.affine import Affine
from einfuse.ir.intervals import Bools, Box, Interval, Table, consequences, interval, possible
from einfuse.ir.nodes import DType, Expr, Scalar
from einfuse.ir.predicates import All, Predicate, clauses, predicate

EMPTY, PARTIAL, FULL = 0, 1, 2
CHUNK = 1 << 19
"""The most tiles that are analysed at once."""

Ints32 = npt.NDArray[np.int32]
Axis = tuple[str, int | str, int]
"""A rank, its size (a number or the name of a size), and its tile."""


@dataclass(frozen=True, slots=True, eq=False)
class TileMap:
    """``kind[ambient..., row tile, column tile]``: 0 EMPTY, 1 PARTIAL, 2 FULL.

    EMPTY and FULL are certain; PARTIAL says that both kinds of points may be there. ``ranks`` are the ambient ranks that the mask
    depends on, in the order of the axes. The last column tile is never FULL where it reaches beyond the rank.
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

        A row is a point of ``ranks`` (all of this map's, in any order, and perhaps more; its own by default), flattened, and a
        row tile. Tiles stand in ascending order; places beyond the count hold 0.
        """
        kind = self.kind if ranks is None else self._over(ranks)
        kind = kind.reshape(-1, kind.shape[-1])
        count = np.stack([(kind == k).sum(1, dtype=np.int32) for k in (FULL, PARTIAL)], 1)
        block = np.zeros((len(kind), 2, max(1, int(count.max(initial=0)))), np.int32)
        for phase, k in enumerate((FULL, PARTIAL)):
            row, column = np.nonzero(kind == k)
            start = np.cumsum(count[:, phase]) - count[:, phase]
            block[row, phase, np.arange(len(row)) - start[row]] = column
        return count, block

    def _over(self, ranks: tuple[str, ...]) -> npt.NDArray[np.int8]:
        assert set(self.ranks) <= set(ranks), f"the mask depends on {self.ranks}"
        assert set(ranks) == set(self.ranks), "a table has an axis only for the ranks that the mask depends on"
        return self.kind.transpose(*(self.ranks.index(r) for r in ranks), -2, -1)


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
        numeric = _numeric(mask, sizes, params)
        flat = kind.reshape(-1, *shape[-2:])
        analysis = _Analysis(numeric, tables)
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


def _numeric(mask: Expr, sizes: Mapping[str, int], params: Mapping[str, Scalar]) -> Expr:
    """The mask with the numbers of a launch in place of sizes and host numbers."""

    def value(e: Expr) -> Expr | None:
        if e.op == "size" and e.name in sizes:
            return ex.const(int(sizes[e.name]))
        if e.op == "load" and not e.args and e.name in params:
            x = params[e.name]
            return ex.const(bool(x) if isinstance(x, bool | np.bool_) else int(x) if isinstance(x, int | np.integer) else float(x))
        return None

    return ex.substitute(mask, value)


class _Analysis:
    """A mask and its negation, opened into clauses once for every chunk of tiles."""

    def __init__(self, mask: Expr, tables: Mapping[str, npt.NDArray[np.generic]]) -> None:
        kinds: dict[str, DType] = {name: _KINDS.get(x.dtype.kind, "float") for name, x in tables.items()}
        self.types = lambda name: kinds.get(name, "float")
        self.tables = {name: Table(np.asarray(x)) for name, x in tables.items() if kinds[name] != "float"}
        self.yes, self.no = (_Condition(predicate(mask, self.types, negate)) for negate in (False, True))

    def kinds(self, coordinates: Mapping[str, Interval]) -> npt.NDArray[np.int8]:
        box = Box(coordinates, self.tables, self.types)
        alive, dead = self.yes.possible(box), self.no.possible(box)
        return np.where(dead, np.where(alive, PARTIAL, EMPTY), FULL).astype(np.int8)


_KINDS: dict[str, DType] = {"b": "bool", "i": "int", "u": "int"}


class _Condition:
    """A predicate with the consequences of its clauses, where they are few enough."""

    def __init__(self, p: Predicate) -> None:
        self.predicate = p
        opened = clauses(p)
        self.clauses: list[tuple[Predicate, tuple[Affine, ...]]] | None = None
        if opened is not None:
            self.clauses = [(All(c), consequences(c)) for c in opened]

    def possible(self, box: Box) -> Bools:
        if self.clauses is None:
            return possible(self.predicate, box)
        out = np.asarray(False)
        for whole, forms in self.clauses:
            may = possible(whole, box)
            for form in forms:
                may = may & box.reaches_zero(form)
            out = out | may
        return out
