"""Gradients that a kernel gives out pair by pair (tables read at both positions), in bounded memory.

Such a kernel runs over a window of rows at a time, and what a window gives is added up before the next one: never is there room for all
pairs. Where the table is read at a function of j - i, the buffer is laid out so that the pairs of one offset are a column:

    row i of a base [I, I + J - 1] holds d[i, 0 .. J-1] from column I - 1 - i on;  column c is j - i = c - (I - 1)

so that one sum over rows leaves an entry for every offset. All sums run in a fixed order: results are the same in every run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from einfuse.ir import Cascade, call, const
from einfuse.ir import expr as ex
from einfuse.ir.backward import Gradient
from einfuse.ir.nodes import Einsum
from einfuse.ir.offsets import of_difference
from einfuse.ir.passes import window as windowing
from einfuse.ir.passes.canonicalise import fold_ranks
from einfuse.runtime.binding import extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.outputs import accumulation
from einfuse.runtime.scatter import accumulate

Run = Callable[[Cascade, Given], object]
"""Launches the kernel of a cascade."""

MOST_ELEMENTS = 1 << 24
"""Of the buffer of one window."""
FEWEST_ROWS = 32
"""Of a window: fewer would leave tiles empty."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """The gradients of a backward cascade that have an entry for every pair of ``row`` and another rank, by statement."""

    cascade: Cascade
    row: str
    parts: Mapping[str, tuple[Gradient, ...]]

    @staticmethod
    def of(cascade: Cascade, parts: Sequence[Gradient], whole: set[str]) -> Pairs | None:
        """None where there are none, or they cannot be cut. ``whole``: the statements that already are a gradient as it is returned."""
        sequence = {r.name for r in cascade.ranks if r.is_sequence} - set(cascade.over)
        dense: dict[str, tuple[Gradient, ...]] = {}
        for p in parts:
            if len(sequence & set(p.ranks)) > 1 and p.statement not in whole:
                dense[p.statement] = (*dense.get(p.statement, ()), p)
        folded = {*fold_ranks(cascade), *(r for x in cascade.body if isinstance(x, Einsum) for r in x.over)}
        rows = [r for ps in dense.values() for r in ps[0].ranks if r in sequence - folded]
        if not rows or any(rows[0] not in ps[0].ranks for ps in dense.values()):
            return None
        return Pairs(cascade, rows[0], dense)

    @functools.cached_property
    def window(self) -> windowing.Window:
        return windowing.run(self.cascade, self.row)

    def rows(self, extent: Mapping[str, int]) -> int:
        """How many rows a window has."""
        a_row = max(math.prod(extent[r] for r in ps[0].ranks if r != self.row) for ps in self.parts.values())
        return min(extent[self.row], max(FEWEST_ROWS, MOST_ELEMENTS // max(a_row, 1)))

    def windows(self, extent: Mapping[str, int]) -> Iterator[tuple[int, int]]:
        n, step = extent[self.row], self.rows(extent)
        yield from ((lo, min(lo + step, n)) for lo in range(0, n, max(step, 1)))

    def by_windows(self, total: dict[str, torch.Tensor], mine: Given, given: Given, run: Run) -> None:
        """Runs the cascade on ``mine`` (its inputs and its other outputs, which are written in place) window by window, and adds up in
        ``total`` what each gives pair by pair to the tensors ``given`` to the call."""
        c, w = self.cascade, self.window
        extent = {r.name: extent_of(c, r.name, mine.sizes) for r in c.ranks}
        if not all(extent[r] for ps in self.parts.values() for r in ps[0].ranks):
            return
        ranks = {x.target: (*c.over, *x.ranks) for x in c.body if isinstance(x, Einsum)}
        axis = dict(w.cut) | {n: ranks[n].index(w.rank) for n in c.outs if w.rank in ranks[n]}
        wide = accumulation(mine.tensors.values())
        buffers = {n: self.buffer(n, extent, self.rows(extent), wide, mine.device) for n in self.parts}
        for lo, hi in self.windows(extent):
            cut = {n: t.narrow(axis[n], lo, hi - lo) if n in axis else t for n, t in mine.tensors.items()}
            cut |= {n: b.out.narrow(axis[n], 0, hi - lo) for n, b in buffers.items()}
            run(w.cascade, Given(cut, {**mine.numbers, w.first: lo}, {**mine.sizes, w.rows: hi - lo}))
            for buffer in buffers.values():
                buffer.add(total, given, lo, hi, extent[w.rank])

    def buffer(self, statement: str, extent: Mapping[str, int], rows: int, dtype: torch.dtype, device: torch.device) -> Buffer:
        ps = self.parts[statement]
        ranks = ps[0].ranks
        shape = [rows if r == self.row else extent[r] for r in ranks]
        i = ranks.index(self.row)
        sequence = {r.name for r in self.cascade.ranks if r.is_sequence} - set(self.cascade.over)
        others = [r for r in ranks if r in sequence and r != self.row]
        if len(others) != 1 or not all(of_difference(e, self.row, others[0]) for p in ps for e in p.index):
            out = torch.zeros(shape, dtype=dtype, device=device)
            return Buffer(self, ps, out, out, None)
        j = ranks.index(others[0])
        wide = [n + rows - 1 if axis == j else n for axis, n in enumerate(shape)]
        base = torch.zeros(wide, dtype=dtype, device=device)
        strides = list(base.stride())
        strides[i] -= strides[j]
        view = base.as_strided(shape, strides, (rows - 1) * base.stride(j))
        return Buffer(self, ps, base, view, others[0])


@dataclass(frozen=True, slots=True)
class Buffer:
    """Room for one statement of a window: the kernel writes ``out``, a view of ``base``; ``column`` names j where offsets are columns."""

    pairs: Pairs
    parts: tuple[Gradient, ...]
    base: torch.Tensor
    out: torch.Tensor
    column: str | None

    def add(self, total: dict[str, torch.Tensor], given: Given, lo: int, hi: int, last: int) -> None:
        """Adds the rows ``lo <= i < hi`` to the gradients, and leaves zeros for the next window (after the last one: what was added)."""
        c, i = self.pairs.cascade, self.pairs.row
        for part in self.parts:
            if self.column is None:
                value = self.out.narrow(part.ranks.index(i), 0, hi - lo)
                accumulate(total, c, part, value, given, {i: (lo, hi)})
                continue
            axis = part.ranks.index(i)
            value = self.base.sum(axis)
            rows = self.out.shape[axis]
            left = tuple(r for r in part.ranks if r != i)
            columns = value.shape[left.index(self.column)]
            offset = call("-", ex.index(self.column), const(lo + rows - 1))
            index = tuple(ex.rename(e, {i: const(0), self.column: offset}) for e in part.index)
            moved = replace(part, index=index, ranks=left)
            accumulate(total, c, moved, value, given, {self.column: (0, columns)})
        if hi < last:
            self.base.zero_()
