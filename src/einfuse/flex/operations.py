"""The functions of torch that a traced function may use, by name; each is made of the operations of `einfuse.flex.arithmetic`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from einfuse.flex import bits
from einfuse.flex.arithmetic import (
    add,
    compare,
    condition,
    extreme,
    integer_power,
    is_constant,
    limited,
    make,
    mul,
    number,
    numeric,
    operand,
    real,
    same_kind,
    sub,
    unary,
    where,
)
from einfuse.flex.tracer import Tracer
from einfuse.flex.value import Part, Value
from einfuse.ir import const
from einfuse.ir import expr as ex

Operation = Callable[..., Any]
OPERATIONS: dict[str, Operation] = {}


def operation(*names: str) -> Callable[[Operation], Operation]:
    def known(fn: Operation) -> Operation:
        OPERATIONS.update(dict.fromkeys(names, fn))
        return fn

    return known


# -- arithmetic ----------------------------------------------------------------------------------------------------------------


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


# -- functions of one number ---------------------------------------------------------------------------------------------------

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


# -- choices -------------------------------------------------------------------------------------------------------------------


@operation("where")
def _where(t: Tracer, c: Any, a: Any, b: Any) -> Value:
    if isinstance(c, Value) and c.kind != "bool":
        t.refuse(f"the condition of `where` is a {c.kind}, a condition is needed", "compare it")
    return where(t, c, a, b)


@operation("masked_fill")
def _masked_fill(t: Tracer, x: Any, mask: Any, value: Any) -> Value:
    return where(t, mask, value, x)


@operation("maximum", "fmax")
def _maximum(t: Tracer, a: Any, b: Any) -> Value:
    return extreme(t, "max", a, b)


@operation("minimum", "fmin")
def _minimum(t: Tracer, a: Any, b: Any) -> Value:
    return extreme(t, "min", a, b)


@operation("clamp", "clip")
def _clamp(t: Tracer, x: Any, min: Any = None, max: Any = None) -> Value:
    low = x if min is None else extreme(t, "max", x, min)
    return t.value(low if max is None else extreme(t, "min", low, max))


@operation("clamp_min")
def _clamp_min(t: Tracer, x: Any, min: Any) -> Value:
    return extreme(t, "max", x, min)


@operation("clamp_max")
def _clamp_max(t: Tracer, x: Any, max: Any) -> Value:
    return extreme(t, "min", x, max)


for _names, _op in (
    *((("lt", "less"), "<"), (("le", "less_equal"), "<="), (("gt", "greater"), ">"), (("ge", "greater_equal"), ">=")),
    *((("eq",), "=="), (("ne", "not_equal"), "!=")),
):
    for _name in _names:
        OPERATIONS[_name] = partial(lambda t, a, b, op: compare(t, op, a, b), op=_op)


# -- conditions and bits -------------------------------------------------------------------------------------------------------


@operation("logical_and")
def _logical_and(t: Tracer, a: Any, b: Any) -> Value:
    return make(t, "and", "bool", condition(t, a), condition(t, b))


@operation("logical_or")
def _logical_or(t: Tracer, a: Any, b: Any) -> Value:
    return make(t, "or", "bool", condition(t, a), condition(t, b))


@operation("logical_xor")
def _logical_xor(t: Tracer, a: Any, b: Any) -> Value:
    return make(t, "!=", "bool", condition(t, a), condition(t, b))


@operation("logical_not")
def _logical_not(t: Tracer, x: Any) -> Value:
    return make(t, "not", "bool", condition(t, x))


@operation("bitwise_and", "and", "rand")
def _bitwise_and(t: Tracer, a: Any, b: Any) -> Value:
    x, y = operand(t, a), operand(t, b)
    if x.kind == y.kind == "bool":
        return make(t, "and", "bool", x, y)
    x, y = _integers(t, "&", x, y)
    for one, other in ((x, y), (y, x)):
        mask = is_constant(other)
        if isinstance(mask, int) and mask >= 0:
            return _from_fields(t, bits.masked(_fields(one), mask), one)
    t.refuse("`&` of two unknown integers cannot be traced", "one of them must be a constant that is not negative")


@operation("bitwise_or", "or", "ror")
def _bitwise_or(t: Tracer, a: Any, b: Any) -> Value:
    x, y = operand(t, a), operand(t, b)
    if x.kind == y.kind == "bool":
        return make(t, "or", "bool", x, y)
    x, y = _integers(t, "|", x, y)
    return _from_fields(t, bits.union(_fields(x), _fields(y)), x, y)


@operation("bitwise_xor", "xor", "rxor")
def _bitwise_xor(t: Tracer, a: Any, b: Any) -> Value:
    x, y = operand(t, a), operand(t, b)
    if x.kind == y.kind == "bool":
        return make(t, "!=", "bool", x, y)
    t.refuse("`^` of integers cannot be traced")


@operation("bitwise_not", "invert")
def _bitwise_not(t: Tracer, x: Any) -> Value:
    v = operand(t, x)
    return make(t, "not", "bool", v) if v.kind == "bool" else sub(t, same_kind(t, "neg", v), 1)


@operation("bitwise_left_shift", "lshift")
def _left(t: Tracer, x: Any, by: Any) -> Value:
    v, n = number(t, x), _shift(t, by)
    return _from_fields(t, bits.moved(_fields(v), n), v)


@operation("bitwise_right_shift", "rshift")
def _right(t: Tracer, x: Any, by: Any) -> Value:
    v, n = number(t, x), _shift(t, by)
    return _from_fields(t, bits.moved(_fields(v), -n), v)


def _shift(t: Tracer, by: object) -> int:
    n = int(by) if isinstance(by, int) else is_constant(t.value(by))
    if not isinstance(n, int) or not 0 <= n < bits.WIDTH:
        t.refuse("a shift by an unknown number of places cannot be traced", "multiply by a power of two")
    return n


def _integers(t: Tracer, op: str, *values: Value) -> list[Value]:
    out = [number(t, v) for v in values]
    if any(v.kind == "float" for v in out):
        t.refuse(f"`{op}` takes integers or conditions, found a float", "compare it first")
    return out


def _fields(v: Value) -> bits.Fields:
    return v.fields if v.fields is not None else bits.fields(v.expr)


def _from_fields(t: Tracer, f: bits.Fields, *origin: Value) -> Value:
    made = bits.value(f)
    axis = t.common_axis(*origin)
    if made is None:  # two fields overlap: what comes next (& with a constant) may separate them
        return Unresolved(t, f, axis)
    return Value(t, made, "int", axis, None, f)


class Unresolved(Value):
    """A union of overlapping fields: a value only once a mask has separated them."""

    __slots__ = ()

    def __init__(self, tracer: Tracer, f: bits.Fields, axis: str | None) -> None:
        super().__init__(tracer, const(0), "int", axis, None, f)
        self.fields = f

    def __getattribute__(self, name: str) -> Any:
        if name == "expr":
            tracer: Tracer = super().__getattribute__("tracer")
            tracer.refuse(
                "`|` of integers whose bits overlap cannot be traced", "add them, or mask the bits before joining them"
            )
        return super().__getattribute__(name)


# -- types, shapes and constants -----------------------------------------------------------------------------------------------


@operation("to", "type")
def _to(t: Tracer, x: Any, *args: Any, dtype: Any = None, **_: Any) -> Value:
    v = t.value(x)
    for a in args:
        dtype = a.dtype if isinstance(a, Value | torch.Tensor) else a if isinstance(a, torch.dtype) else dtype
    return v if dtype is None else _cast(t, v, dtype)


def _cast(t: Tracer, v: Value, dtype: torch.dtype) -> Value:
    if dtype == torch.bool:
        return condition(t, v)
    if dtype.is_floating_point:
        return v if v.kind == "float" else real(t, v)
    if dtype not in (torch.int64, torch.int32):
        t.refuse(f"a number cannot be cast to {dtype}", "use int32 or int64")
    n = number(t, v)
    return n if n.kind == "int" else make(t, "int", "int", trunc(t, n))


for _names, _dtype in (
    *((("float", "double", "half", "bfloat16"), torch.float32), (("int", "long"), torch.int64), (("bool",), torch.bool)),
):
    for _name in _names:
        OPERATIONS[_name] = partial(lambda t, x, dtype: _cast(t, t.value(x), dtype), dtype=_dtype)


@operation("type_as")
def _type_as(t: Tracer, x: Any, other: Any) -> Value:
    return _cast(t, t.value(x), other.dtype)


@operation("new_full", "full_like")
def _new_full(t: Tracer, x: Any, *args: Any, dtype: Any = None, **_: Any) -> Value:
    made = t.value(args[-1])
    return made if dtype is None else _cast(t, made, dtype)


@operation("new_tensor")
def _new_tensor(t: Tracer, x: Any, data: Any, *, dtype: Any = None, **_: Any) -> Value:
    return t.value(data) if dtype is None else _cast(t, t.value(data), dtype)


def _constant(t: Tracer, like: Any, *shape: Any, size: Any = (), dtype: Any = None, fill: int, **_: Any) -> Value:
    wanted = size or (shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list | torch.Size) else shape)
    if any(n != 1 for n in wanted):
        t.refuse(f"a constant of shape {tuple(wanted)} cannot be traced", "make it outside of the function")
    kind = dtype or t.value(like).dtype
    return _cast(t, t.value(fill), kind)


for _name, _fill in (("new_ones", 1), ("ones_like", 1), ("new_zeros", 0), ("zeros_like", 0)):
    OPERATIONS[_name] = partial(_constant, fill=_fill)


@operation("detach")
def _detach(t: Tracer, x: Any) -> Value:
    v = t.value(x)
    if v.kind == "float":
        t.refuse("`detach` of a float cannot be traced", "detach the captured tensor outside of the function")
    return v


@operation("squeeze", "unsqueeze", "view", "reshape", "flatten", "expand", "item", "requires_grad_")
def _shape(t: Tracer, x: Any, *_: Any, **__: Any) -> Value:
    t.refuse("a traced number has no shape to change", "a score is one number")


# -- vectors -------------------------------------------------------------------------------------------------------------------


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
    if len(args) == 1 and not isinstance(args[0], int | tuple) or t.value(x).axis is None:
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
    return _logical_not(t, _any(t, _logical_not(t, x), dim))


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
