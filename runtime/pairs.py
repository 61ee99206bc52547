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
from einfuse.ir.offsets import of_difference
from einfuse.ir.passes import window as windowing
from einfuse.ir.passes.backward import Gradient
from einfuse.ir.passes.canonicalise import fold_ranks
from einfuse.runtime.binding import extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Host, Kernel, Node, Tensors, room
from einfuse.runtime.outputs import Output, accumulation, described
from einfuse.runtime.scatter import accumulate, adding, by_rows, contracted

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
        folded = {*fold_ranks(cascade), *(r for x in cascade.einsums for r in x.over)}
        rows = [r for ps in dense.values() for r in ps[0].ranks if r in sequence - folded]
        if not rows or any(rows[0] not in ps[0].ranks for ps in dense.values()):
            return None
        return Pairs(cascade, rows[0], dense)

    @functools.cached_property
    def window(self) -> windowing.Window:
        return windowing.run(self.cascade, self.row)

    def rows(self, extent: Mapping[str, int]) -> int:
        """How many rows a window has."""
        held = [
            {*p.ranks, *(p.times[1] if p.times and self.column(ps) is None else ())} for ps in self.parts.values() for p in ps
        ]
        a_row = max(math.prod(extent[r] for r in ranks if r != self.row) for ranks in held)
        return min(extent[self.row], max(FEWEST_ROWS, MOST_ELEMENTS // max(a_row, 1)))

    def windows(self, extent: Mapping[str, int]) -> Iterator[tuple[int, int]]:
        n, step = extent[self.row], self.rows(extent)
        yield from ((lo, min(lo + step, n)) for lo in range(0, n, max(step, 1)))

    def nodes(self, known: Given, outs: Mapping[str, Output], kernel: Callable[..., Kernel]) -> list[Node]:
        """The cascade window by window: views of its rows, the kernel on them, and what that gave added up, for each.

        ``outs`` are its other outputs, written in place. ``kernel`` makes a launch, as `Program.kernel` does.
        """
        c, w = self.cascade, self.window
        extent = {r.name: extent_of(c, r.name, known.sizes) for r in c.ranks}
        if not all(extent[r] for ps in self.parts.values() for r in ps[0].ranks):
            return [room(outs)]
        ranks = {x.target: (*c.over, *x.ranks) for x in c.einsums}
        axis = dict(w.cut) | {n: ranks[n].index(w.rank) for n in outs if w.rank in ranks[n]}
        mine = known.read_by(c)
        wide = accumulation(mine.tensors.values())
        buffers = [self.buffer(n, extent, self.rows(extent), wide) for n in self.parts]
        names = {n: rows_of(n) for n in (*axis, *self.parts) if n in (*mine.tensors, *outs, *self.parts)}
        nodes: list[Node] = [room({**outs, **{b.name: b.base for b in buffers}})]
        whole = {**mine.tensors, **described(outs)}
        for lo, hi in self.windows(extent):
            views = {n: x.narrow(axis[n], lo, hi - lo) if n in axis else x for n, x in whole.items()}
            views |= {b.statement: b.view(b.base.described(), hi - lo) for b in buffers}
            written = {n: Output(tuple(views[n].shape), views[n].dtype, strides=views[n].stride()) for n in c.outs}
            window = Given(
                views, {**mine.numbers, **({w.at: lo} if w.places else {})}, {**mine.sizes, w.rows: hi - lo}, known.device
            )
            nodes.append(_rows({n: axis[n] for n in names if n in axis}, buffers, lo, hi))
            nodes.append(kernel(w.cascade, window, outs=written, names=names, placed=True))
            nodes.append(_summed(buffers, known, lo, hi, extent[w.rank]))
        return nodes

    def column(self, ps: Sequence[Gradient]) -> str | None:
        """The rank beside that of rows where all places are functions of the difference of the two; else None."""
        sequence = {r.name for r in self.cascade.ranks if r.is_sequence} - set(self.cascade.over)
        others = [r for r in ps[0].ranks if r in sequence and r != self.row]
        alike = len(others) == 1 and all(of_difference(e, self.row, others[0]) for p in ps for e in p.index)
        return others[0] if alike else None

    def buffer(self, statement: str, extent: Mapping[str, int], rows: int, dtype: torch.dtype) -> Buffer:
        ps = self.parts[statement]
        ranks = ps[0].ranks
        shape = [rows if r == self.row else extent[r] for r in ranks]
        column = self.column(ps)
        if column is None:
            return Buffer(self, statement, Output(tuple(shape), dtype, cleared=True), rows, None)
        j = ranks.index(column)
        wide = tuple(n + rows - 1 if axis == j else n for axis, n in enumerate(shape))
        return Buffer(self, statement, Output(wide, dtype, cleared=True), rows, column)


@dataclass(frozen=True, slots=True)
class Buffer:
    """Room for one statement of a window of ``rows``: ``column`` names j where offsets are the columns of ``base``."""

    pairs: Pairs
    statement: str
    base: Output
    rows: int
    column: str | None

    @property
    def name(self) -> str:
        """What the base is called among the tensors of a graph."""
        return f"pairs of {self.statement}"

    @property
    def parts(self) -> tuple[Gradient, ...]:
        return self.pairs.parts[self.statement]

    @property
    def axis(self) -> int:
        """That of the rows."""
        return self.parts[0].ranks.index(self.pairs.row)

    def view(self, base: torch.Tensor, rows: int) -> torch.Tensor:
        """The first rows, as a kernel writes them."""
        if self.column is None:
            return base.narrow(self.axis, 0, rows)
        j = self.parts[0].ranks.index(self.column)
        shape, strides = list(base.shape), list(base.stride())
        shape[j] -= self.rows - 1
        shape[self.axis], strides[self.axis] = rows, strides[self.axis] - strides[j]
        return base.as_strided(shape, strides, (self.rows - 1) * base.stride(j))

    def add(self, total: dict[str, torch.Tensor], tensors: Tensors, given: Given, lo: int, hi: int, last: int) -> None:
        """Adds the rows ``lo <= i < hi`` to the gradients, and leaves zeros for the next window (after the last one: what was added)."""
        c, i, base = self.pairs.cascade, self.pairs.row, tensors[self.name]
        rows = base.narrow(self.axis, 0, hi - lo)
        for part in self.parts:
            names = {self.statement: rows, **{n: tensors[rows_of(n)] for n in part.statements[1:]}}
            if self.column is None:
                accumulate(total, c, *by_rows(c, part, names, given, {i: (lo, hi)}), given, {i: (lo, hi)})
                continue
            offset = call("-", ex.index(self.column), const(lo + self.rows - 1))
            moved = replace(part, index=tuple(ex.rename(e, {i: const(0), self.column: offset}) for e in part.index))
            columns = base.shape[part.ranks.index(self.column)]
            accumulate(total, c, *contracted(moved, names), given, {self.column: (0, columns)})
        if hi < last:
            base.zero_()


def rows_of(name: str) -> str:
    """What a view of some rows of a tensor is called in a graph."""
    return f"rows of {name}"


def _rows(axes: Mapping[str, int], buffers: Sequence[Buffer], lo: int, hi: int) -> Host:
    """Views of the rows ``lo <= i < hi``, and of the rooms for what a kernel gives by pairs."""

    def do(tensors: Tensors, call: Given) -> None:
        for n, axis in axes.items():
            tensors[rows_of(n)] = tensors[n].narrow(axis, lo, hi - lo)
        for b in buffers:
            tensors[rows_of(b.statement)] = b.view(tensors[b.name], hi - lo)

    given = (*map(rows_of, axes), *(rows_of(b.statement) for b in buffers))
    return Host("take rows", (*axes, *(b.name for b in buffers)), given, do)


def _summed(buffers: Sequence[Buffer], known: Given, lo: int, hi: int, last: int) -> Host:
    """Adds what a window gave by pairs to the sums of gradients."""

    def add(sums: dict[str, torch.Tensor], tensors: Tensors, now: Given) -> None:
        for b in buffers:
            b.add(sums, tensors, now, lo, hi, last)

    parts = [p for b in buffers for p in b.parts]
    read = (x for b in buffers for x in (b.name, *(rows_of(n) for p in b.parts for n in p.statements)))
    return adding(parts, read, known, add)
