"""Bits of integers, as far as their places are known (see `einfuse.flex.bits`); of conditions, the logic."""

from __future__ import annotations

from typing import Any

from einfuse.flex import bits
from einfuse.flex.arithmetic import (
    is_constant,
    make,
    number,
    operand,
    same_kind,
    sub,
)
from einfuse.flex.registry import operation
from einfuse.flex.tracer import Tracer
from einfuse.flex.value import Value
from einfuse.ir import const


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
