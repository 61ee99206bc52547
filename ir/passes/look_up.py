"""Products of rows with a table that pairs read: made once for every entry of the table, so that a pair reads one number.

    s[i, j] = sum[d] q[i, d] * (k[j, d] + a[clip(j - i), d])

      ->      s_a[i, entry] = sum[d] q[i, d] * a[entry, d]
              s_rest[i, j]  = sum[d] q[i, d] * k[j, d]
              s[i, j]       = s_rest[i, j] + s_a[i, clip(j - i)]

So is the gradient of the table: a product of two matrices for each row, where it had a term for every pair and feature. What is made grows with
the rows times the entries, so these are of a known number, `MOST_ENTRIES` at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from einfuse.ir import expr as ex
from einfuse.ir.definitions import Definitions
from einfuse.ir.errors import TooLargeError
from einfuse.ir.expr import call
from einfuse.ir.nodes import Einsum, Expr, Flat, Rank
from einfuse.ir.rewrite import fresh, prune, taken

MOST_ENTRIES = 512
"""Of a table: with more, what is made for a row would be much more than the row itself."""


def run(c: Flat) -> Flat:
    """The cascade with such products as statements of their own; the same where there is none, or where folds exist."""
    body = c.einsums
    if len(body) < len(c.body):
        return c
    found = among(c, body, taken(c))
    return prune(replace(found.cascade, body=found.body)) if found.products else c


@dataclass(frozen=True, slots=True)
class Found:
    """Statements that read ``products`` of rows, which are among them, and a cascade with all of their ranks."""

    cascade: Flat
    body: tuple[Einsum, ...]
    products: frozenset[str]


def among(c: Flat, body: Iterable[Einsum], taken: set[str], row: str | None = None) -> Found:
    """The products in the statements ``body`` of a cascade, of rows of one rank alone where it is given; no name is ``taken``."""
    found = _Products(c, taken, row)
    body = tuple(y for x in body for y in found.statement(x))
    return Found(replace(c, ranks=(*c.ranks, *found.entries.values())), body, frozenset(found.made.values()))


@dataclass(slots=True)
class _Products:
    """``made`` are the names of the products, ``entries`` the ranks of tables by their sizes and which they are of these."""

    c: Flat
    taken: set[str]
    row: str | None
    sequences: set[str] = field(init=False)
    tables: dict[str, tuple[Expr, ...]] = field(init=False)
    pairs: Definitions = field(default_factory=Definitions)
    made: dict[tuple[tuple[str, ...], Expr], str] = field(default_factory=dict)
    entries: dict[tuple[int, int], Rank] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sequences = {r.name for r in self.c.ranks if r.is_sequence} - set(self.c.over)
        known = (t for t in self.c.inputs if t.dtype == "float" and t.listed is None)
        self.tables = {t.name: t.axes for t in known if any(a.op == "const" for a in t.axes)}

    def statement(self, x: Einsum) -> list[Einsum]:
        """The statement, after the products that it reads."""
        if not x.red and x.mask is None and len(self.sequences & set(x.ranks)) > 1:
            self.pairs.add(x)
        d = x.over[0] if len(x.over) == 1 else None
        if d is None or not self.tables or not x.reducer.sums or d in {*self.sequences, *self.c.over, *ex.indices(x.mask)}:
            return [x]
        try:
            terms = list(self._terms(self.pairs.into(x.map), d))
        except TooLargeError:
            return [x]
        products: list[Einsum] = []
        rest, looked = ex.ZERO, ex.ZERO
        for sign, e in terms:
            read = self._read(e, d, x, products)
            if read is None:
                rest = call(sign, rest, e)
            else:
                looked = call(sign, looked, read)
        if ex.is_const(looked, 0):
            return [x]
        if not ex.is_const(rest, 0):
            of_rest = replace(x, target=fresh(f"{x.target}_rest", self.taken), map=rest)
            products.append(of_rest)
            looked = call("+", ex.at(of_rest.target, x.ranks), looked)
        return [*products, replace(x, red=None, over=(), map=looked)]

    def _terms(self, e: Expr, d: str) -> Iterator[tuple[str, Expr]]:
        """``e`` as a signed sum, products with sums that read a table for pairs written out."""
        if e.op not in ("+", "-", "neg", "*", "/") or not any(self._is_table(x, d) for x in ex.walk(e)):
            yield "+", e
            return
        first, *others = (list(self._terms(a, d)) for a in e.args)
        if e.op == "*":
            yield from (("+" if s == t else "-", call("*", a, b)) for s, a in first for t, b in others[0])
        elif e.op == "/":
            yield from ((s, call("/", a, e.args[1])) for s, a in first)
        else:
            turned = {"+": "-", "-": "+"}
            yield from first if e.op != "neg" else ((turned[s], a) for s, a in first)
            yield from ((s if e.op == "+" else turned[s], a) for more in others for s, a in more)

    def _is_table(self, e: Expr, d: str) -> bool:
        """Is it a read of a row of features, in a table of few entries and at a place that depends on two positions?"""
        if e.op != "load" or e.args.count(ex.index(d)) != 1 or len(ex.indices(e) & self.sequences) < 2:
            return False
        axes = self.tables.get(e.name)
        if axes is None or not ex.indices(e) <= {d, *self.sequences, *self.c.over}:
            return False
        return self._entries_of(e) <= MOST_ENTRIES

    def _entries_of(self, table: Expr) -> float:
        """How many entries a pair chooses from; infinite where that is not known."""
        return math.prod(n if isinstance(n, int) else math.inf for n in self._sizes(table))

    def _sizes(self, table: Expr) -> list[object]:
        """The lengths of its axes that pairs decide, None where one is not known."""
        return [a.value for at, a in zip(table.args, self.tables[table.name], strict=True) if self._placed(at)]

    def _placed(self, at: Expr) -> bool:
        return bool(ex.indices(at) & self.sequences)

    def _read(self, e: Expr, d: str, x: Einsum, products: list[Einsum]) -> Expr | None:
        """The term summed over ``d`` by a read of a product, which is added to ``products`` where it is new; None where it is no such term."""
        over, under = ex.quotient(e)
        mine, below = ([f for f in side if d in ex.indices(f)] for side in (over, under))
        tables = [f for f in mine if self._is_table(f, d)]
        if len(tables) != 1:
            return None
        (table,) = tables
        rows = ex.fraction([f for f in mine if f is not table], below)
        row = ex.indices(rows) - {d, *self.c.over}
        if len(row) > 1 or not row <= self.sequences or (self.row and row != {self.row}):
            return None
        places = [at for at in table.args if self._placed(at)]
        others = [self.c.rank(r).size for r in (ex.indices(table) & self.sequences) - row]
        if self._entries_of(table) > math.prod(n if isinstance(n, int) else MOST_ENTRIES for n in others):
            return None  # a row has fewer pairs than that
        ranks = (*row, *self._entries(table))
        names = iter(ranks[len(row) :])
        entry = replace(table, args=tuple(ex.index(next(names)) if self._placed(at) else at for at in table.args))
        key = (ranks, call("*", rows, entry))
        if key not in self.made:
            self.made[key] = fresh(f"{x.target}_{table.name}", self.taken)
            products.append(Einsum(self.made[key], ranks, "sum", (d,), key[1], None, x.loc))
        outside = ex.fraction([f for f in over if f not in mine], [f for f in under if f not in below])
        return call("*", outside, ex.load(self.made[key], *map(ex.index, row), *places))

    def _entries(self, table: Expr) -> Iterator[str]:
        """The ranks of the entries of a table, one for each of its axes that pairs decide."""
        sizes = self._sizes(table)
        for n, size in enumerate(sizes):
            assert isinstance(size, int), "only tables of known sizes are taken"
            which = (size, sizes[:n].count(size))
            if which not in self.entries:
                self.entries[which] = Rank(fresh("entry", self.taken), "feature", size)
            yield self.entries[which].name
