"""Boxes of coordinates: the interval of an expression in a box, and whether a predicate can be true anywhere in it.

All answers are sound: the interval of an expression holds each of its values in the box, and ``possible`` is false only where
no point of the box satisfies the predicate. That every point satisfies ``p`` is the impossibility of its negation, so the
"must" of the three-valued logic takes no rules of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from einfuse.ir import expr as ex
from einfuse.ir.affine import Affine, affine
from einfuse.ir.implications import solvable
from einfuse.ir.intervals import LIMIT, TRANSFER, Interval, by_shape, square, weighted_sum
from einfuse.ir.nodes import DType, Expr
from einfuse.ir.predicates import All, Any, Ge, Predicate, Unknown, predicate
from einfuse.ir.tables import Table

Bools = npt.NDArray[np.bool_]


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
        if e.op == "*" and e.args[0] == e.args[1]:
            side = self.form(affine(e.args[0]))
            out = None if side is None else square(side)
            return out if out is None or out.bound < LIMIT else None
        rule = TRANSFER.get(e.op)
        args = [self.form(affine(a)) for a in e.args] if rule else []
        known = [a for a in args if a is not None]
        out = rule(*known) if rule and len(known) == len(args) else None
        return out if out is None or out.bound < LIMIT else None

    def form(self, form: Affine) -> Interval | None:
        """The interval of an affine form, exact where its atoms are independent and exact."""
        found = self._terms(form)
        if found is None:
            return None
        terms, bound = found
        return Interval(*weighted_sum(terms, form.const), bound)

    def _terms(self, form: Affine) -> tuple[list[tuple[Interval, int]], int] | None:
        """The weighted intervals of a form, and a bound on the magnitude of all its partial sums; None where it is unknown."""
        terms: list[tuple[Interval, int]] = []
        total = abs(form.const)
        for a, c in form.terms:
            x = self.atom(a)
            if x is None:
                return None
            terms.append((x, c))
            total += abs(c) * x.bound
        return (terms, total) if total < LIMIT else None

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
        kind = ex.scalar_type(e, self.types)
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
        found = self._terms(form)
        if found is None:
            return np.asarray(True)
        total, *rest = by_shape([(x.hi if c > 0 else x.lo, c) for x, c in found[0]], form.const)
        if not rest:
            return np.asarray(total >= 0)
        for x in rest[1:]:
            total = total + x
        return np.asarray(total >= -rest[0])  # one pass over the full box instead of two


def possible(p: Predicate, box: Box) -> Bools:
    """Where in the boxes may ``p`` hold at some point?"""
    if isinstance(p, Unknown):
        return np.asarray(True)
    if isinstance(p, All | Any):
        out = np.asarray(isinstance(p, All))
        for q in p.parts:
            out = out & possible(q, box) if isinstance(p, All) else out | possible(q, box)
        return out
    if isinstance(p, Ge):
        return box.reaches_zero(p.form)
    return box.reaches_zero(p.form) & box.reaches_zero(p.form.scaled(-1)) if solvable((p,)) else np.asarray(False)
