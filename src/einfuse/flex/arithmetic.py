"""The typed operations that every function of torch is made of: torch's promotion and wrapping, minus infinity, and vectors.

Minus infinity is not a number here: a value carries the condition under which it is not (``alive``), and the score's becomes part of
the mask. So ``torch.where(q_idx >= kv_idx, score, -inf)`` is the causal mask, with its sparsity, and a row of nothing but
minus infinities is an empty row.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch

from einfuse.flex.value import CONDITION, Bounds, Kind, Value, bounds_of, hull, kind_of
from einfuse.ir import Expr, call, conjunction, const
from einfuse.ir import expr as ex

if TYPE_CHECKING:
    from einfuse.flex.tracer import Tracer

MINUS = "minus infinity"
CATEGORIES: tuple[Kind, ...] = ("bool", "int", "float")


# -- making values -------------------------------------------------------------------------------------------------------------


def make(
    t: Tracer,
    op: str,
    dtype: torch.dtype,
    *operands: Value,
    alive: Expr | None = None,
    bounds: Bounds | None = None,
    parts: tuple[Expr, ...] = (),
) -> Value:
    """The function ``op`` of the IR, of these operands (or of ``parts`` made of them). Integers of few bits wrap as torch's do."""
    expr = call(op, *(parts or (x.expr for x in operands)))
    if dtype == torch.bool:
        bounds = CONDITION
    elif expr.op == "const" and isinstance(expr.value, int | float):
        bounds = (expr.value, expr.value)
    elif bounds is None:
        bounds = bounds_of(op, *(x.bounds for x in operands))
    nodes = t.within(1 + sum(x.nodes for x in operands))
    return fitted(t, Value(t, expr, dtype, t.common_axis(*operands), alive, bounds=bounds, nodes=nodes))


def fitted(t: Tracer, v: Value) -> Value:
    """An integer as its dtype holds it. Raises SpecError where one can be larger than kernels count."""
    if v.kind != "int":
        return v
    low, high = v.bounds
    own, word = torch.iinfo(v.dtype), torch.iinfo(t.word)
    if own.min <= low and high <= own.max and word.min <= low and high <= word.max:
        return v
    if own.bits >= word.bits and (math.isinf(low) or math.isinf(high)):
        return v  # of a float: whatever torch makes of one that is too large
    if any(not word.min <= x <= word.max for x in v.bounds if not math.isinf(x)):
        largest = max(v.bounds, key=abs)
        t.refuse(
            f"an integer can become {largest} here, and kernels count in {word.bits} bits",
            "compute it as a float, keep it small with %, or number what a table holds: torch.unique(x, return_inverse=True)[1]",
        )
    half = -own.min
    expr = call("-", call("%", call("+", v.expr, const(half)), const(1 << own.bits)), const(half))
    return Value(t, expr, v.dtype, v.axis, v.alive, bounds=(own.min, own.max), nodes=t.within(v.nodes + 3))


def promoted(t: Tracer, *operands: Value) -> torch.dtype:
    """The dtype in which torch computes with these: vectors count before numbers, numbers before Python's, within a category."""
    return _promoted(t.dtype, *((v.dtype, 0 if v.weak else 1 if v.axis is None else 2) for v in operands))


@functools.lru_cache(512)
def _promoted(floats: torch.dtype, *operands: tuple[torch.dtype, int]) -> torch.dtype:
    out: torch.dtype | None = None
    for priority in (2, 1, 0):
        found = [d for d, p in operands if p == priority]
        if found:
            lower = functools.reduce(torch.promote_types, found)
            higher = out is not None and CATEGORIES.index(kind_of(out)) >= CATEGORIES.index(kind_of(lower))
            out = out if higher and out != torch.bool else lower if out is None else torch.promote_types(out, lower)
    assert out is not None, "an operation has operands"
    return floats if out.is_floating_point else out


# -- operands ------------------------------------------------------------------------------------------------------------------


def operand(t: Tracer, x: object) -> Value:
    """A value that cannot be minus infinity."""
    v = t.value(x)
    if v.alive is not None:
        t.refuse(f"{MINUS} can be chosen by torch.where and added to, and nothing else", "choose it last")
    return v


def number(t: Tracer, x: object) -> Value:
    """A value that is not a condition: True is 1."""
    v = operand(t, x)
    return cast(t, v, torch.int64) if v.kind == "bool" else v


def condition(t: Tracer, x: object) -> Value:
    """A value as a condition: a number is true where it is not 0."""
    return cast(t, operand(t, x), torch.bool)


def real(t: Tracer, x: object) -> Value:
    """A value as a float."""
    return cast(t, operand(t, x), t.dtype)


def cast(t: Tracer, v: Value, dtype: torch.dtype) -> Value:
    """A value in another dtype; all floats are the tracer's."""
    if v.kind == kind_of(dtype) != "int":
        return v
    if dtype == torch.bool:
        return make(t, "!=", dtype, v, t.value(0))
    if dtype.is_floating_point:
        return make(t, "float", t.dtype, v)
    if v.kind != "int":
        whole = v.expr.args[0] if v.expr.op == "float" else v.expr
        return make(t, "int", dtype, v, parts=(whole,)) if whole.op == "floor" else make(t, "int", dtype, v)
    same = v.fields if v.dtype == dtype else None
    return fitted(t, Value(t, v.expr, dtype, v.axis, v.alive, bounds=v.bounds, fields=same, nodes=v.nodes))


def finite(x: Value) -> Value:
    """The value where it is not minus infinity."""
    return x if x.alive is None else Value(x.tracer, x.expr, x.dtype, x.axis, bounds=x.bounds, weak=x.weak, nodes=x.nodes)


def common(t: Tracer, *operands: Value) -> tuple[torch.dtype, list[Value]]:
    """The dtype in which torch computes with these, and the operands in it. Integers among floats stay, the IR converts them."""
    dtype = promoted(t, *operands)
    if dtype.is_floating_point:
        return dtype, [number(t, v) for v in operands]
    return dtype, [cast(t, v, dtype) for v in operands]


def is_constant(x: Value) -> int | float | None:
    """The number that a value is, if it is one."""
    value = x.expr.value if x.expr.op == "const" else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


# -- arithmetic ----------------------------------------------------------------------------------------------------------------


def numeric(t: Tracer, op: str, a: object, b: object) -> Value:
    """A binary operation on numbers, in the dtype that torch computes it in."""
    x, y = operand(t, a), operand(t, b)
    dtype, parts = common(t, x, y)
    if dtype == torch.bool:
        t.refuse(f"`{op}` of two conditions", "use & | ~, or .int()")
    return make(t, op, dtype, *parts)


def unary(t: Tracer, op: str, x: object) -> Value:
    """A function of one number whose result is a float."""
    return make(t, op, t.dtype, number(t, x))


def same_kind(t: Tracer, op: str, x: object) -> Value:
    """A function of one number that keeps its dtype."""
    v = operand(t, x)
    if v.kind == "bool":
        t.refuse(f"`{op}` of a condition", "use ~, or .int()")
    return make(t, op, v.dtype, v)


def add(t: Tracer, a: object, b: object) -> Value:
    """``a + b``; minus infinity stays."""
    x, y = t.value(a), t.value(b)
    if x.kind == y.kind == "bool":
        return make(t, "or", torch.bool, x, y)
    alive = conjunction(x.alive, y.alive) if x.alive is not None or y.alive is not None else None
    dtype, parts = common(t, finite(x), finite(y))
    return make(t, "+", dtype, *parts, alive=alive)


def sub(t: Tracer, a: object, b: object) -> Value:
    x, y = t.value(a), operand(t, b)
    if "bool" in (x.kind, y.kind):
        t.refuse("`-` of a condition", "use ^ or & ~, or .int()")
    dtype, parts = common(t, finite(x), y)
    return make(t, "-", dtype, *parts, alive=x.alive)


def mul(t: Tracer, a: object, b: object) -> Value:
    """``a * b``; minus infinity stays where the other is known to be positive."""
    x, y = t.value(a), t.value(b)
    if x.kind == y.kind == "bool":
        return make(t, "and", torch.bool, x, y)
    for one, other in ((x, y), (y, x)):
        if one.alive is not None and other.alive is None and other.bounds[0] > 0:
            return make(t, "*", t.dtype, finite(one), other, alive=one.alive)
    if x is y and x.alive is None:
        low, high = bounds_of("abs", x.bounds)
        return make(t, "*", x.dtype, x, x, bounds=(low * low, high * high))
    return numeric(t, "*", x, y)


def divide(t: Tracer, a: object, b: object) -> Value:
    """``a / b``, a float; minus infinity stays where the divisor is known to be positive."""
    x, y = t.value(a), number(t, b)
    x = x if y.bounds[0] > 0 else operand(t, x)
    return make(t, "/", t.dtype, number(t, finite(x)), y, alive=x.alive)


def integer_power(t: Tracer, x: Value, n: int) -> Value:
    """``x * x * ...``: exact for integers, and cheap."""
    out: Value | None = None
    square = x
    while n:
        if n & 1:
            out = square if out is None else mul(t, out, square)
        n >>= 1
        square = mul(t, square, square) if n else square
    return cast(t, t.value(1), x.dtype) if out is None else out


# -- choices -------------------------------------------------------------------------------------------------------------------


def where(t: Tracer, c: object, a: object, b: object) -> Value:
    """``a`` where ``c`` holds, else ``b``."""
    test, x, y = condition(t, c), t.value(a), t.value(b)
    dtype, parts = common(t, finite(x), finite(y))
    then, other = x.alive or ex.TRUE, y.alive or ex.TRUE
    alive: Expr | None = None
    if x.alive is not None or y.alive is not None:
        alive = call("or", call("and", test.expr, then), call("and", call("not", test.expr), other))
        for one, side in ((parts[0], other), (parts[1], then)):
            if ex.is_const(side, False):  # what is chosen elsewhere is minus infinity
                nodes = t.within(one.nodes + 2 * test.nodes)
                axis = t.common_axis(test, one)
                return Value(t, real(t, one).expr, t.dtype, axis, alive, bounds=one.bounds, nodes=nodes)
    return make(t, "select", dtype, test, *parts, alive=alive)


def compare(t: Tracer, op: str, a: object, b: object) -> Value:
    """A comparison; with minus infinity itself it asks whether the other is it."""
    x, y = t.value(a), t.value(b)
    for one, other in ((x, y), (y, x)):
        if ex.is_const(other.alive or ex.TRUE, False) and op in ("==", "!=") and one.alive is not None:
            expr = one.alive if op == "!=" else call("not", one.alive)
            return Value(t, expr, torch.bool, one.axis, bounds=CONDITION, nodes=one.nodes)
    x, y = operand(t, x), operand(t, y)
    decided = _decided(t, op, x.bounds, y.bounds)
    if decided is not None:
        return t.value(decided)
    dtype, parts = common(t, x, y)
    if dtype == torch.bool and op not in ("==", "!="):
        parts = [number(t, v) for v in parts]
    return make(t, op, torch.bool, *parts)


def _decided(t: Tracer, op: str, x: Bounds, y: Bounds) -> bool | None:
    """The outcome of a comparison with an integer that is larger than kernels count; None: not known, or no such integer."""
    most = torch.iinfo(t.word).max
    if all(abs(n) <= most or not isinstance(n, int) for n in (*x, *y)):
        return None
    if x[1] < y[0]:
        return op in ("<", "<=", "!=")
    return op in (">", ">=", "!=") if x[0] > y[1] else None


def extreme(t: Tracer, op: str, a: object, b: object) -> Value:
    """``max`` or ``min``; minus infinity wins every minimum and loses every maximum."""
    x, y = t.value(a), t.value(b)
    if x.kind == y.kind == "bool":
        return make(t, "or" if op == "max" else "and", torch.bool, x, y)
    if x.alive is None and y.alive is None:
        return numeric(t, op, x, y)
    p, q = real(t, finite(x)), real(t, finite(y))
    both = make(t, op, t.dtype, p, q, alive=conjunction(x.alive, y.alive))
    if op == "min":
        return both
    then, other = x.alive or ex.TRUE, y.alive or ex.TRUE
    picked = call("select", then, call("select", other, both.expr, p.expr), q.expr)
    alive = call("or", then, other)
    nodes, axis = t.within(2 * both.nodes), t.common_axis(x, y)
    span = hull(p.bounds, q.bounds)
    return Value(t, picked, t.dtype, axis, None if ex.is_const(alive, True) else alive, bounds=span, nodes=nodes)


def limited(t: Tracer, op: str, x: object, limit: float) -> Value:
    """A function with a limit towards minus infinity."""
    v = t.value(x)
    inside = unary(t, op, finite(v))
    if v.alive is None:
        return inside
    picked = call("select", v.alive, inside.expr, const(limit))
    return Value(t, picked, t.dtype, v.axis, bounds=hull(inside.bounds, (limit, limit)), nodes=2 * inside.nodes)
