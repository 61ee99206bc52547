"""Rows of sequences of different lengths, as tiles that a list names: prefill, decoding and drafts in one launch, keys from a cache.

    over b, h                                   over item, h_group
    rank i: query = Nq                     ->   rank i: query = 8                         2 rows of each of 4 heads that share keys
    in q[B, H, Nq, D]                           in q[T, H, D]                             the rows of all sequences in a row
    in k[pages, P, H // group, D]               in k[pages, 16, h_groups, D]
    in page[B, table]; in length[B]             in page[B, table]; in item_at[6, items]
    s[i, j] = sum[d] q[b, h, i, d] * ..         s[i, j] = sum[d] q[item_at[1, item] + i // 4, 4 * h_group + i % 4, d] * ..
              where j <= i + length[b] - Nq               where j <= item_at[3, item] + i // 4
    out o                                       out o[T + 1, H, E] at [item_at[1, item] + i // 4, ...] or [T, ...]

An item is some consecutive rows of one sequence. ``item_at`` says of it: the sequence, its first row among those of all sequences, how
many rows it has, the position of the first one among the tokens of the sequence, how many tokens that are keys, and how many of these
another item reads (see `item_parts`). A list has room for more items than there may be, with tiles of more rows than there are: what
belongs to no row is written to the last row of the outputs, and an item without rows has no keys. So a launch has one shape, whatever
the lengths.

    shared:  q[item_row[item, i // 4], ...] * k[page[item_at[0, item], j // 16], ...]
             where j < item_at[4, item] and j <= row_at[3, item_row[item, i // 4]]

With ``shared`` an item is rows of several sequences whose first tokens lie in the same pages, those of the sequence that the item names.
``item_row`` lists them, and ``row_at`` says of a row what ``item_at`` says of an item of that row alone; the item says how many tokens are
shared.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from einfuse.ir import expr as ex
from einfuse.ir.expr import call
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat, Place, Rank, Tensor
from einfuse.ir.passes import heads_as_rows
from einfuse.ir.passes.cache import Cacher, as_built
from einfuse.ir.rewrite import fresh, map_expressions, taken

SEQUENCE, BEGIN, COUNT, POSITION, TOKENS, FIRST = range(6)
"""The rows of the list of items. The last is for parts: how many tokens before are another item's."""
COLUMNS = 6


@dataclass(frozen=True, slots=True)
class Items:
    """The cascade over a list of items: ``listed`` is that input, ``total`` the size of the rows of all sequences.

    ``keys``, ``held``, ``own`` and ``page`` as in `Cached`; rows are the first axis of the inputs in ``own``, and of the outputs.
    ``members`` and ``rows`` are the inputs that tell rows of several sequences, "" without. ``row`` is where a row of an item is among
    all rows, and ``stacked`` how many heads are rows of a tile.
    """

    cascade: Flat
    listed: str
    total: str
    keys: str
    held: dict[str, tuple[int, int]]
    own: dict[str, int]
    page: str
    members: str
    rows: str
    row: Expr
    stacked: int


def run(cascade: Cascade, rows: int = 1, group: int = 1, width: int = 1, keys: str = "", shared: bool = False) -> Items:
    """The cascade (as built) over items of up to that many ``rows``, with ``group`` heads to each head of keys and pages of ``width`` tokens.

    ``shared``: rows of several sequences, over the tokens that they share. Raises SpecError where it cannot read its keys from a cache,
    with the statement and the reason.
    """
    return _Lister(as_built(cascade), False, keys, rows, group, width, shared).listed()


@dataclass
class _Lister(Cacher):
    tile: int
    group: int
    fixed: int
    shared: bool
    heads: Rank | None = field(init=False, default=None)

    def listed(self) -> Items:
        names = taken(self.c)
        self.item, self.at = fresh("item", names), fresh("item_at", names)
        self.items, self.total = fresh("items", names), fresh("T", names)
        self.members, self.of_rows = (fresh("item_row", names), fresh("row_at", names)) if self.shared else ("", "")
        stacked = heads_as_rows.run(self.c)
        if stacked is not None:
            self.heads, self.sharing = stacked.heads, stacked.group
            self.h_group, self.h_groups = fresh(f"{self.heads.name}_group", names), stacked.groups
        cached = self.run()
        whole, lists = self._fixed(cached.cascade), (cached.held, cached.own, cached.page, self.members, self.of_rows)
        return Items(whole, self.at, self.total, self.keys, *lists, self.place(), self.stacked)

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

    def which(self) -> Expr:
        """Which row of all sequences it is; what is none may be any number."""
        if self.shared:
            return ex.load(self.members, ex.index(self.item), self.of_item())
        return call("+", self.column(BEGIN), self.of_item())

    def place(self) -> Expr:
        """Where the row lies among those of all sequences: behind them what is none."""
        if self.shared:
            return self.which()
        return call("select", call("<", self.of_item(), self.column(COUNT)), self.which(), ex.size(self.total))

    def said(self, n: int) -> Expr:
        """What is said of the row: of the item where all its rows are of one sequence."""
        return ex.load(self.of_rows, ex.const(n), self.which()) if self.shared else self.column(n)

    def position(self) -> Expr:
        """The position of the row among the tokens of its sequence."""
        return self.said(POSITION) if self.shared else call("+", self.column(POSITION), self.of_item())

    def tokens(self) -> Expr:
        return self.said(TOKENS)

    def sequence(self) -> Expr:
        return self.said(SEQUENCE)

    def end(self, whole: Expr, x: Einsum) -> Expr:
        if not self.shared:
            return self.long(whole)
        if whole not in (ex.size(self.keys), ex.size(self.rows.size)):
            self.refuse(f"{x.target} counts other things than tokens, whose shares are not known", x.loc)
        return self.column(TOKENS)

    def holder(self, token: Expr) -> Expr:
        return self.column(SEQUENCE) if token.op == "index" else self.sequence()

    def moved(self, y: Expr) -> Expr | None:
        if y == ex.index(self.batch.name):
            return self.sequence()
        if y == ex.index(self.rows.name):
            return self.position()
        if self.heads is not None:
            if y == call("//", ex.index(self.heads.name), self.sharing):
                return ex.index(self.h_group)
            if y == ex.index(self.heads.name):
                return self.head()
        return self.tokens() if y.op == "size" and y.name in (self.keys, self.rows.size) else None

    def row(self, args: list[Expr], batch: int, at: int) -> list[Expr]:
        rest = [a for n, a in enumerate(args) if n not in (batch, at)]
        return [self.which(), *rest]

    # -- declarations ----------------------------------------------------------------------------------------------------------

    def _fixed(self, c: Flat) -> Flat:
        """The form from a cache with items in place of sequences."""
        here = Rank(self.item, "batch", self.items)
        ambient = {self.batch.name: here}
        if self.heads is not None:
            ambient[self.heads.name] = Rank(self.h_group, "batch", self.h_groups)
        ranks = {**ambient, self.rows.name: replace(self.rows, size=self.tile * self.stacked)}
        inputs = [self._rows_first(t) if t.name in self.own else t for t in c.inputs if t.name != self.length]
        inputs.append(Tensor(self.at, (ex.const(COLUMNS), ex.size(self.items)), "int", made=True))
        if self.shared:
            inputs.append(Tensor(self.members, (ex.size(self.items), ex.const(self.tile)), "int", made=True))
            rows = call("+", ex.size(self.total), ex.ONE)
            inputs.append(Tensor(self.of_rows, (ex.const(COLUMNS), rows), "int", made=True))
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
            known[self.sharing] = ex.const(self.stacked)
        return ex.substitute(e, lambda y: known.get(y))

    def _axis(self, a: Expr) -> Expr:
        if self.heads is not None:
            if a == call("//", ex.size(self.heads.size), self.sharing):
                return ex.size(self.h_groups)
            if a == ex.size(self.heads.size):
                return call("*", ex.const(self.stacked), ex.size(self.h_groups))
        return self._known(a)

    def _rows_first(self, t: Tensor) -> Tensor:
        lost = (self.axis(t.name), self.own[t.name])
        return replace(t, axes=(ex.size(self.total), *(a for n, a in enumerate(t.axes) if n not in lost)))

    def _place_of(self, c: Flat, name: str) -> Place:
        """Rows first; behind them the row that no row of a sequence is written to."""
        ranks = [r for r in (*c.over, *self.ranks[name]) if r not in (self.batch.name, self.rows.name)]
        heads = self.heads.name if self.heads is not None else ""
        index = (self.place(), *(self.head() if r == heads else ex.index(r) for r in ranks))
        axes = (call("+", ex.size(self.total), ex.ONE), *(self._axis(ex.size(c.rank(r).size)) for r in ranks))
        return Place(name, axes, index)
