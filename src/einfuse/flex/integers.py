"""Bits of integers, as far as their places are known, in terms of ``//``, ``%``, ``*`` and ``+``; of conditions, the logic.

An integer made by shifts, by ``&`` with constants and by ``|`` is a union of fields: some bits of a base, moved. Where no two
fields claim the same place the union is a sum. That covers Morton codes and bit-packed indices; ``a & b`` of two unknowns does not
exist in the language, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from einfuse.flex.arithmetic import add, common, condition, fitted, is_constant, make, mul, number, operand, same_kind, sub
from einfuse.flex.value import Bounds, Value, operation
from einfuse.ir import Expr, call, const

if TYPE_CHECKING:
    from einfuse.flex.tracer import Tracer

WIDTH = 62
EVERY = (1 << WIDTH) - 1

# -- fields --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """``(base & mask) << shift`` (to the right where negative; the mask then has no bits that would fall off)."""

    base: Expr
    mask: int
    shift: int

    @property
    def places(self) -> int:
        """The bits of the result that this field may set."""
        return _moved(self.mask, self.shift)


Fields = tuple[Field, ...]


def of(e: Expr) -> Fields:
    """An integer of which nothing is known."""
    return (Field(e, EVERY, 0),)


def masked(x: Fields, mask: int) -> Fields:
    """``x & mask`` for a mask that is not negative."""
    return _merged(Field(f.base, f.mask & _moved(mask, -f.shift), f.shift) for f in x)


def moved(x: Fields, by: int) -> Fields:
    """``x << by``."""
    return _merged(Field(f.base, f.mask & ~((1 << max(0, -f.shift - by)) - 1), f.shift + by) for f in x)


def union(x: Fields, y: Fields) -> Fields:
    """``x | y``."""
    return _merged((*x, *y))


def value(x: Fields) -> Expr | None:
    """The integer by arithmetic, or None where two fields may set the same place."""
    taken = 0
    total: Expr = const(0)
    for f in x:
        if taken & f.places:
            return None
        taken |= f.places
        total = call("+", total, _arithmetic(f))
    return total


def _arithmetic(f: Field) -> Expr:
    total: Expr = const(0)
    mask, at = f.mask, 0
    while mask >> at:
        if not mask >> at & 1:
            at += 1
            continue
        run = 1
        while mask >> (at + run) & 1:
            run += 1
        part = call("//", f.base, const(1 << at)) if at else f.base
        if at >= 31:  # of an integer of 32 bits that is its sign, and the divisor would be none
            part = call("select", call("<", f.base, const(0)), const(-1), const(0))
        if at + run < WIDTH:  # a run without an end keeps the sign
            part = call("%", part, const(1 << run))
        total = call("+", total, call("*", part, const(1 << (at + f.shift))))
        at += run
    return total


def _moved(mask: int, by: int) -> int:
    return (mask << by if by >= 0 else mask >> -by) & EVERY


def _merged(parts: Iterable[Field]) -> Fields:
    """Fields of the same base and shift are one."""
    out: dict[tuple[Expr, int], int] = {}
    for f in parts:
        out[f.base, f.shift] = out.get((f.base, f.shift), 0) | f.mask
    return tuple(Field(base, mask, shift) for (base, shift), mask in out.items() if mask)


# -- operations ----------------------------------------------------------------------------------------------------------------


@operation("bitwise_and", "and", "rand")
def _bitwise_and(t: Tracer, a: Any, b: Any) -> Value:
    dtype, x, y = _operands(t, "&", a, b)
    if dtype == torch.bool:
        return make(t, "and", dtype, x, y)
    for one, other in ((x, y), (y, x)):
        mask = _constant(other)
        if mask is not None and mask >= 0:
            return _of_fields(
                t, masked(_fields(one), mask), dtype, (0, min(mask, one.bounds[1]) if one.bounds[0] >= 0 else mask), one
            )
        if mask is not None:
            return sub(t, one, _bitwise_and(t, one, ~mask))
    t.refuse("`&` of two unknown integers cannot be traced", "one of them must be a constant")


@operation("bitwise_or", "or", "ror")
def _bitwise_or(t: Tracer, a: Any, b: Any) -> Value:
    dtype, x, y = _operands(t, "|", a, b)
    if dtype == torch.bool:
        return make(t, "or", dtype, x, y)
    for one, other in ((x, y), (y, x)):
        mask = _constant(other)
        if mask is not None:
            return add(t, one, sub(t, mask, _bitwise_and(t, one, mask)))
    both = [v.bounds for v in (x, y)]
    most = max(high for _, high in both)
    bounds = (0, (1 << int(most).bit_length()) - 1) if all(0 <= low and high < EVERY for low, high in both) else None
    return _of_fields(t, union(_fields(x), _fields(y)), dtype, bounds, x, y)


@operation("bitwise_xor", "xor", "rxor")
def _bitwise_xor(t: Tracer, a: Any, b: Any) -> Value:
    dtype, x, y = _operands(t, "^", a, b)
    if dtype == torch.bool:
        return make(t, "!=", dtype, x, y)
    for one, other in ((x, y), (y, x)):
        mask = _constant(other)
        if mask is not None:
            return sub(t, add(t, one, mask), mul(t, 2, _bitwise_and(t, one, mask)))
    t.refuse("`^` of two unknown integers cannot be traced", "one of them must be a constant")


@operation("bitwise_not", "invert")
def _bitwise_not(t: Tracer, x: Any) -> Value:
    v = operand(t, x)
    return make(t, "not", torch.bool, condition(t, v)) if v.kind == "bool" else sub(t, same_kind(t, "neg", v), 1)


@operation("bitwise_left_shift", "lshift")
def _left(t: Tracer, x: Any, by: Any) -> Value:
    v, n = number(t, _integer(t, "<<", x)), _shift(t, by)
    low, high = v.bounds
    return _of_fields(t, moved(_fields(v), n), v.dtype, (low * (1 << n), high * (1 << n)), v)


@operation("bitwise_right_shift", "rshift")
def _right(t: Tracer, x: Any, by: Any) -> Value:
    v, n = number(t, _integer(t, ">>", x)), _shift(t, by)
    low, high = (b if isinstance(b, float) else b >> n for b in v.bounds)
    return _of_fields(t, moved(_fields(v), -n), v.dtype, (low, high), v)


def _shift(t: Tracer, by: object) -> int:
    n = int(by) if isinstance(by, int) else is_constant(t.value(by))
    if not isinstance(n, int) or not 0 <= n < WIDTH:
        t.refuse("a shift by an unknown number of places cannot be traced", "multiply by a power of two")
    return n


def _operands(t: Tracer, op: str, a: Any, b: Any) -> tuple[torch.dtype, Value, Value]:
    dtype, (x, y) = common(t, _integer(t, op, a), _integer(t, op, b))
    return dtype, x, y


def _integer(t: Tracer, op: str, x: object) -> Value:
    v = operand(t, x)
    if v.kind == "float":
        t.refuse(f"`{op}` takes integers or conditions, found a float", "compare it first")
    return v


def _constant(v: Value) -> int | None:
    n = is_constant(v)
    return n if isinstance(n, int) else None


def _fields(v: Value) -> Fields:
    return v.fields if v.fields is not None else of(v.expr)


def _of_fields(t: Tracer, f: Fields, dtype: torch.dtype, bounds: Bounds | None, *origin: Value) -> Value:
    made, axis = value(f), t.common_axis(*origin)
    nodes = t.within(sum(v.nodes for v in origin) + 5 * len(f))
    bounds = (-EVERY, EVERY) if bounds is None else bounds
    if made is None:  # two fields overlap: what comes next (& with a constant) may separate them
        return Overlapping(t, const(0), dtype, axis, bounds=bounds, fields=f, nodes=nodes)
    return fitted(t, Value(t, made, dtype, axis, bounds=bounds, fields=f, nodes=nodes))


class Overlapping(Value):
    """A union of overlapping fields: a value only once a mask has separated them."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name == "expr":
            tracer: Tracer = super().__getattribute__("tracer")
            tracer.refuse(
                "`|` of integers whose bits overlap cannot be traced", "add them, or mask the bits before joining them"
            )
        return super().__getattribute__(name)
