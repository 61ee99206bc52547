"""The functions of torch: arithmetic, rounding, choices, comparisons, exponentials and activations; in one line what a formula says."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from einfuse.flex.arithmetic import (
    add,
    cast,
    common,
    compare,
    condition,
    divide,
    extreme,
    integer_power,
    is_constant,
    limited,
    make,
    mul,
    number,
    numeric,
    operand,
    promoted,
    real,
    same_kind,
    sub,
    unary,
    where,
)
from einfuse.flex.value import OPERATIONS, Value, operation
from einfuse.ir import FUNCTIONS

if TYPE_CHECKING:
    from einfuse.flex.tracer import Tracer

# -- arithmetic ----------------------------------------------------------------------------------------------------------------


operation("add")(lambda t, a, b, *, alpha=1: add(t, a, b if alpha == 1 else mul(t, b, alpha)))
operation("sub", "subtract")(lambda t, a, b, *, alpha=1: sub(t, a, b if alpha == 1 else mul(t, b, alpha)))
operation("mul", "multiply")(mul)


@operation("div", "divide", "true_divide", "truediv")
def _div(t: Tracer, a: Any, b: Any, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        return divide(t, a, b)
    if rounding_mode == "floor":
        return floor_divide(t, a, b)
    x, y = operand(t, a), operand(t, b)
    dtype = promoted(t, x, y)
    if dtype.is_floating_point:
        return trunc(t, divide(t, x, y))
    low = floor_divide(t, x, y)  # one too small where the signs differ and a rest is left
    rest = make(t, "and", torch.bool, compare(t, "<", low, 0), compare(t, "!=", mul(t, low, y), x))
    return where(t, rest, add(t, low, 1), low)


@operation("floor_divide", "floordiv")
def floor_divide(t: Tracer, a: Any, b: Any) -> Value:
    x, y = number(t, a), number(t, b)
    if x.kind == y.kind == "int":
        return numeric(t, "//", x, _divisor(t, y))
    whole, rest = _divided(t, x, y)
    below = add(t, whole, cast(t, compare(t, "!=", rest, 0), torch.int64))
    return where(t, _differ(t, x, y), same_kind(t, "neg", below), whole)


@operation("remainder", "mod")
def _remainder(t: Tracer, a: Any, b: Any) -> Value:
    x, y = number(t, a), number(t, b)
    if x.kind == y.kind == "int":
        return numeric(t, "%", x, _divisor(t, y))
    x, y = real(t, x), real(t, y)
    _, rest = _divided(t, x, y)
    other = where(t, compare(t, "==", rest, 0), same_kind(t, "neg", rest), sub(t, _size(t, y), rest))
    size = where(t, _differ(t, x, y), other, rest)
    return where(t, _negative(t, y), same_kind(t, "neg", size), size)


@operation("fmod")
def _fmod(t: Tracer, a: Any, b: Any) -> Value:
    """The remainder with the sign of the dividend."""
    x, y = number(t, a), number(t, b)
    if x.kind == y.kind == "int":
        dtype, parts = common(t, x, _divisor(t, y))
        wide = [cast(t, v, torch.int64) for v in parts]  # where the smallest number has a magnitude
        rest = cast(t, numeric(t, "%", *(_size(t, v) for v in wide)), dtype)
    else:
        _, rest = _divided(t, x, y)
    return where(t, _negative(t, x), same_kind(t, "neg", rest), rest)


def _divisor(t: Tracer, y: Value) -> Value:
    if y.bounds[0] <= 0 <= y.bounds[1]:
        t.refuse("an integer is divided by what may be zero", "clamp the divisor, or divide floats")
    return y


def _negative(t: Tracer, x: Value) -> Value:
    return t.value(x.bounds[1] < 0) if x.bounds[0] >= 0 or x.bounds[1] < 0 else compare(t, "<", x, 0)


def _differ(t: Tracer, x: Value, y: Value) -> Value:
    """Whether the signs of two numbers differ."""
    return make(t, "!=", torch.bool, _negative(t, x), _negative(t, y))


def _size(t: Tracer, x: Value) -> Value:
    """The magnitude, with a derivative at 0, which ``abs`` has not."""
    return where(t, _negative(t, x), same_kind(t, "neg", x), x)


def _divided(t: Tracer, a: Value, b: Value) -> tuple[Value, Value]:
    """The whole quotient of the sizes of two floats, and the rest.

    The rest decides where the rounding of the division has crossed an integer. It is exact for quotients of up to 12 bits, as torch's
    is for all.
    """
    x, y = _size(t, real(t, a)), _size(t, real(t, b))
    whole = floor(t, divide(t, x, y))
    rest = x
    for part in _halves(t, y):
        rest = sub(t, rest, mul(t, whole, part))
    below, above = compare(t, "<", rest, 0), compare(t, ">=", rest, y)
    whole = where(t, below, sub(t, whole, 1), where(t, above, add(t, whole, 1), whole))
    return whole, where(t, below, add(t, rest, y), where(t, above, sub(t, rest, y), rest))


def _halves(t: Tracer, y: Value) -> tuple[Value, Value]:
    """A float as the sum of two, each of half its digits, so that products with small integers are exact (Dekker, 1971)."""
    wide = t.dtype == torch.float64
    known = is_constant(y)
    if known is not None:
        known = known if wide else struct.unpack("f", struct.pack("f", known))[0]
        fraction, exponent = math.frexp(known)
        digits = 26 if wide else 12
        high = math.ldexp(math.floor(fraction * 2**digits), exponent - digits)
        return t.value(high), t.value(known - high)
    y = real(t, y)
    scaled = mul(t, y, 134217729.0 if wide else 4097.0)
    upper = sub(t, scaled, sub(t, scaled, y))
    return upper, sub(t, y, upper)


_POWERS = range(-16, 17)
"""Those that are products."""


@operation("pow", "float_power")
def power(t: Tracer, a: Any, b: Any) -> Value:
    x = operand(t, a)
    n = is_constant(b) if isinstance(b, Value) else b  # also one that was captured: a power is another formula
    if isinstance(n, int | float) and n in _POWERS and (n >= 0 or x.kind == "float" or isinstance(n, float)):
        whole = integer_power(t, x if x.kind == "int" and isinstance(n, int) else real(t, x), abs(int(n)))
        return whole if n >= 0 else divide(t, 1.0, whole)
    exponent = number(t, b)
    if is_constant(exponent) == 0.5:
        return unary(t, "sqrt", x)
    if x.kind != "float" and exponent.kind == "int":
        t.refuse("an integer to the power of an unknown integer", "make one of them a float: 2.0 ** h, or torch.exp2(h)")
    return make(t, "^", t.dtype, real(t, x), exponent)


operation("neg", "negative")(lambda t, x: same_kind(t, "neg", x))
operation("positive", "pos", "clone", "contiguous", "detach_copy", "alias")(lambda t, x, **_: t.value(x))
operation("abs", "absolute")(lambda t, x: same_kind(t, "abs", x))


@operation("sign", "sgn")
def _sign(t: Tracer, x: Any) -> Value:
    v = operand(t, x)
    return v if v.kind == "bool" else same_kind(t, "sign", v)


@operation("square")
def _square(t: Tracer, x: Any) -> Value:
    v = number(t, x)
    return mul(t, v, v)


operation("reciprocal")(lambda t, x: divide(t, 1.0, x))
operation("lerp")(lambda t, a, b, weight: add(t, a, mul(t, weight, sub(t, b, a))))
operation("addcdiv")(lambda t, x, a, b, *, value=1: add(t, x, mul(t, divide(t, a, b), value)))
operation("addcmul")(lambda t, x, a, b, *, value=1: add(t, x, mul(t, mul(t, a, b), value)))


for _name in ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow"):
    operation(f"r{_name}")(partial(lambda t, a, b, of: of(t, b, a), of=OPERATIONS[_name]))


# -- rounding ------------------------------------------------------------------------------------------------------------------


@operation("floor")
def floor(t: Tracer, x: Any) -> Value:
    """A float of the same value where that has no fraction left anyway, which an integer could not hold."""
    v = number(t, x)
    if v.kind == "int":
        return v
    whole = 2.0**52 if t.dtype == torch.float64 else 2.0**23
    low, high = (min(max(x, -whole), whole) for x in v.bounds)
    down = real(t, make(t, "floor", torch.int64, v, bounds=(math.floor(low), math.floor(high))))
    if (low, high) == v.bounds:
        return down
    return where(t, compare(t, "<", same_kind(t, "abs", v), whole), down, make(t, "stop", t.dtype, v))


@operation("ceil")
def _ceil(t: Tracer, x: Any) -> Value:
    return same_kind(t, "neg", floor(t, same_kind(t, "neg", number(t, x))))


@operation("trunc", "fix")
def trunc(t: Tracer, x: Any) -> Value:
    v = number(t, x)
    if v.kind == "int" or v.bounds[0] >= 0:
        return floor(t, v)
    return where(t, compare(t, "<", v, 0.0), _ceil(t, v), floor(t, v))


operation("frac")(lambda t, x: sub(t, x, trunc(t, x)))


@operation("round")
def _round(t: Tracer, x: Any) -> Value:
    """To the nearest integer, halves to the even one."""
    v = number(t, x)
    if v.kind == "int":
        return v
    down = floor(t, v)
    rest = sub(t, v, down)
    half = mul(t, down, 0.5)
    odd = compare(t, "!=", floor(t, half), half)
    tie = make(t, "and", torch.bool, compare(t, "==", rest, 0.5), odd)
    return where(t, make(t, "or", torch.bool, compare(t, ">", rest, 0.5), tie), add(t, down, 1.0), down)


# -- choices, comparisons, logic -----------------------------------------------------------------------------------------------


@operation("where")
def _where(t: Tracer, c: Any, a: Any, b: Any) -> Value:
    if isinstance(c, Value) and c.kind != "bool":
        t.refuse(f"the condition of `where` is a {c.kind}, a condition is needed", "compare it")
    return where(t, c, a, b)


@operation("masked_fill")
def _masked_fill(t: Tracer, x: Any, mask: Any, value: Any) -> Value:
    v, new = t.value(x), t.value(value)
    if new.kind == "float" != v.kind:
        t.refuse(f"`masked_fill` of {v.dtype} with a float", "make it a float first")
    return where(t, mask, cast(t, new, v.dtype), v)


operation("maximum", "fmax")(lambda t, a, b: extreme(t, "max", a, b))
operation("minimum", "fmin")(lambda t, a, b: extreme(t, "min", a, b))


@operation("clamp", "clip")
def _clamp(t: Tracer, x: Any, min: Any = None, max: Any = None) -> Value:
    low = x if min is None else extreme(t, "max", x, min)
    return t.value(low if max is None else extreme(t, "min", low, max))


operation("clamp_min")(lambda t, x, min: extreme(t, "max", x, min))
operation("clamp_max")(lambda t, x, max: extreme(t, "min", x, max))


for _name, _op in (
    *(("lt", "<"), ("less", "<"), ("le", "<="), ("less_equal", "<="), ("gt", ">"), ("greater", ">")),
    *(("ge", ">="), ("greater_equal", ">="), ("eq", "=="), ("ne", "!="), ("not_equal", "!=")),
):
    OPERATIONS[_name] = partial(lambda t, a, b, op: compare(t, op, a, b), op=_op)
for _name, _op in (("logical_and", "and"), ("logical_or", "or"), ("logical_xor", "!=")):
    OPERATIONS[_name] = partial(lambda t, a, b, op: make(t, op, torch.bool, condition(t, a), condition(t, b)), op=_op)


@operation("logical_not")
def logical_not(t: Tracer, x: Any) -> Value:
    return make(t, "not", torch.bool, condition(t, x))


# -- functions of one number ---------------------------------------------------------------------------------------------------

for _name in ("sqrt", "rsqrt", "erf", "sin", "cos"):
    OPERATIONS[_name] = partial(lambda t, x, op: unary(t, op, x), op=_name)
for _name, _op, _limit in (
    *(("exp", "exp", 0.0), ("exp2", "exp2", 0.0), ("tanh", "tanh", -1.0), ("sigmoid", "sigmoid", 0.0)),
    *(("expit", "sigmoid", 0.0), ("special_expit", "sigmoid", 0.0)),
):
    OPERATIONS[_name] = partial(lambda t, x, op, limit: limited(t, op, x, limit), op=_op, limit=_limit)


def _logarithm(t: Tracer, x: Any, op: str) -> Value:
    """Minus infinity where a bound is not known to be above the pole: the score is looked at then."""
    v = number(t, x)
    pole = FUNCTIONS[op].pole
    t.unbounded |= pole is not None and v.bounds[0] <= pole
    return unary(t, op, v)


for _name in ("log", "log2", "log1p"):
    OPERATIONS[_name] = partial(_logarithm, op=_name)


operation("log10")(lambda t, x: mul(t, _logarithm(t, x, "log"), 1 / math.log(10)))
operation("tan")(lambda t, x: divide(t, unary(t, "sin", x), unary(t, "cos", x)))


def _near_zero(t: Tracer, x: Value, near: Callable[[Value], Value], far: Value) -> Value:
    """``near(tanh(x / 2))`` for magnitudes below 1, where ``far`` would be a difference of numbers that are almost equal."""
    half = unary(t, "tanh", mul(t, extreme(t, "max", extreme(t, "min", x, 1.0), -1.0), 0.5))
    return where(t, compare(t, "<", same_kind(t, "abs", x), 1.0), near(half), far)


@operation("expm1", "special_expm1")
def _expm1(t: Tracer, x: Any) -> Value:
    v = real(t, x)
    far = sub(t, unary(t, "exp", v), 1.0)
    return _near_zero(t, v, lambda half: divide(t, mul(t, half, 2.0), sub(t, 1.0, half)), far)


@operation("sinh")
def _sinh(t: Tracer, x: Any) -> Value:
    v = real(t, x)
    up, down = _half_powers(t, v)
    return _near_zero(t, v, lambda half: divide(t, mul(t, half, 2.0), sub(t, 1.0, mul(t, half, half))), sub(t, up, down))


@operation("cosh")
def _cosh(t: Tracer, x: Any) -> Value:
    v = real(t, x)

    def near(half: Value) -> Value:  # for the derivative, which is sinh
        square = mul(t, half, half)
        return divide(t, add(t, 1.0, square), sub(t, 1.0, square))

    return _near_zero(t, v, near, add(t, *_half_powers(t, v)))


def _half_powers(t: Tracer, v: Value) -> tuple[Value, Value]:
    """``exp(x) / 2`` and ``exp(-x) / 2``, which are finite as long as sinh and cosh are."""
    roots = [unary(t, "exp", mul(t, v, f)) for f in (0.5, -0.5)]
    up, down = (mul(t, mul(t, r, 0.5), r) for r in roots)
    return up, down


@operation("asinh", "arcsinh")
def _asinh(t: Tracer, x: Any) -> Value:
    v = real(t, x)
    size = _size(t, v)
    square = mul(t, v, v)
    rest = divide(t, square, add(t, unary(t, "sqrt", add(t, square, 1.0)), 1.0))
    out = unary(t, "log1p", add(t, size, rest))
    return where(t, compare(t, "<", v, 0.0), same_kind(t, "neg", out), out)


@operation("atanh", "arctanh")
def _atanh(t: Tracer, x: Any) -> Value:
    v = real(t, x)
    return mul(t, sub(t, _logarithm(t, v, "log1p"), _logarithm(t, same_kind(t, "neg", v), "log1p")), 0.5)


# -- activations ---------------------------------------------------------------------------------------------------------------


@operation("relu")
def _relu(t: Tracer, x: Any, inplace: bool = False) -> Value:
    v = t.value(x)
    zero = cast(t, t.value(0), v.dtype)
    return extreme(t, "max", v, zero) if v.alive is not None else where(t, compare(t, ">", v, zero), v, zero)


@operation("leaky_relu")
def _leaky_relu(t: Tracer, x: Any, negative_slope: Any = 0.01, inplace: bool = False) -> Value:
    return where(t, compare(t, ">", x, 0.0), x, mul(t, x, negative_slope))


@operation("elu")
def _elu(t: Tracer, x: Any, alpha: Any = 1.0, inplace: bool = False) -> Value:
    below = mul(t, _expm1(t, numeric(t, "min", x, 0.0)), alpha)
    return where(t, compare(t, ">", x, 0.0), x, below)


@operation("celu")
def _celu(t: Tracer, x: Any, alpha: Any = 1.0, inplace: bool = False) -> Value:
    below = mul(t, _expm1(t, divide(t, numeric(t, "min", x, 0.0), alpha)), alpha)
    return where(t, compare(t, ">", x, 0.0), x, below)


@operation("selu")
def _selu(t: Tracer, x: Any, inplace: bool = False) -> Value:
    return mul(t, _elu(t, x, 1.6732632423543772848170429916717), 1.0507009873554804934193349852946)


@operation("hardtanh")
def _hardtanh(t: Tracer, x: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> Value:
    """A clamp that, unlike torch's `clamp`, has no derivative at its ends."""
    upper = where(t, compare(t, ">=", x, max_val), max_val, x)
    return where(t, compare(t, "<=", x, min_val), min_val, upper)


@operation("relu6")
def _relu6(t: Tracer, x: Any, inplace: bool = False) -> Value:
    return _hardtanh(t, x, 0.0, 6.0)


operation("hardsigmoid")(lambda t, x, inplace=False: divide(t, _relu6(t, add(t, x, 3.0)), 6.0))
operation("hardswish")(lambda t, x, inplace=False: divide(t, mul(t, x, _relu6(t, add(t, x, 3.0))), 6.0))
operation("softsign")(lambda t, x: divide(t, x, add(t, same_kind(t, "abs", x), 1.0)))
operation("tanhshrink")(lambda t, x: sub(t, x, unary(t, "tanh", x)))
operation("mish")(lambda t, x, inplace=False: mul(t, x, unary(t, "tanh", unary(t, "softplus", x))))
operation("silu", "swish")(lambda t, x, inplace=False: mul(t, x, unary(t, "sigmoid", x)))
operation("softplus")(lambda t, x, beta=1, threshold=20: divide(t, unary(t, "softplus", mul(t, x, beta)), beta))


@operation("logaddexp")
def _logaddexp(t: Tracer, a: Any, b: Any) -> Value:
    x, y = real(t, a), real(t, b)
    up, down = (add(t, p, unary(t, "softplus", sub(t, q, p))) for p, q in ((x, y), (y, x)))
    return where(
        t, compare(t, ">=", x, y), up, down
    )  # the larger one outside: it loses no digits, and both share the slope of a tie


operation("logsigmoid", "log_sigmoid")(lambda t, x: same_kind(t, "neg", unary(t, "softplus", same_kind(t, "neg", x))))


@operation("gelu")
def _gelu(t: Tracer, x: Any, approximate: str = "none") -> Value:
    half = mul(t, x, 0.5)
    if approximate == "none":
        return mul(t, half, add(t, 1.0, unary(t, "erf", mul(t, x, math.sqrt(0.5)))))
    inner = add(t, x, mul(t, integer_power(t, real(t, x), 3), 0.044715))
    return mul(t, half, add(t, 1.0, unary(t, "tanh", mul(t, inner, math.sqrt(2 / math.pi)))))
