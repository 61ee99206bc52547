"""Who holds which positions of a sequence: the layouts there are, what each costs, and tensors cut and put together by one.

What a layout costs is the most that a device has to do: the pairs of the tiles that its rows visit, and the columns that they need of others.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from einfuse.distributed import routes
from einfuse.distributed.exchange import moved, once
from einfuse.distributed.routes import Rows
from einfuse.distributed.transport import Transport

Kind = Literal["contiguous", "zigzag", "dealt", "unequal"]
CHUNKS = (512, 1024, 2048)
"""Positions that are dealt out together; fewer where the sequence is short."""
PAIRS_PER_KEY = 100.0
"""Pairs that take as long as one key takes to arrive: 8 query heads to a key head on GPUs with fast links. Between nodes it is far more."""
Live = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of every device: the pairs that it visits, and the columns that it needs of others."""

    pairs: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def balance(self) -> float:
        """The work of the busiest device beside the mean."""
        return max(self.pairs) * len(self.pairs) / max(sum(self.pairs), 1)

    def time(self, pairs_per_key: float) -> tuple[float, int]:
        """How long the slowest device takes, in pairs; then what moves in all."""
        return max(p + pairs_per_key * c for p, c in zip(self.pairs, self.columns, strict=True)), sum(self.columns)


@dataclass(frozen=True, eq=False)
class Layout:
    """The rows that every device along an axis of a mesh holds: those of one of the ``parts``, or of as many of them as every other."""

    kind: Kind
    axis: str
    parts: tuple[Rows, ...]
    transport: Transport
    cost: Cost | None = None

    @functools.cached_property
    def held(self) -> list[Rows]:
        """The rows of every device."""
        each = len(self.parts) // self.transport.size
        return [torch.cat(self.parts[d * each : (d + 1) * each]) for d in range(self.transport.size)]

    @property
    def total(self) -> int:
        return sum(map(len, self.parts))

    @property
    def positions(self) -> Rows:
        """Where the rows of this device are in the sequence: what rotary embeddings read."""
        return self.held[self.transport.rank]

    def rows(self, axis: str, total: int) -> Sequence[Rows]:
        """The rows of every part along an axis. Raises ValueError for another axis, and for a sequence of another length."""
        if (axis, total) != (self.axis, self.total):
            raise ValueError(f"the layout is one of {self.total} positions along {self.axis}, found {total} along {axis}")
        return self.parts

    def scatter(self, *xs: torch.Tensor, dim: int | None = None) -> tuple[torch.Tensor, ...]:
        """This device's part of tensors that all devices have, along the one axis that is as long as the sequence, or ``dim``."""
        return tuple(x.index_select(self._axis(x, dim), self.positions.to(x.device)) for x in xs)

    def gather(self, *xs: torch.Tensor, dim: int | None = None) -> tuple[torch.Tensor, ...]:
        """Whole tensors, on every device, of the parts of all of them, along the one axis that is as long as a part, or ``dim``."""
        axes = [self._axis(x, dim, len(self.positions)) for x in xs]
        names = [f"{n:04d}" for n in range(len(xs))]
        along = {n: routes.everything(a, self.held) for n, a in zip(names, axes, strict=True)}
        name = "parts of a layout"
        found = moved(self.transport, name, [dict(zip(names, xs, strict=True))], along)[0]
        return tuple(once(name, self.transport.rank == 0, found[n]) for n in names)

    def _axis(self, x: torch.Tensor, dim: int | None, length: int | None = None) -> int:
        length = self.total if length is None else length
        axes = [n for n, size in enumerate(x.shape) if size == length] if dim is None else [dim % x.ndim]
        if len(axes) != 1 or x.shape[axes[0]] != length:
            raise ValueError(f"expected one axis of {length} positions, found the shape {tuple(x.shape)}; name it with dim=")
        return axes[0]


def contiguous(counts: Sequence[int]) -> tuple[Rows, ...]:
    """So many rows each, one after the other."""
    ends = torch.tensor([0, *counts]).cumsum(0).tolist()
    return tuple(torch.arange(a, b) for a, b in itertools.pairwise(ends))


def even(total: int, parts: int) -> list[int]:
    """A number as a sum of so many that differ by 1 at most."""
    return [total * (n + 1) // parts - total * n // parts for n in range(parts)]


def unequal(total: int, devices: int, tile: int, work: npt.NDArray[np.float64]) -> tuple[Rows, ...]:
    """Rows one after the other, cut where the work so far is that of so many devices; ``work`` is that of the tiles."""
    done = np.append(0.0, np.cumsum(work))
    at = np.interp(np.linspace(0, done[-1], devices + 1), done, np.arange(len(done)) * tile)
    ends = np.minimum(np.rint(at).astype(np.int64), total)
    return contiguous(np.diff(np.append(np.append(0, ends[1:-1]), total)).tolist())


def zigzag(total: int, devices: int) -> tuple[Rows, ...]:
    """Two parts each: one from the front, and that as far from the end."""
    parts = contiguous(even(total, 2 * devices))
    return tuple(torch.cat([parts[r], parts[-1 - r]]) for r in range(devices))


def dealt(total: int, devices: int, chunk: int, work: npt.NDArray[np.float64]) -> tuple[Rows, ...]:
    """Chunks to whoever has the least work so far, the heaviest first, as many to each; ``work`` is that of every chunk."""
    parts = torch.arange(total).split(chunk)
    most = -(-len(parts) // devices)
    loads, hands = [0.0] * devices, [list[int]() for _ in range(devices)]
    for n in sorted(range(len(parts)), key=lambda n: (-work[n], n)):
        r = min((r for r in range(devices) if len(hands[r]) < most), key=lambda r: (loads[r], r))
        loads[r] += float(work[n])
        hands[r].append(n)
    return tuple(torch.cat([parts[n] for n in sorted(h)]) if h else torch.arange(0) for h in hands)


def candidates(total: int, devices: int, live: Live, tile: int, kind: Kind | None) -> list[tuple[Kind, tuple[Rows, ...]]]:
    """The layouts to choose from, where ``live`` says which tiles of rows visit which tiles of columns: those of a kind, or those in which
    devices hold as many rows as each other, for a model does more with rows than attention.
    """
    per_tile = live.sum(1).astype(np.float64)
    if kind == "unequal":
        return [(kind, unequal(total, devices, tile, per_tile))]
    out: list[tuple[Kind, tuple[Rows, ...]]] = [
        ("contiguous", contiguous(even(total, devices))),
        ("zigzag", zigzag(total, devices)),
    ]
    for chunk in sorted({max(tile, min(c, total // (4 * devices) // tile * tile)) for c in CHUNKS}):
        starts = np.arange(0, len(per_tile), chunk // tile)
        out.append(("dealt", dealt(total, devices, chunk, np.add.reduceat(per_tile, starts))))
    return [x for x in out if kind in (None, x[0])]


def cost(held: Sequence[Rows], live: Live, tile: int) -> Cost:
    """What a layout costs under a mask."""
    pairs, columns = [], []
    widths = live.sum(1) * tile
    owner = torch.empty(sum(map(len, held)), dtype=torch.int64)
    for r, rows in enumerate(held):
        owner[rows] = r
    for r, rows in enumerate(held):
        tiles, counts = np.unique((rows // tile).numpy(), return_counts=True)
        pairs.append(int((widths[tiles] * counts).sum()))
        needed = np.nonzero(live[tiles].any(0))[0]
        points = torch.from_numpy((needed[:, None] * tile + np.arange(tile)).reshape(-1))
        columns.append(int((owner[points[points < len(owner)]] != r).sum()))
    return Cost(tuple(pairs), tuple(columns))
