"""Lists of a call that are given in place of a table, sorted for the kernels that go through them (`runtime.through`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from einfuse.ir.interpreter import evaluate_indices
from einfuse.ir.passes import inverse, through
from einfuse.runtime.binding import extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Host, Tensors

TILE = 128
"""Rows of a group."""
CHUNK = 64
"""Rows whose parts are put together by one program."""
TURN = 48
"""Rows of a turn: those of a tile of the back ends that take turns."""
LANE = 1 << 22
"""Bytes of the rows of a lane, which half of a second cache holds."""
Sort = Callable[["torch.Tensor", "torch.Tensor", int, int, int], tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]]
"""What sorts rows by the blocks that they list, as `by_block`."""


@dataclass(frozen=True, slots=True)
class Window:
    """The points ``first <= .. < first + points`` of the ambient ranks, and of each so many rows from ``lo`` on."""

    first: int
    points: int
    lo: int
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """The lists of a call in place of a table: ``index`` [points, rows] says which list a row of an ambient point has.

    A list has so many ``slots``, for entries below ``span``; ``short``: the last block may have fewer than its columns.
    """

    table: str
    slots: int
    span: int
    short: bool
    index: torch.Tensor
    lister: str
    over: Mapping[str, int]

    @staticmethod
    def of(found: through.Listed, given: Given, table: str, without: str | None = None) -> Lists:
        """Those of a call; ``without`` is an ambient rank that no list depends on, which is then not one of its points."""
        c, given_list = found.cascade, given.tensors[table]
        lister = found.rows if found.blocked == found.columns else found.columns
        over = {r: extent_of(c, r, given.sizes) for r in c.over if r != without}
        rows, wide = extent_of(c, lister, given.sizes), extent_of(c, found.blocked, given.sizes)
        shape = (*over.values(), rows)
        at = evaluate_indices(c, found.atom.args[:-1], (*over, lister), dict(given.numbers), given.sizes, None, given.device)
        flat = torch.zeros(shape, dtype=torch.int64, device=given.device)
        for n, axis in zip(at, given_list.shape[:-1], strict=True):
            flat = flat * axis + n.long()
        index = flat.expand(shape).reshape(-1, rows)
        span = -(-wide // found.width)  # what no row can ask for need not be sorted
        return Lists(table, given_list.shape[-1], span, short(found, given), index, lister, over)

    @property
    def points(self) -> int:
        return self.index.shape[0]

    @property
    def rows(self) -> int:
        return self.index.shape[1]

    def groups(self, rows: int) -> int:
        """The groups that so many rows need at most: a block's last one may have room."""
        return -(-rows * self.slots // TILE) + self.span

    def windows(self, most: int) -> Iterator[Window]:
        """Windows of at most so many rows, but of one ambient point at least `CHUNK`."""
        count = max(1, min(-(-self.rows // most), self.rows // CHUNK))
        ends = [self.rows * n // count for n in range(count + 1)]
        points = max(1, most // self.rows)
        for first in range(0, self.points, points):
            for lo, hi in itertools.pairwise(ends):
                yield Window(first, min(points, self.points - first), lo, hi - lo)

    def flat(self, tensors: Tensors) -> torch.Tensor:
        """The lists [.., slots] that ``index`` counts."""
        return tensors[self.table].reshape(-1, self.slots)

    def ambient(self, w: Window, repeated: int) -> dict[str, torch.Tensor]:
        """The coordinates of the points of a window, each so many times."""
        at = torch.arange(w.first, w.first + w.points, dtype=torch.int32, device=self.index.device).repeat_interleave(repeated)
        out = {}
        for r, extent in reversed(list(self.over.items())):
            out[r], at = at % extent, at // extent
        return out

    # -- rows by the blocks they chose ---------------------------------------------------------------------------------------------

    def grouped(self, w: Window, made: through.Parts, names: Mapping[str, str]) -> Host:
        """Makes the lists of a window of parts."""
        groups, chunks = self.groups(w.rows), -(-w.rows // CHUNK)
        device = self.index.device
        start = (
            torch.arange(chunks, device=device).mul(CHUNK).clamp_max(w.rows - CHUNK)
        )  # the last chunk may hold rows of the one before
        inner = start[:, None] + torch.arange(CHUNK, device=device)
        column = next(r for r in made.at if r not in (*self.over, self.lister))

        def do(tensors: Tensors, call: Given) -> None:
            here = self.index[w.first : w.first + w.points, w.lo : w.lo + w.rows]
            rows, block, place = _grouped(entries(self.flat(tensors), here, self.span).long(), self.span, groups)
            at = self.ambient(w, groups) | {column: block.flatten(), self.lister: (rows + w.lo).flatten(0, 1)}
            of = self.ambient(w, chunks) | {self.lister: (inner + w.lo).int().repeat(w.points, 1)}
            tensors |= {names[made.at[r]]: x for r, x in at.items()} | {names[made.of[r]]: x for r, x in of.items()}
            tensors[names[made.place]] = place[:, inner].flatten(0, 1)

        return Host("group rows", (self.table,), tuple(names.values()), do)

    def described(self, made: through.Parts, groups: int, chunks: int) -> dict[str, torch.Tensor]:
        """The lists of a window without their memory."""
        shapes: dict[str, tuple[int, ...]] = {made.at[r]: (groups, TILE) if r == self.lister else (groups,) for r in made.at}
        shapes |= {made.of[r]: (chunks, CHUNK) if r == self.lister else (chunks,) for r in made.of}
        shapes[made.place] = (chunks, CHUNK, self.slots)
        return {n: torch.empty(s, dtype=torch.int32, device="meta") for n, s in shapes.items()}

    # -- blocks by turns ---------------------------------------------------------------------------------------------------------------

    def lanes(self, width: int, workers: int) -> int:
        """Into how many lanes the rows of an ambient point go, of which each has ``width`` bytes: some for every worker."""
        wanted = max(self.rows * width / LANE, 2 * workers / max(1, self.points))
        return max(1, min(math.ceil(wanted), self.rows // (2 * TURN)))

    def turns(self, rows: int) -> int:
        """The turns that so many rows need at most: a block's last one may have room."""
        return -(-rows * self.slots // TURN) + self.span

    def in_turns(self, lanes: int, made: through.Turns, sort: Sort) -> Host:
        """Makes the lists of a cascade in turns, for so many lanes of each point."""
        length, none = -(-self.rows // lanes), torch.arange(self.rows, self.rows + lanes, dtype=torch.int32)
        count = self.points * lanes
        padded = torch.nn.functional.pad(self.index, (0, lanes * length - self.rows), value=-1).view(count, length)
        first = torch.arange(lanes, dtype=torch.int32).mul(length).repeat(self.points)[:, None]
        none = none.repeat(self.points)[:, None]
        whole = Window(0, self.points, 0, self.rows)
        column = next(r for r in made.at if r not in (*self.over, self.lister))
        turns = self.turns(length)

        def do(tensors: Tensors, call: Given) -> None:
            rows, start, _ = sort(self.flat(tensors), padded, self.span, TURN, turns * TURN)
            ends = torch.arange(0, turns * TURN, TURN, dtype=torch.int32).expand(count, -1)
            block = torch.searchsorted(start.contiguous(), ends.contiguous(), right=True, out_int32=True) - 1
            tensors |= {made.at[r]: x for r, x in self.ambient(whole, lanes).items()}
            tensors[made.at[column]] = block
            tensors[made.at[self.lister]] = torch.where(rows < 0, none, rows + first).view(count, turns, TURN)

        return Host("rows by turns", (self.table,), tuple(made.at.values()), do)

    # -- blocks with the rows that chose them ----------------------------------------------------------------------------------------

    def inverted(self, found: through.Listed, made: inverse.Blocks, given: Given, sort: Sort) -> Host:
        """Makes the lists of blocks."""
        w = Window(0, self.points, 0, self.rows)
        blocked, c = found.rows, found.cascade
        ranks, blocks = (*c.over, blocked), {blocked: (0, self.span)}
        bounds = evaluate_indices(c, [*made.whole.values()], ranks, given.numbers, given.sizes, blocks, given.device)
        whole = dict(zip(made.whole, [x.expand(*self.over.values(), self.span).flatten(0, -2) for x in bounds], strict=True))

        def do(tensors: Tensors, call: Given) -> None:
            places = self.rows * self.slots
            columns, start, count = sort(self.flat(tensors), self.index, self.span, 1, places)
            base = torch.arange(0, self.points * places, places, dtype=torch.int32, device=start.device)
            tensors |= {made.at[r]: x for r, x in self.ambient(w, self.span).items()}
            tensors[made.at[blocked]] = torch.arange(self.span, dtype=torch.int32, device=start.device).repeat(self.points)
            tensors[made.first] = (start + base[:, None]).flatten()
            tensors[made.count] = count.flatten()
            tensors[made.columns] = columns.flatten()
            tensors |= {n: x.flatten() for n, x in _below(whole, columns, start, self.rows).items()}

        return Host("list rows", (self.table,), (*made.at.values(), made.first, made.count, *made.whole, made.columns), do)


def short(found: through.Listed, given: Given) -> bool:
    """Whether the last block has fewer columns than others."""
    return extent_of(found.cascade, found.blocked, given.sizes) % found.width != 0


def by_block(
    lists: torch.Tensor, index: torch.Tensor, span: int, tile: int, room: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows in the order of the blocks that they list: of each lane the rows [lanes, room], and where those of a block begin and how many
    there are [lanes, span], all int32.

    ``index`` [lanes, rows] says which of the ``lists`` [.., slots] a row of a lane has, -1 where there is no row. The rows of a block
    begin at a multiple of ``tile``; what is between is -1. An entry that stands twice in a list counts once, one outside the span never.
    """
    flat = entries(lists, index, span).flatten(1).long()
    order, count, start = _ordered(flat, span)
    whole = (count + tile - 1) // tile * tile
    first = whole.cumsum(-1) - whole
    value = flat.gather(-1, order)
    at = (first - start).gather(-1, value) + torch.arange(flat.shape[1], device=flat.device)
    at = torch.where(value < span, at, room)  # a place that is cut off
    rows = torch.full((len(index), room + 1), -1, dtype=torch.int32, device=flat.device)
    rows.scatter_(-1, at, (order // lists.shape[-1]).int())
    return rows[:, :room].contiguous(), first[:, :span].int(), count[:, :span].int()


def _below(bounds: Mapping[str, torch.Tensor], rows: torch.Tensor, start: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """How many rows of every block [lanes, span] are below each of its bounds. ``rows`` [lanes, room] begin at ``start``, those of a block in
    ascending order, and are -1 behind those of the last; there are ``count`` rows at most."""
    if not bounds:
        return {}
    span = start.shape[1]
    ones = torch.ones((), dtype=torch.int64, device=start.device).expand(start.shape)
    begins = torch.zeros((len(rows), rows.shape[1] + 1), dtype=torch.int64, device=start.device).scatter_add_(
        -1, start.long(), ones
    )
    block = begins.cumsum(-1)[:, :-1] - 1
    ordered = torch.where(rows < 0, span * count, block * count + rows)
    own = torch.arange(span, device=start.device) * count
    return {n: (torch.searchsorted(ordered, own + x.clamp(0, count)) - start).int() for n, x in bounds.items()}


def entries(lists: torch.Tensor, index: torch.Tensor, span: int) -> torch.Tensor:
    """The lists [lanes, rows, slots], int32, with ``span`` in place of what is no entry or stands twice."""
    found = lists[index.clamp_min(0)].masked_fill(index[..., None] < 0, -1)
    inside = ascending(torch.where((found >= 0) & (found < span), found, span).int())
    again = inside[..., 1:] == inside[..., :-1]
    inside[..., 1:].masked_fill_(again, span)
    return inside


def ascending(x: torch.Tensor) -> torch.Tensor:
    """Sorted along the last axis; on the host by numpy, which takes a third of torch's time for int32."""
    return torch.from_numpy(np.sort(x.numpy(), axis=-1)) if x.is_cpu else x.sort(-1).values


def _ordered(entries: torch.Tensor, span: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The places [points, n] of entries by their value, of equal ones the first first; how many there are of each value up to ``span``,
    and how many before it."""
    order = _argsort(entries, span)
    ones = torch.ones((), dtype=torch.int64, device=entries.device).expand(entries.shape)
    count = torch.zeros((entries.shape[0], span + 1), dtype=torch.int64, device=entries.device).scatter_add_(-1, entries, ones)
    return order, count, count.cumsum(-1) - count


def _argsort(entries: torch.Tensor, span: int) -> torch.Tensor:
    if entries.is_cpu and span < 2**16:  # numpy sorts so small numbers by their digits
        return torch.from_numpy(np.argsort(entries.numpy().astype(np.uint16), axis=-1, kind="stable"))
    return entries.argsort(dim=-1, stable=True)


def _grouped(entries: torch.Tensor, span: int, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Groups of `TILE` rows that have one block: the rows [points, groups, TILE], the blocks [points, groups], and for every entry [points,
    rows, slots] its place among all rows of all groups, -1 where it is none.

    The rest of a block's last group, and groups that nobody needs, hold row 0: what they compute is not read.
    """
    points, rows, slots = entries.shape
    flat = entries.flatten(1)
    order, count, start = _ordered(flat, span)
    tiles = (count + TILE - 1) // TILE
    tiles[:, span] = 0
    ends = tiles.cumsum(-1)
    value = flat.gather(-1, order)
    room = groups * TILE
    at = ((ends - tiles) * TILE - start).gather(-1, value) + torch.arange(rows * slots, device=flat.device)
    at = torch.where(value < span, at, room)  # a place that is cut off
    listed = torch.zeros((points, room + 1), dtype=torch.int32, device=flat.device)
    listed.scatter_(-1, at, (order // slots).int())
    here = torch.arange(points, device=flat.device)[:, None] * room
    place = torch.empty((points, rows * slots), dtype=torch.int32, device=flat.device)
    place.scatter_(-1, order, torch.where(at < room, at + here, -1).int())
    block = torch.searchsorted(ends, torch.arange(groups, device=flat.device).expand(points, -1).contiguous(), right=True)
    return listed[:, :room].unflatten(-1, (groups, TILE)), block.clamp_max(span - 1).int(), place.view(points, rows, slots)
