"""Some rows of a rank at a time: the same cascade over ``first <= i < first + rows``, a run-time number and a size of their own.

    rank i: query = Nq                              rank i: query = i_rows
    in q[b, h, Nq, d]                       ->      in q[b, h, i_rows, d]               (the rows themselves are passed)
    s[i, j] = ... where j <= i                      s[i, j] = ... where j <= i + i_first

What a kernel gives out for every pair of rows and keys then needs room for a window of rows only. The rank must be one that no
statement reduces over: its rows are independent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Einsum, Expr, Statement, Tensor
from einfuse.ir.rewrite import expressions, fresh, statements


@dataclass(frozen=True, slots=True)
class Window:
    """A cascade over some rows of ``rank``: the parameter ``first``, the size ``rows``, and the axis along which inputs are cut."""

    cascade: Cascade
    rank: str
    first: str
    rows: str
    cut: tuple[tuple[str, int], ...]


def run(cascade: Cascade, rank: str) -> Window:
    """Requires a cascade without folds that nowhere reduces over ``rank``."""
    taken = {x.target for x in statements(cascade)} | {t.name for t in cascade.inputs} | {r.name for r in cascade.ranks}
    taken |= {r.size for r in cascade.ranks if isinstance(r.size, str)} | {e.name for e in _sizes(cascade)}
    first, rows = fresh(f"{rank}_first", taken), fresh(f"{rank}_rows", taken)
    cut = _cut(cascade, rank)
    move = _Move(rank, first, cut, {x.target for x in statements(cascade)})
    body: list[Statement] = []
    for x in cascade.body:
        assert isinstance(x, Einsum), "windows are cut before folds exist"
        assert rank not in x.over, f"{x.target} reduces over {rank}, whose rows must be independent"
        body.append(replace(x, map=move(x.map), mask=None if x.mask is None else move(x.mask)))
    inputs = [
        replace(t, axes=tuple(ex.size(rows) if n == cut.get(t.name) else a for n, a in enumerate(t.axes)))
        for t in cascade.inputs
    ]
    moved = replace(
        cascade,
        name=f"{cascade.name}_window",
        ranks=tuple(replace(r, size=rows) if r.name == rank else r for r in cascade.ranks),
        inputs=(*inputs, Tensor(first, (), "int", param=True)),
        body=tuple(body),
    )
    return Window(moved, rank, first, rows, tuple(sorted(cut.items())))


def _sizes(cascade: Cascade) -> list[Expr]:
    return [e for x in statements(cascade) for y in expressions(x) for e in ex.walk(y) if e.op == "size"]


def _cut(cascade: Cascade, rank: str) -> dict[str, int]:
    """The inputs that are read along one axis at the plain coordinate of the rank, every time, and that axis."""
    reads: dict[str, set[tuple[Expr, ...]]] = {}
    for x in statements(cascade):
        for e in (y for z in expressions(x) for y in ex.walk(z)):
            if e.op == "load":
                reads.setdefault(e.name, set()).add(e.args)
    out = {}
    for t in cascade.inputs:
        plain = [{n for n, a in enumerate(args) if a == ex.index(rank)} for args in reads.get(t.name, ())]
        shared = set.intersection(*plain) if plain else set()
        if len(shared) == 1 and all(t.axes[n] == ex.size(cascade.rank(rank).size) for n in shared):
            out[t.name] = shared.pop()
    return out


@dataclass(frozen=True, slots=True)
class _Move:
    """Expressions in coordinates of the whole rank to those of the window."""

    rank: str
    first: str
    cut: dict[str, int]
    statements: set[str]

    def __call__(self, e: Expr) -> Expr:
        if e.op == "index" and e.name == self.rank:
            return ex.call("+", e, ex.load(self.first))
        if e.op == "load" and e.name in self.statements:
            return e  # at its own coordinates
        if not e.args:
            return e
        kept = self.cut.get(e.name) if e.op == "load" else None
        return replace(e, args=tuple(a if n == kept else self(a) for n, a in enumerate(e.args)))
