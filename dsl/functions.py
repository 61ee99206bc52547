"""Scalar functions for traced score and mask functions; on plain numbers they give plain symbols."""

from __future__ import annotations

from einfuse.dsl import ast
from einfuse.dsl.symbols import Symbol, function, here, made, symbol

__all__ = [
    *("abs", "clamp", "cos", "elu", "erf", "exp", "exp2", "floor", "gelu", "log", "log1p", "log2", "maximum", "minimum"),
    *("relu", "rsqrt", "sigmoid", "sign", "silu", "sin", "softcap", "softplus", "sqrt", "square", "tanh", "where"),
]


def where(condition: object, yes: object, no: object) -> Symbol:
    """``yes`` where ``condition`` holds, else ``no``."""
    c, a, b = symbol(condition), symbol(yes), symbol(no)
    return made(ast.Conditional(a.expr, c.expr, b.expr, here()), c, a, b)


def maximum(a: object, b: object) -> Symbol:
    return function("max", a, b)


def minimum(a: object, b: object) -> Symbol:
    return function("min", a, b)


def clamp(x: object, lo: object, hi: object) -> Symbol:
    return function("clamp", x, lo, hi)


def softcap(x: object, cap: object) -> Symbol:
    """``cap * tanh(x / cap)``."""
    return function("softcap", x, cap)


def abs(x: object) -> Symbol:
    return function("abs", x)


def exp(x: object) -> Symbol:
    return function("exp", x)


def exp2(x: object) -> Symbol:
    return function("exp2", x)


def log(x: object) -> Symbol:
    return function("log", x)


def log2(x: object) -> Symbol:
    return function("log2", x)


def log1p(x: object) -> Symbol:
    return function("log1p", x)


def sqrt(x: object) -> Symbol:
    return function("sqrt", x)


def rsqrt(x: object) -> Symbol:
    return function("rsqrt", x)


def tanh(x: object) -> Symbol:
    return function("tanh", x)


def sigmoid(x: object) -> Symbol:
    return function("sigmoid", x)


def softplus(x: object) -> Symbol:
    return function("softplus", x)


def erf(x: object) -> Symbol:
    return function("erf", x)


def sin(x: object) -> Symbol:
    return function("sin", x)


def cos(x: object) -> Symbol:
    return function("cos", x)


def floor(x: object) -> Symbol:
    return function("floor", x)


def sign(x: object) -> Symbol:
    return function("sign", x)


def relu(x: object) -> Symbol:
    return function("relu", x)


def silu(x: object) -> Symbol:
    return function("silu", x)


def gelu(x: object) -> Symbol:
    return function("gelu", x)


def elu(x: object) -> Symbol:
    return function("elu", x)


def square(x: object) -> Symbol:
    return function("square", x)
