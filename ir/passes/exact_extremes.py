"""Outputs that are a maximum or minimum of floats, as copies of statements: an output may be stored in 16 bits, what a backward saves is not.

    o[i, e] = max[j] s[i, j] + v[j, e]    ->    o_exact[i, e] = max[j] s[i, j] + v[j, e]
                                                o[i, e] = o_exact[i, e]

A backward tells the point that has the extreme by comparing, and none has a rounded one.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Einsum, Expr, Flat
from einfuse.ir.rewrite import fresh, map_expressions, taken, types_of


def run(cascade: Flat) -> Flat:
    """The cascade itself where no output is such an extreme."""
    types, names = types_of(cascade), taken(cascade)
    exact = {
        x.target: fresh(f"{x.target}_exact", names)
        for x in cascade.body
        if x.over and x.reducer.extreme and x.target in cascade.outs and types[x.target] == "float"
    }
    if not exact:
        return cascade

    def renamed(e: Expr) -> Expr:
        return ex.substitute(e, lambda x: ex.load(exact[x.name], *x.args) if x.op == "load" and x.name in exact else None)

    body: list[Einsum] = []
    for x in map_expressions(cascade, renamed).body:
        if x.target in exact:
            name = exact[x.target]
            body += [replace(x, target=name), Einsum(x.target, x.ranks, None, (), ex.at(name, x.ranks), loc=x.loc)]
        else:
            body.append(x)
    return replace(cascade, body=tuple(body))
