"""How much of its space an attention visits: the live tiles of its forward kernels, and the same attention without its masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from einfuse.ir import Fold, Scalar, TileMap
from einfuse.ir.rewrite import map_einsums
from einfuse.runtime import binding, inside
from einfuse.runtime.attention import Attention
from einfuse.runtime.launch import fold_tiles
from einfuse.runtime.specialise import Printed
from einfuse.runtime.walks import Chosen


def without_masks(attention: Attention) -> Attention | None:
    """The attention in which every point exists; None where that is so already."""
    whole = map_einsums(attention.cascade, lambda x: replace(x, mask=None))
    if whole is attention.cascade:
        return None
    return Attention(replace(whole, name=f"{attention.name}_whole"), attention.backend, attention.strict)


@dataclass(frozen=True, slots=True, eq=False)
class Visited:
    """One fold of a forward kernel, its tiles under its mask, and the lists that pairs are walked by, where they are."""

    fold: Fold
    tiles: TileMap
    points: int
    """The ambient points."""
    pairs: int
    """All pairs of rows and columns of one of them."""
    chosen: Chosen | None = None

    @property
    def share(self) -> float:
        """Of all pairs, those that are visited."""
        return self.tiles.live_fraction if self.chosen is None else math.prod(self.chosen.shape) / max(1, self.pairs)


def forward_tiles(attention: Attention, inputs: Mapping[str, torch.Tensor | Scalar]) -> Iterator[tuple[Fold, TileMap]]:
    """The folds of the forward kernels of a call with these arguments, and the tiles of each under its mask.

    Tiles are those of the back end that the call would take, or the groups of its lists; nothing is run.
    """
    return ((x.fold, x.tiles) for x in visited(attention, inputs))


def visited(attention: Attention, inputs: Mapping[str, torch.Tensor | Scalar]) -> Iterator[Visited]:
    """What the forward kernels of a call with these arguments visit, fold by fold; nothing is run. A scan has no pairs to visit."""
    for launch in inside.launched(attention, *binding.arguments(attention.cascade, (), inputs)):
        if not isinstance(launch.kernel, Printed) or not launch.kernel.cascade.tile:
            continue
        cascade, sizes = launch.kernel.cascade, launch.given.sizes
        lists = launch.choice.lists if launch.choice else None
        groups = lists.made.groups if lists else None
        points = math.prod(binding.extent_of(cascade, r, sizes) for r in cascade.over if cascade.rank(r).size != groups)
        for fold in cascade.folds:
            pairs = (
                lists.pairs
                if lists
                else math.prod(binding.extent_of(cascade, r, sizes) for r in (cascade.tile[0][0], fold.rank))
            )
            yield Visited(fold, fold_tiles(cascade, fold, launch.given), points, pairs, lists)


def live_share(attention: Attention, inputs: Mapping[str, torch.Tensor | Scalar]) -> float:
    """The share of all pairs that the forward kernels of a call have to visit, all folds together.

    Those of a tile count where the analysis of its mask does not prove it empty, those of lists by the groups that they are in.
    """
    live, every = 0.0, 0
    for x in visited(attention, inputs):
        live, every = live + x.share * x.points * x.pairs, every + x.points * x.pairs
    return live / every if every else 1.0
