"""Cuts off what a kernel does with its sums once they are complete: they are one cascade, and the rest of each row is another.

    d_n[i, d] = sum[j] d_s[i, j] * k[j, d]                 sums    d_n[i, d] = sum[j] d_s[i, j] * k[j, d]
    d_q[i, d] = d_n[i, d] / norm[i] + ...           ->     tail    d_q[i, d] = d_n[i, d] / norm[i] + ...

A cascade that does nothing but sum can be one kernel with another that walks the same pairs (`codegen.cpu.merged`).
"""

from __future__ import annotations

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Flat
from einfuse.ir.passes.canonicalise import fold_ranks
from einfuse.ir.rewrite import reading, with_used_ranks


def run(cascade: Cascade) -> tuple[Flat, Flat] | None:
    """The sums and the tail of a canonical cascade; None where there is no tail, or it is over pairs itself."""
    if not isinstance(cascade, Flat):
        return None
    folded = set(fold_ranks(cascade))
    body = {x.target: x for x in cascade.body}
    needed, sums = set(cascade.outs), set[str]()
    for name, x in reversed(body.items()):
        if name in needed and set(x.over) & folded:
            sums.add(name)
        elif name in needed:
            if set(x.ranks) & folded:
                return None
            needed |= ex.reads(x.map) | ex.reads(x.mask)
    rest = [n for n in cascade.outs if n not in sums]
    if not sums or not rest:
        return None
    first = reading(cascade, {}, [n for n in body if n in sums], f"{cascade.name}_sums")
    tail = reading(cascade, dict.fromkeys(sums, cascade.over), rest, f"{cascade.name}_tail")
    return with_used_ranks(first), with_used_ranks(tail)
