"""The features of weights that factor, as statements over one flat rank: what both linear forms of `ir.passes.reassociate` share.

Terms stand one after the other along the flat rank, at whole multiples of each other's widths, and a coordinate is read off by division. A
term of two like contractions takes every pair of coordinates once: as ``(d, d + n)`` modulo the width, for n up to half of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.affine import simplified
from einfuse.ir.cut import Term
from einfuse.ir.definitions import Definitions
from einfuse.ir.expr import call
from einfuse.ir.nodes import Einsum, Expr, Rank
from einfuse.ir.passes.factorisation import Factorisation, Sum, extent, symmetric, width
from einfuse.ir.rewrite import fresh


@dataclass(frozen=True, slots=True)
class Features:
    """The flat rank of a group of terms (None: one number), and what a term's copies are at its coordinate."""

    rank: Rank | None
    places: tuple[tuple[Term, int, int], ...]  # each term, where it starts and where it ends


class Builder:
    """What both forms share: the features of a side as statements over a flat rank."""

    kind = "key"

    def __init__(self, found: Factorisation, widths: dict[str, int]) -> None:
        self.found, self.widths, self.c = found, widths, found.cascade
        self.taken = {*(r.name for r in self.c.ranks), *(t.name for t in self.c.inputs)}
        self.taken |= {x.target for x in self.c.einsums}
        self.ranks: list[Rank] = []
        self.known: dict[tuple[tuple[str, ...], Expr], str] = {}
        self.made: list[Einsum] = []
        self.features: dict[tuple[Term, ...], Features] = {}

    def _groups(self, s: Sum) -> dict[Expr, list[Term]]:
        """The terms of a sum by their decay: each group has states of its own."""
        out: dict[Expr, list[Term]] = {}
        for t in s.terms:
            out.setdefault(t.decay, []).append(t)
        return out

    def _flat(self, terms: list[Term]) -> Features:
        key = tuple(replace(t, rows=()) if not symmetric(t) else t for t in terms)
        if key not in self.features:
            self.features[key] = self._laid_out(terms)
        held = self.features[key]
        return replace(held, places=tuple((t, lo, hi) for t, (_, lo, hi) in zip(terms, held.places, strict=True)))

    def _laid_out(self, terms: list[Term]) -> Features:
        if len(terms) == 1 and len(terms[0].bound) <= 1:
            if not terms[0].bound:
                return Features(None, ((terms[0], 0, 1),))
            return Features(self._rank_of(terms[0].bound[0][1]), ((terms[0], 0, 0),))
        places, at = [], 0
        for t in terms:
            size = extent(self.c, t, self.widths)
            places.append((t, at, at + size))
            at += size
        rank = Rank(fresh("r", self.taken), self.kind, at)  # type: ignore[arg-type]  # one of two kinds
        self.ranks.append(rank)
        return Features(rank, tuple(places))

    def _rank_of(self, rank: str) -> Rank:
        raise NotImplementedError

    def _side(self, features: Features, column: bool) -> Expr:
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

    def _at(self, t: Term, features: Features, lo: int, column: bool) -> Expr:
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
        einsums = {x.target: x for x in self.c.einsums}
        flat = {str(f.rank.name) for f in self.features.values() if f.rank}

        def definition(x: Expr) -> Expr | None:
            source = einsums.get(x.name) if x.op == "load" else None
            if source is None or source.red or not any(ex.indices(a) & flat for a in x.args):
                return None
            inner = ex.rename(source.map, dict(zip(source.ranks, x.args, strict=True)))
            return ex.substitute(inner, definition)

        return ex.substitute(ex.rename(e, dict(names)), definition)

    def _pointwise(self, e: Expr) -> Expr:
        """``e`` with every pointwise statement that it reads written out."""
        return Definitions(x for x in self.c.einsums if not x.red).into(e)

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


def placed(ranks: tuple[Rank, ...], new: list[Rank]) -> tuple[Rank, ...]:
    """The ranks with the new ones before the first feature."""
    at = next((n for n, r in enumerate(ranks) if not r.is_sequence), len(ranks))
    return (*ranks[:at], *new, *ranks[at:])
