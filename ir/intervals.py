"""Interval arithmetic over boxes of coordinates: can a predicate be true anywhere in a box?

A `Box` gives every coordinate an interval; its ends are numpy arrays that broadcast against each other, so one evaluation treats
every tile of an iteration space at once. All results are sound: the interval of an expression holds each of its values in the box,
and ``possible`` is false only where no point of the box satisfies the predicate. That every point satisfies ``p`` is the
impossibility of its negation, which is all that "must" takes.

Intervals are of int64; each carries a bound on its magnitude as a Python int, and an expression that might leave int64 is unknown
(None), like whatever the domain has no rule for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, lcm
from typing import Any

import numpy as np
import numpy.typing as npt

from einfuse.ir.affine import Affine, affine
from einfuse.ir.nodes import DType, Expr
from einfuse.ir.predicates import All, Clause, Ge, Predicate, Unknown, inequalities, predicate
from einfuse.ir.predicates import Any as Either

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
LIMIT = 1 << 62
"""Magnitudes from here on are unknown: sums of two below it cannot overflow int64."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Every integer from ``lo`` to ``hi``, element by element; no magnitude exceeds ``bound``."""

    lo: Ints
    hi: Ints
    bound: int

    @property
    def exact(self) -> bool:
        """Is it one value everywhere?"""
        return self.lo is self.hi


def interval(lo: Any, hi: Any = None) -> Interval:
    """The interval between two arrays (or numbers), or an exact value."""
    low = np.asarray(lo, np.int64)
    high = low if hi is None else np.asarray(hi, np.int64)
    bound = max((abs(int(f(x))) for x in (low, high) for f in (np.min, np.max)), default=0) if low.size and high.size else 0
    return Interval(low, high, bound)


@dataclass(frozen=True, slots=True)
class Box:
    """Intervals of coordinates by rank name, tables by name, and the types of what is read."""

    coordinates: Mapping[str, Interval]
    tables: Mapping[str, Table]
    types: Callable[[str], DType]
    atoms: dict[Expr, Interval | None] = field(default_factory=dict)
    signs: dict[Affine, Bools] = field(default_factory=dict)

    def atom(self, e: Expr) -> Interval | None:
        """The interval of an atom of a normal form (kept: the same atoms come in many literals)."""
        if e not in self.atoms:
            self.atoms[e] = self._atom(e)
        return self.atoms[e]

    def _atom(self, e: Expr) -> Interval | None:
        if e.op == "index":
            return self.coordinates.get(e.name)
        if e.op == "load":
            return self._load(e)
        if e.op == "select":
            return self._select(*e.args)
        if e.op == "int":
            return self._int(e.args[0])
        rule = _TRANSFER.get(e.op)
        args = [self.form(affine(a)) for a in e.args] if rule else []
        known = [a for a in args if a is not None]
        out = rule(*known) if rule and len(known) == len(args) else None
        return out if out is None or out.bound < LIMIT else None

    def form(self, form: Affine) -> Interval | None:
        """The interval of an affine form, exact where its atoms are independent and exact."""
        bound = self.bound(form)
        if bound is None:
            return None
        lo, hi = _sums([(self._known(a), c) for a, c in form.terms], form.const)
        return Interval(lo, hi, bound)

    def bound(self, form: Affine) -> int | None:
        """A bound on the magnitude of a form and of every partial sum of it; None where it is unknown."""
        total = abs(form.const)
        for a, c in form.terms:
            x = self.atom(a)
            if x is None:
                return None
            total += abs(c) * x.bound
        return total if total < LIMIT else None

    def _known(self, e: Expr) -> Interval:
        x = self.atom(e)
        assert x is not None, "the bound of the form was known"
        return x

    def _load(self, e: Expr) -> Interval | None:
        table = self.tables.get(e.name)
        args = [self.form(affine(a)) for a in e.args]
        known = [a for a in args if a is not None]
        return table.query(known) if table is not None and len(known) == len(args) else None

    def _select(self, condition: Expr, a: Expr, b: Expr) -> Interval | None:
        yes, no = self.form(affine(a)), self.form(affine(b))
        if yes is None or no is None:
            return None
        may, may_not = self._either(condition)
        lo = np.where(may, np.where(may_not, np.minimum(yes.lo, no.lo), yes.lo), no.lo)
        hi = np.where(may, np.where(may_not, np.maximum(yes.hi, no.hi), yes.hi), no.hi)
        return Interval(lo, hi, max(yes.bound, no.bound))

    def _int(self, e: Expr) -> Interval | None:
        from einfuse.ir.expr import scalar_type

        kind = scalar_type(e, self.types)
        if kind == "bool" and e.op == "load":
            return self._load(e)
        if kind == "bool":
            may, may_not = self._either(e)
            return Interval((~may_not).astype(np.int64), may.astype(np.int64), 1)
        return self.form(affine(e)) if kind == "int" else None

    def _either(self, condition: Expr) -> tuple[Bools, Bools]:
        return possible(predicate(condition, self.types), self), possible(predicate(condition, self.types, True), self)

    def reaches_zero(self, form: Affine) -> Bools:
        """Where can ``form >= 0`` be true?"""
        if form not in self.signs:
            self.signs[form] = self._reaches_zero(form)
        return self.signs[form]

    def _reaches_zero(self, form: Affine) -> Bools:
        if self.bound(form) is None:
            return np.asarray(True)
        tops = [(x.hi if c > 0 else x.lo, c) for x, c in ((self._known(a), c) for a, c in form.terms)]
        total, *rest = _by_shape(tops, form.const)
        if not rest:
            return np.asarray(total >= 0)
        for x in rest[1:]:
            total = total + x
        return np.asarray(total >= -rest[0])  # one pass over the full box instead of two


def _by_shape(parts: Sequence[tuple[Ints, int]], const: int) -> list[Ints]:
    """The weighted arrays with those of one shape added up (so that no sum is larger than it must be), the constant in the first."""
    groups: dict[tuple[int, ...], Ints] = {}
    for x, c in parts:
        scaled = x if c == 1 else x * np.int64(c)
        groups[x.shape] = groups[x.shape] + scaled if x.shape in groups else scaled
    arrays = sorted(groups.values(), key=lambda x: x.size)
    return [arrays[0] + np.int64(const), *arrays[1:]] if arrays else [np.asarray(const, np.int64)]


def _sums(terms: Sequence[tuple[Interval, int]], const: int) -> tuple[Ints, Ints]:
    low, *more = _by_shape([(x.lo if c > 0 else x.hi, c) for x, c in terms], const)
    for x in more:
        low = low + x
    if all(x.exact for x, _ in terms):
        return low, low
    high, *more = _by_shape([(x.hi if c > 0 else x.lo, c) for x, c in terms], const)
    for x in more:
        high = high + x
    return low, high


def possible(p: Predicate, box: Box) -> Bools:
    """Where in the boxes may ``p`` hold at some point?"""
    if isinstance(p, Unknown):
        return np.asarray(True)
    if isinstance(p, All | Either):
        out = np.asarray(isinstance(p, All))
        for q in p.parts:
            out = out & possible(q, box) if isinstance(p, All) else out | possible(q, box)
        return out
    if isinstance(p, Ge):
        return box.reaches_zero(p.form)
    if divides(p.form):
        return box.reaches_zero(p.form) & box.reaches_zero(p.form.scaled(-1))
    return np.asarray(False)


def divides(form: Affine) -> bool:
    """Can ``form == 0`` have a solution in integers at all? Not if the coefficients' divisor does not divide the constant."""
    g = gcd(*(c for _, c in form.terms))
    return form.const % g == 0 if g else form.const == 0


def consequences(clause: Clause, most: int = 48) -> tuple[Affine, ...]:
    """Forms that are at least 0 wherever the clause holds: its own, and one Fourier-Motzkin step of each two.

    A step adds two forms so that an atom vanishes. Two further readings of a form join in: remainders opened, ``x % W`` as
    ``x - W * (x // W)``, so that they can meet quotients, and quotients relaxed, ``x // W <= x / W``, so that these meet coordinates.
    """
    own = _strongest(inequalities(clause))
    opened = tuple(dict.fromkeys((*own, *map(_opened, own), *map(_relaxed, own))))
    out = dict.fromkeys((*own, *map(_relaxed, own)))
    for n, p in enumerate(opened):
        for q in opened[:n]:
            for form in _eliminations(p, q):
                if len(out) < most:
                    out.setdefault(form)
    return _strongest(f for f in out if f.terms or f.const < 0)


def _strongest(forms: Iterable[Affine]) -> tuple[Affine, ...]:
    """Of forms that differ by a constant, the least."""
    least: dict[tuple[tuple[Expr, int], ...], int] = {}
    for f in forms:
        least[f.terms] = min(f.const, least.get(f.terms, f.const))
    return tuple(Affine(terms, const) for terms, const in least.items())


def _relaxed(form: Affine) -> Affine:
    """A form that is at least 0 wherever this one is, without quotients by constants: ``x - W + 1 <= W * (x // W) <= x``."""
    scale = lcm(*(_divisor(a) for a, _ in form.terms)) if form.terms else 1
    out = form.scaled(scale)
    for a, c in form.terms:
        w = _divisor(a)
        if a.op == "//" and w > 1:
            x = affine(a.args[0]) if c > 0 else affine(a.args[0]).shifted(1 - w)
            out = out - Affine(((a, c * scale),)) + x.scaled(c * scale // w)
    return _tightened(out)


def _divisor(e: Expr) -> int:
    """The constant divisor of a quotient, else 1."""
    w = e.args[1].value if e.op == "//" else 1
    return w if isinstance(w, int) and w > 0 else 1


def _eliminations(p: Affine, q: Affine) -> list[Affine]:
    weights = dict(q.terms)
    out: list[Affine] = []
    for a, c in p.terms:
        d = weights.get(a, 0)
        if c * d < 0:
            g = gcd(c, d)
            out.append(_tightened(p.scaled(abs(d) // g) + q.scaled(abs(c) // g)))
    return out


def _tightened(form: Affine) -> Affine:
    """``form >= 0`` divided by the common divisor of its coefficients, the constant rounded down."""
    g = gcd(*(c for _, c in form.terms))
    return Affine(tuple((a, c // g) for a, c in form.terms), form.const // g) if g > 1 else form


def _opened(form: Affine) -> Affine:
    out = form
    for a, c in form.terms:
        w = a.args[1].value if a.op == "%" else None
        if isinstance(w, int) and w > 0:
            quotient = Affine(((Expr("//", a.args), w),))
            out = Affine(tuple(t for t in out.terms if t[0] != a), out.const) + (affine(a.args[0]) - quotient).scaled(c)
    return out


# -- transfer functions ----------------------------------------------------------------------------------------------------------


def _corners(op: Callable[[Ints, Ints], Ints], a: Interval, b: Interval, bound: int) -> Interval | None:
    """Of an operation monotone in each operand: the extremes are at the corners."""
    if bound >= LIMIT:
        return None
    if a.exact and b.exact:
        value = op(a.lo, b.lo)
        return Interval(value, value, bound)
    values = [op(x, y) for x in ((a.lo,) if a.exact else (a.lo, a.hi)) for y in ((b.lo,) if b.exact else (b.lo, b.hi))]
    lo, hi = values[0], values[0]
    for v in values[1:]:
        lo, hi = np.minimum(lo, v), np.maximum(hi, v)
    return Interval(lo, hi, bound)


def _times(a: Interval, b: Interval) -> Interval | None:
    return _corners(np.multiply, a, b, a.bound * b.bound)


def _floor(a: Interval, w: Interval) -> Interval | None:
    return _corners(np.floor_divide, a, w, a.bound) if (w.lo > 0).all() else None


def _remainder(a: Interval, w: Interval) -> Interval | None:
    if not (w.lo > 0).all():
        return None
    if w.exact:
        same = a.lo // w.lo == a.hi // w.lo
        lo, hi = np.where(same, a.lo % w.lo, 0), np.where(same, a.hi % w.lo, w.lo - 1)
        return Interval(lo, lo if a.exact else hi, w.bound)
    return Interval(np.zeros_like(w.lo), np.where(a.lo >= 0, np.minimum(a.hi, w.hi - 1), w.hi - 1), w.bound)


def _absolute(a: Interval) -> Interval:
    low, high = np.abs(a.lo), np.abs(a.hi)
    if a.exact:
        return Interval(low, low, a.bound)
    return Interval(np.where((a.lo <= 0) & (a.hi >= 0), 0, np.minimum(low, high)), np.maximum(low, high), a.bound)


def _extreme(op: Callable[[Ints, Ints], Ints], a: Interval, b: Interval) -> Interval:
    lo = op(a.lo, b.lo)
    return Interval(lo, lo if a.exact and b.exact else op(a.hi, b.hi), max(a.bound, b.bound))


_TRANSFER: dict[str, Callable[..., Interval | None]] = {
    "*": _times,
    "//": _floor,
    "%": _remainder,
    "abs": _absolute,
    "min": lambda a, b: _extreme(np.minimum, a, b),
    "max": lambda a, b: _extreme(np.maximum, a, b),
}


# -- tables ----------------------------------------------------------------------------------------------------------------------


class Table:
    """A table of integers or truth values that can be asked for its least and greatest entry in boxes of indices.

    Along one axis by a sparse table: level ``n`` holds the extremes of ``2 ** n`` neighbours, made when first asked for. An index
    beyond the table counts as its nearest entry.
    """

    def __init__(self, low: npt.NDArray[Any], high: npt.NDArray[Any] | None = None) -> None:
        self.low, self.high = low, low if high is None else high
        self.bound = max(abs(int(self.low.min())), abs(int(self.high.max()))) if low.size else 0
        self.levels: dict[int, list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]] = {}
        self.reduced: dict[tuple[int, bytes, bytes], Table] = {}

    def query(self, index: Sequence[Interval]) -> Interval | None:
        """The extremes over a box of indices, one interval for each axis; None where the table is empty."""
        if not self.low.size or self.bound >= LIMIT:
            return None
        index = [self._inside(x, n) for x, n in zip(index, self.low.shape, strict=True)]
        wide = [n for n, x in enumerate(index) if not x.exact]
        if not wide:
            at = tuple(x.lo for x in index)
            low = np.asarray(self.low[at], np.int64)
            return Interval(low, low if self.low is self.high else np.asarray(self.high[at], np.int64), self.bound)
        if len(wide) == 1:
            return self._along(wide[0], index)
        for axis in reversed(wide):
            x = index[axis]
            long = [n for n, s in enumerate(np.broadcast_shapes(x.lo.shape, x.hi.shape)) if s > 1]
            if len(long) <= 1:  # it depends on one axis of the box: reduce the table along it for each position there
                place = np.arange(max(x.lo.size, x.hi.size)).reshape(np.broadcast_shapes(x.lo.shape, x.hi.shape))
                narrowed = [interval(place) if n == axis else y for n, y in enumerate(index)]
                return self._reduce(axis, x).query(narrowed)
        return interval(int(self.low.min()), int(self.high.max()))

    @staticmethod
    def _inside(x: Interval, n: int) -> Interval:
        lo = np.clip(x.lo, 0, n - 1)
        return Interval(lo, lo if x.exact else np.clip(x.hi, 0, n - 1), n)

    def _level(self, axis: int, n: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        levels = self.levels.setdefault(axis, [(self.low, self.high)])
        while len(levels) <= n:
            w = 1 << (len(levels) - 1)
            low, high = levels[-1]
            size = low.shape[axis]
            left, right = np.arange(size - w), np.arange(w, size)
            levels.append(
                (
                    np.minimum(low.take(left, axis), low.take(right, axis)),
                    np.maximum(high.take(left, axis), high.take(right, axis)),
                )
            )
        return levels[n]

    def _along(self, axis: int, index: Sequence[Interval]) -> Interval:
        """The extremes where only the index of ``axis`` is an interval."""
        first, last, *others = np.broadcast_arrays(index[axis].lo, index[axis].hi, *(x.lo for x in index))
        level = np.frexp(last - first + 1)[1] - 1
        lo, hi = np.empty(first.shape, np.int64), np.empty(first.shape, np.int64)
        for n in np.unique(level):
            here = level == n
            low, high = self._level(axis, int(n))
            at = [x[here] for x in others]
            left, right = list(at), list(at)
            left[axis], right[axis] = first[here], last[here] - (1 << int(n)) + 1
            lo[here] = np.minimum(low[tuple(left)], low[tuple(right)])
            hi[here] = np.maximum(high[tuple(left)], high[tuple(right)])
        return Interval(lo, hi, self.bound)

    def _reduce(self, axis: int, x: Interval) -> Table:
        """The table with ``axis`` replaced by the positions of an interval that varies along one axis of the box."""
        first, last = (a.reshape(-1) for a in np.broadcast_arrays(x.lo, x.hi))
        key = (axis, first.tobytes(), last.tobytes())
        if key not in self.reduced:
            parts = []
            for a, b in zip(first, last, strict=True):
                window = (slice(None),) * axis + (slice(int(a), int(b) + 1),)
                parts.append((self.low[window].min(axis), self.high[window].max(axis)))
            low, high = (np.stack([p[n] for p in parts], axis) for n in (0, 1))
            self.reduced[key] = Table(low, high)
        return self.reduced[key]
