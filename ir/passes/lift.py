"""A held rank as an ambient one, where each of its points is a problem of its own; what needs all of its points goes before it.

    over b                                         over b                 w, which is w[b, h, i] from here on
    w[h, i] = exp(gate[b, h, i]) / sum[h] ..       over b, h
    s[h, i, j] = sum[d] q[b, h, i, d] * ..    ->   s[i, j] = sum[d] q[b, h, i, d] * ..
    o[h, i, e] = w[h, i] * sum[j] ..               o[i, e] = w[b, h, i] * sum[j] ..

Only statements of single rows go before it, so that nothing of the size of all pairs is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat
from einfuse.ir.passes import stages
from einfuse.ir.rewrite import elsewhere, map_expressions, reading


def run(cascade: Cascade, rank: str) -> tuple[Flat, ...] | None:
    """The cascades in the order they run, the last of them over ``rank``; None where a row's points of it have a say in each other's sums."""
    if not isinstance(cascade, Flat):
        return None
    body = cascade.body
    if rank in cascade.over or cascade.rank(rank).is_sequence or cascade.places:
        return None
    late = _late(cascade, body)
    together = _together(body, rank, late)
    ranks = {x.target: x.ranks for x in body}
    outs = tuple(n for n in cascade.outs if n not in together)
    if not all(rank in x.ranks and rank not in x.over for x in body if x.target in late):
        return None
    if not outs or any(ranks[n][:1] != (rank,) for n in outs):  # an output has its ambient axes first
        return None
    mine = [e for x in body if x.target not in together for e in x.expressions]
    if any(elsewhere(e, rank, ranks) for e in mine):
        return None
    read = {*cascade.outs}.union(*map(ex.reads, mine))
    crossing = tuple(x.target for x in body if x.target in together & read)
    after = reading(cascade, dict.fromkeys(crossing, cascade.over), outs, f"{cascade.name}_of_{rank}")
    heads = tuple(replace(r, kind="head") if r.name == rank else r for r in cascade.ranks)
    lifted = stages.complete(_ambient(after, rank), replace(cascade, ranks=heads))
    if not crossing:
        return (lifted,)
    return stages.complete(reading(cascade, {}, crossing, f"{cascade.name}_before_{rank}"), cascade), lifted


def _late(c: Flat, body: Sequence[Einsum]) -> set[str]:
    """The statements of pairs, and those that depend on them or on a sum over a sequence."""
    sequences = {r.name for r in c.ranks if r.is_sequence} - set(c.over)
    found: set[str] = set()
    for x in body:
        if sequences & set(x.over) or len(sequences & set(x.ranks)) > 1 or any(found & ex.reads(e) for e in x.expressions):
            found.add(x.target)
    return found


def _together(body: Sequence[Einsum], rank: str, late: set[str]) -> set[str]:
    """The statements of rows that need all points of ``rank``."""
    found: set[str] = set()
    for x in body:
        if x.target not in late and (rank in x.over or any(found & ex.reads(e) for e in x.expressions)):
            found.add(x.target)
    return found


def _ambient(c: Flat, rank: str) -> Flat:
    """The cascade over ``rank`` too, which its statements no longer have."""
    axis = {x.target: x.ranks.index(rank) for x in c.body if rank in x.ranks}

    def one(e: Expr) -> Expr | None:
        if e.op != "load" or e.name not in axis:
            return None
        at = axis[e.name]
        return replace(e, args=tuple(ex.substitute(a, one) for a in (*e.args[:at], *e.args[at + 1 :])))

    c = map_expressions(c, lambda e: ex.substitute(e, one))
    body = tuple(replace(x, ranks=tuple(r for r in x.ranks if r != rank)) for x in c.body)
    return replace(c, over=(*c.over, rank), body=body)
