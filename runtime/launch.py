"""One kernel, run: with the tables of live tiles that its masks ask for, made once for tables that did not change."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from einfuse.codegen import KernelPlan
from einfuse.codegen.plan import Fold as PlanFold
from einfuse.ir import Cascade, Fold, Scalar, TileMap, classify
from einfuse.ir.expr import reads
from einfuse.runtime.backends import Kernel

REMEMBERED = 4  # masks of a kernel whose live tiles are kept: layers of a model share one, a data loader goes on to the next


@dataclass(frozen=True, slots=True)
class Tables:
    """Live tiles made for these very tensors, at these versions, sizes and numbers."""

    tensors: tuple[tuple[weakref.ref[torch.Tensor], int], ...]
    key: tuple[object, ...]
    made: dict[str, torch.Tensor]

    def serve(self, tensors: list[torch.Tensor], key: tuple[object, ...]) -> bool:
        if any(x.is_inference() for x in tensors):
            return False  # they count no versions: a change in place would go unseen
        same = zip(self.tensors, tensors, strict=True)
        return self.key == key and all(ref() is x and version == x._version for (ref, version), x in same)


@dataclass(frozen=True, slots=True)
class Built:
    """One kernel ready to run: the scheduled cascade, its plan, source and callable."""

    cascade: Cascade
    plan: KernelPlan
    source: str
    kernel: Kernel
    rung: int = 0  # the place of its tile and step among the back end's `tilings`
    tables: list[Tables] = field(default_factory=list)


def launch(built: Built, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Scalar], sizes: Mapping[str, int]) -> int:
    """Runs a kernel on tensors (outputs included), host numbers and sizes; gives the number of values that spilled."""
    folds = [step for step in built.plan.steps if isinstance(step, PlanFold) and step.tabulated]
    tables = _tables(built, folds, tensors, numbers, sizes) if folds else {}
    return built.kernel({**tensors, **tables}, numbers, sizes) or 0


def _tables(
    built: Built,
    folds: list[PlanFold],
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Scalar],
    sizes: Mapping[str, int],
) -> dict[str, torch.Tensor]:
    masks = [x for x in built.cascade.body if isinstance(x, Fold) and x.tabulated]
    names = sorted({n for f in masks for n in reads(f.mask)} & set(tensors))
    held = [tensors[n] for n in names]
    key = (*sorted(sizes.items()), *sorted(numbers.items()))
    for known in built.tables:
        if known.serve(held, key):
            return known.made
    made: dict[str, torch.Tensor] = {}
    for step in folds:
        made |= tile_tables(built.cascade, step, tensors, numbers, sizes)
    if any(x.is_inference() for x in held):
        return made
    built.tables.append(Tables(tuple((weakref.ref(x), x._version) for x in held), key, made))
    del built.tables[:-REMEMBERED]
    return made


def tile_tables(
    cascade: Cascade,
    step: PlanFold,
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Scalar],
    sizes: Mapping[str, int],
) -> dict[str, torch.Tensor]:
    """The lists of full and partial tiles of one fold."""
    fold = next(x for x in cascade.body if isinstance(x, Fold) and x.rank == step.rank and x.tabulated)
    tiles = fold_tiles(cascade, fold, tensors, numbers, sizes)
    count, blocks = tiles.csr(step.table_ranks)
    device = next(iter(tensors.values())).device
    return {f"{fold.rank}_count": torch.from_numpy(count).to(device), f"{fold.rank}_block": torch.from_numpy(blocks).to(device)}


def fold_tiles(
    cascade: Cascade,
    fold: Fold,
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Scalar],
    sizes: Mapping[str, int],
) -> TileMap:
    """Which tiles of one fold of a scheduled cascade hold no point, some or all: from the symbolic analysis of its mask."""
    arrays = {n: _array(tensors[n]) for n in reads(fold.mask) if n in tensors}
    ((rank, block),) = cascade.tile
    rows = (rank, cascade.rank(rank).size, block)
    columns = (fold.rank, cascade.rank(fold.rank).size, fold.step)
    extents = {r: cascade.rank(r).size for r in cascade.over}
    ambient = {r: n if isinstance(n, int) else sizes[n] for r, n in extents.items()}
    return classify(fold.mask, rows, columns, dict(sizes), dict(numbers), arrays, ambient)


def _array(x: torch.Tensor) -> np.ndarray:
    """A mask's table on the host (a copy from the device: the only synchronisation of a launch)."""
    out: np.ndarray = x.detach().cpu().numpy()
    return out
