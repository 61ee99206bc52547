"""The tiles of a spec's mask for given sizes: what is live, and the loop bounds that say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

import einfuse
from einfuse.ir import EinfuseError, Expr, Fold, Scalar, TileMap, classify, const
from einfuse.ir import expr as ex
from einfuse.ir.nodes import Range
from einfuse.ir.passes import pipeline
from einfuse.ir.text import show_expr
from einfuse.runtime import binding
from einfuse.runtime.given import Given
from einfuse.runtime.verify import Shape, example_inputs, example_sizes


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


def _sizes(attention: einfuse.Attention, drawn: Mapping[str, torch.Tensor | Scalar]) -> dict[str, int]:
    return dict(Given.of(attention.cascade, *binding.arguments(attention.cascade, (), drawn)).sizes)


def mapped(attention: einfuse.Attention, shape: tuple[int, int, int, int], tile: tuple[int, int]) -> Mapped:
    """The tiles of the first masked loop (or the first loop). Tables that the mask reads are drawn as for `einfuse verify`."""
    drawn: dict[str, torch.Tensor | Scalar] = {}
    batch, heads, queries, keys = shape
    wanted = Shape(batch, heads, queries, keys, (8, 8), 1)
    if attention.selection is not None:  # the lists of drawn arguments
        arguments = binding.arguments(attention.cascade, (), example_inputs(attention.cascade, torch.float32, 0, wanted))
        drawn, attention = attention.selection.read_by_the_rest({**arguments[0], **arguments[1]}), attention.selection.rest
    scheduled = pipeline.run(attention.cascade, *tile)
    folds = [x for x in scheduled.body if isinstance(x, Fold)]
    fold = next((f for f in folds if f.mask is not None), folds[0] if folds else None)
    if fold is None or not scheduled.tile:
        raise EinfuseError(f"{attention.name} has no loop over keys")
    sizes = _sizes(attention, drawn) if drawn else example_sizes(attention.cascade, wanted)
    given = drawn or (example_inputs(attention.cascade, torch.float32, 0, wanted) if fold.mask is not None else {})
    tables = {n: x.numpy() for n, x in given.items() if isinstance(x, torch.Tensor) and n in ex.reads(fold.mask)}
    values = {t.name: t.default for t in attention.cascade.inputs if t.param and t.default is not None}
    values |= {n: x for n, x in given.items() if not isinstance(x, torch.Tensor)}
    ((rows, _),) = scheduled.tile
    extents = {r.name: r.size if isinstance(r.size, int) else sizes[r.size] for r in scheduled.ranks}
    ambient = {r: extents[r] for r in scheduled.over}
    axes = (rows, extents[rows], tile[0]), (fold.rank, extents[fold.rank], tile[1])
    found = classify(fold.mask, *axes, sizes, values, tables, ambient)
    own = {**sizes, f"N{rows}": extents[rows]}
    tensors = {n: x for n, x in given.items() if isinstance(x, torch.Tensor)}
    chosen = attention.program.walks.choose(attention.cascade, Given(tensors, values, sizes), tile) if tensors else None
    walk = "" if chosen is None else str(chosen)
    return Mapped(attention.name, fold.mask, rows, fold.rank, tile, own, fold.ranges, found, walk, values, tables)
