"""The tiles of a mask as a picture: of any sizes, without a tensor. A table whose entries are not known leaves its tiles partial."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from einfuse.ir import Cascade, Expr, classify
from einfuse.ir.expr import reads
from einfuse.ir.passes.kernels import kernels
from einfuse.ir.tiles import TileMap
from einfuse.runtime import derived
from einfuse.runtime.sizes import Shape, example_sizes

COLOURS = ("#f4f4f2", "#9ec5e8", "#2f6db3")
"""Empty, partial, full."""
LENGTH = 1024
"""Queries and keys of a picture, unless others are asked for."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The tiles of one loop of a cascade. ``certain``: the mask reads nothing that a call brings, which may empty more of them."""

    rows: str
    columns: str
    tile: tuple[int, int]
    size: tuple[int, int]
    mask: Expr
    tiles: TileMap
    certain: bool

    @property
    def live(self) -> str:
        """``27 % of tiles live``"""
        share = 100 * self.tiles.live_fraction
        return f"{'' if self.certain else 'at most '}{share:.2g} % of tiles live" if share < 99.5 else "all tiles live"

    def svg(self, width: int = 240) -> str:
        """The first map (of the first head and batch element) as an SVG element."""
        kind = self.tiles.kind.reshape(-1, *self.tiles.kind.shape[-2:])[0]
        height = max(1, round(width * kind.shape[0] / max(1, kind.shape[1])))
        cells = "".join(
            f'<rect x="{x}" y="{y}" width="{n}" height="1" fill="{COLOURS[k]}"/>'
            for y, row in enumerate(kind.tolist())
            for x, n, k in _runs(row)
            if k
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {kind.shape[1]} {kind.shape[0]}" '
            f'preserveAspectRatio="none" shape-rendering="crispEdges" role="img" aria-label="{self.live}">'
            f'<rect width="100%" height="100%" fill="{COLOURS[0]}"/>{cells}</svg>'
        )


def _runs(row: list[int]) -> Iterator[tuple[int, int, int]]:
    """Neighbours of one kind as one: where they begin, how many, which kind."""
    x = 0
    for k, group in groupby(row):
        n = len(list(group))
        yield x, n, k
        x += n


def picture(
    cascade: Cascade, length: int = LENGTH, tile: tuple[int, int] = (64, 64), keys: int | None = None
) -> Picture | None:
    """The tiles of a loop that has a mask, for so many queries and keys (as many unless told); None where none has, and of a scan.

    It is the first one of the last kernel that has such: of an attention that chooses, of what reads the lists.
    """
    for kernel in reversed(kernels(cascade)):
        scheduled = derived.scheduled(kernel, *tile)
        fold = next((x for x in scheduled.folds if x.mask is not None), None)
        if fold is None or fold.mask is None or not scheduled.tile:
            continue
        sizes = example_sizes(scheduled, Shape(1, 1, length, keys or length, (64, 64), 1))
        values = {t.name: t.default for t in kernel.inputs if t.param and t.default is not None}
        extents = {r.name: r.size if isinstance(r.size, int) else sizes[r.size] for r in scheduled.ranks}
        ((rows, block),) = scheduled.tile
        axes = (rows, extents[rows], block), (fold.rank, extents[fold.rank], tile[1])
        found = classify(fold.mask, *axes, sizes, values, {}, {r: extents[r] for r in scheduled.over})
        size = extents[rows], extents[fold.rank]
        return Picture(rows, fold.rank, (block, tile[1]), size, fold.mask, found, reads(fold.mask) <= values.keys())
    return None
