"""What follows from a conjunction of comparisons: contradictions, and bounds that no single comparison shows."""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd, lcm

from einfuse.ir.affine import Affine, affine
from einfuse.ir.nodes import Expr
from einfuse.ir.predicates import Clause, Eq, inequalities


def solvable(clause: Clause) -> bool:
    """False where an equation of the clause has no solution: a divisor of its coefficients does not divide its constant."""
    forms = [x.form for x in clause if isinstance(x, Eq)]
    return all(f.const % (gcd(*(c for _, c in f.terms)) or 1) == 0 for f in forms)


def consequences(clause: Clause, most: int = 48) -> tuple[Affine, ...]:
    """Forms that are at least 0 wherever the clause holds: its own, and one Fourier-Motzkin step of each two.

    A step adds two forms so that an atom vanishes. Two further readings of a form join in: remainders opened, ``x % W`` as
    ``x - W * (x // W)``, so that they can meet quotients, and quotients relaxed, ``x // W <= x / W``, so that these can meet
    coordinates.
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
