"""Some coordinates of a rank: the same cascade over ``first <= i < first + rows``, a number and a size of their own, or over those in a list.

    rank i: query = Nq                              rank i: query = i_rows
    in q[b, h, Nq, d]                       ->      in q[b, h, i_rows, d]               (the rows themselves are passed)
    s[i, j] = ... where j <= i                      s[i, j] = ... where j <= i + i_first

What a kernel gives out for every pair of rows and keys then needs room for a window of rows only (`runtime.pairs`), and a device computes the
rows that it holds (`shard`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Expr, Rank, Tensor
from einfuse.ir.rewrite import fresh, map_expressions, statements


@dataclass(frozen=True, slots=True)
class Window:
    """A cascade over some coordinates of ``rank``, ``rows`` of them: those from the number ``at`` on, or those in the list ``at``.

    ``cut`` are the inputs that come with those coordinates only, and along which axis.
    """

    cascade: Cascade
    rank: str
    rows: str
    at: str
    listed: bool
    cut: tuple[tuple[str, int], ...]

    @property
    def places(self) -> bool:
        """Whether the cascade reads where its coordinates are, so that ``at`` is one of its inputs."""
        return any(t.name == self.at for t in self.cascade.inputs)


def run(c: Cascade, rank: str, listed: bool = False, given: Mapping[str, int] | None = None, grouped: bool = False) -> Window:
    """The cascade over some coordinates of ``rank``; inputs come cut along the axes ``given`` (default: all that can).

    ``listed``: any coordinates, in a list; else those from a number on. ``grouped``: that number is a multiple of what the rank is divided by
    where an input is read, as heads that share keys are. Requires that statements read each other at their own coordinate of the rank,
    and, unless it is listed, that none reduces over it.
    """
    taken = names(c)
    rows, at = fresh(f"{rank}_rows", taken), fresh(f"{rank}_at" if listed else f"{rank}_first", taken)
    place = ex.load(at, ex.index(rank)) if listed else ex.call("+", ex.index(rank), ex.load(at))
    plain = _Plain(c.rank(rank), grouped)
    cut = {n: a for n, a in _cut(c, plain).items() if given is None or given.get(n) == a}
    moved = map_expressions(c, _Move(rank, place, cut, {x.target: x.ranks for x in statements(c)}))
    inputs = [t if t.name not in cut else _shorter(t, cut[t.name], plain.size, rows) for t in c.inputs]
    if listed:
        inputs.append(Tensor(at, (ex.size(rows),), "int"))
    elif any(e.name == at for e in _loads(moved)):
        inputs.append(Tensor(at, (), "int", param=True))
    moved = replace(
        moved,
        name=f"{c.name}_window",
        ranks=tuple(replace(r, size=rows, extent=None) if r.name == rank else r for r in c.ranks),
        inputs=tuple(inputs),
    )
    return Window(moved, rank, rows, at, listed, tuple(cut.items()))


def names(c: Cascade) -> set[str]:
    """Every name that is taken."""
    return {x.target for x in statements(c)} | {t.name for t in c.inputs} | {r.name for r in c.ranks} | sizes(c)


def sizes(c: Cascade) -> set[str]:
    """Every size that is mentioned."""
    found = [e for x in statements(c) for e in x.expressions] + [a for t in c.inputs for a in t.given[0]]
    found += [r.extent for r in c.ranks if r.extent is not None]
    return {r.size for r in c.ranks if isinstance(r.size, str)}.union(*map(ex.sizes, found))


def _shorter(t: Tensor, axis: int, whole: Expr, rows: str) -> Tensor:
    def one(e: Expr) -> Expr | None:
        return ex.size(rows) if e == whole else None

    return replace(t, axes=tuple(ex.substitute(a, one) if n == axis else a for n, a in enumerate(t.axes)))


@dataclass(frozen=True, slots=True)
class _Plain:
    """Tells whether an index goes along an axis with the rank, or with groups of it."""

    rank: Rank
    grouped: bool

    @property
    def size(self) -> Expr:
        return ex.size(self.rank.size)

    def __call__(self, index: Expr, axis: Expr) -> bool:
        if index == ex.index(self.rank.name):
            return axis == self.size
        shared = self.grouped and index.op == axis.op == "//" and index.args[1] == axis.args[1]
        return shared and index.args[0] == ex.index(self.rank.name) and axis.args[0] == self.size


def _loads(c: Cascade) -> Iterator[Expr]:
    return (e for x in statements(c) for y in x.expressions for e in ex.walk(y) if e.op == "load")


def _cut(c: Cascade, plain: _Plain) -> dict[str, int]:
    """The inputs that are read along one axis at the coordinate of the rank, every time, and that axis."""
    axes = {t.name: t.axes for t in c.inputs if t.listed is None}
    found: dict[str, set[int]] = {}
    for e in _loads(c):
        if e.name in axes:
            here = {n for n, a in enumerate(e.args) if plain(a, axes[e.name][n])}
            found[e.name] = found.get(e.name, here) & here
    looked = {e.name for x in statements(c) for y in x.expressions for e in ex.walk(y) if e.op == "in"}
    return {n: min(a) for n, a in found.items() if len(a) == 1 and n not in looked}


@dataclass(frozen=True, slots=True)
class _Move:
    """Expressions in coordinates of the whole rank to those of a window: statements are read at their own coordinates as before."""

    rank: str
    place: Expr
    cut: Mapping[str, int]
    own: Mapping[str, tuple[str, ...]]

    def __call__(self, e: Expr) -> Expr:
        return ex.substitute(e, self._one)

    def _one(self, e: Expr) -> Expr | None:
        if e.op == "index":
            return self.place if e.name == self.rank else None
        if e.op not in ("load", "new", "in"):
            return None
        first = 1 if e.op == "in" else 0
        ranks = self.own.get(e.name, ())
        kept = {n + first for n, r in enumerate(ranks) if r == self.rank} | (
            {self.cut[e.name]} if e.name in self.cut else set()
        )
        args = tuple(a if n in kept else self(a) for n, a in enumerate(e.args))
        return e if args == e.args else replace(e, args=args)
