"""Leaves only what a kernel needs: contractions, scores, reductions over the folded rank, row scalars and outputs.

    s[i, j] = qk[i, j] / 8 where j <= i                      s[i, j] = qk[i, j] / 8 where j <= i
    m[i] = max[j] s[i, j]                                    m[i] = max[j] s[i, j] where j <= i
    p[i, j] = exp(s[i, j] - m[i])                     ->     l[i] = sum[j] exp(s[i, j] - m[i]) where j <= i
    l[i] = sum[j] p[i, j]                                    o[i, e] = sum[j] exp(s[i, j] - m[i]) / l[i] * v[j, e] where j <= i
    a[i, j] = p[i, j] / l[i]
    o[i, e] = sum[j] a[i, j] * v[j, e]

A pointwise statement that reads a statistic of the folded rank and spans that rank is written into its readers, so that
`online_fuse` sees the whole map; every other one stays, under its own name. Statements that no output needs are dropped.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.nodes import Cascade, Einsum, Expr, Fold, Statement
from einfuse.ir.passes import infer_space
from einfuse.ir.rewrite import prune

MAX_NODES = 20_000


def fold_ranks(cascade: Cascade) -> tuple[str, ...]:
    """The sequence ranks (no feature, not ambient) that a pass runs over: those that some statement reduces over, in order of first
    reduction; then one of every output over two of them, whose values a pass without states gives out."""
    whole = {r.name for r in cascade.ranks if r.kind in ("feature", "state")}
    over = [r for x in cascade.body for r in (x.over if isinstance(x, Einsum) else (x.rank,))]
    folded = dict.fromkeys(r for r in over if r not in whole)
    for x in cascade.body:
        pair = [r for r in x.ranks if r not in whole] if isinstance(x, Einsum) and x.target in cascade.outs else []
        if len(pair) > 1 and not folded.keys() & pair:
            folded[next((r for r in reversed(pair) if cascade.rank(r).kind != "query"), pair[-1])] = None
    return tuple(folded)


def run(cascade: Cascade) -> Cascade:
    """Requires a cascade without folds; infers spaces itself."""
    cascade = infer_space.run(cascade)
    folded = set(fold_ranks(cascade))
    statistics: set[str] = set()  # reductions over a folded rank and what is computed from them
    inlined: dict[str, Einsum] = {}
    body: list[Statement] = []
    for x in cascade.body:
        assert not isinstance(x, Fold), "canonicalise runs before folds exist"
        x = replace(x, map=_inline(x.map, inlined))
        if sum(1 for _ in ex.walk(x.map)) > MAX_NODES:
            raise SpecError(
                f"the definition of {x.target} grows beyond {MAX_NODES} operations", x.loc, "split it into reductions"
            )
        if folded & set(x.over) or ex.reads(x.map) & statistics:
            statistics.add(x.target)
        if not x.red and x.target in statistics and folded & set(x.ranks) and x.target not in cascade.outs:
            inlined[x.target] = x
        else:
            body.append(x)
    out = prune(replace(cascade, body=tuple(body)))
    return cascade if out == cascade else out


def _inline(e: Expr, inlined: dict[str, Einsum]) -> Expr:
    def definition(x: Expr) -> Expr | None:
        if x.op != "load" or x.name not in inlined:
            return None
        x = replace(x, args=tuple(_inline(a, inlined) for a in x.args))
        source = inlined[x.name]
        return ex.rename(source.map, dict(zip(source.ranks, x.args, strict=True)))

    return ex.substitute(e, definition)
