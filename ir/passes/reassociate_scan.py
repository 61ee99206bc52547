"""The linear form under ``j <= i``: a scan along the queries, whose states are the sums over the keys so far.

    w[i, j] = sum[d] q[i, d] * k[j, d]  where j <= i            fold i {
    o[i, e] = sum[j] w[i, j] * v[j, e]                   ->       state S[d, e] = set S[d, e] + k[i, d] * v[i, e]
                                                                  o[i, e] = sum[d] q[i, d] * S[d, e]
                                                                }

A plain scan is left to the chunk pass. One with a flat rank is put in blocks here, since inside a block the weights are cheaper as they
were written.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.cut import Term
from einfuse.ir.expr import call
from einfuse.ir.nodes import Blocked, Einsum, Expr, Fold, Rank, Scan, State
from einfuse.ir.passes import chunk, infer_space
from einfuse.ir.passes.factorisation import Factorisation, Sum, copies
from einfuse.ir.passes.features import Builder, placed
from einfuse.ir.rewrite import fresh, prune


class Causal(Builder):
    """Only the keys up to the query's own count: the states run along the queries."""

    kind = "feature"

    def __init__(self, found: Factorisation, widths: dict[str, int], points: bool) -> None:
        super().__init__(found, widths)
        self.points = points
        self.flat: dict[tuple[Expr, Expr], list[Term]] = {}  # the terms behind a query's features and a key's

    def run(self) -> Scan:
        i, j = self.found.row, self.found.column
        done = {s.einsum.target: s for s in self.found.sums}
        before: list[Einsum] = []
        inside: list[Einsum | State] = []
        for x in self.c.body:
            if x.target in done:
                self.made = []
                states, total = self._state(done[x.target])
                before += self.made
                mask = ex.conjunction(*(p for p in ex.conjuncts(x.mask) if j not in ex.indices(p)))
                inside += [*states, *self._reads, replace(x, red=None, over=(), map=total, mask=mask)]
            elif {i, j} <= set(x.ranks):
                continue  # of pairs: only the sums read it
            else:
                late = ex.reads(x.map) & {y.target for y in inside}
                (inside if late else before).append(x)
        fold = Fold(i, tuple(self._moved_state(y) if isinstance(y, State) else self._moved(y) for y in inside))
        whole = self.c.with_body((*map(self._moved, before), fold))
        ranks = tuple(r for r in placed(self.c.ranks, self.ranks) if r.name != j)
        inputs = tuple(replace(t, axes=tuple(map(self._at_query, t.axes))) for t in self.c.inputs)
        scan = prune(replace(whole, inputs=inputs, ranks=ranks))
        assert isinstance(scan, Scan), "its outputs are read of its states"
        return self._near(chunk.run(infer_space.run(scan))) if self.flat and not self.points else scan

    def _rank_of(self, rank: str) -> Rank:
        return self.c.rank(rank)

    def _at_query(self, e: Expr) -> Expr:
        """``e`` with the keys' rank, and its size, renamed to the queries'."""
        i, j = self.found.row, self.found.column
        old, new = self.c.rank(j).size, ex.size(self.c.rank(i).size)
        return ex.substitute(ex.rename(e, {j: ex.index(i)}), lambda x: new if x.op == "size" and x.value == old else None)

    def _moved(self, x: Einsum) -> Einsum:
        ranks = tuple(self.found.row if r == self.found.column else r for r in x.ranks)
        return replace(x, ranks=ranks, map=self._at_query(x.map), mask=None if x.mask is None else self._at_query(x.mask))

    def _moved_state(self, x: State) -> State:
        return replace(x, map=self._at_query(x.map))

    def _alive(self, e: Expr) -> Expr:
        """``e``, or 0 at a key that does not exist."""
        keys = self.found.keys
        return e if keys is None or ex.is_const(e, 1) else call("select", keys, e, ex.const(0.0))

    def _state(self, s: Sum) -> tuple[list[State], Expr]:
        x, total, states = s.einsum, ex.ZERO, list[State]()
        self._reads: list[Einsum] = []
        for decay, terms in self._groups(s).items():
            features = self._flat(terms)
            mine = {features.rank.name} if features.rank else set()
            side = self._alive(self._side(features, True))
            key = self._named(f"{x.target}_key", ex.indices(side) | {self.found.column}, side)
            whole = ex.product(key, self._alive(ex.product(*s.value)))
            if ex.is_const(whole, 1) and self.found.keys is not None:  # the sum counts the keys: only those that exist
                whole = call("float", self.found.keys)
            order = [r.name for r in (*self.ranks, *self.c.ranks)]
            ranks = tuple(sorted((mine | ex.indices(whole)) - {self.found.column, *self.c.over}, key=order.index))
            name = fresh(f"{x.target}_state", self.taken)
            states.append(State(name, ranks, "set", call("+", call("*", decay, ex.at(name, ranks)), whole), loc=x.loc))
            query = self._side(features, False)
            if features.rank is None:
                total = call("+", total, call("*", query, ex.at(name, ranks)))
                continue
            weight = self._named(f"{x.target}_query", ex.indices(query) | {self.found.row}, query)
            alone = all(len(copies(f)) <= 1 for t in terms for f in (*t.rows, *t.columns))
            if alone and (len(terms) > 1 or len(terms[0].bound) > 1):
                self.flat[self._at_query(weight), self._at_query(key)] = terms
            held = tuple(sorted((ex.indices(weight) | set(ranks)) - {*mine, *self.c.over}, key=[*order].index))
            read = Einsum(
                fresh(f"{x.target}_sum", self.taken),
                held,
                "sum",
                tuple(mine),
                ex.product(weight, ex.at(name, ranks)),
                None,
                x.loc,
            )
            self._reads.append(read)
            total = call("+", total, ex.at(read.target, held))
        return states, ex.product(*s.row, total)

    # -- inside a block ------------------------------------------------------------------------------------------------------------

    def _near(self, blocked: Blocked) -> Blocked:
        """The form in blocks with the weights between points of a block as polynomials of their contractions: r products of features are
        more work than d, and sum what cancels."""
        fold = blocked.fold
        there = {self.found.row: ex.index(fold.aligned[0])}
        self.taken |= {y.target for y in fold.body} | {r.name for r in blocked.ranks}
        pairs = {frozenset((a, ex.rename(b, there))): terms for (a, b), terms in self.flat.items()}
        body: list[Einsum | State] = []
        for y in fold.body:
            terms = pairs.get(frozenset(ex.factors(y.map)))
            if terms is None or isinstance(y, State) or not y.reducer.sums:
                body.append(y)
                continue
            total: Expr = ex.ZERO
            for t in terms:
                total = call("+", total, self._written(t, y, there, body))
            body.append(replace(y, red=None, over=(), map=self._live(total, there)))
        return prune(Blocked.of(blocked, replace(fold, body=tuple(body))))

    def _live(self, e: Expr, there: dict[str, Expr]) -> Expr:
        keys = self.found.keys
        return e if keys is None else call("select", ex.rename(self._at_query(keys), there), e, ex.const(0.0))

    def _written(self, t: Term, y: Einsum, there: dict[str, Expr], body: list[Einsum | State]) -> Expr:
        """A term as a product of contractions, which become statements of the block."""
        rows = tuple(self._pointwise(f) for f in t.rows)
        columns = tuple(ex.rename(self._at_query(self._pointwise(f)), there) for f in t.columns)
        out = ex.product(*(f for f in (*rows, *columns) if not copies(f)))
        for name, rank in t.bound:
            parts = [ex.rename(f, {name: ex.index(rank)}) for f in (*rows, *columns) if name in copies(f)]
            mine = Einsum("", y.ranks, "sum", (rank,), ex.product(*parts), None, y.loc)
            known = next((z for z in body if not isinstance(z, State) and replace(z, target="") == mine), None)
            if known is None:
                known = replace(mine, target=fresh(f"{y.target}_in_{rank}", self.taken))
                body.append(known)
            out = call("*", out, ex.at(known.target, known.ranks))
        return out
