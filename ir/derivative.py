"""Derivatives of scalar expressions, by the rules of its own functions (no sympy: its Heaviside and Piecewise do not lower)."""

from __future__ import annotations

from einfuse.ir import expr as ex
from einfuse.ir.expr import call, const
from einfuse.ir.functions import FUNCTIONS
from einfuse.ir.nodes import Expr


def _times(a: Expr, b: Expr) -> Expr:
    return call("*", a, b)


def derivative(e: Expr, x: Expr) -> Expr:
    """d e / d x for a sub-expression ``x`` (usually a load), every other leaf held constant; the constant 0 where e is free of x."""
    return _derivative(e, x, ex.holders(e, x), {})


def _derivative(e: Expr, x: Expr, holders: frozenset[int], known: dict[int, Expr]) -> Expr:
    """``holders``: the parts that ``x`` stands in, by id; ``known`` keeps what was found of those."""
    if id(e) not in holders:
        return ex.ZERO
    if id(e) not in known:
        known[id(e)] = ex.ONE if e == x else _by_rule(e, x, holders, known)
    return known[id(e)]


def _by_rule(e: Expr, x: Expr, holders: frozenset[int], known: dict[int, Expr]) -> Expr:
    """The derivative of a call from those of its operands."""
    rule = FUNCTIONS[e.op].differential if e.op in FUNCTIONS else None
    return ex.ZERO if rule is None else rule(e, [_derivative(a, x, holders, known) for a in e.args])


def log_derivative(e: Expr, x: Expr) -> Expr:
    """(d e / d x) / e, written so that common factors have already cancelled."""
    if e == x:
        return call("/", ex.ONE, x)
    if x not in ex.walk(e):
        return ex.ZERO
    if e.op == "*":
        return call("+", log_derivative(e.args[0], x), log_derivative(e.args[1], x))
    if e.op == "/":
        return call("-", log_derivative(e.args[0], x), log_derivative(e.args[1], x))
    if e.op == "neg":
        return log_derivative(e.args[0], x)
    if e.op == "exp":
        return derivative(e.args[0], x)
    if e.op in ("sqrt", "rsqrt"):
        return _times(const(0.5 if e.op == "sqrt" else -0.5), log_derivative(e.args[0], x))
    if e.op == "^" and e.args[1].op == "const":
        return _times(e.args[1], log_derivative(e.args[0], x))
    return call("/", derivative(e, x), e)
