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
    return _derivative(e, x, ex.holders(e, x), {})


def _derivative(e: Expr, x: Expr, holders: frozenset[int], known: dict[int, Expr]) -> Expr:
    """``holders``: the parts that ``x`` stands in, by id; ``known`` keeps what was found of those."""
    if id(e) not in holders or (e.op in _FLAT and e != x):
        return ex.ZERO
    if id(e) not in known:
        known[id(e)] = ex.ONE if e == x else _by_rule(e, [_derivative(a, x, holders, known) for a in e.args])
    return known[id(e)]


def _by_rule(e: Expr, inner: list[Expr]) -> Expr:
    """The derivative of a function from those of its operands."""
    if e.op in _UNARY:
        return _times(_UNARY[e.op](e.args[0], e), inner[0])
    if e.op == "select":
        return call("select", e.args[0], inner[1], inner[2])
    (a, b), (da, db) = e.args, inner
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
