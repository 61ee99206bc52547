"""Where along the other ranks a mask holds for any coordinate of one rank: its shadow, without that rank.

    j <= i + n and i - j < 64      over 0 <= i < I      ->      j < I + n  and  j + 64 > 0

Lower and upper bounds of the rank are added in pairs so that it vanishes (Fourier and Motzkin). Over the integers that is exact where
its coefficients are 1 and -1: of intervals that meet pairwise, all meet. Where the mask reads the rank through one quotient ``i // W``
only, that takes its place.
"""

from __future__ import annotations

import functools

from einfuse.ir import expr as ex
from einfuse.ir.affine import Affine, affine, atom, floor_divide, number
from einfuse.ir.bounds import Known
from einfuse.ir.nodes import Cascade, Expr
from einfuse.ir.predicates import Unknown, clauses, inequalities, predicate

MOST = 4
"""Conjunctions of a mask that are projected; one of more has too long a shadow."""


def projection(cascade: Cascade, mask: Expr, rank: str) -> Expr | None:
    """The condition that ``mask`` holds for some coordinate of ``rank``, which has one; without what holds at all coordinates.

    None where it has no exact form, as of tables that are read at the rank.
    """
    types = {t.name: t.dtype for t in cascade.inputs}
    size = ex.size(cascade.rank(rank).size)
    parts = ex.conjuncts(mask)
    free = [e for e in parts if rank not in ex.indices(e)]
    bound = ex.conjunction(*(e for e in parts if e not in free))
    if bound is None:
        return mask
    found = clauses(predicate(bound, lambda n: types.get(n, "float")), MOST)
    if found is None or any(isinstance(x, Unknown) for clause in found for x in clause):
        return None
    shadows: list[Expr] = []
    for clause in found:
        forms = _eliminated(inequalities(clause), rank, size)
        if forms is None:
            return None
        shadows.append(ex.conjunction(*(ex.call(">=", f.expr, ex.ZERO) for f in _strongest(cascade, forms))) or ex.TRUE)
    union = functools.reduce(lambda a, b: ex.call("or", a, b), shadows, ex.FALSE)
    return ex.conjunction(*free, union) or ex.TRUE


def diagonal(mask: Expr, rank: str, other: str) -> Expr | None:
    """The condition on ``other`` that ``mask`` holds where ``rank`` is at the same coordinate, if it is free of tables that tie the two.

    In a window or a document every token sees itself. None where it need not.
    """

    def moved(e: Expr) -> Expr | None:
        return ex.index(other) if e == ex.index(rank) else None

    kept = []
    for e in ex.conjuncts(mask):
        at = ex.substitute(e, moved)
        reflexive = at.op in ("==", "<=", ">=") and at.args[0] == at.args[1]
        if rank not in ex.indices(e):
            kept.append(e)
        elif not reflexive and at != ex.TRUE:
            return None
    return ex.conjunction(*kept) or ex.TRUE


def _eliminated(forms: tuple[Affine, ...], rank: str, size: Expr) -> list[Affine] | None:
    """Forms without the rank, all at least 0 just where the given ones are for some coordinate of it; None where there are none such."""
    through = {a for f in forms for a, _ in f.terms if rank in ex.indices(a)}
    if not through:
        return list(forms)
    (it, *others) = through
    most = _largest(it, rank, size)
    if others or most is None:
        return None
    free: list[Affine] = []
    lower, upper = [atom(it)], [most - atom(it)]
    for form in forms:
        weight = dict(form.terms).get(it, 0)
        if weight not in (-1, 0, 1):
            return None
        (free if weight == 0 else lower if weight == 1 else upper).append(form)
    pairs = [a + b for a in lower for b in upper][1:]  # the first says that the range is not empty
    return [f for f in dict.fromkeys((*free, *pairs)) if f.terms or f.const < 0]


def _largest(e: Expr, rank: str, size: Expr) -> Affine | None:
    """The largest value of the rank, or of a quotient of it, where ``e`` is one; each from 0 on occurs."""
    last = affine(size).shifted(-1)
    if e == ex.index(rank):
        return last
    divisor = e.args[1] if e.op == "//" and e.args[0] == ex.index(rank) else None
    known = divisor is not None and isinstance(divisor.value, int) and divisor.value > 0
    return floor_divide(last, number(int(divisor.value))) if divisor is not None and known else None  # type: ignore[arg-type]


def _strongest(cascade: Cascade, forms: list[Affine]) -> list[Affine]:
    """The forms of which the others follow."""
    kept: list[Affine] = []
    for f in forms:
        if not _everywhere(cascade, f) and not any(_everywhere(cascade, f - g) for g in kept):
            kept = [g for g in kept if not _everywhere(cascade, g - f)] + [f]
    return kept


def _everywhere(cascade: Cascade, form: Affine) -> bool:
    """Whether the form is provably at least 0 at all coordinates of all ranks."""
    least = number(form.const)
    for a, c in form.terms:
        highest = affine(ex.size(cascade.rank(a.name).size)).shifted(-1) if a.op == "index" and c < 0 else atom(a)
        least += highest.scaled(c)
    return Known().at_least_zero(least)
