"""The typed operations that every function of torch is made of: torch's promotion, minus infinity, and vectors.

Minus infinity is not a number here: a value carries the condition under which it is not (``alive``), and the score's becomes part of
the mask. So ``torch.where(q_idx >= kv_idx, score, -inf)`` is the causal mask, with its sparsity, and a row of nothing but
minus infinities is an empty row.
"""

from __future__ import annotations

from einfuse.flex.tracer import Tracer
from einfuse.flex.value import Kind, Value
from einfuse.ir import Expr, call, conjunction, const
from einfuse.ir import expr as ex

MINUS = "minus infinity"


def operand(t: Tracer, x: object) -> Value:
    """A value that cannot be minus infinity."""
    v = t.value(x)
    if v.alive is not None:
        t.refuse(f"{MINUS} can be chosen by torch.where and added to, and nothing else", "choose it last")
    return v


def number(t: Tracer, x: object) -> Value:
    """A value that is not a condition: True is 1."""
    v = operand(t, x)
    return Value(t, call("int", v.expr), "int", v.axis) if v.kind == "bool" else v


def condition(t: Tracer, x: object) -> Value:
    """A value as a condition: a number is true where it is not 0."""
    v = operand(t, x)
    return v if v.kind == "bool" else Value(t, call("!=", v.expr, const(0)), "bool", v.axis)


def real(t: Tracer, x: object) -> Value:
    """A value as a float."""
    v = number(t, x)
    return v if v.kind == "float" else Value(t, call("float", v.expr), "float", v.axis)


def make(t: Tracer, op: str, kind: Kind, *operands: Value, alive: Expr | None = None) -> Value:
    """The function ``op`` of the IR."""
    return Value(t, call(op, *(x.expr for x in operands)), kind, t.common_axis(*operands), alive)


def wider(*operands: Value) -> Kind:
    kinds = {x.kind for x in operands}
    return "float" if "float" in kinds else "int" if "int" in kinds else "bool"


def numeric(t: Tracer, op: str, a: object, b: object) -> Value:
    """A binary operation on numbers whose kind is that of the wider one."""
    x, y = number(t, a), number(t, b)
    return make(t, op, wider(x, y), x, y)


def unary(t: Tracer, op: str, x: object) -> Value:
    """A function of one number whose result is a float."""
    v = number(t, x)
    return make(t, op, "float", v)


def same_kind(t: Tracer, op: str, x: object) -> Value:
    """A function of one number that keeps its kind."""
    v = number(t, x)
    return make(t, op, v.kind, v)


def add(t: Tracer, a: object, b: object) -> Value:
    """``a + b``; minus infinity stays."""
    x, y = t.value(a), t.value(b)
    if x.kind == y.kind == "bool":
        return make(t, "or", "bool", x, y)
    alive = conjunction(x.alive, y.alive) if x.alive is not None or y.alive is not None else None
    p, q = number(t, finite(x)), number(t, finite(y))
    return make(t, "+", wider(p, q), p, q, alive=alive)


def sub(t: Tracer, a: object, b: object) -> Value:
    x, y = t.value(a), number(t, b)
    p = number(t, finite(x))
    return make(t, "-", wider(p, y), p, y, alive=x.alive)


def mul(t: Tracer, a: object, b: object) -> Value:
    """``a * b``; minus infinity stays where the other is a positive constant."""
    x, y = t.value(a), t.value(b)
    if x.kind == y.kind == "bool":
        return make(t, "and", "bool", x, y)
    for one, other in ((x, y), (y, x)):
        if one.alive is not None and ex.is_const(other.expr) and other.alive is None and float(other.expr.value or 0) > 0:
            return make(t, "*", "float", finite(one), other, alive=one.alive)
    return numeric(t, "*", x, y)


def finite(x: Value) -> Value:
    """The value where it is not minus infinity."""
    return x if x.alive is None else Value(x.tracer, x.expr, x.kind, x.axis)


def where(t: Tracer, c: object, a: object, b: object) -> Value:
    """``a`` where ``c`` holds, else ``b``."""
    test, x, y = condition(t, c), t.value(a), t.value(b)
    if x.kind == "bool" and y.kind != "bool":
        x = number(t, x)
    if y.kind == "bool" and x.kind != "bool":
        y = number(t, y)
    axis = t.common_axis(test, x, y)
    if x.alive is None and y.alive is None:
        return Value(t, call("select", test.expr, x.expr, y.expr), wider(x, y), axis)
    then, other = x.alive or ex.TRUE, y.alive or ex.TRUE
    alive = call("or", call("and", test.expr, then), call("and", call("not", test.expr), other))
    if ex.is_const(other, False):
        return Value(t, x.expr, "float", axis, alive)
    if ex.is_const(then, False):
        return Value(t, y.expr, "float", axis, alive)
    return Value(t, call("select", test.expr, x.expr, y.expr), "float", axis, alive)


def compare(t: Tracer, op: str, a: object, b: object) -> Value:
    """A comparison; with minus infinity itself it asks whether the other is it."""
    x, y = t.value(a), t.value(b)
    for one, other in ((x, y), (y, x)):
        if ex.is_const(other.alive or ex.TRUE, False) and op in ("==", "!=") and one.alive is not None:
            return Value(t, one.alive if op == "!=" else call("not", one.alive), "bool", one.axis)
    if x.kind != "bool" or y.kind != "bool" or op not in ("==", "!="):
        x, y = number(t, x), number(t, y)
    return make(t, op, "bool", operand(t, x), operand(t, y))


def extreme(t: Tracer, op: str, a: object, b: object) -> Value:
    """``max`` or ``min``; minus infinity wins every minimum and loses every maximum."""
    x, y = t.value(a), t.value(b)
    if x.alive is None and y.alive is None:
        return numeric(t, op, x, y)
    if op == "min":
        alive = conjunction(x.alive, y.alive)
        return make(t, op, "float", finite(x), finite(y), alive=alive)
    then, other = x.alive or ex.TRUE, y.alive or ex.TRUE
    both = call("max", x.expr, y.expr)
    picked = call("select", then, call("select", other, both, x.expr), y.expr)
    alive = call("or", then, other)
    return Value(t, picked, "float", t.common_axis(x, y), None if ex.is_const(alive, True) else alive)


def limited(t: Tracer, op: str, x: object, limit: float) -> Value:
    """A function with a limit towards minus infinity."""
    v = t.value(x)
    if v.alive is None:
        return unary(t, op, v)
    inside = unary(t, op, finite(v))
    return Value(t, call("select", v.alive, inside.expr, const(limit)), "float", v.axis)


def is_constant(x: Value) -> int | float | None:
    """The number that a value is, if it is one."""
    value = x.expr.value if x.expr.op == "const" else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def integer_power(t: Tracer, x: Value, n: int) -> Value:
    """``x * x * ...``: exact for integers, and cheap."""
    out: Value | None = None
    square = x
    while n:
        if n & 1:
            out = square if out is None else make(t, "*", x.kind, out, square)
        n >>= 1
        square = make(t, "*", x.kind, square, square) if n else square
    return Value(t, const(1), x.kind, x.axis) if out is None else out
