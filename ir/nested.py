"""A reduction over several features as reductions over one, the first innermost.

    z[i] = sum[d, e] q[i, d] * S[d, e] * v[i, e]   ->   z_d[i, e] = sum[d] q[i, d] * S[d, e]
                                                        z[i] = sum[e] z_d[i, e] * v[i, e]

Of a sum of products only the factors that have the feature are summed over it.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Einsum
from einfuse.ir.rewrite import fresh


def nested(cascade: Cascade, x: Einsum, taken: set[str], scanned: str | None = None) -> list[Einsum]:
    """``x`` as statements that reduce over one feature each; their new names are added to ``taken``.

    A condition goes where the first feature that it mentions is reduced. What is ``scanned`` is a rank of all that reads a state, though
    states have no such rank.
    """
    own = [r for r in cascade.ranks if r.name not in cascade.over]
    over = [r.name for r in own if r.name in x.over and not r.is_sequence]
    out: list[Einsum] = []
    if not x.red or x.reducer.solves or len(over) < 2:
        return [x]
    over = [r for r in x.over if r in over]  # as they are written
    e, conditions = x.map, list(ex.conjuncts(x.mask))
    for rank in over[:-1]:
        here = [c for c in conditions if rank in ex.indices(c)]
        conditions = [c for c in conditions if c not in here]
        parts = list(ex.factors(e)) if x.reducer.sums and not here else [e]
        mine = [p for p in parts if rank in ex.indices(p)] or parts
        inner = ex.product(*mine)
        free = ex.indices(inner).union(*(ex.indices(c) for c in here), {scanned} & set(x.ranks)) - {rank}
        ranks = tuple(r.name for r in own if r.name in free)
        name = fresh(f"{x.target}_{rank}", taken)
        out.append(Einsum(name, ranks, x.red, (rank,), inner, ex.conjunction(*here), x.loc))
        e = ex.product(ex.at(name, ranks), *(p for p in parts if p not in mine))
    rest = tuple(r for r in x.over if r not in over[:-1])
    return [*out, replace(x, map=e, over=rest, mask=ex.conjunction(*conditions))]
