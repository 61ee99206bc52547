"""Integers of kernels have 32 bits: what int inputs hold, and what is computed of it, has to fit. Looked at before a kernel runs.

    doc[b, i] * N + j        doc from 0 to 40, N = 4096, j from 0 to 4095        ->        from 0 to 167,935: fits

The ranges are sound, not sharp: what is refused need not be wrong. Tables that are read inside ``hash`` alone may hold anything: it is
defined on the low 32 bits of its operands, and sums and products of integers keep them. So may lists: the host looks into those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from einfuse.ir import Cascade, Expr
from einfuse.ir import expr as ex
from einfuse.ir.reducers import LEAST, MISSING, MOST
from einfuse.ir.rewrite import statements
from einfuse.ir.text import show_expr
from einfuse.runtime.given import Given

Range = tuple[int, int]
_COMPUTED = ("+", "-", "*", "neg", "abs")
"""What makes wide numbers of narrow ones."""
_RING = ("+", "-", "*", "neg")
"""What the low 32 bits of the result follow from those of the operands by."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The int ``tables`` of a cascade whose values have to fit; ``computed`` with are some: there narrow entries may make wide numbers."""

    tables: tuple[str, ...]
    computed: frozenset[str]

    def looked_at(self, given: Given) -> dict[str, torch.Tensor]:
        """Those tables whose values decide for a call."""
        found = {n: given.tensors[n] for n in self.tables if n in given.tensors}
        return {n: x for n, x in found.items() if x.dtype == torch.int64 or n in self.computed}


def counted(cascade: Cascade) -> Counted:
    """What has to be looked at for a call."""
    ints = {t.name for t in cascade.inputs if t.dtype == "int" and not t.param}
    found = [(e.name, inside) for x in statements(cascade) for whole in x.expressions for e, inside in _read(whole, False)]
    read = {n for n, _ in found}
    return Counted(
        tuple(t.name for t in cascade.inputs if t.name in ints & read), frozenset(n for n, inside in found if inside)
    )


def _read(e: Expr, inside: bool) -> Iterator[tuple[Expr, bool]]:
    """Every read of a tensor whose value has to fit, and whether anything is computed with it."""
    if e.op == "load":
        yield e, inside
    for a in _operands(e):
        yield from _read(a, e.op in _COMPUTED or (inside and e.op in _RANGES))


def _operands(e: Expr) -> Iterator[Expr]:
    """The operands that have to fit: of ``hash`` not what its low bits follow from."""
    for a in e.args:
        yield from _beneath(a) if e.op == "hash" else (a,)


def _beneath(e: Expr) -> Iterator[Expr]:
    if e.op in _RING:
        for a in e.args:
            yield from _beneath(a)
    elif e.op == "load":
        yield from e.args
    else:
        yield e


def ranges(cascade: Cascade, tables: Mapping[str, torch.Tensor]) -> Mapping[str, Range] | None:
    """From where to where the values of tables go; None where nobody looks. Tables on a GPU are not waited for: of 64-bit ones the device
    asserts that their entries fit."""
    if all(x.is_cpu for x in tables.values()):
        return {n: _of_table(x) for n, x in tables.items() if x.numel()}
    for name, x in tables.items():
        if x.is_cuda and x.dtype == torch.int64:
            torch._assert_async(((x >= LEAST) & (x <= MOST)).all(), f"{cascade.name}: {name} holds more, and {_REASON}")
    return None


def _same(found: Range) -> Range:
    return found


def rounded(found: Range) -> Range:
    """From 0, or from a power of two below, to one above."""
    return -(1 << (-found[0]).bit_length()) if found[0] < 0 else 0, 1 << found[1].bit_length() if found[1] > 0 else 0


def bits(given: Given, tables: Mapping[str, Range]) -> tuple[object, ...]:
    """How many bits each size, whole host number and range of a table takes, below 0 or not: what `rounded` ranges follow from."""
    whole = [
        y for n, x in given.numbers.items() if isinstance(x, int) for y in (n, x.bit_length() if x >= 0 else -x.bit_length())
    ]
    entries = [y for n, x in tables.items() for y in (n, *rounded(x))] if tables else ()
    return (*given.sizes, *[x.bit_length() for x in given.sizes.values()], *whole, *entries)


@dataclass(frozen=True, slots=True)
class Known:
    """From where to where sizes, whole host numbers and the entries of tables go."""

    sizes: Mapping[str, Range]
    numbers: Mapping[str, Range]
    tables: Mapping[str, Range]

    @staticmethod
    def of(given: Given, tables: Mapping[str, Range], wider: Callable[[Range], Range] = _same) -> Known:
        """Of a call; ``wider`` makes a range of each that holds it."""
        whole = {n: x for n, x in given.numbers.items() if isinstance(x, int) and not isinstance(x, bool)}
        sizes, numbers = ({n: wider((x, x)) for n, x in known.items()} for known in (given.sizes, whole))
        return Known(sizes, numbers, {n: wider(x) for n, x in tables.items()})


def fits(cascade: Cascade, known: Known) -> bool:
    """Whether all integers fit."""
    try:
        check(cascade, known)
    except ValueError:
        return False
    return True


def check(cascade: Cascade, known: Known) -> None:
    """Raises ValueError that names the first expression whose values may not fit."""
    every = _Ranges(cascade, known)
    for x in statements(cascade):
        for e in x.expressions:
            every.of(e)


_REASON = "integers of kernels have 32 bits; subtract an offset, or number what there is"


def _of_table(x: torch.Tensor) -> Range:
    least, most = map(int, torch.aminmax(x.detach()))
    if least == MISSING and x.dtype == torch.int64:  # a slot of a list that does not exist, which nothing is computed of
        some = x[x != MISSING]
        return _of_table(some) if some.numel() else (0, 0)
    return least, most


@dataclass(slots=True)
class _Ranges:
    cascade: Cascade
    known: Known

    def of(self, e: Expr) -> Range | None:
        """From where to where the values of ``e`` go; None where that is not known, or they are no whole numbers. Raises ValueError."""
        parts = [self.of(a) for a in _operands(e)]
        found = self._leaf(e) if e.op in ex.LEAVES else None
        if e.op == "hash":
            found = 0, MOST
        elif e.op in _RANGES:
            known = [p for p in parts[e.op == "select" :] if p is not None]
            found = _RANGES[e.op](*known) if len(known) == len(parts) - (e.op == "select") else None
        if found is not None and (found[0] < LEAST or found[1] > MOST):
            name = e.name if e.op == "load" and not e.args else show_expr(e)
            values = f"is {found[0]}" if found[0] == found[1] else f"goes from {found[0]} to {found[1]}"
            raise ValueError(f"{self.cascade.name}: {name} {values}, and {_REASON}")
        return found

    def _leaf(self, e: Expr) -> Range | None:
        known = self.known
        if e.op == "index":
            size = self.cascade.rank(e.name).size
            return 0, max((size if isinstance(size, int) else known.sizes[size][1]) - 1, 0)
        if e.op == "load":
            return known.tables.get(e.name, known.numbers.get(e.name))
        if e.op == "size":
            return known.sizes.get(e.name)
        value = e.value if e.op == "const" else None
        return (value, value) if isinstance(value, int) and not isinstance(value, bool) else None


def _product(a: Range, b: Range) -> Range:
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)


def _quotient(a: Range, b: Range) -> Range:
    most = max(abs(a[0]), abs(a[1]))
    if b[0] > 0:
        corners = [x // y for x in a for y in b]
        return min(corners), max(corners)
    return -most, most


def _remainder(a: Range, b: Range) -> Range:
    return min(b[0] + 1, 0), max(b[1] - 1, 0)


def _absolute(a: Range) -> Range:
    ends = abs(a[0]), abs(a[1])
    return (0 if a[0] <= 0 <= a[1] else min(ends)), max(ends)


_RANGES: dict[str, Callable[..., Range]] = {
    "+": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "-": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "*": _product,
    "//": _quotient,
    "%": _remainder,
    "neg": lambda a: (-a[1], -a[0]),
    "abs": _absolute,
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "sign": lambda a: (-1, 1),
    "select": lambda a, b: (min(a[0], b[0]), max(a[1], b[1])),
}
