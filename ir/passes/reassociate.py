"""The linear form of an attention whose weights have a finite rank: keys are summed into a state before any query is looked at.

    w[i, j] = sum[d] q[i, d] * k[j, d]                     S[d, e] = sum[j] k[j, d] * v[j, e]
    l[i]    = sum[j] w[i, j]                         ->    z[d]    = sum[j] k[j, d]
    o[i, e] = sum[j] w[i, j] * v[j, e] / l[i]              l[i]    = sum[d] q[i, d] * z[d]
                                                           o[i, e] = sum[d] q[i, d] * S[d, e] / l[i]

Whether and into what the weights factor is decided and constructed by `ir.cut`. Terms of several contractions (``x ^ 2``) sum over one
flat rank of all their coordinates; where a term does not change when its two coordinates are exchanged, every pair is taken once. Under
``j <= i`` the sums run along the queries: the result is a scan, and a decay ``exp(c * (i - j))`` is the decay of its states.

Cost: N * r * d_v products instead of N * N * d_v, r the `Factorisation.rank`. Which is less work depends on the shapes, so this pass runs
beside the others and not among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.expr import call
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat, Rank
from einfuse.ir.passes.factorisation import Sum, find
from einfuse.ir.passes.features import Builder, placed
from einfuse.ir.passes.reassociate_scan import Causal
from einfuse.ir.rewrite import fresh, prune


def run(cascade: Cascade, widths: Mapping[str, int] | None = None, points: bool = False) -> Cascade:
    """The linear form: two sums where every key counts, a scan along the queries where only the earlier ones do.

    ``widths`` gives the sizes of the feature ranks whose products are a flat rank of their own. The scan needs as many keys as
    queries; ``points`` keeps it point by point, to be resumed anywhere. Raises NotFactorableError where there is no such form, or a
    width is needed and not given.
    """
    found = find(cascade)
    given = dict(widths or {})
    return Causal(found, given, points).run() if found.causal else _Sums(found, given).run()


class _Sums(Builder):
    """Every key counts for every query: the states are sums over all keys, in a cascade without a scan."""

    def run(self) -> Flat:
        done = {s.einsum.target: s for s in self.found.sums}
        body: list[Einsum] = []
        for x in self.c.body:
            if x.target not in done:
                body.append(x)
                continue
            self.made = []
            total = self._read(done[x.target])
            body += [*self.made, *self._states]
            mask = ex.conjunction(*(p for p in ex.conjuncts(x.mask) if self.found.column not in ex.indices(p)))
            body += [*self._reads, replace(x, red=None, over=(), map=total, mask=mask)]
        ranks = placed(self.c.ranks, self.ranks)
        return prune(replace(self.c, body=tuple(body), ranks=ranks))

    def _rank_of(self, rank: str) -> Rank:
        """A copy of a feature rank that programs can own and loops can fold."""
        new = replace(self.c.rank(rank), name=fresh(f"{rank}_2", self.taken), kind="key")
        self.ranks.append(new)
        return new

    def _read(self, s: Sum) -> Expr:
        self._states: list[Einsum] = []
        self._reads: list[Einsum] = []
        x, total = s.einsum, ex.ZERO
        for terms in self._groups(s).values():
            features = self._flat(terms)
            mine = {features.rank.name} if features.rank else set()
            key = self._named(f"{x.target}_key", {self.found.column, *mine}, self._side(features, True))
            whole = ex.product(key, *s.value)
            ranks = self._sorted(mine | (ex.indices(whole) - {self.found.column}))
            state = Einsum(
                fresh(f"{x.target}_state", self.taken), ranks, "sum", (self.found.column,), whole, self.found.keys, x.loc
            )
            self._states.append(state)
            query = self._side(features, False)
            share = ex.at(state.target, ranks)
            if features.rank is None:
                total = call("+", total, call("*", query, share))
                continue
            weight = self._named(f"{x.target}_query", {self.found.row, *mine}, query)
            inner = ex.product(weight, share)
            held = self._sorted(ex.indices(inner) - mine)
            read = Einsum(fresh(f"{x.target}_sum", self.taken), held, "sum", (features.rank.name,), inner, None, x.loc)
            self._reads.append(read)
            total = call("+", total, ex.at(read.target, held))
        return ex.product(*s.row, total)

    def _sorted(self, ranks: set[str]) -> tuple[str, ...]:
        order = [r.name for r in (*self.ranks, *self.c.ranks)]
        sequence = {r.name for r in self.c.ranks if r.is_sequence}
        return tuple(sorted(ranks - set(self.c.over), key=lambda r: (r not in sequence, order.index(r))))
