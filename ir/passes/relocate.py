"""What pairs read of other pairs, away from their own coordinates, is computed at these.

    a[i, w] = sum[d] q[i, d] * c[w, d] where w <= i            a[i, w] = sum[d] q[i, d] * c[w, d] where w <= i
    m[i] = max[w] a[i, w]                                      m[i] = max[w] a[i, w]
                                                       ->      a_at[i, j] = sum[d] q[i, d] * c[j // 4, d] where j // 4 <= i
    s[i, j] = .. + a[i, j // 4] - m[i]                         s[i, j] = .. + a_at[i, j] - m[i]

A kernel holds a block of pairs, in which such a point need not lie, and nothing of the size of all pairs is stored. Statements with one
sequence rank or none are stored for others to read (`passes.stages`), and sums over a sequence cannot be taken for every pair again.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Einsum, Expr, Flat
from einfuse.ir.rewrite import fresh, prune


def run(cascade: Flat) -> Flat:
    """Requires statements that have their whole spaces. Idempotent."""
    found = _Relocation(cascade).run()
    return cascade if found.body == cascade.body else prune(found)


class _Relocation:
    def __init__(self, cascade: Flat) -> None:
        self.cascade = cascade
        self.sequences = {r.name for r in cascade.ranks if r.is_sequence} - set(cascade.over)
        self.taken = {t.name for t in cascade.inputs} | {x.target for x in cascade.body}
        self.pairs: dict[str, Einsum] = {}
        self.made: dict[tuple[str, tuple[Expr, ...]], Einsum] = {}
        self.body: list[Einsum] = []

    def run(self) -> Flat:
        for x in self.cascade.body:
            self._add(x)
        return replace(self.cascade, body=tuple(self.body))

    def _add(self, x: Einsum) -> Einsum:
        """Appends a statement after what it reads elsewhere."""
        x = replace(x, map=self._read(x.map), mask=None if x.mask is None else self._read(x.mask))
        self.body.append(x)
        if len(self.sequences & set(x.ranks)) > 1 and not self.sequences & set(x.over):
            self.pairs[x.target] = x
        return x

    def _read(self, e: Expr) -> Expr:
        return ex.substitute(e, self._moved)

    def _moved(self, e: Expr) -> Expr | None:
        x = self.pairs.get(e.name) if e.op == "load" else None
        if x is None:
            return None if ex.holds(e, "load", self.pairs) else e
        args = tuple(map(self._read, e.args))
        moves = any(r in self.sequences and a != ex.index(r) for r, a in zip(x.ranks, args, strict=True))
        inner = set().union(*map(ex.indices, args)) & set(x.over)  # another meaning of a rank that is summed over
        if not moves or inner:
            return e if args == e.args else replace(e, args=args)
        if (x.target, args) not in self.made:
            at = dict(zip(x.ranks, args, strict=True))
            ranks = set().union(*map(ex.indices, args)) - set(self.cascade.over)
            own = tuple(r.name for r in self.cascade.ranks if r.name in ranks)
            mask = None if x.mask is None else ex.rename(x.mask, at)
            self.made[x.target, args] = self._add(
                replace(x, target=fresh(f"{x.target}_at", self.taken), ranks=own, map=ex.rename(x.map, at), mask=mask)
            )
        there = self.made[x.target, args]
        return ex.load(there.target, *map(ex.index, there.ranks))
