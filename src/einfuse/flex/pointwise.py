"""Arithmetic and functions of one number, as torch has them."""

from __future__ import annotations

from typing import Any

from einfuse.flex.arithmetic import (
    add,
    compare,
    integer_power,
    is_constant,
    make,
    mul,
    number,
    real,
    same_kind,
    sub,
    unary,
    where,
)
from einfuse.flex.registry import operation
from einfuse.flex.tracer import Tracer
from einfuse.flex.value import Value


@operation("add")
def _add(t: Tracer, a: Any, b: Any, *, alpha: Any = 1) -> Value:
    return add(t, a, b if alpha == 1 else mul(t, b, alpha))


@operation("sub", "subtract")
def _sub(t: Tracer, a: Any, b: Any, *, alpha: Any = 1) -> Value:
    return sub(t, a, b if alpha == 1 else mul(t, b, alpha))


@operation("rsub", "radd")
def _rsub(t: Tracer, a: Any, b: Any) -> Value:
    return sub(t, b, a)


@operation("mul", "multiply", "rmul")
def _mul(t: Tracer, a: Any, b: Any) -> Value:
    return mul(t, a, b)


@operation("div", "divide", "true_divide", "truediv")
def _div(t: Tracer, a: Any, b: Any, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        x, y = t.value(a), number(t, b)
        c = is_constant(y)
        if x.alive is not None and c is not None and c > 0:
            return mul(t, x, 1 / c)
        return make(t, "/", "float", number(t, x), y)
    if rounding_mode == "floor":
        return floor_divide(t, a, b)
    x, y = number(t, a), number(t, b)
    if x.kind == y.kind == "int":
        whole = floor_divide(t, same_kind(t, "abs", x), same_kind(t, "abs", y))
        return mul(t, whole, mul(t, same_kind(t, "sign", x), same_kind(t, "sign", y)))
    return trunc(t, make(t, "/", "float", x, y))


@operation("rdiv", "rtruediv")
def _rdiv(t: Tracer, a: Any, b: Any) -> Value:
    return make(t, "/", "float", number(t, b), number(t, a))


@operation("floor_divide", "floordiv")
def floor_divide(t: Tracer, a: Any, b: Any) -> Value:
    x, y = number(t, a), number(t, b)
    _not_zero(t, b, y)
    return make(t, "//", "int", x, y) if x.kind == y.kind == "int" else floor(t, make(t, "/", "float", x, y))


@operation("rfloordiv")
def _rfloordiv(t: Tracer, a: Any, b: Any) -> Value:
    return floor_divide(t, b, a)


@operation("remainder", "mod")
def remainder(t: Tracer, a: Any, b: Any) -> Value:
    x, y = number(t, a), number(t, b)
    _not_zero(t, b, y)
    if x.kind == y.kind == "int":
        return make(t, "%", "int", x, y)
    return sub(t, x, mul(t, floor(t, make(t, "/", "float", x, y)), y))


@operation("rmod")
def _rmod(t: Tracer, a: Any, b: Any) -> Value:
    return remainder(t, b, a)


def _not_zero(t: Tracer, given: object, y: Value) -> None:
    if y.kind == "int" and (is_constant(y) == 0 or (isinstance(given, int) and given == 0)):
        t.refuse("an integer is divided by zero")


@operation("pow", "float_power")
def power(t: Tracer, a: Any, b: Any) -> Value:
    x = number(t, a)
    if isinstance(b, int) and 0 <= b <= 16:
        return integer_power(t, x, int(b))
    y = number(t, b)
    if is_constant(y) == 0.5:
        return unary(t, "sqrt", x)
    if x.kind == y.kind == "int":
        t.refuse("an integer to the power of an unknown integer", "make one of them a float: 2.0 ** h, or torch.exp2(h)")
    return make(t, "^", "float", real(t, x), y)


@operation("rpow")
def _rpow(t: Tracer, a: Any, b: Any) -> Value:
    return power(t, b, a)


@operation("neg", "negative")
def _neg(t: Tracer, x: Any) -> Value:
    return same_kind(t, "neg", x)


@operation("positive", "clone", "contiguous", "detach_copy", "alias")
def _same(t: Tracer, x: Any, **_: Any) -> Value:
    return t.value(x)


@operation("abs", "absolute")
def _abs(t: Tracer, x: Any) -> Value:
    return same_kind(t, "abs", x)


@operation("sign", "sgn")
def _sign(t: Tracer, x: Any) -> Value:
    return same_kind(t, "sign", x)


@operation("square")
def _square(t: Tracer, x: Any) -> Value:
    return integer_power(t, number(t, x), 2)


@operation("reciprocal")
def _reciprocal(t: Tracer, x: Any) -> Value:
    return make(t, "/", "float", t.value(1.0), number(t, x))


@operation("lerp")
def _lerp(t: Tracer, a: Any, b: Any, weight: Any) -> Value:
    return add(t, a, mul(t, weight, sub(t, b, a)))


@operation("addcmul")
def _addcmul(t: Tracer, x: Any, a: Any, b: Any, *, value: Any = 1) -> Value:
    return add(t, x, mul(t, mul(t, a, b), value))


@operation("floor")
def floor(t: Tracer, x: Any) -> Value:
    v = number(t, x)
    return v if v.kind == "int" else real(t, make(t, "floor", "int", v))


@operation("ceil")
def _ceil(t: Tracer, x: Any) -> Value:
    return same_kind(t, "neg", floor(t, same_kind(t, "neg", x)))


@operation("trunc", "fix")
def trunc(t: Tracer, x: Any) -> Value:
    v = number(t, x)
    return v if v.kind == "int" else where(t, compare(t, "<", v, 0.0), _ceil(t, v), floor(t, v))
