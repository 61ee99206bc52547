"""Masks as predicates in negation normal form over affine literals, and as unions of few conjunctions.

    predicate := Ge(form) | Eq(form) | Unknown | All(parts) | Any(parts)

``Ge`` is ``form >= 0``, ``Eq`` is ``form == 0`` over the integers. Whatever is not a comparison of integers (floats, reads of
statements, unknown functions) is `Unknown`: it may be true and may be false. Comparisons of ``abs``, ``min``, ``max``,
``select`` and ``int(condition)`` are split into cases: ``abs(x) <= c`` becomes ``x <= c and -x <= c``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from einfuse.ir import expr as ex
from einfuse.ir.affine import Affine, affine
from einfuse.ir.nodes import DType, Expr

CLAUSES = 32
"""The most conjunctions a predicate is opened into."""
LITERALS = 512
"""The most comparisons a predicate is written with."""


@dataclass(frozen=True, slots=True)
class Ge:
    """``form >= 0``."""

    form: Affine


@dataclass(frozen=True, slots=True)
class Eq:
    """``form == 0``."""

    form: Affine


@dataclass(frozen=True, slots=True)
class Unknown:
    """A condition that the analysis cannot see into."""


@dataclass(frozen=True, slots=True)
class All:
    """The conjunction; of nothing, it is true."""

    parts: tuple[Predicate, ...] = ()


@dataclass(frozen=True, slots=True)
class Any:
    """The disjunction; of nothing, it is false."""

    parts: tuple[Predicate, ...] = ()


Literal = Ge | Eq | Unknown
Predicate = Ge | Eq | Unknown | All | Any
Clause = tuple[Literal, ...]
Types = Callable[[str], DType]


def predicate(e: Expr, types: Types, negate: bool = False) -> Predicate:
    """``e`` (or its negation) in normal form; ``types`` gives the type of what is read, "float" for what cannot be analysed."""
    return _Builder(types).build(e, negate)


class _Builder:
    """Builds normal forms; what comes after `LITERALS` of them is not looked into, so that the work is bounded."""

    def __init__(self, types: Types) -> None:
        self.types, self.left = types, LITERALS

    def build(self, e: Expr, negate: bool = False) -> Predicate:
        self.left -= 1
        if self.left < 0:
            return Unknown()
        if e.op == "const":
            return _constant(bool(e.value) != negate)
        if e.op == "not":
            return self.build(e.args[0], not negate)
        if e.op in ("and", "or"):
            parts = tuple(self.build(a, negate) for a in e.args)
            return _all(parts) if (e.op == "and") != negate else _any(parts)
        if e.op == "select":
            return self.choice(e.args[0], e.args[1], e.args[2], negate)
        if e.op in _COMPARISONS:
            return self.comparison(e, negate)
        if e.op == "load" and self.types(e.name) == "bool":
            form = affine(ex.call("int", e))
            return Ge(form.scaled(-1)) if negate else Ge(form.shifted(-1))
        return Unknown()

    def choice(self, c: Expr, a: Expr, b: Expr, negate: bool) -> Predicate:
        yes = _all((self.build(c), self.build(a, negate)))
        return _any((yes, _all((self.build(c, True), self.build(b, negate)))))

    def comparison(self, e: Expr, negate: bool) -> Predicate:
        a, b = e.args
        kinds = {ex.scalar_type(x, self.types) for x in e.args}
        if kinds == {"bool"} and e.op in ("==", "!="):
            return self.choice(a, b, ex.call("not", b), negate != (e.op == "!="))
        if kinds != {"int"}:
            return Unknown()
        form = affine(a) - affine(b)
        if e.op in ("==", "!="):
            return self.equal(form, negate != (e.op == "!="))
        if e.op in ("<", "<="):
            form = form.scaled(-1)
        if e.op in ("<", ">"):
            form = form.shifted(-1)
        return self.at_least(form.scaled(-1).shifted(-1) if negate else form)

    def equal(self, form: Affine, negate: bool) -> Predicate:
        other = form.scaled(-1)
        if negate:
            return _any((self.at_least(form.shifted(-1)), self.at_least(other.shifted(-1))))
        if self.splittable(form) is not None:
            return _all((self.at_least(form), self.at_least(other)))
        return Eq(form) if form.terms else _constant(form.const == 0)

    def at_least(self, form: Affine) -> Predicate:
        """``form >= 0``, its cases split while there is room."""
        self.left -= 1
        found = self.splittable(form) if self.left > 0 else None
        if found is None:
            return Ge(form) if form.terms else _constant(form.const >= 0)
        atom, c = found
        rest = Affine(tuple(t for t in form.terms if t[0] != atom), form.const)

        def case(value: Affine) -> Predicate:
            return self.at_least(rest + value.scaled(c))

        if atom.op in ("select", "int"):
            yes, no = map(affine, atom.args[1:] if atom.op == "select" else (ex.ONE, ex.ZERO))
            condition = atom.args[0]
            return _any((_all((self.build(condition), case(yes))), _all((self.build(condition, True), case(no)))))
        values = [affine(a) for a in atom.args]
        if atom.op == "abs":
            values.append(values[0].scaled(-1))
        cases = tuple(map(case, values))
        return _any(cases) if (c > 0) != (atom.op == "min") else _all(cases)

    def splittable(self, form: Affine) -> tuple[Expr, int] | None:
        """A term that stands for several cases."""
        return next((t for t in form.terms if t[0].op in _CASES or self.truth(t[0])), None)

    def truth(self, atom: Expr) -> bool:
        return atom.op == "int" and ex.scalar_type(atom.args[0], self.types) == "bool"


_CASES = ("abs", "min", "max", "select")
_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")


def _constant(value: bool) -> Predicate:
    return All() if value else Any()


def _all(parts: tuple[Predicate, ...]) -> Predicate:
    flat = tuple(dict.fromkeys(q for p in parts for q in (p.parts if isinstance(p, All) else (p,))))
    return Any() if Any() in flat else flat[0] if len(flat) == 1 else All(flat)


def _any(parts: tuple[Predicate, ...]) -> Predicate:
    flat = tuple(dict.fromkeys(q for p in parts for q in (p.parts if isinstance(p, Any) else (p,))))
    return All() if All() in flat else flat[0] if len(flat) == 1 else Any(flat)


def clauses(p: Predicate, limit: int = CLAUSES) -> tuple[Clause, ...] | None:
    """The conjunctions whose union is ``p``, less the contradictions and those inside another; None beyond ``limit``."""
    found = _clauses(p, limit)
    if found is None:
        return None
    alive = [c for c in found if not _contradicts(c)]
    sets = [frozenset(c) for c in alive]
    return tuple(c for n, c in enumerate(alive) if not any(s < sets[n] or (s == sets[n] and m < n) for m, s in enumerate(sets)))


def _clauses(p: Predicate, limit: int) -> list[Clause] | None:
    if isinstance(p, Any):
        out: list[Clause] = []
        for q in p.parts:
            more = _clauses(q, limit)
            if more is None:
                return None
            out += more
            if len(out) > limit:
                return None
        return out
    if isinstance(p, All):
        product: list[Clause] = [()]
        for q in p.parts:
            more = _clauses(q, limit)
            if more is None or len(more) * len(product) > limit:
                return None
            product = [tuple(dict.fromkeys((*a, *b))) for a in product for b in more]
        return product
    return [(p,)]


def inequalities(clause: Clause) -> tuple[Affine, ...]:
    """The forms that are at least 0 wherever the clause holds."""
    out: list[Affine] = []
    for x in clause:
        if isinstance(x, Ge):
            out.append(x.form)
        elif isinstance(x, Eq):
            out += [x.form, x.form.scaled(-1)]
    return tuple(dict.fromkeys(out))


def _contradicts(clause: Clause) -> bool:
    """Do two of its inequalities add up to a negative number, whatever the coordinates?"""
    forms = inequalities(clause)
    sums = (a + b for n, a in enumerate(forms) for b in forms[: n + 1])
    return any(not s.terms and s.const < 0 for s in sums)
