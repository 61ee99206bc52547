"""Heads that share their keys as the rows of one tile, for calls of one query: each key is read once for all of them.

    over b, h                                        over b, h_group
    rank i: query = Nq          (Nq is 1)            rank i: query = group
    in q[B, H, Nq, D]                                in q[B, group * h_groups, 1, D]
    in k[B, H // group, Nk, D]                       in k[B, h_groups, Nk, D]
    qk[i, j] = sum[d] q[b, h, i, d]            ->    qk[i, j] = sum[d] q[b, group * h_group + i, 0, d]
                      * k[b, h // group, j, d]                         * k[b, h_group, j, d]
    out o                                            out o[B, group * h_groups, 1, E] at [b, group * h_group + i, 0, e]

What is computed does not change, and inputs and outputs lie where the spec has them. A decoding step with grouped heads takes its time
from reading keys and values; and a tile of queries has room for many rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat, Place, Rank
from einfuse.ir.rewrite import fresh, taken


@dataclass(frozen=True, slots=True)
class Stacked:
    """The cascade over groups of heads. It holds where ``rows`` has one point; ``groups`` is the number of ``heads`` over ``group``."""

    cascade: Flat
    rows: Rank
    heads: Rank
    group: Expr
    groups: str


def run(c: Cascade) -> Stacked | None:
    """The cascade as built with heads as rows; None where no heads share keys, or rows are more than queries with their own outputs."""
    if not isinstance(c, Flat):
        return None
    shared = {(e.args[0].name, e.args[1]) for x in c.body for y in x.expressions for e in ex.walk(y) if shares(c, e)}
    rows = _rows(c)
    if len(shared) != 1 or rows is None or c.places:
        return None
    ((heads, group),) = shared
    if heads == rows.name or (group.op == "size" and group.name in {r.size for r in c.ranks}):
        return None
    names = taken(c)
    groups, at = fresh(f"{heads}_groups", names), fresh(f"{heads}_group", names)
    own = {x.target: x.ranks for x in c.body}
    moved = _Moved(own, heads, rows.name, group, at)
    if not all(moved.keeps(x) for x in c.body):
        return None
    sized = Sized(c.rank(heads).size, rows.size, group, groups)
    ranks = {heads: Rank(at, "batch", groups), rows.name: replace(rows, size=number(group))}
    return Stacked(
        replace(
            c,
            name=f"{c.name}_stacked",
            over=tuple(at if r == heads else r for r in c.over),
            ranks=tuple(ranks.get(r.name, r) for r in c.ranks),
            inputs=tuple(replace(t, axes=tuple(map(sized, t.axes))) for t in c.inputs),
            body=tuple(replace(x, map=moved(x.map), mask=None if x.mask is None else moved(x.mask)) for x in c.body),
            places=tuple(Place(n, *moved.place(tuple(c.rank(r) for r in (*c.over, *own[n])), sized)) for n in c.outs),
        ),
        rows,
        c.rank(heads),
        group,
        groups,
    )


def number(group: Expr) -> int | str:
    """The heads in a group, as the size of a rank."""
    size = group.value if group.op == "const" else group.name
    assert isinstance(size, int | str), "heads are divided by a number or a size"
    return size


def shares(c: Flat, e: Expr) -> bool:
    """Is it an ambient head over the number of heads in a group?"""
    if e.op != "//" or e.args[0].op != "index" or e.args[1].op not in ("size", "const"):
        return False
    return e.args[0].name in c.over and c.rank(e.args[0].name).kind == "head"


def _rows(c: Flat) -> Rank | None:
    """The one rank of queries that every output has and nothing reduces over."""
    reduced = {r for x in c.body for r in x.over}
    free = [r for r in c.ranks if r.kind == "query" and r.name not in {*c.over} | reduced]
    own = {x.target: x.ranks for x in c.body}
    return free[0] if len(free) == 1 and all(free[0].name in own[n] for n in c.outs) else None


@dataclass(frozen=True, slots=True)
class Sized:
    """Axes by what is known of their sizes, so that every index is seen to be inside."""

    heads: int | str
    rows: int | str
    group: Expr
    groups: str

    def __call__(self, axis: Expr) -> Expr:
        if axis == ex.call("//", ex.size(self.heads), self.group):
            return ex.size(self.groups)
        if axis == ex.size(self.heads):
            return ex.call("*", self.group, ex.size(self.groups))
        return ex.const(1) if axis == ex.size(self.rows) else axis


@dataclass(frozen=True, slots=True)
class _Moved:
    """Expressions of a head and its query to those of a group and a row."""

    own: dict[str, tuple[str, ...]]
    heads: str
    rows: str
    group: Expr
    at: str

    def keeps(self, x: Einsum) -> bool:
        """Whether the statement's value is the same for all heads of a group where it has no rows, and it reads rows at their own place."""
        parts = list(x.expressions)
        reads = [e for y in parts for e in ex.walk(y) if e.op == "load" and self.rows in self.own.get(e.name, ())]
        if any(e.args[self.own[e.name].index(self.rows)] != ex.index(self.rows) for e in reads):
            return False
        return self.rows in x.ranks or not any({self.heads, self.rows} & ex.indices(self._shared(y)) for y in parts)

    def __call__(self, e: Expr) -> Expr:
        head = ex.call("+", ex.call("*", self.group, ex.index(self.at)), ex.index(self.rows))
        places = {self.heads: head, self.rows: ex.const(0)}

        def moved(x: Expr) -> Expr | None:
            if x.op == "load" and self.rows in self.own.get(x.name, ()):
                own = self.own[x.name]  # its rows are those of the reader
                return replace(x, args=tuple(a if r == self.rows else self(a) for r, a in zip(own, x.args, strict=True)))
            return places.get(x.name) if x.op == "index" else None

        return ex.substitute(self._shared(e), moved)

    def place(self, ranks: tuple[Rank, ...], sized: Sized) -> tuple[tuple[Expr, ...], tuple[Expr, ...]]:
        """The axes of an output and the place of a value in it."""
        return tuple(sized(ex.size(r.size)) for r in ranks), tuple(self(ex.index(r.name)) for r in ranks)

    def _shared(self, e: Expr) -> Expr:
        """With the group's own index in place of the head over the size of a group."""
        quotient = ex.call("//", ex.index(self.heads), self.group)
        return ex.substitute(e, lambda x: ex.index(self.at) if x == quotient else None)
