"""What a scan reads where nobody asks for it: tokens that a condition leaves out are read as 0, whatever memory holds there.

    u[i, e] = sum[d] k[i, d] * S[d, e]                              u[i, e] = sum[d] select(pad[i], k[i, d], 0) * S[d, e]
    state S[d, e] = set select(pad[i], S + k * (v - u), S)   ->     state S[d, e] = set select(pad[i], S + k * (v - u), S)

At a token that is not taken u plays no part, so its adjoint is 0 there; but 0 times k is not 0 where k holds a NaN.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Einsum, Expr, Fold


def guarded(cascade: Cascade, scan: Fold) -> Fold:
    """The scan whose statements read no float where the conditions of all their readers leave them out."""
    asked = _conditions(cascade, scan)
    return scan.mapped(lambda x: _guarded(scan, x, asked))


def _conditions(cascade: Cascade, scan: Fold) -> dict[str, set[Expr]]:
    """Of every statement, conditions without which its value at a point plays no part."""
    kinds = {t.name: t.dtype for t in cascade.inputs}
    ranks = {x.target: x.ranks for x in scan.einsums}
    asked: dict[str, set[Expr]] = {n: set() for n in ranks if n in cascade.outs}

    def usable(e: Expr) -> bool:
        return ex.indices(e) <= {scan.rank, *cascade.over} and all(kinds.get(n) in ("int", "bool") for n in ex.reads(e))

    for y in reversed(scan.body):
        outside = asked.get(y.target, set())  # of a state: nobody asks for less than all
        own = ex.conjuncts(y.mask)
        for load, guards in ex.guarded(y.map):
            if load.name not in ranks:
                continue
            here = load.args == tuple(map(ex.index, ranks[load.name]))
            found = {e for e in (*guards, *own, *outside) if usable(e)} if here else set()
            asked[load.name] = asked[load.name] & found if load.name in asked else found
    return asked


def _guarded(scan: Fold, x: Einsum, asked: dict[str, set[Expr]]) -> Einsum:
    conditions = sorted(asked.get(x.target, set()) - set(ex.conjuncts(x.mask)), key=repr)
    whole = ex.conjunction(*conditions)
    if whole is None:
        return x
    states = {y.target for y in scan.states}

    def only(e: Expr) -> Expr | None:
        moving = e.op == "load" and e.name not in states and scan.rank in ex.indices(e)
        return ex.call("select", whole, e, ex.const(0.0)) if moving else None

    return replace(x, map=ex.substitute(x.map, only))
