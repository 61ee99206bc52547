"""The tiles of a spec's mask for given sizes: what is live, and the loop bounds that say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from einfuse.ir import Cascade, EinfuseError, Expr, Scalar, TileMap, classify, const
from einfuse.ir import expr as ex
from einfuse.ir.digits import related
from einfuse.ir.nodes import Range
from einfuse.ir.passes import choose, pipeline, walk
from einfuse.ir.text import show_expr
from einfuse.ir.tiles import numeric
from einfuse.runtime.sizes import Shape, example_sizes

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mask's tiles. ``ranges`` are the loop bounds of a row of tiles, empty where a table of live tiles is made at launch."""

    name: str
    mask: Expr | None
    rows: str
    columns: str
    tile: tuple[int, int]
    sizes: Mapping[str, int]
    ranges: tuple[Range, ...]
    tiles: TileMap
    walk: str
    """The lists that a kernel walks by instead of tiles, in words; empty where it takes tiles."""
    values: Mapping[str, Scalar] = field(repr=False)
    tables: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def bounds(self) -> list[str]:
        """The ranges as text, in the bounds ``lo`` and ``hi`` of the tile: what a row visits, and where it needs no mask."""
        return [
            f"{show_expr(r.lo)} <= {self.columns} < {show_expr(r.hi)}, "
            + (
                "all masked"
                if r.full_lo == r.full_hi
                else f"unmasked {show_expr(r.full_lo)} <= {self.columns} < {show_expr(r.full_hi)}"
            )
            for r in self.ranges
        ]

    def spans(self, ambient: tuple[int, ...], row: int) -> list[tuple[int, int]]:
        """The ranges of one row of tiles as numbers, those that are empty left out."""
        size = self.sizes[f"N{self.rows}"]
        at = {f"{self.rows}.lo": row * self.tile[0], f"{self.rows}.hi": min((row + 1) * self.tile[0], size)}
        points = {r: const(k) for r, k in zip(self.tiles.ranks, ambient, strict=True)}
        found = [(self._number(r.lo, at, points), self._number(r.hi, at, points)) for r in self.ranges]
        return [(lo, hi) for lo, hi in found if lo < hi]

    def _number(self, e: Expr, at: Mapping[str, int], points: dict[str, Expr]) -> int:
        """A bound as a number: what it reads is known for one row of tiles."""

        def known(x: Expr) -> Expr | None:
            if x.op == "size":
                return const(at[x.name] if x.name in at else self.sizes[x.name])
            if x.op == "load" and not x.args and x.name in self.values:
                return const(self.values[x.name])
            if x.op == "load" and x.name in self.tables:
                return const(int(self.tables[x.name][tuple(self._number(a, at, {}) for a in x.args)]))
            return None

        value = ex.substitute(ex.rename(e, points), known).value
        assert isinstance(value, int), f"the bound {show_expr(e)} is a number once its tile is known"
        return value


def mapped(
    cascade: Cascade, shape: tuple[int, int, int, int], tile: tuple[int, int], attention: Callable[[], Attention]
) -> Mapped:
    """The tiles of the first masked loop (or the first loop). Tables that the mask reads are drawn as for `einfuse verify`.

    Only for these, and for lists that a kernel may walk by, ``attention`` is asked for, and torch imported.
    """
    batch, heads, queries, keys = shape
    wanted = Shape(batch, heads, queries, keys, (8, 8), 1)
    arguments = None
    if choose.run(cascade) is not None:  # the lists of drawn arguments
        from einfuse._cli import drawn

        cascade, arguments = drawn.rest(attention(), wanted)
    scheduled = pipeline.run(cascade, *tile)
    folds = scheduled.folds
    fold = next((f for f in folds if f.mask is not None), folds[0] if folds else None)
    if fold is None or not scheduled.tile:
        raise EinfuseError(f"{cascade.name} has no loop over keys")
    values = {t.name: t.default for t in cascade.inputs if t.param and t.default is not None}
    read = ex.reads(fold.mask)
    if arguments is None and (not read <= values.keys() or _by_digits(cascade, example_sizes(cascade, wanted), values)):
        from einfuse._cli import drawn

        arguments = drawn.arguments(cascade, wanted)
    sizes, tables, walked = example_sizes(cascade, wanted), {}, ""
    if arguments is not None:
        sizes, tables, walked = dict(arguments.sizes), arguments.tables(read), arguments.walk(cascade, tile)
        values |= arguments.numbers
    ((rows, _),) = scheduled.tile
    extents = {r.name: r.size if isinstance(r.size, int) else sizes[r.size] for r in scheduled.ranks}
    ambient = {r: extents[r] for r in scheduled.over}
    axes = (rows, extents[rows], tile[0]), (fold.rank, extents[fold.rank], tile[1])
    found = classify(fold.mask, *axes, sizes, values, tables, ambient)
    own = {**sizes, f"N{rows}": extents[rows]}
    return Mapped(cascade.name, fold.mask, rows, fold.rank, tile, own, fold.ranges, found, walked, values, tables)


def _by_digits(cascade: Cascade, sizes: Mapping[str, int], values: Mapping[str, Scalar]) -> bool:
    """May a kernel walk by lists: does the mask relate digits of rows and columns?"""
    found = walk.pair(cascade)
    if found is None:
        return False
    extents = [(r, n if isinstance(n := cascade.rank(r).size, int) else sizes[n]) for r in (found.rows, found.columns)]
    return related([numeric(c, sizes, values) for c in found.conditions], extents[0], extents[1]) is not None
