"""Common sub-expressions of the states of a fold get a name: one S, one P.

state l[i] = sum exp(s[i, j] - m[i])                      p[i, j] = exp(s[i, j] - m[i])
state o_0[i, e] = sum exp(s[i, j] - m[i]) * v[j, e]  ->   state l[i] = sum p[i, j]
                                                          state o_0[i, e] = sum p[i, j] * v[j, e]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Einsum, Expr, Fold, State
from einfuse.ir.rewrite import fresh, map_folds, statements


def run(cascade: Cascade) -> Cascade:
    """Names what at least two states (or statements) of one fold compute at every point of the folded rank."""
    taken = {x.target for x in statements(cascade)} | {t.name for t in cascade.inputs}
    return map_folds(cascade, lambda f: _named(cascade, f, taken))


def _named(cascade: Cascade, f: Fold, taken: set[str]) -> Fold:
    while True:
        counts = Counter(e for y in f.body for e in _candidates(f, y.map))
        repeated = [e for e, n in counts.items() if n > 1]
        if not repeated:
            return f
        shared = max(repeated, key=lambda e: e.operations)
        ranks = tuple(r.name for r in cascade.ranks if r.name in ex.indices(shared) and r.name not in cascade.over)
        name = fresh("p", taken)
        read = ex.at(name, ranks)
        body: list[Einsum | State] = []
        for y in f.body:
            new = ex.substitute(y.map, lambda e, shared=shared, read=read: read if e == shared else None)  # type: ignore[misc]
            if new is not y.map and not any(z.target == name for z in body):
                body.append(Einsum(name, ranks, None, (), shared, None, y.loc))
            body.append(replace(y, map=new))
        f = replace(f, body=tuple(body))


def _candidates(f: Fold, e: Expr) -> Iterator[Expr]:
    """Sub-expressions worth a name: more than a read, spanning the folded rank, without feature ranks of a product."""
    spanning = ex.holders(e, ex.index(f.rank))
    stack = [e]
    while stack:
        top = stack.pop()
        if top.op in ex.LEAVES:
            continue
        if id(top) in spanning and top.op not in ("*", "/", "neg"):
            yield top
        stack += reversed(top.args)
