"""Masks as predicates in negation normal form over affine literals, and as unions of few conjunctions.

    predicate := Ge(form) | Eq(form) | Unknown | All(parts) | Any(parts)

``Ge`` is ``form >= 0``, ``Eq`` is ``form == 0`` over the integers. Whatever is not a comparison of integers (floats, reads of
statements, unknown functions) is `Unknown`: it may be true and may be false. Comparisons of ``abs``, ``min``, ``max``, ``select`` and
``int(condition)`` are split into cases: ``abs(x) <= c`` becomes ``x <= c and -x <= c``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from einfuse.ir import expr as ex
from einfuse.ir.affine import Affine, affine
from einfuse.ir.nodes import DType, Expr

CLAUSES = 32
"""The most conjunctions a predicate is opened into."""
_SPLITS = 6
"""The most cases of abs, min, max and select that one comparison is split into, in depth."""


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
    if e.op == "const":
        return All() if bool(e.value) != negate else Any()
    if e.op == "not":
        return predicate(e.args[0], types, not negate)
    if e.op in ("and", "or"):
        parts = tuple(predicate(a, types, negate) for a in e.args)
        return _all(parts) if (e.op == "and") != negate else _any(parts)
    if e.op == "select":
        return _choice(*(e.args), types, negate)
    if e.op in _COMPARE:
        return _comparison(e, types, negate)
    if e.op == "load" and types(e.name) == "bool":
        form = affine(e)  # a table of truth values is one of 0 and 1
        return Ge(form.scaled(-1)) if negate else Ge(form.shifted(-1))
    return Unknown()


def _choice(c: Expr, a: Expr, b: Expr, types: Types, negate: bool) -> Predicate:
    yes, no = predicate(c, types), predicate(c, types, True)
    return _any((_all((yes, predicate(a, types, negate))), _all((no, predicate(b, types, negate)))))


_COMPARE = ("<", "<=", ">", ">=", "==", "!=")


def _comparison(e: Expr, types: Types, negate: bool) -> Predicate:
    a, b = e.args
    kinds = {ex.scalar_type(x, types) for x in e.args}
    if kinds == {"bool"} and e.op in ("==", "!="):
        return _choice(a, b, ex.call("not", b), types, negate != (e.op == "!="))
    if kinds != {"int"}:
        return Unknown()
    form = affine(a) - affine(b)
    if e.op in ("==", "!="):
        return _equal(form, types, negate != (e.op == "!="))
    if e.op in ("<", "<="):
        form = form.scaled(-1)
    if e.op in ("<", ">"):
        form = form.shifted(-1)
    return _at_least(form.scaled(-1).shifted(-1) if negate else form, types)


def _equal(form: Affine, types: Types, negate: bool) -> Predicate:
    other = form.scaled(-1)
    if negate:
        return _any((_at_least(form.shifted(-1), types), _at_least(other.shifted(-1), types)))
    if _splittable(form) is not None:
        return _all((_at_least(form, types), _at_least(other, types)))
    return _constant(form.const == 0) if not form.terms else Eq(form)


def _at_least(form: Affine, types: Types, depth: int = 0) -> Predicate:
    """``form >= 0``, cases split."""
    if not form.terms:
        return _constant(form.const >= 0)
    found = _splittable(form) if depth < _SPLITS else None
    if found is None:
        return Ge(form)
    atom, c = found
    rest = Affine(tuple(t for t in form.terms if t[0] != atom), form.const)

    def case(value: Affine) -> Predicate:
        return _at_least(rest + value.scaled(c), types, depth + 1)

    if atom.op in ("select", "int"):
        yes, no = map(affine, atom.args[1:] if atom.op == "select" else (ex.ONE, ex.ZERO))
        condition = atom.args[0]
        if atom.op == "int" and ex.scalar_type(condition, types) != "bool":
            return case(affine(condition)) if ex.scalar_type(condition, types) == "int" else Unknown()
        return _any((_all((predicate(condition, types), case(yes))), _all((predicate(condition, types, True), case(no)))))
    values = [affine(a) for a in atom.args]
    if atom.op == "abs":
        values.append(values[0].scaled(-1))
    cases = tuple(case(v) for v in values)
    return _any(cases) if (c > 0) != (atom.op == "min") else _all(cases)


def _splittable(form: Affine) -> tuple[Expr, int] | None:
    return next((t for t in form.terms if t[0].op in ("abs", "min", "max", "select", "int")), None)


def _constant(value: bool) -> Predicate:
    return All() if value else Any()


def _all(parts: tuple[Predicate, ...]) -> Predicate:
    flat = tuple(dict.fromkeys(q for p in parts for q in (p.parts if isinstance(p, All) else (p,))))
    return Any() if Any() in flat else flat[0] if len(flat) == 1 else All(flat)


def _any(parts: tuple[Predicate, ...]) -> Predicate:
    flat = tuple(dict.fromkeys(q for p in parts for q in (p.parts if isinstance(p, Any) else (p,))))
    return All() if All() in flat else flat[0] if len(flat) == 1 else Any(flat)


def clauses(p: Predicate, limit: int = CLAUSES) -> tuple[Clause, ...] | None:
    """The conjunctions whose union is ``p``, without contradictions and without those another one contains; None beyond ``limit``."""
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
