"""Bitwise arithmetic on integers whose bits come from known places, in terms of ``//``, ``%``, ``*`` and ``+``.

An integer made by shifts, by ``&`` with constants and by ``|`` is a union of fields: some bits of a base, moved. Where no two
fields claim the same place the union is a sum. That covers Morton codes and bit-packed indices; ``a & b`` of two unknowns does not
exist in the language, and is refused by whoever calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from einfuse.ir import Expr, call, const

WIDTH = 62
EVERY = (1 << WIDTH) - 1


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


def fields(e: Expr) -> Fields:
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
