"""Gives the loops their sizes: the rank that programs own gets a tile, every fold a step.

o[i, e] = ...; fold j { ... }      ->      tile i 128; fold j step 64 { ... }

A small rank whose size is known is left whole: the 49 rows of a window are one tile, not two of 48 and 1, and its keys one step.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade
from einfuse.ir.rewrite import map_folds, statements


def tile_rank(cascade: Cascade) -> str | None:
    """The sequence rank that the outputs are laid out along (the first one of the first output that has any)."""
    whole = {r.name for r in cascade.ranks if not r.is_sequence} | set(cascade.over)
    ranks = {x.target: x.ranks for x in statements(cascade)}
    folded = {x.rank for x in cascade.folds}
    candidates = [r for name in cascade.outs for r in ranks[name] if r not in whole]
    return next((r for r in candidates if r not in folded), candidates[0] if candidates else None)


def run(cascade: Cascade, block: int = 64, step: int = 64) -> Cascade:
    """Sets the tile to ``block`` and every fold's step to ``step``, or to what suits a rank of known size better."""
    rank = tile_rank(cascade)
    stepped = map_folds(cascade, lambda x: replace(x, step=_least(cascade.rank(x.rank).size, step)))
    return replace(stepped, tile=((rank, _whole(cascade.rank(rank).size, block)),) if rank else ())


def _whole(size: int | str, block: int) -> int:
    """``block``, or a tile that holds all of a rank that fits into the power of two which a block of that size takes anyway."""
    if isinstance(size, str) or size > _power_of_two(block):
        return block
    return -(-size // 16) * 16 if size > 16 else _power_of_two(size)


def _least(size: int | str, step: int) -> int:
    return step if isinstance(size, str) else min(step, _power_of_two(size))


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def feature_ranks(cascade: Cascade) -> tuple[str, ...]:
    """The ranks a program holds whole, in order of declaration."""
    tile = {rank for rank, _ in cascade.tile}
    folded = {r for x in cascade.folds for r in (x.rank, *x.aligned, x.count) if r}
    used: set[str] = set()
    for x in statements(cascade):
        used |= {*x.ranks, *x.over} | ex.indices(x.map)
    return tuple(r.name for r in cascade.ranks if r.name in used - tile - folded - set(cascade.over))
