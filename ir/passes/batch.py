"""Vectorises a cascade: one more ambient rank in front, along which some inputs have an axis and the others do not.

    q[B, H, Nq, D], k[B, H, Nk, D], v[B, H, Nk, E]   ->    over n, b, h: q[N, B, H, Nq, D], k[B, H, Nk, D], v[B, H, Nk, E]
    s[i, j] = sum[d] q[b, h, i, d] * k[b, h, j, d]         s[i, j] = sum[d] q[n, b, h, i, d] * k[b, h, j, d]

Every output gets the axis in front. No other rank is touched, so this holds for every cascade, scans included, and may be repeated.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Expr, Rank
from einfuse.ir.rewrite import fresh, map_expressions, statements


def run(cascade: Cascade, inputs: Collection[str]) -> Cascade:
    """``cascade`` with an ambient rank of a size of its own in front, and an axis of that size in front of ``inputs``."""
    taken = {x.target for x in statements(cascade)} | {t.name for t in cascade.inputs} | {r.name for r in cascade.ranks}
    taken |= {r.size for r in cascade.ranks if isinstance(r.size, str)}
    taken = taken.union(*(ex.sizes(a) for t in cascade.inputs for a in t.axes))
    rank, extent = fresh("n", taken), fresh("N", taken)

    def indexed(e: Expr) -> Expr | None:
        if e.op != "load" or e.name not in inputs:
            return None
        return replace(
            e, args=(ex.index(rank), *(ex.substitute(a, indexed) for a in e.args))
        )  # tables are read at what tables hold

    whole = map_expressions(cascade, lambda e: ex.substitute(e, indexed))
    axis = ex.size(extent)
    places = (replace(p, axes=(axis, *p.axes), index=(ex.index(rank), *p.index)) for p in cascade.places)
    return replace(
        whole,
        over=(rank, *cascade.over),
        ranks=(Rank(rank, "batch", extent), *cascade.ranks),
        inputs=tuple(replace(t, axes=(axis, *t.axes)) if t.name in inputs else t for t in cascade.inputs),
        places=tuple(places),
    )
