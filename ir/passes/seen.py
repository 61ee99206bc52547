"""Gradients at positions that no mask lets anyone see: 0, whatever the memory there holds.

    d_k[j, d] = d_kn[j, d] / n[j] + ...              d_kn[j, d] = sum[i] ... where j <= i

      ->        d_k[j, d] = 0 if sum[d] abs(d_kn[j, d]) == 0 else d_kn[j, d] / n[j] + ...

A key without a query has no weight, and all that is handed on to it is 0; but 0 * n is not, where n is made of a NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Einsum, Expr, Flat
from einfuse.ir.passes.backward import adjoint

Named = Callable[[str, tuple[str, ...], str | None, tuple[str, ...], Expr, Expr | None], Expr]
"""Makes a statement of a name, ranks, reducer, reduced ranks, map and mask, and reads it."""


def only(
    cascade: Flat, body: Sequence[Einsum], factors: tuple[Expr, ...], owned: set[str], named: Named, inner: bool = False
) -> tuple[Expr, ...]:
    """The factors of a gradient at the positions of ``owned``, those that read memory there as 0 where nothing is handed on to them.

    ``body`` holds the adjoint statements so far. ``inner``: the outputs are read by pairs of another kernel, so their gradients are sums too.
    """
    found = _Sources(cascade, {x.target: x for x in body}, owned, inner)
    for e in factors:
        found.visit(e)
    if found.always or not found.sums or not found.reads:
        return factors
    unseen = ex.TRUE
    for value in found.sums.values():
        ranks = tuple(r for r in map(_rank, value.args) if r not in cascade.over)
        features = tuple(r for r in ranks if r not in owned)
        if features:
            value = named("seen", tuple(r for r in ranks if r in owned), "sum", features, ex.call("abs", value), None)
        unseen = ex.call("and", unseen, ex.call("==", value, ex.const(0.0)))
    return tuple(e if e.op == "load" and e.name in found.sums else ex.call("select", unseen, ex.const(0.0), e) for e in factors)


def _rank(at: Expr) -> str:
    assert at.op == "index", "sums are read at their own positions"
    return at.name


@dataclass(slots=True)
class _Sources:
    """What a gradient is made of: ``sums`` of masked pairs, one for each position, and whether it ``reads`` anything else there.

    ``always``: it has a share that no mask hides, such as that of an output itself.
    """

    cascade: Flat
    body: dict[str, Einsum]
    owned: set[str]
    inner: bool
    sums: dict[str, Expr] = field(default_factory=dict)
    reads: bool = False
    always: bool = False

    def visit(self, e: Expr) -> None:
        for leaf in (x for x in ex.walk(e) if x.op == "load"):
            x = self.body.get(leaf.name)
            if x is None and self.inner and leaf.name in map(adjoint, self.cascade.outs):
                self.always |= not self._mine(ex.indices(leaf))
                self.sums[leaf.name] = leaf
            elif x is None:
                self.always |= leaf.name in map(adjoint, self.cascade.outs)
                self.reads |= bool(ex.indices(leaf) & self.owned)
            elif not any(self.cascade.rank(r).is_sequence for r in x.over):
                self.visit(x.map)
            else:
                self.always |= x.mask is None or not self._mine(x.ranks)
                self.sums[x.target] = ex.at(x.target, x.ranks)

    def _mine(self, ranks: Iterable[str]) -> bool:
        """Whether these are the positions in question."""
        return {r for r in ranks if self.cascade.rank(r).is_sequence and r not in self.cascade.over} == self.owned
