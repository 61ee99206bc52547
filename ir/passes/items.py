"""Rows of sequences of different lengths, as tiles that a list names: prefill, decoding and drafts in one launch, keys from a cache.

    over b, h                                   over item, h_group
    rank i: query = Nq                     ->   rank i: query = 8                         2 rows of each of 4 heads that share keys
    in q[B, H, Nq, D]                           in q[T, H, D]                             the rows of all sequences in a row
    in k[pages, P, H // group, D]               in k[pages, 16, h_groups, D]
    in page[B, table]; in length[B]             in page[B, table]; in item_at[5, items]
    s[i, j] = sum[d] q[b, h, i, d] * ..         s[i, j] = sum[d] q[item_at[1, item] + i // 4, 4 * h_group + i % 4, d] * ..
              where j <= i + length[b] - Nq               where j <= item_at[3, item] + i // 4
    out o                                       out o[T + 1, H, E] at [item_at[1, item] + i // 4, ...] or [T, ...]

An item is some consecutive rows of one sequence. ``item_at`` says of it: the sequence, its first row among those of all sequences, how
many rows it has, the position of the first one among the tokens of the sequence, and how many tokens that are keys. A list has room for
more items than there may be, with tiles of more rows than there are: what belongs to no row is written to the last row of the outputs,
and an item without rows has no keys. So a launch has one shape, whatever the lengths.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from einfuse.ir import expr as ex
from einfuse.ir.expr import call
from einfuse.ir.nodes import Cascade, Expr, Place, Rank, Tensor
from einfuse.ir.passes import heads_as_rows
from einfuse.ir.passes.cache import Cacher
from einfuse.ir.rewrite import fresh, map_expressions, taken

SEQUENCE, BEGIN, COUNT, POSITION, TOKENS = range(5)
"""The rows of the list of items."""


@dataclass(frozen=True, slots=True)
class Items:
    """The cascade over a list of items: ``listed`` is that input, ``count`` the size of the list, ``total`` that of the rows of all sequences.

    ``held``, ``own`` and ``page`` as in `Cached`; rows are the first axis of the inputs in ``own``, and of the outputs.
    """

    cascade: Cascade
    listed: str
    count: str
    total: str
    held: dict[str, tuple[int, int]]
    own: dict[str, int]
    page: str


def run(cascade: Cascade, rows: int = 1, group: int = 1, width: int = 1, keys: str = "") -> Items:
    """The cascade (as built) over items of up to that many ``rows``, with ``group`` heads to each head of keys and pages of ``width`` tokens.

    Raises SpecError where it cannot read its keys from a cache, with the statement and the reason.
    """
    return _Lister(cascade, False, keys, rows, group, width).listed()


@dataclass
class _Lister(Cacher):
    tile: int
    group: int
    fixed: int
    heads: Rank | None = field(init=False, default=None)

    def listed(self) -> Items:
        names = taken(self.c)
        self.item, self.at = fresh("item", names), fresh("item_at", names)
        self.items, self.total = fresh("items", names), fresh("T", names)
        stacked = heads_as_rows.run(self.c)
        if stacked is not None:
            self.heads, self.shared = stacked.heads, stacked.group
            self.h_group, self.h_groups = fresh(f"{self.heads.name}_group", names), stacked.groups
        cached = self.run()
        return Items(self._fixed(cached.cascade), self.at, self.items, self.total, cached.held, cached.own, cached.page)

    # -- a row of an item ------------------------------------------------------------------------------------------------------

    @property
    def stacked(self) -> int:
        """How many heads are rows of a tile."""
        return self.group if self.heads is not None else 1

    def column(self, n: int) -> Expr:
        return ex.load(self.at, ex.const(n), ex.index(self.item))

    def of_item(self) -> Expr:
        """Which row of the item it is."""
        row = ex.index(self.rows.name)
        if self.tile == 1:
            return ex.ZERO
        return row if self.stacked == 1 else call("//", row, ex.const(self.stacked))

    def head(self) -> Expr:
        """Which head it is."""
        own = ex.index(self.rows.name)
        if self.stacked == 1:
            return ex.index(self.h_group)
        own = own if self.tile == 1 else call("%", own, ex.const(self.stacked))
        return call("+", call("*", ex.const(self.stacked), ex.index(self.h_group)), own)

    def tokens(self) -> Expr:
        return self.column(TOKENS)

    def sequence(self) -> Expr:
        return self.column(SEQUENCE)

    def moved(self, y: Expr) -> Expr | None:
        if y == ex.index(self.batch.name):
            return self.sequence()
        if y == ex.index(self.rows.name):
            return call("+", self.column(POSITION), self.of_item())
        if self.heads is not None:
            if y == call("//", ex.index(self.heads.name), self.shared):
                return ex.index(self.h_group)
            if y == ex.index(self.heads.name):
                return self.head()
        return self.tokens() if y.op == "size" and y.name in (self.keys, self.rows.size) else None

    def row(self, args: list[Expr], batch: int, at: int) -> list[Expr]:
        rest = [a for n, a in enumerate(args) if n not in (batch, at)]
        return [call("+", self.column(BEGIN), self.of_item()), *rest]

    # -- declarations ----------------------------------------------------------------------------------------------------------

    def _fixed(self, c: Cascade) -> Cascade:
        """The form from a cache with items in place of sequences."""
        here = Rank(self.item, "batch", self.items)
        ambient = {self.batch.name: here}
        if self.heads is not None:
            ambient[self.heads.name] = Rank(self.h_group, "batch", self.h_groups)
        ranks = {**ambient, self.rows.name: replace(self.rows, size=self.tile * self.stacked)}
        inputs = [self._rows_first(t) if t.name in self.own else t for t in c.inputs if t.name != self.length]
        inputs.append(Tensor(self.at, (ex.const(TOKENS + 1), ex.size(self.items)), "int", made=True))
        places = tuple(self._place_of(c, n) for n in c.outs)
        moved = replace(
            c,
            name=f"{self.c.name}_items",
            over=tuple(ambient[r].name if r in ambient else r for r in c.over),
            ranks=tuple(
                replace(r, extent=None if r.extent is None else self._known(r.extent))
                for r in (ranks.get(r.name, r) for r in c.ranks)
            ),
            inputs=tuple(replace(t, axes=tuple(map(self._axis, t.axes))) for t in inputs),
            places=places,
        )
        return map_expressions(moved, self._known)

    def _known(self, e: Expr) -> Expr:
        """What a plan knows of the sizes: the tokens of a page, and the heads of a group."""
        known = {ex.size(self.width): ex.const(self.fixed)}
        if self.heads is not None:
            known[self.shared] = ex.const(self.stacked)
        return ex.substitute(e, lambda y: known.get(y))

    def _axis(self, a: Expr) -> Expr:
        if self.heads is not None:
            if a == call("//", ex.size(self.heads.size), self.shared):
                return ex.size(self.h_groups)
            if a == ex.size(self.heads.size):
                return call("*", ex.const(self.stacked), ex.size(self.h_groups))
        return self._known(a)

    def _rows_first(self, t: Tensor) -> Tensor:
        lost = (self.axis(t.name), self.own[t.name])
        return replace(t, axes=(ex.size(self.total), *(a for n, a in enumerate(t.axes) if n not in lost)))

    def _place_of(self, c: Cascade, name: str) -> Place:
        """Rows first; behind them the row that no row of a sequence is written to."""
        ranks = [r for r in (*c.over, *self.ranks[name]) if r not in (self.batch.name, self.rows.name)]
        known = call("<", self.of_item(), self.column(COUNT))
        row = call("select", known, call("+", self.column(BEGIN), self.of_item()), ex.size(self.total))
        heads = self.heads.name if self.heads is not None else ""
        index = (row, *(self.head() if r == heads else ex.index(r) for r in ranks))
        axes = (call("+", ex.size(self.total), ex.ONE), *(self._axis(ex.size(c.rank(r).size)) for r in ranks))
        return Place(name, axes, index)
