"""One kernel, run: with the tables of live tiles that its masks ask for, made once for tables that did not change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from einfuse.codegen import KernelPlan
from einfuse.codegen.plan import Fold as PlanFold
from einfuse.ir import Cascade, Fold, Scalar, TileMap, classify, debug
from einfuse.ir.expr import reads
from einfuse.ir.tiles import combined
from einfuse.runtime import cache
from einfuse.runtime.backends import Backend, Kernel
from einfuse.runtime.binding import extent_of
from einfuse.runtime.capture import capturing
from einfuse.runtime.given import Given
from einfuse.runtime.graph import tried
from einfuse.runtime.recent import Recent
from einfuse.runtime.specialise import Printed, Specialisation
from einfuse.runtime.tiles import Variant
from einfuse.runtime.unchanged import Unchanged

if TYPE_CHECKING:
    from einfuse.runtime.walks import Chosen

LOOK = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Pairs of positions from which on a launch looks at the tables of its masks. A look takes 1 to 2 ms of Python, and waits for the device:
below, that is longer than the work it saves, and in decoding the tables are new in every step."""
AGAIN = 5
"""A launch on the host of so many powers of two fewer pairs is looked at where its tables come again: layers of a model share a mask."""
REMEMBERED = 4  # masks of a kernel whose live tiles are kept: layers of a model share one, a data loader goes on to the next


@dataclass(frozen=True, slots=True)
class Tables:
    """Live tiles made for these very tensors, sizes and numbers."""

    tensors: Unchanged
    key: tuple[object, ...]
    made: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Built:
    """One kernel ready to run, and the live tiles of its latest masks."""

    printed: Printed
    kernel: Kernel
    tables: list[Tables] = field(default_factory=list)

    @staticmethod
    def of(printed: Printed, backend: Backend) -> Built:
        """Compiles the text, or loads what an earlier process compiled."""
        return Built(printed, backend.build(printed.plan, printed.source, cache.folder() / backend.name))

    @property
    def cascade(self) -> Cascade:
        return self.printed.cascade

    @property
    def plan(self) -> KernelPlan:
        return self.printed.plan


@dataclass(frozen=True, slots=True)
class Choice:
    """The kernel of a launch: which one, and the lists by which it walks its pairs where it does."""

    kernel: Specialisation
    variant: Variant
    lists: Chosen | None = None


class Launch:
    """A kernel with the tables of live tiles that its masks ask for: called with tensors (outputs included), host numbers and sizes."""

    __slots__ = ("_all", "_folds", "_last", "_named", "_smaller", "built")

    def __init__(self, built: Built, smaller: Callable[[Printed], bool] = lambda _: False) -> None:
        """``smaller`` makes the kernel to take in place of one that spills, where there is one."""
        self.built, self._smaller = built, smaller
        self._folds = [f for f in built.plan.folds if f.tabulated]
        masks = [x for x in built.cascade.folds if x.tabulated]
        self._named = sorted({n for f in masks for n in _tensors(built.cascade, f)})
        self._all: Recent[tuple[object, ...], dict[str, torch.Tensor]] = Recent(REMEMBERED)
        self._last: tuple[object, Unchanged | None] = (None, None)

    def __call__(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Scalar], sizes: Mapping[str, int]) -> bool:
        """Runs it. True where it spilled registers and there is a smaller one to take from now on."""
        if debug.enabled("launch"):
            debug.show(
                f"launch {self.built.plan.name} {', '.join(f'{n} = {x}' for n, x in (*sizes.items(), *numbers.items()))}"
            )
        if self._folds:
            tensors = {**tensors, **self._tables(Given(tensors, numbers, sizes))}
        return tried(lambda: self.built.kernel(tensors, numbers, sizes), lambda: self._smaller(self.built.printed))

    def bound(
        self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Scalar], sizes: Mapping[str, int]
    ) -> Callable[[Mapping[str, torch.Tensor]], None] | None:
        """The launch for tensors that lie as these do, of these numbers and sizes; None where a kernel has none."""
        bind = getattr(self.built.kernel, "bound", None)  # of the back ends' kernels, those of CPUs have one
        if bind is None:
            return None
        if not self._folds:
            return bind(tensors, numbers, sizes)  # type: ignore[no-any-return]  # of `CpuKernel`
        given = Given(tensors, numbers, sizes)
        look, key = self._look(given), given.key
        if look is None:  # the tables of every tile, whatever the masks read
            return bind({**tensors, **self._every(given)}, numbers, sizes)  # type: ignore[no-any-return]  # as above
        latest: tuple[object, Callable[[Mapping[str, torch.Tensor]], None] | None] = (None, None)

        def again(tensors: Mapping[str, torch.Tensor]) -> None:
            nonlocal latest
            tables = self._looked(Given(tensors, numbers, sizes), key, look)
            made, launch = latest
            if launch is None or made is not tables:
                launch = bind({**tensors, **tables}, numbers, sizes)
                latest = tables, launch
            launch(tensors)

        return again

    def _tables(self, given: Given) -> dict[str, torch.Tensor]:
        """The tables for a launch: made once for the values that its masks read; of every tile where it is short and they are new."""
        if capturing():  # the masks of its replays are not those of now
            return self._made(given, False)
        look = self._look(given)
        return self._every(given) if look is None else self._looked(given, given.key, look)

    def _look(self, given: Given) -> bool | None:
        """Whether a launch of these sizes looks at its masks, also where they are new; None: it never does."""
        device = given.device.type
        pairs, look = max(_pairs(self.built.cascade, x, given) for x in self._folds), LOOK.get(device, LOOK["cuda"])
        return True if pairs >= look else False if device == "cpu" and pairs >= look >> AGAIN else None

    def _looked(self, given: Given, key: tuple[object, ...], new: bool) -> dict[str, torch.Tensor]:
        """The tables for the values that its masks read, which are looked at where they come again, or also where they are ``new``."""
        held = [given.tensors[n] for n in self._named if n in given.tensors]
        for known in self.built.tables:
            if known.key == key and known.tensors.are(held):
                return known.made
        if not new and not self._again(key, held):
            return self._every(given)
        made = self._made(given, True)
        same = Unchanged.of(held)
        if same is not None:
            self.built.tables.append(Tables(same, key, made))
            del self.built.tables[:-REMEMBERED]
        return made

    def _every(self, given: Given) -> dict[str, torch.Tensor]:
        """The tables of every tile."""
        key = (given.device, *(n for fold in self._folds for n in _tiles(self.built.cascade, fold, given)))
        return self._all.made(key, lambda: self._made(given, False))

    def _again(self, key: object, held: Sequence[torch.Tensor]) -> bool:
        """Whether the latest call that asked had these values."""
        latest, seen = self._last
        if latest == key and seen is not None and seen.are(held):
            return True
        self._last = key, Unchanged.of(held)
        return False

    def _made(self, given: Given, looked: bool) -> dict[str, torch.Tensor]:
        made: dict[str, torch.Tensor] = {}
        for step in self._folds:
            made |= tile_tables(self.built.cascade, step, given, looked)
        return made


def tile_tables(cascade: Cascade, step: PlanFold, given: Given, looked: bool | None = None) -> dict[str, torch.Tensor]:
    """The lists of full and partial tiles of a fold; of all tiles as partial ones where the mask is not looked at (None: in a short launch).

    Folds over one rank share their lists: a tile is full where it is for all of them, and visited where it is live for any.
    """
    folds = [x for x in cascade.folds if x.rank == step.rank and x.tabulated]
    if looked is None:
        looked = _pairs(cascade, step, given) >= LOOK.get(given.device.type, LOOK["cuda"])
    if not looked:
        count, blocks = _unseen(_tiles(cascade, step, given), given.device)
    else:
        maps = [fold_tiles(cascade, x, given) for x in {x.mask: x for x in folds}.values()]
        shared = combined(maps, {r: extent_of(cascade, r, given.sizes) for r in step.table_ranks})
        count, blocks = (torch.from_numpy(x).to(given.device) for x in shared.csr(step.table_ranks))
    return {f"{step.rank}_count": count, f"{step.rank}_block": blocks}


def _pairs(cascade: Cascade, fold: PlanFold, given: Given) -> int:
    """The points of a fold in all tiles: the work that a look at its mask could save at most."""
    ranks = (*cascade.over, cascade.tile[0][0], fold.rank)
    return math.prod(extent_of(cascade, r, given.sizes) for r in ranks)


def _unseen(tiles: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`TileMap.csr` of every tile as one that may hold points of both kinds, which is right for any mask. No copy from the host."""
    *rows, columns = tiles
    count = torch.zeros((math.prod(rows), 2), dtype=torch.int32, device=device)
    blocks = torch.zeros((math.prod(rows), 2, max(1, columns)), dtype=torch.int32, device=device)
    count[:, 1] = columns
    blocks[:, 1, :columns] = torch.arange(columns, dtype=torch.int32, device=device)
    return count, blocks


def _tiles(cascade: Cascade, step: PlanFold, given: Given) -> tuple[int, ...]:
    """How many points of each rank of its tables, rows of tiles and columns of tiles a fold has."""
    ((rank, block),) = cascade.tile
    ambient = (extent_of(cascade, r, given.sizes) for r in step.table_ranks)
    return (*ambient, *(-(-extent_of(cascade, r, given.sizes) // n) for r, n in ((rank, block), (step.rank, step.step))))


def fold_tiles(cascade: Cascade, fold: Fold, given: Given) -> TileMap:
    """Which tiles of one fold of a scheduled cascade hold no point, some or all: from the symbolic analysis of its mask."""
    arrays = {n: _array(given.tensors[n]) for n in _tensors(cascade, fold) if n in given.tensors}
    ((rank, block),) = cascade.tile
    rows = (rank, cascade.rank(rank).size, block)
    columns = (fold.rank, cascade.rank(fold.rank).size, fold.step)
    ambient = {r: extent_of(cascade, r, given.sizes) for r in cascade.over}
    return classify(fold.mask, rows, columns, dict(given.sizes), dict(given.numbers), arrays, ambient)


def _tensors(cascade: Cascade, fold: Fold) -> set[str]:
    """The inputs that the mask of a fold reads. It may also read statements of the cascade; outputs among these are yet to be written."""
    return reads(fold.mask) & {t.name for t in cascade.inputs if not t.param}


def _array(x: torch.Tensor) -> np.ndarray:
    """A mask's table on the host (a copy from the device: the only synchronisation of a launch)."""
    out: np.ndarray = x.detach().cpu().numpy()
    return out
