"""What pairs read of rows and features, and what is dear to compute again in every tile that they are walked in.

    kr[j, d] = k[j, d] * cos(angle(j, d)) + ...          functions for every row and feature
    s[i, j]  = sum[d] qr[i, d] * kr[j, d]                read by all tiles of rows i

Such a statement is a side of a sum of products and nothing else: a kernel rounds those to the dtype of the call before it multiplies them, so
they may as well be stored in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from einfuse.ir import expr as ex
from einfuse.ir.functions import FUNCTIONS
from einfuse.ir.nodes import Einsum, Expr, Flat


def is_dear(e: Expr) -> bool:
    """Is it a call of a function that takes a machine many instructions?"""
    return e.op in FUNCTIONS and FUNCTIONS[e.op].special


def blocks(c: Flat) -> frozenset[str]:
    """The names of such statements."""
    found = _Blocks(c)
    return frozenset(n for n in found.einsums if found.is_one(n))


class _Blocks:
    def __init__(self, c: Flat) -> None:
        self.einsums = {x.target: x for x in c.einsums}
        self.features = {r.name for r in c.ranks if not r.is_sequence} - set(c.over)
        self.sequences = {r.name for r in c.ranks if r.is_sequence} - set(c.over)
        self.outs = set(c.outs)

    def is_one(self, name: str) -> bool:
        x = self.einsums[name]
        rows = self.sequences & set(x.ranks)
        if len(rows) != 1 or not self.features & set(x.ranks) or name in self.outs or not self._alone(x, rows):
            return False
        readers = [y for y in self.einsums.values() if name in ex.reads(y.map) | ex.reads(y.mask)]
        pairs = [y for y in readers if len(self.sequences & {*y.ranks, *y.over}) > 1]
        return bool(pairs) and all(self._multiplies(y, x) for y in pairs) and any(map(self._is_dear, self._made_of(x)))

    def _alone(self, x: Einsum, rows: set[str]) -> bool:
        """Whether no other rows, and no condition, have a say."""
        return all(
            self.sequences & {*y.ranks, *y.over} <= rows and not self.sequences & set(y.over) and y.mask is None
            for y in self._upstream(x)
        )

    def _upstream(self, x: Einsum) -> Iterator[Einsum]:
        yield x
        for n in ex.reads(x.map):
            if n in self.einsums:
                yield from self._upstream(self.einsums[n])

    def _multiplies(self, y: Einsum, x: Einsum) -> bool:
        own = ex.at(x.target, x.ranks)
        others = [e for e in ex.factors(y.map) if e != own]
        return y.reducer.sums and own in ex.factors(y.map) and not any(x.target in ex.reads(e) for e in (*others, y.mask))

    def _made_of(self, x: Einsum) -> Iterator[Expr]:
        return (e for y in self._upstream(x) for e in ex.walk(y.map))

    def _is_dear(self, e: Expr) -> bool:
        return is_dear(e) and bool(ex.indices(e) & {*self.features, *self.sequences})
