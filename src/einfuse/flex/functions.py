"""Functions of one number: exponentials, rounding, activations."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from einfuse.flex.arithmetic import (
    add,
    compare,
    extreme,
    integer_power,
    limited,
    make,
    mul,
    number,
    numeric,
    real,
    same_kind,
    sub,
    unary,
    where,
)
from einfuse.flex.pointwise import floor, remainder, trunc
from einfuse.flex.registry import OPERATIONS, operation
from einfuse.flex.tracer import Tracer
from einfuse.flex.value import Value

for _name, _op in (
    *(("log", "log"), ("log2", "log2"), ("log1p", "log1p"), ("sqrt", "sqrt"), ("rsqrt", "rsqrt"), ("erf", "erf")),
    *(("sin", "sin"), ("cos", "cos")),
):
    OPERATIONS[_name] = partial(lambda t, x, op: unary(t, op, x), op=_op)
for _name, _op, _limit in (
    *(("exp", "exp", 0.0), ("exp2", "exp2", 0.0), ("tanh", "tanh", -1.0), ("sigmoid", "sigmoid", 0.0)),
    *(("expit", "sigmoid", 0.0), ("special_expit", "sigmoid", 0.0)),
):
    OPERATIONS[_name] = partial(lambda t, x, op, limit: limited(t, op, x, limit), op=_op, limit=_limit)


@operation("expm1")
def _expm1(t: Tracer, x: Any) -> Value:
    return sub(t, unary(t, "exp", x), 1.0)


@operation("log10")
def _log10(t: Tracer, x: Any) -> Value:
    return mul(t, unary(t, "log", x), 1 / math.log(10))


@operation("tan")
def _tan(t: Tracer, x: Any) -> Value:
    return make(t, "/", "float", unary(t, "sin", x), unary(t, "cos", x))


@operation("sinh")
def _sinh(t: Tracer, x: Any) -> Value:
    return mul(t, sub(t, unary(t, "exp", x), unary(t, "exp", same_kind(t, "neg", x))), 0.5)


@operation("cosh")
def _cosh(t: Tracer, x: Any) -> Value:
    return mul(t, add(t, unary(t, "exp", x), unary(t, "exp", same_kind(t, "neg", x))), 0.5)


@operation("frac")
def _frac(t: Tracer, x: Any) -> Value:
    return sub(t, x, trunc(t, x))


@operation("round")
def _round(t: Tracer, x: Any) -> Value:
    """To the nearest integer, halves to the even one."""
    v = number(t, x)
    if v.kind == "int":
        return v
    up = floor(t, add(t, v, 0.5))
    tie = compare(t, "==", sub(t, up, v), 0.5)
    odd = compare(t, "!=", remainder(t, up, 2.0), 0.0)
    return where(t, make(t, "and", "bool", tie, odd), sub(t, up, 1.0), up)


@operation("relu")
def _relu(t: Tracer, x: Any, inplace: bool = False) -> Value:
    return extreme(t, "max", x, 0 if t.value(x).kind == "int" else 0.0)


@operation("leaky_relu")
def _leaky_relu(t: Tracer, x: Any, negative_slope: Any = 0.01, inplace: bool = False) -> Value:
    return where(t, compare(t, ">", x, 0.0), x, mul(t, x, negative_slope))


@operation("elu")
def _elu(t: Tracer, x: Any, alpha: Any = 1.0, inplace: bool = False) -> Value:
    below = mul(t, _expm1(t, numeric(t, "min", x, 0.0)), alpha)
    return where(t, compare(t, ">", x, 0.0), x, below)


@operation("silu", "swish")
def _silu(t: Tracer, x: Any, inplace: bool = False) -> Value:
    return mul(t, x, unary(t, "sigmoid", x))


@operation("softplus")
def _softplus(t: Tracer, x: Any) -> Value:
    return unary(t, "softplus", x)


@operation("logsigmoid", "log_sigmoid")
def _logsigmoid(t: Tracer, x: Any) -> Value:
    return same_kind(t, "neg", unary(t, "softplus", same_kind(t, "neg", x)))


@operation("gelu")
def _gelu(t: Tracer, x: Any, approximate: str = "none") -> Value:
    half = mul(t, x, 0.5)
    if approximate == "none":
        return mul(t, half, add(t, 1.0, unary(t, "erf", mul(t, x, math.sqrt(0.5)))))
    inner = add(t, x, mul(t, integer_power(t, real(t, x), 3), 0.044715))
    return mul(t, half, add(t, 1.0, unary(t, "tanh", mul(t, inner, math.sqrt(2 / math.pi)))))
