"""The expressions of a reduction as sympy knows them, and the way back: `Atoms`.

sympy sees a map only with every statistic-free sub-expression replaced by one symbol. It and numpy are imported on first use.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from einfuse.ir import expr as ex
from einfuse.ir.functions import FUNCTIONS
from einfuse.ir.nodes import Expr

if TYPE_CHECKING:
    import numpy as np
    import sympy as sp
else:

    class _Lazy:
        """A package that takes long to import: only a derivation pays it, and what was derived is kept (`runtime.derived`)."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self._name), name)

    np, sp = _Lazy("numpy"), _Lazy("sympy")


class NotSeparable(Exception):  # noqa: N818  # control flow, never reaches a user
    """No correction of finite rank could be constructed: the dependence must be cut."""


def nonnegative(e: Expr, known: frozenset[str] = frozenset()) -> bool:
    """Is ``e`` provably >= 0, given that the statements ``known`` are? (Decides only where statistics are sampled.)"""

    if e.op == "const":
        return float(e.value) >= 0  # type: ignore[arg-type]
    if e.op == "load":
        return e.name in known
    if e.op not in FUNCTIONS:
        return e.op == "size"
    if e.op == "*" and e.args[0] == e.args[1]:
        return True
    if e.op == "^" and isinstance(e.args[1].value, int) and e.args[1].value % 2 == 0:
        return True
    f = FUNCTIONS[e.op]
    return f.result != "bool" and f.nonnegative([nonnegative(a, known) for a in f.values(e.args)])


def prime(symbol: Any) -> Any:
    """The symbol of a statistic after the merge."""
    return sp.Symbol(f"{symbol.name}'", real=True, nonnegative=symbol.is_nonnegative)


@functools.cache
def _table() -> dict[str, Callable[..., Any]]:
    """What sympy has for our functions."""
    sympy = importlib.import_module("sympy")
    return {name: f.of(sympy) for name, f in FUNCTIONS.items() if f.sympy is not None}


@functools.cache
def _inverse() -> dict[Any, str]:
    """Our functions by sympy's, where one is one of these."""
    return {getattr(sp, f.sympy): n for n, f in FUNCTIONS.items() if isinstance(f.sympy, str) and f.result != "bool"}


@dataclass(slots=True)
class Atoms:
    """The symbols that stand for statistics and for maximal statistic-free sub-expressions, and the way back.

    ``moving`` are the statistics that were read outside of every `stop`. On the way back all others are read inside of one: a correction has
    the gradients of what it corrects.
    """

    statistics: Mapping[Expr, str]
    positive: frozenset[str] = frozenset()  # statements that are known to be 0 or more
    symbols: dict[Expr, sp.Symbol] = field(default_factory=dict)
    moving: set[Expr] = field(default_factory=set)

    def symbol(self, e: Expr) -> sp.Symbol:
        if e not in self.symbols:
            name = self.statistics.get(e, f"x{len(self.symbols)}")
            sign = (
                {"positive": True}
                if e.op == "const" and nonnegative(e)
                else {"nonnegative": True}
                if nonnegative(e, self.positive)
                else {}
            )
            self.symbols[e] = sp.Symbol(name, real=True, **sign)
        return self.symbols[e]

    def to_sympy(self, e: Expr) -> Any:
        """``e`` over symbols. A statistic-free part is one symbol, except that an exponential shows its argument, so that
        ``exp(s) * exp(-m)`` and ``exp(s - m)`` look alike. Raises KeyError for a function sympy is not told of."""
        self.moving |= {x for x in _outside_of_stops(e) if x in self.statistics}
        return self._to_sympy(e)

    def _to_sympy(self, e: Expr) -> Any:
        if e in self.statistics:
            return self.symbol(e)
        if e.op == "const":
            if isinstance(e.value, float) and e.value and not 1e-3 < abs(e.value) < 1e6:
                return self.symbol(e)  # an epsilon, or a stand-in for infinity: its digits would only burden the algebra
            return sp.Rational(str(e.value)) if not isinstance(e.value, bool) else sp.true if e.value else sp.false
        if e.op not in ex.LEAVES and any(x in self.statistics for x in ex.walk(e)):
            if e.op == "select" and not any(x in self.statistics for x in ex.walk(e.args[0])):
                return self._chosen(*e.args)
            truth = e.op in ("and", "or", "not")
            return _table()[e.op](*map(self._truth if truth else self._to_sympy, e.args))
        return sp.exp(self._to_sympy(e.args[0])) if e.op == "exp" else self.symbol(e)

    def _chosen(self, condition: Expr, a: Expr, b: Expr) -> Any:
        """A choice by a condition without statistics: a factor 1 or 0, where one of the sides is 0."""
        zero, one = ex.const(0.0), ex.ONE
        for value, other, factor in ((a, b, (one, zero)), (b, a, (zero, one))):
            if other.op == "const" and other.value == 0:
                return self.symbol(ex.call("select", condition, *factor)) * self._to_sympy(value)
        raise KeyError("a choice by a condition without statistics: one symbol would have to be number and truth value")

    def _truth(self, e: Expr) -> Any:
        """A part of a condition: without statistics a truth value of its own, which samples draw to either side."""
        if any(x in self.statistics for x in ex.walk(e)) or e.op == "const":
            return self._to_sympy(e)
        return sp.Gt(self.symbol(ex.call("select", e, ex.ONE, ex.const(0.0))), sp.Rational(1, 2))

    def to_expr(self, z: Any, primes: Mapping[Any, Expr] | None = None) -> Expr:
        """Back to the IR; ``primes`` maps the symbols of re-based statistics."""
        read = {s: e for e, s in self.symbols.items()}
        still = {s for s, e in read.items() if e in self.statistics and e not in self.moving}
        still |= {prime(s) for s in still}
        back = {s: ex.call("stop", e) if s in still else e for s, e in (read | dict(primes or {})).items()}
        return _to_expr(z, back)


def _outside_of_stops(e: Expr) -> Iterator[Expr]:
    """All parts of an expression that move its gradients."""
    yield e
    if e.op != "stop":
        for x in e.args:
            yield from _outside_of_stops(x)


def _to_expr(z: Any, back: Mapping[Any, Expr]) -> Expr:
    if z in back:
        return back[z]
    if z.is_Number:
        return ex.const(int(z) if z.is_Integer else float(z))
    if z.is_Add:
        terms = sorted(z.args, key=lambda a: a.could_extract_minus_sign())
        out = _to_expr(terms[0], back)
        for a in terms[1:]:
            minus = a.could_extract_minus_sign()
            out = ex.call("-" if minus else "+", out, _to_expr(-a if minus else a, back))
        return out
    if z.is_Mul:
        sign, rest = (-1, -z) if z.could_extract_minus_sign() else (1, z)
        if sign < 0:
            return ex.call("neg", _to_expr(rest, back))
        ratio = _ratio(z)
        if ratio is not None:
            power, rest = ratio
            return ex.call("*", _to_expr(rest, back), power(back)) if rest != 1 else power(back)
        under = [1 / a for a in z.args if a.is_Pow and a.exp.is_negative]
        over = [a for a in z.args if not (a.is_Pow and a.exp.is_negative)]
        out = _product([_to_expr(a, back) for a in over])
        return ex.call("/", out, ex.product(*(_to_expr(a, back) for a in under))) if under else out
    if z.is_Pow:
        if z.exp.is_negative:
            return ex.call("/", ex.ONE, _to_expr(1 / z, back))
        return _power(_to_expr(z.base, back), z.exp, back)
    name = _inverse().get(z.func)
    if name is None:
        raise NotSeparable(f"no IR for {z.func}")
    args = [_to_expr(a, back) for a in z.args]
    return functools.reduce(functools.partial(ex.call, name), args) if len(args) > 1 else ex.call(name, *args)


def _product(factors: list[Expr]) -> Expr:
    """A product in which a factor 1 or 0 chooses what is computed beside it: that may not be finite where it is not wanted."""
    choices = [f for f in factors if f.op == "select" and f.args[1:] in ((ex.ONE, ex.const(0.0)), (ex.const(0.0), ex.ONE))]
    rest = [f for f in factors if f not in choices]
    computed = [f for f in rest if f.op != "load"] or rest
    if not choices or not computed:
        return ex.product(*factors)
    out = ex.product(*computed)
    for c in choices:
        out = ex.call("select", c.args[0], *((out, ex.const(0.0)) if c.args[1] == ex.ONE else (ex.const(0.0), out)))
    return ex.product(out, *(f for f in rest if f not in computed))


def _ratio(z: Any) -> tuple[Callable[[Mapping[Any, Expr]], Expr], Any] | None:
    """A product with a^p b^-p in it as (a / b)^p and the rest: the powers alone may leave the range of a float."""
    powers = [a for a in z.args if a.is_Pow and a.exp not in (1, -1)]
    for a in powers:
        for b in powers:
            if b.exp == -a.exp and not a.exp.could_extract_minus_sign():

                def power(back: Mapping[Any, Expr], a: Any = a, b: Any = b) -> Expr:
                    return _power(ex.call("/", _to_expr(a.base, back), _to_expr(b.base, back)), a.exp, back)

                rest = [f for f in z.args if f is not a and f is not b]  # (a quotient might put powers together to others)
                return power, sp.Mul(*rest)
    return None


def _power(base: Expr, exponent: Any, back: Mapping[Any, Expr]) -> Expr:
    if exponent == sp.Rational(1, 2):
        return ex.call("sqrt", base)
    if exponent.is_Integer and 0 < exponent <= 8:
        return functools.reduce(functools.partial(ex.call, "*"), [base] * int(exponent))
    return ex.call("^", base, _to_expr(exponent, back))
