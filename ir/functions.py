"""Scalar functions: operands, types and values. The only list of them in the compiler.

The grammar, type checks, the interpreter, derivatives and the code generators read it or are tested against it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

from einfuse.ir.nodes import DType, Scalar


@dataclass(frozen=True, slots=True)
class Function:
    """A scalar function: its number of operands, operand types, result type and value on Python numbers.

    ``result`` is a type, or ``"same"`` for the wider of the numeric operands.
    """

    arity: int
    takes: DType | str  # "bool", "int", "numeric", "any"
    result: DType | str  # a DType or "same"
    fold: Callable[..., Scalar]
    infix: str | None = None


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _mixed(x: int) -> int:
    """32 bits, well stirred (two rounds of multiply and shift: a bijection)."""
    x &= 0xFFFFFFFF
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def hashed(key: int, counter: int) -> int:
    """31 bits made of the low 32 bits of two integers: the same on every back end."""
    return _mixed(_mixed(key ^ 0x9E3779B9) ^ counter) & 0x7FFFFFFF


def _float(fn: Callable[[float], float]) -> Function:
    return Function(1, "numeric", "float", fn)


FUNCTIONS: dict[str, Function] = {
    "+": Function(2, "numeric", "same", operator.add, "+"),
    "-": Function(2, "numeric", "same", operator.sub, "-"),
    "*": Function(2, "numeric", "same", operator.mul, "*"),
    "/": Function(2, "numeric", "float", operator.truediv, "/"),
    "//": Function(2, "int", "int", operator.floordiv, "//"),
    "%": Function(2, "int", "int", operator.mod, "%"),
    "hash": Function(2, "int", "int", hashed),
    "^": Function(2, "numeric", "float", lambda x, y: float(x) ** y, "^"),
    "neg": Function(1, "numeric", "same", operator.neg),
    "abs": Function(1, "numeric", "same", abs),
    "max": Function(2, "numeric", "same", max),
    "min": Function(2, "numeric", "same", min),
    "sign": Function(1, "numeric", "same", _sign),
    "stop": Function(1, "numeric", "same", lambda x: x),  # the identity, with a derivative of 0
    "exp": _float(math.exp),
    "exp2": _float(lambda x: 2.0**x),
    "log": _float(math.log),
    "log2": _float(math.log2),
    "log1p": _float(math.log1p),
    "sqrt": _float(math.sqrt),
    "rsqrt": _float(lambda x: 1 / math.sqrt(x)),
    "tanh": _float(math.tanh),
    "sigmoid": _float(_sigmoid),
    "softplus": _float(_softplus),
    "erf": _float(math.erf),
    "sin": _float(math.sin),
    "cos": _float(math.cos),
    "floor": Function(1, "numeric", "int", math.floor),
    "float": Function(1, "any", "float", float),
    "int": Function(1, "any", "int", int),
    "<": Function(2, "numeric", "bool", operator.lt, "<"),
    "<=": Function(2, "numeric", "bool", operator.le, "<="),
    ">": Function(2, "numeric", "bool", operator.gt, ">"),
    ">=": Function(2, "numeric", "bool", operator.ge, ">="),
    "==": Function(2, "any", "bool", operator.eq, "=="),
    "!=": Function(2, "any", "bool", operator.ne, "!="),
    "and": Function(2, "bool", "bool", lambda a, b: a and b, "and"),
    "or": Function(2, "bool", "bool", lambda a, b: a or b, "or"),
    "not": Function(1, "bool", "bool", operator.not_),
    "select": Function(3, "select", "same", lambda c, a, b: a if c else b),
}
