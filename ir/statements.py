"""What a statement is, told from its form: an equation in its own rows, or a let among the statistics of a fold."""

from __future__ import annotations

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Einsum, Expr, Fold


def own_rank(x: Einsum) -> str:
    """The rank of an equation along which it reads its own other rows."""
    read = next(e for e in ex.walk(x.map) if e.op == "load" and e.name == x.target)
    return next(r for r, a in zip(x.ranks, read.args, strict=True) if a == ex.index(x.over[0]))


def equation(x: Einsum) -> tuple[Expr, Expr]:
    """The free part and the part that reads the unknown itself of a ``solve``, which are joined by one ``+``."""
    assert x.reducer.solves, f"{x.target} is no equation"
    assert x.map.op == "+", "an equation is a sum"
    assert x.target not in ex.reads(x.map.args[0]), "its first part is free of the unknown"
    return x.map.args[0], x.map.args[1]


def lets(f: Fold) -> frozenset[str]:
    """The scalars of the running statistics inside a fold: no fold rank, no reduction, read a state or another let."""
    alike = [y for y in f.einsums if not y.red and f.rank not in y.ranks]
    known = {y.target for y in alike} | {y.target for y in f.states}
    return frozenset(y.target for y in alike if ex.reads(y.map) & known)
