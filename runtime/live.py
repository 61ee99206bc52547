"""How much of its space an attention visits: the live tiles of its forward kernels, and the same attention without its masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from einfuse.codegen import Storage
from einfuse.ir import Cascade, Einsum, Fold, Scalar, TileMap
from einfuse.runtime import binding, tiles
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import choose
from einfuse.runtime.given import Given
from einfuse.runtime.kernels import static_sizes, tiled, tilings
from einfuse.runtime.launch import fold_tiles
from einfuse.runtime.scan import ScanProgram
from einfuse.runtime.walks import Chosen


def without_masks(attention: Attention) -> Attention | None:
    """The attention in which every point exists; None where that is so already."""
    body = tuple(replace(x, mask=None) if isinstance(x, Einsum) else x for x in attention.cascade.body)
    if body == attention.cascade.body:
        return None
    whole = replace(attention.cascade, name=f"{attention.name}_whole", body=body)
    return Attention(whole, attention.backend, attention.strict)


@dataclass(frozen=True, slots=True, eq=False)
class Visited:
    """One fold of a forward kernel, its tiles under its mask, and the lists that pairs are walked by, where they are."""

    fold: Fold
    tiles: TileMap
    pairs: int
    """All pairs of rows and columns of an ambient point."""
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
    """What the forward kernels of a call with these arguments visit, fold by fold. Nothing is run."""
    if isinstance(attention.program, ScanProgram):
        return  # a scan visits every block
    given = Given.of(attention.cascade, *binding.arguments(attention.cascade, (), inputs))
    backend = choose(given.device, attention.backend)
    dtype = next((x.dtype for x in given.tensors.values() if x.is_floating_point()), torch.float32)
    for stage in attention.stages or (attention,):
        storage = _storage(stage.cascade, given.tensors, dtype)
        static = static_sizes(stage.cascade, given.sizes)
        ladder = tilings(stage.cascade, storage, static, backend, False)
        ladder = ladder[tiles.first(stage.cascade, ladder, given.numbers, tiles.rounded(given.sizes), attention.strict) :]
        some = next(iter(given.tensors.values()))  # stands for what earlier kernels give
        known = given.more({t.name: some for t in stage.cascade.inputs if not t.param and t.name not in given.tensors})
        chosen = stage.program.walks.choose(stage.cascade, known, ladder[0])
        cascade = stage.cascade
        if chosen is not None:
            cascade, known = chosen.cascade, known.more(chosen.tables, chosen.sizes)
            storage |= dict.fromkeys(chosen.tables, "i32")
        scheduled, _, _ = tiled(cascade, storage, static, backend, ladder, attention.strict)
        for fold in (x for x in scheduled.body if isinstance(x, Fold) and scheduled.tile):
            ranks = (scheduled.tile[0][0], fold.rank)
            pairs = math.prod(binding.extent_of(stage.cascade, r, given.sizes) for r in ranks)
            yield Visited(fold, fold_tiles(scheduled, fold, known), pairs, chosen)


def _storage(cascade: Cascade, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, Storage]:
    """As a call has it; what an earlier kernel gives is in the dtype of the call."""
    kinds: dict[str, Storage] = {"int": "i64", "bool": "bool", "float": binding.STORAGE[dtype]}
    given = {t.name: binding.STORAGE[tensors[t.name].dtype] if t.name in tensors else kinds[t.dtype] for t in cascade.inputs}
    return given | dict.fromkeys(cascade.outs, binding.STORAGE[dtype])


def live_share(attention: Attention, inputs: Mapping[str, torch.Tensor | Scalar]) -> float:
    """The share of all pairs that the forward kernels of a call have to visit, all folds together.

    Those of a tile count where the analysis of its mask does not prove it empty, those of lists by the groups that they are in.
    """
    live, every = 0.0, 0
    for x in visited(attention, inputs):
        live, every = live + x.share * x.pairs, every + x.pairs
    return live / every if every else 1.0
