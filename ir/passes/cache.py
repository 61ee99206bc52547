"""Keys and values from a cache: tokens of a sequence lie in pages, in any order, and the queries are its last rows.

    cascade over b, h                                  cascade over b, h
    rank i: query = Nq; rank j: key = Nk               rank i: query = Nq; rank j: key = Nk in table * P
    in q[B, H, Nq, D]; in k[B, H, Nk, D]        ->     in q[B, H, Nq, D]; in k[pages, P, H, D]; in bias[pages, P, H]
    in bias[B, H, Nk]                                  in page[B, table]: int; in length[B]: int
    s[i, j] = sum[d] q[b, h, i, d] * k[b, h, j, d]     s[i, j] = sum[d] q[b, h, i, d] * k[page[b, j // P], j % P, h, d]
              + bias[b, h, j] where j <= i                       + bias[page[b, j // P], j % P, h] where j <= i + length[b] - Nq
    m[i] = max[j] s[i, j]                              m[i] = max[j] s[i, j] where j < length[b]

What it computes are the last Nq rows of the cascade on the ``length[b]`` tokens of each sequence. An input with an axis for the batch and one
for tokens is in pages, whatever coordinate of a token it is read at. One that is read at the query's own coordinate alone holds the rows
of the call. Others are tables of positions, and lie as they did, as long as the longest sequence. With ``slots`` a token is found by
``slot[b, j]`` in place of a page and a place in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Never

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.expr import call
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat, Rank, Tensor
from einfuse.ir.passes.pack import batch_of
from einfuse.ir.rewrite import flat, fresh, taken
from einfuse.ir.span import Span


@dataclass(frozen=True, slots=True)
class Cached:
    """The cascade from a cache. ``batch`` tells sequences apart, ``rows`` are its queries, ``keys`` is the size that tokens are counted by.

    ``held`` are the inputs in the cache, by the places of their axes for the batch and for tokens before; behind the two axes of pages
    (one of slots) the others follow in their order. ``own`` are the inputs that hold the rows of a call: the place of that axis.
    ``page`` and ``length`` are the inputs that say where the tokens of a sequence are, and how many.
    """

    cascade: Flat
    batch: Rank
    rows: Rank
    keys: str
    held: dict[str, tuple[int, int]]
    own: dict[str, int]
    page: str
    length: str


def run(cascade: Cascade, slots: bool = False, keys: str = "") -> Cached:
    """The cascade (as built) from a cache; ``keys`` names the size of the tokens where there are several sizes of keys.

    Raises SpecError where it has no such form, with the statement and the reason.
    """
    return Cacher(as_built(cascade), slots, keys).run()


def as_built(cascade: Cascade) -> Flat:
    """The cascade of keys that a cache can hold. Raises SpecError for a scan."""
    reason = "a scan has states, and reads no token again"
    return flat(cascade, f"{cascade.name} cannot read its keys from a cache: {reason}")


@dataclass
class Cacher:
    """Makes the form from a cache of a cascade. `items` gives other meanings to a row, to the sequence it is of, and to its length."""

    c: Flat
    slots: bool
    wanted: str
    keys: str = field(init=False)
    rows: Rank = field(init=False)

    def __post_init__(self) -> None:
        self.batch = batch_of(self.c)
        self.keys = self._size("key", self.wanted or "Nk")
        queries = self._size("query", "Nq")
        found = [r for r in self.c.ranks if r.kind == "query" and r.size == queries]
        if len(found) != 1 or found[0].name in self.c.over:
            self.refuse(f"rows are to be one rank of queries, found {', '.join(r.name for r in found)}", self.c.loc)
        (self.rows,) = found
        for r in self.c.ranks:
            if r.kind == "query" and r.extent is not None and queries in ex.sizes(r.extent):
                self.refuse(f"{r.name} counts all rows of {self.rows.name}, and a call has the last ones", r.loc)
        self.ranks = {x.target: x.ranks for x in self.c.body}
        if self.c.places:
            self.refuse("its outputs do not lie at their own coordinates", self.c.loc)
        for x in self.c.body:
            if x.target in self.c.outs and self.rows.name not in x.ranks:
                self.refuse(f"the output {x.target} has no row of {self.rows.name}", x.loc)

    def refuse(self, reason: str, loc: Span | None) -> Never:
        raise SpecError(f"{self.c.name} cannot read its keys from a cache: {reason}", loc)

    def _size(self, kind: str, usual: str) -> str:
        """The size of the ranks of a kind: the only one, the one that is usual, or that of queries and keys alike."""
        made = {n for r in self.c.ranks if r.kind == kind and r.extent is not None for n in ex.sizes(r.extent)} - {usual}
        free = [r for r in self.c.ranks if isinstance(r.size, str) and r.extent is None and r.size not in made]
        sizes = dict.fromkeys(str(r.size) for r in free if r.kind == kind)
        both = [n for n in sizes if {"query", "key"} <= {r.kind for r in free if r.size == n}]
        for chosen in ([n for n in sizes if n == usual], list(sizes), both):
            if len(chosen) == 1:
                return chosen[0]
        found = ", ".join(sizes) or "none"
        self.refuse(f"one size of a rank of kind {kind} was expected, found {found}", self.c.loc)

    # -- what is where -------------------------------------------------------------------------------------------------------

    def run(self) -> Cached:
        c, names = self.c, taken(self.c)
        self.held, self.own = self._places()
        size = str(self.rows.size)
        if not any(t.axes[at] == ex.size(size) for t in c.inputs for n, at in self.own.items() if t.name == n):
            self.refuse(f"no input tells how many rows of {self.rows.name} there are", self.rows.loc)
        self.count = fresh("Nq", names) if size == self.keys else size
        self.page, self.length = fresh("slot" if self.slots else "page", names), fresh("length", names)
        self.pages, self.width, self.table = (fresh(n, names) for n in ("slots" if self.slots else "pages", "P", "table"))
        extent = None if self.slots else call("*", ex.size(self.table), ex.size(self.width))
        ranks = tuple(
            replace(r, size=self.count)
            if r == self.rows
            else replace(r, extent=extent)
            if r.size == self.keys
            else replace(r, extent=None if r.extent is None else ex.substitute(r.extent, self._capacity))
            for r in c.ranks
        )
        of_batch = ex.size(self.batch.size)
        lists = (
            Tensor(self.page, (of_batch, ex.size(self.keys if self.slots else self.table)), "int", made=True),
            Tensor(self.length, (of_batch,), "int", made=True),
        )
        whole = replace(
            c,
            name=f"{c.name}_cached",
            ranks=ranks,
            inputs=(*map(self._input, c.inputs), *lists),
            body=tuple(map(self._statement, self.c.body)),
        )
        rows = whole.rank(self.rows.name)
        return Cached(whole, self.batch, rows, self.keys, self.held, self.own, self.page, self.length)

    def _places(self) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
        """Which inputs are in the cache, and which hold the rows of a call."""
        held, own = {}, {}
        for t in self.c.inputs:
            if ex.size(self.batch.size) not in t.axes:
                continue
            places = [self._indices(e) for _, e in self._reads(t.name)]
            at = {n for n, a in enumerate(t.axes) if places and all(p[n] == ex.index(self.rows.name) for p in places)}
            tokens = [n for n, a in enumerate(t.axes) if n not in at and self._of_tokens(a, [p[n] for p in places])]
            if at:
                own[t.name] = min(at)
            elif len(tokens) == 1 and t.listed is None:
                held[t.name] = self.axis(t.name), tokens[0]
        return held, own

    def _of_tokens(self, axis: Expr, places: list[Expr]) -> bool:
        """Whether an axis has an entry for each token."""
        if axis.op != "size" or axis == ex.size(self.batch.size):
            return False
        tokens = {r.name for r in self.c.ranks if r.size == self.keys} | {self.rows.name}
        named = {r.size for r in self.c.ranks}
        return axis.name in (self.keys, self.rows.size) or (
            axis.name not in named and any(p.op == "index" and p.name in tokens for p in places)
        )

    def _reads(self, name: str) -> Iterator[tuple[Einsum, Expr]]:
        for x in self.c.body:
            for y in x.expressions:
                yield from ((x, e) for e in ex.walk(y) if e.op in ("load", "in") and e.name == name)

    def axis(self, name: str) -> int:
        """The place of the batch among the axes of an input."""
        return self.c.input(name).axes.index(ex.size(self.batch.size))

    @staticmethod
    def _indices(e: Expr) -> tuple[Expr, ...]:
        """Where a load reads; what looks into a list names all but the place in the list."""
        return (*e.args[1:], ex.const(0)) if e.op == "in" else e.args

    # -- declarations ----------------------------------------------------------------------------------------------------------

    def _capacity(self, e: Expr) -> Expr | None:
        """Tables are as long as the longest sequence."""
        return ex.size(self.keys) if e == ex.size(self.rows.size) else None

    def _input(self, t: Tensor) -> Tensor:
        if t.name in self.held:
            rest = tuple(a for n, a in enumerate(t.axes) if n not in self.held[t.name])
            first = (ex.size(self.pages),) if self.slots else (ex.size(self.pages), ex.size(self.width))
            return replace(t, axes=first + tuple(ex.substitute(a, self._capacity) for a in rest))
        at = self.own.get(t.name)
        own = ex.size(self.count)
        axes = (own if n == at and a.op == "size" else ex.substitute(a, self._capacity) for n, a in enumerate(t.axes))
        return replace(t, axes=tuple(axes))

    # -- what coordinates become -----------------------------------------------------------------------------------------------

    def tokens(self) -> Expr:
        """How many tokens the sequence has."""
        return ex.load(self.length, ex.index(self.batch.name))

    def moved(self, y: Expr) -> Expr | None:
        """What an expression of coordinates becomes, outside of reads; None: what its parts become."""
        if y == ex.index(self.rows.name):
            return call("-", call("+", y, self.tokens()), ex.size(self.count))
        return self.tokens() if y.op == "size" and y.name in (self.keys, self.rows.size) else None

    def sequence(self) -> Expr:
        """Which sequence it is."""
        return ex.index(self.batch.name)

    def row(self, args: list[Expr], batch: int, at: int) -> list[Expr]:
        """The indices of a read of the rows of a call, whose axes for the batch and for rows these are."""
        args[at] = ex.index(self.rows.name)
        return args

    # -- statements ----------------------------------------------------------------------------------------------------------

    def long(self, e: Expr) -> Expr:
        """An expression of sizes for one sequence: all its tokens are keys, and queries."""
        known = (ex.size(self.keys), ex.size(self.rows.size))
        return ex.substitute(e, lambda y: self.tokens() if y in known else None)

    def end(self, whole: Expr, x: Einsum) -> Expr:
        """Where a rank of that extent ends in a statement."""
        return self.long(whole)

    def _statement(self, x: Einsum) -> Einsum:
        if self.rows.name in x.over:
            self.refuse(f"{x.target} reduces over {self.rows.name}, and a cache has no rows of earlier tokens", x.loc)
        inside = []
        for r in (*x.over, *(x.ranks if x.target in self.c.outs else ())):
            rank = self.c.rank(r)
            whole = rank.extent if rank.extent is not None else ex.size(rank.size)
            if r != self.rows.name and self.long(whole) != whole:
                inside.append(call("<", ex.index(r), self.end(whole, x)))
        mask = None if x.mask is None else self._expression(x.mask, x)
        return replace(x, map=self._expression(x.map, x), mask=ex.conjunction(*inside, mask))

    def _expression(self, e: Expr, x: Einsum) -> Expr:
        def one(y: Expr) -> Expr | None:
            return self._read(y, x) if y.op in ("load", "in") and y.args else self.moved(y)

        return ex.substitute(e, one)

    def _read(self, y: Expr, x: Einsum) -> Expr:
        first = 1 if y.op == "in" else 0
        sought, places = y.args[:first], y.args[first:]
        args = [self._expression(a, x) for a in places]
        ranks, here = self.ranks.get(y.name), ex.index(self.rows.name)
        own = ranks.index(self.rows.name) if ranks and self.rows.name in ranks else self.own.get(y.name)
        if own is not None and places[own] != here:
            self.refuse(f"{x.target} reads {y.name} of another row", y.loc or x.loc)
        if own is not None and ranks is not None:
            args[own] = here
        elif y.name in self.own or y.name in self.held:
            batch, at = self.held.get(y.name) or (self.axis(y.name), self.own[y.name])
            if places[batch] != ex.index(self.batch.name):
                self.refuse(f"{x.target} reads {y.name} of another sequence", y.loc or x.loc)
            if y.name in self.own:
                args = self.row(args, batch, at)
            else:
                args = [*self._place(args[at]), *(a for n, a in enumerate(args) if n not in (batch, at))]
        args = [*(self._expression(a, x) for a in sought), *args]
        return replace(y, args=tuple(args))

    def _place(self, token: Expr) -> tuple[Expr, ...]:
        """Where a token of the sequence lies."""
        if self.slots:
            return (ex.load(self.page, self.holder(token), token),)
        width = ex.size(self.width)
        return ex.load(self.page, self.holder(token), call("//", token, width)), call("%", token, width)

    def holder(self, token: Expr) -> Expr:
        """The sequence whose pages a token is looked up in."""
        return self.sequence()
