"""Every statement gets its whole space: its own ``where`` and the spaces of the statements it reads.

    s[i, j] = qk[i, j] / 8 where j <= i            s[i, j] = qk[i, j] / 8 where j <= i
    m[i] = max[j] s[i, j]                 ->       m[i] = max[j] s[i, j] where j <= i
    p[i, j] = exp(s[i, j] - m[i])                  p[i, j] = exp(s[i, j] - m[i]) where j <= i

A point that does not exist for a statement exists for none of its readers. A reduction over features ends the conditions that
mention them, and the others go on to its readers. A reduction over queries or keys ends all: it has a value in every row, that of
nothing where no point of the row exists, whether the condition that says so mentions the reduced rank or not.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Expr, Fold, Statement


def run(cascade: Cascade) -> Cascade:
    """Idempotent. Folds are left alone: their bodies share the fold's own space."""
    spaces: dict[str, tuple[tuple[str, ...], Expr]] = {}
    body: list[Statement] = []
    for x in cascade.body:
        if isinstance(x, Fold):
            body.append(x)
            continue
        mask = ex.conjunction(*ex.conjuncts(x.mask), *(p for e in _reads(x.map) for p in inherited(e, spaces)))
        x = x if mask == x.mask else replace(x, mask=mask)
        body.append(x)
        rest = ex.conjunction(*(p for p in ex.conjuncts(mask) if not ex.indices(p) & set(x.over)))
        if rest is not None and all(not cascade.rank(r).is_sequence for r in x.over):
            spaces[x.target] = (x.ranks, rest)
    return cascade if tuple(body) == cascade.body else replace(cascade, body=tuple(body))


def inherited(read: Expr, spaces: dict[str, tuple[tuple[str, ...], Expr]]) -> tuple[Expr, ...]:
    """The conditions that one read brings with it, in the coordinates of the reader."""
    if read.name not in spaces:
        return ()
    ranks, space = spaces[read.name]
    return ex.conjuncts(ex.rename(space, dict(zip(ranks, read.args, strict=True))))


def _reads(e: Expr) -> list[Expr]:
    return [x for x in ex.walk(e) if x.op == "load"]
