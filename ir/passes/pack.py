"""A batch of sequences of different lengths becomes one sequence: the tokens of all, one after the other.

    cascade over b, h                                     cascade over h
    in q[B, H, Nq, D]; in k[B, H, Nk, D]           ->     in q[H, Nq, D]; in k[H, Nk, D]; in first[Nq], last[Nq]: int
    s[i, j] = sum[d] q * k where j <= i                   s[i, j] = sum[d] q * k where j - first[i] <= i - first[i]
                                                                                   and first[i] <= j and j < last[i]

A token of one sequence meets those of its own alone. Coordinates count from the start of the sequence, sizes are its lengths, and a read
at the batch's coordinate is one at the sequence's number: tables that a call makes of the sequences' bounds say all three. They
are read at the statement's first position, so that of two positions in one sequence only the difference is left in a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.expr import call
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat, Rank, Tensor
from einfuse.ir.rewrite import flat, fresh

Groups = tuple[tuple[str, ...], ...]
"""Sizes that are packed, those of sequences with the same bounds together."""


@dataclass(frozen=True, slots=True)
class Table:
    """An input of the packed cascade with an entry for every token of the group ``owner``.

    It says of the token's sequence: its number, or where it starts or ends among the tokens of ``group``.
    """

    name: str
    what: Literal["sequence", "first", "last"]
    group: int
    owner: int


@dataclass(frozen=True, slots=True)
class Packed:
    """The packed cascade and its tables; of the inputs and outputs whose batch and positions became one axis, the place of that axis.

    ``sizes`` are those of the outputs' positions.
    """

    cascade: Flat
    tables: tuple[Table, ...]
    groups: Groups
    inputs: dict[str, int]
    outs: tuple[int, ...]
    sizes: tuple[str, ...]

    def group(self, size: str) -> int:
        """The number of the group that a size is in."""
        return next(n for n, group in enumerate(self.groups) if size in group)


def batch_of(cascade: Cascade) -> Rank:
    """The rank that tells sequences apart: the one ambient rank of kind batch."""
    found = [r for r in cascade.ranks if r.name in cascade.over and r.kind == "batch"]
    if len(found) != 1 or not isinstance(found[0].size, str):
        names = ", ".join(r.name for r in found) or "none"
        raise SpecError(
            f"{cascade.name}: sequences are told apart by one ambient rank of kind batch, found {names}", cascade.loc
        )
    return found[0]


def axes(cascade: Cascade) -> dict[str, tuple[int, str]]:
    """The inputs that hold sequences: those with an axis for the batch and one for positions, its place and size."""
    batch = ex.size(batch_of(cascade).size)
    positions = {ex.size(r.size) for r in cascade.ranks if r.kind in ("query", "key") and isinstance(r.size, str)}
    out = {}
    for t in cascade.inputs:
        at = [n for n, a in enumerate(t.axes) if a in positions]
        if batch in t.axes and len(at) == 1:
            out[t.name] = at[0], t.axes[at[0]].name
    return out


def run(cascade: Cascade, groups: Groups) -> Packed:
    """The cascade (as built) of packed sequences. Raises SpecError where it has no such form, with the statement and the reason."""
    built = flat(cascade, f"{cascade.name} cannot take packed sequences: a scan runs through all tokens")
    return _Packer(built, groups).run()


@dataclass
class _Packer:
    c: Flat
    groups: Groups
    tables: dict[tuple[str, int, int], Table] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batch = batch_of(self.c)
        self.group = {size: n for n, group in enumerate(self.groups) for size in group}
        positions = [r for r in self.c.ranks if r.kind in ("query", "key") or r.size in self.group]
        self.sizes = {r.name: r.size for r in positions if isinstance(r.size, str)}
        self.held = {r.name for r in self.c.ranks if not r.is_sequence}
        self.packed = {name: at for name, (at, size) in axes(self.c).items() if size in self.group}
        self.taken = {t.name for t in self.c.inputs} | {x.target for x in self.c.body}
        self.ranks: dict[str, tuple[str, ...]] = {}

    def run(self) -> Packed:
        c = self.c
        body = tuple(map(self.statement, c.body))
        inputs = tuple(self.input(t) for t in c.inputs)
        tables = tuple(self.tables.values())
        inputs += tuple(Tensor(t.name, (ex.size(self.groups[t.owner][0]),), "int") for t in tables)
        over = tuple(r for r in c.over if r != self.batch.name)
        ranks = tuple(replace(r, size=self.one_size(r)) for r in c.ranks if r != self.batch)
        whole = replace(c, over=over, ranks=ranks, inputs=inputs, body=body)
        places = {name: self.place(name) for name in c.outs}
        lost = self.batch_place
        return Packed(
            whole,
            tables,
            self.groups,
            {n: at - (lost(n) < at) for n, at in self.packed.items()},
            tuple(len(over) + at for at in places.values()),
            tuple(str(self.sizes[self.ranks[name][at]]) for name, at in places.items()),
        )

    def refuse(self, reason: str, loc: object = None) -> Einsum:
        raise SpecError(f"{self.c.name} cannot take packed sequences: {reason}", loc)  # type: ignore[arg-type]  # a span or None

    # -- declarations --------------------------------------------------------------------------------------------------------

    def one_size(self, r: Rank) -> int | str:
        """Sizes with the same bounds are one size."""
        return self.groups[self.group[r.size]][0] if r.size in self.group and isinstance(r.size, str) else r.size

    def batch_place(self, name: str) -> int:
        return self.c.input(name).axes.index(ex.size(self.batch.size))

    def input(self, t: Tensor) -> Tensor:
        """Sequences lose the axis of the batch; what else is as long as a sequence is as long as the longest one."""
        if t.name in self.packed:
            lost = self.batch_place(t.name)
            kept = [
                ex.size(self.groups[self.group[a.name]][0]) if n == self.packed[t.name] else a for n, a in enumerate(t.axes)
            ]
            return replace(t, axes=(*kept[:lost], *kept[lost + 1 :]))
        for a in t.axes:
            if a.op != "size" and ex.names(a, "size") & set(self.group):
                self.refuse(f"an axis of {t.name} is made of a length, which every sequence has its own of", t.loc)
        return replace(
            t, axes=tuple(ex.size(f"{a.name}_longest") if a.op == "size" and a.name in self.group else a for a in t.axes)
        )

    def place(self, name: str) -> int:
        """The place of the positions among the ranks of an output."""
        found = [n for n, r in enumerate(self.ranks[name]) if self.sizes.get(r) in self.group]
        if len(found) != 1:
            self.refuse(f"the output {name} has {'no' if not found else 'more than one'} axis of positions")
        return found[0]

    # -- statements ----------------------------------------------------------------------------------------------------------

    def statement(self, x: Einsum) -> Einsum:
        if x.reducer.chooses and any(r in self.sizes for r in x.over):
            self.refuse(f"{x.target} chooses among positions, which every sequence numbers for itself", x.loc)
        rows = sorted(
            x.ranks, key=self.held.__contains__
        )  # tables are read along a rank that loops go along, where there is one
        here = [r for r in (*rows, *x.over) if self.sizes.get(r) in self.group]
        if here and here[0] in x.over:
            self.refuse(
                f"{x.target} is one value for all positions of a sequence, and no position is left to tell sequences apart",
                x.loc,
            )
        self.ranks[x.target] = x.ranks
        owner = here[0] if here else None
        inside = []
        for r in here[1:]:
            first, last = (self.table(what, self.group[str(self.sizes[r])], owner, x) for what in ("first", "last"))
            inside += [call("<=", first, ex.index(r)), call("<", ex.index(r), last)]
        mask = None if x.mask is None else self.expression(x.mask, owner, x)
        return replace(x, map=self.expression(x.map, owner, x), mask=ex.conjunction(*inside, mask))

    def table(self, what: str, group: int, owner: str | None, x: Einsum) -> Expr:
        """What the bounds say of the sequence that the statement's first position is in."""
        if owner is None:
            self.refuse(f"{x.target} reads the batch or a length, and has no position that would tell which", x.loc)
        assert owner is not None
        key = (what, group, self.group[str(self.sizes[owner])])
        if key not in self.tables:
            name = fresh(what if what == "sequence" else f"{what}_{self.groups[group][0]}", self.taken)
            self.tables[key] = Table(name, what, group, key[2])  # type: ignore[arg-type]  # one of the three
        return ex.load(self.tables[key].name, ex.index(owner))

    def expression(self, e: Expr, owner: str | None, x: Einsum) -> Expr:
        """In terms of all tokens: every coordinate is that in its sequence."""

        def packed(y: Expr) -> Expr | None:
            if y.op == "index" and y.name == self.batch.name:
                return self.table("sequence", 0, owner, x)
            if y.op == "index" and self.sizes.get(y.name) in self.group:
                return call("-", y, self.table("first", self.group[str(self.sizes[y.name])], owner, x))
            if y.op == "size" and y.name in self.group:
                first, last = (self.table(what, self.group[y.name], owner, x) for what in ("first", "last"))
                return call("-", last, first)
            if y.op == "size" and y.name == self.batch.size:
                self.refuse(f"{x.target} reads the number of sequences", y.loc or x.loc)
            return self.read(y, owner, x) if y.op in ("load", "in") else None

        return ex.substitute(e, packed)

    def read(self, y: Expr, owner: str | None, x: Einsum) -> Expr:
        sought = [self.expression(y.args[0], owner, x)] if y.op == "in" else []
        args = list(y.args[len(sought) :])
        positions = {}
        if y.name in self.packed:
            at, lost = self.packed[y.name], self.batch_place(y.name)
            if args[lost] != ex.index(self.batch.name):
                self.refuse(f"{x.target} reads {y.name} of another sequence", y.loc or x.loc)
            positions[at] = self.c.input(y.name).axes[at].name
        elif y.name in self.ranks:
            positions = {n: str(self.sizes[r]) for n, r in enumerate(self.ranks[y.name]) if self.sizes.get(r) in self.group}
        for n, a in enumerate(args):
            if n in positions:
                args[n] = self.position(a, self.group[positions[n]], owner, x)
            elif not (y.name in self.packed and n == lost):
                args[n] = self.expression(a, owner, x)
        if y.name in self.packed:
            del args[lost]
        return replace(y, args=(*sought, *args))

    def position(self, a: Expr, group: int, owner: str | None, x: Einsum) -> Expr:
        """The token at a position of the sequence."""
        if a.op == "index" and self.group.get(str(self.sizes.get(a.name))) == group:
            return a
        return call("+", self.expression(a, owner, x), self.table("first", group, owner, x))


def grouped(sizes: Sequence[str], same: Sequence[int]) -> Groups:
    """Sizes by the number of the bounds that they share."""
    return tuple(tuple(s for s, n in zip(sizes, same, strict=True) if n == k) for k in dict.fromkeys(same))
