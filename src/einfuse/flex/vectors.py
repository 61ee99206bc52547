"""Short vectors: what is left of a captured tensor when all axes but one are indexed."""

from __future__ import annotations

from functools import partial
from typing import Any

from einfuse.flex.arithmetic import (
    condition,
    extreme,
    integer_power,
    mul,
    operand,
    real,
    same_kind,
    unary,
)
from einfuse.flex.choices import logical_not
from einfuse.flex.registry import OPERATIONS, operation
from einfuse.flex.tracer import Tracer
from einfuse.flex.value import Part, Value
from einfuse.ir import expr as ex


@operation("getitem")
def _getitem(t: Tracer, x: Any, i: Any) -> Value | Part:
    v = t.value(x)
    if v.axis is None:
        t.refuse("a traced number cannot be indexed", "only captured tensors can")
    at = t.value(i + t.length(v.axis) if isinstance(i, int) and i < 0 else i)
    if at.kind != "int":
        t.refuse(f"an index is a {at.kind}, an integer is needed")
    return Value(t, ex.rename(v.expr, {v.axis: at.expr}), v.kind, at.axis)


def _vector(t: Tracer, name: str, x: Any, dim: Any) -> Value:
    v = operand(t, x)
    if v.axis is None:
        t.refuse(f"`{name}` of a single number", "only what is left of a captured tensor can be reduced")
    if dim not in (None, -1, 0, (-1,), (0,), [-1], [0]):
        t.refuse(f"`{name}` over the axis {dim} of a vector")
    return v


@operation("sum")
def _sum(t: Tracer, x: Any, dim: Any = None, **_: Any) -> Value:
    v = real(t, _vector(t, "sum", x, dim))
    return t.reduced("sum", v)


@operation("mean")
def _mean(t: Tracer, x: Any, dim: Any = None, **_: Any) -> Value:
    v = real(t, _vector(t, "mean", x, dim))
    return mul(t, t.reduced("sum", v), 1 / t.length(v.axis or ""))


@operation("prod")
def _prod(t: Tracer, x: Any, dim: Any = None, **_: Any) -> Value:
    return t.reduced("prod", real(t, _vector(t, "prod", x, dim)))


def _max_min(t: Tracer, x: Any, *args: Any, name: str, **kwargs: Any) -> Value:
    """Of two numbers, or of all of a vector."""
    if not args and not kwargs:
        return t.reduced(name, real(t, _vector(t, name, x, None)))
    if (len(args) == 1 and not isinstance(args[0], int | tuple)) or t.value(x).axis is None:
        return extreme(t, name, x, *args)
    t.refuse("`max` and `min` over an axis give indices as well, which cannot be traced", "use amax, amin, maximum or minimum")


for _name in ("max", "min"):
    OPERATIONS[_name] = partial(_max_min, name=_name)


@operation("amax")
def _amax(t: Tracer, x: Any, *args: Any, dim: Any = None, **_: Any) -> Value:
    return t.reduced("max", real(t, _vector(t, "amax", x, args[0] if args else dim)))


@operation("amin")
def _amin(t: Tracer, x: Any, *args: Any, dim: Any = None, **_: Any) -> Value:
    return t.reduced("min", real(t, _vector(t, "amin", x, args[0] if args else dim)))


@operation("any")
def _any(t: Tracer, x: Any, dim: Any = None, **_: Any) -> Value:
    return t.reduced("any", condition(t, _vector(t, "any", x, dim)))


@operation("all")
def _all(t: Tracer, x: Any, dim: Any = None, **_: Any) -> Value:
    return logical_not(t, _any(t, logical_not(t, x), dim))


@operation("norm", "vector_norm", "linalg_vector_norm")
def _norm(t: Tracer, x: Any, ord: Any = 2, dim: Any = None, *, p: Any = None, **_: Any) -> Value:
    order = ord if p is None else p
    if order not in (1, 2, None):
        t.refuse(f"`norm` of order {order} cannot be traced", "orders 1 and 2 can")
    v = real(t, _vector(t, "norm", x, dim))
    if order == 1:
        return t.reduced("sum", same_kind(t, "abs", v))
    return unary(t, "sqrt", t.reduced("sum", integer_power(t, v, 2)))


@operation("dot", "vdot", "inner", "matmul")
def _dot(t: Tracer, a: Any, b: Any) -> Value:
    x, y = _vector(t, "dot", a, None), _vector(t, "dot", b, None)
    return t.reduced("sum", real(t, mul(t, x, y)))
