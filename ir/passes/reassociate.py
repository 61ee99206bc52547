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
from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.affine import simplified
from einfuse.ir.cut import Term
from einfuse.ir.expr import call
from einfuse.ir.factorisation import Factorisation, Sum, extent, find, symmetric, width
from einfuse.ir.nodes import Cascade, Einsum, Expr, Fold, Rank, State, Statement
from einfuse.ir.rewrite import fresh, prune


def run(cascade: Cascade, widths: Mapping[str, int] | None = None) -> Cascade:
    """The linear form: two sums where every key counts, a scan along the queries where only the earlier ones do.

    ``widths`` gives the sizes of the feature ranks whose products are a flat rank of their own. The scan needs as many keys as
    queries. Raises NotFactorableError where there is no such form, or a width is needed and not given.
    """
    found = find(cascade)
    return (_Scan if found.causal else _Sums)(found, dict(widths or {})).run()


# -- building ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Features:
    """The flat rank of a group of terms (None: one number), and what a term's copies are at its coordinate."""

    rank: Rank | None
    places: tuple[tuple[Term, int, int], ...]  # each term, where it starts and where it ends


class _Builder:
    """What both forms share: the features of a side as statements over a flat rank."""

    kind = "key"

    def __init__(self, found: Factorisation, widths: dict[str, int]) -> None:
        self.found, self.widths, self.c = found, widths, found.cascade
        self.taken = {*(r.name for r in self.c.ranks), *(t.name for t in self.c.inputs)}
        self.taken |= {x.target for x in self.c.body if isinstance(x, Einsum)}
        self.ranks: list[Rank] = []
        self.known: dict[tuple[tuple[str, ...], Expr], str] = {}
        self.made: list[Einsum] = []
        self.features: dict[tuple[Term, ...], _Features] = {}

    def _groups(self, s: Sum) -> dict[Expr, list[Term]]:
        """The terms of a sum by their decay: each group has states of its own."""
        out: dict[Expr, list[Term]] = {}
        for t in s.terms:
            out.setdefault(t.decay, []).append(t)
        return out

    def _flat(self, terms: list[Term]) -> _Features:
        key = tuple(replace(t, rows=()) if not symmetric(t) else t for t in terms)
        if key not in self.features:
            self.features[key] = self._laid_out(terms)
        held = self.features[key]
        return replace(held, places=tuple((t, lo, hi) for t, (_, lo, hi) in zip(terms, held.places, strict=True)))

    def _laid_out(self, terms: list[Term]) -> _Features:
        if len(terms) == 1 and len(terms[0].bound) <= 1:
            if not terms[0].bound:
                return _Features(None, ((terms[0], 0, 1),))
            return _Features(self._rank_of(terms[0].bound[0][1]), ((terms[0], 0, 0),))
        places, at = [], 0
        for t in terms:
            size = extent(self.c, t, self.widths)
            places.append((t, at, at + size))
            at += size
        rank = Rank(fresh("r", self.taken), self.kind, at)  # type: ignore[arg-type]  # one of two kinds
        self.ranks.append(rank)
        return _Features(rank, tuple(places))

    def _rank_of(self, rank: str) -> Rank:
        raise NotImplementedError

    def _side(self, features: _Features, column: bool) -> Expr:
        """The feature of one side at the flat coordinate: the chain of choices between the terms."""
        out: Expr | None = None
        for t, lo, hi in reversed(features.places):
            value = self._at(t, features, lo, column)
            assert features.rank is not None or out is None, "without a rank there is one term"
            if out is None:
                out = value
            else:
                assert features.rank is not None, "several terms have a rank"
                out = call("select", call("<", ex.index(features.rank.name), ex.const(hi)), value, out)
        assert out is not None, "a sum has a term"
        return out

    def _at(self, t: Term, features: _Features, lo: int, column: bool) -> Expr:
        """The product of a term's features, its copies read off the flat coordinate; a symmetric pair is (d, d + n) for n up to half."""
        whole = ex.product(*(t.columns if column else t.rows))
        if features.rank is None or not t.bound:
            return self._own(whole, {})
        flat = ex.index(features.rank.name)
        if len(features.places) == 1 and len(t.bound) == 1:
            return self._own(whole, {t.bound[0][0]: flat})
        place = call("-", flat, ex.const(lo))
        sizes = [width(self.c, r, self.widths) for _, r in t.bound]
        names: dict[str, Expr] = {}
        if symmetric(t):
            n = sizes[0]
            first = call("%", place, ex.const(n))
            names = {
                t.bound[0][0]: first,
                t.bound[1][0]: call("%", call("+", first, call("//", place, ex.const(n))), ex.const(n)),
            }
            if not column:
                whole = call("*", whole, _multiplicity(place, n))
        else:
            for (name, _), n in zip(reversed(t.bound), reversed(sizes), strict=True):
                names[name] = call("%", place, ex.const(n))
                place = call("//", place, ex.const(n))
        return self._own(whole, {k: simplified(e) for k, e in names.items()})

    def _own(self, e: Expr, names: Mapping[str, Expr]) -> Expr:
        """``e`` with its copies at these coordinates; pointwise statements of one side are written out."""
        einsums = {x.target: x for x in self.c.body if isinstance(x, Einsum)}
        flat = {str(f.rank.name) for f in self.features.values() if f.rank}

        def definition(x: Expr) -> Expr | None:
            source = einsums.get(x.name) if x.op == "load" else None
            if source is None or source.red or not any(ex.indices(a) & flat for a in x.args):
                return None
            inner = ex.rename(source.map, dict(zip(source.ranks, x.args, strict=True)))
            return ex.substitute(inner, definition)

        return ex.substitute(ex.rename(e, dict(names)), definition)

    def _named(self, base: str, ranks: set[str], e: Expr) -> Expr:
        """A pointwise statement with this value (one for equal values), read at its own ranks; what is simple stays as it is."""
        if e.op in ("load", "const"):
            return e
        order = [r.name for r in (*self.c.ranks, *self.ranks)]
        held = tuple(r for r in order if r in ranks - set(self.c.over))
        if (held, e) not in self.known:
            name = fresh(base, self.taken)
            self.known[held, e] = name
            self.made.append(Einsum(name, held, None, (), e))
        return ex.at(self.known[held, e], held)


def _multiplicity(place: Expr, n: int) -> Expr:
    """How many ordered pairs stand for one place: one on the diagonal, else two; at half of an even width each occurs twice already."""
    offset = call("//", place, ex.const(n))
    once = call("==", offset, ex.ZERO)
    if n % 2 == 0:
        once = call("or", once, call("==", offset, ex.const(n // 2)))
    return call("select", once, ex.const(1.0), ex.const(2.0))


class _Sums(_Builder):
    """Every key counts for every query: the states are sums over all keys, in a cascade without a scan."""

    def run(self) -> Cascade:
        done = {s.einsum.target: s for s in self.found.sums}
        body: list[Statement] = []
        for x in self.c.body:
            assert isinstance(x, Einsum), "reassociate runs before folds exist"
            if x.target not in done:
                body.append(x)
                continue
            self.made = []
            total = self._read(done[x.target])
            body += [*self.made, *self._states]
            mask = ex.conjunction(*(p for p in ex.conjuncts(x.mask) if self.found.column not in ex.indices(p)))
            body += [*self._reads, replace(x, red=None, over=(), map=total, mask=mask)]
        ranks = _placed(self.c.ranks, self.ranks)
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
        sequence = {r.name for r in self.c.ranks if r.kind not in ("feature", "state")}
        return tuple(sorted(ranks - set(self.c.over), key=lambda r: (r not in sequence, order.index(r))))


class _Scan(_Builder):
    """Only the keys up to the query's own count: the states run along the queries."""

    kind = "feature"

    def run(self) -> Cascade:
        i, j = self.found.row, self.found.column
        done = {s.einsum.target: s for s in self.found.sums}
        before: list[Einsum] = []
        inside: list[Einsum | State] = []
        after: list[Einsum] = []
        for x in self.c.body:
            assert isinstance(x, Einsum), "reassociate runs before folds exist"
            if x.target in done:
                self.made = []
                states, total = self._state(done[x.target])
                before += self.made
                mask = ex.conjunction(*(p for p in ex.conjuncts(x.mask) if j not in ex.indices(p)))
                inside += [*states, *self._reads, replace(x, red=None, over=(), map=total, mask=mask)]
            elif {i, j} <= set(x.ranks):
                continue  # of pairs: only the sums read it
            else:
                late = ex.reads(x.map) & {y.target for y in (*inside, *after)}
                (after if late else before).append(x)
        fold = Fold(i, tuple(self._moved(y) if isinstance(y, Einsum) else self._moved_state(y) for y in inside))
        body: tuple[Statement, ...] = (*map(self._moved, before), fold, *map(self._moved, after))
        ranks = tuple(r for r in _placed(self.c.ranks, self.ranks) if r.name != j)
        inputs = tuple(replace(t, axes=tuple(map(self._at_query, t.axes))) for t in self.c.inputs)
        return prune(replace(self.c, inputs=inputs, body=body, ranks=ranks))

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

    def _state(self, s: Sum) -> tuple[list[State], Expr]:
        x, total, states = s.einsum, ex.ZERO, list[State]()
        self._reads: list[Einsum] = []
        for decay, terms in self._groups(s).items():
            features = self._flat(terms)
            mine = {features.rank.name} if features.rank else set()
            side = self._side(features, True)
            key = self._named(f"{x.target}_key", ex.indices(side) | {self.found.column}, side)
            whole = ex.product(key, *s.value)
            if self.found.keys is not None:
                whole = call("select", self.found.keys, ex.product(key, *s.value), ex.const(0.0))
            order = [r.name for r in (*self.ranks, *self.c.ranks)]
            ranks = tuple(sorted((mine | ex.indices(whole)) - {self.found.column, *self.c.over}, key=order.index))
            name = fresh(f"{x.target}_state", self.taken)
            states.append(State(name, ranks, "set", call("+", call("*", decay, ex.at(name, ranks)), whole), loc=x.loc))
            query = self._side(features, False)
            if features.rank is None:
                total = call("+", total, call("*", query, ex.at(name, ranks)))
                continue
            weight = self._named(f"{x.target}_query", ex.indices(query) | {self.found.row}, query)
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


def _placed(ranks: tuple[Rank, ...], new: list[Rank]) -> tuple[Rank, ...]:
    """The ranks with the new ones before the first feature."""
    at = next((n for n, r in enumerate(ranks) if r.kind in ("feature", "state")), len(ranks))
    return (*ranks[:at], *new, *ranks[at:])
