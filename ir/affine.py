"""The affine normal form of integer expressions: ``const + sum of coefficient * atom``, every atom once.

An atom is an `Expr` that is not affine itself (a coordinate, a size, a read, ``x // W``, ``abs(x)`` ...), with its own operands
in normal form, so that equal atoms compare equal: ``i - j`` meets ``-j + i``, and ``(i + 64) // 64`` is ``1 + i // 64``.
Because every atom occurs once, the interval of an affine form on a box is exact where its atoms are independent.

The caller guarantees integers (`ir.expr.scalar_type`); numbers are Python's, of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Expr


@dataclass(frozen=True, slots=True)
class Affine:
    """``const + sum(coefficient * atom)``; terms are sorted, no coefficient is 0."""

    terms: tuple[tuple[Expr, int], ...] = ()
    const: int = 0
    _hash: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.terms, self.const)))

    def __hash__(self) -> int:
        return self._hash  # forms are keys of every table of an analysis, and expressions are deep

    def __add__(self, other: Affine) -> Affine:
        return _normal((*self.terms, *other.terms), self.const + other.const)

    def __sub__(self, other: Affine) -> Affine:
        return self + other.scaled(-1)

    def scaled(self, k: int) -> Affine:
        return Affine(tuple((a, c * k) for a, c in self.terms), self.const * k) if k else Affine()

    def shifted(self, k: int) -> Affine:
        return Affine(self.terms, self.const + k)

    @property
    def expr(self) -> Expr:
        """Back to an expression: positive terms first, then negative ones, then the constant."""
        out: Expr = ex.ZERO
        for atom, c in sorted(self.terms, key=lambda t: t[1] < 0):
            scaled = ex.call("*", ex.const(abs(c)), atom)
            out = ex.call("+" if c > 0 else "-", out, scaled)
        return ex.call("+" if self.const >= 0 else "-", out, ex.const(abs(self.const)))


def _normal(terms: Iterable[tuple[Expr, int]], const: int) -> Affine:
    total: dict[Expr, int] = {}
    for atom, c in terms:
        total[atom] = total.get(atom, 0) + c
    total = {a: c for a, c in total.items() if c}
    for atom, c in list(total.items()):
        if atom.op == "%" and _modulus(atom):  # W * (x // W) + x % W is x
            x, w = atom.args
            quotient = Expr("//", (x, w))
            if total.get(atom) == c and total.get(quotient) == c * _modulus(atom):
                del total[atom], total[quotient]
                whole = affine(x).scaled(c)
                return _normal((*total.items(), *whole.terms), const + whole.const)
    return Affine(tuple(sorted(total.items(), key=lambda t: repr(t[0])) if len(total) > 1 else total.items()), const)


def _modulus(e: Expr) -> int:
    """The constant divisor of ``x // W`` or ``x % W``; 0 where it is not a positive constant."""
    w = e.args[1]
    return w.value if w.op == "const" and isinstance(w.value, int) and w.value > 0 else 0


def number(k: int) -> Affine:
    return Affine((), k)


def atom(e: Expr) -> Affine:
    return Affine(((e, 1),))


def affine(e: Expr) -> Affine:
    """The normal form of an integer expression."""
    if e.op == "const" and isinstance(e.value, int):
        return Affine((), int(e.value))
    if e.op in ("index", "size"):
        return atom(Expr(e.op, (), e.value))
    if e.op == "load":
        return atom(Expr("load", tuple(simplified(a) for a in e.args), e.value))
    if e.op == "int":
        return _truncated(e.args[0])
    rule = _RULES.get(e.op)
    return rule(*map(affine, e.args)) if rule is not None else atom(e)


def simplified(e: Expr) -> Expr:
    """An integer expression in normal form."""
    return affine(e).expr


def _truncated(e: Expr) -> Affine:
    """``int(e)``; of a truth value it is 0 or 1."""
    inner = simplified(e) if e.op == "load" else e
    whole = ex.call("int", inner)
    return number(int(whole.value)) if whole.op == "const" else atom(whole)  # type: ignore[arg-type]  # a number


def _product(a: Affine, b: Affine) -> Affine:
    if not a.terms or not b.terms:
        return a.scaled(b.const) if not b.terms else b.scaled(a.const)
    (a, k), (b, m) = _unscaled(a), _unscaled(b)
    return atom(Expr("*", tuple(sorted((a.expr, b.expr), key=repr)))).scaled(k * m)


def _unscaled(a: Affine) -> tuple[Affine, int]:
    """A lone term without its coefficient, and the coefficient."""
    if len(a.terms) > 1 or a.const:
        return a, 1
    ((x, k),) = a.terms
    return atom(x), k


def floor_divide(a: Affine, b: Affine) -> Affine:
    """``a // b``: whole multiples of a constant divisor leave the quotient."""
    if b.terms or b.const <= 0:
        return atom(Expr("//", (a.expr, b.expr)))
    w = b.const
    whole, rest = _divided(a, w)
    if not rest.terms:  # its constant is less than the divisor
        return whole
    return whole + atom(Expr("//", (rest.expr, b.expr)))


def _divided(a: Affine, w: int) -> tuple[Affine, Affine]:
    """``a = w * whole + rest`` with every whole multiple of ``w`` in ``whole`` (and 0 <= the constant of rest < w)."""
    whole = Affine(tuple((x, c // w) for x, c in a.terms if c % w == 0), a.const // w)
    rest = Affine(tuple((x, c) for x, c in a.terms if c % w), a.const % w)
    return whole, rest


def _remainder(a: Affine, b: Affine) -> Affine:
    if b.terms or b.const <= 0:
        return atom(Expr("%", (a.expr, b.expr)))
    _, rest = _divided(a, b.const)
    return atom(Expr("%", (rest.expr, b.expr))) if rest.terms else rest


def _absolute(a: Affine) -> Affine:
    return number(abs(a.const)) if not a.terms else atom(Expr("abs", (a.expr,)))


def _extreme(op: str, a: Affine, b: Affine) -> Affine:
    difference = a - b
    if not difference.terms:
        return a if (difference.const >= 0) == (op == "max") else b
    return atom(Expr(op, tuple(sorted((a.expr, b.expr), key=repr))))


_RULES: dict[str, Callable[..., Affine]] = {
    "+": Affine.__add__,
    "-": Affine.__sub__,
    "neg": lambda a: a.scaled(-1),
    "*": _product,
    "//": floor_divide,
    "%": _remainder,
    "abs": _absolute,
    "max": lambda a, b: _extreme("max", a, b),
    "min": lambda a, b: _extreme("min", a, b),
}
