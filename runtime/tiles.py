"""Tiles and steps that suit a mask: what a tiling visits is known from the loops' bounds, so the one with the least work is taken.

dense, causal     tile 128, step 64     few wide blocks: every operand that is loaded serves many rows
window of 64      tile 64,  step 64     a tile of 128 rows would visit 192 columns for 64 that are alive in each row
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from einfuse.ir import FUNCTIONS, Cascade, Expr, Scalar
from einfuse.ir.nodes import Range
from einfuse.runtime import cache, derived
from einfuse.runtime.backends import Tilings
from einfuse.runtime.binding import extent_of

LOADED, CARRIED = 32, 16
"""What a block of keys costs besides its pairs: loading each column as much as this many rows, moving each row's state as columns."""
MASKED = 1.25
"""A pair under a mask beside one that needs none."""
GAIN = 0.85
"""Another tiling than the first is taken where its work is at most this share of the first one's: it is another kernel to build."""
ROWS = 8
"""Tilings are compared where the first one has this many tiles: below, there is little work to save."""
WHOLE = 64
"""Rows of a matrix instruction: between as few as `few` says and these, a tile computes the others anyway."""
MANY = 64
"""Points from which on short sequences get kernels of their own."""
NARROWEST = 16
"""Columns of a block from which on a group of rows is worth a product of matrices."""
SAMPLES = 16
"""Tiles whose bounds are looked at."""


@dataclass(frozen=True, slots=True)
class Loops:
    """The bounds of the loops of one tiling: the tiled rank, its size and block, and for every fold its step and ranges."""

    rank: str
    size: int | str
    block: int
    folds: tuple[tuple[int, tuple[Range, ...]], ...]

    def row(self, known: Mapping[str, Scalar], size: int) -> float:
        """The work of a row, in pairs: that of a sample of tiles over their rows."""
        tiles = -(-size // self.block)
        at = sorted({n * (tiles - 1) // max(1, SAMPLES - 1) for n in range(min(SAMPLES, tiles))})
        work = sum(
            self._tile({**known, f"{self.rank}.lo": n * self.block, f"{self.rank}.hi": min((n + 1) * self.block, size)})
            for n in at
        )
        return work / (len(at) * self.block)

    def _tile(self, known: Mapping[str, Scalar]) -> float:
        return sum(
            _blocks(r, step, known) * step * (self.block + LOADED + CARRIED * self.block / step)
            for step, rs in self.folds
            for r in rs
        )


def _blocks(r: Range, step: int, known: Mapping[str, Scalar]) -> float:
    lo, full_lo, full_hi, hi = (int(_value(e, known)) for e in (r.lo, r.full_lo, r.full_hi, r.hi))
    full = max(0, full_hi - full_lo) // step
    return full + MASKED * (max(0, -(-(hi - lo) // step)) - full)


def _value(e: Expr, known: Mapping[str, Scalar]) -> Scalar:
    if e.op == "const":
        assert isinstance(e.value, int | float), "a constant is a number"
        return e.value
    return known[e.name] if e.op in ("size", "load") else FUNCTIONS[e.op].fold(*(_value(a, known) for a in e.args))


def loops(cascade: Cascade, block: int, step: int, strict: bool) -> Loops | None:
    """The loops of a cascade at a tiling; None where the bounds of any are not told by the tile, sizes and host numbers alone."""
    scheduled = derived.scheduled(cascade, block, step, strict)
    folds = scheduled.folds
    numbers = {t.name for t in cascade.inputs if t.param}
    bounds = [e for f in folds for r in f.ranges for e in (r.lo, r.full_lo, r.full_hi, r.hi)]
    if not scheduled.tile or any(f.tabulated for f in folds) or any(not _told(e, numbers) for e in bounds):
        return None
    ((rank, tile),) = scheduled.tile
    return Loops(rank, scheduled.rank(rank).size, tile, tuple((f.step, f.ranges) for f in folds))


def _told(e: Expr, numbers: set[str]) -> bool:
    if e.op in ("index", "new") or (e.op == "load" and e.name not in numbers):
        return False
    return all(_told(a, numbers) for a in e.args)


def first(cascade: Cascade, ladder: Tilings, numbers: Mapping[str, Scalar], sizes: Mapping[str, int], strict: bool) -> int:
    """The place in the ladder of the tiling with the least work for these sizes and numbers; 0, the back end's choice, unless it pays."""
    if len(ladder) < 2 or not masked(cascade):
        return 0
    name = cache.key("loops", cascade.digest, ladder, strict)
    found = cache.remembered("loops", name, lambda: _every(cascade, ladder, strict))
    if not found:
        return 0
    rows = found[0].size if isinstance(found[0].size, int) else sizes[found[0].size]
    if rows < ROWS * found[0].block:
        return 0
    work = [x.row({**sizes, **numbers}, rows) for x in found]
    best = min(range(len(work)), key=work.__getitem__)
    return best if work[best] <= GAIN * work[0] else 0


@dataclass(frozen=True, slots=True)
class Variant:
    """Which kernel of a cascade: the place of its tiling among the back end's, the most that sizes are which are small, and the form of
    its lists where it walks its pairs by such."""

    start: int = 0
    small: tuple[tuple[str, int], ...] = ()
    walk: str = ""


DENSE = Variant()
"""The kernel of a long call without a mask."""


def variant(
    cascade: Cascade,
    ladder: Tilings,
    numbers: Mapping[str, Scalar],
    sizes: Mapping[str, int],
    strict: bool,
    narrow: int = 0,
) -> Variant:
    """The kernel that suits a call with these (`rounded`) sizes and host numbers; ``narrow`` as in `Backend`."""
    held = small(cascade, ladder[0], sizes)
    start = 0 if held else few(cascade, ladder, sizes, strict, narrow)
    return Variant(start or first(cascade, ladder, numbers, sizes, strict), held)


def few(cascade: Cascade, ladder: Tilings, sizes: Mapping[str, int], strict: bool, narrow: int) -> int:
    """The place in the ladder of the tiling for a call whose rows are few: a wide tile would compute what no one reads. 0 for others.

    That is the tile of ``narrow`` rows, or the smallest one that a whole matrix instruction fills.
    """
    tile = derived.scheduled(cascade, *ladder[0], strict).tile if narrow else ()
    if not tile:
        return 0
    rows = extent_of(cascade, tile[0][0], sizes)
    wanted = {narrow} if rows <= narrow else {block for block, _ in ladder if block >= max(rows, WHOLE)}
    fitting = [n for n, (block, _) in enumerate(ladder) if block == min(wanted, default=0) < ladder[0][0]]
    return max(fitting, key=lambda n: ladder[n][1], default=0)


def small(cascade: Cascade, tiling: tuple[int, int], sizes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """The sizes of a cascade's sequences where many of them fit into a block: a kernel without loops is worth building for those.

    All or none: one that loops over any rank gains nothing from knowing the others.
    """
    points = math.prod(extent_of(cascade, r, sizes) for r in cascade.over)
    ranks = [r for r in cascade.ranks if r.name not in cascade.over and r.is_sequence]
    most = {r.size: max(16, sizes[r.size]) for r in ranks if isinstance(r.size, str)}
    every = (*most.values(), *(r.size for r in ranks if isinstance(r.size, int)))
    return tuple(sorted(most.items())) if points >= MANY and all(n <= min(tiling) for n in every) else ()


def masked(cascade: Cascade) -> bool:
    """Whether any statement has a condition of its own."""
    return any(x.mask is not None for x in cascade.einsums)


def rounded(sizes: Mapping[str, int]) -> dict[str, int]:
    """The next powers of two: sequences that grow should not change kernels often."""
    return {n: 1 << max(0, k - 1).bit_length() for n, k in sizes.items()}


def _every(cascade: Cascade, ladder: Tilings, strict: bool) -> tuple[Loops, ...]:
    out = []
    for block, step in ladder:
        found = loops(cascade, block, step, strict)
        if found is None:
            return ()
        out.append(found)
    return tuple(out)
