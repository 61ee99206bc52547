"""Masks become loop bounds: every fold gets the coordinates that a tile has to visit, and where it needs no mask.

    tile i 128                                        tile i 128
    fold j step 64 where j <= i and i - j < 65 {  ->  fold j step 64
                                                        range (max(0, i.lo - 64), i.hi)
                                                        full (max(i.lo - 64, min(..., i.lo)), i.lo) where ... {

For a conjunction of atoms monotone in the folded rank, the outer bounds are the atoms solved for it at the loosest coordinate
of the tile, and the full ones at the tightest. A union of up to three such conjunctions is as many ranges, each starting where
the one before it ends. What has no such form (tables read at i or j, remainders) is left to a table of live tiles that is made
at launch.

What a code generator may rely on. For each `Range`, in order:

* ``lo <= full_lo <= full_hi <= hi``; the phases are ``[lo, full_lo)`` under the mask, ``[full_lo, full_hi)`` without it and
  ``[full_hi, hi)`` under it. Blocks of ``step`` start at ``lo``; ``full_lo - lo`` and ``full_hi - full_lo`` are multiples of
  ``step``, and ``lo`` itself is one. Every block of the full phase lies inside the rank, and every point of it is alive for
  every coordinate of the tile below ``i.hi``.
* A masked phase applies the fold's whole mask and ``j < size(j)``. Its last block may reach beyond ``hi``; no point out there
  is both alive and inside the rank, so a further bound ``j < hi`` changes nothing.
* ``0 <= lo``, and ``hi <= size(j)`` unless the range is empty (``lo == hi``; that may lie beyond the size).
* Blocks of different ranges do not overlap: each live point is in exactly one block of one range.
* Bounds read sizes, ``i.lo``, ``i.hi``, host numbers, coordinates of ambient ranks and int inputs read at them; nothing else.

``tabulated`` folds have no ranges, and no order of blocks is fixed for them. A fold whose blocks must come in
order (a scan), one of a cascade without a tile, and one whose mask reads floats pair by pair or made tensors is never tabulated: it
visits, under its mask, the whole rank, or out of order what the conditions leave that have a closed form. Where each of the others has
an alternative of a closed form, ``a <= j and j < b or table[j] <= i``, there are full blocks, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.affine import Affine, affine, atom, floor_divide, number
from einfuse.ir.bounds import Known
from einfuse.ir.nodes import Cascade, DType, Expr, Fold, Range
from einfuse.ir.predicates import Clause, Unknown, clauses, inequalities, predicate
from einfuse.ir.rewrite import map_folds

MOST_RANGES = 3


def run(cascade: Cascade) -> Cascade:
    """Sets ``ranges`` or ``tabulated`` of every fold. Requires a scheduled cascade."""
    return map_folds(cascade, lambda f: _with_ranges(cascade, f))


def _with_ranges(cascade: Cascade, fold: Fold) -> Fold:
    ranges = None if fold.ordered else closed_form(cascade, fold)
    if ranges is None and (fold.ordered or _tile(cascade, fold) is None or _of_data(cascade, fold)):
        ranges = (_whole(cascade, fold),) if fold.ordered else _bounded(cascade, fold)
    return replace(fold, ranges=ranges or (), tabulated=ranges is None)


def _tile(cascade: Cascade, fold: Fold) -> tuple[str, int] | None:
    """The rank and block of the tile that a fold's bounds may depend on."""
    return next((t for t in cascade.tile if t[0] != fold.rank), None)


def _of_data(cascade: Cascade, fold: Fold) -> bool:
    """Whether the mask reads data of the call, which the host would have to look through every time: floats pair by pair, or made tensors."""
    floats = {t.name for t in cascade.inputs if t.dtype == "float" and not t.param}
    made = {t.name for t in cascade.inputs if t.made}
    tile, _ = _tile(cascade, fold) or ("", 0)
    found = [e for e in ex.walk(fold.mask) if e.op == "load" and e.name in floats] if fold.mask is not None else []
    return bool(made & ex.reads(fold.mask)) or any(
        {tile, fold.rank} <= set().union(*(ex.indices(a) for a in e.args)) for e in found
    )


def _whole(cascade: Cascade, fold: Fold) -> Range:
    """The rank from end to end, under the mask if there is one."""
    size = ex.size(cascade.rank(fold.rank).size)
    full = ex.ZERO if fold.mask is not None else Known().aligned(size, fold.step)
    return Range(ex.ZERO, size, ex.ZERO, full)


def _bounded(cascade: Cascade, fold: Fold) -> tuple[Range, ...]:
    """The ranges of those conditions that have a closed form. Under the whole mask but where a closed form is enough: an alternative to
    each of the others."""
    solver = _Solver(cascade, fold)

    def known(e: Expr) -> bool:
        return solver.spans(e) is not None

    conditions = ex.conjuncts(fold.mask)
    found = solver.spans(ex.conjunction(*filter(known, conditions)))
    if found is None:
        return (_whole(cascade, fold),)
    enough = [p if known(p) else next(filter(known, ex.disjuncts(p)), None) for p in conditions]
    inner = solver.spans(ex.conjunction(*enough)) if None not in enough else None
    if inner is not None and len(inner) == len(found) == 1:
        return solver.ranges([replace(found[0], full_lo=inner[0].full_lo, full_hi=inner[0].full_hi)])
    return tuple(replace(r, full_lo=r.lo, full_hi=r.lo) for r in solver.ranges(found))


def closed_form(cascade: Cascade, fold: Fold) -> tuple[Range, ...] | None:
    """The ranges of a fold in the bounds of the tile, or None where its mask has no such form."""
    if fold.mask is None:
        return (_whole(cascade, fold),)
    solver = _Solver(cascade, fold)
    found = solver.spans(fold.mask)
    return None if found is None else solver.ranges(found)


@dataclass(frozen=True, slots=True)
class Span:
    """One conjunction, solved: outside ``lo <= x < hi`` it is false all over the tile, in ``full_lo <= x < full_hi`` true."""

    lo: Expr
    hi: Expr
    full_lo: Expr
    full_hi: Expr


@dataclass(frozen=True, slots=True)
class _Pair:
    """The greatest and the least value of something over the coordinates of the tile, as forms."""

    most: Affine
    least: Affine

    def __add__(self, other: _Pair) -> _Pair:
        return _Pair(self.most + other.most, self.least + other.least)

    def scaled(self, k: int) -> _Pair:
        most, least = self.most.scaled(k), self.least.scaled(k)
        return _Pair(most, least) if k >= 0 else _Pair(least, most)

    def floor(self, w: Affine) -> _Pair:
        return _Pair(floor_divide(self.most, w), floor_divide(self.least, w))

    def times(self, w: Affine) -> _Pair:
        """Times something positive."""
        return _Pair(affine(ex.call("*", self.most.expr, w.expr)), affine(ex.call("*", self.least.expr, w.expr)))


def _both(form: Affine) -> _Pair:
    return _Pair(form, form)


class _Solver:
    """Solves the conjunctions of one fold's mask for its rank."""

    def __init__(self, cascade: Cascade, fold: Fold) -> None:
        self.cascade, self.rank, self.step = cascade, fold.rank, fold.step
        self.size = ex.size(cascade.rank(fold.rank).size)
        self.inputs = {t.name: t for t in cascade.inputs}
        tile = _tile(cascade, fold)
        self.known = Known(*tile, ex.size(cascade.rank(tile[0]).size)) if tile else Known()

    def types(self, name: str) -> DType:
        """What is not an input is a float to the analysis: it cannot be looked into."""
        return self.inputs[name].dtype if name in self.inputs else "float"

    def spans(self, mask: Expr | None) -> list[Span] | None:
        """The spans of a condition in order; None where it has no such form, or where there is none."""
        found = None if mask is None else clauses(predicate(mask, self.types), MOST_RANGES * 4)
        if found is None:
            return None
        solved = [self.span(clause) for clause in found]
        known = [s for s in solved if s is not None]
        return self.in_order(self.merged(known)) if len(known) == len(solved) else None

    # -- one conjunction -----------------------------------------------------------------------------------------------------

    def span(self, clause: Clause) -> Span | None:
        """The clause in closed form, or None."""
        lows, highs, full_lows, full_highs = [ex.ZERO], [self.size], [ex.ZERO], [self.size]
        loose, tight = ex.TRUE, ex.TRUE  # conditions that do not depend on the folded rank
        if any(isinstance(x, Unknown) for x in clause):
            return None
        guard = self._guard(clause)
        for form in inequalities(clause):
            solved = self._solve(form)
            if solved is None:
                return None
            c, rest = solved
            if c == 0:
                loose, tight = self._and(loose, rest.most), self._and(tight, rest.least)
            elif c > 0:
                lows.append(_negated(floor_divide(rest.most, number(c))))
                full_lows.append(_negated(floor_divide(rest.least, number(c))))
            else:
                highs.append(floor_divide(rest.most, number(-c)).shifted(1).expr)
                full_highs.append(floor_divide(rest.least, number(-c)).shifted(1).expr)
        known = self.known
        lo, hi = known.maximum(*lows), known.minimum(*highs)
        full_lo, full_hi = known.maximum(*full_lows), known.minimum(*full_highs)
        hi, full_hi = ex.call("select", loose, hi, ex.ZERO), ex.call("select", tight, full_hi, ex.ZERO)
        lo, hi, full_hi = (ex.call("select", guard, a, b) for a, b in ((lo, ex.ZERO), (hi, self.size), (full_hi, ex.ZERO)))
        return Span(lo, hi, full_lo, full_hi)

    def _and(self, condition: Expr, form: Affine) -> Expr:
        return ex.call("and", condition, ex.TRUE if self.known.at_least_zero(form) else ex.call(">=", form.expr, ex.ZERO))

    def _guard(self, clause: Clause) -> Expr:
        """That every divisor is positive, so that dividing by it is monotone; where it is not, the mask may be anything."""
        out = ex.TRUE
        for form in inequalities(clause):
            for e in (x for a, _ in form.terms for x in ex.walk(a)):
                if e.op == "//" and e.args[1].op not in ("const", "size"):
                    out = ex.conjunction(out, ex.call(">", e.args[1], ex.ZERO)) or ex.TRUE
        return out

    def _solve(self, form: Affine) -> tuple[int, _Pair] | None:
        """``form >= 0`` as ``c * x + rest >= 0`` in the folded coordinate x; c is 0 where it does not depend on it."""
        mine = [t for t in form.terms if self.rank in ex.indices(t[0])]
        rest = self._over_tile(Affine(tuple(t for t in form.terms if t not in mine), form.const))
        while rest is not None:
            if not mine:
                return 0, rest
            if len(mine) > 1:
                return None
            (x, c) = mine[0]
            if x.op == "index":
                return c, rest
            if x.op != "//" or not self._uniform(x.args[1]) or not self._positive(x.args[1]):
                return None
            # Galois: y // w >= m  iff  y >= w * m, and y // w <= m  iff  y <= w * m + w - 1
            inner, w = affine(x.args[0]), affine(x.args[1])
            rest = rest.floor(number(abs(c)))
            rest = rest.times(w) if c > 0 else rest.times(w) + _both(w.shifted(-1))
            inner = inner if c > 0 else inner.scaled(-1)
            mine = [t for t in inner.terms if self.rank in ex.indices(t[0])]
            more = self._over_tile(Affine(tuple(t for t in inner.terms if t not in mine), inner.const))
            rest = None if more is None else rest + more
        return None

    def _over_tile(self, form: Affine) -> _Pair | None:
        """The extremes of a form that does not read the folded coordinate."""
        total = _both(number(form.const))
        for x, c in form.terms:
            one = self._atom_over_tile(x)
            if one is None:
                return None
            total += one.scaled(c)
        return total

    def _atom_over_tile(self, x: Expr) -> _Pair | None:
        if self._uniform(x):
            return _both(atom(x))
        if x.op == "index" and x.name == self.known.rank:
            return _Pair(atom(self.known.hi).shifted(-1), atom(self.known.lo))
        if x.op == "//" and self._uniform(x.args[1]) and self._positive(x.args[1]):
            inner = self._over_tile(affine(x.args[0]))
            return None if inner is None else inner.floor(affine(x.args[1]))
        return None

    def _uniform(self, e: Expr) -> bool:
        """Is ``e`` one number for a whole program: sizes, host numbers, ambient coordinates and int inputs read at those?"""
        ranks, reads = ex.indices(e), ex.reads(e)
        return ranks <= set(self.cascade.over) and all(self.types(name) != "float" for name in reads)

    def _positive(self, w: Expr) -> bool:
        """May ``w`` be a divisor? A constant must be positive; what is known at launch only is guarded (see `_guard`)."""
        return w.op != "const" or (isinstance(w.value, int) and w.value > 0)

    # -- several conjunctions --------------------------------------------------------------------------------------------------

    def merged(self, spans: list[Span]) -> list[Span]:
        """Spans that start (or end) at the same place, all over, are one."""
        known, out = self.known, list[Span]()
        for s in spans:
            for n, t in enumerate(out):
                if s.lo == t.lo and s.full_lo == t.full_lo:
                    out[n] = replace(t, hi=known.maximum(t.hi, s.hi), full_hi=known.maximum(t.full_hi, s.full_hi))
                    break
                if s.hi == t.hi and s.full_hi == t.full_hi:
                    out[n] = replace(t, lo=known.minimum(t.lo, s.lo), full_lo=known.minimum(t.full_lo, s.full_lo))
                    break
            else:
                out.append(s)
        return out

    def in_order(self, spans: list[Span]) -> list[Span] | None:
        """The spans by their start, where it is provable and they are few."""
        out: list[Span] = []
        for s in spans:
            place = next((n for n, t in enumerate(out) if self.known.at_least(t.lo, s.lo)), len(out))
            if place and not self.known.at_least(s.lo, out[place - 1].lo):
                return None
            out.insert(place, s)
        return out if len(out) <= MOST_RANGES else None

    def ranges(self, spans: list[Span]) -> tuple[Range, ...]:
        """Spans in order, rounded to steps and cut where the one before ends."""
        known, out, done = self.known, list[Range](), ex.ZERO
        for n, s in enumerate(spans):
            lo = known.maximum(known.aligned(s.lo, self.step), done)
            last = n == len(spans) - 1
            end = s.hi if last else known.minimum(self.size, known.aligned(s.hi, self.step, up=True))
            hi = known.maximum(lo, end)
            most = known.aligned(s.full_hi, self.step)
            full_lo = known.maximum(lo, known.minimum(known.aligned(s.full_lo, self.step, up=True), most))
            full_hi = known.maximum(full_lo, most)
            out.append(Range(lo, hi, full_lo, full_hi))
            done = known.aligned(hi, self.step, up=True)
        return tuple(out) or (Range(ex.ZERO, ex.ZERO, ex.ZERO, ex.ZERO),)


def _negated(form: Affine) -> Expr:
    return form.scaled(-1).expr
