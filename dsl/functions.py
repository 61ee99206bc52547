"""Scalar functions for traced score and mask functions; on plain numbers they give plain symbols."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from einfuse.dsl import ast
from einfuse.dsl.symbols import OPERATIONS, Symbol, TreeTracer, function, made, symbol
from einfuse.dsl.trace import here

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


def _of_one(name: str) -> Callable[[object], Symbol]:
    """The function of the language with this name."""

    def named(x: object) -> Symbol:
        return function(name, x)

    named.__name__ = named.__qualname__ = name
    return named


abs = _of_one("abs")
exp = _of_one("exp")
exp2 = _of_one("exp2")
log = _of_one("log")
log2 = _of_one("log2")
log1p = _of_one("log1p")
sqrt = _of_one("sqrt")
rsqrt = _of_one("rsqrt")
tanh = _of_one("tanh")
sigmoid = _of_one("sigmoid")
softplus = _of_one("softplus")
erf = _of_one("erf")
sin = _of_one("sin")
cos = _of_one("cos")
floor = _of_one("floor")
sign = _of_one("sign")
relu = _of_one("relu")
silu = _of_one("silu")
gelu = _of_one("gelu")
elu = _of_one("elu")
square = _of_one("square")


def _known(fn: Callable[..., Symbol], _: object, *args: object, **kwargs: object) -> Symbol:
    return fn(*args, **kwargs)


TreeTracer.known = f"einfuse has {', '.join(__all__)}"
OPERATIONS.update({name: partial(_known, globals()[name]) for name in __all__})
