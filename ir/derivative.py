"""Derivatives of scalar expressions, by rules on the IR's own functions (no sympy: its Heaviside and Piecewise do not lower)."""

from __future__ import annotations

import math
from collections.abc import Callable

from einfuse.ir import expr as ex
from einfuse.ir.expr import call, const
from einfuse.ir.nodes import Expr

_TWO = const(2)


def _times(a: Expr, b: Expr) -> Expr:
    return call("*", a, b)


def _max(a: Expr, b: Expr, da: Expr, db: Expr, op: str) -> Expr:
    return call("select", call(op, a, b), da, db)


_UNARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    # d f(a) / d a, given a and f(a); a kink takes the derivative of one side
    "neg": lambda a, f: const(-1),
    "abs": lambda a, f: call("sign", a),
    "exp": lambda a, f: f,
    "exp2": lambda a, f: _times(f, const(math.log(2))),
    "log": lambda a, f: call("/", ex.ONE, a),
    "log2": lambda a, f: call("/", const(1 / math.log(2)), a),
    "log1p": lambda a, f: call("/", ex.ONE, call("+", ex.ONE, a)),
    "sqrt": lambda a, f: call("/", const(0.5), f),
    "rsqrt": lambda a, f: call("/", _times(const(-0.5), f), a),
    "tanh": lambda a, f: call("-", ex.ONE, _times(f, f)),
    "sigmoid": lambda a, f: _times(f, call("-", ex.ONE, f)),
    "softplus": lambda a, f: call("sigmoid", a),
    "erf": lambda a, f: _times(const(2 / math.sqrt(math.pi)), call("exp", call("neg", _times(a, a)))),
    "sin": lambda a, f: call("cos", a),
    "cos": lambda a, f: call("neg", call("sin", a)),
    "float": lambda a, f: ex.ONE,
}
_FLAT = {
    "sign",
    "stop",
    "hash",
    "floor",
    "int",
    "<",
    "<=",
    ">",
    ">=",
    "==",
    "!=",
    "and",
    "or",
    "not",
    "//",
    "%",
    "index",
    "size",
    "const",
    "load",
    "new",
}


def derivative(e: Expr, x: Expr) -> Expr:
    """d e / d x for a sub-expression ``x`` (usually a load), every other leaf held constant; the constant 0 where e is free of x."""
    if e == x:
        return ex.ONE
    if e.op in _FLAT or not any(y == x for y in ex.walk(e)):
        return ex.ZERO
    if e.op in _UNARY:
        return _times(_UNARY[e.op](e.args[0], e), derivative(e.args[0], x))
    if e.op == "select":
        return call("select", e.args[0], derivative(e.args[1], x), derivative(e.args[2], x))
    a, b = e.args
    da, db = derivative(a, x), derivative(b, x)
    if e.op in ("+", "-"):
        return call(e.op, da, db)
    if e.op == "*":
        return call("+", _times(da, b), _times(a, db))
    if e.op == "/":
        return call("-", call("/", da, b), call("/", _times(e, db), b))
    if e.op == "^":
        of_base = ex.ZERO if ex.is_const(da, 0) else _times(_times(b, _power(a, b)), da)
        return of_base if ex.is_const(db, 0) else call("+", of_base, _times(_growth(a, e), db))
    assert e.op in ("max", "min"), f"no derivative rule for {e.op}"
    return _max(a, b, da, db, ">=" if e.op == "max" else "<=")


def _power(a: Expr, b: Expr) -> Expr:
    return call("^", a, call("-", b, ex.ONE))


def _growth(a: Expr, power: Expr) -> Expr:
    """d (a ^ b) / d b; 0 to a power stays 0."""
    return call("select", call(">", a, ex.ZERO), _times(power, call("log", a)), ex.ZERO)


def log_derivative(e: Expr, x: Expr) -> Expr:
    """(d e / d x) / e, written so that common factors have already cancelled."""
    if e == x:
        return call("/", ex.ONE, x)
    if not any(y == x for y in ex.walk(e)):
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
